"""What the studies of reflection share: the errors a prompt made, false ones made of them, and what is said of them.

Source: ours.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.asking import Error, Evidence
from cuesmith.programs.diagnosis.validity import PERMUTATIONS, permutation_test
from cuesmith.programs.tasks import Task
from cuesmith.signatures import CriticizeInstruction
from cuesmith.teleprompters.runtime.evidence import render_fields, text_of
from cuesmith.teleprompters.runtime.outcomes import Scores, value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.statistics import Estimate95, t975
from cuesmith.teleprompters.search.deviations import read_failure
from cuesmith.teleprompters.search.reflecting import texts_of

__all__ = [
    "Alike", "Observed", "Shown", "alike", "batch_text", "exchanged", "jackknife", "observed", "one_task",
    "reasons", "round_robin", "swapped",
]  # fmt: skip

THRESHOLD = 1.0
"""A score below it is an error."""
_EXACT = 14
"""Pairs up to which all swaps are tried (2 ** 14)."""
_TOLERANCE = 1e-9
Floats = NDArray[np.float64]


# --- what was observed -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown(Error):
    """What a prompt led to on one example, right or wrong, so that it can be shown to an optimizer.

    Attributes:
        outputs: What was answered, field by field; empty if the reply could not be used.
    """

    outputs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

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
    outputs = {name: text_of(error.gold[name]) if name in error.gold else text for name, text in error.outputs.items()}
    return replace(error, gold=gold, response=render_fields(outputs), feedback="", outputs=outputs)


# --- what is said of it ------------------------------------------------------------------------------------


async def reasons(run: Run, shown: Sequence[Evidence], into: MutableSequence[str | None], *, order: Sequence[int],
                  salt: str = "diagnosis") -> None:
    """Ask for one reason an entry, everything at once, as `asking.ask_all_soon` does; keep each as it comes.

    Entries that show the same get different draws. A stop leaves what had come until then.

    Args:
        run: The run.
        shown: What to show.
        into: Gets the reason of each entry at the entry's place.
        order: The places, in the order in which to ask.
        salt: Separates draws of several calls.

    Raises:
        RunStopped: As `Run.ask`.
    """
    count: Counter[str] = Counter()
    draws = []
    for evidence in shown:
        draws.append(count[evidence.key])
        count[evidence.key] += 1

    async def one(place: int) -> None:
        request = shown[place].request()
        replies = await run.ask(CriticizeInstruction, request, salt=f"{salt}, draw {draws[place]}")
        into[place] = next((text for reply in replies for text in texts_of(reply.get("reasons"))), None)

    await asyncio.gather(*map(one, order))


# --- how alike it is ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Alike:
    """How alike the texts of two groups are, the first and the second.

    Attributes:
        likeness: Mean similarity across the groups over the geometric mean of those within each, as in
            `validity.PriorBias`: 1 if it makes no difference which group a text is of. With a jackknife interval.
        first: Mean similarity of two texts of the first group.
        second: Mean similarity of two texts of the second.
        across: Mean similarity of a text of the first and one of the second.
        p_value: One-sided permutation test of "more alike within than across".
        exact: Whether all permutations were tried.
    """

    likeness: Estimate95
    first: float
    second: float
    across: float
    p_value: float
    exact: bool


def alike(matrix: Floats, n: int, *, paired: bool = False, seed: int = 0) -> Alike | None:
    """Compare the first n texts with all others.

    Args:
        matrix: Similarities of all texts.
        n: How many belong to the first group.
        paired: Whether text k belongs together with text n + k: then the permutations swap the two of a pair, and the
            jackknife leaves out pairs; else they deal all texts anew, and it leaves out texts.
        seed: Seeds the permutations.

    Returns:
        None if a group has fewer than 3 texts.

    Raises:
        ValueError: If texts are paired and the groups differ in size.
    """
    total = len(matrix)
    if paired and total != 2 * n:
        raise ValueError(f"{n} of {total} texts cannot be paired with the others")
    if min(n, total - n) < 3:
        return None
    units = [(k, n + k) for k in range(n)] if paired else [(k,) for k in range(total)]
    groups = [n] if paired else [n, total - n]
    members = np.arange(total)
    left = [_likeness(matrix, np.delete(members, unit), n - sum(k < n for k in unit)) for unit in units]
    rng = np.random.default_rng(seed)
    p_value, exact = _swap_test(matrix, n, rng) if paired else permutation_test(matrix, (members >= n).astype(int), rng)
    first, second, across = _means(matrix, members, n)
    likeness = jackknife(_likeness(matrix, members, n), left, groups)
    return Alike(likeness, first, second, across, p_value, exact)


def jackknife(whole: float, left: Sequence[float], groups: Sequence[int]) -> Estimate95:
    """Return a statistic with its jackknife interval (Tukey 1958; several samples: Arvesen 1969).

    Args:
        whole: Of all units.
        left: Of all but one unit, the units of a sample one after the other.
        groups: Units of each independent sample, at least 2.

    Returns:
        The value itself, not corrected for bias, with t quantiles of the smallest sample's degrees of freedom.
    """
    variance, start = 0.0, 0
    for size in groups:
        part = np.asarray(left[start : start + size], dtype=np.float64)
        variance += (size - 1) / size * float(((part - part.mean()) ** 2).sum())
        start += size
    half = t975(min(groups) - 1) * math.sqrt(variance)
    return Estimate95(whole, whole - half, whole + half, len(left))


def _means(matrix: Floats, members: NDArray[np.intp], n: int) -> tuple[float, float, float]:
    """Mean similarities within the first n members, within the others, and across; no text is paired with itself."""
    parts = members[:n], members[n:]
    inside = []
    for part in parts:
        block = matrix[np.ix_(part, part)]
        inside.append(float(block.sum() - np.trace(block)) / (len(part) * (len(part) - 1)))
    return inside[0], inside[1], float(matrix[np.ix_(*parts)].mean())


def _likeness(matrix: Floats, members: NDArray[np.intp], n: int) -> float:
    first, second, across = _means(matrix, members, n)
    return across / math.sqrt(first * second) if min(first, second) > 0 else math.nan


def _swap_test(matrix: Floats, n: int, rng: np.random.Generator) -> tuple[float, bool]:
    """The permutation test of the sum of similarities within groups, where only the two of a pair change places."""
    between = matrix[:n, :n] + matrix[n:, n:] - matrix[:n, n:] - matrix[n:, :n]  # of pair and pair: as is, not crossed
    np.fill_diagonal(between := between.copy(), 0.0)
    if exact := n <= _EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        signs = rng.choice((1.0, -1.0), size=(PERMUTATIONS, n))
    sums = ((signs @ between) * signs).sum(axis=1)
    least = float(between.sum())
    extreme = int((sums >= least - _TOLERANCE * max(1.0, abs(least))).sum())
    return (extreme / len(signs), True) if exact else ((extreme + 1) / (len(signs) + 1), False)


def round_robin(parts: Sequence[int]) -> list[int]:
    """Return the places of parts that stand one after the other, first the first of each, then the second of each.

    Args:
        parts: How many places each part has.
    """
    starts = list(itertools.accumulate(parts, initial=0))
    return [start + k for k in range(max(parts, default=0))
            for start, size in zip(starts, parts, strict=False) if k < size]


def one_task(name: str, tasks: Sequence[Task], n: int, *, fewest: int, train: int) -> Task:
    """Return the task of a study that is about one.

    Args:
        name: Of the study.
        tasks: What was given.
        n: How large the study is to be.
        fewest: The smallest n.
        train: Training examples it needs at least.

    Raises:
        ValueError: If they do not fit the study.
    """
    if len(tasks) != 1:
        raise ValueError(f"study {name} is about one task, got {len(tasks)}")
    if n < fewest:
        raise ValueError(f"study {name} needs n of at least {fewest}, got {n}")
    if len(tasks[0].train) < train:
        raise ValueError(f"study {name} needs at least {train} training examples to find errors on, "
                         f"and {tasks[0].name} has {len(tasks[0].train)}")
    return tasks[0]


def batch_text(batch: Evidence) -> str:
    """Return the errors of a batch as the optimizer reads them, without the prompt."""
    return "\n".join(error.shown() for error in batch.errors)

