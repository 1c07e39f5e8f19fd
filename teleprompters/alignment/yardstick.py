"""How much a prompter can gain, and how much of it a trained one has: estimates from samples of real runs.

The best value of the prompter's objective E[R] - lambda KL(rho || rho_sft) that any prompter can reach is
E lambda log E_{rho_sft} exp(R / lambda) (Lemma 1 of 2501.03486), where R(x, x') is the mean reward of the frozen
program on rewrite x' of input x. R is only seen through noisy rewards of a few draws. Put into that formula as they
are, they inflate it: a rewrite that was lucky once looks like one worth going to. Three estimates are therefore
given (all ours):

- `gain_lower`: weights from some rewards of each rewrite, their value from the others (every reward is left out
  once). As the weights know nothing of the rewards they are valued with, this is the regularised value of an
  actual policy on the drawn rewrites, so that its expectation never exceeds the truth, at any n.
- `gain_upper`: the plug-in, jackknifed over the draws against the bias of the logarithm. By Jensen noise can only
  raise it; with many draws its expectation is not below the truth. Not so with few draws at a small lambda, where
  what the draws missed is missing: no sample shows a good rewrite that rho_sft writes once in 1000 times, and from
  n draws an estimate of the KL cannot exceed log n nats.
- `gain`: the plug-in after the average rewards of an input's rewrites were drawn together until their spread is that
  of R, the noise taken off (constrained empirical Bayes: Louis 1984, JASA 79, 393). Noise and spread are pooled over
  all inputs, and need some rewrites with two rewards or more. Right in the mean and the variance of R, so right to
  the second order in 1 / lambda; at a small lambda the shape of the noise matters too.

Intervals are Student's t over inputs with its skewness removed (Hall 1992), so they are about inputs like these; for
`gain` on the infinitesimal jackknife's values, which carry the uncertainty of the pooled noise and spread (without
them the interval covered as little as 10 %).

Measured (`benchmarks/yardstick.py`: 40 inputs, rewards of 0 and 1, 24 cells of 50 runs): the interval of `gain` covers
the truth in 93.8 % of runs, the plug-in's in 24 %, and from `gain_lower`'s low end to `gain_upper`'s high end it lies
in 100 %. The bias of `gain` is below 7 % of the gain from 4 rewards a rewrite on; where rewards are single and rewrites
seldom repeat it reaches 20 %, and its interval is wide. The KL of rho* is the least certain: at lambda = 0.1 and 8
draws of 100 rewrites the estimate is 49 % (single rewards) to 85 % (four) of the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cuesmith.teleprompters.alignment.gains import Attainable, InputValue, PolicyKL, Realised, Sampled
from cuesmith.teleprompters.runtime.statistics import (
    Estimate95,
    t975,  # pyright: ignore[reportPrivateUsage]
)

Array = NDArray[np.float64]

_PARTS = 4
"""Parts the rewards of a rewrite are dealt into; more make the weights better, and each part's value noisier."""

_STEP = 1e-3
"""Relative step of the numerical derivatives; the functions are smooth, rounding costs 1e-12."""


def attainable(
    samples: Sequence[Sequence[Sampled]],
    kl_coefficient: float,
    *,
    noise_variance: float | None = None,
    seed: int = 0,
) -> Attainable:
    """Estimate the best regularised objective that any prompter can reach, E lambda log E_{rho_sft} exp(R / lambda).

    Args:
        samples: For each input its draws of rho_sft; at temperature 1, without top-p or top-k.
        kl_coefficient: lambda, in units of reward.
        noise_variance: Variance of one reward around R(x, x') if it is known: 0 if program and metric always give
            the same reward to the same rewrite. By default estimated from rewrites with several rewards, which one
            draw with one reward each does not give: then there is no central estimate, and `gain_lower` is 0.
        seed: Seeds how the rewards are split.

    Returns:
        The three estimates with intervals; their order as estimates is not enforced.

    Raises:
        ValueError: If lambda or the noise variance is out of range, or no input has a reward.
    """
    _check(kl_coefficient, noise_variance)
    pooled = [_Pool.of(index, draws) for index, draws in enumerate(samples)]
    pools = [pool for pool in pooled if pool is not None]
    if not pools:
        raise ValueError(f"no reward in the samples of {len(samples)} inputs")
    moments = _Moments.of(pools, noise_variance)
    means = np.array([pool.mean for pool in pools])
    upper = np.array([_jackknifed(pool, pool.averages, _log_mean, kl_coefficient) for pool in pools]) - means
    rng = np.random.default_rng(seed)
    if not moments.identified:
        lower, gains, kls = np.zeros(len(pools)), None, None
    else:
        lower = np.array([_cross_fitted(p, moments.without(i), kl_coefficient, rng) for i, p in enumerate(pools)])
        lower -= means
        gains = _central(pools, moments, _log_mean, kl_coefficient, 0.5 / kl_coefficient) - means
        kls = _central(pools, moments, _kl, kl_coefficient, 0.5 / kl_coefficient**2)
    naive_kls = np.array([float(_kl(pool.share, pool.averages, kl_coefficient)) for pool in pools])
    inputs = tuple(
        InputValue(
            pool.index,
            int(pool.draws.sum()),
            len(pool.texts),
            int(pool.counts.sum()),
            pool.mean,
            None if gains is None else float(gains[i]),
            float(lower[i]),
            float(upper[i]),
        )
        for i, pool in enumerate(pools)
    )
    return Attainable(
        kl_coefficient=kl_coefficient,
        baseline=_mean95(means),
        gain=None if gains is None else _mean95(gains),
        gain_lower=_mean95(lower),
        gain_upper=_mean95(upper),
        value=None if gains is None else _mean95(gains + means),
        kl=None if kls is None else _mean95(kls),
        kl_upper=_mean95(naive_kls),
        noise_variance=moments.noise if moments.identified else None,
        spread_variance=float(moments.own.mean()) if moments.identified else None,
        inputs=inputs,
        skipped=len(samples) - len(pools),
    )


def realised(rewards: Sequence[Sequence[Sampled]], policy_kl: Sequence[float | None], best: Attainable) -> Realised:
    """Estimate which share of the attainable gain a trained prompter has realised.

    (E_rho R - lambda KL(rho || rho_sft) - E_{rho_sft} R) / (E lambda log Z - E_{rho_sft} R), over the inputs that
    both samples have; numerator and denominator are paired input by input.

    Args:
        rewards: For each input the trained prompter's draws with their rewards, in the order of the samples that
            `best` was made from.
        policy_kl: KL(rho(.|x) || rho_sft(.|x)) of each input, in nats, such as `PolicyKL.per_input`.
        best: What `attainable` returned.

    Returns:
        The share with its interval; where the attainable gain may be 0 there is none, and a flag.

    Raises:
        ValueError: If lengths disagree, or no input has all that is needed.
    """
    total = len(best.inputs) + best.skipped
    if not len(rewards) == len(policy_kl) == total:
        raise ValueError(
            f"one entry an input is needed: {len(rewards)} samples, {len(policy_kl)} KLs, {total} inputs before"
        )
    found: list[InputValue] = []
    own: list[float] = []
    for value in best.inputs:
        pool, kl = _Pool.of(value.index, rewards[value.index]), policy_kl[value.index]
        if pool is not None and kl is not None and not math.isnan(kl):
            found.append(value)
            own.append(pool.mean - best.kl_coefficient * kl - value.baseline)
    if not found:
        raise ValueError("no input has rewards of both prompters and a KL")
    numerator = np.array(own)
    least, most = _outer(numerator, np.array([v.gain_lower for v in found]), np.array([v.gain_upper for v in found]))
    gain = _mean95(numerator)
    if best.gain is None:
        return Realised(gain, None, math.nan, math.nan, least, most, "not-identified")
    denominator = np.array([v.gain for v in found if v.gain is not None])
    interval = _fieller(numerator, denominator)
    if interval is None:
        return Realised(gain, None, math.nan, math.nan, least, most, "nothing-to-gain")
    share = float(numerator.mean() / denominator.mean())
    return Realised(gain, share, *interval, least, most, None)


def policy_kl(
    policy_logprobs: Sequence[Sequence[float | None]], reference_logprobs: Sequence[Sequence[float | None]]
) -> PolicyKL:
    """Estimate KL(rho || rho_sft) of a trained prompter from draws of rho.

    Source: Schulman 2020, "Approximating KL divergence" (k1, k3); standard errors over inputs, ours.

    Args:
        policy_logprobs: For each input log rho(x'|x) of each draw x' ~ rho, end token included, nats.
        reference_logprobs: log rho_sft(x'|x) of the same draws. A draw that lacks either is left out.

    Returns:
        Both estimates; every input counts the same, however many draws it has.

    Raises:
        ValueError: If the two differ in length, or hold no draw.
    """
    if len(policy_logprobs) != len(reference_logprobs):
        raise ValueError(f"got log-probabilities of {len(policy_logprobs)} and {len(reference_logprobs)} inputs")
    ratios = [_log_ratios(own, base) for own, base in zip(policy_logprobs, reference_logprobs, strict=True)]
    kept = [ratio for ratio in ratios if len(ratio)]
    if not kept:
        raise ValueError("no draw has both log-probabilities")
    k1 = np.array([ratio.mean() for ratio in kept])
    with np.errstate(over="ignore"):
        k3 = np.array([(np.expm1(-ratio) + ratio).mean() for ratio in kept])
    per_input = tuple(float(ratio.mean()) if len(ratio) else None for ratio in ratios)
    return PolicyKL(float(k1.mean()), _error(k1), float(k3.mean()), _error(k3), len(kept), per_input)


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """One input's draws, the equal ones pooled: T distinct rewrites, in the order in which they were drawn."""

    index: int
    texts: tuple[str, ...]
    draws: Array
    """How often each was drawn, (T,)."""
    rewards: tuple[Array, ...]
    """Of each rewrite all its rewards."""
    averages: Array
    """(T,)"""
    counts: Array
    """Rewards of each, (T,)."""
    share: Array
    """The drawn share of each, the sample's rho_sft, (T,)."""
    mean: float
    """Estimated E_{rho_sft} R."""

    @classmethod
    def of(cls, index: int, samples: Sequence[Sampled]) -> _Pool | None:
        """Pool; None if nothing was rewarded."""
        draws: dict[str, int] = {}
        rewards: dict[str, list[float]] = {}
        for sample in samples:
            known = [reward for reward in sample.rewards if reward is not None and not math.isnan(reward)]
            if known:
                draws[sample.text] = draws.get(sample.text, 0) + 1
                rewards.setdefault(sample.text, []).extend(known)
        if not draws:
            return None
        arrays = tuple(np.array(values, dtype=float) for values in rewards.values())
        times = np.array(list(draws.values()), dtype=float)
        averages = np.array([values.mean() for values in arrays])
        counts = np.array([len(values) for values in arrays], dtype=float)
        share = times / times.sum()
        return cls(index, tuple(draws), times, arrays, averages, counts, share, float(share @ averages))

    @property
    def bessel(self) -> float:
        """n / (n - 1) of its n draws; 0 for a single one, which tells no variance."""
        n = float(self.draws.sum())
        return n / (n - 1) if n > 1 else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Moments:
    """Sums over inputs that tell the variance of the noise and the variance of R; one entry an input.

    Attributes:
        squares: Squared deviations of the rewards from their rewrite's average.
        freedom: Their degrees of freedom.
        raw: Variance of the averages under rho_sft: the mean of (R_i - R_j)^2 / 2 over pairs of draws.
        leak: What one unit of noise variance adds to `raw`.
        size: What one unit of the variance of R over distinct rewrites adds to `raw`: the chance that two draws
            are different rewrites.
        known: A noise variance that was given.
    """

    squares: Array
    freedom: Array
    raw: Array
    leak: Array
    size: Array
    known: float | None

    @classmethod
    def of(cls, pools: Sequence[_Pool], known: float | None) -> _Moments:
        """Take them from the pools."""
        bessel = np.array([pool.bessel for pool in pools])
        return cls(
            np.array([sum(float(((r - r.mean()) ** 2).sum()) for r in pool.rewards) for pool in pools]),
            np.array([float((pool.counts - 1).sum()) for pool in pools]),
            bessel * np.array([float(pool.share @ (pool.averages - pool.mean) ** 2) for pool in pools]),
            bessel * np.array([float((pool.share * (1 - pool.share) / pool.counts).sum()) for pool in pools]),
            bessel * np.array([float((pool.share * (1 - pool.share)).sum()) for pool in pools]),
            known,
        )

    @property
    def identified(self) -> bool:
        """Whether noise and spread can be told apart."""
        return self.known is not None or bool(self.freedom.sum() > 0)

    @property
    def noise(self) -> float:
        """Variance of one reward around R; 0 where nothing is known."""
        if self.known is not None:
            return self.known
        return float(self.squares.sum() / self.freedom.sum()) if self.identified else 0.0

    @property
    def own(self) -> Array:
        """Unbiased for the variance of R under rho_sft of each input, so that it can be negative, (I,)."""
        return np.asarray(self.raw - self.noise * self.leak, dtype=float)

    @property
    def between(self) -> float:
        """Variance of R over the distinct rewrites of an input, at least 0."""
        size = float(self.size.sum())
        return max(0.0, float(self.own.sum()) / size) if size else 0.0

    def without(self, index: int) -> _Moments:
        """The moments of the other inputs, which are independent of this one; of all if there is no other."""
        if len(self.raw) < 2:
            return self
        rows = [np.delete(row, index) for row in (self.squares, self.freedom, self.raw, self.leak, self.size)]
        return _Moments(rows[0], rows[1], rows[2], rows[3], rows[4], self.known)

    def reliability(self, counts: Array) -> Array:
        """Share of the variance of an average of `counts` rewards that is R's own."""
        if self.noise <= 0:
            return np.ones(counts.shape)
        return np.asarray(self.between / (self.between + self.noise / counts), dtype=float)


def _log_mean(share: Array, scores: Array, kl_coefficient: float) -> Array:
    """lambda log sum share exp(scores / lambda) over the last axis; shapes (..., T), broadcast, give (...)."""
    # The top of those that are there: the others may lie so far above them that all of these underflow.
    top = np.where(share > 0, scores, -np.inf).max(axis=-1, keepdims=True)
    mass = (share * np.exp(np.minimum((scores - top) / kl_coefficient, 0.0))).sum(axis=-1)
    return np.asarray(top[..., 0] + kl_coefficient * np.log(mass), dtype=float)


def _tilt(share: Array, scores: Array, kl_coefficient: float) -> Array:
    """Weights proportional to share exp(scores / lambda), shape (..., T)."""
    top = np.where(share > 0, scores, -np.inf).max(axis=-1, keepdims=True)
    weights = share * np.exp(np.minimum((scores - top) / kl_coefficient, 0.0))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=float)


def _kl(share: Array, scores: Array, kl_coefficient: float) -> Array:
    """KL of the tilted weights from `share`, in nats, shape (...)."""
    gained = (_tilt(share, scores, kl_coefficient) * scores).sum(axis=-1) - _log_mean(share, scores, kl_coefficient)
    return np.asarray(np.maximum(gained / kl_coefficient, 0.0), dtype=float)


_Functional = Callable[[Array, Array, float], Array]


def _jackknifed(pool: _Pool, scores: Array, functional: _Functional, kl_coefficient: float) -> float:
    """A functional of the draws less the part of its bias that goes with 1 / n (Quenouille 1956)."""
    n = float(pool.draws.sum())
    full = float(functional(pool.share, scores, kl_coefficient))
    if n < 2 or len(pool.texts) < 2:
        return full
    fewer = (pool.draws - np.eye(len(pool.texts))) / (n - 1)
    left = float(pool.share @ functional(fewer, scores, kl_coefficient))
    return n * full - (n - 1) * left


def _central(
    pools: Sequence[_Pool], moments: _Moments, functional: _Functional, kl_coefficient: float, second_order: float
) -> Array:
    """One value an input, whose mean is the central estimate and whose spread tells its uncertainty.

    The average of a rewrite with k rewards is drawn towards the input's mean by sqrt(scale / (1 + ratio / k)), where
    ratio is noise over variance of R, and scale makes the pooled variance under rho_sft that of R. To the estimate is
    added each input's influence on it by way of ratio and scale (infinitesimal jackknife), which is 0 in the mean.

    Args:
        pools: The inputs.
        moments: Theirs.
        functional: What is averaged over inputs; 0 or the mean where all scores are equal.
        kl_coefficient: lambda.
        second_order: Its derivative by the variance of R at 0, which is used if that variance is estimated as 0.

    Returns:
        Shape (I,).
    """
    noise, own = moments.noise, moments.own
    # Influences, each of what the name says; a quotient of means a / b moves by (a's - quotient * b's) / mean of b.
    by_noise = 0.0 * own
    if moments.known is None:
        by_noise = (moments.squares - noise * moments.freedom) / moments.freedom.mean()
    by_own = own - own.mean() - moments.leak.mean() * by_noise
    if moments.between <= 0:
        level = [float(functional(pool.share, np.full(len(pool.texts), pool.mean), kl_coefficient)) for pool in pools]
        return np.asarray(np.array(level) + second_order * (own.mean() + by_own), dtype=float)

    def at(ratio: float, scale: float) -> Array:
        values = []
        for pool in pools:
            trust = np.sqrt(scale / (1 + ratio / pool.counts))
            scores = pool.mean + trust * (pool.averages - pool.mean)
            values.append(_jackknifed(pool, scores, functional, kl_coefficient))
        return np.array(values)

    def shrunk(ratio: float) -> Array:
        parts = [p.share @ ((p.averages - p.mean) ** 2 / (1 + ratio / p.counts)) for p in pools]
        return np.array([pool.bessel * float(part) for pool, part in zip(pools, parts, strict=True)])

    ratio = noise / moments.between
    left = shrunk(ratio)
    scale = float(own.mean() / left.mean())
    values = at(ratio, scale)
    if ratio <= 0:
        return values
    size = moments.size.mean()
    by_between = (by_own - moments.between * (moments.size - size)) / size
    by_ratio = (by_noise - ratio * by_between) / moments.between
    step = ratio * _STEP
    by_left = left - left.mean() + float((shrunk(ratio + step) - left).mean()) / step * by_ratio
    by_scale = (by_own - scale * by_left) / left.mean()
    slope_ratio = float((at(ratio + step, scale) - values).mean()) / step
    slope_scale = float((at(ratio, scale * (1 + _STEP)) - values).mean()) / (scale * _STEP)
    return np.asarray(values + slope_ratio * by_ratio + slope_scale * by_scale, dtype=float)


def _cross_fitted(pool: _Pool, others: _Moments, kl_coefficient: float, rng: np.random.Generator) -> float:
    """The value of weights that know nothing of the rewards they are valued with, one input.

    The rewards of each rewrite are dealt into at most 4 parts; each part is the judge once, the other parts and the
    other inputs' noise and spread make the weights. A rewrite whose only reward is in the judging part gets its
    weight from the mean of the others.
    """
    share = pool.share
    if others.known == 0:  # nothing to split: the draws are all that is uncertain, and Jensen leans down
        return float(_log_mean(share, pool.averages, kl_coefficient))
    parts = int(min(_PARTS, pool.counts.max()))
    # Every sum over rewards at once, padded with 0: shapes (parts, T), part p of a rewrite with w ways is p mod w.
    padded = np.zeros((len(share), int(pool.counts.max())))
    for t, rewards in enumerate(pool.rewards):
        padded[t, : len(rewards)] = rng.permutation(rewards)
    ways = np.minimum(parts, pool.counts)[:, None]
    place = np.arange(padded.shape[1])
    part = np.arange(parts)[:, None, None]
    held = (place < pool.counts[:, None]) & (place % ways == part % ways)
    judges = held.sum(axis=-1)
    judged = (padded * held).sum(axis=-1) / judges
    counts = pool.counts - judges
    scores = ((padded * ~held).sum(axis=-1)) / np.maximum(counts, 1)
    seen = share * (counts > 0)
    centre = (seen * scores).sum(axis=-1, keepdims=True) / np.maximum(seen.sum(axis=-1, keepdims=True), 1e-300)
    trust = np.where(counts > 0, others.reliability(np.maximum(counts, 1)), 0.0)
    scores = centre + trust * (scores - centre)
    values = (_tilt(share, scores, kl_coefficient) * judged).sum(axis=-1)
    return float((values - kl_coefficient * _kl(share, scores, kl_coefficient)).mean())


def _outer(numerator: Array, lower: Array, upper: Array) -> tuple[float, float]:
    """The widest that the share can be, as the attainable gain is between its two leaning estimates.

    A gain that may be 0 by the lower one leaves the share without that limit; the truth is at most 1 in any case.
    """
    intervals = [_fieller(numerator, upper), _fieller(numerator, lower)]
    own = _mean95(numerator)
    ends = [interval for interval in intervals if interval is not None]
    least = min((low for low, _ in ends), default=-math.inf)
    if intervals[1] is None and not own.low >= 0:
        least = -math.inf
    if intervals[1] is None or intervals[0] is None:
        return least, 1.0 if not own.high < 0 else 0.0
    return least, min(1.0, max(high for _, high in ends))


def _fieller(numerator: Array, denominator: Array) -> tuple[float, float] | None:
    """Fieller's 95 % interval of a ratio of paired means; None if the denominator may be 0 or less."""
    n = len(numerator)
    if n < 2:
        return None
    a, b, t2 = float(numerator.mean()), float(denominator.mean()), t975(n - 1) ** 2
    covariance = np.cov(numerator, denominator) / n
    square = b * b - t2 * float(covariance[1, 1])
    if not (b > 0 and square > 0):
        return None
    middle = a * b - t2 * float(covariance[0, 1])
    # Rounding can make a square that is 0 slightly negative.
    root = math.sqrt(max(0.0, middle**2 - square * (a * a - t2 * float(covariance[0, 0]))))
    return (middle - root) / square, (middle + root) / square


def _mean95(values: Array) -> Estimate95:
    """Mean and interval; never Wilson's, as these are no shares even where all are 0.

    Student's t, its skewness removed by Hall's cubic transformation: gains of inputs have a long right tail (many
    inputs with nothing to gain), and plain t then errs on one side 5 times as often as on the other.
    Source: Hall 1992, JRSS B 54, 221-228.
    """
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Estimate95(mean, math.nan, math.nan, n)
    error, t = _error(values), t975(n - 1)
    deviation = float(values.std())
    skewness = float(((values - mean) ** 3).mean()) / deviation**3 if deviation > 1e-12 * abs(mean) else 0.0
    return Estimate95(mean, mean - error * _unskewed(t, skewness, n), mean - error * _unskewed(-t, skewness, n), n)


def _unskewed(t: float, skewness: float, n: int) -> float:
    """Hall's transformation backwards: the quantile of the studentised mean of skew values."""
    a = skewness / math.sqrt(n)
    if abs(a) < 1e-6:
        return t
    return 3 / a * (math.cbrt(1 + a * (t - a / 6)) - 1)


def _error(values: Array) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _log_ratios(own: Sequence[float | None], base: Sequence[float | None]) -> Array:
    if len(own) != len(base):
        raise ValueError(f"got {len(own)} and {len(base)} log-probabilities of the same draws")
    pairs = zip(own, base, strict=True)
    return np.array([a - b for a, b in pairs if a is not None and b is not None], dtype=float)


def _check(kl_coefficient: float, noise_variance: float | None) -> None:
    if not 0 < kl_coefficient < math.inf:
        raise ValueError(f"kl_coefficient must be a positive number, got {kl_coefficient!r}")
    if noise_variance is not None and not 0 <= noise_variance < math.inf:
        raise ValueError(f"noise_variance must not be negative, got {noise_variance!r}")
