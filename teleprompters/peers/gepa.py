"""GEPA: reflective evolution of instructions along a Pareto front. Source: 2507.19457, as dspy 3.4 has it."""

from __future__ import annotations

import math
from typing import Literal, Unpack, get_args

import dspy
from dspy.teleprompt.gepa.gepa import AUTO_RUN_SETTINGS

from cuesmith.teleprompters.compiler import Options
from cuesmith.teleprompters.peers.hosting import Host
from cuesmith.teleprompters.peers.peer import Peer
from cuesmith.teleprompters.runtime.checks import chosen, number, switch, whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.run import Run

Auto = Literal["light", "medium", "heavy"]
Strategy = Literal["pareto", "current_best"]
Selector = Literal["round_robin", "all"]
_MERGED_ON = 5
"""Selection examples that a merge of two candidates is first tried on."""


class GEPA(Peer):
    """dspy.GEPA: the optimizer model reflects on runs of a few training examples and rewrites instructions.

    A rewritten candidate that does better on those examples is scored on all selection examples, and stays if it is
    best on one of them. The metric's feedback, if it gives some, is shown to the model.

    Args:
        metric: As for `Peer`; GEPA profits from `dspy.Prediction(score=..., feedback=...)`.
        auto: "light", "medium" or "heavy" set how many program runs it may take. dspy has no default; if none of the
            three limits is given, it is "light" here.
        max_full_evals: Instead: as many runs as so many passes over training and selection examples.
        max_metric_calls: Instead: so many runs. GEPA looks at its limits between rounds, and oversteps them.
        reflection_minibatch_size: Training examples of one reflection.
        candidate_selection_strategy: Which candidate is rewritten next: one from the "pareto" front, or the
            "current_best".
        skip_perfect_score: Whether a minibatch on which all is right is left without reflection.
        add_format_failure_as_feedback: Whether replies that do not parse are shown to the model.
        component_selector: Whether a round rewrites one predictor, "round_robin", or "all".
        use_merge: Whether candidates that are good at different things are merged.
        max_merge_invocations: Merges at most.
        failure_score: The score of a program run that failed.
        perfect_score: The metric's highest score.
        **options: As for `Compiler`.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range, or several limits are given.
        ImportError: If gepa is not installed, as with Python from 3.15 on.
    """

    MOVE = "gepa"
    NEEDS = ("gepa", "gepa[dspy]")

    def __init__(
        self,
        metric: MetricFunction,
        *,
        auto: Auto | None = None,
        max_full_evals: int | None = None,
        max_metric_calls: int | None = None,
        reflection_minibatch_size: int = 3,
        candidate_selection_strategy: Strategy = "pareto",
        skip_perfect_score: bool = True,
        add_format_failure_as_feedback: bool = False,
        component_selector: Selector = "round_robin",
        use_merge: bool = True,
        max_merge_invocations: int = 5,
        failure_score: float = 0.0,
        perfect_score: float = 1.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(metric, **options)
        limits = {"auto": auto, "max_full_evals": max_full_evals, "max_metric_calls": max_metric_calls}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(limits)}, got {given}")
        self.auto: Auto | None = chosen("auto", auto if given else "light", (*get_args(Auto), None))
        self.max_full_evals = None if max_full_evals is None else whole("max_full_evals", max_full_evals)
        self.max_metric_calls = None if max_metric_calls is None else whole("max_metric_calls", max_metric_calls)
        self.reflection_minibatch_size = whole("reflection_minibatch_size", reflection_minibatch_size)
        self.candidate_selection_strategy = chosen(
            "candidate_selection_strategy", candidate_selection_strategy, get_args(Strategy)
        )
        self.skip_perfect_score = switch("skip_perfect_score", skip_perfect_score)
        self.add_format_failure_as_feedback = switch("add_format_failure_as_feedback", add_format_failure_as_feedback)
        self.component_selector = chosen("component_selector", component_selector, get_args(Selector))
        self.use_merge = switch("use_merge", use_merge)
        self.max_merge_invocations = whole("max_merge_invocations", max_merge_invocations, least=0)
        self.failure_score = number("failure_score", failure_score, least=-math.inf)
        self.perfect_score = number("perfect_score", perfect_score, least=-math.inf)

    def optimize(self, run: Run, host: Host) -> dspy.Module:
        """Run dspy.GEPA to its end."""
        return self._optimizer(host.score_with_feedback, host.optimizer).compile(
            host.program, trainset=list(run.train), valset=list(run.select)
        )

    def _optimizer(self, metric: MetricFunction, reflection_lm: dspy.BaseLM) -> dspy.GEPA:
        return dspy.GEPA(
            metric=metric,
            auto=self.auto,
            max_full_evals=self.max_full_evals,
            max_metric_calls=self.max_metric_calls,
            reflection_minibatch_size=self.reflection_minibatch_size,
            candidate_selection_strategy=self.candidate_selection_strategy,
            reflection_lm=reflection_lm,
            skip_perfect_score=self.skip_perfect_score,
            add_format_failure_as_feedback=self.add_format_failure_as_feedback,
            component_selector=self.component_selector,
            use_merge=self.use_merge,
            max_merge_invocations=self.max_merge_invocations,
            num_threads=self.max_in_flight,
            failure_score=self.failure_score,
            perfect_score=self.perfect_score,
            warn_on_score_mismatch=False,
            seed=self.seed,
        )

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search.

        Program runs: GEPA's own limit (`auto` by dspy's formula, which takes no account of its loop) and what the
        round that oversteps it takes: two minibatches, or a merge's trial, and a full scoring. Optimizer calls: one a
        round and rewritten predictor, and every round takes at least a minibatch of runs.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        batch = self.reflection_minibatch_size
        if self.auto is not None:
            sets = AUTO_RUN_SETTINGS[self.auto]["n"]
            limit = dspy.GEPA.auto_budget(self, num_preds=n_predictors, num_candidates=sets, valset_size=n_select)
        else:
            limit = self.max_metric_calls or (self.max_full_evals or 0) * (n_train + n_select)
        rounds = math.ceil(max(0, limit - n_select) / batch)
        rewritten = n_predictors if self.component_selector == "all" else 1
        return Plan(rounds * rewritten, max(limit, n_select) + max(2 * batch, _MERGED_ON) + n_select)
