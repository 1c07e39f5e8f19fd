"""What changed from one prompt to another: by words for a page, by lines for a terminal. Source: ours."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, Prompt
from cuesmith.teleprompters.runtime.evidence import text_of

__all__ = ["Change", "Piece", "PromptChange", "prompt_changes", "prompt_diff", "prompt_text", "word_diff"]

Change: TypeAlias = Literal["same", "gone", "new"]

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_MOST = 4_000
"""Words of both texts that are compared one by one; longer texts are compared by lines."""
_ALIKE = 0.25
"""Texts that have less in common are shown one after the other: a mosaic of chance matches tells nothing."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text and what became of it."""

    kind: Change
    text: str


@dataclass(frozen=True)
class PromptChange:
    """What became of one predictor's prompt.

    Attributes:
        predictor: Its name.
        instructions: The instructions of both, in pieces.
        demos: The demonstrations of both, each as one piece.
    """

    predictor: str
    instructions: tuple[Piece, ...]
    demos: tuple[Piece, ...]

    @property
    def changed(self) -> bool:
        """Whether anything changed."""
        return any(piece.kind != "same" for piece in (*self.instructions, *self.demos))


def word_diff(before: str, after: str) -> tuple[Piece, ...]:
    """Return two texts in pieces: what both have, what is gone, what is new."""
    if before == after:
        return (Piece("same", before),) if before else ()
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    if len(old) + len(new) > _MOST:
        old, new = _LINES.findall(before), _LINES.findall(after)
    head = _in_common(old, new)
    tail = _in_common(old[head:][::-1], new[head:][::-1])
    ends = "".join(old[:head]), "".join(old[len(old) - tail :])
    alike = len(ends[0]) + len(ends[1])
    old, new = old[head : len(old) - tail], new[head : len(new) - tail]
    matcher = difflib.SequenceMatcher(str.isspace, old, new, autojunk=len(old) + len(new) > _MOST)
    if alike < _ALIKE * max(len(before), len(after)) and matcher.ratio() < _ALIKE:
        return tuple(_joined([Piece("gone", before), Piece("new", after)]))
    inside = [Piece("same", ends[0]), *_pieces(matcher, old, new), Piece("same", ends[1])]
    return tuple(_joined(_bridged([piece for piece in inside if piece.text])))


def _in_common(old: Sequence[str], new: Sequence[str]) -> int:
    """Return how many words two texts have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


def _pieces(matcher: difflib.SequenceMatcher[str], old: Sequence[str], new: Sequence[str]) -> Iterator[Piece]:
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            yield Piece("same", "".join(old[a:b]))
            continue
        yield Piece("gone", "".join(old[a:b]))
        yield Piece("new", "".join(new[c:d]))


def _bridged(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Take blanks between two changes for a part of both, so that a changed phrase reads as one."""
    for i, piece in enumerate(pieces):
        inside = 0 < i < len(pieces) - 1 and piece.kind == "same" and piece.text.isspace() and "\n" not in piece.text
        if inside:
            yield Piece("gone", piece.text)
            yield Piece("new", piece.text)
        else:
            yield piece


def _joined(pieces: Sequence[Piece] | Iterator[Piece]) -> Iterator[Piece]:
    """Join what is gone, and what is new, between two stretches that both have."""
    gone, new = "", ""
    for piece in (*pieces, Piece("same", "")):
        if piece.kind == "gone":
            gone += piece.text
        elif piece.kind == "new":
            new += piece.text
        else:
            yield from (Piece(kind, text) for kind, text in _changes(gone, new) if text)
            gone, new = "", ""
            if piece.text:
                yield piece


def _changes(gone: str, new: str) -> tuple[tuple[Change, str], tuple[Change, str]]:
    return ("gone", gone), ("new", new)


def prompt_changes(before: Candidate, after: Candidate) -> tuple[PromptChange, ...]:
    """Return what became of each predictor's prompt, in the program's order."""
    empty = Prompt("")
    return tuple(_prompt_change(name, before.prompts.get(name, empty), prompt) for name, prompt in after)


def _prompt_change(name: str, before: Prompt, after: Prompt) -> PromptChange:
    instructions = word_diff(before.instructions, after.instructions)
    matcher = difflib.SequenceMatcher(None, before.demos, after.demos, autojunk=False)
    demos: list[Piece] = []
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            demos += [Piece("same", demo_text(demo)) for demo in before.demos[a:b]]
        else:
            demos += [Piece("gone", demo_text(demo)) for demo in before.demos[a:b]]
            demos += [Piece("new", demo_text(demo)) for demo in after.demos[c:d]]
    return PromptChange(name, instructions, tuple(demos))


def demo_text(demo: Demo) -> str:
    """Write out a demonstration, a field a line."""
    return "\n".join(f"{field}: {text_of(value)}" for field, value in demo.values)


def prompt_text(candidate: Candidate) -> str:
    """Write out all prompts of a candidate: instructions and demonstrations of every predictor."""
    blocks = []
    for name, prompt in candidate:
        lines = [f"[{name}] instructions", prompt.instructions]
        for number, demo in enumerate(prompt.demos, 1):
            lines += ["", f"[{name}] demonstration {number}"]
            lines += [f"{field}: {value}" for field, value in demo.values]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def prompt_diff(before: Candidate, after: Candidate) -> str:
    """Return the unified difference of two candidates' prompts; empty if they are the same."""
    old, new = (prompt_text(candidate).splitlines() for candidate in (before, after))
    return "\n".join(difflib.unified_diff(old, new, "before", "after", lineterm="", n=100))
