"""APO: automatic prompt optimization by textual gradients: reasons why an instruction fails, and edits against them.

Source: 2402.02101 section 3 after ProTeGi (2305.03495) and its public code (microsoft/LMOps, prompt_optimization); what
is left out of that code stands in PAPERS.md. For any signature and metric instead of yes/no classification, and nothing
is asked where nothing failed: ours.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, Unpack, get_args

from cuesmith.signatures import CriticizeInstruction, EditInstruction, VaryInstructions
from cuesmith.teleprompters.prompt_search import BeamSearch, SearchOptions
from cuesmith.teleprompters.runtime.candidate import Candidate, distinct
from cuesmith.teleprompters.runtime.checks import whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.search.examples import Failure
from cuesmith.teleprompters.search.scene import Scene, text_field, texts_of
from cuesmith.teleprompters.search.selection import select
from cuesmith.teleprompters.search.setting import Setting

Selection = Literal["full", "ucb", "ucb-e", "sr", "sh"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)


class GradientOptions(SearchOptions, total=False):
    """The options that `APO` and `APOSum` share; `GradientSearch` says what they mean."""

    error_groups: int
    errors_per_group: int
    gradients: int


class GradientSearch(BeamSearch):
    """What `APO` and `APOSum` share: a step runs the beam on one minibatch, and reflects on groups of its errors.

    Args:
        metric: As for `Compiler`.
        error_groups: Groups of errors for each kept candidate.
        errors_per_group: Errors in a group at most.
        gradients: Reasons asked for each group.
        **options: As for `PromptSearch`.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        metric: MetricFunction,
        *,
        error_groups: int = 4,
        errors_per_group: int = 4,
        gradients: int = 1,
        **options: Unpack[SearchOptions],
    ) -> None:
        super().__init__(metric, **options)
        self.error_groups = whole("error_groups", error_groups)
        self.errors_per_group = whole("errors_per_group", errors_per_group)
        self.gradients = whole("gradients", gradients)

    async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
        """Return the edits of each kept candidate against the reasons for its errors on one minibatch."""
        parents = [scores.candidate for scores in beam]
        ran = await scene.try_out(parents, scene.minibatch())
        families = await asyncio.gather(*(self._expand(scene, one) for one in ran))
        return [child for family in families for child in family]

    @abstractmethod
    async def _expand(self, scene: Scene, ran: Scores) -> list[Candidate]:
        """Return the edits of one candidate, given how it did on the minibatch."""


class APO(GradientSearch):
    """Textual gradient descent: ask why a prompt fails on groups of its errors, and edit it against each reason.

    A step runs every kept candidate on one minibatch, samples groups of its errors, asks for reasons (the
    "gradients"), edits the prompt against each, and may add paraphrases of the edits and of the parent. A random cut
    leaves `branch` children a parent.

    Its native form has the numbers of ProTeGi's public code: six rounds from the student's prompt alone, which competes
    no longer than it is kept, an optimizer at a temperature of 0.7, a minibatch of 64, two paraphrases of each edit
    and of the parent, 8 children a parent, selection by UCB within 2,048 program runs a round.

    Args:
        metric: As for `Compiler`.
        edits: Edited prompts drawn for each reason.
        paraphrases: Paraphrases drawn of each edit and of the parent; None: 0 in the unified form, 2 in the native.
        selection: How the kept candidates are found: by "full" scoring, or by a bandit, "ucb", "ucb-e", "sr"
            (successive rejects) or "sh" (successive halving). None: "full" in the unified form, "ucb" in the native.
        selection_runs: Program runs of a bandit a step.
        **options: As for `GradientSearch`.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    NATIVE = Setting(width=4, branch=8, steps=6, initial=0, minibatch=64, scoring=200, temperature=0.7)

    def __init__(
        self,
        metric: MetricFunction,
        *,
        edits: int = 1,
        paraphrases: int | None = None,
        selection: Selection | None = None,
        selection_runs: int = 2048,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(metric, **options)
        native = self.form == "native"
        self.edits = whole("edits", edits)
        self.paraphrases = whole("paraphrases", 2 * native if paraphrases is None else paraphrases, least=0)
        self.selection: Selection = selection or ("ucb" if native else "full")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection={selection!r} must be one of {', '.join(map(repr, SELECTIONS))}")
        s = self.setting
        most = 0 if self.selection == "full" else 1 + max(s.initial, s.width * (1 + s.branch))
        self.selection_runs = whole("selection_runs", selection_runs, least=most)  # one run for each candidate

    async def native(self, scene: Scene) -> Candidate:
        """Beam search among the kept candidates and their children."""
        return await self.climb(scene)

    async def keep(self, scene: Scene, pool: Sequence[Candidate]) -> list[Scores]:
        """Return the best of the pool, found as `selection` says."""
        if self.selection == "full":
            return await super().keep(scene, pool)
        return await select(
            scene.run,
            distinct(pool),
            self.setting.width,
            method=self.selection,
            budget=self.selection_runs,
            key=scene.step,
        )

    async def _expand(self, scene: Scene, ran: Scores) -> list[Candidate]:
        parent, name = ran.candidate, scene.turn(ran)
        drawn = groups(scene, parent, scene.failures(ran, name), self.error_groups, self.errors_per_group)
        edited = await asyncio.gather(*(self._descend(scene, parent, name, group, j) for j, group in enumerate(drawn)))
        children = distinct(child for some in edited for child in some)
        varied = await asyncio.gather(*(self._vary(scene, one, name) for one in (*children, parent)))
        pool = [one for one in distinct([*children, *(v for some in varied for v in some)]) if one != parent]
        return scene.run.rng("cut", scene.step, parent.id).sample(pool, min(self.setting.branch, len(pool)))

    async def _descend(
        self, scene: Scene, parent: Candidate, name: str, group: Sequence[Failure], j: int
    ) -> list[Candidate]:
        """Ask for the reasons of one group of failures, and for the edits against each."""
        reasons = await criticize(scene, parent, name, group, self.gradients, j)
        edited = await asyncio.gather(
            *(
                edit(scene, parent, name, group, reason, self.edits, f"group {j}, reason {k}")
                for k, reason in enumerate(reasons)
            )
        )
        return [child for some in edited for child in some]

    async def _vary(self, scene: Scene, source: Candidate, name: str) -> list[Candidate]:
        if not self.paraphrases:
            return []
        inputs = {"instruction": source.prompts[name].instructions}
        replies = await scene.ask(VaryInstructions, name, inputs, n=self.paraphrases, salt=f"step {scene.step}")
        made = (scene.child(source, name, text_field(reply, "variation"), "vary") for reply in replies)
        return [child for child in made if child is not None]

    def cost(self, n_train: int) -> Plan:
        """Return the cost of a step for each kept candidate.

        With G groups, g reasons each, s edits a reason and p paraphrases: G + G g s + p (G g s + 1) optimizer calls,
        and a minibatch of program runs.
        """
        edited = self.error_groups * self.gradients * self.edits
        calls = self.error_groups + edited + self.paraphrases * (edited + 1)
        return Plan(calls, min(self.setting.minibatch, n_train))


def groups(scene: Scene, parent: Candidate, failures: Sequence[Failure], count: int, size: int) -> list[list[Failure]]:
    """Return `count` seeded samples of at most `size` failures; none where nothing failed."""
    if not failures:
        return []
    rngs = (scene.run.rng("errors", scene.step, parent.id, j) for j in range(count))
    return [rng.sample(list(failures), min(size, len(failures))) for rng in rngs]


async def criticize(
    scene: Scene, parent: Candidate, name: str, group: Sequence[Failure], count: int, j: int
) -> list[str]:
    """Ask why the instructions of predictor `name` could have led to a group of failures.

    Args:
        scene: The step.
        parent: The candidate that failed.
        name: The predictor.
        group: The failures shown.
        count: Reasons wanted.
        j: The group's number.

    Returns:
        At most `count` reasons.
    """
    request = {"instruction": parent.prompts[name].instructions, "failures": [f.shown() for f in group], "count": count}
    replies = await scene.ask(CriticizeInstruction, name, request, salt=f"step {scene.step}, group {j}")
    return texts_of(replies[0].get("reasons"))[:count] if replies else []


async def edit(
    scene: Scene, parent: Candidate, name: str, group: Sequence[Failure], reason: str, n: int, salt: str
) -> list[Candidate]:
    """Ask for `n` edits of the instructions of predictor `name` against one reason.

    Returns:
        The candidates whose texts may be used: 0 to n.
    """
    request = {
        "instruction": parent.prompts[name].instructions,
        "failures": [f.shown() for f in group],
        "reason": reason,
    }
    replies = await scene.ask(EditInstruction, name, request, n=n, salt=f"step {scene.step}, {salt}")
    seen = [failure.example for failure in group]
    made = (scene.child(parent, name, text_field(reply, "edited_instruction"), "edit", seen) for reply in replies)
    return [child for child in made if child is not None]
