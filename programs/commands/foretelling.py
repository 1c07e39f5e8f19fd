"""What a compile would take at most: calls, dollars where prices are known, minutes where a pace can be measured.

Nothing is asked of a provider; models on this machine are timed on a few calls.

Source: ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import dspy

from cuesmith.programs.costing import Prices, request_price
from cuesmith.programs.pace import Pace, Span, in_minutes, minutes_of, pace_of
from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import Json
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.ledger import Budget

if TYPE_CHECKING:
    from cuesmith.programs.commands.workbench import PreparedWork

AT_ONCE = 8
"""Program runs that are timed."""


@dataclass(frozen=True)
class Foretold:
    """What a compile would take at most.

    Attributes:
        bound: The compiler's own bounds, without the budget.
        budget: The caps.
        usd: About the dollars at most; None if a price is not known.
        pace: How fast the models of this machine are.
        minutes: About how long it takes there; None if no model is on this machine.
    """

    bound: Forecast
    budget: Budget
    usd: float | None
    pace: Pace
    minutes: Span | None

    @property
    def calls(self) -> int:
        """Calls at most: the bound, or the cap where that is less."""
        return min(self.bound.calls, self.budget.calls or self.bound.calls)

    @property
    def dollars(self) -> float | None:
        """Dollars at most, likewise."""
        share = self.calls / self.bound.calls if self.bound.calls else 0.0
        known = (None if self.usd is None else self.usd * share, self.budget.usd)
        return min((value for value in known if value is not None), default=None)

    def lines(self) -> list[str]:
        """For a person."""
        bound = self.bound
        capped = "" if self.calls == bound.calls else f" (without the cap {bound.calls:,})"
        usd = f"about ${self.dollars:.2f} at most" if self.usd else "free"
        if self.usd is None:
            usd = "price unknown" + (", so that usd= cannot be held: cap calls= or tokens=" if self.budget.usd else "")
        parts = [
            f"- calls: at most {self.calls:,}{capped}; {bound.program_runs:,} runs of the program and "
            f"{bound.optimizer_calls:,} requests to the optimizer",
            f"- cost: {usd}",
        ]
        if self.minutes is not None:
            more = "; a provider's time comes on top" if None in (self.pace.run, self.pace.request) else ""
            parts.append(f"- time: about {in_minutes(self.minutes)} minutes, by a few calls timed just now{more}")
        return parts

    def json(self) -> dict[str, Json]:
        """The same figures."""
        return {
            "calls": self.calls, "calls_without_cap": self.bound.calls, "program_runs": self.bound.program_runs,
            "optimizer_calls": self.bound.optimizer_calls, "usd": self.dollars,
            "minutes": None if self.minutes is None else [round(each, 2) for each in self.minutes],
        }  # fmt: skip


def foretell(work: PreparedWork, bound: Forecast, budget: Budget) -> Foretold:
    """Return what a compile would take.

    Args:
        work: The program, its data and its models.
        bound: What the compiler says of itself.
        budget: The caps.
    """
    predictors = named_predictors(work.program)
    target = work.target or dspy.settings.lm or predictors[0][1].lm
    run = request_price(target)
    usd = Prices(None if run is None else run * len(predictors), request_price(work.optimizer or target)).of(bound)
    shown = work.task.train[:AT_ONCE]
    pace = pace_of(work.program, shown, work.metric, target, work.optimizer)
    timed = pace.run is not None or pace.request is not None
    return Foretold(bound, budget, usd, pace, minutes_of(bound, budget.calls, pace) if timed else None)
