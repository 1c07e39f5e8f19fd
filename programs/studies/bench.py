"""The bench of a study: the two effects of a compiler, on tasks, within one budget.

An experiment is a compiler's search that is after knowledge instead of a prompt: a coroutine over a
`cuesmith.teleprompters.runtime.run.Run`. So it has the compilers' budget, journal, resume and outages without a line
of its own, and the folder of a run can be diagnosed as any other. Source: ours.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import dspy

from cuesmith.programs.diagnosis.embedders import Similarity, TfIdf
from cuesmith.programs.diagnosis.figures import Section
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.teleprompters.compiler import check_prices
from cuesmith.teleprompters.registry import compile
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Forecast, Note
from cuesmith.teleprompters.runtime.events import Callback
from cuesmith.teleprompters.runtime.interruption import run_coroutine
from cuesmith.teleprompters.runtime.ledger import Budget, Spent
from cuesmith.teleprompters.runtime.metric import Metric
from cuesmith.teleprompters.runtime.outcomes import Outcome
from cuesmith.teleprompters.runtime.remarks import OF_A_COMPILE
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import CAPS, CompileError, Job, Session
from cuesmith.teleprompters.runtime.splitting import Split

Experiment = Callable[[Run], Awaitable[None]]
"""Asks and scores, and keeps what it finds as it goes: a stop (`RunStopped`) unwinds it; what it has kept counts."""


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        result: The typed result, with every number behind the figures: a dataclass.
        sections: The report's parts.
        limits: Sentences on what the figures do not show.
    """

    result: object
    sections: tuple[Section, ...]
    limits: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A ready study.

    Attributes:
        name: As the command line has it.
        families: Generated tasks that it works on by default.
        sizes: Of those tasks' splits.
        n: How large it is by default.
        unit: What `n` counts, as in "refinements an arm".
        fewest: The smallest `n` that its tests make sense with.
        run: (bench, tasks, n) -> what was found.
        bounds: (tasks, n) -> upper bounds of its calls.
        needs: Split -> examples of it that each task has at least.
        several: Whether it takes more than one task.
    """

    name: str
    families: tuple[str, ...]
    sizes: Sizes
    n: int
    unit: str
    fewest: int
    run: Callable[[Bench, Sequence[Task], int], Findings]
    bounds: Callable[[Sequence[Task], int], Forecast]
    needs: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    several: bool = False

    @property
    def question(self) -> str:
        """What it asks, as one sentence."""
        return STUDIES[self.name]

    def conduct(self, bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
        """Run the study; see its module.

        Args:
            bench: What to work with.
            tasks: What it is about.
            n: How large it is, in its unit.

        Raises:
            ValueError: Before any call, if the tasks or `n` do not fit.
            CompileError: If the program has no score although no cap was reached.
        """
        self._check(tasks, n)
        return self.run(bench, tasks, n)

    def forecast(self, tasks: Sequence[Task], n: int) -> Forecast:
        """Return upper bounds of the study's calls.

        Raises:
            ValueError: As `conduct`.
        """
        self._check(tasks, n)
        return self.bounds(tasks, n)

    def _check(self, tasks: Sequence[Task], n: int) -> None:
        if not tasks or (len(tasks) > 1 and not self.several):
            raise ValueError(f"study {self.name} is about one task{' or more' * self.several}, got {len(tasks)}")
        if n < self.fewest:
            raise ValueError(f"study {self.name} needs n of at least {self.fewest}, got {n} {self.unit}")
        for task, (split, least) in itertools.product(tasks, self.needs.items()):
            if len(getattr(task, split)) < least:
                raise ValueError(
                    f"study {self.name} needs at least {least} {split} examples, and {task.name} has "
                    f"{len(getattr(task, split))}"
                )


class Bench:
    """What a study works with.

    Args:
        target: The model that programs run on.
        optimizer: The model that reflects, writes and judges.
        budget: Caps over the whole study.
        seed: Seeds every decision.
        run_dir: Keeps journals, one folder a run; a study that is given it again goes on there.
        max_in_flight: Calls at once.
        callbacks: Get the events of every run.
        program: Makes the program that is studied on a task; by default one step of reasoning, then the answer.
        similarity: How alike texts are; by default by their words. No cap holds the calls of an embedder.

    Attributes:
        spent: What all runs used so far.
        stopped_by: The cap or failure that ended a run early; None if none did.
        notes: What the runs had to say.

    Raises:
        ValueError: If a cap in dollars cannot be held.
    """

    def __init__(
        self,
        target: dspy.BaseLM,
        optimizer: dspy.BaseLM,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        run_dir: Path | None = None,
        max_in_flight: int = 32,
        callbacks: Sequence[Callback] = (),
        program: Callable[[Task], dspy.Module] = lambda task: dspy.ChainOfThought(task.signature),
        similarity: Similarity | None = None,
    ) -> None:
        self.student = program
        self.similarity: Similarity = similarity or TfIdf()
        self.target, self.optimizer = target, optimizer
        self.seed, self.run_dir, self.max_in_flight = seed, run_dir, max_in_flight
        self.callbacks = tuple(callbacks)
        self.spent = Spent()
        self.stopped_by: str | None = None
        self.notes: list[Note] = []
        self._budget = Budget.of(budget)
        check_prices(self._budget, [target, optimizer])

    def conduct(self, name: str, task: Task, experiment: Experiment, *, share: float = 1.0) -> None:
        """Run an experiment on a task: its train and validation examples are the run's `train` and `select`.

        The student is scored on the validation examples first. Test examples can be scored as any others.

        Args:
            name: Of the run, different for each of a study.
            task: The task.
            experiment: What to do. Its stop is not raised here: see `stopped_by`.
            share: The part of what is left of the budget that it may use.

        Raises:
            CompileError: If the student has no score although no cap was reached.
        """
        left = self._left(share)
        if left is None:
            return
        split = Split(tuple(task.train), tuple(task.validation), ())
        job = Job(
            f"study {name}",
            experiment,
            self.student(task),
            Metric(task.metric),
            split,
            self.target,
            self.optimizer,
            left,
            self.seed,
            self.max_in_flight,
            600.0,
            self._folder(name),
            callbacks=self.callbacks,
        )
        with dspy.context(lm=self.target):
            session = Session(job)
            try:
                run_coroutine(session.compile)
            except CompileError as error:
                if error.stopped_by not in CAPS:
                    raise
            finally:
                self._count(session.ledger.spent(), session.gate.stopped_by)
        said = (note for note in session.effects.notes if note.kind not in OF_A_COMPILE)
        self.notes = list(dict.fromkeys([*self.notes, *said]))

    def compile(
        self, name: str, task: Task, compiler: str, *, share: float = 1.0, **options: object
    ) -> dspy.Module | None:
        """Compile the student on a task, within what is left.

        Args:
            name: Of the run, different for each of a study.
            task: The task; its validation examples are for selection and report.
            compiler: As `cuesmith.compile` takes it.
            share: The part of what is left of the budget that it may use.
            **options: The compiler's own.

        Returns:
            The compiled program with its `compilation`; None if the budget was not enough for anything.

        Raises:
            CompileError: If the student has no score although no cap was reached.
        """
        left = self._left(share)
        if left is None:
            return None
        try:
            with dspy.context(lm=self.target):
                compiled = compile(
                    self.student(task),
                    compiler,
                    metric=task.metric,
                    trainset=task.train,
                    valset=task.validation,
                    run_dir=self._folder(name),
                    optimizer_lm=self.optimizer,
                    budget=left,
                    seed=self.seed,
                    max_in_flight=self.max_in_flight,
                    callbacks=self.callbacks,
                    progress=False,
                    **options,
                )
        except CompileError as error:
            self._count(error.spent, error.stopped_by)
            if error.stopped_by not in CAPS:
                raise
            return None
        self._count(compiled.compilation.spent, compiled.compilation.stopped_by)
        return compiled

    def _folder(self, name: str) -> Path | None:
        return None if self.run_dir is None else self.run_dir / name

    def _count(self, spent: Spent, stopped_by: str | None) -> None:
        self.spent = self.spent + spent
        self.stopped_by = self.stopped_by or stopped_by

    def _left(self, share: float) -> Budget | None:
        """Return the part of the budget that is left; None if a cap is reached, and note which."""
        left = self._budget
        for name, amount in self._budget.less(self.spent.total, self.spent.seconds).items():
            rest = int(amount * share) if name in ("calls", "tokens") else amount * share
            if rest <= 0:
                self.stopped_by = self.stopped_by or name
                return None
            left = replace(left, **{name: rest})  # type: ignore[arg-type]
        return left


async def by_example(
    run: Run,
    candidates: Sequence[Candidate],
    examples: Sequence[dspy.Example],
    kept: dict[tuple[str, int], Outcome],
    *,
    draw: int = 0,
) -> None:
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


def labels_of(tasks: Sequence[Task]) -> list[str]:
    """Return the tasks' names, made different where two are the same."""
    names = [task.name for task in tasks]
    return [name if names.count(name) == 1 else f"{name}-{k}" for k, name in enumerate(names, 1)]
