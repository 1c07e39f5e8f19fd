"""One BLAS thread, wherever the embedded model computes. Source: ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


class _SingleBlasThread:
    """Counts who wants one BLAS thread: the first sets the limit, the last restores what was before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limit: AbstractContextManager[object] = nullcontext()

    def enter(self) -> None:
        with self._lock:
            if self._users == 0:
                self._limit = _blas_limit()
                self._limit.__enter__()
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limit.__exit__(None, None, None)

    def forget(self) -> None:
        """Start afresh in a forked child."""
        self._lock, self._users = threading.Lock(), 0


def _blas_limit() -> AbstractContextManager[object]:
    try:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped, unused-ignore]
    except ImportError:  # then only OPENBLAS_NUM_THREADS=1 and the like help
        return nullcontext()
    limit: AbstractContextManager[object] = ThreadpoolController().limit(limits=1, user_api="blas")
    return limit


_single_blas_thread = _SingleBlasThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_single_blas_thread.forget)


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread meanwhile.

    The products here take 10 to 300 microseconds. A second BLAS thread gains 10 to 25 % on an idle machine, but
    each product waits for both: with two busy processes on two cores it was 5 to 20 times slower.
    """
    _single_blas_thread.enter()
    try:
        yield
    finally:
        _single_blas_thread.leave()
