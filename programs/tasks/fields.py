"""From columns to fields: what each becomes in a signature, and every row's values in that form.

What a column becomes is decided by all rows together, so that it depends neither on their order nor on the split.
Inputs are text, conversations (`dspy.History`) or typed data. An answer is

- text, with one right answer or several accepted ones: a list under a usual name of answers, or under any name where
  the metric judges text;
- one of its classes (`Literal`), where `kinds.classes` finds them and they are no options, no numbers (but few, under a
  usual name of classes) and are not copied from the inputs;
- a list, a record (a pydantic model) or several fields, which get the types of their values.

Source: ours.
"""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from zlib import crc32

import dspy

from cuesmith.programs.tasks.answers import MARK, boxed, is_number, json_in, normalise, options_in, plain, words
from cuesmith.programs.tasks.columns import (
    ANSWERS,
    BESIDE,
    OF_A_QUESTION,
    OPTIONS,
    Columns,
    base_name,
    is_class,
    is_wrong,
    plain_name,
    value_at,
)
from cuesmith.programs.tasks.conversations import conversation, is_conversation
from cuesmith.programs.tasks.kinds import Kind, classes, literal, typed
from cuesmith.programs.tasks.metrics import ACCEPTED
from cuesmith.programs.tasks.reading import Record
from cuesmith.programs.tasks.task import Item, TaskError, is_taken, preferred_first

SOLUTION = "solution"
"""The example's field with the text that a final answer was taken of; it is neither an input nor a label."""

OF_TEXT = ("exact", "choice", "number", "near", "f1")
"""Names of the metrics that judge a text."""

_LISTED = 0.95
"""Share of the rows whose answer is an option that the inputs list, from which on a task is one of choice. Ours."""

_COPIED = 0.9
"""Share of the rows whose inputs have the answer in them, from which on answers are copied and no classes. Ours."""

_FREE = ("summary", "highlights", "translation", "response", "completion")
"""Names of answers in free words."""

_SHORT = 4
"""Words of the median answer above which sentences and what is in free words differ from one to the next. Ours."""

_LONG = 20
"""Words of the median answer above which no answer can be expected to equal it. Ours."""

_NUMBERED = 20
"""Classes at most that go by numbers. Ours."""

_LAST = ".answer"
"""The path of what conversations end in, where no column is the output."""

Values = dict[str, object]
"""Field -> value, of one row."""


@dataclass(frozen=True)
class TypedDataset:
    """What the data of a task is in fields.

    Attributes:
        inputs: Input field -> its type.
        outputs: Output field -> its type.
        rows: Each row's values; those of no field of the signature are notes for the metric and for readers.
        metric: Name of the metric that suits the answers.
    """

    inputs: Mapping[str, Kind]
    outputs: Mapping[str, Kind]
    rows: Sequence[Values]
    metric: str

    @property
    def signature(self) -> str | type[dspy.Signature]:
        """The signature; a string where all fields are text."""
        if all(kind is str for kind in (*self.inputs.values(), *self.outputs.values())):
            return f"{', '.join(self.inputs)} -> {', '.join(self.outputs)}"
        asked = {name: (kind, dspy.InputField()) for name, kind in self.inputs.items()}
        answered = {name: (kind, dspy.OutputField()) for name, kind in self.outputs.items()}
        made: type[dspy.Signature] = dspy.make_signature({**asked, **answered})
        return made

    @property
    def items(self) -> list[Item]:
        """The rows as examples; rows of the same inputs are the same, up to case and white space."""
        contents = ["\n".join(f"{n}={plain(_written(row[n]))}" for n in self.inputs) for row in self.rows]
        examples = [dspy.Example(**row).with_inputs(*self.inputs) for row in self.rows]
        return [Item(content, example) for content, example in zip(contents, examples, strict=True)]


@dataclass(frozen=True)
class _Column:
    """A field's type, and its value in each row."""

    kind: Kind
    values: Sequence[object]


_Columns = dict[str, _Column]


def formed(
    where: str, records: Sequence[Record], columns: Columns, metric: str | None, *, with_classes: bool = True
) -> TypedDataset:
    """Return the data of a task in fields.

    Args:
        where: For messages.
        records: The data.
        columns: What is asked and what is answered.
        metric: Name of the wanted metric; None if the answers are to choose it, or if it is the user's own.
        with_classes: Whether a text may become one of its classes.

    Raises:
        TaskError: If a row does not fit, or the answers do not fit the metric.
    """
    names = _names(columns)
    inputs, last = _inputs(records, columns, names)
    if len(columns.outputs) > 1:
        if metric not in (None, "json_fields"):
            raise TaskError(f"{where}: metric {metric!r} judges one output, there are {len(columns.outputs)}")
        return _dataset(inputs, _outputs(records, columns, names), {}, "json_fields")
    path = columns.outputs[0] if columns.outputs else _LAST
    gold = _parsed([_gold(record, path) for record in records] if columns.outputs else last)
    if _is_text(path, gold, metric):
        accepted: Sequence[tuple[str, ...]] = [
            texts_at(r.where, {path: value}, path) for r, value in zip(records, gold, strict=True)
        ]
        if metric in (None, "choice", "exact"):
            accepted = _lettered(inputs, records, columns, names, accepted)
        return _of_text(inputs, names[path], path, accepted, with_classes and metric in (None, "exact", "json_fields"))
    column = _Column(*typed(names[path], gold))
    suits = "json_fields" if any(isinstance(value, Mapping) for value in gold) else "set_f1"
    if suits == "set_f1" and any(_tagged(each.values, column.values) for each in inputs.values()):
        suits = "in_order"
    return _dataset(inputs, {names[path]: column}, {}, "exact" if column.kind is bool else suits)


def _tagged(asked: Sequence[object], answers: Sequence[object]) -> bool:
    """Whether each answer has as many members as what is asked, as tags of words do."""
    pairs = list(zip(asked, answers, strict=True))
    return all(isinstance(a, list) and isinstance(b, list) and len(a) == len(b) for a, b in pairs)


def _dataset(inputs: _Columns, outputs: _Columns, notes: Mapping[str, Sequence[object]], metric: str) -> TypedDataset:
    columns = {name: column.values for name, column in {**inputs, **outputs}.items()} | dict(notes)
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    kinds = [{name: column.kind for name, column in fields.items()} for fields in (inputs, outputs)]
    told = [{name: v for name, v in row.items() if v is not None or name in inputs} for row in rows]
    return TypedDataset(kinds[0], kinds[1], told, metric)


def _names(columns: Columns) -> dict[str, str]:
    """Return path -> the name of a field: as told, else the column's own, as far as Python and dspy take it."""
    found = dict(columns.names)
    for path in (*columns.inputs, *(columns.outputs or (_LAST,))):
        if path in found:
            continue
        name = _name(path.rpartition(".")[2])
        name = _name(path) if name in found.values() else name
        while name in found.values():
            name += "_"
        found[path] = name
    return found


def _name(text: str) -> str:
    name = re.sub(r"\W+", "_", text).strip("_") or "field"
    name = f"column_{name}" if not name.isidentifier() else name
    return f"{name}_" if keyword.iskeyword(name) or is_taken(name) or name == SOLUTION else name


def _written(value: object) -> str:
    if isinstance(value, str):
        return value
    data = value.messages if isinstance(value, dspy.History) else value
    return json.dumps(data, ensure_ascii=False, sort_keys=True, default=str)


# --- what is asked ------------------------------------------------------------------------------------------


def _inputs(records: Sequence[Record], columns: Columns, names: Mapping[str, str]) -> tuple[_Columns, list[object]]:
    """Return the input fields, and the answers that conversations end in where they are the outputs."""
    found: _Columns = {}
    answers: list[object] = []
    for path in columns.inputs:
        values = [value_at(record.values, path) for record in records]
        if any(is_conversation(value) for value in values):
            talks, answers = _conversations(records, path, values, names, columns)
            found |= talks
        elif any(isinstance(value, list | Mapping) for value in values):
            found[names[path]] = _Column(*typed(names[path], values, with_classes=False))
        else:
            usual = _may_be_empty(path, columns)
            found[names[path]] = _Column(str, [text_at(r.where, r.values, path, may_be_empty=usual) for r in records])
    return found, answers


def text_at(where: str, values: Mapping[str, object], path: str, *, may_be_empty: bool = False) -> str:
    """Return the text that a row has at a path; a number's or a truth value's text, too.

    Raises:
        TaskError: If there is none.
    """
    value = value_at(values, path)
    if value is not None and not isinstance(value, str | int | float | bool):
        raise TaskError(f"{where}: {path!r} must be a text or a number, got {type(value).__name__}")
    whole = isinstance(value, float) and value.is_integer()
    text = "" if value is None else str(int(value) if whole else value)
    if not text.strip() and not may_be_empty:
        problem = "missing" if value is None else "empty"
        raise TaskError(f"{where}: {path!r} is {problem}; fill it in, or leave the row out")
    return text


def _conversations(
    records: Sequence[Record], path: str, values: Sequence[object], names: Mapping[str, str], columns: Columns
) -> tuple[_Columns, list[object]]:
    """Return the fields of conversations: the last question, the system's text and the turns before, if any.

    A conversation that ends in an answer, although another column is the output, is one text.
    """
    talks = [conversation(f"{r.where}: {path!r}", value) for r, value in zip(records, values, strict=True)]
    if columns.outputs and any(talk.answer is not None for talk in talks):
        return {names[path]: _Column(str, [talk.transcript for talk in talks])}, []
    own = path in columns.names or plain_name(path) in ("input", "inputs", "prompt", "query")
    own = own or "question" in names.values()
    question = names[path] if own else "question"
    answer = names[columns.outputs[0] if columns.outputs else _LAST]
    found: _Columns = {}
    if any(talk.system for talk in talks):
        found["system"] = _Column(str, [talk.system for talk in talks])
    if any(talk.turns for talk in talks):
        histories = [dspy.History(messages=[{question: q, answer: a} for q, a in talk.turns]) for talk in talks]
        found["history"] = _Column(dspy.History, histories)
    found[question] = _Column(str, [talk.question for talk in talks])
    return found, [talk.answer for talk in talks]


# --- what is to be answered ---------------------------------------------------------------------------------


def _outputs(records: Sequence[Record], columns: Columns, names: Mapping[str, str]) -> _Columns:
    """Return several output fields; a row may lack some of them, but not all."""
    found = {path: _parsed([_label(record, path) for record in records]) for path in columns.outputs}
    for record, cells in zip(records, zip(*found.values(), strict=True), strict=True):
        if all(cell is None for cell in cells):
            raise TaskError(f"{record.where}: {', '.join(map(repr, columns.outputs))} are all missing or empty")
    return {names[path]: _Column(*typed(names[path], values)) for path, values in found.items()}


def _label(record: Record, path: str) -> object:
    value = value_at(record.values, path)
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, str) and (value.strip() in ("", "NaN") or (value == "-" and is_class(path))):
        return None
    return value


def lacking(record: Record, columns: Columns) -> str:
    """Return the name of a column that a row cannot do without and has nothing in; empty if there is none."""
    for path in columns.inputs:
        if _label(record, path) in (None, [], {}) and not _may_be_empty(path, columns):
            return path
    held = {path: _label(record, path) for path in columns.outputs}
    if held and all(v is None or ([] in (v, _accepted(v)) and plain_name(p) in ANSWERS) for p, v in held.items()):
        return ", ".join(held)
    return ""


def _may_be_empty(path: str, columns: Columns) -> bool:
    usual = plain_name(path) in (*BESIDE, *OF_A_QUESTION) or base_name(path) in BESIDE
    return usual and len(columns.inputs) > 1


def _gold(record: Record, path: str) -> object:
    value = _label(record, path)
    return text_at(record.where, record.values, path) if value is None else value


def _parsed(values: Sequence[object]) -> list[object]:
    """Return the values, with JSON text and the usual records of accepted answers read if all of them are that."""
    found = [json_in(value) if isinstance(value, str) else value for value in values]
    if any(isinstance(value, str) for value in found):
        found = list(values)
    if all(isinstance(value, list) and len(value) == 1 and not isinstance(value[0], list | Mapping) for value in found):
        return [value[0] for value in found if isinstance(value, list)]
    accepted = [_accepted(value) for value in found if value is not None]
    if accepted and all(each is not None for each in accepted):
        return [_accepted(value) for value in found]
    return found


def _accepted(value: object) -> list[object] | None:
    """Return the accepted answers in a record of SQuAD ("text", "answer_start") or TriviaQA ("value", "aliases")."""
    if isinstance(value, list):
        marked = [each for each in value if isinstance(each, Mapping) and {"text", "answer_start"} <= {*each}]
        return [each["text"] for each in marked] if marked and len(marked) == len(value) else None
    if not isinstance(value, Mapping):
        return None
    if isinstance(spans := value.get("spans"), list) and {"number", "types"} & {*value}:  # DROP
        date = " ".join(filter(None, (value.get("date") or {}).values()))
        return spans or [text for text in (value.get("number"), date) if text] or None
    texts, aliases = value.get("text"), value.get("aliases")
    if isinstance(texts, list) and "answer_start" in value:
        return texts
    return [value["value"], *aliases] if isinstance(aliases, list) and "value" in value else None


def _is_text(path: str, gold: Sequence[object], metric: str | None) -> bool:
    if all(isinstance(value, bool) for value in gold):
        return metric in ("choice", "number", "f1", "set_f1")
    if metric in OF_TEXT or not any(isinstance(value, list | Mapping) for value in gold):
        return True
    members = [m for value in gold for m in (value if isinstance(value, list) else [value])]
    scalar = not any(isinstance(member, list | Mapping) for member in members)
    return metric is None and plain_name(path) in ANSWERS and scalar


def texts_at(where: str, values: Mapping[str, object], path: str) -> tuple[str, ...]:
    """Return the accepted answers that a row has at a path, the preferred one first.

    Raises:
        TaskError: If there is none, or one is no text.
    """
    value = value_at(values, path)
    if isinstance(value, list) and not value:
        raise TaskError(f"{where}: {path!r} has no accepted answer")
    listed = value if isinstance(value, list) else [value]
    return preferred_first(text_at(where, {path: each}, path) for each in listed)


def _of_text(
    inputs: _Columns, name: str, path: str, accepted: Sequence[tuple[str, ...]], with_classes: bool
) -> TypedDataset:
    notes: dict[str, Sequence[object]] = {}
    if all(MARK in each[0] for each in accepted):  # GSM8K
        notes[SOLUTION] = [each[0] for each in accepted]
        accepted = [(each[0].rpartition(MARK)[2].strip() or each[0],) for each in accepted]
    elif plain_name(path).startswith(SOLUTION) and all(boxed(each[0]) for each in accepted):  # MATH
        notes[SOLUTION] = [each[0] for each in accepted]
        name = "answer" if name.startswith(SOLUTION) and "answer" not in inputs else name
        accepted = [(boxed(each[0]) or each[0],) for each in accepted]
    asked = ["\n".join(cells) for cells in zip(*(c.values for c in inputs.values() if c.kind is str), strict=True)]
    suits, kind = _suiting(plain_name(path), asked, accepted), str
    texts = [each[0].strip() for each in accepted]
    by_number = suits == "number" and (is_class(path) or _are_classes(path, texts))
    if by_number:
        texts = [re.sub(r"(?<=\d)\.0+$", "", text) for text in texts]
    known = classes(texts) if with_classes and (suits == "exact" or by_number) else None
    fits = known is not None and all(len(each) == 1 for each in accepted) and not _copied(asked, texts)
    if known and fits and not (by_number and len(known) > _NUMBERED):
        kind, suits, accepted = literal(known), "exact", [(text,) for text in texts]
    elif suits == "number" and plain_name(path) not in ANSWERS and _are_scores(texts):
        suits = "near"
    column = _Column(kind, [each[0] for each in accepted])
    return _dataset(inputs, {name: column}, {ACCEPTED: accepted, **notes}, suits)


def _suiting(name: str, asked: Sequence[str], accepted: Sequence[tuple[str, ...]]) -> str:
    """Return the name of the metric that suits answers in text."""
    options = [options_in(text) for text in asked]
    if options and sum(map(bool, options)) >= _LISTED * len(options):
        picked = [o is not None and o.picked(each[0]) is not None for o, each in zip(options, accepted, strict=True)]
        if sum(picked) >= _LISTED * len(picked):
            return "choice"
    if all(any(is_number(text) for text in each) for each in accepted):
        return "number"
    return "f1" if _is_prose(name, asked, [each[0] for each in accepted]) else "exact"


def _is_prose(name: str, asked: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether no answer can be expected to equal these: they are long, or sentences in words of their own."""
    length = median(len(text.split()) for text in texts)
    if length > (_SHORT if name in _FREE else _LONG):
        return True
    sentences = sum(text.rstrip()[-1:] in (".", "!", "?") for text in texts)
    if length <= _SHORT or sentences * 2 < len(texts):
        return False
    shares = []
    for question, text in zip(asked, texts, strict=True):
        said, there = words(text), {*words(question)}
        shares.append(sum(word in there for word in said) / max(len(said), 1))
    return median(shares) < 1 / 2


def _are_classes(path: str, numbers: Sequence[str]) -> bool:
    """Whether numbers are classes: 0 and 1, or, in a column without a name, all from 0 or 1 to a few."""
    known = {*numbers}
    places = [{str(first + k) for k in range(len(known))} for first in (0, 1)]
    return known == {"0", "1"} or (path.startswith("column_") and len(known) <= _NUMBERED and known in places)


def _are_scores(numbers: Sequence[str]) -> bool:
    """Whether half of the numbers are no whole ones, as means of ratings are; to guess them exactly is luck."""
    return sum(bool(re.search(r"[.]0*[1-9]", text)) for text in numbers) * 2 >= len(numbers)


def _copied(asked: Sequence[str], texts: Sequence[str]) -> bool:
    held = [plain(text) in plain(question) for question, text in zip(asked, texts, strict=False)]
    return sum(held) >= _COPIED * len(texts)


# --- options in columns of their own ------------------------------------------------------------------------

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_Pairs = list[tuple[str, str]]
"""The label and the text of each option."""


def _lettered(
    inputs: _Columns,
    records: Sequence[Record],
    columns: Columns,
    names: Mapping[str, str],
    accepted: Sequence[tuple[str, ...]],
) -> Sequence[tuple[str, ...]]:
    """Give options that stand in columns of their own letters, in `inputs`, and return the answers as letters.

    The answers may be labels, texts, letters or places of options. Where they are none of that, all stays as it is.
    """
    column = next((path for path in columns.inputs if plain_name(path) in OPTIONS), None)
    if column is not None:
        found = [_options(value_at(record.values, column)) for record in records]
    else:
        found = [[(path, str(value_at(r.values, path))) for path in columns.options] for r in records]
        found = [[(plain_name(path).rpartition("_")[2][-1:], text) for path, text in pairs] for pairs in found]
        if columns.options and all(map(is_wrong, columns.options)):
            right = [each[0] for each in accepted]
            found = [_mixed([text, *(t for _, t in pairs)]) for text, pairs in zip(right, found, strict=True)]
    places = _places([each[0].strip() for each in accepted], found)
    if places is None:
        return accepted
    for path in columns.options if column is None else ():
        del inputs[names[path]]
    lines = ["\n".join(f"({letter}) {text}" for letter, (_, text) in zip(_LETTERS, o, strict=False)) for o in found]
    inputs["options" if column is None else names[column]] = _Column(str, lines)
    told = [each if place is None else (f"({_LETTERS[place]})",) for place, each in zip(places, accepted, strict=True)]
    return told


def _mixed(texts: Sequence[str]) -> _Pairs:
    """Return options in an order that says nothing of which is right."""
    return [("", text) for text in sorted({text.strip() for text in texts}, key=lambda text: crc32(text.encode()))]


def _options(value: object) -> _Pairs:
    """Return the options that a value lists; none if it lists something else."""
    data = json_in(value) if isinstance(value, str) else value
    pairs: list[tuple[object, object]] = []
    match data:
        case {"text": list() as texts, "label": list() as labels}:
            pairs = list(zip(labels, texts, strict=False))
        case Mapping():
            pairs = list(data.items())
        case list():
            pairs = [(v.get("label"), v.get("text")) if isinstance(v, Mapping) else ("", v) for v in data]
    if len(pairs) > len(_LETTERS) or any(isinstance(text, list | Mapping | None) for _, text in pairs):
        return []
    without = [re.sub(rf"^\(?{_LETTERS[k]}[).:\uff0e\u3001]\s*", "", str(text)) for k, (_, text) in enumerate(pairs)]
    return [(str(label), " ".join(text.split())) for (label, _), text in zip(pairs, without, strict=True)]


def _places(gold: Sequence[str], options: Sequence[_Pairs]) -> list[int | None] | None:
    """Return the place of each right option, by what the answers are: labels, texts, letters or places.

    Where a few answers are none of that, such as "AC" for two right ones, they have no place.

    Places count from 1 where one is the number of options, else from 0.
    """
    first = int(any(text == str(len(pairs)) for text, pairs in zip(gold, options, strict=True)))
    normal, best = [normalise(text) for text in gold], list[int | None]()
    for known in (
        lambda pairs: [label.casefold() for label, _ in pairs],
        lambda pairs: [normalise(text) for _, text in pairs],
        lambda pairs: list(_LETTERS[: len(pairs)].lower()),
        lambda pairs: [f"({letter})" for letter in _LETTERS[: len(pairs)].lower()],
        lambda pairs: [str(k + first) for k in range(len(pairs))],
    ):
        names = [known(pairs) for pairs in options]
        found = [each.index(text) if text in each else None for text, each in zip(normal, names, strict=True)]
        best = min(best or found, found, key=lambda places: places.count(None))
    return best if best.count(None) <= (1 - _LISTED) * len(best) else None
