"""The options that every prompt search takes, and what a cap on calls makes of its numbers. Source: ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from cuesmith.signatures import Style
from cuesmith.teleprompters.compiler import Options
from cuesmith.teleprompters.search.credit import Strategy

Form = Literal["unified", "native"]
FORMS: tuple[Form, ...] = get_args(Form)

STEPS = 1
"""Under a cap on calls a setting is made so small that so many steps fit in. Ours."""

USED, ASKED = 0.6, 0.4
"""Shares of the upper bounds of program runs, with racing, and of optimizer calls that a search takes by and large.
Ours."""


class SearchOptions(Options, total=False):
    """The options that every prompt search takes; `PromptSearch` says what they mean."""

    search: Form
    width: int | None
    branch: int | None
    steps: int | None
    initial: int | None
    init_examples: int | None
    init_draws: int | None
    minibatch: int | None
    scoring: int | None
    threshold: float | None
    temperature: float | None
    racing: bool | None
    pinned: str | Mapping[str, str] | None
    longest: int | None
    next_predictor: Strategy
    task_description: str
    metric_description: str | None
    dataset_summary: bool | None
    analysis: Literal["auto"] | bool
    style: Style


def checked_text(name: str, text: str) -> str:
    """Return a text without white space around it; raises `TypeError` where it is none."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a text, got {text!r}")
    return text.strip()


def checked_pins(pinned: str | Mapping[str, str] | None) -> str | Mapping[str, str]:
    """Return `pinned` as it is used; raises `TypeError` where it is no text, and no mapping to texts."""
    if pinned is None:
        return {}
    texts = [pinned] if isinstance(pinned, str) else list(pinned.values()) if isinstance(pinned, Mapping) else [pinned]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise TypeError(f"pinned must be a text, or a mapping from predictor name to text, got {pinned!r}")
    return pinned
