"""Iterative-APE: the resampling baseline. Source: 2402.02101 section 3 after APE (2211.01910, section 3.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cuesmith.signatures import VaryInstructions
from cuesmith.teleprompters.prompt_search import BeamSearch
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.search.scene import Scene, text_field
from cuesmith.teleprompters.search.setting import Setting


class IterativeAPE(BeamSearch):
    """Monte-Carlo search by paraphrase: write prompts from examples, vary the best, keep the best.

    The optimizer sees examples once, for the initial prompts; a variation is asked for from its parent's text
    alone, with no score, error or example. So it finds better wordings of what a parent says, and adds no
    knowledge: the baseline that any reflection has to beat. Demonstrations of the student stay as they are.

    Its native form has the numbers of APE's public configurations where they exist: 250 initial prompts, 50 drawn from
    each of 5 samples of 5 examples, at a temperature of 0.9, each scored on 50 examples; width, branch and steps are
    ours, for the public code does not iterate.

    Options and errors are those of `PromptSearch`.
    """

    NATIVE = Setting(initial=250, init_examples=5, init_draws=50, scoring=50, temperature=0.9)

    async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
        """Return variations of each kept candidate's instructions for the step's predictor."""
        families = await asyncio.gather(*(self._vary(scene, scores.candidate) for scores in beam))
        return [child for family in families for child in family]

    async def _vary(self, scene: Scene, parent: Candidate) -> list[Candidate]:
        name = scene.turn()
        inputs = {"instruction": parent.prompts[name].instructions}
        replies = await scene.ask(VaryInstructions, name, inputs, n=self.setting.branch, salt=f"step {scene.step}")
        children = (scene.child(parent, name, text_field(reply, "variation"), "vary") for reply in replies)
        return [child for child in children if child is not None]

    def cost(self, n_train: int) -> Plan:
        """Return the cost of a step for each kept candidate: `branch` optimizer calls."""
        return Plan(self.setting.branch, 0)
