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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import dspy
import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.association import Correlation, holm, ratio, spearman
from cuesmith.programs.diagnosis.figures import Curve, Figure, Section, percent
from cuesmith.programs.diagnosis.following import Response, check, rules_of
from cuesmith.programs.diagnosis.record import passed
from cuesmith.programs.diagnosis.repetition import interval95, resamples
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.studies.bench import Bench, Findings, Study
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.signatures import WriteSteps, canonical_task, render_steps
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.evidence import answer_fields
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored, Scores
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import CAPS
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, paired_gain, t975
from cuesmith.teleprompters.search.deviations import read_failure
from cuesmith.teleprompters.search.initial import task_inputs
from cuesmith.teleprompters.search.material import Casebook
from cuesmith.teleprompters.search.setting import UNIFIED
from cuesmith.teleprompters.search.texts import instruction, step_list, text_field

__all__ = ["STUDY", "Asked", "Complexity", "Form", "Formed", "Level", "Limit", "Trend", "analyse", "checks_of", "gap",
           "limit_of", "sections", "trend_of", "versions", "write_steps"]  # fmt: skip

LEVELS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
"""Numbers of steps that are asked for. Ours."""
EXAMPLES = 12
"""Examples a prompt is tried on. Ours."""
ENOUGH = 0.9
"""Share of the steps from which on a prompt counts as followed. Source of 90 %: ours."""
MOST_STEPS = 8
"""Steps that the optimizer writes at most, as `WriteSteps` says."""
SHUFFLES = 4999

HARMLESS = (
    "Read the input carefully.", "Make sure you understand the task.", "Say in a few words what the input is.",
    "Check that nothing is missing.", "Go over the input once more.", "Check the steps above.",
    "Note anything unusual, or write none.", "Verify your work.", "Make sure nothing was overlooked.",
    "Review the result so far.", "Make sure the format is right.", "Double-check everything once more.",
)  # fmt: skip
"""Steps that change nothing of what is to be done."""

FORMS: Mapping[str, tuple[str, Callable[[str], bool | None]]] = {
    "capitals": ("Write the answer in capital letters.", lambda t: t == t.upper() if t != t.swapcase() else None),
    "brackets": ("Put the answer between square brackets.", lambda t: t.startswith("[") and t.endswith("]")),
    "one word": ("Answer in at most one word.", lambda t: len(t.split()) == 1),
    "opening": ('Begin the answer with the word "Answer".', lambda t: t.casefold().startswith("answer")),
    "full stop": ("End the answer with a full stop.", lambda t: t.endswith(".")),
}
"""Kind -> what is demanded, and whether an answer meets it; None where that cannot be told (no letters)."""
_CLUSTERED = "the interval takes a prompt as one observation"
Floats = NDArray[np.float64]
Origins = tuple[str, int]
"""(task, number of the optimizer's procedure): what prompts of different length have in common."""


@dataclass(frozen=True)
class Asked:
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
class Form:
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
    forms: tuple[Form, ...]
    tasks: Mapping[str, float]
    prompts: int
    procedures: int


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
    request = task_inputs(run, Casebook(run, UNIFIED), name, shown)
    replies = await run.ask(WriteSteps, request, salt=f"study, procedure {number}")
    steps = step_list(replies[0].get("steps"), MOST_STEPS) if replies else ()
    if not steps:
        return None
    return instruction(text_field(replies[0], "task")) or run.baseline.prompts[name].instructions, steps


def versions(steps: Sequence[str], levels: Sequence[int], rng: random.Random) -> dict[int, tuple[str, ...]]:
    """Write a procedure in other numbers of steps: neighbours joined, or harmless steps put before the last one.

    Args:
        steps: The procedure.
        levels: The numbers wanted, at most `len(HARMLESS) + 1`.
        rng: Chooses which.
    """
    found = {}
    for level in levels:
        texts = list(steps)
        while len(texts) > level:
            k = rng.randrange(len(texts) - 1)
            texts[k : k + 2] = [_joined(texts[k], texts[k + 1])]
        for extra in rng.sample(HARMLESS, max(0, level - len(texts))):
            texts.insert(rng.randrange(len(texts)), extra)
        found[level] = tuple(texts)
    return found


def _joined(first: str, second: str) -> str:
    small = second[:1].lower() + second[1:] if second[1:2].islower() else second
    return f"{first.rstrip(' .;,')}, and then {small}"


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

    asked: list[Asked] = field(default_factory=list)
    formed: list[Formed] = field(default_factory=list)


async def _experiment(run: Run, label: str, n: int, seen: _Seen) -> None:
    written = await asyncio.gather(*(write_steps(run, j) for j in range(n)))
    pool = run.rng("examples").sample(list(run.select), len(run.select))
    work = []
    for j, one in enumerate(written):
        if one is None:
            run.note("A reply had no steps that can be used: its prompts are missing.")
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
            seen.asked.append(Asked(self.label, self.number, len(texts), checks, right))

    async def plain(self, seen: _Seen) -> None:
        """Ask without steps: alone, and with each demand on the form."""
        demands = [f"{self.says} {demand}" for demand, _ in FORMS.values()]
        first, *others = await asyncio.gather(*(self._score(text) for text in (self.says, *demands)))
        right = [bool(r) for o in first.outcomes if (r := passed(o, UNIFIED.threshold)) is not None]
        if right:
            seen.asked.append(Asked(self.label, self.number, 0, (), tuple(right)))
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
        text = outcome.trace[-1].outputs.get(name, "").strip()
        return meets(text) if text else False


# --- what comes out ----------------------------------------------------------------------------------------


def analyse(asked: Sequence[Asked], formed: Sequence[Formed], *, seed: int = 0) -> Complexity:
    """Turn what was seen into the result; the order of what was seen does not matter.

    Args:
        asked: Prompts with steps, and plain ones.
        formed: Demands on the form.
        seed: Of permutations and bootstrap.
    """
    asked = sorted(asked, key=lambda one: (one.task, one.base, one.steps))
    prompts = [one for one in asked if one.steps]
    levels = [[one for one in prompts if one.steps == k] for k in sorted({one.steps for one in prompts})]
    trends = [_trend(prompts, share, seed) for share in (_compliance, _accuracy)]
    corrected = holm([p_value for _, p_value in trends])
    compliance, accuracy = (Trend(rho, p, q) for (rho, p), q in zip(trends, corrected, strict=True))
    longest = max((one.steps for one in prompts), default=0)
    return Complexity(
        levels=tuple(Level(group[0].steps, _followed(group), _right(group)) for group in levels),
        plain=_right([one for one in asked if not one.steps]),
        compliance=compliance,
        accuracy=accuracy,
        limit=_limit(prompts, seed),
        positions=tuple(_at([one for one in prompts if one.steps > k], k) for k in range(longest)),
        forms=_forms(formed, seed),
        tasks={name: _followed([one for one in prompts if one.task == name]).mean
               for name in dict.fromkeys(one.task for one in prompts)},
        prompts=len(prompts),
        procedures=len({(one.task, one.base) for one in prompts}),
    )


def _followed(prompts: Sequence[Asked]) -> Estimate95:
    return ratio([one.followed for one in prompts], [one.steps * len(one.checks) for one in prompts])


def _right(prompts: Sequence[Asked]) -> Estimate95:
    return ratio([sum(one.right) for one in prompts], [len(one.right) for one in prompts])


def _at(prompts: Sequence[Asked], k: int) -> Estimate95:
    return ratio([sum(row[k] for row in one.checks) for one in prompts], [len(one.checks) for one in prompts])


def _compliance(one: Asked) -> float:
    return one.followed / (one.steps * len(one.checks))


def _accuracy(one: Asked) -> float:
    return sum(one.right) / len(one.right)


def _trend(prompts: Sequence[Asked], share: Callable[[Asked], float], seed: int) -> tuple[Estimate95, float]:
    blocks = _blocks(prompts)
    return trend_of([[(float(one.steps), share(one)) for one in block] for block in blocks.values()], seed=seed)


def _blocks(prompts: Sequence[Asked]) -> dict[Origins, list[Asked]]:
    blocks: dict[Origins, list[Asked]] = {}
    for one in prompts:
        blocks.setdefault((one.task, one.base), []).append(one)
    return blocks


def trend_of(blocks: Sequence[Sequence[tuple[float, float]]], *, seed: int = 0) -> tuple[Estimate95, float]:
    """Correlate pairs within blocks: Spearman's rho of each block, averaged; one in which nothing varies counts as 0.

    Values are exchanged within a block only, so that blocks may differ as they like. On complete blocks without ties
    this is Page's test, two-sided (Page 1963).

    Args:
        blocks: Pairs (x, y); blocks of one pair are left out.
        seed: Of permutations and bootstrap.

    Returns:
        The mean with Student's t interval over blocks (none where all are equal), and the p-value.
    """
    rng = np.random.default_rng(seed)
    ranked = [(_unit([x for x, _ in block]), _unit([y for _, y in block])) for block in blocks if len(block) > 1]
    rhos = np.array([float(x @ y) for x, y in ranked])
    if not any(y.any() for _, y in ranked):
        return Estimate95(np.nan, np.nan, np.nan, len(rhos)), 1.0
    null = np.zeros(SHUFFLES)
    for x, y in ranked:
        null += rng.permuted(np.tile(y, (SHUFFLES, 1)), axis=1) @ x
    p_value = (int((np.abs(null) >= abs(rhos.sum()) - 1e-9).sum()) + 1) / (SHUFFLES + 1)
    mean, spread, n = float(rhos.mean()), float(rhos.std(ddof=1)) if len(rhos) > 1 else 0.0, len(rhos)
    half = t975(n - 1) * spread / n**0.5 if spread > 1e-12 else np.nan
    return Estimate95(mean, float(np.maximum(mean - half, -1.0)), float(np.minimum(mean + half, 1.0)), n), p_value


def _unit(values: Sequence[float]) -> Floats:
    """Mid-ranks less their mean, of length 1; zeros if nothing varies."""
    table = np.asarray(values)[:, None]
    ranks: Floats = ((table > table.T).sum(axis=1) + ((table == table.T).sum(axis=1) + 1) / 2).astype(np.float64)
    ranks -= ranks.mean()
    length = float(np.linalg.norm(ranks))
    return ranks / length if length else ranks


def _limit(prompts: Sequence[Asked], seed: int) -> Limit:
    levels = sorted({one.steps for one in prompts})
    blocks = list(_blocks(prompts).values())
    if not blocks:
        return Limit(Estimate95(np.nan, np.nan, np.nan, 0), False)
    parts, wholes = np.zeros((2, len(blocks), len(levels)))
    for i, block in enumerate(blocks):
        for one in block:
            parts[i, levels.index(one.steps)] = one.followed
            wholes[i, levels.index(one.steps)] = one.steps * len(one.checks)
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


def _forms(formed: Sequence[Formed], seed: int) -> tuple[Form, ...]:
    found = []
    for kind in FORMS:
        own = sorted((one for one in formed if one.kind == kind), key=lambda one: (one.task, one.base))
        if not own:
            continue
        sides = [(one.asked, one.without) for one in own]
        asked, without = (ratio([sum(s[k]) for s in sides], [len(s[k]) for s in sides]) for k in (0, 1))
        means = [[sum(s[k]) / len(s[k]) for s in sides] for k in (1, 0)]
        found.append(Form(kind, asked, without, paired_gain(*means, seed=seed), 1.0))
    corrected = holm([one.gain.p_value for one in found])
    return tuple(replace(one, holm=q) for one, q in zip(found, corrected, strict=True))


def gap(found: Complexity, gains: Mapping[str, float]) -> Correlation:
    """Correlate how far each task's steps are followed with what ABO gained on it.

    Args:
        found: Of this study.
        gains: Task -> gain, as the study `abo-gain` has it; tasks that are missing on either side are left out.
    """
    names = sorted(set(found.tasks) & set(gains))
    return spearman([found.tasks[name] for name in names], [gains[name] for name in names])


# --- the report --------------------------------------------------------------------------------------------


def sections(found: Complexity) -> tuple[Section, ...]:
    """Put the result into figures, each with what it means and what to do about it."""
    if not found.levels:
        said = "The budget ended, or the optimizer's steps could not be used, before any prompt with steps was tried."
        return (Section("How many steps are followed?", said, ()), _forms_section(found))
    return (_steps_section(found), _accuracy_section(found), _forms_section(found))


def _steps_section(found: Complexity) -> Section:
    limit, trend = found.limit, found.compliance
    figures = [Figure(
        f"Steps up to which at least {100 * ENOUGH:.0f} % are followed", limit.steps.mean, limit.steps.low,
        limit.steps.high, limit.steps.n, None,
        f"Every length tried ({_listed(found)}) up to this one is followed to that share; the interval is a bootstrap "
        "over the optimizer's procedures.",
        _how_many(found))]
    figures += [_level(one.steps, one.compliance) for one in found.levels]
    figures.append(Figure(
        "Following against number of steps (rho)", trend.rho.mean, trend.rho.low, trend.rho.high, trend.rho.n,
        trend.holm,
        "-1 means that every added step lowers the share followed, 0 no relation (permutation of the lengths within "
        "each procedure, corrected by Holm for two trends).",
        "If it is clearly negative, drop steps before you reword them; below stands what joining them costs."))
    return Section("How many steps are followed?", _steps_summary(found), tuple(figures), _steps_curves(found))


def _steps_summary(found: Complexity) -> str:
    said = f"{found.prompts} prompts of {found.levels[0].steps} to {found.levels[-1].steps} steps, made of "
    said += f"{found.procedures} procedures of the optimizer. "
    last, limit = found.levels[-1], found.limit.steps.mean
    if found.limit.end:
        return said + f"At least {100 * ENOUGH:.0f} % of the steps are followed at every length: no limit was found."
    if limit == 0:
        return said + f"Not even prompts of {_count(found.levels[0].steps)} are followed to {100 * ENOUGH:.0f} %."
    falls = found.compliance.shown and found.compliance.rho.mean < 0
    shown = "falls with their number" if falls else "was not shown to fall steadily"
    return said + (f"Up to {_count(round(limit))} the model follows at least {100 * ENOUGH:.0f} %, of {last.steps} "
                   f"only {100 * last.compliance.mean:.0f} %; the share {shown}.")


def _how_many(found: Complexity) -> str:
    if found.limit.end:
        return f"Ask for as many steps as the task needs, up to {found.levels[-1].steps}: more was not tried."
    if found.limit.steps.mean == 0:
        return "Do not rely on steps with this model: use demonstrations, or a stronger target model."
    most = _count(round(found.limit.steps.mean))
    return f"Ask for at most {most}; drop what adds nothing, or split the program in two."


def _level(steps: int, share: Estimate95) -> Figure:
    low = share.mean < ENOUGH
    return Figure(
        f"Steps followed (%): prompts of {_count(steps)}", *_interval(share), share.n, None,
        f"The share of the steps with work under their label, over {share.n} prompts; {_CLUSTERED}.",
        "Do not ask for so many." if low else "Nothing needs to be done.")


def _accuracy_section(found: Complexity) -> Section:
    trend, figures = found.accuracy, []
    if found.plain.n:
        figures.append(Figure(
            "Right answers (%): prompts without steps", *_interval(found.plain), found.plain.n, None,
            f"The task in one sentence of the optimizer; {_CLUSTERED}.",
            "If no length below is better, leave the steps out: they cost tokens."))
    for one in found.levels:
        figures.append(Figure(
            f"Right answers (%): prompts of {_count(one.steps)}", *_interval(one.accuracy), one.accuracy.n, None,
            f"The share of right answers over {one.accuracy.n} prompts; {_CLUSTERED}.",
            "Compare with the other lengths: following is worth nothing by itself."))
    figures.append(Figure(
        "Right answers against number of steps (rho)", trend.rho.mean, trend.rho.low, trend.rho.high, trend.rho.n,
        trend.holm,
        "-1 means that every added step lowers the score (permutation of the lengths within each procedure, corrected "
        "by Holm for two trends).",
        "Up to the number that the optimizer wrote, fewer means joined steps; beyond, more means harmless ones."))
    if not trend.shown:
        said = "No change of the right answers with the number of steps was shown that holds over the procedures."
    else:
        said = f"Right answers {'fall' if trend.rho.mean < 0 else 'rise'} with the number of steps."
    return Section("What do more steps do to the answers?", said, tuple(figures), (
        _curve("right answers", [(one.steps, one.accuracy) for one in found.levels], "steps asked for",
               "right answers (%)"),))


def _forms_section(found: Complexity) -> Section:
    title = "Which demands on the form are met?"
    if not found.forms:
        return Section(title, "The budget ended before any demand on the form was tried.", ())
    met = [one.kind for one in found.forms if one.asked.mean >= ENOUGH]
    moved = [one.kind for one in found.forms if one.holm < 0.05 and one.gain.difference > 0]
    said = f"{_names(met)} met in at least {100 * ENOUGH:.0f} % of the answers; asking changed the answers "
    said += f"for {', '.join(moved)}." if moved else "for none of the demands."
    return Section(title, said, tuple(figure for one in found.forms for figure in _form_figures(one)))


def _count(steps: int) -> str:
    return f"{steps} step{'s' * (steps != 1)}"


def _names(kinds: Sequence[str]) -> str:
    return "None is" if not kinds else f"{', '.join(kinds)} {'is' if len(kinds) == 1 else 'are'}"


def _form_figures(one: Form) -> Iterator[Figure]:
    yield Figure(
        f"Answers that meet the demand '{one.kind}' (%)", *_interval(one.asked), one.asked.n, None,
        f"Asked by the sentence {FORMS[one.kind][0].removesuffix('.')!r}; {_CLUSTERED}.",
        "Rely on it." if one.asked.mean >= ENOUGH else "Do not rely on words alone: demonstrate it or mend it by code.")
    gain = one.gain
    yield Figure(
        f"The same, less what is met unasked: '{one.kind}' (points)", 100 * gain.difference, 100 * gain.low,
        100 * gain.high, gain.n, one.holm,
        f"Without the demand {100 * one.without.mean:.0f} % meet it (sign-flip test over prompts, corrected by Holm "
        "for the number of demands).",
        "If it is 0, the sentence does nothing: leave it out.")


def _steps_curves(found: Complexity) -> tuple[Curve, ...]:
    return (_curve("steps followed", [(one.steps, one.compliance) for one in found.levels], "steps asked for",
                   "followed (%)"),
            _curve("all prompts", list(enumerate(found.positions, 1)), "position of the step", "followed (%)"))


def _interval(share: Estimate95) -> tuple[float, float | None, float | None]:
    """Value, low and high in percent; no interval where all prompts are equal: that says nothing of other prompts."""
    value, low, high = percent(share)
    return (value, None, None) if low == high else (value, low, high)


def _curve(name: str, points: Sequence[tuple[int, Estimate95]], x_label: str, y_label: str) -> Curve:
    rows = [[v if np.isfinite(v) else None for v in percent(share)] for _, share in points]
    values, lows, highs = ([row[k] for row in rows] for k in range(3))
    return Curve(name, [float(x) for x, _ in points], values, x_label, y_label, low=lows, high=highs)


def _listed(found: Complexity) -> str:
    return ", ".join(str(one.steps) for one in found.levels)


def _limits(found: Complexity, names: Sequence[str]) -> tuple[str, ...]:
    said = [
        "A step counts as followed if its label stands in its place with work under it: whether the work is right is "
        "not checked.",
        "More steps than the optimizer wrote are harmless additions, fewer are its steps joined: another procedure of "
        "that length may be followed otherwise.",
        f"It holds for {', '.join(names)}: intervals are over prompts of these tasks, not over tasks.",
    ]
    halves = [50 * (one.compliance.high - one.compliance.low) for one in found.levels]
    known = [half for half in halves if np.isfinite(half)]
    if known:
        said.append(f"At each length the share followed is known to {max(known):.0f} points or better, by 95 % "
                    "intervals that are not corrected for their number: smaller differences are missed.")
    if found.prompts:
        said.append(f"{found.procedures} procedures were tried, each on the same {EXAMPLES} examples or fewer at every "
                    "length.")
    return tuple(said)


# --- the study ---------------------------------------------------------------------------------------------


def conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    """Run the study; see the module.

    Raises:
        ValueError: If there is no task, or `n` is too small.
    """
    _check(tasks, n)
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
    return Findings(found, sections(found), _limits(found, labels))


def labels_of(tasks: Sequence[Task]) -> list[str]:
    """Return the tasks' names, made different where two are the same."""
    names = [task.name for task in tasks]
    return [name if names.count(name) == 1 else f"{name}-{k}" for k, name in enumerate(names, 1)]


def forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Return upper bounds of the study's calls: per task `n` procedures, and all their prompts. A reply that cannot be
    used is asked for once more.

    Raises:
        ValueError: As `conduct`.
    """
    _check(tasks, n)
    asked, runs = n * len(tasks), sum(_program_runs(task, n) for task in tasks)
    return Forecast(asked, runs, 2 * (asked + runs))


def _program_runs(task: Task, n: int) -> int:
    pool = min(n * EXAMPLES, len(task.validation))
    return pool + n * (len(LEVELS) + 1 + len(FORMS)) * min(EXAMPLES, pool)


def _check(tasks: Sequence[Task], n: int) -> None:
    if not tasks:
        raise ValueError("the study needs at least one task")
    if n < STUDY.fewest:
        raise ValueError(f"n = {n} procedures a task are too few: at least {STUDY.fewest} are needed")


STUDY = Study(
    name="complexity",
    question=STUDIES["complexity"],
    families=("sum", "navigate", "objects", "reverse"),
    sizes=Sizes(32, 96, 1),
    n=4,
    unit="procedures a task that the optimizer writes; each becomes a prompt of every length",
    fewest=3,
    conduct=conduct,
    forecast=forecast,
    several=True,
)
