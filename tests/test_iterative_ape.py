"""IterativeAPE on the real kernel, with a target and an optimizer that answer at once by known rules."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Callable

import dspy
import pytest

from cuesmith.modules.simulated_optimizer import Asked
from cuesmith.teleprompters.iterative_ape import IterativeAPE
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.testing import Engine, Sent

Writer = Callable[[Asked, int], str]


class Target(Engine):
    """Answers "yes" the more often, the higher the number is that its instructions end in ("quality 40")."""

    def __init__(self, latency: float = 0.0) -> None:
        super().__init__(self._answer, jitter=latency)

    def _answer(self, sent: Sent) -> str:
        question = sent.turns[-1].split("## ]]\n", 1)[1].split("\n\n", 1)[0]
        said = re.findall(r"quality (\d+)", sent.system)
        right = zlib.crc32(question.encode()) % 100 < int(said[-1] if said else 10)
        return f"[[ ## answer ## ]]\n{'yes' if right else 'no'}\n\n[[ ## completed ## ]]"


class Optimizer(Engine):
    """Writes instructions of quality 20 and above, and variations that are 15 better; remembers what it was asked.

    Args:
        vary: Another way of varying.
        write: Another way of writing.
        latency: Seconds that a call takes at most, at random.
    """

    def __init__(self, *, write: Writer | None = None, vary: Writer | None = None, latency: float = 0.0) -> None:
        super().__init__(self._answer, jitter=latency)
        self.write: Writer = write or fair
        self.vary: Writer = vary or better

    def _answer(self, sent: Sent) -> str:
        asked = sent.asked
        assert sent.draw is not None
        name, writer = {"WriteInstructions": ("instruction", self.write), "SummarizeData": ("summary", self.write)}.get(
            asked.name, ("variation", self.vary)
        )
        return f"[[ ## {name} ## ]]\n{writer(asked, sent.draw)}\n\n[[ ## completed ## ]]"


def fair(asked: Asked, draw: int) -> str:
    number = zlib.crc32(asked.text("examples").encode())
    return f"Say yes {number}, quality {20 + number % 5}"


def better(asked: Asked, draw: int) -> str:
    quality = re.findall(r"quality (\d+)", asked.text("instruction"))
    text = asked.text("instruction").partition(", quality")[0]
    return f"{text} {draw % 1024}, quality {int(quality[-1] if quality else 10) + 15 + draw % 1024}"


def examples(n: int, start: int) -> list[dspy.Example]:
    return [dspy.Example(question=f"is {k} so?", answer="yes").with_inputs("question") for k in range(start, start + n)]


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return str(prediction.answer) == "yes"


TRAIN, VALID = examples(12, 0), examples(24, 100)


def run(
    optimizer: Optimizer,
    target: Target | None = None,
    *,
    program: dspy.Module | None = None,
    train: list[dspy.Example] | None = None,
    **options: object,
) -> Compilation:
    lm = dspy.LM("test/ape-optimizer", engine=optimizer, cache=False)
    compiler = IterativeAPE(exact, optimizer_lm=lm, **options)  # type: ignore[arg-type]
    with dspy.context(lm=dspy.LM("test/ape-target", engine=target or Target(), cache=False)):
        compiled = compiler.compile(
            program or dspy.Predict("question -> answer"), trainset=TRAIN if train is None else train, valset=VALID
        )
    found = compiled.compilation
    assert isinstance(found, Compilation)
    return found


def test_it_climbs_by_varying_the_best_and_records_every_step() -> None:
    found = run(Optimizer())
    assert [record.step for record in found.steps] == [0, 1, 2, 3]
    means = [record.validation.mean for record in found.steps]
    assert means == sorted(means) and means[3] > means[0] + 0.3
    assert all(record.train is not None and record.train.n == 4 for record in found.steps)
    assert all(len(record.beam) == 4 for record in found.steps)
    assert found.gain is not None and found.gain.difference > 0.4
    best, by_id = found.best.candidate, {t.candidate.id: t.candidate for t in found.candidates}
    lineage = [best.origin.move]
    while best.origin.move != "student":
        best = by_id[best.origin.parents[0]]
        lineage.append(best.origin.move)
    assert lineage == ["vary", "vary", "vary", "initial", "student"]


def test_the_first_prompts_see_four_training_examples_and_variations_see_only_their_parent() -> None:
    optimizer = Optimizer()
    run(optimizer)
    written, varied = optimizer.named("WriteInstructions"), optimizer.named("VaryInstructions")
    questions = {example.question for example in TRAIN}
    for asked in written:
        shown = asked.texts("examples")
        assert len(set(shown)) == 4
        assert all(re.findall(r"question: (.*)\nanswer: yes", text)[0] in questions for text in shown)
        assert "input question: str\noutput answer: str" in asked.text("context")
    assert len({asked.text("examples") for asked in written}) == 4
    assert all(asked.inputs.keys() == {"context", "instruction"} for asked in varied)


def test_equal_variations_are_one_candidate() -> None:
    target = Target()
    found = run(Optimizer(vary=lambda asked, draw: "Say yes, quality 50"), target, steps=2)
    assert Counter(trial.candidate.origin.move for trial in found.candidates)["vary"] == 1


@pytest.mark.parametrize("text", ["", "   ", '""', "x" * 5000, "[[ ## variation ## ]]"])
def test_unusable_replies_leave_the_student(text: str) -> None:
    def write(asked: Asked, draw: int) -> str:
        return text

    found = run(Optimizer(write=write, vary=write), steps=1)
    assert found.best.candidate == found.baseline.candidate or text == '""'
    assert [record.step for record in found.steps] == [0, 1]


def test_the_student_stays_in_the_pool() -> None:
    found = run(Optimizer(write=lambda asked, draw: f"quality {draw % 7}", vary=lambda asked, draw: "quality 0"))
    assert found.best.candidate == found.baseline.candidate


def test_demonstrations_of_the_student_stay() -> None:
    student = dspy.Predict("question -> answer")
    student.demos = [dspy.Example(question="was it?", answer="yes")]
    found = run(Optimizer(), program=student, steps=1)
    assert found.best.candidate != found.baseline.candidate
    assert all(t.candidate.prompts["self"].demos[0]["question"] == "was it?" for t in found.candidates)


class Chain(dspy.Module):  # type: ignore[misc]
    """Two predictors, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.draft = dspy.Predict("question -> answer")
        self.check = dspy.Predict(dspy.Signature("question, guess -> answer", "Check, quality 60"))

    def forward(self, question: str) -> dspy.Prediction:
        """Answer, and check the answer."""
        return self.check(question=question, guess=self.draft(question=question).answer)


def test_predictors_take_turns_and_are_described_by_their_own_runs() -> None:
    optimizer = Optimizer()
    found = run(optimizer, program=Chain(), steps=2, train=examples(30, 0))
    assert all(
        prompt.instructions.startswith("Say yes")
        for trial in found.candidates
        if trial.candidate.origin.move == "initial"
        for _, prompt in trial.candidate
    )
    by_id = {t.candidate.id: t.candidate for t in found.candidates}
    changed = Counter(
        tuple(n for n in c.names if c.prompts[n] != by_id[c.origin.parents[0]].prompts[n])
        for c in by_id.values()
        if c.origin.move == "vary"
    )
    assert set(changed) <= {("draft",), ("check",)} and len(changed) == 2
    own = [a for a in optimizer.named("WriteInstructions") if 'this stage: "check"' in a.text("context")]
    assert own and any(re.search(r"guess: (yes|no)", text) for a in own for text in a.texts("examples"))


def test_the_plan_is_reached_and_never_exceeded() -> None:
    optimizer, target = Optimizer(), Target()
    run(optimizer, target, steps=2)
    plan = IterativeAPE(exact, steps=2).plan(1, 12, 12)
    # 4 initial + 2 steps * 4 parents * 4 variations; (1 student + all of them) * 12 + 3 training scores of 4 + 12
    assert plan.optimizer_calls == 1 + 4 + 2 * 4 * 4 == len(optimizer.asked)  # the first one summarises the data
    assert plan.program_runs == (1 + 4 + 32) * 12 + 3 * 4 + 12
    assert target.calls - 2 * 12 <= plan.program_runs
    assert IterativeAPE(exact).plan(3, 0, 0).optimizer_calls == 1 + 3 * 4 + 3 * 16


def test_the_result_does_not_depend_on_concurrency() -> None:
    def outcome(in_flight: int) -> object:
        found = run(Optimizer(latency=0.002), Target(latency=0.0005), max_in_flight=in_flight, seed=5, steps=2)
        trials = [(t.candidate.to_json(), t.scores) for t in found.candidates]
        return json.dumps(found.best.candidate.to_json()), trials, found.steps, found.notes

    assert outcome(1) == outcome(64)


@pytest.mark.parametrize(("option", "bad"), [("width", 0), ("branch", -2), ("steps", -1), ("initial", -1)])
def test_an_option_out_of_range_is_refused_with_its_value(option: str, bad: int) -> None:
    with pytest.raises(ValueError, match=f"{option}.*{bad}"):
        IterativeAPE(exact, **{option: bad})  # type: ignore[arg-type]
