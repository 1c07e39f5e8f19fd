"""What looks at runs and compilers: `cuesmith runs | show | report | export | compilers`. Source: ours."""

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import CycloptsError, Parameter

from cuesmith.programs.arguments import BadInput, be_offline, complain, file_of, metavar, of, parsed
from cuesmith.programs.commands.compiling import CompileOptions
from cuesmith.programs.commands.measuring import CompareOptions
from cuesmith.programs.commands.run_folders import (
    FILE,
    JOURNAL,
    PROGRAM,
    RECORD,
    KeptCommand,
    RunLine,
    check_finished,
    found,
    inside,
    line_of,
    no_compile,
    result_of,
    to_call,
)
from cuesmith.programs.commands.workbench import TargetOptions, aside, print_json, print_text

if TYPE_CHECKING:
    import dspy

    from cuesmith.teleprompters.runtime.run_report import RunReport

Folder = Annotated[Path, metavar("RUN_DIR")]


@Parameter(name="*")
@dataclass(frozen=True)
class RunsOptions:
    """What `cuesmith runs` is told.

    Attributes:
        directory: Where to look (default: runs).
        json: Print one JSON object instead of a table.
    """

    directory: Annotated[Path, metavar("DIR")] = Path("runs")
    _: KW_ONLY
    json: bool = False


def runs(options: RunsOptions = RunsOptions()) -> int:
    """List runs: compiler, task, score and gain with their intervals, what they cost, how they ended."""
    if not options.directory.is_dir():
        raise BadInput(f"{options.directory}: no such folder")
    lines = [line_of(folder) for folder in found(options.directory)]
    if options.json:
        from cuesmith.programs.diagnosis.page import plain

        print_json({"runs": [plain(line) for line in lines]})
        return 0
    if not lines:
        print(f"{options.directory}: no runs in it")
        return 0
    _print_table(lines)
    return 0


def _print_table(lines: list[RunLine]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("run", "compiler", "task", "score", "gain", "calls", "usd", "state"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("calls", "usd") else "left")
    for line in lines:
        usd = "" if line.usd is None else f"{line.usd:.4f}" if line.usd else "0"
        score, gain = _figure(line.score, line.percent), _figure(line.gain, line.percent, "+")
        cells = (line.folder, line.compiler, line.about, score, gain, f"{line.calls:,}", usd, line.state)
        table.add_row(*(Text("".join(c if c.isprintable() else "?" for c in cell)) for cell in cells))
    console = Console(highlight=False)
    console.print(table) if console.is_terminal else Console(highlight=False, width=400).print(table)


def _figure(interval: tuple[float, float, float] | None, percent: bool, sign: str = "") -> str:
    """Write a score in percent, a gain in points; both in the metric's unit where scores are not from 0 to 1."""
    if interval is None:
        return "-"
    mean, low, high = (f"{100 * value:{sign}.1f}" if percent else f"{value:{sign}.3g}" for value in interval)
    unit = " %" if percent and not sign else ""
    return f"{mean}{unit}" if any(map(math.isnan, interval)) else f"{mean}{unit} [{low}, {high}]"


@Parameter(name="*")
@dataclass(frozen=True)
class ShowOptions:
    """What `cuesmith show` is told.

    Attributes:
        run_dir: The folder of a run that has ended.
        json: Print one JSON object instead of text.
    """

    run_dir: Folder
    _: KW_ONLY
    json: bool = False


def show(options: ShowOptions) -> int:
    """Show the result of a run, its notes, and the prompt before and after; of a check or comparison what was found."""
    if (kept := result_of(options.run_dir)) is not None:
        print_json(kept.data) if options.json else print_text(kept.text)
        return 0
    report = _read(options.run_dir)
    if options.json:
        print_json(report.to_json())
    else:
        print_text(report.to_markdown())
    return 0


@Parameter(name="*")
@dataclass(frozen=True)
class ReportOptions:
    """What `cuesmith report` is told.

    Attributes:
        run_dir: The folder of a run that has ended.
        output: The file to write (default: report.html in the run's folder).
        json: Print one JSON object instead of text.
    """

    run_dir: Folder
    _: KW_ONLY
    output: Annotated[Path | None, Parameter(name=("--output", "-o")), metavar("FILE")] = None
    json: bool = False

    def __post_init__(self) -> None:
        """Look whether the file can be written.

        Raises:
            BadInput: If it cannot.
        """
        if self.output is not None:
            file_of("--output", self.output)


def report(options: ReportOptions) -> int:
    """Write a run's report as one page for a browser; it needs no network and no scripts."""
    if result_of(options.run_dir) is not None:
        here = options.run_dir
        raise BadInput(f"{here}: is no compile; {to_call('show', here)} prints what was found{inside(here)}")
    page, path = _read(options.run_dir).to_html(), options.output or options.run_dir / "report.html"
    try:
        path.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        return complain("cuesmith", f"{path}: {error.strerror or error}", 1)
    print_json({"report": str(path)}) if options.json else print(path)
    return 0


def _read(folder: Path) -> "RunReport":
    check_finished(folder)
    be_offline(models=False)
    from cuesmith.teleprompters.runtime.run_report import RunReport

    try:
        report = RunReport.read(folder)
    except ValueError as error:
        raise BadInput(str(error)) from None
    if said := no_compile(folder, report.compiler):
        raise BadInput(said)
    return report


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExportOptions(TargetOptions):
    """What `cuesmith export` is told.

    Attributes:
        format: messages (a list of role and content), openai (a request body, with the schema of what is answered) or
            markdown (for people).
        input: A value of an input field, FIELD=VALUE, in place of a placeholder; may be repeated.
        output: Write to this file, not to standard output.
        json: The same as --format openai.
    """

    format: Literal["messages", "openai", "markdown"] | None = None
    input: Annotated[tuple[str, ...], metavar("FIELD=VALUE")] = ()
    output: Annotated[Path | None, Parameter(name=("--output", "-o")), metavar("FILE")] = None
    json: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked at once.

        Raises:
            BadInput: If arguments do not go together, or name what is not there.
        """
        if self.json and self.format == "markdown":
            raise BadInput("--json: not allowed with --format markdown")
        if self.output is not None:
            file_of("--output", self.output)
        for text in self.input:
            if not text.partition("=")[0].isidentifier() or "=" not in text:
                raise BadInput(f"--input: {text!r} is not FIELD=VALUE, such as question=Why?")
        if not self.of_run:
            self.program.check()

    @property
    def of_run(self) -> bool:
        """Whether it names a run folder."""
        folder = Path(self.target)
        return folder.is_dir() and any((folder / name).is_file() for name in (FILE, JOURNAL, RECORD))


def export(options: ExportOptions) -> int:
    """Write a program's prompt for use without dspy: as messages, OpenAI-style JSON, or Markdown.

    TARGET is a program as `cuesmith compile` takes it, or the folder of a run, whose compiled program is meant. A run's
    own command says which program it was; its code is imported.
    """
    be_offline(models=False)
    with aside(), _program(options) as program:
        from cuesmith.programs.exporting import export as exported

        inputs = dict(text.split("=", 1) for text in options.input)
        try:
            text = exported(program, options.format or ("openai" if options.json else "messages"), inputs or None)
        except (TypeError, ValueError) as error:
            raise BadInput(str(error)) from None
    if options.output is None:
        from cuesmith.teleprompters.runtime.formatting import visible

        print(visible(text) if sys.stdout.isatty() else text)  # a file gets the prompt as it is
        return 0
    try:
        options.output.write_text(text + "\n", encoding="utf-8", errors="replace")
    except OSError as error:
        return complain("cuesmith", f"--output {options.output}: {error.strerror or error}", 1)
    return 0


@contextlib.contextmanager
def _program(options: ExportOptions) -> "Iterator[dspy.Module]":
    """Load the program where its paths hold."""
    if not options.of_run:
        yield options.program.load()
        return
    folder = Path(options.target).resolve()
    if options.cot or options.state is not None:
        raise BadInput(f"{'--cot' if options.cot else '--state'}: not with a run: {options.target} has its own program")
    state, kept = folder / PROGRAM, KeptCommand.of_compile(Path(options.target))
    if kept.command not in _MAKERS or not state.is_file():
        go_on = f"; to go on with the run: {to_call('resume', options.target)}" if kept.command == "compile" else ""
        raise BadInput(f"{options.target}: no compiled program in it{go_on}{inside(folder)}")
    try:
        with contextlib.chdir(kept.directory):
            told = parsed(_MAKERS[kept.command], kept.words).program
            yield replace(told, state=state).load()
    except CycloptsError as error:
        raise BadInput(f"{options.target}: its command cannot be read: {error}") from None
    except FileNotFoundError:
        raise BadInput(f"{options.target}: the folder that it was made in is gone: {kept.directory}") from None


_MAKERS: Mapping[str, type[CompileOptions] | type[CompareOptions]] = {
    "compile": CompileOptions, "compare": CompareOptions
}  # fmt: skip
"""Commands that make programs -> their options."""


def _one(name: str) -> str:
    from cuesmith.teleprompters.registry import compiler_place

    return compiler_place(name)[0]


@Parameter(name="*")
@dataclass(frozen=True)
class CompilersOptions:
    """What `cuesmith compilers` is told.

    Attributes:
        name: One of them, with all its options.
        json: Print one JSON object instead of text.
    """

    name: Annotated[str | None, of(_one, "NAME")] = None
    _: KW_ONLY
    json: bool = False


def compilers(options: CompilersOptions = CompilersOptions()) -> int:
    """List the compilers, or the options of one with their defaults."""
    be_offline(models=False)
    from cuesmith.teleprompters.registry import COMPILERS, compiler_class

    if options.name is None and not options.json:
        width = max(map(len, COMPILERS))
        for name in COMPILERS:
            print(f"{name:<{width}}  {_summary(compiler_class(name))}")
        return 0
    told = [_compiler(name) for name in ([options.name] if options.name else COMPILERS)]
    if options.json:
        print_json(told[0] if options.name else {"compilers": told})
        return 0
    print(f"{told[0]['name']}: {told[0]['summary']}\n")
    for each in told[0]["options"]:
        default = "" if each["default"] == "" else f" [default: {each['default']}]"
        print(f"  {each['name']}: {each['type']}{default}")
        print(f"      {each['help']}") if each["help"] else None
    return 0


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _compiler(name: str) -> dict[str, Any]:
    from cuesmith.teleprompters.registry import compiler_class

    kind = compiler_class(name)
    return {"name": name, "class": kind.__name__, "summary": _summary(kind), "options": _options(kind)}


def _options(kind: type) -> list[dict[str, str]]:
    """Return the options of a compiler, its own first, by its constructors' signatures and docstrings."""
    import inspect

    from docstring_parser import parse

    rows: dict[str, dict[str, str]] = {}
    helps = {
        p.arg_name: " ".join((p.description or "").split())
        for each in reversed(kind.__mro__)
        for p in parse(each.__doc__ or "").params
    }
    for each in kind.__mro__:
        init = vars(each).get("__init__")
        for p in inspect.signature(init).parameters.values() if inspect.isfunction(init) else ():
            if p.kind is p.KEYWORD_ONLY and p.name in kind.options():  # type: ignore[attr-defined]
                default = "" if p.default is p.empty else str(p.default)
                rows.setdefault(
                    p.name,
                    {"name": p.name, "type": str(p.annotation), "default": default, "help": helps.get(p.name, "")},
                )
    return list(rows.values())
