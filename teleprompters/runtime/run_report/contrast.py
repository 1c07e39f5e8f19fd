"""Which examples the returned prompt won and lost against the student, and what both said. Source: ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from cuesmith.teleprompters.runtime.stored import StoredView

__all__ = ["ComparedCase", "Contrast", "Fate", "contrast_of"]

Fate: TypeAlias = Literal["lost", "won", "wrong", "right", "missing"]

FATES: Mapping[Fate, tuple[str, str]] = {
    "lost": ("▼", "Lost: the student did better"),
    "won": ("▲", "Won: the returned prompt did better"),
    "wrong": ("○", "Neither is right"),
    "right": ("●", "Both are right"),
    "missing": ("–", "Not scored for both"),
}
"""Fate -> its sign and its words; in the order in which they are worth reading."""
MOST_WORDS = 250
"""Examples of a split whose words are on the page, those that differ first; of others only who won. Ours."""


@dataclass(frozen=True)
class ComparedCase:
    """An example.

    Attributes:
        number: Its place in the split, from 1.
        before: The student's score; None where it is missing.
        after: The returned prompt's.
        fate: Who did better.
        view: The example and the answers; None where the record has none.
        written: Whether its words are on the page.
    """

    number: int
    before: float | None
    after: float | None
    fate: Fate
    view: StoredView | None = field(repr=False)
    written: bool = False


@dataclass(frozen=True)
class Contrast:
    """The examples of one split.

    Attributes:
        name: "fresh" or "selection".
        cases: In the order of the run.
    """

    name: str
    cases: tuple[ComparedCase, ...]

    @property
    def counts(self) -> dict[Fate, int]:
        """Fate -> how many examples had it."""
        counted = Counter(case.fate for case in self.cases)
        return {fate: counted[fate] for fate in FATES}

    @property
    def groups(self) -> Iterator[tuple[Fate, list[ComparedCase]]]:
        """Yield the cases that are written out, by their fate."""
        for fate in FATES:
            cases = [case for case in self.cases if case.fate == fate and case.written]
            if cases:
                yield fate, cases


def contrast_of(
    name: str, before: Sequence[float | None], after: Sequence[float | None], views: Sequence[StoredView], top: float
) -> Contrast:
    """Compare two programs example by example.

    Args:
        name: Of the split.
        before: The student's scores.
        after: The returned prompt's, on the same examples.
        views: The first of these examples with their answers.
        top: A score from which on an answer counts as right.
    """
    fates = [_fate(a, b, top) for a, b in zip(before, after, strict=True)]
    order = sorted(range(len(views)), key=lambda i: (list(FATES).index(fates[i]), i))
    written = set(order[:MOST_WORDS])
    return Contrast(
        name,
        tuple(
            ComparedCase(i + 1, a, b, fates[i], views[i] if i < len(views) else None, i in written)
            for i, (a, b) in enumerate(zip(before, after, strict=True))
        ),
    )


def _fate(before: float | None, after: float | None, top: float) -> Fate:
    if before is None or after is None:
        return "missing"
    if before != after:
        return "won" if after > before else "lost"
    return "right" if after >= top else "wrong"
