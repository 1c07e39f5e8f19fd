"""Texts and units that are alike: two groups of texts compared, and Mantel's test, by values and by ranks.

Mantel's test asks whether units that are alike in one respect are alike in another. Pairs share units, so that the
units are permuted, not the pairs. Source: Mantel 1967; intervals, strata and power are ours, and so is the comparison.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.inference import PERMUTATIONS, centred_ranks, jackknife, permutation_test
from cuesmith.teleprompters.runtime.statistics import Estimate95

_SWAPPED = 14
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
    if exact := n <= _SWAPPED:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        signs = rng.choice((1.0, -1.0), size=(PERMUTATIONS, n))
    sums = ((signs @ between) * signs).sum(axis=1)
    least = float(between.sum())
    extreme = int((sums >= least - _TOLERANCE * max(1.0, abs(least))).sum())
    return (extreme / len(signs), True) if exact else ((extreme + 1) / (len(signs) + 1), False)


EXACT = 7
"""Up to so many units all 7! = 5,040 orders are tried."""
ORDERS = 5_000
_REACH = NormalDist().inv_cdf(0.95) + NormalDist().inv_cdf(0.8)
"""Standard errors that an effect is away from 0 if a one-sided test at 5 % finds it in 80 % of all studies."""


# --- Mantel, by values -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mantel:
    """Whether units that are alike in one respect are alike in another.

    Attributes:
        r: Pearson's correlation over pairs of units, with a jackknife interval over units.
        p_value: One-sided; permutation of the units.
        exact: Whether all orders were tried.
        detectable: The least correlation that would be found in 80 % of such studies (normal approximation).
        pairs: (similarity in the one respect, similarity in the other), one a pair.
    """

    r: Estimate95
    p_value: float
    exact: bool
    detectable: float
    pairs: tuple[tuple[float, float], ...]


def mantel(first: Floats, second: Floats, *, seed: int = 0) -> Mantel | None:
    """Correlate two similarity matrices of the same units over all pairs of them. Source: Mantel 1967.

    Args:
        first: Symmetric; the diagonal does not count.
        second: As many rows.
        seed: Seeds the random orders, where there are more than 7 units.

    Returns:
        None with fewer than 5 units, or if all pairs of one matrix (without any one unit, too) are equally alike.
    """
    n = len(first)
    left = [np.delete(np.arange(n), k) for k in range(n)]
    if n < 5 or any(_is_flat(side[np.ix_(some, some)]) for side in (first, second) for some in left):
        return None
    rows, columns = np.triu_indices(n, 1)
    if exact := n <= EXACT:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        rng = np.random.default_rng(seed)
        orders = np.stack([np.arange(n), *(rng.permutation(n) for _ in range(PERMUTATIONS))])
    fixed = first[rows, columns] - first[rows, columns].mean()
    moved = second[orders[:, rows], orders[:, columns]]
    moved = moved - moved.mean(axis=1, keepdims=True)
    values = moved @ fixed / (math.sqrt(fixed @ fixed) * np.sqrt((moved**2).sum(axis=1)))
    value = float(values[0])
    p_value = float((values >= value - _TOLERANCE).mean())
    within = [_pearson(first[np.ix_(some, some)], second[np.ix_(some, some)]) for some in left]
    r = jackknife(value, within, [n])
    r = Estimate95(r.mean, max(-1.0, r.low), min(1.0, r.high), n)
    pairs = tuple(zip(first[rows, columns].tolist(), second[rows, columns].tolist(), strict=True))
    return Mantel(r, p_value, exact, _REACH * float(values.std()), tuple(sorted(pairs)))


def _is_flat(matrix: Floats) -> bool:
    return float(np.ptp(matrix[np.triu_indices(len(matrix), 1)])) < _TOLERANCE


def _pearson(first: Floats, second: Floats) -> float:
    pairs = np.triu_indices(len(first), 1)
    return float(np.corrcoef(first[pairs], second[pairs])[0, 1])


# --- Mantel, by ranks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankMantel:
    """Spearman's correlation of two distances between the same prompts.

    Attributes:
        rho: From -1 to 1; nan if a distance is the same for all pairs.
        p_value: Two-sided, of permuting the prompts of one distance (Mantel 1967); 1.0 where there is no rho.
        adjusted: The same, corrected by Holm for all tests of the study.
        critical: |rho| that has p = 0.05: smaller correlations cannot be shown with these prompts.
        prompts: How many.
        pairs: How many pairs are compared.
    """

    rho: float
    p_value: float
    adjusted: float
    critical: float
    prompts: int
    pairs: int

    @property
    def sign(self) -> int:
        """1 or -1 if the association is shown at 5 %, else 0."""
        return int(math.copysign(1, self.rho)) if self.adjusted < 0.05 else 0


def rank_mantel(first: Floats, second: Floats, meanings: Sequence[int] | None = None, *, seed: int = 0) -> RankMantel:
    """Correlate two distances between the same prompts by ranks, and test it by permuting prompts (Mantel 1967).

    Pairs share prompts, so they are no independent observations: the prompt is the unit. With `meanings` only pairs of
    one meaning count, ranked and permuted within it. Exact with at most 7 prompts, else 5,000 random orders.

    Args:
        first: Symmetric distances.
        second: Symmetric distances of the same prompts.
        meanings: A number for each prompt; None takes all for one.
        seed: Seeds the orders.
    """
    strata = _strata([0] * len(first) if meanings is None else meanings)
    x, y = (_ranked(matrix, strata) for matrix in (first, second))
    prompts, pairs = sum(map(len, strata)), sum(len(s) * (len(s) - 1) // 2 for s in strata)
    scale = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    if not scale:
        return RankMantel(math.nan, 1.0, 1.0, math.nan, prompts, pairs)
    rho = float((x * y).sum()) / scale
    orders = _orders(strata, len(x), seed)
    drawn = np.einsum("ij,kij->k", x, y[orders[:, :, None], orders[:, None, :]]) / scale
    known = int(prompts > EXACT)  # the order as it is counts as one of the random ones
    p = (int((np.abs(drawn) >= abs(rho) - 1e-9).sum()) + known) / (len(drawn) + known)
    return RankMantel(rho, p, p, float(np.quantile(np.abs(drawn), 0.95)), prompts, pairs)


def _strata(meanings: Sequence[int]) -> list[list[int]]:
    """Prompts of one meaning, where there are at least 3: two have one pair, which nothing can be permuted in."""
    found = [[k for k, m in enumerate(meanings) if m == meaning] for meaning in dict.fromkeys(meanings)]
    return [members for members in found if len(members) > 2]


def _ranked(matrix: Floats, strata: Sequence[Sequence[int]]) -> Floats:
    """Mid-ranks of the pairs less their mean, within each stratum; 0 for all other pairs."""
    ranked = np.zeros_like(matrix)
    for members in strata:
        rows, columns = (np.asarray(members)[side] for side in np.triu_indices(len(members), 1))
        # Rounding must not decide which of two equal distances is larger.
        ranked[rows, columns] = centred_ranks(np.round(matrix[rows, columns], 9))
    return ranked + ranked.T


def _orders(strata: Sequence[Sequence[int]], n: int, seed: int) -> NDArray[np.intp]:
    """Orders of the prompts, one a row, in which each stays in its stratum: all of them, or random ones."""
    if sum(map(len, strata)) <= EXACT:
        tried = list(itertools.product(*(itertools.permutations(members) for members in strata)))
        parts = [np.array([one[k] for one in tried]) for k in range(len(strata))]
    else:
        rng = np.random.default_rng(seed)
        parts = [rng.permuted(np.tile(members, (ORDERS, 1)), axis=1) for members in strata]
    orders = np.tile(np.arange(n), (len(parts[0]), 1))
    for members, part in zip(strata, parts, strict=True):
        orders[:, list(members)] = part
    return orders
