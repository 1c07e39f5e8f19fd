"""Data as it is found: what kind of file or folder it is, and its records, each with its place.

The content decides first, then the name. Parts that the data itself sets apart (train, validation, test: files,
folders, or lists in one file) stay apart. Nothing in a file is ever executed; a folder's scripts are not even read.

Source: the `task.json` format is BIG-bench's (its `docs/doc.md`); `.arrow` files, and the names of classes in them and
in `.parquet` files, are those of Hugging Face `datasets`; the rest is ours.
"""

from __future__ import annotations

import codecs
import importlib
import io
import json
import lzma
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from cuesmith.programs.tasks import delimited
from cuesmith.programs.tasks.task import MINIMUM_ROWS, TaskError
from cuesmith.teleprompters.runtime.evidence import sound

WHOLE = ""
"""The part of data that nothing is set apart of."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "induce"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation", "execute"),
}
"""Part -> the words by which names of files, folders and lists tell it; induce and execute are APE's."""

_PART = {word: part for part, words in PARTS.items() for word in words}
_KINDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
"""Suffixes of the files that a folder's data is in; a file that is named itself may have any."""
_BESIDES = re.compile(r"dataset_(?:infos?|dict)\.json|state\.json|cache-.*|package(?:-lock)?\.json")
"""Files that are beside data and are none."""
_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "lzma"}
"""How files begin that are compressed, and the module that unpacks them."""
_PACKED = (b"PK\x03\x04", b"\x28\xb5\x2f\xfd")
"""How files begin that are packed by zip (also .xlsx) and zstd."""
_POINTER = "version https://git-lfs.github.com/spec/"
"""How a file begins that stands for one which Git LFS has not fetched."""
_MOST_ROWS = 20_000
"""Rows of a part that are looked at; of more, these are chosen by their content. Ours."""
_LISTS = ("examples", "data", "rows", "records", "instances", "items", "questions", "samples")
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?:-[0-9a-f]{10,})?$")


@dataclass(frozen=True)
class Record:
    """One row of data as it was found.

    Attributes:
        where: Its place, for messages.
        values: Column -> value.
    """

    where: str
    values: Mapping[str, object]


Parts = Mapping[str, Sequence[Record]]
"""Part -> its records: `WHOLE` alone, or train and at least one more."""


@dataclass(frozen=True)
class Table:
    """Data as it was found.

    Attributes:
        path: What was read, for messages.
        name: A short name.
        parts: The records.
        bigbench: The other entries of the file, where it has the form of a BIG-bench task.
    """

    path: str
    name: str
    parts: Parts
    bigbench: Mapping[str, object] | None = None


def read(path: str | Path, named: Callable[[str], bool]) -> Table:
    """Read a file, or a folder that holds one data set.

    A file that is named for a part ("train.csv", "induce/sum.json") is read with the other parts beside it.

    Args:
        path: The file or folder.
        named: Whether a text is the name of a column that is wanted or usual.

    Raises:
        TaskError: If it cannot be read as data, or a folder holds several data sets.
    """
    path = Path(path)
    files = _of_folder(path) if path.is_dir() else _beside(path)
    alone = sum(map(len, files.values())) >= MINIMUM_ROWS
    found = {part: [_file(file, named, alone) for file in each] for part, each in files.items()}
    first = next(iter(found.values()))[0]
    parts = first.parts
    if sum(map(len, found.values())) > 1:
        parts = {part: [r for one in each for rs in one.parts.values() for r in rs] for part, each in found.items()}
    return Table(str(path), name_of(path), {part: _fewer(rows) for part, rows in parts.items()}, first.bigbench)


def _fewer(records: Sequence[Record]) -> Sequence[Record]:
    """Return the records, or of very many those that their content chooses, whatever their order."""
    if len(records) <= _MOST_ROWS:
        return records
    places = [zlib.crc32(repr(record.values).encode("utf-8", "surrogatepass")) for record in records]
    return [records[k] for k in sorted(range(len(records)), key=places.__getitem__)[:_MOST_ROWS]]


def name_of(path: str | Path) -> str:
    """Return the name of a file's data: the file's, or its folder's where that says more than "task" or "train"."""
    path = Path(path).resolve()
    names = [path.name if path.is_dir() else _SHARD.sub("", path.stem), *(parent.name for parent in path.parents)]
    vague = {"task", "data", "dataset", "samples", *_PART}
    return next((name for name in names if name and name.lower() not in vague), names[0])


# --- which files --------------------------------------------------------------------------------------------


def _beside(path: Path) -> dict[str, list[Path]]:
    """Return the files of the data that a file is a part of, by part."""
    part, pattern = _place(path)
    if not path.is_file() or pattern == path:
        return {WHOLE: [path]}
    folders = [path.parent]
    if pattern.parent != path.parent:
        folders = [each for each in path.parent.parent.iterdir() if each.is_dir() and each.name.lower() in _PART]
    group = _groups(each for folder in folders for each in folder.iterdir() if each.suffix == path.suffix)[pattern]
    divided = _apart(group)
    return divided if len(divided) > 1 else {WHOLE: group[part]}


def _of_folder(folder: Path) -> dict[str, list[Path]]:
    """Return the files of the one data set in a folder, by part."""
    if (folder / "task.json").is_file():
        return {WHOLE: [folder / "task.json"]}
    files = chain.from_iterable(folder.glob(pattern) for pattern in ("*", "*/*", "*/*/*"))
    groups = list(_groups(each for each in files if _is_data(each, folder)).values())
    divided = [group for each in groups if len(group := _apart(each)) > 1]
    if len(groups) == 1 or len(divided) == 1:
        return divided[0] if divided else _apart(groups[0])
    every = chain.from_iterable(group.values() for group in groups)
    if len(groups) >= MINIMUM_ROWS and (records := _of_records(folder, every)):
        return records
    if not groups:
        raise TaskError(f"{folder}: no data in this folder; expected files that end in {', '.join(_KINDS)}")
    names = sorted(str(next(chain.from_iterable(group.values())).relative_to(folder)) for group in groups)
    more = ", ..." if len(names) > 8 else ""
    raise TaskError(f"{folder}: holds several data sets ({', '.join(names[:8])}{more}); name one of them")


def _of_records(folder: Path, found: Iterable[Sequence[Path]]) -> dict[str, list[Path]]:
    """Return the files by part where each holds one record, as the first does; nothing where they do not."""
    files = list(chain.from_iterable(found))
    if {file.suffix for file in files} != {".json"} or not _is_flat(_parsed(text_of(files[0]))):
        return {}
    parts: dict[str, list[Path]] = {}
    for file in files:
        part = next((_PART[n.lower()] for n in file.relative_to(folder).parts[:-1] if n.lower() in _PART), WHOLE)
        parts.setdefault(part, []).append(file)
    return _apart(parts)


def _is_flat(data: object) -> bool:
    held = data.values() if isinstance(data, Mapping) else ()
    return len(held) > 1 and not any(isinstance(value, list | Mapping) for value in held)


def _is_data(file: Path, folder: Path) -> bool:
    hidden = any(name.startswith(".") for name in file.relative_to(folder).parts)
    return _suffix(file) in _KINDS and file.is_file() and not hidden and not _BESIDES.fullmatch(file.name)


def _suffix(file: Path) -> str:
    """Return what a file's name ends in, without what a packer has added."""
    packed = file.suffix.lower() in (".gz", ".bz2", ".xz", ".zip")
    return (file.with_suffix("") if packed else file).suffix.lower()


def _place(path: Path) -> tuple[str, Path]:
    """Return the part that a file is, and its path with "*" for what tells the part and without a shard's number."""
    words = re.split(r"([-_. ])", _SHARD.sub("", path.stem))
    for k, word in enumerate(words):
        if word.lower() in _PART:
            words[k] = "*"
            return _PART[word.lower()], path.with_name("".join(words) + path.suffix)
    name, part = "".join(words) + path.suffix, _PART.get(path.parent.name.lower(), WHOLE)
    return part, path.parent.with_name("*") / name if part else path.with_name(name)


def _groups(files: Iterable[Path]) -> dict[Path, dict[str, list[Path]]]:
    """Return the files of each data set, by part."""
    groups: dict[Path, dict[str, list[Path]]] = {}
    for file in sorted(files):
        part, pattern = _place(file)
        groups.setdefault(pattern, {}).setdefault(part, []).append(file)
    return groups


def _apart(group: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the parts, training first, or all as one where there is nothing to train on or nothing else.

    Where there is none for training beside a test, what is for validation is.
    """
    if "train" not in group and {"validation", "test"} <= group.keys():
        group = {("train" if part == "validation" else part): held for part, held in group.items()}
    if "train" in group and len(group) > 1:
        return {part: group[part] for part in PARTS if part in group}
    return {WHOLE: list(chain.from_iterable(group.values()))}


# --- one file -----------------------------------------------------------------------------------------------


def _file(path: Path, named: Callable[[str], bool], alone: bool = False) -> Table:
    """Return the data of a file; `alone` says that it may be a single record."""
    if _is_columnar(path):
        return Table(str(path), name_of(path), {WHOLE: _columnar(path)})
    text = text_of(path)
    if not _is_json(text, _suffix(path)):
        _, rows = delimited.table(str(path), text, named)
        return Table(str(path), name_of(path), {WHOLE: [Record(*row) for row in rows]})
    if _is_json_lines(text, _suffix(path)):
        return Table(str(path), name_of(path), {WHOLE: json_lines(path, text)})
    data = json_of(path, text)
    if alone and _is_flat(data):
        return Table(str(path), name_of(path), {WHOLE: [_record(str(path), data)]})
    parts = _parts_in(str(path), data)
    told = data if isinstance(data, Mapping) and _is_bigbench(data.get("examples")) else None
    return Table(str(path), name_of(path), parts, told)


def _is_columnar(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return path.suffix.lower() in (".parquet", ".arrow") or file.read(4) == b"PAR1"
    return False


def text_of(path: str | Path) -> str:
    """Return the text of a file, unpacked; what is not in UTF-8 or UTF-16 is taken for Windows' Western code.

    Raises:
        TaskError: If there is none.
    """
    try:
        text = _decoded(path, _unpacked(path, Path(path).read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise TaskError(f"{path}: {getattr(error, 'strerror', None) or _first_line(error)}") from None
    if text.startswith(_POINTER):
        raise TaskError(f"{path}: stands for a file that Git LFS has not fetched; run git lfs pull")
    return text


def _unpacked(path: str | Path, content: bytes) -> bytes:
    for begins, packer in _PACKERS.items():
        if content.startswith(begins):
            unpacked: bytes = importlib.import_module(packer).decompress(content)
            return unpacked
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            names = [name for name in packed.namelist() if not name.endswith("/") and "__MACOSX" not in name]
            if len(names) == 1:
                return packed.read(names[0])
    if content.startswith(_PACKED):
        raise TaskError(f"{path}: several files in one, or a workbook; unpack it, or save it as CSV")
    return content


def _decoded(path: str | Path, content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in content:
        return content.decode("utf-16")
    zeros = [content[k:2000:2].count(0) * 2 / max(len(content[:2000]), 1) for k in (0, 1)]
    if max(zeros) > 0.7 and min(zeros) < 0.1:  # without a mark every other byte tells it
        return content.decode("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
    if _BINARY.search(content):
        raise TaskError(f"{path}: line {line}: not text; save it as CSV or JSON in UTF-8")
    warnings.warn(f"{path}: line {line}: not UTF-8; read as Windows-1252", stacklevel=2)
    return content.decode("cp1252", "replace")


def _is_json(text: str, suffix: str) -> bool:
    begins = text.lstrip()[:1] in ("{", "[")
    if suffix in (".csv", ".tsv", ".txt") and begins:  # a cell may begin so
        return _parsed(text.strip().partition("\n")[0]) is not None or _parsed(text) is not None
    return begins or suffix in (".json", ".jsonl", ".ndjson")


def _is_json_lines(text: str, suffix: str) -> bool:
    lines = text.strip().split("\n", 1)
    if isinstance(_parsed(lines[0]), dict):
        return len(lines) > 1 or suffix in (".jsonl", ".ndjson")
    return suffix in (".jsonl", ".ndjson") and _parsed(text) is None


def _parsed(text: str) -> object:
    with suppress(ValueError, RecursionError):
        return _from_json(text)
    return None


def _from_json(text: str) -> object:
    data: object = json.loads(text)
    return _sound(data) if "\\ud" in text.lower() else data


def _sound(data: object) -> object:
    """Return data with "?" for each half of a surrogate pair, which no request can hold."""
    match data:
        case str():
            return sound(data)
        case list():
            return [_sound(each) for each in data]
        case dict():
            return {sound(key): _sound(value) for key, value in data.items()}
        case _:
            return data


def json_of(path: str | Path, text: str) -> object:
    """Return what a file has as JSON.

    Raises:
        TaskError: If it is none.
    """
    try:
        data = _from_json(text)
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}: line {error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path}: not a task ({_first_line(error)})") from None
    return data


def json_lines(path: str | Path, text: str) -> list[Record]:
    """Return the records of a file of one JSON object a line; empty lines are skipped.

    Raises:
        TaskError: If a line is no object.
    """
    found: list[Record] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            item = _from_json(line)
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{where}: not JSON ({_first_line(error)})") from None
        found.append(_record(where, item))
    return found


def _record(where: str, item: object) -> Record:
    if not isinstance(item, Mapping):
        raise TaskError(f"{where}: expected an object, got {type(item).__name__}")
    return Record(where, item)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- records in JSON ----------------------------------------------------------------------------------------


def _parts_in(path: str, data: object) -> Parts:
    """Return the records in JSON data: a list of them, lists by part, a list under a usual name, columns."""
    if isinstance(data, Mapping):
        named = {_PART.get(str(key).lower(), WHOLE): value for key, value in data.items()}
        divided = {part: records for part, value in named.items() if part and (records := _list_in(value)) is not None}
        if {"train", "validation"} & divided.keys() and len(divided) > 1:
            return {p: _records(f"{path}[{p}]", "row", rows) for p, rows in _apart(divided).items()}
        usual = [(key, records) for key in _LISTS if (records := _list_in(data.get(key))) is not None]
        lists = [(key, value) for key, value in data.items() if isinstance(value, list) and value and _list_in(value)]
        if usual or len(lists) == 1:
            key, records = (usual or lists)[0]
            return {WHOLE: _records(path, "example" if key == "examples" else "row", records)}
    found = _list_in(data)
    if found is None and (found := _of_columns(data)) is None:
        there = ", ".join(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
        raise TaskError(f"{path}: no list of records in it; there is: {there:.200}")
    return {WHOLE: _records(path, "row", found)}


def _records(path: str, kind: str, items: Iterable[object]) -> list[Record]:
    return [_record(f"{path}: {kind} {number}", item) for number, item in enumerate(items, 1)]


def _list_in(data: object) -> list[object] | None:
    """Return the records that a value is a list of, or a mapping of keys to; None if it is neither.

    Lists of one length are records, too, without names.
    """
    if isinstance(data, Mapping):
        rows = list(data.values())
        return rows if len(rows) > 1 and all(isinstance(row, Mapping) for row in rows) and not _by_row(data) else None
    if not isinstance(data, list):
        return None
    if len(data) > 1 and all(isinstance(row, list) and len(row) == len(data[0]) > 1 for row in data):
        return [{f"column_{k}": cell for k, cell in enumerate(row, 1)} for row in data]
    return data if not data or sum(isinstance(row, Mapping) for row in data) * 2 > len(data) else None


def spread(records: Sequence[Record], told: Iterable[str]) -> Sequence[Record]:
    """Return one record a question where records hold lists of them, as SQuAD's paragraphs do.

    Args:
        records: The data.
        told: Paths into the records; a list that one of them names stays whole.
    """
    kept = {path.partition(".")[0] for path in told}
    if not any(_asking(record.values, kept) for record in records[:MINIMUM_ROWS]):
        return records
    return [Record(record.where, each) for record in records for each in _spread(record.values, kept)]


def _spread(values: Mapping[str, object], kept: Iterable[str]) -> list[Mapping[str, object]]:
    name = _asking(values, kept)
    if not name:
        return [values]
    held, rest = values[name], {key: value for key, value in values.items() if key != name}
    inner = [each for each in held if isinstance(each, Mapping)] if isinstance(held, list) else []
    return [{**rest, **row} for each in inner for row in _spread(each, ())]


def _asking(values: Mapping[str, object], kept: Iterable[str]) -> str:
    """Return the name of the list of records that ask a question each, or hold such lists; empty if there is none."""
    for name, held in values.items():
        first = held[0] if isinstance(held, list) and held else None
        if name in kept or not isinstance(first, Mapping) or "question" in values:
            continue
        if "question" in first or _asking(first, ()):
            return name
    return ""


def _by_row(data: Mapping[str, object]) -> bool:
    """Whether a mapping holds columns, each a mapping of row numbers to cells, as pandas writes them."""
    return all(isinstance(column, Mapping) and all(str(key).isdigit() for key in column) for column in data.values())


def _of_columns(data: object) -> list[object] | None:
    """Return the rows of columns that are lists of one length, or mappings of row numbers to cells."""
    if not isinstance(data, Mapping) or len(data) < 2:
        return None
    lists = [list(c.values()) if isinstance(c, Mapping) else c for c in data.values()]
    if not all(isinstance(column, list) and len(column) == len(lists[0]) for column in lists):
        return None
    return [dict(zip(data, cells, strict=True)) for cells in zip(*lists, strict=True)]


def _is_bigbench(examples: object) -> bool:
    if not isinstance(examples, list):
        return False
    fitting = [e for e in examples if isinstance(e, Mapping) and "input" in e and {"target", "target_scores"} & {*e}]
    return len(fitting) * 2 > len(examples)


# --- records in columns -------------------------------------------------------------------------------------


def _columnar(path: Path) -> list[Record]:
    try:
        arrow = importlib.import_module("pyarrow")
        parquet, ipc = (importlib.import_module(f"pyarrow.{name}") for name in ("parquet", "ipc"))
    except ImportError:
        raise TaskError(f"{path}: reading it needs the package 'pyarrow' (pip install pyarrow)") from None
    try:
        with path.open("rb") as file:
            begins = file.read(6)
        if begins[:4] == b"PAR1":
            table = parquet.read_table(path)
        else:
            table = (ipc.open_file if begins == b"ARROW1" else ipc.open_stream)(path).read_all()
    except (arrow.ArrowException, OSError) as error:
        raise TaskError(f"{path}: neither Parquet nor Arrow data ({_first_line(error)})") from None
    classes = _classes(table.schema.metadata or {})
    rows = ({c: _as_json(named_class(v, classes.get(c))) for c, v in row.items()} for row in table.to_pylist())
    return [Record(f"{path}: row {number}", row) for number, row in enumerate(rows)]


def _as_json(value: object) -> object:
    return str(value) if isinstance(value, date | time | Decimal) else value


def _classes(metadata: Mapping[bytes, bytes]) -> dict[str, Sequence[str]]:
    """Return column -> the names of its classes, from what `datasets` writes beside the columns."""
    told: Any = _parsed(metadata.get(b"huggingface", b"{}").decode("utf-8", "replace"))
    features = told.get("info", {}).get("features", {}) if isinstance(told, dict) else {}
    found: dict[str, Sequence[str]] = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        names = inner.get("names") if isinstance(inner, dict) else None
        if isinstance(names, list):
            found[str(column)] = [str(name) for name in names]
    return found


def named_class(value: object, names: Sequence[str] | None) -> object:
    """Return the name of a class, or of several, for its number; None for the number of no class (-1)."""
    if names is None:
        return value
    if isinstance(value, list):
        return [named_class(each, names) for each in value]
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return value
