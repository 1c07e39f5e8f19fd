"""Similarity of texts against its formula by hand, average linkage against scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from cuesmith.programs.diagnosis.embedders import Embedded, Similarity, TfIdf, average_linkage, words_of

some_texts = st.lists(st.text(max_size=40), min_size=1, max_size=12)


def test_tf_idf_by_hand() -> None:
    texts = ["count the words", "count count the numbers!", "Reverse it"]
    everywhere = {word: 1 + math.log(4 / 3) for word in ("count", "the")}
    once = 1 + math.log(4 / 2)
    first = np.array([everywhere["count"], everywhere["the"], once])
    second = np.array([(1 + math.log(2)) * everywhere["count"], everywhere["the"], once])
    wanted = float(first[:2] @ second[:2] / np.linalg.norm(first) / np.linalg.norm(second))
    matrix = TfIdf().matrix(texts)
    assert matrix[0, 1] == pytest.approx(wanted) and matrix[1, 0] == pytest.approx(wanted)
    assert matrix[0, 2] == matrix[1, 2] == 0.0


def test_case_punctuation_and_order_do_not_matter_but_words_do() -> None:
    matrix = TfIdf().matrix(["Count the words.", "the WORDS, count", "sum the numbers"])
    assert matrix[0, 1] == pytest.approx(1.0) and matrix[0, 2] < 0.6


def test_what_most_texts_say_counts_less_than_what_few_say() -> None:
    matrix = TfIdf().matrix(["all length a", "b length c", "all d e", "all f g"])
    assert matrix[0, 1] > matrix[0, 2] > 0.0


def test_scripts_without_spaces_are_compared_by_character() -> None:
    assert words_of("数える words") == ["数", "え", "る", "words"]
    matrix = TfIdf().matrix(["単語の数を数える", "数の単語", "hello"])
    assert matrix[0, 1] > 0.5 and matrix[0, 2] == 0.0


@given(some_texts)
@settings(max_examples=100, deadline=None)
def test_any_texts_have_similarities(texts: list[str]) -> None:
    matrix = TfIdf().matrix(texts)
    assert matrix.shape == (len(texts), len(texts)) and np.isfinite(matrix).all()
    assert np.array_equal(np.diag(matrix), np.ones(len(texts)))
    assert np.allclose(matrix, matrix.T) and matrix.min() >= 0.0 and matrix.max() <= 1.0


def test_texts_without_words_are_like_each_other_only() -> None:
    assert TfIdf().matrix(["", "...", "a"]).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert TfIdf().matrix([]).shape == (0, 0)


def test_an_embedder_gives_cosines() -> None:
    vectors = {"a": [3.0, 4.0], "b": [-3.0, -4.0], "c": [4.0, -3.0]}
    seen: list[list[str]] = []

    def embed(texts: list[str]) -> Sequence[Sequence[float]]:
        seen.append(texts)
        return [vectors[text] for text in texts]

    similarity: Similarity = Embedded(embed)
    assert np.allclose(similarity.matrix(("a", "b", "c")), [[1, -1, 0], [-1, 1, 0], [0, 0, 1]])
    assert seen == [["a", "b", "c"]] and similarity.matrix([]).shape == (0, 0)


@pytest.mark.parametrize("vectors", [[[1.0, 2.0]], [[1.0, 0.0], [0.0, 0.0]], [[1.0], [math.nan]], [1.0, 2.0]])
def test_what_is_no_embedding_is_refused(vectors: Sequence[Sequence[float]]) -> None:
    with pytest.raises(ValueError, match="embedder"):
        Embedded(lambda texts: vectors).matrix(["a", "b"])


@given(st.integers(2, 25), st.floats(0.0, 1.0), st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_average_linkage_against_scipy(n: int, threshold: float, seed: int) -> None:
    upper = np.triu(np.random.default_rng(seed).random((n, n)), 1)
    similarities = upper + upper.T + np.eye(n)
    tree = linkage(squareform(1.0 - similarities, checks=False), "average")
    if np.abs(tree[:, 2] - (1.0 - threshold)).min() < 1e-9:
        return
    wanted = fcluster(tree, 1.0 - threshold, "distance").tolist()
    found = average_linkage(similarities, threshold)
    pairs = [(a, b) for a in range(n) for b in range(a)]
    assert [found[a] == found[b] for a, b in pairs] == [wanted[a] == wanted[b] for a, b in pairs]
    assert list(dict.fromkeys(found)) == list(range(max(found) + 1))


def test_a_chain_is_not_one_group() -> None:
    steps = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    similarities = np.maximum(0.0, 1.0 - np.abs(steps[:, None] - steps) * 0.4)
    assert len(set(average_linkage(similarities, 0.5))) > 1
    assert average_linkage(np.ones((1, 1)), 0.5) == [0] and average_linkage(np.zeros((0, 0)), 0.5) == []
