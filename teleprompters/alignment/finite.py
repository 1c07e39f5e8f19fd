"""Finite instances of the prompter problem, in which everything of Align-Pro's theory is computed exactly.

An instance has finitely many prompts x, rewrites x' and outputs y, so that expectations are sums: Lemma 1, the
gap to the aligned model, Theorem 1's bound and the identity behind it have no sampling error. The estimators of
`cuesmith.teleprompters.alignment.yardstick` are judged against these values.

Symbols: P(x) over prompts; rho_sft(x'|x) the untrained prompter; pi_F(y|.) the frozen model; r(x, y) the reward,
always of the original x; R(x, x') = E[r(x, y)] over y ~ pi_F(.|x'); lambda the KL coefficient of the prompter,
beta that of the aligned model pi*. Logarithms are natural, so a KL is in nats.

Source: 2501.03486. Where this differs from the paper the docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_SUM_TOLERANCE = 1e-9
"""How far a row of probabilities may be from 1; it is then scaled to 1 exactly."""


def log_mean_exp(probabilities: Array, scores: Array) -> Array:
    """Return log sum_k p_k exp(s_k) over the last axis, without overflow, and accurate where it is near 0.

    Args:
        probabilities: Shape (..., K), rows that sum to 1.
        scores: Shape (..., K), finite.

    Returns:
        Shape (...).
    """
    centre = (probabilities * scores).sum(axis=-1, keepdims=True)
    centred = scores - centre
    top = centred.max(axis=-1, keepdims=True)
    large = np.log((probabilities * np.exp(centred - top)).sum(axis=-1)) + top[..., 0]
    # Around 0 the logarithm of 1 + tiny loses digits that a factor of lambda = 1e3 would make visible.
    with np.errstate(over="ignore"):
        small = np.log1p((probabilities * np.expm1(np.minimum(centred, 1.0))).sum(axis=-1))
    near = np.abs(centred).max(axis=-1) < 1.0
    result: Array = np.where(near, small, large) + centre[..., 0]
    return result


def total_variation(first: Array, second: Array) -> Array:
    """Return half the L1 distance over the last axis: 0 for equal distributions, 1 for disjoint ones."""
    result: Array = 0.5 * np.abs(first - second).sum(axis=-1)
    return result


def kl_divergence(first: Array, second: Array) -> Array:
    """Return D_KL(first || second) over the last axis, in nats; 0 log 0 is 0, and what `second` lacks is inf."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(first > 0, first * (np.log(first) - np.log(second)), 0.0)
    result: Array = terms.sum(axis=-1)
    return result


@dataclass(frozen=True, slots=True)
class Theory:
    """The theory of one instance at its lambda and beta; rewards in the unit of r, KLs in nats.

    Attributes:
        aligned: J(pi*), the mean reward of the aligned model, which is the frozen model tilted by exp(r / beta).
        prompted: J of the frozen model behind the optimal prompter rho*.
        frozen: J of the frozen model on the original prompts.
        untrained: J of the frozen model behind rho_sft.
        delta_1: J(pi*) - J(pi_F), at least 0.
        delta_2: J(pi_F) - J(prompted), of either sign.
        gap: J(pi*) - J(prompted) = delta_1 + delta_2.
        epsilon_1: (r_max - r_min) E TV(pi*, pi_F(.|x)).
        epsilon_2: (r_max - r_min) E TV(pi_F(.|x), pi_F(.|x')), x' ~ rho_sft.
        kl: E D_KL(rho* || rho_sft).
        kl_reverse: E D_KL(rho_sft || rho*).
        bound: Theorem 1: epsilon_1 + epsilon_2 - lambda kl.
        tighter_bound: The same less lambda kl_reverse. Ours: it holds too.
        identity: The right side of the identity that equals the gap exactly. Ours.
        attainable: E lambda log Z, the optimum of the prompter's regularised objective (eq. 9).
    """

    aligned: float
    prompted: float
    frozen: float
    untrained: float
    delta_1: float
    delta_2: float
    gap: float
    epsilon_1: float
    epsilon_2: float
    kl: float
    kl_reverse: float
    bound: float
    tighter_bound: float
    identity: float
    attainable: float

    @property
    def identity_error(self) -> float:
        """How far rounding takes the two sides of the identity apart."""
        return abs(self.gap - self.identity)


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One finite problem. X prompts, K rewrites of each (each prompt has its own), Y outputs.

    Attributes:
        prompts: P(x), shape (X,).
        reference: rho_sft(x'|x), shape (X, K).
        frozen: pi_F(y|x) on the original prompts, shape (X, Y).
        rewritten: pi_F(y|x') on the rewrites, shape (X, K, Y).
        rewards: r(x, y), shape (X, Y).
        beta: KL coefficient of the aligned model, in units of reward, above 0.
        kl_coefficient: lambda of the prompter, in units of reward, above 0.
        reward_range: (r_min, r_max); by default those of `rewards`.

    Raises:
        ValueError: If shapes disagree, a row is no distribution, or a number is not finite or out of range.
    """

    prompts: Array
    reference: Array
    frozen: Array
    rewritten: Array
    rewards: Array
    beta: float = 1.0
    kl_coefficient: float = 0.1
    reward_range: tuple[float, float] | None = field(default=None)

    def __post_init__(self) -> None:
        for name in ("prompts", "reference", "frozen", "rewritten"):
            object.__setattr__(self, name, _distributions(name, getattr(self, name)))
        object.__setattr__(self, "rewards", _readonly(np.array(self.rewards, dtype=float)))
        for name in ("beta", "kl_coefficient"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)!r}")
        if self.reference.ndim != 2 or self.rewards.ndim != 2:
            raise ValueError(
                f"reference and rewards must have 2 axes, got shapes {self.reference.shape}, {self.rewards.shape}"
            )
        (x, k), y = self.reference.shape, self.rewards.shape[1]
        wanted = {"prompts": (x,), "frozen": (x, y), "rewritten": (x, k, y), "rewards": (x, y)}
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")
        self._check_rewards()

    def _check_rewards(self) -> None:
        if not np.isfinite(self.rewards).all():
            raise ValueError("rewards must be finite")
        if self.reward_range is None:
            return
        low, high = self.reward_range
        if not low <= self.rewards.min() <= self.rewards.max() <= high:
            raise ValueError(f"reward_range {self.reward_range} does not contain all rewards")

    @property
    def reward_width(self) -> float:
        """r_max - r_min."""
        low, high = self.reward_range or (float(self.rewards.min()), float(self.rewards.max()))
        return high - low

    def with_kl_coefficient(self, kl_coefficient: float) -> Instance:
        """The same instance at another lambda."""
        return replace(self, kl_coefficient=kl_coefficient)

    def rewrite_rewards(self) -> Array:
        """R(x, x') = E[r(x, y)] over y ~ pi_F(.|x'), shape (X, K)."""
        result: Array = np.einsum("xky,xy->xk", self.rewritten, self.rewards)
        return result

    def log_partition(self) -> Array:
        """Log Z(x) with Z(x) = sum rho_sft exp(R / lambda), shape (X,). Source: Lemma 1, which calls Z itself "log"."""
        return log_mean_exp(self.reference, self.rewrite_rewards() / self.kl_coefficient)

    def optimal_prompter(self) -> Array:
        """rho*(x'|x) = rho_sft exp(R / lambda) / Z, shape (X, K). Source: Lemma 1, eq. 10."""
        return _tilted(self.reference, self.rewrite_rewards() / self.kl_coefficient)

    def optimal_policy(self) -> Array:
        """pi*(y|x) = pi_F(y|x) exp(r / beta) / Z*, shape (X, Y). Source: eq. 4."""
        return _tilted(self.frozen, self.rewards / self.beta)

    def prompted_policy(self, prompter: Array) -> Array:
        """The output distribution behind a prompter, shape (X, Y). Source: eq. 3.

        Args:
            prompter: rho(x'|x), shape (X, K).
        """
        result: Array = np.einsum("xk,xky->xy", prompter, self.rewritten)
        return result

    def mean_reward(self, policy: Array) -> float:
        """J(policy) = E r(x, y) over x ~ P, y ~ policy(.|x) of shape (X, Y)."""
        return self._over_prompts((policy * self.rewards).sum(axis=1))

    def objective(self, prompter: Array) -> float:
        """E R(x, x') - lambda E D_KL(prompter || rho_sft), what the prompter maximises. Source: eq. 9."""
        reward = (prompter * self.rewrite_rewards()).sum(axis=1)
        return self._over_prompts(reward - self.kl_coefficient * kl_divergence(prompter, self.reference))

    def attainable(self) -> float:
        """E lambda log Z, the largest value of the objective. Source: Lemma 1."""
        return self.kl_coefficient * self._over_prompts(self.log_partition())

    def theory(self) -> Theory:
        """Every quantity of section 4 of the paper, exactly."""
        prompter, policy = self.optimal_prompter(), self.optimal_policy()
        aligned, frozen = self.mean_reward(policy), self.mean_reward(self.frozen)
        prompted = self.mean_reward(self.prompted_policy(prompter))
        untrained = self.mean_reward(self.prompted_policy(self.reference))
        moved = (self.reference * total_variation(self.frozen[:, None, :], self.rewritten)).sum(axis=1)
        epsilon_1 = self.reward_width * self._over_prompts(total_variation(policy, self.frozen))
        epsilon_2 = self.reward_width * self._over_prompts(moved)
        kl, kl_reverse = self._divergences(self.reference, prompter, self.rewrite_rewards() / self.kl_coefficient)
        beta_kls = self.beta * sum(self._divergences(self.frozen, policy, self.rewards / self.beta))
        bound = epsilon_1 + epsilon_2 - self.kl_coefficient * kl
        return Theory(
            aligned=aligned,
            prompted=prompted,
            frozen=frozen,
            untrained=untrained,
            delta_1=aligned - frozen,
            delta_2=frozen - prompted,
            gap=aligned - prompted,
            epsilon_1=epsilon_1,
            epsilon_2=epsilon_2,
            kl=kl,
            kl_reverse=kl_reverse,
            bound=bound,
            tighter_bound=bound - self.kl_coefficient * kl_reverse,
            identity=beta_kls + (frozen - untrained) - self.kl_coefficient * (kl + kl_reverse),
            attainable=self.attainable(),
        )

    def admissible(self) -> tuple[tuple[float, float], ...]:
        """The lambdas at which Theorem 1's bound is not negative, as closed intervals in increasing order.

        The paper writes lambda <= (epsilon_1 + epsilon_2) / E D_KL(rho* || rho_sft), but rho* depends on lambda,
        so that the condition is solved self-consistently here: rho* is computed anew at every lambda, sign changes
        of the bound are sought on a logarithmic grid and narrowed by bisection. lambda D_KL tends to 0 at both
        ends (for small lambda rho* settles on the best rewrites and the KL stays finite), so that the admissible
        set begins at 0, is unbounded, and is one interval unless the bound dips below 0 in between.

        The grid has 241 points from 1e-3 to 1e3, outside of which the sign is taken to be that at 0 and at infinity; a
        dip that fits between two of them is not seen.

        Returns:
            Intervals of lambda in units of reward; the first begins at 0, the last ends at infinity.
        """
        budget = self.theory().epsilon_1 + self.theory().epsilon_2  # neither depends on lambda
        scores = self.rewrite_rewards()

        def slack(kl_coefficient: float) -> float:
            tilt = scores / kl_coefficient
            forward, _ = self._divergences(self.reference, _tilted(self.reference, tilt), tilt)
            return budget - kl_coefficient * forward

        # At exactly 0, as where nothing depends on the rewrite, rounding must not decide.
        floor = -1e-14 * self.reward_width
        grid = np.geomspace(1e-3, 1e3, 241)
        holds = [True, *(slack(float(point)) >= floor for point in grid), True]
        edges = [
            _bisect(lambda t: slack(t) >= floor, *_ends(grid, i), holds[i])
            for i in range(len(holds) - 1)
            if holds[i] != holds[i + 1]
        ]
        ends = [0.0, *edges, math.inf]
        return tuple(zip(ends[::2], ends[1::2], strict=True))

    def _over_prompts(self, values: Array) -> float:
        return float((self.prompts * values).sum())

    def _divergences(self, base: Array, tilted: Array, scores: Array) -> tuple[float, float]:
        """D_KL(tilted || base) and D_KL(base || tilted), means over prompts, where tilted is base times exp(scores).

        From the scores and not from the probabilities, so that a weight that underflows to 0 loses nothing.
        """
        centred = scores - (base * scores).sum(axis=-1, keepdims=True)
        log_z = log_mean_exp(base, centred)
        forward = (tilted * centred).sum(axis=-1) - log_z
        # Neither is negative; rounding must not make it so.
        return self._over_prompts(np.maximum(forward, 0.0)), self._over_prompts(np.maximum(log_z, 0.0))


def random_instance(
    rng: np.random.Generator,
    *,
    reward_range: tuple[float, float] | None = None,
    max_prompts: int = 4,
    max_rewrites: int = 10,
    max_outputs: int = 7,
) -> Instance:
    """Draw an instance: sizes, distributions from flat to nearly one-hot, beta and lambda from 0.01 to 10.

    Half of the instances have rewards of r_min and r_max only, where bounds by the range are tightest.

    Args:
        rng: Where everything is drawn from.
        reward_range: (r_min, r_max) that the rewards are drawn from and that the instance declares; by default
            itself random, of either sign.
        max_prompts: At most so many prompts.
        max_rewrites: At most so many rewrites of each.
        max_outputs: At most so many outputs, at least 2.

    Returns:
        The instance.
    """
    x, k = int(rng.integers(1, max_prompts + 1)), int(rng.integers(1, max_rewrites + 1))
    y = int(rng.integers(2, max_outputs + 1))
    if reward_range is None:
        low = float(rng.normal(scale=2.0))
        reward_range = (low, low + float(rng.uniform(0.1, 5.0)))

    shares = rng.uniform(size=(x, y))
    if rng.random() < 0.5:
        shares = np.round(shares)

    def drawn(size: int, shape: tuple[int, ...]) -> Array:
        # A gamma variate can underflow to 0 at a small concentration; the floor keeps its row a distribution.
        weights = rng.gamma(10.0 ** rng.uniform(-1, 1), size=(*shape, size)) + 1e-300
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=float)

    return Instance(
        prompts=drawn(x, ()),
        reference=drawn(k, (x,)),
        frozen=drawn(y, (x,)),
        rewritten=drawn(y, (x, k)),
        rewards=reward_range[0] * (1 - shares) + reward_range[1] * shares,
        beta=10.0 ** rng.uniform(-2, 1),
        kl_coefficient=10.0 ** rng.uniform(-2, 1),
        reward_range=reward_range,
    )


def _distributions(name: str, values: ArrayLike) -> Array:
    array = np.array(values, dtype=float)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    sums = array.sum(axis=-1, keepdims=True)
    if not (np.isfinite(array).all() and (array >= 0).all() and (np.abs(sums - 1) <= _SUM_TOLERANCE).all()):
        raise ValueError(f"{name} must hold probabilities that sum to 1 along the last axis")
    return _readonly(array / sums)


def _readonly(array: Array) -> Array:
    array.setflags(write=False)
    return array


def _tilted(base: Array, scores: Array) -> Array:
    """Base times exp(scores), made a distribution again."""
    # Only where base has mass: a huge score of an impossible rewrite must not push the others to 0.
    top = np.where(base > 0, scores, -np.inf).max(axis=-1, keepdims=True)
    weights = np.where(base > 0, base * np.exp(np.minimum(scores - top, 0.0)), 0.0)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=float)


def _ends(grid: Array, index: int) -> tuple[float, float]:
    """The lambdas around the `index`-th step of a grid that has 0 before it and infinity after it."""
    if index == 0:
        return float(grid[0]) * 1e-6, float(grid[0])
    if index == len(grid):
        return float(grid[-1]), float(grid[-1]) * 1e6
    return float(grid[index - 1]), float(grid[index])


def _bisect(holds: Callable[[float], bool], low: float, high: float, at_low: bool) -> float:
    """The place, to 14 digits, where `holds` changes between two positive numbers."""
    for _ in range(100):
        middle = math.sqrt(low * high)
        if not low < middle < high or high / low - 1 < 1e-14:
            break
        low, high = (middle, high) if holds(middle) == at_low else (low, middle)
    return math.sqrt(low * high)
