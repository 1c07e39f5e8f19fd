"""Tasks: labels, splits that hold, and files that are wrong in one clear line."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuesmith.modules.embedded.families import FAMILIES, is_held_out
from cuesmith.programs.tasks import (
    ExactMatch,
    Row,
    Sizes,
    Task,
    TaskError,
    build,
    generate,
    load,
    load_bigbench,
    load_csv,
    load_hugging_face,
    load_jsonl,
    normalise,
)

BIGBENCH = next((p for each in Path(__file__).parents if (p := each / "shared" / "data" / "bigbench").is_dir()), None)
SMALL = Sizes(4, 4, 6)


def splits(task: Task) -> list[tuple[dspy.Example, ...]]:
    return [task.train, task.validation, task.test]


def questions(task: Task) -> list[list[str]]:
    return [[example.question for example in split] for split in splits(task)]


def rows(count: int) -> list[Row]:
    return [Row({"question": f"question {k}"}, (str(k),)) for k in range(count)]


def write_json(path: Path, examples: object, **more: object) -> Path:
    path.write_text(json.dumps({"name": "t", "task_prefix": "Say it.\n", "examples": examples, **more}))
    return path


# --- generated ---


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_generated_task_is_disjoint_solvable_and_held_out(name: str) -> None:
    task = generate(name, seed=3)
    assert [len(split) for split in splits(task)] == [40, 100, 250]
    asked = [question for split in questions(task) for question in split]
    assert len({" ".join(q.casefold().split()) for q in asked}) == 390
    assert all(is_held_out(question) for question in asked)
    for example in task.test:
        solution = FAMILIES[name].solve(example.question)
        assert solution is not None and solution.answer == example.answer
        assert set(example.inputs().keys()) == {"question"}


def test_generating_is_repeatable_and_seeded() -> None:
    assert questions(generate("sum", seed=1)) == questions(generate("sum", seed=1))
    assert questions(generate("sum", seed=1)) != questions(generate("sum", seed=2))


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(TaskError, match="no task family 'poetry'; choose one of animals, "):
        generate("poetry")


# --- splits ---


def test_splits_do_not_depend_on_the_order_of_rows() -> None:
    forward = build("t", "", rows(40), sizes=SMALL)
    backward = build("t", "", rows(40)[::-1], sizes=SMALL)
    assert questions(forward) == questions(backward)
    assert questions(forward) != questions(build("t", "", rows(40), sizes=SMALL, seed=1))


def test_the_same_content_never_stands_in_two_splits() -> None:
    doubled = [Row({"question": f"  QUESTION   {k} "}, ("other",)) for k in range(30)]
    task = build("t", "", rows(30) + doubled, sizes=Sizes(10, 10, 10))
    asked = [question for split in questions(task) for question in split]
    assert len({" ".join(q.casefold().split()) for q in asked}) == len(asked) == 30
    assert "other" not in {example.answer for split in splits(task) for example in split}


@pytest.mark.parametrize(
    ("count", "wanted", "got"),
    [
        (12, Sizes(), (4, 4, 4)),
        (16, Sizes(), (5, 5, 6)),
        (20, Sizes(), (7, 7, 6)),
        (25, Sizes(), (10, 10, 5)),
        (30, Sizes(), (10, 10, 10)),
        (35, Sizes(40, 60, 250), (11, 11, 13)),
        (181, Sizes(), (40, 60, 81)),
        (250, Sizes(), (40, 83, 127)),
        (389, Sizes(), (40, 100, 249)),
        (390, Sizes(), (40, 100, 250)),
        (60, Sizes(40, 60, 12), (20, 28, 12)),
        (29, Sizes(10, 10, 10), (10, 10, 9)),
    ],
)
def test_few_rows_are_for_train_and_validation_first(count: int, wanted: Sizes, got: tuple[int, int, int]) -> None:
    task = build("t", "", rows(count), sizes=wanted)
    assert tuple(len(split) for split in splits(task)) == got


@given(rows=st.integers(3, 1000), train=st.integers(1, 300), validation=st.integers(1, 300), test=st.integers(1, 300))
def test_no_split_is_empty_or_larger_than_wanted(rows: int, train: int, validation: int, test: int) -> None:
    wanted = Sizes(train, validation, test)
    found = wanted.within(rows)
    assert found.total == min(rows, wanted.total)
    assert found.train <= train and found.validation <= validation and found.test <= test


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(TaskError, match="11 different rows, at least 12"):
        build("t", "", rows(11))


def test_a_split_of_nothing_is_refused() -> None:
    with pytest.raises(TaskError, match="validation split needs at least 1"):
        Sizes(validation=0)


# --- labels and the metric ---


@pytest.mark.parametrize(
    ("answer", "right"),
    [("3", True), (" Three. ", True), ("THREE", True), ('"3"', True), ("4", False), ("33", False), ("", False)],
)
def test_any_accepted_target_counts(answer: str, right: bool) -> None:
    example = dspy.Example(question="?", answer="3", accepted=("3", "three")).with_inputs("question")
    assert ExactMatch()(example, dspy.Prediction(answer=answer)) is right


def test_typed_predictions_and_plain_examples_are_scored() -> None:
    example = dspy.Example(question="?", answer="True").with_inputs("question")
    assert ExactMatch()(example, dspy.Prediction(answer=True))
    assert not ExactMatch()(example, dspy.Prediction(answer=False))


def test_a_missing_field_is_an_error_and_no_zero() -> None:
    with pytest.raises(AttributeError):
        ExactMatch("label")(dspy.Example(label="a"), dspy.Prediction(answer="a"))


@pytest.mark.parametrize(("text", "plain"), [("(a)", "(a)"), ("?", "?"), (".5", ".5"), ("-3", "-3"), ("A  b.", "a b")])
def test_normalise_keeps_what_carries_meaning(text: str, plain: str) -> None:
    assert normalise(text) == plain


# --- BIG-bench ---


def test_targets_may_be_a_text_or_accepted_texts(tmp_path: Path) -> None:
    examples = [{"input": f"q{k}", "target": ["three", "3"] if k % 2 else "three"} for k in range(14)]
    task = load_bigbench(write_json(tmp_path / "t.json", examples), sizes=SMALL)
    labels = {e.question: (e.answer, e.accepted) for split in splits(task) for e in split}
    assert labels["q1"] == ("3", ("3", "three")) and labels["q2"] == ("three", ("three",))
    assert task.description == "Say it." and task.signature == "question -> answer"


def test_target_scores_accept_the_best_choices(tmp_path: Path) -> None:
    examples = [{"input": f"q{k}", "target_scores": {"a": 1, "b": 1.0, "c": 0}} for k in range(14)]
    path = write_json(tmp_path / "task.json", examples)
    task = load(path, sizes=SMALL)
    assert task.train[0].accepted == ("a", "b") and task.name == tmp_path.name
    assert task.train[0].question.endswith("\n  choice: a\n  choice: b\n  choice: c")
    bare = load(write_json(path, examples, append_choices_to_input=False), sizes=SMALL)
    assert "choice" not in bare.train[0].question


@pytest.mark.parametrize(
    ("example", "problem"),
    [
        ({"target": "x"}, "'input' is missing"),
        ({"input": "", "target": "x"}, "'input' is empty"),
        ({"input": ["a"], "target": "x"}, "'input' must be a text"),
        ({"input": "q"}, "needs 'target' or 'target_scores'"),
        ({"input": "q", "target": []}, "'target' must be"),
        ({"input": "q", "target": {"a": 1}}, "'target' must be"),
        ({"input": "q", "target_scores": {"a": "1"}}, "needs 'target' or 'target_scores'"),
        ({"input": "q", "target_scores": {"a": 0}}, "no choice of 'target_scores' has a positive score"),
        ({"input": "q", "target_scores": {}}, "no choice of 'target_scores' has a positive score"),
        ("q", "expected an object"),
    ],
)
def test_a_wrong_example_is_named(tmp_path: Path, example: object, problem: str) -> None:
    good = [{"input": f"q{k}", "target": "x"} for k in range(14)]
    path = write_json(tmp_path / "t.json", [*good[:4], example, *good])
    with pytest.raises(TaskError) as caught:
        load(path)
    assert f"{path}: example 5: {problem}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"examples":\n [1,\n}', "line 3: not JSON"),
        ("[]", "'examples' must be a list"),
        ("{}", "'examples' must be a list"),
        ('{"examples": []}', "0 different rows"),
        ("[" * 100_000, "not a task"),
        ('{"examples": ' + "1" * 5000 + "}", "not a task"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(TaskError, match=problem) as caught:
        load_bigbench(path)
    assert "\n" not in str(caught.value) and "wrong" in str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"question,answer\n\xff\x00,1\n")
    with pytest.raises(TaskError, match="line 2: not text"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"none\.jsonl: No such file"):
        load(tmp_path / "none.jsonl")


@pytest.mark.skipif(BIGBENCH is None, reason="the BIG-bench files are not on this machine")
@pytest.mark.parametrize("name", ["object_counting", "navigate", "snarks", "question_selection"])
def test_real_bigbench_files_load(name: str) -> None:
    assert BIGBENCH is not None
    task = load_bigbench(BIGBENCH / f"{name}.json")
    asked = [question for split in questions(task) for question in split]
    assert len(asked) == len(set(asked)) == (181 if name == "snarks" else 390)
    if name == "object_counting":
        assert all(example.answer.isdigit() and len(example.accepted) == 2 for example in task.test)
    if name == "navigate":
        assert {example.answer for example in task.test} == {"True", "False"}


# --- tables ---


def test_jsonl_reads_chosen_columns_and_lists_of_answers(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"a": f"x\u2028{k}", "b": k, "out": ["one", "1"], "other": None}) for k in range(14)]
    path.write_text("\n\n".join(lines) + "\n")
    task = load_jsonl(path, inputs=("a", "b"), output="out", sizes=SMALL)
    assert task.signature == "a, b -> out" and task.metric == ExactMatch("out")
    assert task.train[0].accepted == ("1", "one") and isinstance(task.train[0].b, str)
    assert set(task.train[0].inputs().keys()) == {"a", "b"}


def test_csv_keeps_quoted_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("question,answer\n" + "".join(f'"q{k}\nmore",{k}\n' for k in range(14)), newline="")
    assert all("\n" in question for split in questions(load(path, sizes=SMALL)) for question in split)


@pytest.mark.parametrize(
    ("reader", "name", "text", "problem"),
    [
        (load_jsonl, "t.jsonl", '{"question": "q", "answer": "a"}\n{"question": 1\n', "line 2: not JSON"),
        (load_jsonl, "t.jsonl", '{"question": "q", "answer": null}\n', "line 1: 'answer' is missing"),
        (load_jsonl, "t.jsonl", '{"question": "q", "answer": []}\n', "line 1: 'answer' has no accepted"),
        (load_jsonl, "t.jsonl", '{"question": {}, "answer": "a"}\n', "line 1: 'question' must be a text"),
        (load_jsonl, "t.jsonl", "3\n", "line 1: expected an object"),
        (load_csv, "t.csv", "question,label\nq,a\n", "line 1: no column 'answer'; there are: question, label"),
        (load_csv, "t.csv", "", "line 1: no column 'question'; there are: none"),
        (load_csv, "t.csv", "question,answer\nq,a\nr\n", "line 3: 'answer' is missing"),
        (load_csv, "t.csv", 'question,answer\n"q,a\n', "unexpected end of data"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, reader: Callable[..., Task], name: str, text: str, problem: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(TaskError) as caught:
        reader(path)
    assert problem in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["my text", "class", "instructions", "accepted", "inputs", "_hidden", ""])
def test_columns_that_cannot_be_fields_are_refused(tmp_path: Path, column: str) -> None:
    with pytest.raises(TaskError, match="cannot be the name of a field"):
        load_csv(tmp_path / "t.csv", inputs=(column,))


def test_a_column_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="'answer' is given twice"):
        load_csv(tmp_path / "t.csv", inputs=("answer",))
    with pytest.raises(TaskError, match="no input column"):
        load_csv(tmp_path / "t.csv", inputs=())


# --- Hugging Face ---


class FakeTable(list[dict[str, object]]):
    """Rows as `datasets` gives them, with a class-label column."""

    features = types.MappingProxyType({"label": types.SimpleNamespace(names=["bad", "good"])})


def test_hugging_face_class_labels_become_names(monkeypatch: pytest.MonkeyPatch) -> None:
    table = FakeTable({"text": f"review {k}", "label": k % 2} for k in range(20))
    fake = types.SimpleNamespace(load_dataset=lambda name, config, split: table)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    task = load_hugging_face("reviews", inputs=("text",), output="label", sizes=SMALL)
    assert {e.label for split in splits(task) for e in split} == {"bad", "good"}
    table.append({"text": None, "label": 0})
    with pytest.raises(TaskError, match=r"reviews\[train\]: row 20: 'text' is missing"):
        load_hugging_face("reviews", inputs=("text",), output="label")


def test_without_datasets_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match="needs the package 'datasets'"):
        load_hugging_face("reviews")
