"""The compilers. `from cuesmith.teleprompters import ABO`; another name is another compiler."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from cuesmith.teleprompters.registry import COMPILERS, compile, compiler_class

if TYPE_CHECKING:
    from cuesmith.teleprompters.abo import ABO
    from cuesmith.teleprompters.align_pro import AlignPro
    from cuesmith.teleprompters.apo import APO
    from cuesmith.teleprompters.apo_sum import APOSum
    from cuesmith.teleprompters.compiler import Compiler
    from cuesmith.teleprompters.iterative_ape import IterativeAPE
    from cuesmith.teleprompters.opro import OPRO
    from cuesmith.teleprompters.portfolio import Portfolio
    from cuesmith.teleprompters.prompt_agent import PromptAgent
    from cuesmith.teleprompters.reflective_mutation import ReflectiveMutation

__all__ = [
    "ABO",
    "APO",
    "COMPILERS",
    "OPRO",
    "APOSum",
    "AlignPro",
    "Compiler",
    "IterativeAPE",
    "Portfolio",
    "PromptAgent",
    "ReflectiveMutation",
    "compile",
]


def __getattr__(name: str) -> type[Compiler]:
    """Load a class on first use (PEP 562), so that one compiler's dependencies are not another's.

    Raises:
        AttributeError: If there is no such name.
    """
    if name == "Compiler":
        found: type[Compiler] = importlib.import_module("cuesmith.teleprompters.compiler").Compiler
        return found
    for key, place in COMPILERS.items():
        if place.endswith(f":{name}"):
            return compiler_class(key)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
