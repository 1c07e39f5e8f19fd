"""Means over two samples at once, such as refinements and examples: test, interval and bootstrap.

Pure functions of their arguments; sources are named at each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.repetition import resamples
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95, paired_gain, t975

__all__ = ["drawn_shares", "expanded_interval", "resampled_means", "two_way_interval", "two_way_sign_flip"]

_DRAWS = 10_000
Floats = NDArray[np.float64]


def two_way_sign_flip(matrix: Floats, *, seed: int = 0) -> float:
    """Test whether the mean is 0 where rows and columns are both samples: two-sided p-value.

    The means of rows and of columns get random signs, independently: the variance of the sum of both is at least that
    of the grand mean, whichever of the two varies (as the pigeonhole bootstrap's, Owen 2007). The result is never below
    the exact test over the rows alone, of which there are few. Source: Fisher 1935 for each side; together ours.

    Args:
        matrix: Differences; rows are refinements, columns examples.
        seed: Seeds the signs.
    """
    rows, columns, rng = matrix.mean(axis=1), matrix.mean(axis=0), np.random.default_rng(seed)
    drawn = sum((2.0 * rng.integers(0, 2, (_DRAWS, len(side))) - 1.0) @ side / len(side) for side in (rows, columns))
    extreme = int((np.abs(drawn) >= abs(float(matrix.mean())) - 1e-9).sum())
    return max((extreme + 1) / (_DRAWS + 1), paired_gain([0.0] * len(rows), rows.tolist()).p_value)


def two_way_interval(matrix: Floats, *, seed: int = 0) -> Estimate95:
    """Return the mean with the interval of drawing rows and columns anew, both with replacement (Owen 2007).

    The percentiles are widened for the small number of rows as Student's t is (expanded percentiles, Hesterberg 2015).
    Where all values are equal the bootstrap knows nothing: then it is Wilson's for the columns, if they are 0 or 1.

    Args:
        matrix: Rows are refinements, columns examples.
        seed: Seeds the draws.
    """
    n, mean = matrix.shape[1], float(matrix.mean())
    if np.ptp(matrix) == 0.0:
        return estimate95([mean] * n)
    rng = np.random.default_rng(seed)
    drawn = (drawn_shares(rng, matrix.shape[0]) @ matrix * drawn_shares(rng, n)).sum(axis=1)
    return expanded_interval(mean, drawn, matrix.shape)


def drawn_shares(rng: np.random.Generator, n: int) -> Floats:
    """Return how often each of n is drawn in n draws, as shares; one row a resample.

    Args:
        rng: Draws.
        n: How many there are.
    """
    return np.asarray(rng.multinomial(n, np.full(n, 1 / n), size=2_000) / n, dtype=np.float64)


def expanded_interval(mean: float, drawn: Floats, shape: tuple[int, ...]) -> Estimate95:
    """Return the 95 % interval of resampled values by expanded percentiles, see `two_way_interval`.

    Args:
        mean: The value itself.
        drawn: The resampled values; those that are not finite are left out.
        shape: How many rows and columns there are; nan ends with fewer than 2 of either.
    """
    few, known = min(shape), drawn[np.isfinite(drawn)]
    if few < 2 or not len(known):
        return Estimate95(mean, math.nan, math.nan, shape[1])
    tail = NormalDist().cdf(-math.sqrt(few / (few - 1)) * t975(few - 1))
    low, high = np.quantile(known, (tail, 1 - tail))
    return Estimate95(mean, float(low), float(high), shape[1])


def resampled_means(tables: Sequence[Floats], weights: Sequence[Floats], seed: int) -> list[Floats]:
    """Return the mean of each table's known scores, for each resample of its rows and of the columns that all share.

    Rows are refinements and columns examples: the pigeonhole bootstrap (Owen 2007), which errs on the wide side.

    Args:
        tables: Scores; nan is missing.
        weights: Of each table, how often each row is drawn; one row a resample.
        seed: Seeds the draws of the columns.
    """
    columns = _columns(tables[0].shape[1], seed)
    means = []
    for table, rows in zip(tables, weights, strict=True):
        known = ~np.isnan(table)
        sums = ((rows @ np.where(known, table, 0.0)) * columns).sum(axis=1)
        counts = ((rows @ known.astype(np.float64)) * columns).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample without a known score: nan
            means.append(sums / counts)
    return means


@lru_cache(maxsize=4)
def _columns(n: int, seed: int) -> Floats:
    return resamples(n, np.random.default_rng([seed, 1]))
