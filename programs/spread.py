"""Differences between compilers, with what varies: the compile, and not only the answer.

A compiler that fails once in three has three results, however many answers each was judged by: intervals over pooled
answers would call it known to a hair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cuesmith.teleprompters.runtime.statistics import paired_gain


@dataclass(frozen=True)
class Spread:
    """A difference in points, with what varies.

    Attributes:
        mean: Over compiles.
        low: Of the 95 % interval.
        high: Of the 95 % interval.
        least: The compile with the smallest difference.
        most: The one with the largest.
        compiles: How many.
    """

    mean: float
    low: float
    high: float
    least: float
    most: float
    compiles: int

    def __str__(self) -> str:
        """In points."""
        text = f"{100 * self.mean:+.0f} [{100 * self.low:+.0f}, {100 * self.high:+.0f}]"
        return text if self.compiles == 1 else f"{text} ({100 * self.least:+.0f} to {100 * self.most:+.0f})"


def spread(ours: Sequence[Sequence[float | None]], theirs: Sequence[Sequence[float | None]]) -> Spread:
    """Compare compiles with others on the same held-out examples.

    With one compile on either side the interval is the paired one over the examples, and says nothing of other
    compiles. With several it is a bootstrap that draws compiles, then examples, each with replacement; where all
    draws are alike, which says nothing of other examples, it is the paired one of the compiles' means. A compile is
    compared on the examples that it and any of `theirs` have a score for.

    Args:
        ours: Scores of each compile, an example each.
        theirs: As `ours`; of another number of compiles, if need be.

    Returns:
        The difference; all nan where no example is scored on both sides.
    """
    mine, other = (np.array([[math.nan if v is None else v for v in row] for row in rows]) for rows in (ours, theirs))
    if len(mine) == len(other) == 1:
        gain = paired_gain(theirs[0], ours[0])
        return Spread(gain.difference, gain.low, gain.high, gain.difference, gain.difference, 1)
    each = _means((mine - _means(other)).T) if mine.size and other.size else np.array([])
    each = each[~np.isnan(each)]
    if not len(each):
        return Spread(math.nan, math.nan, math.nan, math.nan, math.nan, len(mine))
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(4000):
        examples = rng.integers(mine.shape[1], size=mine.shape[1])
        drawn = [rows[rng.integers(len(rows), size=len(rows))][:, examples] for rows in (mine, other)]
        draws.append(_means(_means((drawn[0] - _means(drawn[1])).T)))
    low, high = np.nanquantile(draws, (0.025, 0.975))
    if low == high != 0.0:  # of programs that answer alike, 0 is known
        gain = paired_gain(_means(other).tolist(), _means(mine).tolist())
        low, high = gain.low, gain.high
    return Spread(float(each.mean()), float(low), float(high), float(each.min()), float(each.max()), len(mine))


def _means(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each column over what is known of it; nan where nothing is."""
    known = ~np.isnan(rows)
    n = known.sum(axis=0)
    found: NDArray[np.float64] = np.where(n > 0, np.where(known, rows, 0.0).sum(axis=0) / np.maximum(n, 1), math.nan)
    return found
