"""COPRO: instructions proposed from the scores of earlier ones, one predictor after the other. Source: dspy 3.4."""

from __future__ import annotations

from typing import Unpack

import dspy

from cuesmith.teleprompters.compiler import Options
from cuesmith.teleprompters.peers.hosting import Host
from cuesmith.teleprompters.peers.peer import Peer
from cuesmith.teleprompters.runtime.checks import number, whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.run import Run


class COPRO(Peer):
    """dspy.COPRO: coordinate ascent over instructions.

    dspy's COPRO takes a trainset only to score candidates on; no example is shown to the model. So it gets the
    selection examples here, and leaves the training examples unused.

    Args:
        metric: As for `Peer`.
        breadth: Instructions asked for in each round and predictor, the student's counted in the first.
        depth: Rounds.
        init_temperature: Of the proposals.
        **options: As for `Compiler`.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    MOVE = "copro"

    def __init__(
        self,
        metric: MetricFunction,
        *,
        breadth: int = 10,
        depth: int = 3,
        init_temperature: float = 1.4,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(metric, **options)
        self.breadth = whole("breadth", breadth, least=2)
        self.depth = whole("depth", depth)
        self.init_temperature = number("init_temperature", init_temperature, least=0)

    def optimize(self, run: Run, host: Host) -> dspy.Module:
        """Run dspy.COPRO to its end."""
        optimizer = dspy.COPRO(
            prompt_model=host.optimizer,
            metric=host.score,
            breadth=self.breadth,
            depth=self.depth,
            init_temperature=self.init_temperature,
        )
        return optimizer.compile(
            host.program, trainset=list(run.select), eval_kwargs={"num_threads": self.max_in_flight}
        )

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search, which is what it asks for if every reply can be read.

        Optimizer draws: breadth - 1, then breadth in each further round, for each predictor. Program runs: breadth
        instructions a round on all selection examples; in a program of several predictors, those of earlier rounds
        again.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        b, d = self.breadth, self.depth
        scored = b * d if n_predictors == 1 else n_predictors * b * d * (d + 1) // 2
        return Plan(n_predictors * (b * d - 1), scored * n_select)
