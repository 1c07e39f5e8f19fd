"""What every call of a run goes through before it leaves the process: the protocol behind the door (`_dspy`).

For each call, in this order: the journal is asked for its reply; the ledger must admit it; it is sent once;
a failure that may pass is tried again (backoff with jitter, Retry-After honoured); a failure that cannot
pass (wrong key, no credit, no such model) stops the run; the reply is journalled before anyone sees it.
The protocol is written once, free of I/O, and driven by a thread or by a coroutine. Source: ours.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast, get_args

from dspy.utils.exceptions import LMError, LMRateLimitError

from cuesmith.teleprompters.runtime.admissions import (
    Admission,
    Answer,
    Protocol,
    Send,
    Wait,
    aattempted,
    admission,
    attempted,
    is_reply,
    used_by,
)
from cuesmith.teleprompters.runtime.calls import Reply, Request, thought
from cuesmith.teleprompters.runtime.hedging import HedgingPolicy, Tries, first_success
from cuesmith.teleprompters.runtime.journal import Journal, JournalError
from cuesmith.teleprompters.runtime.ledger import Cap, Ledger, Role, RunStopped, Ticket, UnknownPrice, Usage
from cuesmith.teleprompters.runtime.outages import (
    EmptyReply,
    FilteredReply,
    Refused,
    is_outage,
    is_refused,
    is_transient,
    stopped_by,
)
from cuesmith.teleprompters.runtime.redaction import Redactor
from cuesmith.teleprompters.runtime.throttle import Throttle
from cuesmith.teleprompters.runtime.watch import Watch

_CHARACTERS_PER_TOKEN = 3
_UNKNOWN_REPLY_TOKENS = 1024

_NOTHING: AbstractContextManager[object] = nullcontext()

_HISTORY = 64
"""Calls of one effect that stand in the histories of models and modules. Ours."""

LONGEST_WAIT = 120.0
"""Seconds that a provider may ask to wait before the next attempt; more means an outage. Ours."""

BACKOFF = 0.5
"""Seconds before the second attempt, doubled for each further one, without a hint of the provider's. Ours."""


@dataclass(eq=False)
class Effect:
    """The effect on whose behalf calls are made: names them in the journal and in the ledger.

    Attributes:
        key: Content hash of the effect.
        role: Whose call it is now; a metric's calls are the judge's.
        gate: Where its calls go through.
        judge: Whose the metric's calls are.
        used: What its calls used, by role, replayed ones included.
        replayable: Whether the journal holds the replies to all its calls.
        failure: Why a call failed for good, if one did: then nothing is known of the effect, whatever its code made
            of the error.
        failures: How many did.
        sending: How many calls of its are on their way, or wait to be tried again.
        refused: Why requests were refused as invalid, by who made them; who is answered later has recovered.
        finish: Why each reply ended ("stop", "length", ...), in the order of the replies.
        said: The target's replies as they are journalled, in the order in which they came.
        texts: If not None, the requests are added to it as text.
        over: Its result is known: what threads that it has left behind still do is no part of it.
        abandoned: Nobody waits for its result any more: none of its calls is sent.
        stopped: Whether a call of it was refused because the run has been stopped.
    """

    key: str
    role: Role
    gate: Gate | None = None
    judge: Role = "judge"
    counts: Counter[str] = field(default_factory=Counter)
    used: dict[Role, Usage] = field(default_factory=dict)
    replayable: bool = True
    failure: str = ""
    failures: int = 0
    sending: int = 0
    refused: dict[object, str] = field(default_factory=dict)
    finish: list[str] = field(default_factory=list)
    said: list[object] = field(default_factory=list)
    texts: list[str] | None = None
    over: bool = False
    abandoned: bool = False
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    histories: deque[tuple[list[object], object]] = field(default_factory=deque, repr=False)

    def keep(self, history: list[object], entry: object) -> None:
        """Put a call into a history, until the effect is over or has made many more."""
        with self.lock:
            if self.over:
                return
            history.append(entry)
            self.histories.append((history, entry))
            if len(self.histories) > _HISTORY:
                _forget(*self.histories.popleft())

    def begin_again(self) -> None:
        """Forget what was done for it: the process that did it is gone. What was paid is in the ledger."""
        with self.lock:
            for held in (self.counts, self.used, self.refused, self.finish, self.said, self.texts or []):
                held.clear()
            self.failure, self.failures, self.replayable = "", 0, True

    def end(self) -> None:
        """Note that the result is known, and take the effect's calls out of the histories."""
        with self.lock:
            self.over, self.abandoned = True, self.abandoned or self.stopped
            while self.histories:
                _forget(*self.histories.popleft())

    def role_of(self, model: object) -> Role:
        """Return whose call one to `model` is."""
        return self.role

    def around(self, model: object, request: Request) -> AbstractContextManager[object]:
        """Return what a call is made within."""
        return _NOTHING

    def add(self, role: Role, usage: Usage) -> None:
        """Count what a call used."""
        with self.lock:
            self.used[role] = self.used.get(role, Usage()) + usage

    def hear(self, role: Role, stored: object, finish: Sequence[str]) -> None:
        """Keep a reply of the target's."""
        if role == "target":
            self.said.append(stored)

    def fail(self, reason: str) -> None:
        """Note that a call failed for good."""
        with self.lock:
            self.failure = self.failure or reason
            self.failures += 1

    def occurrence(self, request: str) -> int:
        """Return how often this request was made before within the effect."""
        with self.lock:
            self.counts[request] += 1
            return self.counts[request] - 1

    @property
    def cut(self) -> int:
        """How many replies were cut at the limit of tokens."""
        return self.finish.count("length")


effect: ContextVar[Effect | None] = ContextVar("cuesmith_effect", default=None)
"""The effect under way in this context."""


hired: ContextVar[bool] = ContextVar("cuesmith_hired", default=False)
"""Whether this thread is one that a program has begun by itself."""


class Gate:
    """Meters, journals, retries and refuses calls. Thread-safe.

    Args:
        ledger: Counts and caps.
        journal: Where replies are kept; None keeps none.
        throttle: Told of rate limits and successes.
        redactor: Applied to every text that is reported.
        on_retry: Called, from any thread, with (reason, delay in seconds, attempt).
        max_retries: Further attempts after the first.
        hedge: A call that takes more than so many times the median of its role and model is sent once more.

    Attributes:
        hedged: How many were.
        stray: The effect of calls that no effect of the run makes, such as those of threads begun before it.
        cleaned: Whether thinking was taken off a reply of the target's.
        unseen: What the door sees only in part, in words.
        stopped_by: What has stopped the run; None while nothing has.
        reason: Why, in words.
    """

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal | None,
        throttle: Throttle,
        redactor: Redactor,
        on_retry: Callable[[str, float, int], None],
        max_retries: int = 5,
        hedge: float | None = None,
    ) -> None:
        self.hedging, self.hedged, self.cleaned = HedgingPolicy(hedge), 0, False
        self.ledger = ledger
        self.journal = journal
        self.throttle = throttle
        self.redactor = redactor
        self.max_retries = max_retries
        self.release: Callable[[], bool | None] = lambda: False
        self.reason = ""
        self.stopped_by: str | None = None
        self.stray = Effect("stray", "other", self)
        self.unseen: set[str] = set()
        self._on_retry = on_retry
        self._halt = threading.Event()
        self._closed = False
        self._jitter = random.Random()
        self._watch = Watch(max_retries)
        self._sent: dict[Admission, tuple[Request, float]] = {}
        self._at_cap: set[object] = set()
        self._foreign: set[Ticket] = set()
        if journal is not None:
            self._recount(journal)

    @property
    def at_cap(self) -> int:
        """How many calls wait at a cap for `release` to decide whether more may be spent."""
        return len(self._at_cap)

    @property
    def in_flight(self) -> int:
        """How many calls have been sent and not come back."""
        return len(self._sent)

    def stop(self, by: str, reason: str = "") -> RunStopped:
        """Close the door: nothing is sent any more. Returns what to raise."""
        if self.stopped_by is None:
            self.stopped_by, self.reason = by, self.redactor(reason)
        self._halt.set()
        return RunStopped(self.stopped_by)

    def reopen(self) -> None:
        """Open the door again (for the final report, after a cap stopped the search)."""
        if not self._closed:
            self.stray.stopped = False
            self._halt.clear()

    def close(self) -> None:
        """Close the door for good: the run is over, and what it has left behind sends nothing more."""
        self._closed = True
        self._halt.set()

    def is_closed_to(self, current: Effect | None) -> bool:
        """Whether the door is closed, to all or to this effect."""
        return self._halt.is_set() or (current is not None and current.abandoned)

    def check(self, current: Effect | None = None) -> None:
        """Raise `RunStopped` if the door is closed, to all or to this effect."""
        if self.is_closed_to(current):
            raise RunStopped(self.stopped_by or "stopped")

    def note_timeout(self, seconds: float | None, sending: bool) -> str:
        """Note that an effect was given up: a provider that hangs is as good as one that is down. Returns why.

        Args:
            seconds: What it was given.
            sending: Whether a call of its was on its way.
        """
        code = "the program or the metric did not end within {} s, with no call of a model on its way"
        reason = ("no answer within {} s" if sending else code).format(seconds)
        self._note_outage(reason, what="calls" if sending else "program runs")
        return reason

    def check_silence(self) -> None:
        """Stop the run if calls of a model are under way and it has been silent for far longer than any answer took.

        A model that runs in this process has no provider that could be down: it is slow.
        """
        waiting: dict[tuple[str, Role], list[float]] = defaultdict(list)
        with suppress(RuntimeError):  # changed by a thread meanwhile: it is looked at again soon
            for place, (request, began) in self._sent.items():
                if not request.free:
                    waiting[request.model, place.ticket.role].append(began)
        for (model, role), sent in waiting.items():
            if reason := self._watch.silence(model, role, sent):
                self.stop("outage", reason)

    def call(self, request: Request, send: Callable[[], Reply], current: Effect | None = None) -> object:
        """Make one call from a thread, on behalf of an effect. Returns what the caller gets."""
        current = current or effect.get() or self.stray
        protocol = self.conduct(request, current)
        answer: Reply | BaseException | None = None
        while True:
            try:
                action = protocol.send(answer)
            except StopIteration as done:
                return done.value
            except RunStopped as stop:
                raise self._refusal(current, stop) from None
            answer = None
            if isinstance(action, Wait):
                self._halt.wait(action.seconds)
                continue
            answer = self._send(action.admission, request, send, current)

    async def acall(
        self, request: Request, send: Callable[[], Awaitable[Reply]], current: Effect | None = None
    ) -> object:
        """Make one call from a coroutine. Arguments and result are those of `call`."""
        current = current or effect.get() or self.stray
        protocol = self.conduct(request, current)
        answer: Reply | BaseException | None = None
        while True:
            try:
                action = protocol.send(answer)
            except StopIteration as done:
                return done.value
            except RunStopped as stop:
                raise self._refusal(current, stop) from None
            answer = None
            if isinstance(action, Wait):
                await self._pause(action.seconds)
                continue
            answer = await self._asend(action.admission, request, send, current)

    def _send(self, place: Admission, request: Request, send: Callable[[], Reply], current: Effect) -> Answer:
        """Send a call, once more if it is late, and return what came back: a failure is an answer too."""
        if self.hedging.multiple is None or place.outer is not None:
            return attempted(place, send)
        left = partial(self.hedging.left, (place.ticket.role, request.model))
        spares: list[Admission] = []
        tries = Tries[Answer](is_reply, lambda answer: self.settle_spare(spares[0], request, answer, current))
        tries.begin(lambda: attempted(place, send))
        if (answer := tries.wait(left)) is None and (spare := self.spare(place, request)) is not None:
            spares.append(spare)
            tries.begin(lambda: attempted(spare, send))
        found = answer or tries.wait()
        assert found is not None
        return found

    async def _asend(
        self, place: Admission, request: Request, send: Callable[[], Awaitable[Reply]], current: Effect
    ) -> Answer:
        """Send a call as `_send` does."""
        if self.hedging.multiple is None or place.outer is not None:
            return await aattempted(place, send)
        left = partial(self.hedging.left, (place.ticket.role, request.model))
        spares: list[Admission] = []

        def again() -> Callable[[], Awaitable[Answer]] | None:
            if (spare := self.spare(place, request)) is None:
                return None
            spares.append(spare)
            return lambda: aattempted(spare, send)

        return await first_success(
            lambda: aattempted(place, send),
            left,
            again,
            is_reply,
            lambda answer: self.settle_spare(spares[0], request, answer, current),
        )

    def spare(self, place: Admission, request: Request) -> Admission | None:
        """Return a second place for a late call; None if no budget is left for it, or it is made of other calls."""
        if place.taken or place.lost or self._halt.is_set():
            return None
        ticket = self._admit(place.ticket.role, request, self._size(request))
        if not isinstance(ticket, Ticket):
            return None
        spare = Admission(ticket, self)
        self._sent[spare] = request, time.monotonic()
        self.hedged += 1
        return spare

    def settle_spare(self, spare: Admission, request: Request, answer: Answer, current: Effect) -> None:
        """Count the other try of a call whose answer was not taken."""
        self._sent.pop(spare, None)
        if spare.lost:
            return
        usage = used_by(answer, request.calls)
        self.ledger.settle(spare.ticket, usage, answered=isinstance(answer, Reply))
        current.add(spare.ticket.role, usage)
        if self.journal is not None:
            with suppress(RunStopped):  # the journal's own failure has stopped the run
                self._keep("lost", spare.ticket.role, None, usage)

    def admit_foreign(self, request: Request, current: Effect, role: Role) -> Ticket:
        """Admit a call that is about to be sent past the door, from the thread that sends it; settled when it is over.

        Raises:
            RunStopped: If it may not be sent.
        """
        asking = self.admit_foreign_steps(request, current, role)
        while True:
            try:
                self._halt.wait(next(asking).seconds)
            except StopIteration as done:
                ticket: Ticket = done.value
                return ticket
            except RunStopped as stop:
                raise self._refusal(current, stop) from None

    def admit_foreign_steps(self, request: Request, current: Effect, role: Role) -> Generator[Wait, object, Ticket]:
        """Yield what to wait for before `admit_foreign` has its answer; returns that."""
        place = yield from self._admission(role, request, current)
        self._foreign.add(place.ticket)
        return place.ticket

    async def settled(self, patience: float = 1.0) -> None:
        """Wait until calls that were sent past the door have told what they used, which they do a little late."""
        end = time.monotonic() + patience
        while self._foreign and time.monotonic() < end:
            await asyncio.sleep(0.005)

    async def drained(self, patience: float) -> None:
        """Wait until all calls that have been sent are back, and kept; whoever made them may not wait for them."""
        end = time.monotonic() + patience
        while self._sent and time.monotonic() < end:
            await asyncio.sleep(0.005)

    def note_unseen(self, what: str) -> None:
        """Note what the door sees only in part; a resumed run says it too."""
        if what not in self.unseen:
            self.unseen.add(what)
            if self.journal is not None:
                self._keep(f"unseen:{what}", "other", None, Usage(), unseen=what)

    def settle_foreign(self, ticket: Ticket, usage: Usage, current: Effect, failure: str = "") -> None:
        """Count what a call that was sent past the door has used; it cannot be given again, so it is only counted."""
        if ticket not in self._foreign:
            return  # it was counted as lost when the run ended
        self.ledger.settle(ticket, usage, answered=not failure)
        current.add(ticket.role, usage)
        if failure:
            current.fail(self.redactor(failure)[:400])
        try:
            if self.journal is not None:
                self._keep(f"{current.key}:past", ticket.role, None, usage)
        finally:  # not before it is kept: the end of a run waits for this, and closes the journal
            self._foreign.discard(ticket)

    def _refusal(self, current: Effect, stop: RunStopped) -> BaseException:
        """Mark the effect, whose result can mean nothing any more, and return what to raise in this thread."""
        current.stopped = True
        return Refused(f"the run is stopped ({stop})") if hired.get() or current is self.stray else stop

    async def _pause(self, seconds: float) -> None:
        """Sleep, but no longer than the door stays open."""
        end = time.monotonic() + seconds
        while not self._halt.is_set() and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.2))

    def conduct(self, request: Request, current: Effect) -> Protocol:
        """Yield what is to be done for a call, step by step; returns what the caller gets."""
        current.sending += 1
        try:
            return (yield from self._protocol(request, current))
        finally:
            current.sending -= 1

    def _protocol(self, request: Request, current: Effect) -> Protocol:
        role: Role = request.role or current.role
        key = _call_key(current, role, request) if self.journal is not None else None
        if current.texts is not None:
            current.texts.append(request.text)
        if key is not None and (body := self._recall(key, current, role)) is not None:
            self.ledger.foresee(role, self._size(request))
            return request.load(body)
        for attempt in range(self.max_retries + 1):
            place = yield from self._admission(role, request, current)
            began = time.monotonic()
            self._sent[place] = request, began
            answer = yield Send(place)
            self._sent.pop(place, None)
            if place.lost:
                self.check(current)
                raise RunStopped(self.stopped_by or "stopped")
            if isinstance(answer, Reply):
                seconds = time.monotonic() - began
                self._watch.heard(request.model, role, seconds)
                self.hedging.note((role, request.model), seconds)
                self._accept(place, request, answer, key, role, current)
                return answer.outputs
            assert isinstance(answer, BaseException)
            self._settle_failed(place, request, answer, key, role, current)
            yield Wait(self._after_failure(answer, attempt, place, request, current))
        raise AssertionError("the last attempt returns or raises")

    def _recall(self, key: str, current: Effect, role: Role) -> object:
        """Return what the journal holds of the reply, or None."""
        assert self.journal is not None
        try:
            body = self.journal.get("calls", key)
        except JournalError as error:
            raise self.stop("journal", str(error)) from None
        if body is None or body["outputs"] is None:
            return None
        usage, finish = body["usage"], body["finish"]
        assert isinstance(usage, dict) and isinstance(finish, list)
        current.add(role, Usage(**usage))
        current.finish.extend(finish)
        if admission.get() is None:
            current.hear(role, body["outputs"], finish)
        current.refused.pop(current, None)
        return body["outputs"]

    def _recount(self, journal: Journal) -> None:
        """Count all that earlier sessions of the run paid, before anything is sent: its caps are the run's."""
        for body in journal.bodies("calls"):
            role, usage = body["role"], body["usage"]
            if isinstance(unseen := body.get("unseen"), str):
                self.unseen.add(unseen)
            self.cleaned |= thought(body["role"], body["outputs"])
            assert role in get_args(Role) and isinstance(usage, dict)
            self.ledger.replay(cast(Role, role), Usage(**usage))

    def _keep(self, key: str, role: Role, reply: Reply | None, usage: Usage, **more: str) -> None:
        """Journal a call; without a reply, or one that cannot be kept, it is only counted by a resumed run."""
        assert self.journal is not None
        stored, finish = (None, ()) if reply is None else (reply.stored, reply.finish)
        if stored is None:
            key = f"{key}#{uuid.uuid4().hex}"
        try:
            body = {"outputs": stored, "usage": usage.to_json(), "role": role, "finish": list(finish), **more}
            self.journal.put("calls", key, body)
        except JournalError as error:
            raise self.stop("journal", str(error)) from None

    def _size(self, request: Request) -> int:
        """Return about how many tokens a request has, if that matters."""
        return request.characters // _CHARACTERS_PER_TOKEN if self.ledger.budget.sizes else 0

    def _admit(self, role: Role, request: Request, size: int) -> Ticket | Cap | None:
        """Ask the ledger for a place once, as `Ledger.admit`; `size` is the request's."""
        reply = request.max_tokens if request.max_tokens is not None else _UNKNOWN_REPLY_TOKENS
        return self.ledger.admit(role, request.calls, (size + reply) * request.calls, request.may_hit, size)

    def _admission(self, role: Role, request: Request, current: Effect) -> Generator[Wait, object, Admission]:
        outer = admission.get()
        depth = 0 if outer is None else outer.depth + 1
        if outer is not None and not outer.taken and not outer.sent and not self._halt.is_set():
            outer.taken = True
            return Admission(outer.ticket, self, depth, outer=outer)
        size = self._size(request)
        waiter, final = object(), False
        try:
            while True:
                self.check(current)
                answer = self._admit(role, request, size)
                if isinstance(answer, Ticket):
                    return Admission(answer, self, depth)
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

    def _accept(
        self, place: Admission, request: Request, reply: Reply, key: str | None, role: Role, current: Effect
    ) -> None:
        usage = Usage() if place.taken else reply.usage
        # The journal first: a reply that a kill finds on its way there is paid twice.
        ended = reply.finish or tuple(place.finish)
        if key is not None:
            self._keep(key, role, replace(reply, finish=ended), usage)
        if place.outer is not None:
            place.outer.finish.extend(ended)
        if not place.taken:
            self.ledger.settle(place.ticket, usage)
            current.add(role, usage)
        current.replayable &= reply.stored is not None
        current.finish.extend(reply.finish)
        if not place.depth:
            current.hear(role, reply.stored, reply.finish)
        current.refused.pop(request.caller, None)
        self.cleaned |= thought(role, reply.stored)
        self.throttle.speed_up()
        if self.ledger.budget.usd is not None and not reply.price_known and usage.calls:
            self.stop("configuration", "unknown price")
            raise UnknownPrice.of(self.ledger.budget, request.model)

    def _settle_failed(
        self, place: Admission, request: Request, error: BaseException, key: str | None, role: Role, current: Effect
    ) -> None:
        if place.taken:  # what failed is the inner call, or what was made of its answer
            return
        failed = used_by(error, place.most)
        self.ledger.settle(place.ticket, failed, answered=False)
        current.add(role, failed)
        if key is not None:
            self._keep(key, role, None, failed)

    def _after_failure(
        self, error: BaseException, attempt: int, place: Admission, request: Request, current: Effect
    ) -> float:
        """Return the seconds to wait before the next attempt, or raise what ends the call or the run."""
        if not isinstance(error, Exception):
            raise error
        if not place.depth and (by := stopped_by(error)):  # one that another model makes may have a second one to ask
            raise self.stop(by, str(error)) from None
        if place.taken:  # its inner calls were tried again, and what they met is known
            if not place.depth and is_outage(error):
                reason = self.redactor(f"{type(error).__name__}: {error}")[:400]
                current.fail(reason)
                self._note_outage(reason, request.model)
            raise error
        transient = is_transient(error)
        if not transient or attempt >= self._watch.retries(request.model, error):
            self._give_up(error, transient, place, request, current)
            raise error
        hint = getattr(error, "retry_after", None)
        if hint is not None and hint > LONGEST_WAIT and not place.depth:
            raise self.stop("outage", f"the provider asks to come back in {hint:.0f} s: {error}") from None
        if isinstance(error, LMRateLimitError):
            self.throttle.slow_down(hint)
        backoff = min(60.0, BACKOFF * 2.0**attempt) * self._jitter.uniform(0.5, 1.5)
        delay = max(backoff, hint * self._jitter.uniform(1.0, 1.1)) if hint is not None else backoff
        self._on_retry(self.redactor(f"{type(error).__name__}: {error}"), delay, attempt + 1)
        return delay

    def _give_up(self, error: Exception, transient: bool, place: Admission, request: Request, current: Effect) -> None:
        """Note that a call has failed for good, so that its effect cannot pass for one that was answered.

        A call that another model makes has failed for good only if that model does: it may have a second one to ask.
        """
        reason = self.redactor(f"{type(error).__name__}: {error}")[:400]
        if isinstance(error, LMError) and is_refused(error):
            current.refused[request.caller] = reason
            if current is self.stray:
                current.fail(reason)
        elif transient or isinstance(error, LMError):
            if place.depth:
                return
            current.fail(reason)
            if not isinstance(error, EmptyReply | FilteredReply):
                self._note_outage(reason, request.model)

    def _note_outage(self, reason: str, model: str = "", what: str = "calls") -> None:
        """Note what was given up, and stop the run if that means that a provider is down."""
        if seen := self._watch.given_up(model, what, reason, self.throttle.maximum):
            self.stop("outage", seen)

    def count_lost(self) -> None:
        """Count the calls that have been sent and not come back: they may be paid for, and nobody waits for them."""
        for place in list(self._sent):
            self.lose(place)
        while self._foreign:
            self._count_lost(self._foreign.pop(), Usage(calls=1, usd=0.0))

    def forget(self, place: Admission) -> None:
        """Count a call that was sent by a process that is gone."""
        with suppress(RunStopped):  # the journal's own failure has stopped the run
            self.lose(place)
        self._sent.pop(place, None)

    def lose(self, place: Admission) -> None:
        """Count a call that has been sent and not come back."""
        if place not in self._sent or place.taken or place.lost:
            return
        place.lost = True
        self._count_lost(place.ticket, Usage(calls=place.most, usd=0.0))

    def _count_lost(self, ticket: Ticket, usage: Usage) -> None:
        self.ledger.settle(ticket, usage, answered=False)
        if self.journal is not None:
            self._keep("lost", ticket.role, None, usage)


def _forget(history: list[object], entry: object) -> None:
    for place in range(len(history) - 1, -1, -1):  # it stands near the end
        if history[place] is entry:
            del history[place]
            return


def _call_key(current: Effect, role: Role, request: Request) -> str:
    outer = admission.get()
    name = f"{current.key}:{role}:{request.content}" + ("" if outer is None else f":{outer.depth + 1}")
    return f"{name}:{current.occurrence(name)}"
