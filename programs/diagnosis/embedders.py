"""How alike texts are: TF-IDF by default, an embedder where one is given; and texts grouped by it. Source: ours."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

LOCAL = "st:"
"""Before the name of a sentence-transformers model, or the folder of one."""
Embedder = Callable[[list[str]], Sequence[Sequence[float]]]
"""Texts -> one vector each."""

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
    """Similarity by an embedder: it also sees that different words can say the same. No text is embedded twice."""

    def __init__(self, embedder: Embedder, name: str = "") -> None:
        """Take an embedder.

        Args:
            embedder: Texts -> one vector each: a `dspy.Embedder`, `SentenceTransformer.encode` or any function.
            name: Its name, for error messages.
        """
        self.embedder, self._who = embedder, f"embedder {name}".strip()
        self._known: dict[str, NDArray[np.float64]] = {}

    def matrix(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the similarities of the vectors.

        Raises:
            SimilarityError: If the embedder fails, or does not give one finite vector, other than 0, for each text.
        """
        shown = [text if text.strip() else "(empty)" for text in texts]  # providers refuse a text without words
        if new := [text for text in dict.fromkeys(shown) if text not in self._known]:
            self._known |= zip(new, self._vectors(new), strict=True)
        return _cosines(np.array([self._known[text] for text in shown]))

    def _vectors(self, texts: list[str]) -> NDArray[np.float64]:
        try:
            vectors = np.asarray(self.embedder(texts), dtype=np.float64)
        except Exception as error:  # providers' failures are of many kinds
            raise SimilarityError(f"{self._who}: {_one_line(error)}") from None
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise SimilarityError(f"{self._who}: gave an array of shape {vectors.shape} for {len(texts)} texts")
        if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
            raise SimilarityError(f"{self._who}: gave a vector that is 0 or not finite")
        return vectors


class SimilarityError(ValueError):
    """There is no such embedder, or it cannot be reached; the message is one line without keys."""


def compared(by_words: bool) -> str:
    """Return, for a report's limits, what comparing texts that way does not see."""
    if by_words:
        return (
            "Texts are compared by the words they share: two that say the same in other words count as different, "
            "and a test by words misses differences of meaning alone."
        )
    return "Texts are compared by an embedder: what it does not tell apart counts as the same."


def similarity_named(name: str) -> Similarity:
    """Return the similarity by an embedder of that name.

    Args:
        name: A LiteLLM embedding model, such as "openai/text-embedding-3-small", or "st:" and the name or the folder
            of a sentence-transformers model, which runs on this machine.

    Raises:
        SimilarityError: If sentence-transformers is wanted and not installed, or has no such model. That a hosted
            model cannot be reached shows when it is first used.
    """
    return Embedded(_local(name) if name.startswith(LOCAL) else _hosted(name), name)


def _hosted(name: str) -> Embedder:
    import dspy  # heavy, and needed by nothing else here

    # Not from dspy's cache, which does not tell two servers apart that have a model of the same name.
    embedder: Embedder = dspy.Embedder(name, caching=False, num_retries=3)
    return embedder


def _local(name: str) -> Embedder:
    model = name.removeprefix(LOCAL)
    if not model.strip():
        raise SimilarityError(f"embedder {name!r} names no model: write {LOCAL}NAME or {LOCAL}FOLDER")
    try:
        sentence_transformers = importlib.import_module("sentence_transformers")
    except ImportError as error:
        why = "which is not installed" if error.name == "sentence_transformers" else _one_line(error)
        raise SimilarityError(
            f"embedder {name}: needs sentence-transformers, {why}: pip install sentence-transformers"
        ) from None
    try:
        encode: Embedder = sentence_transformers.SentenceTransformer(model).encode
    except Exception as error:  # no such model, no network, no such folder, a damaged one
        raise SimilarityError(f"embedder {name}: {_one_line(error)}") from None
    return encode


def _one_line(error: Exception) -> str:
    from cuesmith.teleprompters.runtime.redaction import Redactor  # loads dspy, as `_hosted` does

    text = " ".join(f"{type(error).__name__}: {error}".split())
    return Redactor()(text)[:300]


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
