"""Keeps libraries that print from a terminal that is not theirs.

dspy's optimizers print, draw progress bars and log each failed example; nothing turns that off for one run alone.
Here their output is dropped, told by the module that writes and by a mark in dspy's settings, which dspy hands on to
its own threads. What anything else writes, a metric's own prints included, passes. Source: ours.
"""

from __future__ import annotations

import builtins
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO, cast

import dspy

MARK = "cuesmith_hosted"
"""The setting, given by `dspy.context`, under which the libraries below are kept quiet."""

_LIBRARIES = frozenset({"dspy", "gepa", "optuna", "tqdm"})
_lock = threading.Lock()


class _Muffler:
    """Stands in for a standard stream, and is the stream in all but that hosted libraries' text is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.blocks = stream, 0

    def write(self, text: str) -> int:
        """Write what is not a hosted library's."""
        if _library(sys._getframe(1)) in _LIBRARIES and _is_hosted():
            return len(text)
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _library(frame: FrameType) -> str:
    """Return the top package of the code that writes, through whatever Ray or others have put in `print`'s place."""
    stands_in = getattr(builtins.print, "__code__", None)
    writer = frame.f_back if frame.f_code is stands_in and frame.f_back else frame
    return str(writer.f_globals.get("__name__", "")).partition(".")[0]


def _is_hosted() -> bool:
    return bool(dspy.settings.get(MARK, False))


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what hosted libraries write, as long as the block lasts.

    A block that was left behind holds the streams of its time alone: those that have come since are muffled anew.
    """
    with _lock:
        held = [] if None in (sys.stdout, sys.stderr) else [_muffled(sys.stdout), _muffled(sys.stderr)]
        if held:
            sys.stdout, sys.stderr = cast(list[TextIO], held)
    try:
        yield
    finally:
        with _lock:
            for muffler in held:
                muffler.blocks -= 1
            # Whoever replaced a stream meanwhile puts it back himself: a muffler left over lets all pass.
            sys.stdout, sys.stderr = _plain(sys.stdout), _plain(sys.stderr)


def _muffled(stream: TextIO) -> _Muffler:
    muffler = stream if isinstance(stream, _Muffler) else _Muffler(stream)
    muffler.blocks += 1
    return muffler


def _plain(stream: TextIO) -> TextIO:
    return stream.stream if isinstance(stream, _Muffler) and not stream.blocks else stream


def quieten(logger: str) -> None:
    """Drop what a hosted library's logger hands to its own handlers, which hold the streams of their first use."""
    for handler in logging.getLogger(logger).handlers:
        if _unless_hosted not in handler.filters:
            handler.addFilter(_unless_hosted)


def _unless_hosted(record: logging.LogRecord) -> bool:
    return not _is_hosted()
