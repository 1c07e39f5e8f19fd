"""The embedded model for dspy and for LiteLLM.

`EmbeddedLM` is a `dspy.LM` whose custom engine (`EmbeddedEngine`, `AsyncEmbeddedEngine`) decodes concurrent calls
together in this process; it needs no network, no key and no LiteLLM. `register` makes the same model a provider of
LiteLLM, so that ``litellm.completion(model="cuesmith/nano", ...)`` and ``dspy.LM("cuesmith/nano")`` work.

Draws at a temperature above 0 are a pure function of the request: its messages and options, its ``seed``, its
``rollout_id`` and its place among the ``n`` answers of one call. The same call gives the same text, at any
concurrency and in any batch; to get another draw, change the seed or the rollout id. dspy removes ``rollout_id``
from what an engine sees, so `EmbeddedLM` hands it over beside the request; through LiteLLM dspy drops it, and there
only ``seed`` and ``n`` make a difference.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from dspy import lm15

from cuesmith.modules.embedded.batching import Batcher, shared_batcher
from cuesmith.modules.embedded.engine import Completion, ContextLengthError, Generation, NanoEngine
from cuesmith.modules.in_process import InProcessLM, calling, draw_marks, hashed_seed

if TYPE_CHECKING:
    from litellm import ModelResponse

PROVIDER = "cuesmith"
MODEL = "cuesmith/nano"
MAX_TOKENS = 256
"""New tokens where a request sets no limit."""

_IGNORED = ("top_p", "top_k", "frequency_penalty", "presence_penalty", "response_format", "reasoning", "logprobs")


def _chat(request: lm15.Request) -> list[tuple[str, str]]:
    """A request's messages as (role, text).

    Raises:
        lm15.UnsupportedFeatureError: For tools and for anything but text.
    """
    if request.tools:
        raise lm15.UnsupportedFeatureError("the embedded model has no tool calls", feature="tools")
    chat = [("system", _text((request.system,) if isinstance(request.system, str) else request.system))]
    for message in request.messages:
        role = "system" if message.role == "developer" else message.role
        chat.append((role, _text(message.parts)))
    return chat if request.system else chat[1:]


def _text(parts: Sequence[object] | None) -> str:
    texts = [part if isinstance(part, str) else getattr(part, "text", None) for part in parts or ()]
    if any(
        text is None or getattr(part, "type", "text") != "text" for part, text in zip(parts or (), texts, strict=True)
    ):
        raise lm15.UnsupportedFeatureError("the embedded model reads text only", feature="multimodal input")
    return "".join(cast(list[str], texts))


def _cut(completion: Completion, stop: Sequence[str]) -> tuple[str, str]:
    """Text up to the first stop string, and the finish reason."""
    found = [place for mark in stop if (place := completion.text.find(mark)) >= 0]
    return (completion.text[: min(found)], "stop") if found else (completion.text, completion.finish_reason)


@lru_cache
def _batcher(path: str | None) -> Batcher:
    return shared_batcher(NanoEngine.load(path))


class EmbeddedEngine:
    """dspy's engine contract on the embedded model: one request, one response.

    It holds nothing but the path of its weights, so copies, pickles and saved programs all lead to the one model of
    the process. Settings that the model cannot follow (``top_p``, ``response_format``, ...) are dropped and listed in
    the response's ``adaptations``.
    """

    supported_params = frozenset({"temperature", "max_tokens", "stop", "seed", "n"})

    free = True
    """It runs in this process: its calls cost nothing, which a budget in dollars has to know."""

    def __init__(self, path: str | None = None) -> None:
        """Create the engine; the weights are loaded at the first request.

        Args:
            path: Folder of the weights, by default the package's.
        """
        self.path = path

    def _batcher(self) -> Batcher:
        return _batcher(self.path)

    def _prepare(self, request: lm15.Request) -> Generation:
        config, (rollout, answers, _) = request.config, draw_marks()
        chat, temperature = _chat(request), config.temperature or 0.0
        try:
            return self._batcher().engine.prepare(
                chat,
                max_new_tokens=config.max_tokens or MAX_TOKENS,
                temperature=temperature,
                seed=hashed_seed((chat, float(temperature), (config.seed, rollout, answers))),
            )
        except ContextLengthError as error:
            raise lm15.ContextLengthError(str(error), provider=PROVIDER) from error
        except ValueError as error:
            raise lm15.InvalidRequestError(str(error), provider=PROVIDER) from error

    def _respond(self, request: lm15.Request, completion: Completion) -> lm15.Response:
        text, reason = _cut(completion, request.config.stop)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text),
            finish_reason=cast(Any, reason),
            usage=lm15.Usage(
                input_tokens=completion.prompt_tokens,
                output_tokens=completion.completion_tokens,
                total_tokens=completion.prompt_tokens + completion.completion_tokens,
                cache_read_tokens=completion.cached_tokens,
            ),
            adaptations=tuple(_adaptations(request)),
        )

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer a request.

        Raises:
            lm15.ContextLengthError: If it does not fit the context.
            lm15.UnsupportedFeatureError: For tools and media.
            lm15.InvalidRequestError: For options out of range.
        """
        job = self._prepare(request)
        return self._respond(request, self._batcher().complete(job))

    def stream(self, request: lm15.Request) -> Iterator[object]:
        """A request's answer as events; the text comes in one piece."""
        return cast(Iterator[object], lm15.response_to_events(self.complete(request)))

    def close(self) -> None:
        """Nothing to release: the model belongs to the process."""

    def __deepcopy__(self, memo: dict[int, object]) -> EmbeddedEngine:
        """Itself."""
        return self

    def dump_state(self) -> dict[str, str | None]:
        """What a saved program keeps."""
        return {"path": self.path}

    @classmethod
    def load_state(cls, state: dict[str, str | None]) -> EmbeddedEngine:
        """The engine of a saved program."""
        return cls(state.get("path"))


class AsyncEmbeddedEngine(EmbeddedEngine):
    """`EmbeddedEngine` for event loops."""

    async def complete(self, request: lm15.Request) -> lm15.Response:  # type: ignore[override, unused-ignore]
        """Answer a request; see `EmbeddedEngine.complete`."""
        job = self._prepare(request)
        return self._respond(request, await self._batcher().acomplete(job))

    async def stream(self, request: lm15.Request) -> AsyncIterator[object]:  # type: ignore[override, unused-ignore]
        """A request's answer as events; the text comes in one piece."""
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Nothing to release: the model belongs to the process."""


def _adaptations(request: lm15.Request) -> Iterator[lm15.Adaptation]:
    for name in _IGNORED:
        asked = getattr(request.config, name)
        if asked is not None:
            shown = asked if isinstance(asked, (int, float)) else str(asked)
            yield lm15.Adaptation(
                field=f"config.{name}", action="dropped", asked=shown, reason="The embedded model does not have it."
            )


class EmbeddedLM(InProcessLM):
    """The embedded model as a `dspy.LM`: offline, free, a few milliseconds a call.

    A tiny transformer trained from scratch on generated tasks. It answers to the instructions and demonstrations of
    the kinds it was trained on; results on it illustrate machinery and are no evidence about large models.

    Calls cost 0 USD. A program that carries it is saved like any other and loaded with
    ``program.load(path, allow_unsafe_lm_state=True)``, dspy's rule for every LM that is not its own.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        max_tokens: int = MAX_TOKENS,
        cache: bool = False,
        path: str | None = None,
    ) -> None:
        """Create the LM; the weights are loaded at the first call.

        Args:
            temperature: 0 takes the most likely tokens; above, tokens are drawn (see the module's docstring).
            max_tokens: Most new tokens of an answer.
            cache: Whether dspy's cache keeps the answers.
            path: Folder of the weights, by default the package's.
        """
        super().__init__(
            MODEL,
            temperature=temperature,
            max_tokens=max_tokens,
            cache=cache,
            engine=EmbeddedEngine(path),
            async_engine=AsyncEmbeddedEngine(path),
        )

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> EmbeddedLM:
        """The LM of a saved program."""
        state = dict(state)
        lm = cls(cache=state.pop("cache", False), path=state.pop("engine", {}).get("state", {}).get("path"))
        return lm.restored(state)


_registering = threading.Lock()


def register() -> None:
    """Make the embedded model LiteLLM's provider ``cuesmith``, at a price of 0; again is harmless.

    Imports LiteLLM, which takes some seconds. Other custom providers stay registered.
    """
    import litellm

    with _registering:
        if any(entry["provider"] == PROVIDER for entry in litellm.custom_provider_map):
            return
        price = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0}
        facts = {"litellm_provider": PROVIDER, "mode": "chat", "max_output_tokens": MAX_TOKENS}
        litellm.register_model({MODEL: {**price, **facts}})
        litellm.custom_provider_map = [
            *litellm.custom_provider_map,
            {"provider": PROVIDER, "custom_handler": _make_handler()},
        ]


def _requests(kwargs: dict[str, Any]) -> list[lm15.Request]:
    """The requests of one LiteLLM call, one for each of its ``n`` answers."""
    options = dict(kwargs.get("optional_params") or {})
    n = options.pop("n", None) or 1
    wanted = ("temperature", "max_tokens", "max_completion_tokens", "stop", "seed", "tools")
    body = {name: options[name] for name in wanted if options.get(name) is not None}
    request = lm15.request_from_openai_chat({"model": MODEL, "messages": kwargs["messages"], **body})
    return [request] * int(n)


def _make_handler() -> Any:
    """The LiteLLM handler; made here because its base class needs LiteLLM."""
    from litellm.exceptions import ContextWindowExceededError
    from litellm.llms.custom_llm import CustomLLM, CustomLLMError

    engine, async_engine = EmbeddedEngine(), AsyncEmbeddedEngine()

    @contextmanager
    def translated() -> Iterator[None]:
        try:
            yield
        except lm15.ContextLengthError as error:
            raise ContextWindowExceededError(str(error), model=MODEL, llm_provider=PROVIDER) from error
        except (lm15.LM15Error, ValueError, TypeError) as error:
            raise CustomLLMError(status_code=400, message=str(error)) from error

    class NanoHandler(CustomLLM):  # type: ignore[misc]
        """LiteLLM's provider interface on the embedded model."""

        def completion(self, *args: Any, **kwargs: Any) -> ModelResponse:
            with translated(), calling(None):
                return _litellm_response([engine.complete(request) for request in _requests(kwargs)])

        async def acompletion(self, *args: Any, **kwargs: Any) -> ModelResponse:
            with translated(), calling(None):
                return _litellm_response([await async_engine.complete(request) for request in _requests(kwargs)])

        def streaming(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with translated(), calling(None):
                chunk = _chunk(engine.complete(_requests(kwargs)[0]))
            yield chunk

        async def astreaming(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            with translated(), calling(None):
                chunk = _chunk(await async_engine.complete(_requests(kwargs)[0]))
            yield chunk

    return NanoHandler()


def _litellm_response(responses: Sequence[lm15.Response]) -> ModelResponse:
    import litellm

    choices = [
        litellm.Choices(index=i, finish_reason=r.finish_reason, message=litellm.Message(content=r.message.text or ""))
        for i, r in enumerate(responses)
    ]
    sent = responses[0].usage.input_tokens or 0
    made = sum(r.usage.output_tokens or 0 for r in responses)
    usage = litellm.Usage(prompt_tokens=sent, completion_tokens=made, total_tokens=sent + made)
    return litellm.ModelResponse(model=MODEL, choices=choices, usage=usage)


def _chunk(response: lm15.Response) -> dict[str, object]:
    usage = response.usage
    return {
        "text": response.message.text or "",
        "is_finished": True,
        "finish_reason": response.finish_reason,
        "index": 0,
        "tool_use": None,
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
        },
    }
