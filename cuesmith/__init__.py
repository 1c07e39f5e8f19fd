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
    from cuesmith.teleprompters.registry import compile
    from cuesmith.teleprompters.runtime._ray import RayExecutor
    from cuesmith.teleprompters.runtime.compilation import Compilation, CompileWarning
    from cuesmith.teleprompters.runtime.interruption import Interrupted, Terminated
    from cuesmith.teleprompters.runtime.ledger import Budget
    from cuesmith.teleprompters.runtime.remote import Remote

__all__ = [
    "Budget",
    "Compilation",
    "CompileWarning",
    "EmbeddedLM",
    "Interrupted",
    "LocalLM",
    "RayExecutor",
    "Remote",
    "SimulatedOptimizer",
    "Terminated",
    "__version__",
    "compile",
]

__version__ = "0.1.0"

_HOMES = {
    "Budget": "cuesmith.teleprompters.runtime.ledger",
    "Compilation": "cuesmith.teleprompters.runtime.compilation",
    "CompileWarning": "cuesmith.teleprompters.runtime.compilation",
    "EmbeddedLM": "cuesmith.modules.embedded",
    "Interrupted": "cuesmith.teleprompters.runtime.interruption",
    "LocalLM": "cuesmith.modules.local",
    "RayExecutor": "cuesmith.teleprompters.runtime._ray",
    "Remote": "cuesmith.teleprompters.runtime.remote",
    "SimulatedOptimizer": "cuesmith.modules.simulated_optimizer",
    "Terminated": "cuesmith.teleprompters.runtime.interruption",
    "compile": "cuesmith.teleprompters.registry",
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
