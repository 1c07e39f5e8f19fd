"""Pieces of instructions that probe a model: how far it follows them, and whether any prompt helps it. Ours."""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["FORM_DEMANDS", "GENERIC_PROMPTS", "HARMLESS_STEPS", "joined_steps"]

HARMLESS_STEPS = (
    "Read the input carefully.", "Make sure you understand the task.", "Say in a few words what the input is.",
    "Check that nothing is missing.", "Go over the input once more.", "Check the steps above.",
    "Note anything unusual, or write none.", "Verify your work.", "Make sure nothing was overlooked.",
    "Review the result so far.", "Make sure the format is right.", "Double-check everything once more.",
)  # fmt: skip
"""Steps that change nothing of what is to be done."""

FORM_DEMANDS: Mapping[str, str] = MappingProxyType(
    {
        "capitals": "Write the answer in capital letters.",
        "brackets": "Put the answer between square brackets.",
        "one word": "Answer in at most one word.",
        "opening": 'Begin the answer with the word "Answer".',
        "full stop": "End the answer with a full stop.",
    }
)
"""Kind -> a sentence that demands something of the answer's form that a rule can check."""

GENERIC_PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "step by step": "Think step by step before you answer.",
        "exact form": "Answer in exactly the required form: give the bare answer, with nothing before or after it.",
    }
)
"""Name -> a sentence that knows nothing of the task, and often helps all the same (`cuesmith.check`)."""


def joined_steps(first: str, second: str) -> str:
    """Say two steps in one sentence."""
    small = second[:1].lower() + second[1:] if second[1:2].islower() else second
    return f"{first.rstrip(' .;,')}, and then {small}"
