"""How numbered steps and a worked demonstration are written into the instructions of a predictor.

`render_steps` and `parse_steps` are inverse to each other. Both are total: what a language model wrote is
brought into canonical form, never refused.
"""

import re
from collections.abc import Sequence

__all__ = ["canonical_steps", "canonical_task", "parse_steps", "render_steps", "undemonstrated"]

FOLLOW = 'Follow every step in order and begin the work of each with its label ("Step 1:", "Step 2:", ...):'
"""The line between the task and its steps."""

DEMONSTRATION = "Example of following the steps:"
"""The line before a demonstration that is written into the instructions."""

_LABEL = re.compile(r"\**(?:step\s*\d+\s*[:.)]|\d+\s*[.)](?=\s)|[-*•](?=\s))\**\s*", re.IGNORECASE)


def canonical_steps(steps: Sequence[str]) -> tuple[str, ...]:
    """Bring steps into the form that can be rendered and read back. Source: ours.

    Each step becomes one line, a label it already carries ("Step 2:", "2.", "-") is removed, because the
    rendering numbers the steps itself, and blank steps are left out.

    Args:
        steps: The texts of the steps, as written by anybody.

    Returns:
        The canonical texts, never longer than `steps`; unchanged if they are canonical already.
    """
    texts = (_without_label(" ".join(step.split())) for step in steps)
    return tuple(text for text in texts if text)


def canonical_task(task: str) -> str:
    """Bring the sentence before the steps into canonical form: stripped, without the line `FOLLOW`.

    Args:
        task: What the task is, of any number of lines.

    Returns:
        The canonical text; unchanged if it is canonical already.
    """
    while FOLLOW in task:  # removing one may make another
        task = task.replace(FOLLOW, " ")
    return task.strip()


def render_steps(task: str, steps: Sequence[str], demonstration: str = "") -> str:
    """Write a task with its numbered steps as the instructions of a predictor.

    Source: 2402.02101 section 6 has step-by-step prompts with labelled work; the exact wording is ours.

    Args:
        task: One sentence that says what the task is.
        steps: The steps, without labels. Without any, the result is the task alone.
        demonstration: A worked example to append, for a predictor that has no reasoning field to carry one.

    Returns:
        The instructions. `parse_steps` gives `canonical_task(task)` and `canonical_steps(steps)` back.
    """
    task, texts = canonical_task(task), canonical_steps(steps)
    if not texts:
        return task
    numbered = "".join(f"\nStep {k}: {text}" for k, text in enumerate(texts, 1))
    lead = f"{task}\n\n" if task else ""
    block = f"\n\n{DEMONSTRATION}\n{demonstration.strip()}" if demonstration.strip() else ""
    return f"{lead}{FOLLOW}{numbered}{block}"


def parse_steps(instructions: str) -> tuple[str, tuple[str, ...]] | None:
    """Read back what `render_steps` wrote, without the demonstration. Source: ours.

    Args:
        instructions: The instructions of a predictor, of any origin.

    Returns:
        The task and its steps; None if `instructions` were not written by `render_steps`.
    """
    head, found, tail = instructions.partition(FOLLOW + "\n")
    if not found:
        return None
    listed, _, demonstration = tail.partition(f"\n\n{DEMONSTRATION}\n")
    steps = []
    for k, line in enumerate(listed.split("\n"), 1):
        label = f"Step {k}: "
        if not line.startswith(label):
            return None
        steps.append(line.removeprefix(label))
    task = head.removesuffix("\n\n")
    # Rendering again refuses everything that only looks like a rendering.
    return (task, tuple(steps)) if render_steps(task, steps, demonstration) == instructions else None


def undemonstrated(instructions: str) -> str:
    """Return instructions without the worked demonstration that `render_steps` appended to them."""
    return instructions.partition(f"\n\n{DEMONSTRATION}\n")[0]


def _without_label(text: str) -> str:
    while match := _LABEL.match(text):
        text = text[match.end() :]
    return text.strip()
