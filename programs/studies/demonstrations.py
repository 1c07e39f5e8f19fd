"""Does a refined instruction need demonstrations to change what the model does? A 2 x 2 factorial experiment.

ABO writes refined instructions as numbered steps, each with demonstrations of following them. Here the two are taken
apart: the student's own instruction or the refined one, without or with those demonstrations, all four on examples
that no choice has seen. Source: 2402.02101 section 6 (without its demonstrations a refined instruction is not followed,
and the gain is lost); design and statistics are ours.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import dspy
import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.association import holm
from cuesmith.programs.diagnosis.figures import Curve, Figure, Section, percent
from cuesmith.programs.diagnosis.following import Response, check, rules_of
from cuesmith.programs.diagnosis.record import passed
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.studies.bench import Bench, Findings, Study
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.teleprompters.abo import ABO
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.outcomes import Outcome, value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95, paired_gain, t975
from cuesmith.teleprompters.search.deviations import read_failure

__all__ = ["STUDY", "Cell", "Demonstrations", "Effect", "Factorial", "Followed", "analyse", "by_example",
           "two_way_interval", "two_way_sign_flip"]

Floats = NDArray[np.float64]

EFFECTS = ("instruction alone", "demonstrations added to the instruction", "demonstrations alone", "both together",
           "interaction")
FAMILIES = ((0, 1), (2, 3, 4))
"""Effects that are corrected together: the two that answer the question, and the others."""
FEWEST_EXAMPLES = 20
"""Test examples of a task."""
FEWEST_SCORED = 10
"""Examples with scores in all cells; with fewer nothing is said. Ours."""
FIRST = 4
"""Refinements that are compared before ABO's whole search, so that a budget that ends early leaves something. Ours."""
FEWEST_REFINEMENTS = 7
"""With fewer not every family can reach 5 % by a sign-flip test over refinements and Holm's correction:
3 x 2 / 2 ** 7 = 4.7 %."""
DRAWS = 10_000
THRESHOLD = 1.0


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
class Effect:
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
    change: Effect
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
    effects: tuple[Effect, ...]
    following: Followed | None
    least: float
    instructions: tuple[str, ...] = ()


# --- statistics ----------------------------------------------------------------------------------------------


def two_way_sign_flip(matrix: Floats, *, seed: int = 0) -> float:
    """Test whether the mean is 0 where rows and columns are both samples: two-sided p-value.

    The means of rows and of columns get random signs, independently: the variance of the sum of both is at least that
    of the grand mean, whichever of the two varies (as the pigeonhole bootstrap's, Owen 2007). The result is never below
    the exact test over the rows alone, of which there are few. Source: Fisher 1935 for each side; together ours.

    Args:
        matrix: Differences; rows are refinements, columns examples.
        seed: Seeds the signs.
    """
    rows, columns, rng = matrix.mean(axis=1), matrix.mean(axis=0), np.random.default_rng(seed)
    drawn = sum((2.0 * rng.integers(0, 2, (DRAWS, len(side))) - 1.0) @ side / len(side) for side in (rows, columns))
    extreme = int((np.abs(drawn) >= abs(float(matrix.mean())) - 1e-9).sum())
    return max((extreme + 1) / (DRAWS + 1), paired_gain([0.0] * len(rows), rows.tolist()).p_value)


def two_way_interval(matrix: Floats, *, seed: int = 0) -> Estimate95:
    """Return the mean with the interval of drawing rows and columns anew, both with replacement (Owen 2007).

    The percentiles are widened for the small number of rows as Student's t is (expanded percentiles, Hesterberg 2015).
    Where all values are equal the bootstrap knows nothing: then it is Wilson's for the columns, if they are 0 or 1.

    Args:
        matrix: Rows are refinements, columns examples.
        seed: Seeds the draws.
    """
    n, mean = matrix.shape[1], float(matrix.mean())
    if np.ptp(matrix) == 0.0:
        return estimate95([mean] * n)
    rng = np.random.default_rng(seed)
    return _interval(mean, (_drawn(rng, matrix.shape[0]) @ matrix * _drawn(rng, n)).sum(axis=1), matrix.shape)


def _drawn(rng: np.random.Generator, n: int) -> Floats:
    """How often each of n is drawn in n draws, as shares; one row a resample."""
    return np.asarray(rng.multinomial(n, np.full(n, 1 / n), size=2_000) / n, dtype=np.float64)


def _interval(mean: float, drawn: Floats, shape: tuple[int, ...]) -> Estimate95:
    few, known = min(shape), drawn[np.isfinite(drawn)]
    if few < 2 or not len(known):
        return Estimate95(mean, math.nan, math.nan, shape[1])
    tail = NormalDist().cdf(-math.sqrt(few / (few - 1)) * t975(few - 1))
    low, high = np.quantile(known, (tail, 1 - tail))
    return Estimate95(mean, float(low), float(high), shape[1])


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
        Effect(name, two_way_interval(one, seed=seed), p, adjusted)
        for name, one, p, adjusted in zip(EFFECTS, contrasts, tests, corrected, strict=True))
    cells = (
        Cell(False, False, estimate95(base.tolist()), (float(base.mean()),) * r),
        *(Cell(refined, with_, two_way_interval(m, seed=seed), tuple(m.mean(axis=1).tolist()))
          for refined, with_, m in ((False, True, shown), (True, False, alone), (True, True, both))))
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
        change=Effect("steps followed", two_way_interval(shown - without, seed=seed), p, p),
        worth_without=_worth(without, data.instruction[:, checked], seed),
        worth_shown=_worth(shown, data.both[:, checked], seed),
    )


def _worth(shares: Floats, scores: Floats, seed: int) -> Estimate95:
    """P(correct | all followed) - P(correct | not), over refinements and examples; nan if a group is empty."""
    full, right = (shares >= 1.0).astype(float), (scores >= THRESHOLD).astype(float)
    rng = np.random.default_rng(seed)
    rows, columns = (_drawn(rng, k) for k in full.shape)
    parts = (full * right, full, (1 - full) * right, 1 - full)
    drawn = [((rows @ part) * columns).sum(axis=1) for part in parts]
    whole = [np.asarray(part.sum()) for part in parts]
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may have an empty group: nan, left out
        mean, values = (top[0] / top[1] - top[2] / top[3] for top in (whole, drawn))
    return _interval(float(mean), np.asarray(values), full.shape)


# --- the experiment ------------------------------------------------------------------------------------------


async def by_example(run: Run, candidates: Sequence[Candidate], examples: Sequence[dspy.Example],
                     kept: dict[tuple[str, int], Outcome], *, draw: int = 0) -> None:
    """Score example by example and keep what is complete, so that a cap leaves whole comparisons.

    Args:
        run: The run.
        candidates: What to score.
        examples: On what.
        kept: Gets the outcomes, by candidate's id and the example's place.
        draw: As `Run.score` has it.

    Raises:
        RunStopped: As `Run.score`, once all that was under way is kept.
    """

    async def one(place: int, example: dspy.Example) -> None:
        for scores in await run.score(candidates, [example], draw=draw):
            kept[scores.candidate.id, place] = scores.outcomes[0]

    ended = await asyncio.gather(*(one(k, e) for k, e in enumerate(examples)), return_exceptions=True)
    for error in ended:
        if error is not None:
            raise error


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
            [self.scores(a) for a, _ in parts], [self.scores(b) for _, b in parts],
            [self.scores(c) for c in refined],
            [self.shares(a) for a, _ in parts], [self.shares(c) for c in refined])
        base = np.array(self.scores(self.student) if self.student is not None else [], dtype=float)
        return Factorial(base, *(np.array(one, dtype=float).reshape(shape) for one in columns))


def _part(one: Candidate) -> Origin:
    return Origin("part", (one.id,))


def _abo(task: Task, initial: int, steps: int = 1) -> ABO:
    """ABO in a small setting."""
    return ABO(metric=task.metric, search="native", initial=initial, width=2, branch=2, steps=steps, minibatch=12,
               errors=4)


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


def conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    """Run the study; see the module.

    Args:
        bench: What to work with.
        tasks: One task.
        n: Refinements at most.

    Raises:
        ValueError: If the task does not fit.
    """
    if len(tasks) != 1:
        raise ValueError(f"this study takes one task, got {len(tasks)}")
    task, kept = tasks[0], _Kept()
    if len(task.test) < FEWEST_EXAMPLES:
        raise ValueError(f"{task.name}: the study needs {FEWEST_EXAMPLES} test examples, the task has {len(task.test)}")
    bench.conduct("demonstrations", task, lambda run: _refine_and_compare(run, task, n, kept))
    return _findings(kept, bench.stopped_by, seed=bench.seed)


def forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Return upper bounds of the study's calls."""
    asked = runs = 0
    for task in tasks:
        plans = [search.plan(1, len(task.validation), len(task.train)) for _, search in _searches(task, n)]
        asked += sum(plan.optimizer_calls for plan in plans)
        runs += sum(plan.program_runs for plan in plans) + (1 + 3 * n) * len(task.test)
    return Forecast(asked, runs, asked + runs)


# --- the report ----------------------------------------------------------------------------------------------


def _findings(kept: _Kept, stopped_by: str | None, *, seed: int = 0) -> Findings:
    """Analyse what was collected, all or a part of it."""
    texts = tuple(one.prompts[kept.name].instructions for one in kept.compared())
    result = replace(analyse(kept.data(), seed=seed), instructions=texts)
    return Findings(result, sections(result), tuple(_limits(result, kept, stopped_by)))


def sections(result: Demonstrations) -> tuple[Section, ...]:
    """Put the result into figures, each with what it means and what to do about it."""
    if not result.cells:
        return (Section("Instruction and demonstrations", _missing(result), ()),)
    figures = (*map(_cell, result.cells), *(_effect(one, result.refinements) for one in result.effects))
    both = (Section("Instruction and demonstrations", _summary(result), figures, _curves(result)),)
    return both if result.following is None else (*both, _following(result.following, result.refinements))


def _missing(result: Demonstrations) -> str:
    if not result.refinements:
        return "ABO found no steps with demonstrations of following them, so there was nothing to compare."
    return (f"Too few examples have a score in all four cells ({result.examples}), so nothing can be said of the "
            f"{result.refinements} refined instructions.")


def _summary(result: Demonstrations) -> str:
    effect = {one.name: one for one in result.effects}
    alone, added, shown, both = (effect[name] for name in EFFECTS[:4])
    if result.least >= 0.05:
        return (f"With {result.refinements} different refined instructions no effect can be shown beyond chance: "
                f"{FEWEST_REFINEMENTS} are needed. The means below are a first impression.")
    if added.sign > 0 and alone.sign > 0:
        said = f"Partly: the refined instruction alone changes the score by {_points(alone)}, demonstrations add " \
               f"{_points(added)}."
    elif added.sign > 0:
        said = f"Yes: demonstrations add {_points(added)} to a refined instruction, which alone was not shown to help."
    elif added.sign < 0:
        said = f"Reversed: demonstrations change the score of a refined instruction by {_points(added)}."
    elif alone.sign > 0:
        said = f"No: the refined instruction alone changes the score by {_points(alone)}, and demonstrations were " \
               "not shown to add anything to it."
    elif alone.sign < 0:
        said = f"The refined instruction makes the score worse ({_points(alone)}), with demonstrations or without."
    else:
        said = "Nothing was shown: neither the refined instruction alone nor demonstrations added to it change the " \
               "score beyond chance."
    if shown.sign and (not both.sign or abs(shown.value.mean) >= 0.9 * abs(both.value.mean)):
        return f"{said} The same demonstrations under the student's own instruction change it by {_points(shown)}."
    return said


def _points(effect: Effect) -> str:
    points = round(100 * effect.value.mean)
    return f"{points:+d} point{'s' * (abs(points) != 1)}"


def _cell(cell: Cell) -> Figure:
    what = "refined instruction" if cell.instruction else "student's own instruction"
    how = "with demonstrations" if cell.demonstrations else "without demonstrations"
    over = "refinements and examples" if cell.instruction or cell.demonstrations else "examples"
    return Figure(
        f"Score, {what}, {how} (%)", *percent(cell.score), cell.score.n, None,
        f"The mean score on fresh examples, with an interval over {over}.",
        "Compare the four cells; what separates them is tested below.")


_ADVICE = {
    "instruction alone": (
        "The instruction is worth having also where there is no room for demonstrations.",
        "Do not use these refined instructions without demonstrations.",
        "Do not expect a better instruction by itself to change what this model does."),
    "demonstrations alone": (
        "Try demonstrations before you pay for a search over instructions.",
        "Do not give demonstrations without the instruction that they follow.",
        "Demonstrations need the instruction that they follow."),
    "both together": (
        "ABO helps on this task: use its prompts as they are.",
        "Keep the student's prompt: ABO's are worse.",
        "Keep the student's prompt, or try a larger search or another optimizer model."),
    "demonstrations added to the instruction": (
        "Keep the demonstrations: what they cost in tokens is paid back.",
        "Leave the demonstrations out.",
        "Demonstrations may be left out to save tokens; check the interval for what that could cost."),
    "interaction": (
        "Change instruction and demonstrations together: each makes the other worth more.",
        "One of the two is enough: take the cheaper one.",
        "Take the two as separate improvements."),
}
"""Effect -> advice where it is above 0, below 0, and not shown."""

_MEANING = {
    "instruction alone": "So much does the refined instruction change the score without demonstrations",
    "demonstrations alone": "So much do the demonstrations change the score under the student's own instruction",
    "both together": "So much do the refined instruction and its demonstrations change the score together",
    "demonstrations added to the instruction": "So much do demonstrations change the score of the refined instruction",
    "interaction": "So much more do both change the score together than the sum of each alone (below 0 also where one "
                   "alone leaves no room to improve)",
}


def _effect(effect: Effect, refinements: int) -> Figure:
    up, down, nothing = _ADVICE[effect.name]
    family = next(family for family in FAMILIES if EFFECTS.index(effect.name) in family)
    return Figure(
        f"Effect: {effect.name} (points)", *percent(effect.value), effect.value.n, effect.adjusted,
        f"{_MEANING[effect.name]} (sign-flip test over {refinements} refinements and the examples, Holm-corrected for "
        f"{len(family)} effects).",
        {1: up, -1: down, 0: nothing}[effect.sign])


def _curves(result: Demonstrations) -> tuple[Curve, ...]:
    alone, both = (next(c for c in result.cells if c.instruction and c.demonstrations is d) for d in (False, True))
    pairs = sorted(zip(alone.each, both.each, strict=True))
    axes = ("score without demonstrations (%)", "score with demonstrations (%)")
    return (Curve("refined instructions", [100 * a for a, _ in pairs], [100 * b for _, b in pairs], *axes, points=True),
            Curve("no difference", [0.0, 100.0], [0.0, 100.0], *axes))


def _following(found: Followed, refinements: int) -> Section:
    change = found.change
    could = 2 / 2**refinements < 0.05
    said = f"Responses follow {100 * found.without.mean:.0f} % of the steps without demonstrations and " \
           f"{100 * found.shown.mean:.0f} % with them: " \
           + ("a difference beyond chance." if change.sign else
              "no difference beyond chance." if could else "too few refinements to tell chance from effect.")
    figures = (
        _share("Steps followed without demonstrations (%)", found.without),
        _share("Steps followed with demonstrations (%)", found.shown),
        Figure("Steps followed, with less without demonstrations (points)", *percent(change.value), change.value.n,
               change.p_value, "So much do demonstrations change the share of the steps that a response follows "
               "(sign-flip test over refinements and examples).",
               "Demonstrations make the model follow: use them." if change.sign > 0 else
               "Demonstrations make the model follow less: leave them out." if change.sign < 0 else
               "If the share is high without demonstrations, the model needs none in order to follow."),
        _value("without", found.worth_without), _value("with", found.worth_shown))
    return Section("Are the steps followed?", said, figures)


def _share(name: str, share: Estimate95) -> Figure:
    return Figure(
        name, *percent(share), share.n, None,
        "The mean share of the prompt's steps that have their label, in order and with work under it.",
        "Below 90, write fewer and smaller steps, or take a stronger target model." if share.mean < 0.9 else
        "Nothing needs to be done.")


def _value(how: str, worth: Estimate95) -> Figure:
    known = math.isfinite(worth.mean)
    return Figure(
        f"Right answers when all is followed, less when not, {how} demonstrations (points)", *percent(worth), worth.n,
        None,
        "Responses that follow every step are right so much more often than others, which may also be due to easier "
        "inputs (no test)." if known else "All responses follow every step alike, or none does: nothing to compare.",
        "If the interval lies above 0, make the model follow; else do not ask for following for the score's sake.")


def _limits(result: Demonstrations, kept: _Kept, stopped_by: str | None) -> Iterator[str]:
    yield (f"{result.refinements} refined instructions with demonstrations and {result.examples} fresh examples were "
           f"compared; ABO wrote {kept.written} different instructions.")
    if stopped_by is not None:
        yield f"The study was stopped by {stopped_by} and rests on what was scored until then."
    if result.cells and result.examples < len(kept.examples):
        yield f"{len(kept.examples) - result.examples} examples lack a score in some cell and were left out."
    if result.effects:
        yield ("Two families of effects are tested, each at 5 % by Holm: the two that answer the question, and the "
               "other three; the test of following stands by itself.")
        width = result.effects[1].value
        if math.isfinite(width.low):
            yield (f"To be found in four of five such studies, an effect of added demonstrations has to be about "
                   f"{max(1, math.ceil(70 * (width.high - width.low)))} points or more.")
    yield ("The refinements are those that ABO scored best with their demonstrations, from one search: what holds for "
           "instructions of another origin is not shown, and their being chosen together may favour the pair.")
    yield "A step counts as followed by rule: label, order and work under it; whether the work is right is not checked."


STUDY = Study(
    name="demonstrations",
    question=STUDIES["demonstrations"],
    families=("objects",),
    sizes=Sizes(train=40, validation=30, test=100),
    n=10,
    unit="refinements",
    fewest=FEWEST_REFINEMENTS,
    conduct=conduct,
    forecast=forecast,
)
