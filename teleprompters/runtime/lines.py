"""The order of what a program run does in several threads, as if they were run one after the other. Source: ours."""

from __future__ import annotations

import itertools
from contextvars import ContextVar


class ThreadLine:
    """One thread of a program run, which numbers what it does. What it begins goes on from such a number.

    So the order depends on the program alone, and not on which call is answered first. Tasks of one event loop share
    their thread's line.

    Args:
        path: The number of what began it.
    """

    def __init__(self, path: tuple[int, ...] = ()) -> None:
        self._path, self._numbers = path, itertools.count()

    def number(self) -> tuple[int, ...]:
        """Return the next number."""
        return (*self._path, next(self._numbers))


line: ContextVar[ThreadLine | None] = ContextVar("cuesmith_line", default=None)
"""The line of this thread; None where no program runs."""


def branched() -> ThreadLine | None:
    """Return the line of a thread, or of a task of a pool, that this thread begins."""
    current = line.get()
    return None if current is None else ThreadLine(current.number())
