"""What the study of demonstrations found, and how it is measured: see `studies.demonstrations`.

Source: design and statistics are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.association import holm
from cuesmith.programs.diagnosis.two_way import drawn_shares, expanded_interval, two_way_interval, two_way_sign_flip
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95

__all__ = [
    "EFFECTS", "FAMILIES", "FEWEST_REFINEMENTS", "THRESHOLD", "Cell", "Demonstrations", "Effect", "Factorial",
    "Followed", "analyse",
]  # fmt: skip

EFFECTS = ("instruction alone", "demonstrations added to the instruction", "demonstrations alone", "both together",
           "interaction")
FAMILIES = ((0, 1), (2, 3, 4))
"""Effects that are corrected together: the two that answer the question, and the others."""
FEWEST_SCORED = 10
"""Examples with scores in all cells; with fewer nothing is said. Ours."""
FEWEST_REFINEMENTS = 7
"""With fewer not every family can reach 5 % by a sign-flip test over refinements and Holm's correction:
3 x 2 / 2 ** 7 = 4.7 %."""
THRESHOLD = 1.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Factorial:
    """Scores on the same examples. Rows are refinements, columns examples; nan where a score is missing.

    Attributes:
        student: Of the student's own prompt; one an example.
        instruction: With the refined instruction alone.
        demonstrations: With the demonstrations and the student's own instruction.
        both: With both.
        share_alone: Share of the steps followed by each response to the refined instruction alone.
        share_both: The same with demonstrations.
    """

    student: Floats
    instruction: Floats
    demonstrations: Floats
    both: Floats
    share_alone: Floats
    share_both: Floats


@dataclass(frozen=True)
class Cell:
    """One cell of the design.

    Attributes:
        instruction: Whether the instruction is the refined one.
        demonstrations: Whether there are demonstrations.
        score: Mean score with interval over refinements and examples.
        each: Mean score of each refinement.
    """

    instruction: bool
    demonstrations: bool
    score: Estimate95
    each: tuple[float, ...]


@dataclass(frozen=True)
class Effect:
    """A difference between cells, in the unit of the scores; `EFFECTS` has the names.

    Attributes:
        name: Which.
        value: With interval over refinements and examples; n is the number of examples.
        p_value: Sign-flip test over refinements and examples.
        adjusted: The same, corrected by Holm for the effects of its family.
    """

    name: str
    value: Estimate95
    p_value: float
    adjusted: float

    @property
    def sign(self) -> int:
        """1 or -1 if the effect is shown at 5 %, else 0."""
        return int(math.copysign(1, self.value.mean)) if self.adjusted < 0.05 else 0


@dataclass(frozen=True)
class Followed:
    """How the refined instructions are followed.

    Attributes:
        without: Mean share of the steps followed, without demonstrations.
        shown: The same with demonstrations.
        change: `shown` less `without`.
        worth_without: P(correct | all steps followed) - P(correct | not), without demonstrations; nan where all or none
            are followed.
        worth_shown: The same with demonstrations.
    """

    without: Estimate95
    shown: Estimate95
    change: Effect
    worth_without: Estimate95
    worth_shown: Estimate95


@dataclass(frozen=True)
class Demonstrations:
    """What the study found.

    Attributes:
        refinements: How many refined instructions were compared.
        examples: On how many examples.
        cells: The four cells; none if nothing could be compared.
        effects: The differences between them.
        following: How the steps are followed; None if no response could be checked.
        least: The smallest corrected p-value that so many refinements can give every effect.
        instructions: The refined instructions; a model wrote them.
    """

    refinements: int
    examples: int
    cells: tuple[Cell, ...]
    effects: tuple[Effect, ...]
    following: Followed | None
    least: float
    instructions: tuple[str, ...] = ()


def analyse(data: Factorial, *, seed: int = 0) -> Demonstrations:
    """Compare the cells on the examples that have all scores.

    Args:
        data: The scores.
        seed: Seeds the tests and the bootstrap.
    """
    known = np.isfinite(data.student)
    for cell in (data.instruction, data.demonstrations, data.both):
        known &= np.isfinite(cell).all(axis=0)
    r, n = len(data.both), int(known.sum())
    least = min(1.0, len(FAMILIES[-1]) * 2.0 / 2**r)
    if not r or n < FEWEST_SCORED:
        return Demonstrations(r, n, (), (), None, least)
    base = data.student[known]
    alone, shown, both = (m[:, known] for m in (data.instruction, data.demonstrations, data.both))
    contrasts = (alone - base, both - alone, shown - base, both - base, both - alone - shown + base)
    tests = [two_way_sign_flip(one, seed=seed) for one in contrasts]
    corrected = [p for family in FAMILIES for p in holm([tests[k] for k in family])]
    effects = tuple(
        Effect(name, two_way_interval(one, seed=seed), p, adjusted)
        for name, one, p, adjusted in zip(EFFECTS, contrasts, tests, corrected, strict=True))
    cells = (
        Cell(False, False, estimate95(base.tolist()), (float(base.mean()),) * r),
        *(Cell(refined, with_, two_way_interval(m, seed=seed), tuple(m.mean(axis=1).tolist()))
          for refined, with_, m in ((False, True, shown), (True, False, alone), (True, True, both))))
    return Demonstrations(r, n, cells, effects, _followed(data, known, seed), least)


def _followed(data: Factorial, known: NDArray[np.bool_], seed: int) -> Followed | None:
    checked = known & np.isfinite(data.share_alone).all(axis=0) & np.isfinite(data.share_both).all(axis=0)
    if checked.sum() < 2:
        return None
    without, shown = data.share_alone[:, checked], data.share_both[:, checked]
    p = two_way_sign_flip(shown - without, seed=seed)
    return Followed(
        without=two_way_interval(without, seed=seed),
        shown=two_way_interval(shown, seed=seed),
        change=Effect("steps followed", two_way_interval(shown - without, seed=seed), p, p),
        worth_without=_worth(without, data.instruction[:, checked], seed),
        worth_shown=_worth(shown, data.both[:, checked], seed),
    )


def _worth(shares: Floats, scores: Floats, seed: int) -> Estimate95:
    """P(correct | all followed) - P(correct | not), over refinements and examples; nan if a group is empty."""
    full, right = (shares >= 1.0).astype(float), (scores >= THRESHOLD).astype(float)
    rng = np.random.default_rng(seed)
    rows, columns = (drawn_shares(rng, k) for k in full.shape)
    parts = (full * right, full, (1 - full) * right, 1 - full)
    drawn = [((rows @ part) * columns).sum(axis=1) for part in parts]
    whole = [np.asarray(part.sum()) for part in parts]
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may have an empty group: nan, left out
        mean, values = (top[0] / top[1] - top[2] / top[3] for top in (whole, drawn))
    return expanded_interval(float(mean), np.asarray(values), full.shape)
