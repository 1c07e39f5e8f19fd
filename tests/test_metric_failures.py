"""A gain that rests on wrong answers which a failing metric left out, or on replies that nobody can read, is none."""

from __future__ import annotations

from collections.abc import Callable

import dspy
import pytest
from e2e_support import ToyEngine, toy_compile, toy_lm, toy_reply

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


def loss(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """Never above 0."""
    return 0.0 if prediction.answer == example.answer else -1.0


def garbling(system: str, user: str, drawn: int | None) -> str:
    """Write prompts under which the toy model says nothing that can be read."""
    if "`variation`" in system:
        return toy_reply(system, user, drawn).replace("Repeat", "GARBLE. Repeat")
    return "nothing of use" if "GARBLE" in system + user else toy_reply(system, user, drawn)


def test_replies_that_nobody_can_read_are_no_gain_by_a_metric_below_zero() -> None:
    compiled = toy_compile(toy_lm(ToyEngine(reply=garbling)), metric=loss)
    found = compiled.compilation
    assert "GARBLE" not in compiled.signature.instructions and found.best.candidate == found.baseline.candidate
    assert "less than the student on fresh ones" in found.report.verdict.text
    assert any("as the lowest score in the gain" in note for note in found.notes if note.kind == "scale")
