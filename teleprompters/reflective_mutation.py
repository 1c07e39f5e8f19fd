"""Reflective mutation: the optimizer reads runs of a prompt and rewrites it, in one request. Source: GEPA (2507.19457)
calls its proposals so; the request is ours, and so are its forms other than the frontier's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cuesmith.signatures import ImproveInstruction
from cuesmith.teleprompters.prompt_search import BeamSearch
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.search.frontier import FRONTIER
from cuesmith.teleprompters.search.scene import Scene, text_field


class ReflectiveMutation(BeamSearch):
    """Rewrite a prompt from a few of its runs, right ones and wrong ones, in a single request.

    Less than any other reflection here: no reasons are drawn apart, no trajectory is kept, no steps are named. So it
    shows what a search finds alone, and with `search="frontier"` it is GEPA's own way of proposing, on this search.
    Each proposal of a parent sees its share of the minibatch.

    Its native form is the frontier, which GEPA's authors search along.

    Options and errors are those of `PromptSearch`.
    """

    NATIVE = FRONTIER

    async def native(self, scene: Scene) -> Candidate:
        """Search along the Pareto front."""
        return await self.frontier(scene)

    async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
        """Return `branch` rewrites of each kept candidate, each from its share of one minibatch."""
        ran = await scene.try_out([scores.candidate for scores in beam], scene.minibatch())
        made = await asyncio.gather(*(self._improve(scene, one, j) for one in ran for j in range(self.setting.branch)))
        return [child for child in made if child is not None]

    async def _improve(self, scene: Scene, ran: Scores, j: int) -> Candidate | None:
        parent, name = ran.candidate, scene.turn(ran)
        share = [*zip(ran.examples, ran.outcomes, strict=True)][j :: self.setting.branch]
        shown = scene.read(share, name)
        if not scene.failures(ran, name) or not shown:
            return None
        request = {"instruction": parent.prompts[name].instructions, "examples": [one.shown() for one in shown]}
        replies = await scene.ask(ImproveInstruction, name, request, salt=f"step {scene.step}, {j}")
        if not replies:
            return None
        seen = [one.example for one in shown]
        return scene.child(parent, name, text_field(replies[0], "improved_instruction"), "improve", seen)

    def cost(self, n_train: int) -> Plan:
        """Return the cost of a step for each kept candidate: `branch` optimizer calls, and a minibatch of runs."""
        return Plan(self.setting.branch, min(self.setting.minibatch, n_train))
