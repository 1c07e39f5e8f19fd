"""Conversations in data: lists of messages, as OpenAI ("role", "content") and ShareGPT ("from", "value") write them.

Source: ours; the two forms are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuesmith.programs.tasks.task import TaskError

_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip


@dataclass(frozen=True)
class Conversation:
    """A conversation that ends with the user's last message, or with the answer to it.

    Attributes:
        system: The system's text; empty if there is none.
        turns: What was asked and answered before.
        question: The last message of the user.
        answer: The answer to it; None if it ends with the question.
    """

    system: str
    turns: tuple[tuple[str, str], ...]
    question: str
    answer: str | None

    @property
    def transcript(self) -> str:
        """All of it as one text."""
        said = [("system", self.system)] if self.system else []
        for question, answer in (*self.turns, (self.question, self.answer)):
            said += [("user", question), ("assistant", answer or "")]
        return "\n\n".join(f"{role}: {text}" for role, text in said if text)


def is_conversation(value: object) -> bool:
    """Return whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and all(_message(each) is not None for each in value)


def ends_in_answer(value: object) -> bool:
    """Return whether a value is a list of messages of which the last is the assistant's."""
    last = _message(value[-1]) if isinstance(value, list) and value else None
    return last is not None and _ROLES.get(last[0].lower()) == "assistant"


def conversation(where: str, value: object) -> Conversation:
    """Read a conversation.

    Args:
        where: Its place, for messages.
        value: A list of messages.

    Raises:
        TaskError: If it is none, none of it is the user's, or a message has another role than the three.
    """
    if not isinstance(value, list):
        raise TaskError(f"{where}: expected a list of messages, got {type(value).__name__}")
    system: list[str] = []
    merged: list[tuple[str, str]] = []
    for number, each in enumerate(value, 1):
        message = _message(each)
        role = _ROLES.get(message[0].lower()) if message else None
        if message is None or role is None:
            told = repr(message[0]) if message else "none"
            raise TaskError(f"{where}: message {number} has the role {told}; only system, user and assistant are read")
        if role == "system":
            system.append(message[1])
        elif merged and merged[-1][0] == role:
            merged[-1] = (role, f"{merged[-1][1]}\n\n{message[1]}")
        else:
            merged.append((role, message[1]))
    if system and not merged:  # the system's text asks
        return Conversation("", (), "\n\n".join(system), None)
    return _turned(where, "\n\n".join(system), merged)


def _turned(where: str, system: str, messages: Sequence[tuple[str, str]]) -> Conversation:
    said = list(messages)
    answer = said.pop()[1] if said and said[-1][0] == "assistant" else None
    if not said:
        raise TaskError(f"{where}: no message is the user's")
    question = said.pop()[1]
    if said and said[0][0] == "assistant":  # it greets
        said.insert(0, ("user", ""))
    turns = tuple((said[k][1], said[k + 1][1]) for k in range(0, len(said), 2))
    return Conversation(system, turns, question, answer)


def _message(value: object) -> tuple[str, str] | None:
    """Return the role and the text of a message; None if it is none."""
    if not isinstance(value, Mapping):
        return None
    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if isinstance(content, list):  # in parts, of which text is read
        content = "".join(str(part["text"]) for part in content if isinstance(part, Mapping) and "text" in part)
    return (role, content) if isinstance(role, str) and isinstance(content, str) else None
