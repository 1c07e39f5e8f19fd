"""What became of one program run on one example, and of a candidate on many.

A provider's failure and a metric's failure are *missing*: they say nothing of the candidate and are never
counted as zero. What the model did wrong (a reply that cannot be parsed) is a failure and counts as 0.
Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import dspy
import numpy as np
from pydantic import TypeAdapter

if TYPE_CHECKING:
    from cuesmith.teleprompters.runtime.candidate import Candidate


@dataclass(frozen=True)
class Step:
    """One call of one predictor inside a program run; values are JSON data (`to_json`), read by `typed_fields`.

    Attributes:
        predictor: Its name.
        inputs: What it was given.
        outputs: Its fields, as they were read.
        aside: What the reply held before its first field, which no field shows; "" if nothing, or if it is not known.
    """

    predictor: str
    inputs: Mapping[str, object]
    outputs: Mapping[str, object]
    aside: str = ""


@dataclass(frozen=True)
class Scored:
    """The program answered and the metric judged it.

    Attributes:
        score: The metric's.
        feedback: Its words.
        trace: The predictor calls.
        cut: Replies that were cut at the limit of tokens.
        objectives: Name -> score of what else counts, higher being better; as the metric gave them.
        answer: What the program returned, as JSON data; kept only for a metric that judges all answers together.
    """

    score: float
    feedback: str = ""
    trace: tuple[Step, ...] = ()
    cut: int = 0
    objectives: Mapping[str, float] = field(default_factory=dict)
    answer: object = None


@dataclass(frozen=True)
class ParseFailure:
    """The model's fault: its reply could not be used. Counts as 0.0, or what the student's worst answer scored if less.

    Attributes:
        reason: What was wrong with the reply.
        response: The reply itself, as far as it is known.
        trace: The predictor calls before it.
        raised: Whether it was the program's own code that raised.
        cut: Replies that were cut at the limit of tokens: it may be the limit's fault rather than the prompt's.
        failed: The call that was under way; without outputs. None if it is not known, or none was.
        unfit: Whether the program returned what is no `dspy.Prediction`, and the metric raised on it.
        score: What it counts as.
    """

    reason: str
    response: str = ""
    trace: tuple[Step, ...] = ()
    raised: bool = False
    cut: int = 0
    unfit: bool = False
    failed: Step | None = None
    score: float = 0.0

    def writer(self, names: Sequence[str]) -> str | None:
        """Return the predictor whose reply could not be used; None if it is none of `names`.

        Where no call is known to have been under way, it is the first one, in their order, without a call in the trace.
        """
        if self.failed is not None:
            return self.failed.predictor if self.failed.predictor in names else None
        done = {step.predictor for step in self.trace}
        return next((name for name in names if name not in done), None)


@dataclass(frozen=True)
class ProviderFailure:
    """The provider or its network failed after all retries: missing, never a zero."""

    reason: str


@dataclass(frozen=True)
class MetricError:
    """The metric raised, or returned something that is no finite number: missing, never a zero."""

    reason: str
    trace: tuple[Step, ...] = ()


Outcome: TypeAlias = Scored | ParseFailure | ProviderFailure | MetricError

_KINDS: dict[str, type[Scored] | type[ParseFailure] | type[ProviderFailure] | type[MetricError]] = {
    kind.__name__: kind for kind in (Scored, ParseFailure, ProviderFailure, MetricError)
}
_ADAPTERS = {name: TypeAdapter(kind) for name, kind in _KINDS.items()}


def value(outcome: Outcome) -> float | None:
    """Return the score an outcome counts as, or None where it is missing."""
    match outcome:
        case Scored() | ParseFailure():
            return outcome.score
        case ProviderFailure() | MetricError():
            return None


def outcome_to_json(outcome: Outcome) -> dict[str, object]:
    """Return an outcome as JSON data."""
    name = type(outcome).__name__
    rare = {name for name in ("objectives", "answer", "unfit", "failed") if not getattr(outcome, name, None)}
    rare |= {"score"} if isinstance(outcome, ParseFailure) else set()
    body: object = _ADAPTERS[name].dump_python(outcome, mode="json", exclude=rare)
    return {"kind": name, "body": body}


def outcome_from_json(data: Mapping[str, object]) -> Outcome:
    """Rebuild an outcome from `outcome_to_json`.

    Raises:
        KeyError: If the kind is unknown.
        pydantic.ValidationError: If the body does not fit.
    """
    outcome: Outcome = _ADAPTERS[str(data["kind"])].validate_python(data["body"])
    return outcome


_MOST_ROUNDS, _EXACT = 1000, 1e-9
"""Of the least squares behind `rank`: rounds, and the share of the largest score below which a difference is none."""

Together: TypeAlias = Callable[[Sequence[dspy.Example], Sequence[Outcome]], float]
"""Judges outcomes that are not missing all together; NaN where it cannot."""


@dataclass(frozen=True)
class Scores:
    """A candidate's outcomes on a sequence of examples.

    Attributes:
        candidate: The candidate that was scored.
        examples: The examples, in order.
        outcomes: One outcome an example.
        together: What judges them all together; None where the mean of their scores counts.
    """

    candidate: Candidate
    examples: tuple[dspy.Example, ...] = field(repr=False)
    outcomes: tuple[Outcome, ...] = field(repr=False)
    together: Together | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """Return the score, and of how many examples."""
        return f"{self.score:.3g} (n = {self.n}{f', {self.missing} missing' if self.missing else ''})"

    @cached_property
    def values(self) -> tuple[float | None, ...]:
        """The score of each example; None where it is missing."""
        return tuple(value(outcome) for outcome in self.outcomes)

    @property
    def n(self) -> int:
        """How many examples have a score."""
        return sum(v is not None for v in self.values)

    @property
    def missing(self) -> int:
        """How many examples have none."""
        return len(self.outcomes) - self.n

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Why the metric gave no score, for each example on which it failed."""
        return tuple(outcome.reason for outcome in self.outcomes if isinstance(outcome, MetricError))

    @property
    def mean(self) -> float:
        """Mean over the examples that have a score; NaN if none has."""
        return mean(self.values)

    @cached_property
    def score(self) -> float:
        """What candidates are compared by: the mean, or what the metric makes of all answers together."""
        return self.score_on(range(len(self.outcomes)))

    def score_on(self, places: Iterable[int]) -> float:
        """Return `score` on the examples at these places alone; NaN if none of them has a score."""
        kept = [i for i in places if self.values[i] is not None]
        if self.together is None or not kept:
            return mean([self.values[i] for i in kept])
        return self.together([self.examples[i] for i in kept], [self.outcomes[i] for i in kept])

    @cached_property
    def objectives(self) -> dict[str, float]:
        """Mean of each objective over the examples that have a score; a reply that could not be used counts as 0, or
        the lowest of these where that is less."""
        given = [o.objectives for o in self.outcomes if isinstance(o, Scored)]
        failed = sum(isinstance(o, ParseFailure) for o in self.outcomes)
        names = sorted({name for each in given for name in each})
        rows = {name: [each[name] for each in given if name in each] for name in names}
        return {name: mean([*([min(0.0, *row)] * failed), *row]) for name, row in rows.items()}

    def failures(self, threshold: float = 1.0) -> tuple[tuple[dspy.Example, Outcome], ...]:
        """Return the examples scored below `threshold` with their outcomes; missing ones are left out."""
        pairs = zip(self.examples, self.outcomes, strict=True)
        return tuple((e, o) for e, o in pairs if (v := value(o)) is not None and v < threshold)


def mean(values: Sequence[float | None]) -> float:
    """Return the mean of the values that are not None; NaN if there is none."""
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else math.nan


def lowest(*rows: Iterable[float | None]) -> float:
    """Return the lowest score in some rows, at most 0: what that counts as which would be the worst there is."""
    return min([0.0, *(v for row in rows for v in row if v is not None)])


def common(scores: Iterable[Scores]) -> list[int]:
    """Return the places of the examples that all of these have a score for."""
    return [i for i, column in enumerate(zip(*(s.values for s in scores), strict=True)) if None not in column]


def rank(scores: Sequence[Scores]) -> list[Scores]:
    """Return `scores` best first.

    Where scores are missing, each candidate's is what it would be on all examples, if candidates and examples add up:
    by least squares, so that an outage on the hard ones favours nobody, and none of them is left out because one
    candidate lacks it. A metric of all answers together judges those that all have. A candidate without any score comes
    last. Ties: the shorter prompt first, then the given order. Ours.

    Raises:
        ValueError: If the scores are over different numbers of examples.
    """
    if len({len(s.outcomes) for s in scores}) > 1:
        raise ValueError("candidates can be ranked only on the same examples")
    levels = _levels([s for s in scores if s.n])
    return sorted(scores, key=lambda s: (*worst_last(levels.get(id(s), math.nan)), s.candidate.size))


def _levels(scores: Sequence[Scores]) -> dict[int, float]:
    """Return what candidates are compared by, by the identity of their scores."""
    if not any(s.missing for s in scores):
        return {id(s): s.score for s in scores}
    if any(s.together is not None for s in scores):
        places = common(scores)
        return {id(s): s.score_on(places) if places else s.score for s in scores}
    rows = np.array([[math.nan if v is None else v for v in s.values] for s in scores])
    rows = rows[:, ~np.isnan(rows).all(axis=0)]
    level = np.nanmean(rows, axis=1)  # what stays of candidates that share no example, with others between them or not
    exact = _EXACT * float(np.nanmax(np.abs(rows))) or 1.0
    for _ in range(_MOST_ROUNDS):
        before, ease = level, np.nanmean(rows - level[:, None], axis=0)
        level = np.nanmean(rows - ease, axis=1)
        if float(np.abs(level - before).max()) < exact / 100:
            break
    # Equal ones are to be equal, whatever the order of the sums.
    return {id(s): float(round(each / exact)) for s, each in zip(scores, level, strict=True)}


def worst_last(score: float) -> tuple[bool, float]:
    """Return what sorts the highest score first, and one that is no number last."""
    return (True, 0.0) if math.isnan(score) else (False, -score)
