"""Tasks read from files and folders.

Data is somebody else's: every row is checked, and one that does not fit ends the reading with one line that names the
file, the place and the problem. Nothing in it is ever executed.

Source: the `task.json` format is BIG-bench's (its `docs/doc.md`); the choice of labels is ours.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import dspy

from cuesmith.programs.tasks import delimited, reading
from cuesmith.programs.tasks.answers import number_in
from cuesmith.programs.tasks.columns import Columns, Told, choose, columns_told, is_usual, names_told, unused, value_at
from cuesmith.programs.tasks.fields import formed, lacking, text_at, texts_at
from cuesmith.programs.tasks.metrics import METRICS, JsonFields, Near
from cuesmith.programs.tasks.reading import WHOLE, Parts, Record, Table, name_of, text_of
from cuesmith.programs.tasks.task import (
    MINIMUM_ROWS,
    Item,
    Row,
    Sizes,
    Task,
    TaskError,
    assemble,
    build,
    check_fields,
    preferred_first,
)
from cuesmith.teleprompters.runtime.metric import MetricFunction, read_judgement

_CHOICE_PREFIX = "\n  choice: "
"""What BIG-bench puts before each choice unless the file says otherwise."""
_NAMED = 8
"""Columns at most that a warning names."""


def load(
    path: str | Path,
    *,
    inputs: Told = None,
    outputs: Told = None,
    metric: str | MetricFunction | None = None,
    sizes: Sizes | None = None,
    seed: int = 0,
) -> Task:
    """Read a task as it is found.

    It may be a BIG-bench or BBH task, JSON (a list of records, or an object with one, by number, or with columns), JSON
    Lines, a table in text with any delimiter, Parquet, Arrow, or a folder of such files, also one that Hugging Face
    `datasets` has saved. A test part that the data sets apart (`test.csv` beside `train.csv`, "test" in one file) stays
    test: no example of it gets into another split; without one that has answers, a validation part takes its place.

    Fields keep the columns' names, unless told another, and get types where not all is text: see
    `cuesmith.programs.tasks.fields`. `cuesmith.programs.tasks.columns` says which columns are found by themselves.

    Args:
        path: The file or folder.
        inputs: The columns that are asked, or dotted paths into records; or field -> column, where a column is to be
            called otherwise, as in `{"question": "prompt_text"}`; found by usual names if not given.
        outputs: The columns that are the answer, likewise.
        metric: A name in `METRICS`, or a metric of your own. By default it is what suits the answers: "choice" where
            the inputs list options, "number" for numbers ("near" for scores), "set_f1" for lists ("in_order" where
            one has as many members as an input), "json_fields" for records and several outputs, "f1" for texts of
            more than 20 words, and shorter ones in free words, else "exact".
        sizes: Wanted sizes of the splits.
        seed: Chooses the splits.

    Raises:
        TaskError: If the data cannot be read as a task; in one line that says what to do.
    """
    told, names = [columns_told(each) for each in (inputs, outputs)], names_told(str(path), inputs, outputs)
    if isinstance(metric, str):
        _check_metric(metric)
    paths = [*(told[0] or ()), *(told[1] or ())]
    table = reading.read(path, lambda cell: cell in paths or is_usual(cell))
    if table.bigbench is None:
        table = replace(table, parts={part: reading.spread(rows, paths) for part, rows in table.parts.items()})
    count = sum(map(len, table.parts.values()))
    if count < MINIMUM_ROWS:
        raise TaskError(f"{path}: {count} different rows, at least {MINIMUM_ROWS} are needed")
    ready = table.bigbench is not None and inputs is None and outputs is None
    if ready:
        table = _of_bigbench(table)
    first = next(iter(table.parts.values()))
    columns = Columns(("question",), ("answer",)) if ready else choose(str(path), first, *told)
    if not ready and inputs is None:
        _tell_unused(str(path), columns, unused(first, columns))
    table = replace(table, parts=_complete(str(path), _labelled(table.parts, columns), columns))
    columns = replace(_with_values(columns, table.parts), names=names)
    records = [record for part in table.parts.values() for record in part]
    wanted = metric if isinstance(metric, str) else None
    dataset = formed(str(path), records, columns, wanted, with_classes=not ready)
    items = dataset.items
    _tell_repeats(str(path), items)
    if callable(metric):
        return _divided(table, dataset.signature, metric, items, sizes, seed)
    name, answered = wanted or dataset.metric, tuple(dataset.outputs)
    judge = JsonFields(answered) if name == "json_fields" else METRICS[name](answered[0])
    if isinstance(judge, Near):
        judge = replace(judge, span=_range(item.example[answered[0]] for item in items))
    for record, item in zip(records, items, strict=True):
        _check_gold(record.where, name, judge, item.example, answered)
    return _divided(table, dataset.signature, judge, items, sizes, seed)


def _range(texts: Iterable[str]) -> float:
    numbers = [float(number.value) for text in texts if (number := number_in(text))]
    return max(numbers, default=1.0) - min(numbers, default=0.0) or 1.0


def _divided(
    table: Table,
    signature: str | type[dspy.Signature],
    metric: MetricFunction,
    items: Sequence[Item],
    sizes: Sizes | None,
    seed: int,
) -> Task:
    """Return the task of examples that come in the order of the table's parts."""
    starts = accumulate(map(len, table.parts.values()), initial=0)
    parts = {p: items[start : start + len(rows)] for (p, rows), start in zip(table.parts.items(), starts, strict=False)}
    held_out = parts.get("test", parts.get("validation", ()))
    return assemble(
        table.name,
        _description(table.bigbench),
        signature,
        metric,
        next(iter(parts.values())),
        validation=parts.get("validation", ()) if "test" in parts else (),
        held_out=held_out,
        sizes=sizes,
        seed=seed,
    )


def _labelled(parts: Parts, columns: Columns) -> Parts:
    """Return the parts without those of which no row has an answer, as test parts are often published; warn of these.

    A part may also have another name for a column that the first part has, which looks the same.
    """
    (name, first), *others = parts.items()
    kept = {name: first}
    for part, rows in others:
        lost = [path for path in (*columns.inputs, *columns.outputs) if not _said(rows, path)]
        lost += [path for path in columns.outputs if _said(rows, path) == {"-1"} and "-1" not in _said(first, path)]
        used = any(not lacking(row, columns) for row in rows) and not (
            columns.outputs and {*columns.outputs} <= {*lost}
        )
        if used:
            kept[part] = rows
        if rows and (lost or not used):
            warnings.warn(_of_part(part, rows, lost or (*columns.inputs, *columns.outputs), used), stacklevel=3)
    return kept if len(kept) > 1 else {WHOLE: first}


def _said(rows: Sequence[Record], path: str) -> set[str]:
    """Return what rows have at a path; -1 alone is what Hugging Face has in tests whose labels are kept back."""
    return {str(v) for row in rows if (v := value_at(row.values, path)) not in (None, "", [])}


def _of_part(part: str, rows: Sequence[Record], lost: Sequence[str], used: bool) -> str:
    """Return what a warning says of a part without some columns."""
    there = dict.fromkeys(str(name) for row in rows for name in row.values)
    told = f"{rows[0].where.rpartition(': ')[0]}: no row of the {part} part has {' and '.join(map(repr, lost))}"
    told += "" if used else ", so that this part is not used"
    missing = [path for path in lost if path.partition(".")[0] not in there]
    return f"{told}; its columns are: {', '.join(there)}; rename the one that is meant, if one is" if missing else told


def _complete(path: str, parts: Parts, columns: Columns) -> Parts:
    """Return the parts without rows that have no question or no answer, and warn of these; raise where most are."""
    missing = [(r, name) for rows in parts.values() for r in rows if (name := lacking(r, columns))]
    if not missing:
        return parts
    record, name = missing[0]
    count, total = len(missing), sum(map(len, parts.values()))
    if count * 2 > total or total - count < MINIMUM_ROWS:
        told = f"{record.where}: {name!r} is missing or empty, as in {count} of {total} rows"
        raise TaskError(f"{told}; name other columns by inputs=..., outputs=..., or leave those rows out")
    warnings.warn(
        f"{path}: left out {count} of {total} rows, where {name!r} is missing or empty, as at "
        f"{record.where.removeprefix(f'{path}: ')}",
        stacklevel=3,
    )
    without = {id(record) for record, _ in missing}
    return {part: [row for row in rows if id(row) not in without] for part, rows in parts.items()}


def _tell_unused(path: str, columns: Columns, left: Sequence[str]) -> None:
    """Warn of columns that have been left out because nobody named any; naming those that are used ends it."""
    if not left:
        return
    sides = {"inputs": columns.inputs, "outputs": columns.outputs}
    used = ", ".join(f"{k}={list(v) if len(v) > 1 else v[0]!r}" for k, v in sides.items() if v)
    named = ", ".join(map(repr, left[:_NAMED])) + (f" and {len(left) - _NAMED} more" if len(left) > _NAMED else "")
    warnings.warn(
        f"{path}: not used: {named}; the task is {used}; name the columns by inputs=..., outputs=... to change that",
        stacklevel=3,
    )


def _tell_repeats(path: str, items: Sequence[Item]) -> None:
    """Warn of rows that ask what another one asks: only the first of them is taken."""
    asked: dict[str, set[str]] = {}
    for item in items:
        asked.setdefault(item.content, set()).add(repr(item.example.labels().toDict()))
    if len(asked) == len(items):
        return
    told = f"{path}: left out {len(items) - len(asked)} of {len(items)} rows, which ask what an earlier one asks"
    torn = sum(len(answers) > 1 for answers in asked.values())
    warnings.warn(f"{told}; {torn} of the questions have different answers" if torn else told, stacklevel=3)


def _with_values(columns: Columns, parts: Parts) -> Columns:
    """Return the columns without inputs that no row has, such as those of rows that have been left out."""
    rows = [record.values for part in parts.values() for record in part]
    held = tuple(path for path in columns.inputs if any(value_at(row, path) is not None for row in rows))
    return replace(columns, inputs=held or columns.inputs)


def _check_metric(name: str) -> None:
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        meant = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(METRICS)}"
        raise TaskError(f"no metric {name!r}; {meant}")


def _check_gold(where: str, name: str, metric: MetricFunction, example: dspy.Example, outputs: tuple[str, ...]) -> None:
    """Raise if the metric does not take the right answer for right: then no program could ever be."""
    answer = {field: example.get(field) for field in outputs}
    score = read_judgement(metric(example, dspy.Prediction(**answer))).score
    if score < 1.0:
        told = f"{where}: metric {name!r} gives the right answer {answer!r:.100} the score {score:g}"
        raise TaskError(f"{told}; choose another metric or other outputs")


# --- BIG-bench ----------------------------------------------------------------------------------------------


def load_bigbench(path: str | Path, *, sizes: Sizes | None = None, seed: int = 0) -> Task:
    """Read a BIG-bench `task.json`, scored by `ExactMatch`.

    Each example has an `input` and either a `target` (a text, or a list of accepted texts) or
    `target_scores` (choice -> score; the choices of the highest score are accepted). Choices are appended to
    the input as BIG-bench does, unless the file sets `append_choices_to_input` to false. The file's
    `task_prefix` becomes the description and is *not* put into the questions: to find the instructions is
    the compiler's job.

    Args:
        path: The file.
        sizes: Wanted sizes of the splits.
        seed: Chooses the splits.

    Raises:
        TaskError: If the file is missing, is not JSON, or an example has another form.
    """
    data = reading.json_of(path, text_of(path))
    examples = data.get("examples") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(examples, list):
        raise TaskError(f"{path}: 'examples' must be a list; is this a BIG-bench task.json?")
    prefix = _choice_prefix(data)
    rows = [_bigbench_row(f"{path}: example {k}", item, prefix) for k, item in enumerate(examples, 1)]
    return build(name_of(path), _description(data), rows, sizes=sizes, seed=seed)


def _of_bigbench(table: Table) -> Table:
    """Return a BIG-bench task with the columns question and answer."""
    prefix = _choice_prefix(table.bigbench or {})
    by_choice = (table.bigbench or {}).get("preferred_score") == "multiple_choice_grade"
    parts = {}
    for part, records in table.parts.items():
        rows = [(record.where, _bigbench_row(record.where, record.values, prefix, by_choice)) for record in records]
        parts[part] = [Record(where, {**row.inputs, "answer": list(row.accepted)}) for where, row in rows]
    return replace(table, parts=parts)


def _description(data: Mapping[str, object] | None) -> str:
    return str((data or {}).get("task_prefix") or (data or {}).get("description") or "").strip()


def _choice_prefix(data: Mapping[str, object]) -> str | None:
    if not data.get("append_choices_to_input", True):
        return None
    return str(data["choice_prefix"]) if isinstance(data.get("choice_prefix"), str) else _CHOICE_PREFIX


def _bigbench_row(where: str, item: object, choice_prefix: str | None, by_choice: bool = False) -> Row:
    if not isinstance(item, Mapping):
        raise TaskError(f"{where}: expected an object, got {type(item).__name__}")
    question = text_at(where, item, "input")
    if "target" in item and not (by_choice and item.get("target_scores")):
        return Row({"question": question}, _targets(where, item["target"]))
    scores = item.get("target_scores")
    if not isinstance(scores, Mapping) or not all(isinstance(s, int | float) for s in scores.values()):
        raise TaskError(f"{where}: needs 'target' or 'target_scores' (an object of choices and scores)")
    best = max(scores.values(), default=0)
    if not best > 0:
        raise TaskError(f"{where}: no choice of 'target_scores' has a positive score")
    if choice_prefix is not None:
        question += "".join(choice_prefix + str(choice) for choice in scores)
    accepted = [str(choice) for choice, score in scores.items() if score == best]
    return Row({"question": question}, preferred_first(accepted))


def _targets(where: str, target: object) -> tuple[str, ...]:
    listed = target if isinstance(target, list) else [target]
    texts = [text for text in listed if isinstance(text, str) and text.strip()]
    if not texts or len(texts) < len(listed):
        raise TaskError(f"{where}: 'target' must be a text or a list of texts, got {target!r:.60}")
    return preferred_first(texts)


# --- tables of text -----------------------------------------------------------------------------------------


def load_jsonl(
    path: str | Path,
    *,
    inputs: Sequence[str] = ("question",),
    output: str = "answer",
    sizes: Sizes | None = None,
    seed: int = 0,
) -> Task:
    """Read a file of one JSON object a line as a task of text, scored by `ExactMatch`.

    Args:
        path: The file; empty lines are skipped.
        inputs: The columns that become input fields.
        output: The column that becomes the output field; a list in it holds the accepted answers.
        sizes: Wanted sizes of the splits.
        seed: Chooses the splits.

    Raises:
        TaskError: If the file is missing, or a line has another form.
    """
    check_fields(str(path), inputs, output)
    records = reading.json_lines(path, text_of(path))
    return of_text(name_of(path), records, inputs, output, sizes=sizes, seed=seed)


def load_csv(
    path: str | Path,
    *,
    inputs: Sequence[str] = ("question",),
    output: str = "answer",
    sizes: Sizes | None = None,
    seed: int = 0,
) -> Task:
    """Read a table whose first line names the columns as a task of text, scored by `ExactMatch`.

    Args:
        path: The file.
        inputs: The columns that become input fields.
        output: The column that becomes the output field.
        sizes: Wanted sizes of the splits.
        seed: Chooses the splits.

    Raises:
        TaskError: If the file is missing, a column is missing, or a row has an empty cell.
    """
    check_fields(str(path), inputs, output)
    names, rows = delimited.table(str(path), text_of(path))
    for column in (*inputs, output):
        if column not in names:
            raise TaskError(f"{path}: line 1: no column {column!r}; there are: {', '.join(names) or 'none'}")
    records = [Record(*row) for row in rows]
    return of_text(name_of(path), records, inputs, output, sizes=sizes, seed=seed)


def of_text(
    name: str,
    records: Iterable[Record],
    inputs: Sequence[str],
    output: str,
    *,
    sizes: Sizes | None = None,
    seed: int = 0,
) -> Task:
    """Make a task of text, scored by `ExactMatch`, of records.

    Args:
        name: A short name.
        records: The data.
        inputs: The columns that become input fields.
        output: The column that becomes the output field; a list in it holds the accepted answers.
        sizes: Wanted sizes of the splits.
        seed: Chooses the splits.

    Raises:
        TaskError: If a row has another form.
    """
    rows = [
        Row({column: text_at(r.where, r.values, column) for column in inputs}, texts_at(r.where, r.values, output))
        for r in records
    ]
    return build(name, "", rows, output=output, sizes=sizes, seed=seed)
