"""What the study of ABO's gain found, and how it is measured: see `studies.abo_gain`.

Source: design and statistics are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from cuesmith.programs.diagnosis.association import Correlation, detectable_rho, holm, spearman
from cuesmith.programs.diagnosis.validity import binomial_tail
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, t975

__all__ = ["FEWEST_TASKS", "PREDICTORS", "AboGain", "Before", "Observed", "Predictor", "TaskGain", "analyse", "known"]

FEWEST_TASKS = 6
"""With fewer, no correlation can reach 5 % after the correction for as many as are tested (2 / 5! > 0.05 / 14)."""
PREDICTORS: Mapping[str, str] = {
    "student": "score of the student before",
    "followed": "share of the optimizer's steps that the student follows",
    "steps_gain": "gain of these steps without demonstrations",
    "words": "words of an input",
    "entropy": "entropy of the right answers (bits)",
    "steps": "number of steps written",
    "unusable": "share of the student's replies that cannot be used",
}
"""Field of `Before` -> what it is."""


@dataclass(frozen=True)
class Before:
    """What was known of a task before ABO; None where the budget ended first.

    Attributes:
        student: Mean score of the student.
        followed: Share of the steps of one prompt by the optimizer, without demonstrations, that are followed.
        steps_gain: Score with that prompt less `student`.
        words: Mean number of words of an example's inputs.
        entropy: Of the right answers of the training examples and of those measured on, in bits.
        steps: Number of steps of that prompt.
        unusable: Share of the student's replies that cannot be used.
    """

    student: float | None = None
    followed: float | None = None
    steps_gain: float | None = None
    words: float | None = None
    entropy: float | None = None
    steps: float | None = None
    unusable: float | None = None


@dataclass(frozen=True)
class Observed:
    """One task as it was observed.

    Attributes:
        task: Its name.
        before: What was known before.
        gain: ABO's, on fresh examples; n = 0 says that nothing beat the student; None says that it was not measured.
        base: The student's score on the same fresh examples, or `before.student` if it stays; None if unknown.
        stopped_by: The cap that ended ABO early.
    """

    task: str
    before: Before
    gain: Gain | None
    base: float | None
    stopped_by: str | None = None


@dataclass(frozen=True)
class TaskGain:
    """One task in the result.

    Attributes:
        observed: The task.
        realised: Share of the possible gain, 1 less the student's score, that was gained; None where nothing was
            possible or measured.
        holm: The gain's p-value, corrected for the number of tasks; None where it was not measured.
    """

    observed: Observed
    realised: float | None
    holm: float | None


@dataclass(frozen=True)
class Predictor:
    """What a measure taken before says of the gain; a task is one pair.

    Attributes:
        name: A field of `Before`.
        gain: Its correlation with the gain.
        gain_holm: The p-value, corrected for all correlations of the study that could be computed.
        realised: Its correlation with the realised share of the possible gain.
        realised_holm: Likewise.
    """

    name: str
    gain: Correlation
    gain_holm: float
    realised: Correlation
    realised_holm: float


@dataclass(frozen=True)
class AboGain:
    """What was found.

    Attributes:
        tasks: The largest gain first; tasks whose gain was not measured come last.
        mean: Mean gain over the tasks, with Student's t interval over tasks.
        realised: Mean realised share of the possible gain, likewise.
        better: Tasks with a gain above 0.
        worse: Tasks with one below 0.
        sign_p: Two-sided sign test over these.
        significant: Tasks with a gain above 0 that is significant after Holm's correction.
        harmed: Tasks with one below 0 that is.
        predictors: What tells the gain beforehand; empty with too few tasks.
        tests: Correlations that the correction is for.
        detectable: Smallest correlation found in 80 % of such studies, tested alone; nan below 10 tasks.
        detectable_corrected: The same for the strictest step of the correction.
    """

    tasks: tuple[TaskGain, ...]
    mean: Estimate95
    realised: Estimate95
    better: int
    worse: int
    sign_p: float
    significant: int
    harmed: int
    predictors: tuple[Predictor, ...]
    tests: int
    detectable: float
    detectable_corrected: float

    @property
    def gains(self) -> dict[str, float]:
        """Task -> gain, of the tasks where it was measured."""
        return {one.observed.task: one.observed.gain.difference for one in self.tasks if one.observed.gain}


def analyse(observed: Sequence[Observed], *, seed: int = 0) -> AboGain:
    """Turn what was observed into the result.

    Args:
        observed: One entry a task, in any order.
        seed: Of the permutations.
    """
    measured = [one for one in observed if one.gain is not None]
    corrected = dict(zip((one.task for one in measured),
                         holm([one.gain.p_value for one in measured if one.gain]), strict=True))
    tasks = sorted((TaskGain(one, _realised(one), corrected.get(one.task)) for one in observed), key=_order)
    gains = [one.gain.difference for one in measured if one.gain]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    sure = [one.observed.gain.difference for one in tasks
            if one.observed.gain and one.holm is not None and one.holm < 0.05 and one.observed.gain.significant]
    predictors, tests = _predictors(tasks, seed) if len(measured) >= FEWEST_TASKS else ((), 0)
    return AboGain(
        tasks=tuple(tasks),
        mean=_over_tasks(gains),
        realised=_over_tasks([one.realised for one in tasks if one.realised is not None]),
        better=better,
        worse=worse,
        sign_p=min(1.0, 2 * binomial_tail(max(better, worse), better + worse, 0.5)),
        significant=sum(gain > 0 for gain in sure),
        harmed=sum(gain < 0 for gain in sure),
        predictors=predictors,
        tests=tests,
        detectable=detectable_rho(len(measured)),
        detectable_corrected=detectable_rho(len(measured), tests=max(1, tests)),
    )


def _order(one: TaskGain) -> tuple[bool, float, str]:
    gain = one.observed.gain
    return gain is None, -gain.difference if gain else 0.0, one.observed.task


def _realised(one: Observed) -> float | None:
    if one.gain is None or one.base is None or one.base >= 1:
        return None
    return one.gain.difference / (1 - one.base)


def _over_tasks(values: Sequence[float]) -> Estimate95:
    """Mean and Student's t interval, within what scores up to 1 allow; none where all are equal: that says nothing.

    Not `estimate95`: gains of 0 and 1 are no successes and failures here.
    """
    n = len(values)
    if n < 2 or stdev(values) == 0:
        return Estimate95(fmean(values) if n else math.nan, math.nan, math.nan, n)
    mean, half = fmean(values), t975(n - 1) * stdev(values) / math.sqrt(n)
    most = 1.0 if max(values) <= 1 else math.inf
    return Estimate95(mean, max(mean - half, -most), min(mean + half, most), n)


def _predictors(tasks: Sequence[TaskGain], seed: int) -> tuple[tuple[Predictor, ...], int]:
    """Correlate every measure with both outcomes; all that vary are one family of tests."""
    found: list[tuple[str, Correlation, Correlation]] = []
    for name in PREDICTORS:
        pairs = [(known(one, name), one) for one in tasks]
        measured = [(x, one) for x, one in pairs if x is not None]
        gains = [(x, one.observed.gain.difference) for x, one in measured if one.observed.gain]
        shares = [(x, one.realised) for x, one in measured if one.realised is not None]
        first, second = (spearman([x for x, _ in rows], [y for _, y in rows], seed=seed) for rows in (gains, shares))
        found.append((name, first, second))
    tested = [one for _, *both in found for one in both if math.isfinite(one.rho)]
    corrected = iter(holm([one.p_value for one in tested]))
    values = {id(one): next(corrected) for one in tested}
    return tuple(Predictor(name, first, values.get(id(first), 1.0), second, values.get(id(second), 1.0))
                 for name, first, second in found), len(tested)


def known(one: TaskGain, name: str) -> float | None:
    """Return one of `PREDICTORS` of a task; None where it was not measured."""
    value: float | None = getattr(one.observed.before, name)
    return value
