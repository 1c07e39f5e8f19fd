"""Does showing the errors make better refinements than no errors, or wrong ones? The same edit, from other reflections.

One prompt is refined many times in four ways, which differ in nothing but what the reflection was shown:

- *own errors*: a random batch of the errors that the prompt made on training examples;
- *no errors*: the prompt alone ("uniform reflection": what the optimizer believes without looking);
- *wrong errors*: a placebo, examples that the prompt answered rightly, each with another example's expected outputs
  and without the metric's words (`observed.swapped`); where there are fewer than `RIGHTS` of those, its errors,
  swapped likewise;
- *rewording*: no reflection; the prompt said in other words.

The edit sees the reason and never the errors, so that whatever a refinement knows of them came through the reflection.
How much that leaves out is measured as well: *own errors, shown to the edit too* edits from the very same reasons with
the batch in sight, as `APO` does.

A refinement is the unit of analysis: all are scored on the same examples, tests permute refinements, and intervals
resample refinements and examples. Source: 2402.02101 ("uniform reflection vs error-specific reflection"); the requests
are those of ProTeGi (2305.03495) as this project words them; design, placebo and statistics: ours.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.asking import Error, Evidence
from cuesmith.programs.diagnosis.association import holm
from cuesmith.programs.diagnosis.figures import Curve, Figure, Section, percent
from cuesmith.programs.diagnosis.planted import BATCH, FEWEST, drawn, without_errors
from cuesmith.programs.diagnosis.repetition import interval95, resamples
from cuesmith.programs.diagnosis.similarity import TfIdf
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.studies.bench import Bench, Findings, Study
from cuesmith.programs.studies.observed import Alike, Observed, alike, observed, one_task, reasons, swapped
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.signatures import EditInstruction, VaryInstructions
from cuesmith.teleprompters.runtime.candidate import Origin
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95, paired_gain
from cuesmith.teleprompters.search.guards import Guard
from cuesmith.teleprompters.search.texts import LONGEST_INSTRUCTION, text_field

__all__ = ["ARMS", "STUDY", "Arm", "Collected", "Difference", "Experiment", "Found", "Refinement", "analysed",
           "permuted", "sections"]

OWN, UNIFORM, PLACEBO, REWORDING, SEEN = (
    "own errors", "no errors", "wrong errors", "rewording", "own errors, shown to the edit too")
ARMS = (OWN, UNIFORM, PLACEBO, REWORDING, SEEN)
"""The ways to refine."""
SECONDARY = (PLACEBO, REWORDING, SEEN)
"""What own errors are compared with beside no errors, corrected for being three."""

RIGHTS = 2 * BATCH
"""Right answers that the placebo is made of at least, so that its batches differ. Ours."""
_STATES = 20_000
"""Different sums of a permutation test that are counted exactly."""
_FINEST = 10_000
"""A score is a multiple of one over at most so much, unless it is a number of any kind."""
_SHUFFLES = 10_000
_TOLERANCE = 1e-9
_REACH = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
"""Standard errors that a difference is away from 0 if a two-sided test at 5 % finds it in 80 % of all studies."""
Floats = NDArray[np.float64]


# --- what is asked -----------------------------------------------------------------------------------------


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


class Experiment:
    """Observes the prompt's errors, reflects, edits and scores.

    Attributes:
        kept: What has been found so far.
    """

    def __init__(self, n: int) -> None:
        """Take the number of refinements an arm."""
        self.kept = Collected()
        self._n = n

    async def __call__(self, run: Run) -> None:
        """Run it.

        Raises:
            RunStopped: As `Run.score`.
        """
        kept = self.kept
        scores, student = await asyncio.gather(
            run.score([run.baseline], run.train), run.score([run.baseline], run.select))
        kept.observed, kept.student = observed(run, scores[0]), student[0].values
        if len(kept.observed.errors) < FEWEST:
            return
        shown = self._shown(run, kept.observed)
        kept.reasons = {arm: [None] * self._n for arm in shown}
        kept.unusable = dict.fromkeys((*shown, REWORDING, SEEN), 0)
        written: dict[tuple[int, str], str] = {}
        await asyncio.gather(*(chain for k in range(self._n) for chain in (
            *(self._reflect(run, written, arm, k, batches[k]) for arm, batches in shown.items()),
            self._reword(run, written, k))))
        # All is written before the first is scored, in turn: so a stop leaves about as many refinements of every arm.
        guard = Guard.of(run.train, [kept.observed.instructions], {}, LONGEST_INSTRUCTION)
        await asyncio.gather(*(self._score(run, guard, arm, k, written.get((k, arm), ""))
                               for k in range(self._n) for arm in kept.unusable))

    def _shown(self, run: Run, found: Observed) -> dict[str, list[Evidence]]:
        """What each arm's reflection is shown, one entry a refinement."""
        n, seed, prompt = self._n, run.seed, found.instructions
        shown = {OWN: drawn(prompt, found.errors, n=n, seed=seed, label=OWN), UNIFORM: without_errors(prompt, n=n)}
        pools = {"right answers": found.rights if len(found.rights) >= RIGHTS else (), "errors": found.errors}
        for name, pool in pools.items():
            wrong = swapped(pool, run.rng("placebo"))
            if len(wrong) >= FEWEST:
                self.kept.placebo = name
                return {**shown, PLACEBO: drawn(prompt, wrong, n=n, seed=seed, label=PLACEBO)}
        return shown

    async def _reflect(self, run: Run, written: dict[tuple[int, str], str], arm: str, k: int, evidence: Evidence
                       ) -> None:
        said: list[str | None] = [None]
        await reasons(run, [evidence], said, order=[0], salt=f"refinement {k}")
        reason = self.kept.reasons[arm][k] = said[0]
        if reason is None:
            return
        shown: dict[str, Sequence[Error]] = {arm: (), **({SEEN: evidence.errors} if arm == OWN else {})}

        async def edit(way: str) -> None:
            failures = [error.shown() for error in shown[way]]
            request = {"instruction": evidence.instructions, "failures": failures, "reason": reason}
            replies = await run.ask(EditInstruction, request, salt=f"refinement {k}")
            written[k, way] = text_field(replies[0], "edited_instruction") if replies else ""

        await asyncio.gather(*map(edit, shown))

    async def _reword(self, run: Run, written: dict[tuple[int, str], str], k: int) -> None:
        assert self.kept.observed is not None
        request = {"instruction": self.kept.observed.instructions}
        replies = await run.ask(VaryInstructions, request, salt=f"refinement {k}")
        written[k, REWORDING] = text_field(replies[0], "variation") if replies else ""

    async def _score(self, run: Run, guard: Guard, arm: str, k: int, text: str) -> None:
        assert self.kept.observed is not None
        name = self.kept.observed.name
        usable = guard.usable(name, text)
        if usable is None:
            self.kept.unusable[arm] += 1
            return
        origin = Origin(f"refined by {arm}", (run.baseline.id,))
        made = run.baseline.replace(name, instructions=usable, origin=origin)
        scored = (await run.score([made], run.select))[0]
        self.kept.refinements.append(Refinement(arm, k, usable, scored.values))


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


def analysed(kept: Collected, n: int, *, seed: int = 0) -> Found:
    """Measure what was collected, all of it or what a stop left.

    Args:
        kept: What was collected.
        n: Refinements an arm that were wanted.
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
        feedback=_feedback(kept.reasons, seed),
        unusable={arm: count for arm, count in kept.unusable.items() if count},
    )


def _row(scores: Sequence[float | None]) -> Floats:
    return np.array([math.nan if score is None else score for score in scores], dtype=np.float64)


def _arm(table: Floats, student: Floats, seed: int) -> Arm:
    both = np.where(np.isnan(student), math.nan, table), np.where(np.isnan(table), math.nan, student)
    pairs = [(a, b) for a, b in zip(*both, strict=True) if not np.isnan(a).all()]
    above = [float(np.nanmean(a) > np.nanmean(b) + _TOLERANCE) for a, b in pairs]
    each = np.sort(np.nanmean(table, axis=1))
    resampled = _resampled([table], [resamples(len(table), np.random.default_rng(seed))], seed)[0]
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
    first, second = _resampled(tables, weights, seed)
    value = interval95(float(own.mean() - other.mean()), first - second, len(own) + len(other))
    if paired:
        p_value = paired_gain(other.tolist(), own.tolist(), seed=seed).p_value
    else:
        p_value = permuted(own.tolist(), other.tolist(), seed=seed)
    spread = float(np.nanstd(first - second))
    return Difference(value, p_value, p_value, _REACH * spread if spread > 0 else math.nan)


def _resampled(tables: Sequence[Floats], weights: Sequence[Floats], seed: int) -> list[Floats]:
    """The mean of each table's known scores, for each resample of its rows and of the columns that all share.

    Rows are refinements and columns examples: the pigeonhole bootstrap (Owen 2007), which errs on the wide side.
    """
    columns = _columns(tables[0].shape[1], seed)
    means = []
    for table, rows in zip(tables, weights, strict=True):
        known = ~np.isnan(table)
        sums = ((rows @ np.where(known, table, 0.0)) * columns).sum(axis=1)
        counts = ((rows @ known.astype(np.float64)) * columns).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample without a known score: nan
            means.append(sums / counts)
    return means


@lru_cache(maxsize=4)
def _columns(n: int, seed: int) -> Floats:
    return resamples(n, np.random.default_rng([seed, 1]))


def permuted(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> float:
    """Return the two-sided p-value of a permutation test of the difference of two means.

    Exact, by counting in how many ways each sum comes about, as long as there are at most 20,000 different sums; else
    from 10,000 seeded random permutations, to which the observed one is added. Source: Fisher 1935; Phipson and Smyth
    2010 for the addition.

    Args:
        first: One value a unit.
        second: The other group's.
        seed: Seeds the random permutations.

    Raises:
        ValueError: If a group is empty.
    """
    if not first or not second:
        raise ValueError("a permutation test needs two groups")
    n = len(first)
    values, slack = _whole([*first, *second])
    size, whole = len(values), sum(values)
    # In whole numbers, so that rounding does not decide what is as extreme; it rises with the difference of the means.
    least = abs(sum(values[:n]) * size - whole * n) - slack
    if (ways := _ways(values, n)) is not None:
        extreme = sum(count for total, count in ways.items() if abs(total * size - whole * n) >= least)
        return extreme / math.comb(size, n)
    rng = random.Random(seed)
    sums = (sum(rng.sample(values, n)) for _ in range(_SHUFFLES))
    return (sum(abs(total * size - whole * n) >= least for total in sums) + 1) / (_SHUFFLES + 1)


def _whole(values: Sequence[float]) -> tuple[list[int], int]:
    """The values as multiples of what all are multiples of, or of 1e-12; and what may come of rounding to those."""
    near = [Fraction(value).limit_denominator(_FINEST) for value in values]
    if any(abs(float(one) - value) > 1e-12 for one, value in zip(near, values, strict=True)):
        return [round(value * 1e12) for value in values], len(values) ** 2
    unit = math.lcm(*(one.denominator for one in near))
    return [int(one * unit) for one in near], 0


def _ways(values: Sequence[int], n: int) -> dict[int, int] | None:
    """In how many ways n of the values have each sum; None if there are too many sums."""
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in range(n))]
    for done, value in enumerate(values):
        for k in range(min(done + 1, n), 0, -1):
            for total, count in ways[k - 1].items():
                ways[k][total + value] = ways[k].get(total + value, 0) + count
        if sum(map(len, ways)) > _STATES:
            return None
    return ways[n]


def _feedback(said: Mapping[str, Sequence[str | None]], seed: int) -> Alike | None:
    own, without = ([text for text in said.get(arm, ()) if text] for arm in (OWN, UNIFORM))
    return alike(TfIdf().matrix([*own, *without]), len(own), seed=seed)


# --- the study ---------------------------------------------------------------------------------------------


def conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    """Conduct the study on one task, with n refinements an arm.

    Raises:
        ValueError: Before any call, if it is not one task with training examples enough.
    """
    task = one_task(STUDY.name, tasks, n, fewest=STUDY.fewest, train=FEWEST)
    experiment = Experiment(n)
    bench.conduct(STUDY.name, task, experiment)
    result = analysed(experiment.kept, n, seed=bench.seed)
    return Findings(result, sections(result), tuple(_limits(result)))


def forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Return upper bounds: three reflections, four edits and a rewording a number, each of the five then scored."""
    asks = (3 + 4 + 1) * n * len(tasks)
    runs = sum(len(task.train) + (1 + len(ARMS) * n) * len(task.validation) for task in tasks)
    return Forecast(asks, runs, asks + runs)


def sections(found: Found) -> tuple[Section, ...]:
    """Return the report's parts; what could not be measured says why."""
    first = Section("Do the errors make better refinements?", _summary(found), tuple(_differences(found)))
    if not found.arms:
        return (first,)
    said = "The feedback cannot be compared: too few reasons were given." if found.feedback is None else \
        _feedback_summary(found.feedback)
    return (
        first,
        Section("How good are the refinements?", _arms_summary(found), tuple(_arms(found)), _curves(found)),
        Section("Is the feedback about the errors?", said, tuple(_feedback_figures(found.feedback))),
    )


def _summary(found: Found) -> str:
    if not found.examples:
        return "The study was stopped before it was known which errors the prompt makes."
    if found.errors < FEWEST:
        return (f"The prompt made {found.errors} errors on {found.examples} training examples, and to reflect on them "
                f"at least {FEWEST} are needed: give more training examples, or a harder task.")
    main = found.differences.get(UNIFORM)
    if main is None:
        return "Nothing can be said: too few refinements were scored before the study ended."
    points = 100 * main.value.mean
    if main.sign > 0:
        return (f"Showing the errors makes better refinements: {points:.0f} points better than reflection without any."
                f"{_beside(found)}")
    if main.sign < 0:
        return f"Showing the errors makes worse refinements: {-points:.0f} points worse than reflection without any."
    return "That showing the errors makes better refinements than showing none was not found."


def _beside(found: Found) -> str:
    placebo = found.differences.get(PLACEBO)
    if placebo is None:
        return ""
    if placebo.sign > 0:
        return " Wrong errors do not do it: what the errors say matters."
    return " That right errors do more than wrong ones was not found."


def _differences(found: Found) -> Iterator[Figure]:
    for arm, one in found.differences.items():
        test = "paired sign-flip test" if arm == SEEN else "permutation test over refinements"
        many = "" if arm == UNIFORM else ", Holm"
        yield Figure(
            f"{OWN} less {arm} (points)", *percent(one.value), one.value.n, one.corrected,
            f"Refinements from the prompt's own errors score so much more than {_named(arm, found)} ({test}{many}).",
            _advice(arm, one.sign))


def _named(arm: str, found: Found) -> str:
    return {
        UNIFORM: "those from a reflection that saw no errors",
        PLACEBO: f"those from a placebo: {found.placebo} with another example's expected outputs",
        REWORDING: "the prompt said in other words",
        SEEN: "those from the same reasons with the errors also shown to the edit",
    }[arm]


def _advice(arm: str, sign: int) -> str:
    if arm == SEEN:
        return {1: "Do not show the errors to the edit: the reason says enough.",
                0: "No loss was found in editing from the reason alone: what it knows comes from the reflection.",
                -1: "Show the errors to the edit, as APO does: the reason loses something that they hold."}[sign]
    if sign > 0:
        return {UNIFORM: "Pay for reflection on errors, as APO and PromptAgent do.",
                PLACEBO: "Check labels before you reflect: what is expected decides what comes of it.",
                REWORDING: "Reflection is worth its calls here; rewording alone is not enough."}[arm]
    if arm == REWORDING:
        return "Rewording does as well as far as was shown, and costs one call less: use IterativeAPE."
    return "Do not pay for showing errors to this optimizer before a larger study, or another model, shows a gain."


def _arms_summary(found: Found) -> str:
    best = max(found.arms, key=lambda arm: found.arms[arm].score.mean)
    above = found.arms[best].above
    return (f"The prompt as it was scores {100 * found.student.mean:.0f} %. The best way on average is "
            f"\"{best}\": {100 * found.arms[best].score.mean:.0f} %, and {round(above.mean * above.n)} of {above.n} "
            "refinements above the prompt as it was.")


def _arms(found: Found) -> Iterator[Figure]:
    yield Figure(
        "the prompt as it was (%)", *percent(found.student), found.student.n, None,
        "The score of the student's own prompt on the validation examples, which are n here.",
        "Refinements below it are not worth scoring.")
    for arm, one in found.arms.items():
        yield Figure(
            f"{arm}: mean score (%)", *percent(one.score), one.score.n, None,
            "The mean over the refinements, with an interval over refinements and examples.",
            "Compare it with the student's; a search that keeps the best of several does better than the mean.")
        yield Figure(
            f"{arm}: better than before (%)", *percent(one.above), one.above.n, None,
            "The share of the refinements that score higher than the student's prompt on the same examples.",
            "At 50 or below a single refinement is no better than a guess: score it before you keep it.")


def _curves(found: Found) -> tuple[Curve, ...]:
    axes = "refinement, from the worst to the best of its way", "score (%)"
    longest = max(len(one.each) for one in found.arms.values())
    student = 100 * found.student.mean if found.student.n else None
    return (
        *(Curve(arm, list(range(1, len(one.each) + 1)), [100 * score for score in one.each], *axes)
          for arm, one in found.arms.items()),
        Curve("the prompt as it was", list(range(1, longest + 1)), [student] * longest, *axes),
    )


def _feedback_summary(found: Alike) -> str:
    if found.p_value <= 0.05 and found.likeness.high < 1.0:
        return "What is said of the errors differs from what is said without any: the optimizer looked at them."
    if found.likeness.low > 0.8:
        return "Much the same is said with and without errors: the feedback is what the optimizer knew before."
    return "That anything else is said with errors than without was not shown."


def _feedback_figures(found: Alike | None) -> Iterator[Figure]:
    if found is None:
        return
    one = found.likeness
    yield Figure(
        "likeness to feedback without errors", one.mean, one.low, one.high, one.n, found.p_value,
        "1 says that the same is said without any errors: the share of the feedback that is prior belief (permutation "
        "test of the difference).",
        "Near 1, the calls that show errors are wasted on this model; far below, it says something of its own of them.")
    parts = ((OWN, found.first, "two reasons from different batches of the prompt's own errors"),
             (UNIFORM, found.second, "two reasons that were given without errors"),
             (f"{OWN} and {UNIFORM}", found.across, "a reason from errors and one that was given without"))
    for name, value, what in parts:
        yield Figure(
            f"similarity of feedback: {name}", value, None, None, one.n, None,
            f"How alike {what} are, by the words they share (no test).",
            "Read it against the other two: by itself it has no scale.")


def _limits(found: Found) -> Iterator[str]:
    yield ("One prompt was refined once; whether a search of several steps gains by showing errors is another "
           "question, and so are other tasks and optimizer models.")
    yield ("The refinements of an arm are drawn from one sample of errors and one of validation examples; intervals "
           "count the latter, not the former.")
    main = found.differences.get(UNIFORM)
    if main is not None and not math.isnan(main.detectable):
        yield (f"With so many refinements a difference of about {100 * main.detectable:.0f} points from no errors "
               "would be found in 80 % of such studies; a smaller one mostly not.")
    if found.differences.keys() & set(SECONDARY):
        yield "The comparison with no errors is the main one; the others are corrected for each other, not for it."
    if PLACEBO not in found.arms and found.arms:
        yield "There is no placebo: no example's expected outputs could stand in for another's."
    if 0 < found.errors <= BATCH and found.arms:
        yield f"The prompt made {found.errors} errors, so that every reflection on its own errors saw the same ones."
    if found.unusable:
        told = ", ".join(f"{arm}: {count}" for arm, count in found.unusable.items())
        yield f"Refinements that came to nothing, as a reply could not be used, are left out ({told})."
    short = [arm for arm, one in found.arms.items() if len(one.each) + found.unusable.get(arm, 0) < found.n]
    if short:
        yield (f"Fewer than {found.n} refinements were scored of: {'; '.join(short)}. After a stop, what is left "
               "depends on which answers came first.")


STUDY = Study(
    name="reflection",
    question=STUDIES["reflection"],
    families=("objects",),
    sizes=Sizes(train=60, validation=60, test=1),
    n=12,
    unit="refinements an arm",
    fewest=4,
    conduct=conduct,
    forecast=forecast,
)
