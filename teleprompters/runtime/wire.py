"""What crosses between a run and the processes that work for it: JSON over one authenticated connection a thread.

The only pickle goes one way, from the run to its workers, and holds no key. Whatever a worker sends is JSON. The
connection is the standard library's (`multiprocessing.connection`): both ends prove that they know the run's secret,
and nothing is encrypted. Source: ours.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

import cloudpickle
import dspy
from dspy.utils import exceptions

from cuesmith.teleprompters.runtime.admissions import Answer
from cuesmith.teleprompters.runtime.calls import Reply, Request
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.ledger import Role, Usage
from cuesmith.teleprompters.runtime.outages import EmptyReply, FilteredReply, Verdict
from cuesmith.teleprompters.runtime.redaction import Redactor

Message = dict[str, Any]

HANDSHAKE_S = 30.0
"""Seconds in which the other end of a connection has to show that it knows the secret. Ours."""

_LM_ERRORS = {**vars(exceptions), "EmptyReply": EmptyReply, "FilteredReply": FilteredReply}


class Link:
    """One end of a connection. Thread-safe: one question at a time.

    Args:
        connection: Authenticated.
        held: Its socket.
    """

    def __init__(self, connection: Connection, held: socket.socket) -> None:
        self._connection, self._socket, self._lock = connection, held, threading.Lock()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    @classmethod
    def to(cls, address: tuple[str, int], key: bytes) -> Link:
        """Connect to a run.

        Raises:
            OSError: If nobody listens there, or nobody answers.
            multiprocessing.AuthenticationError: If it does not know the key.
        """
        return cls._proven(socket.create_connection(address[:2], HANDSHAKE_S), key, answer_challenge, deliver_challenge)

    @classmethod
    def of(cls, accepted: socket.socket, key: bytes) -> Link:
        """Return the run's end of a connection, once the other end has shown that it knows the key.

        Raises:
            OSError, EOFError, multiprocessing.AuthenticationError: If it has not.
        """
        return cls._proven(accepted, key, deliver_challenge, answer_challenge)

    @classmethod
    def _proven(cls, made: socket.socket, key: bytes, *steps: Callable[[Connection, bytes], object]) -> Link:
        made.settimeout(None)  # with a timeout of Python's own, the file would not block
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(HANDSHAKE_S), 0))
        connection = Connection(os.dup(made.fileno()))
        try:
            for step in steps:
                step(connection, key)
        except BaseException:
            connection.close()
            made.close()
            raise
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
        return cls(connection, made)

    def ask(self, message: Message) -> Message:
        """Send a message and return the answer.

        Raises:
            EOFError, OSError: If the other end is gone.
        """
        with self._lock:
            self.send(message)
            return self.receive()

    def asked_for_bytes(self, message: Message) -> bytes:
        """Send a message and return the bytes that answer it."""
        with self._lock:
            self.send(message)
            return self._connection.recv_bytes()

    def send(self, message: Message) -> None:
        """Send a message."""
        self._connection.send_bytes(json.dumps(message, separators=(",", ":")).encode())

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._connection.send_bytes(data)

    def receive(self) -> Message:
        """Wait for a message."""
        message: Message = json.loads(self._connection.recv_bytes())
        return message

    def waits(self, seconds: float) -> bool:
        """Whether a message has come, or the end, within so many seconds."""
        return self._connection.poll(seconds)

    def hang_up(self) -> None:
        """End it at both ends, for whichever thread waits there."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give it back to the system."""
        self._connection.close()
        self._socket.close()


# --- calls ----------------------------------------------------------------------------------------------------


def request_to(request: Request, role: Role, *, sized: bool, with_text: bool) -> Message:
    """Describe a call of a role's; what it says does not leave the worker unless it is asked for."""
    return {
        "model": request.model, "calls": request.calls, "max_tokens": request.max_tokens,
        "may_hit": request.may_hit, "free": request.free, "role": role, "caller": hash(request.caller),
        "content": request.content, "characters": request.characters if sized else 0,
        "text": request.text if with_text else "",
    }  # fmt: skip


def request_from(data: Message) -> Request:
    """Return the call as the run's gate sees it."""
    request = Request(data["model"], (), data["calls"], data["max_tokens"], data["may_hit"], data["free"], data["role"],
                      data["caller"])  # fmt: skip
    vars(request).update({name: data[name] for name in ("content", "characters", "text")})
    return request


def answer_to(answer: Answer, redactor: Redactor) -> Message:
    """Describe what came of a call; an error may repeat a key."""
    if isinstance(answer, Reply):
        return {"usage": answer.usage.to_json(), "price_known": answer.price_known, "stored": answer.stored,
                "finish": list(answer.finish)}  # fmt: skip
    used = getattr(answer, "usage", None)
    known = next((kind.__name__ for kind in type(answer).__mro__ if _LM_ERRORS.get(kind.__name__) is kind), None)
    return {
        "error": redactor(str(answer)), "kind": type(answer).__name__, "known": known,
        "verdict": list(Verdict.of(answer)),
        "status": _plain(getattr(answer, "status", None)), "retry_after": _plain(getattr(answer, "retry_after", None)),
        "usage": used.to_json() if isinstance(used, Usage) else None, "ordinary": isinstance(answer, Exception),
    }  # fmt: skip


def answer_from(data: Message) -> Answer:
    """Return an answer as the run's gate sees it: a reply without its outputs, or an error of the same kind."""
    if "error" not in data:
        usage = Usage(**data["usage"])
        return Reply(None, usage, data["price_known"], data["stored"], tuple(data["finish"]))
    base: Any = _LM_ERRORS[data["known"]] if data["known"] else Exception if data["ordinary"] else BaseException
    kind: Any = base if data["kind"] == data["known"] else type(data["kind"], (base,), {})
    error: BaseException = kind.__new__(kind)
    BaseException.__init__(error, data["error"])
    told = {name: data[name] for name in ("status", "retry_after")} if data["known"] else {}
    vars(error).update(verdict=Verdict(*data["verdict"]), **told)
    if data["usage"] is not None:
        vars(error).update(usage=Usage(**data["usage"]))
    return error


def _plain(value: object) -> float | None:
    return value if isinstance(value, int | float) else None


# --- the program ----------------------------------------------------------------------------------------------


_secrets: ContextVar[Sequence[str]] = ContextVar("cuesmith_secrets", default=())


class _Withheld:
    """Stands in a pickle in the place of a secret, and is the secret where it is read."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _secret, (self._number,)


def _secret(number: int) -> str:
    return _secrets.get()[number]


class CannotSend(TypeError):
    """A program, a metric or an example cannot be sent to another process."""


def packed(value: object, redactor: Redactor) -> tuple[bytes, list[str]]:
    """Pickle what workers need. The keys of language models stay out.

    Returns:
        The pickle, and the secrets that have to be put into it (`unpacked`).

    Raises:
        CannotSend: If something in it cannot be pickled, or holds a key elsewhere.
    """
    file = io.BytesIO()
    pickler = _Pickler(file, redactor)
    try:
        pickler.dump(value)
    except Exception as error:
        raise CannotSend(
            f"the program, its metric or an example cannot be sent to executor='s workers ({type(error).__name__}: "
            f"{redactor(str(error))[:200]}): open files, locks and connections have to be made where they are used"
        ) from None
    data = file.getvalue()
    if redactor.reply(text := data.decode("latin-1")) is not text:
        raise CannotSend(
            "the program, its metric or an example holds a key outside the options of its dspy.LM, and would carry it "
            "to executor='s workers: have it read the key from the environment where it needs it"
        )
    return data, pickler.withheld


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, redactor: Redactor) -> None:
        super().__init__(file)
        self._redactor, self.withheld = redactor, list[str]()

    def reducer_override(self, held: Any) -> Any:
        if hasattr(held, "cuesmith_door") and hasattr(held, "__wrapped__"):  # a worker has a door of its own
            return super().reducer_override(held.__wrapped__)
        if isinstance(held, Compilation):  # of an earlier compile: no worker needs it, and its pickle is a closed one
            return type(None), ()
        if not isinstance(held, dspy.BaseLM):
            return super().reducer_override(held)
        self._redactor.learn(held)
        reduced = held.__reduce_ex__(2)
        if len(reduced) < 3 or not isinstance(reduced[2], dict):
            return super().reducer_override(held)
        state = {name: self._without_secrets(value) for name, value in {**reduced[2], "history": []}.items()}
        return (*reduced[:2], state, *reduced[3:])

    def _without_secrets(self, value: object) -> object:
        match value:
            case str() if self._redactor.reply(value) is not value:
                if value not in self.withheld:
                    self.withheld.append(value)
                return _Withheld(self.withheld.index(value))
            case dict():
                return {name: self._without_secrets(held) for name, held in value.items()}
            case list() | tuple():
                return type(value)([self._without_secrets(held) for held in value])
            case _:
                return value


def unpacked(data: bytes, secrets: Sequence[str]) -> Any:
    """Return what was packed, with the secrets in their places."""
    token = _secrets.set(secrets)
    try:
        return cloudpickle.loads(data)
    finally:
        _secrets.reset(token)
