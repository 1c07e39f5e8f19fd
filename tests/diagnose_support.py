"""Finished runs to diagnose, and the command as a function."""

from __future__ import annotations

import argparse
from pathlib import Path

import dspy
from e2e_support import ToyEngine, toy_compile, toy_lm

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.programs import diagnose
from cuesmith.programs.tasks import Sizes, generate
from cuesmith.teleprompters.registry import compile
from cuesmith.teleprompters.runtime.ledger import Budget


def run(*arguments: object) -> int:
    """Call `cuesmith diagnose` in this process."""
    parser = argparse.ArgumentParser()
    diagnose.arguments(parser)
    return diagnose.command(parser.parse_args([str(a) for a in arguments]))


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
