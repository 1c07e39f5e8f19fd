"""Metrics that judge all answers together: macro F1, the F1 of one class, Matthews' correlation.

    compiler = ABO(metric=MacroF1("label"))

A single answer is right or wrong by them, which shows a search its failures; candidates are compared, and reported, by
the value of all answers. A reply that could not be used is a wrong answer: it belongs to no class. Your own metric does
the same with a method `corpus(examples, predictions)`. Sources: van Rijsbergen 1979 for F1; Matthews 1975, and Gorodkin
2004 for several classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import dspy

__all__ = ["F1", "MCC", "MacroF1"]


@dataclass(frozen=True)
class _ByField:
    """Compares one field.

    Attributes:
        field: Its name, in examples and in predictions.
    """

    field: str

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            TypeError: If it is no text.
        """
        if not isinstance(self.field, str) or not self.field:
            raise TypeError(f"{type(self).__name__} takes the name of a field, e.g. 'label', got {self.field!r}")

    def _right(self, example: dspy.Example, prediction: dspy.Prediction) -> bool:
        return bool(getattr(example, self.field) == getattr(prediction, self.field))

    def _pairs(
        self, examples: Sequence[dspy.Example], predictions: Sequence[dspy.Prediction | None]
    ) -> Counter[tuple[Hashable, Hashable]]:
        """Return how often each (right answer, answer) occurs; the answer is `_NONE` where there is none."""
        return Counter(
            (getattr(example, self.field), _NONE if given is None else getattr(given, self.field))
            for example, given in zip(examples, predictions, strict=True)
        )


_NONE = ("no answer",)


@dataclass(frozen=True)
class F1(_ByField):
    """The F1 of one class: harmonic mean of its precision and recall; 0 where neither is defined.

    Attributes:
        field: Name of the field, in examples and in predictions.
        positive: The class.
    """

    positive: Hashable

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        """The right class. Over all answers the F1 of the positive class counts: finding it, and nothing else."""
        return self._right(example, prediction)

    def corpus(self, examples: Sequence[dspy.Example], predictions: Sequence[dspy.Prediction | None]) -> float:
        """Return the F1 of all answers."""
        return _f1(self._pairs(examples, predictions), self.positive)


@dataclass(frozen=True)
class MacroF1(_ByField):
    """The mean F1 of the classes that the examples have.

    scikit-learn's `f1_score(right, answers, labels=sorted(set(right)), average="macro")`: an answer that is no right
    answer of any example is a miss, but no class.
    """

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        """The right class. Over all answers the mean F1 of the classes counts: rare ones as much as frequent ones."""
        return self._right(example, prediction)

    def corpus(self, examples: Sequence[dspy.Example], predictions: Sequence[dspy.Prediction | None]) -> float:
        """Return the macro F1 of all answers."""
        pairs = self._pairs(examples, predictions)
        classes = {right for right, _ in pairs}
        return math.fsum(_f1(pairs, each) for each in classes) / len(classes)


@dataclass(frozen=True)
class MCC(_ByField):
    """Matthews' correlation of answers and right answers, for any number of classes: 1 if all are right, 0 for guesses.

    0 too where all answers, or all right answers, are of one class.
    """

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        """The right class. Over all answers their correlation with the right ones counts: one class for all is 0."""
        return self._right(example, prediction)

    def corpus(self, examples: Sequence[dspy.Example], predictions: Sequence[dspy.Prediction | None]) -> float:
        """Return the correlation of all answers."""
        pairs = self._pairs(examples, predictions)
        right, given = _sums(pairs, 0), _sums(pairs, 1)
        n, hits = pairs.total(), sum(count for (a, b), count in pairs.items() if a == b)
        spread = (n * n - sum(c * c for c in right.values())) * (n * n - sum(c * c for c in given.values()))
        return (n * hits - sum(right[each] * given[each] for each in right)) / math.sqrt(spread) if spread else 0.0


def _sums(pairs: Counter[tuple[Hashable, Hashable]], side: int) -> Counter[Hashable]:
    sums: Counter[Hashable] = Counter()
    for pair, count in pairs.items():
        sums[pair[side]] += count
    return sums


def _f1(pairs: Counter[tuple[Hashable, Hashable]], positive: Hashable) -> float:
    both = pairs[positive, positive]
    either = _sums(pairs, 0)[positive] + _sums(pairs, 1)[positive]
    return 2 * both / either if either else 0.0
