"""Which training examples a search may use for what, and what a predictor has to do on each. Source: ours.

A program's examples say what goes into the program and should come out of it. A predictor inside it has inputs
and outputs of its own: for the only predictor of a program they are mostly the example's, else they are read
from the trace of a run that succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dspy

from cuesmith.teleprompters.runtime.candidate import example_id, question_key, typed_fields
from cuesmith.teleprompters.runtime.evidence import (
    answer_fields,
    expected,
    gold,
    inputs_of,
    shown_example,
)
from cuesmith.teleprompters.runtime.outcomes import Scored, Scores, Step
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.setting import Setting


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
        return Case(example, {field: given[field] for field in signature.input_fields},
                    {field: labels[field] for field in answer_fields(signature)}, judged=False)

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


def subsets(run: Run, examples: Sequence[dspy.Example], size: int, count: int, *key: object
            ) -> list[list[dspy.Example]]:
    """Return `count` seeded samples of at most `size` examples; `key` separates different uses."""
    size = min(size, len(examples))
    return [run.rng("subset", *key, j).sample(list(examples), size) for j in range(count)]
