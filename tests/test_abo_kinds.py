"""ABO beyond exact short answers with reasoning: no reasoning field, graded judges, no labels, two outputs."""

from __future__ import annotations

import random
import re
import zlib

import dspy
import pytest
from replies_support import Told

from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.teleprompters import ABO
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.testing import Engine
from cuesmith.testing.fakes import simulated

SUM = FAMILIES["sum"]


def examples(n: int, seed: int, *labels: str) -> list[dspy.Example]:
    rng, found = random.Random(seed), dict[str, dspy.Example]()
    while len(found) < n:
        question = SUM.sample(rng, held_out=False)
        solved = SUM.solve(question)
        assert solved is not None
        right = {"answer": solved.answer, "twice": str(2 * int(solved.answer))}
        found[question] = dspy.Example(question=question, **{k: right[k] for k in labels}).with_inputs("question")
    return [*found.values()]


def target(system: str, text: str, number: int) -> str:
    """Add mostly rightly with steps and demonstrations, and write the work wherever there is a place for it."""
    question = text.split("[[ ## question ## ]]\n", 1)[1].split("\n\n", 1)[0].strip()
    steps = re.findall(r"^\s*Step \d+: ", system, re.MULTILINE)
    solved = SUM.solve(question)
    assert solved is not None
    right = zlib.crc32(question.encode()) % 100 < (60 if steps else 20)
    answer = solved.answer if right else "7"
    work = "\n".join(f"Step {k}: {answer}" for k in range(1, len(steps) + 1)) or "So."
    wanted = re.findall(r"`\[\[ ## (\w+) ## \]\]`", text)
    values = {"reasoning": work, "answer": answer, "twice": str(2 * int(answer))}
    fields = "\n\n".join(f"[[ ## {name} ## ]]\n{values[name]}" for name in wanted if name in values)
    aside = f"{work}\n\n" if "reasoning" not in wanted and steps else ""
    return f"{aside}{fields}\n\n[[ ## completed ## ]]"


def exact(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    solved = SUM.solve(example.question)
    return solved is not None and str(prediction.answer) == solved.answer


def judge(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    """A judge without full marks."""
    right = exact(example, prediction)
    return dspy.Prediction(score=0.9 if right else 0.3, feedback="Right." if right else "The tone is not named.")


def compiled(
    metric: object, program: dspy.Module, train: list[dspy.Example], **options: object
) -> tuple[Compilation, Engine]:
    optimizer = Engine(simulated())
    small = {"steps": 2, "width": 2, "branch": 3, "initial": 2, "minibatch": 12, **options}
    compiler = ABO(metric, optimizer_lm=optimizer.lm("optimizer"), progress=False, **small)  # type: ignore[arg-type]
    with dspy.context(lm=dspy.LM("test/target", engine=Told(target), cache=False)):
        found = compiler.compile(program, trainset=train).compilation
    assert isinstance(found, Compilation)
    return found, optimizer


def demos(found: Compilation) -> int:
    return sum(
        bool(prompt.demos) or "Example of following" in prompt.instructions
        for trial in found.candidates
        for _, prompt in trial.candidate
    )


def test_without_a_reasoning_field_the_work_before_the_fields_is_read() -> None:
    found, optimizer = compiled(exact, dspy.Predict("question -> answer"), examples(60, 1, "answer"))
    asked = optimizer.named("LocateDeviation")
    assert asked and all(re.match(r"Step 1: .*\nStep 2: ", one.text("response")) for one in asked)
    assert all("\nanswer: 7" in one.text("response") for one in asked)
    assert demos(found)


@pytest.mark.parametrize("labels", [("answer",), ()])
def test_a_judge_without_full_marks_leaves_demonstrations(labels: tuple[str, ...]) -> None:
    found, optimizer = compiled(judge, dspy.ChainOfThought("question -> answer"), examples(60, 2, *labels))
    assert demos(found) and optimizer.named("WorkExample")
    shown = {
        demo["answer"] == SUM.solve(str(demo["question"])).answer  # type: ignore[union-attr]
        for trial in found.candidates
        for _, prompt in trial.candidate
        for demo in prompt.demos
    }
    assert shown == {True}  # of the best runs, or the right ones
    failed = optimizer.named("LocateDeviation") + optimizer.named("ReviseStep")
    assert failed and all("The tone is not named." in "\n".join(map(one.text, one.inputs)) for one in failed)
    assert not any("do not earn the metric" in note for note in found.notes)


def test_that_nothing_has_full_marks_is_said() -> None:
    found, _ = compiled(judge, dspy.ChainOfThought("question -> answer"), examples(60, 2))
    assert any("the best quarter" in note for note in found.notes)


def test_two_outputs_are_worked_and_shown() -> None:
    found, optimizer = compiled(
        exact, dspy.ChainOfThought("question -> answer, twice"), examples(60, 3, "answer", "twice")
    )
    assert all("twice: " in one.text("outputs") for one in optimizer.named("WorkExample"))
    assert demos(found) and found.best.select is not None


def test_the_ablation_differs_in_the_demonstrations_alone() -> None:
    train = examples(60, 4, "answer")
    with_demos, without = (
        compiled(
            exact, dspy.ChainOfThought("question -> answer"), train, max_in_flight=1, demonstrations=demonstrations
        )
        for demonstrations in (True, False)
    )
    first = [[one.key for one in optimizer.named("WriteSteps")[:2]] for _, optimizer in (with_demos, without)]
    assert first[0] == first[1] and demos(with_demos[0]) and not demos(without[0])
    moves = {trial.candidate.origin.move for trial in without[0].candidates}
    assert moves <= {"student", "write", "edit step", "split step", "add step", "delete step"}
