"""A gain that rests on wrong answers which a failing metric left out, or on replies that nobody can read, is none."""

from __future__ import annotations

from collections.abc import Callable

import dspy
import pytest
from e2e_support import ToyEngine, toy_compile, toy_lm, toy_reply
from replies_support import Told, written

import cuesmith
from cuesmith import compare, evaluate
from cuesmith.testing import Engine, Sent
from cuesmith.testing.fakes import chat

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


@pytest.mark.parametrize("search", ["unified", "frontier"])
def test_under_a_loss_a_reply_that_cannot_be_read_is_worth_no_more_than_the_worst_answer(search: str) -> None:
    def answer(sent: Sent) -> str:
        return "..." if "mute" in sent.system else chat({"answer": str(len(sent.user) % 3)})

    def loss(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return -abs(float(prediction.answer) - float(example.answer))

    optimizer = dspy.LM("test/mute", engine=Told(written("Be mute.")), cache=False)
    with dspy.context(lm=Engine(answer).lm("guessing")):
        found = cuesmith.compile(
            dspy.Predict("question -> answer"), "iterative-ape", metric=loss, trainset=DATA[:20], valset=DATA[20:60],
            optimizer_lm=optimizer, search=search, steps=1, progress=False,
        ).compilation  # fmt: skip
    assert found.best.candidate == found.baseline.candidate
    mute = next(trial for trial in found.candidates if trial.candidate != found.baseline.candidate)
    own = next(trial for trial in found.candidates if trial.candidate == found.baseline.candidate)
    assert {v for v in mute.scores if v is not None} == {min(v for v in own.scores if v is not None)}
    assert any("counts as -" in note and "the lowest of the student's" in note for note in found.notes)
