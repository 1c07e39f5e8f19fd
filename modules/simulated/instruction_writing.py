"""Writing and varying instructions."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from cuesmith.modules.embedded.families import FAMILIES, Family
from cuesmith.modules.simulated.author import Author, Source, Values
from cuesmith.modules.simulated.task_inference import InferredTask, entries_of, tokens_of
from cuesmith.modules.simulated.wordings import (
    FRAMES,
    PHRASINGS,
    PRIOR_ADVICE,
    REWORDINGS,
    SYNONYMS,
    VAGUE_BY_LOOK,
    filled,
    framed,
    instructions_of,
    norm,
    phrases,
    siblings,
)
from cuesmith.signatures import parse_steps


def joined(tasks: Sequence[InferredTask], texts: Sequence[str]) -> str:
    """One text for all output fields; their names are needed only if there are several."""
    if len(texts) == 1:
        return texts[0]
    return " ".join(f"For `{task.field}`: {text}" for task, text in zip(tasks, texts, strict=True))


def write_instructions(author: Author, source: Source) -> Values:
    """Answer `WriteInstructions`."""
    if source == "prior":
        return {"instruction": prior_instruction(author)}
    if source == "noise":
        return {"instruction": degraded_instruction(author)}
    if not author.tasks:
        return {"instruction": fallback_instruction(author, author.asked.texts("examples"))}
    return {"instruction": joined(author.tasks, [wording_of(author, task.family) for task in author.tasks])}


def summarize_data(author: Author, source: Source) -> Values:
    """Answer `SummarizeData`: what the surface of the examples shows."""
    words, form = surface(author.asked.texts("examples"))
    about = f"The inputs are about things like {', '.join(words)}. " if words else ""
    return {"summary": f"{about}Every right output is {form}."}


def wording_of(author: Author, family: Family) -> str:
    """A precise instruction for a family's task."""
    return author.pick(f"instruction {family.name}", *instructions_of(family))


def prior_instruction(author: Author) -> str:
    """What optimizers like to say, whatever the task."""
    return author.choose("prior", prior_options())


def prior_options() -> dict[str, float]:
    """General advice and pairs of it, with weights."""
    pairs = [f"{one} {other}" for one, other in itertools.permutations(PRIOR_ADVICE, 2)]
    return {**dict.fromkeys(PRIOR_ADVICE, 20.0), **dict.fromkeys(pairs, 1.0)}


def degraded_instruction(author: Author) -> str:
    """A vague instruction, or that of a task that looks the same."""
    return author.choose("degraded", degraded_options(author)) if author.tasks else prior_instruction(author)


def degraded_options(author: Author) -> dict[str, float]:
    """Every degraded instruction for the author's task, with weights; general advice if there is none."""
    if not author.tasks:
        return prior_options()
    family = author.tasks[0].family
    wrong = [text for other in siblings(family) for text in other.instructions]
    vague = [framed(frame, VAGUE_BY_LOOK.get(family.look, "Answer the question.")) for frame in FRAMES]
    return dict.fromkeys([*wrong, *vague], 1.0)


def fallback_instruction(author: Author, examples: Sequence[str]) -> str:
    """Without a family: say honestly no more than what the surface of the examples shows."""
    return author.choose("fallback", fallback_options(examples))


def fallback_options(examples: Sequence[str]) -> dict[str, float]:
    """Every instruction that the surface of the examples allows, with weights."""
    words, form = surface(examples)
    about = f"The inputs are about things like {', '.join(words)}. " if words else ""
    ways = filled(phrases("fallback_instructions"), about=about, form=form)
    return dict.fromkeys((framed(frame, way).strip() for frame in FRAMES for way in ways), 1.0)


def surface(examples: Sequence[str]) -> tuple[list[str], str]:
    """The most frequent content words of the examples, and the form of their answers."""
    words = Counter(word for text in examples for _, value in entries_of(text) for word in set(tokens_of(value)))
    common = sorted((word for word in words if word.isalpha() and len(word) > 3), key=lambda w: (-words[w], w))
    answers = [entries[-1][1] for text in examples if (entries := entries_of(text))]
    if answers and all(re.fullmatch(r"-?\d+(?:\.\d+)?", answer) for answer in answers):
        return common[:3], "a single number"
    if answers and all(answer.lower() in ("true", "false", "yes", "no") for answer in answers):
        return common[:3], " or ".join(sorted(set(answers)))
    short = answers and all(len(answer.split()) <= 3 for answer in answers)
    return common[:3], "a few words" if short else "a short text"


def vary_instructions(author: Author, source: Source) -> Values:
    """Answer `VaryInstructions`."""
    instruction = author.asked.text("instruction").strip()
    parsed = parse_steps(instruction)
    text = parsed[0] if parsed else instruction
    if source == "prior":
        varied = prior_instruction(author)
    elif source == "noise":
        varied = degraded_instruction(author)
    else:
        varied = author.choose("vary", variations_of(author.families, text))
    # Steps and a demonstration stay word for word: only the sentence before them is said in other words.
    return {"variation": varied + instruction.removeprefix(text) if parsed and text else varied}


def variations_of(families: Sequence[Family], text: str) -> dict[str, float]:
    """Other wordings of an instruction that mean the same, with their weights."""
    if families:
        wordings = zip(*instructions_of(families[0]), strict=True)
        return {wording: weight for wording, weight in wordings if norm(wording) != norm(text)}
    options: dict[str, float] = {}
    for core, others in _replaceable(text):
        options |= {text.replace(core, other): 3.0 for other in others}
    for old, new in SYNONYMS:
        # Quoted words are names of fields and values: those must stay.
        if swapped := re.sub(rf"(?<![`\"'\w]){old}(?![`\"'\w])", new, text):
            options |= {framed(frame, swapped): 1.0 for frame in ("{}", *REWORDINGS)}
    options.pop(text, None)
    return options or dict.fromkeys(PRIOR_ADVICE, 1.0)


def _replaceable(text: str) -> Iterable[tuple[str, list[str]]]:
    """Parts of a longer instruction that say a family's task, with other wordings of it."""
    for family in FAMILIES.values():
        cores = (*family.instructions, *PHRASINGS.get(family.name, ()))
        for core in cores:
            if core in text:
                yield core, [other for other in cores if other != core]
