"""Every statistic against scipy, exact enumeration, published numbers or simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, estimate95, paired_gain, t975


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 10, 29, 30, 99, 100, 101, 250, 10_000])
def test_t_quantile_against_scipy(df: int) -> None:
    assert t975(df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-8)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 12), (3, 10), (50, 50), (187, 200)])
def test_wilson_against_scipy(hits: int, n: int) -> None:
    estimate = estimate95([1.0] * hits + [0.0] * (n - hits))
    wanted = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert estimate.mean == pytest.approx(hits / n) and estimate.n == n
    assert (estimate.low, estimate.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert 0.0 <= estimate.low <= estimate.mean <= estimate.high <= 1.0


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30).filter(lambda v: not set(v) <= {0.0, 1.0}))
@settings(max_examples=60, deadline=None)
def test_t_interval_against_scipy(values: list[float]) -> None:
    estimate = estimate95(values)
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))
    half = error * float(stats.t.ppf(0.975, len(values) - 1))
    assert (estimate.low, estimate.high) == pytest.approx((mean - half, mean + half), abs=1e-9)


def test_missing_scores_are_left_out_and_nothing_is_no_error() -> None:
    assert estimate95([1.0, None, 0.0, math.nan]) == estimate95([1.0, 0.0])
    empty = estimate95([])
    assert empty.n == 0 and math.isnan(empty.mean) and math.isnan(empty.low) and math.isnan(empty.high)
    single = estimate95([0.5])
    assert single.mean == 0.5 and math.isnan(single.low)
    none = paired_gain([None, 1.0], [1.0, None])
    assert none.n == 0 and none.p_value == 1.0 and math.isnan(none.difference) and not none.significant
    assert paired_gain([0.0, None, 0.25, 1.0], [1.0, 1.0, 0.5, None]) == paired_gain([0.0, 0.25], [1.0, 0.5])
    with pytest.raises(ValueError, match="2 and 1"):
        paired_gain([0.0, 1.0], [1.0])


@pytest.mark.parametrize(("lost", "won", "ties"), [(0, 0, 5), (0, 6, 4), (3, 9, 20), (7, 7, 1), (60, 95, 300)])
def test_binary_p_value_is_exact_mcnemar(lost: int, won: int, ties: int) -> None:
    baseline = [1.0] * lost + [0.0] * won + [1.0] * ties
    best = [0.0] * lost + [1.0] * won + [1.0] * ties
    gain = paired_gain(baseline, best)
    wanted = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert gain.p_value == pytest.approx(wanted, rel=1e-9)
    assert gain.difference == pytest.approx((won - lost) / (lost + won + ties))
    swapped = paired_gain(best, baseline)
    assert (swapped.low, swapped.high) == pytest.approx((-gain.high, -gain.low))


@given(st.lists(st.sampled_from([-1.0, -0.5, -0.3, 0.0, 0.2, 0.5, 0.75]), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_graded_p_value_against_enumeration(differences: list[float]) -> None:
    observed = abs(sum(differences))
    flips = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    wanted = sum(value >= observed - 1e-9 for value in sums) / len(sums)
    assert paired_gain([2.0] * len(differences), [2.0 + d for d in differences]).p_value == pytest.approx(wanted)


def test_random_flips_agree_with_scipy_and_are_seeded() -> None:
    rng = np.random.default_rng(5)
    baseline = rng.random(60)
    best = baseline + rng.normal(0.08, 0.3, 60)  # 60 distinct differences: too many states to be exact
    gain = paired_gain(baseline.tolist(), best.tolist(), seed=3)
    wanted = stats.permutation_test(
        (best - baseline,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1, vectorized=True
    ).pvalue
    assert gain.p_value == pytest.approx(wanted, abs=0.02)
    assert gain == paired_gain(baseline.tolist(), best.tolist(), seed=3)
    assert gain.p_value != paired_gain(baseline.tolist(), best.tolist(), seed=4).p_value
    interval = stats.ttest_rel(best, baseline).confidence_interval()
    assert (gain.low, gain.high) == pytest.approx((interval.low, interval.high))


def _cells(a: int, b: int, c: int, d: int) -> tuple[list[float], list[float]]:
    """Scores for a 2x2 table: both right, only the best right, only the baseline right, none right."""
    return [1.0] * a + [0.0] * b + [1.0] * c + [0.0] * d, [1.0] * a + [1.0] * b + [0.0] * c + [0.0] * d


def test_newcombe_against_the_paper() -> None:
    gain = paired_gain(*_cells(36, 12, 2, 0))  # Newcombe 1998, the worked example of method 10
    assert (gain.low, gain.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@given(st.tuples(*[st.integers(0, 30)] * 4).filter(any))
@settings(max_examples=100, deadline=None)
def test_newcombe_is_an_interval_around_the_difference(cells: tuple[int, int, int, int]) -> None:
    gain = paired_gain(*_cells(*cells))
    assert -1.0 - 1e-9 <= gain.low <= gain.difference + 1e-12
    assert gain.difference - 1e-12 <= gain.high <= 1.0 + 1e-9


@pytest.mark.parametrize(("shares", "n"), [((0.5, 0.3, 0.1, 0.1), 40), ((0.6, 0.1, 0.05, 0.25), 100)])
def test_coverage_for_binary_scores(shares: tuple[float, ...], n: int) -> None:
    rng = np.random.default_rng(11)
    truth = shares[1] - shares[2]
    gains = [paired_gain(*_cells(*map(int, rng.multinomial(n, shares)))) for _ in range(1500)]
    covered = np.mean([gain.low <= truth <= gain.high for gain in gains])
    assert 0.93 <= covered <= 0.985  # three standard errors of the simulation are 0.017


def test_coverage_for_graded_scores_and_false_alarms() -> None:
    rng = np.random.default_rng(12)
    gains = []
    for _ in range(300):
        draws = rng.choice([0.0, 0.25, 0.5, 1.0], size=(2, 60), p=[0.3, 0.2, 0.2, 0.3])
        gains.append(paired_gain(draws[0].tolist(), draws[1].tolist()))
    assert np.mean([gain.low <= 0.0 <= gain.high for gain in gains]) >= 0.915
    assert np.mean([gain.significant for gain in gains]) <= 0.085


def test_significance_needs_both_test_and_interval() -> None:
    assert Gain(0.3, 0.1, 0.5, 0.01, 50).significant
    assert Gain(-0.3, -0.5, -0.1, 0.01, 50).significant
    assert not Gain(0.3, -0.01, 0.5, 0.01, 50).significant
    assert not Gain(0.3, 0.1, 0.5, 0.05, 50).significant
    assert not paired_gain([0.0] * 3, [0.5] * 3).significant  # interval of width 0, but 3 pairs prove nothing
    assert Estimate95(0.5, 0.4, 0.6, 3) == Estimate95(0.5, 0.4, 0.6, 3)
