"""A task and how rows of data become one: splits by content, and labels.

Source: ours, except where a docstring says otherwise.
"""

from __future__ import annotations

import hashlib
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args, get_origin

import dspy

from cuesmith.programs.tasks.answers import plain
from cuesmith.programs.tasks.metrics import ACCEPTED, ExactMatch
from cuesmith.teleprompters.runtime.metric import MetricFunction

MINIMUM_ROWS = 12
"""Fewer different rows than this cannot be split into anything worth compiling on."""

FAIR = 10
"""Examples of train and of validation that small data gives each before test gets more than `LEAST`."""

LEAST = 5
"""Test examples that small data keeps."""


_OF_A_CALL = ("demos", "config", "lm")
"""What dspy takes out of the inputs of a call for itself."""


class TaskError(ValueError):
    """Data that cannot become a task; the message is one line and names the place."""


@dataclass(frozen=True)
class Sizes:
    """How many examples each split holds; where the data has fewer rows, `within` says what it gets.

    Attributes:
        train: Examples a compiler may show to the optimizer and make demonstrations of.
        validation: Examples a compiler chooses candidates with.
        test: Held-out examples that no compiler sees.
    """

    train: int = 40
    validation: int = 100
    test: int = 250

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            TaskError: If one is below 1.
        """
        for name in ("train", "validation", "test"):
            if getattr(self, name) < 1:
                raise TaskError(f"the {name} split needs at least 1 example, got {getattr(self, name)}")

    @property
    def total(self) -> int:
        """Examples of all three splits together."""
        return self.train + self.validation + self.test

    def within(self, rows: int) -> Sizes:
        """Return these sizes, or what fits into `rows` where there are fewer rows than wanted.

        Few rows are for train and validation first: each gets what it wants up to a third of the rows (below 30 rows up
        to 10 as long as 5 are left for test), and test gets the rest. So 30 rows are 10, 10, 10; 250 are 40, 83, 127.
        """
        if rows >= self.total:
            return self
        fair = max(1, rows // 3, min(FAIR, (rows - LEAST) // 2))
        train = min(self.train, max(fair, rows - self.validation - self.test))
        validation = min(self.validation, max(fair, rows - train - self.test))
        return Sizes(train, validation, rows - train - validation)

    def beside(self, held_out: int, rows: int) -> Sizes:
        """Return these sizes, or what fits where the data sets `held_out` rows apart for test.

        Train and validation share the other `rows`: half each where there are fewer than wanted.
        """
        train = min(self.train, max(rows // 2, rows - self.validation))
        return Sizes(train, min(self.validation, rows - train), min(self.test, held_out))


@dataclass(frozen=True)
class Row:
    """One row of data.

    Attributes:
        inputs: Input field -> its text.
        accepted: Every answer that counts as right, the preferred one first.
    """

    inputs: Mapping[str, str]
    accepted: tuple[str, ...]

    @property
    def content(self) -> str:
        """What makes two rows the same: the inputs, up to case and white space."""
        return "\n".join(f"{name}={plain(text)}" for name, text in self.inputs.items())


@dataclass(frozen=True)
class Task:
    """Examples in three disjoint splits, and how to score a program on them.

    Attributes:
        name: A short name that can stand in a file name.
        description: What is asked, in words for a reader; no model sees it.
        signature: The signature of the program to start from: such as "question -> answer", or a class where not all
            fields are text.
        train: Examples a compiler may show to the optimizer and make demonstrations of.
        validation: Examples a compiler chooses candidates with.
        test: Held-out examples.
        metric: Scores a prediction.
    """

    name: str
    description: str
    signature: str | type[dspy.Signature]
    train: tuple[dspy.Example, ...] = field(repr=False)
    validation: tuple[dspy.Example, ...] = field(repr=False)
    test: tuple[dspy.Example, ...] = field(repr=False)
    metric: MetricFunction = field(default_factory=ExactMatch)

    @property
    def fields(self) -> str:
        """The signature in one line, where a class tells its types: "text -> label: one of 3"."""
        if isinstance(self.signature, str):
            return self.signature
        sides = (self.signature.input_fields, self.signature.output_fields)
        return " -> ".join(", ".join(_described(n, info.annotation) for n, info in side.items()) for side in sides)


@dataclass(frozen=True)
class Item:
    """An example before it has a place in a split.

    Attributes:
        content: What makes two items the same; it and the seed alone decide the place.
        example: The example.
    """

    content: str
    example: dspy.Example


def _described(name: str, kind: object) -> str:
    if kind is str:
        return name
    if get_origin(kind) is Literal:
        return f"{name}: one of {len(get_args(kind))}"
    said = kind.__name__ if isinstance(kind, type) and not get_args(kind) else re.sub(r"\b(?:\w+\.)+", "", str(kind))
    return f"{name}: {said if len(said) <= 60 else f'{said[:57]}...'}"


def build(
    name: str,
    description: str,
    rows: Iterable[Row],
    *,
    output: str = "answer",
    sizes: Sizes | None = None,
    seed: int = 0,
) -> Task:
    """Make a task of rows whose fields are all text, scored by `ExactMatch`; see `assemble`.

    Args:
        name: A short name.
        description: What is asked, for a reader.
        rows: The data; all rows have the same input fields.
        output: The output field.
        sizes: Wanted sizes of the splits; see `Sizes.within` if there are fewer rows.
        seed: Chooses the splits.

    Raises:
        TaskError: If there are too few different rows, or a field name cannot be one.
    """
    given = list(rows)
    inputs = tuple(given[0].inputs) if given else ("question",)
    check_fields(name, inputs, output)
    items = [Item(row.content, _example(row, output)) for row in given]
    signature = f"{', '.join(inputs)} -> {output}"
    return assemble(name, description, signature, ExactMatch(output), items, sizes=sizes, seed=seed)


def assemble(
    name: str,
    description: str,
    signature: str | type[dspy.Signature],
    metric: MetricFunction,
    items: Sequence[Item],
    *,
    validation: Sequence[Item] = (),
    held_out: Sequence[Item] = (),
    sizes: Sizes | None = None,
    seed: int = 0,
) -> Task:
    """Make a task of examples.

    An example's place depends on its content and the seed alone: neither the order of the data nor the sizes of other
    splits' rows move it in the order. Items of the same content are one (the first stands).

    Args:
        name: A short name.
        description: What is asked, for a reader.
        signature: The signature of the program to start from.
        metric: Scores a prediction.
        items: The data, or its training part where `held_out` is given.
        validation: The part that the data sets apart for validation.
        held_out: The part that the data sets apart for test: test examples come from it alone, the others never.
        sizes: Wanted sizes of the splits; see `Sizes.within` and `Sizes.beside` if there are fewer rows.
        seed: Chooses the splits.

    Raises:
        TaskError: If there are too few different rows.
    """
    test = _ordered(held_out, seed)
    chosen = _ordered(validation, seed, without=test)
    rest = _ordered(items, seed, without=[*test, *chosen])
    known, wanted = len(rest) + len(chosen) + len(test), sizes or Sizes()
    if known < MINIMUM_ROWS:
        raise TaskError(f"{name}: {known} different rows, at least {MINIMUM_ROWS} are needed")
    train = rest
    if not test:
        size = wanted.within(len(rest))
        middle = size.train + size.validation
        train, chosen, test = rest[: size.train], rest[size.train : middle], rest[middle : size.total]
    elif len(rest) < (1 if chosen else 2):
        raise TaskError(f"{name}: {len(rest)} training rows that are not in the test part too, at least 2 are needed")
    elif not chosen:
        size = wanted.beside(len(test), len(rest))
        train, chosen = rest[: size.train], rest[size.train :]
    return Task(
        re.sub(r"[^\w.-]+", "-", name),
        description,
        signature,
        _examples(train[: wanted.train]),
        _examples(chosen[: wanted.validation]),
        _examples(test[: wanted.test]),
        metric,
    )


def _examples(items: Sequence[Item]) -> tuple[dspy.Example, ...]:
    return tuple(item.example for item in items)


def _ordered(items: Iterable[Item], seed: int, without: Iterable[Item] = ()) -> list[Item]:
    """Return the different items in the order that their content and the seed give, without those of other parts."""
    apart = {item.content for item in without}
    distinct: dict[str, Item] = {}
    for item in items:
        if item.content not in apart:
            distinct.setdefault(item.content, item)

    def place(item: Item) -> bytes:
        return hashlib.sha256(f"{seed}:{item.content}".encode("utf-8", "surrogatepass")).digest()

    return sorted(distinct.values(), key=place)


def different(drawn: Iterable[Row | None], count: int, shortage: str) -> Iterator[Row]:
    """Yield the first rows of different content.

    Args:
        drawn: Rows; None stands for one that came to nothing.
        count: How many.
        shortage: What to say if there are fewer.

    Raises:
        TaskError: If there are fewer.
    """
    seen: set[str] = set()
    for row in drawn:
        if row is None or row.content in seen:
            continue
        seen.add(row.content)
        yield row
        if len(seen) == count:
            return
    raise TaskError(shortage)


def check_fields(where: str, inputs: Sequence[str], output: str) -> None:
    """Check names that are to become fields of a signature.

    Args:
        where: What to name in the message.
        inputs: Input columns.
        output: Output column.

    Raises:
        TaskError: If there is no input, or a name is taken, repeated, or not a Python name.
    """
    if not inputs:
        raise TaskError(f"{where}: no input column is given")
    names = [*inputs, output]
    for name in names:
        if not is_field(name):
            raise TaskError(f"{where}: column {name!r} cannot be the name of a field; rename it")
        if names.count(name) > 1:
            raise TaskError(f"{where}: column {name!r} is given twice")


def is_field(name: str) -> bool:
    """Return whether a name can be that of a field."""
    return name.isidentifier() and not keyword.iskeyword(name) and not is_taken(name)


def is_taken(name: str) -> bool:
    """Return whether dspy or this package gives the name of a field another meaning."""
    taken = name in (ACCEPTED, "reasoning", *_OF_A_CALL) or name.startswith("_")
    return taken or any(hasattr(kind, name) for kind in (dspy.Signature, dspy.Example, dspy.Prediction))


def preferred_first(accepted: Iterable[str]) -> tuple[str, ...]:
    """Return the accepted answers once each, one in digits first: ("three", "3") gives ("3", "three")."""
    texts = tuple(dict.fromkeys(accepted))
    return tuple(sorted(texts, key=lambda text: re.fullmatch(r"\s*-?\d+\s*", text) is None))


def _example(row: Row, output: str) -> dspy.Example:
    values: dict[str, object] = {**row.inputs, output: row.accepted[0], ACCEPTED: row.accepted}
    return dspy.Example(**values).with_inputs(*row.inputs)
