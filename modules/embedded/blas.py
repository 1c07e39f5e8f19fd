"""One BLAS thread, wherever the embedded model computes. Source: ours."""

from __future__ import annotations

import os
import threading

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped, unused-ignore]


class _SingleBlasThread:
    """Keeps BLAS to one thread meanwhile: of several users the first sets the limit, the last restores what was before.

    The products here take 10 to 300 microseconds. A second BLAS thread gains 10 to 25 % on an idle machine, but
    each product waits for both: with two busy processes on two cores it was 5 to 20 times slower.
    """

    def __init__(self) -> None:
        """Start, or start afresh in a forked child."""
        self._lock, self._users = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._limit = ThreadpoolController().limit(limits=1, user_api="blas")
                self._limit.__enter__()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limit.__exit__(None, None, None)


single_blas_thread = _SingleBlasThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=single_blas_thread.__init__)  # type: ignore[misc]
