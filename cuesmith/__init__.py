"""Cuesmith compiles DSPy programs, with hard budgets, crash-safe resume and honest statistics.

The names below load on first use, so that `import cuesmith` costs nothing: it loads neither dspy nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuesmith.modules.embedded import EmbeddedLM
    from cuesmith.modules.local import LocalLM
    from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
    from cuesmith.programs.checking import check
    from cuesmith.programs.contest import compare_compilers
    from cuesmith.programs.costing import Entrant
    from cuesmith.programs.evaluation import compare, evaluate
    from cuesmith.programs.exporting import export
    from cuesmith.programs.tasks import load
    from cuesmith.teleprompters.abo import ABO
    from cuesmith.teleprompters.align_pro import AlignPro
    from cuesmith.teleprompters.alignment.training import Training
    from cuesmith.teleprompters.apo import APO
    from cuesmith.teleprompters.apo_sum import APOSum
    from cuesmith.teleprompters.iterative_ape import IterativeAPE
    from cuesmith.teleprompters.opro import OPRO
    from cuesmith.teleprompters.portfolio import Portfolio
    from cuesmith.teleprompters.prompt_agent import PromptAgent
    from cuesmith.teleprompters.reflective_mutation import ReflectiveMutation
    from cuesmith.teleprompters.registry import compile, compiler_class
    from cuesmith.teleprompters.runtime._ray import RayExecutor
    from cuesmith.teleprompters.runtime.compilation import Compilation, Compiled, CompileWarning
    from cuesmith.teleprompters.runtime.executors import Remote
    from cuesmith.teleprompters.runtime.interruption import Interrupted, Terminated
    from cuesmith.teleprompters.runtime.ledger import Budget
    from cuesmith.teleprompters.runtime.provenance import Provenance, provenance
    from cuesmith.teleprompters.runtime.run_report import RunReport
    from cuesmith.teleprompters.runtime.session import CompileError
    from cuesmith.teleprompters.runtime.sinks import JsonlEvents, MLflowEvents, WandbEvents

__all__ = [
    "ABO",
    "APO",
    "OPRO",
    "APOSum",
    "AlignPro",
    "Budget",
    "Compilation",
    "CompileError",
    "CompileWarning",
    "Compiled",
    "EmbeddedLM",
    "Entrant",
    "Interrupted",
    "IterativeAPE",
    "JsonlEvents",
    "LocalLM",
    "MLflowEvents",
    "Portfolio",
    "PromptAgent",
    "Provenance",
    "RayExecutor",
    "ReflectiveMutation",
    "Remote",
    "RunReport",
    "SimulatedOptimizer",
    "Terminated",
    "Training",
    "WandbEvents",
    "__version__",
    "check",
    "compare",
    "compare_compilers",
    "compile",
    "compiler_class",
    "evaluate",
    "export",
    "load",
    "provenance",
]

__version__ = "0.1.0"

_HOMES = {
    "ABO": "cuesmith.teleprompters.abo",
    "APO": "cuesmith.teleprompters.apo",
    "APOSum": "cuesmith.teleprompters.apo_sum",
    "AlignPro": "cuesmith.teleprompters.align_pro",
    "Budget": "cuesmith.teleprompters.runtime.ledger",
    "Compilation": "cuesmith.teleprompters.runtime.compilation",
    "CompileError": "cuesmith.teleprompters.runtime.session",
    "CompileWarning": "cuesmith.teleprompters.runtime.compilation",
    "Compiled": "cuesmith.teleprompters.runtime.compilation",
    "EmbeddedLM": "cuesmith.modules.embedded",
    "Entrant": "cuesmith.programs.costing",
    "Interrupted": "cuesmith.teleprompters.runtime.interruption",
    "IterativeAPE": "cuesmith.teleprompters.iterative_ape",
    "JsonlEvents": "cuesmith.teleprompters.runtime.sinks",
    "LocalLM": "cuesmith.modules.local",
    "MLflowEvents": "cuesmith.teleprompters.runtime.sinks",
    "OPRO": "cuesmith.teleprompters.opro",
    "Portfolio": "cuesmith.teleprompters.portfolio",
    "PromptAgent": "cuesmith.teleprompters.prompt_agent",
    "Provenance": "cuesmith.teleprompters.runtime.provenance",
    "RayExecutor": "cuesmith.teleprompters.runtime._ray",
    "ReflectiveMutation": "cuesmith.teleprompters.reflective_mutation",
    "Remote": "cuesmith.teleprompters.runtime.executors",
    "RunReport": "cuesmith.teleprompters.runtime.run_report",
    "SimulatedOptimizer": "cuesmith.modules.simulated_optimizer",
    "Terminated": "cuesmith.teleprompters.runtime.interruption",
    "Training": "cuesmith.teleprompters.alignment.training",
    "WandbEvents": "cuesmith.teleprompters.runtime.sinks",
    "check": "cuesmith.programs.checking",
    "compare": "cuesmith.programs.evaluation",
    "compare_compilers": "cuesmith.programs.contest",
    "compile": "cuesmith.teleprompters.registry",
    "compiler_class": "cuesmith.teleprompters.registry",
    "evaluate": "cuesmith.programs.evaluation",
    "export": "cuesmith.programs.exporting",
    "load": "cuesmith.programs.tasks",
    "provenance": "cuesmith.teleprompters.runtime.provenance",
}


def __getattr__(name: str) -> object:
    """Load one of the public names (PEP 562).

    Raises:
        AttributeError: If there is no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names that are there, loaded or not."""
    return sorted({*globals(), *__all__})
