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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.association import holm
from cuesmith.programs.diagnosis.change import (
    PARAPHRASES,
    Neighbourhood,
    Row,
    best_paraphrase,
    flips,
    neighbourhood_of,
    section_of,
)
from cuesmith.programs.diagnosis.figures import Curve, Figure, Section, percent
from cuesmith.programs.diagnosis.similarity import Similarity, TfIdf
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.studies.bench import Bench, Findings, Study
from cuesmith.programs.studies.demonstrations import by_example
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.signatures import VaryInstructions
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.outcomes import Outcome, value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95
from cuesmith.teleprompters.search.beam import distinct
from cuesmith.teleprompters.search.deviations import Failure
from cuesmith.teleprompters.search.guards import Guard
from cuesmith.teleprompters.search.initial import write_instructions
from cuesmith.teleprompters.search.material import Material, begin
from cuesmith.teleprompters.search.reflecting import criticize, edit, groups
from cuesmith.teleprompters.search.scene import Scene
from cuesmith.teleprompters.search.setting import Setting
from cuesmith.teleprompters.search.texts import LONGEST_INSTRUCTION, text_field

__all__ = ["STUDY", "Alike", "Mantel", "Nearest", "Sample", "analyse", "mantel", "nearest", "sections"]

Floats = NDArray[np.float64]

FEWEST = 8
"""Prompts; with fewer a permutation test of their order has next to no power. Ours."""
EXACT = 7
"""Up to so many prompts all 7! = 5,040 orders are tried."""
ORDERS = 5_000
MINIBATCH = 24
"""Training examples that the student is run on for its errors. Ours."""
ERRORS = 4
"""Errors shown for an edit. Ours."""
FEWEST_EXAMPLES = 10
TESTS = 4


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
class Mantel:
    """Spearman's correlation of two distances between the same prompts.

    Attributes:
        rho: From -1 to 1; nan if a distance is the same for all pairs.
        p_value: Two-sided, of permuting the prompts of one distance (Mantel 1967); 1.0 where there is no rho.
        adjusted: The same, corrected by Holm for all tests of the study.
        critical: |rho| that has p = 0.05: smaller correlations cannot be shown with these prompts.
        prompts: How many.
        pairs: How many pairs are compared.
    """

    rho: float
    p_value: float
    adjusted: float
    critical: float
    prompts: int
    pairs: int

    @property
    def sign(self) -> int:
        """1 or -1 if the association is shown at 5 %, else 0."""
        return int(math.copysign(1, self.rho)) if self.adjusted < 0.05 else 0


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
    """

    prompts: tuple[Known, ...]
    pairs: tuple[Pair, ...]
    examples: int
    answers: Mantel | None = None
    scores: Mantel | None = None
    within: Mantel | None = None
    nearest: Nearest | None = None
    noise: tuple[Estimate95, ...] = ()
    neighbourhood: Neighbourhood | None = None


# --- statistics ----------------------------------------------------------------------------------------------


def mantel(first: Floats, second: Floats, meanings: Sequence[int] | None = None, *, seed: int = 0) -> Mantel:
    """Correlate two distances between the same prompts by ranks, and test it by permuting prompts (Mantel 1967).

    Pairs share prompts, so they are no independent observations: the prompt is the unit. With `meanings` only pairs of
    one meaning count, ranked and permuted within it. Exact with at most 7 prompts, else 5,000 random orders.

    Args:
        first: Symmetric distances.
        second: Symmetric distances of the same prompts.
        meanings: A number for each prompt; None takes all for one.
        seed: Seeds the orders.
    """
    strata = _strata([0] * len(first) if meanings is None else meanings)
    x, y = (_ranked(matrix, strata) for matrix in (first, second))
    prompts, pairs = sum(map(len, strata)), sum(len(s) * (len(s) - 1) // 2 for s in strata)
    scale = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    if not scale:
        return Mantel(math.nan, 1.0, 1.0, math.nan, prompts, pairs)
    rho = float((x * y).sum()) / scale
    orders = _orders(strata, len(x), seed)
    drawn = np.einsum("ij,kij->k", x, y[orders[:, :, None], orders[:, None, :]]) / scale
    known = int(prompts > EXACT)  # the order as it is counts as one of the random ones
    p = (int((np.abs(drawn) >= abs(rho) - 1e-9).sum()) + known) / (len(drawn) + known)
    return Mantel(rho, p, p, float(np.quantile(np.abs(drawn), 0.95)), prompts, pairs)


def _strata(meanings: Sequence[int]) -> list[list[int]]:
    """Prompts of one meaning, where there are at least 3: two have one pair, which nothing can be permuted in."""
    found = [[k for k, m in enumerate(meanings) if m == meaning] for meaning in dict.fromkeys(meanings)]
    return [members for members in found if len(members) > 2]


def _ranked(matrix: Floats, strata: Sequence[Sequence[int]]) -> Floats:
    """Mid-ranks of the pairs less their mean, within each stratum; 0 for all other pairs."""
    ranked = np.zeros_like(matrix)
    for members in strata:
        rows, columns = (np.asarray(members)[side] for side in np.triu_indices(len(members), 1))
        # Rounding must not decide which of two equal distances is larger.
        _, place, counts = np.unique(np.round(matrix[rows, columns], 9), return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[place.ravel()]
        ranked[rows, columns] = ranks - ranks.mean()
    return ranked + ranked.T


def _orders(strata: Sequence[Sequence[int]], n: int, seed: int) -> NDArray[np.intp]:
    """Orders of the prompts, one a row, in which each stays in its stratum: all of them, or random ones."""
    if sum(map(len, strata)) <= EXACT:
        tried = list(itertools.product(*(itertools.permutations(members) for members in strata)))
        parts = [np.array([one[k] for one in tried]) for k in range(len(strata))]
    else:
        rng = np.random.default_rng(seed)
        parts = [rng.permuted(np.tile(members, (ORDERS, 1)), axis=1) for members in strata]
    orders = np.tile(np.arange(n), (len(parts[0]), 1))
    for members, part in zip(strata, parts, strict=True):
        orders[:, list(members)] = part
    return orders


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
    likeness = (similarity or TfIdf()).matrix([sample.text for sample in samples])
    means, meanings = np.array([score.mean for score in scores]), [sample.meaning for sample in samples]
    words = np.maximum(0.0, 1.0 - likeness)
    answers = np.array([[flips(a, b).mean for b in rows] for a in rows])
    apart = np.abs(means[:, None] - means[None, :])
    tests = (mantel(words, answers, seed=seed), mantel(words, apart, seed=seed),
             mantel(words, answers, meanings, seed=seed))
    near = nearest(likeness, means.tolist(), seed=seed)
    *adjusted, last = holm([*(test.p_value for test in tests), near.p_value])
    first, second, third = (replace(test, adjusted=p) for test, p in zip(tests, adjusted, strict=True))
    pairs = (Pair(float(words[i, j]), float(answers[i, j]), float(apart[i, j]), meanings[i] == meanings[j])
             for i, j in itertools.combinations(range(len(samples)), 2))
    return Alike(prompts, tuple(pairs), len(whole), first, second, third, replace(near, adjusted=last), tuple(noise),
                 neighbourhood)


# --- the experiment ------------------------------------------------------------------------------------------


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
        return [Sample(one.prompts[self.name].instructions, one.origin.move, meaning,
                       self.row(self.outcomes, one, self.count)) for one, meaning in self.prompts]

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
    guard = Guard.of(material.evidence, [p.instructions for _, p in run.baseline], {}, LONGEST_INSTRUCTION)
    return Scene(run, setting, material, await begin(run, setting, material), guard, False, "round robin")


def _draws(n: int) -> int:
    """How many prompts each of five sources is asked for: one more than its share, for some read alike."""
    return math.ceil((n - 1) / 5) + 1


async def _prompts(scene: Scene, name: str, n: int) -> list[tuple[Candidate, int]]:
    """Return at most n different prompts, the student's first, from all sources in turn."""
    run, draws = scene.run, _draws(n)
    own, written, edited = await asyncio.gather(
        _paraphrases(scene, run.baseline, name, draws),
        write_instructions(run, scene.setting, scene.material, scene.book, scene.guard),
        _edits(scene, name, draws))
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
    replies = await scene.run.ask(VaryInstructions, inputs, n=count, salt="similarity")
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


def conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    """Run the study; see the module.

    Args:
        bench: What to work with.
        tasks: One task.
        n: Prompts at most.

    Raises:
        ValueError: If the task does not fit.
    """
    if len(tasks) != 1:
        raise ValueError(f"this study takes one task, got {len(tasks)}")
    task, kept = tasks[0], _Kept()
    needed = (("validation", len(task.validation), FEWEST_EXAMPLES), ("test", len(task.test), 2 * FEWEST_EXAMPLES))
    for name, count, least in needed:
        if count < least:
            raise ValueError(f"{task.name}: the study needs {least} {name} examples, the task has {count}")
    bench.conduct("similarity", task, lambda run: _experiment(run, task, n, kept))
    result = analyse(kept.samples(), noise=kept.noise(), neighbourhood=kept.neighbourhood(bench.seed), seed=bench.seed)
    return Findings(result, sections(result), tuple(_limits(result, bench.stopped_by)))


def forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Return upper bounds of the study's calls."""
    draws, asked, runs = _draws(n), 0, 0
    for task in tasks:
        asked += 6 * draws + 2 * PARAPHRASES
        runs += (n + 3) * len(task.validation) + 2 * min(MINIBATCH, len(task.train))
        runs += (2 * PARAPHRASES + 3) * (len(task.test) // 2)
    return Forecast(asked, runs, asked + runs)


# --- the report ----------------------------------------------------------------------------------------------


def sections(result: Alike) -> tuple[Section, ...]:
    """Put the result into figures, each with what it means and what to do about it."""
    figures = (*_tests(result), *_spread(result), *_noise(result))
    alike = Section("Do prompts that read alike act alike?", _summary(result), figures, _curves(result))
    if result.neighbourhood is not None:
        return alike, section_of(result.neighbourhood)
    why = ("no edit was made, because the student's errors or the optimizer model gave none"
           if all(p.move != "edit" for p in result.prompts) else "the budget or missing scores left no data for it")
    return alike, Section("Right idea, wrong wording?", f"Nothing can be said: {why}.", ())


def _summary(result: Alike) -> str:
    answers, near, within = result.answers, result.nearest, result.within
    if answers is None or near is None or within is None:
        return (f"There is too little data: {len(result.prompts)} different prompts and {result.examples} examples "
                f"that all of them answered.")
    if math.isnan(answers.rho):
        return "All prompts give the same answers, or all read equally different: there is nothing to compare."
    share = f"{100 * answers.rho**2:.0f} %"
    if answers.sign > 0:
        said = f"Prompts that read more differently answer more differently: the words explain {share} of the " \
               "variance in the ranks of that difference."
        if not math.isnan(within.rho):
            said += " That also holds among paraphrases of one prompt." if within.sign > 0 else \
                    " Among paraphrases of one prompt that was not shown."
        return said
    if answers.sign < 0:
        return "Reversed: prompts that read more differently answer more alike."
    return f"It was not shown that prompts that read alike act alike: the words explain {share} of the variance in " \
           "the ranks of the difference of the answers, which chance does as well."


def _tests(result: Alike) -> Iterator[Figure]:
    if result.answers is None or result.scores is None or result.within is None or result.nearest is None:
        return
    yield _correlation("Distance of the words with share of different answers (Spearman)", result.answers,
                       "prompts that read more differently also answer more examples differently",
                       "A small edit of the words is a small step: take larger ones when a search is stuck.")
    yield _correlation("Distance of the words with difference of the scores (Spearman)", result.scores,
                       "prompts that read more differently also differ more in their scores",
                       "Distance tells how much a prompt may change the score, not whether for the better.")
    yield _correlation("The first, among paraphrases of one prompt (Spearman)", result.within,
                       "also of prompts with the same meaning those that read more differently act more differently",
                       "Vary wordings boldly: near copies of a prompt bring little new.")
    near = result.nearest
    shown = near.adjusted < 0.05
    yield Figure(
        "Score told by the most similar prompt, better than by the mean (points)", 100 * near.gain, None, None,
        near.prompts, near.adjusted,
        f"The most similar prompt's score is off by {100 * near.error:.1f} points on average, the mean of all others "
        f"by {100 * near.of_mean:.1f} (permutation test, scores dealt to prompts at random, Holm-corrected for {TESTS} "
        f"tests).",
        "A similar prompt's score may serve as a first guess." if shown and near.gain > 0 else
        "Similar prompts have similar scores, but the mean is as good a guess: score every prompt." if shown else
        "Do not guess a prompt's score from a similar one: score every prompt.")


def _correlation(name: str, found: Mantel, claim: str, advice: str) -> Figure:
    how = f"(Mantel test, prompts permuted, Holm-corrected for {TESTS} tests)"
    if math.isnan(found.rho):
        return Figure(name, None, None, None, found.prompts, None,
                      "The pairs do not differ, or there are none, so nothing can be correlated.",
                      "Take more prompts, or a task on which they differ.")
    if not found.sign:
        return Figure(name, found.rho, None, None, found.prompts, found.adjusted,
                      f"It was not shown that {claim} {how}.", "Score prompts, do not judge them by reading.")
    if found.sign < 0:
        return Figure(name, found.rho, None, None, found.prompts, found.adjusted,
                      f"It is the other way round than that {claim} {how}.",
                      "Score prompts, do not judge them by reading.")
    return Figure(name, found.rho, None, None, found.prompts, found.adjusted,
                  f"{claim[0].upper()}{claim[1:]}; the words explain {100 * found.rho**2:.0f} % of the variance in the "
                  f"ranks {how}.", advice)


def _spread(result: Alike) -> Iterator[Figure]:
    """Means over pairs, without an interval: pairs share prompts."""
    for same, name, meaning in (
            (True, "paraphrases of one prompt", "So many answers does wording alone change (mean over the pairs)."),
            (False, "prompts made apart", "So many answers differ where more than wording may (mean over pairs).")):
        found = [pair.flips for pair in result.pairs if pair.same is same]
        if found:
            yield Figure(
                f"Different answers between {name} (%)", 100 * math.fsum(found) / len(found), None, None, len(found),
                None, meaning,
                "If wording alone changes nearly as much as meaning, let the search try several wordings of each idea.")


def _noise(result: Alike) -> Iterator[Figure]:
    for name, share in zip(("student's prompt", "best edit"), result.noise, strict=False):
        yield Figure(
            f"Answers that change by themselves, {name} (%)", *percent(share), share.n, None,
            "The share of the examples with another answer when the same prompt is run again; it is not subtracted.",
            "Answers repeat: every difference is the prompt's doing." if share.mean == 0.0 else
            "Differences of this size mean nothing; lower the temperature to lower it.")


def _curves(result: Alike) -> tuple[Curve, ...]:
    axes = ("distance of the words (0 the same, 1 nothing in common)", "different answers (%)")
    curves = []
    for same, name in ((True, "paraphrases of one prompt"), (False, "prompts made apart")):
        found = sorted((p.distance, 100 * p.flips) for p in result.pairs if p.same is same)
        if found:
            curves.append(Curve(name, [x for x, _ in found], [y for _, y in found], *axes, points=True))
    return tuple(curves)


def _limits(result: Alike, stopped_by: str | None) -> Iterator[str]:
    yield (f"The {len(result.prompts)} prompts are the unit, not their {len(result.pairs)} pairs, compared on "
           f"{result.examples} examples; the correlations have no interval, for none is known to hold for such pairs.")
    if stopped_by is not None:
        yield f"The study was stopped by {stopped_by} and rests on what was scored until then."
    if result.answers is not None and math.isfinite(result.answers.critical):
        yield (f"A correlation below {result.answers.critical:.2f} could not have been shown with these prompts, even "
               "without the correction for several tests.")
    if result.within is not None and math.isfinite(result.within.critical):
        yield f"Among paraphrases of one prompt that holds below {result.within.critical:.2f}."
    yield ("Prompts with a common origin read and act alike for that reason: the test among paraphrases of one prompt "
           "is free of it, and has fewer prompts to find something with.")
    yield "How alike prompts read is measured by their words; an embedder may see what words do not show."
    if result.neighbourhood is not None:
        yield ("The edit was chosen by its score on other examples than its neighbourhood is judged on; it is one "
               "edit, and others may differ.")


STUDY = Study(
    name="similarity",
    question=STUDIES["similarity"],
    families=("objects",),
    sizes=Sizes(train=40, validation=60, test=160),
    n=16,
    unit="prompts",
    fewest=FEWEST,
    conduct=conduct,
    forecast=forecast,
)
