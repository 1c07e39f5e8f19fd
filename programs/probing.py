"""What can be tried of a program without an optimizer: its own score, repeated draws, three generic prompts.

It is a compiler's search that is after knowledge instead of a prompt, so that it has budget, journal and resume like
one. Source: ours; demonstrations of plain examples are dspy's LabeledFewShot.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import dspy

from cuesmith.programs.studies.bench import by_example
from cuesmith.signatures.probes import GENERIC_PROMPTS
from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, ExampleIds, Origin, question_key
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.evidence import labels_of
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, ProviderFailure, Scored, Scores, value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.splitting import Split

SAMPLE = 40
"""Examples that the student and each generic prompt are scored on. Ours."""

REPEATED = 20
"""Examples that are drawn again. Ours."""

SHOWN = 4
"""Examples that are shown as demonstrations, where there are three times as many. Ours."""

ASKED_OF_GOLD = 4
"""Examples of which the metric is asked what it gives to their right answer, and to another one's. Ours."""

HIGH = 0.95
"""Share of the full score from which on a student has nothing to gain that is worth a search. Ours."""

WITH_EXAMPLES = "examples shown"
"""The probe that shows plain examples as demonstrations."""

UNJUDGED = 0.1
"""Share of the student's answers on which a failing metric leaves no mean to go by; three at least. Ours."""

_NOT_RUN = ProviderFailure("not run yet")


@dataclass(frozen=True)
class MetricScale:
    """What the metric's scores are read against.

    Attributes:
        low: Where nothing is right.
        top: The full score.
    """

    low: float
    top: float

    @property
    def unit(self) -> float:
        """What 100 points are."""
        return (self.top - self.low) or 1.0

    def share(self, score: float) -> float:
        """Return how much of the full score a score is, from 0 to 1."""
        return (score - self.low) / self.unit


@dataclass
class Probes:
    """What was seen until now; a stop leaves what there is.

    Attributes:
        student: The student on the sample; None before it was scored.
        gold: What the metric gives to right answers.
        mistaken: What it gives to the right answer of another example.
        repeats: Draw 1, 2, ... -> place -> outcome of the student.
        tried: Name of a generic prompt -> its scores on the sample.
    """

    student: Scores | None = None
    gold: list[float] = field(default_factory=list)
    mistaken: list[float] = field(default_factory=list)
    repeats: dict[int, dict[int, Outcome]] = field(default_factory=dict)
    tried: dict[str, Scores] = field(default_factory=dict)

    @property
    def scale(self) -> MetricScale:
        """From 0, or the lowest score where that is less, to what the metric gives to right answers.

        Where it could not be asked, to 1, or the highest score where that is more.
        """
        seen = [*self.gold, *self.mistaken, *self.values]
        full = 1.0 if not self.gold else -math.inf
        return MetricScale(min([0.0, *seen]), max([full, *self.gold, *self.values]))

    @property
    def refused(self) -> bool:
        """Whether the metric gives nothing above 0 to anything, right answers included, and no less to wrong ones."""
        zero = bool(self.gold) and max([*self.gold, *self.values]) <= 0.0
        return zero and not any(wrong < max(self.gold) for wrong in self.mistaken)  # of a loss, 0 is the best

    @property
    def values(self) -> list[float]:
        """All scores that were seen of the program's answers."""
        drawn = [value(outcome) for kept in self.repeats.values() for outcome in kept.values()]
        scored = [v for one in (self.student, *self.tried.values()) if one is not None for v in one.values]
        return [v for v in (*scored, *drawn) if v is not None]

    @property
    def settled(self) -> bool:
        """Whether there is nothing to be tried: all is right, or the metric fails, or refuses the truth."""
        if self.student is None or not self.student.n or too_many_unjudged(self.student):
            return True
        return self.scale.share(self.student.mean) >= HIGH or self.refused or upside_down(self.gold, self.mistaken)


def too_many_unjudged(scores: Scores) -> bool:
    """Return whether the metric failed on so many answers that the rest say little: those are seldom the right ones."""
    return len(scores.unjudged) >= max(3, UNJUDGED * len(scores.outcomes))


def upside_down(gold: Sequence[float], mistaken: Sequence[float]) -> bool:
    """Return whether a metric gives every wrong answer more than any right one; three of each at least, for chance."""
    return min(len(gold), len(mistaken)) >= 3 and min(mistaken) > max(gold)


@dataclass(frozen=True)
class ProbePlan:
    """What is to be tried, on which examples.

    Attributes:
        sample: Scored on.
        shown: Shown as demonstrations.
        draws: Of the student, the first included.
        predictors: Of the student.
        probes: Generic prompts that suit the student.
    """

    sample: tuple[dspy.Example, ...]
    shown: tuple[dspy.Example, ...]
    draws: int
    predictors: int
    probes: int

    @classmethod
    def of(cls, program: dspy.Module, data: Sequence[dspy.Example], *, sample: int, draws: int, seed: int) -> ProbePlan:
        """Draw the examples: each question once, those shown apart from those scored."""
        ids, own = ExampleIds(), dict[str, dspy.Example]()
        for example in sorted(data, key=ids):
            own.setdefault(question_key(example), example)
        pool = list(own.values())
        random.Random(f"check {seed}").shuffle(pool)
        shown = SHOWN if len(pool) >= 3 * SHOWN else 0
        scored = pool[: min(sample, len(pool) - shown)]
        predictors = named_predictors(program)
        # A cache of a predictor's own model would give the first answer again.
        again = draws if all(predictor.lm is None for _, predictor in predictors) else 1
        seen = tuple(pool[len(scored) : len(scored) + shown])
        tried = generic(Candidate.of(program), seen, dict(predictors))
        return cls(tuple(scored), seen, again, len(predictors), len(tried))

    @property
    def split(self) -> Split:
        """The same as a run takes it."""
        return Split(self.shown, self.sample, ())

    @property
    def forecast(self) -> Forecast:
        """Upper bounds of the calls; a metric's own calls, and replies that dspy asks for again, come on top."""
        runs = len(self.sample) * (1 + self.probes) + (self.draws - 1) * min(REPEATED, len(self.sample))
        return Forecast(0, runs, runs * self.predictors)


def generic(
    baseline: Candidate, shown: Sequence[dspy.Example], predictors: Mapping[str, dspy.Predict]
) -> dict[str, Candidate]:
    """Return name -> the student with that generic prompt added to all its instructions, in the order of trying."""
    found = {}
    for name, sentence in GENERIC_PROMPTS.items():
        made = baseline
        for predictor, prompt in baseline:
            text = f"{prompt.instructions}\n\n{sentence}" if prompt.instructions else sentence
            made = made.replace(predictor, instructions=text, origin=Origin("generic", (baseline.id,)))
        found[name] = made
    demonstrated = _demonstrated(baseline, shown, predictors)
    return found if demonstrated == baseline else {**found, WITH_EXAMPLES: demonstrated}


def _demonstrated(
    baseline: Candidate, shown: Sequence[dspy.Example], predictors: Mapping[str, dspy.Predict]
) -> Candidate:
    """Show the examples to each predictor whose inputs they have, and something of what it answers."""
    made = baseline
    for name, prompt in baseline:
        signature = predictors[name].signature
        known = [{field: e[field] for field in signature.fields if field in e} for e in shown]
        whole = [
            Demo.of(values)
            for values in known
            if values.keys() >= set(signature.input_fields) and values.keys() & set(signature.output_fields)
        ]
        if whole:
            made = made.replace(name, demos=[*prompt.demos, *whole], origin=Origin("generic", (baseline.id,)))
    return made


async def probe(run: Run, plan: ProbePlan, seen: Probes) -> None:
    """Try all that the plan has, and keep what is seen as it comes.

    Args:
        run: The run; its selection examples are the plan's sample.
        plan: What to try.
        seen: Gets what is found.

    Raises:
        RunStopped: If a cap is reached, or the provider refuses calls for good.
    """
    run.guard = None  # nothing here was written by a model
    seen.student = (await run.score([run.baseline], run.select))[0]
    await _ask_metric(run, seen)
    if seen.settled:
        return
    for number in range(1, plan.draws):
        kept: dict[tuple[str, int], Outcome] = {}
        try:
            await by_example(run, [run.baseline], run.select[:REPEATED], kept, draw=number)
        finally:
            seen.repeats[number] = {place: outcome for (_, place), outcome in kept.items()}
    tried = generic(run.baseline, plan.shown, run.predictors)
    if all(isinstance(outcome, ParseFailure) for outcome in seen.student.outcomes if value(outcome) is not None):
        tried.pop("step by step")  # what cannot be read at all does not become readable by more text
    kept = {}
    try:
        await by_example(run, list(tried.values()), run.select, kept)
    finally:
        for name, candidate in tried.items():
            outcomes = tuple(kept.get((candidate.id, place), _NOT_RUN) for place in range(len(run.select)))
            if any(value(outcome) is not None for outcome in outcomes):
                seen.tried[name] = Scores(candidate, tuple(run.select), outcomes, seen.student.together)


async def _ask_metric(run: Run, seen: Probes) -> None:
    """Ask the metric what it gives to right answers, and to right answers of other examples."""
    labelled = [(example, labels) for example in run.select if (labels := labels_of(example))]
    for example, labels in labelled[:ASKED_OF_GOLD]:
        outcome = await run.judge(example, labels)
        other = next((each for _, each in labelled if each != labels and each.keys() == labels.keys()), None)
        if not isinstance(outcome, Scored):
            continue
        seen.gold.append(outcome.score)
        if other is not None and isinstance(wrong := await run.judge(example, other), Scored):
            seen.mistaken.append(wrong.score)
