"""What `check`, `compile` and `compare` share: their options, and the program, data, metric and models that these name.

Source: ours.
"""

import logging
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.programs.arguments import BadInput, Seed, be_offline, complain, meant, metavar
from cuesmith.programs.commands.run_folders import keep_command, new_folder, to_call
from cuesmith.programs.commands.sources import Caps, DataOptions, ModelOptions, check_run_dir
from cuesmith.programs.commands.target import NamedProgram, known_to_embedded, load_metric, metric_place

if TYPE_CHECKING:
    import dspy

    from cuesmith.programs.tasks import Sizes, Task
    from cuesmith.teleprompters.runtime.metric import MetricFunction

METRICS = ("exact", "choice", "number", "near", "f1", "json_fields", "set_f1", "in_order")
"""The names of metrics; `cuesmith.programs.tasks.METRICS` has them, and loads dspy."""


@dataclass(frozen=True)
class TargetOptions:
    """Which program.

    Attributes:
        target: The program: module:program or file.py:program (a dspy.Module, what makes one, or a dspy.Signature; the
            file is imported, so it runs), a folder of a saved program, or a signature such as "review -> label:
            Literal['a', 'b']".
        cot: Answer a signature after a chain of thought.
        state: Prompts that the program begins with: a .json that program.save() wrote.
    """

    target: Annotated[str, metavar("TARGET")]
    _: KW_ONLY
    cot: bool = False
    state: Annotated[Path | None, metavar("FILE")] = None

    @property
    def program(self) -> NamedProgram:
        """The program, not loaded yet."""
        return NamedProgram(self.target, self.cot, self.state)


@dataclass(frozen=True, kw_only=True)
class WorkOptions(DataOptions, ModelOptions, TargetOptions):
    """What work on a program is told.

    Attributes:
        metric: What is right: exact, choice, number, near, f1, json_fields, set_f1 or in_order (default: what suits the
            answers); or a function of yours, module:function or file.py:function, which is imported, so it runs.
        budget: Caps over everything, such as usd=2,calls=500 (also tokens= and seconds=).
        seed: Seed of splits and decisions (default: 0).
        run_dir: Keep the journal here; goes on with what is there (default: a new folder in runs/).
        json: Print one JSON object instead of text.
    """

    metric: Annotated[str | None, metavar("METRIC")] = None
    budget: Caps | None = None
    seed: Seed = 0
    run_dir: Annotated[Path | None, metavar("DIR")] = None
    json: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked at once.

        Raises:
            BadInput: If arguments do not go together, or name what is not there.
        """
        if self.data is None and self.task is None:
            raise BadInput("--data is missing: a file of examples (or --task, a generated family)")
        self.check_data()
        self.check_models()
        self.check_files()
        check_run_dir(self.run_dir)
        place = metric_place(self.metric)
        if place is not None:
            place.check()
        elif self.metric is not None and self.metric not in METRICS:
            hint = f"{meant(self.metric, METRICS)}, or write module:function or file.py:function"
            raise BadInput(f"--metric: no metric {self.metric!r}: {hint}")
        self.program.check()


@dataclass(frozen=True)
class PreparedWork:
    """A program, its data and its models, ready to be worked with.

    Attributes:
        program: The program.
        task: The data.
        metric: Scores an answer.
        target: The model of predictors that carry none; None for the configured one.
        optimizer: The model that writes prompts; None for the configured one.
        names: What the two are called.
        in_flight: Calls under way at once.
        simulated: Whether the optimizer is no model, but rules.
    """

    program: "dspy.Module"
    task: "Task"
    metric: "MetricFunction"
    target: "dspy.BaseLM | None"
    optimizer: "dspy.BaseLM | None"
    names: tuple[str, str]
    in_flight: int
    simulated: bool


def prepare(options: WorkOptions, sizes: "Sizes", lms: Sequence[str] = ()) -> PreparedWork:
    """Load the program, the metric, the data and the models, in this order.

    Args:
        options: What the command is told.
        sizes: Of the parts of the data.
        lms: Models that the command runs the program on by itself, each of which writes its own prompts by default.

    Raises:
        BadInput: If one of them cannot be had.
    """
    be_offline(models=options.on_providers or options.program.place is not None)
    for library in ("dspy", "LiteLLM"):  # what they warn of, call by call, is counted in the result
        logging.getLogger(library).setLevel(logging.ERROR)
    logging.getLogger("cuesmith").addFilter(_is_no_stop)
    from cuesmith.programs.models import AT_ONCE, SIMULATED

    program = options.program.load()
    place = metric_place(options.metric)
    metric = options.metric if place is None else load_metric(place)
    task = _task(options, program, metric, sizes)
    _check_fit(program, task, callable(metric))
    target, optimizer, names = _models(options, lms, program, task)
    in_flight, simulated = AT_ONCE if options.on_files else 32, names[1] == SIMULATED.name
    return PreparedWork(program, task, task.metric, target, optimizer, names, in_flight, simulated)


def read_again(options: WorkOptions, work: PreparedWork, sizes: "Sizes") -> "Task":
    """Read the data in other sizes; what is to be said of it has been said."""
    metric = work.metric if metric_place(options.metric) is not None else options.metric
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _task(options, work.program, metric, sizes)


def _is_no_stop(record: logging.LogRecord) -> bool:
    """Leave out what a compile says of an interrupt to Python code: the command says how to go on by itself."""
    return not record.getMessage().startswith("interrupted ")


def _task(
    options: WorkOptions, program: "dspy.Module", metric: "str | MetricFunction | None", sizes: "Sizes"
) -> "Task":
    from dataclasses import replace

    from cuesmith.programs.tasks import TaskError, generate

    try:
        if options.data is not None:
            return _read(options.data, options, program, metric, sizes)
        task = generate(options.task or "", sizes=sizes, seed=options.seed)
        return task if metric is None or isinstance(metric, str) else replace(task, metric=metric)
    except TaskError as error:
        raise BadInput(_in_options(str(error))) from None


def _read(
    data: Path, options: WorkOptions, program: "dspy.Module", metric: "str | MetricFunction | None", sizes: "Sizes"
) -> "Task":
    """Read the data by the columns that are told, and by the program's own fields for a side that is not.

    Where the data has no such columns it is read by usual names, and taken if the program fits it all the same.
    """
    from cuesmith.programs.tasks import TaskError, load

    told: dict[str, Any] = {"inputs": options.inputs, "outputs": options.outputs}
    own = _columns(program)
    wanted: dict[str, Any] = {side: columns or own.get(side) for side, columns in told.items()}
    more: dict[str, Any] = {"metric": metric, "sizes": sizes, "seed": options.seed}
    try:
        return load(data, **wanted, **more)
    except TaskError as first:
        if wanted == told:
            raise
        named = {side: ",".join(f"{field}=COLUMN" for field in own[side]) for side in own if told[side] is None}
        unfit = TaskError(f"{first}; write {' '.join(f'--{side} {columns}' for side, columns in named.items())}")
        try:
            task = load(data, **told, **more)
        except TaskError as second:  # the same whatever the columns: it is not about them
            raise first if str(second) == str(first) else unfit from None
        if not {*(wanted["inputs"] or ())} <= {*task.train[0].inputs().keys()}:
            raise unfit from None
        if not callable(metric) and _unanswered(program, task):
            raise unfit from None
        return task


def _in_options(message: str) -> str:
    """Return what a loader says with the command's options in place of its own arguments."""
    named = re.compile(r"\b(inputs|outputs)=(?:'([^']*)'|\.\.\.)")
    return named.sub(lambda m: f"--{m[1]} {'...' if m[2] is None else shlex.quote(m[2])}", message)


def _columns(program: "dspy.Module") -> dict[str, tuple[str, ...]]:
    """Return the columns that the program's own fields are named like, as far as it tells them."""
    from cuesmith.teleprompters.runtime.evidence import REASONING
    from cuesmith.teleprompters.runtime.preflight import takes

    known = takes(program)
    inputs = tuple(name for name in known.fields if name in known.needed)
    outputs = tuple(sorted(known.gives - {REASONING}))
    return {name: fields for name, fields in (("inputs", inputs), ("outputs", outputs)) if inputs and fields}


def _unanswered(program: "dspy.Module", task: "Task") -> list[str]:
    """Return the fields of the data's answers that the program is known not to have."""
    from cuesmith.programs.tasks.metrics import ACCEPTED
    from cuesmith.teleprompters.runtime.preflight import takes

    known = takes(program)
    if not (known.certain and known.gives):
        return []
    return [name for name in task.train[0].labels().toDict() if name not in known.gives and name != ACCEPTED]


def _check_fit(program: "dspy.Module", task: "Task", own_metric: bool) -> None:
    """Compare the program's fields with the data's, and tell what may be meant so.

    Args:
        program: The program.
        task: The data.
        own_metric: Whether the metric is a function of the user's, which may compare other fields.

    Raises:
        BadInput: If the program cannot be called, or does not answer what the metric looks at.
    """
    from cuesmith.teleprompters.runtime.preflight import check_inputs, takes

    known = takes(program)
    try:
        notes = check_inputs(program, trainset=task.train, valset=task.validation)
    except ValueError:
        asked, taken = (", ".join(map(repr, names)) for names in (task.train[0].inputs().keys(), known.fields))
        raise BadInput(
            f"the program takes {taken or 'no input'}, but what is asked in the data is {asked}: name the "
            "columns by --inputs, or the fields in TARGET as they are"
        ) from None
    if not own_metric and (missing := _unanswered(program, task)):
        answers, given = (", ".join(map(repr, names)) for names in (missing, sorted(known.gives)))
        raise BadInput(
            f"the program answers {given}, but the answer in the data is {answers}: name the columns by "
            "--outputs, the fields in TARGET as they are, or a --metric of yours that knows better"
        )
    for note in notes:
        warnings.warn(str(note), stacklevel=2)


def _models(
    options: WorkOptions, lms: Sequence[str], program: "dspy.Module", task: "Task"
) -> "tuple[dspy.BaseLM | None, dspy.BaseLM | None, tuple[str, str]]":
    """Return the target, the optimizer and their names: as told, else the program's own, else what needs no key."""
    import dspy

    from cuesmith.programs.comparison import Settings, made
    from cuesmith.programs.models import EMBEDDED, SIMULATED
    from cuesmith.teleprompters.runtime._dspy import named_predictors

    told = Settings(lm=options.lm, local=options.local, optimizer_lm=options.optimizer_lm,
                    local_optimizer=options.local_optimizer, threads=options.threads)  # fmt: skip
    carried = [predictor.lm for _, predictor in named_predictors(program)] or [None]
    if options.lm or options.local:
        target, written = made(told.target), made(told.optimizer)
        return target, written, (told.target.name, told.optimizer.name)
    other = made(told.optimizer) if options.optimizer_lm or options.local_optimizer else None
    if lms:
        return None, other, (", ".join(lms), told.optimizer.name if other else "each its own")
    own = dspy.settings.lm or (carried[0] if None not in carried else None)
    if own is not None:
        return None, other or own, (own.model, (other or own).model)
    if not known_to_embedded(task):
        raise BadInput(
            f"no language model: give --lm PROVIDER/MODEL or --local FILE.gguf (without, the embedded model "
            f"runs, and {task.name!r} is no task like those that it knows: {', '.join(FAMILIES)})"
        )
    return made(EMBEDDED), other or made(SIMULATED), (EMBEDDED.name, told.optimizer.name if other else SIMULATED.name)


def context_of(work: PreparedWork) -> "AbstractContextManager[object]":
    """Have the program run on its target."""
    import dspy

    return nullcontext() if work.target is None else dspy.context(lm=work.target)


_out: ContextVar[TextIO | None] = ContextVar("cuesmith_standard_output", default=None)
"""The standard output of a command, while the user's own code has another."""


@contextmanager
def kept_run(
    command: str,
    options: WorkOptions,
    work: PreparedWork,
    name: str,
    reached: "Callable[[dspy.Module | None, Path], str]",
) -> Iterator[Path]:
    """Give a run its folder and keep its command there, so that `cuesmith resume` repeats it; an interrupt says so.

    Args:
        command: Its name.
        options: What it was told.
        work: What it works on.
        name: What the run is listed as, and a new folder is called after.
        reached: Says after an interrupt how far it came: of the best program so far, if there is one, and the folder.

    Raises:
        BadInput: If the folder cannot be written.
        Interrupted, Terminated: Those of the run, with how to go on.
    """
    from cuesmith.teleprompters.runtime.interruption import Interrupted, Terminated

    folder = options.run_dir or new_folder(name, work.task.name)
    about = {"compiler": name, "task": work.task.name, "lm": work.names[0], "optimizer": work.names[1]}
    with keep_command(command, options, about).beginning(folder):
        try:
            yield folder
        except (Interrupted, Terminated) as stop:
            how_far = reached(stop.program, folder)
            raise type(stop)(f"interrupted: {how_far}; to go on: {to_call('resume', folder)}", stop.program) from None


@contextmanager
def aside() -> Iterator[None]:
    """Have what the user's own code prints go to standard error: standard output is for the result alone."""
    token = _out.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _out.reset(token)


@contextmanager
def plainly(*, as_json: bool) -> Iterator[None]:
    """Turn what ends the work into one line, and show warnings as one line each.

    Args:
        as_json: Whether standard output is to be JSON and nothing else.

    Raises:
        BadInput: Where nothing has been called.
        RunFailed: Where something has.
    """
    from cuesmith.programs.comparison import explained, one_line
    from cuesmith.teleprompters.runtime.compilation import CompileWarning

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"cuesmith: note: {one_line(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompileWarning)  # it stands among the notes
        warnings.showwarning = show
        try:
            with explained(), aside() if as_json else nullcontext():
                yield
        except (TypeError, ImportError) as error:
            raise BadInput(one_line(error)) from None


def print_text(markdown: str) -> None:
    """Print Markdown: set in type on a terminal, as it is elsewhere."""
    from rich.console import Console
    from rich.markdown import Markdown

    from cuesmith.programs.report import visible

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(Markdown(visible(markdown)))
    else:
        console.file.write(visible(markdown).rstrip() + "\n")


def print_json(data: object) -> None:
    """Print one JSON object in one line."""
    from cuesmith.teleprompters.runtime.formatting import json_text

    (_out.get() or sys.stdout).write(json_text(data) + "\n")


def ended(stopped_by: str | None) -> int:
    """Return the exit status of a run: 0 if it ran to its end or to a cap, else 1 after a line that says why."""
    from cuesmith.teleprompters.runtime.ledger import stopped
    from cuesmith.teleprompters.runtime.session import CAPS

    if stopped_by in (None, *CAPS):
        return 0
    return complain("cuesmith", f"{stopped(str(stopped_by))}: what is shown is what there was until then", 1)
