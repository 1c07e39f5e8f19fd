"""OPRO: the optimizer sees earlier prompts with their scores and proposes better ones. Source: 2309.03409 and its
public code (google-deepmind/opro); in beam form as 2402.02101 section 3 compares it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

from cuesmith.signatures import ProposeInstruction
from cuesmith.teleprompters.prompt_search import BeamSearch, SearchOptions
from cuesmith.teleprompters.runtime.candidate import Candidate, distinct
from cuesmith.teleprompters.runtime.checks import number, whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.search.scene import Scene, text_field
from cuesmith.teleprompters.search.setting import Setting

SLOT = "<INS>"
"""Where the instruction will stand, in an exemplar."""


class OPRO(BeamSearch):
    """Optimization by prompting: implicit reflection on a history of scored prompts.

    The request shows the best prompts so far with their scores in ascending order, and a few solved exemplars; it
    shows neither outputs nor reasons. Every candidate is fully scored: the history is the method's only memory, so
    racing is off in it.

    Its native form has the numbers of the public code: 200 steps of 8 proposals from the student's prompt alone; the
    request shows no prompt that scores below 0.3, and of equal ones the later as the better.

    Args:
        metric: As for `Compiler`.
        history: Scored prompts shown at most.
        buckets: Scores, which are taken to lie in [0, 1], are shown as whole numbers from 0 to this.
        exemplars: Solved examples shown, drawn anew for each step.
        least_score: What a prompt has to score to be shown. None: nothing in the unified form; in the native 0.3, which
            the public code takes for scorers of the GPT family.
        **options: As for `PromptSearch`.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    RACING = False
    NATIVE = Setting(width=1, branch=8, steps=200, initial=0)

    def __init__(
        self,
        metric: MetricFunction,
        *,
        history: int = 20,
        buckets: int = 100,
        exemplars: int = 3,
        least_score: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> None:
        super().__init__(metric, **options)
        self.history = whole("history", history)
        self.buckets = whole("buckets", buckets)
        self.exemplars = whole("exemplars", exemplars)
        least = 0.3 if self.form == "native" else -math.inf
        self.least_score = least if least_score is None else number("least_score", least_score, least=-math.inf)

    async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
        """Return width * branch proposals, each a change of the best candidate's prompt for the step's predictor."""
        return await self._propose(scene, beam[0].candidate, [trial.candidate for trial in scene.trials()])

    async def native(self, scene: Scene) -> Candidate:
        """A beam search that knows in what order its prompts were proposed."""
        tried = [scene.run.baseline, *await self.start(scene, self.setting.initial)]
        beam = await self.keep(scene, tried)
        await scene.record(beam)
        for step in range(1, self.setting.steps + 1):
            here = scene.at(step)
            children = await self._propose(here, beam[0].candidate, tried)
            beam = await self.keep(here, [*(kept.candidate for kept in beam), *children])
            tried = distinct([*tried, *children])
            await here.record(beam)
        return beam[0].candidate

    async def _propose(self, scene: Scene, best: Candidate, tried: Sequence[Candidate]) -> list[Candidate]:
        name = scene.turn()
        shown = scene.minibatch(None, "exemplars", size=self.exemplars)
        request = {
            "scored_instructions": self._history(scene, name, tried),
            "exemplars": [f"{SLOT}\n{text}" for text in scene.book.shown(name, shown)],
        }
        count = self.setting.width * self.setting.branch
        replies = await scene.ask(
            ProposeInstruction,
            name,
            request,
            n=count,
            salt=f"step {scene.step}",
            instructions=best.prompts[name].instructions,
        )
        made = (
            scene.child(best, name, text_field(reply, "instruction").replace(SLOT, ""), "propose", shown)
            for reply in replies
        )
        return [child for child in made if child is not None]

    def _history(self, scene: Scene, name: str, tried: Sequence[Candidate]) -> list[str]:
        """Return the best scored texts of predictor `name`, ascending; a text has the score of its best candidate.

        Of texts with equal scores those of later candidates come later, and go out of the list last.
        """
        half = len(scene.run.select) / 2  # an outage may have left gaps
        means = {trial.candidate.id: trial.mean for trial in scene.trials() if trial.n >= half}
        scores: dict[str, float] = {}
        for candidate in tried:
            if candidate.id in means and means[candidate.id] >= self.least_score:
                text = candidate.prompts[name].instructions
                scores[text] = max(scores.get(text, -math.inf), means[candidate.id])
        best = sorted(scores.items(), key=lambda pair: pair[1])[-self.history :]
        return [f"text: {text}\nscore: {round(score * self.buckets)}" for text, score in best]

    def cost(self, n_train: int) -> Plan:
        """Return the cost of a step for each kept candidate: `branch` optimizer calls."""
        return Plan(self.setting.branch, 0)
