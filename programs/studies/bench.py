"""The bench of a study: the two effects of a compiler, on tasks, within one budget.

An experiment is a compiler's search that is after knowledge instead of a prompt: a coroutine over a
`cuesmith.teleprompters.runtime.run.Run`. So it has the compilers' budget, journal, resume and outages without a line
of its own, and the folder of a run can be diagnosed as any other. Source: ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dspy

from cuesmith.programs.diagnosis.embedders import Similarity, TfIdf
from cuesmith.programs.diagnosis.figures import Section
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

__all__ = [
    "Bench", "Experiment", "Findings", "Study", "by_example", "check_amount", "labels_of", "one_task",
    "task_with",
]  # fmt: skip

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
        question: What it asks, as one sentence.
        families: Generated tasks that it works on by default.
        sizes: Of those tasks' splits.
        n: How large it is by default.
        unit: What `n` counts, as in "refinements an arm".
        fewest: The smallest `n` that its tests make sense with.
        conduct: (bench, tasks, n) -> what was found; raises ValueError if the tasks do not fit.
        forecast: (tasks, n) -> upper bounds of its calls.
        several: Whether it takes more than one task.
    """

    name: str
    question: str
    families: tuple[str, ...]
    sizes: Sizes
    n: int
    unit: str
    fewest: int
    conduct: Callable[[Bench, Sequence[Task], int], Findings]
    forecast: Callable[[Sequence[Task], int], Forecast]
    several: bool = False


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
        self._budget = budget or Budget()
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
            f"study {name}", experiment, self.student(task), Metric(task.metric), split, self.target, self.optimizer,
            left, self.seed, self.max_in_flight, 600.0, self._folder(name), callbacks=self.callbacks)
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

    def compile(self, name: str, task: Task, compiler: str, *, share: float = 1.0, **options: object
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
                    self.student(task), compiler, metric=task.metric, trainset=task.train, valset=task.validation,
                    run_dir=self._folder(name), optimizer_lm=self.optimizer, budget=left, seed=self.seed,
                    max_in_flight=self.max_in_flight, callbacks=self.callbacks, progress=False, **options)
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


def one_task(name: str, tasks: Sequence[Task], n: int, *, fewest: int, train: int) -> Task:
    """Return the task of a study that is about one.

    Args:
        name: Of the study.
        tasks: What was given.
        n: How large the study is to be.
        fewest: The smallest n.
        train: Training examples it needs at least.

    Raises:
        ValueError: If they do not fit the study.
    """
    if len(tasks) != 1:
        raise ValueError(f"study {name} is about one task, got {len(tasks)}")
    if n < fewest:
        raise ValueError(f"study {name} needs n of at least {fewest}, got {n}")
    if len(tasks[0].train) < train:
        raise ValueError(f"study {name} needs at least {train} training examples to find errors on, "
                         f"and {tasks[0].name} has {len(tasks[0].train)}")
    return tasks[0]


def task_with(tasks: Sequence[Task], **least: int) -> Task:
    """Return the task of a study that is about one.

    Args:
        tasks: What was given.
        **least: Split -> examples of it that the study needs.

    Raises:
        ValueError: If they do not fit the study.
    """
    if len(tasks) != 1:
        raise ValueError(f"this study takes one task, got {len(tasks)}")
    task = tasks[0]
    for split, needed in least.items():
        count = len(getattr(task, split))
        if count < needed:
            raise ValueError(f"{task.name}: the study needs {needed} {split} examples, the task has {count}")
    return task


def check_amount(tasks: Sequence[Task], n: int, *, fewest: int, unit: str) -> None:
    """Check the size of a study of one task or more.

    Args:
        tasks: What was given.
        n: How large the study is to be.
        fewest: The smallest n.
        unit: What `n` counts.

    Raises:
        ValueError: If there is no task, or `n` is too small.
    """
    if not tasks:
        raise ValueError("the study needs at least one task")
    if n < fewest:
        raise ValueError(f"n = {n} {unit} are too few: at least {fewest} are needed")


def labels_of(tasks: Sequence[Task]) -> list[str]:
    """Return the tasks' names, made different where two are the same."""
    names = [task.name for task in tasks]
    return [name if names.count(name) == 1 else f"{name}-{k}" for k, name in enumerate(names, 1)]
