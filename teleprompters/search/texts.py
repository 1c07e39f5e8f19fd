"""Reading what the optimizer wrote: it is untrusted, so every text is checked before it becomes a prompt.

All limits are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from cuesmith.signatures import canonical_steps
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
