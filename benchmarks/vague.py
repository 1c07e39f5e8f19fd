"""Vague requests: a task on which the question, not the prompt, is what is wrong.

People ask for something in slang ("who's the caboose?"), which the frozen embedded model has never seen; asked in plain
words it can do what they want. A prompter in front of it can learn the slang from rewards. Everything in it is made up:
which slang word means what is written here, and nothing else tells it. Source: ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.programs.tasks.task import Row, Sizes, Task, build, different

SIGNATURE = "request, text -> answer"

SLANG: dict[str, tuple[str, ...]] = {
    "first": ("opener", "kickoff", "pole-sitter", "numero-uno"),
    "last": ("caboose", "finisher", "tail-ender", "anchor"),
    "max": ("whopper", "top-dog", "heavyweight", "biggie"),
    "min": ("runt", "tiddler", "small-fry", "lightweight"),
}
"""Family -> the slang words that ask for it."""

_ASKED = (
    "the {} please",
    "who's the {} ?",
    "i want the {}",
    "gimme the {}",
    "{} ?",
    "need the {} asap",
    "what's the {} here",
    "show me that {}",
    "find the {} for me",
    "just the {}",
    "{} , quick",
    "any idea who is the {}",
    "the {} , thanks",
)

PLAIN: dict[str, tuple[str, ...]] = {
    "first": ("Give the first word.", "Write the opening term.", "Find the initial entry."),
    "last": ("Give the last word.", "Write the final term.", "Find the closing entry."),
    "max": ("Give the largest number.", "Write the highest value.", "Find the maximum."),
    "min": ("Give the smallest number.", "Write the lowest value.", "Find the minimum."),
}
"""Family -> plain wordings; how well the frozen model follows each of them differs."""


RIGHT = 0.2
"""Share of the warm start's pairs that are right on purpose; of the others one in four is right by chance."""


@dataclass(frozen=True)
class VagueTask:
    """The task, and what an untrained prompter is warm-started on.

    Attributes:
        task: Examples with the inputs `request` and `text`.
        pairs: (request, a plain wording): a poor teacher's, right about the slang in a share `RIGHT` of them and
            drawn at random in the others, so that a prompter trained on them guesses.
        words: Every word of requests and wordings.
    """

    task: Task
    pairs: tuple[tuple[str, str], ...]
    words: tuple[str, ...]


def vague_requests(*, sizes: Sizes | None = None, seed: int = 0, n_pairs: int = 600) -> VagueTask:
    """Draw the task.

    Args:
        sizes: Sizes of the splits; 160 train, 60 validation and 250 test examples by default.
        seed: Chooses texts, requests and splits.
        n_pairs: Pairs for the warm start.

    Raises:
        TaskError: If there are fewer different rows than wanted.
    """
    wanted = sizes or Sizes(160, 60, 250)
    task = build("vague", "what a slang word asks for", _rows(wanted.total, seed), sizes=wanted, seed=seed)
    rng = random.Random(f"vague-pairs:{seed}")
    wordings = [wording for family in PLAIN.values() for wording in family]
    pairs = tuple(_pair(rng, wordings) for _ in range(n_pairs))
    slang = [word for family in SLANG.values() for word in family]
    texts = [*wordings, *(asked.format(word) for asked in _ASKED for word in slang)]
    return VagueTask(task, pairs, tuple(sorted({word for text in texts for word in text.split()})))


def _pair(rng: random.Random, wordings: list[str]) -> tuple[str, str]:
    family = rng.choice(list(SLANG))
    return _request(rng, family), rng.choice(PLAIN[family] if rng.random() < RIGHT else wordings)


def _request(rng: random.Random, family: str) -> str:
    return rng.choice(_ASKED).format(rng.choice(SLANG[family]))


def _rows(count: int, seed: int) -> Iterator[Row]:
    return different(_drawn(20 * count, seed), count, f"fewer than {count} different vague requests")


def _drawn(count: int, seed: int) -> Iterator[Row | None]:
    rng = random.Random(f"vague:{seed}")
    for number in range(count):
        family = list(SLANG)[number % len(SLANG)]
        text = FAMILIES[family].sample(rng, held_out=True)
        solution = FAMILIES[family].solve(text)
        yield Row({"request": _request(rng, family), "text": text}, (solution.answer,)) if solution else None
