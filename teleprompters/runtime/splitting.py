"""Which examples serve for what: evidence, selection, report. Never two of them at once. Source: ours."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
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
    where nothing of the valset is new: the trainset is shared out 40 : 35 : 25. Duplicates are used once, but for
    those in a trainset beside a valset. Notes tell how many there are, and of how many questions the outputs
    contradict each other. One example must serve for evidence and selection alike.

    Args:
        trainset: At least one example.
        valset: More examples, or None.
        seed: Of the shuffle.
        n_select: Select has at most so many.
        n_fresh: Fresh has at most so many.
    """
    ids = ExampleIds()
    asked, checked = _by_question(trainset), _by_question(valset or ())
    # whatever the order given, the same one of those with other labels
    given, unique = ({key: min(alike, key=ids) for key, alike in each.items()} for each in (asked, checked))
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
    notes += _repeats(asked, checked, used=len(new) >= 2)
    if len(new) >= 2:
        new = _shuffled(new, seed, ids)
        k = min(n_select, (len(new) + 1) // 2)
        return Split(tuple(trainset), tuple(new[:k]), tuple(new[k : k + n_fresh]), tuple(notes), ids)
    pool = _shuffled(list(given.values()), seed, ids)
    if len(pool) == 1:
        one = tuple(new) or tuple(pool)
        few = "There is one training example only: it serves for evidence and for selection alike."
        notes.append(Note("examples", few if not new else "There is one validation example only."))
        return Split(tuple(pool), one, (), tuple(notes), ids)
    k = min(n_select, max(1, round(0.35 * len(pool))))
    f = min(n_fresh, round(0.25 * len(pool)))
    select, fresh, train = [*new, *pool[:k]][:n_select], pool[k : k + f], pool[k + f :]
    return Split(tuple(train), tuple(select), tuple(fresh), tuple(notes), ids)


_Groups = Mapping[str, Sequence[dspy.Example]]
"""Question -> the examples that ask it."""


def _by_question(examples: Sequence[dspy.Example]) -> _Groups:
    found: dict[str, list[dspy.Example]] = {}
    for example in examples:
        found.setdefault(question_key(example), []).append(example)
    return found


def _repeats(asked: _Groups, checked: _Groups, *, used: bool) -> list[Note]:
    """Return the notes on training examples that ask what another one asks, and on contradictions in both sets."""
    every = {key: [*asked.get(key, ()), *checked.get(key, ())] for key in (*asked, *checked)}
    several = {key: alike for key, alike in every.items() if len(alike) > 1}
    if not several:
        return []
    outputs, given = _outputs(asked, checked), sum(map(len, asked.values()))
    said = f"{given - len(asked)} of the {given} training examples ask what another one asks"
    copies = sum(len(asked[k]) - len({_answer(e, outputs) for e in asked[k]}) for k in several if k in asked)
    said += ("" if used else ", and are not used") + (f"; {copies} of them are copies, outputs included" * bool(copies))
    torn = {key: alike for key, alike in several.items() if len({_answer(e, outputs) for e in alike}) > 1}
    notes = [Note("examples", f"{said}.")] if given > len(asked) else []
    return [*notes, Note("examples", _contradicting(torn, len(every), outputs))] if torn else notes


def _contradicting(torn: _Groups, of: int, outputs: Sequence[str]) -> str:
    shown = sorted(torn[min(torn)], key=repr)
    apart = [f for f in outputs if len({_answer(e, [f]) for e in shown}) > 1]
    name = next((f for f in apart if isinstance(shown[0].get(f), str)), apart[0])
    told = list({_answer(e, [name]): _short(e, [name]) for e in shown}.values())
    one = f"{_short(shown[0], shown[0].inputs().keys())} with {told[0]} and with {told[1]}"
    return f"{len(torn)} of the {of} questions stand with contradicting outputs, as {one}; correct or leave out these."


def _outputs(*sets: _Groups) -> list[str]:
    """Return the fields that are no inputs; of several not those that number examples: in none has a value twice."""
    every = [[example for alike in each.values() for example in alike] for each in sets]
    fields: set[str] = set().union(*(example.labels().keys() for each in every for example in each))
    counted = [f for f in fields if len(fields) > 1 and any(_comes_again(f, each) for each in every)]
    return sorted(counted or fields)


def _comes_again(field: str, examples: Sequence[dspy.Example]) -> bool:
    seen: set[str] = set()
    for example in examples:
        answer = _answer(example, [field])
        if answer in seen:
            return True
        seen.add(answer)
    return False


def _answer(example: dspy.Example, outputs: Sequence[str]) -> str:
    """Return what makes two answers the same one, as `question_key` does for questions."""
    return question_key(example.with_inputs(*outputs))


def _short(example: dspy.Example, fields: Iterable[str]) -> str:
    texts = [(name, " ".join(str(example.get(name)).split())) for name in sorted(fields)[:3]]
    return ", ".join(f"{name}={text if len(text) <= 60 else f'{text[:57]}...'!r}" for name, text in texts)


def _shuffled(examples: Sequence[dspy.Example], seed: int, ids: ExampleIds) -> list[dspy.Example]:
    """Shuffle, whatever the given order was: two callers with the same examples get the same split."""
    ordered = sorted(examples, key=ids)
    number = int.from_bytes(hashlib.blake2b(f"split {seed}".encode(), digest_size=8).digest(), "big")
    random.Random(number).shuffle(ordered)
    return ordered
