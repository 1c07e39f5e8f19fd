"""Finished runs to diagnose, and the command as a function."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import copy_context
from pathlib import Path

import dspy
from dspy.utils.exceptions import AdapterParseError
from e2e_support import ToyEngine, toy_compile, toy_lm

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.sampling import DRAWS_PER_ASK
from cuesmith.modules.sampling import draw as current_draw
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.programs import diagnose
from cuesmith.programs.arguments import call_alone
from cuesmith.programs.diagnosis.asking import Evidence, numbered
from cuesmith.programs.tasks import Sizes, generate
from cuesmith.signatures import CriticizeInstruction
from cuesmith.teleprompters.registry import compile
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.search.scene import texts_of


def run(*arguments: object) -> int:
    """Call `cuesmith diagnose` in this process."""
    return call_alone(diagnose.command, [str(a) for a in arguments])


def toy_run(directory: Path) -> Path:
    """Leave a run of the toy compiler in a folder."""
    toy_compile(toy_lm(ToyEngine()), run_dir=directory)
    return directory


def abo_run(directory: Path) -> Path:
    """Leave a run of ABO on the embedded model in a folder."""
    task = generate("objects", sizes=Sizes(test=5), seed=0)
    with dspy.context(lm=EmbeddedLM()):
        compile(
            dspy.ChainOfThought(task.signature), "abo", metric=task.metric, trainset=task.train[:30],
            valset=task.validation[:60], run_dir=directory, optimizer_lm=SimulatedOptimizer(),
            budget=Budget(calls=400), seed=0, search="native",
        )  # fmt: skip
    return directory


def said_by(lm: dspy.BaseLM, shown: Sequence[Evidence]) -> list[str | None]:
    """Ask a plain LM for a reason an entry, past the kernel."""
    warm = (lm.kwargs.get("temperature") or 0) > 0

    def one(evidence: Evidence, number: int) -> str | None:
        config = {"rollout_id": number + 1} | ({} if warm else {"temperature": 1.0})
        current_draw.set(number * DRAWS_PER_ASK)  # a multiple of it is a fresh start for models in this process
        try:
            with dspy.context(lm=lm, trace=[]):
                found = dspy.Predict(CriticizeInstruction)(**evidence.request(), config=config)
                return next(iter(texts_of(found.reasons)), None)
        except AdapterParseError:
            return None

    return [copy_context().run(one, evidence, number) for evidence, number in zip(shown, numbered(shown), strict=True)]
