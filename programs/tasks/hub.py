"""Tasks from Hugging Face `datasets`, when that package is installed.

Source: ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from cuesmith.programs.tasks.files import of_text
from cuesmith.programs.tasks.reading import Record, named_class
from cuesmith.programs.tasks.task import Sizes, Task, TaskError, check_fields


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
    names = getattr((getattr(table, "features", None) or {}).get(output), "names", None)
    rows = (_as_text({**row, output: named_class(row.get(output), names)}, inputs) for row in table)
    records = (Record(f"{name}[{split}]: row {number}", row) for number, row in enumerate(rows))
    return of_text(name, records, inputs, output, sizes=sizes, seed=seed)


def _as_text(row: Mapping[str, object], inputs: Sequence[str]) -> dict[str, object]:
    """Return a row whose inputs are text or missing: data in them is written as Python does."""
    return {name: str(value) if name in inputs and value is not None else value for name, value in row.items()}
