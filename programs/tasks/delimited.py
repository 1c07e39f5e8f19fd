"""Tables in text: which delimiter, whether the first line names the columns, and the rows with their line numbers.

`csv.Sniffer` takes whatever character comes as often in every line, also a letter; here a delimiter has to cut the
lines into as many cells as the first has. Source: ours.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Literal

from cuesmith.programs.tasks.task import TaskError

_USUAL = "\t,;|"
_NEVER = "\"'._-()[]{}<>?!/\\"
"""What no delimiter is, however regularly it comes."""
_LONGEST_NAME = 40
"""Characters of a column's name: a longer first cell is data. Ours."""

_WORDS = 3
"""Words of a column's name at most, where one of the names also stands among the data. Ours."""
_ENOUGH = 5
"""Cells from which on it can be told of what kind a column is. Ours."""

Line = tuple[int, list[str]]
"""The number of the line in which a row ends, and its cells."""


def table(
    path: str, text: str, named: Callable[[str], bool] = lambda cell: True
) -> tuple[list[str], list[tuple[str, dict[str, object]]]]:
    """Return the names of the columns of a delimited text, and its rows, each with its place.

    The columns are called column_1, column_2, ... where the first line is data, too: where none of its cells is the
    name of a column that is wanted or usual, and one is a number, is long, or comes again in its column. Names may come
    again, too, where they are rare among classes and one is usual, or above numbers or sentences. A line of all the
    names once more is no row.

    Args:
        path: For messages.
        text: The file's content.
        named: Whether a cell is such a name; by default the first line always has the names.

    Raises:
        TaskError: If a line cannot be read, two columns have one name, or a row has more cells than there are names.
    """
    with _fields_as_long_as(text):
        cut = _best_cut(text)
    if cut.problem:
        raise TaskError(f"{path}: {cut.problem}")
    lines = list(cut.lines)
    if not lines:
        return [], []
    names = [name.strip() for name in lines[0][1]]
    if _has_names(lines, named):
        lines = [line for line in lines if line[1] != lines[0][1]]
    else:
        names = [f"column_{k}" for k, _ in enumerate(names, 1)]
    repeated = next((name for name in names if name and names.count(name) > 1), None)
    if repeated is not None:
        raise TaskError(f"{path}: line 1: two columns are called {repeated!r}; rename one of them")
    return names, [(f"{path}: line {number}", _row(path, number, names, cells)) for number, cells in lines]


def _row(path: str, number: int, names: Sequence[str], cells: Sequence[str]) -> dict[str, object]:
    if any(cell.strip() for cell in cells[len(names) :]):
        told = f"{path}: line {number}: {len(cells)} cells, the first line has {len(names)}"
        raise TaskError(f"{told}; a cell that holds the delimiter needs quotes")
    return {name: cell for name, cell in zip(names, cells, strict=False) if name}


@dataclass(frozen=True)
class _Cut:
    """A text cut by one delimiter, up to what could not be read."""

    lines: Sequence[Line]
    problem: str = ""

    @property
    def regular(self) -> float:
        """The share of lines with as many cells as the first; half of it if not all could be read, 0 of one column."""
        width = len(self.lines[0][1]) if self.lines else 0
        share = sum(len(cells) == width for _, cells in self.lines) / len(self.lines) if width > 1 else 0.0
        return share / 2 if self.problem else share


def _best_cut(text: str) -> _Cut:
    first = next((line for line in text.splitlines() if line.strip()), "")
    cuts = [_cut(text, delimiter) for delimiter in _USUAL if delimiter in first]
    if "\t" in first:  # often written without any quoting
        cuts.append(_cut(text, "\t", csv.QUOTE_NONE))
    best = max(cuts, key=lambda cut: cut.regular, default=_Cut(()))
    if best.regular:
        return best
    others = sorted(c for c in set(first) if not c.isalnum() and not c.isspace() and c not in _USUAL + _NEVER)
    rare = (cut for c in others if (cut := _cut(text, c)).regular == 1.0 and len(cut.lines) > 1)
    return next(rare, None) or _cut(text, ",")


def _cut(text: str, delimiter: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL) -> _Cut:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    lines: list[Line] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, cells))
    except csv.Error as error:
        return _Cut(lines, f"line {reader.line_num}: {error}")
    return _Cut(lines)


def _has_names(lines: Sequence[Line], named: Callable[[str], bool]) -> bool:
    cells = lines[0][1]
    columns = [[line[k] for _, line in lines[1:] if len(line) > k] for k in range(len(cells))]
    again = [cell != "" and cell in column for cell, column in zip(cells, columns, strict=True)]
    known = [named(cell) for cell in cells]
    if any(usual and not repeated for usual, repeated in zip(known, again, strict=True)):
        return True
    if any(known) and all(usual or not cell.strip() for usual, cell in zip(known, cells, strict=True)):
        return True
    if any(_is_value(cell) for cell in cells):
        return False
    if not any(again):
        return True
    # A word of this line stands among the data, too: is it one of the classes there, or is the line of another kind?
    pairs = list(zip(cells, columns, strict=True))
    if any(len(cell.split()) > _WORDS or _is_class(cell, column) for cell, column in pairs):
        return False
    return any(known) or any(_is_of_another_kind(cell, column) for cell, column in pairs)


def _is_class(cell: str, column: Sequence[str]) -> bool:
    """Whether a cell comes again about as often as what recurs in its column does."""
    counts = Counter(column)
    usual = median(counts.values() or [0])
    return usual >= 2 and counts[cell] * 2 >= usual


def _is_of_another_kind(cell: str, column: Sequence[str]) -> bool:
    """Whether a cell is one word where numbers or several words are below it."""
    word = cell.isidentifier() and cell.casefold() not in ("na", "nan", "none", "null")
    below = [each for each in column if each.strip() and each != cell]
    kinds = (sum(map(_is_number, below)), sum(len(each.split()) > 2 for each in below))
    return word and len(below) >= _ENOUGH and max(kinds) >= 0.9 * len(below)


def _is_value(cell: str) -> bool:
    return len(cell) > _LONGEST_NAME or _is_number(cell)


def _is_number(cell: str) -> bool:
    return cell.strip().replace(".", "", 1).replace("-", "", 1).isdigit()


@contextmanager
def _fields_as_long_as(text: str) -> Iterator[None]:
    """Let cells be as long as they are: by default csv takes 131,072 characters for a mistake."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, len(text)))
    try:
        yield
    finally:
        csv.field_size_limit(before)
