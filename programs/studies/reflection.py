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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import dspy
import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.asking import Evidence, reasons
from cuesmith.programs.diagnosis.embedders import Similarity, TfIdf, compared
from cuesmith.programs.diagnosis.figures import Curve, Section
from cuesmith.programs.diagnosis.inference import holm, interval95, permuted, resampled_means, resamples
from cuesmith.programs.diagnosis.likeness import Alike, alike
from cuesmith.programs.diagnosis.planted import BATCH, FEWEST, drawn, without_errors
from cuesmith.programs.diagnosis.words import paragraphs_of, sections_of
from cuesmith.programs.studies.bench import Bench, Findings, Study
from cuesmith.programs.studies.observed import Observed, observed, swapped
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.signatures import EditInstruction, VaryInstructions
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95, paired_gain
from cuesmith.teleprompters.search.context import ProgramContext, Requests
from cuesmith.teleprompters.search.scene import text_field

OWN, UNIFORM, PLACEBO, REWORDING, SEEN = (
    "own errors",
    "no errors",
    "wrong errors",
    "rewording",
    "own errors, shown to the edit too",
)
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
class ArmDifference:
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
class ReflectionResult:
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
    differences: Mapping[str, ArmDifference]
    feedback: Alike | None
    unusable: Mapping[str, int]
    by_words: bool = True


def analysed(kept: Collected, n: int, *, similarity: Similarity | None = None, seed: int = 0) -> ReflectionResult:
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
    return ReflectionResult(
        n=n,
        examples=kept.observed.n if kept.observed else 0,
        errors=len(kept.observed.errors) if kept.observed else 0,
        placebo=kept.placebo,
        student=estimate95(kept.student),
        arms={arm: _arm(table, student, seed) for arm, table in tables.items()},
        differences={
            arm: ArmDifference(one.value, one.p_value, corrected.get(arm, one.p_value), one.detectable)
            for arm, one in compared.items()
        },
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


def _difference(arm: str, rows: Mapping[str, Mapping[int, Floats]], seed: int) -> ArmDifference:
    paired = arm == SEEN
    chosen = [
        [row for k, row in rows[one].items() if not paired or k in rows[OWN].keys() & rows[SEEN].keys()]
        for one in (OWN, arm)
    ]
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
    return ArmDifference(value, p_value, p_value, _REACH * spread if spread > 0 else math.nan)


def _feedback(said: Mapping[str, Sequence[str | None]], similarity: Similarity, seed: int) -> Alike | None:
    own, without = ([text for text in said.get(arm, ()) if text] for arm in (OWN, UNIFORM))
    return alike(similarity.matrix([*own, *without]), len(own), seed=seed)


RIGHTS = 2 * BATCH
"""Right answers that the placebo is made of at least, so that its batches differ. Ours."""


# --- what is asked -----------------------------------------------------------------------------------------


async def _experiment(run: Run, n: int, kept: Collected) -> None:
    """Observe the prompt's errors, reflect, edit and score; keep what is found as it comes."""
    scores, student = await asyncio.gather(run.score([run.baseline], run.train), run.score([run.baseline], run.select))
    kept.observed, kept.student = observed(run, scores[0]), student[0].values
    if len(kept.observed.errors) < FEWEST:
        return
    shown, kept.placebo = _shown(run, kept.observed, n)
    kept.reasons = {arm: [None] * n for arm in shown}
    kept.unusable = dict.fromkeys((*shown, REWORDING, SEEN), 0)
    prompt, requests, written = kept.observed.instructions, Requests(run, ProgramContext.of(run)), dict[str, str]()

    async def write(k: int, way: str, signature: type[dspy.Signature], **request: object) -> None:
        replies = await requests.ask(signature, run.baseline.names[-1], request, salt=f"refinement {k}")
        wanted = list(signature.output_fields)[-1]
        written[f"{k} {way}"] = text_field(replies[0], wanted) if replies else ""

    async def reflect(k: int, arm: str) -> None:
        said, evidence = list[str | None]([None]), shown[arm][k]
        await reasons(run, [evidence], said, order=[0], salt=f"refinement {k}")
        kept.reasons[arm][k] = reason = said[0]
        ways = {arm: (), SEEN: evidence.errors} if arm == OWN else {arm: ()}
        if reason is not None:
            await asyncio.gather(
                *(
                    write(
                        k,
                        way,
                        EditInstruction,
                        instruction=prompt,
                        failures=[one.shown() for one in errors],
                        reason=reason,
                    )
                    for way, errors in ways.items()
                )
            )

    async def score(k: int, arm: str) -> None:
        made = run.child(run.baseline, run.baseline.names[-1], written.get(f"{k} {arm}", ""), move=f"refined by {arm}")
        if made is None:
            kept.unusable[arm] += 1
            return
        values = (await run.score([made], run.select))[0].values
        kept.refinements.append(Refinement(arm, k, made.prompts[run.baseline.names[-1]].instructions, values))

    await asyncio.gather(
        *(
            chain
            for k in range(n)
            for chain in (
                *(reflect(k, arm) for arm in shown),
                write(k, REWORDING, VaryInstructions, instruction=prompt),
            )
        )
    )
    # All is written before the first is scored, in turn: so a stop leaves about as many refinements of every arm.
    await asyncio.gather(*(score(k, arm) for k in range(n) for arm in kept.unusable))


def _shown(run: Run, found: Observed, n: int) -> tuple[dict[str, list[Evidence]], str]:
    """What each arm's reflection is shown, one entry a refinement, and what the wrong errors are made of."""
    seed, prompt = run.seed, found.instructions
    shown = {OWN: drawn(prompt, found.errors, n=n, seed=seed, label=OWN), UNIFORM: without_errors(prompt, n=n)}
    pools = {"right answers": found.rights if len(found.rights) >= RIGHTS else (), "errors": found.errors}
    for name, pool in pools.items():
        wrong = swapped(pool, run.rng("placebo"))
        if len(wrong) >= FEWEST:
            return {**shown, PLACEBO: drawn(prompt, wrong, n=n, seed=seed, label=PLACEBO)}, name
    return shown, ""


# --- the report -------------------------------------------------------------------------------------------


_NAMES = (OWN, UNIFORM, PLACEBO, REWORDING, SEEN, FEWEST)


def sections(found: ReflectionResult) -> tuple[Section, ...]:
    """Put what was found into words and figures."""
    best = max(found.arms, key=lambda arm: found.arms[arm].score.mean, default=None)
    return sections_of("studies/reflection", found, _curves(found), best, _NAMES)


def _curves(found: ReflectionResult) -> tuple[Curve, ...]:
    if not found.arms:
        return ()
    axes = "refinement, from the worst to the best of its way", "score (%)"
    longest = max(len(one.each) for one in found.arms.values())
    student = 100 * found.student.mean if found.student.n else None
    return (
        *(
            Curve(arm, list(range(1, len(one.each) + 1)), [100 * score for score in one.each], *axes)
            for arm, one in found.arms.items()
        ),
        Curve("the prompt as it was", list(range(1, longest + 1)), [student] * longest, *axes),
    )


def limits(found: ReflectionResult) -> tuple[str, ...]:
    """Return what the figures do not show."""
    short = [arm for arm, one in found.arms.items() if len(one.each) + found.unusable.get(arm, 0) < found.n]
    return paragraphs_of("studies/reflection", found, short, _NAMES, SECONDARY, BATCH, compared(found.by_words))


# --- the study ---------------------------------------------------------------------------------------------


def _conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    kept = Collected()
    bench.conduct(STUDY.name, tasks[0], lambda run: _experiment(run, n, kept))
    result = analysed(kept, n, similarity=bench.similarity, seed=bench.seed)
    return Findings(result, sections(result), limits(result))


def _forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Three reflections, four edits and a rewording a number, each of the five then scored."""
    asks = (3 + 4 + 1) * n * len(tasks)
    runs = sum(len(task.train) + (1 + len(ARMS) * n) * len(task.validation) for task in tasks)
    return Forecast(asks, runs, asks + runs)


STUDY = Study(
    name="reflection",
    families=("objects",),
    sizes=Sizes(train=60, validation=60, test=1),
    n=12,
    unit="refinements an arm",
    fewest=4,
    needs={"train": FEWEST},
    run=_conduct,
    bounds=_forecast,
)
