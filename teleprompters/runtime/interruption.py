"""Ctrl-C and SIGTERM while a compile runs: nothing more is sent, what is known is kept, and the caller has it in hand.

Source: ours.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import TypeVar

import dspy

from cuesmith.teleprompters.runtime.callers import calling_line
from cuesmith.teleprompters.runtime.gate import Gate

T = TypeVar("T")
logger = logging.getLogger("cuesmith")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C has ended a compile.

    Attributes:
        program: The best program so far, with its `compilation`; None if nothing had been scored.
    """

    def __init__(self, message: str, program: dspy.Module | None = None) -> None:
        """Remember how far the compile came."""
        super().__init__(message)
        self.program = program


class Terminated(SystemExit):
    """SIGTERM has ended a compile; the exit status is 143, as without a handler.

    Attributes:
        message: How far the compile came, and how to go on.
        program: The best program so far, with its `compilation`; None if nothing had been scored.
    """

    def __init__(self, message: str, program: dspy.Module | None = None) -> None:
        """Remember how far the compile came."""
        super().__init__(143)
        self.message = message
        self.program = program


class Interruption:
    """What a signal does to one compile.

    Args:
        compiles: Whether a program is the result; else there is none to hand over.

    Attributes:
        gate: The compile's gate, as soon as there is one: it is closed at once.
        program: The best program so far, once the compile has wound up.
        message: How far it came, in words.
        line: The user's, that began it.
    """

    def __init__(self, *, compiles: bool = True) -> None:
        self.compiles = compiles
        self.line = calling_line()  # now: a compile may run on a thread that knows nothing of its caller
        self.gate: Gate | None = None
        self.program: dspy.Module | None = None
        self.message = "interrupted before anything was called"
        self._signal: int | None = None
        self._cancel: Callable[[], object] = lambda: None
        self._running: asyncio.Task[object] | None = None

    def run(self, make: Callable[[], Coroutine[object, object, T]]) -> T:
        """Run a compile's coroutine to its end from sync code; a signal ends it early.

        Args:
            make: Makes the coroutine.

        Raises:
            Interrupted: After Ctrl-C.
            Terminated: After SIGTERM.
        """
        token = _current.set(self)
        try:
            with self._handling():
                finished = run_coroutine(functools.partial(self._attached, make))
            if self._signal is None:
                return finished
            self._came_late(finished)
        except asyncio.CancelledError:
            if self._signal is None:
                raise
        except KeyboardInterrupt:  # of a callback's, for one
            pass
        finally:
            _current.reset(token)
        raise self._what_to_raise()

    async def arun(self, make: Callable[[], Coroutine[object, object, T]]) -> T:
        """Await a compile's coroutine; a signal ends it as in `run`, where nobody else handles signals.

        Args:
            make: Makes the coroutine.

        Raises:
            Interrupted: After Ctrl-C.
            Terminated: After SIGTERM.
            asyncio.CancelledError: If the awaiting task was cancelled; how to go on is logged.
        """
        token, task = _current.set(self), asyncio.ensure_future(self._attached(make))
        try:
            with self._handling():
                finished = await task
            if self._signal is None:
                return finished
            self._came_late(finished)
        except asyncio.CancelledError:
            if self._signal is None:
                logger.warning(self.message)
                raise
        finally:
            _current.reset(token)
        raise self._what_to_raise()

    def _came_late(self, finished: object) -> None:
        if not self.compiles:
            self.message = "interrupted at the very end. Nothing was compiled; run it again (free with its run_dir)."
            return
        if isinstance(finished, dspy.Module):
            self.program = finished
        self.message = "interrupted when the compile had just ended: its result is this exception's `program`."

    def _what_to_raise(self) -> BaseException:
        if self._signal == signal.SIGTERM:
            logger.warning(self.message)
            return Terminated(self.message, self.program)
        return Interrupted(self.message, self.program)

    async def _attached(self, make: Callable[[], Coroutine[object, object, T]]) -> T:
        loop, self._running = asyncio.get_running_loop(), asyncio.current_task()
        self._cancel = lambda: loop.call_soon_threadsafe(self._cancel_running)
        try:
            return await make()
        finally:
            self._running = None  # a signal that comes this late takes nobody's result

    def _cancel_running(self) -> None:
        if self._running is not None:
            self._running.cancel()

    @contextmanager
    def _handling(self) -> Iterator[None]:
        """Handle the signals that nobody else handles; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        ours = [number for number, handler in before.items() if _is_default(handler)]
        for number in ours:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number in ours:
                signal.signal(number, before[number])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:  # asked twice: at once, then
            raise KeyboardInterrupt
        self.interrupt(number)

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """End the compile as a signal does. Called from any thread."""
        self._signal = number
        if self.gate is not None:
            self.gate.stop("interrupted", f"the process got {signal.Signals(number).name}")
        self._cancel()


def current() -> Interruption | None:
    """Return what would end the compile that this code is a part of."""
    return _current.get()


_current: ContextVar[Interruption | None] = ContextVar("cuesmith_interruption", default=None)


def warn(text: str, kind: type[Warning]) -> None:
    """Warn at the user's line that has begun what runs in this context."""
    interruption = current()
    (calling_line() if interruption is None else interruption.line).warn(text, kind)


def _is_default(handler: object) -> bool:
    """Whether a handler is Python's own, or the one that asyncio puts in its place while a loop runs."""
    of_asyncio = getattr(getattr(handler, "func", None), "__module__", "").startswith("asyncio")
    return handler in (signal.default_int_handler, signal.SIG_DFL) or of_asyncio


def run_coroutine(make: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run a coroutine to its end from sync code, also where an event loop is running (a notebook).

    Args:
        make: Makes the coroutine; called once, on the thread that runs it, in a copy of this context.
    """
    if not _in_loop():  # asked apart, or every error would be told as one that came of "no running event loop"
        return asyncio.run(_alone(make))
    result: Future[T] = Future()
    context = contextvars.copy_context()

    def serve() -> None:
        try:
            result.set_result(context.run(lambda: asyncio.run(_alone(make))))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=serve, name="cuesmith", daemon=True).start()
    return result.result()


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _alone(make: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run a coroutine on an event loop of its own, and end what a stop has left behind of it (`asyncio.gather` does),
    so that asyncio has nothing to complain of when it closes the loop."""
    try:
        return await make()
    finally:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
