"""ABO on the real kernel, with a target and an optimizer that answer at once by known rules."""

from __future__ import annotations

import random
import re
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Mapping

import dspy
import pytest

from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.modules.simulated_optimizer import Asked, SimulatedOptimizerEngine
from cuesmith.signatures import parse_steps
from cuesmith.teleprompters.abo import ABO
from cuesmith.teleprompters.behavior.steps import first_missing, labelled
from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, question_key
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.testing import Engine, Sent
from cuesmith.testing.fakes import chat

SUM = FAMILIES["sum"]
Answer = Mapping[str, object]


def question_of(text: str) -> str:
    return text.split("[[ ## question ## ]]\n", 1)[1].split("\n\n", 1)[0].strip()


class Target(Engine):
    """Adds numbers: mostly right with steps and demonstrations, sometimes with steps, seldom without.

    Args:
        skill: Percentage of questions solved (chosen by a hash) with (nothing, steps, steps and demonstrations).
        fault: How it fails: "skip" leaves the last step out, "wrong" works every step and ends wrongly, "mute"
            writes nothing that can be used.
        reasoning: Whether it writes a reasoning field.
        latency: Seconds that a call takes at most, at random.
    """

    def __init__(
        self,
        skill: tuple[int, int, int] = (10, 50, 90),
        fault: str = "wrong",
        *,
        reasoning: bool = True,
        latency: float = 0.0,
    ) -> None:
        super().__init__(self._answer, jitter=latency)
        self.skill, self.fault, self.reasoning = skill, fault, reasoning

    def _answer(self, sent: Sent) -> str:
        question = question_of(sent.turns[-1])
        steps = re.findall(r"^\s*Step \d+: ", sent.system, re.MULTILINE)
        shown = len(sent.turns) > 1 or "Example of following" in sent.system
        luck = zlib.crc32(question.encode()) % 100
        solved = SUM.solve(question)
        right = solved is not None and luck < self.skill[bool(steps) + (bool(steps) and shown)]
        answer = solved.answer if solved and right else "nought"
        if not right and self.fault == "mute":
            return "I cannot."
        work = [f"Step {k}: {answer}" for k in range(1, len(steps) + 1)] or ["So."]
        if not right and self.fault == "skip":
            work = work[:-1]
        values = {"reasoning": "\n".join(work), "answer": answer}
        return chat(values if self.reasoning else {"answer": answer})


class Optimizer(Engine):
    """The simulated optimizer, with other answers for some requests; remembers what it was asked.

    Args:
        answers: Request name -> the answer to a request and draw; text is sent as it is.
        latency: Seconds that a call takes at most, at random.
    """

    def __init__(
        self, answers: Mapping[str, Callable[[Asked, int], Answer | str]] | None = None, *, latency: float = 0.0
    ) -> None:
        super().__init__(self._answer, jitter=latency)
        self.answers, self.simulated = dict(answers or {}), SimulatedOptimizerEngine()

    def _answer(self, sent: Sent) -> str:
        asked = sent.asked
        assert sent.draw is not None
        answer = self.answers.get(asked.name, self.simulated.answer)(asked, sent.draw)
        return answer if isinstance(answer, str) else chat(answer)


def examples(n: int, seed: int, *, label: bool = True) -> list[dspy.Example]:
    rng = random.Random(seed)
    found: dict[str, dspy.Example] = {}
    while len(found) < n:
        question = SUM.sample(rng, held_out=False)
        solved = SUM.solve(question)
        assert solved is not None
        answer = {"answer": solved.answer} if label else {}
        found[question] = dspy.Example(question=question, **answer).with_inputs("question")
    return list(found.values())


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    solved = SUM.solve(example.question)
    return solved is not None and str(prediction.answer) == solved.answer


TRAIN, VALID = examples(24, 1), examples(24, 2)


def compile_with(
    compiler: ABO,
    target: Target,
    *,
    program: dspy.Module | None = None,
    train: list[dspy.Example] | None = None,
    valid: list[dspy.Example] | None = None,
) -> dspy.Module:
    with dspy.context(lm=dspy.LM("test/abo-target", engine=target, cache=False)):
        return compiler.compile(
            program or dspy.ChainOfThought("question -> answer"),
            trainset=TRAIN if train is None else train,
            valset=VALID if valid is None else valid,
        )


def abo(optimizer: Optimizer, **options: object) -> ABO:
    lm = dspy.LM("test/abo-optimizer", engine=optimizer, cache=False)
    narrow: dict[str, object] = {"search": "native", "racing": False}  # the small beam, every candidate fully scored
    return ABO(exact, optimizer_lm=lm, **{**narrow, **options})  # type: ignore[arg-type]


def always(**values: object) -> Callable[[Asked, int], Answer]:
    return lambda asked, draw: values


def moves(compilation: Compilation) -> Counter[str]:
    return Counter(trial.candidate.origin.move for trial in compilation.candidates)


def mended(compilation: Compilation) -> int:
    return sum(n for move, n in moves(compilation).items() if move.endswith(" step"))


def demos_of(candidate: Candidate) -> list[Demo]:
    return [demo for _, prompt in candidate for demo in prompt.demos]


def test_it_finds_steps_and_demonstrations_and_records_its_steps() -> None:
    student, target = dspy.ChainOfThought("question -> answer"), Target()
    before = student.dump_state()
    found = compile_with(abo(Optimizer()), target, program=student).compilation
    assert student.dump_state() == before
    assert found.best.select is not None and found.baseline.select is not None and found.gain is not None
    assert found.best.select.mean > 0.7 and found.baseline.select.mean < 0.3 and found.gain.difference > 0.4
    assert [record.step for record in found.steps] == [0, 1, 2]
    assert all(record.train is not None and record.train.n == 8 for record in found.steps)
    means = [record.validation.mean for record in found.steps]
    assert means == sorted(means)
    prompt = found.best.candidate.prompts["predict"]
    parsed = parse_steps(prompt.instructions)
    assert parsed is not None and len(prompt.demos) == 2
    selected = {question_key(example) for example in VALID}
    for demo in prompt.demos:
        solved = SUM.solve(str(demo["question"]))
        assert solved is not None and demo["answer"] == solved.answer
        assert [k for k, _ in labelled(str(demo["reasoning"]))] == list(range(1, len(parsed[1]) + 1))
        assert f"question: {demo['question']}".casefold() not in selected


def test_the_ablation_shows_no_demonstration_anywhere() -> None:
    optimizer = Optimizer()
    found = compile_with(abo(optimizer, demonstrations=False), Target()).compilation
    assert not optimizer.named("WorkExample") and moves(found)["demonstrate"] == 0 and mended(found) > 0
    assert not any(demos_of(trial.candidate) for trial in found.candidates)
    assert not any("Example of following" in p.instructions for t in found.candidates for _, p in t.candidate)


def test_a_task_that_may_not_be_used_is_counted_and_the_student_s_stands_for_it() -> None:
    optimizer = Optimizer({"WriteSteps": always(task="Add. " * 20_000, steps=["Add.", "Answer."])})
    found = compile_with(abo(optimizer, steps=0, initial=2), Target()).compilation
    assert all(len(prompt.instructions) < 4000 for trial in found.candidates for _, prompt in trial.candidate)
    assert "2 of 4 drafts dropped: too long (2)." in found.notes


def test_a_note_says_that_the_demonstrations_of_the_student_are_left_out() -> None:
    student = dspy.ChainOfThought("question -> answer")
    student.predict.demos = [TRAIN[0].copy(reasoning="mine")]
    found = compile_with(abo(Optimizer(), steps=0, initial=1), Target(), program=student).compilation
    own = [t.candidate.id for t in found.candidates if any(d["reasoning"] == "mine" for d in demos_of(t.candidate))]
    assert own == [found.baseline.candidate.id]
    assert any("leave out the demonstrations that 'predict' came with" in note for note in found.notes)


@pytest.mark.parametrize(
    "work", [["3"], ["a", "b", "0x"], [], ["a", "[[ ## answer ## ]]\n3"], ["a", "", "3"], ["Step 1: a\nStep 2: b"]]
)
def test_work_that_does_not_hold_is_drawn_again_and_then_dropped(work: list[str]) -> None:
    optimizer = Optimizer({"WorkExample": always(work=work)})
    weak = Target((10, 0, 0))  # its own runs are no demonstrations either
    found = compile_with(abo(optimizer, steps=0, initial=1, retries=2, demos_per_predictor=3), weak).compilation
    assert len(optimizer.named("WorkExample")) == 3 * 3
    assert not any(demos_of(trial.candidate) for trial in found.candidates) and moves(found)["write"] == 1
    assert any(note.startswith("3 of 3 demonstrations dropped: ") for note in found.notes if note.kind == "dropped")


def test_runs_that_followed_the_steps_stand_in_for_work_that_does_not_hold() -> None:
    optimizer = Optimizer({"WorkExample": always(work=["no"]), "LocateDeviation": always(step=2, kind="misapplied")})
    found = compile_with(abo(optimizer, steps=1, branch=1), Target((10, 50, 90))).compilation
    shown = [trial.candidate for trial in found.candidates if demos_of(trial.candidate)]
    assert {candidate.origin.move for candidate in shown} >= {"write"}
    selected = {e.question for e in VALID}
    for demo in (demo for candidate in shown for demo in demos_of(candidate)):
        assert demo["question"] in {e.question for e in TRAIN} - selected
        solved = SUM.solve(str(demo["question"]))
        assert solved is not None and demo["answer"] == solved.answer
        assert first_missing(str(demo["reasoning"]), len(list(labelled(str(demo["reasoning"]))))) is None


def test_a_wrong_label_never_becomes_a_demonstration() -> None:
    wrong = [dspy.Example(question=e.question, answer="13 cats").with_inputs("question") for e in TRAIN]
    optimizer = Optimizer()
    found = compile_with(abo(optimizer, steps=0), Target(), train=wrong).compilation
    assert not optimizer.named("WorkExample")
    for demo in (demo for trial in found.candidates for demo in demos_of(trial.candidate)):  # of the target's own runs
        solved = SUM.solve(str(demo["question"]))
        assert solved is not None and demo["answer"] == solved.answer
    assert any("do not earn the metric" in note for note in found.notes)


STEPS = always(task="Add.", steps=["Copy the numbers.", "Add them up.", "Give the sum."])


@pytest.mark.parametrize(
    ("kind", "revised"), [("skipped", None), ("misapplied", None), ("insufficient", 2), ("format", 3)]
)
def test_the_kind_of_the_first_deviation_decides_the_edit(kind: str, revised: int | None) -> None:
    optimizer = Optimizer({"WriteSteps": STEPS, "LocateDeviation": always(step=2, kind=kind, reason="So.")})
    found = compile_with(abo(optimizer, steps=1, initial=1, width=1), Target((0, 30, 40))).compilation
    asked = optimizer.named("ReviseStep")
    # Three children for one pair: of a step that only was not followed, the first leaves the steps as they are.
    assert {(a.inputs["step"], a.inputs["kind"]) for a in asked} == {(revised or 2, kind)}
    assert len(asked) == (3 if revised else 2) and all("found: So." in a.text("failures") for a in asked)
    assert (mended(found) if revised else moves(found)["demonstrate"]) > 0
    written = next(t.candidate for t in found.candidates if t.candidate.origin.move == "write")
    for trial in found.candidates:
        if trial.candidate.origin.move == "demonstrate":
            assert trial.candidate.origin.parents == (written.id,)
            assert trial.candidate.prompts["predict"].instructions == written.prompts["predict"].instructions
            assert demos_of(trial.candidate) != demos_of(written)
    failing = {str(a.inputs["inputs"]) for a in optimizer.named("LocateDeviation")}
    shown = {
        f"question: {demo['question']}"
        for t in found.candidates
        for demo in demos_of(t.candidate)
        if t.candidate.origin.move == "demonstrate"
    }
    assert revised or shown & failing


def test_a_missing_label_is_seen_without_asking() -> None:
    optimizer = Optimizer({"WriteSteps": STEPS})
    found = compile_with(abo(optimizer, steps=1), Target((0, 30, 40), "skip")).compilation
    assert not optimizer.named("LocateDeviation") and moves(found)["demonstrate"] > 0
    assert {(a.inputs["step"], a.inputs["kind"]) for a in optimizer.named("ReviseStep")} == {(3, "skipped")}


def test_replies_that_do_not_parse_edit_the_answers_form() -> None:
    optimizer = Optimizer({"WriteSteps": STEPS})
    compile_with(abo(optimizer, steps=1), Target((0, 30, 40), "mute"))
    assert not optimizer.named("LocateDeviation")
    assert {(a.inputs["step"], a.inputs["kind"]) for a in optimizer.named("ReviseStep")} == {(3, "format")}
    assert all("response: I cannot." in a.text("failures") for a in optimizer.named("ReviseStep"))


@pytest.mark.parametrize(
    "reply",
    [
        always(task="", steps=[]),
        always(task="x", steps=[" ", "-"]),
        always(task="x", steps=["y" * 5000]),
        always(task="x", steps="no list"),
        always(task="x", steps=[f"Do {k}." for k in range(9)]),
        lambda asked, draw: "",
        lambda asked, draw: "[[ ## completed ## ]]",
    ],
)
def test_unusable_steps_leave_the_student(reply: Callable[[Asked, int], Answer | str]) -> None:
    student = dspy.ChainOfThought("question -> answer")
    found = compile_with(abo(Optimizer({"WriteSteps": reply}), steps=1, width=1), Target(), program=student).compilation
    best = found.best.candidate.prompts["predict"]
    assert moves(found) == Counter(student=1) or parse_steps(best.instructions) == ("x", ("no list",))


@pytest.mark.parametrize(
    ("steps", "kept"),
    [([f"Do {k}." for k in range(8)], 8), (["Add.", "add.", "ADD."], 1), (["Step 1: Ünïcode 数", "给出总和 🙂"], 2)],
)
def test_odd_steps_are_brought_into_form(steps: list[str], kept: int) -> None:
    found = compile_with(abo(Optimizer({"WriteSteps": always(task="", steps=steps)}), steps=1), Target()).compilation
    written = next(t.candidate for t in found.candidates if t.candidate.origin.move == "write")
    parsed = parse_steps(written.prompts["predict"].instructions)
    assert parsed is not None and len(parsed[1]) == kept and parsed[0]


@pytest.mark.parametrize("name", ["WriteSteps", "WorkExample", "LocateDeviation", "ReviseStep"])
@pytest.mark.parametrize("reply", ["", "[[ ## step ## ]]\n99\n\n[[ ## kind ## ]]\nodd", "\x00🙂"])
def test_empty_and_odd_replies_break_nothing(name: str, reply: str) -> None:
    optimizer = Optimizer({name: lambda asked, draw: reply})
    found = compile_with(abo(optimizer, steps=1, width=1), Target(), train=TRAIN[:12], valid=VALID[:12]).compilation
    assert found.stopped_by is None and len(found.steps) == 2


@pytest.mark.parametrize("step", [0, -1, 4, 10**9])
def test_a_step_that_does_not_exist_is_ignored(step: int) -> None:
    optimizer = Optimizer({"WriteSteps": STEPS, "LocateDeviation": always(step=step, kind="insufficient", reason="")})
    compile_with(abo(optimizer, steps=1), Target((0, 30, 40)), train=TRAIN[:12], valid=VALID[:12])
    assert optimizer.named("LocateDeviation") and not optimizer.named("ReviseStep")


def test_nothing_is_edited_where_nothing_fails() -> None:
    optimizer = Optimizer()
    found = compile_with(abo(optimizer), Target((0, 100, 100))).compilation
    assert moves(found).keys() == {"student", "write"} and len(found.steps) == 3
    assert not optimizer.named("ReviseStep") and not optimizer.named("LocateDeviation")


def test_everything_may_fail() -> None:
    found = compile_with(abo(Optimizer()), Target((0, 0, 0))).compilation
    assert found.best.candidate == found.baseline.candidate and len(found.steps) == 3


def test_one_example_is_enough_to_run() -> None:
    found = compile_with(abo(Optimizer()), Target(), train=TRAIN[:1], valid=[]).compilation
    assert not any(demos_of(trial.candidate) for trial in found.candidates) and found.steps[0].train is None


def test_a_predictor_without_reasoning_has_the_demonstrations_in_its_instructions() -> None:
    target = Target((0, 20, 80), reasoning=False)
    found = compile_with(abo(Optimizer()), target, program=dspy.Predict("question -> answer")).compilation
    best = found.best.candidate.prompts["self"]
    assert best.demos == () and "Example of following the steps:" in best.instructions
    assert parse_steps(best.instructions) is not None and found.gain is not None and found.gain.difference > 0.3


def test_without_labels_demonstrations_come_from_successes() -> None:
    optimizer = Optimizer()
    found = compile_with(
        abo(optimizer), Target((40, 60, 90)), train=examples(24, 1, label=False), valid=examples(40, 2, label=False)
    ).compilation
    demos = demos_of(found.best.candidate)
    assert demos and all((s := SUM.solve(str(d["question"]))) and s.answer == d["answer"] for d in demos)


class Inner(dspy.Module):  # type: ignore[misc]
    """A module with one predictor, to be used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Answer."""
        return self.think(question=question)


class Twice(dspy.Module):  # type: ignore[misc]
    """Two sub-modules whose predictors have the same leaf name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Inner(), Inner()

    def forward(self, question: str) -> dspy.Prediction:
        """Answer, and answer again."""
        self.first(question=question)
        return self.second(question=question)


def test_two_predictors_take_turns_and_are_shown_their_own_successes() -> None:
    optimizer = Optimizer()
    found = compile_with(abo(optimizer, width=1), Target((40, 60, 90)), program=Twice()).compilation
    names = ("first.think.predict", "second.think.predict")
    assert found.best.candidate.names == names
    written = [t.candidate for t in found.candidates if t.candidate.origin.move == "write"]
    assert all(parse_steps(c.prompts[name].instructions) for c in written for name in names)
    by_id = {t.candidate.id: t.candidate for t in found.candidates}
    for trial in found.candidates:
        if trial.candidate.origin.move == "demonstrate" or trial.candidate.origin.move.endswith(" step"):
            parent = by_id[trial.candidate.origin.parents[0]]
            changed = [n for n in names if trial.candidate.prompts[n] != parent.prompts[n]]
            assert len(changed) == 1
    for demo in demos_of(found.best.candidate):
        assert (s := SUM.solve(str(demo["question"]))) and s.answer == demo["answer"]


def test_unicode_goes_through() -> None:
    def odd(asked: Asked, draw: int) -> Answer:
        return {"task": "Ädd 数字 🙂", "steps": ["Kopiere die Zahlen – alle.", "总和。"]}

    found = compile_with(abo(Optimizer({"WriteSteps": odd})), Target()).compilation
    assert "数字 🙂" in found.best.candidate.prompts["predict"].instructions


def test_the_plan_is_reached_and_never_exceeded() -> None:
    numbers: Counter[str] = Counter()
    lock = threading.Lock()

    def fresh(asked: Asked, draw: int) -> Answer:
        with lock:
            numbers["n"] += 1
            steps = [f"Do {numbers['n']}.", "Add.", "Give it."]
        return {"task": "Add.", "steps": steps, "move": "edit", "new_steps": steps[:1]}

    optimizer, target = (
        Optimizer(
            {
                "WriteSteps": fresh,
                "ReviseStep": fresh,
                "WorkExample": always(work=["no"]),
                "LocateDeviation": always(step=2, kind="insufficient", reason=""),
            }
        ),
        Target((0, 50, 50)),
    )
    compiler = abo(optimizer, steps=2, errors=3)
    found = compile_with(compiler, target).compilation
    plan = compiler.plan(1, 12, len(TRAIN))
    # initial 4 * (1 + 2 * 3) + 2 steps * 2 parents * (3 errors + 3 children * (1 + 2 * 3))
    assert plan.optimizer_calls == 4 * 7 + 2 * 2 * (3 + 3 * 7) == len(optimizer.asked)
    # (1 student + 4 + 2 * 2 * 3) * 12 + 5 minibatches of 16 + 3 training scores of 8
    # and 8 runs of each initial prompt that are looked at for demonstrations
    assert plan.program_runs == 17 * 12 + 5 * 16 + 3 * 8 + 4 * 8
    # The report's runs come on top; what was run before, e.g. for another minibatch, is not run again.
    assert 0.75 * plan.program_runs < target.calls - 2 * 12 <= plan.program_runs
    assert found.spent.by_role["optimizer"].calls == plan.optimizer_calls


@pytest.mark.parametrize("program", [dspy.ChainOfThought("question -> answer"), Twice()])
def test_the_result_does_not_depend_on_concurrency(program: dspy.Module) -> None:
    def outcome(in_flight: int) -> object:
        compiler = abo(Optimizer(latency=0.002), seed=3, max_in_flight=in_flight, steps=1)
        found = compile_with(compiler, Target((30, 50, 70), latency=0.001), program=program).compilation
        trials = [(t.candidate.to_json(), t.scores) for t in found.candidates]
        return found.best.candidate.to_json(), trials, found.steps, found.notes

    assert outcome(1) == outcome(64)


@pytest.mark.parametrize(
    ("option", "bad"),
    [
        ("width", 0),
        ("branch", 0),
        ("steps", -1),
        ("max_steps", 0),
        ("errors", 0),
        ("demos_per_predictor", 0),
        ("retries", -1),
        ("minibatch", 0),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_value(option: str, bad: int) -> None:
    with pytest.raises(ValueError, match=f"{option}.*{bad}"):
        ABO(exact, **{option: bad})  # type: ignore[arg-type]


def test_demonstrations_is_a_bool() -> None:
    with pytest.raises(TypeError, match=r"demonstrations.*3"):
        ABO(exact, demonstrations=3)  # type: ignore[arg-type]
