"""The embedded language model: a tiny transformer that lives in this package and runs on numpy.

`EmbeddedLM` is the `dspy.LM`, `register` makes the model a LiteLLM provider (``cuesmith/nano``), and `NanoEngine` is
the bare model. All are imported at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuesmith.modules.embedded.engine import NanoEngine
    from cuesmith.modules.embedded.lm import EmbeddedLM, register

__all__ = ["EmbeddedLM", "NanoEngine", "register"]

_HOMES = {"EmbeddedLM": "lm", "register": "lm", "NanoEngine": "engine"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
