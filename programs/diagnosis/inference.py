"""Statistics of a diagnosis that a compile does not need: groups, associations, permutations, resamples, agreement.

Pure functions of their arguments. Sources are named at each; the tests hold them to scipy and to exact enumeration.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95, paired_gain, t975

_EXACT = 8
"""Up to so many pairs all orders are tried (8! = 40,320)."""
_SHUFFLES = 10_000
_TOLERANCE = 1e-9
_POWER = 0.8
_Z = NormalDist().inv_cdf(0.975)
_STATES = 20_000
"""Different sums of a permutation test that are counted exactly."""
_FINEST = 10_000
"""A score is a multiple of one over at most so much, unless it is a number of any kind."""
_TREND_SHUFFLES = 4_999
_DRAWS = 10_000
RESAMPLES = 1000
"""Bootstrap resamples. Ours."""
PERMUTATIONS = 1999
"""Random permutations where all are too many. Ours."""
_ASSIGNMENTS_TRIED = 20_000
"""Assignments of labels up to which all are tried."""
_CHUNK = 256
Floats = NDArray[np.float64]


# --- groups, associations, agreement ---------------------------------------------------------------------


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
    groups = [
        np.array([v for v in group if v is not None and not math.isnan(v)], dtype=float) for group in (first, second)
    ]
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
    n, first, second = len(x), centred_ranks(x), centred_ranks(y)
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


def centred_ranks(values: Sequence[float] | Floats) -> Floats:
    """Return mid-ranks, less their mean."""
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


def binomial_tail(hits: int, n: int, chance: float) -> float:
    """Return P(X >= hits) for a binomial X of n trials, exact up to rounding.

    Args:
        hits: 0 to n.
        n: Trials.
        chance: Of success, in (0, 1).
    """
    if hits <= 0:
        return 1.0
    one, other = math.log(chance), math.log1p(-chance)
    ways = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(hits, n + 1))
    terms = (math.exp(way + k * one + (n - k) * other) for k, way in enumerate(ways, hits))
    return min(1.0, math.fsum(terms))


# --- permutations ----------------------------------------------------------------------------------------


def permuted(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> float:
    """Return the two-sided p-value of a permutation test of the difference of two means.

    Exact, by counting in how many ways each sum comes about, as long as there are at most 20,000 different sums; else
    from 10,000 seeded random permutations, to which the observed one is added. Source: Fisher 1935; Phipson and Smyth
    2010 for the addition.

    Args:
        first: One value a unit.
        second: The other group's.
        seed: Seeds the random permutations.

    Raises:
        ValueError: If a group is empty.
    """
    if not first or not second:
        raise ValueError("a permutation test needs two groups")
    n = len(first)
    values, slack = _whole([*first, *second])
    size, whole = len(values), sum(values)
    # In whole numbers, so that rounding does not decide what is as extreme; it rises with the difference of the means.
    least = abs(sum(values[:n]) * size - whole * n) - slack
    if (ways := _ways(values, n)) is not None:
        extreme = sum(count for total, count in ways.items() if abs(total * size - whole * n) >= least)
        return extreme / math.comb(size, n)
    rng = random.Random(seed)
    sums = (sum(rng.sample(values, n)) for _ in range(_SHUFFLES))
    return (sum(abs(total * size - whole * n) >= least for total in sums) + 1) / (_SHUFFLES + 1)


def _whole(values: Sequence[float]) -> tuple[list[int], int]:
    """The values as multiples of what all are multiples of, or of 1e-12; and what may come of rounding to those."""
    near = [Fraction(value).limit_denominator(_FINEST) for value in values]
    if any(abs(float(one) - value) > 1e-12 for one, value in zip(near, values, strict=True)):
        return [round(value * 1e12) for value in values], len(values) ** 2
    unit = math.lcm(*(one.denominator for one in near))
    return [int(one * unit) for one in near], 0


def _ways(values: Sequence[int], n: int) -> dict[int, int] | None:
    """In how many ways n of the values have each sum; None if there are too many sums."""
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in range(n))]
    for done, value in enumerate(values):
        for k in range(min(done + 1, n), 0, -1):
            for total, count in ways[k - 1].items():
                ways[k][total + value] = ways[k].get(total + value, 0) + count
        if sum(map(len, ways)) > _STATES:
            return None
    return ways[n]


def trend_of(blocks: Sequence[Sequence[tuple[float, float]]], *, seed: int = 0) -> tuple[Estimate95, float]:
    """Correlate pairs within blocks: Spearman's rho of each block, averaged; one in which nothing varies counts as 0.

    Values are exchanged within a block only, so that blocks may differ as they like. On complete blocks without ties
    this is Page's test, two-sided (Page 1963).

    Args:
        blocks: Pairs (x, y); blocks of one pair are left out.
        seed: Of permutations and bootstrap.

    Returns:
        The mean with Student's t interval over blocks (none where all are equal), and the p-value.
    """
    rng = np.random.default_rng(seed)
    ranked = [(_unit([x for x, _ in block]), _unit([y for _, y in block])) for block in blocks if len(block) > 1]
    rhos = np.array([float(x @ y) for x, y in ranked])
    if not any(y.any() for _, y in ranked):
        return Estimate95(np.nan, np.nan, np.nan, len(rhos)), 1.0
    null = np.zeros(_TREND_SHUFFLES)
    for x, y in ranked:
        null += rng.permuted(np.tile(y, (_TREND_SHUFFLES, 1)), axis=1) @ x
    p_value = (int((np.abs(null) >= abs(rhos.sum()) - 1e-9).sum()) + 1) / (_TREND_SHUFFLES + 1)
    mean, spread, n = float(rhos.mean()), float(rhos.std(ddof=1)) if len(rhos) > 1 else 0.0, len(rhos)
    half = t975(n - 1) * spread / n**0.5 if spread > 1e-12 else np.nan
    return Estimate95(mean, float(np.maximum(mean - half, -1.0)), float(np.minimum(mean + half, 1.0)), n), p_value


def _unit(values: Sequence[float]) -> Floats:
    """Mid-ranks less their mean, of length 1; zeros if nothing varies."""
    ranks = centred_ranks(values)
    length = float(np.linalg.norm(ranks))
    return ranks / length if length else ranks


def permutation_test(matrix: Floats, labels: NDArray[np.intp], rng: np.random.Generator) -> tuple[float, bool]:
    """Test whether texts of one label are more alike than texts of different ones.

    All assignments of the labels where they are at most 20,000, else 1,999 random ones, to which the observed one is
    added. Source: Fisher 1935; Phipson and Smyth 2010 for the addition.

    Args:
        matrix: Similarities.
        labels: A label a text: 0, 1, 2, ...
        rng: Draws the random permutations.

    Returns:
        The one-sided p-value of within minus between, and whether it is exact.
    """
    sizes = np.bincount(labels).tolist()
    total = math.factorial(len(labels)) // math.prod(map(math.factorial, sizes))
    if exact := total <= _ASSIGNMENTS_TRIED:
        tried: Iterator[NDArray[np.intp]] = _assignments(sizes)
    else:
        tried = (rng.permutation(labels) for _ in range(PERMUTATIONS))
    least = _alike(matrix, labels[None])[0]
    least -= _TOLERANCE * max(1.0, abs(least))  # rounding must not decide what is as extreme
    extreme = 0
    while chunk := list(itertools.islice(tried, _CHUNK)):
        extreme += int((_alike(matrix, np.array(chunk)) >= least).sum())
    return (extreme / total, True) if exact else ((extreme + 1) / (PERMUTATIONS + 1), False)


def _alike(matrix: Floats, labels: NDArray[np.intp]) -> Floats:
    """The sum of similarities within labels, for each row of labels: eta rises with it, as all else is constant."""
    member = np.eye(int(labels.max()) + 1)[labels].swapaxes(1, 2)
    sums: Floats = ((member @ matrix) * member).sum(axis=(1, 2))
    return sums


def _assignments(sizes: Sequence[int]) -> Iterator[NDArray[np.intp]]:
    """Every way to give `sizes[k]` of the places label k."""
    labels = np.zeros(sum(sizes), dtype=np.intp)

    def place(label: int, free: tuple[int, ...]) -> Iterator[NDArray[np.intp]]:
        if label == len(sizes):
            yield labels.copy()
            return
        for chosen in itertools.combinations(free, sizes[label]):
            labels[list(chosen)] = label
            yield from place(label + 1, tuple(k for k in free if k not in chosen))

    return place(0, tuple(range(len(labels))))


# --- resamples -------------------------------------------------------------------------------------------


def resamples(n: int, rng: np.random.Generator) -> Floats:
    """Return how often each of `n` units is in each of 1,000 bootstrap samples: one row a sample."""
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def interval95(value: float, resampled: Floats, n: int) -> Estimate95:
    """Return a value with its percentile bootstrap interval; resamples without a value (nan) do not count."""
    known = resampled[np.isfinite(resampled)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
    return Estimate95(value, float(low), float(high), n)


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
