"""The one door through which every language-model call of a run leaves the process.

For each call, in this order: the journal is asked for its reply; the ledger must admit it; it is sent once;
a failure that may pass is tried again (backoff with jitter, Retry-After honoured); a failure that cannot
pass (wrong key, no credit, no such model) stops the run; the reply is journalled before anyone sees it.
The protocol is written once, free of I/O, and driven by a thread or by a coroutine. Source: ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeAlias, cast, get_args

from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
    LMInvalidRequestError,
    LMRateLimitError,
    LMUnsupportedModelError,
    is_retryable_lm_error,
)

from cuesmith.teleprompters.runtime.journal import Journal
from cuesmith.teleprompters.runtime.ledger import Ledger, Role, RunStopped, Ticket, UnknownPrice, Usage
from cuesmith.teleprompters.runtime.redaction import Redactor
from cuesmith.teleprompters.runtime.throttle import Throttle

_SECRET_OPTIONS = frozenset({"api_key", "api_base", "base_url", "headers", "extra_headers"})
_CHARACTERS_PER_TOKEN = 3
_UNKNOWN_REPLY_TOKENS = 1024
_KEPT_USAGE = ("calls", "input_tokens", "output_tokens", "usd", "cache_hits")

BACKOFF = 0.5
"""Seconds before the second attempt, doubled for each further one, without a hint of the provider's. Ours."""


@dataclass
class Effect:
    """The effect on whose behalf calls are made: names them in the journal and in the ledger.

    Attributes:
        key: Content hash of the effect.
        role: Whose call it is now; a metric's calls are the judge's.
        used: What its calls used, by role, replayed ones included.
        replayable: Whether the journal holds the replies to all its calls.
        finish: How each reply ended, as the provider says: "stop", "length", "content_filter", ...
        texts: If a list, the text of every request is added to it.
    """

    key: str
    role: Role
    counts: Counter[str] = field(default_factory=Counter)
    used: dict[Role, Usage] = field(default_factory=dict)
    replayable: bool = True
    finish: list[str] = field(default_factory=list)
    texts: list[str] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, role: Role, usage: Usage) -> None:
        """Count what a call used."""
        with self.lock:
            self.used[role] = self.used.get(role, Usage()) + usage

    def occurrence(self, request: str) -> int:
        """Return how often this request was made before within the effect."""
        with self.lock:
            self.counts[request] += 1
            return self.counts[request] - 1


effect: ContextVar[Effect | None] = ContextVar("cuesmith_effect", default=None)
"""The effect under way in this context."""


@dataclass(frozen=True)
class Request:
    """A call as the gate sees it.

    Attributes:
        model: The model's name.
        parts: Prompt, messages and options, for its content hash and its size.
        calls: How many calls leave the process for it (dspy sends n completions one by one).
        max_tokens: The reply's limit, if one is set.
        may_hit: Whether dspy's cache may answer.
        free: Whether the model runs in this process and costs nothing.
    """

    model: str
    parts: Sequence[object]
    calls: int
    max_tokens: int | None
    may_hit: bool
    free: bool


@dataclass(frozen=True)
class Reply:
    """What came back: dspy's outputs, and what the call used."""

    outputs: Sequence[object]
    usage: Usage
    price_known: bool
    finish: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wait:
    """An action of the protocol: wait for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Send:
    """An action of the protocol: send the call once."""


Protocol: TypeAlias = Generator[Wait | Send, "Reply | BaseException | None", Sequence[object]]

STOPPING: tuple[tuple[type[LMError], str], ...] = (
    (LMAuthError, "auth"),
    (LMBillingError, "billing"),
    (LMUnsupportedModelError, "configuration"),
    (LMConfigurationError, "configuration"),
)


class Gate:
    """Meters, journals, retries and refuses calls. Thread-safe.

    Args:
        ledger: Counts and caps.
        journal: Where replies are kept; None keeps none.
        throttle: Told of rate limits and successes.
        redactor: Applied to every text that is reported.
        on_retry: Called, from any thread, with (reason, delay in seconds, attempt).
        max_retries: Further attempts after the first.
    """

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal | None,
        throttle: Throttle,
        redactor: Redactor,
        on_retry: Callable[[str, float, int], None],
        max_retries: int = 5,
    ) -> None:
        self.ledger = ledger
        self.journal = journal
        self.throttle = throttle
        self.redactor = redactor
        self.max_retries = max_retries
        self.release: Callable[[], bool | None] = lambda: False
        self.reason = ""
        self.stopped_by: str | None = None
        self._on_retry = on_retry
        self._halt = threading.Event()
        self._jitter = random.Random()
        self._failures_in_a_row = 0
        self._at_cap: set[object] = set()
        if journal is not None:
            self._recount(journal)

    @property
    def at_cap(self) -> int:
        """How many calls wait at a cap for `release` to decide whether more may be spent."""
        return len(self._at_cap)

    def stop(self, by: str, reason: str = "") -> RunStopped:
        """Close the door: nothing is sent any more. Returns what to raise."""
        if self.stopped_by is None:
            self.stopped_by, self.reason = by, self.redactor(reason)
        self._halt.set()
        return RunStopped(self.stopped_by)

    def reopen(self) -> None:
        """Open the door again (for the final report, after a cap stopped the search)."""
        self._halt.clear()

    def check(self) -> None:
        """Raise `RunStopped` if the door is closed."""
        if self._halt.is_set():
            raise RunStopped(self.stopped_by or "stopped")

    def call(self, request: Request, send: Callable[[], Reply]) -> Sequence[object]:
        """Make one call from a thread. Returns dspy's outputs."""
        protocol = self._protocol(request)
        answer: Reply | BaseException | None = None
        while True:
            try:
                action = protocol.send(answer)
            except StopIteration as done:
                outputs: Sequence[object] = done.value
                return outputs
            answer = None
            if isinstance(action, Wait):
                self._halt.wait(action.seconds)
                continue
            try:
                answer = send()
            except BaseException as error:
                answer = error

    async def acall(self, request: Request, send: Callable[[], Awaitable[Reply]]) -> Sequence[object]:
        """Make one call from a coroutine. Returns dspy's outputs."""
        protocol = self._protocol(request)
        answer: Reply | BaseException | None = None
        while True:
            try:
                action = protocol.send(answer)
            except StopIteration as done:
                outputs: Sequence[object] = done.value
                return outputs
            answer = None
            if isinstance(action, Wait):
                await self._pause(action.seconds)
                continue
            try:
                answer = await send()
            except BaseException as error:
                answer = error

    async def _pause(self, seconds: float) -> None:
        """Sleep, but no longer than the door stays open."""
        end = time.monotonic() + seconds
        while not self._halt.is_set() and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.2))

    def _protocol(self, request: Request) -> Protocol:
        current = effect.get()
        role: Role = current.role if current else "target"
        if current and current.texts is not None:
            current.texts.append(request_text(*request.parts[:2]))
        key = _call_key(current, request) if current and self.journal else None
        if key is not None and current and (stored := self._recall(key, current, role)) is not None:
            return stored
        for attempt in range(self.max_retries + 1):
            ticket = yield from self._admission(role, request)
            answer = yield Send()
            if isinstance(answer, Reply):
                self._accept(ticket, request, answer, key, role)
                if current:
                    current.add(role, answer.usage)
                    current.finish.extend(answer.finish)
                    current.replayable &= _storable(answer.outputs)
                return answer.outputs
            failed = Usage(calls=request.calls, usd=0.0)
            self.ledger.settle(ticket, failed, answered=False)
            if key is not None:
                self._keep(f"{key}#{uuid.uuid4().hex}", role, None, failed)
            if current:
                current.add(role, failed)
            assert isinstance(answer, BaseException)
            yield Wait(self._after_failure(answer, attempt))
        raise AssertionError("the last attempt returns or raises")

    def _recall(self, key: str, current: Effect, role: Role) -> Sequence[object] | None:
        assert self.journal is not None
        body = self.journal.get("calls", key)
        if body is None:
            return None
        outputs, usage = body["outputs"], body["usage"]
        assert isinstance(outputs, list) and isinstance(usage, dict)
        current.add(role, Usage(**usage))
        current.finish.extend(map(str, _list(body.get("finish"))))
        return outputs

    def _recount(self, journal: Journal) -> None:
        """Count all that earlier sessions of the run paid, before anything is sent: its caps are the run's."""
        for body in journal.bodies("calls"):
            role, usage = body["role"], body["usage"]
            assert role in get_args(Role) and isinstance(usage, dict)
            self.ledger.replay(cast(Role, role), Usage(**usage))

    def _keep(
        self, key: str, role: Role, outputs: Sequence[object] | None, usage: Usage, finish: Sequence[str] = ()
    ) -> None:
        """Journal a call; without outputs it is only counted by a resumed run."""
        assert self.journal is not None
        used = {name: getattr(usage, name) for name in _KEPT_USAGE}
        kept = None if outputs is None else list(outputs)
        self.journal.put("calls", key, {"outputs": kept, "usage": used, "role": role, "finish": list(finish)})

    def _admission(self, role: Role, request: Request) -> Generator[Wait, object, Ticket]:
        budget = self.ledger.budget
        sized = budget.tokens is not None or budget.usd is not None
        size = len(str(request.parts)) // _CHARACTERS_PER_TOKEN if sized else 0
        reply = request.max_tokens if request.max_tokens is not None else _UNKNOWN_REPLY_TOKENS
        waiter, final = object(), False
        try:
            while True:
                self.check()
                answer = self.ledger.admit(role, request.calls, (size + reply) * request.calls, request.may_hit, size)
                if isinstance(answer, Ticket):
                    return answer
                if answer is None:
                    yield Wait(0.005)
                elif final:
                    raise self.stop(answer, f"the budget's cap on {answer} is reached")
                else:
                    self._at_cap.add(waiter)
                    more = self.release()
                    if more is None:
                        yield Wait(0.005)
                    # After a no, the ledger is asked once more: another call may have had its yes in between.
                    final = more is False
        finally:
            self._at_cap.discard(waiter)

    def _accept(self, ticket: Ticket, request: Request, reply: Reply, key: str | None, role: Role) -> None:
        # The journal first: a reply that a kill finds on its way there is paid twice.
        if key is not None and _storable(reply.outputs):
            self._keep(key, role, reply.outputs, reply.usage, reply.finish)
        elif key is not None:
            self._keep(f"{key}#{uuid.uuid4().hex}", role, None, reply.usage)
        self.ledger.settle(ticket, reply.usage)
        self._failures_in_a_row = 0
        self.throttle.speed_up()
        if self.ledger.budget.usd is not None and not reply.price_known and reply.usage.calls:
            self.stop("configuration", "unknown price")
            raise UnknownPrice(
                f"Budget(usd={self.ledger.budget.usd}) needs the price of every call, but {request.model} "
                "reports none: register its price with litellm.register_model and reach it by "
                "dspy.LM(..., engine='litellm'), or cap calls= or tokens="
            )

    def _after_failure(self, error: BaseException, attempt: int) -> float:
        """Return the seconds to wait before the next attempt, or raise what ends the call or the run."""
        if not isinstance(error, Exception):
            raise error
        for kind, by in STOPPING:
            if isinstance(error, kind) and not isinstance(error, ContextWindowExceededError):
                raise self.stop(by, str(error)) from error
        if not is_retryable_lm_error(error) or attempt == self.max_retries:
            if isinstance(error, LMError) and not isinstance(error, LMInvalidRequestError):
                self._note_outage(error)
            raise error
        hint = getattr(error, "retry_after", None)
        if isinstance(error, LMRateLimitError):
            self.throttle.slow_down(hint)
        backoff = min(60.0, BACKOFF * 2.0**attempt) * self._jitter.uniform(0.5, 1.5)
        delay = max(backoff, hint * self._jitter.uniform(1.0, 1.1)) if hint is not None else backoff
        self._on_retry(self.redactor(f"{type(error).__name__}: {error}"), delay, attempt + 1)
        return delay

    def _note_outage(self, error: Exception) -> None:
        """Many calls given up in a row, none answered in between: the provider is down, so stop and keep the rest."""
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= max(8, self.throttle.maximum):
            self.stop("outage", f"{self._failures_in_a_row} calls in a row failed after retries; the last: {error}")


def request_text(prompt: object, messages: object) -> str:
    """Return all text of a request to a model, given as one prompt or as messages."""
    held = [message.get("content") for message in _list(messages) if isinstance(message, Mapping)]
    blocks = [block for part in (prompt, *held) for block in (_list(part) or [part])]
    texts = [block.get("text") if isinstance(block, Mapping) else block for block in blocks]
    return "\n".join(text for text in texts if isinstance(text, str))


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _call_key(current: Effect, request: Request) -> str:
    text = repr((request.model, *request.parts))
    content = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return f"{current.key}:{current.role}:{content}:{current.occurrence(content)}"


def public_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return a call's options without keys, addresses and headers: they neither identify it nor may be kept."""
    return {name: option for name, option in options.items() if name not in _SECRET_OPTIONS}


def _storable(outputs: Sequence[object]) -> bool:
    """Whether JSON gives back what dspy's adapters read: text, or a dict of text (tool calls are richer)."""
    return all(
        isinstance(o, str) or (isinstance(o, dict) and all(v is None or isinstance(v, str) for v in o.values()))
        for o in outputs
    )
