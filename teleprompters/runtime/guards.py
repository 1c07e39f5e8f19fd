"""What no written instruction may be: unreadable, too long, or a copy of a training example.

A copied example makes a prompt look better on what it was taken from and worse on everything else; what is meant
to be shown belongs into a demonstration. `Run.child` and `Run.score` ask here, for every compiler. Source: ours.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import dspy
from pydantic import PydanticUserError, TypeAdapter

from cuesmith.signatures import undemonstrated
from cuesmith.teleprompters.runtime.evidence import shortened, sound, text_of

COPIED_WORDS, MOST_COPIED = 8, 40
"""Half of a training example's text is a copy, but not fewer words in a row than the first, and so many as the second
always are: what is shorter may be a fact or a convention that belongs into instructions. Ours."""

COMMON = 5
"""A run of words that one example in this many has belongs to the task ("Answer with yes or no"). Ours."""

LONGEST_INSTRUCTION = 4000
"""Characters that instructions may have if nobody says otherwise, and the student's own are not long. Ours."""

GROWTH = 1.5
"""Instructions may become so many times as long as the student's, if nobody says otherwise. Ours."""

HEADER = "[[ ##"
"""The beginning of a field's header in dspy's chat format: in a demonstration or an instruction it would make
the target's own reply unreadable."""

Fault = Literal["blank", "field header", "broken text", "too long", "copied example"]
"""Why a text may not be instructions."""


@dataclass(frozen=True)
class Guard:
    """The rules for instructions.

    Attributes:
        pinned: Predictor name -> text that its instructions keep.
        longest: Characters that instructions may have.
        pieces: Number of words -> runs of so many words that are copies.
    """

    pinned: Mapping[str, str]
    longest: int
    pieces: Mapping[int, frozenset[tuple[str, ...]]]

    @classmethod
    def of(
        cls,
        examples: Sequence[dspy.Example],
        own: Sequence[str],
        pinned: Mapping[str, str],
        longest: int | None = None,
        signatures: Iterable[type[dspy.Signature]] = (),
    ) -> Guard:
        """Make the rules.

        Args:
            examples: The examples that the optimizer may see.
            own: The student's instructions: what they say is no copy.
            pinned: As the attribute.
            longest: As the attribute; by default `longest_of(own)`.
            signatures: The student's. What they say of their fields, and the values that a field may have, are no
                copies either.
        """
        counts = Counter(run for example in examples for run in set(_runs_of(example)))
        said = [*own, *pinned.values(), *_labels(examples), *(text for one in signatures for text in _said_by(one))]
        common = max(2, len(examples) / COMMON)
        rare: dict[int, set[tuple[str, ...]]] = {}
        for run, n in counts.items():
            if n < common:
                rare.setdefault(len(run), set()).add(run)
        pieces = {size: frozenset(runs.difference(*(runs_in(text, size) for text in said)))
                  for size, runs in rare.items()}  # fmt: skip
        return cls(pinned, longest_of(own) if longest is None else longest, pieces)

    def usable(self, name: str, text: str) -> str | None:
        """Return what was written for predictor `name` as usable instructions, pinned text included, or None."""
        kept = self.pin(name, unwrapped(text)) if text.strip() else ""
        return None if self.fault(kept) else kept

    def fault(self, text: str) -> Fault | None:
        """Return why a text may not be instructions; None if it may. A worked demonstration in it is no copy."""
        text = undemonstrated(text)
        if not text.strip():
            return "blank"
        if HEADER in text:
            return "field header"
        if sound(text) != text:
            return "broken text"
        if len(text) > self.longest:
            return "too long"
        return "copied example" if self.copies(text) else None

    def pin(self, name: str, text: str) -> str:
        """Return `text` with the predictor's pinned text, which is appended where it is missing."""
        pinned = self.pinned.get(name, "")
        return text if pinned in text else f"{text}\n{pinned}"

    def copies(self, text: str) -> bool:
        """Return whether a text has a long piece of a training example in it."""
        return any(run in runs for size, runs in self.pieces.items() for run in runs_in(text, size))


def longest_of(own: Sequence[str]) -> int:
    """Return the characters that instructions may have, by the student's own."""
    return max(LONGEST_INSTRUCTION, math.ceil(GROWTH * max(map(len, own), default=0)))


def unwrapped(text: str) -> str:
    """Return a text stripped, without quotation marks or code fences around it."""
    text = text.strip()
    for mark in ("```", '"""', '"', "'", "`"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            inner = text[len(mark) : -len(mark)]
            text = text if mark in inner else inner.strip()
    return text


def _runs_of(example: dspy.Example) -> Iterator[tuple[str, ...]]:
    for value in example.toDict().values():
        text = shortened(text_of(value))
        yield from runs_in(text, min(MOST_COPIED, max(COPIED_WORDS, math.ceil(len(words_in(text)) / 2))))


def runs_in(text: str, size: int) -> Iterator[tuple[str, ...]]:
    """Yield every run of so many words in a text."""
    words = words_in(text)
    return (tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def words_in(text: str) -> list[str]:
    """Return the words of a text, case folded; where a script has no spaces, its characters."""
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+", text.casefold())


def _labels(examples: Sequence[dspy.Example]) -> list[str]:
    """Return the labels that recur: the names of what is told apart."""
    counts = Counter(text_of(value) for example in examples for value in example.labels().toDict().values())
    return [text for text, n in counts.items() if n > 1]


def _said_by(signature: type[dspy.Signature]) -> Iterator[str]:
    """Yield what a signature says of its task: instructions, descriptions, and the values that its types list."""
    yield str(signature.instructions)
    for info in signature.fields.values():
        extra = info.json_schema_extra
        yield str(extra.get("desc") or "") if isinstance(extra, dict) else ""
        with suppress(PydanticUserError, TypeError, ValueError):  # a type that has no schema
            yield from _texts_in(TypeAdapter(info.annotation).json_schema())


def _texts_in(schema: object) -> Iterator[str]:
    match schema:
        case str():
            yield schema
        case dict():
            yield from (text for held in schema.values() for text in _texts_in(held))
        case list():
            yield from (text for held in schema for text in _texts_in(held))
