"""Reading what the optimizer wrote: it is untrusted, so every text is checked before it becomes a prompt.

All limits are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from cuesmith.signatures import canonical_steps
from cuesmith.teleprompters.runtime.evidence import sound

LONGEST_INSTRUCTION = 4000
"""Characters an instruction may have."""

LONGEST_STEP = 600
"""Characters one step may have."""

HEADER = "[[ ##"
"""The beginning of a field's header in dspy's chat format: in a demonstration or an instruction it would make
the target's own reply unreadable."""


def text_field(reply: dspy.Prediction, name: str) -> str:
    """Return a text field of a reply, stripped; "" if it is missing or no text."""
    found = reply.get(name)
    return sound(found).strip() if isinstance(found, str) else ""


def instruction(text: str) -> str | None:
    """Return a usable instruction: stripped, without quotation marks or code fences around it.

    Args:
        text: What was written.

    Returns:
        None if nothing is left, if it is longer than `LONGEST_INSTRUCTION`, or if it has a field's header.
    """
    text = text.strip()
    for mark in ("```", '"""', '"', "'", "`"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            inner = text[len(mark) : -len(mark)]
            text = text if mark in inner else inner.strip()
    usable = text and len(text) <= LONGEST_INSTRUCTION and HEADER not in text
    return text if usable else None


def step_list(found: object, most: int) -> tuple[str, ...]:
    """Return a usable list of steps, in canonical form and without repetitions.

    Of more than `most` steps the first and the very last are kept: the last one gives the answer.

    Args:
        found: What was written, meant to be a list of strings.
        most: Steps that a list may have.

    Returns:
        1 to `most` steps; none if there are none, or if one is longer than `LONGEST_STEP` or has a header.
    """
    if isinstance(found, str) or not isinstance(found, Sequence):
        return ()
    texts = canonical_steps([sound(step) for step in found if isinstance(step, str)])
    steps = tuple({step.casefold(): step for step in texts if any(map(str.isalnum, step))}.values())
    if any(len(step) > LONGEST_STEP or HEADER in step for step in steps):
        return ()
    return steps if len(steps) <= most else (*steps[: most - 1], steps[-1])
