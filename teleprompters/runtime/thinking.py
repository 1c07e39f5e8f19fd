"""Thinking that a server leaves in the content of a reply is no part of the answer. Source: ours."""

from __future__ import annotations

import re

import dspy

_NAMES = "think|thinking|thought|thoughts|reasoning|reflection|seed:think|antml:thinking"
OPEN = re.compile(rf"<({_NAMES})>|◁think▷|\[THINK\]|<\|begin_of_thought\|>|<unused94>", re.IGNORECASE)
_CLOSE = re.compile(rf"</({_NAMES})>|◁/think▷|\[/THINK\]|<\|end_of_thought\|>|<unused95>", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>final(?: [^<]*)?<\|message\|>")
_HEADER = "[[ ##"


def strip_thinking(text: str, asked: str = "") -> str:
    """Return a reply without the thinking that some servers leave in front of it.

    Blocks of the known kinds are taken off the beginning, and everything before a closing tag that nothing opened (the
    template of the chat did). A tag inside the answer stays: an answer may be about such tags.

    Args:
        text: The reply.
        asked: The text of the request: a tag that it names is asked for, as `dspy.XMLAdapter` does with a field's name.

    Returns:
        "" where the thinking does not end.
    """
    final = list(_CHANNEL.finditer(text))
    if final and text.lstrip().startswith(("<|channel|>", "<|start|>")):
        text = text[final[-1].end() :].removesuffix("<|end|>").removesuffix("<|return|>")
    while True:
        stripped = text.lstrip()
        if opened := OPEN.match(stripped):
            if opened[0].lower() in asked.lower():
                return text
            closed = _CLOSE.search(stripped, opened.end())
            if closed is None:
                return ""
            text = stripped[closed.end() :]
            continue
        closed, opened = _CLOSE.search(text), OPEN.search(text)
        if closed is None or (opened is not None and opened.start() < closed.start()):
            return text
        if closed[0].lower() in asked.lower():
            return text
        after = text[closed.end() :]
        if after.strip() and not after.startswith(("\n", _HEADER, "{")):
            return text  # in a line of the answer
        text = after


_THINKING = re.compile(
    r"(?:^|[/.])(?:o[134](?:-|$)|gpt-5(?!\S*chat)|gpt-oss|deepseek-(?:r1|reasoner)|qwq|magistral|grok-4(?!\S*non)"
    r"|gemini-(?:2\.5-pro|3))|[-:](?:thinking|reasoner|reasoning)\b",
    re.IGNORECASE,
)
"""Models that think before they answer, whatever they are asked."""


def thinks(lm: dspy.BaseLM) -> bool:
    """Return whether a model thinks by itself before it answers, by its name or by how it is called."""
    asked = [lm.kwargs.get(name) for name in ("reasoning_effort", "thinking", "reasoning")]
    wanted = any(one not in (None, False, "", "none", "minimal", "disable", "disabled") for one in asked)
    return wanted or _THINKING.search(str(lm.model)) is not None
