"""While a run is on dspy writes and reads values as ever, byte for byte; only types are read once."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import dspy
import numpy as np
import pydantic
import pytest
from dspy.adapters import utils
from dspy.adapters.xml_adapter import XMLAdapter
from hypothesis import given
from hypothesis import strategies as st
from replies_support import Told, written
from typing_extensions import TypedDict

from cuesmith.programs.evaluation import evaluate
from cuesmith.teleprompters.runtime import _dspy

IMAGE = dspy.Image(url="data:image/png;base64,iVBORw0KGgo=")
WHEN = datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.UTC)


class Kind(enum.Enum):
    A, B = "a", "b"


class Flag(enum.IntEnum):
    ONE = 1


class Person(pydantic.BaseModel):
    name: str
    born: datetime.date
    face: dspy.Image | None = None
    kinds: list[Kind] = []


@dataclasses.dataclass
class Point:
    x: float
    of: Person | None = None


class Pair(NamedTuple):
    left: int
    right: Kind


class Row(TypedDict):
    name: str


class Pose(dspy.Type):  # type: ignore[misc]
    """A type of a user's own that writes itself as text."""

    joints: list[int]

    def format(self) -> str:
        return f"pose of {len(self.joints)} joints"


class Odd(type):
    """A type of types that are all equal, and of which none can be hashed."""

    def __eq__(cls, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class One(metaclass=Odd):
    def __str__(self) -> str:
        return "one"


class Task(dspy.Signature):  # type: ignore[misc]
    given: Any = dspy.InputField()
    text: str = dspy.InputField()
    out: Any = dspy.OutputField()


class Unreadable:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"<{self.name}>"


def _values() -> st.SearchStrategy[Any]:
    texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)
    people = st.builds(Person, name=texts, born=st.dates(), kinds=st.lists(st.sampled_from(Kind), max_size=2))
    plain = st.one_of(
        texts, st.integers(), st.floats(), st.booleans(), st.none(), st.binary(max_size=4), st.datetimes(), st.dates(),
        st.times(), st.timedeltas(), st.decimals(), st.uuids(), st.complex_numbers(), st.sampled_from([*Kind, *Flag]),
        people, st.builds(Point, st.floats(), people), st.builds(Pair, st.integers(), st.sampled_from(Kind)),
        st.builds(Unreadable, texts), st.builds(np.float32, st.floats(width=32)),
        st.builds(lambda joints: Pose(joints=joints), st.lists(st.integers(), max_size=3)),
        st.sampled_from([
            IMAGE, dspy.Audio(data="UklG", audio_format="wav"), dspy.File(file_data="JVBE"), dspy.Code(code="x = 1"),
            dspy.Reasoning(content="so"), dspy.ToolCalls.from_dict_list([{"name": "f", "args": {"a": 1}}]),
            dspy.Tool(lambda a: a, name="f"), One(), Row(name="x"), np.arange(3), len, int, {1, 2}, frozenset("a"),
        ]),
    )  # fmt: skip
    return st.recursive(
        plain,
        lambda held: st.lists(held, max_size=3) | st.tuples(held, held) | st.dictionaries(texts, held, max_size=3),
    )


@pytest.fixture
def door() -> Iterator[_dspy._Door]:
    _dspy.door.open(None)
    yield _dspy.door
    _dspy.door.close(None)


def _ends(work: Callable[[], object]) -> object:
    try:
        return work()
    except Exception as error:
        return type(error), str(error)


def _within(work: Callable[[], object]) -> tuple[object, object, object]:
    """Return how `work` ends without a run, and twice within one."""
    before = _ends(work)
    _dspy.door.open(None)
    try:
        return before, _ends(work), _ends(work)
    finally:
        _dspy.door.close(None)


@given(value=_values())
def test_a_value_is_written_as_dspy_writes_it(value: Any) -> None:
    demo = {"given": value, "text": value, "out": value}
    for adapter in (dspy.ChatAdapter(), dspy.JSONAdapter(), XMLAdapter()):
        before, first, again = _within(lambda a=adapter: a.format(Task, [demo], demo))  # type: ignore[misc]
        assert repr(before) == repr(first) == repr(again)


KINDS = [
    int, float, bool, Kind, Kind | None, int | str, str | int, float | int | str, list[str], list[int | str],
    list[str | int], dict[str, Kind], tuple[int, ...], set[int], Literal["a", "b"], Literal[1, "1"], Literal[True, "1"],
    datetime.datetime, datetime.date, decimal.Decimal, uuid.UUID, Person, list[Person], Person | None, Point, Pair, Row,
    Pose, dspy.Code, dspy.Image, dspy.ToolCalls, Any, object,
]  # fmt: skip
REPLIES = [
    "1", "1.0", '"1"', "true", "null", "", "a", "B", '["1", 2]', "[1]", '{"a": "b"}', "2024-05-06",
    '{"name": "x", "born": "2024-05-06", "kinds": ["a"]}', '[{"name": "x", "born": "2024-05-06"}]',
    "2024-05-06T07:08:00Z", "{'x': 1.5}", '{"x": 1, "of": {"name": "x", "born": 3}}', '{"joints": [1]}',
    "https://x.test/a.png", "Literal['a']",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_reply_is_asked_for_and_read_as_dspy_does(kind: Any) -> None:
    task = dspy.Signature({"given": (str, dspy.InputField()), "out": (kind, dspy.OutputField())}, "Do.")
    for adapter in (dspy.ChatAdapter(), dspy.JSONAdapter(), XMLAdapter()):
        before, first, again = _within(lambda a=adapter: a.format(task, [], {"given": "x"}))  # type: ignore[misc]
        assert before == first == again
    for reply in REPLIES:
        before, first, again = _within(lambda r=reply: utils.parse_value(r, kind))  # type: ignore[misc]
        assert repr(before) == repr(first) == repr(again)


@pytest.mark.usefixtures("door")
def test_equal_types_that_read_differently_are_told_apart() -> None:
    class Left(pydantic.BaseModel):
        x: int

    class Right(pydantic.BaseModel):
        x: int

    one, other = Left | Right, Right | Left
    assert one == other
    assert isinstance(utils.parse_value('{"x": 1}', one), Left)
    assert isinstance(utils.parse_value('{"x": 1}', other), Right)


@pytest.mark.usefixtures("door")
def test_what_a_type_names_may_be_defined_later() -> None:
    class Node(pydantic.BaseModel):
        of: Later | None = None

    with pytest.raises(pydantic.PydanticUserError):
        utils.parse_value('{"of": {"x": 1}}', Node)

    class Later(pydantic.BaseModel):
        x: int

    Node.model_rebuild(_types_namespace={"Later": Later})
    assert utils.parse_value('{"of": {"x": 1}}', Node).of == Later(x=1)


def test_types_are_read_once_in_an_evaluation_from_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    made, lock = list[object](), threading.Lock()

    def counted(kind: Any, **options: Any) -> Any:
        with lock:
            made.append(kind)
        return pydantic.TypeAdapter(kind, **options)

    monkeypatch.setattr(_dspy, "TypeAdapter", counted)
    engine = Told(written("[1]"))
    program = dspy.Predict("question: str, at: int -> answer: list[int]")
    examples = [dspy.Example(question=str(i), at=i, answer=[1]).with_inputs("question", "at") for i in range(40)]
    lm = dspy.LM("prompts/counted", engine=engine, cache=False)
    with dspy.context(lm=lm):
        alone = program(**examples[0].inputs()).answer
    scores = evaluate(program, examples, lambda e, p: e.answer == p.answer, lm=lm, max_in_flight=8)
    assert scores.mean == 1.0 and alone == [1]
    assert {str(kind) for kind in made} == {str(kind) for kind in (str, int, list[int])}
    assert len(made) <= 3 * 8, "each thread may meet a type before another has kept it"


def test_dspy_is_left_as_it_was_once_the_last_run_is_over() -> None:
    _dspy.door.open(None)
    _dspy.door.open(None)
    _dspy.door.close(None)
    assert utils.TypeAdapter is _dspy._adapter and utils.serialize_for_json(1) == 1 and _dspy._adapters
    _dspy.door.close(None)
    assert utils.TypeAdapter is pydantic.TypeAdapter and not _dspy._adapters and not _dspy._schemas
    assert utils._get_json_schema is _dspy._real_schema


def test_a_thread_that_outlasts_the_run_still_writes() -> None:
    _dspy.door.open(None)
    kept = utils.TypeAdapter
    _dspy.door.close(None)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda value: kept(type(value)).dump_python(value), [1, "a", [2]])) == [1, "a", [2]]


@pytest.mark.usefixtures("door")
def test_types_that_are_made_as_the_program_runs_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dspy, "_TYPES", 5)
    for number in range(9):
        made = dataclasses.make_dataclass("Made", [(f"x{number}", int)])
        assert utils.serialize_for_json(made(number)) == {f"x{number}": number}
    assert len(_dspy._adapters) == 5
