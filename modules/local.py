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
import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, cast

from dspy import lm15

from cuesmith.modules.gguf_header import LocalModelError, memory, read_header
from cuesmith.modules.in_process import InProcessLM, draw_marks, hashed_seed
from cuesmith.modules.shared_slots import SharedSlots

PROVIDER = "local"
MAX_TOKENS = 1024
"""New tokens where a request sets no limit."""

CONTEXT = 4096
"""Tokens; the models with less have all they can."""

LEAST_CONTEXT = 256
"""Tokens; a request of dspy's chat adapter alone takes about as many."""

MOST_SLOTS = 256
MOST_THREADS = 512
"""llama.cpp's own limits."""


def checked(path: str | os.PathLike[str], slots: int, context: int, threads: int | None) -> tuple[Path, int]:
    """Return the file's whole path, and the context that its model can have.

    Raises:
        LocalModelError: If llama.cpp is missing, there is no such file, it holds no whole language model, or a number
            is out of range.
    """
    _in_range("slots", slots, 1, MOST_SLOTS)
    _in_range("context", context, LEAST_CONTEXT, None)
    if threads is not None:
        _in_range("threads", threads, 1, MOST_THREADS)
    if importlib.util.find_spec("xllamacpp") is None:
        raise LocalModelError("LocalLM needs llama.cpp: pip install 'cuesmith[local]'")
    file = Path(path).expanduser().absolute()
    header = read_header(file)
    own = header.own("context_length") or CONTEXT
    if context > max(own, CONTEXT):
        raise LocalModelError(f"{file}: the model's context is {own} tokens, got context={context}")
    context = min(context, own)
    needed = slots * context * header.bytes_per_token
    if needed > memory():
        raise LocalModelError(
            f"LocalLM: {slots} slots of {context} tokens take {needed >> 30} GB; this machine has {memory() >> 30}"
        )
    return file, context


def _in_range(name: str, number: object, least: int, most: int | None) -> None:
    if type(number) is not int or number < least or (most is not None and number > most):
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise LocalModelError(f"LocalLM: {name} must be a whole number, {wanted}, got {number!r}")


def digest(file: Path) -> str:
    """Return the SHA-256 of a model's file, or of all its files, in hex; computed once while they stay the same."""
    parts = [file]
    if split := re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", file.name):
        parts = sorted(file.parent.glob(f"{split[1]}*{split[2]}"))
    each = [_digest(part, part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


@lru_cache
def _digest(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# --- the model --------------------------------------------------------------------------------------------------


class LlamaModel(SharedSlots):
    """A loaded model: llama.cpp's server in this process, listening on a socket in a folder of its own.

    There is one of a file and its options in a process (`loaded`).
    """

    def __init__(self, file: Path, slots: int, context: int, threads: int) -> None:
        """Load the model; takes seconds.

        Raises:
            LocalModelError: If llama.cpp cannot load it.
        """
        key = secrets.token_hex(16)
        self._folder, self._held = _own_folder()
        try:
            self._server = _server(file, slots, context, threads, self._folder, key)
        except BaseException:
            self._leave()
            raise
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._server))  # destroyed in `_end`, if at all
        super().__init__(slots, self._server.listening_address, key, lambda name: (self._folder / name).unlink(True))
        Finalize(None, self._end, exitpriority=0)  # as atexit does, and in the processes of multiprocessing too
        # A server that is ended before it has begun its work would be waited for in vain: see that it has.
        asyncio.run_coroutine_threadsafe(self._act(0, "erase", ""), self._loop).result()

    def _end(self) -> None:
        self.close()
        if not _forked:
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(self._server))
            del self._server
        self._leave()

    def _leave(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._held)


def _server(file: Path, slots: int, context: int, threads: int, folder: Path, key: str) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel, params.n_ctx, params.kv_unified = slots, slots * context, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # threads that spin starve all others of a busy machine
    params.hostnames, params.api_keys = [f"{folder}/llama.sock"], [key]
    params.slot_save_path = f"{folder}/"
    params.cache_ram_mib, params.ui, params.verbosity, params.warmup = 0, False, -1, False
    with _own_handlers():
        try:
            return xllamacpp.Server(params)
        except Exception:
            asked = f"{slots} slots of {context} tokens"
            raise LocalModelError(f"{file}: llama.cpp cannot load it with {asked} (damaged, or too large?)") from None


_FOLDER = "cuesmith-llama-"


def _own_folder() -> tuple[Path, int]:
    """Return a new folder, in memory where the system has that, and the lock by which others know that it is in use."""
    place = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
    for left in place.glob(f"{_FOLDER}*"):
        with suppress(OSError):
            _remove_unused(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=place))
        with suppress(FileNotFoundError):
            held = os.open(folder, os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_EX)
            if folder.exists():  # else another process has removed it before it was locked
                return folder, held
            os.close(held)


def _remove_unused(folder: Path) -> None:
    """Remove a folder whose process was killed; an OSError tells that it is in use."""
    held = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(held)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let signals wait: threads that are started meanwhile never get any, and leave them to the program's own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep this process's handlers of SIGINT and SIGTERM: llama.cpp's server would take them, for good."""
    libc = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(512) for number in _SIGNALS}
    for number, action in kept.items():
        libc.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            libc.sigaction(int(number), action, None)


_loading = threading.Lock()
_forked = False


def _after_fork() -> None:
    """Let a forked process, which has nothing of its parent's llama.cpp but the memory, load models of its own.

    What llama.cpp does at the end of a process is to wait for threads, which are the parent's: it is left out.
    """
    global _forked
    _loading.release()
    if "xllamacpp" in sys.modules:
        _forked, libc = True, ctypes.CDLL(None)
        if hasattr(libc, "on_exit"):  # what is registered last is called first, with the exit status
            libc.on_exit(libc._exit, None)


os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_after_fork)


_models: dict[tuple[int, Path, int, int, int], LlamaModel] = {}


def loaded(file: Path, slots: int, context: int, threads: int | None) -> LlamaModel:
    """Return the model, which each process loads once, a forked one too.

    Raises:
        LocalModelError: If the file is no longer there or whole, or llama.cpp cannot load it.
    """
    key = os.getpid(), file, slots, context, threads or _cores()
    with _loading:
        if key not in _models:
            read_header(file)
            # In a thread of its own, which no KeyboardInterrupt takes the model from.
            with _signals_wait(), ThreadPoolExecutor(1) as pool:
                pool.submit(_load, *key).result()
        return _models[key]


def _load(process: int, file: Path, slots: int, context: int, threads: int) -> None:
    _models[process, file, slots, context, threads] = LlamaModel(file, slots, context, threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

    def __init__(self, path: str, slots: int = 8, context: int = CONTEXT, threads: int | None = None) -> None:
        """Create the engine; the model is loaded at the first request.

        Raises:
            LocalModelError: See `checked`.
        """
        self.file, self.context = checked(path, slots, context, threads)
        self.slots, self.threads = slots, threads
        self._writer = lm15.OpenAIChatLM(api_key="none", compat=lm15.OpenAIChatCompat(max_tokens_field="max_tokens"))

    def _model(self) -> SharedSlots:
        try:
            return loaded(self.file, self.slots, self.context, self.threads)
        except LocalModelError as error:
            raise lm15.ConfigurationError(str(error), provider=PROVIDER) from None

    def _body(self, request: lm15.Request, marks: tuple[int | None, ...]) -> dict[str, Any]:
        """Return the Chat Completions body, with a seed that is a function of the request and its marks."""
        wire = self._writer.build_request(request, False)
        body: dict[str, Any] = json.loads(wire.body or b"{}")
        body.pop("model", None)  # a model's name is no part of a draw
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
            lm15.ConfigurationError: If the model cannot be loaded.
        """
        return self.answer(request, draw_marks())

    def answer(self, request: lm15.Request, marks: tuple[int | None, ...]) -> lm15.Response:
        """As `complete`, with what tells the request from others of the same words (`draw_marks`)."""
        reply = self._model().submit(self._body(request, marks))
        try:
            return self._respond(request, reply.result())
        except CancelledError:  # the process ends, and a thread like this one with it
            raise SystemExit from None
        finally:
            reply.cancel()  # nothing, unless the wait was broken off

    def stream(self, request: lm15.Request) -> Iterator[object]:
        """A request's answer as events; the text comes in one piece."""
        return _events(self.complete(request))

    def close(self) -> None:
        """Nothing to release: the model belongs to the process."""

    def __deepcopy__(self, memo: dict[int, object]) -> LocalEngine:
        """Itself."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as it is saved."""
        return type(self).load_state, (self.dump_state(),)

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
        reply = asyncio.wrap_future(self._model().submit(self._body(request, draw_marks())))
        return self._respond(request, await reply)

    async def stream(self, request: lm15.Request) -> AsyncIterator[object]:  # type: ignore[override, unused-ignore]
        """A request's answer as events; the text comes in one piece."""
        for event in _events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Nothing to release: the model belongs to the process."""


def _events(response: lm15.Response) -> Iterator[object]:
    """Return a response as a stream's events, which know JSON as text alone."""
    message = replace(response.message, parts=tuple(map(as_text, response.message.parts)))
    return cast(Iterator[object], lm15.response_to_events(replace(response, message=message)))


def as_text(part: Any) -> Any:
    """Return a part of a reply, JSON that answers a schema as its text."""
    return lm15.TextPart(json.dumps(part.value, ensure_ascii=False)) if isinstance(part, lm15.DataPart) else part


def _error(answer: Mapping[str, Any]) -> lm15.ProviderError:
    """Return the error that llama.cpp's server has answered with."""
    told = answer.get("error", answer)
    told = told if isinstance(told, Mapping) else {"message": str(told)}
    message, code = str(told.get("message", "llama.cpp gave no reply")), told.get("code")
    if told.get("type") == "exceed_context_size_error" or "context size" in message:
        return lm15.ContextLengthError(f"{message} (LocalLM(context=...))", provider=PROVIDER)
    # A reply that is no call of a tool, or no JSON, though it should be: the next try would give the same.
    unreadable = "does not match the expected" in message or "Failed to parse" in message
    if unreadable or (isinstance(code, int) and 400 <= code < 500):
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
        context: int = CONTEXT,
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
            context: Tokens of a prompt and its reply together, at most what the model was made for.
            threads: Threads to compute with; by default one for each core. On a busy machine fewer are faster.
            temperature: 0 takes the most likely tokens.
            max_tokens: Most new tokens of a reply.
            cache: Whether dspy's cache keeps the replies.
            options: Further options of each call, as `dspy.LM` takes them (`top_p`, `stop`, `seed`, ...).

        Raises:
            LocalModelError: See `checked`.
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
        self._name()

    def _name(self) -> None:
        """Tell the file's content by the model's name where dspy's cache goes by it: other files have that name too."""
        engine: LocalEngine = self._engine_spec
        self.model = f"{PROVIDER}/{engine.file.stem}" + (f"@{digest(engine.file)[:16]}" if self.cache else "")

    def copy(self, **kwargs: Any) -> LocalLM:
        """As `dspy.LM`."""
        copied: LocalLM = super().copy(**kwargs)
        copied._name()
        return copied

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> LocalLM:
        """The LM of a saved program."""
        state = dict(state)
        engine = state.pop("engine", {}).get("state", {})
        lm = cls(cache=state.pop("cache", False), **engine)
        return lm.restored(state)
