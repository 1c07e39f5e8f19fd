"""How many minutes a run on models of this machine will take: measured on a few calls, before it starts.

Only calls that are free are made; how long a provider will take is not asked.

Source: ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import dspy
from dspy.utils.exceptions import LMError

from cuesmith.programs.comparison import BadInput, Settings, one_line
from cuesmith.programs.evaluation import evaluate
from cuesmith.programs.tasks import Task
from cuesmith.signatures import STYLES, WriteInstructions
from cuesmith.teleprompters.runtime._dspy import is_free, named_predictors
from cuesmith.teleprompters.runtime.candidate import Json
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.evidence import gold, inputs_of, shown_example
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.replies import ADAPTER
from cuesmith.teleprompters.search.context import ProgramContext

WRITTEN = 200
"""Tokens that the measured request of the optimizer may write; about as many as most requests do."""

SHOWN = 4
"""Examples that it shows, as the request for a first instruction does."""

RACED = 0.4
"""Share of the program runs in a compile's bound that it takes mostly: candidates that fall behind are dropped."""

LONGER = 2.0
"""How much longer a program run takes at most, mostly, once its prompt has steps and demonstrations."""

Span = tuple[float, float]
"""About how long something takes, in minutes: at least, at most."""


@dataclass(frozen=True)
class Pace:
    """How fast the two models are here and now; None is a provider's, which was not asked.

    Attributes:
        run: Seconds that a run of the program takes, of the time that several at once take.
        request: Seconds that a request to the optimizer takes.
        at_once: How many runs there were at once.
    """

    run: float | None
    request: float | None
    at_once: int


@dataclass(frozen=True)
class Expected:
    """About how long a run will take.

    Attributes:
        pace: What was measured.
        compiling: Minutes of all compiles together.
        scoring: Minutes of the held-out scores.
    """

    pace: Pace
    compiling: Span
    scoring: Span

    @property
    def whole(self) -> Span:
        """Minutes of both."""
        return self.compiling[0] + self.scoring[0], self.compiling[1] + self.scoring[1]

    def lines(self) -> list[str]:
        """For a person, in two sentences."""
        speeds = {
            f"a run of the program ({self.pace.at_once} at once)": self.pace.run,
            "a request to the optimizer": self.pace.request,
        }
        measured = [f"{seconds:.2g} s {what}" for what, seconds in speeds.items() if seconds is not None]
        provider = "; a provider's time comes on top" if len(measured) < len(speeds) else ""
        parts = f"{in_minutes(self.compiling)} to compile, {in_minutes(self.scoring)} for the held-out scores"
        return [
            f"about {in_minutes(self.whole)} minutes: {parts}{provider}",
            f"measured just now: {', '.join(measured)}; Ctrl-C keeps the best so far",
        ]

    def json(self) -> dict[str, Json]:
        """The same figures."""
        spans = {"whole": self.whole, "compiling": self.compiling, "held_out": self.scoring}
        seconds = {"program_run": self.pace.run, "optimizer_request": self.pace.request}
        return {
            "minutes": {name: [round(each, 2) for each in span] for name, span in spans.items()},
            "seconds": {name: None if value is None else round(value, 3) for name, value in seconds.items()},
            "at_once": self.pace.at_once,
        }


def measure(settings: Settings, task: Task, target: dspy.BaseLM, optimizer: dspy.BaseLM) -> Pace:
    """Load the models and time a few calls.

    Raises:
        BadInput: If a model file cannot be loaded.
    """
    student = dspy.ChainOfThought(task.signature)
    return pace_of(student, task.train[: settings.in_flight], task.metric, target, optimizer)


def pace_of(
    program: dspy.Module,
    shown: Sequence[dspy.Example],
    metric: MetricFunction,
    target: dspy.BaseLM | None,
    optimizer: dspy.BaseLM | None,
) -> Pace:
    """Load the models that are free and time a few calls of them: the program on all of `shown` at once, and a request.

    Raises:
        BadInput: If a model file cannot be loaded.
    """
    free = [lm for lm in (target, optimizer) if lm is not None and is_free(lm)]
    for lm in free:
        _load(lm)

    def run() -> None:
        evaluate(program, shown, metric, lm=target, max_in_flight=len(shown))

    def request() -> None:
        assert optimizer is not None
        optimizer(_request(named_predictors(program)[0][1].signature, shown), max_tokens=WRITTEN)

    return Pace(
        _seconds(run) / len(shown) if target in free else None,
        _seconds(request) if optimizer in free else None,
        len(shown),
    )


def expect(settings: Settings, task: Task, forecasts: Iterable[Forecast], pace: Pace) -> Expected:
    """Return about how long a run takes at that pace, from the compilers' own bounds and the budget."""
    spans = [minutes_of(bound, settings.budget_calls, pace) for bound in forecasts]
    compiled = len(settings.variants)
    held_out = len(task.test) * (pace.run or 0.0)
    scoring = ((1 + compiled) * held_out / 60, (1 + compiled * LONGER) * held_out / 60)
    return Expected(pace, (sum(least for least, _ in spans), sum(most for _, most in spans)), scoring)


def minutes_of(bound: Forecast, cap: int | None, pace: Pace) -> Span:
    """Return about how many minutes a compile takes at that pace.

    Args:
        bound: The most that it makes.
        cap: Calls that it may make; None if there is no cap.
        pace: What was measured; a provider's time is not in it.
    """
    run, request = pace.run or 0.0, pace.request or 0.0
    cases = [_calls(bound, cap, share) for share in (RACED, 1.0)]
    least = min(requests * request + runs * run for requests, runs in cases)
    most = max(requests * request + runs * run * LONGER for requests, runs in cases)
    return least / 60, most / 60


def _calls(bound: Forecast, cap: int | None, share: float) -> tuple[float, float]:
    """Return how many requests and runs a compile makes until it ends or its budget does.

    Args:
        bound: The most that it makes.
        cap: Calls that it may make.
        share: Of the bound's runs, those that it makes.
    """
    runs = share * (bound.calls - bound.optimizer_calls)
    done = min(1.0, min(bound.calls, cap or bound.calls) / (bound.optimizer_calls + runs))
    return done * bound.optimizer_calls, done * runs


def _load(lm: dspy.BaseLM) -> None:
    try:
        lm("Hello", max_tokens=1)
    except LMError as error:
        raise BadInput(one_line(error.__cause__ or error)) from None


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _request(signature: type[dspy.Signature], shown: Sequence[dspy.Example]) -> str:
    """Return the text of a request for a first instruction."""
    examples = [shown_example(inputs_of(each), gold(each, signature)) for each in shown[:SHOWN]]
    context = ProgramContext({"predict": signature}, {"predict": signature.instructions})
    inputs = {"context": context.shown("predict", signature.instructions), "examples": examples,
              "style": STYLES["brief"]}  # fmt: skip
    return "\n\n".join(str(message["content"]) for message in ADAPTER.format(WriteInstructions, [], inputs))


def in_minutes(span: Span) -> str:
    """A span in words: "2 to 5"."""
    least, most = (f"{each:.0f}" if each >= 3 else f"{max(0.1, each):.1f}" for each in span)
    return least if least == most else f"{least} to {most}"
