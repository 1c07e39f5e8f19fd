"""The `cuesmith` command: what there is to call. Everything heavy loads only after the arguments are found good.

Exit status: 0 done, 1 the run failed, 2 the arguments or the data are wrong, 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from cyclopts import Group

import cuesmith
from cuesmith.programs.arguments import application, call, complain, escaped_where_unknown, meant

COMMANDS: dict[str, dict[str, str]] = {
    "Compile": {
        "quickstart": "commands.quick:quickstart",
        "check": "commands.measuring:check",
        "compile": "commands.compiling:compile_program",
        "compare": "commands.measuring:compare",
        "resume": "commands.resuming:resume",
    },
    "Look": {
        "runs": "commands.looking:runs",
        "show": "commands.looking:show",
        "report": "commands.looking:report",
        "export": "commands.looking:export",
        "compilers": "commands.looking:compilers",
        "diagnose": "diagnose:command",
    },
    "Study": {
        "study": "study:command",
        "theory": "theory:command",
        "align-study": "align_study:command",
    },
}
"""Part of the help -> command -> where in `cuesmith.programs` its function is, whose docstring is its help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the command's name; those of this process by default.

    Returns:
        The exit status.

    Raises:
        SystemExit: With status 2, after one line on standard error, if the call is wrong.
    """
    escaped_where_unknown(sys.stdout, sys.stderr)
    given = list(sys.argv[1:] if arguments is None else arguments)
    names = [name for commands in COMMANDS.values() for name in commands]
    if not given:
        sys.exit(complain("cuesmith", f"COMMAND is missing (--help says more): {', '.join(names)}", 2))
    if given[0] not in names and not given[0].startswith("-"):
        sys.exit(complain("cuesmith", f"no command is called {given[0]!r}: {meant(given[0], names)}", 2))
    wanted = given[:1] if given[0] in names else names
    version = f"cuesmith {cuesmith.__version__}"
    app = application(name="cuesmith", help="Compile language-model programs.", version=version)
    for number, (part, commands) in enumerate(COMMANDS.items()):
        group = Group(part, sort_key=number)
        for place, name in enumerate(name for name in commands if name in wanted):
            module, _, function = commands[name].partition(":")
            command = getattr(importlib.import_module(f"cuesmith.programs.{module}"), function)
            app.command(command, name=name, group=group, sort_key=place)
    return call(app, given, f"cuesmith {given[0]}" if given[0] in names else "cuesmith")


if __name__ == "__main__":
    sys.exit(main())
