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
    from cuesmith.programs.checking import Check, check
    from cuesmith.programs.contest import ContestInterrupted, compare_compilers
    from cuesmith.programs.contest_table import Contest, ContestEntry, ContestRow
    from cuesmith.programs.costing import Entrant
    from cuesmith.programs.evaluation import compare, evaluate
    from cuesmith.programs.exporting import export
    from cuesmith.programs.spread import Spread
    from cuesmith.programs.tasks import Sizes, Task, TaskError, generate, load
    from cuesmith.teleprompters.abo import ABO
    from cuesmith.teleprompters.align_pro import AlignPro
    from cuesmith.teleprompters.alignment.training import Training
    from cuesmith.teleprompters.apo import APO
    from cuesmith.teleprompters.apo_sum import APOSum
    from cuesmith.teleprompters.compiler import Compiler
    from cuesmith.teleprompters.iterative_ape import IterativeAPE
    from cuesmith.teleprompters.opro import OPRO
    from cuesmith.teleprompters.portfolio import Portfolio
    from cuesmith.teleprompters.prompt_agent import PromptAgent
    from cuesmith.teleprompters.reflective_mutation import ReflectiveMutation
    from cuesmith.teleprompters.registry import compile, compiler_class
    from cuesmith.teleprompters.runtime._ray import RayExecutor
    from cuesmith.teleprompters.runtime.candidate import Candidate
    from cuesmith.teleprompters.runtime.compilation import (
        Compilation,
        Compiled,
        CompileWarning,
        Forecast,
        Note,
        Report,
        StepRecord,
        Trial,
    )
    from cuesmith.teleprompters.runtime.executors import Remote
    from cuesmith.teleprompters.runtime.interruption import Interrupted, Terminated
    from cuesmith.teleprompters.runtime.journal import JournalError
    from cuesmith.teleprompters.runtime.ledger import Budget, Spent, Usage
    from cuesmith.teleprompters.runtime.outcomes import Scores
    from cuesmith.teleprompters.runtime.provenance import Provenance, provenance
    from cuesmith.teleprompters.runtime.run_report import RunReport
    from cuesmith.teleprompters.runtime.score_program import EvaluationStopped
    from cuesmith.teleprompters.runtime.session import CompileError
    from cuesmith.teleprompters.runtime.sinks import JsonlEvents, MLflowEvents, WandbEvents
    from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain

__all__ = [
    "ABO",
    "APO",
    "OPRO",
    "APOSum",
    "AlignPro",
    "Budget",
    "Candidate",
    "Check",
    "Compilation",
    "CompileError",
    "CompileWarning",
    "Compiled",
    "Compiler",
    "Contest",
    "ContestEntry",
    "ContestInterrupted",
    "ContestRow",
    "EmbeddedLM",
    "Entrant",
    "Estimate95",
    "EvaluationStopped",
    "Forecast",
    "Gain",
    "Interrupted",
    "IterativeAPE",
    "JournalError",
    "JsonlEvents",
    "LocalLM",
    "MLflowEvents",
    "Note",
    "Portfolio",
    "PromptAgent",
    "Provenance",
    "RayExecutor",
    "ReflectiveMutation",
    "Remote",
    "Report",
    "RunReport",
    "Scores",
    "SimulatedOptimizer",
    "Sizes",
    "Spent",
    "Spread",
    "StepRecord",
    "Task",
    "TaskError",
    "Terminated",
    "Training",
    "Trial",
    "Usage",
    "WandbEvents",
    "__version__",
    "check",
    "compare",
    "compare_compilers",
    "compile",
    "compiler_class",
    "evaluate",
    "export",
    "generate",
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
    "Candidate": "cuesmith.teleprompters.runtime.candidate",
    "Check": "cuesmith.programs.checking",
    "Compilation": "cuesmith.teleprompters.runtime.compilation",
    "CompileError": "cuesmith.teleprompters.runtime.session",
    "CompileWarning": "cuesmith.teleprompters.runtime.compilation",
    "Compiled": "cuesmith.teleprompters.runtime.compilation",
    "Compiler": "cuesmith.teleprompters.compiler",
    "Contest": "cuesmith.programs.contest_table",
    "ContestEntry": "cuesmith.programs.contest_table",
    "ContestInterrupted": "cuesmith.programs.contest",
    "ContestRow": "cuesmith.programs.contest_table",
    "EmbeddedLM": "cuesmith.modules.embedded",
    "Entrant": "cuesmith.programs.costing",
    "Estimate95": "cuesmith.teleprompters.runtime.statistics",
    "EvaluationStopped": "cuesmith.teleprompters.runtime.score_program",
    "Forecast": "cuesmith.teleprompters.runtime.compilation",
    "Gain": "cuesmith.teleprompters.runtime.statistics",
    "Interrupted": "cuesmith.teleprompters.runtime.interruption",
    "IterativeAPE": "cuesmith.teleprompters.iterative_ape",
    "JournalError": "cuesmith.teleprompters.runtime.journal",
    "JsonlEvents": "cuesmith.teleprompters.runtime.sinks",
    "LocalLM": "cuesmith.modules.local",
    "MLflowEvents": "cuesmith.teleprompters.runtime.sinks",
    "Note": "cuesmith.teleprompters.runtime.compilation",
    "OPRO": "cuesmith.teleprompters.opro",
    "Portfolio": "cuesmith.teleprompters.portfolio",
    "PromptAgent": "cuesmith.teleprompters.prompt_agent",
    "Provenance": "cuesmith.teleprompters.runtime.provenance",
    "RayExecutor": "cuesmith.teleprompters.runtime._ray",
    "ReflectiveMutation": "cuesmith.teleprompters.reflective_mutation",
    "Remote": "cuesmith.teleprompters.runtime.executors",
    "Report": "cuesmith.teleprompters.runtime.compilation",
    "RunReport": "cuesmith.teleprompters.runtime.run_report",
    "Scores": "cuesmith.teleprompters.runtime.outcomes",
    "SimulatedOptimizer": "cuesmith.modules.simulated_optimizer",
    "Sizes": "cuesmith.programs.tasks",
    "Spent": "cuesmith.teleprompters.runtime.ledger",
    "Spread": "cuesmith.programs.spread",
    "StepRecord": "cuesmith.teleprompters.runtime.compilation",
    "Task": "cuesmith.programs.tasks",
    "TaskError": "cuesmith.programs.tasks",
    "Terminated": "cuesmith.teleprompters.runtime.interruption",
    "Training": "cuesmith.teleprompters.alignment.training",
    "Trial": "cuesmith.teleprompters.runtime.compilation",
    "Usage": "cuesmith.teleprompters.runtime.ledger",
    "WandbEvents": "cuesmith.teleprompters.runtime.sinks",
    "check": "cuesmith.programs.checking",
    "compare": "cuesmith.programs.evaluation",
    "compare_compilers": "cuesmith.programs.contest",
    "compile": "cuesmith.teleprompters.registry",
    "compiler_class": "cuesmith.teleprompters.registry",
    "evaluate": "cuesmith.programs.evaluation",
    "export": "cuesmith.programs.exporting",
    "generate": "cuesmith.programs.tasks",
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
