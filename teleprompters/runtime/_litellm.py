"""The one file of glue to LiteLLM: calls that a program makes of it past dspy are seen through its callbacks.

They are capped before they are sent and counted by what LiteLLM reports of them. Their replies cannot be given again,
so they are not journalled. Source: ours.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from cuesmith.teleprompters.runtime.admissions import admission
from cuesmith.teleprompters.runtime.calls import Request
from cuesmith.teleprompters.runtime.gate import Effect, Gate
from cuesmith.teleprompters.runtime.ledger import Role, RunStopped, Ticket, Usage

_called: ContextVar[bool] = ContextVar("cuesmith_litellm", default=False)
"""Whether LiteLLM was called past dspy in this context."""
_lock = threading.Lock()
_whole = threading.Event()
_watcher: Any = None
_PAST = "calls of LiteLLM past dspy (capped and counted, but a resumed run may pay for them again)"


def load() -> Any:
    """Return LiteLLM, loaded whole: threads that load it at once find it half made."""
    with _lock:
        import litellm

        _ = litellm.completion  # what is imported is a lazy module until something of it is asked for
        _whole.set()
    return litellm


def is_loaded() -> bool:
    """Whether `load` has loaded LiteLLM: what stands in `sys.modules` may be half of it."""
    return _whole.is_set()


def prices_of(models: Iterable[str]) -> dict[str, Any]:
    """Return what LiteLLM knows of the prices of models, if it is loaded: some may have been registered here."""
    known: Mapping[str, Any] = sys.modules["litellm"].model_cost if is_loaded() else {}
    names = {name for model in models for name in (model, model.partition("/")[2])}
    return {name: known[name] for name in sorted(names) if name in known}


def register(prices: Mapping[str, Any]) -> None:
    """Have LiteLLM know prices."""
    if prices:
        load().register_model(dict(prices))


def watch(leads_to: Any) -> None:
    """Watch LiteLLM's calls from now on, if it is loaded.

    Args:
        leads_to: Returns the gate and the effect of a call that is made here and now, or None.
    """
    global _watcher
    if "litellm" not in sys.modules:
        return
    with _lock:
        litellm = sys.modules["litellm"]
        if _watcher is None:
            _watcher = _watcher_of(leads_to)
            _watch_retries(leads_to)
        if _watcher not in litellm.callbacks:
            litellm.callbacks.append(_watcher)


def _watch_retries(leads_to: Any) -> None:
    """See the further attempts of the client that LiteLLM uses for most providers, which it tells nobody of."""
    from openai import AsyncOpenAI, OpenAI
    from openai._models import FinalRequestOptions

    real_most, real_sleep = FinalRequestOptions.get_max_retries, OpenAI._sleep_for_retry
    real_asleep = AsyncOpenAI._sleep_for_retry

    def most(self: Any, max_retries: int) -> int:
        return 0 if admission.get() is not None else real_most(self, max_retries)  # the gate tries again

    def sleep(self: Any, **options: Any) -> None:
        real_sleep(self, **options)
        _count_retry(leads_to)

    async def asleep(self: Any, **options: Any) -> None:
        await real_asleep(self, **options)
        _count_retry(leads_to)

    FinalRequestOptions.get_max_retries = most
    OpenAI._sleep_for_retry, AsyncOpenAI._sleep_for_retry = sleep, asleep


def _count_retry(leads_to: Any) -> None:
    """Count a further attempt of a call of LiteLLM's, which is sent now; of the client used by itself nothing is known.

    Raises:
        RunStopped: If it may not be sent.
    """
    if _called.get() and (place := leads_to()) is not None:
        gate, current = place
        ticket = gate.admit_foreign(Request.foreign("a further attempt", ""), current, current.role)
        gate.settle_foreign(ticket, Usage(calls=1, usd=0.0), current)


def _watcher_of(leads_to: Any) -> Any:
    from litellm.integrations.custom_logger import CustomLogger

    class Watcher(CustomLogger):  # type: ignore[misc]
        """Admits each attempt that did not come through the door, and settles it."""

        def __init__(self) -> None:
            super().__init__()
            self.open: dict[str, tuple[Gate, Effect, Ticket, bool]] = {}

        def log_pre_api_call(self, model: Any, messages: Any, kwargs: Mapping[str, Any]) -> None:
            """Admit the call. `RunStopped` passes LiteLLM's guard around callbacks, for it is no Exception.

            The guard swallows anything else, and the call would be sent although nobody has admitted it.
            """
            try:
                self._admit(model, messages, kwargs)
            except Exception as error:
                raise RunStopped(str(error)) from error

        def _admit(self, model: Any, messages: Any, kwargs: Mapping[str, Any]) -> None:
            within = admission.get()
            if within is not None and within.sends():
                return
            place = leads_to()
            if place is None:
                return
            gate, current = place
            _called.set(True)
            self._settle(kwargs, Usage(calls=1, usd=0.0))  # an attempt before this one, which failed
            if within is None:  # the reply of a call that has passed the door is kept
                current.replayable = False
                gate.note_unseen(_PAST)
            role: Role = "embedder" if "embedding" in str(kwargs.get("call_type")) else current.role
            ticket = gate.admit_foreign(Request.foreign(str(model), messages), current, role)
            self.open[str(kwargs.get("litellm_call_id"))] = (gate, current, ticket, within is not None)

        def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            """Count what the call used."""
            used = getattr(response_obj, "usage", None)
            sent, written = (int(getattr(used, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens"))
            self._settle(kwargs, Usage(1, sent, written, kwargs.get("response_cost")))

        def log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            """Note that the call failed for good: its effect is missing."""
            self._settle(kwargs, Usage(calls=1, usd=0.0), failure=str(kwargs.get("exception")))

        async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            """As the sync one."""
            self.log_success_event(kwargs, response_obj, start_time, end_time)

        async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            """As the sync one."""
            self.log_failure_event(kwargs, response_obj, start_time, end_time)

        def _settle(self, kwargs: Mapping[str, Any], usage: Usage, failure: str = "") -> None:
            known = self.open.pop(str(kwargs.get("litellm_call_id")), None)
            if known is not None:
                gate, current, ticket, within = known
                gate.settle_foreign(ticket, usage, current, "" if within else failure)

    return Watcher()
