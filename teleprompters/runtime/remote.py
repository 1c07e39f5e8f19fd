"""Programs run by other processes, here or on other machines, behind one run's gate, journal and caps.

    compile:  search -> effects -> scorer -> remote -> an executor's workers: the program, its metric
    a call:   worker -> remote -> gate (journal, ledger, retries) -> worker: sends it -> remote -> gate: kept, counted

Workers are tasks of an executor that connect back, take one program run after the other, and end when there is none.
Each call of theirs is decided by the run's own gate before it is sent, and its reply is in the run's journal before
their program sees it: caps are exact, and what a dead worker had paid for is not lost. Source: ours.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import math
import os
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from typing import Any

from cuesmith.teleprompters.runtime.admissions import Admission, Answer, Wait, admission
from cuesmith.teleprompters.runtime.calls import Request
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.executors import Parcel, listening, processes_of
from cuesmith.teleprompters.runtime.gate import Effect, Gate
from cuesmith.teleprompters.runtime.interruption import current as current_interruption
from cuesmith.teleprompters.runtime.ledger import RunStopped, Ticket, UnknownPrice, Usage
from cuesmith.teleprompters.runtime.outcomes import Outcome, ProviderFailure, outcome_from_json
from cuesmith.teleprompters.runtime.remote_worker import versions, work
from cuesmith.teleprompters.runtime.scoring import GRACE, Pool, ProgramRun
from cuesmith.teleprompters.runtime.wire import CannotSend, Link, Message, answer_from, packed, request_from

logger = logging.getLogger("cuesmith")

LINGER_S = 30.0
"""Seconds without work after which a worker gives its place back to the executor. Ours."""

SILENCE_S = 60.0
"""Seconds without a sign of life after which a worker is taken for dead. Ours."""

DEATHS = 3
"""A program run that so many workers have died of is not begun again. Ours."""

REFUSALS = 3
"""So many workers in a row that could not begin stop a run. Ours."""

_TICK_S, _COUNT_S = 0.5, 2.0


@dataclass(eq=False)
class _Run:
    """A task on its way to its outcome."""

    task: ProgramRun
    future: asyncio.Future[Outcome]
    deaths: int = 0
    started: float = 0.0
    given_up: bool = False
    shift: _Shift | None = None
    thread: int = -1


@dataclass(eq=False)
class _Shift:
    """A worker that has connected.

    Attributes:
        host: Its machine.
        heard: When it last gave a sign of life.
        lost: Its threads that hang in runs that were given up.
        gone: Whether it is taken for dead.
        worked: When it last had a task.
        effects: Those of its tasks under way, by their keys.
        calls: Number -> a call of its that is not over.
        links: Those of its threads.
    """

    host: str
    heard: float
    lost: set[int] = field(default_factory=set)
    gone: bool = False
    worked: float = field(default_factory=time.monotonic)
    effects: dict[str, Effect] = field(default_factory=dict)
    calls: dict[int, _Call] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)


@dataclass(eq=False)
class _Call:
    """A call of a worker's, and where its protocol stands.

    Attributes:
        request: What is asked.
        current: The effect that it is made for.
        desk: Who serves the thread that makes it.
        outer: The call that it is made within.
        protocol: The gate's; None for a call that is sent once more.
        place: Where it was admitted.
        ticket: The same for one past the door.
        until: Monotonic time until which it waits.
        answered: Whether an answer of its has come.
    """

    request: Request
    current: Effect
    desk: _Desk
    outer: Admission | None = None
    protocol: Generator[Any, Any, object] | None = None
    place: Admission | None = None
    ticket: Ticket | None = None
    until: float = 0.0
    answered: bool = False


class RemoteWorkers:
    """The processes that run a run's programs.

    Args:
        parcel: What they get.
        pool: Whose programs they run.

    Raises:
        OSError: If nobody can listen at that address.
    """

    def __init__(self, parcel: Parcel, pool: Pool) -> None:
        self._remote, self._parcel = parcel.remote, parcel
        self._gate, self._timeout, self._pool, self._redactor = pool.gate, pool.timeout, pool, pool.gate.redactor
        self._examples = {id(example): number for number, example in enumerate(parcel.examples)}
        self._candidates: dict[str, Candidate] = {}
        self._ready = threading.Condition()
        self._queue: deque[_Run] = deque()
        self._running: set[_Run] = set()
        self._shifts: dict[str, _Shift] = {}
        self._tasks: dict[Future[int], str] = {}
        self._counted = 0, -math.inf
        self._refused, self._closed, self._watching = 0, False, False
        self._interruption = current_interruption()
        self._key = os.urandom(32)
        left = self._gate.ledger.seconds_left
        self._deadline = math.inf if left is None else time.monotonic() + left + GRACE
        self._listener = listening(parcel.remote.host)
        self._address, self._began = self._listener.getsockname()[:2], time.monotonic()
        threading.Thread(target=self._accept, name="cuesmith-listener", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Runs that wait for a worker."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Runs that a worker has."""
        return len(self._running)

    def run(self, task: ProgramRun) -> Awaitable[Outcome]:
        """Run a program on a worker; `TimeoutError` if it takes too long. Called on the run's event loop."""
        loop = asyncio.get_running_loop()
        run = _Run(task, loop.create_future())
        with self._ready:
            self._candidates[task.candidate.id] = task.candidate
            self._queue.append(run)
            self._ready.notify()
        self._call_workers()
        if not self._watching:
            self._watching = True
            self._watch()
        return run.future

    def close(self) -> None:
        """Let the workers go."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._listener.close()
        for task, name in list(self._tasks.items()):
            if name not in self._shifts:  # the others end as soon as they ask for more
                task.cancel()

    # --- workers ----------------------------------------------------------------------------------------------

    def _processes(self) -> int:
        """Return how many tasks the executor runs at once; a cluster may grow, and is asked again now and then."""
        now = time.monotonic()
        if now - self._counted[1] > _COUNT_S:
            self._counted = self._remote.processes or max(1, processes_of(self._remote.executor)), now
        return self._counted[0]

    def _call_workers(self) -> None:
        """Have as many tasks at the executor as there is work for."""
        processes = self._processes()
        threads = self._remote.threads or math.ceil(self._gate.throttle.maximum / processes)
        with self._ready:
            wanted = min(processes, math.ceil((len(self._queue) + len(self._running)) / threads))
            lacking = 0 if self._closed else wanted - len(self._tasks)
        for _ in range(lacking):
            name = uuid.uuid4().hex
            try:
                task = self._remote.executor.submit(work, self._address, self._key, threads, name)
            except Exception as error:
                self._fail(error)
                return
            self._tasks[task] = name
            task.add_done_callback(self._over)

    def _over(self, task: Future[int]) -> None:
        """Take note that a worker has ended; called from any thread."""
        self._tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if self._closed:
            return
        if error is not None:
            self._refused += 1
            if self._refused >= REFUSALS:
                self._fail(error)
                return
        if self._queue:
            self._call_workers()

    def _fail(self, error: BaseException) -> None:
        """Stop the run: its programs cannot run anywhere."""
        why = self._gate.redactor(f"{type(error).__name__}: {error}")[:400]
        self._gate.stop("executor", f"executor='s workers cannot work: {why}")
        with self._ready:
            left, self._queue = list(self._queue), deque()
        for run in left:
            _settle(run, RunStopped("executor"))

    def _accept(self) -> None:
        while not self._closed:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                continue
            threading.Thread(target=self._greet, args=(accepted,), name="cuesmith-link", daemon=True).start()

    def _greet(self, accepted: socket.socket) -> None:
        """Serve a connection until it ends."""
        ended = contextlib.suppress(OSError, EOFError, AuthenticationError)
        with ended, contextlib.closing(Link.of(accepted, self._key)) as link:
            hello = link.receive()
            if "versions" in hello:
                self._control(link, hello)
                return
            link.send({})
            shift = self._shifts[hello["shift"]]
            shift.links.append(link)
            _Desk(self, self._gate, link, shift, hello["thread"]).serve()

    def _control(self, link: Link, hello: Message) -> None:
        """Tell a worker what it needs, and then how the run stands, whenever it gives a sign of life."""
        ours = versions()
        if hello["versions"] != ours:
            link.send({"refused": f"the worker on {hello['host']} has {hello['versions']}, and this process {ours}"})
            return
        shift = self._shifts[hello["shift"]] = _Shift(hello["host"], time.monotonic())
        try:
            link.send({"secrets": self._parcel.secrets, "path": sys.path})
            link.receive()
            link.send_bytes(self._parcel.data)
            while not self._closed:
                if link.waits(_TICK_S):
                    link.receive()
                    shift.heard, self._refused = time.monotonic(), 0
                    link.send({"lost": list(shift.lost)})
                elif time.monotonic() - shift.heard > SILENCE_S:
                    return
        finally:
            shift.gone = True
            for each in shift.links:
                each.hang_up()

    # --- tasks ------------------------------------------------------------------------------------------------

    def take(self, shift: _Shift, thread: int) -> _Run | None:
        """Wait for a task that may begin now; None once the whole worker has had none for long."""
        with self._ready:
            while not (self._closed or shift.gone) and time.monotonic() - shift.worked < LINGER_S:
                if shift.effects:
                    shift.worked = time.monotonic()
                while self._queue and self._queue[0].future.cancelled():
                    self._queue.popleft()
                if self._queue and self._gate.throttle.admits(self._pool.in_flight):
                    run = self._queue.popleft()
                    run.started = shift.worked = time.monotonic()
                    run.shift, run.thread = shift, thread
                    shift.effects[run.task.current.key] = run.task.current
                    self._running.add(run)
                    return run
                self._ready.wait(_TICK_S)
        return None

    def describe(self, run: _Run) -> Message:
        """Say what is to be run."""
        task, current = run.task, run.task.current
        number = self._examples.get(id(task.example))
        example = number if number is not None else base64.b64encode(packed(task.example, self._redactor)[0]).decode()
        return {"key": current.key, "judge": current.judge, "text": current.texts is not None, "draw": task.draw,
                "candidate": task.candidate.id, "example": example, "rewritten": dict(task.rewritten)}  # fmt: skip

    def candidate(self, name: str) -> Message:
        """Return a candidate as JSON."""
        return {"candidate": self._candidates[name].to_json()}

    def finish(self, run: _Run, told: Message) -> None:
        """Take what became of a task."""
        if "stopped" in told and self._gate.stopped_by is None and not run.task.current.abandoned:
            self.lose(run)  # it was the worker that was going, not the run
        elif self._leaves(run):
            _settle(run, self._result(told))

    def lose(self, run: _Run) -> None:
        """Begin a task anew whose worker has died."""
        if not self._leaves(run):
            return
        run.deaths += 1
        if run.deaths >= DEATHS:
            where = "" if run.shift is None else f", the last on {run.shift.host}"
            _settle(run, ProviderFailure(f"{run.deaths} workers died while they ran it{where}"))
            return
        run.task.current.begin_again()
        with self._ready:
            self._queue.appendleft(run)
            self._ready.notify()
        self._call_workers()

    def _leaves(self, run: _Run) -> bool:
        """Take a task off those under way; returns whether anybody waits for it."""
        with self._ready:
            self._running.discard(run)
            if run.shift is not None:
                run.shift.effects.pop(run.task.current.key, None)
            self._ready.notify()
            return not run.given_up

    def _result(self, told: Message) -> Outcome | BaseException:
        if "outcome" in told:
            return outcome_from_json(told["outcome"])
        if "price" in told:
            return UnknownPrice(told["price"])
        if "broken" in told:
            return RuntimeError(f"a worker could not run the program: {told['broken']}")
        return RunStopped(self._gate.stopped_by or told["stopped"])

    def _watch(self) -> None:
        """Give up what is overdue, and look again while there is work."""
        now = time.monotonic()
        over = now > self._deadline
        if not self._shifts and now - self._began > SILENCE_S:
            self._began = math.inf
            logger.warning("no worker of executor= has come to %s:%s in %.0f s; it waits", *self._address, SILENCE_S)
        with self._ready:
            late = [run for run in self._running if self._timeout is not None and now - run.started > self._timeout]
            late = [*self._running, *self._queue] if over else late
            for run in late:
                run.given_up = True
                self._running.discard(run)
                if run.shift is not None:
                    run.shift.lost.add(run.thread)
                    run.shift.effects.pop(run.task.current.key, None)
            if over:
                self._queue.clear()
            self._watching = not self._closed and bool(self._running or self._queue)
        for run in late:
            _settle(run, TimeoutError())
        if self._watching:
            asyncio.get_running_loop().call_later(min(_TICK_S, (self._timeout or _TICK_S) / 10), self._watch)

    def interrupt(self) -> None:
        """End the run: a program or a metric of a worker's has raised what Ctrl-C does."""
        if self._interruption is not None:
            self._interruption.interrupt()


def _settle(run: _Run, result: Outcome | BaseException) -> None:
    """Hand a result to whoever waits for it, from any thread."""

    def settle() -> None:
        if run.future.done():
            return
        if isinstance(result, BaseException):
            run.future.set_exception(result)
        else:
            run.future.set_result(result)

    with contextlib.suppress(RuntimeError):  # the loop is gone, and with it all who waited
        run.future.get_loop().call_soon_threadsafe(settle)


class _Desk:
    """Serves one thread of a worker: hands it tasks, and has the gate decide about their calls.

    Args:
        workers: Where the tasks come from.
        gate: Decides.
        link: To the thread.
        shift: The worker that it belongs to.
        thread: Which of its threads.
    """

    def __init__(self, workers: RemoteWorkers, gate: Gate, link: Link, shift: _Shift, thread: int) -> None:
        self._workers, self._gate, self._link, self._shift, self._thread = workers, gate, link, shift, thread
        self._run: _Run | None = None

    def serve(self) -> None:
        """Serve until the thread hangs up, or its worker is taken for dead."""
        try:
            while not self._shift.gone:
                message = self._link.receive()
                answer = self._next(message) if message["op"] == "next" else self._answer(message)
                self._link.send(answer)
                if "end" in answer:
                    return
        finally:
            self._lose_all()

    def _next(self, message: Message) -> Message:
        """Take what became of the last task, and hand out another one."""
        if self._run is not None:
            run, self._run = self._run, None
            self._workers.finish(run, message)
            if run.given_up:  # another thread has its place
                return {"end": True}
        self._run = self._workers.take(self._shift, self._thread)
        if self._run is None:
            return {"end": True}
        try:
            return self._workers.describe(self._run)
        except CannotSend as error:
            _settle(self._run, error)
            self._run = None
            return self._next({})

    def _answer(self, message: Message) -> Message:
        calls, current = self._shift.calls, self._run.task.current if self._run is not None else self._gate.stray
        match message["op"]:
            case "candidate":
                return self._workers.candidate(message["candidate"])
            case "call":
                return self._call(message, current)
            case "on":
                return self._on(message["id"], calls[message["id"]])
            case "answer":
                call = calls[message["id"]]
                call.answered = True
                if call.place is not None:
                    call.place.begun = message["begun"]
                return self._go_on(message["id"], call, answer_from(message))
            case "foreign":
                return self._foreign(message)
            case "told":
                call = calls.pop(message["id"])
                assert call.ticket is not None
                self._gate.settle_foreign(call.ticket, Usage(**message["usage"]), call.current, message["failure"])
            case "spare":
                return self._spare(message["id"], calls.get(message["of"]))
            case "late":
                call = calls.pop(message["id"])
                assert call.place is not None
                self._gate.settle_spare(call.place, call.request, answer_from(message), call.current)
            case "unseen":
                self._gate.note_unseen(message["what"])
            case "stop":
                self._gate.stop(message["by"], message["reason"])
                if message["by"] == "interrupted":
                    self._workers.interrupt()
            case op:
                raise ValueError(f"a worker says {op!r}")
        return {}

    def _made(self, message: Message, current: Effect) -> _Call:
        """Return a call as it is asked for."""
        outer = self._shift.calls.get(message["outer"])
        place = None if outer is None else outer.place
        if place is not None:
            place.sent = message["sent"]
        return _Call(request_from(message), current, self, place)

    def _call(self, message: Message, current: Effect) -> Message:
        call = self._shift.calls[message["id"]] = self._made(message, current)
        call.protocol = self._gate.conduct(call.request, current)
        return self._go_on(message["id"], call, None)

    def _on(self, number: int, call: _Call) -> Message:
        left = call.until - time.monotonic()
        if left <= 0 or self._gate.is_closed_to(call.current):
            return self._go_on(number, call, None)
        return {"wait": left}

    def _go_on(self, number: int, call: _Call, answer: Answer | None) -> Message:
        """Let the gate take the next step with a call, and say what the worker is to do."""
        assert call.protocol is not None
        token = admission.set(call.outer)
        try:
            action = call.protocol.send(answer)
        except StopIteration as done:
            if isinstance(done.value, Ticket):
                call.ticket = done.value
                return {"admitted": True}
            told: Message = {"done": True} if call.answered else {"stored": done.value}
        except RunStopped as stop:
            call.current.stopped = True
            told = {"stopped": stop.by}
        except UnknownPrice as error:
            told = {"price": str(error)}
        except BaseException as error:
            if error is not answer:
                raise
            told = {"raise": True}
        else:
            if isinstance(action, Wait):
                call.until = time.monotonic() + action.seconds
                return {"wait": action.seconds}
            call.place = action.admission
            inner = call.place.outer is not None
            return {"send": call.place.ticket.calls, "depth": call.place.depth, "inner": inner}
        finally:
            admission.reset(token)
        del self._shift.calls[number]
        return told

    def _foreign(self, message: Message) -> Message:
        """Admit a call that is sent past the door. It is told of late, when its task may have another thread's desk."""
        current = self._shift.effects.get(message["key"], self._gate.stray)
        call = self._shift.calls[message["id"]] = self._made(message, current)
        current.replayable &= message["replayable"]
        call.protocol = self._gate.admit_foreign_steps(call.request, current, message["who"])
        return self._go_on(message["id"], call, None)

    def _spare(self, number: int, call: _Call | None) -> Message:
        """Admit a late call once more."""
        place = None if call is None or call.place is None else self._gate.spare(call.place, call.request)
        if call is None or place is None:
            return {}
        self._shift.calls[number] = _Call(call.request, call.current, self, place=place)
        return {"send": place.ticket.calls}

    def _lose_all(self) -> None:
        """Count what the thread has sent and nobody will answer, and begin its task anew elsewhere."""
        for number, call in list(self._shift.calls.items()):
            if call.desk is not self:
                continue
            del self._shift.calls[number]
            if call.place is not None:
                self._gate.forget(call.place)
            if call.protocol is not None:
                call.protocol.close()
            if call.ticket is not None:
                with contextlib.suppress(RunStopped):
                    self._gate.settle_foreign(call.ticket, Usage(calls=1, usd=0.0), call.current)
        if self._run is not None:
            self._workers.lose(self._run)
