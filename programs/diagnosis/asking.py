"""Asking an optimizer model: many typed requests within a budget, and why errors happen, as compilers ask.

An `Inquiry` is the kernel's `ask` without a program to compile. What a compile's requests have, these have too: caps
that are checked before a call is sent, retries with backoff, a circuit breaker, and keys that reach no text. A stop
loses nothing: what was answered before it counts.

The instruments see what was answered, and no model: so they work on a run, on a plain LM, on a simulated optimizer and
on recorded answers alike. Source: ours.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import TypeVar

import dspy

from cuesmith.signatures import CriticizeInstruction
from cuesmith.teleprompters.compiler import check_prices
from cuesmith.teleprompters.runtime.candidate import to_json
from cuesmith.teleprompters.runtime.effects import Asker
from cuesmith.teleprompters.runtime.events import Stream
from cuesmith.teleprompters.runtime.evidence import render_fields, shown_failure, sound
from cuesmith.teleprompters.runtime.gate import Gate
from cuesmith.teleprompters.runtime.interruption import run_coroutine
from cuesmith.teleprompters.runtime.ledger import Budget, Ledger, RunStopped, Spent, stopped
from cuesmith.teleprompters.runtime.redaction import Redactor
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.scoring import Pool
from cuesmith.teleprompters.runtime.session import CAPS
from cuesmith.teleprompters.runtime.throttle import Throttle
from cuesmith.teleprompters.search.context import ProgramContext
from cuesmith.teleprompters.search.examples import Failure
from cuesmith.teleprompters.search.scene import texts_of

T = TypeVar("T")

TIMEOUT = 600.0
"""Seconds a request may take before it counts as unusable. Ours."""


# --- within a budget -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimizerRequest:
    """One request.

    Attributes:
        signature: One of `cuesmith.signatures`.
        inputs: A value for each of its input fields.
        draw: The same request with another number is another draw.
    """

    signature: type[dspy.Signature]
    inputs: Mapping[str, object]
    draw: int = 0

    @property
    def key(self) -> str:
        """What makes two requests the same."""
        return json.dumps([self.signature.__name__, to_json(dict(self.inputs)), self.draw], sort_keys=True)


class Inquiry:
    """Asks a model, never twice for the same. At temperature 1 unless the model has one of its own above 0.

    Args:
        lm: The model.
        budget: Caps over all that is asked here.
        max_in_flight: Requests at once.

    Attributes:
        answered: Requests with a usable reply.
        unusable: Requests whose reply could not be used.

    Raises:
        ValueError: If a cap in dollars cannot be held with this model.
    """

    def __init__(self, lm: dspy.BaseLM, *, budget: Budget | None = None, max_in_flight: int = 8) -> None:
        check_prices(budget or Budget(), [lm])
        self.lm, self._lock = lm, threading.Lock()
        self.answered = self.unusable = 0
        self._first_unusable = ""
        self._known: dict[str, dspy.Prediction | None] = {}
        throttle, ledger = Throttle(max_in_flight), Ledger(budget or Budget())
        self._gate = Gate(ledger, None, throttle, Redactor([lm]), lambda reason, delay, attempt: None)

    @property
    def spent(self) -> Spent:
        """What was used until now."""
        return self._gate.ledger.spent()

    @property
    def stopped_by(self) -> str | None:
        """The cap or the failure after which nothing is sent any more; None if there was none."""
        return self._gate.stopped_by

    @property
    def failure(self) -> str | None:
        """Why nothing more can be had from the model, in one line without keys; None while it is not so.

        A cap is no failure. That no reply at all could be used is one.
        """
        if self.stopped_by is not None and self.stopped_by not in CAPS:
            return f"{stopped(self.stopped_by)}: {' '.join(self._gate.reason.split())[:400]}"
        if self.unusable and not self.answered:
            return f"none of {self.unusable} replies could be used; the first: {self._first_unusable}"
        return None

    def knows(self, request: OptimizerRequest) -> bool:
        """Whether a request was made already, and has its reply or can have none."""
        return request.key in self._known

    def ask(self, requests: Sequence[OptimizerRequest]) -> list[dspy.Prediction | None]:
        """Ask everything that was not asked before, many at once; also where an event loop is running.

        Args:
            requests: In the order in which they are sent, as far as a cap lets them.

        Returns:
            A reply for each; None where it cannot be used, or where a stop came first.

        Raises:
            UnknownPrice: If the budget is in dollars and a call reports no price.
        """
        with self._lock:
            wanted = {request.key: request for request in requests}
            new = {key: request for key, request in wanted.items() if key not in self._known}
            if new and self.stopped_by is None:
                self._known |= run_coroutine(lambda: self._ask(new))
            return [self._known.get(request.key) for request in requests]

    async def _ask(self, requests: Mapping[str, OptimizerRequest]) -> dict[str, dspy.Prediction | None]:
        pool = Pool(self._gate, TIMEOUT)
        asker = Asker(self.lm, pool, Stream(()), 0)
        try:
            replies = await asyncio.gather(*(_reply(asker, request) for request in requests.values()))
        finally:
            pool.close()
            self.answered += asker.seen.asked - len(asker.seen.lost)
            self.unusable += len(asker.seen.lost)
            if asker.seen.lost and not self._first_unusable:
                self._first_unusable = " ".join(asker.seen.lost[0].reason.split())
        return {key: reply[0] for key, reply in zip(requests, replies, strict=True) if reply is not None}


async def _reply(asker: Asker, request: OptimizerRequest) -> tuple[dspy.Prediction | None] | None:
    """Return the reply in a tuple, None in it if it cannot be used; None if a stop came first."""
    try:
        replies = await asker.ask(request.signature, request.inputs, salt=f"diagnosis, draw {request.draw}")
    except RunStopped:
        return None
    return (replies[0] if replies else None,)


# --- why errors happen -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Error:
    """One observed error of a prompt.

    Attributes:
        inputs: What the predictor was given.
        response: All that it wrote.
        gold: The right outputs, as far as labels tell them.
        feedback: The metric's words, if it has any.
    """

    inputs: Mapping[str, object]
    response: str
    gold: Mapping[str, object]
    feedback: str = ""

    @classmethod
    def of(cls, failure: Failure) -> Error:
        """Return the error that a compiler's failure is."""
        return cls(failure.inputs, failure.response, failure.expected, failure.feedback)

    def shown(self) -> str:
        """Return the error as compilers show it to an optimizer."""
        return shown_failure(self.inputs, self.gold, self.response, self.feedback)

    @property
    def answer(self) -> str:
        """The right outputs as one text: the error's class, unless somebody knows a better one."""
        return render_fields(self.gold)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an optimizer is shown.

    Attributes:
        instructions: The prompt under study.
        errors: A batch of its errors; empty asks for reasons without any evidence.
    """

    instructions: str
    errors: tuple[Error, ...] = ()

    def request(self) -> dict[str, object]:
        """Return the inputs of `CriticizeInstruction`: one reason is wanted; a record does not tell the context."""
        return {
            "context": "",
            "instruction": sound(self.instructions),
            "failures": [error.shown() for error in self.errors],
            "count": 1,
        }

    @property
    def key(self) -> str:
        """What makes two requests the same."""
        return json.dumps(self.request(), ensure_ascii=False)


class TooLittle(ValueError):
    """What was answered is not enough to measure anything by."""


def measured(measure: Callable[[], T]) -> tuple[T | None, str]:
    """Return the result, or None and why there is none: `TooLittle`, in a sentence."""
    try:
        return measure(), ""
    except TooLittle as error:
        return None, f"Too little was answered: {error}."


def requests_of(parts: Sequence[Sequence[Evidence]]) -> list[OptimizerRequest]:
    """Return the requests of several parts of a study in an order in which all parts grow alike.

    So a cap that cuts the list short leaves the same share of each. The entries of a part, or of different ones, that
    show the same are different draws.

    Args:
        parts: What to show.
    """
    places = [((k + 0.5) / len(part), evidence) for part in parts for k, evidence in enumerate(part)]
    ordered = [evidence for _, evidence in sorted(places, key=lambda entry: entry[0])]
    return [_criticism(evidence, number) for evidence, number in zip(ordered, numbered(ordered), strict=True)]


def numbered(shown: Sequence[Evidence]) -> list[int]:
    """Number the entries that show the same, each kind from 0 on: the numbers of their draws."""
    counters = defaultdict[str, Iterator[int]](itertools.count)
    return [next(counters[evidence.key]) for evidence in shown]


def _criticism(evidence: Evidence, number: int) -> OptimizerRequest:
    return OptimizerRequest(CriticizeInstruction, evidence.request(), number)


def asked(inquiry: Inquiry, parts: Sequence[Sequence[Evidence]]) -> list[str | None]:
    """Ask for one reason an entry, within the inquiry's budget, and nothing twice.

    Args:
        inquiry: Asks.
        parts: What to show, see `requests_of`.

    Returns:
        A reason for each entry, part after part; None where the model gave none.
    """
    inquiry.ask(requests_of(parts))
    shown = list(itertools.chain(*parts))
    draws = zip(shown, numbered(shown), strict=True)
    replies = inquiry.ask([_criticism(evidence, number) for evidence, number in draws])
    return [None if reply is None else _reason(reply) for reply in replies]


async def reasons(
    run: Run,
    shown: Sequence[Evidence],
    into: MutableSequence[str | None],
    *,
    order: Sequence[int],
    salt: str = "diagnosis",
) -> None:
    """Ask for one reason an entry, everything at once, as `asked` does; keep each as it comes.

    Entries that show the same get different draws. A stop leaves what had come until then.

    Args:
        run: The run.
        shown: What to show.
        into: Gets the reason of each entry at the entry's place.
        order: The places, in the order in which to ask.
        salt: Separates draws of several calls.

    Raises:
        RunStopped: As `Run.ask`.
    """
    draws = numbered(shown)
    context = ProgramContext.of(run).shown(run.baseline.names[-1])

    async def one(place: int) -> None:
        request = {**shown[place].request(), "context": context}
        replies = await run.ask(CriticizeInstruction, request, salt=f"{salt}, draw {draws[place]}")
        into[place] = next((text for reply in replies if (text := _reason(reply))), None)

    await asyncio.gather(*map(one, order))


def _reason(reply: dspy.Prediction) -> str | None:
    """The first reason of a reply, if it has one."""
    return next(iter(texts_of(reply.get("reasons"))), None)
