"""The one file of glue to dspy 3.4: everything here leans on how dspy is built, not only on its public names.

The door stands here: while a run is under way, whatever calls a `dspy.BaseLM` or a `dspy.Embedder` passes its gate,
whichever object holds the model and whichever thread makes the call. It stands where dspy executes a call
(`dspy.clients.execution`), behind every public way to make one. To be revisited with dspy 3.5: that place,
`named_predictors` order, and deep copies of LMs.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import functools
import inspect
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import dspy
import numpy as np
from dspy.adapters import utils as formatting
from dspy.clients import base_lm, embedding, execution
from dspy.clients.backend_selection import select_backend
from dspy.clients.call_result import CallResult, attributes, response_from_dict, response_to_dict
from dspy.clients.capabilities import resolve
from dspy.clients.execution import request_to_dict
from dspy.clients.legacy_outputs import plain, value
from dspy.clients.model_metadata import model_info, rate
from dspy.lm15 import _binding_for
from pydantic import TypeAdapter

from cuesmith.teleprompters.runtime import _litellm
from cuesmith.teleprompters.runtime.admissions import admission
from cuesmith.teleprompters.runtime.calls import Reply, Request, public_options
from cuesmith.teleprompters.runtime.gate import Effect, Gate, effect, hired
from cuesmith.teleprompters.runtime.ledger import RunStopped, Usage
from cuesmith.teleprompters.runtime.lines import ThreadLine, branched, line
from cuesmith.teleprompters.runtime.outages import EmptyReply, FilteredReply
from cuesmith.teleprompters.runtime.thinking import strip_thinking


def named_predictors(program: dspy.Module) -> list[tuple[str, dspy.Predict]]:
    """Return (path, predictor) of every predictor that a compiler may change, in the program's order."""
    return [(str(name), predictor) for name, predictor in program.named_predictors()]


def modules_of(program: dspy.Module) -> list[dspy.Module]:
    """Return the program and all modules inside it, outer ones first.

    `named_sub_modules` walks through each module's call history as well: seconds, after some thousand calls.
    """
    found: dict[int, dspy.Module] = {}
    queue: deque[object] = deque([program])
    seen: set[int] = set()
    while queue:
        held = queue.popleft()
        if id(held) in seen:
            continue
        seen.add(id(held))
        if isinstance(held, dspy.Module):
            found[id(held)] = held
            queue.extend(value for name, value in vars(held).items() if name != "history")
        elif isinstance(held, list | tuple):
            queue.extend(held)
        elif isinstance(held, dict):
            queue.extend(held.values())
    return list(found.values())


def tools_in(held: object) -> Iterator[object]:
    """Yield the tools among what a module holds as one attribute: `dspy.Tool`s and functions."""
    several = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else [held]
    yield from (one for one in several if isinstance(one, dspy.Tool) or inspect.isroutine(one))


def is_async(function: object) -> bool:
    """Return whether a function, or a callable object, can only be awaited."""
    own_call = getattr(type(function), "__call__", None)  # noqa: B004  (its kind is asked for, not its presence)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(own_call)


def async_tools(program: dspy.Module) -> list[str]:
    """Return the names of the tools inside a program that can only be awaited, unless dspy is told to do without."""
    if dspy.settings.allow_tool_async_sync_conversion:
        return []
    held = [tool for module in modules_of(program) for value in vars(module).values() for tool in tools_in(value)]
    tools = [tool for tool in held if isinstance(tool, dspy.Tool)]
    return sorted({str(tool.name) for tool in tools if is_async(tool.func)})


def runs_async(program: dspy.Module) -> bool:
    """Return whether a program is to be awaited: it can only be, or its tools can only be and it can."""
    kind = type(program)
    return hasattr(kind, "aforward") and (not hasattr(kind, "forward") or bool(async_tools(program)))


def language_models(program: dspy.Module) -> list[dspy.BaseLM]:
    """Return the LMs that the program's modules carry as attributes, frozen sub-modules included."""
    found = [held for module in modules_of(program) for held in vars(module).values() if isinstance(held, dspy.BaseLM)]
    return list({id(lm): lm for lm in found}.values())


def models_of(program: dspy.Module, *others: dspy.BaseLM | None) -> list[dspy.BaseLM]:
    """Return the LMs in play: those that the program carries, and others, of which some may be none."""
    return [*language_models(program), *(lm for lm in others if lm is not None)]


def takes_temperature(lm: dspy.BaseLM) -> bool:
    """Return whether a model may be sampled at another temperature than 1: OpenAI's reasoning models may not, which
    dspy knows by their names and gives an option of their own."""
    return "max_completion_tokens" not in lm.kwargs


def copy_program(program: dspy.Module) -> dspy.Module:
    """Return a deep copy that shares the LMs.

    `Module.deepcopy` copies an LM with its whole history (a hundred milliseconds after some thousand calls)
    and loses its callbacks; an LM that is already in the memo is shared instead. Copies start without history.
    """
    memo: dict[int, object] = {id(lm): lm for lm in language_models(program)}
    memo |= {id(module.history): [] for module in modules_of(program) if isinstance(module.history, list)}
    try:
        copied = copy.deepcopy(program, dict(memo))
    except Exception:
        copied = copy.deepcopy(program, memo | _uncopiable(program, memo))
    assert isinstance(copied, dspy.Module)
    return copied


def _uncopiable(program: dspy.Module, memo: Mapping[int, object]) -> dict[int, object]:
    """Return the attributes that cannot be copied (a lock, a connection): copies share them, as dspy's do."""
    shared: dict[int, object] = {}
    for module in reversed(modules_of(program)):  # inner ones first
        for held in vars(module).values():
            try:
                copy.deepcopy(held, {**memo, **shared})
            except Exception:
                shared[id(held)] = held
    return shared


# --- the door ------------------------------------------------------------------------------------------------


class PaidCall(BaseException):
    """A model was called where none may be. Not an `Exception`: no metric may swallow it."""


_forbidden: ContextVar[list[str] | None] = ContextVar("cuesmith_forbidden", default=None)


class _Door:
    """Sends every call through the gate of the run that it belongs to, as long as there is one. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._gates: list[Gate | None] = []
        self._home = 0

    def open(self, gate: Gate | None) -> None:
        """Let calls pass `gate` from now on; None only keeps the door in its place."""
        with self._lock:
            self._home = self._home if self._gates else os.getpid()
            self._gates.append(gate)
            self._hang()

    def close(self, gate: Gate | None) -> None:
        """Forget the gate.

        The door itself stays: a thread that a run has left behind finds it closed. Threads alone are begun as ever,
        and values formatted as ever, when no run is under way.
        """
        with self._lock:
            self._gates.remove(gate)
            if not self._gates:
                threading.Thread.start = _real_start  # type: ignore[method-assign]
                ThreadPoolExecutor.submit = _real_submit  # type: ignore[method-assign]
                formatting.TypeAdapter, formatting._get_json_schema = TypeAdapter, _real_schema
                _adapters.clear()
                _schemas.clear()

    def is_inherited(self) -> bool:
        """Whether a run is under way that another process has begun, whose fork this one is."""
        return bool(self._gates) and self._home != os.getpid()

    def leads_to(self) -> tuple[Gate, Effect] | None:
        """Return the gate and the effect of a call that is made here and now; None if it is no run's business.

        Raises:
            PaidCall: Within `no_calls`.
            RunStopped: If nobody waits any more for the effect that this thread works for.
        """
        if (tried := _forbidden.get()) is not None:
            tried.append("a model is called where no call may be paid for")
            raise PaidCall(tried[-1])
        current = effect.get()
        if current is not None and current.gate is not None:
            if current.abandoned:
                current.gate.check(current)
            if not current.over:
                return current.gate, current
        gates = [gate for gate in self._gates if gate is not None]
        if not gates:
            return None
        gate = current.gate if current is not None and current.gate in gates else gates[-1]
        assert gate is not None
        return gate, gate.stray

    def _hang(self) -> None:
        execution.execute, execution.aexecute = _execute, _aexecute
        execution._retryable, execution._attempt, execution._aattempt = _retryable, _attempt, _aattempt
        embedding._compute_embeddings, embedding._acompute_embeddings = _embed, _aembed
        _litellm.watch(self.leads_to)
        formatting.TypeAdapter, formatting._get_json_schema = _adapter, _schema
        threading.Thread.start = _start  # type: ignore[assignment, method-assign]
        ThreadPoolExecutor.submit = _submit  # type: ignore[assignment, method-assign]
        base_lm.record_history = _record_history
        dspy.BaseLM.__init_subclass__ = classmethod(_made)
        for kind in _subclasses(dspy.BaseLM):
            _guard(kind)


_real_execute, _real_aexecute = execution.execute, execution.aexecute
_real_retryable, _real_attempt, _real_aattempt = execution._retryable, execution._attempt, execution._aattempt
_real_embed, _real_aembed = embedding._compute_embeddings, embedding._acompute_embeddings
_real_start, _real_submit = threading.Thread.start, ThreadPoolExecutor.submit
_real_record_history = base_lm.record_history
_real_schema = formatting._get_json_schema

door = _Door()


@contextmanager
def no_calls() -> Iterator[list[str]]:
    """Let no model be called within: a call raises `PaidCall`.

    Yields:
        What was tried: a bare `except` swallows even that.
    """
    door.open(None)
    tried: list[str] = []
    token = _forbidden.set(tried)
    try:
        yield tried
    finally:
        _forbidden.reset(token)
        door.close(None)


def _subclasses(kind: type) -> Iterator[type]:
    """Yield the classes below `kind` that others than dspy have written."""
    below: list[type] = kind.__subclasses__()
    for each in below:
        if not each.__module__.startswith("dspy."):
            yield each
        yield from _subclasses(each)


def _guard(kind: type) -> None:
    """Have what a class of models does in its own way pass the door."""
    for name in ("__call__", "acall", "forward", "aforward"):
        own = vars(kind).get(name)
        if own is not None and not hasattr(own, "cuesmith_door"):
            setattr(kind, name, _overridden(own))


def _made(kind: type, /, **options: Any) -> None:
    """Guard a class that is made once the door is in its place (`BaseLM.__init_subclass__`)."""
    super(dspy.BaseLM, kind).__init_subclass__(**options)
    if not kind.__module__.startswith("dspy."):
        _guard(kind)


def _execute(lm: Any, call: Any) -> CallResult:
    place = door.leads_to()
    if place is None:
        return _real_execute(lm, call)
    gate, current = place
    gate.redactor.learn(lm, call.kwargs)
    request = _request(lm, call, current)
    with current.around(lm, request):
        result: CallResult = gate.call(
            request, lambda: _reply(_real_execute(lm, call), lm, call, gate, request), current
        )
    return result


async def _aexecute(lm: Any, call: Any) -> CallResult:
    place = door.leads_to()
    if place is None:
        return await _real_aexecute(lm, call)
    gate, current = place
    gate.redactor.learn(lm, call.kwargs)
    if not _litellm.is_loaded():
        await asyncio.to_thread(prepare, [lm])
    request = _request(lm, call, current)

    async def send() -> Reply:
        return _reply(await _real_aexecute(lm, call), lm, call, gate, request)

    with current.around(lm, request):
        result: CallResult = await gate.acall(request, send, current)
    return result


_TYPES = 1000
"""Types that are remembered at most: a program that makes its types as it runs has ever new ones. Ours."""

_adapters: dict[int, tuple[object, TypeAdapter[Any]]] = {}
_schemas: dict[int, tuple[object, Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's adapter of a type, which dspy makes anew for each value that it formats or reads.

    By identity, as equal types may differ (`int | str` and `str | int`, which read "1" in their order), and a type
    need not be hashable. What is remembered holds its type: no other one has its id meanwhile.
    """
    held = _adapters.get(id(kind))
    if held is None:
        held = kind, TypeAdapter(kind, _parent_depth=3)  # names are looked up where dspy asks
        if held[1].pydantic_complete and len(_adapters) < _TYPES:  # what a type names may be defined later
            _adapters[id(kind)] = held
    return held[1]


def _schema(kind: Any) -> Any:
    """Return the JSON schema of a type, which dspy writes into each request; by identity, as `_adapter`."""
    held = _schemas.get(id(kind))
    if held is None:
        held = kind, _real_schema(kind)
        if len(_schemas) < _TYPES:
            _schemas[id(kind)] = held
    return held[1]


def _record_history(client: Any, entry: dict[str, Any]) -> None:
    """Keep a call where a program looks for it, as long as its effect lasts: a run's thousands would stay for good."""
    current = effect.get()
    if current is None or current.gate is None:
        _real_record_history(client, entry)
    elif not dspy.settings.disable_history and dspy.settings.max_history_size:
        for owner in (client, *(dspy.settings.caller_modules or ())):
            current.keep(owner.history, entry)


def _attempt(*args: Any) -> None:
    """Send one of a call's completions, unless the run has been stopped since the one before it."""
    if (place := admission.get()) is not None:
        place.goes_on()
    _real_attempt(*args)


async def _aattempt(*args: Any) -> None:
    """As `_attempt`."""
    if (place := admission.get()) is not None:
        place.goes_on()
    await _real_aattempt(*args)


def _retryable(state: Any, exc: BaseException, attempt: int, retries: int) -> bool:
    """Leave the retries of a call that has passed the door to the gate, which counts each attempt."""
    return admission.get() is None and bool(_real_retryable(state, exc, attempt, retries))


def prepare(lms: Iterable[object]) -> None:
    """Load LiteLLM if a model may need it, in a thread: it takes seconds, in which no event loop may stand still."""
    if not _litellm.is_loaded() and any(getattr(lm, "engine", None) in ("auto", "litellm") for lm in lms):
        _litellm.load()
        _litellm.watch(door.leads_to)


def _request(lm: Any, call: Any, current: Effect) -> Request:
    prepare([lm])
    if call.request is not None:
        parts: tuple[object, ...] = (request_to_dict(call.request),)
        limit = call.request.config.max_tokens
    else:
        options = {name: option for name, option in call.legacy.items() if name not in ("model", "messages")}
        limit = options.get("max_tokens") or options.get("max_completion_tokens")
        parts = (call.prompt, call.messages, public_options(options))
    caller = dspy.settings.caller_predict
    return Request(
        lm.model,
        parts,
        call.n,
        limit if isinstance(limit, int) else None,
        bool(call.cache),
        is_free(lm),
        current.role_of(lm),
        id(lm if caller is None else caller),
        _loaded,
    )


def _loaded(stored: object) -> CallResult:
    """Return a journalled reply as dspy's execution returns one."""
    assert isinstance(stored, dict)
    responses = tuple(response_from_dict(each) for each in stored.get("responses", ()))
    raw = responses[0] if len(responses) == 1 else None
    usage, cost, hit = stored["usage"], stored["cost"], stored["hit"]
    return CallResult(responses, attributes(stored["outputs"]), dict(usage), cost, raw, stored["model"], hit)


def _reply(result: CallResult, lm: Any, call: Any, gate: Gate, request: Request) -> Reply:
    finish, free = _finish(result), is_free(lm)
    hit = result.cache_hit
    cost = 0.0 if free else result.cost
    usage = Usage(cache_hits=1) if hit else _usage(result.usage, cost, calls=max(1, len(result.responses)))
    if _is_empty(result, finish) or "error" in finish:
        call.cache = False  # the cache would give it again
        empty = EmptyReply("the reply has no content", model=lm.model)
        empty.usage = usage
        raise empty
    if "content_filter" in finish or _is_refused(result):
        filtered = FilteredReply("the provider's filter has withheld the reply", model=lm.model)
        filtered.usage = usage
        raise filtered
    thought = call.request is None and any(_has_thinking(each, request.text) for each in result.outputs)
    if call.request is None:
        result.outputs = [_cleaned(each, request.text) for each in result.outputs]
    # A program or a metric may read what a call used: it reads the same when the run goes on.
    stored: dict[str, object] = {"outputs": plain(result.outputs), "model": result.response_model,
                                 "usage": plain(dict(result.usage or {})), "cost": result.cost, "hit": hit}  # fmt: skip
    if call.request is not None and result.responses:
        stored["responses"] = [response_to_dict(each, include_provider_data=True) for each in result.responses]
    if thought:
        stored["thought"] = True  # `calls.thought`: the run says that it was taken off
    kept = gate.redactor.reply(stored)
    if kept is not stored:  # the provider has echoed a key: nobody sees it, now or on resume
        result, stored = _loaded(kept), kept
    return Reply(result, usage, hit or cost is not None, stored, finish)


def _cleaned(output: Any, asked: str) -> Any:
    """Return one completion as the answer, without thinking, and whole.

    Half a character would make dspy fail where it puts replies into prompts. Thinking that does not end stays: it is
    told from an answer where it is read.
    """
    if isinstance(output, str):
        output = strip_thinking(output, asked) or output
        return output if output.isascii() else output.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(output, dict) and isinstance(output.get("text"), str):
        output["text"] = _cleaned(output["text"], asked)
    return output


def _has_thinking(output: Any, asked: str) -> bool:
    text = output.get("text") if isinstance(output, dict) else output
    return isinstance(text, str) and strip_thinking(text, asked) not in ("", text)


def _usage(counts: Mapping[str, Any], cost: float | None, *, calls: int) -> Usage:
    return Usage(calls, int(counts.get("prompt_tokens") or 0), int(counts.get("completion_tokens") or 0), cost)


def _finish(result: CallResult) -> tuple[str, ...]:
    choices = _choices(_sent(result))
    told = [value(value(each, "provider_specific_fields", None) or {}, "native_finish_reason") for each in choices]
    if "error" in [*told, *(value(each, "finish_reason") for each in choices)]:  # read as a common end
        return ("error",)
    if result.responses:
        return tuple(str(each.finish_reason) for each in result.responses)
    return tuple(str(value(each, "finish_reason", "stop")) for each in choices)


def _is_empty(result: CallResult, finish: Sequence[str]) -> bool:
    """Whether the provider has sent nothing: no choices, or no content.

    "" may be a model's answer, if it took tokens; `null` is none.
    """
    outputs = [each if isinstance(each, Mapping) else {"text": each} for each in result.outputs]
    if "length" in finish or any(str(each.get("text") or "").strip() or each.get("tool_calls") for each in outputs):
        return False
    used = result.usage or {}
    if used.get("prompt_tokens") and used.get("completion_tokens") == 0:
        return True
    sent = _sent(result)
    if any(data is None for data in sent):  # a model of the user's own
        return all(each.get("text") is None for each in outputs)
    return not any(value(each, "content") == "" or value(each, "refusal") for each in _messages(sent))


def _is_refused(result: CallResult) -> bool:
    """Whether the model has declined in the place that the provider has for it, and said nothing else."""
    return any(value(each, "refusal") and not value(each, "content") for each in _messages(_sent(result)))


def _messages(sent: Sequence[Any]) -> list[Any]:
    return [value(choice, "message", {}) for choice in _choices(sent)]


def _choices(sent: Sequence[Any]) -> list[Any]:
    return [each for data in sent if data is not None for each in value(data, "choices", None) or ()]


def _sent(result: CallResult) -> list[Any]:
    """Return what the provider has sent, as it was; None for a model of the user's own."""
    return [each.provider_data for each in result.responses] if result.responses else [result.raw]


def _overridden(method: Any) -> Any:
    """Wrap what a model's class does in its own way: if no inner call takes its place, it is a call itself.

    The wrapper finds this module by its name: a program that is saved whole takes it along where the class stands in a
    script or a notebook, and loads without Cuesmith too.
    """
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def awaited(self: Any, *args: Any, **options: Any) -> Any:
            here = sys.modules.get("cuesmith.teleprompters.runtime._dspy")
            made = method(self, *args, **options) if here is None else here._apassed(method, self, args, options)
            return await made

        awaited.cuesmith_door = True  # type: ignore[attr-defined]
        return awaited

    @functools.wraps(method)
    def called(self: Any, *args: Any, **options: Any) -> Any:
        here = sys.modules.get("cuesmith.teleprompters.runtime._dspy")
        return method(self, *args, **options) if here is None else here._passed(method, self, args, options)

    called.cuesmith_door = True  # type: ignore[attr-defined]
    return called


def _passed(method: Any, lm: Any, args: Sequence[object], options: Mapping[str, Any]) -> Any:
    place = door.leads_to()
    if place is None:
        return method(lm, *args, **options)
    gate, current = place
    gate.redactor.learn(lm, options)
    request = _own_request(lm, args, options, current)
    return gate.call(request, lambda: _own_reply(method(lm, *args, **options), lm, gate), current)


async def _apassed(method: Any, lm: Any, args: Sequence[object], options: Mapping[str, Any]) -> Any:
    place = door.leads_to()
    if place is None:
        return await method(lm, *args, **options)
    gate, current = place
    gate.redactor.learn(lm, options)

    async def send() -> Reply:
        return _own_reply(await method(lm, *args, **options), lm, gate)

    return await gate.acall(_own_request(lm, args, options, current), send, current)


def _own_request(lm: Any, args: Sequence[object], options: Mapping[str, Any], current: Effect) -> Request:
    plainly = public_options({**(getattr(lm, "kwargs", None) or {}), **options})
    model = str(getattr(lm, "model", type(lm).__name__))
    return Request(model, (args, plainly), 1, None, False, is_free(lm), current.role_of(lm), id(lm), attributes)


def _own_reply(answer: Any, lm: Any, gate: Gate) -> Reply:
    counts = plain(dict(value(answer, "usage", None) or {})) if not isinstance(answer, list) else {}
    cost = 0.0 if is_free(lm) else getattr(answer, "_hidden_params", {}).get("response_cost")
    stored = plain(answer)
    choices = value(answer, "choices", ()) if not isinstance(answer, list) else ()
    finish = tuple(str(value(each, "finish_reason", "stop")) for each in choices or ())
    usage = _usage(counts, cost, calls=1)
    if not _is_json(stored):
        return Reply(answer, usage, cost is not None, None, finish)
    kept = gate.redactor.reply(stored)
    return Reply(answer if kept is stored else attributes(kept), usage, cost is not None, kept, finish)


def _is_json(data: object) -> bool:
    if isinstance(data, Mapping):
        return all(isinstance(name, str) and _is_json(each) for name, each in data.items())
    if isinstance(data, list | tuple):
        return all(map(_is_json, data))
    return data is None or isinstance(data, str | int | float | bool)


def _embed(model: Any, batch_inputs: list[str], caching: bool = False, **options: Any) -> Any:
    place = door.leads_to()
    if place is None:
        return _real_embed(model, batch_inputs, caching=caching, **options)
    gate, current = place
    if not isinstance(model, str):
        gate.note_unseen(_FUNCTION)
        return _real_embed(model, batch_inputs, caching=caching, **options)
    gate.redactor.learn(model, options)
    request = _embedding_request(model, batch_inputs, options)
    return gate.call(request, lambda: _embedded(_litellm.load().embedding(model, batch_inputs, **options)), current)


async def _aembed(model: Any, batch_inputs: list[str], caching: bool = False, **options: Any) -> Any:
    place = door.leads_to()
    if place is None:
        return await _real_aembed(model, batch_inputs, caching=caching, **options)
    gate, current = place
    if not isinstance(model, str):
        gate.note_unseen(_FUNCTION)
        return await _real_aembed(model, batch_inputs, caching=caching, **options)
    gate.redactor.learn(model, options)

    async def send() -> Reply:
        return _embedded(await _litellm.load().aembedding(model, batch_inputs, **options))

    return await gate.acall(_embedding_request(model, batch_inputs, options), send, current)


def _embedding_request(model: str, batch: Sequence[str], options: Mapping[str, Any]) -> Request:
    return Request(
        model, (tuple(batch), public_options(options)), 1, 0, False, False, "embedder", model, _vectors_of
    )  # fmt: skip


_FUNCTION = "an embedder that is a function (what it calls past dspy is neither capped nor counted)"


def _embedded(response: Any) -> Reply:
    cost = getattr(response, "_hidden_params", {}).get("response_cost")
    counts = plain(dict(value(response, "usage", None) or {}))
    return _vectors([each["embedding"] for each in response.data], _usage(counts, cost, calls=1))


def _vectors(rows: Any, usage: Usage) -> Reply:
    """Return embeddings with their float32 bytes, which is what dspy makes of them."""
    array = np.ascontiguousarray(rows, dtype=np.float32)
    stored = {"shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}
    return Reply(array, usage, usage.usd is not None, stored)


def _vectors_of(stored: object) -> Any:
    assert isinstance(stored, dict)
    return np.frombuffer(base64.b64decode(stored["data"]), dtype=np.float32).reshape(stored["shape"])


Carried = tuple[Effect | None, list[str] | None, bool, ThreadLine | None]
"""What a thread takes over: the effect it works for, whether calls are forbidden, whether it is `hired`, its line."""


def _within(carried: Carried, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Do a thread's work on behalf of whom it was begun for."""
    tokens = effect.set(carried[0]), _forbidden.set(carried[1]), hired.set(carried[2]), line.set(carried[3])
    try:
        return work(*args, **options)
    finally:
        effect.reset(tokens[0])
        _forbidden.reset(tokens[1])
        hired.reset(tokens[2])
        line.reset(tokens[3])


def _start(thread: threading.Thread) -> None:
    carried = effect.get(), _forbidden.get(), True, branched()
    if carried[:2] != (None, None) and not isinstance(thread, threading._DummyThread):
        run = thread.run

        def within() -> None:
            with suppress(RunStopped, PaidCall):  # who began it is told elsewhere
                _within(carried, run)

        thread.run = within  # type: ignore[method-assign]
    _real_start(thread)


def _submit(pool: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    return _real_submit(pool, _within, (effect.get(), _forbidden.get(), False, branched()), fn, *args, **options)


def is_free(lm: dspy.BaseLM) -> bool:
    """Whether the model runs in this process: its engine says so by an attribute `free`."""
    return bool(getattr(getattr(lm, "engine", None), "free", False))


def has_no_price(lm: dspy.BaseLM) -> bool:
    """Whether it is certain that no call of a model will report what it cost.

    So it is where dspy sends the calls itself and has no price of that name. LiteLLM and models of another class have
    ways of their own to a cost, and a deployment of Azure's answers by the name of the model behind it.
    """
    if type(lm) is not dspy.LM or not isinstance(lm.engine, str):
        return False
    try:
        chosen = select_backend(lm)
        route = resolve(lm) if chosen.native else None
    except Exception:  # what is wrong with it, its first call says
        return False
    if route is None or "azure" in f"{route.provider} {lm.kwargs.get('api_base')} {lm.kwargs.get('base_url')}":
        return False
    binding = _binding_for(lm._providers, route.provider) if route.declared else None
    spaces = None if binding is None else binding.metadata_namespaces
    info = model_info(route.provider, route.model, namespaces=spaces)
    return any(rate(info, name) is None for name in ("input_cost_per_token", "output_cost_per_token"))
