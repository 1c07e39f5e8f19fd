"""Where code comes from, and which names it reads: what a content hash of code must follow, and where it may stop.

Code of an installed distribution or of Python itself is known by its name and version; all other code is the
user's, and is read. Source: ours.
"""

from __future__ import annotations

import dis
import importlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType, ModuleType

_STDLIB = tuple(Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib"))
_MAIN = ("__main__", "__mp_main__")
"""A script or a notebook, whatever file a launcher says that it is."""
_INSTALLED = ("site-packages", "dist-packages")
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_GLOBAL = {dis.opmap["LOAD_GLOBAL"]: 1, dis.opmap["LOAD_NAME"]: 0}
"""Opcodes that read a global -> the bits of their argument below the name's number (from Python 3.11 on)."""
_GLOBAL |= {dis.opmap[name]: 0 for name in ("LOAD_FROM_DICT_OR_GLOBALS",) if name in dis.opmap}


def version_of(name: str) -> str | None:
    """Return the version of the library that the module `name` belongs to; None for a user's module.

    A library is Python's own, an installed distribution, or this package.
    """
    top = name.partition(".")[0]
    module = sys.modules.get(name) or sys.modules.get(top)
    if module is None or top in _MAIN:
        return None
    return _version(top, _place(module))


def _place(module: ModuleType) -> str | None:
    """Return the file or folder of a module, or why it has none."""
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ()) or ()), None)
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    return str(file) if file else origin if origin in ("built-in", "frozen") else None


@cache
def _version(top: str, place: str | None) -> str | None:
    if top == "cuesmith":
        return _installed(top)
    if place is None:
        return None
    if place in ("built-in", "frozen"):
        return _PYTHON
    path = Path(place)
    if any(part in _INSTALLED for part in path.parts):
        return _installed(top)
    return _PYTHON if any(path.is_relative_to(folder) for folder in _STDLIB) else None


def _installed(top: str) -> str:
    """Return the version of an installed package; that of its distribution where the module does not say it."""
    said = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(said, str):
        return said
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        names = _distributions().get(top, [])
        return " ".join(importlib.metadata.version(name) for name in sorted(set(names)))


@lru_cache(maxsize=1)
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def named(module: str, path: str) -> object:
    """Return what a module calls by a dotted name; None if there is no such thing."""
    found: object = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, "__dict__", {}).get(name)
        found = getattr(found, "__func__", found)
    return found


@lru_cache(maxsize=4096)
def globals_of(code: CodeType) -> tuple[str, ...]:
    """Return the global names that code and the code inside it read, sorted."""
    names = {name for inner in _nested(code) for name in globals_of(inner)}
    data, extended = code.co_code, 0
    for op, low in zip(data[::2], data[1::2], strict=True):
        argument = extended | low
        extended = argument << 8 if op == dis.EXTENDED_ARG else 0
        if op in _GLOBAL:
            names.add(code.co_names[argument >> _GLOBAL[op]])
    return tuple(sorted(names))


@lru_cache(maxsize=4096)
def names_of(code: CodeType) -> frozenset[str]:
    """Return all names in code and the code inside it: globals, attributes and imports."""
    return frozenset(code.co_names).union(*(names_of(inner) for inner in _nested(code)))


@lru_cache(maxsize=4096)
def imports_of(code: CodeType) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return (module, names taken from it) of every import inside a function; a relative one has leading dots."""
    found = [each for inner in _nested(code) for each in imports_of(inner)]
    if any(data == dis.opmap["IMPORT_NAME"] for data in code.co_code[::2]):
        read = [i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"]
        for level, names, step in zip(read, read[1:], read[2:], strict=False):
            if step.opname == "IMPORT_NAME":
                found.append(("." * int(level.argval or 0) + str(step.argval), tuple(names.argval or ())))
    return tuple(found)


def imported(name: str, package: str | None) -> ModuleType | None:
    """Return the module that code imports by `name`; a user's is imported now if it has not been yet.

    Args:
        name: As `imports_of` gives it.
        package: Of the module that the import stands in.

    Returns:
        None if it is a library's, or cannot be imported.
    """
    try:
        full = importlib.util.resolve_name(name, package)
        top = full.partition(".")[0]
        if top not in sys.modules:
            spec = importlib.util.find_spec(top)
            if spec is None:
                return None
            if _version(top, spec.origin or next(iter(spec.submodule_search_locations or ()), None)) is not None:
                return None
        elif version_of(full) is not None:
            return None
        return importlib.import_module(full)
    except Exception:  # a user's module may raise anything; the run will say so
        return None


def _nested(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]
