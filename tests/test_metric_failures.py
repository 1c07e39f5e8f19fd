"""A gain that rests on the wrong answers which a failing metric left out is none."""

from __future__ import annotations

from collections.abc import Callable

import dspy
import pytest

from cuesmith import compare, evaluate

DATA = [dspy.Example(question=str(i), answer=i).with_inputs("question") for i in range(1, 81)]


class Answering(dspy.Module):  # type: ignore[misc]
    """Answers by a rule."""

    def __init__(self, rule: Callable[[int], object]) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=str(self.rule(int(question))))


def metric(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    """Raises on what is no number."""
    return bool(int(prediction.answer) == example.answer)


@pytest.mark.parametrize(("unread", "shown"), [(50, False), (2, True)])
def test_a_gain_holds_with_the_answers_that_the_metric_failed_on(unread: int, shown: bool) -> None:
    often = Answering(lambda i: i if i % 4 else 0)  # right on three of four
    never = Answering(lambda i: "unsure" if i <= unread else i)
    gain = compare(evaluate(often, DATA, metric), evaluate(never, DATA, metric))
    assert gain.difference > 0.2 and gain.p_value < 0.05 and gain.low > 0.0 and gain.n == 80 - unread
    assert gain.holds is shown and gain.significant is shown
