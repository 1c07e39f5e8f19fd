"""Tasks read from files: BIG-bench `task.json`, JSONL and CSV.

A file is somebody else's: every row is checked, and one that does not fit ends the reading with one line
that names the file, the place and the problem. Nothing in a file is ever executed.

Source: the `task.json` format is BIG-bench's (its `docs/doc.md`); the choice of labels is ours.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cuesmith.programs.tasks.task import Row, Sizes, Task, TaskError, build, check_fields, preferred_first

_CHOICE_PREFIX = "\n  choice: "
"""What BIG-bench puts before each choice unless the file says otherwise."""


def load(path: str | Path, *, sizes: Sizes | None = None, seed: int = 0) -> Task:
    """Read a task file by its suffix: .json (BIG-bench), .jsonl or .csv (columns "question" and "answer").

    Args:
        path: The file.
        sizes: Wanted sizes of the splits.
        seed: Chooses the splits.

    Raises:
        TaskError: If the file cannot be read as a task.
    """
    readers: dict[str, Callable[..., Task]] = {".json": load_bigbench, ".jsonl": load_jsonl, ".csv": load_csv}
    reader = readers.get(Path(path).suffix.lower())
    if reader is None:
        raise TaskError(f"{path}: unknown kind of file; it must end in {', '.join(readers)}")
    return reader(path, sizes=sizes, seed=seed)


def load_bigbench(path: str | Path, *, sizes: Sizes | None = None, seed: int = 0) -> Task:
    """Read a BIG-bench `task.json`.

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
    data = _json_object(path)
    examples = data.get("examples")
    if not isinstance(examples, list):
        raise TaskError(f"{path}: 'examples' must be a list; is this a BIG-bench task.json?")
    prefix = _CHOICE_PREFIX if data.get("append_choices_to_input", True) else None
    if prefix is not None and isinstance(data.get("choice_prefix"), str):
        prefix = str(data["choice_prefix"])
    rows = [_bigbench_row(f"{path}: example {k}", item, prefix) for k, item in enumerate(examples, 1)]
    described = data.get("task_prefix") or data.get("description") or ""
    return build(_name(path), str(described).strip(), rows, sizes=sizes, seed=seed)


def load_jsonl(
    path: str | Path,
    *,
    inputs: Sequence[str] = ("question",),
    output: str = "answer",
    sizes: Sizes | None = None,
    seed: int = 0,
) -> Task:
    """Read a file of one JSON object a line.

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
    rows: list[Row] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            item: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{where}: not JSON ({_first_line(error)})") from None
        rows.append(_table_row(where, item, inputs, output))
    return build(_name(path), "", rows, output=output, sizes=sizes, seed=seed)


def load_csv(
    path: str | Path,
    *,
    inputs: Sequence[str] = ("question",),
    output: str = "answer",
    sizes: Sizes | None = None,
    seed: int = 0,
) -> Task:
    """Read a CSV file whose first line names the columns.

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
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        rows = list(_csv_rows(str(path), reader, inputs, output))
    except csv.Error as error:
        raise TaskError(f"{path}: line {reader.line_num}: {_first_line(error)}") from None
    return build(_name(path), "", rows, output=output, sizes=sizes, seed=seed)


def _csv_rows(path: str, reader: csv.DictReader[str], inputs: Sequence[str], output: str) -> Iterator[Row]:
    for column in (*inputs, output):
        if column not in (reader.fieldnames or ()):
            there = ", ".join(reader.fieldnames or ()) or "none"
            raise TaskError(f"{path}: line 1: no column {column!r}; there are: {there}")
    for item in reader:
        yield _table_row(f"{path}: line {reader.line_num}", item, inputs, output)


def _table_row(where: str, item: object, inputs: Sequence[str], output: str) -> Row:
    if not isinstance(item, Mapping):
        raise TaskError(f"{where}: expected an object, got {type(item).__name__}")
    texts = {name: _cell(where, item, name) for name in inputs}
    answers = item.get(output)
    if isinstance(answers, list):
        if not answers:
            raise TaskError(f"{where}: {output!r} has no accepted answer")
        accepted = [_cell(where, {output: answer}, output) for answer in answers]
    else:
        accepted = [_cell(where, item, output)]
    return Row(texts, preferred_first(accepted))


def _cell(where: str, item: Mapping[str, object], name: str) -> str:
    value = item.get(name)
    if value is None:
        raise TaskError(f"{where}: {name!r} is missing")
    if not isinstance(value, str | int | float | bool):
        raise TaskError(f"{where}: {name!r} must be a text or a number, got {type(value).__name__}")
    if not str(value).strip():
        raise TaskError(f"{where}: {name!r} is empty")
    return str(value)


def _bigbench_row(where: str, item: object, choice_prefix: str | None) -> Row:
    if not isinstance(item, Mapping):
        raise TaskError(f"{where}: expected an object, got {type(item).__name__}")
    question = _cell(where, item, "input")
    if "target" in item:
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


def _json_object(path: str | Path) -> Mapping[str, object]:
    try:
        data: object = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}: line {error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path}: not a task ({_first_line(error)})") from None
    if not isinstance(data, dict):
        raise TaskError(f"{path}: line 1: expected an object, got {type(data).__name__}")
    return data


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TaskError(f"{path}: line {line}: not UTF-8 text") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _name(path: str | Path) -> str:
    """The file's name, or its folder's: BIG-bench calls every file task.json."""
    path = Path(path).resolve()
    return path.parent.name if path.name == "task.json" and path.parent.name else path.stem
