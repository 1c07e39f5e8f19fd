"""The training examples of a search: which may be used for what, what a predictor has to do on each, and what is a
success or a failure on it. Source: ours.

A program's examples say what goes into the program and should come out of it. A predictor inside it has inputs
and outputs of its own: for the only predictor of a program they are mostly the example's, else they are read
from the trace of a run that succeeded.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dspy

from cuesmith.teleprompters.runtime.candidate import example_id, question_key, typed_fields
from cuesmith.teleprompters.runtime.evidence import (
    REASONING,
    answer_fields,
    expected,
    feedback_of,
    gold,
    has_reasoning,
    inputs_of,
    labels_of,
    render_fields,
    shown_example,
    shown_failure,
    text_of,
)
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored, Scores, Step, value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.setting import Setting

GOLD = 3
"""Examples whose right answers are judged."""


@dataclass(frozen=True)
class Material:
    """The training examples by use.

    Attributes:
        evidence: What the optimizer may be shown and minibatches are drawn from. Never a question of the
            selection examples, unless there is nothing else.
        watched: The fixed sample for the training score; part of the evidence, never a demonstration.
        workable: What demonstrations may be made of: evidence that is neither watched nor selected on.
    """

    evidence: tuple[dspy.Example, ...]
    watched: tuple[dspy.Example, ...]
    workable: tuple[dspy.Example, ...]

    @classmethod
    def of(cls, run: Run, setting: Setting) -> Material:
        """Share out the run's training examples; two with the same inputs count as one."""
        selected = {question_key(example) for example in run.select}
        unique: dict[str, dspy.Example] = {}
        for example in run.train:
            unique.setdefault(question_key(example), example)
        clean = [example for key, example in unique.items() if key not in selected]
        run.rng("material").shuffle(clean)
        k = setting.watched(len(clean))
        return cls(tuple(clean) or tuple(unique.values()), tuple(clean[:k]), tuple(clean[k:]))


@dataclass(frozen=True)
class Case:
    """What one predictor has to do on one example.

    Attributes:
        example: The program's example.
        inputs: The predictor's inputs.
        outputs: Its right answers, without reasoning.
        judged: Whether a whole program run with these outputs has already earned the metric.
    """

    example: dspy.Example
    inputs: Mapping[str, object]
    outputs: Mapping[str, object]
    judged: bool


class Casebook:
    """What is known so far of each predictor's task on each example.

    Args:
        run: The run; read for the signatures.
        setting: Says what score is a success.

    Attributes:
        threshold: A run with at least this score is a success.
    """

    def __init__(self, run: Run, setting: Setting) -> None:
        self._signatures = {name: predictor.signature for name, predictor in run.predictors.items()}
        self.threshold = setting.threshold
        self._best: dict[str, Scored] = {}

    def learn(self, scores: Sequence[Scores]) -> None:
        """Keep the best run on each example; of equal ones the first."""
        for one in scores:
            for example, outcome in zip(one.examples, one.outcomes, strict=True):
                if isinstance(outcome, Scored):
                    key = example_id(example)
                    if key not in self._best or outcome.score > self._best[key].score:
                        self._best[key] = outcome

    def copy(self) -> Casebook:
        """Return a casebook that knows as much, and goes on for itself."""
        other = copy.copy(self)
        other._best = dict(self._best)
        return other

    def take(self, other: Casebook) -> None:
        """Take what another one knows better."""
        self._best |= {
            key: best
            for key, best in other._best.items()
            if key not in self._best or best.score > self._best[key].score
        }

    def success(self, example: dspy.Example) -> tuple[Step, ...]:
        """Return the trace of the best run on an example; none as long as no run succeeded."""
        best = self._best.get(example_id(example))
        return best.trace if best is not None and best.score >= self.threshold else ()

    def case(self, name: str, example: dspy.Example) -> Case | None:
        """Return what predictor `name` has to do on `example`; None as long as nobody knows."""
        direct = self._direct(name, example) if len(self._signatures) == 1 else None
        return direct or self._traced(name, example)

    def shown(self, name: str, examples: Sequence[dspy.Example]) -> list[str]:
        """Return examples as the optimizer is shown them: the predictor's own task, or else the program's."""
        return [self._shown(name, example) for example in examples]

    def needs_traces(self, examples: Sequence[dspy.Example]) -> bool:
        """Return whether some predictor's task on some of the examples is still unknown."""
        return any(self.case(name, example) is None for name in self._signatures for example in examples)

    def _shown(self, name: str, example: dspy.Example) -> str:
        case = self.case(name, example)
        if case is not None:
            return shown_example(case.inputs, case.outputs)
        right = expected(example, self._signatures[name], alone=len(self._signatures) == 1)
        return shown_example(inputs_of(example), right)

    def _direct(self, name: str, example: dspy.Example) -> Case | None:
        signature = self._signatures[name]
        given, labels = inputs_of(example), gold(example, signature)
        if not set(signature.input_fields) <= set(given) or not set(answer_fields(signature)) <= set(labels):
            return None
        return Case(
            example,
            {field: given[field] for field in signature.input_fields},
            {field: labels[field] for field in answer_fields(signature)},
            judged=False,
        )

    def _traced(self, name: str, example: dspy.Example) -> Case | None:
        signature = self._signatures[name]
        calls = [step for step in self.success(example) if step.predictor == name]
        if not calls or not set(answer_fields(signature)) <= set(calls[-1].outputs):
            return None
        last = calls[-1]  # of a loop, the call that ended it
        given = {field: held for field, held in last.inputs.items() if field in signature.input_fields}
        right = {field: last.outputs[field] for field in answer_fields(signature)}
        return Case(example, typed_fields(given, signature), typed_fields(right, signature), judged=True)


async def begin(run: Run, setting: Setting, material: Material) -> Casebook:
    """Return the casebook that initial prompts are written from.

    Where the examples alone do not say what a predictor has to do (several predictors, or no labels), the
    student is run on a minibatch of them for its successes.
    """
    book = Casebook(run, setting)
    if book.needs_traces(material.evidence):
        batch = material.evidence[: setting.minibatch]
        book.learn(await run.score([run.baseline], batch))
    return book


@dataclass(frozen=True)
class Failure:
    """What one predictor did on an example that the program failed on.

    Attributes:
        example: The program's example.
        inputs: What the predictor was given.
        expected: What should have come out as far as labels tell it, as `evidence.expected` names it.
        response: All that it wrote.
        reasoning: The text in which its steps' labels stand; None where nothing shows it.
        parsed: Whether its reply could be used.
        feedback: The metric's words, or the parse error.
        later: What later predictors made of it.
    """

    example: dspy.Example
    inputs: Mapping[str, object]
    expected: Mapping[str, object]
    response: str
    reasoning: str | None
    parsed: bool
    feedback: str
    later: str = ""

    def shown(self) -> str:
        """Return the failure as the optimizer is shown it."""
        return shown_failure(self.inputs, self.expected, self.response, self.feedback, self.later)


def read_failure(
    example: dspy.Example, outcome: Outcome, name: str, names: Sequence[str], signature: type[dspy.Signature]
) -> Failure | None:
    """Return what predictor `name` did in a failed run; None if it had no part in it.

    A reply that could not be used is that of `ParseFailure.writer`: the others are not blamed for it.

    Args:
        example: The program's example.
        outcome: What became of it.
        name: The predictor.
        names: All predictors.
        signature: The predictor's signature.
    """
    if not isinstance(outcome, Scored | ParseFailure):
        return None
    calls = [step for step in outcome.trace if step.predictor == name]
    feedback, right = feedback_of(outcome), expected(example, signature, alone=len(names) == 1)
    if isinstance(outcome, ParseFailure):
        if name != outcome.writer(names):
            return None
        failed = outcome.failed
        inputs = inputs_of(example) if failed is None else typed_fields(failed.inputs, signature)
        reasoning = outcome.response if has_reasoning(signature) else None
        return Failure(example, inputs, right, outcome.response, reasoning, False, feedback)
    if not calls:
        return None
    last = calls[-1]
    inputs, outputs = typed_fields(last.inputs, signature), typed_fields(last.outputs, signature)
    reasoning = text_of(outputs.get(REASONING, "")) if has_reasoning(signature) else last.aside or None
    answered = all(text_of(outputs.get(field, "")).strip() for field in answer_fields(signature))
    response = "\n".join(part for part in (last.aside, render_fields(outputs)) if part)
    behind = [step for step in outcome.trace[outcome.trace.index(last) + 1 :] if step.predictor != name]
    later = "\n".join(f'"{step.predictor}" gave {render_fields(step.outputs)}' for step in behind)
    return Failure(example, inputs, right, response, reasoning, answered, feedback, later)


async def success_threshold(run: Run, usual: float) -> float:
    """Return the score from which on an answer counts as a success.

    It is the usual one where some of the student's answers have it and all scores lie between 0 and 1. If not, the
    metric may have another scale (1 to 5, percent, a negative loss) or no full marks to give, and is asked what it
    gives to the right answers of some training examples.

    Args:
        run: The run; its student has been scored.
        usual: The threshold for scores from 0 to 1.

    Raises:
        RunStopped: As `Run.judge`.
    """
    seen = [v for v in run.known(run.baseline, run.select) if v is not None]
    if max(seen) >= usual and min(seen) < max(seen) and all(0.0 <= v <= 1.0 for v in seen):
        return usual
    labelled = [(example, labels) for example in run.train if (labels := labels_of(example))][:GOLD]
    judged = await asyncio.gather(*(run.judge(example, labels) for example, labels in labelled))
    return threshold_of(seen, [v for one in judged if (v := value(one)) is not None], usual)


def threshold_of(seen: Sequence[float], gold: Sequence[float], usual: float) -> float:
    """Return the threshold for a metric.

    - All scores, gold ones included, between 0 and 1: the usual one, unless right answers do not get it.
    - No answer scored above the right ones: the least score of these.
    - The metric has no high opinion of them: the highest score seen; if no other was seen, anything above it.

    Args:
        seen: Scores of the student's answers, at least one.
        gold: Scores of right answers; none if it could not be asked.
        usual: The threshold for scores from 0 to 1.
    """
    if all(0.0 <= v <= 1.0 for v in (*seen, *gold)) and (not gold or min(gold) >= usual or max(gold) == 0.0):
        return usual
    if gold and min(gold) >= max(seen):
        return min(gold)
    return max(seen) if min(seen) < max(seen) else math.nextafter(max(seen), math.inf)


def within_reach(threshold: float, rows: Sequence[Sequence[float | None]]) -> float:
    """Return the threshold, or where nothing has come up to it what the best quarter of the best row has.

    Args:
        threshold: What would be a success.
        rows: Scores of candidates on the same examples, the best candidate first; None where one is missing.
    """
    known = [sorted(v for v in row if v is not None) for row in rows]
    if not known or not known[0] or any(row[-1] >= threshold for row in known if row):
        return threshold
    best = known[0]
    above = [v for v in best if v > best[0]]  # the lowest score of all is no success, however many have it
    return max(best[math.ceil(0.75 * len(best)) - 1], above[0]) if above else threshold
