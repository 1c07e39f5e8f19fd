"""The one file of glue to dspy 3.4: everything here leans on how dspy is built, not only on its public names.

To be revisited with dspy 3.5: `named_predictors` order, deep copies of LMs, and the `__call__`/`acall` pair
through which adapters reach a language model.
"""

from __future__ import annotations

import copy
import inspect
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from types import CellType
from typing import Any, Self

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.usage_tracker import UsageTracker

from cuesmith.teleprompters.runtime.gate import Gate, Reply, Request, effect, public_options
from cuesmith.teleprompters.runtime.ledger import Ticket, Usage


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


def language_models(program: dspy.Module) -> list[dspy.BaseLM]:
    """Return the LMs that the program's modules carry as attributes, frozen sub-modules included."""
    found = [held for module in modules_of(program) for held in vars(module).values() if isinstance(held, dspy.BaseLM)]
    return list({id(lm): lm for lm in found}.values())


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


_entries: ContextVar[list[Mapping[str, Any]] | None] = ContextVar("cuesmith_entries", default=None)


class _Tracker(UsageTracker):  # type: ignore[misc]
    """Sees one call: dspy reports usage to the tracker for every call that its cache did not answer."""

    def __init__(self, outer: UsageTracker | None) -> None:
        super().__init__()
        self.paid = False
        self._outer = outer

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Note the call and pass it on to the caller's own tracker."""
        self.paid = True
        if self._outer is not None:
            self._outer.add_usage(lm, usage_entry)


class _Metered:
    """Mixed in front of an LM's own class: the same model, reached through a gate. Copies share the gate."""

    gate: Gate

    def __call__(
        self, prompt: str | None = None, *, messages: list[dict[str, Any]] | None = None, **options: Any
    ) -> Sequence[object]:
        """Call the model from a thread, through the gate."""

        def send() -> Reply:
            token = _entries.set([])
            try:
                tracker = _Tracker(dspy.settings.usage_tracker)
                with dspy.context(usage_tracker=tracker, disable_history=False):
                    outputs = super(_Metered, self).__call__(prompt, messages=messages, **options)  # type: ignore[misc]
                return _reply(self, outputs, tracker, _entries.get(), request)
            finally:
                _entries.reset(token)

        request = _request(self, prompt, messages, options)
        return self.gate.call(request, send)

    async def acall(
        self, prompt: str | None = None, *, messages: list[dict[str, Any]] | None = None, **options: Any
    ) -> Sequence[object]:
        """Call the model from a coroutine, through the gate."""

        async def send() -> Reply:
            token = _entries.set([])
            try:
                tracker = _Tracker(dspy.settings.usage_tracker)
                with dspy.context(usage_tracker=tracker, disable_history=False):
                    outputs = await super(_Metered, self).acall(prompt, messages=messages, **options)  # type: ignore[misc]
                return _reply(self, outputs, tracker, _entries.get(), request)
            finally:
                _entries.reset(token)

        request = _request(self, prompt, messages, options)
        return await self.gate.acall(request, send)

    def update_history(self, entry: Mapping[str, Any]) -> None:
        """Take what the call cost; a run's thousands of prompts are not kept in memory."""
        entries = _entries.get()
        if entries is not None:
            entries.append(entry)

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself: a program's copies meter into the same ledger."""
        return self


def _request(lm: Any, prompt: object, messages: object, options: Mapping[str, Any]) -> Request:
    merged = {**lm.kwargs, **options}
    n = merged.get("n")
    limit = merged.get("max_tokens") or merged.get("max_completion_tokens")
    return Request(
        lm.model,
        (prompt, messages, public_options(merged)),
        n if isinstance(n, int) and n > 0 else 1,
        limit if isinstance(limit, int) else None,
        bool(options.get("cache", lm.cache)),
        is_free(lm),
    )


def _reply(
    lm: Any, outputs: Sequence[object], tracker: _Tracker, entries: list[Mapping[str, Any]] | None, request: Request
) -> Reply:
    entry: Mapping[str, Any] = entries[-1] if entries else {}
    finish = tuple(_finish_reasons(entry.get("response")))
    if not tracker.paid:
        return Reply(outputs, Usage(cache_hits=1), price_known=True, finish=finish)
    counts, cost = entry.get("usage") or {}, 0.0 if request.free else entry.get("cost")
    usage = Usage(
        calls=request.calls,
        input_tokens=int(counts.get("prompt_tokens") or 0),
        output_tokens=int(counts.get("completion_tokens") or 0),
        usd=cost,
    )
    return Reply(outputs, usage, price_known=cost is not None, finish=finish)


def _finish_reasons(response: Any) -> list[str]:
    """Return how each choice of a provider's response ended, in dspy's form (one or several) or in LiteLLM's."""
    held = response if isinstance(response, list | tuple) else getattr(response, "choices", None) or [response]
    return [str(reason) for one in held if (reason := getattr(one, "finish_reason", None)) is not None]


def is_free(lm: dspy.BaseLM) -> bool:
    """Whether the model runs in this process: its engine says so by an attribute `free`."""
    return bool(getattr(getattr(lm, "engine", None), "free", False))


def _load_litellm() -> None:
    """Load LiteLLM before calls do: dspy loads it at first use, where threads that do so at once find it half made."""
    with _LOADING:
        import litellm

        _ = litellm.completion  # what is imported is a lazy module until something of it is asked for


_LOADING = threading.Lock()


def metered(lm: dspy.BaseLM, gate: Gate) -> dspy.BaseLM:
    """Return the same model behind a gate: same engine, cache and options; retries are the gate's.

    Args:
        lm: Any dspy LM, of any class.
        gate: Where its calls go through.
    """
    if isinstance(lm, _Metered):
        return metered_anew(lm, gate)
    if getattr(lm, "engine", None) in ("auto", "litellm"):
        _load_litellm()
    kind = type(lm)
    mixed = type(f"Metered{kind.__name__}", (_Metered, kind), {"__module__": __name__})
    copied = lm.copy(num_retries=0)
    copied.__class__ = mixed
    copied.gate = gate
    return copied


def metered_anew(lm: dspy.BaseLM, gate: Gate) -> dspy.BaseLM:
    """Return a metered LM's copy that goes through another gate (one compile inside another)."""
    copied = lm.copy(num_retries=0)
    copied.gate = gate
    return copied


def meter_program(program: dspy.Module, gate: Gate) -> None:
    """Put every LM that the program carries, in predictors or in attributes, behind the gate (in place)."""
    for module in modules_of(program):
        for name, held in list(vars(module).items()):
            if isinstance(held, dspy.BaseLM):
                setattr(module, name, metered(held, gate))


_PATIENCE_S = 1.0


class _Watch(BaseCallback):  # type: ignore[misc]
    """Meters the LMs that no one could put behind the gate: those that user code reaches by itself."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._open: dict[str, Ticket] = {}

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Admit the call. `RunStopped` passes dspy's guard around callbacks, for it is no Exception."""
        if isinstance(instance, _Metered):
            return
        self._gate.check()
        current = effect.get()
        role, patience = current.role if current else "target", _PATIENCE_S
        while (answer := self._gate.ledger.admit(role, 1, 0, False)) is None and patience > 0:
            time.sleep(0.005)  # what is in flight may give back what it reserved
            patience -= 0.005
        if not isinstance(answer, Ticket):
            raise self._gate.stop(answer or "calls", "the budget is reached")
        if current is not None:
            current.replayable = False
        self._open[call_id] = answer

    def on_lm_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        """Settle it; what it cost is not known here."""
        ticket = self._open.pop(call_id, None)
        if ticket is not None:
            self._gate.ledger.settle(ticket, Usage(calls=1, usd=None))


def watch(gate: Gate, functions: Iterable[object]) -> list[BaseCallback]:
    """Return callbacks that meter unwrapped LMs, or none where no function reaches one.

    dspy's callbacks cost half a millisecond a program run, so they are used only when a metric or a `forward`
    refers to an LM object by a closure, a global or a bound object.
    """
    return [_Watch(gate)] if any(_reaches_lm(function) for function in functions) else []


def _reaches_lm(function: object) -> bool:
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    plain = inspect.unwrap(function) if callable(function) else function
    held: list[object] = [cell.cell_contents for cell in getattr(plain, "__closure__", None) or () if _filled(cell)]
    held += [getattr(plain, "__globals__", {}).get(name) for name in (code.co_names if code else ())]
    held += list(getattr(plain, "__defaults__", None) or ())
    owner = getattr(plain, "__self__", None) or (None if code else plain)
    held += list(getattr(owner, "__dict__", {}).values())
    return any(
        isinstance(value, dspy.BaseLM) or (isinstance(value, dspy.Module) and language_models(value)) for value in held
    )


def _filled(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
