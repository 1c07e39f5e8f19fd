"""Content hashes: equal for equal content in every process and copy, different for every difference."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import io
import itertools
import logging
import os
import re
import socket
import sys
import threading
import time
import types
import typing
import uuid
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import dspy
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes_support import Forked

from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import Demo, digest, example_id, question_key, to_json
from cuesmith.teleprompters.runtime.fingerprint import Parts, fingerprint, parts

Pair = namedtuple("Pair", "a b")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Flag(enum.Flag):
    ONE = 1
    TWO = 2


class Person(pydantic.BaseModel):
    name: str
    tags: set[str] = set()
    _hidden: int = pydantic.PrivateAttr(default=0)


@dataclasses.dataclass
class Point:
    x: int
    y: object = None


class Text(str):
    pass


class Plain:
    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


def frame(values: list[object], **options: Any) -> pd.DataFrame:
    return pd.DataFrame({"a": values, "b": ["x"] * len(values)}, **options)


def long_array(middle: int) -> np.ndarray[Any, Any]:
    found = np.zeros(5000, dtype=int)
    found[2500] = middle
    return found


def each(*values: object) -> list[Callable[[], object]]:
    return [lambda value=value: value for value in values]  # type: ignore[misc]


DATA: list[Callable[[], object]] = [
    *each(None, 0, 1, -1, True, False, 1.0, 0.0, -0.0, 1j, float("inf"), "", "1", "\ud800", b"1"),
    *each([], (), {}, [[]], [1, 2], (1, 2), [2, 1], {"a": 1}, {1: "a"}, {"1": "a"}),
    *each(range(3), range(4), slice(1, 2), Pair(1, 2), Pair(2, 1), Text("a"), 10**50, -(10**50)),
    lambda: {1, 2, "a"},
    lambda: frozenset({1, 2, "a"}),
    lambda: {(1, "a"), (2, "b")},
    lambda: {frozenset({"p", "q"}), frozenset({"q"})},
    lambda: bytearray(b"1"),
    lambda: OrderedDict(a=1),
    lambda: defaultdict(int, a=1),
    lambda: defaultdict(bool, a=1),
    lambda: Counter("aab"),
    lambda: deque([1, 2]),
    lambda: deque([1, 2], maxlen=5),
    lambda: types.SimpleNamespace(a=1),
    lambda: types.MappingProxyType({"a": 1}),
    lambda: datetime.date(2020, 1, 2),
    lambda: datetime.datetime(2020, 1, 2),
    lambda: datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    lambda: datetime.timedelta(1),
    lambda: decimal.Decimal("1.0"),
    lambda: decimal.Decimal("1.00"),
    lambda: fractions.Fraction(1, 3),
    lambda: uuid.UUID(int=5),
    lambda: PurePosixPath("a/b"),
    lambda: re.compile("a"),
    lambda: re.compile("a", re.I),
    lambda: Color.RED,
    lambda: Color.BLUE,
    lambda: Flag.ONE | Flag.TWO,
    lambda: Flag.ONE,
    lambda: Person(name="a", tags={"p", "q", "r"}),
    lambda: Person(name="a"),
    lambda: Point(1),
    lambda: Point(1, [2]),
    lambda: Plain(x=1),
    lambda: Plain(x=1, y=None),
    lambda: dspy.Example(q="a"),
    lambda: dspy.Example(q="a").with_inputs("q"),
    lambda: dspy.Prediction(q="a"),
    lambda: dspy.Image("http://x/a.png"),
    lambda: dspy.History(messages=[{"q": "a"}]),
    lambda: np.arange(4),
    lambda: np.arange(4.0),
    lambda: np.arange(4).reshape(2, 2),
    lambda: np.arange(4, dtype=np.int32),
    lambda: np.array(["a", "b"], dtype=object),
    lambda: np.array([(1, 2.0)], dtype=[("x", int), ("y", float)]),
    lambda: np.float64(1),
    lambda: np.int64(1),
    lambda: np.random.RandomState(1),
    lambda: np.random.default_rng(1),
    lambda: long_array(1),
    lambda: long_array(2),
    lambda: frame([1, 2]),
    lambda: frame([1, 3]),
    lambda: frame([1.0, 2.0]),
    lambda: frame([1, 2], index=[1, 2]),
    lambda: frame([None, "z"]),
    lambda: frame([1, 2]).rename(columns={"a": "c"}),
    lambda: frame([pd.Timestamp(2020, 1, 1), pd.NaT]),
    lambda: frame([1, 2]).astype({"b": "category"}),
    lambda: frame(list(range(500))),
    lambda: frame([*range(250), 7, *range(251, 500)]),
    lambda: pd.Series([1, 2], name="s"),
    lambda: pd.Series([1, 2], name="t"),
    lambda: pd.Series([1, None], dtype="Int64"),
    lambda: pd.Index([1, 2]),
    lambda: pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]),
    lambda: functools.partial(max, 1),
    lambda: functools.partial(max, 2),
    lambda: functools.partial(min, 1),
    *each(len, max, "".join, [1].append, str.upper, dict.fromkeys, np.sum, re.sub, to_json),
    *each(int, str, list, type, object, Color, Person, Point, dspy.Predict, dspy.ChainOfThought),
    *each(list[int], list[str], typing.List[int], dict[str, int], Literal["a"], Literal["b"]),  # noqa: UP006
    *each(Annotated[int, 1], Annotated[int, 2], Any, int | None, int | str, Callable[[int], str]),
    *each(typing.TypeVar("T"), typing.TypeVar("T", bound=int), typing.NewType("N", int)),
    lambda: itertools.count(3),
    lambda: iter([1, 2]),
    lambda: weakref.ref(Color),
    lambda: logging.getLogger("a"),
    lambda: logging.getLogger("b"),
    lambda: os,
    lambda: re,
    lambda: dspy,
    lambda: ValueError("a"),
    lambda: ValueError("b"),
    lambda: dspy.LM("openai/a"),
    lambda: dspy.LM("openai/b"),
    lambda: dspy.ChatAdapter(),
    lambda: dspy.JSONAdapter(),
    lambda: dspy.Embedder("openai/a"),
    lambda: dspy.Embedder("openai/a", dimensions=3),
    lambda: dspy.Predict("a -> b"),
    lambda: dspy.Predict("a -> c"),
    lambda: dspy.Predict("a -> b", temperature=1),
]


def test_every_difference_counts_and_nothing_else() -> None:
    found = [fingerprint(make()) for make in DATA]
    by_hash: dict[str, list[object]] = defaultdict(list)
    for make, each in zip(DATA, found, strict=True):
        by_hash[each].append(make())
    alike = [values for values in by_hash.values() if len(values) > 1]
    assert alike == [[list[int], typing.List[int]]] or not alike, alike  # noqa: UP006  (one type, two names)
    assert [fingerprint(make()) for make in DATA] == found
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in found)


def test_everything_readable_is_read() -> None:
    unread = [place for make in DATA for place in parts("x", make()).unread]
    assert unread == []


def test_copies_are_equal() -> None:
    for make in DATA:
        value = make()
        if isinstance(value, Plain | Point | Person | dict | list | set | dspy.Example | dspy.Module):
            assert fingerprint(copy.deepcopy(value)) == fingerprint(value)
    shared = [1, 2]
    assert fingerprint([shared, shared]) == fingerprint([[1, 2], [1, 2]])
    assert fingerprint(np.asfortranarray(np.arange(6).reshape(2, 3))) == fingerprint(np.arange(6).reshape(2, 3))
    assert fingerprint(frame([1, 2]).copy()) == fingerprint(frame([1, 2])[["a", "b"]])


def test_an_exception_is_the_same_whatever_has_been_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(ValueError("a"))
    monkeypatch.setitem(copyreg.dispatch_table, ValueError, lambda error: (ValueError, (), {"traceback": None}))
    assert fingerprint(ValueError("a")) == before != fingerprint(ValueError("b"))


def test_the_same_in_another_process() -> None:
    code = "import test_fingerprint as t; print(*(t.fingerprint(make()) for make in t.DATA))"
    there, here = Forked(code).done().stdout.split(), [fingerprint(make()) for make in DATA]
    assert [i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, JSON)
@settings(max_examples=100, deadline=None)
def test_equal_exactly_if_the_content_is(a: object, b: object) -> None:
    def exact(value: object) -> object:
        match value:
            case list():
                return [exact(v) for v in value]
            case dict():
                return {k: exact(v) for k, v in value.items()}, list(value)
            case float():
                return "float", value.hex()
            case _:
                return type(value).__name__, value

    assert (fingerprint(a) == fingerprint(b)) == (exact(a) == exact(b))
    assert fingerprint(copy.deepcopy(a)) == fingerprint(a)


def test_circles_and_shared_parts_end() -> None:
    circle: list[object] = [1]
    circle.append(circle)
    other: list[object] = [2]
    other.append(other)
    assert fingerprint(circle) != fingerprint(other)
    node = Plain()
    node.__dict__.update(me=node, friends={node}, table={"x": node})
    assert parts("x", node).unread == () and fingerprint(node) == fingerprint(node)
    tree: object = [0]
    for _ in range(60):
        tree = [tree, tree]  # 2 ** 60 leaves
    assert fingerprint(tree) != fingerprint([tree, tree])
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert len(parts("x", Plain(deep=deep)).unread) == 1


def test_a_large_value_is_hashed_in_time() -> None:
    large = {"matrix": np.zeros((2000, 2000)), "rows": [str(i) for i in range(50_000)]}
    begun = time.perf_counter()
    one = fingerprint(large)
    assert time.perf_counter() - begun < 2
    large["matrix"][1000, 1000] = 1  # type: ignore[index]
    assert fingerprint(large) != one


UNREAD: dict[str, Callable[[], object]] = {
    "_thread.lock": threading.Lock,
    "_thread.RLock": threading.RLock,
    "threading.Event": threading.Event,
    "_io.TextIOWrapper": lambda: sys.__stdout__,
    "builtins.generator": lambda: (i for i in range(3)),
    "contextvars.Context": lambda: __import__("contextvars").copy_context(),
    "io.BufferedReader": lambda: io.BufferedReader(io.BytesIO(b"")),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_cannot_be_hashed_is_named(kind: str) -> None:
    value = Plain(good=1, bad=UNREAD[kind]())
    found = parts("program", value)
    (place,) = found.unread
    assert place.startswith("program: attribute `bad` of Plain (") and kind.rpartition(".")[2] in place
    assert " at 0x" not in place and found.digests["program: attribute `good` of Plain"]
    assert parts("program", Plain(good=1, bad=UNREAD[kind]())).digests == found.digests


def test_an_object_of_a_library_that_cannot_be_kept_counts_by_what_it_was_made_with() -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    def bar(**options: Any) -> Parts:
        with open(os.devnull, "w", encoding="utf-8") as sink:
            return parts("x", Plain(bar=tqdm(file=sink, **options)))

    one = bar(total=3)
    time.sleep(0.01)
    assert bar(total=3).digests == one.digests and len(one.unread) == 1
    assert bar(total=4).digests != one.digests


def test_an_object_that_raises_when_it_is_looked_at_is_named() -> None:
    class Hostile:
        __slots__ = ()

        @property
        def __dict__(self) -> dict[str, object]:  # type: ignore[override]
            raise RuntimeError("no")

    assert any("Hostile" in place and "RuntimeError" in place for place in parts("x", [Hostile()]).unread)


def test_metrics_code_counts() -> None:
    def make(source: str) -> dict[str, str]:
        space: dict[str, Any] = {}
        exec(f"def m(e, p): return {source}", space)
        return dict(parts("metric", space["m"]).digests)

    sources = [
        "e.a == p.a",
        "e.b == p.b",
        "e.a != p.a",
        "p.a in ('x', 'y')",
        "p.a in ('x', 'z')",
        "p.a in {'x', 'z', 'w'}",
        "p.a in ['x', 'z', 'w']",
        "max(abs(v - 1) for v in p.a)",
        "max(abs(v - 2) for v in p.a)",
        "(lambda: (lambda: 1))()()",
        "(lambda: (lambda: 2))()()",
        "(lambda: (lambda: True))()()",
        "0.0",
        "-0.0",
    ]
    found = [frozenset(make(source).items()) for source in sources]
    assert len(set(found)) == len(sources)
    assert all(frozenset(make(source).items()) == each for source, each in zip(sources, found, strict=True))


def test_only_the_part_that_changed_differs() -> None:
    def metric(least: int) -> Callable[..., bool]:
        def helper(text: str) -> bool:
            return len(text) >= least

        return lambda example, prediction: helper(prediction.answer)

    one, two = parts("metric", metric(1)).digests, parts("metric", metric(2)).digests
    assert {name for name in one if one[name] != two[name]} == {"metric: closure `least` of helper"}
    assert one.keys() == two.keys()


LEVEL = 1


def uses_later() -> object:
    return globals().get("x") or LEVEL


def test_decorators_of_libraries_are_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(value: int) -> list[object]:
        def one() -> int:
            return value

        def get(self: object) -> int:
            return value

        @functools.singledispatch
        def two(x: object) -> int:
            return 0

        two.register(int, lambda x: value)
        return [functools.lru_cache(one), functools.cache(one), two, contextlib.contextmanager(one),  # type: ignore[arg-type]
                functools.wraps(one)(lambda: 1), Plain(f=one), property(get), functools.partialmethod(one),
                functools.cached_property(get), dspy.Tool(one)]  # fmt: skip

    for one, same, other in zip(made(1), made(1), made(2), strict=True):
        assert parts("x", one).digests == parts("x", same).digests != parts("x", other).digests
    before = parts("x", uses_later).digests
    monkeypatch.setitem(globals(), "LEVEL", 2)
    after = parts("x", uses_later).digests
    assert {name for name in before if before[name] != after[name]} == {"x: global `LEVEL`"}


def test_code_of_libraries_is_known_by_name_and_version() -> None:
    found = parts("metric", dspy.evaluate.answer_exact_match)
    assert list(found.digests) == ["metric"] and found.unread == ()
    assert len(parts("x", lambda: (os, dspy, np, re, pd, logging)).digests) < 12


def test_keys_are_never_part_of_it() -> None:
    def made(key: str) -> dict[str, str]:
        lm = dspy.LM("openai/x", api_key=key, extra_headers={"A": key}, api_base=f"http://{key}@host")
        held = Plain(api_key=key, lm=lm, options={"api_key": key}, secret=pydantic.SecretStr(key), password=key)
        return dict(parts("x", [held, dspy.Embedder("openai/x", api_key=key)]).digests)

    assert made("one") == made("two")


def test_a_program_is_read_in_time() -> None:
    class Program(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps = [dspy.ChainOfThought("question, context -> answer") for _ in range(4)]
            self.react = dspy.ReAct("question -> answer", tools=[uses_later])
            self.lm = dspy.LM("openai/x")

        def forward(self, question: str) -> object:
            return self.react(question=question)

    def cost(history: int) -> float:
        program = Program()
        program.lm.history = [{"prompt": f"{i}" * 1000} for i in range(history)]
        names = {id(p): name for name, p in named_predictors(program)}
        return min(_seconds(lambda: parts("program", program, covered=names)) for _ in range(5))

    assert cost(10_000) < 3 * cost(0), "a log is not read"


def _seconds(do: Callable[[], object]) -> float:
    begun = time.process_time()
    do()
    return time.process_time() - begun


# -- examples


def example(inputs: dict[str, object], **labels: object) -> dspy.Example:
    return dspy.Example(**inputs, **labels).with_inputs(*inputs)


def test_identities_of_plain_examples_are_as_they_were() -> None:
    """These hashes stand in journals and records."""
    assert example_id(dspy.Example(question="Why?", answer="é").with_inputs("question")) == "3cbd1c19ac9c2844"
    nested = example({"q": ["a", 1, 2.5, None, True], "t": {"b": 1, "a": [{}]}}, y=-1)
    assert example_id(nested) == "f0426f2cd66db6b2"
    assert digest("a", {"b": [1]}) == "30e3ddc622100ff4"


VALUES = [make for make in DATA if not isinstance(make(), types.ModuleType | dspy.Module | dspy.BaseLM)]


def test_examples_differ_by_their_full_values() -> None:
    found: dict[str, object] = {}
    for make in VALUES:
        value = make()
        if isinstance(value, tuple | list) and type(value) in (tuple, list):
            continue  # to JSON, a tuple is a list
        key = example_id(example({"q": value}))
        assert key not in found or value == typing.List[int], (found[key], value)  # noqa: UP006
        found[key] = value
        assert key == example_id(example({"q": make()}))
    assert len({example_id(example({"q": "a" * 3000 + middle + "z" * 3000})) for middle in "xyz"}) == 3


def test_json_of_arrays_and_objects_is_no_shortened_text() -> None:
    assert to_json({"a": np.array([[1, 2]]), "b": np.float64(0.5)}) == {"a": [[1, 2]], "b": 0.5}
    assert to_json(Plain(x=1)) == to_json(Plain(x=1)) != to_json(Plain(x=2))
    assert Demo.of({"f": long_array(1)}) != Demo.of({"f": long_array(2)})
    assert Demo.of({"f": frame(list(range(500)))}) != Demo.of({"f": frame([*range(250), 7, *range(251, 500)])})
    assert " at 0x" not in str(to_json([object(), Plain(), print, lambda: 1]))


def test_one_definition_of_the_same_question() -> None:
    same = [
        example({"q": "Is it  so?\n", "r": ["A b"]}, a="1"),
        example({"r": ["a  B "], "q": " is IT so?"}, a="2"),
        example({"q": "IS IT SO?", "r": ("a b",)}, b=None),
    ]
    assert len({question_key(e) for e in same}) == 1
    other = [
        example({"q": "is it so"}),
        example({"q": "isitso?"}),
        example({"q": "is it so?", "s": ["a b"]}),
        example({"q": "is it so?", "r": ["a", "b"]}),
        example({"q": "is it so?", "r": np.arange(3)}),
        example({"q": "is it so?", "r": np.arange(4)}),
        example({"q": "a" * 3000 + "x" + "z" * 3000}),
        example({"q": "a" * 3000 + "y" + "z" * 3000}),
        example({"q": socket}),
    ]
    assert len({question_key(e) for e in [*same, *other]}) == len(other) + 1
