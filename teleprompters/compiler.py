"""The base of all compilers: dspy's Teleprompter contract around a pure `search`.

Source: ours. A subclass writes `search`, and `plan` for the estimate; everything else is inherited.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Never, TypedDict

import dspy
from dspy.teleprompt import Teleprompter

from cuesmith.teleprompters.runtime._dspy import has_no_price, is_free, named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.checks import check_known, folder, number, whole
from cuesmith.teleprompters.runtime.compilation import Compiled, CompileWarning, Forecast, Note, Plan
from cuesmith.teleprompters.runtime.events import Callback
from cuesmith.teleprompters.runtime.executors import Parcel, Remote, parcel, remote_of
from cuesmith.teleprompters.runtime.interruption import Interruption, warn
from cuesmith.teleprompters.runtime.ledger import Budget, UnknownPrice
from cuesmith.teleprompters.runtime.metric import Metric, MetricFunction
from cuesmith.teleprompters.runtime.preflight import check_corpus, check_gold, check_inputs, check_parts, takes
from cuesmith.teleprompters.runtime.remarks import few_fresh
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import Job, Session
from cuesmith.teleprompters.runtime.splitting import Split, split_examples

FRESH_EXAMPLES = 100
"""Examples of the final report at most. Ours."""


class Options(TypedDict, total=False):
    """The options that every compiler takes; `Compiler` says what they mean."""

    optimizer_lm: dspy.BaseLM | str | None
    budget: Budget | None
    seed: int
    max_in_flight: int
    callbacks: Callback | Sequence[Callback]
    progress: bool | None
    example_timeout: float | None
    hedge: float | None
    executor: object


class Compiler(Teleprompter):  # type: ignore[misc]
    """A teleprompter whose search is a pure function of two effects.

    Args:
        metric: `f(example, prediction)`, `f(example, prediction, trace)` or dspy's five-argument form; sync or
            async; returns a bool, a number, or `dspy.Prediction(score=..., feedback=..., objective_scores={...})`.
            If it has a method `corpus(examples, predictions)`, candidates are compared and reported by that value
            (`cuesmith.corpus` has macro F1 and others); scores of single examples then show successes and failures.
        optimizer_lm: The model that writes prompts: a `dspy.LM` or a LiteLLM model string. Default is the
            configured LM.
        budget: Hard caps over all roles; None for no cap.
        seed: Seeds every decision of the search.
        max_in_flight: Program runs and optimizer calls at once.
        callbacks: Called with every event (`cuesmith.teleprompters.runtime.events`): a function, or several.
        progress: Whether to show how far a compile is, on standard error if that is a terminal. None: unless there
            are callbacks, which may show it themselves.
        example_timeout: Seconds one example or one optimizer call may take before it counts as missing; None
            waits for ever.
        hedge: A call that takes more than so many times the median of its role and model is sent once more, where the
            budget allows it; both count, and the first answer is taken. None: never.
        executor: Where programs and metrics run: a `dask.distributed.Client`, a `cuesmith.RayExecutor`, any
            `concurrent.futures.Executor` of processes, or a `cuesmith.Remote` that says more. Everything else stays in
            this process: search, requests to the optimizer, caps, journal. None: programs run here, on threads.

    Raises:
        TypeError: If an argument is of the wrong kind, or there is none of that name.
        ValueError: If a number is out of range.
    """

    scoring: int = 50
    """Selection examples a candidate is scored on at most. Ours."""

    def __init__(
        self,
        metric: MetricFunction,
        *,
        optimizer_lm: dspy.BaseLM | str | None = None,
        budget: Budget | None = None,
        seed: int = 0,
        max_in_flight: int = 32,
        callbacks: Callback | Sequence[Callback] = (),
        progress: bool | None = None,
        example_timeout: float | None = 600.0,
        hedge: float | None = None,
        executor: object = None,
        **unknown: Never,  # what no class on the way here has taken: told with what there is
    ) -> None:
        check_known(type(self).__name__, unknown, self.options())
        super().__init__()
        self.metric = metric
        Metric(metric)
        self.optimizer_lm = optimizer_model(optimizer_lm)
        self.budget = Budget.of(budget)
        self.seed = whole("seed", seed, least=0)
        self.max_in_flight = whole("max_in_flight", max_in_flight, least=1)
        # Not `self.callbacks`: dspy takes an attribute of that name for a list of its own callback objects.
        self.observers = _callbacks(callbacks)
        if not isinstance(progress, bool | None):
            raise TypeError(f"progress must be True, False or None, got {progress!r}")
        self.progress = progress
        if example_timeout is not None and not example_timeout > 0:
            raise ValueError(f"example_timeout={example_timeout!r} must be a positive number of seconds, or None")
        self.example_timeout = example_timeout
        self.hedge = None if hedge is None else number("hedge", hedge, least=1, above=True)
        self.remote = remote_of(executor)

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Return the names of all keyword-only options that the constructor takes, its own before inherited ones."""
        own = (vars(each).get("__init__") for each in cls.__mro__ if issubclass(each, Compiler))
        inits = [init for init in own if init is not None]
        found = (p for init in inits for p in inspect.signature(init).parameters.values())
        return tuple(dict.fromkeys(p.name for p in found if p.kind is p.KEYWORD_ONLY))

    def __rshift__(self, other: Compiler) -> Compiler:
        """Return a compiler that goes on with `other` from where this one ends (`teleprompters/chain.py`)."""
        if not isinstance(other, Compiler):
            return NotImplemented
        chain = importlib.import_module("cuesmith.teleprompters.chain")  # by its name: it stands floors above
        made: Compiler = chain.Chain([self, other])
        return made

    @abstractmethod
    async def search(self, run: Run) -> Candidate:
        """Search for a better candidate.

        Args:
            run: The two effects, and the examples. No other way to the outside world is used.

        Returns:
            The candidate to bind. A stop unwinds the search; the best so far is then taken from the run.
        """

    @abstractmethod
    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of what `search` asks for.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """

    def check_data(self, trainset: Sequence[dspy.Example]) -> None:
        """Raise if an option does not fit the examples; called before anything is paid for.

        Args:
            trainset: As given, at least one example with its inputs marked.

        Raises:
            ValueError: If one does not fit.
        """
        return

    def check_student(self, student: dspy.Module) -> None:
        """Raise if an option does not fit the student; called before anything is paid for.

        Args:
            student: As given, with at least one predictor.

        Raises:
            ValueError: If one does not fit.
        """
        return

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> Compiled:
        """Compile `student`; also callable where an event loop is running, e.g. in a notebook.

        Args:
            student: Any dspy module with at least one predictor; stays untouched.
            trainset: Examples with inputs marked by `with_inputs`. Without a valset they are shared out between
                evidence, selection and report.
            teacher: Not used by these compilers; must be None.
            valset: Examples for selection and report.
            run_dir: Directory of the run's journal. An existing run of the same arguments is resumed there, and
                no call that it completed is paid again.

        Returns:
            A compiled copy, with a `compilation` (`cuesmith.Compilation`).

        Raises:
            TypeError, ValueError: If an argument is wrong, or the program cannot be sent to `executor`'s workers;
                nothing has been called then.
            CompileError: If not even the student could be scored.
            JournalError: If `run_dir` is in use or holds another run.
            Interrupted: After Ctrl-C (a `KeyboardInterrupt`), and `Terminated` after SIGTERM: nothing more has been
                sent, and the best so far is the exception's `program`.
        """
        return Interruption().run(
            lambda: self._compiled(student, trainset=trainset, teacher=teacher, valset=valset, run_dir=run_dir)
        )

    async def acompile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> Compiled:
        """Compile `student` from async code. Arguments, result and errors are those of `compile`."""
        return await Interruption().arun(
            lambda: self._compiled(student, trainset=trainset, teacher=teacher, valset=valset, run_dir=run_dir)
        )

    async def _compiled(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> Compiled:
        if teacher is not None:
            raise ValueError(f"{type(self).__name__} takes no teacher: leave teacher=None")
        split = self._split(student, trainset, valset)
        task_lm, optimizer = self._models(student)
        job = Job(
            compiler=self.title,
            search=self.search,
            student=student,
            metric=Metric(self.metric),
            split=split,
            task_lm=task_lm,
            optimizer=optimizer,
            budget=self.budget,
            seed=self.seed,
            max_in_flight=self.max_in_flight,
            timeout=self.example_timeout,
            hedge=self.hedge,
            run_dir=folder("run_dir", run_dir),
            options=self._options(),
            forecast=self._forecast(student, split),
            shortest=self.shortest,
            called=self.called,
        )
        check_prices(self.budget, job.lms)
        if self.remote is not None:
            job = replace(job, parcel=self._parcel(self.remote, job))
        notes = await self._preflight(student, job.metric, trainset, valset, len(split.fresh))
        with _display(self.progress, bool(self.observers)) as display:
            callbacks = self.observers if display is None else (display, *self.observers)
            job = replace(job, notes=notes, callbacks=callbacks)
            return await Session(job).compile()

    def _parcel(self, remote: Remote, job: Job) -> Parcel:
        examples = [*job.split.train, *job.split.select, *job.split.fresh]
        return parcel(remote, job.student, job.metric, job.task_lm, examples, hedge=self.hedge, sized=self.budget.sizes)

    def estimate(
        self, student: dspy.Module, *, trainset: Sequence[dspy.Example], valset: Sequence[dspy.Example] | None = None
    ) -> Forecast:
        """Return upper bounds of what `compile` with these arguments would use; calls nothing.

        Raises:
            TypeError, ValueError: As `compile`.
        """
        return self._forecast(student, self._split(student, trainset, valset))

    def _forecast(self, student: dspy.Module, split: Split) -> Forecast:
        predictors = len(named_predictors(student))
        plan = self.plan(predictors, len(split.select), len(split.train))
        runs = plan.program_runs + len(split.select) + 2 * len(split.fresh)
        return Forecast(plan.optimizer_calls, runs, plan.optimizer_calls + runs * predictors)

    def _split(
        self, student: dspy.Module, trainset: Sequence[dspy.Example], valset: Sequence[dspy.Example] | None
    ) -> Split:
        check_program("student", student)
        self.check_student(student)
        check_examples("trainset", trainset, student)
        if not trainset:
            raise ValueError("trainset is empty: give at least one dspy.Example, better 20 or more")
        self.check_data(trainset)
        if valset is not None:
            check_examples("valset", valset, student)
        meant = check_inputs(student, trainset=trainset, valset=valset)
        split = split_examples(trainset, valset, seed=self.seed, n_select=self.scoring, n_fresh=FRESH_EXAMPLES)
        return replace(split, notes=(*split.notes, *meant))

    async def _preflight(
        self,
        student: dspy.Module,
        metric: Metric,
        trainset: Sequence[dspy.Example],
        valset: Sequence[dspy.Example] | None,
        n_fresh: int,
    ) -> tuple[Note, ...]:
        """Return what is worth knowing before the first paid call; what speaks against the metric is warned of."""
        gold = await check_gold(metric, trainset, student, self.success, valset or ())
        gold = (*gold, *check_corpus(metric, valset or trainset, student), *check_parts(student))
        for note in gold:
            if note.kind in ("gold", "parts"):
                warn(note.text, CompileWarning)
        few = few_fresh(n_fresh) if metric.corpus is None else None
        return (*gold, *((few,) if few else ()))

    @property
    def shortest(self) -> bool:
        """Whether of candidates that cannot be told apart the shortest is returned. Ours."""
        return False

    @property
    def title(self) -> str:
        """What records and displays call it: the class's name, with its module if it is the name of another here."""
        registry = importlib.import_module("cuesmith.teleprompters.registry")  # by its name: it stands floors above
        title: str = registry.title_of(type(self))
        return title

    @property
    def called(self) -> str:
        """The name by which `cuesmith.compile` knows it; of one that has none its title, in small letters."""
        registry = importlib.import_module("cuesmith.teleprompters.registry")  # by its name: it stands floors above
        name: str | None = registry.name_of(type(self))
        if name is not None:
            return name
        title = self.title
        return title if "." in title else re.sub("(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", title).lower()

    @property
    def success(self) -> float | None:
        """The score that the search counts as a success; None if it asks for none."""
        return None

    def _models(self, student: dspy.Module) -> tuple[dspy.BaseLM | None, dspy.BaseLM]:
        configured = dspy.settings.lm
        if configured is None and any(p.lm is None for _, p in named_predictors(student)):
            raise ValueError("no language model for the student: call dspy.configure(lm=...) or student.set_lm(...)")
        optimizer = self.optimizer_lm or configured
        if optimizer is None:
            raise ValueError("no optimizer model: give optimizer_lm=..., or call dspy.configure(lm=...)")
        return configured, optimizer

    def _options(self) -> Mapping[str, object]:
        """Return what distinguishes this compiler's search from another's of its class."""
        shared = {"metric", "optimizer_lm", "budget", "seed", "max_in_flight", "observers", "progress"}
        shared |= {"example_timeout", "hedge", "remote"}
        return {name: option for name, option in vars(self).items() if name not in shared}


def check_prices(budget: Budget, lms: Sequence[dspy.BaseLM]) -> None:
    """Raise if a cap in dollars cannot be held with these models.

    Raises:
        ValueError: If a model runs on a custom engine, whose price nobody knows, or if its name has no known price.
    """
    for lm in lms if budget.usd is not None else ():
        if not isinstance(getattr(lm, "engine", "auto"), str) and not is_free(lm):
            raise ValueError(
                f"Budget(usd={budget.usd}) cannot be held: {lm.model} runs on a custom engine, "
                "whose price is unknown; cap calls= or tokens= instead"
            )
        if has_no_price(lm):
            raise UnknownPrice.of(budget, lm.model)


def check_program(name: str, program: object) -> None:
    """Raise one clear error if `program` is none, or has no predictors that answer anything.

    Raises:
        TypeError: If it is no module.
        ValueError: If it has no predictors, or one without an output field.
    """
    kind = type(program).__name__
    if not isinstance(program, dspy.Module):
        wrapped = isinstance(program, str) or (isinstance(program, type) and issubclass(program, dspy.Signature))
        hint = ": put the signature into one, such as dspy.Predict(signature)" if wrapped else ""
        raise TypeError(f"{name} must be a dspy.Module, got {kind}{hint}")
    if not (predictors := named_predictors(program)):
        raise ValueError(
            f"{name} {kind} has no predictors to compile: it needs a dspy.Predict, "
            "dspy.ChainOfThought, ... as an attribute that is not frozen by an earlier compile"
        )
    for place, predictor in predictors:
        if not predictor.signature.output_fields:
            raise ValueError(
                f"{name} {kind}: the signature of its predictor {place!r}, {predictor.signature.signature!r}, has no "
                "output field, so nothing can be answered: name one, as in 'question -> answer'"
            )


def check_examples(name: str, examples: Sequence[dspy.Example], student: dspy.Module) -> None:
    """Raise one clear error if `examples` is not a sequence of examples with inputs marked, for `student`.

    Raises:
        TypeError: If it is no sequence, or holds something else.
        ValueError: If an example has no inputs marked.
    """
    if isinstance(examples, str | Mapping) or not isinstance(examples, Sequence):
        raise TypeError(f"{name} must be a list of dspy.Example, got {type(examples).__name__}")
    for i, example in enumerate(examples):
        if not isinstance(example, dspy.Example):
            raise TypeError(f"{name}[{i}] is a {type(example).__name__}: it must be a dspy.Example")
        try:
            marked = len(example.inputs().keys()) > 0
        except ValueError:
            marked = False
        if not marked:
            known = takes(student)
            names = [field for field in known.fields if field in known.needed] or known.fields or ("question",)
            inputs = ", ".join(map(repr, names))
            raise ValueError(f"{name}[{i}] has no inputs marked: write dspy.Example(...).with_inputs({inputs})")


def _display(wanted: bool | None, watched: bool) -> AbstractContextManager[Callback | None]:
    """Return what shows a compile's progress; nothing where no person may be watching.

    A terminal is asked for by itself: rich takes FORCE_COLOR, which many a build server sets, for one.
    """
    terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    if not terminal or not (not watched if wanted is None else wanted):
        return nullcontext()
    from cuesmith.teleprompters.runtime.progress_bar import Progress  # and rich, only where something is drawn

    return Progress()


def _callbacks(callbacks: Callback | Sequence[Callback]) -> tuple[Callback, ...]:
    several = (callbacks,) if callable(callbacks) else callbacks
    if not isinstance(several, Iterable):
        raise TypeError(f"callbacks={callbacks!r} must be a function that takes an event, or several of them")
    several = tuple(several)
    for callback in several:
        if not callable(callback):
            raise TypeError(f"callbacks has {callback!r}, which is not callable")
    return several


def optimizer_model(given: dspy.BaseLM | str | None) -> dspy.BaseLM | None:
    """Return the model that is to write prompts, made of its name if need be; None if none is given.

    Raises:
        TypeError: If it is neither a model nor the name of one.
        ValueError: If the name is empty.
    """
    if isinstance(given, str):
        if not given.strip():
            raise ValueError("optimizer_lm='' is no model name: give e.g. 'openai/gpt-4.1'")
        return dspy.LM(given)
    if given is None or isinstance(given, dspy.BaseLM):
        return given
    raise TypeError(f"optimizer_lm must be a dspy.LM or a LiteLLM model string, got {type(given).__name__}")
