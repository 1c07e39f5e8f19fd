"""Which examples serve for what: evidence, selection, report. Never two of them at once. Source: ours."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import dspy

from cuesmith.teleprompters.runtime.candidate import ExampleIds, question_key
from cuesmith.teleprompters.runtime.compilation import Note


@dataclass(frozen=True)
class Split:
    """Three disjoint sets of examples.

    Attributes:
        train: For evidence and demonstrations.
        select: For comparing candidates.
        fresh: For the report; no decision sees them.
        notes: What a reader should know of the split.
        ids: Knows the examples' content hashes.
    """

    train: tuple[dspy.Example, ...] = field(repr=False)
    select: tuple[dspy.Example, ...] = field(repr=False)
    fresh: tuple[dspy.Example, ...] = field(repr=False)
    notes: tuple[Note, ...] = ()
    ids: ExampleIds = field(default_factory=ExampleIds, repr=False, compare=False)


def split_examples(
    trainset: Sequence[dspy.Example], valset: Sequence[dspy.Example] | None, *, seed: int, n_select: int, n_fresh: int
) -> Split:
    """Split examples; no two sets share a question (`question_key`), whatever the case, white space and labels.

    With a valset: train is the trainset, and the valset is shared out between select and fresh. Without, or
    where nothing of the valset is new: the trainset is shared out 40 : 35 : 25. Duplicates are used once. One
    example must serve for evidence and selection alike.

    Args:
        trainset: At least one example.
        valset: More examples, or None.
        seed: Of the shuffle.
        n_select: Select has at most so many.
        n_fresh: Fresh has at most so many.
    """
    ids = ExampleIds()
    given, unique = _by_question(trainset, ids), _by_question(valset or (), ids)
    new = [example for key, example in unique.items() if key not in given]
    notes = []
    if valset and len(new) < len(valset):
        notes.append(
            Note(
                "examples",
                f"{len(valset) - len(new)} of the {len(valset)} validation examples are duplicates or stand in "
                "the training set too, and are not used for validation.",
            )
        )
    if len(new) >= 2:
        new = _shuffled(new, seed, ids)
        k = min(n_select, (len(new) + 1) // 2)
        return Split(tuple(trainset), tuple(new[:k]), tuple(new[k : k + n_fresh]), tuple(notes), ids)
    pool = _shuffled(list(given.values()), seed, ids)
    alike = len({ids(e) for e in trainset}) - len(pool)
    if alike:
        said = f"{alike} of the {len(trainset)} training examples ask what another one asks, and are not used."
        notes.append(Note("examples", said))
    if len(pool) == 1:
        one = tuple(new) or tuple(pool)
        few = "There is one training example only: it serves for evidence and for selection alike."
        notes.append(Note("examples", few if not new else "There is one validation example only."))
        return Split(tuple(pool), one, (), tuple(notes), ids)
    k = min(n_select, max(1, round(0.35 * len(pool))))
    f = min(n_fresh, round(0.25 * len(pool)))
    select, fresh, train = [*new, *pool[:k]][:n_select], pool[k : k + f], pool[k + f :]
    return Split(tuple(train), tuple(select), tuple(fresh), tuple(notes), ids)


def _by_question(examples: Sequence[dspy.Example], ids: ExampleIds) -> dict[str, dspy.Example]:
    """Return one example for each question: whatever the order given, the same one of those with other labels."""
    found: dict[str, dspy.Example] = {}
    for example in examples:
        key = question_key(example)
        if key not in found or ids(example) < ids(found[key]):
            found[key] = example
    return found


def _shuffled(examples: Sequence[dspy.Example], seed: int, ids: ExampleIds) -> list[dspy.Example]:
    """Shuffle, whatever the given order was: two callers with the same examples get the same split."""
    ordered = sorted(examples, key=ids)
    number = int.from_bytes(hashlib.blake2b(f"split {seed}".encode(), digest_size=8).digest(), "big")
    random.Random(number).shuffle(ordered)
    return ordered
