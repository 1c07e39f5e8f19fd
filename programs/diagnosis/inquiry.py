"""Asking one model many typed requests within a budget: the kernel's `ask` without a program to compile.

What a compile's requests have, these have too: caps that are checked before a call is sent, retries with backoff, a
circuit breaker, and keys that reach no text. A stop loses nothing: what was answered before it counts. Source: ours.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dspy

from cuesmith.teleprompters.compiler import check_prices
from cuesmith.teleprompters.runtime.candidate import to_json
from cuesmith.teleprompters.runtime.effects import Asker
from cuesmith.teleprompters.runtime.events import Stream
from cuesmith.teleprompters.runtime.gate import Gate
from cuesmith.teleprompters.runtime.interruption import run_coroutine
from cuesmith.teleprompters.runtime.ledger import Budget, Ledger, RunStopped, Spent
from cuesmith.teleprompters.runtime.redaction import Redactor
from cuesmith.teleprompters.runtime.scoring import Pool
from cuesmith.teleprompters.runtime.session import CAPS
from cuesmith.teleprompters.runtime.throttle import Throttle

__all__ = ["Inquiry", "Request"]


@dataclass(frozen=True)
class Request:
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
        seed: Other seeds are other draws.
        max_in_flight: Requests at once.
        timeout: Seconds a request may take before it counts as unusable; None waits for ever.

    Attributes:
        answered: Requests with a usable reply.
        unusable: Requests whose reply could not be used.

    Raises:
        ValueError: If a cap in dollars cannot be held with this model.
    """

    def __init__(
        self,
        lm: dspy.BaseLM,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        max_in_flight: int = 8,
        timeout: float | None = 600.0,
    ) -> None:
        check_prices(budget or Budget(), [lm])
        self.lm, self.seed = lm, seed
        self.answered = self.unusable = 0
        self._timeout, self._lock = timeout, threading.Lock()
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
            return f"stopped by {self.stopped_by}: {' '.join(self._gate.reason.split())[:400]}"
        if self.unusable and not self.answered:
            return f"none of {self.unusable} replies could be used; the first: {self._first_unusable}"
        return None

    def knows(self, request: Request) -> bool:
        """Whether a request was made already, and has its reply or can have none."""
        return request.key in self._known

    def ask(self, requests: Sequence[Request]) -> list[dspy.Prediction | None]:
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

    async def _ask(self, requests: Mapping[str, Request]) -> dict[str, dspy.Prediction | None]:
        pool = Pool(self._gate, self._timeout)
        asker = Asker(self.lm, pool, Stream(()), self.seed)
        try:
            replies = await asyncio.gather(*(_reply(asker, request) for request in requests.values()))
        finally:
            pool.close()
            self.answered += asker.seen.asked - len(asker.seen.lost)
            self.unusable += len(asker.seen.lost)
            if asker.seen.lost and not self._first_unusable:
                self._first_unusable = " ".join(asker.seen.lost[0].reason.split())
        return {key: reply[0] for key, reply in zip(requests, replies, strict=True) if reply is not None}


async def _reply(asker: Asker, request: Request) -> tuple[dspy.Prediction | None] | None:
    """Return the reply in a tuple, None in it if it cannot be used; None if a stop came first."""
    try:
        replies = await asker.ask(request.signature, request.inputs, salt=f"diagnosis, draw {request.draw}")
    except RunStopped:
        return None
    return (replies[0] if replies else None,)
