"""APO-Sum: the groups' reflections are summarised into one before the prompt is edited. Source: named in 2402.02101
section 3, which (in what could be read) does not define it; the reading here, and all its details, are ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cuesmith.signatures import SummarizeReasons
from cuesmith.teleprompters.apo import GradientSearch, criticize, edit, groups
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.search.scene import Scene, texts_of
from cuesmith.teleprompters.search.setting import Setting


class APOSum(GradientSearch):
    """APO with one summarised reflection: what many groups of errors say counts more than what one says.

    As `APO`, but the reasons of all groups are first merged into points, each with the number of reasons that
    support it; all children of a parent are drawn against the list of points, the best supported first. There are no
    paraphrases, so that the effect of summarising stands alone.

    No native form is published: it starts from the student's prompt alone, with APO's numbers.

    Options and errors are those of `GradientSearch`.
    """

    NATIVE = Setting(width=4, branch=8, steps=6, initial=0, minibatch=64, temperature=0.7)

    async def _expand(self, scene: Scene, ran: Scores) -> list[Candidate]:
        parent, name = ran.candidate, scene.turn(ran)
        drawn = groups(scene, parent, scene.failures(ran, name), self.error_groups, self.errors_per_group)
        found = await asyncio.gather(
            *(criticize(scene, parent, name, group, self.gradients, j) for j, group in enumerate(drawn))
        )
        points = await self._summarize(scene, parent, name, [reason for reasons in found for reason in reasons])
        if not points:
            return []
        shown = list({id(failure.example): failure for group in drawn for failure in group}.values())
        return await edit(scene, parent, name, shown, points, self.setting.branch, "summary")

    async def _summarize(self, scene: Scene, parent: Candidate, name: str, reasons: Sequence[str]) -> str:
        """Return the merged points, one a line, the best supported first; "" if there are none."""
        if not reasons:
            return ""
        request = {"instruction": parent.prompts[name].instructions, "reasons": list(reasons)}
        replies = await scene.ask(SummarizeReasons, name, request, salt=f"step {scene.step}")
        if not replies:
            return ""
        points = texts_of(replies[0].get("points"))
        said = replies[0].get("support")
        support = [min(n, len(reasons)) if isinstance(n, int) else 1 for n in said] if isinstance(said, list) else []
        support = (support + [1] * len(points))[: len(points)]
        ordered = sorted(zip(points, support, strict=True), key=lambda pair: -pair[1])
        return "\n".join(f"- {point} (said by {n} of {len(reasons)} reflections)" for point, n in ordered)

    def cost(self, n_train: int) -> Plan:
        """Return the cost of a step for each kept candidate: groups + 1 + branch calls, a minibatch of runs."""
        return Plan(self.error_groups + 1 + self.setting.branch, min(self.setting.minibatch, n_train))
