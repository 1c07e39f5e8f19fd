"""`cuesmith resume`: the command that made a run, once more. Source: ours."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import CycloptsError, Parameter

from cuesmith.programs.arguments import BadInput, metavar, parsed
from cuesmith.programs.commands.compiling import CompileOptions, compile_program
from cuesmith.programs.commands.measuring import CheckOptions, CompareOptions, check, compare
from cuesmith.programs.commands.run_folders import RECORD, KeptCommand, spent_in
from cuesmith.programs.commands.sources import Caps

COMMANDS: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "compile": (CompileOptions, compile_program),
    "check": (CheckOptions, check),
    "compare": (CompareOptions, compare),
}


@Parameter(name="*")
@dataclass(frozen=True)
class ResumeOptions:
    """What `cuesmith resume` is told.

    Attributes:
        run_dir: The folder of the run.
        budget: Other caps than before, such as calls=1000, for a run that a cap has stopped.
        json: Print one JSON object instead of text.
    """

    run_dir: Annotated[Path, metavar("RUN_DIR")]
    _: KW_ONLY
    budget: Caps | None = None
    json: bool = False


def resume(options: ResumeOptions) -> int:
    """Go on with a run that was interrupted or stopped by a cap.

    The command that made it is repeated where it was called, and nothing that is on record is paid again. What its
    TARGET and --metric name is imported as then: resume only runs whose code you would run.
    """
    kept = KeptCommand.read(options.run_dir)
    if kept.command not in COMMANDS:
        raise BadInput(f"{options.run_dir}: the command {kept.command[:40]!r} cannot be resumed")
    if kept.redacted:
        hint = "give it again, with --run-dir"
        raise BadInput(f"{options.run_dir}: its command had a key in it, which was not kept: {hint}")
    kind, command = COMMANDS[kept.command]
    folder = options.run_dir.resolve()
    try:
        with contextlib.chdir(kept.directory):
            _check_caps(folder, options.budget)
            told: Any = parsed(kind, kept.words)
            more = {} if options.budget is None else {"budget": options.budget}
            return command(replace(told, run_dir=folder, json=options.json, **more))
    except CycloptsError as error:
        raise BadInput(f"{options.run_dir}: its command cannot be read: {error}") from None
    except FileNotFoundError:
        raise BadInput(f"{options.run_dir}: the folder that it was called in is gone: {kept.directory}") from None


def _check_caps(folder: Path, caps: Mapping[str, float] | None) -> None:
    """Raise if a run has used more than it may now: with less than its record it would lose what it has found.

    Raises:
        BadInput: If so.
    """
    if caps is None or not (folder / RECORD).is_file():
        return
    used = spent_in(folder)
    for name, cap in caps.items():
        if used.get(name, 0) > cap:
            raise BadInput(
                f"--budget {name}={cap:g}: {folder} has used {used[name]:g} {name}: give as much or more, or its "
                "result would be made anew from less"
            )
