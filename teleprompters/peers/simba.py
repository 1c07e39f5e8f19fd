"""SIMBA: rules and demonstrations learnt from runs that went differently on the same example. Source: dspy 3.4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import dspy

from cuesmith.teleprompters.compiler import Options
from cuesmith.teleprompters.peers.hosting import Host
from cuesmith.teleprompters.peers.peer import Peer
from cuesmith.teleprompters.peers.teaching import settings_of
from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.checks import number, whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.run import Run


class SIMBA(Peer):
    """dspy.SIMBA: stochastic introspective minibatch ascent.

    Runs candidates several times on minibatches of training examples, and where the outcomes differ most either adds
    a successful run as a demonstration or has the optimizer model write a rule from a good and a bad run. It compares
    candidates on training examples alone; here its choice is then scored on the selection examples.

    Args:
        metric: As for `Peer`.
        bsize: Training examples of a minibatch; all of them if there are fewer.
        num_candidates: Runs of each example, and new candidates, a step.
        max_steps: Steps.
        max_demos: Demonstrations that a predictor has at most, about; 0 leaves rules only.
        demo_input_field_maxlen: Characters kept of an input field in a demonstration.
        temperature_for_sampling: Of the choice which candidate is run.
        temperature_for_candidates: Of the choice which candidate is changed.
        teacher_settings: {"lm": ...}: a stronger model, by which each example is run once a step.
        **options: As for `Compiler`.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    MOVE = "simba"
    SELECTS = False

    def __init__(
        self,
        metric: MetricFunction,
        *,
        bsize: int = 32,
        num_candidates: int = 6,
        max_steps: int = 8,
        max_demos: int = 4,
        demo_input_field_maxlen: int = 100_000,
        temperature_for_sampling: float = 0.2,
        temperature_for_candidates: float = 0.2,
        teacher_settings: Mapping[str, object] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(metric, **options)
        self.bsize = whole("bsize", bsize)
        self.num_candidates = whole("num_candidates", num_candidates)
        self.max_steps = whole("max_steps", max_steps)
        self.max_demos = whole("max_demos", max_demos, least=0)
        self.demo_input_field_maxlen = whole("demo_input_field_maxlen", demo_input_field_maxlen)
        self.temperature_for_sampling = number(
            "temperature_for_sampling", temperature_for_sampling, least=0, above=True
        )
        self.temperature_for_candidates = number(
            "temperature_for_candidates", temperature_for_candidates, least=0, above=True
        )
        self.teacher_settings = settings_of(teacher_settings, "lm")

    def check_student(self, student: dspy.Module) -> None:
        """Raise if the student has no `forward`, or predictors with different models, which SIMBA cannot sample from.

        Raises:
            ValueError: If it is so.
        """
        super().check_student(student)
        if len({id(predictor.lm) for _, predictor in named_predictors(student)}) > 1:
            raise ValueError("SIMBA samples from one model: the student's predictors must not carry different ones")

    def optimize(self, run: Run, host: Host) -> dspy.Module:
        """Run dspy.SIMBA to its end."""
        bsize = min(self.bsize, len(run.train))
        if bsize < self.bsize:
            short = f"SIMBA's minibatches have {bsize} examples instead of {self.bsize}: there are no more."
            run.note(short, "examples")
        optimizer = dspy.SIMBA(
            metric=host.score_with_feedback,
            bsize=bsize,
            num_candidates=self.num_candidates,
            max_steps=self.max_steps,
            max_demos=self.max_demos,
            prompt_model=host.optimizer,
            teacher_settings=self._taught(),
            demo_input_field_maxlen=self.demo_input_field_maxlen,
            num_threads=self.max_in_flight,
            temperature_for_sampling=self.temperature_for_sampling,
            temperature_for_candidates=self.temperature_for_candidates,
        )
        return optimizer.compile(host.program, trainset=list(run.train), seed=self.seed)

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search.

        Program runs: in a step, each example of a minibatch for every sample and every new candidate, one more than
        samples; at the end the best of the steps on all training examples, and the choice on the selection examples.
        Optimizer calls: one for each example of a minibatch, if all the model's replies but the last are unusable;
        otherwise one more than `num_candidates` a step.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        batch, c = min(self.bsize, n_train), self.num_candidates
        runs = self.max_steps * batch * (2 * c + 1) + (c + 1) * n_train + n_select
        return Plan(self.max_steps * batch, runs)
