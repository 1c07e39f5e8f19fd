"""Reading what the optimizer model sent back: what is cut, refused or empty, and what was asked at all.

Cuesmith's own requests are written and read by `ADAPTER`, whichever adapter the user's program works with.
Source: ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pydantic
from dspy.utils.exceptions import AdapterParseError

from cuesmith.teleprompters.runtime.events import Lost
from cuesmith.teleprompters.runtime.evidence import sound
from cuesmith.teleprompters.runtime.thinking import OPEN, strip_thinking

ANALYSIS = "analysis"
"""The field of a request in which a model may think before it answers. A reply without it is as good."""

_HEADER = "[[ ##"
_ANY_HEADER = re.compile(r"\[\[ ## (\w+) ## \]\]")

_REFUSED = re.compile(
    r"(?:i['’]?m (?:very |so |really )?sorry|i am (?:very |so |really )?sorry|sorry|my apologies"
    r"|i (?:must )?apologi[sz]e"
    r"|unfortunately|as an ai\b[^,.]*)?[\s,.;:!—-]*(?:but )?(?:as an ai\b[^,.]*, )?"
    r"i(?:['’]m| am)? ?(?:can['’]?t|can ?not|could not|couldn['’]t|won['’]t|will not|unable to|not able to"
    r"|not comfortable|must decline|have to decline|must refuse|decline to|refuse to)\b"
    r".{0,60}?\b(?:help|assist|comply|fulfil|provid|continu|process|discuss|engag|generat|creat|(?:re)?writ|produc"
    r"|answer|improv|chang|modif|revis|respond|request|do (?:that|this)|complet|support|participat|declin|refus)",
    re.IGNORECASE | re.DOTALL,
)
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+")
_FENCE = re.compile(r"^```\w*$", re.MULTILINE)

_LONGEST_REFUSAL = 400
"""Characters of a reply that only declines. Ours."""


_NOTHING = ("", "none", "null", "n/a")
"""Replies by which a model says that it has none. Ours."""


def is_refusal(text: str) -> bool:
    """Return whether a text does nothing but decline."""
    found = text.strip().strip("\"'*")
    return 0 < len(found) <= _LONGEST_REFUSAL and _REFUSED.match(found) is not None


def reaches(instructions: str, request: str) -> bool:
    """Return whether instructions stand in the text of a request, whatever an adapter does to their white space."""
    return " ".join(instructions.split()) in " ".join(request.split())


class _Own(dspy.ChatAdapter):  # type: ignore[misc]
    """dspy's chat format with its fallback to JSON, read without thinking."""

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Read a reply; raises `AdapterParseError`."""
        text = _owned(signature, _answer(self, signature, completion))
        try:
            return _unanalysed(super().parse, signature, text)
        except AdapterParseError:
            if (listed := _listed(signature, text)) == text:
                raise
            return _unanalysed(super().parse, signature, listed)

    def _make_json_adapter_fallback(self) -> dspy.JSONAdapter:
        return _OwnJSON()


class _OwnJSON(dspy.JSONAdapter):  # type: ignore[misc]
    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Read a reply; raises `AdapterParseError`."""
        return _unanalysed(super().parse, signature, _answer(self, signature, completion))


def _unanalysed(
    parse: Callable[[type[dspy.Signature], str], dict[str, Any]], signature: type[dspy.Signature], text: str
) -> dict[str, Any]:
    """Read a reply that may lack `ANALYSIS`; raises `AdapterParseError`."""
    try:
        return parse(signature, text)
    except AdapterParseError:
        if ANALYSIS not in signature.output_fields:
            raise
        return {ANALYSIS: "", **parse(signature.delete(ANALYSIS), text)}


def _owned(signature: type[dspy.Signature], text: str) -> str:
    """Return a reply in which only headers of the request's own fields divide it.

    An instruction may show the target's form with a header on a line of its own. dspy would end the field there, and
    drop the rest of it without a word. Spoilt as a header, it stays in the text, which `guards` then refuse for it. A
    list that is complete, or a value that is no text, ends there: what follows is a field that nobody has asked for.
    """
    own, within, begun = signature.fields, "", 0

    def kept(found: re.Match[str]) -> str:
        nonlocal within, begun
        if found[1] in own or found[1] == "completed":
            within, begun = found[1], found.end()
        is_text = within in own and own[within].annotation in (str, list[str])
        if found[1] in (*own, "completed") or not is_text or text[begun : found.start()].strip().startswith("["):
            return found[0]
        return f"{_HEADER} {found[1]} ##]]"

    return _ANY_HEADER.sub(kept, text)


def _listed(signature: type[dspy.Signature], text: str) -> str:
    """Return a reply with its lists of texts as JSON: small models write them line by line."""
    for name, field in signature.output_fields.items():
        if field.annotation == list[str]:
            section = rf"(\[\[ ## {name} ## \]\]\s*\n)(.*?)(?=\[\[ ## \w+ ## \]\]|\Z)"
            text = re.sub(section, _as_json, text, count=1, flags=re.DOTALL)
    return text


def _as_json(found: re.Match[str]) -> str:
    body = _FENCE.sub("", found[2]).strip()
    if not body or body.startswith(("[", "{")):
        return found[0]
    lines = (_BULLET.sub("", line).strip() for line in body.splitlines())
    return f"{found[1]}{json.dumps([line for line in lines if line], ensure_ascii=False)}\n\n"


def _answer(adapter: dspy.Adapter, signature: type[dspy.Signature], completion: str) -> str:
    """Return the part of a reply that is the answer: nothing before it, no thinking that follows a preamble either."""
    text = strip_thinking(completion)
    head = text.partition(_HEADER)[0]
    if (opened := OPEN.search(head)) and (opened.start() == 0 or head[opened.start() - 1] == "\n"):
        text = strip_thinking(text[opened.start() :])
    if completion.strip() and not text.strip():
        raise AdapterParseError(
            adapter_name=type(adapter).__name__, signature=signature, lm_response=completion, message=_THINKING
        )
    return text


_THINKING = "The reply is thinking without an answer."

ADAPTER = _Own()
"""Writes and reads Cuesmith's own requests. The user's adapter is for the user's program."""


def sound_reply(reply: dspy.Prediction) -> dspy.Prediction:
    """Return a reply whose texts are free of thinking, and such as every file and request can hold."""
    return dspy.Prediction(**{name: _sound(value) for name, value in reply.items()})


def _sound(value: object) -> object:
    match value:
        case str():
            return sound(strip_thinking(value))
        case list():
            return [_sound(held) for held in value]
        case dict():
            return {_sound(name): _sound(held) for name, held in value.items()}
        case pydantic.BaseModel():
            return value.model_copy(update={name: _sound(held) for name, held in value})
        case _:
            return value


def lost_by_finish(finish: Sequence[str]) -> Lost | None:
    """Return why a reply is of no use, by how the provider says that it ended; None if it may be of use.

    Args:
        finish: The finish reasons of the last call's choices.
    """
    last = {str(reason).lower() for reason in finish}
    if last & {"length", "max_tokens", "max_output_tokens"}:
        return "cut"
    return "refused" if last & {"content_filter", "refusal", "safety", "recitation", "blocklist"} else None


def lost_by_content(reply: dspy.Prediction) -> Lost | None:
    """Return "refused" where a text of a reply does nothing but decline, "empty" where it has no value at all."""
    values = [value for name, value in reply.items() if name != ANALYSIS]
    texts = [value for value in values if isinstance(value, str)]
    texts += [value[0] for value in values if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)]
    if any(map(is_refusal, texts)):
        return "refused"
    whole = len(texts) < len(values) or any(text.strip().lower() not in _NOTHING for text in texts)
    return None if whole and any(value not in (None, "", []) for value in values) else "empty"


def lost_by_text(text: str) -> Lost | None:
    """Return "refused" where a whole reply does nothing but decline, "empty" where it says nothing."""
    said = strip_thinking(_ANY_HEADER.sub("", text)).strip()
    return "empty" if said.lower() in _NOTHING else "refused" if is_refusal(said) else None


def lost_by_error(error: Exception) -> Lost:
    """Return why a draw was lost whose reply could not be read."""
    if not isinstance(error, AdapterParseError):
        return "unreadable"
    text = str(error.lm_response or "")
    if str(error).startswith(_THINKING):
        return "thinking only"
    if not text.strip() or "empty or null response" in str(error):
        return "empty"
    return "refused" if is_refusal(strip_thinking(text)) else "unreadable"
