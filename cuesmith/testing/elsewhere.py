"""Another process that hashes differently, for all tests of this one that ask for it. Source: ours."""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from functools import cache
from typing import IO, cast

_PATIENCE_S = 300.0


class OtherProcess:
    """A process that does what it is sent, one after the other."""

    def __init__(self) -> None:
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONHASHSEED": "1"}
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._child = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env={**os.environ, **paths},
        )  # fmt: skip
        atexit.register(self._child.kill)

    def do(self, work: bytes) -> object:
        """Return what comes of a pickled callable and its arguments there.

        Args:
            work: The pickle of (callable, arguments).

        Raises:
            RuntimeError: If it raises, or takes more than five minutes.
        """
        assert self._child.stdin is not None and self._child.stdout is not None
        late = threading.Timer(_PATIENCE_S, self._child.kill)
        late.start()
        try:
            pickle.dump(work, self._child.stdin)
            self._child.stdin.flush()
            failed, found = cast(tuple[str, object], pickle.load(self._child.stdout))
        except (EOFError, OSError):
            elsewhere.cache_clear()
            self._errors.seek(0)
            raise RuntimeError(self._errors.read().decode(errors="replace")[-2000:]) from None
        finally:
            late.cancel()
        if failed:
            raise RuntimeError(failed)
        return found


@cache
def elsewhere() -> OtherProcess:
    """Return the process; it is started by the first who asks, and ends with this one."""
    return OtherProcess()


def serve() -> None:
    """Do what comes from standard input, and write what comes of it to standard output."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the work prints is no answer
    while True:
        try:
            work = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            done, arguments = pickle.loads(work)
            answer: tuple[str, object] = "", done(*arguments)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}", None
        pickle.dump(answer, out)
        out.flush()
