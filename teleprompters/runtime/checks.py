"""Checks of options that every part shares. Source: ours."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

HERE = {
    "reflection_lm": "'optimizer_lm'",
    "prompt_model": "'optimizer_lm'",
    "task_model": "the program's own model (dspy.configure, or its set_lm)",
    "num_threads": "'max_in_flight'",
    "log_dir": "'run_dir', an argument of compile",
}
"""Options of dspy's own optimizers -> what they are called here."""


def check_known(title: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise if an option that was given is none of those known.

    Raises:
        TypeError: If so; the message has what was probably meant, and all that there are.
    """
    if not (unknown := sorted({*given} - {*known})):
        return
    near = HERE.get(unknown[0]) or next(map(repr, difflib.get_close_matches(unknown[0], known, n=1)), "")
    meant = f"did you mean {near}? It takes" if near else "it takes"
    raise TypeError(f"{title} has no option {', '.join(unknown)}: {meant} {', '.join(sorted(known))}")


def whole(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    """Return `value` if it is a whole number in the range.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is out of range; the message says what was given and what is taken.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least or (most is not None and value > most):
        taken = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {taken}, got {value}")
    return value


def number(name: str, value: object, *, least: float, above: bool = False) -> float:
    """Return `value` if it is a finite number of at least `least`, or above it.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < least or (above and value == least):
        raise ValueError(f"{name} must be a finite number {'above' if above else 'of at least'} {least}, got {value!r}")
    return value


def chosen(name: str, value: T, among: Sequence[T]) -> T:
    """Return `value` if it is one of those.

    Raises:
        ValueError: If it is not.
    """
    if value not in among:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, among))}, got {value!r}")
    return value


def switch(name: str, value: object) -> bool:
    """Return `value` if it is True or False.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def folder(name: str, value: object) -> Path | None:
    """Return the folder that `value` names; None for None.

    Raises:
        TypeError: If it is no path.
        ValueError: If it is empty: that would be the working directory.
    """
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}={value!r} must be the path of a folder, such as 'runs/mine', or None")
    if value == "":
        raise ValueError(f"{name}='' names no folder: give one, such as 'runs/mine', or None to keep nothing")
    return Path(value)


def text(name: str, given: str) -> str:
    """Return the option's value, stripped.

    Raises:
        TypeError: If it is no text.
    """
    if not isinstance(given, str):
        raise TypeError(f"{name} must be a text, got {given!r}")
    return given.strip()
