"""Which columns are asked and which are the answer: as told, or by the names that data usually gives them.

Source: ours.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeAlias

from cuesmith.programs.tasks.answers import json_in
from cuesmith.programs.tasks.conversations import ends_in_answer, is_conversation
from cuesmith.programs.tasks.reading import Record
from cuesmith.programs.tasks.task import TaskError, is_field

ANSWERS = [
    "answer", "answers", "best_answer", "correct_answer", "final_answer", "final_ans", "target", "targets",
    "output", "outputs", "ideal", "completion", "gold", "gold_answer", "expected", "expected_output",
    "expected_answer", "reference", "references", "response", "possible_answers", "aliases",
]  # fmt: skip
"""Usual names of answers, likely ones first; a list under one of them holds accepted answers, not a set."""

LABELS = [
    "final_decision", "gold_label",
    "label_text", "label_name", "label", "labels", "class", "category", "intent", "intents", "sentiment", "topic",
    "emotion", "is_correct", "stance", "rating", "stars", "grade", "polarity",
]  # fmt: skip
"""Usual names of classes."""

_OUTPUTS = [
    *ANSWERS, *LABELS, "concept", "summary", "highlights", "translation", "solution", "answer_key", "correct",
    "correct_option", "cop", "ground_truth", "score", "verdict", "tags",
]  # fmt: skip

_ONLY_WHOLE = ("concept",)
"""Of them, names that say nothing at the end of another: a "question_concept" is no answer."""

_INPUTS = [
    "question", "query", "problem", "prompt", "instruction", "input", "inputs", "text", "sentence", "utterance",
    "review", "comment", "tweet", "claim", "statement", "messages", "conversations", "conversation", "message",
    "dialogue", "dialog", "email", "document", "article", "passage", "context", "ctx", "premise", "content", "body",
    "stem", "goal", "post", "paragraph", "story", "source", "description", "abstract", "request", "word", "items",
    "title", "headline",
]  # fmt: skip
"""Usual names of what is asked, likely ones first."""

BESIDE = [
    "input", "inputs", "context", "passage", "paragraph", "document", "article", "story", "premise", "hypothesis",
    "background", "evidence", "table", "choices", "options", "endings", "answer_choices", "title", "headline",
    "subject", "body", "instruction", "system", "contexts", "passages", "documents", "abstract", "aspect", "facts",
]  # fmt: skip
"""Inputs wherever they are."""

OF_A_QUESTION = [
    "text", "content", "sentence", "statement",
]  # fmt: skip
"""Inputs beside a question: what it is about."""

_NOTES = re.compile(
    r"(?:.*_)?(?:id|ids|idx|index|uid|uuid|guid|qid|key|url|date|time|timestamp|split|metadata|meta|level|difficulty|"
    r"source|lang|language|version|author)|unnamed_\d+|"
)
"""Names of columns that are neither, unless told."""


OPTIONS = ("choices", "options", "endings", "answer_choices")
"""Usual names of a column that holds all options."""

_JUDGED = ("label", "labels", "is_correct", "correct", "correctness")
"""Usual names of a judgement on an answer, where there is one beside it."""

_JUDGEMENTS = {"0", "1", "true", "false", "yes", "no", "correct", "incorrect"}
_CLASS_AS = re.compile(r"(?:.+_)?([a-z]+)_(?:index|idx|id|number|num|code|name)")
"""Names of columns with the numbers or names of classes, as "Class Index"; what numbers anything else is a note."""
_SENTENCE = 8
"""Words of the median value from which on a column holds texts, whatever it is called. Ours."""
_MARK = re.compile(r"-?\d*[.,]?\d+|(?=\S*\d)\S+")
"""Numbers, and words with a digit in them; where nearly every row has one of its own, they tell rows apart."""
_FEW = 20
"""Different values at most of the column without a name that has the classes. Ours."""
_OPTION_LETTERS = "ABCDEFGHIJ"

_NUMBERED = re.compile(r"(.+?)_?(?:\d+|_[ab])")
_OPTION = re.compile(r"(?:op|opt|option|choice|answer|ans|sol|ending|candidate)_?(?:\d+|[a-f])|[a-f]")
"""Names of columns that hold one option each."""
_WRONG = re.compile(r"(?:incorrect|wrong|distractor)_?(?:answer|option|choice)?_?\d+")
"""Names of columns that hold one wrong option each, beside the right answer."""


@dataclass(frozen=True)
class Columns:
    """The columns of a task, each a name or a dotted path into records.

    Attributes:
        inputs: What is asked.
        outputs: What is to be answered; none where it is the last message of a conversation.
        options: Those of the inputs that hold an option each, where they have been found by themselves.
        names: Column -> the field that it becomes, where that was told.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)


Told: TypeAlias = Mapping[str, str] | Sequence[str] | str | None
"""Columns that are named: one, several, or field -> column; None for those that are found by themselves."""


def columns_told(given: Told) -> tuple[str, ...] | None:
    """Return the columns that are named; None where none are."""
    if given is None or isinstance(given, str):
        return None if given is None else (given,)
    return tuple(given.values() if isinstance(given, Mapping) else given)


def names_told(where: str, *several: Told) -> dict[str, str]:
    """Return column -> field, for those that have got another name.

    Args:
        where: For messages.
        *several: Columns as they are named.

    Raises:
        TaskError: If a name cannot be that of a field, or stands for two columns.
    """
    names = [name for given in several for name in (given if isinstance(given, Mapping) else columns_told(given) or ())]
    found = {column: name for given in several if isinstance(given, Mapping)
             for name, column in given.items() if column != name}  # fmt: skip
    for column, name in found.items():
        if names.count(name) > 1:
            raise TaskError(f"{where}: two columns are to be the field {name!r}: give {column!r} another name")
        if not is_field(name):
            raise TaskError(f"{where}: {name!r} cannot be the name of a field: give {column!r} another one")
    return found


def is_usual(name: str) -> bool:
    """Return whether a text is a usual name of a column."""
    return plain_name(name) in {*_OUTPUTS, *_INPUTS, *BESIDE, "id", "idx"} or is_class(name)


def is_class(path: str) -> bool:
    """Return whether a column's name says that it holds classes, by their number or otherwise."""
    return plain_name(path) in LABELS or bool(_numbered_class(plain_name(path)))


def _numbered_class(name: str) -> str:
    found = _CLASS_AS.fullmatch(name)
    return found[1] if found and found[1] in LABELS else ""


def plain_name(name: str) -> str:
    """Return the last part of a column's path in small letters: "bestAnswer" and "Best Answer" are best_answer."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2])
    return re.sub(r"\W+", "_", split).strip("_").casefold()


def base_name(path: str) -> str:
    """Return a column's name without the number that tells it from others, as of "passage_2"; empty if it has none."""
    numbered = _NUMBERED.fullmatch(plain_name(path))
    return numbered[1] if numbered else ""


def value_at(values: Mapping[str, object], path: str) -> object:
    """Return what a row has at a dotted path: a column of that name, or a part of a record or of JSON text."""
    if path in values:
        return values[path]
    held: object = values
    for step in path.split("."):
        held = json_in(held) if isinstance(held, str) else held
        if isinstance(held, Mapping):
            held = held.get(step)
        elif isinstance(held, list) and step.isdigit() and int(step) < len(held):
            held = held[int(step)]
        else:
            return None
    return held


def choose(
    where: str, records: Sequence[Record], inputs: Sequence[str] | None, outputs: Sequence[str] | None
) -> Columns:
    """Choose the columns of a task.

    What is not told is found by usual names, at the top and then inside of records: the likeliest answer, the likeliest
    question with what belongs to it (a context, options, the other one of two sentences), or what is left when notes
    such as ids are set aside. Of two columns of unusual names the first is asked, unless it has few different values.

    Args:
        where: For messages.
        records: The data.
        inputs: What is asked, if told.
        outputs: What is to be answered, if told.

    Raises:
        TaskError: If a column is not there, or it is not clear which are meant.
    """
    search = _Search(where, records)
    told = (*(inputs or ()), *(outputs or ()))
    for path in told:
        search.check(path)
        if told.count(path) > 1:
            raise TaskError(f"{where}: column {path!r} is given twice")
    if inputs and outputs:
        return Columns(tuple(inputs), tuple(outputs))
    if not outputs and (talk := search.conversation(inputs)):
        return Columns(tuple(inputs or talk), ())
    found = outputs or search.answer(inputs or ())
    asked = inputs or search.asked(found)
    if not found and asked and len(left := search.left(asked)) == 1:
        found = left  # a record as a whole, whatever is called an answer inside of it
    found = found or search.answer(asked, inside=True)
    asked = asked or search.asked(found, inside=True)
    if not asked and not found:
        return search.without_names() or search.of_two()
    asked = asked or search.only_one_left(found, "what is asked is not clear")
    answer = found or search.only_one_left(asked, "what the answer is, is not clear")
    return Columns(tuple(asked), tuple(answer), () if inputs else _options_of(asked))


def _options_of(paths: Sequence[str]) -> tuple[str, ...]:
    found = tuple(path for path in paths if _OPTION.fullmatch(plain_name(path)))
    found = found if len(found) > 1 else tuple(path for path in paths if is_wrong(path))
    return found if len(found) > 1 else ()


def is_wrong(path: str) -> bool:
    """Return whether a column's name says that it holds a wrong option."""
    return _WRONG.fullmatch(plain_name(path)) is not None


def unused(records: Sequence[Record], columns: Columns) -> list[str]:
    """Return the columns with content that are not taken: no ids, notes, constants, or other names of a class."""
    return _Search("", records).unused((*columns.inputs, *columns.outputs))


class _Search:
    """The columns of data, and what their names say."""

    def __init__(self, where: str, records: Sequence[Record]) -> None:
        self._where, self._records = where, records
        there = dict.fromkeys(name for record in records for name in record.values)
        self._all = [str(name) for name in there]
        self._names = [name for name in self._all if any(_is_there(value) for value in self._values(name))]
        self._talks = [n for n in self._names if all(map(is_conversation, filter(_is_there, self._values(n))))]

    def check(self, path: str) -> None:
        if not any(value_at(record.values, path) is not None for record in self._records):
            near = difflib.get_close_matches(path, self._all, n=1)
            meant = f"; did you mean {near[0]!r}? There are" if near else "; there are"
            raise TaskError(f"{self._where}: no column {path!r}{meant}: {self._listed()}")

    def conversation(self, inputs: Sequence[str] | None) -> Sequence[str]:
        """Return the column of conversations that end in an answer, and one of the system's texts.

        There is none where another column is called an answer.
        """
        if {*ANSWERS} & {plain_name(name) for name in self._names if name not in self._talks}:
            return ()
        ending = [name for name in self._talks if all(map(ends_in_answer, self._values(name)))]
        talk = [name for name in ending if not inputs or name in inputs][:1]
        return [name for name in self._names if name in talk or (talk and plain_name(name) == "system")]

    def answer(self, apart: Sequence[str], *, inside: bool = False) -> Sequence[str]:
        """Return the column, or what is inside of one, that is likeliest called an answer; none if there is no such."""
        paths = [p for p in (self._inside(apart) if inside else self._free(apart)) if self._may_be_answer(p)]
        found = _likeliest(paths, _OUTPUTS) or [p for p in paths if plain_name(p).startswith(("is_", "has_"))]
        if judged := [p for p in paths if plain_name(p) in ANSWERS and p in found and self._judgement(paths)]:
            return self._judgement([p for p in paths if p not in judged])
        if len(found) > 1 and len(_options_of(found)) == len(found):
            options = _options_of(paths)
            found = _likeliest([p for p in paths if p not in options], _OUTPUTS) or found
        if len(found) > 1:
            raise self._unclear(f"what the answer is, is not clear: {' or '.join(found)}")
        return found

    def asked(self, apart: Sequence[str], *, inside: bool = False) -> Sequence[str]:
        """Return the column, or what is inside of one, that is likeliest called a question, and what belongs to it."""
        paths = self._inside(apart) if inside else self._free(apart)
        main = _likeliest([path for path in paths if self._is_full(path)], _INPUTS)
        main = main or [path for path in paths if path in self._talks][:1]
        if not main:
            return ()
        keys = self._keys(main[0])
        if within := _likeliest(keys, _INPUTS):  # a record that is called a question has one
            paths, main = [*keys, *paths], within
        beside = [*BESIDE, *(OF_A_QUESTION if plain_name(main[0]) in ("question", "query") else ())]
        options = _options_of(paths)
        judged = ANSWERS if self._judgement(apart) else ()
        wanted = [p for p in paths if p in main or p in options or {plain_name(p), base_name(p)} & {*beside, *judged}]
        wanted = [p for p in wanted if plain_name(p) not in ("evidence", "facts") or self._is_text(p)]
        return sorted(wanted, key=lambda p: p in options or plain_name(p) in OPTIONS)

    def without_names(self) -> Columns | None:
        """Return the columns of a table without names in which one has classes; None if there is no such."""
        if len(self._names) < 3 or not all(re.fullmatch(r"column_\d+", name) for name in self._names):
            return None
        first, *options, last = self._names
        letters = {*_OPTION_LETTERS[: len(options)]}
        if len(options) > 1 and {str(value).strip() for value in self._values(last)} <= letters:
            return Columns((first, *options), (last,), tuple(options))
        counts = {name: len({str(value) for value in self._values(name)}) for name in self._names}
        few = [name for name in self._names if counts[name] <= min(_FEW, len(self._records) // 5)]
        many = [name for name in self._names if counts[name] * 2 > len(self._records)]
        texts = [name for name in many if not all(str(value).isdigit() for value in self._values(name))]
        at_an_end = few in ([first], [last]) and len(texts) + 1 == len(self._names)  # else one may explain the other
        return Columns(tuple(texts), tuple(few)) if at_an_end else None

    def unused(self, taken: Sequence[str]) -> list[str]:
        """Return the columns, or parts of records, that are not taken and say something of their own."""
        opened = {path.partition(".")[0] for path in taken if path not in self._names}
        paths = [p for n in self._names if n not in taken for p in (self._keys(n) if n in opened else [n])]
        return [p for p in paths if p not in taken and self._has_content(p) and not self._is_another_name(p, taken)]

    def _has_content(self, path: str) -> bool:
        """Whether a column is none of those that number, name or date the rows, and does not say the same in all."""
        texts = [str(value) for value in self._values(path) if _is_there(value)]
        different = len({*texts})
        if different < 2 or (_NOTES.fullmatch(plain_name(path)) and not self._is_numbered_class(path)):
            return different > 1 and median(len(text.split()) for text in texts) >= _SENTENCE
        each_its_own = different * 10 >= len(texts) * 9 and self._is_text(path)
        return not (each_its_own and all(_MARK.fullmatch(text) for text in texts))

    def _is_another_name(self, path: str, taken: Sequence[str]) -> bool:
        """Whether a column tells what a class that is taken tells, as names of labels do beside their numbers."""
        own = [str(value) for value in self._values(path)]
        others = [[str(value) for value in self._values(each)] for each in taken if self._is_few(each)]
        return any(len({*own}) == len({*other}) == len({*zip(own, other, strict=True)}) for other in others)

    def _is_few(self, path: str) -> bool:
        return len({str(value) for value in self._values(path)}) * 5 <= len(self._records)

    def _is_numbered_class(self, path: str) -> bool:
        return bool(_numbered_class(plain_name(path))) and self._is_few(path)

    def _may_be_answer(self, path: str) -> bool:
        return self._varies(path) and (self._is_few(path) or not _numbered_class(plain_name(path)))

    def _varies(self, path: str) -> bool:
        """Whether at least half of the rows have a value at a path, and not all the same."""
        held = [value for value in self._values(path) if _is_there(value)]
        return self._is_full(path) and any(value != held[0] for value in held)

    def _is_full(self, path: str) -> bool:
        return sum(map(_is_there, self._values(path))) * 2 >= len(self._records)

    def _judgement(self, paths: Sequence[str]) -> Sequence[str]:
        """Return the first of the paths that judges answers."""
        usual = [p for p in paths if plain_name(p) in _JUDGED]
        return [p for p in usual if {str(v).casefold() for v in self._values(p) if _is_there(v)} <= _JUDGEMENTS][:1]

    def _is_text(self, path: str) -> bool:
        return not any(isinstance(value, list | Mapping) for value in self._values(path))

    def of_two(self) -> Columns:
        left = self.left(())
        if len(left) != 2:
            raise self._unclear("what is asked and what the answer is, is not clear")
        few, many = sorted(left, key=lambda name: len({str(value) for value in self._values(name)}))
        counts = [len({str(value) for value in self._values(name)}) for name in (few, many)]
        asked, answer = (many, few) if counts[0] * 5 <= counts[1] else left
        return Columns((asked,), (answer,))

    def only_one_left(self, apart: Sequence[str], problem: str) -> Sequence[str]:
        left = self.left(apart)
        if len(left) != 1:
            raise self._unclear(problem)
        return left

    def left(self, apart: Sequence[str]) -> list[str]:
        free = self._free(apart)
        return [n for n in free if not _NOTES.fullmatch(plain_name(n)) or self._is_numbered_class(n)]

    def _free(self, apart: Sequence[str]) -> list[str]:
        taken = {*apart, *(path.partition(".")[0] for path in apart)}
        return [name for name in self._names if name not in taken]

    def _inside(self, apart: Sequence[str]) -> list[str]:
        """Return the paths of what is inside of records; a record is known by the first row that has it."""
        return [path for n in self._names if n not in apart for path in self._keys(n) if path not in apart]

    def _keys(self, name: str) -> list[str]:
        first = next((value for value in self._values(name) if _is_there(value)), None)
        return [f"{name}.{key}" for key in first] if isinstance(first, Mapping) else []

    def _values(self, name: str) -> Iterable[object]:
        return [value_at(record.values, name) for record in self._records]

    def _unclear(self, problem: str) -> TaskError:
        paths = [path for name in self._names for path in (self._keys(name) or [name])]
        if len(paths) < 2:
            return TaskError(f"{self._where}: no table: there is one column only ({', '.join(paths):.40})")
        asked = [*_likeliest(paths, _INPUTS), *(p for p in paths if not _NOTES.fullmatch(plain_name(p))), *paths][0]
        others = [path for path in paths if path != asked]
        answer = [*_likeliest(others, _OUTPUTS), others[-1]][0]
        there = ", ".join(self._shown(path) for path in paths)
        return TaskError(
            f"{self._where}: {problem}; columns are: {there}; say which, as in inputs={asked!r}, outputs={answer!r}"
        )

    def _shown(self, path: str) -> str:
        """Return a column's name, with what it holds where the name says nothing."""
        held = next(iter(self._values(path)), "") if re.fullmatch(r"column_\d+", path) else ""
        return f"{path} ({' '.join(str(held).split()):.30})" if held else path

    def _listed(self) -> str:
        return ", ".join(self._all) or "none"


def _is_there(value: object) -> bool:
    return value not in (None, "", [], {})


def _one(name: str) -> str:
    """Return a name without the "s" of several."""
    return name[:-1] if name.endswith("s") and not name.endswith("ss") else name


def _likeliest(paths: Sequence[str], usual: Sequence[str]) -> list[str]:
    """Return the columns of the likeliest name; a name that only ends in a usual one is less likely than any other."""
    ranks: dict[str, float] = {}
    for path in paths:
        name = plain_name(path)
        whole = base_name(path) or name
        last, n = whole.rpartition("_")[2], len(usual)
        by_number = 2 * n + (0 if name.endswith("_name") else n)
        usually = ((0.0, whole), (0.25, _one(whole)), (n, last), (n + 0.25, _one(last)))
        for rank, known in (*usually, (by_number, _numbered_class(name))):
            if known in usual and (rank < n or known not in _ONLY_WHOLE):
                ranks.setdefault(path, rank + usual.index(known) + (0.5 if base_name(path) else 0))
    best = min(ranks.values(), default=None)
    return [path for path, rank in ranks.items() if rank == best]
