"""Iterative-APE: the resampling baseline. Source: 2402.02101 section 3 after APE (2211.01910, section 3.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import dspy

from cuesmith.signatures import VaryInstructions
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.events import Callback
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.beam import keep_best, record_step, turn
from cuesmith.teleprompters.search.initial import made_from, write_instructions
from cuesmith.teleprompters.search.material import Material, begin
from cuesmith.teleprompters.search.setting import Setting
from cuesmith.teleprompters.search.texts import instruction, text_field


class IterativeAPE(Compiler):
    """Monte-Carlo search by paraphrase: write prompts from examples, vary the best, keep the best.

    The optimizer sees examples once, for the initial prompts; a variation is asked for from its parent's text
    alone, with no score, error or example. So it finds better wordings of what a parent says, and adds no
    knowledge: the baseline that any reflection has to beat. A step changes one predictor, round robin.
    Demonstrations of the student stay as they are.

    Args:
        metric: As for `Compiler`.
        width: Candidates kept after each step.
        branch: Variations asked for from each kept candidate.
        steps: Steps after the initial one.
        initial: Initial prompts written for each predictor.
        init_examples: Examples shown for each of them.
        minibatch: Training examples for the training score, and for traces where examples alone do not say
            what a predictor has to do.
        threshold: A score of at least this is a success.
        optimizer_lm: As for `Compiler`, and so all that follow.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        metric: MetricFunction,
        *,
        width: int = 4,
        branch: int = 4,
        steps: int = 3,
        initial: int = 4,
        init_examples: int = 4,
        minibatch: int = 16,
        threshold: float = 1.0,
        optimizer_lm: dspy.BaseLM | str | None = None,
        budget: Budget | None = None,
        seed: int = 0,
        max_in_flight: int = 32,
        callbacks: Sequence[Callback] = (),
        example_timeout: float | None = 600.0,
    ) -> None:
        super().__init__(metric, optimizer_lm=optimizer_lm, budget=budget, seed=seed, max_in_flight=max_in_flight,
                         callbacks=callbacks, example_timeout=example_timeout)
        self.setting = Setting(width=width, branch=branch, steps=steps, initial=initial,
                               init_examples=init_examples, minibatch=minibatch, threshold=threshold)

    async def search(self, run: Run) -> Candidate:
        """Search; see the class."""
        setting = self.setting
        material = Material.of(run, setting)
        book = await begin(run, setting, material)
        written = await write_instructions(run, setting, material, book)
        beam = await keep_best(run, [run.baseline, *written], setting.width)
        await record_step(run, 0, beam, material.watched)
        for step in range(1, setting.steps + 1):
            parents = [scores.candidate for scores in beam]
            varied = await asyncio.gather(*(self._vary(run, parent, step) for parent in parents))
            children = [child for family in varied for child in family]
            beam = await keep_best(run, [run.baseline, *parents, *children], setting.width)
            await record_step(run, step, beam, material.watched)
        return beam[0].candidate

    async def _vary(self, run: Run, parent: Candidate, step: int) -> list[Candidate]:
        name = turn(parent.names, step)
        inputs = {"instruction": parent.prompts[name].instructions}
        replies = await run.ask(VaryInstructions, inputs, n=self.setting.branch, salt=f"step {step}")
        texts = [instruction(text_field(reply, "variation")) for reply in replies]
        return [parent.replace(name, instructions=text, origin=made_from("vary", (), parent))
                for text in texts if text is not None]

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search.

        Optimizer calls: initial * predictors + steps * width * branch. Program runs: (1 + initial + steps *
        width * branch) * n_select for the scores, (steps + 1) * watched for the training scores, and one
        minibatch of the student.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        s = self.setting
        varied = s.steps * s.width * s.branch
        runs = (1 + s.initial + varied) * n_select + (s.steps + 1) * s.watched(n_train) + min(s.minibatch, n_train)
        return Plan(s.initial * n_predictors + varied, runs)
