"""Intervals and tests for scores: what may be said about a mean, and about the difference of two prompts.

Pure functions of their arguments. A missing score (None, or not a number) is left out, never read as 0.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Estimate95",
    "Gain",
    "Statistic",
    "bootstrap95",
    "bootstrap_gain",
    "estimate95",
    "paired_gain",
    "pairs_to_show",
    "swap_p_value",
]

_Z = NormalDist().inv_cdf(0.975)
_Z_POWER = NormalDist().inv_cdf(0.8)
_EXACT_STATES = 50_000
_SIGN_FLIPS = 10_000
_TOLERANCE = 1e-9
"""Relative: sums that differ by less count as equal, so that rounding never decides what is as extreme."""
_RESAMPLES = 1_000
"""Resamples of a bootstrap, and the most swaps of a permutation test that has a statistic to work out for each."""

Statistic: TypeAlias = Callable[[Sequence[tuple[int, int]]], float]
"""What is made of some answers all together, each named by (example, program), programs being 0 and 1. NaN where
nothing can be made of them. The same answer may be among them several times."""


@dataclass(frozen=True, slots=True)
class Estimate95:
    """A mean with its 95 % confidence interval, in the unit of the scores.

    Attributes:
        mean: The mean, or what a metric makes of all answers together; nan if nothing was scored.
        low: Lower end of the interval; nan if the values allow none.
        high: Upper end of the interval; nan if the values allow none.
        n: Number of scored examples.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Gain:
    """The paired difference "best minus baseline" on the same examples.

    Attributes:
        difference: Mean difference, in the unit of the scores; or the difference of what a metric makes of all
            answers together. nan without pairs.
        low: Lower end of its 95 % interval; nan if the values allow none.
        high: Upper end of its 95 % interval; nan if the values allow none.
        p_value: Two-sided; 1.0 without pairs.
        n: Number of pairs in which both are scored.
        holds: False where the metric failed on answers, and the gain is not shown with those counted as nothing.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    holds: bool = True

    def __str__(self) -> str:
        """Return it as a person writes it, in the unit of the scores."""
        if math.isnan(self.difference):
            return "not measured"
        inside = "" if math.isnan(self.low) or math.isnan(self.high) else f" [{self.low:+.3g}, {self.high:+.3g}]"
        return f"{self.difference:+.3g}{inside}, p = {self.p_value:.2g}, n = {self.n}"

    @property
    def significant(self) -> bool:
        """Whether the test rejects "no difference" at 5 % and the interval excludes 0, in either direction.

        Test and interval rest on different approximations, so near the border they can disagree: then the
        answer is no. It is no too where the gain rests on answers that a failing metric left out (`holds`).
        """
        return self.holds and self.p_value < 0.05 and (self.low > 0.0 or self.high < 0.0)


def estimate95(values: Iterable[float | None]) -> Estimate95:
    """Estimate the mean score of all examples like these.

    Scores that are all 0 or 1 get the Wilson interval, which keeps its coverage near 0 and 1; others get
    Student's t interval. Source: Wilson 1927; Student 1908. The choice between them is ours.

    Args:
        values: One score an example.

    Returns:
        The mean with its interval. A single value that is neither 0 nor 1 has no interval (nan); several
        equal ones get one of width 0, which says that they are equal, not that the mean is certain.
    """
    scores = np.array([v for v in values if v is not None and not math.isnan(v)], dtype=float)
    if not len(scores):
        return Estimate95(math.nan, math.nan, math.nan, 0)
    low, high = _wilson(int(scores.sum()), len(scores)) if _is_binary(scores) else _t_interval(scores)
    return Estimate95(float(scores.mean()), low, high, len(scores))


def paired_gain(baseline: Sequence[float | None], best: Sequence[float | None], *, seed: int = 0) -> Gain:
    """Compare two programs on the same examples.

    - p-value: sign-flip permutation test of the mean: exact while it can take at most 50,000 values (for 0 and 1
      it is the exact McNemar test, at any n), else from 10,000 seeded random flips.
    - interval: Newcombe's paired score interval (method 10) for scores of 0 and 1, else Student's t on the
      differences, which covers better than a bootstrap at the n of a held-out set.

    Source: McNemar 1947; Fisher 1935; Newcombe 1998 (Statistics in Medicine 17, 2635-2650).

    Args:
        baseline: One score an example.
        best: The other program's scores of the same examples, in the same order.
        seed: Seeds the random flips, where they are needed.

    Returns:
        The gain over the pairs in which neither score is missing.

    Raises:
        ValueError: If the two differ in length.
    """
    if len(baseline) != len(best):
        raise ValueError(f"baseline and best must be paired, got {len(baseline)} and {len(best)} scores")
    kept = [(a, b) for a, b in zip(baseline, best, strict=True) if a is not None and b is not None]
    pairs = np.array([pair for pair in kept if not any(map(math.isnan, pair))], dtype=float).reshape(-1, 2)
    if not len(pairs):
        return Gain(math.nan, math.nan, math.nan, 1.0, 0)
    differences = pairs[:, 1] - pairs[:, 0]
    low, high = _newcombe(pairs) if _is_binary(pairs) else _t_interval(differences)
    p_value = _exact_sign_flip(differences)
    if p_value is None:
        p_value = _random_sign_flip(differences, seed)
    return Gain(float(differences.mean()), low, high, p_value, len(pairs))


def bootstrap95(statistic: Statistic, n: int, *, seed: int = 0) -> Estimate95:
    """Estimate a statistic of program 0's answers, for all examples like these.

    The interval is the percentile bootstrap's over examples, from 1,000 seeded resamples; those of which the statistic
    makes nothing are left out. Source: Efron 1979; percentiles as in Efron and Tibshirani 1993, chapter 13.

    Args:
        statistic: Of the answers.
        n: Number of examples.
        seed: Seeds the resamples.

    Returns:
        The value with its interval: nan for one example, or where less than half of the resamples have a value. All
        resamples of an errorless program are alike: an interval of width 0 says that, not that the value is certain.
    """
    drawn = [statistic([(i, 0) for i in places]) for places in _resamples(n, seed)]
    return Estimate95(statistic([(i, 0) for i in range(n)]), *_percentiles(drawn), n)


def bootstrap_gain(statistic: Statistic, n: int, differ: Collection[int], *, seed: int = 0) -> Gain:
    """Compare a statistic of two programs' answers to the same examples: that of program 1 minus that of program 0.

    The interval is `bootstrap95`'s of the difference, each resample taking both answers to an example; the p-value is
    `swap_p_value`'s.

    Args:
        statistic: Of the answers of one program.
        n: Number of examples.
        differ: The examples that the two answer differently.
        seed: Seeds resamples and swaps.

    Returns:
        The gain; without pairs (n = 0) where the statistic makes nothing of the answers.
    """
    observed = _gained(statistic, range(n))
    if math.isnan(observed):
        return Gain(math.nan, math.nan, math.nan, 1.0, 0)
    low, high = _percentiles([_gained(statistic, places) for places in _resamples(n, seed)])
    return Gain(observed, low, high, swap_p_value(statistic, n, differ, seed=seed), n)


def swap_p_value(statistic: Statistic, n: int, differ: Collection[int], *, seed: int = 0) -> float:
    """Return how often chance alone makes two programs differ as much in a statistic as they do; two-sided.

    Where the programs are equally good, nothing says which of the two answers to an example is whose: the test swaps
    whole answers, example by example. It tries all swaps where there are at most 1,000, else so many seeded random
    ones; a swap of which the statistic makes nothing counts against a difference. Source: Fisher 1935; for F1 and the
    like Yeh 2000 ("More accurate tests for the statistical significance of result differences").

    Args: as for `bootstrap_gain`.
    """
    places = sorted(differ)
    observed = abs(_gained(statistic, range(n)))

    def extreme(swaps: Iterable[Collection[int]]) -> int:
        return sum(not abs(_gained(statistic, range(n), frozenset(one))) < observed - _TOLERANCE for one in swaps)

    if math.isnan(observed) or not places:
        return 1.0
    if 1 << len(places) <= _RESAMPLES:
        every = chain.from_iterable(combinations(places, k) for k in range(len(places) + 1))
        return extreme(every) / (1 << len(places))
    tossed = np.random.default_rng(seed).integers(0, 2, size=(_RESAMPLES, len(places))).astype(bool)
    return (extreme(np.array(places)[row].tolist() for row in tossed) + 1) / (_RESAMPLES + 1)


def _gained(statistic: Statistic, places: Iterable[int], swapped: Collection[int] = frozenset()) -> float:
    first = [(i, int(i in swapped)) for i in places]
    return statistic([(i, 1 - program) for i, program in first]) - statistic(first)


def _resamples(n: int, seed: int) -> list[list[int]]:
    return [] if n < 2 else np.random.default_rng(seed).integers(0, n, size=(_RESAMPLES, n)).tolist()


def _percentiles(drawn: Sequence[float]) -> tuple[float, float]:
    known = [v for v in drawn if not math.isnan(v)]
    if not known or 2 * len(known) < len(drawn):
        return math.nan, math.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def pairs_to_show(gain: float, differences: Sequence[float] = ()) -> int:
    """Return how many paired examples show a gain, by a two-sided test at 5 %, in 8 of 10 studies of that size.

    The spread of the differences decides: that of the given ones, but for scores of 0 and 1, and for fewer than ten
    pairs, at least the one of the luckiest case, in which no answer becomes worse. Never fewer than six: no sign-flip
    test of fewer comes below 5 %. Source: the normal approximation of a paired test's power (Miettinen 1968 for
    0 and 1); the luckiest case as the least is ours.

    Args:
        gain: Above 0, in the unit of the scores; that unit is 1 where no differences are given.
        differences: Of a pilot, one a pair.
    """
    seen = np.array(differences, dtype=float)
    spread = float(seen.var(ddof=1)) if len(seen) > 1 else 0.0
    if len(seen) < 10 or bool(np.isin(seen, (-1.0, 0.0, 1.0)).all()):
        spread = max(spread, gain * (1 - gain))
    return max(6, math.ceil((_Z + _Z_POWER) ** 2 * spread / gain**2))


def _is_binary(values: NDArray[np.float64]) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share."""
    share, z2 = hits / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the interval touches 0 or 1 exactly; rounding must not push it beyond.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def _t_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = float(values.mean())
    half = t975(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


@lru_cache(maxsize=1024)
def t975(df: int) -> float:
    """The 97.5 % quantile of Student's t, with a relative error below 1e-8.

    Bisection on the closed form of the distribution for few degrees of freedom, its Cornish-Fisher expansion
    for many (Abramowitz and Stegun 26.7.3, 26.7.4 and 26.7.5).
    """
    if df > 100:
        z = _Z
        terms = (
            z,
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
            (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
        )
        return math.fsum(term / float(df) ** k for k, term in enumerate(terms))
    low, high = 1.9, 12.8
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, df) < 0.95 else (low, middle)
    return (low + high) / 2


def _t_within(t: float, df: int) -> float:
    """P(|T| < t) for Student's t."""
    angle = math.atan(t / math.sqrt(df))
    cos, sin = math.cos(angle), math.sin(angle)
    term, total = (cos, cos) if df % 2 else (1.0, 1.0)
    for k in range(3 if df % 2 else 2, df - 1, 2):
        term *= cos * cos * (k - 1) / k
        total += term
    if df % 2 == 0:
        return sin * total
    return 2 / math.pi * (angle + (sin * total if df > 1 else 0.0))


def _newcombe(pairs: NDArray[np.float64]) -> tuple[float, float]:
    """Newcombe's 95 % interval (method 10) of the difference of two paired shares, second minus first."""
    n = len(pairs)
    first, second = int(pairs[:, 0].sum()), int(pairs[:, 1].sum())
    both = int(pairs.prod(axis=1).sum())
    cross = both * (n - first - second + both) - (first - both) * (second - both)
    # The continuity correction of the correlation; a negative one is taken as it is.
    cross_corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    scale = math.sqrt(first * (n - first) * second * (n - second))
    phi = cross_corrected / scale if scale else 0.0
    (low1, high1), (low2, high2) = _wilson(first, n), _wilson(second, n)
    p1, p2 = first / n, second / n
    down = (p2 - low2) ** 2 - 2 * phi * (p2 - low2) * (high1 - p1) + (high1 - p1) ** 2
    up = (high2 - p2) ** 2 - 2 * phi * (high2 - p2) * (p1 - low1) + (p1 - low1) ** 2
    # Rounding can make a square that is 0 slightly negative.
    return p2 - p1 - math.sqrt(max(down, 0.0)), p2 - p1 + math.sqrt(max(up, 0.0))


def _exact_sign_flip(differences: NDArray[np.float64]) -> float | None:
    """The exact two-sided sign-flip p-value; None if its null distribution is too large to write down.

    Equal absolute differences are flipped together: with k of c positive they add v * (2k - c), in C(c, k)
    ways. So few distinct values stay exact at any n.
    """
    counts = Counter(np.round(np.abs(differences), 12).tolist())
    counts.pop(0.0, None)
    if math.prod(count + 1 for count in counts.values()) > _EXACT_STATES:
        return None
    sums, weights = np.zeros(1), np.ones(1)
    for value, count in counts.items():
        ways = np.array([math.comb(count, k) / 2**count for k in range(count + 1)])
        steps = value * (2 * np.arange(count + 1) - count)
        sums = np.add.outer(sums, steps).ravel()
        weights = np.multiply.outer(weights, ways).ravel()
    extreme = np.abs(sums) >= _at_least(differences)
    return min(1.0, float(weights[extreme].sum()))


def _random_sign_flip(differences: NDArray[np.float64], seed: int) -> float:
    """The sign-flip p-value from seeded random flips; counts the observed signs as one of them."""
    rng = np.random.default_rng(seed)
    extreme, chunk = 0, 1000  # in chunks: memory stays at 1000 * n numbers
    for _ in range(_SIGN_FLIPS // chunk):
        signs = 2.0 * rng.integers(0, 2, size=(chunk, len(differences))) - 1.0
        extreme += int((np.abs(signs @ differences) >= _at_least(differences)).sum())
    return (extreme + 1) / (_SIGN_FLIPS + 1)


def _at_least(differences: NDArray[np.float64]) -> float:
    return abs(float(differences.sum())) - _TOLERANCE * max(1.0, float(np.abs(differences).sum()))
