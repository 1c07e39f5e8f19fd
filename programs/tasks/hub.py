"""Tasks from Hugging Face `datasets`, when that package is installed.

Source: ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cuesmith.programs.tasks.task import Row, Sizes, Task, TaskError, build, check_fields


def load_hugging_face(
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    inputs: Sequence[str] = ("question",),
    output: str = "answer",
    sizes: Sizes | None = None,
    seed: int = 0,
) -> Task:
    """Read one split of a data set and divide it anew into train, validation and test.

    Args:
        name: The data set, as `datasets.load_dataset` takes it.
        split: The split to read.
        config: The data set's configuration, if it has several.
        inputs: The columns that become input fields.
        output: The column that becomes the output field; class labels are given by name.
        sizes: Wanted sizes of the splits.
        seed: Chooses the splits.

    Raises:
        TaskError: If `datasets` is not installed, or the data has another form.
    """
    check_fields(name, inputs, output)
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        problem = f"{name}: reading it needs the package 'datasets' (pip install datasets)"
        raise TaskError(problem) from None
    table = datasets.load_dataset(name, config, split=split)
    names = _class_names(table, output)
    rows = _rows(f"{name}[{split}]", table, inputs, output, names)
    return build(name, "", rows, output=output, sizes=sizes, seed=seed)


def _class_names(table: object, output: str) -> Sequence[str] | None:
    """The names of a class-label column, whose rows hold numbers."""
    features = getattr(table, "features", None) or {}
    return getattr(features.get(output), "names", None)


def _rows(
    where: str,
    table: Iterable[Mapping[str, object]],
    inputs: Sequence[str],
    output: str,
    names: Sequence[str] | None,
) -> Iterator[Row]:
    for number, item in enumerate(table):
        for column in (*inputs, output):
            if item.get(column) is None or not str(item[column]).strip():
                raise TaskError(f"{where}: row {number}: {column!r} is missing or empty")
        label = item[output]
        answer = names[label] if names is not None and isinstance(label, int) else str(label)
        yield Row({column: str(item[column]) for column in inputs}, (answer,))
