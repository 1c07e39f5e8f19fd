"""Answers that a metric judges all together, as macro F1 does: their value, its interval, the gain of a prompt.

What candidates answered is read from their outcomes, which the journal holds: nothing is run again for it. Source:
ours; `statistics` has the methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import UnionType

import dspy

from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import typed
from cuesmith.teleprompters.runtime.metric import LARGEST, CorpusFunction
from cuesmith.teleprompters.runtime.outcomes import MetricError, Outcome, ParseFailure, Scored, Scores, lowest, value
from cuesmith.teleprompters.runtime.statistics import (
    Estimate95,
    Gain,
    Statistic,
    bootstrap95,
    bootstrap_gain,
    estimate95,
    paired_gain,
    swap_p_value,
)


class Corpus:
    """Judges outcomes all together (`outcomes.Together`).

    Args:
        function: The metric's `corpus`.
        student: The program, for the types of its fields.

    Attributes:
        fault: Why the function made nothing of some outcomes, the last time that it did not; "" if it always did.
    """

    def __init__(self, function: CorpusFunction, student: dspy.Module) -> None:
        self._function = function
        self._kinds = {name: info.annotation for _, predictor in named_predictors(student)
                       for name, info in predictor.signature.output_fields.items()}  # fmt: skip
        self._read: dict[int, tuple[Outcome, dspy.Prediction | None]] = {}  # types are slow to make: once an outcome
        self.fault = ""

    def __call__(self, examples: Sequence[dspy.Example], outcomes: Sequence[Outcome]) -> float:
        """Return the metric's value of outcomes that are not missing; NaN if it raises, or returns no finite number."""
        predictions = [self.prediction(outcome) for outcome in outcomes]
        try:
            return finite(self._function, examples, predictions)
        except Exception as error:
            self.fault = f"{type(error).__name__}: {error}"
            return math.nan

    def prediction(self, outcome: Outcome) -> dspy.Prediction | None:
        """Return what the program had returned; None if its reply could not be used."""
        if id(outcome) not in self._read:
            self._read[id(outcome)] = outcome, self._typed(outcome)
        return self._read[id(outcome)][1]

    def _typed(self, outcome: Outcome) -> dspy.Prediction | None:
        answer = outcome.answer if isinstance(outcome, Scored) else None
        if not isinstance(answer, Mapping):  # a program may return what it likes
            return answer
        kinds = self._kinds
        return dspy.Prediction(**{name: typed(v, kinds[name]) if name in kinds else v for name, v in answer.items()})


def finite(
    function: CorpusFunction, examples: Sequence[dspy.Example], predictions: Sequence[dspy.Prediction | None]
) -> float:
    """Return a metric's value of all answers.

    Raises:
        ValueError: If it returns no finite number.
        Exception: What it raises.
    """
    found = function(examples, predictions)
    if isinstance(found, str) or not abs(value := float(found)) <= LARGEST:
        raise ValueError(f"it returned {found!r}, which is no finite number")
    return value


def estimate_of(scores: Scores) -> Estimate95 | None:
    """Return a candidate's score with its interval, examples without a score left out; None if all are."""
    kept = [i for i, v in enumerate(scores.values) if v is not None]
    if not kept:
        return None
    if scores.together is None:
        return estimate95(scores.values)
    return bootstrap95(_statistic(scores.together, scores, scores, kept), len(kept))


def gain_of(baseline: Scores, best: Scores) -> Gain:
    """Compare two candidates on the examples that both have a score for.

    A reply that could not be used is the worst there is: it counts as 0, or as the least that was scored where that is
    less. A metric that fails on what it cannot read leaves out the wrong answers of one side: a gain must also be shown
    with those counted so.
    """
    if baseline.together is None:
        both = baseline, best
        worst = lowest(baseline.values, best.values)
        gain = paired_gain(*(_filled(scores, worst, ParseFailure) for scores in both))
        if not gain.significant or not (baseline.unjudged or best.unjudged):
            return gain
        strict = paired_gain(*(_filled(scores, worst, ParseFailure | MetricError) for scores in both))
        return replace(gain, holds=strict.significant and strict.difference * gain.difference > 0.0)
    kept, differ = _pairs(baseline, best)
    return bootstrap_gain(_statistic(baseline.together, baseline, best, kept), len(kept), differ)


def _filled(scores: Scores, worst: float, failed: type[Outcome] | UnionType) -> list[float | None]:
    return [worst if isinstance(one, failed) else value(one) for one in scores.outcomes]


def p_value_of(first: Scores, second: Scores, *, seed: int) -> float:
    """Return how often chance alone makes two candidates differ as much as they do."""
    if first.together is None:
        return paired_gain(first.values, second.values, seed=seed).p_value
    kept, differ = _pairs(first, second)
    return swap_p_value(_statistic(first.together, first, second, kept), len(kept), differ, seed=seed)


def _pairs(first: Scores, second: Scores) -> tuple[list[int], list[int]]:
    """Return where both have a score, and the places among those at which their answers differ."""
    kept = [i for i, pair in enumerate(zip(first.values, second.values, strict=True)) if None not in pair]
    answers = [[_answer(scores.outcomes[i]) for i in kept] for scores in (first, second)]
    return kept, [place for place, (a, b) in enumerate(zip(*answers, strict=True)) if a != b]


def _answer(outcome: Outcome) -> object:
    return outcome.answer if isinstance(outcome, Scored) else None


def _statistic(
    together: Callable[[Sequence[dspy.Example], Sequence[Outcome]], float],
    first: Scores,
    second: Scores,
    kept: Sequence[int],
) -> Statistic:
    def statistic(picked: Sequence[tuple[int, int]]) -> float:
        rows = [((first, second)[program], kept[place]) for place, program in picked]
        return together([scores.examples[i] for scores, i in rows], [scores.outcomes[i] for scores, i in rows])

    return statistic
