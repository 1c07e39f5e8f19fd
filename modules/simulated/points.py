"""What can be said about an instruction, and reading it back: the words between a critique and the edit it causes.

A point names a family's task by one of its noun phrases, and finds one of three faults with the instruction: the task
is `missing`, or it is there and says nothing of the `steps` or of the `form`. Generic advice is a point as well, one
that no evidence is needed for. `read` gets out of any text what these sentences put in, so that an edit can act on
the words of a critique and on nothing else.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from cuesmith.modules.embedded.families import FAMILIES, Family
from cuesmith.modules.simulated.task_inference import InferredTask
from cuesmith.modules.simulated.wordings import PHRASINGS, PRIOR_ADVICE, TABLES, norm, phrases, table
from cuesmith.signatures import parse_steps

Fault = Literal["missing", "steps", "form"]

# --- the words ---------------------------------------------------------------------------------------------

NOUNS = table("nouns")
"""Per family, noun phrases for what its task asks for."""
ADVICE = phrases("advice")
HINTS = table("hints")
"""What an edit adds to a task to mend a fault."""

_STEPS = re.compile(r"step by step|each step|one part at a time|intermediate|(?:show|write down) (?:its|your) work")
_FORM = re.compile(r"\bform\b|nothing else|other words|bare answer|only the answer")


# --- writing -----------------------------------------------------------------------------------------------


def faults(tasks: Sequence[InferredTask], fault: Fault) -> list[str]:
    """Every sentence that finds `fault` with an instruction for `tasks`."""
    return [frame.replace("{}", noun) for frame in TABLES["faults"][fault] for noun in _nouns(tasks)]


def merits(tasks: Sequence[InferredTask]) -> list[str]:
    """Every sentence that says that an instruction for `tasks` is right."""
    return [frame.replace("{}", noun) for frame in TABLES["kept"] for noun in _nouns(tasks)]


def generic(advice: Iterable[str] = ADVICE) -> list[str]:
    """Every sentence that finds nothing wrong but the lack of general advice."""
    return [frame.replace("{}", one) for one in advice for frame in TABLES["generic"]]


def open_facts(facts: Iterable[str]) -> list[str]:
    """Every sentence that says that one of the facts is not said."""
    return [frame.replace("{}", fact) for fact in facts for frame in TABLES["facts"]]


def sentence(text: str) -> str:
    """The text as a sentence: a capital first, a full stop last."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _nouns(tasks: Sequence[InferredTask]) -> list[str]:
    if len(tasks) == 1:
        return list(NOUNS[tasks[0].family.name])
    named = [[f"for `{task.field}`: {noun}" for noun in NOUNS[task.family.name]] for task in tasks]
    return [f"this: {'; '.join(row)}" for row in zip(*named, strict=True)]


# --- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """What a text says about an instruction.

    Attributes:
        tasks: The tasks that it names.
        fault: What it finds wrong; of no meaning without a task.
        advice: What it asks for beyond: sentences that could be added to an instruction.
    """

    tasks: tuple[InferredTask, ...]
    fault: Fault
    advice: tuple[str, ...]


@lru_cache(maxsize=1)
def _sayings() -> tuple[Mapping[str, Family], Mapping[str, Family]]:
    """The family of every wording of a task, and of every noun phrase for one."""
    cores = {norm(text): family for name, family in FAMILIES.items() for text in family.instructions + PHRASINGS[name]}
    return cores, {norm(noun): FAMILIES[name] for name, nouns in NOUNS.items() for noun in nouns}


@lru_cache(maxsize=1)
def wordings() -> tuple[str, ...]:
    """The wordings of all tasks, longer ones first."""
    texts = (text for name, family in FAMILIES.items() for text in family.instructions + PHRASINGS[name])
    return tuple(sorted(texts, key=len, reverse=True))


@lru_cache(maxsize=4096)
def _named(text: str) -> Family | None:
    """The family whose task a text names, by a whole wording rather than by a noun phrase."""
    given = f" {norm(text)} "
    named = (family for sayings in _sayings() for saying, family in sayings.items() if f" {saying} " in given)
    return next(named, None)


def stated(text: str) -> tuple[InferredTask, ...]:
    """The tasks that a text names, one for each "for `field`:" in it; of an instruction with steps, its head."""
    parsed = parse_steps(text)
    heads = list(re.finditer(r"\bfor `(\w+)`:", text := parsed[0] if parsed else text, re.IGNORECASE))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    parts = {head[1]: text[head.end() : end] for head, end in zip(heads, ends, strict=False)} or {"": text}
    named = ((field, _named(part)) for field, part in parts.items())
    return tuple(InferredTask(field, family) for field, family in named if family is not None)


def advice_in(text: str) -> tuple[str, ...]:
    """The general advice that a text gives, as sentences."""
    given = f" {norm(text)} "
    return tuple(sentence(one) for one in (*ADVICE, *PRIOR_ADVICE) if f" {norm(one)} " in given)


def read(text: str) -> Point:
    """Read a critique, or a list of points of which the first ones count most.

    The first point that names a task decides on the task and the fault; general advice counts if it comes before
    it. If no point names a task, the first advice counts, and if there is none, whatever the first point says.
    Source: ours.

    Args:
        text: A reason, a summary of reasons or a reflection, written by anybody.

    Returns:
        What it says; nothing for a text without words.
    """
    advice: list[str] = []
    lines = points_of(text)
    for line in lines:
        if tasks := stated(line):
            return Point(tasks, _fault(line), tuple(dict.fromkeys(advice)))
        advice += advice_in(line)
    return Point((), "missing", tuple(advice[:1]) or tuple(_lesson(line) for line in lines[:1]))


def points_of(text: str) -> list[str]:
    """The points of a text: its lines without bullets and counts; of a reflection, the aspects at its end."""
    _, _, aspects = text.rpartition("Aspects to improve:")
    bare = (re.sub(r"^(?:[-*•]|\d+[.)])\s+|\s*\(said by .*\)$", "", line.strip()) for line in aspects.splitlines())
    return [line for line in bare if norm(line)]


def speaks_of(fault: Literal["steps", "form"], text: str) -> bool:
    """Whether a text speaks of working in steps, or of the form of the answer."""
    return bool((_STEPS if fault == "steps" else _FORM).search(text.lower()))


def _fault(text: str) -> Fault:
    return "steps" if speaks_of("steps", text) else "form" if speaks_of("form", text) else "missing"


def _lesson(text: str) -> str:
    """What an instruction should say according to a text without a task that is known: what it says is not said."""
    found = re.search(r"\b(?:say|says|said|tell|told|out|know|missing is|clear|mention|mentions) that (.+)$", text)
    return sentence(" ".join((found[1] if found else text).split())[:300])
