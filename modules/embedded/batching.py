"""Concurrent calls to the embedded model, decoded together by one worker.

Calls from any number of threads and event loops queue up; a daemon thread admits them into a running
`cuesmith.modules.embedded.engine.Decoder` between decoding steps. A lone caller waits for nobody; where several
were waiting last time, the worker gives the others a few milliseconds to arrive, because admitting 32 prompts at
once costs a fraction of admitting them one by one.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from cuesmith.modules.embedded.blas import single_blas_thread
from cuesmith.modules.embedded.engine import Completion, Decoder, Generation, NanoEngine


class Batcher:
    """Decodes concurrent calls in shared batches; safe under threads, event loops and `os.fork`.

    Attributes:
        engine: The model.
    """

    WINDOW = 0.004
    """Seconds to wait for further callers, where the last batch had several."""

    JOIN_SHARE = 0.25
    """A running batch admits newcomers once they are this share of it, or when it has waited `JOIN_STEPS`."""

    JOIN_STEPS = 8
    """Most decoding steps that a newcomer waits for company."""

    def __init__(self, engine: NanoEngine) -> None:
        """Create a batcher; its thread starts with the first call."""
        self.engine = engine
        self._reset()
        _live.add(self)

    def _reset(self) -> None:
        self._ready = threading.Condition()
        self._queue: deque[tuple[Generation, Future[Completion]]] = deque()
        self._rows: dict[int, Future[Completion]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, job: Generation) -> Future[Completion]:
        """Queue a prepared generation (see `NanoEngine.prepare`).

        Raises:
            RuntimeError: If the batcher is closed.
        """
        future: Future[Completion] = Future()
        with self._ready:
            if self._closed:
                raise RuntimeError("the embedded model has been closed")
            self._queue.append((job, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="cuesmith-nano", daemon=True)
                self._thread.start()
            self._ready.notify()
        return future

    def complete(self, job: Generation) -> Completion:
        """Decode a generation together with whatever else is waiting."""
        return self.submit(job).result()

    async def acomplete(self, job: Generation) -> Completion:
        """`complete` for event loops."""
        return await asyncio.wrap_future(self.submit(job))

    def close(self, timeout: float = 5.0) -> None:
        """Refuse further calls, fail the waiting ones and end the worker; running rows are given up.

        Args:
            timeout: Most seconds to wait for the worker's current step.
        """
        with self._ready:
            self._closed = True
            thread = self._thread
            self._ready.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    # the worker's side

    def _work(self) -> None:
        self._decoder, expect = Decoder(self.engine), 1
        while self._wait(expect):
            expect = self._serve()
        with self._ready:
            left = [future for _, future in self._queue if future.set_running_or_notify_cancel()]
            self._queue.clear()
        self._fail(RuntimeError("the embedded model has been closed"), left)

    def _wait(self, expect: int) -> bool:
        """Wait for a first call, and then up to `WINDOW` for `expect` of them; False once closed."""
        with self._ready:
            self._ready.wait_for(lambda: self._queue or self._closed)
            deadline = time.monotonic() + self.WINDOW
            while len(self._queue) < expect and not self._closed and (left := deadline - time.monotonic()) > 0:
                self._ready.wait(left)
            return not self._closed

    def _serve(self) -> int:
        """Serve one busy period, until no row is left; return the most rows that ran at once."""
        with single_blas_thread:
            peak, waited = self._admit(), 0
            while self._decoder.active and not self._closed:
                self._settle(self._decoder.step)
                active, waiting = self._decoder.active, len(self._queue)
                waited = waited + 1 if waiting else 0
                if waiting and (waiting >= active * self.JOIN_SHARE or waited >= self.JOIN_STEPS):
                    peak, waited = max(peak, self._admit()), 0
        return peak

    def _admit(self) -> int:
        """Take what waits into the batch, as far as there is room; return how many rows it has then."""
        jobs, room = list[Generation](), self.engine.MAX_ROWS - self._decoder.active
        with self._ready:
            calls = [self._queue.popleft() for _ in range(min(room, len(self._queue)))]
        for job, future in calls:
            if future.set_running_or_notify_cancel():
                self._rows[id(job)] = future
                jobs.append(job)
        if jobs:
            self._settle(lambda: self._decoder.admit(jobs))
        return self._decoder.active

    def _settle(self, work: Callable[[], list[Generation]]) -> None:
        """Do the decoder's work and hand out what has ended."""
        try:
            for job in work():
                completion = self.engine.completion(job)
                self._rows.pop(id(job)).set_result(completion)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception, left: Iterable[Future[Completion]] = ()) -> None:
        """An error in a batch leaves no row in a known state: all of them get it, later calls start afresh."""
        self._decoder = Decoder(self.engine)
        futures, self._rows = [*self._rows.values(), *left], {}
        for future in futures:
            future.set_exception(error)


_live: weakref.WeakSet[Batcher] = weakref.WeakSet()
_shared: dict[int, Batcher] = {}


def shared_batcher(engine: NanoEngine) -> Batcher:
    """The process's batcher of an engine."""
    return _shared.get(id(engine)) or _shared.setdefault(id(engine), Batcher(engine))


@atexit.register
def _close_all() -> None:
    for batcher in list(_live):
        batcher.close(timeout=1.0)


def _after_fork() -> None:
    """The child has no worker, and locks may have been held by threads that do not exist in it."""
    for batcher in list(_live):
        batcher.engine.prefixes.forget_threads()
        batcher._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
