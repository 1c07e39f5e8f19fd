"""Language models from a GGUF file, in this process, through llama.cpp (extra `cuesmith[local]`).

`LocalLM` is a `dspy.LM` whose engine answers concurrent calls together in llama.cpp's slots. What the prompts of one
candidate have in common (system message and demonstrations) is computed once: it is kept beside the slots, given to
each slot that needs it, and calls that share it are sent one after the other.

Draws at a temperature above 0 take their seed from the request (its messages and options, its `seed`, its
`rollout_id`, its place among the `n` answers), so that the same call is the same draw at any concurrency. The last
bits of llama.cpp's figures depend on what is computed beside a call, so that a reply may differ in rare cases.

Source: ours; the server is llama.cpp's, by the wheels of xllamacpp.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import hashlib
import http.client
import importlib.util
import json
import os
import secrets
import shutil
import signal
import struct
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

from dspy import lm15

from cuesmith.modules.in_process import InProcessLM, draw_marks, hashed_seed

PROVIDER = "local"
MAX_TOKENS = 1024
"""New tokens where a request sets no limit."""

LEAST_CONTEXT = 256
"""Tokens; a request of dspy's chat adapter alone takes about as many."""

SHARED = 400
"""Characters that requests must have in common for their common beginning to be kept."""

KEPT = 12
"""How many common beginnings are kept at once; each takes some megabytes."""

PASSED_OVER = 32
"""How often a waiting call may be passed over by one that goes on where a slot is."""

_MAGIC = b"GGUF"


class LocalModelError(ValueError):
    """A model file, or options for it, with which no model can be had; the message is one line."""


def checked(path: str | os.PathLike[str], slots: int, context: int, threads: int | None) -> Path:
    """Return the file's whole path.

    Raises:
        LocalModelError: If there is no such file, it is no GGUF file, a number is too small, or llama.cpp is missing.
    """
    for name, number, least in (("slots", slots, 1), ("context", context, LEAST_CONTEXT), ("threads", threads, 1)):
        if number is not None and number < least:
            raise LocalModelError(f"LocalLM: {name} must be at least {least}, got {number}")
    if importlib.util.find_spec("xllamacpp") is None:
        raise LocalModelError("LocalLM needs llama.cpp: pip install 'cuesmith[local]'")
    file = Path(path).expanduser().absolute()
    try:
        with file.open("rb") as opened:
            head = opened.read(8)
    except OSError as error:
        raise LocalModelError(f"{path}: {error.strerror or error}; LocalLM takes a .gguf file") from None
    if head[:4] != _MAGIC or len(head) < 8 or not 2 <= struct.unpack("<I", head[4:])[0] <= 3:
        raise LocalModelError(f"{path}: not a GGUF file of version 2 or 3 (it begins with {head!r})")
    return file


def digest(file: Path) -> str:
    """Return the SHA-256 of a file, in hex; computed once for each size and time of change."""
    about = file.stat()
    return _digest(file, about.st_size, about.st_mtime_ns)


@lru_cache
def _digest(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# --- the model --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Waiting:
    """A call that waits for a slot."""

    prefix: str | None
    slot: int | None = None
    passed: int = 0


@dataclass(eq=False)
class _Slots:
    """Who may use which slot. A freed slot goes to a call that begins as the slot's last one did, if one waits."""

    count: int
    lock: threading.Condition = field(default_factory=threading.Condition)
    free: list[int] = field(default_factory=list)
    holds: dict[int, str | None] = field(default_factory=dict)
    queue: list[_Waiting] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = list(range(self.count))

    @contextmanager
    def taken(self, prefix: str | None) -> Iterator[int]:
        """Wait for a slot."""
        mine = _Waiting(prefix)
        with self.lock:
            self.queue.append(mine)
            self._assign()
            while mine.slot is None:
                self.lock.wait()
        slot = mine.slot
        try:
            yield slot
        finally:
            with self.lock:
                self.holds[slot] = prefix
                self.free.append(slot)
                self._assign()

    def waits_for(self, prefix: str) -> bool:
        """Whether another call that begins like this one waits."""
        with self.lock:
            return any(each.prefix == prefix for each in self.queue)

    def _assign(self) -> None:
        while self.free and self.queue:
            following = [
                (each, slot) for each in self.queue for slot in self.free if each.prefix == self.holds.get(slot, "")
            ]
            first = self.queue[0]
            if following and first.passed < PASSED_OVER:
                chosen, slot = following[0]
            else:
                chosen, slot = first, self.free[0]
            for each in self.queue[: self.queue.index(chosen)]:
                each.passed += 1
            self.queue.remove(chosen)
            self.free.remove(slot)
            chosen.slot = slot
        self.lock.notify_all()


class SharedSlots:
    """llama.cpp's slots, and the common beginnings of prompts that they share. Thread-safe.

    Slots compute each on their own. A beginning that several calls have is computed once, kept in a file, and read
    by each slot that needs it; a freed slot goes to a call that begins as its last one did.
    """

    def __init__(self, count: int, send: Callable[[dict[str, Any]], dict[str, Any]], url: str, key: str) -> None:
        """Take the slots of a server.

        Args:
            count: How many.
            send: Answers a Chat Completions body.
            url: Where the server's slots are saved and restored.
            key: Its API key.
        """
        self._slots, self._send = _Slots(count), send
        self._address, self._key = url.removeprefix("http://").rstrip("/"), key
        self._keeping = threading.Lock()
        self._kept: OrderedDict[str, None] = OrderedDict()
        self._seen: Counter[str] = Counter()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer a Chat Completions body."""
        messages = body["messages"]
        beginning = json.dumps([messages[:-1], body.get("tools")])
        prefix = beginning if len(messages) > 1 and len(beginning) > SHARED else None
        with self._slots.taken(prefix) as slot:
            if prefix is not None and self._slots.holds.get(slot) != prefix:
                self._share(prefix, slot, body)
            return self._send({**body, "id_slot": slot})

    def _share(self, prefix: str, slot: int, body: Mapping[str, Any]) -> None:
        """Give a slot the beginning of its call, if it is kept; compute and keep it, if others will want it."""
        name = hashlib.sha256(prefix.encode(errors="surrogatepass")).hexdigest()[:24]
        with self._keeping:
            self._seen[name] += 1
            if name in self._kept:
                self._kept.move_to_end(name)
                self._act(slot, "restore", name)
            elif self._seen[name] > 1 or self._slots.waits_for(prefix):
                plain = {k: v for k, v in body.items() if k not in ("response_format", "logprobs", "top_logprobs")}
                answer = self._send({**plain, "max_tokens": 1, "id_slot": slot})
                if "choices" in answer and self._act(slot, "save", name):
                    self._keep(name)

    def _keep(self, name: str) -> None:
        self._kept[name] = None
        while len(self._kept) > KEPT:
            self.forget(self._kept.popitem(last=False)[0])

    def forget(self, name: str) -> None:
        """Called with the name of a file that is no longer needed."""

    def _act(self, slot: int, action: str, name: str) -> bool:
        """Save or restore what a slot has computed; a failure costs time alone."""
        link = http.client.HTTPConnection(self._address, timeout=60)
        try:
            head = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            link.request("POST", f"/slots/{slot}?action={action}", json.dumps({"filename": name}), head)
            return link.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            link.close()


class LlamaModel(SharedSlots):
    """A loaded model: llama.cpp's server in this process.

    There is one of a file and its options in a process (`loaded`).
    """

    def __init__(self, file: Path, slots: int, context: int, threads: int) -> None:
        """Load the model; takes seconds.

        Raises:
            LocalModelError: If llama.cpp cannot load it.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="cuesmith-llama-", dir=_memory_folder()))
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        key = secrets.token_hex(16)
        server = _server(file, slots, context, threads, self._folder, key)
        super().__init__(slots, server.handle_chat_completions, server.listening_address, key)

    def forget(self, name: str) -> None:
        """Delete the file."""
        (self._folder / name).unlink(missing_ok=True)


def _server(file: Path, slots: int, context: int, threads: int, folder: Path, key: str) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel, params.n_ctx, params.kv_unified = slots, slots * context, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # threads that spin starve all others of a busy machine
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [key]
    params.slot_save_path = f"{folder}/"
    params.cache_ram_mib, params.ui, params.verbosity, params.warmup = 0, False, -1, False
    with _own_signals():
        try:
            return xllamacpp.Server(params)
        except Exception:
            asked = f"{slots} slots of {context} tokens"
            raise LocalModelError(f"{file}: llama.cpp cannot load it with {asked} (damaged, or too large?)") from None


def _memory_folder() -> str | None:
    """Return a folder that is kept in memory, where the system has one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers of SIGINT and SIGTERM: llama.cpp's server would take them, for good."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "sigaction"):
        yield
        return
    kept = {number: ctypes.create_string_buffer(512) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, action in kept.items():
        libc.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            libc.sigaction(int(number), action, None)


_loading = threading.Lock()


def loaded(file: Path, slots: int, context: int, threads: int | None) -> LlamaModel:
    """Return the model, which this process loads once."""
    with _loading:
        return _loaded(file, slots, context, threads or len(os.sched_getaffinity(0)))


@cache
def _loaded(file: Path, slots: int, context: int, threads: int) -> LlamaModel:
    return LlamaModel(file, slots, context, threads)


# --- the engine -------------------------------------------------------------------------------------------------


class LocalEngine:
    """dspy's engine contract on a model file: one request, one response."""

    supported_params = frozenset(
        {"temperature", "max_tokens", "stop", "seed", "n", "top_p", "response_format", "logprobs", "tools",
         "frequency_penalty", "presence_penalty"}
    )  # fmt: skip
    supports_response_schema = True
    supports_function_calling = True

    free = True
    """It runs in this process: its calls cost nothing, which a budget in dollars has to know."""

    def __init__(self, path: str, slots: int = 8, context: int = 4096, threads: int | None = None) -> None:
        """Create the engine; the model is loaded at the first request.

        Raises:
            LocalModelError: See `checked`.
        """
        self.file = checked(path, slots, context, threads)
        self.slots, self.context, self.threads = slots, context, threads
        self._writer = lm15.OpenAIChatLM(api_key="none", compat=lm15.OpenAIChatCompat(max_tokens_field="max_tokens"))

    def _model(self) -> LlamaModel:
        return loaded(self.file, self.slots, self.context, self.threads)

    def _body(self, request: lm15.Request, marks: tuple[int | None, ...]) -> dict[str, Any]:
        """Return the Chat Completions body, with a seed that is a function of the request and its marks."""
        wire = self._writer.build_request(request, False)
        body: dict[str, Any] = json.loads(wire.body or b"{}")
        body.setdefault("temperature", 0.0)
        body["max_tokens"] = body.get("max_tokens") or MAX_TOKENS
        options = sorted((name, repr(value)) for name, value in body.items())
        body["seed"] = hashed_seed((options, marks), bits=31)
        return body

    def _respond(self, request: lm15.Request, answer: Mapping[str, Any]) -> lm15.Response:
        if "choices" not in answer:
            raise _error(answer)
        named = {**answer, "model": request.model}
        return lm15.response_from_openai_chat(named, response_format=request.config.response_format)

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer a request.

        Raises:
            lm15.ContextLengthError: If it does not fit the context.
            lm15.UnsupportedFeatureError: For what the model cannot read.
            lm15.InvalidRequestError: For options out of range.
        """
        return self.answer(request, draw_marks())

    def answer(self, request: lm15.Request, marks: tuple[int | None, ...]) -> lm15.Response:
        """As `complete`, with what tells the request from others of the same words (`draw_marks`)."""
        return self._respond(request, self._model().complete(self._body(request, marks)))

    def stream(self, request: lm15.Request) -> Iterator[object]:
        """A request's answer as events; the text comes in one piece."""
        return cast(Iterator[object], lm15.response_to_events(self.complete(request)))

    def close(self) -> None:
        """Nothing to release: the model belongs to the process."""

    def __deepcopy__(self, memo: dict[int, object]) -> LocalEngine:
        """Itself."""
        return self

    def identity(self) -> dict[str, object]:
        """What decides about its answers: the file's content, wherever it lies, and the context."""
        return {"sha256": digest(self.file), "context": self.context}

    def dump_state(self) -> dict[str, object]:
        """What a saved program keeps."""
        return {"path": str(self.file), "slots": self.slots, "context": self.context, "threads": self.threads}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> LocalEngine:
        """The engine of a saved program."""
        return cls(**state)


class AsyncLocalEngine(LocalEngine):
    """`LocalEngine` for event loops."""

    async def complete(self, request: lm15.Request) -> lm15.Response:  # type: ignore[override, unused-ignore]
        """Answer a request; see `LocalEngine.complete`."""
        return await asyncio.to_thread(self.answer, request, draw_marks())

    async def stream(self, request: lm15.Request) -> AsyncIterator[object]:  # type: ignore[override, unused-ignore]
        """A request's answer as events; the text comes in one piece."""
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Nothing to release: the model belongs to the process."""


def _error(answer: Mapping[str, Any]) -> lm15.ProviderError:
    """Return the error that llama.cpp's server has answered with."""
    told = answer.get("error", answer)
    told = told if isinstance(told, Mapping) else {"message": str(told)}
    message, code = str(told.get("message", "llama.cpp gave no reply")), told.get("code")
    if told.get("type") == "exceed_context_size_error" or "context size" in message:
        return lm15.ContextLengthError(f"{message} (LocalLM(context=...))", provider=PROVIDER)
    if isinstance(code, int) and 400 <= code < 500:
        return lm15.InvalidRequestError(message, provider=PROVIDER)
    return lm15.ServerError(message, provider=PROVIDER)


class LocalLM(InProcessLM):
    """A model file as a `dspy.LM`: offline, free, as fast as this machine.

    Everything that dspy asks of a model works: the file's own chat template, system messages, stop strings, seeds,
    `n`, `max_tokens`, log probabilities, tools, and JSON schemas, which llama.cpp turns into grammars. The model is
    loaded at the first call, once in a process, however many `LocalLM`s of the same file there are.

    A program that carries it is saved like any other and loaded with
    ``program.load(path, allow_unsafe_lm_state=True)``, dspy's rule for every LM that is not its own.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        slots: int = 8,
        context: int = 4096,
        threads: int | None = None,
        temperature: float = 0.0,
        max_tokens: int = MAX_TOKENS,
        cache: bool = False,
        **options: Any,
    ) -> None:
        """Create the LM.

        Args:
            path: The .gguf file.
            slots: Calls that are answered at once; further ones wait.
            context: Tokens of a prompt and its reply together.
            threads: Threads to compute with; by default one for each core. On a busy machine fewer are faster.
            temperature: 0 takes the most likely tokens.
            max_tokens: Most new tokens of a reply.
            cache: Whether dspy's cache keeps the replies.
            options: Further options of each call, as `dspy.LM` takes them (`top_p`, `stop`, `seed`, ...).

        Raises:
            LocalModelError: If the file is missing or no GGUF file, a number is too small, or llama.cpp is missing.
        """
        engine = LocalEngine(os.fspath(path), slots, context, threads)
        async_engine = AsyncLocalEngine(os.fspath(path), slots, context, threads)
        super().__init__(
            f"{PROVIDER}/{engine.file.stem}",
            temperature=temperature,
            max_tokens=max_tokens,
            cache=cache,
            engine=engine,
            async_engine=async_engine,
            **options,
        )

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> LocalLM:
        """The LM of a saved program."""
        state = dict(state)
        engine = state.pop("engine", {}).get("state", {})
        lm = cls(cache=state.pop("cache", False), **engine)
        lm.num_retries = state.pop("num_retries", lm.num_retries)
        for name in ("_lm_class", "model", "model_type", "async_engine", "finetuning_model", "launch_kwargs",
                     "train_kwargs", "use_developer_role"):  # fmt: skip
            state.pop(name, None)
        lm.kwargs = {**lm.kwargs, **state}
        return lm
