"""A border around code that calls language models from threads of its own, such as dspy's optimizers.

Every call inside it goes through the run's gate on behalf of one effect, whichever thread makes it: so calls are
counted and capped, and journalled under their content, and a resumed run is answered from the journal in whatever
order it asks again. Such code cannot tell a failed provider from a wrong answer (dspy's evaluation counts
both as 0), so a call that the provider fails after all retries stops the run instead. Once the border is closed
nothing is sent any more, whatever threads are left behind. Source: ours.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from types import new_class
from typing import TypeVar

import dspy
from dspy.utils.exceptions import LMInvalidRequestError

from cuesmith.modules.sampling import DRAWS_PER_ASK, draw
from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.calls import Request
from cuesmith.teleprompters.runtime.candidate import digest
from cuesmith.teleprompters.runtime.gate import Effect, Gate, effect
from cuesmith.teleprompters.runtime.ledger import Role, RunStopped, UnknownPrice
from cuesmith.teleprompters.runtime.outages import FilteredReply, is_outage

T = TypeVar("T")

_GRACE = 1.0
"""Seconds that a call in flight may outlast the budget's seconds: it is paid for."""
_TICK = 0.25
_ROLES: tuple[Role, ...] = ("target", "judge", "optimizer")


class Border:
    """Runs one piece of foreign code. Made on the event loop that waits for it; used once.

    Args:
        gate: Where all calls go through.
        name: Names the effects.
        timeout: Seconds a call may take before it stops the run; None for ever.
        on_refused: Called, from any thread, with a request that the provider refused: the foreign code sees that error.

    Attributes:
        replies: What came back from the optimizer's model, as it is journalled, and how it ended.
    """

    def __init__(self, gate: Gate, name: str, timeout: float | None, on_refused: Callable[[Exception], None]) -> None:
        self.gate = gate
        self.target, self.judge, self.optimizer = (_Foreign(name, role, gate, border=self) for role in _ROLES)
        self.replies: list[tuple[object, Sequence[str]]] = []
        self.loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._on_refused = on_refused
        self._lock = threading.Lock()
        self._closed = False
        self._calls: dict[object, float] = {}
        self._repeats: Counter[str] = Counter()
        self._fatal: BaseException | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread, and wait for it and for the calls that it has left in flight.

        Raises:
            RunStopped: If a cap is reached, the provider fails, or a call does not come back.
            UnknownPrice: If the budget is in dollars and a call reports no price.
            BaseException: What `work` raised, or `fail` was told.
        """
        done: asyncio.Future[T] = self.loop.create_future()
        context = contextvars.copy_context()
        left = self.gate.ledger.seconds_left
        deadline = None if left is None else time.monotonic() + left + _GRACE
        threading.Thread(target=context.run, args=(self._serve, work, done), name="cuesmith-host", daemon=True).start()
        try:
            while not done.done():
                await asyncio.wait({done}, timeout=_TICK)
                self._check_time(deadline)
            with self._lock:
                self._closed = True
            while self._calls:  # they are counted, and may be on their way
                self._check_time(deadline)
                await asyncio.sleep(0.005)
        finally:
            self._closed = self.target.abandoned = self.judge.abandoned = self.optimizer.abandoned = True
            if not done.done():
                done.cancel()
        if self._fatal is not None:
            done.exception()  # it is seen
            raise self._fatal
        return done.result()

    def _serve(self, work: Callable[[], T], done: asyncio.Future[T]) -> None:
        result: T
        failure: BaseException | None = None
        effect.set(self.target)
        try:
            result = work()
        except StopIteration as error:  # a future refuses it
            failure = RuntimeError(f"hosted code raised {error!r}")
        except BaseException as error:
            failure = error

        def settle() -> None:
            if done.done():
                return
            if failure is not None:
                done.set_exception(failure)
            else:
                done.set_result(result)

        with suppress(RuntimeError):  # the loop is gone, and with it all who waited
            self.loop.call_soon_threadsafe(settle)

    def fail(self, error: BaseException) -> None:
        """Close the border, so that the foreign code ends, and make `error` what the run ends with."""
        self._fatal = self._fatal or error
        self._closed = True

    def check(self) -> None:
        """Raise `RunStopped` if the border is closed."""
        if self._closed:
            raise RunStopped(self.gate.stopped_by or "stopped")

    def _check_time(self, deadline: float | None) -> None:
        now = time.monotonic()
        if deadline is not None and now > deadline:
            raise self.gate.stop("seconds", "the budget's cap on seconds is reached")
        with self._lock:
            oldest = min(self._calls.values(), default=now)
        if self._timeout is not None and now - oldest > self._timeout:
            raise self.gate.stop("outage", f"a call has no answer within {self._timeout} s")

    @contextmanager
    def calling(self, request: Request) -> Iterator[None]:
        """Let a call pass, and no provider's failure back through.

        Args:
            request: The call.
        """
        call = object()
        with self._lock:
            self.check()
            self._calls[call] = time.monotonic()
        drawn = draw.set(self._draw(request.parts) if request.role == "optimizer" and request.calls == 1 else None)
        try:
            yield
        except UnknownPrice as error:
            self.fail(error)
            raise self.gate.stop("configuration", str(error)) from error
        except FilteredReply:
            if request.role == "optimizer":
                self.replies.append((None, ["content_filter"]))
            raise
        except LMInvalidRequestError as error:
            self._on_refused(error)
            raise
        except Exception as error:
            if not is_outage(error):  # the model's own code failed, as a program's may
                raise
            raise self.gate.stop("outage", f"the provider failed: {error}") from error
        finally:
            draw.reset(drawn)
            with self._lock:
                del self._calls[call]

    def _draw(self, request: Sequence[object]) -> int:
        """Number a draw by what is asked and how often it was, for models that count: the same in a resumed run."""
        name = digest(*request)
        with self._lock:
            self._repeats[name] += 1
            return (int(name, 16) % 2**40) * DRAWS_PER_ASK + (self._repeats[name] - 1) % DRAWS_PER_ASK


@dataclass(eq=False)
class _Foreign(Effect):
    """The effect of all that is called within a border; whose call it is, the model says."""

    border: Border = field(kw_only=True)

    def role_of(self, model: object) -> Role:
        """Return the role that `hosted` gave the model, for all but a metric's calls."""
        return self.role if self.role == "judge" else getattr(model, "cuesmith_role", self.role)

    def hear(self, role: Role, stored: object, finish: Sequence[str]) -> None:
        """Keep a reply of the optimizer's."""
        if role == "optimizer":
            self.border.replies.append((stored, finish))

    def around(self, model: object, request: Request) -> AbstractContextManager[object]:
        """Let the call pass the border."""
        return self.border.calling(request)


def hosted(lm: dspy.BaseLM, role: Role) -> dspy.BaseLM:
    """Return a copy of a model whose calls, and those of its copies, have this role within a border."""
    copied = lm.copy()
    copied.cuesmith_role = role
    return copied


class _Loyal:
    """Mixed in front of a predictor: it keeps its LM when dspy's bootstrapping resets it."""

    lm: dspy.BaseLM | None

    def reset(self) -> None:
        """Reset all but the LM."""
        lm = self.lm
        super().reset()  # type: ignore[misc]
        self.lm = lm


def keep_models(program: dspy.Module) -> None:
    """Make predictors that have a model of their own keep it, in place."""
    for _, predictor in named_predictors(program):
        if predictor.lm is not None:
            predictor.__class__ = _loyal(type(predictor))


def _loyal(kind: type) -> type:
    """Return the class under the same name and module: dspy's optimizers show a program's source to the model."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return new_class(kind.__name__, (_Loyal, kind), exec_body=lambda space: space.update(names))
