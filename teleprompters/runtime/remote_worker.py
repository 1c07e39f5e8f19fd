"""What runs in a process that works for a run elsewhere: programs and metrics, with every model call asked for first.

The run's gate decides about each call (`remote`): here it is only sent. Source: ours.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.metadata
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import dspy

from cuesmith.teleprompters.runtime import _litellm
from cuesmith.teleprompters.runtime._dspy import door, models_of, prepare
from cuesmith.teleprompters.runtime.admissions import Admission, Answer, Protocol, Send, Wait, admission
from cuesmith.teleprompters.runtime.calls import Reply, Request
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.gate import Effect, Gate
from cuesmith.teleprompters.runtime.ledger import Budget, Ledger, Role, RunStopped, Ticket, UnknownPrice, Usage
from cuesmith.teleprompters.runtime.metric import Metric
from cuesmith.teleprompters.runtime.outcomes import outcome_to_json
from cuesmith.teleprompters.runtime.redaction import Redactor
from cuesmith.teleprompters.runtime.scoring import Pool, Scorer
from cuesmith.teleprompters.runtime.throttle import Throttle
from cuesmith.teleprompters.runtime.wire import Link, Message, answer_to, request_to, unpacked

T = TypeVar("T")

FORKED = ("executor='s processes are forks of this one, with its connections and locks: make them anew, as with "
          "ProcessPoolExecutor(mp_context=multiprocessing.get_context('forkserver'))")  # fmt: skip

BEAT_S = 0.5
"""Seconds between two signs of life of a worker. Ours."""


@dataclass(frozen=True)
class Work:
    """What a worker needs to run a run's programs, pickled once.

    Attributes:
        student: The program that candidates are bound to.
        metric: The judge, as it was given.
        lm: The LM for predictors that carry none.
        examples: Those that are named by their place here.
        settings: DSPy's, as the run found them.
        hedge: As the run has it.
        sized: Whether the run wants to know how long a request is.
        prices: What LiteLLM knows of the models there.
        cache: Whether DSPy caches on disk, and in memory.
    """

    student: dspy.Module
    metric: Callable[..., Any]
    lm: dspy.BaseLM | None
    examples: tuple[dspy.Example, ...]
    settings: Mapping[str, object]
    hedge: float | None
    sized: bool
    prices: Mapping[str, object]
    cache: tuple[bool, bool]


@dataclass(eq=False)
class RemoteEffect(Effect):
    """An effect whose own is the run's, at the other end of a link.

    Attributes:
        link: Where its calls are asked for.
        with_text: Whether the run wants to read its requests.
    """

    link: Link | None = None
    with_text: bool = False


class RemoteGate(Gate):
    """A gate that asks the run's gate about each call.

    Args:
        link: Where the calls are asked for that no effect makes.
        redactor: Applied to what is reported.
        work: What the run has told.
    """

    def __init__(self, link: Link, redactor: Redactor, work: Work) -> None:
        super().__init__(Ledger(Budget()), None, Throttle(2**30), redactor, lambda *told: None, hedge=work.hedge)
        self._link, self._sized = link, work.sized
        self.stray = RemoteEffect("stray", "other", self, link=link)
        self._numbers = itertools.count(1)
        self._calls: dict[Admission, int] = {}
        self._tickets: dict[int, int] = {}

    def stop(self, by: str, reason: str = "") -> RunStopped:
        """Stop the whole run."""
        self._ask(self.stray, "stop", by=by, reason=self.redactor(reason))
        return self.halt(by)

    def halt(self, by: str) -> RunStopped:
        """Send nothing more from here."""
        return super().stop(by)

    def note_unseen(self, what: str) -> None:
        """As `Gate`."""
        if what not in self.unseen:
            self.unseen.add(what)
            self._ask(self.stray, "unseen", what=what)

    def admit_foreign(self, request: Request, current: Effect, role: Role) -> Ticket:
        """As `Gate`."""
        number, ticket = next(self._numbers), Ticket(role, 1, 0, 0.0, False)
        told = self._ask_for(request, self.stray, "foreign", number, who=role, key=current.key,
                             replayable=current.replayable)  # fmt: skip
        while "wait" in told:
            self._halt.wait(min(told["wait"], BEAT_S))
            told = self._ask(self.stray, "on", id=number)
        if "stopped" in told:
            raise self._refusal(current, RunStopped(told["stopped"]))
        self._tickets[id(ticket)] = number
        return ticket

    def settle_foreign(self, ticket: Ticket, usage: Usage, current: Effect, failure: str = "") -> None:
        """As `Gate`."""
        number = self._tickets.pop(id(ticket))
        self._ask(self.stray, "told", id=number, usage=usage.to_json(), failure=self.redactor(failure)[:400])

    def conduct(self, request: Request, current: Effect) -> Protocol:
        """Do what the run's gate says of a call: its protocol is the run's, and its actions are done here."""
        number, role = next(self._numbers), request.role or current.role
        outer = admission.get()
        answer: Answer | None = None
        told = self._ask_for(request, current, "call", number)
        while True:
            if "wait" in told:
                yield Wait(min(told["wait"], BEAT_S))  # the run may be stopped meanwhile
                told = self._ask(current, "on", id=number)
            elif "send" in told:
                place = Admission(Ticket(role, told["send"], 0, 0.0, request.may_hit), self, told["depth"],
                                  outer=outer if told["inner"] else None)  # fmt: skip
                if place.outer is not None:
                    place.outer.taken = True
                answer = yield from self._answer(place, number, request)
                told = self._ask(current, "answer", id=number, begun=place.begun, **answer_to(answer, self.redactor))
            else:
                return self._end(told, request, answer)

    def _answer(self, place: Admission, number: int, request: Request) -> Generator[Wait | Send, object, Answer]:
        began = time.monotonic()
        self._calls[place] = number
        answer: Any = yield Send(place)
        del self._calls[place]
        if isinstance(answer, Reply):
            self.hedging.note((place.ticket.role, request.model), time.monotonic() - began)
        found: Answer = answer
        return found

    def _end(self, told: Message, request: Request, answer: Answer | None) -> object:
        """Return what the caller gets of a call that is over, or raise it."""
        if "stored" in told:
            return request.load(told["stored"])
        if "stopped" in told:
            raise RunStopped(told["stopped"])
        if "price" in told:
            raise UnknownPrice(told["price"])
        if isinstance(answer, Reply):
            return answer.outputs
        assert isinstance(answer, BaseException)
        raise answer

    def spare(self, place: Admission, request: Request) -> Admission | None:
        """As `Gate`."""
        of, number = self._calls.get(place), next(self._numbers)
        told = {} if of is None else self._ask(self.stray, "spare", of=of, id=number)
        if "send" not in told:
            return None
        spare = Admission(Ticket(place.ticket.role, told["send"], 0, 0.0, request.may_hit), self)
        self._calls[spare] = number
        self.hedged += 1
        return spare

    def settle_spare(self, spare: Admission, request: Request, answer: Answer, current: Effect) -> None:
        """As `Gate`."""
        self._ask(self.stray, "late", id=self._calls.pop(spare), **answer_to(answer, self.redactor))

    def _ask_for(self, request: Request, current: Effect, op: str, number: int, **more: object) -> Message:
        """Ask whether a call may be sent."""
        outer = admission.get()
        with_text = isinstance(current, RemoteEffect) and current.with_text
        described = request_to(request, request.role or current.role, sized=self._sized, with_text=with_text)
        of, sent = (0, 0) if outer is None else (self._calls.get(outer, 0), outer.sent)
        return self._ask(current, op, id=number, outer=of, sent=sent, **described, **more)

    def _ask(self, current: Effect, op: str, **more: object) -> Message:
        link = current.link if isinstance(current, RemoteEffect) and current.link is not None else self._link
        try:
            return link.ask({"op": op, **more})
        except (OSError, EOFError):
            raise self.halt("the run is gone") from None


class Shift:
    """Works for a run until it has had nothing to do for a while.

    Args:
        address: Where the run listens.
        key: The run's secret.
        threads: Program runs at once.
        name: Of this worker.

    Raises:
        OSError: If nobody listens there.
        RuntimeError: If the run's programs cannot run here.
    """

    def __init__(self, address: tuple[str, int], key: bytes, threads: int, name: str) -> None:
        self._address, self._key, self._threads = address, key, threads
        self._name, self.done = name, 0
        if door.is_inherited():
            raise RuntimeError(FORKED)
        self._control = Link.to(address, key)
        told = self._control.ask({"op": "hello", "shift": self._name, "host": socket.gethostname(),
                                  "versions": versions()})  # fmt: skip
        if "refused" in told:
            raise RuntimeError(told["refused"])
        # Modules of the user's own are found where this machine has them under the same path.
        sys.path += [each for each in told["path"] if each not in sys.path and os.path.exists(each)]
        secrets = [_secret(entry) for entry in told["secrets"]]
        self._work: Work = unpacked(self._control.asked_for_bytes({"op": "work"}), secrets)
        self._candidates: dict[str, Candidate] = {}
        self._models = models_of(self._work.student, self._work.lm)
        self._redactor = Redactor(self._models)
        self._gate = RemoteGate(self._connected(), self._redactor, self._work)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last = threads
        self._lock = threading.Lock()

    def run(self) -> int:
        """Work; returns how many program runs were done."""
        if (dspy.cache.enable_disk_cache, dspy.cache.enable_memory_cache) != self._work.cache:
            dspy.configure_cache(enable_disk_cache=self._work.cache[0], enable_memory_cache=self._work.cache[1])
        _litellm.register(self._work.prices)
        prepare(self._models)
        pool = Pool(self._gate, None)
        self._scorer = Scorer(self._work.student, Metric(self._work.metric), self._work.lm, pool)
        try:
            self._supervise()
        finally:
            self._gate.halt("the worker is going")
            pool.close()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
        return self.done

    def _supervise(self) -> None:
        """Give signs of life until all threads have ended; those that hang are replaced, and not waited for."""
        working = {number: self._begun(number) for number in range(self._threads)}
        while alive := [thread for thread in working.values() if thread.is_alive()]:
            alive[0].join(BEAT_S)
            try:
                told = self._control.ask({"op": "beat"})
            except (OSError, EOFError):
                return
            for number in told["lost"]:
                if working.pop(number, None) is not None:
                    self._last += 1
                    working[self._last] = self._begun(self._last)

    def _begun(self, number: int) -> threading.Thread:
        thread = threading.Thread(target=self._serve, args=(number,), name="cuesmith-remote", daemon=True)
        thread.start()
        return thread

    def _serve(self, number: int) -> None:
        with contextlib.suppress(OSError, EOFError), contextlib.closing(self._connected(number)) as link:
            message: Message = {"op": "next"}
            with dspy.context(**self._work.settings):
                while "end" not in (task := link.ask(message)):
                    message = {"op": "next", **self._ran(task, link)}
                    self.done += 1

    def _connected(self, thread: int = -1) -> Link:
        link = Link.to(self._address, self._key)
        link.ask({"op": "hello", "shift": self._name, "thread": thread})
        return link

    def _ran(self, task: Message, link: Link) -> Message:
        """Run a program on an example and return what became of it."""
        current = RemoteEffect(task["key"], "target", self._gate, task["judge"], link=link, with_text=task["text"])
        try:
            candidate = self._candidate(task["candidate"], link)
            example = self._example(task["example"])
            outcome = self._scorer.run_here(candidate, example, current, task["rewritten"], task["draw"], self._awaited)
            return {"outcome": outcome_to_json(self._redactor.reply(outcome))}
        except RunStopped as stop:
            return {"stopped": stop.by}
        except UnknownPrice as error:
            return {"price": str(error)}
        except BaseException as error:
            return {"broken": self._redactor(f"{type(error).__name__}: {error}")}

    def _candidate(self, name: str, link: Link) -> Candidate:
        if name not in self._candidates:
            self._candidates[name] = Candidate.from_json(link.ask({"op": "candidate", "candidate": name})["candidate"])
        return self._candidates[name]

    def _example(self, told: int | str) -> dspy.Example:
        if isinstance(told, int):
            return self._work.examples[told]
        example: dspy.Example = unpacked(base64.b64decode(told), ())
        return example

    def _awaited(self, work: Coroutine[Any, Any, T]) -> T:
        """Await what is async, all of a process on one event loop: clients that a program keeps belong to one."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="cuesmith-loop", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def versions() -> dict[str, str]:
    """Return what has to be the same at both ends."""
    found = {name: importlib.metadata.version(name) for name in ("cuesmith", "dspy")}
    return {**found, "python": ".".join(map(str, sys.version_info[:2]))}


def _secret(entry: Mapping[str, str]) -> str:
    if "value" in entry:
        return entry["value"]
    if entry["environment"] not in os.environ:
        raise RuntimeError(f"{socket.gethostname()} has no environment variable {entry['environment']}: a key never "
                           "leaves its machine, so each worker needs its own")  # fmt: skip
    return entry["before"] + os.environ[entry["environment"]] + entry["after"]


def work(address: tuple[str, int], key: bytes, threads: int, name: str) -> int:
    """What an executor runs: work for a run. Returns how many program runs were done."""
    return Shift(address, key, threads, name).run()
