"""What is estimated of a prompter's gain, and from what (`yardstick` estimates). Source: ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cuesmith.teleprompters.runtime.statistics import Estimate95


@dataclass(frozen=True, slots=True)
class Sampled:
    """One draw of a rewrite with the rewards of the frozen program's answers to it.

    Attributes:
        text: The rewrite; draws of the same text are pooled.
        rewards: One an answer; None (or nan) is missing and left out. A draw without any is left out.
    """

    text: str
    rewards: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class InputValue:
    """What one input contributes; in units of reward.

    Attributes:
        index: Its place in what was given.
        draws: Draws with a reward.
        distinct: Distinct rewrites among them.
        rewards: Rewards of them all.
        baseline: Estimated E_{rho_sft} R.
        gain: Its value for the central estimate: their mean is the estimate, their spread its uncertainty; None
            where that estimate does not exist. Of a single input it says little.
        gain_lower: Its part of the lower-leaning estimate.
        gain_upper: Its part of the upper-leaning estimate.
    """

    index: int
    draws: int
    distinct: int
    rewards: int
    baseline: float
    gain: float | None
    gain_lower: float
    gain_upper: float


@dataclass(frozen=True, slots=True)
class Attainable:
    """The best that any prompter can reach at one lambda, as a gain over the untrained prompter.

    The gain is E lambda log Z - E_{rho_sft} R, after its KL charge. All in units of reward, KLs in nats.

    Attributes:
        kl_coefficient: lambda.
        baseline: E_{rho_sft} R, the untrained prompter's mean reward.
        gain: The central estimate; None if no rewrite has two rewards, so that noise and spread cannot be told apart.
        gain_lower: The lower-leaning estimate: its expectation is at most the truth.
        gain_upper: The upper-leaning estimate: its expectation is at least the truth, but for unseen rewrites.
        value: E lambda log Z, central; None where `gain` is.
        kl: KL(rho* || rho_sft), central; None where `gain` is.
        kl_upper: The same by the plain plug-in, which noise inflates.
        noise_variance: Variance of one reward around R; None if unknown.
        spread_variance: Mean variance of R over an input's rewrites under rho_sft, unbiased, so that it can be
            negative; None if unknown.
        inputs: Every input that has a reward.
        skipped: Inputs without any.
    """

    kl_coefficient: float
    baseline: Estimate95
    gain: Estimate95 | None
    gain_lower: Estimate95
    gain_upper: Estimate95
    value: Estimate95 | None
    kl: Estimate95 | None
    kl_upper: Estimate95
    noise_variance: float | None
    spread_variance: float | None
    inputs: tuple[InputValue, ...]
    skipped: int

    @property
    def between(self) -> tuple[float, float]:
        """Where the gain lies: from the lower end of `gain_lower`, at least 0, to the upper end of `gain_upper`."""
        return max(self.gain_lower.low, 0.0), self.gain_upper.high

    @property
    def nothing_to_gain(self) -> bool:
        """Whether the data are compatible with a gain of 0 (for want of `gain`: by `gain_upper`)."""
        judged = self.gain_upper if self.gain is None else self.gain
        return not judged.low > 0


@dataclass(frozen=True, slots=True)
class Realised:
    """How much of the attainable gain a trained prompter has.

    Attributes:
        gain: Its own gain, E_rho R - lambda KL - E_{rho_sft} R, in units of reward.
        share: `gain` over the attainable gain, central; None where `flag` says why. The truth is at most 1; an
            estimate above it says that the sample of rho_sft missed rewrites that training found.
        low: Lower end of the share's 95 % interval (Fieller 1954); nan without a share.
        high: Upper end of it; nan without a share.
        least: Lower end of the interval if the attainable gain is as high as `gain_upper` says.
        most: Upper end of the interval if it is as low as `gain_lower` says; at most 1.
        flag: None, or "nothing-to-gain": the interval of the attainable gain includes 0; or "not-identified": no
            rewrite has two rewards, only `least` and `most` can be said.
    """

    gain: Estimate95
    share: float | None
    low: float
    high: float
    least: float
    most: float
    flag: Literal["nothing-to-gain", "not-identified"] | None


@dataclass(frozen=True, slots=True)
class PolicyKL:
    """KL(rho || rho_sft) of a trained prompter from draws of its own, in nats.

    Attributes:
        k1: Mean log-ratio; unbiased.
        k1_error: Its standard error; nan for fewer than two inputs.
        k3: Mean of exp(-log-ratio) - 1 + log-ratio: unbiased, never negative, and less noisy while rho is near
            rho_sft; far from it (above some 3 nats) rare draws dominate it, then read k1.
        k3_error: Its standard error.
        n: Inputs.
        per_input: k1 of each input, for `realised`.
    """

    k1: float
    k1_error: float
    k3: float
    k3_error: float
    n: int
    per_input: tuple[float | None, ...]
