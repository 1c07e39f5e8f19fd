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
from concurrent.futures import Future
from dataclasses import dataclass

from cuesmith.modules.embedded.blas import single_blas_thread
from cuesmith.modules.embedded.engine import Completion, Decoder, Generation, NanoEngine


@dataclass(slots=True, eq=False)
class _Call:
    job: Generation
    future: Future[Completion]


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
        self._queue: deque[_Call] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, job: Generation) -> Future[Completion]:
        """Queue a prepared generation (see `NanoEngine.prepare`).

        Raises:
            RuntimeError: If the batcher is closed.
        """
        call = _Call(job, Future())
        with self._ready:
            if self._closed:
                raise RuntimeError("the embedded model has been closed")
            self._queue.append(call)
            if self._thread is None:
                self._thread = threading.Thread(target=_Worker(self).run, name="cuesmith-nano", daemon=True)
                self._thread.start()
            self._ready.notify()
        return call.future

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

    def take(self, most: int, *, wait: bool, expect: int) -> list[_Call] | None:
        """Take queued calls (for the worker).

        Args:
            most: Most calls to take.
            wait: Wait for a first call, and then up to `WINDOW` for `expect` of them.
            expect: How many calls are worth waiting for.

        Returns:
            The calls, possibly none; None once the batcher is closed.
        """
        with self._ready:
            if wait:
                self._ready.wait_for(lambda: self._queue or self._closed)
                deadline = time.monotonic() + self.WINDOW
                while len(self._queue) < expect and not self._closed and (left := deadline - time.monotonic()) > 0:
                    self._ready.wait(left)
            if self._closed:
                return None
            calls = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        return [call for call in calls if call.future.set_running_or_notify_cancel()]

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._queue)

    def abandon(self) -> list[_Call]:
        """Take all queued calls of a closed batcher."""
        with self._ready:
            calls = [call for call in self._queue if call.future.set_running_or_notify_cancel()]
            self._queue.clear()
        return calls


class _Worker:
    """The thread's side of a batcher."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher, self._engine = batcher, batcher.engine
        self._decoder = Decoder(self._engine)
        self._calls: dict[int, _Call] = {}
        self._peak, self._waited = 1, 0

    def run(self) -> None:
        while self._serve():
            pass
        error = RuntimeError("the embedded model has been closed")
        for call in [*self._calls.values(), *self._batcher.abandon()]:
            call.future.set_exception(error)

    def _serve(self) -> bool:
        """Serve one busy period, from the first call until no row is left; False once closed."""
        expect, self._peak = self._peak, 1
        calls = self._batcher.take(self._engine.MAX_ROWS, wait=True, expect=expect)
        if calls is None:
            return False
        with single_blas_thread():
            self._admit(calls)
            while self._decoder.active:
                self._step()
                newcomers = self._newcomers()
                if newcomers is None:
                    return False
                self._admit(newcomers)
        return True

    def _newcomers(self) -> list[_Call] | None:
        """Calls to admit between two steps; None once closed."""
        active, waiting = self._decoder.active, self._batcher.waiting
        self._waited = self._waited + 1 if waiting else 0
        enough = waiting >= active * self._batcher.JOIN_SHARE or self._waited >= self._batcher.JOIN_STEPS
        free = self._engine.MAX_ROWS - active
        most = free if waiting and enough else 0
        if most:
            self._waited = 0
        return self._batcher.take(most, wait=False, expect=0)

    def _admit(self, calls: list[_Call]) -> None:
        if not calls:
            return
        self._calls.update((id(call.job), call) for call in calls)
        try:
            self._finish(self._decoder.admit([call.job for call in calls]))
        except Exception as error:
            self._fail(error)
        self._peak = max(self._peak, self._decoder.active)

    def _step(self) -> None:
        try:
            self._finish(self._decoder.step())
        except Exception as error:
            self._fail(error)

    def _finish(self, jobs: list[Generation]) -> None:
        for job in jobs:
            call = self._calls.pop(id(job))
            try:
                call.future.set_result(self._engine.completion(job))
            except Exception as error:
                call.future.set_exception(error)

    def _fail(self, error: Exception) -> None:
        """An error in a batch leaves no row in a known state: all of them get it, later calls start afresh."""
        self._decoder = Decoder(self._engine)
        calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.future.set_exception(error)


_live: weakref.WeakSet[Batcher] = weakref.WeakSet()
_shared: dict[int, Batcher] = {}
_creating = threading.Lock()


def shared_batcher(engine: NanoEngine) -> Batcher:
    """The process's batcher of an engine."""
    with _creating:
        if id(engine) not in _shared:
            _shared[id(engine)] = Batcher(engine)
        return _shared[id(engine)]


@atexit.register
def _close_all() -> None:
    for batcher in list(_live):
        batcher.close(timeout=1.0)


def _after_fork() -> None:
    """The child has no worker, and locks may have been held by threads that do not exist in it."""
    global _creating
    _creating = threading.Lock()
    for batcher in list(_live):
        batcher.engine.prefixes.forget_threads()
        batcher._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
