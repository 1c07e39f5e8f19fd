"""The yardstick's estimators against the exact values of finite instances, by hand and by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from cuesmith.teleprompters.alignment import yardstick
from cuesmith.teleprompters.alignment.finite import Instance
from cuesmith.teleprompters.alignment.gains import Attainable, Realised, Sampled
from cuesmith.teleprompters.alignment.training_result import Alignment
from cuesmith.teleprompters.alignment.yardstick import attainable, policy_kl, realised

LN3 = math.log(3)


def population(size: int, rewrites: int, kl_coefficient: float, seed: int = 0) -> Instance:
    """Prompts of different difficulty with rewards of 0 and 1."""
    rng = np.random.default_rng(seed)
    easy = rng.beta(2.0, 3.0, size=(size, 1))
    chance = rng.beta(4 * easy, 4 * (1 - easy), size=(size, rewrites))
    return Instance(
        prompts=np.full(size, 1 / size),
        reference=rng.dirichlet(np.full(rewrites, 0.5), size=size),
        frozen=np.stack([1 - easy[:, 0], easy[:, 0]], axis=-1),
        rewritten=np.stack([1 - chance, chance], axis=-1),
        rewards=np.tile([0.0, 1.0], (size, 1)),
        kl_coefficient=kl_coefficient,
    )


def draw(
    instance: Instance, prompter: np.ndarray, prompts: np.ndarray, n: int, m: int, rng: np.random.Generator
) -> list[list[Sampled]]:
    """n rewrites of each prompt from a prompter, with m noisy rewards each."""
    chance = instance.rewrite_rewards()
    found = []
    for x in prompts:
        rewrites = rng.choice(chance.shape[1], size=n, p=prompter[x])
        rewards = (rng.random((n, m)) < chance[x, rewrites, None]).astype(float)
        found.append([Sampled(str(k), tuple(row)) for k, row in zip(rewrites, rewards.tolist(), strict=True)])
    return found


def test_without_noise_and_with_every_rewrite_it_is_lemma_1() -> None:
    samples = [[Sampled("a", (0.0,))] * 3 + [Sampled("b", (1.0,))]] * 2  # exp(R / lambda) = 1 and 3, as 3 : 1
    best = attainable(samples, 1 / LN3, noise_variance=0.0)
    assert best.gain_lower.mean == pytest.approx(math.log(1.5) / LN3 - 0.25)
    assert best.baseline.mean == pytest.approx(0.25)
    assert best.kl_upper.mean == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    # The jackknife over 4 draws, by hand: without an "a" the mean is (2 + 3) / 3, without the "b" it is 1.
    jackknifed = 4 * math.log(1.5) - 3 * (0.75 * math.log(5 / 3) + 0.25 * math.log(1.0))
    assert best.gain_upper.mean == pytest.approx(jackknifed / LN3 - 0.25)
    assert best.gain is not None and best.value is not None
    assert best.gain.mean == pytest.approx(best.gain_upper.mean)
    assert best.value.mean == pytest.approx(best.gain.mean + 0.25)
    assert (best.noise_variance, best.skipped) == (0.0, 0)
    assert best.inputs[1].index == 1 and (best.inputs[0].draws, best.inputs[0].distinct) == (4, 2)


def test_equal_rewards_leave_nothing_to_gain() -> None:
    best = attainable([[Sampled(str(k), (0.5, 0.5)) for k in range(5)]] * 4, 0.1)
    assert best.gain is not None and best.gain.mean == pytest.approx(0.0) and best.nothing_to_gain
    assert best.gain_upper.mean == pytest.approx(0.0) and best.kl is not None and best.kl.mean == pytest.approx(0.0)
    assert best.between == pytest.approx((0.0, 0.0))


def test_single_rewards_of_distinct_rewrites_tell_only_the_upper_estimate() -> None:
    rng = np.random.default_rng(0)
    samples = [[Sampled(str(k), (float(rng.random() < 0.5),)) for k in range(8)] for _ in range(10)]
    best = attainable(samples, 0.5)
    assert best.gain is None and best.value is None and best.kl is None and best.noise_variance is None
    assert best.gain_lower.mean == 0.0 and best.between == (0.0, best.gain_upper.high)
    assert best.gain_upper.mean > 0.05
    share = realised(samples, [0.1] * 10, best)
    assert share.share is None and share.flag == "not-identified" and math.isnan(share.low)


def test_missing_rewards_are_left_out_and_never_0() -> None:
    whole = [[Sampled("a", (1.0, 0.5)), Sampled("b", (0.0,))], [Sampled("a", (1.0, 1.0)), Sampled("c", (0.5, 0.5))]]
    holed = [
        [Sampled("a", (1.0, None, 0.5)), Sampled("lost", (None,)), Sampled("b", (math.nan, 0.0))],
        [Sampled("lost", ())],
        whole[1],
    ]
    first, second = attainable(whole, 0.3), attainable(holed, 0.3)
    assert second.skipped == 1 and [value.index for value in second.inputs] == [0, 2]
    assert replace(second, skipped=0, inputs=first.inputs) == first


def test_same_seed_same_numbers() -> None:
    instance = population(20, 6, 0.5)
    samples = draw(instance, instance.reference, np.arange(20), 8, 3, np.random.default_rng(1))
    assert attainable(samples, 0.5, seed=3) == attainable(samples, 0.5, seed=3)


def test_wrong_arguments_are_refused() -> None:
    samples = [[Sampled("a", (1.0,))]]
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="kl_coefficient"):
            attainable(samples, bad)
    with pytest.raises(ValueError, match="noise_variance"):
        attainable(samples, 0.1, noise_variance=-1.0)
    with pytest.raises(ValueError, match="no reward in the samples of 1 inputs"):
        attainable([[Sampled("a", (None,))]], 0.1)
    best = attainable(samples, 0.1, noise_variance=0.0)
    with pytest.raises(ValueError, match="one entry an input"):
        realised(samples * 2, [0.0, 0.0], best)
    with pytest.raises(ValueError, match="a KL"):
        realised(samples, [None], best)


@pytest.mark.parametrize("kl_coefficient", [1e-3, 1e3])
def test_extreme_lambdas_stay_finite(kl_coefficient: float) -> None:
    instance = population(30, 6, kl_coefficient)
    samples = draw(instance, instance.reference, np.arange(30), 8, 2, np.random.default_rng(1))
    best = attainable(samples, kl_coefficient)
    assert best.gain is not None and best.kl is not None
    for estimate in (best.gain, best.gain_lower, best.gain_upper, best.kl, best.kl_upper, best.baseline):
        assert all(map(math.isfinite, (estimate.mean, estimate.low, estimate.high)))


def simulated(
    rewrites: int, kl_coefficient: float, n: int, m: int, repeats: int
) -> tuple[Instance, list[Attainable], float]:
    """Estimates of many runs with 40 inputs each, and the true gain."""
    instance = population(500, rewrites, kl_coefficient)
    rng = np.random.default_rng([n, m, rewrites])
    runs = []
    for _ in range(repeats):
        prompts = rng.integers(500, size=40)
        runs.append(attainable(draw(instance, instance.reference, prompts, n, m, rng), kl_coefficient))
    theory = instance.theory()
    return instance, runs, theory.attainable - theory.untrained


def check_bias_and_coverage(rewrites: int, kl_coefficient: float, n: int, m: int, repeats: int, least: float) -> None:
    """Central within 12 % of the gain (and sampling error), leaning estimates on their side, intervals that cover."""
    _, runs, gain = simulated(rewrites, kl_coefficient, n, m, repeats)
    central = [run.gain for run in runs if run.gain is not None]
    assert len(central) == repeats
    means = np.array([estimate.mean for estimate in central])
    assert abs(means.mean() - gain) < 0.12 * gain + 3 * means.std() / math.sqrt(repeats)
    lower = np.array([run.gain_lower.mean for run in runs])
    upper = np.array([run.gain_upper.mean for run in runs])
    assert lower.mean() < gain + 3 * lower.std() / math.sqrt(repeats)
    assert upper.mean() > gain - 3 * upper.std() / math.sqrt(repeats)
    assert np.mean([estimate.low <= gain <= estimate.high for estimate in central]) >= least
    assert np.mean([run.between[0] <= gain <= run.between[1] for run in runs]) >= 0.95


@pytest.mark.parametrize(("rewrites", "kl_coefficient", "n", "m"), [(6, 0.1, 8, 4), (100, 0.5, 8, 4), (6, 2.0, 32, 1)])
def test_bias_and_coverage(rewrites: int, kl_coefficient: float, n: int, m: int) -> None:
    check_bias_and_coverage(rewrites, kl_coefficient, n, m, 50, 0.86)


@pytest.mark.slow
@pytest.mark.parametrize("rewrites", [6, 100])
@pytest.mark.parametrize("kl_coefficient", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("n", [8, 32])
def test_bias_and_coverage_of_many_runs(rewrites: int, kl_coefficient: float, n: int) -> None:
    check_bias_and_coverage(rewrites, kl_coefficient, n, 4, 400, 0.90)


def test_the_lower_estimate_never_leans_up_even_if_noise_is_all_there_is() -> None:
    """R is the same everywhere, so the truth is 0: the plug-in sees a large gain, the split one none."""
    rng = np.random.default_rng(2)
    lower, upper = [], []
    for _ in range(60):
        samples = [[Sampled(str(k), tuple(rng.normal(size=2))) for k in range(8)] for _ in range(10)]
        best = attainable(samples, 0.2)
        lower.append(best.gain_lower.mean)
        upper.append(best.gain_upper.mean)
    assert np.mean(lower) < 0.0 + 3 * np.std(lower) / math.sqrt(60)
    assert np.mean(upper) > 0.5


def test_pooled_noise_is_part_of_the_interval() -> None:
    """The central interval knows that the noise is estimated, here from few repeats: it says how runs vary."""
    _, runs, _ = simulated(100, 2.0, 8, 1, 60)
    central = [run.gain for run in runs if run.gain is not None]
    spread = float(np.std([estimate.mean for estimate in central], ddof=1))
    said = float(np.mean([(estimate.high - estimate.low) / (2 * 2.02) for estimate in central]))
    assert 0.7 < said / spread < 1.5


def trained(instance: Instance, share_of_tilt: float) -> np.ndarray:
    """A prompter on the way from rho_sft to rho*."""
    tilt = np.exp(share_of_tilt * instance.rewrite_rewards() / instance.kl_coefficient)
    weights = instance.reference * tilt
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def shares(repeats: int, tilt: float, kl_coefficient: float) -> tuple[float, list[Realised]]:
    """The true share that a prompter has realised, and its estimates from simulated runs."""
    instance = population(500, 20, kl_coefficient)
    prompter, rng = trained(instance, tilt), np.random.default_rng(6)
    theory = instance.theory()
    truth = (instance.objective(prompter) - theory.untrained) / (theory.attainable - theory.untrained)
    found = []
    for _ in range(repeats):
        prompts = rng.integers(500, size=60)
        best = attainable(draw(instance, instance.reference, prompts, 16, 3, rng), kl_coefficient)
        own = draw(instance, prompter, prompts, 16, 3, rng)
        logs = [
            [np.log([p[x, int(s.text)] for s in draws]).tolist() for x, draws in zip(prompts, own, strict=True)]
            for p in (prompter, instance.reference)
        ]
        found.append(realised(own, policy_kl(*logs).per_input, best))
    return truth, found


@pytest.mark.parametrize("tilt", [0.5, 1.0])
def test_realised_share_covers_the_truth(tilt: float) -> None:
    truth, found = shares(40, tilt, 0.2)
    known = [result for result in found if result.share is not None]
    assert len(known) == 40
    assert np.mean([result.low <= truth <= result.high for result in known]) >= 0.85
    assert float(np.median([result.share for result in known if result.share is not None])) == pytest.approx(
        truth, abs=0.12
    )
    assert all(result.least <= result.low and result.most <= 1.0 for result in known)
    assert np.mean([result.least <= truth <= result.most + 1e-9 for result in known]) >= 0.9


def test_nothing_to_gain_is_a_flag_and_no_share() -> None:
    rng = np.random.default_rng(9)
    samples = [[Sampled(str(k), tuple(rng.normal(size=2))) for k in range(8)] for _ in range(20)]
    best = attainable(samples, 1.0)
    assert best.nothing_to_gain
    found = realised(samples, [0.0] * 20, best)
    assert found.share is None and found.flag == "nothing-to-gain" and math.isnan(found.high)
    assert found.gain.mean == pytest.approx(0.0) and found.most <= 1.0


def test_what_was_not_shown_is_not_called_impossible() -> None:
    lucky, unlucky = Sampled("a", (1.0,)), Sampled("b", (0.0,))
    few = attainable([[unlucky] * 3 + [lucky], *[[unlucky] * 4] * 2], 0.1, noise_variance=0.0)
    said = Alignment("train", 0.1, few).verdict()
    assert few.nothing_to_gain and few.between[1] > 0.1
    assert "not shown by 3 inputs" in said and f"up to {few.between[1]:.3g}" in said and "nothing was trained" in said
    one = attainable([[unlucky, lucky]], 0.1, noise_variance=0.0)
    assert "not shown by 1 input: it may be anything." in Alignment("weights", 0.1, one).verdict()
    none = attainable([[unlucky] * 4] * 3, 0.1, noise_variance=0.0)
    assert Alignment("train", 0.1, none).verdict().startswith("No prompter can gain anything")


def test_fieller_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 0.3, size=25), rng.normal(1.0, 0.4, size=25)
    interval = yardstick._fieller(a, b)
    assert interval is not None
    for end in interval:  # the ends are the ratios that a t test of a - end * b just rejects
        rest = a - end * b
        assert abs(rest.mean()) / (rest.std(ddof=1) / 5) == pytest.approx(special.stdtrit(24, 0.975))
    assert interval[0] < a.mean() / b.mean() < interval[1]
    assert yardstick._fieller(a, b - 1.0) is None and yardstick._fieller(a, -b) is None


def test_interval_of_skew_values_errs_on_both_sides_alike() -> None:
    rng, low, high = np.random.default_rng(0), 0, 0
    for _ in range(3000):
        estimate = yardstick._mean95(rng.exponential(size=40))
        low += estimate.low > 1.0
        high += estimate.high < 1.0
    assert low / 3000 == pytest.approx(0.025, abs=0.012) and high / 3000 == pytest.approx(0.025, abs=0.015)


def test_kl_estimators_against_the_exact_kl() -> None:
    rng = np.random.default_rng(0)
    own, base = rng.dirichlet(np.ones(8), size=2)
    draws = rng.choice(8, size=(50, 400), p=own)
    found = policy_kl(np.log(own[draws]).tolist(), np.log(base[draws]).tolist())
    exact = float(special.rel_entr(own, base).sum())
    assert found.k1 == pytest.approx(exact, abs=4 * found.k1_error) and found.k1_error < 0.05
    assert found.k3 == pytest.approx(exact, abs=4 * found.k3_error) and found.n == 50
    assert len(found.per_input) == 50 and np.mean(found.per_input) == pytest.approx(found.k1)  # type: ignore[arg-type]


def test_kl_is_0_for_the_same_prompter_and_leaves_out_what_is_missing() -> None:
    found = policy_kl([[-1.0, None], [-2.0], [None]], [[-1.0, -3.0], [-2.0], [-1.0]])
    assert (found.k1, found.k3, found.n, found.per_input) == (0.0, 0.0, 2, (0.0, 0.0, None))
    by_hand = policy_kl([[0.0]], [[-1.0]])
    assert by_hand.k1 == 1.0 and by_hand.k3 == pytest.approx(math.exp(-1.0)) and math.isnan(by_hand.k1_error)
    with pytest.raises(ValueError, match="2 and 1 inputs"):
        policy_kl([[0.0], [0.0]], [[0.0]])
    with pytest.raises(ValueError, match="same draws"):
        policy_kl([[0.0, 1.0]], [[0.0]])
    with pytest.raises(ValueError, match="no draw"):
        policy_kl([[None]], [[0.0]])
