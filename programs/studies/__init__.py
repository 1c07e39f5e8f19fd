"""Ready studies of the questions that 2402.02101 raises, for any task and any models. `cuesmith study NAME` runs one.

A study is one module, NAME.py, with its question, its design and its typed results; their words stand in NAME.j2.

Source: its three experiments and the three checks that its text asks for; designs and statistics are ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuesmith.programs.studies.bench import Study

STUDIES: Mapping[str, str] = MappingProxyType(
    {
        "reflection": "does showing the errors make better refinements than no errors, or wrong ones?",
        "demonstrations": "does a refined instruction need demonstrations to change what the model does?",
        "similarity": "do prompts that read alike act alike?",
        "errors": "does feedback change when the distribution of the errors is changed?",
        "abo-gain": "on which tasks does ABO help, and what tells it beforehand?",
        "complexity": "up to how many steps does the model do what its prompt says?",
    }
)
"""Name -> the question, in the order of the paper."""


def study(name: str) -> Study:
    """Return a ready study.

    Args:
        name: One of `STUDIES`.

    Raises:
        ValueError: If there is none.
    """
    if name not in STUDIES:
        raise ValueError(f"no study is called {name!r}: there are {', '.join(STUDIES)}")
    found: Study = importlib.import_module(f"cuesmith.programs.studies.{name.replace('-', '_')}").STUDY
    return found
