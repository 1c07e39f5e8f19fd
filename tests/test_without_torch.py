"""Every compiler but Align-Pro's training works where torch is not installed; that one says what to install."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import importlib.abc, importlib.util, sys

BLOCKED = {"torch", "transformers", "trl", "peft", "datasets", "accelerate"}

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Blocked())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in BLOCKED else find(name, package)
"""

IMPORTS = (
    WITHOUT
    + """
import dspy
from cuesmith.teleprompters import COMPILERS, compiler_class
import cuesmith.modules.judges, cuesmith.modules.policy, cuesmith.modules.prompter, cuesmith.modules.reweighted
for name in COMPILERS:
    compiler_class(name)
from cuesmith.teleprompters import ABO, AlignPro
from cuesmith import EmbeddedLM, SimulatedOptimizer, compile
from cuesmith.programs.tasks.generated import generate
from cuesmith.programs.tasks import Sizes
task = generate("navigate", sizes=Sizes(20, 20, 20))
with dspy.context(lm=EmbeddedLM()):
    program = compile(
        dspy.ChainOfThought(task.signature), "iterative-ape", metric=task.metric, trainset=list(task.train),
        valset=list(task.validation), optimizer_lm=SimulatedOptimizer(), steps=1, branch=1, initial=2)
    untrained = compile(
        dspy.ChainOfThought(task.signature), "align-pro", metric=task.metric, trainset=list(task.train),
        valset=list(task.validation), optimizer_lm=SimulatedOptimizer())
assert program.compilation.best
assert any("Nothing is trained" in note for note in untrained.compilation.notes)
AlignPro(task.metric, prompter=dspy.LM("openai/x"), mode="weights")
for prompter in ("some/model", dspy.LM("openai/x")):
    try:
        AlignPro(task.metric, prompter=prompter)
    except ImportError as error:
        assert "pip install 'cuesmith[train]'" in str(error), error
    else:
        raise AssertionError("no ImportError")
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
"""
)


def test_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
