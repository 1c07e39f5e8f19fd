"""The one setting that all compilers share, so that they can be compared.

2402.02101 runs every method in one unified setting: initial prompts written by the optimizer from 4 examples,
beam search, the same evaluation, a score on training and held-out examples at every step. It does not say
(in what could be read) how wide the beam is, how many candidates a parent gets, how many steps there are or
how large a minibatch is: those defaults are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cuesmith.teleprompters.runtime.checks import number, whole

MOST = 10_000
"""No number of a setting is larger: what is, is a slip of the hand. Ours."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The unified setting of a beam search over prompts.

    Attributes:
        width: Candidates kept after each step.
        branch: New candidates a step makes from each kept one.
        steps: Steps after the initial one.
        initial: Initial prompts that the optimizer writes for each predictor; 0 starts from the student alone.
        init_examples: Training examples shown for each of them; 4 in the paper.
        init_draws: How many of them are drawn from the same training examples.
        minibatch: Training examples on which the kept candidates are run for evidence, and the size of the
            fixed sample on which the best one's training score is taken.
        scoring: Selection examples that a candidate is scored on at most.
        threshold: A score of at least this is a success; the metrics of most tasks say 1.0.
        watching: Whether the best one's training score is taken at every step.
        temperature: What the optimizer samples at (`Run.temperature`).
        overlap: Rounds of the frontier that are under way at a time.
    """

    width: int = 4
    branch: int = 4
    steps: int = 3
    initial: int = 4
    init_examples: int = 4
    init_draws: int = 1
    minibatch: int = 16
    scoring: int = 50
    threshold: float = 1.0
    watching: bool = True
    temperature: float | None = None
    overlap: int = 1

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            TypeError: If one is of the wrong type.
            ValueError: If one is out of range.
        """
        for name in ("width", "branch", "init_examples", "init_draws", "minibatch", "scoring", "overlap"):
            whole(name, getattr(self, name), most=MOST)
        for name in ("steps", "initial"):
            whole(name, getattr(self, name), least=0, most=MOST)
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float):
            raise TypeError(f"threshold must be a number, got {self.threshold!r}")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be finite, got {self.threshold}")
        if self.temperature is not None:
            number("temperature", self.temperature, least=0, above=True)

    def watched(self, n_train: int) -> int:
        """Return how many training examples are set aside for the training score: at most a third.

        Args:
            n_train: How many training examples there are.
        """
        return min(self.minibatch, n_train // 3) if self.watching else 0


UNIFIED = Setting()
"""What `search="unified"` means for every compiler."""

SMALLER = tuple(
    {"width": width, "branch": branch, "initial": initial, "minibatch": minibatch, "watching": False}
    for width, branch, initial, minibatch in
    ((4, 4, 4, 16), (3, 3, 4, 12), (2, 3, 3, 8), (2, 2, 3, 8), (2, 1, 2, 6), (1, 2, 2, 6), (1, 1, 1, 4))
)  # fmt: skip
"""What the unified setting becomes, one after the other, where a cap on calls is too low for it. Ours."""


def smaller(setting: Setting, given: Sequence[str]) -> list[Setting]:
    """Return the setting and all that it may become under a cap, the largest first.

    Args:
        setting: What is wanted.
        given: The numbers that somebody chose: these stay.
    """
    less = (
        {name: min(number, getattr(setting, name)) for name, number in one.items() if name not in given}
        for one in SMALLER
    )
    return [setting, *(replace(setting, **one) for one in less)]
