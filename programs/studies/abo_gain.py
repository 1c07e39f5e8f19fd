"""Study: on which tasks does ABO help, and what tells it beforehand?

Of each task the study measures, on examples that nothing else uses, how good the student is, how far it follows one
set of the optimizer's steps without demonstrations, what these alone gain, and what its data look like. Then ABO
compiles the student, and the gain on fresh examples is held against what was measured before. A task is one
observation.

Source: 2402.02101 (ABO helps "especially for tasks where target models previously struggled"), and the second check
that its text asks for, at least 10 diverse tasks; the design and its statistics are ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import dspy

from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.programs.diagnosis.figures import Curve, Section
from cuesmith.programs.diagnosis.inference import Correlation, binomial_tail, detectable_rho, holm, ratio, spearman
from cuesmith.programs.diagnosis.words import paragraphs_of, sections_of
from cuesmith.programs.studies.bench import Bench, Findings, Study, labels_of
from cuesmith.programs.studies.complexity import checks_of, write_steps
from cuesmith.programs.tasks import Sizes, Task, normalise
from cuesmith.signatures import render_steps
from cuesmith.teleprompters.abo import ABO
from cuesmith.teleprompters.runtime.candidate import Origin
from cuesmith.teleprompters.runtime.compilation import Compilation, Forecast
from cuesmith.teleprompters.runtime.evidence import gold, inputs_of, render_fields
from cuesmith.teleprompters.runtime.ledger import stopped
from cuesmith.teleprompters.runtime.outcomes import ParseFailure
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import CAPS
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, paired_gain, t975

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
class ObservedTask:
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

    @property
    def ended(self) -> str:
        """What ended ABO early, in words; "" if nothing did."""
        return stopped(self.stopped_by) if self.stopped_by else ""


@dataclass(frozen=True)
class TaskGain:
    """One task in the result.

    Attributes:
        observed: The task.
        realised: Share of the possible gain, 1 less the student's score, that was gained; None where nothing was
            possible or measured.
        holm: The gain's p-value, corrected for the number of tasks; None where it was not measured.
    """

    observed: ObservedTask
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


def analyse(observed: Sequence[ObservedTask], *, seed: int = 0) -> AboGain:
    """Turn what was observed into the result.

    Args:
        observed: One entry a task, in any order.
        seed: Of the permutations.
    """
    measured = [one for one in observed if one.gain is not None]
    corrected = dict(
        zip((one.task for one in measured), holm([one.gain.p_value for one in measured if one.gain]), strict=True)
    )
    tasks = sorted((TaskGain(one, _realised(one), corrected.get(one.task)) for one in observed), key=_order)
    gains = [one.gain.difference for one in measured if one.gain]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    sure = [
        one.observed.gain.difference
        for one in tasks
        if one.observed.gain and one.holm is not None and one.holm < 0.05 and one.observed.gain.significant
    ]
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


def _realised(one: ObservedTask) -> float | None:
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
    return tuple(
        Predictor(name, first, values.get(id(first), 1.0), second, values.get(id(second), 1.0))
        for name, first, second in found
    ), len(tested)


def known(one: TaskGain, name: str) -> float | None:
    """Return one of `PREDICTORS` of a task; None where it was not measured."""
    value: float | None = getattr(one.observed.before, name)
    return value


SETTING: Mapping[str, int] = {"width": 2, "branch": 2, "steps": 1, "initial": 3, "minibatch": 12, "errors": 4}
"""ABO's own search, made small. Ours."""


# --- what is asked -----------------------------------------------------------------------------------------


def _described(task: Task, measured: Sequence[dspy.Example]) -> dict[str, float]:
    """What the data alone say; no call is needed."""
    examples = [*task.train, *measured]
    signature = dspy.ensure_signature(task.signature)
    counts = Counter(normalise(render_fields(gold(example, signature))) for example in examples)
    shares = [count / len(examples) for count in counts.values()]
    words = fmean(len(" ".join(map(str, inputs_of(example).values())).split()) for example in examples)
    return {"words": words, "entropy": max(0.0, -math.fsum(share * math.log2(share) for share in shares))}


async def _measure(run: Run, into: dict[str, float]) -> None:
    """Measure the student, and one set of steps without demonstrations, on the run's selection examples."""
    student = (await run.score([run.baseline], run.select))[0]
    if student.n:
        unusable = sum(isinstance(one, ParseFailure) for one in student.outcomes)
        into |= {"student": student.mean, "unusable": unusable / student.n}
    written = await write_steps(run, 0)
    if written is None:
        run.note("The optimizer's steps could not be used: nothing is known of how they are followed.", "dropped")
        return
    into["steps"] = float(len(written[1]))
    base = run.baseline
    made = base.replace(base.names[-1], instructions=render_steps(*written), origin=Origin("study", (base.id,)))
    scores = (await run.score([made], run.select))[0]
    checks = [row for row in checks_of(run, scores) if row is not None]
    if checks:
        into["followed"] = ratio([sum(row) for row in checks], [len(row) for row in checks]).mean
    gain = paired_gain(student.values, scores.values)
    if gain.n:
        into["steps_gain"] = gain.difference


def _observed(task: str, before: Before, compilation: Compilation | None) -> ObservedTask:
    """Read a compile. One that a cap ended before anything beat the student says nothing of ABO."""
    if compilation is None or compilation.gain is None:
        return ObservedTask(task, before, None, None, None if compilation is None else compilation.stopped_by)
    gain, stopped = compilation.gain, compilation.stopped_by
    if gain.n == 0:
        return ObservedTask(task, before, None if stopped else gain, before.student, stopped)
    fresh = compilation.baseline.fresh
    return ObservedTask(task, before, gain, fresh.mean if fresh else None, stopped)


# --- the report -------------------------------------------------------------------------------------------


def sections(found: AboGain) -> tuple[Section, ...]:
    """Put what was found into words and figures."""
    return sections_of("studies/abo_gain", found, tuple(_curves(found)), PREDICTORS, FEWEST_TASKS)


def _curves(found: AboGain) -> Iterator[Curve]:
    label = "ABO's gain (points)"
    for name in ("student", "followed", "steps_gain"):
        rows = sorted(
            (x, one.observed.gain.difference)
            for one in found.tasks
            if (x := known(one, name)) is not None and one.observed.gain
        )
        if rows:
            xs = [100 * x for x, _ in rows]
            yield Curve("tasks", xs, [100 * y for _, y in rows], f"{PREDICTORS[name]} (%)", label, points=True)
            if name == "student":
                yield Curve("most there is to gain", xs, [100 - x for x in xs], f"{PREDICTORS[name]} (%)", label)


def limits(found: AboGain) -> tuple[str, ...]:
    """Return what the figures do not show."""
    return paragraphs_of("studies/abo_gain", found)


# --- the study ---------------------------------------------------------------------------------------------


def _conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    weights = [plan.calls for task in tasks for plan in _plans(task, n)]
    observed: list[ObservedTask] = []
    for k, (task, label) in enumerate(zip(tasks, labels_of(tasks), strict=True)):
        if bench.stopped_by not in (None, *CAPS):
            observed.append(ObservedTask(label, Before(), None, None, bench.stopped_by))
            continue
        shares = [weights[i] / sum(weights[i:]) for i in (2 * k, 2 * k + 1)]
        probe, own = _probe(task, n), _own(task, n)
        into = _described(task, probe.validation)

        async def experiment(run: Run, into: dict[str, float] = into) -> None:
            await _measure(run, into)

        bench.conduct(f"before-{label}", probe, experiment, share=shares[0])
        options: dict[str, object] = {"search": "native", "scoring": n, **SETTING}
        gone = bench.stopped_by not in (None, *CAPS)  # the provider: what was observed until then counts
        compiled = None if gone else bench.compile(f"abo-{label}", own, "abo", share=shares[1], **options)
        observed.append(_observed(label, Before(**into), None if compiled is None else compiled.compilation))
    found = analyse(observed, seed=bench.seed)
    return Findings(found, sections(found), limits(found))


def _forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """A reply that cannot be used is asked for once more."""
    plans = [plan for task in tasks for plan in _plans(task, n)]
    calls, runs = sum(plan.optimizer_calls for plan in plans), sum(plan.program_runs for plan in plans)
    return Forecast(calls, runs, 2 * (calls + runs))


def _plans(task: Task, n: int) -> tuple[Forecast, Forecast]:
    """Upper bounds of what is measured before, and of the compile."""
    probe, own = _probe(task, n), _own(task, n)
    runs = 2 * len(probe.validation)
    compiler = ABO(own.metric, search="native", scoring=n, **SETTING)  # type: ignore[arg-type]
    student = dspy.ChainOfThought(own.signature)
    return Forecast(1, runs, 1 + runs), compiler.estimate(student, trainset=own.train, valset=own.validation)


def _probe(task: Task, n: int) -> Task:
    """The task with its test examples to measure on: the compile's stay unseen."""
    return replace(task, validation=task.test[:n])


def _own(task: Task, n: int) -> Task:
    """The task with validation examples for selection and as many for the gain."""
    return replace(task, validation=task.validation[: 2 * n])


STUDY = Study(
    name="abo-gain",
    families=tuple(FAMILIES),
    sizes=Sizes(40, 160, 80),
    n=50,
    unit="examples a task for measuring before, as many for selection and as many for the gain",
    fewest=10,
    needs={"validation": 4, "test": 2},
    run=_conduct,
    bounds=_forecast,
    several=True,
)
