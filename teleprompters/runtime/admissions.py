"""A call's place in the ledger, and the actions of the protocol that brings it there and sends it. Source: ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol as Form
from typing import TypeAlias

from cuesmith.teleprompters.runtime.calls import Reply
from cuesmith.teleprompters.runtime.ledger import Ticket, Usage


class Stoppable(Form):
    """What admits calls, and can be closed to them."""

    def check(self) -> None:
        """Raise `RunStopped` if it is closed."""


@dataclass(eq=False)
class Admission:
    """A call's place in the ledger. A call that is made by another call (a model that asks two others) takes its place.

    Attributes:
        ticket: What is reserved.
        depth: How many calls it is made within.
        taken: Whether an inner call has taken it, and counts in its stead.
        lost: Whether the call was counted before it came back, as one that nobody waits for.
        sent: How many requests it has sent through LiteLLM.
        begun: How many requests dspy has begun for it: one for each completion that is asked for.
        gate: Where it was admitted.
        outer: The call that it is made within and whose place it has taken, if so.
        finish: Why the replies of inner calls ended, for a record that answers without them.
    """

    ticket: Ticket
    gate: Stoppable
    depth: int = 0
    taken: bool = False
    lost: bool = False
    sent: int = 0
    begun: int = 0
    outer: Admission | None = None
    finish: list[str] = field(default_factory=list)

    def goes_on(self) -> None:
        """Note that a request is begun.

        Raises:
            RunStopped: If it is a further one, and the run has been stopped meanwhile.
        """
        if self.begun:
            self.gate.check()
        self.begun += 1

    @property
    def most(self) -> int:
        """How many requests it may have sent, if nobody knows how it ended."""
        return self.begun or self.ticket.calls

    def sends(self) -> bool:
        """Note a request; return whether it is the call itself, and not a further one that a model makes of its own."""
        self.sent += 1
        return self.sent <= self.ticket.calls and not self.taken


Answer = Reply | BaseException
"""What comes of sending a call."""


def used_by(answer: Answer, most: int) -> Usage:
    """Return what an answer says that its call used; if it does not, that it was so many calls."""
    used = getattr(answer, "usage", None)
    return used if isinstance(used, Usage) else Usage(calls=most, usd=0.0)


def is_reply(answer: Answer) -> bool:
    """Return whether a call was answered."""
    return isinstance(answer, Reply)


def attempted(place: Admission, send: Callable[[], Reply]) -> Answer:
    """Send a call once, in its place; a failure is an answer too."""
    token = admission.set(place)
    try:
        return send()
    except BaseException as error:
        return error
    finally:
        admission.reset(token)


async def aattempted(place: Admission, send: Callable[[], Awaitable[Reply]]) -> Answer:
    """As `attempted`, from a coroutine."""
    token = admission.set(place)
    try:
        return await send()
    except BaseException as error:
        return error
    finally:
        admission.reset(token)


admission: ContextVar[Admission | None] = ContextVar("cuesmith_admission", default=None)
"""The call that is being sent in this context."""


@dataclass(frozen=True)
class Wait:
    """An action of the protocol: wait for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Send:
    """An action of the protocol: send the call once."""

    admission: Admission


Protocol: TypeAlias = Generator[Wait | Send, "Reply | BaseException | None", object]
