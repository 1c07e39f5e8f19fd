"""Statistics of the study: the variance of rewards, wins and losses, and the gain at equal length.

Pure functions of their arguments. A missing reward or verdict (None) is left out, never read as 0 or as a tie.
Source: ours; the methods are those of the papers that each function names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95, t975

Verdict: TypeAlias = Literal["win", "tie", "loss"]

_Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

_ONE_SIDED = 0.9
"""Share of length differences on one side of 0 from which on an intercept is called an extrapolation. Ours."""


@dataclass(frozen=True)
class Wins:
    """Wins, ties and losses of one configuration against another on the same prompts.

    Attributes:
        wins: Prompts on which it is better.
        ties: Prompts on which neither is.
        losses: Prompts on which it is worse.
        missing: Prompts without a verdict.
        win_rate: Share of wins among wins and losses, with Wilson's 95 % interval.
        sign_test_p: Two-sided sign test; ties say nothing and are left out, and are reported beside it.
    """

    wins: int
    ties: int
    losses: int
    missing: int
    win_rate: Estimate95
    sign_test_p: float


@dataclass(frozen=True)
class EqualLength:
    """The gain in reward that is left at equal length of the answers.

    Attributes:
        gain: The expected difference of rewards where the lengths do not differ, with its 95 % interval.
        slope: Change of that difference for each unit of length.
        mean_length_difference: In units of length.
        extrapolated: Whether 9 in 10 length differences or more lie on one side of 0, so that the intercept rests on
            few answers, or none, of equal length.
    """

    gain: Estimate95
    slope: float
    mean_length_difference: float
    extrapolated: bool


def variance95(values: Iterable[float | None]) -> Estimate95:
    """Estimate the variance of a population, whatever its shape.

    The textbook's chi-square interval holds for normal values only, and rewards are skewed or of few values. This is
    Bonett's interval for non-normal ones (Computational Statistics & Data Analysis 50 (2006), 775-782), which widens
    with the kurtosis, estimated around a trimmed mean.

    Args:
        values: One reward a prompt.

    Returns:
        The sample variance (n - 1 in the denominator) with its interval. The interval is nan below 5 values and where
        all are equal.
    """
    scores = np.array([v for v in values if v is not None and not math.isnan(v)], dtype=float)
    n = len(scores)
    if n < 2:
        return Estimate95(math.nan, math.nan, math.nan, n)
    variance = float(scores.var(ddof=1))
    squares = float(((scores - scores.mean()) ** 2).sum())
    if n < 5 or squares <= 0.0:
        return Estimate95(variance, math.nan, math.nan, n)
    cut = int(1 / (2 * math.sqrt(n - 4)) * n)
    around = float(np.sort(scores)[cut : n - cut].mean())
    kurtosis = n * float(((scores - around) ** 4).sum()) / squares**2
    error = n / (n - _Z) * math.sqrt(max(0.0, kurtosis - (n - 3) / n) / (n - 1))
    centre = n / (n - _Z) * variance
    return Estimate95(variance, centre * math.exp(-_Z * error), centre * math.exp(_Z * error), n)


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact sign test: as likely to win as to lose.

    Args:
        wins: Pairs of one sign.
        losses: Pairs of the other; ties are left out.

    Returns:
        P(a split at least as uneven); 1.0 without any pair.
    """
    n, fewer = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / (1 << n))


def count_wins(verdicts: Sequence[Verdict | None]) -> Wins:
    """Count verdicts and test them.

    Args:
        verdicts: One a prompt; None where there is none.
    """
    wins, ties, losses = (verdicts.count(verdict) for verdict in ("win", "tie", "loss"))
    rate = estimate95([1.0] * wins + [0.0] * losses)
    return Wins(wins, ties, losses, verdicts.count(None), rate, sign_test(wins, losses))


def reward_verdicts(rewards: Sequence[float | None], baseline: Sequence[float | None]) -> list[Verdict | None]:
    """Judge by the reward itself: the higher one wins.

    Rewards no further apart than 1e-6 are a tie: batches of other sizes round differently.

    Args:
        rewards: Of one configuration, one a prompt.
        baseline: Of the other, in the same order.

    Raises:
        ValueError: If the two differ in length.
    """
    return [_verdict(a, b) for a, b in zip(rewards, baseline, strict=True)]


def _verdict(reward: float | None, baseline: float | None) -> Verdict | None:
    if reward is None or baseline is None:
        return None
    if abs(reward - baseline) <= 1e-6:
        return "tie"
    return "win" if reward > baseline else "loss"


def equal_length_gain(gains: Sequence[float | None], length_differences: Sequence[float | None]) -> EqualLength | None:
    """Estimate what is left of a gain where the two answers are equally long.

    Ordinary least squares of the reward difference on the length difference, prompt by prompt; the intercept is the
    expected reward difference at equal length, its interval Student's t with n - 2 degrees of freedom on HC3 standard
    errors (MacKinnon and White 1985), as the spread of a reward difference grows with that of the lengths. The idea is
    that of length-controlled AlpacaEval (2404.04475), for rewards in place of a judge's preferences.

    Args:
        gains: Reward minus the other's reward, one a prompt.
        length_differences: Length minus the other's length, in any unit, one a prompt.

    Returns:
        The gain; None below 4 pairs, or where the lengths all differ by the same, which leaves the slope open.

    Raises:
        ValueError: If the two differ in length.
    """
    kept = [(g, d) for g, d in zip(gains, length_differences, strict=True) if g is not None and d is not None]
    pairs = np.array(kept, dtype=float).reshape(-1, 2)
    if len(pairs) < 4 or np.ptp(pairs[:, 1]) == 0:
        return None
    design = np.column_stack([np.ones(len(pairs)), pairs[:, 1]])
    bread = np.linalg.inv(design.T @ design)
    coefficients = bread @ design.T @ pairs[:, 0]
    residuals = pairs[:, 0] - design @ coefficients
    leverage = np.einsum("ij,jk,ik->i", design, bread, design)
    # A pair that alone fixes the slope has leverage 1 and residual 0: it adds nothing to the spread.
    scaled = design * (residuals / np.maximum(1 - leverage, 1e-9))[:, None]
    half = t975(len(pairs) - 2) * math.sqrt(float((bread @ scaled.T @ scaled @ bread)[0, 0]))
    intercept, slope = (float(c) for c in coefficients)
    return EqualLength(
        Estimate95(intercept, intercept - half, intercept + half, len(pairs)),
        slope,
        float(pairs[:, 1].mean()),
        bool(max((pairs[:, 1] > 0).mean(), (pairs[:, 1] < 0).mean()) >= _ONE_SIDED),
    )
