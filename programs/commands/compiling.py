"""`cuesmith compile`: a program of one's own, on data of one's own. Source: ours."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from cuesmith.programs.arguments import BadInput, Count, RunFailed, metavar, of
from cuesmith.programs.commands.run_folders import PROGRAM, to_call
from cuesmith.programs.commands.sources import budget_of, check_saved, check_writable
from cuesmith.programs.commands.workbench import (
    PreparedWork,
    WorkOptions,
    context_of,
    ended,
    kept_run,
    plainly,
    prepare,
    print_json,
    print_text,
)

if TYPE_CHECKING:
    from cuesmith.teleprompters.compiler import Compiler
    from cuesmith.teleprompters.runtime.compilation import Compiled, Forecast

TRAIN, VALIDATION = 40, 150
"""Examples of a compile, unless told otherwise."""

_OWN = {"metric", "optimizer_lm", "budget", "seed", "search"}
_NOT_HERE = {"callbacks", "progress", "executor"}


def compiler_known(text: str) -> str:
    """Return a compiler's own name; several with ">>" between are a chain.

    Raises:
        ValueError: If there is none.
    """
    from cuesmith.teleprompters.registry import compiler_place

    return " >> ".join(compiler_place(part.strip())[0] for part in text.split(">>"))


def check_options(texts: Sequence[str]) -> None:
    """Look at options of a compiler, which are written KEY=VALUE.

    Raises:
        BadInput: If one is not, or the command has an option of its own for it.
    """
    seen = set[str]()
    for text in texts:
        key, equals, _ = text.partition("=")
        if not (equals and key.isidentifier()):
            raise BadInput(f"--option: {text!r} is not KEY=VALUE, such as steps=3")
        if key in _OWN:
            raise BadInput(f"--option {key}: has an option of its own, --{key.replace('_', '-')}")
        if key in _NOT_HERE:
            raise BadInput(f"--option {key}: can only be given in Python")
        if key in seen:
            raise BadInput(f"--option {key}: is given twice")
        seen.add(key)


def value_of(text: str) -> object:
    """Return a number, a truth value, null or a list that is written as in JSON; any other text is itself."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text


def options_of(texts: Sequence[str]) -> dict[str, object]:
    """Return options of a compiler that are written KEY=VALUE."""
    pairs = (text.partition("=") for text in texts)
    return {key: value_of(value) for key, _, value in pairs}


Compiling = Annotated[str, of(compiler_known, "NAME")]
OwnOptions = Annotated[tuple[str, ...], metavar("KEY=VALUE")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CompileOptions(WorkOptions):
    """What `cuesmith compile` is told.

    Attributes:
        compiler: Which compiler; `cuesmith compilers` lists them (default: iterative-ape). "abo >> align-pro" is one
            after the other.
        search: The form of the search: unified, native or frontier.
        option: An option of the compiler, such as steps=3; may be repeated. `cuesmith compilers NAME` lists them.
        train_size: Examples to show and to make demonstrations of, at most (default: 40).
        validation_size: Examples to choose with and to report on, at most (default: 150); a part that the data sets
            apart for test is never used.
        save: Also save the program to this file (.json).
        dry_run: Say what it would take at most, and stop.
    """

    compiler: Compiling = "iterative-ape"
    search: Literal["unified", "native", "frontier"] | None = None
    option: OwnOptions = ()
    train_size: Count = TRAIN
    validation_size: Count = VALIDATION
    save: Annotated[Path | None, metavar("FILE")] = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked at once.

        Raises:
            BadInput: If arguments do not go together, or name what is not there.
        """
        super().__post_init__()
        check_saved(self.save)
        check_options(self.option)

    @property
    def own_options(self) -> dict[str, object]:
        """The compiler's own options."""
        return options_of(self.option) | ({"search": self.search} if self.search is not None else {})


def compile_program(options: CompileOptions) -> int:
    """Compile a program of yours on data of yours.

    The journal of every compile is kept, so that `cuesmith resume` goes on after an interruption, and `cuesmith show`
    and `cuesmith report` tell what was found. TARGET and --metric may name Python code of yours: it is imported, so it
    runs. What is in the data is never executed.
    """
    from cuesmith.programs.tasks import Sizes

    with plainly(as_json=options.json):
        sizes = Sizes(train=options.train_size, validation=options.validation_size, test=1)
        work = prepare(options, sizes)
        with context_of(work):
            compiler = _compiler(options, work)
            bound = compiler.estimate(work.program, trainset=work.task.train, valset=work.task.validation)
            return _dry_run(options, work, bound) if options.dry_run else _run(options, work, compiler, bound)


def _run(options: CompileOptions, work: PreparedWork, compiler: "Compiler", bound: "Forecast") -> int:
    def reached(program: Any, folder: Path) -> str:
        return "nothing was scored yet" if program is None else f"the best so far is {_saved(program, options, folder)}"

    if options.save is not None:
        check_writable("--save", options.save)
    with kept_run("compile", options, work, options.compiler, reached) as folder:
        if not options.json:
            print_text("\n".join(_heading(options, work, bound, folder)) + "\n")
        start = time.perf_counter()
        compiled = compiler.compile(work.program, trainset=work.task.train, valset=work.task.validation, run_dir=folder)
        _saved(compiled, options, folder)
    return _shown(options, work, compiled, folder, time.perf_counter() - start)


def _compiler(options: CompileOptions, work: PreparedWork) -> "Compiler":
    from cuesmith.teleprompters.registry import compiler_of

    usual = {"max_in_flight": work.in_flight, **options.own_options}
    return compiler_of(options.compiler, work.metric, optimizer_lm=work.optimizer, budget=budget_of(options.budget),
                       seed=options.seed, **usual)  # fmt: skip


def _saved(program: Any, options: CompileOptions, folder: Path) -> Path:
    paths = [folder / PROGRAM, *([options.save] if options.save is not None else [])]
    for path in paths:
        save_program(program, path)
    return paths[-1]


def save_program(program: Any, path: Path) -> None:
    """Save a compiled program.

    Raises:
        RunFailed: If that cannot be done; the run is kept.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        program.save(path)
    except (OSError, RuntimeError) as error:  # the latter is dspy's word for whatever happens while it writes
        reason = str(error.__cause__ or error.__context__ or error)
        raise RunFailed(f"{path}: the program cannot be saved: {reason}; its run is kept") from None


def _heading(options: CompileOptions, work: PreparedWork, bound: "Forecast", folder: Path) -> list[str]:
    caps = ", ".join(f"{name}={cap:g}" for name, cap in (options.budget or {}).items())
    task = work.task
    return [
        f"- task: {task.name}, {len(task.train)} training and {len(task.validation)} validation examples",
        f"- program: {options.target} on {work.names[0]}; {options.compiler}, with {work.names[1]}",
        f"- calls: at most {bound.calls:,}" + (f"; it stops at {caps}" if caps else ""),
        f"- run: {folder}",
    ]


def _dry_run(options: CompileOptions, work: PreparedWork, bound: "Forecast") -> int:
    from cuesmith.programs.commands.foretelling import foretell

    told = foretell(work, bound, budget_of(options.budget))
    if options.json:
        print_json({"compiler": options.compiler, "task": work.task.name, "lm": work.names[0],
                    "optimizer_lm": work.names[1], **told.json()})  # fmt: skip
    else:
        print_text("\n".join(told.lines()))
    return 0


def _shown(options: CompileOptions, work: PreparedWork, compiled: "Compiled", folder: Path, seconds: float) -> int:
    compilation = compiled.compilation
    saved = options.save or folder / PROGRAM
    if options.json:
        print_json({
            "run_dir": str(folder), "saved": str(saved), "task": work.task.name, "seed": options.seed,
            "lm": work.names[0], "optimizer_lm": work.names[1], "simulated": work.simulated,
            "seconds": round(seconds, 2), **compilation.to_json()})  # fmt: skip
    else:
        lines = [compilation.to_markdown()]
        if work.simulated:
            from cuesmith.programs.models import EMBEDDED, SIMULATED

            lines += [SIMULATED.caveat, "", EMBEDDED.caveat, ""]
        lines += [f"- saved: {saved}", f"- the report as a page: `{to_call('report', folder)}`",
                  f"- the prompt for use elsewhere: `{to_call('export', folder)}`"]  # fmt: skip
        print_text("\n".join(lines))
    return ended(compilation.stopped_by)
