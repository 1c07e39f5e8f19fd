"""Working out from solved examples, steps and instructions which task family they come from."""

import itertools
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cuesmith.modules.embedded.families import FAMILIES, Family, Solution
from cuesmith.modules.simulated.wordings import STOP, instructions_of, norm, step_variants
from cuesmith.signatures import parse_steps

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SAME = {**{word: str(number) for number, word in enumerate(_NUMBER_WORDS)}, "yes": "true", "no": "false"}
_THOUGHT = re.compile(r"reasoning|step \d+", re.IGNORECASE)
"""Entries that lead to an answer and are none."""
FIELD = re.compile(r"^[ \t]*(?:[-*][ \t]+)?`?([A-Za-z_][\w ]{0,40}?)`?:(?:[ \t]+|$)", re.MULTILINE)


def tokens_of(text: str) -> list[str]:
    """The words and numbers of a text, for comparing answers: case, punctuation and spelling aside."""
    words = re.findall(r"-?\w[\w'-]*", text.lower())
    return [_SAME.get(word, word) for word in words]


def entries_of(text: str) -> list[tuple[str, str]]:
    """The "name: value" entries of a text; a value runs to the next entry."""
    heads = list(FIELD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    found = [(head[1].strip(), text[head.end() : end].strip()) for head, end in zip(heads, ends, strict=False)]
    lead = text[: heads[0].start()].strip() if heads else text.strip()
    return [("", lead), *found] if lead else found


def questions_of(entries: Iterable[tuple[str, str]]) -> list[str]:
    """Every text among the entries that may be a question."""
    values = [value for _, value in entries if value]
    lines = [line for value in values if "\n" in value for line in value.splitlines() if line.strip()]
    return list(dict.fromkeys([*values, *lines]))


def asked_part(failure: str) -> str:
    """A failure without its response: what was answered is no evidence of what is asked."""
    return re.split(r"^response:", failure, maxsplit=1, flags=re.MULTILINE)[0]


def solutions_of(family: Family, questions: Iterable[str]) -> list[tuple[str, Solution]]:
    """The questions that a family can solve, with their solutions."""
    solved = ((question, family.solve(question)) for question in questions)
    return [(question, solution) for question, solution in solved if solution is not None]


@dataclass(frozen=True, slots=True)
class InferredTask:
    """A family that explains the values of one output field."""

    field: str
    family: Family


@lru_cache(maxsize=4096)
def _explained(text: str) -> frozenset[tuple[str, str]]:
    """The (output field, family) pairs that one solved example agrees with; outputs come after inputs."""
    entries = [entry for entry in entries_of(text) if not _THOUGHT.fullmatch(entry[0])]
    pairs: set[tuple[str, str]] = set()
    for place, family in itertools.product(range(len(entries)), FAMILIES.values()):
        for _, solution in solutions_of(family, questions_of(entries[place : place + 1])):
            answer = tokens_of(solution.answer)
            pairs |= {(name, family.name) for name, value in entries[place + 1 :] if tokens_of(value) == answer}
    return frozenset(pairs)


def explain(
    examples: Sequence[str], steps: Sequence[str], rng: random.Random, said: Collection[str] = ()
) -> list[InferredTask]:
    """The families that explain the examples: for each output field the one that explains most of them.

    Real data holds wrong labels, so half of the examples are enough. Several families can explain as many
    (objects and kinds of things, if there is one of each): then the steps decide, if there are any, or that a
    family is among those `said` to be meant, else chance.
    """
    counts = Counter(pair for example in examples for pair in _explained(example))
    tasks: list[InferredTask] = []
    for output in dict.fromkeys(field for field, _ in sorted(counts)):
        ranked = {family: count for (field, family), count in counts.items() if field == output}
        most = max(ranked.values())
        if 2 * most < len(examples):
            continue
        tied = sorted(family for family, count in ranked.items() if count == most)
        # The last word of "not True" is its value too: an answer of a type says more than a word does.
        fit = {name: (_fit(FAMILIES[name], steps), FAMILIES[name].answer_type is not str) for name in tied}
        best = [name for name in tied if fit[name] == max(fit.values())]
        tasks.append(InferredTask(output, FAMILIES[rng.choice([name for name in best if name in said] or best)]))
    return tasks


def _fit(family: Family, steps: Sequence[str]) -> int:
    """How many of the given steps are steps of the family."""
    return sum(canonical(family, step) is not None for step in steps)


def by_steps(text: str, steps: Sequence[str]) -> list[InferredTask]:
    """The family whose steps are given and that can solve the text; for an example with a wrong label."""
    questions = questions_of(entries_of(text))
    fits = {name: _fit(family, steps) for name, family in FAMILIES.items() if solutions_of(family, questions)}
    best = max(fits, key=lambda name: fits[name], default="")
    return [InferredTask("", FAMILIES[best])] if fits.get(best) else []


@lru_cache(maxsize=4096)
def canonical(family: Family, step: str) -> int | None:
    """Which of the family's steps a step says in other words; None if none."""
    given = norm(step)
    for k, own in enumerate(family.steps):
        if any(norm(variant) == given for variant in step_variants(own)):
            return k
    for k, own in enumerate(family.steps):
        if f" {norm(own)} " in f" {given} ":
            return k
    words = set(given.split()) - STOP
    overlaps = [_overlap(words, set(norm(own).split()) - STOP) for own in family.steps]
    best = max(range(len(overlaps)), key=lambda k: overlaps[k])
    return best if overlaps[best] >= 0.6 else None


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


@lru_cache(maxsize=1)
def _phrases() -> dict[str, str]:
    """The family of every wording."""
    return {norm(text): name for name, family in FAMILIES.items() for text in instructions_of(family)[0]}


def by_phrase(instruction: str) -> list[InferredTask]:
    """The family of an instruction that is, as a whole, one of this model's wordings."""
    parsed = parse_steps(instruction)
    name = _phrases().get(norm(parsed[0] if parsed else instruction))
    return [InferredTask("", FAMILIES[name])] if name else []
