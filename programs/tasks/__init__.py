"""Tasks: examples in fixed, disjoint splits with the metric that scores them.

`generate` makes one from a task family of the embedded model; `load` reads one from data as it is found.
`load_bigbench`, `load_jsonl`, `load_csv` and `load_hugging_face` read one kind of data each, as tasks of text.
"""

from cuesmith.programs.tasks.answers import normalise
from cuesmith.programs.tasks.files import load, load_bigbench, load_csv, load_jsonl
from cuesmith.programs.tasks.generated import DEFAULT_FAMILY, generate
from cuesmith.programs.tasks.hub import load_hugging_face
from cuesmith.programs.tasks.metrics import (
    ACCEPTED,
    METRICS,
    Choice,
    ExactMatch,
    InOrder,
    JsonFields,
    Near,
    Number,
    SetF1,
    TokenF1,
)
from cuesmith.programs.tasks.task import Row, Sizes, Task, TaskError, build

__all__ = [
    "ACCEPTED",
    "DEFAULT_FAMILY",
    "METRICS",
    "Choice",
    "ExactMatch",
    "InOrder",
    "JsonFields",
    "Near",
    "Number",
    "Row",
    "SetF1",
    "Sizes",
    "Task",
    "TaskError",
    "TokenF1",
    "build",
    "generate",
    "load",
    "load_bigbench",
    "load_csv",
    "load_hugging_face",
    "load_jsonl",
    "normalise",
]
