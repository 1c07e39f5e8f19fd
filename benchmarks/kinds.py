"""Programs and metrics of other kinds, made of the tasks of `real.py`: no reasoning, two outputs, two stages, a judge.

Each takes a task and its metric, and returns the two as another user would have them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import dspy

from cuesmith.programs.tasks import Task
from cuesmith.programs.tasks.metrics import Number
from cuesmith.teleprompters.runtime.metric import MetricFunction


class Listed(dspy.Module):  # type: ignore[misc]
    """Two stages: what there is, and then the answer."""

    def __init__(self, signature: object) -> None:
        """Make both stages; the task's own signature is not needed."""
        super().__init__()
        self.take = dspy.Predict("question -> things")
        self.count = dspy.Predict("things -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Answer one question."""
        things = self.take(question=question).things
        return dspy.Prediction(things=things, answer=self.count(things=things).answer)


class Parity(dspy.Signature):  # type: ignore[misc]
    """Answer."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()
    parity: Literal["even", "odd"] = dspy.OutputField()


Parity.__doc__ = dspy.Signature("question -> answer, parity").instructions


@dataclass(frozen=True)
class Judge:
    """How near a count is to the right one, from 0 to 0.9: nothing has full marks. It has the answers, examples need
    not."""

    answers: tuple[tuple[str, int], ...]

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
        """Score one prediction, with feedback that does not tell the answer."""
        right, said = dict(self.answers)[example.question], re.findall(r"\d+", str(prediction.answer))
        if not said:
            return dspy.Prediction(score=0.0, feedback="There is no number in the answer.")
        away = int(said[-1][:9]) - right
        told = f"{abs(away)} too {'many' if away > 0 else 'few'}." if away else "The count is right."
        return dspy.Prediction(score=max(0.0, 0.9 - 0.3 * abs(away)), feedback=told)


@dataclass(frozen=True)
class Both:
    """Half for each of two outputs."""

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        """Score one prediction."""
        return (int(Number()(example, prediction)) + int(prediction.parity == example.parity)) / 2


def judged(task: Task, metric: MetricFunction) -> tuple[Task, MetricFunction]:
    """Have a judge without full marks in the metric's place."""
    rows = (*task.train, *task.validation, *task.test)
    return task, Judge(tuple((one.question, int(one.answer)) for one in rows))


def unlabelled(task: Task, metric: MetricFunction) -> tuple[Task, MetricFunction]:
    """Have the judge, and no labels."""
    bare, judge = judged(task, metric)
    return _mapped(bare, lambda one: dspy.Example(question=one.question).with_inputs("question")), judge


def with_parity(task: Task, metric: MetricFunction) -> tuple[Task, MetricFunction]:
    """Have a second, typed output."""

    def more(one: dspy.Example) -> dspy.Example:
        return one.copy(parity=("even", "odd")[int(one.answer) % 2]).with_inputs("question")

    return replace(_mapped(task, more), signature=Parity), Both()


def _mapped(task: Task, change: Callable[[dspy.Example], dspy.Example]) -> Task:
    train, validation, test = (tuple(map(change, part)) for part in (task.train, task.validation, task.test))
    return replace(task, train=train, validation=validation, test=test)
