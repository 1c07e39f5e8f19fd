"""What the study of reflection found, and how it is measured: see `studies.reflection`.

Source: design and statistics are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.association import holm
from cuesmith.programs.diagnosis.likeness import Alike, alike
from cuesmith.programs.diagnosis.permutation import permuted
from cuesmith.programs.diagnosis.repetition import interval95, resamples
from cuesmith.programs.diagnosis.similarity import Similarity, TfIdf
from cuesmith.programs.diagnosis.two_way import resampled_means
from cuesmith.programs.studies.observed import Observed
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95, paired_gain

__all__ = [
    "ARMS", "OWN", "PLACEBO", "REWORDING", "SECONDARY", "SEEN", "UNIFORM", "Arm", "Collected", "Difference",
    "Found", "Refinement", "analysed",
]  # fmt: skip

OWN, UNIFORM, PLACEBO, REWORDING, SEEN = (
    "own errors", "no errors", "wrong errors", "rewording", "own errors, shown to the edit too")
ARMS = (OWN, UNIFORM, PLACEBO, REWORDING, SEEN)
"""The ways to refine."""
SECONDARY = (PLACEBO, REWORDING, SEEN)
"""What own errors are compared with beside no errors, corrected for being three."""
_TOLERANCE = 1e-9
_REACH = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
"""Standard errors that a difference is away from 0 if a two-sided test at 5 % finds it in 80 % of all studies."""
Floats = NDArray[np.float64]


# --- what was collected ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refinement:
    """One refined prompt.

    Attributes:
        arm: How it was made, one of `ARMS`.
        number: Its number within the arm; refinements of one number of "own errors" and "own errors, shown to the
            edit too" are made of the same reason.
        instructions: What the optimizer wrote.
        scores: One a validation example; None is missing.
    """

    arm: str
    number: int
    instructions: str
    scores: tuple[float | None, ...]


@dataclass
class Collected:
    """What has been found so far.

    Attributes:
        observed: What the prompt was observed to do; None until that is known.
        student: Its score on each validation example.
        placebo: What the wrong errors are made of; "" if there are none.
        reasons: Arm -> what reflection said, by number; None where nothing usable came (yet).
        unusable: Arm -> edits that could not be used.
        refinements: Those scored on all validation examples.
    """

    observed: Observed | None = None
    student: tuple[float | None, ...] = ()
    placebo: str = ""
    reasons: dict[str, list[str | None]] = field(default_factory=dict)
    unusable: dict[str, int] = field(default_factory=dict)
    refinements: list[Refinement] = field(default_factory=list)


# --- what comes out ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """The refinements of one way.

    Attributes:
        score: Their mean score, with a bootstrap interval over refinements and examples.
        above: Share of them with a higher score than the student.
        each: The score of each refinement, in rising order.
    """

    score: Estimate95
    above: Estimate95
    each: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """Own errors compared with another arm.

    Attributes:
        value: Mean score of own errors less that of the other arm, with a bootstrap interval over refinements and
            examples; for the arm of the same reasons over pairs of refinements.
        p_value: Two-sided permutation test of the refinements' scores; of pairs where reasons are the same.
        corrected: The same after Holm's correction for the secondary comparisons; the main one is not corrected.
        detectable: Difference that would be found in 80 % of studies with the bootstrap's standard error (normal
            approximation); nan if that is 0.
    """

    value: Estimate95
    p_value: float
    corrected: float
    detectable: float

    @property
    def sign(self) -> int:
        """1 or -1 if own errors were shown to be better or worse, by test and interval; else 0."""
        shown = self.corrected <= 0.05
        return int(shown and self.value.low > 0.0) - int(shown and self.value.high < 0.0)


@dataclass(frozen=True)
class Found:
    """What the study found.

    Attributes:
        n: Refinements an arm that were wanted.
        examples: Training examples that the student was run on; 0 if the study was stopped before.
        errors: Those it failed on.
        placebo: What the wrong errors are made of; "" if there are none.
        student: The student's score on the validation examples.
        arms: Those with at least one refinement.
        differences: Arm -> own errors less it; where both have two refinements or more.
        feedback: Reasons from own errors (first) and from no errors (second); None with fewer than 3 of either.
        unusable: Arm -> refinements that came to nothing because a reply could not be used.
        by_words: Whether feedback was compared by its words, and not by an embedder.
    """

    n: int
    examples: int
    errors: int
    placebo: str
    student: Estimate95
    arms: Mapping[str, Arm]
    differences: Mapping[str, Difference]
    feedback: Alike | None
    unusable: Mapping[str, int]
    by_words: bool = True


def analysed(kept: Collected, n: int, *, similarity: Similarity | None = None, seed: int = 0) -> Found:
    """Measure what was collected, all of it or what a stop left.

    Args:
        kept: What was collected.
        n: Refinements an arm that were wanted.
        similarity: How alike texts are; by default by their words.
        seed: Seeds bootstrap and permutations.
    """
    ordered = sorted(kept.refinements, key=lambda one: (ARMS.index(one.arm), one.number))
    groups = {arm: {one.number: _row(one.scores) for one in ordered if one.arm == arm} for arm in ARMS}
    rows = {arm: {k: row for k, row in found.items() if not np.isnan(row).all()} for arm, found in groups.items()}
    rows = {arm: found for arm, found in rows.items() if found}
    student = _row(kept.student)
    tables = {arm: np.stack(list(found.values())) for arm, found in rows.items()}
    compared = {arm: _difference(arm, rows, seed) for arm in (UNIFORM, *SECONDARY) if _comparable(arm, rows)}
    secondary = [arm for arm in compared if arm in SECONDARY]
    corrected = dict(zip(secondary, holm([compared[arm].p_value for arm in secondary]), strict=True))
    return Found(
        n=n,
        examples=kept.observed.n if kept.observed else 0,
        errors=len(kept.observed.errors) if kept.observed else 0,
        placebo=kept.placebo,
        student=estimate95(kept.student),
        arms={arm: _arm(table, student, seed) for arm, table in tables.items()},
        differences={arm: Difference(one.value, one.p_value, corrected.get(arm, one.p_value), one.detectable)
                     for arm, one in compared.items()},
        feedback=_feedback(kept.reasons, similarity or TfIdf(), seed),
        unusable={arm: count for arm, count in kept.unusable.items() if count},
        by_words=similarity is None or isinstance(similarity, TfIdf),
    )


def _row(scores: Sequence[float | None]) -> Floats:
    return np.array([math.nan if score is None else score for score in scores], dtype=np.float64)


def _arm(table: Floats, student: Floats, seed: int) -> Arm:
    both = np.where(np.isnan(student), math.nan, table), np.where(np.isnan(table), math.nan, student)
    pairs = [(a, b) for a, b in zip(*both, strict=True) if not np.isnan(a).all()]
    above = [float(np.nanmean(a) > np.nanmean(b) + _TOLERANCE) for a, b in pairs]
    each = np.sort(np.nanmean(table, axis=1))
    resampled = resampled_means([table], [resamples(len(table), np.random.default_rng(seed))], seed)[0]
    return Arm(interval95(float(each.mean()), resampled, len(table)), estimate95(above), tuple(each.tolist()))


def _comparable(arm: str, rows: Mapping[str, Mapping[int, Floats]]) -> bool:
    if arm == SEEN:
        return len(rows.get(OWN, {}).keys() & rows.get(SEEN, {}).keys()) > 1
    return min(len(rows.get(OWN, {})), len(rows.get(arm, {}))) > 1


def _difference(arm: str, rows: Mapping[str, Mapping[int, Floats]], seed: int) -> Difference:
    paired = arm == SEEN
    chosen = [[row for k, row in rows[one].items() if not paired or k in rows[OWN].keys() & rows[SEEN].keys()]
              for one in (OWN, arm)]
    tables = [np.stack(some) for some in chosen]
    own, other = (np.nanmean(table, axis=1) for table in tables)
    rng = np.random.default_rng(seed)
    weights = [resamples(len(tables[0]), rng)]
    weights.append(weights[0] if paired else resamples(len(tables[1]), rng))
    first, second = resampled_means(tables, weights, seed)
    value = interval95(float(own.mean() - other.mean()), first - second, len(own) + len(other))
    if paired:
        p_value = paired_gain(other.tolist(), own.tolist(), seed=seed).p_value
    else:
        p_value = permuted(own.tolist(), other.tolist(), seed=seed)
    spread = float(np.nanstd(first - second))
    return Difference(value, p_value, p_value, _REACH * spread if spread > 0 else math.nan)


def _feedback(said: Mapping[str, Sequence[str | None]], similarity: Similarity, seed: int) -> Alike | None:
    own, without = ([text for text in said.get(arm, ()) if text] for arm in (OWN, UNIFORM))
    return alike(similarity.matrix([*own, *without]), len(own), seed=seed)
