"""Differences between compilers, with what varies: the compile, and not only the answer.

A compiler that fails once in three has three results, however many answers each was judged by: intervals over pooled
answers would call it known to a hair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    compiles. With several it is a bootstrap that draws compiles, then examples, each with replacement.

    Args:
        ours: Scores of each compile, an example each.
        theirs: As `ours`; of another number of compiles, if need be.
    """
    mine, other = (np.array([[math.nan if v is None else v for v in row] for row in rows]) for rows in (ours, theirs))
    each = np.nanmean(mine - np.nanmean(other, axis=0), axis=1)
    if len(mine) == len(other) == 1:
        gain = paired_gain(theirs[0], ours[0])
        return Spread(gain.difference, gain.low, gain.high, gain.difference, gain.difference, 1)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(4000):
        examples = rng.integers(mine.shape[1], size=mine.shape[1])
        means = [np.nanmean(rows[rng.integers(len(rows), size=len(rows))][:, examples]) for rows in (mine, other)]
        draws.append(means[0] - means[1])
    low, high = np.quantile(draws, (0.025, 0.975))
    return Spread(float(each.mean()), float(low), float(high), float(each.min()), float(each.max()), len(mine))
