"""Threads that run blocking work for an event loop, kept busy without a round trip to the loop between items.

A general executor costs about a third of a millisecond a program run, most of it in handing control back and
forth; here a thread takes the next item itself, and results reach the loop in batches. An item that takes too
long is given up: its thread is left behind and another takes its place. Source: ours; measured in
benchmarks/kernel.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cuesmith.teleprompters.runtime.throttle import Throttle

T = TypeVar("T")

_BATCH_S = 0.005
"""Seconds for which results are gathered while they keep coming."""

_GROW_S = 0.001
"""Seconds between two looks at whether more threads would help."""
_BUSY = 0.8
"""A process that uses this share of one processor is busy."""


def begun(work: Coroutine[object, object, T]) -> asyncio.Task[T]:
    """Begin work that may end when nobody waits for it any more, without asyncio's complaint of what ended it."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return task


@dataclass(eq=False)
class _Item(Generic[T]):
    work: Callable[[], T]
    context: contextvars.Context
    future: asyncio.Future[T]
    started: float = 0.0
    given_up: bool = False
    result: T | None = None
    error: BaseException | None = field(default=None)


class Workers:
    """A pool of daemon threads, as many at work as the throttle's limit allows, first come first served.

    Made and used on one event loop.

    Args:
        throttle: Its `limit` bounds the threads at work, its `maximum` the threads.
        timeout: Seconds an item may take; None for ever.
        deadline: Monotonic time after which items in flight are given up; None for never.
    """

    def __init__(self, throttle: Throttle, timeout: float | None, deadline: float | None) -> None:
        self._throttle = throttle
        self._timeout = timeout
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._ready = threading.Condition()
        self._queue: deque[_Item[object]] = deque()
        self._running: set[_Item[object]] = set()
        self._done: deque[_Item[object]] = deque()
        self._threads = 0
        self._idle = 0
        self._finished = 0
        self._growing = False
        self._waking = False
        self._watching = False
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Items at work."""
        return len(self._running)

    @property
    def pending(self) -> int:
        """Items that wait for a thread."""
        return len(self._queue)

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Queue work; it runs in a copy of this context.

        Returns:
            Its result or error; a `TimeoutError` if it was given up.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        item = _Item(work, contextvars.copy_context(), future)
        with self._ready:
            self._queue.append(item)  # type: ignore[arg-type]
            if self._idle:
                self._ready.notify()
            elif not self._threads:
                self._start(1)
            if not self._growing and self._lacks():
                self._growing = True
                self._loop.call_later(_GROW_S, self._grow, self._finished, time.monotonic(), time.process_time())
        if not self._watching and (self._timeout is not None or self._deadline is not None):
            self._watching = True
            self._watch()
        return future

    def _lacks(self) -> int:
        """How many more threads the queue could use."""
        return min(len(self._queue) - self._idle, self._throttle.maximum - self._threads)

    def _start(self, count: int) -> None:
        for _ in range(count):
            self._threads += 1
            threading.Thread(target=self._serve, name="cuesmith-worker", daemon=True).start()

    def _grow(self, finished: int, since: float, cpu: float) -> None:
        """Double the threads, unless they are as busy as the interpreter lets them be, and look again soon.

        Threads that compute hold each other up. So there are no more where each finishes its items within a
        millisecond or so and the processor is never idle; items that wait for a provider, or for company in a
        batch, take longer or leave it idle.
        """
        with self._ready:
            lacks, now = self._lacks(), time.monotonic()
            if self._closed or lacks <= 0:
                self._growing = False
                return
            elapsed, used = now - since, time.process_time() - cpu
            if (self._finished - finished) * _GROW_S < self._threads * elapsed or used < _BUSY * elapsed:
                self._start(min(lacks, max(1, self._threads)))
            self._loop.call_later(_GROW_S, self._grow, self._finished, now, time.process_time())

    def close(self) -> None:
        """Let the threads go; what is still in flight is left behind."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def _serve(self) -> None:
        while (item := self._take()) is not None:
            try:
                item.result = item.context.run(item.work)
            except BaseException as error:
                item.error = error
            if not self._finish(item):
                return

    def _take(self) -> _Item[object] | None:
        with self._ready:
            self._idle += 1
            while not self._closed and not (self._queue and self._throttle.admits(len(self._running))):
                self._ready.wait()
            self._idle -= 1
            if self._closed:
                return None
            item = self._queue.popleft()
            item.started = time.monotonic()
            self._running.add(item)
            return item

    def _finish(self, item: _Item[object]) -> bool:
        """Hand a result over; returns whether this thread still has its place."""
        with self._ready:
            if item.given_up or self._closed:
                return False
            self._running.discard(item)
            self._finished += 1
            self._done.append(item)
            if self._queue and self._idle:
                self._ready.notify()
            wake, self._waking = not self._waking, True
        if wake:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it all who waited
                self._loop.call_soon_threadsafe(self._deliver)
        return True

    def _deliver(self) -> None:
        with self._ready:
            done, self._done = self._done, deque()
            # While results keep coming the loop looks for them itself: waking it costs a thread its turn.
            self._waking = bool(done)
        if done:
            self._loop.call_later(_BATCH_S, self._deliver)
        for item in done:
            if item.future.done():
                continue
            if isinstance(item.error, StopIteration):  # a future refuses it
                item.future.set_exception(RuntimeError("the work raised StopIteration"))
            elif item.error is not None:
                item.future.set_exception(item.error)
            else:
                item.future.set_result(item.result)

    def _watch(self) -> None:
        """Give up what is overdue, and look again while there is work."""
        now = time.monotonic()
        with self._ready:
            late = [item for item in self._running if self._is_late(item, now)]
            for item in late:
                item.given_up = True
                self._running.discard(item)
                self._threads -= 1
            busy = not self._closed and bool(self._running or self._queue)
            for _ in late:
                self._ready.notify()
            self._start(max(0, min(len(late), self._lacks())))
            self._watching = busy
        for item in late:
            if not item.future.done():
                item.future.set_exception(TimeoutError())
        if busy:
            self._loop.call_later(min(1.0, (self._timeout or 1.0) / 10), self._watch)

    def _is_late(self, item: _Item[object], now: float) -> bool:
        overdue = self._timeout is not None and now - item.started > self._timeout
        return overdue or (self._deadline is not None and now > self._deadline)
