"""Permutation tests of two groups' means and of a trend within blocks.

Pure functions of their arguments; sources are named at each.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cuesmith.teleprompters.runtime.statistics import Estimate95, t975

__all__ = ["permuted", "trend_of"]

_STATES = 20_000
"""Different sums of a permutation test that are counted exactly."""
_FINEST = 10_000
"""A score is a multiple of one over at most so much, unless it is a number of any kind."""
_SHUFFLES = 10_000
_TREND_SHUFFLES = 4_999
Floats = NDArray[np.float64]


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
    table = np.asarray(values)[:, None]
    ranks: Floats = ((table > table.T).sum(axis=1) + ((table == table.T).sum(axis=1) + 1) / 2).astype(np.float64)
    ranks -= ranks.mean()
    length = float(np.linalg.norm(ranks))
    return ranks / length if length else ranks
