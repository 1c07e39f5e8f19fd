"""`import cuesmith` is cheap, and its lazy names are what they say."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cuesmith

HEAVY = ("dspy", "litellm", "torch", "numpy", "pydantic", "rich", "transformers")


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    code = f"import cuesmith, sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == "[]"


def test_import_takes_less_than_50_ms() -> None:
    code = (
        "import time; start = time.perf_counter(); import cuesmith; "
        "print(1000 * (time.perf_counter() - start))"
    )
    assert min(float(run(code)) for _ in range(5)) < 50


@pytest.mark.parametrize("name", [name for name in cuesmith.__all__ if name != "__version__"])
def test_each_name_loads(name: str) -> None:
    assert run(f"import cuesmith; print(callable(cuesmith.{name}) and {name!r} in dir(cuesmith))") == "True"


def test_using_the_package_does_not_load_torch() -> None:
    code = "import cuesmith, sys; cuesmith.EmbeddedLM(); cuesmith.compile; print('torch' in sys.modules)"
    assert run(code) == "False"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cuesmith.nothing  # noqa: B018


def test_litellm_is_whole_before_threads_call_it() -> None:
    code = """
import sys, dspy
from cuesmith.teleprompters.runtime.score_program import score_program
print(type(sys.modules.get("litellm")).__name__ if "litellm" in sys.modules else "", end=" ")
lm = dspy.LM("openai/x", api_base="http://127.0.0.1:9/v1", api_key="k")
example = dspy.Example(question="q").with_inputs("question")
score_program(dspy.Predict("question -> answer"), [example], lambda e, p: 1, lm=lm)
print("completion" in object.__getattribute__(sys.modules["litellm"], "__dict__"))
"""
    assert run(code).split()[-1] == "True"
