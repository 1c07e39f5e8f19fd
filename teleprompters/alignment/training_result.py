"""What a prompter's training came to, measured against the best that any prompter could. Source: ours."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cuesmith.teleprompters.alignment.gains import Attainable, PolicyKL, Realised
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.events import Progressed
from cuesmith.teleprompters.runtime.statistics import Estimate95

_NOTHING = 1e-9
"""A gain that is none but for rounding."""


@dataclass(frozen=True)
class TrainingStepDone(Progressed):
    """A prompter's training made a step: one point of its learning curve.

    Attributes:
        step: 1, 2, ...
        of: Steps planned.
        reward: Mean reward of the step's rewrites, of those that have one; NaN if none has.
        kl: Mean log-ratio of the rewrites to the untrained prompter, nats a rewrite, before the step's updates.
        loss: The trainer's loss, its mean over the step's updates.
        missing: Rewrites without a reward: an outage, never a zero.
        seconds: What the step took.
    """

    step: int
    of: int
    reward: float
    kl: float
    loss: float
    missing: int
    seconds: float

    def __str__(self) -> str:
        """Return what a display shows."""
        return f"training {self.step}/{self.of}: reward {self.reward:.2f}, KL {self.kl:.2f}"


@dataclass(frozen=True)
class Alignment:
    """The yardstick and the training; rewards are means over the same training inputs.

    Attributes:
        mode: "train" or "weights".
        kl_coefficient: lambda.
        attainable: What any prompter can gain over the untrained one, at this lambda; None if it was not measured.
        realised: The trained prompter's share of it; None without one.
        reward: Mean reward of rewrites drawn from the trained prompter, with its interval; None without one.
        kl: KL(rho || rho_sft) that was spent; None without a trained prompter.
        curve: The learning curve, a point a step.
    """

    mode: str
    kl_coefficient: float
    attainable: Attainable | None
    realised: Realised | None = None
    reward: Estimate95 | None = None
    kl: PolicyKL | None = None
    curve: tuple[TrainingStepDone, ...] = field(default=(), repr=False)

    def verdict(self) -> str:
        """Return what it means, in a sentence or two; an empty text if nothing was measured."""
        best, done = self.attainable, self.realised
        if best is None:
            return ""
        coefficient = f"lambda = {self.kl_coefficient:g}"
        if best.nothing_to_gain and not best.between[1] <= _NOTHING:
            return self._unshown(best, coefficient)
        if best.nothing_to_gain:
            return f"No prompter can gain anything that could be measured over the untrained one at {coefficient}."
        low, high = best.between
        gained = f"At {coefficient} a prompter can gain between {low:.3f} and {high:.3f} over the untrained one"
        if done is None:
            return f"{gained} (reward less its KL charge)."
        if done.share is None:
            return f"{gained}; training realised {done.gain.mean:.3f} [{done.gain.low:.3f}, {done.gain.high:.3f}]."
        spent = f", for a KL of {self.kl.k1:.2f} nats a rewrite" if self.kl is not None else ""
        return (
            f"Training realised {100 * done.share:.0f} % [{100 * done.low:.0f}, {100 * done.high:.0f}] of what this "
            f"frozen program allows at {coefficient}{spent}."
        )

    def _unshown(self, best: Attainable, coefficient: str) -> str:
        """Return that the inputs were too few, or too much alike, to tell whether there is anything to gain."""
        n, most = len(best.inputs), best.between[1]
        upto = "anything" if math.isnan(most) else f"anything up to {most:.3g}"
        ended = ": nothing was trained. yardstick=0 trains without asking" if self.mode == "train" else ""
        return (
            f"Whether a prompter can gain anything over the untrained one at {coefficient} was not shown by {n} "
            f"input{'s' if n != 1 else ''}: it may be {upto}{ended}. "
            "A larger yardstick=, or more training examples, tells more."
        )


def alignment_of(compilation: Compilation) -> Alignment | None:
    """Return what a prompter's training came to; None for compilers that train none."""
    found = compilation.extras.get("alignment")
    return found if isinstance(found, Alignment) else None
