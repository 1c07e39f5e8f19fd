"""GEPA: reflective evolution of instructions along a Pareto front. Source: 2507.19457, as dspy 3.4 has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack, get_args

import dspy

from cuesmith.teleprompters.compiler import Options
from cuesmith.teleprompters.peers.hosting import Host
from cuesmith.teleprompters.peers.peer import Peer
from cuesmith.teleprompters.runtime.checks import chosen, number, switch, whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.evidence import as_expected, expected, labels_of, render_fields
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.run import Run

Auto = Literal["light", "medium", "heavy"]
Strategy = Literal["pareto", "current_best", "epsilon_greedy", "top_k_pareto"]
Selector = Literal["round_robin", "all"]
Frontier = Literal["instance", "objective", "hybrid", "cartesian"]
Acceptance = Literal["strict_improvement", "improvement_or_equal"]

PASSED_ON = (
    "acceptance_criterion", "batch_sampler", "cache_evaluation", "callbacks", "frontier_type",
    "merge_val_overlap_floor", "sampling_strategy", "selection_strategy", "stop_callbacks", "val_evaluation_policy",
)  # fmt: skip
"""What `gepa_kwargs` may hold. Of `gepa.optimize`'s other options dspy sets the most; some would write a log or a
checkpoint of their own beside the run's record, and the rest does nothing, or is refused, within dspy.GEPA."""

_MERGED_ON = 5
"""Selection examples that a merge of two candidates is first tried on."""
_MINIBATCH = 3
"""gepa's own, where none is given."""


class GEPA(Peer):
    """dspy.GEPA: the optimizer model reflects on runs of a few training examples and rewrites instructions.

    A rewritten candidate that does better on those examples is scored on all selection examples, and stays if it is
    best on one of them. The metric's feedback is shown to the model. Where it gives none for a wrong answer, the model
    is told what was expected, as the other compilers' optimizer is. A model whose temperature is 0 is asked at 1, as by
    the other compilers: GEPA's authors recommend 1.0, and many tokens (32,000), for reflection.

    `gepa_kwargs`, proposers and selectors reach as far as dspy's; what a user's own do beyond one model call a proposal
    is within the budget, but not in the estimate.

    Args:
        metric: As for `Peer`; it may return `dspy.Prediction(score=..., feedback=..., objective_scores=...)`, and one
            that takes five arguments gets the predictor's name and trace.
        auto: "light", "medium" or "heavy" set how many program runs it may take. dspy has no default; if none of the
            three limits is given, it is "light" here.
        max_full_evals: Instead: as many runs as so many passes over training and selection examples.
        max_metric_calls: Instead: so many runs. GEPA looks at its limits between rounds, and oversteps them.
        reflection_minibatch_size: Training examples of one reflection; None leaves it to a `batch_sampler`.
        candidate_selection_strategy: Which candidate is rewritten next: one from the "pareto" front ("top_k_pareto":
            of its best five), the "current_best" ("epsilon_greedy": mostly), or gepa's `CandidateSelector`.
        skip_perfect_score: Whether a minibatch on which all is right is left without reflection.
        add_format_failure_as_feedback: Whether replies that do not parse are shown to the model.
        expected_as_feedback: Whether a wrong answer without feedback of the metric's is told the example's expected
            outputs: below `perfect_score`, and of the rewritten predictor's fields if it has them. Ours.
        instruction_proposer: Writes the instructions in place of dspy's default: one of dspy's `InstructionProposer`
            with options, or a function of gepa's `ProposalFn` kind, whose model is the optimizer's.
        component_selector: Whether a round rewrites one predictor, "round_robin", or "all"; or a function of gepa's
            `ReflectionComponentSelector` kind that chooses.
        use_merge: Whether candidates that are good at different things are merged.
        max_merge_invocations: Merges at most.
        failure_score: The score of a program run that failed.
        perfect_score: The metric's highest score.
        track_stats: Whether dspy's `DspyGEPAResult` (lineage, Pareto fronts) is kept, as
            `compilation.extras["detailed_results"]`; a run that was stopped has none.
        track_best_outputs: Whether it has the best outputs on the selection examples as well.
        gepa_kwargs: Further options of `gepa.optimize`, of those in `PASSED_ON`.
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
        reflection_minibatch_size: int | None = _MINIBATCH,
        candidate_selection_strategy: Strategy | object = "pareto",
        skip_perfect_score: bool = True,
        add_format_failure_as_feedback: bool = False,
        expected_as_feedback: bool = True,
        instruction_proposer: Callable[..., Mapping[str, str]] | None = None,
        component_selector: Selector | Callable[..., list[str]] = "round_robin",
        use_merge: bool = True,
        max_merge_invocations: int = 5,
        failure_score: float = 0.0,
        perfect_score: float = 1.0,
        track_stats: bool = False,
        track_best_outputs: bool = False,
        gepa_kwargs: Mapping[str, Any] | None = None,
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
        self.reflection_minibatch_size = (
            None if reflection_minibatch_size is None else whole("reflection_minibatch_size", reflection_minibatch_size)
        )
        strategy = "candidate_selection_strategy"
        self.candidate_selection_strategy = (
            candidate_selection_strategy
            if callable(getattr(candidate_selection_strategy, "select_candidate_idx", None))
            else chosen(strategy, candidate_selection_strategy, get_args(Strategy))
        )
        self.skip_perfect_score = switch("skip_perfect_score", skip_perfect_score)
        self.add_format_failure_as_feedback = switch("add_format_failure_as_feedback", add_format_failure_as_feedback)
        self.expected_as_feedback = switch("expected_as_feedback", expected_as_feedback)
        if not (instruction_proposer is None or callable(instruction_proposer)):
            raise TypeError(f"instruction_proposer must be callable, got {instruction_proposer!r}")
        self.instruction_proposer = instruction_proposer
        self.component_selector = (
            component_selector
            if callable(component_selector)
            else chosen("component_selector", component_selector, get_args(Selector))
        )
        self.use_merge = switch("use_merge", use_merge)
        self.max_merge_invocations = whole("max_merge_invocations", max_merge_invocations, least=0)
        self.failure_score = number("failure_score", failure_score, least=-math.inf)
        self.perfect_score = number("perfect_score", perfect_score, least=-math.inf)
        self.track_stats = switch("track_stats", track_stats)
        self.track_best_outputs = switch("track_best_outputs", track_best_outputs)
        if self.track_best_outputs and not self.track_stats:
            raise ValueError("track_best_outputs needs track_stats=True, whose result holds them")
        self.gepa_kwargs = _checked(gepa_kwargs or {}, self.reflection_minibatch_size)

    def optimize(self, run: Run, host: Host) -> dspy.Module:
        """Run dspy.GEPA to its end."""
        reflecting = host.optimizer
        if reflecting.kwargs.get("temperature") == 0:
            reflecting = reflecting.copy(temperature=1.0)
        program = self._optimizer(self._telling(run, host), reflecting, host).compile(
            host.program, trainset=list(run.train), valset=list(run.select)
        )
        if self.track_stats:
            host.keep("detailed_results", program.detailed_results)
        return program

    def _telling(self, run: Run, host: Host) -> MetricFunction:
        """Return the metric as GEPA gets it: with the expected outputs as feedback, where it gives none of its own."""

        def judged(
            example: dspy.Example,
            prediction: dspy.Prediction | None,
            trace: object = None,
            pred_name: str | None = None,
            pred_trace: object = None,
        ) -> float | dspy.Prediction:
            found = host.score_with_feedback(example, prediction, trace, pred_name, pred_trace)
            given = dict(found.items()) if isinstance(found, dspy.Prediction) else {"score": found}
            score = float(given["score"])
            wrong = prediction is not None and score < self.perfect_score and not given.get("feedback")
            predictor = run.predictors.get(pred_name or "")
            alone = len(run.predictors) == 1
            right = labels_of(example) if predictor is None else expected(example, predictor.signature, alone=alone)
            if not (wrong and right and self.expected_as_feedback):
                return found
            entries = render_fields(as_expected(right))
            return dspy.Prediction(**{**given, "feedback": f"This trajectory got a score of {score}.\n{entries}"})

        return judged

    def _optimizer(self, metric: MetricFunction, reflection_lm: dspy.BaseLM, host: Host) -> dspy.GEPA:
        from dspy.teleprompt.gepa import InstructionProposer

        proposer, selector = self.instruction_proposer, self.component_selector
        if proposer is not None and not isinstance(proposer, InstructionProposer):  # dspy knows its own by the class
            proposer = host.optimizing(proposer)
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
            instruction_proposer=proposer,
            component_selector=host.optimizing(selector) if callable(selector) else selector,
            use_merge=self.use_merge,
            max_merge_invocations=self.max_merge_invocations,
            num_threads=self.max_in_flight,
            failure_score=self.failure_score,
            perfect_score=self.perfect_score,
            track_stats=self.track_stats,
            track_best_outputs=self.track_best_outputs,
            warn_on_score_mismatch=False,
            seed=self.seed,
            gepa_kwargs=dict(self.gepa_kwargs),
        )

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search.

        Program runs: GEPA's own limit (`auto` by dspy's formula, which takes no account of its loop) and what the
        round that oversteps it takes: two minibatches, or a merge's trial, and a full scoring. Optimizer calls: one a
        round and rewritten predictor (two, if a text that is too long is to be shortened), and every round takes at
        least a minibatch of runs.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        from dspy.teleprompt.gepa.gepa import AUTO_RUN_SETTINGS

        least = most = self.reflection_minibatch_size or _MINIBATCH
        if not isinstance(self.gepa_kwargs.get("batch_sampler", ""), str):
            least, most = 1, n_train
        if self.auto is not None:
            sets = AUTO_RUN_SETTINGS[self.auto]["n"]
            limit = dspy.GEPA.auto_budget(self, num_preds=n_predictors, num_candidates=sets, valset_size=n_select)
        else:
            limit = self.max_metric_calls or (self.max_full_evals or 0) * (n_train + n_select)
        rounds = math.ceil(max(0, limit - n_select) / least)
        rewritten = 1 if self.component_selector == "round_robin" else n_predictors
        calls = 2 if getattr(self.instruction_proposer, "max_chars", None) else 1
        return Plan(rounds * rewritten * calls, max(limit, n_select) + max(2 * most, _MERGED_ON) + n_select)


def _checked(given: Mapping[str, Any], minibatch: int | None) -> Mapping[str, Any]:
    """Return `gepa_kwargs`.

    Raises:
        TypeError: If it is no mapping, or holds an option that is not passed on.
        ValueError: If a named choice does not exist, or a sampler and a minibatch's size are both given.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"gepa_kwargs must be a mapping from option to value, got {given!r}")
    if unknown := sorted(set(given) - set(PASSED_ON)):
        raise TypeError(f"gepa_kwargs has no option {', '.join(unknown)}: it takes {', '.join(PASSED_ON)}")
    named = {"frontier_type": Frontier, "acceptance_criterion": Acceptance, "batch_sampler": Literal["epoch_shuffled"]}
    for name, choices in named.items():
        if isinstance(given.get(name), str):
            chosen(f"gepa_kwargs[{name!r}]", given[name], get_args(choices))
    if minibatch is not None and not isinstance(given.get("batch_sampler", ""), str):
        raise ValueError("a batch_sampler says how large a minibatch is: give reflection_minibatch_size=None with it")
    return dict(given)
