"""Writing steps, and the work of following them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cuesmith.modules.embedded.families import Family
from cuesmith.modules.simulated.author import Author, Source, Values
from cuesmith.modules.simulated.instruction_writing import (
    fallback_instruction,
    joined,
    prior_instruction,
    surface,
    wording_of,
)
from cuesmith.modules.simulated.task_inference import canonical, entries_of, questions_of, solutions_of, tokens_of
from cuesmith.modules.simulated.wordings import PRIOR_LAST, PRIOR_STEPS, VAGUE_STEPS, filled, phrases, step_variants

MAX_STEPS = 8
"""Steps that are written at most, if a request does not say."""


def write_steps(author: Author, source: Source) -> Values:
    """Answer `WriteSteps`."""
    if source == "prior" or (source == "noise" and not author.tasks):
        inner = author.pick("prior steps", list(itertools.permutations(PRIOR_STEPS, 3)))
        return {"task": prior_instruction(author), "steps": [*inner, author.pick("prior last", PRIOR_LAST)]}
    if not author.tasks:
        return _fallback_steps(author)
    most = int(str(author.asked.inputs.get("max_steps", MAX_STEPS)))
    own = [step for family in author.families for step in _own_steps(author, family)]
    steps = own if len(own) <= most else [*own[: most - 1], own[-1]]
    if source == "noise":
        steps = _degraded_steps(author, steps)
    task = joined(author.tasks, [wording_of(author, family) for family in author.families])
    return {"task": task, "steps": steps}


def _own_steps(author: Author, family: Family) -> list[str]:
    """The family's steps, in three of ten draws with one of them reworded."""
    steps = list(family.steps)
    rng = author.rng("reword", author.draw)
    if rng.random() < 0.3:
        k = rng.randrange(len(steps))
        steps[k] = rng.choice(step_variants(steps[k], k == len(steps) - 1))
    return steps


def _degraded_steps(author: Author, steps: list[str]) -> list[str]:
    """Drop a step or make one vague; never the last, if there is another."""
    rng = author.rng("degrade", author.draw)
    k = rng.randrange(max(1, len(steps) - 1))
    vague = rng.choice(VAGUE_STEPS)
    dropped = [*steps[:k], *steps[k + 1 :]]
    return dropped if dropped and rng.random() < 0.5 else [*steps[:k], vague, *steps[k + 1 :]]


def _fallback_steps(author: Author) -> Values:
    examples = author.asked.texts("examples")
    words, form = surface(examples)
    about = f" such as {', '.join(words)}" if words else ""
    first = author.pick("fallback steps", filled(phrases("fallback_steps"), about=about))
    steps = [first, "Write what follows from each of these, one at a time.", f"Give the final answer as {form}."]
    return {"task": fallback_instruction(author, examples), "steps": steps}


@dataclass(frozen=True, slots=True)
class Worked:
    """A step's correct work, and whether it is the last one, which gives the answer."""

    text: str
    last: bool


def work_of(author: Author, steps: Sequence[str]) -> list[Worked | None]:
    """The correct work of each of the given steps; None for a step that no recognised family has."""
    questions = questions_of(entries_of(author.asked.text("inputs")))
    solved = [(family, solutions_of(family, questions)) for family in author.families]
    work: list[Worked | None] = []
    for step in steps:
        places = ((solutions[0][1], canonical(family, step)) for family, solutions in solved if solutions)
        found = [Worked(solution.work[k], k == len(solution.work) - 1) for solution, k in places if k is not None]
        work.append(found[0] if found else None)
    return work


def work_example(author: Author, source: Source) -> Values:
    """Answer `WorkExample`."""
    steps = author.asked.texts("steps")
    gold = "; ".join(value for _, value in entries_of(author.asked.text("outputs")) if value)
    if not steps:
        return {"work": [{"step": "", "result": gold}]}
    worked = work_of(author, steps)
    if source == "prior":
        lines = [author.pick("prior work", ("Done carefully.", "I did this with care.", "OK.")) for _ in steps]
    else:
        lines = [_line(author, work) for work in worked]
    lines[-1] = _ending(worked[-1] if source != "prior" else None, gold)
    lines = _degraded_work(author, lines) if source == "noise" else lines
    return {"work": [{"step": step, "result": line} for step, line in zip(steps, lines, strict=False)]}


def _line(author: Author, work: Worked | None) -> str:
    """The work of a step; of one that asks for nothing checkable, that it was done."""
    return work.text if work else author.pick("unknown step", ("Done.", "Done, nothing to write.", "OK."))


def _ending(work: Worked | None, gold: str) -> str:
    """The last line, ending in the right answer as it was given."""
    if work is None or work.last or tokens_of(work.text) == tokens_of(gold):
        return gold
    return f"{work.text}, so {gold}"


def _degraded_work(author: Author, lines: list[str]) -> list[str]:
    """Leave a line out, or garble one; never the last, if there is another."""
    rng = author.rng("degrade", author.draw)
    k = rng.randrange(max(1, len(lines) - 1))
    if len(lines) > 1 and rng.random() < 0.5:
        return [*lines[:k], *lines[k + 1 :]]
    words = lines[k].split()
    garbled = words[: len(words) // 2] or ["unclear"]
    return [*lines[:k], " ".join(garbled), *lines[k + 1 :]]
