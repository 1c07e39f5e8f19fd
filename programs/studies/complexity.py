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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import dspy

from cuesmith.programs.diagnosis.following import Response, check, rules_of
from cuesmith.programs.diagnosis.record import passed
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.studies.bench import Bench, Findings, Study
from cuesmith.programs.studies.checks import check_amount, labels_of
from cuesmith.programs.studies.complexity_analysis import EXAMPLES, FORMS, Asked, Formed, analyse
from cuesmith.programs.studies.complexity_report import limits, sections
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.signatures import WriteSteps, canonical_task, render_steps
from cuesmith.signatures.probes import HARMLESS_STEPS, joined_steps
from cuesmith.teleprompters.behavior.steps import step_list, steps_fault
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.evidence import answer_fields, text_of
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored, Scores
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import CAPS
from cuesmith.teleprompters.search.context import ProgramContext, Requests
from cuesmith.teleprompters.search.examples import Casebook, read_failure
from cuesmith.teleprompters.search.scene import text_field
from cuesmith.teleprompters.search.setting import UNIFIED

__all__ = ["STUDY", "checks_of", "conduct", "forecast", "versions", "write_steps"]

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
        WriteSteps, name, request, instructions=run.baseline.prompts[name].instructions,
        salt=f"study, procedure {number}")
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

    asked: list[Asked] = field(default_factory=list)
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
        text = text_of(outcome.trace[-1].outputs.get(name, "")).strip()
        return meets(text) if text else False


# --- the study ---------------------------------------------------------------------------------------------


def conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    """Run the study; see the module.

    Raises:
        ValueError: If there is no task, or `n` is too small.
    """
    check_amount(tasks, n, fewest=STUDY.fewest, unit="procedures a task")
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


def forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Return upper bounds of the study's calls: per task `n` procedures, and all their prompts. A reply that cannot be
    used is asked for once more.

    Raises:
        ValueError: As `conduct`.
    """
    check_amount(tasks, n, fewest=STUDY.fewest, unit="procedures a task")
    asked, runs = n * len(tasks), sum(_program_runs(task, n) for task in tasks)
    return Forecast(asked, runs, 2 * (asked + runs))


def _program_runs(task: Task, n: int) -> int:
    pool = min(n * EXAMPLES, len(task.validation))
    return pool + n * (len(LEVELS) + 1 + len(FORMS)) * min(EXAMPLES, pool)


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
