"""`spread`: differences between compiles where scores are missing, all alike, or none."""

from __future__ import annotations

import math

import pytest

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


def test_draws_that_are_all_alike_have_the_interval_of_one_compile() -> None:
    one = paired_gain([0] * 3, [1] * 3)
    found = spread([[1] * 3] * 3, [[0] * 3])
    assert (found.low, found.high) == (one.low, one.high) and found.low < 0.5


@pytest.mark.parametrize("ours", [[], [[], []], [[None, None]] * 2])
def test_without_scores_nothing_is_known(ours: list[list[float | None]]) -> None:
    found = spread(ours, [[None] * len(row) for row in ours[:1]])
    assert math.isnan(found.mean) and math.isnan(found.low)
