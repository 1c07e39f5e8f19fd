"""How alike texts are: TF-IDF by default, an embedder where one is given; and texts grouped by it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Embedded", "Similarity", "TfIdf", "average_linkage", "words_of"]

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
"""Kana and Han: written without spaces, so every character counts as a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


class Similarity(Protocol):
    """Says how alike texts are. Hashable, as power is computed once for a similarity."""

    def __hash__(self) -> int:
        """Return a hash; that of `object` will do."""
        ...

    def matrix(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the cosine similarity of every text with every text, in [-1, 1]; ones on the diagonal."""
        ...


@dataclass(frozen=True)
class TfIdf:
    """Similarity by the words that texts share, rare words counting more.

    Weights are scikit-learn's defaults with sublinear term counts: (1 + ln tf) (1 + ln((1 + n) / (1 + df))), with
    n texts of which df hold the word, each row of length 1. So it depends on the texts that are compared together:
    what all of them say counts for little. Source: Salton and Buckley 1988; the form is scikit-learn's.
    """

    def matrix(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the similarities, in [0, 1]. Texts without words are like each other and like nothing else."""
        counts = [Counter(words_of(text)) for text in texts]
        columns = {word: k for k, word in enumerate(dict.fromkeys(word for count in counts for word in count))}
        weights = np.zeros((len(texts), len(columns) + 1))
        for row, count in zip(weights, counts, strict=True):
            row[[columns[word] for word in count]] = 1.0 + np.log(list(count.values()))
        holding = (weights > 0).sum(axis=0)
        weights *= 1.0 + np.log((1 + len(texts)) / (1 + holding))
        weights[[not count for count in counts], -1] = 1.0
        return _cosines(weights)


class Embedded:
    """Similarity by an embedder: it also sees that different words can say the same."""

    def __init__(self, embedder: Callable[[list[str]], Sequence[Sequence[float]]]) -> None:
        """Take an embedder.

        Args:
            embedder: Texts -> one vector each: a `dspy.Embedder`, `SentenceTransformer.encode` or any function.
        """
        self.embedder = embedder

    def matrix(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the similarities of the vectors.

        Raises:
            ValueError: If the embedder does not give one finite vector, other than 0, for each text.
        """
        if not texts:
            return np.zeros((0, 0))
        vectors = np.asarray(self.embedder(list(texts)), dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(f"the embedder gave an array of shape {vectors.shape} for {len(texts)} texts")
        if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
            raise ValueError("the embedder gave a vector that is 0 or not finite")
        return _cosines(vectors)


def words_of(text: str) -> list[str]:
    """Return the words and numbers of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def average_linkage(similarities: NDArray[np.float64], threshold: float) -> list[int]:
    """Group texts: the two groups that are most alike on average are merged while they are at least `threshold` alike.

    Unlike connected components, which chain texts of different themes through texts between them, a group's texts
    are alike on average. Source: Sokal and Michener 1958.

    Args:
        similarities: As `Similarity.matrix` gives them.
        threshold: Least mean similarity of two groups that are merged.

    Returns:
        The number of each text's group, 0-based, in the order of the groups' first texts.
    """
    n = len(similarities)
    # Mean similarities of groups; a group is named by its first text, and the rows of merged ones are dead.
    means = np.array(similarities, dtype=np.float64)
    np.fill_diagonal(means, -np.inf)
    sizes, groups = np.ones(n), np.arange(n)
    for _ in range(n - 1):
        a, b = sorted(divmod(int(means.argmax()), n))
        if means[a, b] < threshold:
            break
        merged = (sizes[a] * means[a] + sizes[b] * means[b]) / (sizes[a] + sizes[b])
        means[a], means[:, a] = merged, merged
        means[b], means[:, b], means[a, a] = -np.inf, -np.inf, -np.inf
        sizes[a] += sizes[b]
        groups[groups == b] = a
    names = {int(group): k for k, group in enumerate(dict.fromkeys(groups.tolist()))}
    return [names[group] for group in groups.tolist()]


def _cosines(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    if not len(rows):
        return np.zeros((0, 0))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines: NDArray[np.float64] = np.clip(unit @ unit.T, -1.0, 1.0)
    np.fill_diagonal(cosines, 1.0)
    return cosines
