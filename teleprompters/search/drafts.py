"""A candidate together with the behaviours that its prompts are written from. Source: ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dspy

from cuesmith.teleprompters.runtime.candidate import Candidate, Origin, question_key
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.demos import Behavior
from cuesmith.teleprompters.search.scene import Scene


@dataclass(frozen=True)
class Draft:
    """A candidate and what its changed predictors are to do.

    Attributes:
        candidate: The prompts.
        behaviors: Predictor name -> behaviour; a predictor that still has the student's prompt is not in it.
    """

    candidate: Candidate
    behaviors: Mapping[str, Behavior]

    def change(self, run: Run, behaviors: Mapping[str, Behavior], origin: Origin) -> Draft:
        """Return a draft with other behaviours for some predictors."""
        prompts = {name: behavior.prompt(run.predictors[name].signature) for name, behavior in behaviors.items()}
        candidate = Candidate({**self.candidate.prompts, **prompts}, origin)
        return Draft(candidate, {**self.behaviors, **behaviors})

    def shows(self) -> set[str]:
        """Return the contents of the examples that are its demonstrations."""
        return {question_key(one.case.example) for b in self.behaviors.values() for one in b.demonstrations}


class Kept(tuple[tuple[Draft, Scores], ...]):
    """The drafts of a beam with their scores on the selection examples, best first."""

    @property
    def drafts(self) -> list[Draft]:
        """The drafts, best first."""
        return [draft for draft, _ in self]

    @property
    def scores(self) -> list[Scores]:
        """Their scores, best first."""
        return [scores for _, scores in self]


async def keep_drafts(scene: Scene, pool: Sequence[Draft]) -> Kept:
    """Compare the drafts and keep the best, as `Scene.keep`."""
    by_id: dict[str, Draft] = {}
    for draft in pool:
        by_id.setdefault(draft.candidate.id, draft)
    beam = await scene.keep(draft.candidate for draft in pool)
    return Kept((by_id[scores.candidate.id], scores) for scores in beam)


def outside_demonstrations(drafts: Sequence[Draft], examples: Sequence[dspy.Example]) -> list[dspy.Example]:
    """Return the examples that none of the drafts demonstrates; all of them if there is no other."""
    shown: set[str] = set().union(*(draft.shows() for draft in drafts))
    return [example for example in examples if question_key(example) not in shown] or list(examples)
