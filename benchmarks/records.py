"""Replies of language models, kept so that a benchmark on real models can be run again by anyone, without a model.

A `Book` holds the replies that one cell of a benchmark got: a line a reply, under the hash of the request. `RecordedLM`
is a `dspy.LM` that answers from a book, and asks its model for what is not in it, or, without a model, stops: nothing
is made up. What is computed from replies (candidates, scores, intervals, tables) is computed anew each time.

A cell that is under way writes to `NAME.jsonl`, which a killed run goes on from; `close` packs it as `NAME.jsonl.xz`,
with the number of its lines and their checksum at its end, to which whoever reads it holds it.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import lzma
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from dspy import lm15
from dspy.clients.execution import request_to_dict

from cuesmith.modules.in_process import InProcessLM, draw_marks
from cuesmith.modules.local import LocalEngine, as_text
from cuesmith.modules.shared_slots import SharedSlots

PACKED = ".jsonl.xz"
_REFUSALS: dict[str, type[lm15.ProviderError]] = {
    kind.__name__: kind for kind in (lm15.ContextLengthError, lm15.InvalidRequestError)
}
"""What the same request is always answered with. A server that is gone is not: that is no reply, and no record."""


class RecordError(RuntimeError):
    """Records that are damaged or incomplete; the message is one line."""


class Book:
    """The replies that one cell got, and a place for new ones. Thread-safe.

    What other cells of the group have been answered serves this one too, if it may ask a model at all: it is copied,
    so that each cell's record is whole by itself.

    Attributes:
        missed: What was asked for, is not in the book, and could not be asked of a model.
    """

    def __init__(self, folder: Path, cell: str, *, filling: bool, also: Sequence[Path] = ()) -> None:
        """Read the cell's record, or what there is of it.

        Args:
            folder: The group's folder.
            cell: The name of the cell's record.
            filling: Whether replies may be added.
            also: Folders of other groups whose replies serve it too.

        Raises:
            RecordError: If a record is damaged or cut, or another process fills it.
        """
        self.folder, self.cell, self.missed = folder, cell, list[str]()
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._packed, self._fresh = folder / f"{cell}{PACKED}", folder / f"{cell}.jsonl"
        self._replies = _entries(self._packed) if self._packed.exists() else {}
        self._others: dict[str, dict[str, Any]] = {}
        if filling and not self._replies:
            folder.mkdir(parents=True, exist_ok=True)
            for other in (path for group in (folder, *also) for path in sorted(group.glob(f"*{PACKED}"))):
                self._others |= _entries(other)
            self._go_on()

    def _go_on(self) -> None:
        """Read what a killed run has left; its last line may be cut."""
        self._file = self._fresh.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecordError(f"{self._fresh}: another process fills this cell") from None
        self._file.seek(0)
        whole = self._file.read().rpartition(b"\n")[0].splitlines()
        self._replies = _keyed(self._fresh, whole)
        self._file.truncate(sum(len(line) + 1 for line in whole))

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the reply to a request, or None."""
        found = self._replies.get(key)
        if found is None and (found := self._others.get(key)) is not None:
            self.add(key, found)
        return found

    def add(self, key: str, reply: Mapping[str, Any]) -> None:
        """Keep a reply, on disk before it is used."""
        entry = {"key": key, **reply}
        with self._lock:
            assert self._file is not None
            self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            self._replies[key] = entry

    def __len__(self) -> int:
        """Return how many replies it has."""
        return len(self._replies)

    def check(self) -> None:
        """Raise if something was asked for that is not in the book.

        Raises:
            RecordError: If so.
        """
        if self.missed:
            raise RecordError(f"{self._packed}: no record of {self.missed[0]}; were settings or prompts changed since?")

    def close(self) -> None:
        """Pack what was added."""
        if self._file is None:
            return
        lines = self._fresh.read_bytes()
        packed = self._packed.with_suffix(".tmp")
        packed.write_bytes(lzma.compress(lines + json.dumps(_about(lines)).encode(), preset=9 | lzma.PRESET_EXTREME))
        packed.replace(self._packed)
        self._fresh.unlink()
        self._file.close()
        self._file = None


def _about(lines: bytes) -> dict[str, Any]:
    return {"lines": lines.count(b"\n"), "sha256": hashlib.sha256(lines).hexdigest()}


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """Read a packed record, whose last line says how many there are and what they are."""
    try:
        text = lzma.decompress(path.read_bytes())
        lines, told = text[: text.rfind(b"\n") + 1], json.loads(text.rpartition(b"\n")[2])
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise RecordError(f"{path}: cannot be read ({error}); get the file from the repository again") from None
    found = _about(lines)
    if found != told:
        raise RecordError(f"{path}: was changed: {found} is not {told}; get the file from the repository again")
    return _keyed(path, lines.splitlines())


def _keyed(path: Path, lines: Iterable[bytes]) -> dict[str, dict[str, Any]]:
    entries = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entries[str(entry["key"])] = entry
        except (ValueError, KeyError, TypeError):
            raise RecordError(f"{path}: line {number} is no record") from None
    return entries


def request_key(request: lm15.Request, marks: tuple[int | None, ...]) -> str:
    """Return what a reply is kept under: a hash of the whole request, and, above temperature 0, of its draw."""
    content = (request_to_dict(request), marks if request.config.temperature else None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


class Model(Protocol):
    """What answers where the book does not; `LocalEngine` is one."""

    def answer(self, request: lm15.Request, marks: tuple[int | None, ...]) -> lm15.Response: ...


class ServerModel(LocalEngine):
    """A model behind llama.cpp's own server, built for this very machine: up to twice as fast as the wheels.

    `llama-server -m FILE --port 8902 -np 8 -c 32768 --slot-save-path /dev/shm/`.
    """

    def __init__(self, url: str) -> None:
        """Take the server's address, as in "http://127.0.0.1:8902"."""
        with urllib.request.urlopen(f"{url}/props") as props:
            count = int(json.load(props)["total_slots"])
        self._writer = lm15.OpenAIChatLM(api_key="none", compat=lm15.OpenAIChatCompat(max_tokens_field="max_tokens"))
        self._shared = SharedSlots(count, url)

    def _model(self) -> SharedSlots:
        return self._shared


class RecordingEngine:
    """dspy's engine contract on a book and, where there is one, a model."""

    supported_params = LocalEngine.supported_params
    supports_response_schema = LocalEngine.supports_response_schema
    supports_function_calling = False
    free = True

    def __init__(self, book: Book, model: Model | None) -> None:
        """Create the engine."""
        self.book, self.model = book, model
        self.asked: list[dict[str, Any]] = []

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer a request from the book, or from the model.

        Raises:
            lm15.AuthError: If there is no record of it and no model; it ends the run at once, and `Book.check` tells.
            lm15.ProviderError: As the model raised it.
        """
        return self.answer(request, draw_marks())

    def answer(self, request: lm15.Request, marks: tuple[int | None, ...]) -> lm15.Response:
        """As `complete`, with what tells the request from others of the same words."""
        key = request_key(request, marks)
        entry = self.book.get(key)
        if entry is None:
            entry = self._ask(key, request, marks)
        self.asked.append(entry)
        if "error" in entry:
            raise _REFUSALS[entry["error"]](entry["message"], provider="recorded")
        total = entry["in"] + entry["out"]
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(entry["text"]),
            finish_reason=cast(Any, entry["finish"]),
            usage=lm15.Usage(input_tokens=entry["in"], output_tokens=entry["out"], total_tokens=total),
        )

    def _ask(self, key: str, request: lm15.Request, marks: tuple[int | None, ...]) -> dict[str, Any]:
        if self.model is None:
            self.book.missed.append(f"request {key} to {request.model}")
            raise lm15.AuthError(f"no record of request {key}, and no model to ask", provider="recorded")
        begun = time.monotonic()
        try:
            response = self.model.answer(request, marks)
        except lm15.ProviderError as error:
            if type(error).__name__ not in _REFUSALS:
                raise
            reply: dict[str, Any] = {"error": type(error).__name__, "message": str(error), "in": 0, "out": 0}
        else:
            text = "".join(part.text for part in (as_text(part) for part in response.message.parts)
                           if isinstance(part, lm15.TextPart))  # fmt: skip
            usage = response.usage
            reply = {"text": text, "finish": response.finish_reason, "in": usage.input_tokens or 0,
                     "out": usage.output_tokens or 0}  # fmt: skip
        reply["s"] = round(time.monotonic() - begun, 2)
        self.book.add(key, reply)
        return {"key": key, **reply}

    def stream(self, request: lm15.Request) -> Iterator[object]:
        """A request's answer as events; the text comes in one piece."""
        return cast(Iterator[object], lm15.response_to_events(self.complete(request)))

    def close(self) -> None:
        """Nothing to release."""

    def __deepcopy__(self, memo: dict[int, object]) -> RecordingEngine:
        """Itself."""
        return self


class AsyncRecordingEngine(RecordingEngine):
    """`RecordingEngine` for event loops."""

    def __init__(self, engine: RecordingEngine) -> None:
        """Share the other's book, model and count."""
        super().__init__(engine.book, engine.model)
        self.asked = engine.asked

    async def complete(self, request: lm15.Request) -> lm15.Response:  # type: ignore[override, unused-ignore]
        """Answer a request; see `RecordingEngine.complete`."""
        return await asyncio.to_thread(self.answer, request, draw_marks())

    async def stream(self, request: lm15.Request) -> AsyncIterator[object]:  # type: ignore[override, unused-ignore]
        """A request's answer as events; the text comes in one piece."""
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Nothing to release."""


class RecordedLM(InProcessLM):
    """A model whose replies are kept in a book.

    Attributes:
        asked: The records of all replies it has given, in order.
    """

    def __init__(self, name: str, book: Book, model: Model | None, **options: Any) -> None:
        """Create the LM.

        Args:
            name: What the model is called in requests; part of their hashes.
            book: Where its replies are.
            model: Asked for replies that are not there; None stops instead.
            options: As `dspy.LM` takes them.
        """
        engine = RecordingEngine(book, model)
        super().__init__(name, engine=engine, async_engine=AsyncRecordingEngine(engine), cache=False, **options)
        self.asked = engine.asked
