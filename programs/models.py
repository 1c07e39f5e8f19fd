"""The models that a command's options name: what each is called, how it is made, and the Python that makes it.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import dspy

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.local import LocalLM
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer

AT_ONCE = 8
"""Calls that a model file answers at once: the slots of a `LocalLM` unless told otherwise."""


@dataclass(frozen=True)
class ModelSpec:
    """A model that was chosen, and not made yet.

    Attributes:
        name: What it is called.
        code: The Python that makes it.
        make: Makes it.
        remark: What stands behind its name, where what it is should be seen at once.
        caveat: What results with it do not show.
    """

    name: str
    code: str
    make: Callable[[], dspy.BaseLM] = field(repr=False, compare=False)
    remark: str = ""
    caveat: str = ""


EMBEDDED = ModelSpec(
    "cuesmith/nano", "EmbeddedLM()", EmbeddedLM, " (embedded, tiny)",
    "The target is a tiny model that was trained, on generated text, to need good prompts. This shows how "
    "the machinery works; it is no evidence about large models: --lm takes any LiteLLM model, --local a model file.",
)  # fmt: skip
SIMULATED = ModelSpec(
    "cuesmith/simulated-optimizer", "SimulatedOptimizer()", SimulatedOptimizer, " (no model: simulated)",
    "The optimizer is simulated: no model, but rules that answer each request from the request's own text. "
    "--optimizer-lm takes any LiteLLM model.",
)  # fmt: skip


def named(model: str) -> ModelSpec:
    """The LiteLLM model of that name."""
    return ModelSpec(model, f"dspy.LM({model!r})", partial(dspy.LM, model))


def answering(file: Path, threads: int | None) -> ModelSpec:
    """A model file that runs the program; small models now and then write without end, which would take minutes."""
    return _local(file, threads, max_tokens=256)


def writing(file: Path, threads: int | None) -> ModelSpec:
    """A model file that writes prompts, each draw another."""
    return _local(file, threads, temperature=0.7, max_tokens=512)


def _local(file: Path, threads: int | None, **options: float) -> ModelSpec:
    given: dict[str, float] = options if threads is None else {"threads": threads, **options}
    written = ", ".join([repr(str(file)), *(f"{name}={value}" for name, value in given.items())])
    return ModelSpec(f"local/{file.stem}", f"LocalLM({written})", partial(LocalLM, file, **given))  # type: ignore[arg-type]
