"""What no written instruction may do: lose pinned text, be too long, or carry a piece of a training example.

A copied example makes a prompt look better on what it was taken from and worse on everything else; what is meant
to be shown belongs into a demonstration. Source: ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import dspy

from cuesmith.teleprompters.runtime.evidence import shortened, text_of
from cuesmith.teleprompters.search.texts import instruction

COPIED_WORDS = 8
"""So many words in a row, found in a training example, are a copy. Ours."""

COMMON = 5
"""A run of words that one example in this many has belongs to the task ("Answer with yes or no"). Ours."""


@dataclass(frozen=True)
class Guard:
    """The rules for instructions.

    Attributes:
        pinned: Predictor name -> text that its instructions keep.
        longest: Characters that instructions may have.
        pieces: Runs of words that are copies.
    """

    pinned: Mapping[str, str]
    longest: int
    pieces: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, examples: Sequence[dspy.Example], own: Sequence[str], pinned: Mapping[str, str], longest: int) -> Guard:
        """Make the rules.

        Args:
            examples: The examples that the optimizer may see.
            own: The student's instructions: what they say is no copy.
            pinned: As the attribute.
            longest: As the attribute.
        """
        counts = Counter(run for example in examples for run in set(_runs_of(example)))
        allowed = {run for text in (*own, *pinned.values()) for run in _runs(text)}
        common = max(2, len(examples) / COMMON)
        return cls(pinned, longest, frozenset(run for run, n in counts.items() if n < common) - allowed)

    def usable(self, name: str, text: str) -> str | None:
        """Return what was written for predictor `name` as usable instructions, pinned text included, or None."""
        found = instruction(text)
        if found is None or self.copies(found):
            return None
        kept = self.pin(name, found)
        return kept if len(kept) <= self.longest else None

    def pin(self, name: str, text: str) -> str:
        """Return `text` with the predictor's pinned text, which is appended where it is missing."""
        pinned = self.pinned.get(name, "")
        return text if pinned in text else f"{text}\n{pinned}"

    def copies(self, text: str) -> bool:
        """Return whether a text has a long piece of a training example in it."""
        return any(run in self.pieces for run in _runs(text))


def _runs_of(example: dspy.Example) -> Iterator[tuple[str, ...]]:
    for value in example.toDict().values():
        yield from _runs(shortened(text_of(value)))


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+", text.casefold())
    return (tuple(words[i : i + COPIED_WORDS]) for i in range(len(words) - COPIED_WORDS + 1))
