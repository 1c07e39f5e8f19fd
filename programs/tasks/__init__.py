"""Tasks: examples in fixed, disjoint splits with the metric that scores them.

`generate` makes one from a task family of the embedded model; `load_bigbench`, `load_jsonl`, `load_csv` and
`load_hugging_face` read one from data; `load` chooses the reader by the file's name.
"""

from cuesmith.programs.tasks.files import load, load_bigbench, load_csv, load_jsonl
from cuesmith.programs.tasks.generated import DEFAULT_FAMILY, generate
from cuesmith.programs.tasks.hub import load_hugging_face
from cuesmith.programs.tasks.task import ExactMatch, Row, Sizes, Task, TaskError, build, normalise

__all__ = [
    "DEFAULT_FAMILY",
    "ExactMatch",
    "Row",
    "Sizes",
    "Task",
    "TaskError",
    "build",
    "generate",
    "load",
    "load_bigbench",
    "load_csv",
    "load_hugging_face",
    "load_jsonl",
    "normalise",
]
