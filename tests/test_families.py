"""The task families solve their questions exactly."""

from __future__ import annotations

import random

import pytest

from cuesmith.modules.embedded.families import FAMILIES, is_held_out, render_work


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("held_out", [False, True])
def test_samples_are_solved(name: str, held_out: bool) -> None:
    """Every drawn question has a solution with one text per step, on its side of the split."""
    family, rng = FAMILIES[name], random.Random(name)
    for _ in range(200):
        question = family.sample(rng, held_out=held_out)
        solution = family.solve(question)
        assert solution is not None
        assert len(solution.work) == len(family.steps)
        assert solution.work[-1] == solution.answer
        assert is_held_out(question) == held_out
        family.answer_type(solution.answer)


def test_looks_are_shared() -> None:
    """Families of one look solve each other's questions, those of another look do not (any text is words)."""
    rng = random.Random(0)
    for family in FAMILIES.values():
        question = family.sample(rng, held_out=False)
        for other in FAMILIES.values():
            if other.look != "words":
                assert (other.solve(question) is not None) == (other.look == family.look)


ANSWERS = [
    ("first", "cat dog owl", "cat"), ("last", "cat dog owl", "owl"),
    ("reverse", "cat dog owl", "owl dog cat"),
    ("count", "cat dog owl", "3"), ("sum", "3 4 5", "12"), ("sum", "3, 4 and 5", "12"),
    ("max", "3 9 5", "9"), ("min", "7 3 5", "3"),
    ("objects", "I have a potato, three heads of broccoli, a cabbage, and two stalks of celery.", "7"),
    ("objects", "I have a cow and four cars.", "5"),
    ("items", "I have a cow, four cars, and a flute.", "3"),
    ("animals", "I have a cow, four mice, two peaches, and a flute.", "5"),
    ("fruits", "I have a cow, four mice, two peaches, and a flute.", "2"),
    ("animals", "I have two plums, and a drum.", "0"),
    ("navigate", "Always face forward. Take 10 steps forward. Take 4 steps backward. Take 6 steps backward.", "True"),
    ("navigate", "Turn left. Take 2 steps. Turn around. Take 8 steps.", "False"),
    ("navigate", "Turn left.", "True"),
    ("position", "Turn left. Take 2 steps. Turn right. Take 1 step.", "-2 1"),
    ("position", "Always face forward. Take 3 steps right. Take 1 step backward.", "3 -1"),
    ("bool", "not True or False and True", "False"),
    ("bool", "not False and True", "True"),
    ("trues", "not True or not False and True", "2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "question", "answer"), ANSWERS)
def test_known_answers(name: str, question: str, answer: str) -> None:
    """Solutions written by hand."""
    solution = FAMILIES[name].solve(question)
    assert solution is not None
    assert solution.answer == answer


@pytest.mark.parametrize("text", ["", "Why?", "I have nothing.", "Take a walk.", "Turn left. Jump."])
def test_other_texts_have_no_solution(text: str) -> None:
    """Text of another form is refused."""
    for name in ("sum", "objects", "navigate", "bool"):
        assert FAMILIES[name].solve(text) is None


def test_work_is_labelled() -> None:
    """The reasoning names each step."""
    solution = FAMILIES["sum"].solve("3 4 5")
    assert solution is not None
    assert render_work(solution) == "Step 1: 3 4 5\nStep 2: 3 + 4 = 7, 7 + 5 = 12\nStep 3: 12"
