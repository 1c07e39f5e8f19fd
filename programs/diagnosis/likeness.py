"""How alike the texts of two groups are, against how alike those of each are. Source: ours."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.inference import PERMUTATIONS, jackknife, permutation_test
from cuesmith.teleprompters.runtime.statistics import Estimate95

__all__ = ["Alike", "alike"]

_EXACT = 14
"""Pairs up to which all swaps are tried (2 ** 14)."""
_TOLERANCE = 1e-9
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Alike:
    """How alike the texts of two groups are, the first and the second.

    Attributes:
        likeness: Mean similarity across the groups over the geometric mean of those within each, as in
            `validity.PriorBias`: 1 if it makes no difference which group a text is of. With a jackknife interval.
        first: Mean similarity of two texts of the first group.
        second: Mean similarity of two texts of the second.
        across: Mean similarity of a text of the first and one of the second.
        p_value: One-sided permutation test of "more alike within than across".
        exact: Whether all permutations were tried.
    """

    likeness: Estimate95
    first: float
    second: float
    across: float
    p_value: float
    exact: bool


def alike(matrix: Floats, n: int, *, paired: bool = False, seed: int = 0) -> Alike | None:
    """Compare the first n texts with all others.

    Args:
        matrix: Similarities of all texts.
        n: How many belong to the first group.
        paired: Whether text k belongs together with text n + k: then the permutations swap the two of a pair, and the
            jackknife leaves out pairs; else they deal all texts anew, and it leaves out texts.
        seed: Seeds the permutations.

    Returns:
        None if a group has fewer than 3 texts.

    Raises:
        ValueError: If texts are paired and the groups differ in size.
    """
    total = len(matrix)
    if paired and total != 2 * n:
        raise ValueError(f"{n} of {total} texts cannot be paired with the others")
    if min(n, total - n) < 3:
        return None
    units = [(k, n + k) for k in range(n)] if paired else [(k,) for k in range(total)]
    groups = [n] if paired else [n, total - n]
    members = np.arange(total)
    left = [_likeness(matrix, np.delete(members, unit), n - sum(k < n for k in unit)) for unit in units]
    rng = np.random.default_rng(seed)
    p_value, exact = _swap_test(matrix, n, rng) if paired else permutation_test(matrix, (members >= n).astype(int), rng)
    first, second, across = _means(matrix, members, n)
    likeness = jackknife(_likeness(matrix, members, n), left, groups)
    return Alike(likeness, first, second, across, p_value, exact)


def _means(matrix: Floats, members: NDArray[np.intp], n: int) -> tuple[float, float, float]:
    """Mean similarities within the first n members, within the others, and across; no text is paired with itself."""
    parts = members[:n], members[n:]
    inside = []
    for part in parts:
        block = matrix[np.ix_(part, part)]
        inside.append(float(block.sum() - np.trace(block)) / (len(part) * (len(part) - 1)))
    return inside[0], inside[1], float(matrix[np.ix_(*parts)].mean())


def _likeness(matrix: Floats, members: NDArray[np.intp], n: int) -> float:
    first, second, across = _means(matrix, members, n)
    return across / math.sqrt(first * second) if min(first, second) > 0 else math.nan


def _swap_test(matrix: Floats, n: int, rng: np.random.Generator) -> tuple[float, bool]:
    """The permutation test of the sum of similarities within groups, where only the two of a pair change places."""
    between = matrix[:n, :n] + matrix[n:, n:] - matrix[:n, n:] - matrix[n:, :n]  # of pair and pair: as is, not crossed
    np.fill_diagonal(between := between.copy(), 0.0)
    if exact := n <= _EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        signs = rng.choice((1.0, -1.0), size=(PERMUTATIONS, n))
    sums = ((signs @ between) * signs).sum(axis=1)
    least = float(between.sum())
    extreme = int((sums >= least - _TOLERANCE * max(1.0, abs(least))).sum())
    return (extreme / len(signs), True) if exact else ((extreme + 1) / (len(signs) + 1), False)
