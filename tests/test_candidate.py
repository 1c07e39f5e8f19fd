"""Candidates: identity by content, JSON, and the way into a program and out of it."""

import copy
import json
import pickle
import threading
import time
from typing import Literal

import dspy
import pytest
from dspy.utils import DummyLM
from hypothesis import given, settings
from hypothesis import strategies as st
from processes_support import Forked
from pydantic import BaseModel, ValidationError

from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, Origin, Prompt, digest, example_id, to_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
DEMOS = st.dictionaries(st.text(max_size=6), JSON, max_size=3).map(Demo.of)
PROMPTS = st.builds(Prompt, st.text(max_size=20), st.lists(DEMOS, max_size=2).map(tuple))
ORIGINS = st.builds(Origin, st.text(max_size=5), st.tuples(st.text(max_size=3)), st.tuples(st.text(max_size=3)))
CANDIDATES = st.builds(Candidate, st.dictionaries(st.text(max_size=6), PROMPTS, max_size=3), ORIGINS)


class Place(BaseModel):
    """A structured output."""

    city: str
    zone: int = 0


class Typed(dspy.Signature):  # type: ignore[misc]
    """Answer about the words."""

    words: list[str] = dspy.InputField()
    limit: int = dspy.InputField()
    label: Literal["yes", "no"] = dspy.OutputField()
    sure: bool = dspy.OutputField()
    place: Place = dspy.OutputField()


class Two(dspy.Module):  # type: ignore[misc]
    """Two predictors, one of a nested module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.ChainOfThought("question -> answer")
        self.second = dspy.Predict(Typed)


def _typed_example() -> dspy.Example:
    return dspy.Example(words=["a", "b"], limit=3, label="yes", sure=True, place=Place(city="Rome", zone=2))


@given(CANDIDATES)
@settings(max_examples=25, deadline=None)
def test_json_round_trip_keeps_identity_and_lineage(candidate: Candidate) -> None:
    back = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    assert back == candidate and back.id == candidate.id and hash(back) == hash(candidate)
    assert back.origin == candidate.origin and back.names == candidate.names and back.size == candidate.size


@given(CANDIDATES)
@settings(max_examples=20, deadline=None)
def test_pickle_and_copies(candidate: Candidate) -> None:
    assert copy.deepcopy(candidate) is candidate
    for other in (pickle.loads(pickle.dumps(candidate)), copy.copy(candidate)):
        assert other == candidate and other.origin == candidate.origin
        with pytest.raises(TypeError):
            other.prompts["new"] = Prompt("")  # type: ignore[index]


@given(PROMPTS, PROMPTS)
@settings(max_examples=25, deadline=None)
def test_identity_is_the_content(a: Prompt, b: Prompt) -> None:
    one, two = Candidate({"p": a}, Origin("x")), Candidate({"p": b}, Origin("y", ("z",)))
    assert (one == two) == (a == b) == (one.id == two.id)
    assert one == Candidate({"p": a}) and one != "p" and len({one, Candidate({"p": a})}) == 1
    assert one != Candidate({"q": a})


def test_id_is_the_same_in_another_process() -> None:
    code = (
        "from cuesmith.teleprompters.runtime.candidate import *; import dspy;"
        "c = Candidate({'p': Prompt('Say \u00e9.', (Demo.of({'q': ['a', 1], 'a': {'x': None}}),))});"
        "print(c.id, example_id(dspy.Example(q={'b', 'a', 'c'}, a=frozenset({1, 2})).with_inputs('q')))"
    )
    run = Forked(code).done()
    here = Candidate({"p": Prompt("Say é.", (Demo.of({"q": ["a", 1], "a": {"x": None}}),))})
    example = dspy.Example(q={"b", "a", "c"}, a=frozenset({1, 2})).with_inputs("q")
    assert run.stdout == f"{here.id} {example_id(example)}\n"
    assert len(here.id) == 16 and int(here.id, 16) >= 0


def test_demo_access_hash_and_equality() -> None:
    demo = Demo.of({"words": ["a", "b"], "n": 1})
    assert demo["words"] == ["a", "b"] and "n" in demo and "other" not in demo
    with pytest.raises(KeyError):
        demo["other"]
    assert hash(demo) == hash(Demo.of({"words": ("a", "b"), "n": 1})) and demo == Demo.of({"words": ["a", "b"], "n": 1})
    assert len({demo, Demo.of({"words": ["a", "b"], "n": 2})}) == 2
    assert Demo.of({"n": 1}) != Demo.of({"n": True}) and demo != 3


def test_to_json_takes_anything() -> None:
    assert to_json({"p": Place(city="X"), "s": {2, 1}, "t": (1,), "b": b"\xff"}) == {
        "p": {"city": "X", "zone": 0},
        "s": [1, 2],
        "t": [1],
        "b": "_w==",
    }
    assert isinstance(to_json(object()), str)
    assert digest("\ud800") != digest("\ud801")


def test_example_id_depends_on_values_and_marked_inputs() -> None:
    both = dspy.Example(q="1", a="2")
    ids = [example_id(both.with_inputs(*names)) for names in (("q",), ("a",), ("q", "a"), ("a", "q"))]
    assert ids[2] == ids[3] and len(set(ids)) == 3
    assert example_id(dspy.Example(a="2", q="1").with_inputs("q")) == ids[0]
    assert example_id(dspy.Example(q=1, a="2").with_inputs("q")) != ids[0]


def test_typed_demos_round_trip_through_a_program_and_a_file() -> None:
    student = Two()
    student.second.demos = [_typed_example()]
    candidate = Candidate.of(student)
    assert candidate.names == ("first.predict", "second")
    assert candidate.prompts["second"].demos[0]["place"] == {"city": "Rome", "zone": 2}
    stored = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    bound = stored.bind(Two())
    demo = bound.second.demos[0]
    assert demo.words == ["a", "b"] and demo.limit == 3 and demo.label == "yes" and demo.sure is True
    assert demo.place == Place(city="Rome", zone=2) and set(demo.inputs().keys()) == {"words", "limit"}
    assert Candidate.of(bound) == candidate
    loaded = Two()
    loaded.load_state(json.loads(json.dumps(bound.dump_state())))
    assert Candidate.of(loaded) == candidate


def test_a_demo_value_that_does_not_fit_is_kept_as_it_is() -> None:
    demo = Demo.of({"limit": "many", "extra": [1], "label": "yes"}).to_example(Typed)
    assert demo.limit == "many" and demo.extra == [1] and set(demo.inputs().keys()) == {"limit"}


def test_bind_leaves_the_student_alone_and_shares_its_lms() -> None:
    student, lm = Two(), DummyLM([{"answer": "x"}])
    student.set_lm(lm)
    student.judge_lm = DummyLM([{"answer": "x"}])
    before, signature = Candidate.of(student), student.first.predict.signature
    other = before.replace(
        "first.predict", instructions="Think.", demos=[Demo.of({"question": "1"})], origin=Origin("m")
    )
    bound = other.bind(student)
    assert Candidate.of(student) == before and student.first.predict.signature is signature
    assert bound.first.predict.signature.instructions == "Think." and bound is not student
    assert bound.first.predict.lm is lm and bound.second.lm is lm and bound.judge_lm is student.judge_lm
    assert bound.second.signature is student.second.signature is Typed
    bound.first.predict.demos.append(dspy.Example(question="2"))
    assert student.first.predict.demos == []


def test_unchanged_demos_keep_fields_the_signature_does_not_have() -> None:
    student = Two()
    student.first.predict.demos = [dspy.Example(question="1", answer="2", augmented=True)]
    bound = Candidate.of(student).replace("first.predict", instructions="New.", origin=Origin("m")).bind(student)
    assert bound.first.predict.demos[0].augmented is True
    assert bound.first.predict.demos[0] is not student.first.predict.demos[0]


def test_bind_does_not_copy_histories() -> None:
    student, lm = Two(), DummyLM([{"answer": "x"}])
    lm.history = [{"messages": [{"content": str(i)}] * 20} for i in range(20_000)]
    student.set_lm(lm)
    student.helper = lm
    candidate = Candidate.of(student)
    start = time.perf_counter()
    assert candidate.bind(student).helper is lm
    assert time.perf_counter() - start < 3.0, "a copy of the histories takes much longer"


def test_bind_shares_what_cannot_be_copied() -> None:
    student, lm = Two(), DummyLM([{"answer": "x"}])
    student.set_lm(lm)
    student.steps = [Two()]
    student.lock = student.steps[0].lock = threading.Lock()
    bound = Candidate.of(student).bind(student)
    assert bound.lock is student.lock and bound.first.predict.lm is lm
    assert bound.steps[0] is not student.steps[0] and bound.steps[0].first.predict is not student.steps[0].first.predict


def test_bind_to_another_program_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['first.predict', 'second'\], but the program has \['self'\]"):
        Candidate.of(Two()).bind(dspy.Predict("question -> answer"))


def test_replace() -> None:
    base = Candidate({"a": Prompt("x", (Demo.of({"q": 1}),)), "b": Prompt("y")})
    new = base.replace("a", instructions="z", origin=Origin("vary", (base.id,)))
    assert new.prompts["a"] == Prompt("z", base.prompts["a"].demos) and new.prompts["b"] == base.prompts["b"]
    assert new.origin.parents == (base.id,) and base.prompts["a"].instructions == "x"
    assert base.replace("a", demos=[], origin=Origin("m")).prompts["a"] == Prompt("x")
    assert base.replace("a", instructions="", origin=Origin("m")).prompts["a"].instructions == ""
    with pytest.raises(KeyError):
        base.replace("c", origin=Origin("m"))


def test_bad_input() -> None:
    with pytest.raises(ValidationError):
        Candidate.from_json({"prompts": {"a": {"instructions": 1}}})
    student = dspy.Predict("question -> answer")
    student.demos = ["text"]
    with pytest.raises(ValueError, match="a demonstration must be"):
        Candidate.of(student)
