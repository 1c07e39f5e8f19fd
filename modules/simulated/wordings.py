"""The texts that the simulated optimizer has: wordings of every family's task and steps, and what it says without."""

import itertools
import re
from functools import lru_cache

from cuesmith.modules.embedded.families import FAMILIES, Family

STOP = frozenset(
    re.findall(r"\w+", "a an the of in to with and or for each every it its their them this that as by is are")
)

PHRASINGS: dict[str, tuple[str, ...]] = {
    "first": ("Say which word the list begins with.", "From the words given, pick the one in front."),
    "last": ("Say which word the list ends with.", "From the words given, pick the one at the very end."),
    "reverse": ("Turn the list of words around.", "Repeat the words starting from the last and ending with the first."),
    "count": ("Determine how many words there are.", "Say how many words were given."),
    "sum": ("Work out what all the numbers add up to.", "Add everything up and report the total."),
    "max": ("Pick out the number that is greater than all others.", "Which of the numbers is the highest?"),
    "min": ("Pick out the number that is smaller than all others.", "Which of the numbers is the lowest?"),
    "objects": ("Work out how many objects there are altogether, counting every quantity.",
                "Say how many single objects are owned in all."),
    "items": ("Determine how many different kinds of things there are, whatever their quantities.",
              "Say how many separate entries the list of things has."),
    "animals": ("Work out how many animals there are altogether and leave everything else out.",
                "Of all the things, add up only those that are animals."),
    "fruits": ("Work out how many fruits there are altogether and leave everything else out.",
               "Of all the things, add up only those that are fruits."),
    "navigate": ("Tell whether following the moves brings you back to where you began: True or False.",
                 "Follow the moves and say True if you are back at the start, else False."),
    "position": ("Follow the moves from 0 0 facing north and report the coordinates where you stop.",
                 "Work out at which coordinates the moves end."),
    "bool": ("Work out whether the logical expression is True or False.",
             "Simplify the expression to a single truth value."),
    "trues": ("Say how many of the terms come out true.", "Work out how many terms have the value True."),
}  # fmt: skip

FRAMES = (
    "{}", "{} Give only the answer.", "Read the input carefully. {}", "Task: {}", "Here is what to do. {}",
    "For the given input: {}", "{} Nothing else is needed.", "You are given an input. {}",
)  # fmt: skip
_FRAME_WEIGHTS = (8.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0)

_STEP_FRAMES = ("{}", "Carefully {low}", "{} Leave nothing out.", "{} Do this exactly.", "Now {low}")
LAST_FRAMES = ("{}", "{} Write nothing else.", "Finally, {low}", "{} Give it alone, without other words.")
_VERBS = {"Give": ("State", "Write"), "Copy": ("Repeat", "Write"), "Write": ("List",), "Number": ("Enumerate",)}

PRIOR_ADVICE = (
    "Think carefully and pay attention to detail.",
    "Read the input carefully and answer as accurately as possible.",
    "You are an expert. Provide a clear, correct and concise answer.",
    "Let's think step by step and make sure that the answer is right.",
    "Analyze the input thoroughly before you respond, and avoid mistakes.",
    "Make sure you understand what is being asked, then give your best answer.",
    "Take a deep breath, work on the problem and double-check your result.",
    "Be precise, consistent and complete in your response.",
    "Consider all relevant information and follow the required format.",
    "Answer the question faithfully, paying close attention to edge cases.",
)

PRIOR_STEPS = (
    "Read the input carefully.", "Think about what is being asked.", "Identify the key information.",
    "Reason step by step.", "Double-check your reasoning.", "Avoid common mistakes.",
)  # fmt: skip
PRIOR_LAST = ("Give the final answer.", "State your answer clearly.", "Provide the correct answer.")

PRIOR_REASONS = (
    "The reasoning was not careful enough at this step.",
    "The model did not pay enough attention to detail here.",
    "The step was carried out too hastily.",
    "The model probably misunderstood what was asked.",
    "Important information may have been overlooked at this point.",
)

VAGUE_STEPS = ("Look at the input.", "Think about it.", "Work it out.", "Consider everything that matters.")

VAGUE_BY_LOOK = {
    "words": "Answer the question about the words.", "numbers": "Answer the question about the numbers.",
    "things": "Answer the question about the things.", "walk": "Answer the question about the walk.",
    "logic": "Answer the question about the expression.",
}  # fmt: skip

SYNONYMS = (
    ("carefully", "with care"), ("Give", "Provide"), ("Provide", "Give"), ("answer", "reply"), ("produce", "give"),
    ("must", "have to"), ("Determine", "Find out"), ("following", "subsequent"), ("Return", "Output"),
    ("only", "just"), ("make sure", "ensure"), ("Think", "Reason"),
)  # fmt: skip
REWORDINGS = (
    "Please do the following. {}", "{} Follow this exactly.", "Your task is this: {}", "{} Please keep to this.",
    "Here is your task. {}", "{} That is the task.", "What you have to do: {}", "As instructed: {}",
)  # fmt: skip


def norm(text: str) -> str:
    """The words of a text alone, for comparing wordings."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def lowered(text: str) -> str:
    """The text with a small first letter, to follow an opening; capitalised names stay."""
    return text[:1].lower() + text[1:]


def framed(frame: str, text: str) -> str:
    """The text in a frame: at its "{}", or with a small first letter at its "{low}"."""
    return frame.replace("{low}", lowered(text)).replace("{}", text)


@lru_cache(maxsize=64)
def instructions_of(family: Family) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Every wording of a family's task that this model has, with its weight."""
    cores = [(text, 3.0) for text in family.instructions] + [(text, 2.0) for text in PHRASINGS.get(family.name, ())]
    pairs = itertools.product(zip(FRAMES, _FRAME_WEIGHTS, strict=True), cores)
    weighted = {framed(frame, text): much * weight for (frame, much), (text, weight) in pairs}
    return tuple(weighted), tuple(weighted.values())


@lru_cache(maxsize=256)
def step_variants(step: str, last: bool = False) -> tuple[str, ...]:
    """Light rewordings of a step, the step itself first."""
    verb, _, rest = step.partition(" ")
    swapped = [f"{other} {rest}" for other in _VERBS.get(verb, ())]
    frames = LAST_FRAMES if last else _STEP_FRAMES
    return tuple(dict.fromkeys([step, *swapped, *(framed(frame, step) for frame in frames)]))


def siblings(family: Family) -> list[Family]:
    """The other families whose questions look the same."""
    return [other for other in FAMILIES.values() if other.look == family.look and other is not family]
