"""Feedback repetition: its figures by hand, its bootstrap, its anchors, and where it has nothing to say."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cuesmith.programs.diagnosis.asking import Evidence, numbered
from cuesmith.programs.diagnosis.embedders import TfIdf
from cuesmith.programs.diagnosis.inference import resamples
from cuesmith.programs.diagnosis.repetition import entropy, repetition_of, section_of

CAUSES = ["count every quantity", "name the last word", "reverse whole list", "add numbers up"]
FRAMES = ["you should {} here", "it fails to {}", "nothing says {}", "please {} instead", "always {} first"]


def said(cause: int, rng: random.Random) -> str:
    return rng.choice(FRAMES).format(CAUSES[cause])


def study(causes: list[int], seed: int, *, draws: int = 3) -> list[list[str]]:
    rng = random.Random(seed)
    return [[said(cause, rng) for _ in range(draws)] for cause in causes]


def foreign(n: int, seed: int) -> list[str]:
    rng = random.Random(f"foreign{seed}")
    return [rng.choice(["walk back to where it starts", "coordinates are wanted", "face north when you start"])
            for _ in range(n)]  # fmt: skip


@given(st.lists(st.integers(1, 3), min_size=2, max_size=5).filter(lambda sizes: max(sizes) > 1), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_the_figures_are_means_over_pairs(sizes: list[int], seed: int) -> None:
    rng = random.Random(seed)
    feedback = [[said(rng.randrange(4), rng) for _ in range(size)] for size in sizes]
    others = foreign(3, seed)
    found = repetition_of(feedback, others, seed=seed)
    texts = [text for group in feedback for text in group]
    matrix = TfIdf().matrix([*texts, *others])
    owner = [k for k, group in enumerate(feedback) for _ in group]
    cells: dict[tuple[int, int], list[float]] = {}
    for (i, a), (j, b) in itertools.combinations(enumerate(owner), 2):
        cells.setdefault((a, b), []).append(matrix[i, j])
    across = [np.mean(values) for (a, b), values in cells.items() if a != b]
    own = [np.mean(values) for (a, b), values in cells.items() if a == b]
    by_batch = [np.mean(matrix[[k for k, o in enumerate(owner) if o == a], len(texts) :]) for a in range(len(sizes))]
    assert found.across.mean == pytest.approx(np.mean(across))
    assert found.ceiling.mean == pytest.approx(np.mean(own))
    assert found.floor.mean == pytest.approx(np.mean(by_batch))
    if not found.generic:
        share = (np.mean(across) - np.mean(by_batch)) / (np.mean(own) - np.mean(by_batch))
        assert found.normalised.mean == pytest.approx(share)


def test_the_same_whatever_is_shown_is_at_the_ceiling_and_each_its_own_is_far_below() -> None:
    same = repetition_of(study([0] * 20, 1), foreign(20, 1))
    own = repetition_of(study([k % 4 for k in range(20)], 1), foreign(20, 1))
    assert not same.generic and same.normalised.low < 1.0 < same.normalised.high
    assert own.normalised.high < 0.6 and own.normalised.mean < same.normalised.mean - 0.4
    assert (len(same.themes), len(own.themes)) == (1, 4) and own.distinct == 0.2 and same.distinct == 0.05
    assert own.entropy == pytest.approx(math.log(4) / math.log(20), abs=0.02) and same.entropy == 0.0
    assert all(4 <= theme.count <= 6 for theme in own.themes)
    assert {cause for cause in CAUSES for theme in own.themes if cause in theme.example} == set(CAUSES)
    assert "nearly as alike" in section_of(same).summary and "differs clearly" in section_of(own).summary


def test_general_advice_cannot_be_placed_between_its_anchors() -> None:
    rng = random.Random(0)
    advice = ["pay attention to detail", "be more specific", "consider edge cases", "double-check the answer"]
    found = repetition_of([rng.choices(advice, k=3) for _ in range(20)], rng.choices(advice, k=20))
    assert found.generic and math.isnan(found.normalised.mean)
    section = section_of(found)
    assert "general advice" in section.summary and section.figures[0].value is None


@pytest.mark.parametrize("counts", [(3, 3), (5, 1, 1), (4,), (1, 1, 1)])
def test_entropy_against_scipy(counts: tuple[int, ...]) -> None:
    assert entropy(counts) == pytest.approx(float(stats.entropy(counts)) / math.log(sum(counts)))
    assert math.isnan(entropy([1]))


def test_a_bootstrap_sample_has_as_many_units() -> None:
    drawn = resamples(7, np.random.default_rng(0))
    assert drawn.shape == (1000, 7) and set(drawn.sum(axis=1)) == {7.0}
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=0.1)
    assert drawn.var() == pytest.approx(6 / 7, abs=0.05)


def test_the_interval_covers() -> None:
    """The truth is a mean over very many pairs; TF-IDF would see other weights in other studies, so words are fixed."""

    class Fixed:
        def matrix(self, texts: object) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
            values = np.array([[text == cause for cause in range(4)] for text in map(int, texts)])  # type: ignore[call-overload]
            return np.where(values.astype(float) @ values.T > 0, 1.0, 0.2)

    def one(seed: int) -> list[list[str]]:
        rng = random.Random(seed)
        return [[str(rng.choices(range(4), (4, 2, 1, 1))[0])] * 2 for _ in range(20)]

    shares = np.array([4, 2, 1, 1]) / 8
    truth = 0.2 + 0.8 * float(shares @ shares)
    found = [repetition_of(one(seed), ["0", "1"], similarity=Fixed(), seed=seed).across for seed in range(200)]
    covered = float(np.mean([f.low <= truth <= f.high for f in found]))
    assert 0.88 <= covered <= 0.99
    assert float(np.mean([f.mean for f in found])) == pytest.approx(truth, abs=0.01)


def test_too_little_is_refused() -> None:
    little: list[list[list[str]]] = [[["a", "b"]], [["a"], ["b"]], [["a", "b"], []], [[], []]]
    for feedback in little:
        with pytest.raises(ValueError, match="another task"):
            repetition_of(feedback, ["c"])
    with pytest.raises(ValueError, match="0 on another task"):
        repetition_of([["a", "b"], ["c"]], [])


def test_like_requests_are_different_draws() -> None:
    one, other = Evidence("Answer."), Evidence("Reply.")
    assert numbered([one, other, one, Evidence("Answer."), other]) == [0, 0, 1, 2, 1]
