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
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from statistics import fmean

import dspy

from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.programs.diagnosis.association import ratio
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.studies.abo_gain_analysis import Before, Observed, analyse
from cuesmith.programs.studies.abo_gain_report import limits, sections
from cuesmith.programs.studies.bench import Bench, Findings, Study
from cuesmith.programs.studies.checks import check_amount, labels_of
from cuesmith.programs.studies.complexity import checks_of, write_steps
from cuesmith.programs.tasks import Sizes, Task, normalise
from cuesmith.signatures import render_steps
from cuesmith.teleprompters.abo import ABO
from cuesmith.teleprompters.runtime.candidate import Origin
from cuesmith.teleprompters.runtime.compilation import Compilation, Forecast
from cuesmith.teleprompters.runtime.evidence import gold, inputs_of, render_fields
from cuesmith.teleprompters.runtime.outcomes import ParseFailure, Scores
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import CAPS
from cuesmith.teleprompters.runtime.statistics import paired_gain

__all__ = ["STUDY", "conduct", "forecast"]

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
        into |= {"student": student.mean, "unusable": _unusable(student)}
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


def _unusable(scores: Scores) -> float:
    return sum(isinstance(one, ParseFailure) for one in scores.outcomes) / scores.n


def _observed(task: str, before: Before, compilation: Compilation | None) -> Observed:
    """Read a compile. One that a cap ended before anything beat the student says nothing of ABO."""
    if compilation is None or compilation.gain is None:
        return Observed(task, before, None, None, None if compilation is None else compilation.stopped_by)
    gain, stopped = compilation.gain, compilation.stopped_by
    if gain.n == 0:
        return Observed(task, before, None if stopped else gain, before.student, stopped)
    fresh = compilation.baseline.fresh
    return Observed(task, before, gain, fresh.mean if fresh else None, stopped)


# --- the study ---------------------------------------------------------------------------------------------


def conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    """Run the study; see the module.

    Raises:
        ValueError: If there is no task, a task has too few examples, or `n` is too small.
    """
    _check(tasks, n)
    weights = [plan.calls for task in tasks for plan in _plans(task, n)]
    observed: list[Observed] = []
    for k, (task, label) in enumerate(zip(tasks, labels_of(tasks), strict=True)):
        if bench.stopped_by not in (None, *CAPS):
            observed.append(Observed(label, Before(), None, None, bench.stopped_by))
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
        before = Before(**{field.name: into.get(field.name) for field in fields(Before)})
        observed.append(_observed(label, before, None if compiled is None else compiled.compilation))
    found = analyse(observed, seed=bench.seed)
    return Findings(found, sections(found), limits(found))


def forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Return upper bounds of the study's calls. A reply that cannot be used is asked for once more.

    Raises:
        ValueError: As `conduct`.
    """
    _check(tasks, n)
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


def _check(tasks: Sequence[Task], n: int) -> None:
    check_amount(tasks, n, fewest=STUDY.fewest, unit="examples")
    for task in tasks:
        if len(task.validation) < 4 or len(task.test) < 2:
            raise ValueError(f"task {task.name} has too few examples: at least 4 for validation and 2 for test are "
                             "needed")


STUDY = Study(
    name="abo-gain",
    question=STUDIES["abo-gain"],
    families=tuple(FAMILIES),
    sizes=Sizes(40, 160, 80),
    n=50,
    unit="examples a task for measuring before, as many for selection and as many for the gain",
    fewest=10,
    conduct=conduct,
    forecast=forecast,
    several=True,
)
