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
from cuesmith.modules.simulated.evidence import Task
from cuesmith.modules.simulated.wordings import PHRASINGS, PRIOR_ADVICE, norm
from cuesmith.signatures import parse_steps

Fault = Literal["missing", "steps", "form"]

# --- the words ---------------------------------------------------------------------------------------------

NOUNS: dict[str, tuple[str, ...]] = {
    "first": ("the first word of the list", "the word that the list begins with", "the word in front",
              "the first one of the words"),
    "last": ("the last word of the list", "the word that the list ends with", "the word at the very end",
             "the final one of the words"),
    "reverse": ("all the words in reverse order", "the list of words backwards", "the words from last to first",
                "the words in the opposite order"),
    "count": ("the number of words", "the length of the list in words", "the count of the words",
              "how many words there are"),
    "sum": ("the sum of the numbers", "the total of all the numbers", "the result of adding the numbers",
            "what the numbers add up to"),
    "max": ("the largest number", "the highest of the numbers", "the maximum of the numbers",
            "the number that is greater than the others"),
    "min": ("the smallest number", "the lowest of the numbers", "the minimum of the numbers",
            "the number that is smaller than the others"),
    "objects": ("the total number of objects", "the sum of all the quantities", "how many objects there are in all",
                "the number of single things, every quantity counted"),
    "items": ("the number of different kinds of things", "the number of entries whatever their quantities",
              "how many distinct things are listed", "the number of distinct kinds"),
    "animals": ("the total number of animals", "how many animals there are", "the quantities of the animals added up",
                "the count of the animals"),
    "fruits": ("the total number of fruits", "how many fruits there are", "the quantities of the fruits added up",
               "the count of the fruits"),
    "navigate": ("whether the walk ends where it started", "whether the moves lead back to the start",
                 "whether the starting point is reached again", "True or False for a return to the starting point"),
    "position": ("the coordinates of the end point", "the coordinates at which the walk ends",
                 "the final position of the walk", "where the moves end, as coordinates"),
    "bool": ("the truth value of the expression", "the value of the logical expression",
             "whether the expression is True or False", "what the expression evaluates to"),
    "trues": ("the number of terms that are true", "how many of the terms are true",
              "the number of terms with the value True", "the count of the true terms"),
}  # fmt: skip
"""Per family, noun phrases for what its task asks for."""

ADVICE = (
    "pay attention to detail", "be more specific", "consider edge cases", "double-check the answer",
    "read the input carefully", "reason step by step", "be clear and concise", "avoid common mistakes",
    "follow the required format", "use all relevant information",
)  # fmt: skip

_GENERIC = (
    "The instruction does not tell the model to {}.", "It never reminds the model to {}.",
    "The model may have failed because it was not told to {}.", "There is no request to {}.",
    "A better instruction would tell the model to {}.", "The model is left without a hint to {}.",
    "It should say more clearly to {}.", "Nothing in it makes the model {}.",
)  # fmt: skip

_FAULTS: dict[Fault, tuple[str, ...]] = {
    "missing": (
        "It never says that what is wanted is {}.", "The instruction does not ask for {}.",
        "What is wanted is {}, but the instruction leaves that open.", "Nothing in the instruction mentions {}.",
        "The model has to guess the task: it is not told to determine {}.",
        "The expected answers are {}, which the instruction does not say.",
        "It is too vague: it should ask for {}.", "The model cannot know from it that it has to determine {}.",
        "It leaves out that the answer should be {}.",
        "The instruction does not demand {}, so that other answers fit it as well.",
        "Told to find {}, the model would know what to do; it is not.",
        "It leaves room for other answers than {}.", "A precise instruction would ask for {}; this one does not.",
        "From the expected outputs it is clear that the task is {}; the instruction hides that.",
        "It is nowhere said that the answer is {}.", "It lacks the demand for {}.",
    ),
    "steps": (
        "It asks for {} but does not tell the model to work step by step.",
        "The task, {}, is clear; what is missing is that each step has to be written down.",
        "It says nothing of writing down the intermediate results on the way to {}.",
        "The instruction wants {} in one go; it should demand one part at a time.",
        "It should have the model work out {} step by step.",
        "To get {} right, the model has to show its work, which it is not told to do.",
        "Nothing makes the model write down its work before it gives {}.",
        "The model answers too soon: it should reach {} through intermediate results.",
    ),
    "form": (
        "It asks for {} but does not rule out other words around it.",
        "It does not say in which form {} has to be given.",
        "The answer has to be {} and no other words, which is not said.",
        "It should demand {} without other words.",
        "What stands around {} in the responses has to go: only the bare answer should be asked for.",
        "The model gives {} in a form that cannot be used, as the instruction names none.",
        "It says that what is wanted is {}, but not that nothing else may be written.",
        "The form of the answer, just {}, is left open.",
    ),
}  # fmt: skip

_KEPT = (
    "It works because it asks for {}; that has to stay.", "Asking for {} is what makes it work: keep it.",
    "The model succeeds as it knows that what is wanted is {}.", "Keep saying that the answer should be {}.",
    "What led to the right answers is the request for {}.", "Whatever else changes, it has to ask for {}.",
    "The demand for {} carries it; say that first.", "It should go on asking for {}, more plainly still.",
    "It rightly asks for {}, which could stand in fewer words.", "Its strength is the plain request for {}.",
    "The request for {} fits all examples; say it so that it fits harder ones.",
    "A better instruction still demands {}.", "It can be put more exactly that the answer is {}.",
    "What it gets right is to name {} as the answer.", "That it demands {} is enough; nothing has to be added.",
    "The model found {} because it was told to: state it as clearly as before.",
)  # fmt: skip

_FACTS = (
    "The instruction does not say that {}.", "It leaves out that {}.", "The model is not told that {}.",
    "Nothing in it says that {}.", "What is missing is that {}.", "It should say that {}.",
    "The model cannot know that {}.", "It is never made clear that {}.",
)  # fmt: skip

HINTS: dict[Fault, tuple[str, ...]] = {
    "missing": (),
    "steps": ("Work step by step.", "Show your work.", "Think step by step before you answer.",
              "Write down each step first."),
    "form": ("Give only the answer.", "Write nothing else.", "Just the answer, without other words.",
             "Output only the answer."),
}  # fmt: skip
"""What an edit adds to a task to mend a fault."""

_STEPS = re.compile(r"step by step|each step|one part at a time|intermediate|(?:show|write down) (?:its|your) work")
_FORM = re.compile(r"\bform\b|nothing else|other words|bare answer|only the answer")


# --- writing -----------------------------------------------------------------------------------------------


def faults(tasks: Sequence[Task], fault: Fault) -> list[str]:
    """Every sentence that finds `fault` with an instruction for `tasks`."""
    return [frame.replace("{}", noun) for frame in _FAULTS[fault] for noun in _nouns(tasks)]


def merits(tasks: Sequence[Task]) -> list[str]:
    """Every sentence that says that an instruction for `tasks` is right."""
    return [frame.replace("{}", noun) for frame in _KEPT for noun in _nouns(tasks)]


def generic(advice: Iterable[str] = ADVICE) -> list[str]:
    """Every sentence that finds nothing wrong but the lack of general advice."""
    return [frame.replace("{}", one) for one in advice for frame in _GENERIC]


def open_facts(facts: Iterable[str]) -> list[str]:
    """Every sentence that says that one of the facts is not said."""
    return [frame.replace("{}", fact) for fact in facts for frame in _FACTS]


def sentence(text: str) -> str:
    """The text as a sentence: a capital first, a full stop last."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _nouns(tasks: Sequence[Task]) -> list[str]:
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

    tasks: tuple[Task, ...]
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


def stated(text: str) -> tuple[Task, ...]:
    """The tasks that a text names, one for each "for `field`:" in it; of an instruction with steps, its head."""
    parsed = parse_steps(text)
    heads = list(re.finditer(r"\bfor `(\w+)`:", text := parsed[0] if parsed else text, re.IGNORECASE))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    parts = {head[1]: text[head.end() : end] for head, end in zip(heads, ends, strict=False)} or {"": text}
    named = ((field, _named(part)) for field, part in parts.items())
    return tuple(Task(field, family) for field, family in named if family is not None)


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
