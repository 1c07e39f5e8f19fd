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

from cuesmith.programs.diagnosis.following import Response, check, rules_of
from cuesmith.programs.diagnosis.record import passed
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.studies.bench import Bench, Findings, Study, by_example
from cuesmith.programs.studies.checks import task_with
from cuesmith.programs.studies.demonstrations_analysis import FEWEST_REFINEMENTS, THRESHOLD, Factorial, analyse
from cuesmith.programs.studies.demonstrations_report import limits, sections
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.teleprompters.abo import ABO
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.outcomes import Outcome, value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.examples import read_failure

__all__ = ["STUDY", "conduct", "forecast"]

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


# --- the study ---------------------------------------------------------------------------------------------


def conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    """Run the study; see the module.

    Args:
        bench: What to work with.
        tasks: One task.
        n: Refinements at most.

    Raises:
        ValueError: If the task does not fit.
    """
    task, kept = task_with(tasks, test=FEWEST_EXAMPLES), _Kept()
    bench.conduct("demonstrations", task, lambda run: _refine_and_compare(run, task, n, kept))
    return _findings(kept, bench.stopped_by, seed=bench.seed)


def _findings(kept: _Kept, stopped_by: str | None, *, seed: int = 0) -> Findings:
    """Analyse what was collected, all or a part of it."""
    texts = tuple(one.prompts[kept.name].instructions for one in kept.compared())
    result = replace(analyse(kept.data(), seed=seed), instructions=texts)
    told = limits(result, written=kept.written, examples=len(kept.examples), stopped_by=stopped_by)
    return Findings(result, sections(result), tuple(told))


def forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Return upper bounds of the study's calls."""
    asked = runs = 0
    for task in tasks:
        plans = [search.plan(1, len(task.validation), len(task.train)) for _, search in _searches(task, n)]
        asked += sum(plan.optimizer_calls for plan in plans)
        runs += sum(plan.program_runs for plan in plans) + (1 + 3 * n) * len(task.test)
    return Forecast(asked, runs, asked + runs)


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
