"""What a compile would cost at most, before it is begun: in calls, and in dollars as far as prices are known.

Source: ours; the bounds on calls are the compilers' own (`Compiler.estimate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import dspy

from cuesmith.programs.comparison import one_line
from cuesmith.teleprompters.registry import COMPILERS, compiler_classes, compiler_of
from cuesmith.teleprompters.runtime import _litellm
from cuesmith.teleprompters.runtime._dspy import is_free
from cuesmith.teleprompters.runtime.candidate import Json
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.metric import MetricFunction

REQUEST_TOKENS, REPLY_TOKENS = 2_000, 500
"""Tokens of a request to an optimizer model, and of its reply, where a price is foretold. Ours: most are shorter."""


@dataclass(frozen=True)
class Entrant:
    """A compiler with its options, as `compare_compilers` and the forecasts take it.

    Attributes:
        compiler: Its name, as `cuesmith.compile` takes it; also "abo >> apo".
        options: Of its constructor, besides those that are the same for all (model, seed, budget).
    """

    compiler: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class CompileCost:
    """What one compile would cost at most.

    Attributes:
        name: What the compiler is called.
        forecast: Upper bounds in calls; None if it cannot work here.
        usd: Upper bound in dollars by what calls cost until now; None where a price is not known.
        reason: Why there is no forecast; "" if there is one.
    """

    name: str
    forecast: Forecast | None
    usd: float | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Json]:
        """Return the figures as JSON data; null stands for what is not known."""
        bounds = ("calls", "optimizer_calls", "program_runs")
        calls: dict[str, Json] = {name: getattr(self.forecast, name, None) for name in bounds}
        return {"compiler": self.name, **calls, "usd": self.usd, "reason": self.reason}


@dataclass(frozen=True)
class Prices:
    """Dollars a call; None where they are not known.

    Attributes:
        run: Of one run of the program, its metric's calls included.
        request: Of one request to the optimizer model.
    """

    run: float | None
    request: float | None

    def of(self, bound: Forecast) -> float | None:
        """Return the dollars of a compile within those bounds; None if a price is not known."""
        if self.run is None or (self.request is None and bound.optimizer_calls):
            return None
        return bound.program_runs * self.run + bound.optimizer_calls * (self.request or 0.0)


def request_price(lm: dspy.BaseLM | None) -> float | None:
    """Return what a request to an optimizer model costs, at `REQUEST_TOKENS` and `REPLY_TOKENS`; None if unknown."""
    if lm is None:
        return None
    if is_free(lm):
        return 0.0
    if not isinstance(getattr(lm, "engine", "auto"), str):
        return None
    _litellm.load()
    for known in _litellm.prices_of([lm.model]).values():
        sent, written = known.get("input_cost_per_token"), known.get("output_cost_per_token")
        if sent is not None and written is not None:
            return float(REQUEST_TOKENS * sent + REPLY_TOKENS * written)
    return None


Compilers: TypeAlias = Mapping[str, Entrant | Mapping[str, object]] | Sequence[str]
"""Names; or name -> options; or any label -> `Entrant`."""


def entrants(compilers: Compilers | None) -> dict[str, Entrant]:
    """Return label -> compiler with options; all compilers that have a name by default.

    Args:
        compilers: As `Compilers` says.

    Raises:
        TypeError, ValueError: If there is none, if one is named twice, or if there is no such compiler.
    """
    if compilers is None:
        return {name: Entrant(name) for name in COMPILERS}
    if isinstance(compilers, str):
        raise TypeError(f"compilers={compilers!r} must be a list of names, e.g. [{compilers!r}]")
    if not isinstance(compilers, Mapping):
        if len(set(compilers)) < len(compilers):
            raise ValueError(f"compilers={list(compilers)!r} names one twice: give a mapping of labels to Entrant(...)")
        compilers = {name: {} for name in compilers}
    if not compilers:
        raise ValueError("compilers is empty: name at least one")
    found = {}
    for label, given in compilers.items():
        one = given if isinstance(given, Entrant) else Entrant(label, dict(given))
        compiler_classes(one.compiler)
        found[label] = one
    return found


def compile_costs(
    program: dspy.Module,
    compilers: Mapping[str, Entrant],
    *,
    metric: MetricFunction,
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example] | None = None,
    optimizer_lm: dspy.BaseLM | None = None,
    run_price: float | None = None,
) -> tuple[CompileCost, ...]:
    """Return what each compiler would use at most, the cheapest first; calls nothing.

    Args:
        program: The student.
        compilers: As `entrants` returns them.
        metric: The judge.
        trainset: As a compiler would get it.
        valset: Likewise.
        optimizer_lm: The model that writes prompts, for its price.
        run_price: Dollars that a run of the program has cost; None if that is not known.
    """
    prices, found = Prices(run_price, request_price(optimizer_lm)), []
    for label, one in compilers.items():
        try:
            compiler = compiler_of(one.compiler, metric, optimizer_lm=optimizer_lm, **one.options)
            bound = compiler.estimate(program, trainset=trainset, valset=valset)
            found.append(CompileCost(label, bound, prices.of(bound)))
        except (ImportError, TypeError, ValueError) as error:
            found.append(CompileCost(label, None, reason=one_line(error)))
    return tuple(sorted(found, key=lambda cost: (cost.forecast is None, cost.forecast.calls if cost.forecast else 0)))
