"""Whose the calls of a run are, in which order they stand, and whose a reply is that cannot be read."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable

import dspy
import pytest
from replies_support import Told, written

import cuesmith
from cuesmith.teleprompters import APO
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.outcomes import Scored
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.traces import Names
from cuesmith.testing.fakes import chat

TRAIN = [dspy.Example(question=f"say w{i}", answer=f"w{i}").with_inputs("question") for i in range(12)]


def exact(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(example.answer == prediction.answer)


def asked(student: dspy.Module, answers: Callable[[str, str, int], str]) -> list[str]:
    """Compile a student and return what the optimizer was asked."""
    optimizer = Told(lambda system, user, n: written(f"Rule {n}.")(system, user, n))
    with dspy.context(lm=Told(answers).lm("target")):
        APO(
            exact,
            optimizer_lm=optimizer.lm("optimizer"),
            steps=1,
            width=1,
            branch=2,
            initial=2,
            next_predictor="credit",
            budget=cuesmith.Budget(calls=150),
        ).compile(student, trainset=TRAIN)
    return [sent.user for sent in optimizer.sent]


@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
def test_failures_of_copies_are_the_programs_own(kind: type[dspy.Module]) -> None:
    student = kind(dspy.ChainOfThought("question -> answer"), N=1, reward_fn=lambda a, p: 1.0, threshold=1.0)
    told = asked(student, lambda system, user, n: chat({"reasoning": "r", "answer": "nope"}))
    assert any("nope" in one for one in told)


def test_a_copy_is_known_by_its_prompt_where_the_program_has_copies_itself() -> None:
    program = dspy.Module()
    program.a = dspy.Predict("question -> answer")
    program.b, program.c = copy.deepcopy(program.a), copy.deepcopy(program.a)
    program.b.signature = program.b.signature.with_instructions("Other.")
    names = Names(program)
    assert [names.of(one) for one in (program.a, program.b, program.c)] == ["a", "b", "c"]
    assert names.of(copy.deepcopy(program.b)) == "b"
    assert names.of(copy.deepcopy(program.a)) == "Predict"  # or of c: nobody can tell
    assert names.of(dspy.Predict("question -> answer")) == "Predict"


class Loop(dspy.Module):  # type: ignore[misc]
    """Calls a predictor in a loop, and then another one."""

    def __init__(self) -> None:
        super().__init__()
        self.step = dspy.Predict("question, notes -> answer, done: bool")
        self.extract = dspy.Predict("question, notes -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        for notes in ("", "note"):
            self.step(question=question, notes=notes)
        return self.extract(question=question, notes="all")


class Branch(dspy.Module):  # type: ignore[misc]
    """Calls the second of two predictors."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.odd = dspy.Predict("question -> answer"), dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.odd(question=question)


@pytest.mark.parametrize(("student", "writer"), [(Loop(), "step"), (Branch(), "odd")])
def test_an_unreadable_reply_is_that_of_the_predictor_that_was_called(student: dspy.Module, writer: str) -> None:
    def target(system: str, user: str, n: int) -> str:
        readable = "`done`" in system and "note" not in user.split("notes ## ]]")[-1].split("Respond")[0]
        return chat({"answer": "x", "done": "False"}) if readable else "I would rather not."

    told = [one for one in asked(student, target) if "I would rather not." in one]
    assert told and all(f'this stage: "{writer}"' in one for one in told)


class Parts(dspy.Module):  # type: ignore[misc]
    """Asks one predictor of several parts at once, and then of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.part = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        parts = [(self.part, {"question": f"part {k}"}) for k in range(4)]
        dspy.Parallel(num_threads=4, disable_progress_bar=True)(parts)
        return self.part(question="whole")


@pytest.mark.parametrize("slow", [0, 3])
def test_calls_in_threads_stand_in_the_programs_order_with_their_asides(slow: int) -> None:
    def target(system: str, user: str, n: int) -> str:
        said = (re.findall(r"part \d|whole", user) or ["?"])[-1]
        time.sleep(0.2 * (said == f"part {slow}"))
        return f"Of {said}:\n" + chat({"answer": said})

    seen: list[list[tuple[object, str]]] = []

    class Watching(Compiler):
        def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
            return Plan(0, 2)

        async def search(self, run: Run) -> Candidate:
            for outcome in (await run.score([run.baseline], run.train[:2]))[0].outcomes:
                assert isinstance(outcome, Scored)
                seen.append([(step.outputs["answer"], step.aside) for step in outcome.trace])
            return run.baseline

    with dspy.context(lm=Told(target).lm("target")):
        Watching(exact).compile(Parts(), trainset=TRAIN)
    names = [*(f"part {k}" for k in range(4)), "whole"]
    assert seen == [[(name, f"Of {name}:") for name in names]] * 2
