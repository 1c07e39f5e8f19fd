"""What the study of similarity found, and how it is measured: see `studies.similarity`.

Source: design and statistics are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.association import holm
from cuesmith.programs.diagnosis.change import Neighbourhood, Row, flips
from cuesmith.programs.diagnosis.mantel import EXACT, ORDERS, RankMantel, rank_mantel
from cuesmith.programs.diagnosis.similarity import Similarity, TfIdf
from cuesmith.teleprompters.runtime.outcomes import value
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95

__all__ = ["FEWEST_EXAMPLES", "TESTS", "Alike", "Known", "Nearest", "Pair", "Sample", "analyse", "nearest"]

FEWEST_EXAMPLES = 10
TESTS = 4
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """A prompt and what it did.

    Attributes:
        text: The instructions.
        move: What made them: "student", "vary", "initial" (written from examples) or "edit".
        meaning: Prompts that are paraphrases of each other have the same number.
        outcomes: One an example; None where it was not run.
    """

    text: str
    move: str
    meaning: int
    outcomes: Row


@dataclass(frozen=True)
class Nearest:
    """How well the score of the most similar prompt tells a prompt's score (leave one out).

    Attributes:
        error: Mean absolute error of that prediction.
        of_mean: The same of the mean score of all other prompts.
        gain: `of_mean` less `error`.
        p_value: One-sided: the share of random deals of the scores with an error as small.
        adjusted: The same, corrected by Holm for all tests of the study.
        prompts: How many.
    """

    error: float
    of_mean: float
    gain: float
    p_value: float
    adjusted: float
    prompts: int


@dataclass(frozen=True)
class Known:
    """One prompt of the study.

    Attributes:
        text: The instructions; a model wrote them, but for the student's.
        move: What made them.
        meaning: Paraphrases of each other have the same number.
        score: On the examples all are compared on.
    """

    text: str
    move: str
    meaning: int
    score: Estimate95


@dataclass(frozen=True)
class Pair:
    """Two prompts.

    Attributes:
        distance: 1 - similarity of the texts.
        flips: Share of the examples with different answers.
        difference: |difference of the scores|.
        same: Whether they are paraphrases of each other.
    """

    distance: float
    flips: float
    difference: float
    same: bool


@dataclass(frozen=True)
class Alike:
    """What the study found.

    Attributes:
        prompts: The prompts.
        pairs: All pairs of them.
        examples: How many examples all prompts answered.
        answers: Distance of the words with the share of different answers; None with too little data.
        scores: Distance of the words with the difference of the scores.
        within: As `answers`, among paraphrases of each other alone.
        nearest: What the most similar prompt tells.
        noise: Answers that change when a prompt is run again: of the student, of the best edit.
        neighbourhood: The best edit among its paraphrases; None if there is none, or no data.
        by_words: Whether prompts were compared by their words, and not by an embedder.
    """

    prompts: tuple[Known, ...]
    pairs: tuple[Pair, ...]
    examples: int
    answers: RankMantel | None = None
    scores: RankMantel | None = None
    within: RankMantel | None = None
    nearest: Nearest | None = None
    noise: tuple[Estimate95, ...] = ()
    neighbourhood: Neighbourhood | None = None
    by_words: bool = True


def nearest(likeness: Floats, scores: Sequence[float], *, seed: int = 0) -> Nearest:
    """Predict each prompt's score by that of the prompt most like it, and by the mean of the others.

    Args:
        likeness: Similarities of the prompts; of equally similar ones the mean counts.
        scores: Of each prompt.
        seed: Seeds the deals.
    """
    values, n = np.array(scores, dtype=float), len(scores)
    others = np.round(np.where(np.eye(n, dtype=bool), -np.inf, likeness), 9)
    closest = others == others.max(axis=1, keepdims=True)
    weights = closest / closest.sum(axis=1, keepdims=True)
    of_mean = float(np.abs(values - (values.sum() - values) / (n - 1)).mean())
    error = float(np.abs(values - weights @ values).mean())
    if n <= EXACT:
        deals = np.array(list(itertools.permutations(values)))
    else:
        rng = np.random.default_rng(seed)
        deals = np.vstack([values, rng.permuted(np.tile(values, (ORDERS, 1)), axis=1)])
    p = float((np.abs(deals - deals @ weights.T).mean(axis=1) <= error + 1e-9).mean())
    return Nearest(error, of_mean, of_mean - error, p, p, n)


def analyse(samples: Sequence[Sample], *, noise: Sequence[Estimate95] = (), neighbourhood: Neighbourhood | None = None,
            similarity: Similarity | None = None, seed: int = 0) -> Alike:
    """Hold the distances of the words against those of the behaviour.

    Args:
        samples: Different prompts with their outcomes on the same examples.
        noise: As `Alike` has it.
        neighbourhood: As `Alike` has it.
        similarity: How alike texts are; TF-IDF by default.
        seed: Seeds permutations.
    """
    table = [[None if one is None else value(one) for one in sample.outcomes] for sample in samples]
    whole = [k for k, column in enumerate(zip(*table, strict=True)) if None not in column]
    rows = [[sample.outcomes[k] for k in whole] for sample in samples]
    scores = [estimate95([row[k] for k in whole]) for row in table]
    prompts = tuple(Known(s.text, s.move, s.meaning, score) for s, score in zip(samples, scores, strict=True))
    if len(samples) < 4 or len(whole) < FEWEST_EXAMPLES:
        return Alike(prompts, (), len(whole), noise=tuple(noise), neighbourhood=neighbourhood)
    similarity = similarity or TfIdf()
    likeness = similarity.matrix([sample.text for sample in samples])
    means, meanings = np.array([score.mean for score in scores]), [sample.meaning for sample in samples]
    words = np.maximum(0.0, 1.0 - likeness)
    answers = np.array([[flips(a, b).mean for b in rows] for a in rows])
    apart = np.abs(means[:, None] - means[None, :])
    tests = (rank_mantel(words, answers, seed=seed), rank_mantel(words, apart, seed=seed),
             rank_mantel(words, answers, meanings, seed=seed))
    near = nearest(likeness, means.tolist(), seed=seed)
    *adjusted, last = holm([*(test.p_value for test in tests), near.p_value])
    first, second, third = (replace(test, adjusted=p) for test, p in zip(tests, adjusted, strict=True))
    pairs = (Pair(float(words[i, j]), float(answers[i, j]), float(apart[i, j]), meanings[i] == meanings[j])
             for i, j in itertools.combinations(range(len(samples)), 2))
    return Alike(prompts, tuple(pairs), len(whole), first, second, third, replace(near, adjusted=last), tuple(noise),
                 neighbourhood, isinstance(similarity, TfIdf))
