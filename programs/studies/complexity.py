"""Study: up to how many steps does the model do what its prompt says, and which demands on the form does it meet?

One procedure is asked for in 1 to 12 labelled steps: the optimizer's own steps, joined where fewer labels are wanted,
with harmless steps put between where more are. What is followed is checked by rule, no judge. Demands on the form of
the answer that a rule can check are each added alone to a plain instruction, and compared with it.

Source: 2402.02101 (targets do not follow refined prompts), and the third check that its text asks for; the design and
its statistics are ours.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import dspy
import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.figures import Section, percent_curve
from cuesmith.programs.diagnosis.following import Response, check, rules_of
from cuesmith.programs.diagnosis.inference import holm, interval95, ratio, resamples, trend_of
from cuesmith.programs.diagnosis.run_record import passed
from cuesmith.programs.diagnosis.words import paragraphs_of, sections_of
from cuesmith.programs.studies.bench import Bench, Findings, Study, labels_of
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.signatures import WriteSteps, canonical_task, render_steps
from cuesmith.signatures.probes import FORM_DEMANDS, HARMLESS_STEPS, joined_steps
from cuesmith.teleprompters.behavior.steps import step_list, steps_fault
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.evidence import answer_fields, text_of
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored, Scores
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import CAPS
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, paired_gain
from cuesmith.teleprompters.search.context import ProgramContext, Requests
from cuesmith.teleprompters.search.examples import Casebook, read_failure
from cuesmith.teleprompters.search.scene import text_field
from cuesmith.teleprompters.search.setting import UNIFIED

EXAMPLES = 12
"""Examples a prompt is tried on. Ours."""
ENOUGH = 0.9
"""Share of the steps from which on a prompt counts as followed. Source of 90 %: ours."""
_MEETS: Mapping[str, Callable[[str], bool | None]] = {
    "capitals": lambda t: t == t.upper() if t != t.swapcase() else None,
    "brackets": lambda t: t.startswith("[") and t.endswith("]"),
    "one word": lambda t: len(t.split()) == 1,
    "opening": lambda t: t.casefold().startswith("answer"),
    "full stop": lambda t: t.endswith("."),
}
FORMS = {kind: (demand, _MEETS[kind]) for kind, demand in FORM_DEMANDS.items()}
"""Kind -> what is demanded, and whether an answer meets it; None where that cannot be told (no letters)."""
Floats = NDArray[np.float64]


# --- what was seen -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepsAsked:
    """What was seen of one prompt with labelled steps.

    Attributes:
        task: The task's name.
        base: Number of the optimizer's procedure that it was made of.
        steps: How many steps it asks for; 0 for the plain instruction.
        checks: Of each reply, whether each step was followed.
        right: Of each reply, whether the answer was right.
    """

    task: str
    base: int
    steps: int
    checks: tuple[tuple[bool, ...], ...]
    right: tuple[bool, ...]

    @property
    def followed(self) -> int:
        """Steps followed, over all replies."""
        return sum(map(sum, self.checks))

    @property
    def wanted(self) -> int:
        """Steps asked for, over all replies."""
        return self.steps * len(self.checks)


@dataclass(frozen=True)
class Formed:
    """What was seen of one demand on the form, added to one plain instruction.

    Attributes:
        task: The task's name.
        base: Number of the plain instruction.
        kind: A key of `FORMS`.
        asked: Of each answer, whether it meets the demand; those on which that cannot be told are left out.
        without: The same without the demand.
    """

    task: str
    base: int
    kind: str
    asked: tuple[bool, ...]
    without: tuple[bool, ...]


# --- what comes out ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """All prompts of one length.

    Attributes:
        steps: How many steps they ask for.
        compliance: Share of the steps followed; a prompt is one observation.
        accuracy: Share of the right answers, likewise.
    """

    steps: int
    compliance: Estimate95
    accuracy: Estimate95


@dataclass(frozen=True)
class Trend:
    """How a share moves with the number of steps.

    Attributes:
        rho: Mean over the procedures of Spearman's correlation within each, with Student's t interval over them; nan
            if nothing varies.
        p_value: Two-sided: permutation of the lengths within each procedure; 1.0 if nothing varies.
        holm: The same, corrected for the two trends that are tested.
    """

    rho: Estimate95
    p_value: float
    holm: float

    @property
    def shown(self) -> bool:
        """Whether the corrected test rejects at 5 % and the interval, if there is one, excludes 0: the test alone
        speaks of the average of these procedures, which a few of them can carry."""
        return self.holm < 0.05 and not self.rho.low <= 0.0 <= self.rho.high


@dataclass(frozen=True)
class Limit:
    """The largest tried number of steps up to which every length is followed to `ENOUGH`.

    Attributes:
        steps: The number; 0 if not even the shortest prompts are followed; nan without prompts.
        end: Whether it is the largest number that was tried.
    """

    steps: Estimate95
    end: bool


@dataclass(frozen=True)
class FormDemand:
    """One demand on the form.

    Attributes:
        kind: A key of `FORMS`.
        asked: Share of the answers that meet it; a prompt is one observation.
        without: The same where it is not demanded.
        gain: The difference over the prompts, with its sign-flip test.
        holm: Its p-value, corrected for the number of demands.
    """

    kind: str
    asked: Estimate95
    without: Estimate95
    gain: Gain
    holm: float


@dataclass(frozen=True)
class Complexity:
    """What was found.

    Attributes:
        levels: By number of steps.
        plain: Right answers with the plain instruction, without steps.
        compliance: How following moves with the number of steps.
        accuracy: How right answers do.
        limit: Up to how many steps the model follows.
        positions: Share of the prompts' steps followed at each position, over all lengths.
        forms: The demands on the form.
        tasks: Task -> share of the steps followed in its prompts.
        prompts: Prompts with steps.
        procedures: Procedures that they were made of.
    """

    levels: tuple[Level, ...]
    plain: Estimate95
    compliance: Trend
    accuracy: Trend
    limit: Limit
    positions: tuple[Estimate95, ...]
    forms: tuple[FormDemand, ...]
    tasks: Mapping[str, float]
    prompts: int
    procedures: int


def analyse(asked: Sequence[StepsAsked], formed: Sequence[Formed], *, seed: int = 0) -> Complexity:
    """Turn what was seen into the result; the order of what was seen does not matter.

    Args:
        asked: Prompts with steps, and plain ones.
        formed: Demands on the form.
        seed: Of permutations and bootstrap.
    """
    asked = sorted(asked, key=lambda one: (one.task, one.base, one.steps))
    prompts = [one for one in asked if one.steps]
    levels = [[one for one in prompts if one.steps == k] for k in sorted({one.steps for one in prompts})]
    shares: Sequence[Callable[[StepsAsked], float]] = (
        lambda one: one.followed / one.wanted,
        lambda one: sum(one.right) / len(one.right),
    )
    trends = [
        trend_of([[(float(one.steps), share(one)) for one in block] for block in _blocks(prompts)], seed=seed)
        for share in shares
    ]
    corrected = holm([p_value for _, p_value in trends])
    compliance, accuracy = (Trend(rho, p, q) for (rho, p), q in zip(trends, corrected, strict=True))
    longest = max((one.steps for one in prompts), default=0)
    return Complexity(
        levels=tuple(Level(group[0].steps, _followed(group), _right(group)) for group in levels),
        plain=_right([one for one in asked if not one.steps]),
        compliance=compliance,
        accuracy=accuracy,
        limit=_limit(prompts, seed),
        positions=tuple(_at(k, [one.checks for one in prompts if one.steps > k]) for k in range(longest)),
        forms=_forms(formed, seed),
        tasks={
            name: _followed([one for one in prompts if one.task == name]).mean
            for name in dict.fromkeys(one.task for one in prompts)
        },
        prompts=len(prompts),
        procedures=len({(one.task, one.base) for one in prompts}),
    )


def _followed(prompts: Sequence[StepsAsked]) -> Estimate95:
    return ratio([one.followed for one in prompts], [one.wanted for one in prompts])


def _right(prompts: Sequence[StepsAsked]) -> Estimate95:
    return ratio([sum(one.right) for one in prompts], [len(one.right) for one in prompts])


def _at(k: int, checks: Sequence[tuple[tuple[bool, ...], ...]]) -> Estimate95:
    return ratio([sum(row[k] for row in rows) for rows in checks], [len(rows) for rows in checks])


def _blocks(prompts: Sequence[StepsAsked]) -> list[list[StepsAsked]]:
    """The prompts of each procedure, which have all in common but their length."""
    blocks: dict[tuple[str, int], list[StepsAsked]] = {}
    for one in prompts:
        blocks.setdefault((one.task, one.base), []).append(one)
    return list(blocks.values())


def _limit(prompts: Sequence[StepsAsked], seed: int) -> Limit:
    levels = sorted({one.steps for one in prompts})
    blocks = _blocks(prompts)
    if not blocks:
        return Limit(Estimate95(np.nan, np.nan, np.nan, 0), False)
    parts, wholes = np.zeros((2, len(blocks), len(levels)))
    for i, block in enumerate(blocks):
        for one in block:
            parts[i, levels.index(one.steps)] = one.followed
            wholes[i, levels.index(one.steps)] = one.wanted
    value = float(limit_of(levels, parts.sum(axis=0)[None], wholes.sum(axis=0)[None])[0])
    weights = resamples(len(blocks), np.random.default_rng(seed)) if len(blocks) > 2 else np.ones((0, len(blocks)))
    drawn = limit_of(levels, weights @ parts, weights @ wholes)
    return Limit(interval95(value, drawn, len(blocks)), value == levels[-1])


def limit_of(levels: Sequence[int], parts: Floats, wholes: Floats) -> Floats:
    """Return, for each row of counts by level, the last level before the first that is followed to less than `ENOUGH`.

    Args:
        levels: Numbers of steps, rising.
        parts: Steps followed.
        wholes: Steps asked for; a level without any is passed over.
    """
    lost = parts < ENOUGH * wholes - 1e-9
    first = np.where(lost.any(axis=1), lost.argmax(axis=1), len(levels))
    found: Floats = np.array([0.0, *levels])[first]
    return found


def _forms(formed: Sequence[Formed], seed: int) -> tuple[FormDemand, ...]:
    found = []
    for kind in FORMS:
        own = sorted((one for one in formed if one.kind == kind), key=lambda one: (one.task, one.base))
        if not own:
            continue
        sides = [(one.asked, one.without) for one in own]
        asked, without = (ratio([sum(s[k]) for s in sides], [len(s[k]) for s in sides]) for k in (0, 1))
        means = [[sum(s[k]) / len(s[k]) for s in sides] for k in (1, 0)]
        found.append(FormDemand(kind, asked, without, paired_gain(*means, seed=seed), 1.0))
    corrected = holm([one.gain.p_value for one in found])
    return tuple(replace(one, holm=q) for one, q in zip(found, corrected, strict=True))


LEVELS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
"""Numbers of steps that are asked for. Ours."""
MOST_STEPS = 8
"""Steps that the optimizer writes at most, as `WriteSteps` says."""


# --- what is asked -----------------------------------------------------------------------------------------


async def write_steps(run: Run, number: int) -> tuple[str, tuple[str, ...]] | None:
    """Have the optimizer write the task in one sentence and its steps, from 4 training examples.

    Args:
        run: The run; the last predictor of its student is the one that is written for.
        number: Other numbers are shown other examples.

    Returns:
        Task and steps; None if no steps can be used.
    """
    name = run.baseline.names[-1]
    shown = run.rng("steps", number).sample(list(run.train), min(UNIFIED.init_examples, len(run.train)))
    request = {"examples": Casebook(run, UNIFIED).shown(name, shown), "max_steps": MOST_STEPS}
    replies = await Requests(run, ProgramContext.of(run)).ask(
        WriteSteps,
        name,
        request,
        instructions=run.baseline.prompts[name].instructions,
        salt=f"study, procedure {number}",
    )
    steps = step_list(replies[0].get("steps")) if replies else ()
    assert run.guard is not None
    if steps_fault(steps, MOST_STEPS, run.guard):
        return None
    return run.usable(name, text_field(replies[0], "task")) or run.baseline.prompts[name].instructions, steps


def versions(steps: Sequence[str], levels: Sequence[int], rng: random.Random) -> dict[int, tuple[str, ...]]:
    """Write a procedure in other numbers of steps: neighbours joined, or harmless steps put before the last one.

    Args:
        steps: The procedure.
        levels: The numbers wanted, at most `len(HARMLESS_STEPS) + 1`.
        rng: Chooses which.
    """
    found = {}
    for level in levels:
        texts = list(steps)
        while len(texts) > level:
            k = rng.randrange(len(texts) - 1)
            texts[k : k + 2] = [joined_steps(texts[k], texts[k + 1])]
        for extra in rng.sample(HARMLESS_STEPS, max(0, level - len(texts))):
            texts.insert(rng.randrange(len(texts)), extra)
        found[level] = tuple(texts)
    return found


def checks_of(run: Run, scores: Scores) -> list[tuple[bool, ...] | None]:
    """Say of each reply whether it follows each step of its prompt; None where there is no reply.

    Of a reply that cannot be used and shows no labels nothing is known by rule: here it follows none of the steps, as
    a model that is overwhelmed would else count as one that failed at the last step only.
    """
    name = run.baseline.names[-1]
    signature, rules = run.predictors[name].signature, rules_of(scores.candidate.prompts[name].instructions)
    found: list[tuple[bool, ...] | None] = []
    for example, outcome in zip(scores.examples, scores.outcomes, strict=True):
        read = read_failure(example, outcome, name, run.baseline.names, signature)  # reads successes as well
        if read is None:
            found.append(None)
            continue
        work = read.response if read.reasoning is None else read.reasoning  # without a field for it, all may be work
        response = Response(read.response, work, read.parsed, passed(outcome, UNIFIED.threshold))
        found.append(tuple(one is True for one in check(rules, response)))
    return found


@dataclass
class _Seen:
    """What an experiment has found so far."""

    asked: list[StepsAsked] = field(default_factory=list)
    formed: list[Formed] = field(default_factory=list)


async def _experiment(run: Run, label: str, n: int, seen: _Seen) -> None:
    written = await asyncio.gather(*(write_steps(run, j) for j in range(n)))
    pool = run.rng("examples").sample(list(run.select), len(run.select))
    work = []
    for j, one in enumerate(written):
        if one is None:
            run.note("A reply had no steps that can be used: its prompts are missing.", "dropped")
            continue
        size = min(EXAMPLES, len(pool))
        examples = [pool[(j * size + i) % len(pool)] for i in range(size)]
        base = _Base(run, label, j, canonical_task(one[0]), examples)
        texts = versions(one[1], LEVELS, run.rng("versions", j))
        work += [base.steps(texts[level], seen) for level in LEVELS]
        work.append(base.plain(seen))
    await asyncio.gather(*work)


@dataclass(frozen=True)
class _Base:
    """One procedure of the optimizer, and the examples that all prompts made of it are tried on."""

    run: Run
    label: str
    number: int
    says: str
    examples: Sequence[dspy.Example]

    async def steps(self, texts: Sequence[str], seen: _Seen) -> None:
        scores = await self._score(render_steps(self.says, texts))
        pairs = zip(checks_of(self.run, scores), scores.outcomes, strict=True)
        known = [(one, bool(passed(o, UNIFIED.threshold))) for one, o in pairs if one is not None]
        if known:
            checks, right = zip(*known, strict=True)
            seen.asked.append(StepsAsked(self.label, self.number, len(texts), checks, right))

    async def plain(self, seen: _Seen) -> None:
        """Ask without steps: alone, and with each demand on the form."""
        demands = [f"{self.says} {demand}" for demand, _ in FORMS.values()]
        first, *others = await asyncio.gather(*(self._score(text) for text in (self.says, *demands)))
        right = [bool(r) for o in first.outcomes if (r := passed(o, UNIFIED.threshold)) is not None]
        if right:
            seen.asked.append(StepsAsked(self.label, self.number, 0, (), tuple(right)))
        for (kind, (_, meets)), scores in zip(FORMS.items(), others, strict=True):
            met = [[self._meets(meets, o) for o in one.outcomes] for one in (scores, first)]
            pairs = [(a, b) for a, b in zip(*met, strict=True) if a is not None and b is not None]
            if pairs:
                asked, without = zip(*pairs, strict=True)
                seen.formed.append(Formed(self.label, self.number, kind, asked, without))

    async def _score(self, text: str) -> Scores:
        base = self.run.baseline
        made: Candidate = base.replace(base.names[-1], instructions=text, origin=Origin("study", (base.id,)))
        return (await self.run.score([made], self.examples))[0]

    def _meets(self, meets: Callable[[str], bool | None], outcome: Outcome) -> bool | None:
        """Whether the answer, as it was parsed, meets a demand; a reply that cannot be used does not."""
        if isinstance(outcome, ParseFailure):
            return False
        if not isinstance(outcome, Scored) or not outcome.trace:
            return None
        name = answer_fields(self.run.predictors[self.run.baseline.names[-1]].signature)[0]
        text = text_of(outcome.trace[-1].outputs.get(name, "")).strip()
        return meets(text) if text else False


# --- the report -------------------------------------------------------------------------------------------


def sections(found: Complexity) -> tuple[Section, ...]:
    """Put what was found into words and figures."""
    asked, followed = "steps asked for", "followed (%)"
    steps = (
        percent_curve("steps followed", [(one.steps, one.compliance) for one in found.levels], asked, followed),
        percent_curve("all prompts", list(enumerate(found.positions, 1)), "position of the step", followed),
    )
    right = percent_curve(
        "right answers", [(one.steps, one.accuracy) for one in found.levels], asked, "right answers (%)"
    )
    return sections_of("studies/complexity", found, steps if found.levels else (), (right,), FORMS, ENOUGH)


def limits(found: Complexity, names: Sequence[str]) -> tuple[str, ...]:
    """Return what the figures do not show of the tasks of these names."""
    halves = [50 * (one.compliance.high - one.compliance.low) for one in found.levels]
    widest = max((half for half in halves if np.isfinite(half)), default=None)
    return paragraphs_of("studies/complexity", found, names, widest, EXAMPLES)


# --- the study ---------------------------------------------------------------------------------------------


def _conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    seen, weights = _Seen(), [_program_runs(task, n) for task in tasks]
    labels = labels_of(tasks)
    for k, (task, label) in enumerate(zip(tasks, labels, strict=True)):
        pool = replace(task, validation=task.validation[: n * EXAMPLES])

        async def experiment(run: Run, label: str = label) -> None:
            await _experiment(run, label, n, seen)

        bench.conduct(f"complexity-{label}", pool, experiment, share=weights[k] / sum(weights[k:]))
        if bench.stopped_by not in (None, *CAPS):
            break  # a provider that is gone: what was seen until then counts
    found = analyse(seen.asked, seen.formed, seed=bench.seed)
    return Findings(found, sections(found), limits(found, labels))


def _forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Per task `n` procedures, and all their prompts. A reply that cannot be used is asked for once more."""
    asked, runs = n * len(tasks), sum(_program_runs(task, n) for task in tasks)
    return Forecast(asked, runs, 2 * (asked + runs))


def _program_runs(task: Task, n: int) -> int:
    pool = min(n * EXAMPLES, len(task.validation))
    return pool + n * (len(LEVELS) + 1 + len(FORMS)) * min(EXAMPLES, pool)


STUDY = Study(
    name="complexity",
    families=("sum", "navigate", "objects", "reverse"),
    sizes=Sizes(32, 96, 1),
    n=4,
    unit="procedures a task that the optimizer writes; each becomes a prompt of every length",
    fewest=3,
    run=_conduct,
    bounds=_forecast,
    several=True,
)
