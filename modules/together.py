"""Concurrent calls answered together, by whichever caller comes first. Source: ours.

No thread of its own: the first caller answers everything that waits, itself included, and callers that arrive in
the meantime are the next batch. A lone caller waits for nobody, and nothing has to be closed.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["Together"]

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Call(Generic[Job, Result]):
    job: Job
    result: Result | None = None
    error: BaseException | None = None
    done: bool = False


class Together(Generic[Job, Result]):
    """Calls `answer` with the jobs of all callers that wait. Thread-safe, usable in a forked child.

    Args:
        answer: Gives one result for each job, in their order. It is never called twice at once.
        most: Most jobs that it gets in one call.
    """

    def __init__(self, answer: Callable[[Sequence[Job]], Sequence[Result]], most: int = 64) -> None:
        self._answer = answer
        self._most = most
        self._reset()
        _live.add(self)

    def _reset(self) -> None:
        self._ready = threading.Condition()
        self._queue: deque[_Call[Job, Result]] = deque()
        self._busy = False

    def __call__(self, job: Job) -> Result:
        """Return the job's result.

        Raises:
            Exception: What `answer` raised for this job. Where it fails for several, each is tried alone.
        """
        call: _Call[Job, Result] = _Call(job)
        with self._ready:
            self._queue.append(call)
        while True:
            with self._ready:
                self._ready.wait_for(lambda: call.done or not self._busy)
                if call.done:
                    break
                self._busy = True
                batch = [self._queue.popleft() for _ in range(min(self._most, len(self._queue)))]
            self._lead(batch)
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value]

    def _lead(self, batch: list[_Call[Job, Result]]) -> None:
        try:
            self._serve(batch)
        finally:  # an interrupt of the leader leaves the others' jobs to the next one
            with self._ready:
                self._queue.extendleft(reversed([call for call in batch if not call.done]))
                self._busy = False
                self._ready.notify_all()

    def _serve(self, batch: list[_Call[Job, Result]]) -> None:
        try:
            results = self._answer([call.job for call in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].error, batch[0].done = error, True
                return
            for call in batch:
                self._serve([call])
        else:
            for call, result in zip(batch, results, strict=True):
                call.result, call.done = result, True


_live: weakref.WeakSet[Together[Any, Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(_live):  # locks of threads that are not there any more
        each._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
