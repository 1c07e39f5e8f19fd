"""MIPROv2: instructions and demonstrations proposed beforehand, combined by Bayesian optimization. Source: dspy 3.4."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Unpack, get_args

import dspy

from cuesmith.teleprompters.compiler import Options
from cuesmith.teleprompters.peers.hosting import Host
from cuesmith.teleprompters.peers.peer import Peer
from cuesmith.teleprompters.peers.quiet import quieten
from cuesmith.teleprompters.peers.teaching import settings_of
from cuesmith.teleprompters.runtime.checks import chosen, number, switch, whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.run import Run

Auto = Literal["light", "medium", "heavy"]
_SETS: dict[Auto, int] = {"light": 6, "medium": 12, "heavy": 18}
_FULL_UP_TO = 50
"""Up to so many selection examples, `auto` scores each trial on all of them."""


class MIPRO(Peer):
    """dspy.MIPROv2. Needs optuna, which dspy does not install by itself.

    Bootstraps sets of demonstrations on training examples, has the optimizer model propose instructions from a
    summary of the data, the program and tips, and looks for the best combination by trials on selection examples.

    Args:
        metric: As for `Peer`.
        auto: "light", "medium" or "heavy" set the number of candidates and trials; None takes the next two.
        num_candidates: Sets of demonstrations, and instructions, for each predictor; with `auto=None` only.
        num_trials: Combinations tried; with `auto=None` only.
        max_bootstrapped_demos: Demonstrations of each predictor's own successful runs.
        max_labeled_demos: Demonstrations taken from training examples as they are. Both 0: instructions only.
        minibatch: Whether trials are scored on a part of the selection examples; with `auto=None` only.
        minibatch_size: The size of that part; all of them if there are no more.
        minibatch_full_eval_steps: After so many trials the best is scored on all.
        init_temperature: Of the proposals.
        metric_threshold: A run that scores at least this gives a demonstration; None takes any score above 0.
        program_aware_proposer: Whether the proposals are told what the program does, from its code.
        data_aware_proposer: Whether they are told a summary of the training examples.
        view_data_batch_size: Training examples that the summary looks at in one call.
        tip_aware_proposer: Whether each is told a tip, drawn at random.
        fewshot_aware_proposer: Whether they are shown the bootstrapped demonstrations.
        teacher: A program with the student's predictors whose successful runs become the demonstrations; by default
            the student.
        teacher_settings: dspy's settings while demonstrations are bootstrapped: "lm", such as a stronger model, and
            "adapter".
        **options: As for `Compiler`.

    Raises:
        ImportError: If optuna is not installed.
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range, or does not go with another.
    """

    MOVE = "mipro"
    NEEDS = ("optuna", "dspy[optuna]")

    def __init__(
        self,
        metric: MetricFunction,
        *,
        auto: Auto | None = "light",
        num_candidates: int | None = None,
        num_trials: int | None = None,
        max_bootstrapped_demos: int = 4,
        max_labeled_demos: int = 4,
        minibatch: bool = True,
        minibatch_size: int = 35,
        minibatch_full_eval_steps: int = 5,
        init_temperature: float = 1.0,
        metric_threshold: float | None = None,
        program_aware_proposer: bool = True,
        data_aware_proposer: bool = True,
        view_data_batch_size: int = 10,
        tip_aware_proposer: bool = True,
        fewshot_aware_proposer: bool = True,
        teacher: dspy.Module | None = None,
        teacher_settings: Mapping[str, object] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(metric, **options)
        self.auto: Auto | None = chosen("auto", auto, (*get_args(Auto), None))
        given = [count is not None for count in (num_candidates, num_trials)]
        if not all(given) if auto is None else any(given):
            raise ValueError(
                f"give either auto or both of num_candidates and num_trials, got auto={auto!r}, "
                f"num_candidates={num_candidates!r}, num_trials={num_trials!r}"
            )
        self.num_candidates = None if num_candidates is None else whole("num_candidates", num_candidates, least=2)
        self.num_trials = None if num_trials is None else whole("num_trials", num_trials)
        self.max_bootstrapped_demos = whole("max_bootstrapped_demos", max_bootstrapped_demos, least=0)
        self.max_labeled_demos = whole("max_labeled_demos", max_labeled_demos, least=0)
        if max_labeled_demos and not max_bootstrapped_demos:
            raise ValueError("max_labeled_demos needs max_bootstrapped_demos of at least 1: MIPROv2 fails without")
        self.minibatch = switch("minibatch", minibatch)
        self.minibatch_size = whole("minibatch_size", minibatch_size)
        self.minibatch_full_eval_steps = whole("minibatch_full_eval_steps", minibatch_full_eval_steps)
        self.init_temperature = number("init_temperature", init_temperature, least=0)
        self.metric_threshold = (
            None if metric_threshold is None else number("metric_threshold", metric_threshold, least=-math.inf)
        )
        self.program_aware_proposer = switch("program_aware_proposer", program_aware_proposer)
        self.data_aware_proposer = switch("data_aware_proposer", data_aware_proposer)
        self.view_data_batch_size = whole("view_data_batch_size", view_data_batch_size)
        self.tip_aware_proposer = switch("tip_aware_proposer", tip_aware_proposer)
        self.fewshot_aware_proposer = switch("fewshot_aware_proposer", fewshot_aware_proposer)
        self.teacher = teacher
        self.teacher_settings = settings_of(teacher_settings, "lm", "adapter")

    def optimize(self, run: Run, host: Host) -> dspy.Module:
        """Run dspy.MIPROv2 to its end."""
        import optuna  # noqa: F401  (its logger is there from now on)

        quieten("optuna")
        optimizer = dspy.MIPROv2(
            metric=host.score,
            prompt_model=host.optimizer,
            task_model=host.task,
            teacher_settings=self._taught(),
            max_bootstrapped_demos=self.max_bootstrapped_demos,
            max_labeled_demos=self.max_labeled_demos,
            auto=self.auto,
            num_candidates=self.num_candidates,
            num_threads=self.max_in_flight,
            seed=self.seed,
            init_temperature=self.init_temperature,
            track_stats=False,
            metric_threshold=self.metric_threshold,
        )
        return optimizer.compile(
            host.program,
            trainset=list(run.train),
            valset=list(run.select),
            num_trials=self.num_trials,
            minibatch=self.minibatch,
            minibatch_size=min(self.minibatch_size, len(run.select)),
            minibatch_full_eval_steps=self.minibatch_full_eval_steps,
            teacher=self._teacher(),
            program_aware_proposer=self.program_aware_proposer,
            data_aware_proposer=self.data_aware_proposer,
            view_data_batch_size=self.view_data_batch_size,
            tip_aware_proposer=self.tip_aware_proposer,
            fewshot_aware_proposer=self.fewshot_aware_proposer,
        )

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search.

        Optimizer calls: 3 for each proposed instruction and predictor, 11 for the summary of the data. Program runs:
        one pass over the training examples for each bootstrapped set; the student and each trial on all selection
        examples or, with minibatches, each trial on one and the best on all from time to time.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        only_instructions = not self.max_bootstrapped_demos and not self.max_labeled_demos
        sets = _SETS[self.auto] if self.auto is not None else self.num_candidates or 0
        variables = n_predictors * (1 if only_instructions else 2)
        trials = self.num_trials or int(max(2 * variables * math.log2(sets), 1.5 * sets))
        proposed = sets // 2 if self.auto is not None and not only_instructions else sets
        bootstrapped = max(0, sets - 1 - bool(self.max_labeled_demos))
        if n_select > _FULL_UP_TO if self.auto is not None else self.minibatch:
            full = trials // self.minibatch_full_eval_steps + 3
            scored = trials * min(self.minibatch_size, n_select) + full * n_select
        else:
            scored = (1 + trials) * n_select
        return Plan(11 + 3 * proposed * n_predictors, bootstrapped * n_train + scored)
