"""Checks of options that every part shares. Source: ours."""

from __future__ import annotations


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
