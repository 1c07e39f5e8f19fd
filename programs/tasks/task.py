"""A task and how rows of data become one: splits by content, labels, and the exact-match metric.

Source: ours, except where a docstring says otherwise.
"""

from __future__ import annotations

import hashlib
import keyword
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import dspy

from cuesmith.teleprompters.runtime.metric import MetricFunction

ACCEPTED = "accepted"
"""The example's field with every accepted answer; it is neither an input nor a label of the signature."""

MINIMUM_ROWS = 12
"""Fewer different rows than this cannot be split into anything worth compiling on."""


class TaskError(ValueError):
    """Data that cannot become a task; the message is one line and names the place."""


@dataclass(frozen=True)
class Sizes:
    """How many examples each split holds; scaled down together where the data has fewer rows.

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
        """Return these sizes, or the same shares of `rows` where there are fewer rows than wanted."""
        if rows >= self.total:
            return self
        train = max(1, self.train * rows // self.total)
        validation = max(1, self.validation * rows // self.total)
        return Sizes(train, validation, rows - train - validation)


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
        return "\n".join(f"{name}={_plain(text)}" for name, text in self.inputs.items())


@dataclass(frozen=True)
class ExactMatch:
    """A metric: whether the normalised answer equals one of the accepted ones, itself normalised.

    Attributes:
        output: The output field that holds the answer.
    """

    output: str = "answer"

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        """Score one prediction.

        Args:
            example: Holds the accepted answers in `ACCEPTED`, or one in the output field.
            prediction: What the program returned.
            trace: Ignored; dspy passes it while bootstrapping.

        Raises:
            AttributeError: If the prediction or the example has no such field.
        """
        answer = normalise(getattr(prediction, self.output))
        accepted = example.get(ACCEPTED) or (getattr(example, self.output),)
        return any(answer == normalise(text) for text in accepted)


@dataclass(frozen=True)
class Task:
    """Examples in three disjoint splits, and how to score a program on them.

    Attributes:
        name: A short name that can stand in a file name.
        description: What is asked, in words for a reader; no model sees it.
        signature: The signature of the program to start from, such as "question -> answer".
        train: Examples a compiler may show to the optimizer and make demonstrations of.
        validation: Examples a compiler chooses candidates with.
        test: Held-out examples.
        metric: Scores a prediction.
    """

    name: str
    description: str
    signature: str
    train: tuple[dspy.Example, ...] = field(repr=False)
    validation: tuple[dspy.Example, ...] = field(repr=False)
    test: tuple[dspy.Example, ...] = field(repr=False)
    metric: MetricFunction = field(default_factory=ExactMatch)


def build(
    name: str,
    description: str,
    rows: Iterable[Row],
    *,
    output: str = "answer",
    sizes: Sizes | None = None,
    seed: int = 0,
) -> Task:
    """Make a task of rows.

    A row's place depends on its content and the seed alone: neither the order of the data nor the sizes of
    other splits' rows move it in the order. Rows of the same inputs are one row (the first stands).

    Args:
        name: A short name.
        description: What is asked, for a reader.
        rows: The data; all rows have the same input fields.
        output: The output field.
        sizes: Wanted sizes of the splits; scaled down together if there are fewer rows.
        seed: Chooses the splits.

    Raises:
        TaskError: If there are too few different rows, or a field name cannot be one.
    """
    distinct: dict[str, Row] = {}
    for row in rows:
        distinct.setdefault(row.content, row)
    if len(distinct) < MINIMUM_ROWS:
        raise TaskError(f"{name}: {len(distinct)} different rows, at least {MINIMUM_ROWS} are needed")
    order = sorted(distinct, key=lambda content: hashlib.sha256(f"{seed}:{content}".encode()).digest())
    chosen = [distinct[content] for content in order]
    size = (sizes or Sizes()).within(len(chosen))
    inputs = tuple(chosen[0].inputs)
    check_fields(name, inputs, output)
    examples = tuple(_example(row, output) for row in chosen[: size.total])
    middle = size.train + size.validation
    return Task(
        name=re.sub(r"[^\w.-]+", "-", name),
        description=description,
        signature=f"{', '.join(inputs)} -> {output}",
        train=examples[: size.train],
        validation=examples[size.train : middle],
        test=examples[middle:],
        metric=ExactMatch(output),
    )


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
        if not name.isidentifier() or keyword.iskeyword(name) or _taken(name):
            raise TaskError(f"{where}: column {name!r} cannot be the name of a field; rename it")
        if names.count(name) > 1:
            raise TaskError(f"{where}: column {name!r} is given twice")


def _taken(name: str) -> bool:
    """Whether dspy or this module gives the name another meaning."""
    taken = name in (ACCEPTED, "reasoning") or name.startswith("_")
    return taken or any(hasattr(kind, name) for kind in (dspy.Signature, dspy.Example, dspy.Prediction))


def normalise(value: object) -> str:
    """Return the text of an answer without what carries no meaning in it.

    Case, white space, quotes around it and punctuation after it go; an answer of nothing but those stays.
    """
    text = _plain(str(value))
    bare = text.strip("\"'`").rstrip(".,;:!?").strip("\"'` ")
    return bare or text


def preferred_first(accepted: Iterable[str]) -> tuple[str, ...]:
    """Return the accepted answers once each, one in digits first: ("three", "3") gives ("3", "three")."""
    texts = tuple(dict.fromkeys(accepted))
    return tuple(sorted(texts, key=lambda text: re.fullmatch(r"\s*-?\d+\s*", text) is None))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def _example(row: Row, output: str) -> dspy.Example:
    values: dict[str, object] = {**row.inputs, output: row.accepted[0], ACCEPTED: row.accepted}
    return dspy.Example(**values).with_inputs(*row.inputs)
