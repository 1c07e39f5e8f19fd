"""A call that takes far longer than its kind is sent once more, and the first answer is taken. Opt-in.

Source: ours, after the hedged requests of Dean and Barroso 2013, "The Tail at Scale" (CACM 56, 74-80).
"""

from __future__ import annotations

import asyncio
import contextvars
import statistics
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

ENOUGH = 3
"""Answers of a kind from which on its median is taken for what such calls take: an optimizer is asked few things at a
time, and one of four may be the late one. Ours."""

TICK_S = 0.1
"""How soon a call under way is looked at again while nobody can tell what its kind takes. Ours."""

REMEMBERED = 256
"""Answers of a kind that the median is over. Ours."""


class HedgingPolicy:
    """When a call is late: measured by what calls of its kind take.

    Args:
        multiple: A call that takes more than so many times the median of its kind is late; None: none ever is.
    """

    def __init__(self, multiple: float | None) -> None:
        self.multiple = multiple
        self._seconds: dict[Hashable, deque[float]] = {}

    def note(self, kind: Hashable, seconds: float) -> None:
        """Take note of an answer."""
        if self.multiple is not None:
            self._seconds.setdefault(kind, deque(maxlen=REMEMBERED)).append(seconds)

    def patience(self, kind: Hashable) -> float | None:
        """Return after how many seconds a call of that kind is late; None as long as nobody can tell."""
        known = self._seconds.get(kind)
        if self.multiple is None or known is None or len(known) < ENOUGH:
            return None
        return self.multiple * statistics.median(tuple(known))

    def left(self, kind: Hashable, waited: float) -> float:
        """Return how long to wait for a call of that kind before it is looked at again; 0 or less if it is late.

        Args:
            kind: The call's.
            waited: Seconds since it was sent.
        """
        patience = self.patience(kind)
        return TICK_S if patience is None else patience - waited


class Tries(Generic[T]):
    """Threads that try the same. The first success counts; where all fail, the last failure.

    Args:
        succeeded: Whether an answer is a success.
        late: Given every other answer, whenever it comes.
    """

    def __init__(self, succeeded: Callable[[T], bool], late: Callable[[T], None]) -> None:
        self._succeeded, self._late = succeeded, late
        self._lock, self._over = threading.Lock(), threading.Event()
        self._answers: list[T] = []
        self._left = 0

    def begin(self, work: Callable[[], T]) -> None:
        """Begin a try in a thread of its own, in this context."""
        with self._lock:
            self._left += 1
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: self._put(context.run(work)), name="cuesmith-try", daemon=True)
        thread.start()

    def wait(self, left: Callable[[float], float] | None = None) -> T | None:
        """Return what counts; None once `left`, given the seconds waited so far, is 0 or less."""
        began = time.monotonic()
        while left is not None and not self._over.is_set():
            if (seconds := left(time.monotonic() - began)) <= 0:
                return None
            self._over.wait(seconds)
        self._over.wait()
        return self._answers[0]

    def _put(self, answer: T) -> None:
        with self._lock:
            self._left -= 1
            over = self._over.is_set()
            late = [answer] if over else []
            if not over and (self._succeeded(answer) or not self._left):
                late, self._answers = self._answers, [answer]
                self._over.set()
            elif not over:
                self._answers.append(answer)
        for each in late:
            self._late(each)


async def first_success(
    work: Callable[[], Awaitable[T]],
    left: Callable[[float], float],
    again: Callable[[], Callable[[], Awaitable[T]] | None],
    succeeded: Callable[[T], bool],
    late: Callable[[T], None],
) -> T:
    """Await work, and the same once more if it takes too long; the first success counts, or else the last failure.

    Args:
        work: What to await.
        left: Given the seconds waited so far: how long still, before it is begun once more.
        again: Returns what to await then; None if it is not to be begun again.
        succeeded: Whether an answer is a success.
        late: Given the other answer, whenever it comes.
    """
    tries = {asyncio.ensure_future(work())}
    began, done = time.monotonic(), set[asyncio.Task[T]]()
    while not done and (seconds := left(time.monotonic() - began)) > 0:
        done, _ = await asyncio.wait(tries, timeout=seconds)
    if not done and (second := again()) is not None:
        tries.add(asyncio.ensure_future(second()))
    while True:
        done, rest = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
        answer = done.pop().result()
        tries = {*done, *rest}
        if succeeded(answer) or not tries:
            for each in tries:
                each.add_done_callback(lambda task: None if task.cancelled() else late(task.result()))
            return answer
        late(answer)
