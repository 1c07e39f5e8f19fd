"""Where a user's own code called Cuesmith: what a warning points at. Source: ours.

`skip_file_prefixes` of `warnings.warn` is Python 3.12's, and would not do: where an event loop runs already a compile
warns from a thread or a task of its own, on whose stack no line of the user's stands.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, NamedTuple

_NOT_THE_USERS = frozenset({"asyncio", "concurrent", "contextlib", "cuesmith", "dspy", "functools", "threading"})


class CallingLine(NamedTuple):
    """A line of code.

    Attributes:
        file: Its file.
        line: Its number.
        module: Its module's name.
        registry: Where Python notes what was warned of there already.
    """

    file: str
    line: int
    module: str
    registry: dict[Any, Any]

    def warn(self, text: str, kind: type[Warning]) -> None:
        """Warn as if from there."""
        warnings.warn_explicit(text, kind, self.file, self.line, self.module, self.registry)


def calling_line() -> CallingLine:
    """Return the innermost line on this thread's stack that is the user's; the outermost one if none is."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _root(frame.f_globals) in _NOT_THE_USERS:
        frame = frame.f_back
    module, registry = str(frame.f_globals.get("__name__")), frame.f_globals.setdefault("__warningregistry__", {})
    return CallingLine(frame.f_code.co_filename, frame.f_lineno, module, registry)


def _root(module: dict[str, Any]) -> str:
    return str(module.get("__name__")).partition(".")[0]
