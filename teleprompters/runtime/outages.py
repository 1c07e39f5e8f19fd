"""What an error tells: of the provider, of this one request, of what may pass. Source: ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
    LMInvalidRequestError,
    LMProviderError,
    LMServerError,
    LMUnexpectedError,
    LMUnsupportedModelError,
    is_retryable_lm_error,
)

from cuesmith.teleprompters.runtime.ledger import Usage

_CLIENTS = frozenset(
    """aiohttp anthropic botocore grpc http httpcore httpcore2 httpx httpx2 litellm ollama openai requests socket ssl
    urllib urllib3 websockets""".split()  # noqa: SIM905
)
"""Packages whose exceptions tell of a network or a provider."""


class EmptyReply(LMServerError):  # type: ignore[misc]
    """A provider's reply that has no choices, or no content where the model has written something."""

    usage: Usage


class FilteredReply(LMProviderError):  # type: ignore[misc]
    """A reply that the provider's filter has withheld."""

    usage: Usage


class Refused(RuntimeError):
    """A call was not sent, for the run is stopped: what a thread of the program's own or of others is told.

    `RunStopped` is no `Exception`, and would end such a thread without a word to whoever waits for its result.
    """


_STOPPING: tuple[tuple[type[LMError], str], ...] = (
    (LMAuthError, "auth"),
    (LMBillingError, "billing"),
    (LMUnsupportedModelError, "configuration"),
    (LMConfigurationError, "configuration"),
)

_UNSENDABLE = ("LLM Provider NOT provided", "URL missing scheme", "URL missing host")
"""What LiteLLM says of a model's name without a provider, dspy's client of an `api_base` that is no URL: both before
anything is sent, and of every call, but by kinds of errors that are also those of a faulty request and a bad reply."""


def stopped_by(error: Exception) -> str:
    """Return what stops a run as no call can be answered (wrong key, no credit, no such model); "" if nothing does."""
    if isinstance(error, LMInvalidRequestError | LMUnexpectedError) and any(sign in str(error) for sign in _UNSENDABLE):
        return "configuration"
    found = (by for kind, by in _STOPPING if isinstance(error, kind))
    return "" if isinstance(error, ContextWindowExceededError) else next(found, "")


def is_refused(error: LMError) -> bool:
    """Return whether a provider has refused this one request; others may be answered."""
    if type(error) is LMProviderError:
        return 400 <= (error.status or 0) < 500
    return isinstance(error, LMInvalidRequestError)


class Verdict(NamedTuple):
    """What was made of an error where it was met, for a process that cannot see it.

    Attributes:
        outage: As `is_outage`.
        transient: Whether it may pass.
        unreadable: Whether a provider has answered with something else than a completion.
    """

    outage: bool
    transient: bool
    unreadable: bool

    @classmethod
    def of(cls, error: BaseException) -> Verdict:
        """Return what is made of an error here."""
        transient = isinstance(error, Exception) and is_transient(error)
        return cls(is_outage(error), transient, is_unreadable(error))


def _told(error: BaseException | None) -> Verdict | None:
    """Return what was made of an error in another process, if it was met there."""
    found = getattr(error, "verdict", None)
    return found if isinstance(found, Verdict) else None


def is_outage(error: BaseException | None) -> bool:
    """Return whether an error tells of a provider or a network, whichever client met it and whoever wrapped it."""
    if (told := _told(error)) is not None:
        return told.outage
    return any(
        isinstance(each, LMError | ConnectionError | TimeoutError) or _of_a_client(each) for each in _chain(error)
    )


def is_transient(error: Exception) -> bool:
    """Return whether a call's failure may pass."""
    if (told := _told(error)) is not None:
        return told.transient
    if isinstance(error, LMError) and not isinstance(error, LMUnexpectedError):
        unreadable = type(error) is LMProviderError and 200 <= (error.status or 0) < 300
        return unreadable or bool(is_retryable_lm_error(error))
    return is_unreadable(error) or any(
        isinstance(each, ConnectionError | TimeoutError | json.JSONDecodeError)
        or (_of_a_client(each) and not 400 <= _status(each) < 408)
        for each in _chain(error)
    )


def is_unreadable(error: BaseException) -> bool:
    """Return whether dspy's reader met something else than a completion where a provider has answered 200."""
    if (told := _told(error)) is not None:
        return told.unreadable
    cause = error.__cause__
    place = cause.__traceback__ if isinstance(cause, TypeError | ValueError | LookupError | AttributeError) else None
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    home = "" if place is None else str(place.tb_frame.f_globals.get("__name__", ""))
    return isinstance(error, LMUnexpectedError) and home.startswith("dspy._vendor.lm15")


def _status(error: BaseException) -> int:
    """Return the HTTP status that a client's error tells; 0 if none."""
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else 0


def _of_a_client(error: BaseException) -> bool:
    return not _CLIENTS.isdisjoint(kind.__module__.partition(".")[0] for kind in type(error).__mro__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, those that it groups, and what each was raised from, or while handling."""
    seen: set[int] = set()
    left = [error]
    while left:
        error = left.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        left += [error.__cause__ or error.__context__]
        left += reversed(error.exceptions) if isinstance(error, BaseExceptionGroup) else []
