"""What the studies of reflection share: the errors a prompt made, and false ones made of them.

Source: ours.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from cuesmith.programs.diagnosis.asking import Error, Evidence
from cuesmith.teleprompters.runtime.evidence import render_fields
from cuesmith.teleprompters.runtime.outcomes import Scores, value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.examples import read_failure

THRESHOLD = 1.0
"""A score below it is an error."""


# --- what was observed -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown(Error):
    """What a prompt led to on one example, right or wrong, so that it can be shown to an optimizer.

    Attributes:
        outputs: What was answered, field by field; empty if the reply could not be used.
    """

    outputs: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def answered(self) -> str:
        """What was answered in the fields that have a right output; "" if the reply could not be used."""
        return render_fields({name: self.outputs[name] for name in self.gold if name in self.outputs})


@dataclass(frozen=True)
class Observed:
    """What a prompt was observed to do.

    Attributes:
        name: The predictor that it is for: the program's last one.
        instructions: The prompt.
        errors: Examples that it failed on.
        rights: Examples that it did not fail on.
        n: Examples that it was run on; those without a score are neither an error nor right.
    """

    name: str
    instructions: str
    errors: tuple[Shown, ...]
    rights: tuple[Shown, ...]
    n: int


def observed(run: Run, scores: Scores) -> Observed:
    """Read what became of a candidate's runs, as `diagnosis.live` reads it from a record.

    Args:
        run: Knows the program's predictors.
        scores: What became of them.
    """
    names = tuple(run.predictors)
    name = names[-1]
    signature = run.predictors[name].signature
    kinds: tuple[list[Shown], list[Shown]] = ([], [])
    for example, outcome in zip(scores.examples, scores.outcomes, strict=True):
        score = value(outcome)
        read = None if score is None else read_failure(example, outcome, name, names, signature)
        if score is None or read is None:
            continue
        calls = [step for step in getattr(outcome, "trace", ()) if step.predictor == name]
        outputs = dict(calls[-1].outputs) if calls and read.parsed else {}
        kinds[score >= THRESHOLD].append(Shown(read.inputs, read.response, read.expected, read.feedback, outputs))
    prompt = scores.candidate.prompts[name].instructions
    return Observed(name, prompt, tuple(kinds[0]), tuple(kinds[1]), len(scores.outcomes))


def swapped(pool: Sequence[Shown], rng: random.Random) -> list[Shown]:
    """Make false errors as `planted.shuffled` does, also of wrong answers: each expects another example's outputs.

    Those are neither its own nor what was answered, so that each is still a failure. The metric's words go: they would
    tell. An example for which there are no such outputs is left out.

    Args:
        pool: Examples, all answered rightly or all wrongly.
        rng: Chooses the outputs.
    """
    false = []
    for one in pool:
        others = [other.gold for other in pool if other.answer not in (one.answer, one.answered)]
        if others:
            false.append(replace(one, gold=rng.choice(others), feedback=""))
    return false


def exchanged(error: Shown) -> Shown | None:
    """Let the expected and the given answer of an error change places: other evidence in the very same words.

    Returns:
        None if the answer could not be read, or is the expected one.
    """
    if set(error.outputs).isdisjoint(error.gold) or error.answered == error.answer:
        return None
    gold = {name: error.outputs.get(name, "") for name in error.gold}
    outputs = {name: error.gold.get(name, value) for name, value in error.outputs.items()}
    return replace(error, gold=gold, response=render_fields(outputs), feedback="", outputs=outputs)


def round_robin(parts: Sequence[int]) -> list[int]:
    """Return the places of parts that stand one after the other, first the first of each, then the second of each.

    Args:
        parts: How many places each part has.
    """
    starts = list(itertools.accumulate(parts, initial=0))
    return [
        start + k for k in range(max(parts, default=0)) for start, size in zip(starts, parts, strict=False) if k < size
    ]


def batch_text(batch: Evidence) -> str:
    """Return the errors of a batch as the optimizer reads them, without the prompt."""
    return "\n".join(error.shown() for error in batch.errors)
