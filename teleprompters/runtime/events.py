"""The one stream of typed events that displays, reports and user callbacks read. Library code never prints.

Events are observations: a callback cannot change a run, and one that raises is reported once by `logging`
and never ends it. They are emitted one at a time, `Retried` by the thread that retries, all others by the
thread that runs the search. Source: ours.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from cuesmith.teleprompters.runtime.ledger import Role, Spent

if TYPE_CHECKING:
    from cuesmith.teleprompters.runtime.compilation import Compilation, Forecast, Note, StepRecord

logger = logging.getLogger("cuesmith")


Lost: TypeAlias = Literal["cut", "refused", "empty", "thinking only", "unreadable", "invalid request", "timed out"]
"""Why a draw was lost: its end is missing, the model or a filter declined, nothing or only thinking came back, no
adapter can read it, the provider took the request for faulty, or none came in time."""


@dataclass(frozen=True)
class RunStarted:
    """A compile begins: what it works on, and what it may take at most."""

    compiler: str
    run_dir: str | None
    resumed: bool
    predictors: tuple[str, ...]
    n_train: int
    n_select: int
    n_fresh: int
    forecast: Forecast


@dataclass(frozen=True)
class EffectDone:
    """One effect completed: a program run on an example (target) or a draw of the optimizer model.

    Attributes:
        role: Whose effect it was.
        candidate_id: The candidate that ran; None for the optimizer.
        example_id: The example it ran on; None for the optimizer.
        outcome: The outcome's class name; "Reply" for the optimizer.
        value: The score, if there is one.
        in_flight: Effects now running.
        pending: Effects waiting for a place.
    """

    role: Role
    candidate_id: str | None
    example_id: str | None
    outcome: str
    value: float | None
    in_flight: int
    pending: int


@dataclass(frozen=True)
class SpentChanged:
    """What the run has used until now; emitted after each group of effects."""

    spent: Spent


class Progressed:
    """The base of events of a search's own work, such as a training; its `str` is what a display shows."""


@dataclass(frozen=True)
class StepDone:
    """One step of the search is finished."""

    record: StepRecord
    origins: Mapping[str, str]


@dataclass(frozen=True)
class Retried:
    """A call failed in a way that may pass, and is tried again after a delay."""

    reason: str
    delay_s: float
    attempt: int


@dataclass(frozen=True)
class Missing:
    """A candidate has examples without a score; it is compared on the common ones."""

    candidate_id: str
    n: int
    reason: str


@dataclass(frozen=True)
class Malformed:
    """A draw of the optimizer model could not be used and was left out.

    Attributes:
        signature: The request's name.
        reason: What was wrong, for a reader.
        kind: The same as one of a few words.
    """

    signature: str
    reason: str
    kind: Lost = "unreadable"


@dataclass(frozen=True)
class Noted:
    """The run has something to say, once; the compilation has all of it in `notes`."""

    note: Note


@dataclass(frozen=True)
class Stopped:
    """A cap was reached or a circuit broke: no further call is sent by the search."""

    by: str
    reason: str = ""


@dataclass(frozen=True)
class RunFinished:
    """The compile is over."""

    compilation: Compilation


Event: TypeAlias = (
    RunStarted
    | EffectDone
    | SpentChanged
    | StepDone
    | Progressed
    | Retried
    | Missing
    | Malformed
    | Noted
    | Stopped
    | RunFinished
)
Callback: TypeAlias = Callable[[Event], None]


class Stream:
    """Hands events to callbacks.

    Args:
        callbacks: Called with every event, in order.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = list(callbacks)
        self._lock = threading.RLock()

    @property
    def watched(self) -> bool:
        """Whether anybody gets the events."""
        return bool(self._callbacks)

    def emit(self, event: Event) -> None:
        """Hand `event` to every callback; one that raises is dropped with a logged warning."""
        with self._lock:
            for callback in tuple(self._callbacks):
                try:
                    callback(event)
                except (Exception, SystemExit):
                    logger.warning("callback %r raised and gets no further events", callback, exc_info=True)
                    self._callbacks.remove(callback)
