"""Reading what the optimizer wrote: it is untrusted, so every text is checked before it becomes a prompt.

All limits are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from cuesmith.signatures import Move, canonical_steps
from cuesmith.teleprompters.runtime.guards import Guard

LONGEST_STEP = 600
"""Characters one step may have, or its share of what all instructions may."""


def text_field(reply: dspy.Prediction, name: str) -> str:
    """Return a text field of a reply, stripped; "" if it is missing or no text."""
    found = reply.get(name)
    return found.strip() if isinstance(found, str) else ""


def step_list(found: object) -> tuple[str, ...]:
    """Return a usable list of steps, in canonical form and without repetitions.

    Args:
        found: What was written, meant to be a list of strings.

    Returns:
        The steps; none if what was written is no list.
    """
    if isinstance(found, str) or not isinstance(found, Sequence):
        return ()
    texts = canonical_steps([step for step in found if isinstance(step, str)])
    return tuple({step.casefold(): step for step in texts if any(map(str.isalnum, step))}.values())


def mend(steps: Sequence[str], number: int, move: object, new: Sequence[str]) -> tuple[Move, tuple[str, ...]]:
    """Put new steps in the place of one, or before it; all others stay as they are.

    What a model writes again although it stays (another step, or all of them) is no new step. A move that does not fit
    what was written is taken for the one that does.

    Args:
        steps: The procedure.
        number: The step's, from 1 on.
        move: What was said to be done.
        new: What was written.

    Returns:
        The move, and the procedure; no steps if nothing would be changed.
    """
    i = number - 1
    others = {step.casefold() for k, step in enumerate(steps) if k != i}
    fresh = [step for step in new if step.casefold() not in others]
    if move == "add":
        fresh = [step for step in fresh if step.casefold() != steps[i].casefold()]
        mended, done = (*steps[:i], *fresh, *steps[i:]), "add"
    elif not fresh:
        mended, done = ((*steps[:i], *steps[i + 1 :]), "delete") if move == "delete" else (tuple(steps), "edit")
    else:
        mended, done = (*steps[:i], *fresh, *steps[i + 1 :]), "split" if len(fresh) > 1 else "edit"
    found: Move = done  # type: ignore[assignment]
    return found, () if mended == tuple(steps) else mended


def steps_fault(steps: Sequence[str], most: int, guard: Guard) -> str | None:
    """Return why a list of steps may not be used; None if it may. Nothing is ever taken out of the middle of one.

    Args:
        steps: As `step_list` returns them.
        most: Steps that it may have.
        guard: What holds of all that is written.
    """
    if len(steps) > most:
        return "too many steps"
    if any(len(step) > max(LONGEST_STEP, guard.longest // most) for step in steps):
        return "too long"
    return guard.fault("\n".join(steps))
