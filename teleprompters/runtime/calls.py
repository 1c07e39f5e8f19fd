"""A call to a model as the gate sees it, and what came back. Source: ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pydantic_core import to_jsonable_python

from cuesmith.teleprompters.runtime.ledger import Role, Usage

_SECRET_OPTIONS = frozenset({"api_key", "api_base", "base_url", "headers", "extra_headers"})


@dataclass(frozen=True)
class Request:
    """A call as the gate sees it.

    Attributes:
        model: The model's name.
        parts: Prompt, messages and options, for its content hash and its size.
        calls: How many calls leave the process for it at most (dspy sends n completions one by one).
        max_tokens: The reply's limit, if one is set.
        may_hit: Whether dspy's cache may answer.
        free: Whether the model runs in this process and costs nothing.
        role: Whose call it is, if its effect does not say.
        caller: Who makes it, within the effect.
        load: Makes of what the journal holds what the caller gets.
    """

    model: str
    parts: Sequence[object]
    calls: int
    max_tokens: int | None
    may_hit: bool
    free: bool
    role: Role | None = None
    caller: object = None
    load: Callable[[object], object] = field(default=lambda stored: stored, repr=False)

    @classmethod
    def foreign(cls, model: str, parts: object) -> Request:
        """Return a call that is seen only where it leaves the process; `parts` are its messages."""
        return cls(model, (None, parts), 1, None, False, False)

    @cached_property
    def content(self) -> str:
        """The content hash of the model's name and the parts."""
        text = json.dumps((self.model, *self.parts), ensure_ascii=False, default=_named)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()

    @cached_property
    def characters(self) -> int:
        """About how many it has."""
        return len(str(self.parts))

    @cached_property
    def text(self) -> str:
        """All its text."""
        first, second = self.parts[:2]
        if not isinstance(second, Mapping):
            return request_text(first, second)
        given = [*_list(first), second.get("prompt"), second.get("messages")]  # a model's own method was called
        return "\n".join(request_text(one, one) for one in given)


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        outputs: What the caller gets.
        usage: What the call used.
        price_known: Whether its price is.
        stored: JSON data from which `Request.load` makes the outputs again; None if there is none.
        finish: Why each completion ended.
    """

    outputs: object
    usage: Usage
    price_known: bool
    stored: object = None
    finish: tuple[str, ...] = ()


def thought(role: object, stored: object) -> bool:
    """Return whether thinking was taken off a reply of the target's, by what the journal holds of it."""
    return role == "target" and isinstance(stored, Mapping) and bool(stored.get("thought"))


def reply_texts(stored: object) -> list[str]:
    """Return the texts of a reply as the journal holds it, one an output; "" where that has none."""
    outputs = stored.get("outputs") if isinstance(stored, Mapping) else stored
    texts = [each.get("text") if isinstance(each, Mapping) else each for each in _list(outputs)]
    return [text if isinstance(text, str) else "" for text in texts]


def request_text(prompt: object, messages: object) -> str:
    """Return all text of a request to a model, given as one prompt or as messages."""
    held = [message.get("content") for message in _list(messages) if isinstance(message, Mapping)]
    blocks = [block for part in (prompt, *held) for block in (_list(part) or [part])]
    texts = [block.get("text") if isinstance(block, Mapping) else block for block in blocks]
    return "\n".join(text for text in texts if isinstance(text, str))


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _named(value: object) -> object:
    """Return what names an option that is no JSON: a class by its name, an object by its class and its own data."""
    if isinstance(value, type) or callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    data = to_jsonable_python(value, fallback=lambda other: vars(other) if hasattr(other, "__dict__") else None)
    return [type(value).__qualname__, data]


def public_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return a call's options without keys, addresses and headers: they neither identify it nor may be kept."""
    return {name: option for name, option in options.items() if name not in _SECRET_OPTIONS}
