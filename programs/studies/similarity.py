"""Do prompts that read alike act alike? Distances of the words held against distances of the behaviour.

From the student's prompt others are made at all distances: paraphrases, instructions written from examples, edits from
errors, and paraphrases of those. All answer the same examples. Then the best edit is judged by prompts that say the
same: right idea, wrong wording? Source: 2402.02101 compares both kinds of change and looks at the neighbourhood of
refined prompts; design and statistics are ours.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.change import (
    PARAPHRASES,
    Neighbourhood,
    Row,
    best_paraphrase,
    flips,
    neighbourhood_of,
    section_of,
)
from cuesmith.programs.diagnosis.embedders import Similarity, TfIdf, compared
from cuesmith.programs.diagnosis.figures import Curve, Section
from cuesmith.programs.diagnosis.inference import holm
from cuesmith.programs.diagnosis.likeness import EXACT, ORDERS, RankMantel, rank_mantel
from cuesmith.programs.diagnosis.words import paragraphs_of, sections_of
from cuesmith.programs.studies.bench import Bench, Findings, Study, by_example
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.signatures import VaryInstructions
from cuesmith.teleprompters.apo import criticize, edit, groups
from cuesmith.teleprompters.runtime.candidate import Candidate, distinct
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.ledger import stopped
from cuesmith.teleprompters.runtime.outcomes import Outcome, value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95
from cuesmith.teleprompters.search.context import ProgramContext, Requests
from cuesmith.teleprompters.search.examples import Failure, Material, begin
from cuesmith.teleprompters.search.scene import Scene, text_field, write_instructions
from cuesmith.teleprompters.search.setting import Setting

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
class StudiedPrompt:
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
class PromptPair:
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
class SimilarityResult:
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

    prompts: tuple[StudiedPrompt, ...]
    pairs: tuple[PromptPair, ...]
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


def analyse(
    samples: Sequence[Sample],
    *,
    noise: Sequence[Estimate95] = (),
    neighbourhood: Neighbourhood | None = None,
    similarity: Similarity | None = None,
    seed: int = 0,
) -> SimilarityResult:
    """Hold the distances of the words against those of the behaviour.

    Args:
        samples: Different prompts with their outcomes on the same examples.
        noise: As `SimilarityResult` has it.
        neighbourhood: As `SimilarityResult` has it.
        similarity: How alike texts are; TF-IDF by default.
        seed: Seeds permutations.
    """
    table = [[None if one is None else value(one) for one in sample.outcomes] for sample in samples]
    whole = [k for k, column in enumerate(zip(*table, strict=True)) if None not in column]
    rows = [[sample.outcomes[k] for k in whole] for sample in samples]
    scores = [estimate95([row[k] for k in whole]) for row in table]
    prompts = tuple(StudiedPrompt(s.text, s.move, s.meaning, score) for s, score in zip(samples, scores, strict=True))
    if len(samples) < 4 or len(whole) < FEWEST_EXAMPLES:
        return SimilarityResult(prompts, (), len(whole), noise=tuple(noise), neighbourhood=neighbourhood)
    similarity = similarity or TfIdf()
    likeness = similarity.matrix([sample.text for sample in samples])
    means, meanings = np.array([score.mean for score in scores]), [sample.meaning for sample in samples]
    words = np.maximum(0.0, 1.0 - likeness)
    answers = np.array([[flips(a, b).mean for b in rows] for a in rows])
    apart = np.abs(means[:, None] - means[None, :])
    tests = (
        rank_mantel(words, answers, seed=seed),
        rank_mantel(words, apart, seed=seed),
        rank_mantel(words, answers, meanings, seed=seed),
    )
    near = nearest(likeness, means.tolist(), seed=seed)
    *adjusted, last = holm([*(test.p_value for test in tests), near.p_value])
    first, second, third = (replace(test, adjusted=p) for test, p in zip(tests, adjusted, strict=True))
    pairs = (
        PromptPair(float(words[i, j]), float(answers[i, j]), float(apart[i, j]), meanings[i] == meanings[j])
        for i, j in itertools.combinations(range(len(samples)), 2)
    )
    return SimilarityResult(
        prompts,
        tuple(pairs),
        len(whole),
        first,
        second,
        third,
        replace(near, adjusted=last),
        tuple(noise),
        neighbourhood,
        isinstance(similarity, TfIdf),
    )


FEWEST = 8
"""Prompts; with fewer a permutation test of their order has next to no power. Ours."""
MINIBATCH = 24
"""Training examples that the student is run on for its errors. Ours."""
ERRORS = 4
"""Errors shown for an edit. Ours."""


# --- the experiment ----------------------------------------------------------------------------------------


@dataclass
class _Kept:
    """What the experiment has so far; outcomes are by candidate's id and the example's place.

    Attributes:
        name: The predictor.
        prompts: Prompts with the number of their meaning.
        count: How many examples they are compared on.
        outcomes: On those.
        again: On those, run once more.
        best: The best edit.
        around: Paraphrases of the student's prompt and of the best edit.
        judged: Their outcomes on one half of the test examples.
        half: How many examples each half has.
        winner: The best edit's best paraphrase.
        fresh: Outcomes of it and of the best edit on the other half.
    """

    name: str = ""
    prompts: list[tuple[Candidate, int]] = field(default_factory=list)
    count: int = 0
    outcomes: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    again: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    best: Candidate | None = None
    around: tuple[list[Candidate], list[Candidate]] = field(default_factory=lambda: ([], []))
    judged: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    half: int = 0
    winner: Candidate | None = None
    fresh: dict[tuple[str, int], Outcome] = field(default_factory=dict)

    def samples(self) -> list[Sample]:
        """Return the prompts with what they did."""
        return [
            Sample(
                one.prompts[self.name].instructions, one.origin.move, meaning, self.row(self.outcomes, one, self.count)
            )
            for one, meaning in self.prompts
        ]

    def row(self, outcomes: Mapping[tuple[str, int], Outcome], one: Candidate, count: int) -> list[Outcome | None]:
        """Return a prompt's outcomes, one an example."""
        return [outcomes.get((one.id, k)) for k in range(count)]

    def noise(self) -> tuple[Estimate95, ...]:
        """Return the share of answers that change when a prompt is run again."""
        known = [c for c, _ in self.prompts if any((c.id, k) in self.again for k in range(self.count))]
        return tuple(flips(*(self.row(side, c, self.count) for side in (self.outcomes, self.again))) for c in known)

    def rows(self) -> tuple[Sequence[Row], Row, Sequence[Row]]:
        """Return what paraphrases of the student's prompt, the best edit and its paraphrases did."""
        assert self.best is not None
        first, second = ([self.row(self.judged, c, self.half) for c in side] for side in self.around)
        return first, self.row(self.judged, self.best, self.half), second

    def complete(self) -> int:
        """Return how many examples have a score for both neighbourhoods."""
        if self.best is None:
            return 0
        first, own, second = self.rows()
        columns = zip(*first, own, *second, strict=True)
        return sum(all(one is not None and value(one) is not None for one in column) for column in columns)

    def neighbourhood(self, seed: int) -> Neighbourhood | None:
        """Return the best edit among its paraphrases; None as long as that is not known."""
        if self.best is None or self.complete() < FEWEST_EXAMPLES:
            return None
        own, best = (self.row(self.fresh, c, self.half) for c in (self.best, self.winner or self.best))
        return neighbourhood_of(*self.rows(), (own, best if self.winner else [None] * self.half), seed=seed)


async def _experiment(run: Run, task: Task, n: int, kept: _Kept) -> None:
    kept.name, kept.count = run.baseline.names[0], len(run.select)
    scene = await _scene(run, _draws(n))
    kept.prompts = await _prompts(scene, kept.name, n)
    await by_example(run, [c for c, _ in kept.prompts], run.select, kept.outcomes)
    edits = [c for c, _ in kept.prompts if c.origin.move == "edit"]
    if edits:
        known = {c: [v for v in run.known(c, run.select) if v is not None] for c in edits}
        kept.best = max(edits, key=lambda c: (math.fsum(known[c]) / max(1, len(known[c])), -c.size, c.id))
    await by_example(run, [run.baseline, *([kept.best] if kept.best else [])], run.select, kept.again, draw=1)
    if kept.best is not None:
        await _judge(scene, kept.best, task, kept)


async def _scene(run: Run, draws: int) -> Scene:
    setting = Setting(initial=draws, minibatch=MINIBATCH)
    material = Material.of(run, setting)
    requests = Requests(run, ProgramContext.of(run))
    return Scene(run, requests, setting, material, await begin(run, setting, material), False, "round robin")


def _draws(n: int) -> int:
    """How many prompts each of five sources is asked for: one more than its share, for some read alike."""
    return math.ceil((n - 1) / 5) + 1


async def _prompts(scene: Scene, name: str, n: int) -> list[tuple[Candidate, int]]:
    """Return at most n different prompts, the student's first, from all sources in turn."""
    run, draws = scene.run, _draws(n)
    own, written, edited = await asyncio.gather(
        _paraphrases(scene, run.baseline, name, draws),
        write_instructions(scene.requests, scene.setting, scene.material, scene.book),
        _edits(scene, name, draws),
    )
    again = await asyncio.gather(*(_paraphrases(scene, one, name, draws) for one in (*written[:1], *edited[:1])))
    makers = (written, edited, own, *again)
    # A paraphrase means what the first of its source means; every other prompt has a meaning of its own.
    first = {id(own): 0, **{id(side): k for k, side in enumerate(again, 1)}}
    heads = [c.id for c in (*written[:1], *edited[:1])]
    found, texts = [(run.baseline, 0)], {run.baseline.prompts[name].instructions}
    for place in range(draws):
        for maker in makers:
            if place < len(maker) and len(found) < n and (text := maker[place].prompts[name].instructions) not in texts:
                one = maker[place]
                own_meaning = heads.index(one.id) + 1 if one.id in heads else len(found) + len(heads)
                found.append((one, first.get(id(maker), own_meaning)))
                texts.add(text)
    return found


async def _paraphrases(scene: Scene, parent: Candidate, name: str, count: int) -> list[Candidate]:
    inputs = {"instruction": parent.prompts[name].instructions}
    replies = await scene.ask(VaryInstructions, name, inputs, n=count, salt="similarity")
    made = (scene.child(parent, name, text_field(reply, "variation"), "vary") for reply in replies)
    return [one for one in distinct(c for c in made if c is not None) if one != parent]


async def _edits(scene: Scene, name: str, count: int) -> list[Candidate]:
    """Return edits of the student's prompt, each for a reason of its own group of errors."""
    student = scene.run.baseline
    ran = await scene.try_out([student], scene.minibatch())
    failures = scene.failures(ran[0], name)

    async def one(group: Sequence[Failure], j: int) -> list[Candidate]:
        reasons = await criticize(scene, student, name, group, 1, j)
        return await edit(scene, student, name, group, reasons[0], 1, f"group {j}") if reasons else []

    made = await asyncio.gather(*(one(g, j) for j, g in enumerate(groups(scene, student, failures, count, ERRORS))))
    return distinct(child for children in made for child in children if child != student)


async def _judge(scene: Scene, best: Candidate, task: Task, kept: _Kept) -> None:
    """Score both neighbourhoods on one half of the test examples, the best paraphrase on the other."""
    run = scene.run
    own, new = await asyncio.gather(*(_paraphrases(scene, c, kept.name, PARAPHRASES) for c in (run.baseline, best)))
    if not own or not new:
        return
    kept.around, kept.half = (own, new), len(task.test) // 2
    await by_example(run, [*own, best, *new], task.test[: kept.half], kept.judged)
    if kept.complete() >= FEWEST_EXAMPLES:
        kept.winner = new[best_paraphrase(*kept.rows())]
        await by_example(run, [best, kept.winner], task.test[kept.half : 2 * kept.half], kept.fresh)


# --- the report -------------------------------------------------------------------------------------------


def sections(result: SimilarityResult) -> tuple[Section, ...]:
    """Put what was found into words and figures."""
    around = result.neighbourhood and section_of(result.neighbourhood)
    return sections_of("studies/similarity", result, _curves(result), _spread(result), around, TESTS)


def _spread(result: SimilarityResult) -> list[tuple[bool, float, int]]:
    """Different answers (%), a mean over pairs of one meaning and of several; no interval, as pairs share prompts."""
    shares = {same: [pair.flips for pair in result.pairs if pair.same is same] for same in (True, False)}
    return [(same, 100 * math.fsum(some) / len(some), len(some)) for same, some in shares.items() if some]


def _curves(result: SimilarityResult) -> tuple[Curve, ...]:
    axes = ("distance of the words (0 the same, 1 nothing in common)", "different answers (%)")
    curves = []
    for same, name in ((True, "paraphrases of one prompt"), (False, "prompts made apart")):
        found = sorted((p.distance, 100 * p.flips) for p in result.pairs if p.same is same)
        if found:
            curves.append(Curve(name, [x for x, _ in found], [y for _, y in found], *axes, points=True))
    return tuple(curves)


def limits(result: SimilarityResult, stopped_by: str | None) -> tuple[str, ...]:
    """Return what the figures do not show, also if `stopped_by` ended the study early."""
    ended = stopped(stopped_by) if stopped_by else ""
    return paragraphs_of("studies/similarity", result, ended, compared(result.by_words))


# --- the study ---------------------------------------------------------------------------------------------


def _conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    (task,), kept = tasks, _Kept()
    bench.conduct("similarity", task, lambda run: _experiment(run, task, n, kept))
    result = analyse(
        kept.samples(),
        noise=kept.noise(),
        neighbourhood=kept.neighbourhood(bench.seed),
        similarity=bench.similarity,
        seed=bench.seed,
    )
    return Findings(result, sections(result), limits(result, bench.stopped_by))


def _forecast(tasks: Sequence[Task], n: int) -> Forecast:
    draws, asked, runs = _draws(n), 0, 0
    for task in tasks:
        asked += 6 * draws + 2 * PARAPHRASES
        runs += (n + 3) * len(task.validation) + 2 * min(MINIBATCH, len(task.train))
        runs += (2 * PARAPHRASES + 3) * (len(task.test) // 2)
    return Forecast(asked, runs, asked + runs)


STUDY = Study(
    name="similarity",
    families=("objects",),
    sizes=Sizes(train=40, validation=60, test=160),
    n=16,
    unit="prompts",
    fewest=FEWEST,
    needs={"validation": FEWEST_EXAMPLES, "test": 2 * FEWEST_EXAMPLES},
    run=_conduct,
    bounds=_forecast,
)
