"""Does a refined instruction need demonstrations to change what the model does? A 2 x 2 factorial experiment.

ABO writes refined instructions as numbered steps, each with demonstrations of following them. Here the two are taken
apart: the student's own instruction or the refined one, without or with those demonstrations, all four on examples
that no choice has seen. Source: 2402.02101 section 6 (without its demonstrations a refined instruction is not followed,
and the gain is lost); design and statistics are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import dspy
import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.figures import Curve, Section
from cuesmith.programs.diagnosis.following import Response, check, rules_of
from cuesmith.programs.diagnosis.inference import (
    drawn_shares,
    expanded_interval,
    holm,
    two_way_interval,
    two_way_sign_flip,
)
from cuesmith.programs.diagnosis.run_record import passed
from cuesmith.programs.diagnosis.words import paragraphs_of, sections_of
from cuesmith.programs.studies.bench import Bench, Findings, Study, by_example
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.teleprompters.abo import ABO
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.ledger import stopped
from cuesmith.teleprompters.runtime.outcomes import Outcome, value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95
from cuesmith.teleprompters.search.examples import read_failure

EFFECTS = (
    "instruction alone",
    "demonstrations added to the instruction",
    "demonstrations alone",
    "both together",
    "interaction",
)
FAMILIES = ((0, 1), (2, 3, 4))
"""Effects that are corrected together: the two that answer the question, and the others."""
FEWEST_SCORED = 10
"""Examples with scores in all cells; with fewer nothing is said. Ours."""
FEWEST_REFINEMENTS = 7
"""With fewer not every family can reach 5 % by a sign-flip test over refinements and Holm's correction:
3 x 2 / 2 ** 7 = 4.7 %."""
THRESHOLD = 1.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Factorial:
    """Scores on the same examples. Rows are refinements, columns examples; nan where a score is missing.

    Attributes:
        student: Of the student's own prompt; one an example.
        instruction: With the refined instruction alone.
        demonstrations: With the demonstrations and the student's own instruction.
        both: With both.
        share_alone: Share of the steps followed by each response to the refined instruction alone.
        share_both: The same with demonstrations.
    """

    student: Floats
    instruction: Floats
    demonstrations: Floats
    both: Floats
    share_alone: Floats
    share_both: Floats


@dataclass(frozen=True)
class Cell:
    """One cell of the design.

    Attributes:
        instruction: Whether the instruction is the refined one.
        demonstrations: Whether there are demonstrations.
        score: Mean score with interval over refinements and examples.
        each: Mean score of each refinement.
    """

    instruction: bool
    demonstrations: bool
    score: Estimate95
    each: tuple[float, ...]


@dataclass(frozen=True)
class FactorEffect:
    """A difference between cells, in the unit of the scores; `EFFECTS` has the names.

    Attributes:
        name: Which.
        value: With interval over refinements and examples; n is the number of examples.
        p_value: Sign-flip test over refinements and examples.
        adjusted: The same, corrected by Holm for the effects of its family.
    """

    name: str
    value: Estimate95
    p_value: float
    adjusted: float

    @property
    def sign(self) -> int:
        """1 or -1 if the effect is shown at 5 %, else 0."""
        return int(math.copysign(1, self.value.mean)) if self.adjusted < 0.05 else 0


@dataclass(frozen=True)
class Followed:
    """How the refined instructions are followed.

    Attributes:
        without: Mean share of the steps followed, without demonstrations.
        shown: The same with demonstrations.
        change: `shown` less `without`.
        worth_without: P(correct | all steps followed) - P(correct | not), without demonstrations; nan where all or none
            are followed.
        worth_shown: The same with demonstrations.
    """

    without: Estimate95
    shown: Estimate95
    change: FactorEffect
    worth_without: Estimate95
    worth_shown: Estimate95


@dataclass(frozen=True)
class Demonstrations:
    """What the study found.

    Attributes:
        refinements: How many refined instructions were compared.
        examples: On how many examples.
        cells: The four cells; none if nothing could be compared.
        effects: The differences between them.
        following: How the steps are followed; None if no response could be checked.
        least: The smallest corrected p-value that so many refinements can give every effect.
        instructions: The refined instructions; a model wrote them.
    """

    refinements: int
    examples: int
    cells: tuple[Cell, ...]
    effects: tuple[FactorEffect, ...]
    following: Followed | None
    least: float
    instructions: tuple[str, ...] = ()


def analyse(data: Factorial, *, seed: int = 0) -> Demonstrations:
    """Compare the cells on the examples that have all scores.

    Args:
        data: The scores.
        seed: Seeds the tests and the bootstrap.
    """
    known = np.isfinite(data.student)
    for cell in (data.instruction, data.demonstrations, data.both):
        known &= np.isfinite(cell).all(axis=0)
    r, n = len(data.both), int(known.sum())
    least = min(1.0, len(FAMILIES[-1]) * 2.0 / 2**r)
    if not r or n < FEWEST_SCORED:
        return Demonstrations(r, n, (), (), None, least)
    base = data.student[known]
    alone, shown, both = (m[:, known] for m in (data.instruction, data.demonstrations, data.both))
    contrasts = (alone - base, both - alone, shown - base, both - base, both - alone - shown + base)
    tests = [two_way_sign_flip(one, seed=seed) for one in contrasts]
    corrected = [p for family in FAMILIES for p in holm([tests[k] for k in family])]
    effects = tuple(
        FactorEffect(name, two_way_interval(one, seed=seed), p, adjusted)
        for name, one, p, adjusted in zip(EFFECTS, contrasts, tests, corrected, strict=True)
    )
    cells = (
        Cell(False, False, estimate95(base.tolist()), (float(base.mean()),) * r),
        *(
            Cell(refined, with_, two_way_interval(m, seed=seed), tuple(m.mean(axis=1).tolist()))
            for refined, with_, m in ((False, True, shown), (True, False, alone), (True, True, both))
        ),
    )
    return Demonstrations(r, n, cells, effects, _followed(data, known, seed), least)


def _followed(data: Factorial, known: NDArray[np.bool_], seed: int) -> Followed | None:
    checked = known & np.isfinite(data.share_alone).all(axis=0) & np.isfinite(data.share_both).all(axis=0)
    if checked.sum() < 2:
        return None
    without, shown = data.share_alone[:, checked], data.share_both[:, checked]
    p = two_way_sign_flip(shown - without, seed=seed)
    return Followed(
        without=two_way_interval(without, seed=seed),
        shown=two_way_interval(shown, seed=seed),
        change=FactorEffect("steps followed", two_way_interval(shown - without, seed=seed), p, p),
        worth_without=_worth(without, data.instruction[:, checked], seed),
        worth_shown=_worth(shown, data.both[:, checked], seed),
    )


def _worth(shares: Floats, scores: Floats, seed: int) -> Estimate95:
    """P(correct | all followed) - P(correct | not), over refinements and examples; nan if a group is empty."""
    full, right = (shares >= 1.0).astype(float), (scores >= THRESHOLD).astype(float)
    rng = np.random.default_rng(seed)
    rows, columns = (drawn_shares(rng, k) for k in full.shape)
    parts = (full * right, full, (1 - full) * right, 1 - full)
    drawn = [((rows @ part) * columns).sum(axis=1) for part in parts]
    whole = [np.asarray(part.sum()) for part in parts]
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may have an empty group: nan, left out
        mean, values = (top[0] / top[1] - top[2] / top[3] for top in (whole, drawn))
    return expanded_interval(float(mean), np.asarray(values), full.shape)


FEWEST_EXAMPLES = 20
"""Test examples of a task."""
FIRST = 4
"""Refinements that are compared before ABO's whole search, so that a budget that ends early leaves something. Ours."""


# --- the experiment ----------------------------------------------------------------------------------------


@dataclass
class _Kept:
    """What the experiment has so far.

    Attributes:
        name: The predictor.
        signature: Its signature.
        student: The student's prompt.
        written: Refined instructions that ABO wrote, also those without demonstrations.
        refined: What is compared: refinements with their demonstrations.
        first: How many of them were compared first.
        examples: On which examples.
        outcomes: By candidate's id and example's place.
    """

    name: str = ""
    signature: type[dspy.Signature] = dspy.Signature
    student: Candidate | None = None
    written: int = 0
    refined: list[Candidate] = field(default_factory=list)
    first: int = 0
    examples: Sequence[dspy.Example] = ()
    outcomes: dict[tuple[str, int], Outcome] = field(default_factory=dict)

    def cells(self, one: Candidate) -> tuple[Candidate, Candidate]:
        """Return the refined instruction alone, and the demonstrations with the student's own instruction."""
        assert self.student is not None
        alone = one.replace(self.name, demos=self.student.prompts[self.name].demos, origin=_part(one))
        shown = one.replace(self.name, instructions=self.student.prompts[self.name].instructions, origin=_part(one))
        return alone, shown

    def scores(self, one: Candidate) -> list[float]:
        """Return a candidate's scores; nan where there is none."""
        found = (self.outcomes.get((one.id, k)) for k in range(len(self.examples)))
        known = [None if outcome is None else value(outcome) for outcome in found]
        return [math.nan if score is None else score for score in known]

    def shares(self, one: Candidate) -> list[float]:
        """Return the share of the steps that each response follows; nan where none could be checked."""
        rules = rules_of(one.prompts[self.name].instructions)
        found = []
        for k, example in enumerate(self.examples):
            outcome = self.outcomes.get((one.id, k))
            response = None if outcome is None else self._response(example, outcome)
            checks = [] if response is None else [c for c in check(rules, response) if c is not None]
            found.append(sum(checks) / len(checks) if checks else math.nan)
        return found

    def _response(self, example: dspy.Example, outcome: Outcome) -> Response | None:
        read = read_failure(example, outcome, self.name, [self.name], self.signature)
        if read is None:
            return None
        return Response(read.response, read.reasoning, read.parsed, passed(outcome, THRESHOLD))

    def compared(self) -> Sequence[Candidate]:
        """Return the refinements to compare: all, or the first ones where a cap left too little of the others."""
        complete = np.isfinite([self.scores(c) for one in self.refined for c in (one, *self.cells(one))]).all(axis=0)
        return self.refined if complete.sum() >= FEWEST_EXAMPLES else self.refined[: self.first]

    def data(self) -> Factorial:
        """Return what was scored."""
        refined = self.compared()
        shape, parts = (len(refined), len(self.examples)), [self.cells(one) for one in refined]
        columns = (
            [self.scores(a) for a, _ in parts],
            [self.scores(b) for _, b in parts],
            [self.scores(c) for c in refined],
            [self.shares(a) for a, _ in parts],
            [self.shares(c) for c in refined],
        )
        base = np.array(self.scores(self.student) if self.student is not None else [], dtype=float)
        return Factorial(base, *(np.array(one, dtype=float).reshape(shape) for one in columns))


def _part(one: Candidate) -> Origin:
    return Origin("part", (one.id,))


def _abo(task: Task, initial: int, steps: int = 1) -> ABO:
    """ABO in a small setting."""
    return ABO(
        metric=task.metric, search="native", initial=initial, width=2, branch=2, steps=steps, minibatch=12, errors=4
    )


def _searches(task: Task, n: int) -> tuple[tuple[int, ABO], ...]:
    """Return how many refinements there are to be after each search. The second begins with what the first asked.

    More first drafts are asked for than refinements are wanted, for some read alike.
    """
    return (min(FIRST, n), _abo(task, min(FIRST, n), 0)), (n, _abo(task, 2 * n))


def _chosen(run: Run, name: str, n: int) -> tuple[list[Candidate], int]:
    """Return the best refinements with demonstrations, one an instruction, and how many instructions there are.

    Those that racing scored to the end come first: it gave the others up.
    """
    trials = sorted(run.trials(), key=lambda t: (-t.n, -t.mean, t.candidate.size, t.candidate.id))
    first: dict[str, Candidate] = {}
    for one in (t.candidate for t in trials if rules_of(t.candidate.prompts[name].instructions)):
        if one != run.baseline and one.prompts[name].demos != run.baseline.prompts[name].demos:
            first.setdefault(one.prompts[name].instructions, one)
    texts = {t.candidate.prompts[name].instructions for t in trials} - {run.baseline.prompts[name].instructions}
    return list(first.values())[:n], len(texts)


async def _refine_and_compare(run: Run, task: Task, n: int, kept: _Kept) -> None:
    """Search and compare, twice: what a cap leaves of the second time, the first stands for."""
    kept.student, kept.name, kept.examples = run.baseline, run.baseline.names[0], task.test
    kept.signature = run.predictors[kept.name].signature
    for count, search in _searches(task, n):
        await search.search(run)
        found, kept.written = _chosen(run, kept.name, n)
        texts = {one.prompts[kept.name].instructions for one in kept.refined}
        new = [one for one in found if one.prompts[kept.name].instructions not in texts][: count - len(kept.refined)]
        kept.refined += new
        kept.first = kept.first or len(new)
        cells = [one for refined in kept.refined for one in (refined, *kept.cells(refined))]
        if cells:
            await by_example(run, [run.baseline, *cells], kept.examples, kept.outcomes)


# --- the report -------------------------------------------------------------------------------------------


def sections(result: Demonstrations) -> tuple[Section, ...]:
    """Put what was found into words and figures."""
    effects = {one.name: one for one in result.effects}
    families = {EFFECTS[k]: len(family) for family in FAMILIES for k in family}
    could = 2 / 2**result.refinements < 0.05
    return sections_of("studies/demonstrations", result, _curves(result), effects, families, could, FEWEST_REFINEMENTS)


def _curves(result: Demonstrations) -> tuple[Curve, ...]:
    if not result.cells:
        return ()
    alone, both = (next(c for c in result.cells if c.instruction and c.demonstrations is d) for d in (False, True))
    pairs = sorted(zip(alone.each, both.each, strict=True))
    axes = ("score without demonstrations (%)", "score with demonstrations (%)")
    return (
        Curve("refined instructions", [100 * a for a, _ in pairs], [100 * b for _, b in pairs], *axes, points=True),
        Curve("no difference", [0.0, 100.0], [0.0, 100.0], *axes),
    )


def limits(result: Demonstrations, *, written: int, examples: int, stopped_by: str | None) -> tuple[str, ...]:
    """Return what the figures do not show.

    Args:
        result: What was found.
        written: Different instructions that ABO wrote.
        examples: Test examples of the task.
        stopped_by: The cap that ended the study early.
    """
    ended = stopped(stopped_by) if stopped_by else ""
    added = result.effects[1].value if result.effects else None
    known = added is not None and math.isfinite(added.low)
    detectable = max(1, math.ceil(70 * (added.high - added.low))) if added is not None and known else None
    return paragraphs_of("studies/demonstrations", result, written, examples, ended, detectable)


# --- the study ---------------------------------------------------------------------------------------------


def _conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    (task,), kept = tasks, _Kept()
    bench.conduct("demonstrations", task, lambda run: _refine_and_compare(run, task, n, kept))
    return _findings(kept, bench.stopped_by, seed=bench.seed)


def _findings(kept: _Kept, stopped_by: str | None, *, seed: int = 0) -> Findings:
    """Analyse what was collected, all or a part of it."""
    texts = tuple(one.prompts[kept.name].instructions for one in kept.compared())
    result = replace(analyse(kept.data(), seed=seed), instructions=texts)
    told = limits(result, written=kept.written, examples=len(kept.examples), stopped_by=stopped_by)
    return Findings(result, sections(result), told)


def _forecast(tasks: Sequence[Task], n: int) -> Forecast:
    asked = runs = 0
    for task in tasks:
        plans = [search.plan(1, len(task.validation), len(task.train)) for _, search in _searches(task, n)]
        asked += sum(plan.optimizer_calls for plan in plans)
        runs += sum(plan.program_runs for plan in plans) + (1 + 3 * n) * len(task.test)
    return Forecast(asked, runs, asked + runs)


STUDY = Study(
    name="demonstrations",
    families=("objects",),
    sizes=Sizes(train=40, validation=30, test=100),
    n=10,
    unit="refinements",
    fewest=FEWEST_REFINEMENTS,
    needs={"test": FEWEST_EXAMPLES},
    run=_conduct,
    bounds=_forecast,
)
