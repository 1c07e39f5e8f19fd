"""Whether a source is that of a pure function of a run's effects, as far as its text tells. Source: ours."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Collection
from pathlib import Path

from cuesmith.teleprompters.compiler import Compiler

MOST_LINES = 280
"""Lines of a compiler's file."""

_IMPURE_MODULES = frozenset(
    {
        "builtins",
        "ctypes",
        "datetime",
        "http",
        "httpx",
        "importlib",
        "io",
        "logging",
        "multiprocessing",
        "os",
        "pathlib",
        "pickle",
        "requests",
        "shelve",
        "shutil",
        "signal",
        "socket",
        "sqlite3",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
        "time",
        "urllib",
    }
)

_IMPURE_CALLS = frozenset({"open", "print", "input", "eval", "exec", "compile", "__import__", "breakpoint"})

_DOOR = "cuesmith.teleprompters.runtime.effects"

_KERNEL = ("cuesmith.teleprompters.runtime", "cuesmith.teleprompters.compiler")

_CLOCK = frozenset({"sleep", "wait_for", "timeout", "timeout_at", "to_thread", "run_in_executor"})


def source_faults(source: str, *, most_lines: int = MOST_LINES) -> list[str]:
    """Return what keeps a source from being that of a pure function of a run's effects, as far as its text tells.

    Args:
        source: The text of one file; what it imports is read by itself (`sources_of`).
        most_lines: Lines that it may have.

    Returns:
        One sentence a fault: too long; I/O, a clock, global random state; a `try`, which would stand around effects.
    """
    faults = []
    if (lines := len(source.splitlines())) > most_lines:
        faults.append(f"{lines} lines, more than {most_lines}")
    for node in ast.walk(ast.parse(source)):
        where = f"line {getattr(node, 'lineno', 0)}"
        match node:
            case ast.Try() | ast.TryStar():
                faults.append(f"{where}: try")
            case ast.Import(names=names):
                faults += [f"{where}: import {n.name}" for n in names if n.name.split(".")[0] in _IMPURE_MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in _IMPURE_MODULES or module == _DOOR:
                faults.append(f"{where}: from {module} import")
            case ast.Call(func=ast.Name(id=name)) if name in _IMPURE_CALLS:
                faults.append(f"{where}: {name}(")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="random"), attr=name)) if name != "Random":
                faults.append(f"{where}: random.{name}(")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="asyncio"), attr=name)) if name in _CLOCK:
                faults.append(f"{where}: asyncio.{name}(")
            case _:
                pass
    return faults


def sources_of(kind: type[Compiler], doors: Collection[str] = ()) -> list[Path]:
    """Return the files whose code a compiler's search runs: its own, and what they import from its own package.

    Not followed are the kernel, which stands behind the effects, and other packages.

    Args:
        kind: The compiler.
        doors: Modules of its package that do its effects, and are not followed either.
    """
    own = kind.__module__.rpartition(".")[0] or kind.__module__
    names, files = [each.__module__ for each in kind.__mro__[: kind.__mro__.index(Compiler)]], dict[str, Path]()
    while names:
        name = names.pop()
        if name in files or name in doors or name.startswith(_KERNEL) or name not in sys.modules:
            continue
        files[name] = Path(inspect.getfile(sys.modules[name]))
        for node in ast.walk(ast.parse(files[name].read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith(f"{own}."):
                names += [node.module, *(f"{node.module}.{imported.name}" for imported in node.names)]
    return list(files.values())
