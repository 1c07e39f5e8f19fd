"""Bootstrapped demonstrations with random search. Source: DSPy (2310.03714) and dspy 3.4."""

from __future__ import annotations

import math
from typing import Unpack

import dspy

from cuesmith.teleprompters.compiler import Options
from cuesmith.teleprompters.peers.hosting import Host
from cuesmith.teleprompters.peers.peer import Peer
from cuesmith.teleprompters.runtime.checks import number, whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.run import Run


class Bootstrap(Peer):
    """dspy.BootstrapFewShotWithRandomSearch, also called BootstrapRS: demonstrations only, no optimizer model.

    The student runs on training examples, and its successful runs become demonstrations of its predictors. Sets of
    different examples are compared on the selection examples, together with no demonstrations and with labels alone.
    (dspy's plain BootstrapFewShot makes one set and compares nothing: it is `num_candidate_programs=0` here, which
    compares that set, labels and the bare program.) Demonstrations that the student has are dropped, as by dspy.

    Args:
        metric: As for `Peer`; a run gives demonstrations if its score is not 0, or reaches `metric_threshold`.
        max_bootstrapped_demos: Demonstrations of successful runs.
        max_labeled_demos: Demonstrations in all, filled up with training examples as they are.
        max_rounds: Attempts at each training example.
        num_candidate_programs: Sets of demonstrations made from shuffled training examples.
        stop_at_score: Stop at this percentage, as dspy counts: 100 is a mean score of 1.
        metric_threshold: As above.
        **options: As for `Compiler`.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    MOVE = "bootstrap"

    def __init__(
        self,
        metric: MetricFunction,
        *,
        max_bootstrapped_demos: int = 4,
        max_labeled_demos: int = 16,
        max_rounds: int = 1,
        num_candidate_programs: int = 16,
        stop_at_score: float | None = None,
        metric_threshold: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(metric, **options)
        self.max_bootstrapped_demos = whole("max_bootstrapped_demos", max_bootstrapped_demos)
        self.max_labeled_demos = whole("max_labeled_demos", max_labeled_demos, least=0)
        self.max_rounds = whole("max_rounds", max_rounds)
        self.num_candidate_programs = whole("num_candidate_programs", num_candidate_programs, least=0)
        self.stop_at_score = None if stop_at_score is None else number("stop_at_score", stop_at_score, least=-math.inf)
        self.metric_threshold = (
            None if metric_threshold is None else number("metric_threshold", metric_threshold, least=-math.inf)
        )

    def optimize(self, run: Run, host: Host) -> dspy.Module:
        """Run dspy.BootstrapFewShotWithRandomSearch to its end."""
        optimizer = dspy.BootstrapFewShotWithRandomSearch(
            metric=host.score,
            max_bootstrapped_demos=self.max_bootstrapped_demos,
            max_labeled_demos=self.max_labeled_demos,
            max_rounds=self.max_rounds,
            num_candidate_programs=self.num_candidate_programs,
            num_threads=self.max_in_flight,
            stop_at_score=self.stop_at_score,
            metric_threshold=self.metric_threshold,
        )
        return optimizer.compile(host.program, trainset=list(run.train), valset=list(run.select))

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search.

        Program runs: the shuffled sets, the unshuffled one, labels and the bare program on all selection examples;
        for each bootstrapped set as many attempts at all training examples as there are rounds.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        sets = self.num_candidate_programs
        return Plan(0, (sets + 3) * n_select + (sets + 1) * n_train * self.max_rounds)
