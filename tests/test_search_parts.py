"""The pure parts of a search: settings, evidence, texts, deviations, demonstrations, use of examples."""

from __future__ import annotations

import random
from typing import Literal

import dspy
import pytest

from cuesmith.signatures import StepWork, parse_steps
from cuesmith.teleprompters.behavior.steps import (
    Located,
    by_rule,
    first_missing,
    labelled,
    mend,
    most_frequent,
    step_list,
    steps_fault,
    under_labels,
)
from cuesmith.teleprompters.behavior.worked_examples import Behavior, Demonstration, ends_in, fault, followed
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin, Prompt, distinct, question_key
from cuesmith.teleprompters.runtime.evidence import (
    answer_fields,
    gold,
    has_reasoning,
    render_fields,
    shortened,
    shown_failure,
)
from cuesmith.teleprompters.runtime.guards import Guard
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, ProviderFailure, Scored, Scores, Step
from cuesmith.teleprompters.search.examples import Case, Casebook, Failure, Material, read_failure, within_reach
from cuesmith.teleprompters.search.scene import subsets, turn
from cuesmith.teleprompters.search.setting import Setting

COT = dspy.ChainOfThought("question -> answer").predict.signature
PLAIN = dspy.Signature("question -> answer")


class Examples:
    """The part of a run that shares out examples: train, select, predictors and seeded generators."""

    def __init__(self, train: list[dspy.Example], select: list[dspy.Example], program: dspy.Module) -> None:
        self.train, self.select = tuple(train), tuple(select)
        self.predictors = dict(program.named_predictors())

    def rng(self, *key: object) -> random.Random:
        """Return a seeded generator."""
        return random.Random(repr(key))


def example(question: str, answer: str = "1") -> dspy.Example:
    return dspy.Example(question=question, answer=answer).with_inputs("question")


@pytest.mark.parametrize(
    ("option", "bad"),
    [
        ("width", 0),
        ("branch", -1),
        ("steps", -3),
        ("initial", -1),
        ("scoring", 0),
        ("init_examples", 0),
        ("minibatch", 0),
        ("init_draws", 0),
        ("temperature", 0.0),
        ("threshold", float("nan")),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_value(option: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"{option}.*{bad}"):
        Setting(**{option: bad})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "bad"), [("width", "2"), ("steps", True), ("minibatch", 1.5), ("threshold", "1"), ("temperature", "1")]
)
def test_a_setting_of_the_wrong_type_is_refused(option: str, bad: object) -> None:
    with pytest.raises(TypeError, match=option):
        Setting(**{option: bad})  # type: ignore[arg-type]


def test_fields_are_rendered_as_name_and_value() -> None:
    assert render_fields({"question": "2+2?", "n": 3, "ok": True, "tags": ["ä", "b"]}) == (
        'question: 2+2?\nn: 3\nok: True\ntags: ["ä", "b"]'
    )
    assert shown_failure({"q": "x"}, {"a": 1}, "Step 1: y", "too big") == (
        "q: x\nexpected a: 1\nresponse: Step 1: y\nfeedback: too big"
    )
    long = shortened("a" * 3000 + "b" * 3000)
    assert len(long) < 4100 and long.startswith("aaa") and long.endswith("bbb")


def test_reasoning_is_no_answer() -> None:
    assert answer_fields(COT) == ("answer",) and has_reasoning(COT) and not has_reasoning(PLAIN)
    only = dspy.Signature("question -> reasoning")
    assert answer_fields(only) == ("reasoning",) and not has_reasoning(only)


def test_gold_is_what_the_signature_answers() -> None:
    one = dspy.Example(question="q", answer="3", accepted=["3", "three"]).with_inputs("question")
    assert gold(one, COT) == {"answer": "3"}
    assert gold(dspy.Example(question="q", label="x").with_inputs("question"), COT) == {"label": "x"}


@pytest.mark.parametrize(
    ("found", "steps"),
    [
        (["Step 1: Copy.", "2. Add.", " "], ("Copy.", "Add.")),
        (["Copy.", "copy.", "Add."], ("copy.", "Add.")),
        ([], ()),
        ("Copy.", ()),
        (None, ()),
        ([3, None], ()),
        ([f"Do {k}." for k in range(30)], tuple(f"Do {k}." for k in range(30))),
        (["写下所有数字。", "相加。"], ("写下所有数字。", "相加。")),
    ],
)
def test_steps_are_brought_into_form(found: object, steps: tuple[str, ...]) -> None:
    assert step_list(found) == steps


@pytest.mark.parametrize(
    ("steps", "longest", "fault"),
    [
        ([], 4000, "blank"),
        (["Add."], 4000, None),
        (["x" * 601], 4000, "too long"),
        (["x" * 601], 20_000, None),
        (["Write [[ ## answer ## ]]."], 4000, "field header"),
        ([f"Do {k}." for k in range(8)], 4000, None),
        ([f"Do {k}." for k in range(9)], 4000, "too many steps"),
        (["Add this.", "Say it."], 12, "too long"),
    ],
)
def test_steps_are_used_whole_or_not_at_all(steps: list[str], longest: int, fault: str | None) -> None:
    assert steps_fault(steps, 8, Guard({}, longest, {})) == fault


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ('"Add them."', "Add them."),
        ("```\nAdd.\n```", "Add."),
        ("  ", None),
        ("x" * 4001, None),
        ("``````", "``````"),
        ("Use [[ ## answer ## ]]", None),
        ('"a" or "b"', '"a" or "b"'),
        ("Half a \ud83c.", None),
    ],
)
def test_instructions_are_brought_into_form_or_refused(text: str, usable: str | None) -> None:
    assert Guard.of([], [], {}).usable("p", text) == usable


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("Step 1: a\nStep 2: b\nStep 3: c", None),
        ("Step 1: a\nStep 3: c", 2),
        ("so it is", 1),
        ("", 1),
        ("Step 2: b\nStep 1: a\nStep 3: c", 2),
        ("**Step 1:** a **step 2**: b STEP 3. c", None),
        ("Step 1: a", 2),
        ("Step 1: a\nStep 1: b\nStep 2: c\nStep 3: d", None),
    ],
)
def test_the_first_label_out_of_order_is_found(text: str, missing: int | None) -> None:
    assert first_missing(text, 3) == missing


def test_labelled_work_is_read_in_the_texts_order() -> None:
    assert list(labelled("Hm. Step 1: 3 4\nStep 2: **7**")) == [(1, "3 4"), (2, "7")]


@pytest.mark.parametrize(
    ("found", "work"),
    [
        (["3 4", "7"], "Step 1: 3 4\nStep 2: 7"),
        (["Step 1: 3 4", "**Step 2:** 7"], "Step 1: 3 4\nStep 2: 7"),
        (["Step 1: 3 4\nStep 2: 7"], "Step 1: 3 4\nStep 2: 7"),
        ([" 1. red\n2. old ", ""], "Step 1: 1. red\n2. old\nStep 2: "),
        (["See step 2: no"], "Step 1: See step 2: no"),
        ([], ""),
    ],
)
def test_labels_of_work_are_written_for_the_model(found: list[str], work: str) -> None:
    assert under_labels([StepWork(step="Copy.", result=text) for text in found]) == work
    assert under_labels([StepWork.model_validate(text) for text in found]) == work, "texts alone are read too"


@pytest.mark.parametrize("found", ["3 4", None, [3]])
def test_what_is_no_work_is_none(found: object) -> None:
    assert under_labels(found) == ""


def failure(reasoning: str | None, parsed: bool = True) -> Failure:
    return Failure(example("q"), {}, {}, reasoning or "", reasoning, parsed, "")


@pytest.mark.parametrize(
    ("reasoning", "parsed", "found"),
    [
        ("Step 1: a\nStep 2: b", True, None),
        ("Step 2: b", True, (1, "skipped")),
        ("Step 1: a", True, (2, "skipped")),
        ("Step 1: a", False, (2, "skipped")),
        ("nonsense", False, (2, "format")),
        (None, True, None),
        ("Step 1: a\nStep 2: b", False, (2, "format")),
        (None, False, (2, "format")),
    ],
)
def test_rules_come_before_the_model(reasoning: str | None, parsed: bool, found: object) -> None:
    assert by_rule(failure(reasoning, parsed), 2) == found


def test_the_most_frequent_deviation_comes_first_and_ties_go_to_the_earlier_step() -> None:
    found = [(3, "format"), (2, "misapplied"), (2, "skipped"), (3, "format"), (1, "insufficient")]
    located = [Located(failure(""), step, kind) for step, kind in found]  # type: ignore[arg-type]
    assert most_frequent(located) == [(3, "format"), (1, "insufficient"), (2, "skipped"), (2, "misapplied")]
    assert most_frequent([]) == []


def test_a_reply_that_cannot_be_used_is_blamed_on_its_writer() -> None:
    done = (Step("draft", {"question": "q"}, {"answer": "x"}),)
    broken = ParseFailure("no field", "Step 1: a", done)
    assert read_failure(example("q"), broken, "draft", ["draft", "check"], COT) is None
    blamed = read_failure(example("q"), broken, "check", ["draft", "check"], COT)
    assert blamed is not None and not blamed.parsed and blamed.response == "Step 1: a"
    assert read_failure(example("q"), ProviderFailure("down"), "draft", ["draft"], COT) is None
    empty = read_failure(
        example("q"), Scored(0.0, "", (Step("p", {}, {"reasoning": "r", "answer": " "}),)), "p", ["p"], COT
    )
    assert empty is not None and not empty.parsed


@pytest.mark.parametrize(
    ("text", "outputs", "agrees"),
    [
        ("3 + 4 = 7", {"answer": "7"}, True),
        ("The answer is 7.", {"answer": 7}, True),
        ("17", {"answer": "7"}, False),
        ("-7", {"answer": "7"}, False),
        ("7.5", {"answer": "7"}, False),
        ("7, not 8", {"answer": "7"}, False),
        ("True.", {"answer": True}, True),
        ("cat dog", {"a": "cat", "b": "dog"}, True),
        ("dog", {"a": "cat"}, False),
        ("cat", {"a": "cat", "b": "dog"}, False),
        ("所以答案是三", {"answer": "三"}, True),
        ("x", {"answer": "🙂"}, True),
        ("a, b", {"answer": ["a", "b"]}, True),
        ("in short", {"answer": "word " * 20}, True),
        ("Ｃａｔ", {"a": "cat"}, True),
    ],
)
def test_work_ends_in_the_right_answer(text: str, outputs: dict[str, object], agrees: bool) -> None:
    assert ends_in(text, outputs) is agrees


@pytest.mark.parametrize(
    ("work", "ok"),
    [
        ("Step 1: 3 4\nStep 2: 7", True),
        ("Step 1: 3 4 7", False),
        ("Step 2: 7\nStep 1: 3 4", False),
        ("", False),
        ("Step 1: 3 4\nStep 2: 8", False),
        ("Step 1:\nStep 2: 7", False),
        ("Step 1: 3\nStep 2: 7\nStep 3: 7", False),
        ("Step 1: Copy the numbers\nStep 2: 7", False),
        ("Step 1: [[ ## answer ## ]]\nStep 2: 7", False),
        ("Step 1: " + "x" * 4001 + "\nStep 2: 7", False),
    ],
)
def test_a_demonstration_follows_every_step_to_the_answer(work: str, ok: bool) -> None:
    assert (fault(work, ["Copy the numbers.", "Add them up."], {"answer": "7"}) is None) is ok


def test_runs_that_follow_their_steps_become_demonstrations() -> None:
    def ran(work: str, score: float = 1.0, answer: str = "7") -> Scored:
        trace = (Step("p", {"question": "3 4"}, {"answer": answer}, work),)
        return Scored(score=score, feedback="", trace=trace)

    steps, good = ["Copy the numbers.", "Add them up."], "Step 1: 3 4\nStep 2: 7"
    outcomes: list[Outcome] = [ran(good), ran(good, 0.5), ran("Step 2: 7"), ran(""), ParseFailure("no field", good, ())]
    asked = tuple(example(str(k)) for k in range(len(outcomes)))
    scores = Scores(Candidate({"p": Prompt("Add.")}), asked, tuple(outcomes))
    [one] = followed(scores, "p", PLAIN, steps, 1.0)
    assert one == Demonstration(Case(asked[0], {"question": "3 4"}, {"answer": "7"}, True), good)
    assert len(followed(scores, "p", PLAIN, steps, 0.5)) == 2 and not followed(scores, "other", PLAIN, steps, 1.0)
    assert not followed(scores, "p", COT, steps, 1.0)  # where there is a reasoning field, the work belongs there


def test_a_behaviour_goes_where_the_predictor_thinks() -> None:
    one = Demonstration(Case(example("3 4"), {"question": "3 4"}, {"answer": "7"}, False), "Step 1: 3 4\nStep 2: 7")
    behavior = Behavior("Add.", ("Copy.", "Add up."), (one,))
    thinking, plain = behavior.prompt(COT), behavior.prompt(PLAIN)
    assert dict(thinking.demos[0].values) == {"question": "3 4", "reasoning": one.work, "answer": "7"}
    assert [name for name, _ in thinking.demos[0].values] == ["question", "reasoning", "answer"]
    assert plain.demos == () and "question: 3 4\nStep 1: 3 4\nStep 2: 7\nanswer: 7" in plain.instructions
    for prompt in (thinking, plain):
        assert parse_steps(prompt.instructions) == ("Add.", ("Copy.", "Add up."))


def test_no_demonstration_is_made_of_a_selected_or_watched_question() -> None:
    train = [example(f"q{k}") for k in range(12)] + [example("Q1 "), example("s0"), example("q2", "other")]
    run = Examples(train, [example("S0", "2"), example("s1")], dspy.Predict("question -> answer"))
    material = Material.of(run, Setting())  # type: ignore[arg-type]
    keys = [question_key(e) for e in material.evidence]
    assert sorted(keys) == sorted(question_key(example(f"q{k}")) for k in range(12))
    assert len(material.watched) == 4 and {*material.watched, *material.workable} == {*material.evidence}
    assert not {*map(question_key, material.watched)} & {*map(question_key, material.workable)}


def test_a_single_example_is_evidence_but_no_demonstration() -> None:
    run = Examples([example("q")], [example("q")], dspy.Predict("question -> answer"))
    material = Material.of(run, Setting())  # type: ignore[arg-type]
    assert len(material.evidence) == 1 and material.watched == material.workable == ()


def test_cases_come_from_labels_or_from_successes() -> None:
    program = dspy.Predict(
        dspy.Signature("question -> answer: list[int], kind: Literal['a', 'b']", custom_types={"Literal": Literal})
    )
    run = Examples([], [], program)
    book = Casebook(run, Setting())  # type: ignore[arg-type]
    bare = dspy.Example(question="q").with_inputs("question")
    assert book.case("self", bare) is None and book.needs_traces([bare])
    trace = (Step("self", {"question": "q", "extra": "z"}, {"answer": "[1, 2]", "kind": "a"}),)
    candidate = Candidate({"self": Prompt("x")})
    book.learn([Scores(candidate, (bare,), (Scored(0.5, "", trace),))])
    assert book.case("self", bare) is None
    book.learn([Scores(candidate, (bare,), (Scored(1.0, "", trace),))])
    case = book.case("self", bare)
    assert case is not None and case.judged
    assert case.inputs == {"question": "q"} and case.outputs == {"answer": [1, 2], "kind": "a"}
    full = dspy.Example(question="q", answer=[3], kind="b").with_inputs("question")
    direct = book.case("self", full)
    assert direct is not None and not direct.judged and direct.outputs == {"answer": [3], "kind": "b"}
    assert book.shown("self", [full]) == ["question: q\nanswer: [3]\nkind: b"]


def test_samples_are_seeded_and_never_too_large() -> None:
    run = Examples([], [], dspy.Predict("question -> answer"))
    pool = [example(f"q{k}") for k in range(3)]
    once, again = (subsets(run, pool, 4, 5, "x") for _ in range(2))  # type: ignore[arg-type]
    assert [len(sample) for sample in once] == [3] * 5
    assert [[e.question for e in s] for s in once] == [[e.question for e in s] for s in again]


def test_equal_prompts_are_one_candidate_the_first() -> None:
    a, b = Candidate({"p": Prompt("a")}, Origin("one")), Candidate({"p": Prompt("b")})
    twin = Candidate({"p": Prompt("a")}, Origin("two"))
    found = distinct([a, b, twin])
    assert [c.origin.move for c in found] == ["one", "student"]


def test_predictors_take_turns() -> None:
    assert [turn(["a", "b"], step) for step in (1, 2, 3)] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("number", "move", "new", "done", "steps"),
    [
        (2, "edit", ("X",), "edit", ("a", "X", "c")),
        (2, "split", ("X", "Y"), "split", ("a", "X", "Y", "c")),
        (2, "add", ("X",), "add", ("a", "X", "b", "c")),
        (1, "add", ("X", "A"), "add", ("X", "a", "b", "c")),
        (2, "delete", (), "delete", ("a", "c")),
        (2, "delete", ("X",), "edit", ("a", "X", "c")),
        (2, "edit", ("a", "X", "c"), "edit", ("a", "X", "c")),
        (2, "edit", ("X", "Y"), "split", ("a", "X", "Y", "c")),
        (2, "edit", (), "edit", ()),
        (2, "edit", ("b",), "edit", ()),
        (2, "add", ("b",), "add", ()),
        (3, "split", ("c", "X"), "split", ("a", "b", "c", "X")),
        (2, None, ("X",), "edit", ("a", "X", "c")),
    ],
)
def test_one_step_is_mended_and_all_others_stay(
    number: int, move: str | None, new: tuple[str, ...], done: str, steps: tuple[str, ...]
) -> None:
    assert mend(("a", "b", "c"), number, move, new) == (done, steps)


@pytest.mark.parametrize(
    ("rows", "threshold"),
    [
        ([[1.0, 0.0, 0.0, 0.0]], 1.0),
        ([[0.0, 0.0, 0.0, 0.0]], 1.0),
        ([], 1.0),
        ([[None, None]], 1.0),
        ([[0.1, 0.2, 0.3, 0.4]], 0.3),
        ([[0.9, 0.9, 0.3, 0.3]], 0.9),
        ([[0.9] * 4, [1.0, 0.0, 0.0, 0.0]], 1.0),
        ([[0.5, None, 0.7, 0.6, 0.8]], 0.7),
        ([[0.0, 0.0, 0.0, 0.4]], 0.4),
        ([[0.5] * 4], 1.0),
        ([[-3.0, -2.0, -1.5, -1.0]], -1.5),
    ],
)
def test_a_success_is_within_reach(rows: list[list[float | None]], threshold: float) -> None:
    assert within_reach(1.0, rows) == threshold


def test_half_of_an_example_is_a_copy_and_a_fact_is_none() -> None:
    words = " ".join(f"w{k}" for k in range(30))
    example = dspy.Example(text=words, label="a transfer that has not arrived counts as pending here")
    example = example.with_inputs("text")
    guard = Guard.of([example, dspy.Example(text="short", label="x").with_inputs("text")], [], {})
    assert guard.fault("Say " + " ".join(words.split()[:14])) is None
    assert guard.fault("Say " + " ".join(words.split()[:15])) == "copied example"
    assert guard.fault("Remember: a transfer that has not arrived counts") is None
    assert guard.fault("Remember: a transfer that has not arrived counts as pending") == "copied example"
    long = dspy.Example(text=" ".join(f"v{k}" for k in range(400)), label="x").with_inputs("text")
    assert Guard.of([long, example], [], {}).fault(" ".join(f"v{k}" for k in range(40))) == "copied example"
