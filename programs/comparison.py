"""Compilers side by side on one task: the same program, splits and held-out examples for each.

Source: ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dspy

from cuesmith.modules.gguf_header import LocalModelError
from cuesmith.programs import report
from cuesmith.programs.arguments import BadInput as BadInput
from cuesmith.programs.arguments import RunFailed as RunFailed
from cuesmith.programs.evaluation import compare, evaluate
from cuesmith.programs.models import AT_ONCE, EMBEDDED, SIMULATED, ModelSpec, answering, named, writing
from cuesmith.programs.tasks import DEFAULT_FAMILY, Sizes, Task, TaskError, generate, load
from cuesmith.programs.tasks.columns import Told
from cuesmith.teleprompters.registry import compile, compiler_class
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Compilation, Forecast
from cuesmith.teleprompters.runtime.events import Callback
from cuesmith.teleprompters.runtime.interruption import Interrupted
from cuesmith.teleprompters.runtime.ledger import Budget, RunStopped, stopped
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.runtime.score_program import EvaluationStopped
from cuesmith.teleprompters.runtime.session import CompileError
from cuesmith.teleprompters.runtime.statistics import Gain

_HINTS = {
    "auth": ": is the provider's API key set, and right?",
    "billing": ": has the account credit?",
    "configuration": ": is the model's name right?",
}


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        task: A generated family; "objects" by default. Not together with `data`.
        data: A file or folder of data.
        inputs: The columns of `data` that are asked; found by usual names by default.
        outputs: The columns of `data` that are the answer; found by usual names by default.
        metric: Name of the metric; by default what suits the answers in `data`.
        compilers: Names of compilers, as `cuesmith.compile` takes them.
        ablation: Whether to run ABO without demonstrations beside them.
        lm: LiteLLM name of the target; the embedded model by default.
        local: A model file as the target, in place of `lm`.
        optimizer_lm: LiteLLM name of the optimizer; by default the target, beside the embedded one the simulated one.
        local_optimizer: A model file as the optimizer, in place of `optimizer_lm`.
        threads: Threads that model files are computed with; by default one for each core.
        budget_usd: Dollars each compile may cost.
        budget_calls: Calls each compile may make.
        seed: Seed of the splits and of the search.
        validation_size: Examples that a compiler chooses prompts with.
        test_size: Held-out examples.
        save: Where compiled programs go; several get the compiler's name before the suffix.
        run_dir: Where journals go, one folder a compiler.
    """

    task: str | None = None
    data: Path | None = None
    inputs: Told = None
    outputs: Told = None
    metric: str | None = None
    compilers: tuple[str, ...] = ("iterative-ape", "abo")
    ablation: bool = False
    lm: str | None = None
    local: Path | None = None
    optimizer_lm: str | None = None
    local_optimizer: Path | None = None
    threads: int | None = None
    budget_usd: float | None = None
    budget_calls: int | None = None
    seed: int = 0
    validation_size: int = 100
    test_size: int = 250
    save: Path | None = None
    run_dir: Path | None = None

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What to compile with, in order."""
        plain = tuple(Variant(name) for name in self.compilers)
        return (*plain, Variant("abo", demonstrations=False)) if self.ablation else plain

    @property
    def sizes(self) -> Sizes:
        """Sizes of the splits."""
        return Sizes(validation=self.validation_size, test=self.test_size)

    @property
    def target(self) -> ModelSpec:
        """The model that the program runs on."""
        if self.local is not None:
            return answering(self.local, self.threads)
        return EMBEDDED if self.lm is None else named(self.lm)

    @property
    def optimizer(self) -> ModelSpec:
        """The model that writes prompts."""
        file = self.local if self.optimizer_lm is None else None
        if (chosen := self.local_optimizer or file) is not None:
            return writing(chosen, self.threads)
        name = self.optimizer_lm or self.lm
        return SIMULATED if name is None else named(name)

    @property
    def on_files(self) -> bool:
        """Whether a model file takes part."""
        return self.local is not None or self.local_optimizer is not None

    @property
    def in_flight(self) -> int:
        """Calls under way at once: those that would wait for a model file's slot would count as slow."""
        return AT_ONCE if self.on_files else 32


@dataclass(frozen=True)
class Variant:
    """A compiler, and for ABO whether it makes demonstrations."""

    compiler: str
    demonstrations: bool = True

    @property
    def options(self) -> dict[str, bool | str]:
        """The compiler's options that are not its defaults: ABO runs in its own narrow beam, in seconds."""
        narrow: dict[str, bool | str] = {"search": "native"} if self.compiler == "abo" else {}
        return narrow if self.demonstrations else {**narrow, "demonstrations": False}

    @property
    def label(self) -> str:
        """A name for tables."""
        return self.compiler if self.demonstrations else f"{self.compiler}, no demos"

    @property
    def slug(self) -> str:
        """A name for files."""
        return self.compiler if self.demonstrations else f"{self.compiler}-no-demos"


@dataclass(frozen=True)
class ComparisonRow:
    """What one compiler reached.

    Attributes:
        variant: The compiler.
        scores: Its program's scores on the held-out examples.
        gain: Over the baseline, on the same examples, in pairs.
        compilation: The compiler's own record.
        diff: The prompt before and after.
        saved: Where the program is.
        seconds: Of compiling; the held-out scores come on top.
    """

    variant: Variant
    scores: Scores
    gain: Gain
    compilation: Compilation
    diff: str
    saved: Path
    seconds: float


@dataclass(frozen=True)
class Result:
    """What a comparison found."""

    settings: Settings
    task: Task
    baseline: Scores
    rows: tuple[ComparisonRow, ...]
    seconds: float


def read_task(settings: Settings) -> Task:
    """Make the task that the settings name.

    Raises:
        BadInput: If there is none, or its file is no task.
    """
    try:
        if settings.data is not None:
            told = {"inputs": settings.inputs, "outputs": settings.outputs}
            return load(settings.data, **told, metric=settings.metric, sizes=settings.sizes, seed=settings.seed)
        return generate(settings.task or DEFAULT_FAMILY, sizes=settings.sizes, seed=settings.seed)
    except TaskError as error:
        raise BadInput(str(error)) from None


def models(settings: Settings) -> tuple[dspy.BaseLM, dspy.BaseLM]:
    """Return the target and the optimizer model; model files are opened, and not loaded yet.

    Raises:
        BadInput: If dspy does not take a model's name, or a file is no model.
    """
    return made(settings.target), made(settings.optimizer)


def made(spec: ModelSpec) -> dspy.BaseLM:
    try:
        return spec.make()
    except LocalModelError as error:
        raise BadInput(one_line(error)) from None
    except Exception as error:  # whatever is objected to, it is the name
        raise BadInput(f"model {spec.name!r}: {one_line(error)}") from None


def forecast(settings: Settings, task: Task) -> dict[Variant, Forecast]:
    """Return, for each compiler, upper bounds of what its compile would use; calls nothing."""
    student, forecasts = dspy.ChainOfThought(task.signature), {}
    for variant in settings.variants:
        compiler = compiler_class(variant.compiler)(task.metric, **variant.options)  # type: ignore[arg-type]
        forecasts[variant] = compiler.estimate(student, trainset=task.train, valset=task.validation)
    return forecasts


def capped(settings: Settings, bound: Forecast) -> int:
    """Return the calls of a compile at most: its bound, or the budget where that is less."""
    return min(bound.calls, settings.budget_calls or bound.calls)


def run(
    settings: Settings,
    task: Task,
    target: dspy.BaseLM,
    optimizer: dspy.BaseLM,
    *,
    callbacks: Sequence[Callback] = (),
    stage: Callable[[str], None] = lambda text: None,
) -> Result:
    """Compile the program with each compiler, then score it as it was and as it came out.

    Args:
        settings: What to run.
        task: On which task.
        target: The model that the program runs on.
        optimizer: The model that writes prompts.
        callbacks: Get the events of every compile.
        stage: Is told what is evaluated, after the compiles.

    Raises:
        RunFailed: If the provider refuses the calls, or the baseline has no score at all.
        BadInput: If the settings do not fit each other, such as a dollar cap on a model without a price.
    """
    start = time.perf_counter()
    student = dspy.ChainOfThought(task.signature)
    with dspy.context(lm=target), explained():
        done = [_compile(settings, task, student, variant, optimizer, callbacks) for variant in settings.variants]
        stage("the baseline on held-out examples")
        judge = partial(evaluate, examples=task.test, metric=task.metric, max_in_flight=settings.in_flight)
        baseline = judge(student)
        if baseline.n == 0:
            raise RunFailed(f"no held-out example could be scored: {why_missing(baseline)}")
        rows = []
        for each in done:
            stage(f"{each.variant.label} on held-out examples")
            rows.append(each.row(student, baseline, judge(each.program)))
    return Result(settings, task, baseline, tuple(rows), time.perf_counter() - start)


@dataclass(frozen=True)
class _Compiled:
    """A compiled program, saved, and not yet judged."""

    variant: Variant
    program: dspy.Module
    saved: Path
    seconds: float

    def row(self, student: dspy.Module, baseline: Scores, scores: Scores) -> ComparisonRow:
        diff = report.prompt_diff(Candidate.of(student), Candidate.of(self.program))
        gain = compare(baseline, scores)
        return ComparisonRow(self.variant, scores, gain, self.program.compilation, diff, self.saved, self.seconds)


def _compile(
    settings: Settings,
    task: Task,
    student: dspy.Module,
    variant: Variant,
    optimizer: dspy.BaseLM,
    callbacks: Sequence[Callback],
) -> _Compiled:
    start = time.perf_counter()
    try:
        program = compile(
            student,
            variant.compiler,
            metric=task.metric,
            trainset=task.train,
            valset=task.validation,
            run_dir=None if settings.run_dir is None else settings.run_dir / variant.slug,
            optimizer_lm=optimizer,
            budget=Budget(usd=settings.budget_usd, calls=settings.budget_calls),
            seed=settings.seed,
            max_in_flight=settings.in_flight,
            callbacks=callbacks,
            progress=False,
            **variant.options,
        )
    except Interrupted as stop:
        raise _kept(stop, settings, task, variant) from None
    seconds = time.perf_counter() - start
    return _Compiled(variant, program, _save(settings, task, variant, program), seconds)


def _kept(stop: Interrupted, settings: Settings, task: Task, variant: Variant) -> Interrupted:
    """Save what an interrupted compile has found, and say where it is."""
    found = stop.program
    kept = "nothing was scored yet" if found is None else f"the best so far is {_save(settings, task, variant, found)}"
    go_on = "--run-dir keeps what was done" if settings.run_dir is None else "the same command goes on from here"
    return Interrupted(f"interrupted: {kept}; {go_on}", found)


def _save(settings: Settings, task: Task, variant: Variant, compiled: dspy.Module) -> Path:
    """Save the program, and load it back to see that it is the same."""
    path = settings.save or Path("runs") / "quickstart" / f"{task.name}.json"
    if settings.save is None or len(settings.variants) > 1:
        path = path.with_name(f"{path.stem}-{variant.slug}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        compiled.save(path)
    except OSError as error:
        raise RunFailed(f"{path}: {error.strerror or error}") from None
    loaded = dspy.ChainOfThought(task.signature)
    loaded.load(path)
    if Candidate.of(loaded) != Candidate.of(compiled):
        raise RunFailed(f"{path}: the saved program does not load back as it was")
    return path


@contextmanager
def explained() -> Iterator[None]:
    """Turn what ends a run into one line."""
    try:
        yield
    except (RunStopped, EvaluationStopped) as stop:
        hint = _HINTS.get(stop.by, "")
        raise RunFailed(f"the run was {stopped(stop.by)}{hint}") from None
    except CompileError as error:
        raise RunFailed(one_line(error)) from None
    except ValueError as error:
        raise BadInput(one_line(error)) from None


def why_missing(scores: Scores) -> str:
    reasons = [getattr(outcome, "reason", "") for outcome in scores.outcomes]
    return next((one_line(reason) for reason in reasons if reason), "no reason is known")


def one_line(error: object) -> str:
    text = " ".join(report.visible(str(error)).split())
    return text if len(text) <= 300 else text[:297] + "..."
