"""`spread`: differences between compiles where scores are missing, all alike, or none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from cuesmith.programs.spread import spread
from cuesmith.teleprompters.runtime.statistics import paired_gain


def test_missing_scores_are_left_out_of_both_sides() -> None:
    student = [[1.0] * 30 + [0.0] * 10]  # 30 easy examples, 10 hard ones
    ours: list[list[float | None]] = [[1.0] * 30 + [None] * 10] * 2
    found = spread(ours, student)
    assert found.mean == 0.0 and found.low <= 0.0 <= found.high


def test_a_resample_without_any_score_leaves_an_interval() -> None:
    found = spread([[1, None, 1, None]] * 2, [[0, 1, 0, 1]])
    assert found.mean == 1.0 and found.low < 1.0 == found.high


def test_the_interval_holds_what_other_compiles_would_gain() -> None:
    random, inside = np.random.default_rng(0), 0
    for _ in range(400):
        hard, skill = random.normal(size=100), random.normal(size=3)
        ours = (random.random((3, 100)) < norm.cdf(0.5 * skill[:, None] + hard)).astype(float)
        found = spread(ours.tolist(), [[0.5] * 100])  # of other compiles and examples, half are right
        inside += found.low <= 0.0 <= found.high
    assert 0.9 * 400 <= inside <= 0.99 * 400


def test_a_gain_of_more_than_everything_is_none() -> None:
    found = spread([[1.0] * 8, [0.0] * 8], [[0.0] * 8])
    assert (found.mean, found.low, found.high) == (0.5, -1.0, 1.0)
    found = spread([[90.0] * 8, [10.0] * 8], [[0.0] * 8])
    assert found.low < -100 and found.high > 200, "of another scale, nothing is known of what is possible"


def test_compiles_that_are_all_alike_have_the_interval_of_one_compile() -> None:
    one = paired_gain([0] * 3, [1] * 3)
    found = spread([[1] * 3] * 3, [[0] * 3])
    assert (found.low, found.high) == (one.low, one.high) and found.low < 0.5


@pytest.mark.parametrize("ours", [[], [[], []], [[None, None]] * 2])
def test_without_scores_nothing_is_known(ours: list[list[float | None]]) -> None:
    found = spread(ours, [[None] * len(row) for row in ours[:1]])
    assert math.isnan(found.mean) and math.isnan(found.low)
