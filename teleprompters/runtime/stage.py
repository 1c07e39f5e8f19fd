"""A stage of a run: it begins with another candidate than the student, and ends where its share of the caps is used.

Budget, journal, examples and what is known of every candidate are common to all stages. Source: ours.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import get_args

import dspy

from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate, Json
from cuesmith.teleprompters.runtime.effects import effects_of
from cuesmith.teleprompters.runtime.ledger import Budget, Cap, RunStopped
from cuesmith.teleprompters.runtime.outcomes import Outcome, Scores
from cuesmith.teleprompters.runtime.run import Run


class Stage(Run):
    """What a search works with that goes on from where another one ended.

    The draws and chances of a later stage are its own, also where it asks what the stage before has asked; its steps
    are counted on.

    Args:
        run: The run.
        number: Of the stage, from 1.
        first: What it begins with, in the student's place.
        stages: How many there are.
    """

    def __init__(self, run: Run, number: int, first: Candidate, stages: int) -> None:
        super().__init__(effects_of(run))
        self.student, self.baseline = first.bind(run.student), first
        self.predictors = MappingProxyType(dict(named_predictors(self.student)))
        self._number, self._stages = number, stages
        self._own = () if number == 1 else (f"stage {number}",)
        self._steps = len(effects_of(run).steps)
        self._over = False

    async def conduct(self, search: Callable[[Run], Awaitable[Candidate]]) -> Candidate:
        """Search; all but the last stage end where their share of a cap is used.

        Returns:
            What the search returns; the best so far if its share has ended it.

        Raises:
            RunStopped: As the search, if anything else has stopped the run.
        """
        if self._number == self._stages:
            return await search(self)
        effects = effects_of(self)
        gate, ledger = effects.gate, effects.gate.ledger
        release, gate.release = gate.release, self._released
        ledger.hold(_budget(self.share, self._stages - self._number), "later stages")
        try:
            found = await search(self)
        except RunStopped:
            if gate.stopped_by not in get_args(Cap):
                raise
            found = effects.best_so_far()
        finally:
            self._over = True
            gate.release = release
            ledger.hold(Budget(), "later stages")
        if gate.stopped_by in get_args(Cap):
            await effects.rest()
            self.note(f"Stage {self._number} has used its share of the budget's {gate.stopped_by}.", "stage")
            gate.stopped_by, gate.reason = None, ""
            gate.reopen()
        return found

    def _released(self) -> bool:
        """Give what later stages have to a search that has been stopped, and then asks for scores of what it found."""
        gate = effects_of(self).gate
        if gate.stopped_by is not None:
            gate.ledger.hold(Budget(), "later stages")
        return gate.stopped_by is not None

    @cached_property
    def share(self) -> Mapping[str, float]:
        """Cap -> how much this stage may use: an equal part of what is left for it and those that follow."""
        effects = effects_of(self)
        ledger, stages = effects.gate.ledger, 1 + self._stages - self._number
        found = effects.decided(f"share of stage {self._number} of {self._stages}: {ledger.budget}",
                                lambda: {name: amount / stages for name, amount in ledger.left().items()})  # fmt: skip
        return {name: amount for name, amount in found.items() if isinstance(amount, int | float)}

    def _check(self) -> None:
        """Raise `RunStopped` if the stage is over: its search may have left branches behind."""
        if self._over:
            raise RunStopped("stage over")

    def rng(self, *key: object) -> random.Random:
        """Return a generator as `Run.rng` does."""
        return super().rng(*self._own, *key)

    async def ask(
        self, signature: type[dspy.Signature], inputs: Mapping[str, object], *, n: int = 1, salt: str = ""
    ) -> list[dspy.Prediction]:
        """Ask as `Run.ask` does."""
        self._check()
        return await super().ask(signature, inputs, n=n, salt=": ".join((*self._own, salt)))

    async def score(
        self, candidates: Sequence[Candidate], examples: Sequence[dspy.Example], *, draw: int = 0
    ) -> list[Scores]:
        """Score as `Run.score` does."""
        self._check()
        return await super().score(candidates, examples, draw=draw)

    async def judge(self, example: dspy.Example, outputs: Mapping[str, object]) -> Outcome:
        """Judge as `Run.judge` does."""
        self._check()
        return await super().judge(example, outputs)

    async def effect(self, key: str, work: Callable[[], Json]) -> Json:
        """Do other work as `Run.effect` does."""
        self._check()
        return await super().effect(key, work)

    async def record(self, step: int, beam: Sequence[Scores], *, train: Sequence[Scores] = ()) -> None:
        """Note a step as `Run.record` does."""
        self._check()
        await super().record(self._steps + step, beam, train=train)


def _budget(shares: Mapping[str, float], stages: int) -> Budget:
    """Return the shares of so many stages together."""
    kept = {name: stages * share for name, share in shares.items()}
    whole = {name: int(amount) if name in ("calls", "tokens") else amount for name, amount in kept.items()}
    return Budget(**{name: amount for name, amount in whole.items() if amount > 0})  # type: ignore[arg-type]
