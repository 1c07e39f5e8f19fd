"""Textual gradients: reasons why an instruction fails, and edits against them.

Source: ProTeGi (2305.03495) and its public code (microsoft/LMOps, prompt_optimization), on which 2402.02101's APO
stands; for any signature and metric instead of yes/no classification, and nothing is asked where nothing failed: ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from cuesmith.signatures import CriticizeInstruction, EditInstruction
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.evidence import sound
from cuesmith.teleprompters.search.deviations import Failure
from cuesmith.teleprompters.search.scene import Scene
from cuesmith.teleprompters.search.texts import text_field

LONGEST_REASON = 2000
"""Characters of a reason that are used. Ours."""


def groups(scene: Scene, parent: Candidate, failures: Sequence[Failure], count: int, size: int) -> list[list[Failure]]:
    """Return `count` seeded samples of at most `size` failures; none where nothing failed."""
    if not failures:
        return []
    rngs = (scene.run.rng("errors", scene.step, parent.id, j) for j in range(count))
    return [rng.sample(list(failures), min(size, len(failures))) for rng in rngs]


async def criticize(scene: Scene, parent: Candidate, name: str, group: Sequence[Failure], count: int, j: int
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


async def edit(scene: Scene, parent: Candidate, name: str, group: Sequence[Failure], reason: str, n: int, salt: str
               ) -> list[Candidate]:
    """Ask for `n` edits of the instructions of predictor `name` against one reason.

    Returns:
        The candidates whose texts may be used: 0 to n.
    """
    request = {"instruction": parent.prompts[name].instructions, "failures": [f.shown() for f in group],
               "reason": reason}
    replies = await scene.ask(EditInstruction, name, request, n=n, salt=f"step {scene.step}, {salt}")
    seen = [failure.example for failure in group]
    made = (scene.child(parent, name, text_field(reply, "edited_instruction"), "edit", seen) for reply in replies)
    return [child for child in made if child is not None]


def texts_of(found: object) -> list[str]:
    """Return the usable texts of a list that the optimizer wrote: stripped, cut, without repetitions."""
    if isinstance(found, str) or not isinstance(found, Sequence):
        return []
    texts = (sound(text).strip()[:LONGEST_REASON] for text in found if isinstance(text, str))
    return list({text.casefold(): text for text in texts if text}.values())
