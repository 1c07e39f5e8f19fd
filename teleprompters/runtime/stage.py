"""A later stage of a run: another candidate stands in the student's place, everything else is the run's own.

Budget, journal, examples and what is known of every candidate are common to all stages. Source: ours.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import dspy

from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.effects import effects_of
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.runtime.run import Run


class Stage(Run):
    """What a search works with that goes on from where another one ended.

    Its draws and its chances are its own, also where it asks what the stage before has asked; its steps are counted on.

    Args:
        run: The run.
        number: Of the stage, from 2.
        first: What it begins with, in the student's place.
    """

    def __init__(self, run: Run, number: int, first: Candidate) -> None:
        super().__init__(effects_of(run))
        self.student, self.baseline = first.bind(run.student), first
        self.predictors = MappingProxyType(dict(named_predictors(self.student)))
        self._name = f"stage {number}"
        self._steps = len(effects_of(run).steps)

    def rng(self, *key: object) -> random.Random:
        """Return a generator as `Run.rng` does."""
        return super().rng(self._name, *key)

    async def ask(
        self, signature: type[dspy.Signature], inputs: Mapping[str, object], *, n: int = 1, salt: str = ""
    ) -> list[dspy.Prediction]:
        """Ask as `Run.ask` does."""
        return await super().ask(signature, inputs, n=n, salt=f"{self._name}: {salt}")

    async def record(self, step: int, beam: Sequence[Scores], *, train: Sequence[Scores] = ()) -> None:
        """Note a step as `Run.record` does."""
        await super().record(self._steps + step, beam, train=train)
