"""`import cuesmith` is cheap, loads what is asked for and no more, and its lazy names are what they say."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cuesmith


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_takes_less_than_50_ms() -> None:
    """Of the processor's time, which another process does not take away."""
    code = "import time; start = time.process_time(); import cuesmith; print(1000 * (time.process_time() - start))"
    assert min(float(run(code)) for _ in range(5)) < 50


def test_nothing_is_loaded_before_it_is_needed() -> None:
    """One process goes from the cheapest to the dearest: what is not there then was not there before."""
    code = """
import sys, cuesmith
def unloaded(*names):
    assert not set(names) & set(sys.modules), set(names) & set(sys.modules)
unloaded("dspy", "litellm", "torch", "numpy", "pydantic", "rich", "transformers")
from cuesmith import cli
try: cli.main(["quickstart", "--help"])
except SystemExit: pass
unloaded("dspy")
import cuesmith.modules.embedded as embedded
assert set(embedded.__all__) <= set(dir(embedded))
unloaded("numpy", "dspy", "litellm", "torch", "tokenizers")
embedded.NanoEngine
unloaded("dspy", "litellm", "torch")
from cuesmith.teleprompters.alignment import training
unloaded("torch")
import cuesmith.modules.policy, cuesmith.modules.prompter, cuesmith.modules.judges
unloaded("torch", "transformers", "trl", "litellm")
import dspy
dspy.Predict("question -> answer")
cuesmith.EmbeddedLM(max_tokens=4)("a b")
unloaded("litellm", "torch")
cuesmith.compile
unloaded("torch")
"""
    assert "--budget-usd" in run(code)


def test_each_name_loads() -> None:
    """Each in a process of its own, into which nothing of cuesmith was loaded before."""
    code = f"""
import dspy, os
for name in {[name for name in cuesmith.__all__ if name != "__version__"]!r}:
    if os.fork() == 0:
        loads = False
        try:
            import cuesmith
            loads = callable(getattr(cuesmith, name)) and name in dir(cuesmith)
        finally:
            os._exit(not loads)
    if os.wait()[1]:
        print(name)
"""
    assert run(code) == ""


def test_what_public_functions_return_is_public() -> None:
    """And so are the types of what these hold, as far as a user would write them down."""
    functions = {name for name in cuesmith.__all__ if name.islower() and name not in ("__version__", "export")}
    held = {"Compilation", "Check", "Contest", "ContestRow", "ContestEntry"} & set(cuesmith.__all__)
    written = [inspect.signature(getattr(cuesmith, name)).return_annotation for name in sorted(functions)]
    written += [field.type for name in sorted(held) for field in dataclasses.fields(getattr(cuesmith, name))]
    named = {name for each in written for name in re.findall("[A-Z][a-zA-Z0-9]+", each)}
    elsewhere = {"Any", "Mapping", "None", "Path", "CheckFigures", "CompileCost", "Finding", "Module", "Standing"}
    assert len(held) == 5 and named - elsewhere - set(cuesmith.__all__) == set()


def test_type_checkers_see_what_loads() -> None:
    tree = ast.parse(Path(cuesmith.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == cuesmith._HOMES and {*seen, "__version__"} == {*cuesmith.__all__}


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


def test_looking_for_keys_loads_nothing() -> None:
    code = """
import sys, litellm, openai
litellm.completion
from cuesmith.teleprompters.runtime.redaction import Redactor
before = set(sys.modules)
Redactor([])
print(len(set(sys.modules) - before))
"""
    assert run(code) == "0"
