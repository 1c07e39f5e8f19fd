"""Statistics of a diagnosis that a compile does not need: differences of two groups, association, agreement.

Pure functions of their arguments. Sources are named at each; the tests hold them to scipy and to exact enumeration.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95, t975

__all__ = ["Correlation", "Difference", "detectable_rho", "fisher_exact", "holm", "jackknife", "kappa", "ratio",
           "spearman", "unpaired"]

_EXACT = 8
"""Up to so many pairs all orders are tried (8! = 40,320)."""
_SHUFFLES = 10_000
_TOLERANCE = 1e-9
_POWER = 0.8
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Difference:
    """The difference of two means over different examples, second minus first, in the unit of the scores.

    Attributes:
        value: The difference; nan if either group is empty.
        low: Lower end of its 95 % interval; nan if the values allow none.
        high: Upper end of its 95 % interval; nan if the values allow none.
        n: Number of scored examples in both groups together.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Attributes:
        rho: From -1 to 1; nan if one side is constant or there are fewer than 3 pairs.
        low: Lower end of its 95 % interval; nan with fewer than 10 pairs, where the approximation fails.
        high: Upper end of its 95 % interval; nan likewise.
        p_value: Two-sided permutation test; 1.0 where there is no rho.
        n: Number of pairs.
    """

    rho: float
    low: float
    high: float
    p_value: float
    n: int


def unpaired(first: Sequence[float | None], second: Sequence[float | None]) -> Difference:
    """Compare two groups of scores of different examples.

    Scores that are all 0 or 1 get Newcombe's hybrid score interval (method 10 of Newcombe 1998, Statistics in
    Medicine 17, 873-890); others get Welch's t interval with its degrees of freedom rounded down.

    Args:
        first: One score an example; None is missing.
        second: The other group's.
    """
    groups = [np.array([v for v in group if v is not None and not math.isnan(v)]) for group in (first, second)]
    n = sum(map(len, groups))
    if not all(map(len, groups)):
        return Difference(math.nan, math.nan, math.nan, n)
    a, b = (estimate95(group.tolist()) for group in groups)
    value = b.mean - a.mean
    if all(np.isin(group, (0.0, 1.0)).all() for group in groups):
        low = value - math.hypot(b.mean - b.low, a.high - a.mean)
        high = value + math.hypot(b.high - b.mean, a.mean - a.low)
        return Difference(value, max(low, -1.0), min(high, 1.0), n)
    half = _welch(*groups)
    return Difference(value, value - half, value + half, n)


def _welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Half the width of Welch's interval; nan if a group has one value."""
    if min(len(a), len(b)) < 2:
        return math.nan
    parts = [float(group.var(ddof=1)) / len(group) for group in (a, b)]
    if sum(parts) == 0:
        return 0.0
    freedom = sum(parts) ** 2 / sum(v * v / (len(g) - 1) for v, g in zip(parts, (a, b), strict=True))
    return t975(max(1, math.floor(freedom + _TOLERANCE))) * math.sqrt(sum(parts))


def fisher_exact(a: int, b: int, c: int, d: int) -> float:
    """Return the two-sided p-value of Fisher's exact test of the table [[a, b], [c, d]].

    The tables with these margins that are at most as probable as the observed one count as extreme. Exact in
    integers. Source: Fisher 1922.

    Raises:
        ValueError: If a count is negative.
    """
    if min(a, b, c, d) < 0:
        raise ValueError(f"counts must not be negative, got {(a, b, c, d)}")
    row, other, column = a + b, c + d, a + c
    span = range(max(0, column - other), min(row, column) + 1)
    ways = [math.comb(row, k) * math.comb(other, column - k) for k in span]
    observed = math.comb(row, a) * math.comb(other, c)
    return sum(w for w in ways if w <= observed) / sum(ways)


def spearman(x: Sequence[float], y: Sequence[float], *, seed: int = 0) -> Correlation:
    """Correlate the ranks of two sequences; equal values share their mean rank.

    - p-value: permutation test, exact for at most 8 pairs, else from 10,000 seeded random orders; holds with ties.
    - interval: Fisher's z with variance 1.06 / (n - 3) (Fieller, Hartley and Pearson 1957).

    Args:
        x: Values.
        y: As many values.
        seed: Seeds the random orders.

    Raises:
        ValueError: If the two differ in length.
    """
    if len(x) != len(y):
        raise ValueError(f"x and y must be paired, got {len(x)} and {len(y)} values")
    n, first, second = len(x), _ranks(x), _ranks(y)
    if n < 3 or not first.any() or not second.any():
        return Correlation(math.nan, math.nan, math.nan, 1.0, n)
    scale = math.sqrt(float(first @ first) * float(second @ second))
    rho = max(-1.0, min(1.0, float(first @ second) / scale))
    low, high = _fieller(rho, n)
    return Correlation(rho, low, high, _permutation(first, second, seed), n)


def detectable_rho(n: int, *, tests: int = 1) -> float:
    """Return the smallest Spearman correlation that is found in 80 % of studies of `n` pairs at 5 %.

    By Fisher's z with variance 1.06 / (n - 3), as the interval of `spearman`; nan below 10 pairs, where the
    approximation fails.

    Args:
        n: Pairs.
        tests: For so many tests at once, by the strictest step of Holm's correction.
    """
    if n < 10:
        return math.nan
    normal = NormalDist()
    return math.tanh((normal.inv_cdf(1 - 0.025 / tests) + normal.inv_cdf(_POWER)) * math.sqrt(1.06 / (n - 3)))


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Mid-ranks, less their mean."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    ranks: NDArray[np.float64] = middle[inverse.ravel()]
    return ranks - (len(ranks) + 1) / 2


def _fieller(rho: float, n: int) -> tuple[float, float]:
    if n < 10 or abs(rho) >= 1:
        return math.nan, math.nan
    half = _Z * math.sqrt(1.06 / (n - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def _permutation(first: NDArray[np.float64], second: NDArray[np.float64], seed: int) -> float:
    least = abs(float(first @ second)) - _TOLERANCE
    if len(first) <= _EXACT:
        orders = np.array(list(itertools.permutations(second)))
        return float((np.abs(orders @ first) >= least).mean())
    rng = np.random.default_rng(seed)
    extreme = sum(abs(float(rng.permutation(second) @ first)) >= least for _ in range(_SHUFFLES))
    return (extreme + 1) / (_SHUFFLES + 1)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Correct p-values for their number, each in its place: the chance of any false finding stays at 5 %.

    Args:
        p_values: Of one family of tests.

    Returns:
        Adjusted p-values. Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        corrected[k] = largest
    return tuple(corrected)


def ratio(parts: Sequence[int], wholes: Sequence[int]) -> Estimate95:
    """Return sum(parts) / sum(wholes) with an interval that takes each pair as one observation.

    The checks of one response go together, so that n is the number of responses, not of checks: the interval is
    the ratio estimator's (Cochran 1977, section 6.4), or, where the ratio is 0 or 1, Wilson's for n trials.

    Args:
        parts: Of each response, how many checks were passed.
        wholes: Of each response, how many were made; one without any is left out.
    """
    pairs = np.array([(p, w) for p, w in zip(parts, wholes, strict=True) if w], dtype=float).reshape(-1, 2)
    n = len(pairs)
    if not n:
        return Estimate95(math.nan, math.nan, math.nan, 0)
    share = float(pairs[:, 0].sum() / pairs[:, 1].sum())
    if share in (0.0, 1.0):
        return estimate95([share] * n)
    if n < 2:
        return Estimate95(share, math.nan, math.nan, n)
    rest = pairs[:, 0] - share * pairs[:, 1]
    half = t975(n - 1) * float(np.sqrt((rest @ rest) / (n - 1) / n)) / float(pairs[:, 1].mean())
    return Estimate95(share, max(0.0, share - half), min(1.0, share + half), n)


def jackknife(whole: float, left: Sequence[float], groups: Sequence[int]) -> Estimate95:
    """Return a statistic with its jackknife interval (Tukey 1958; several samples: Arvesen 1969).

    Args:
        whole: Of all units.
        left: Of all but one unit, the units of a sample one after the other.
        groups: Units of each independent sample, at least 2.

    Returns:
        The value itself, not corrected for bias, with t quantiles of the smallest sample's degrees of freedom.
    """
    variance, start = 0.0, 0
    for size in groups:
        part = np.asarray(left[start : start + size], dtype=np.float64)
        variance += (size - 1) / size * float(((part - part.mean()) ** 2).sum())
        start += size
    half = t975(min(groups) - 1) * math.sqrt(variance)
    return Estimate95(whole, whole - half, whole + half, len(left))


def kappa(both: int, first_only: int, second_only: int, neither: int) -> float:
    """Return Cohen's kappa of two yes-or-no raters; nan if both always say the same one thing.

    Source: Cohen 1960.

    Args:
        both: How often both said yes.
        first_only: Only the first.
        second_only: Only the second.
        neither: Neither.
    """
    n = both + first_only + second_only + neither
    if n == 0:
        return math.nan
    first, second = (both + first_only) / n, (both + second_only) / n
    chance = first * second + (1 - first) * (1 - second)
    return ((both + neither) / n - chance) / (1 - chance) if chance < 1 else math.nan
