"""Bootstrapped demonstrations with random search. Source: DSPy (2310.03714) and dspy 3.4."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Unpack

import dspy

from cuesmith.teleprompters.compiler import Options
from cuesmith.teleprompters.peers.hosting import Host
from cuesmith.teleprompters.peers.peer import Peer
from cuesmith.teleprompters.peers.teaching import settings_of
from cuesmith.teleprompters.runtime.checks import number, switch, whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.run import Run

_BARE, _IN_ORDER = -3, -1
"""dspy's numbers of no demonstrations, the first set, and of the first that is bootstrapped."""


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
        labeled_sample: Whether labels alone are a sample of the training examples, or the first of them.
        restrict: The numbers of the sets that are made and compared: -3 is no demonstrations, -2 labels alone, -1 the
            set from examples in their order, 0 and more the shuffled ones. None: all.
        teacher: A program with the student's predictors whose successful runs become the demonstrations; by default
            the student.
        teacher_settings: dspy's settings while it runs: "lm", such as a stronger model, and "adapter".
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
        labeled_sample: bool = True,
        restrict: Sequence[int] | None = None,
        teacher: dspy.Module | None = None,
        teacher_settings: Mapping[str, object] | None = None,
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
        self.labeled_sample = switch("labeled_sample", labeled_sample)
        known = range(_BARE, self.num_candidate_programs)
        if isinstance(restrict, int):
            raise TypeError(f"restrict must be a list of numbers or None, got {restrict!r}")
        self.restrict = (
            None if restrict is None else [whole("restrict", i, least=known[0], most=known[-1]) for i in restrict]
        )
        if self.restrict == []:
            raise ValueError(f"restrict must name at least one set, from {known[0]} to {known[-1]}, or be None")
        self.teacher = teacher
        self.teacher_settings = settings_of(teacher_settings, "lm", "adapter")

    def optimize(self, run: Run, host: Host) -> dspy.Module:
        """Run dspy.BootstrapFewShotWithRandomSearch to its end."""
        optimizer = dspy.BootstrapFewShotWithRandomSearch(
            metric=host.score,
            teacher_settings=self._taught(),
            max_bootstrapped_demos=self.max_bootstrapped_demos,
            max_labeled_demos=self.max_labeled_demos,
            max_rounds=self.max_rounds,
            num_candidate_programs=self.num_candidate_programs,
            num_threads=self.max_in_flight,
            stop_at_score=self.stop_at_score,
            metric_threshold=self.metric_threshold,
        )
        return optimizer.compile(
            host.program,
            trainset=list(run.train),
            valset=list(run.select),
            teacher=self._teacher(),
            restrict=self.restrict,
            labeled_sample=self.labeled_sample,
        )

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search.

        Program runs: the shuffled sets, the unshuffled one, labels and the bare program on all selection examples;
        for each bootstrapped set as many attempts at all training examples as there are rounds.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        sets = set(self.restrict or range(_BARE, self.num_candidate_programs))
        bootstrapped = [number for number in sets if number >= _IN_ORDER]
        return Plan(0, len(sets) * n_select + len(bootstrapped) * n_train * self.max_rounds)
