"""Where prompts come from travels in the program: in saved JSON, in copies, through a compile, without Cuesmith."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import subprocess
import sys
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import cloudpickle
import dspy
import pydantic
import pytest
from e2e_support import KEY, ToyEngine, ToySearch, exact, toy_lm, words

import cuesmith
from cuesmith.teleprompters import COMPILERS, registry
from cuesmith.teleprompters.registry import compiler_class
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.provenance import Provenance, keep, provenance
from cuesmith.teleprompters.runtime.redaction import Redactor
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain
from cuesmith.teleprompters.runtime.wire import packed, unpacked


def predict() -> dspy.Predict:
    return dspy.Predict("question -> answer")


def compiled(student: dspy.Module, run_dir: Path | None = None, **options: Any) -> cuesmith.Compiled:
    with dspy.context(lm=toy_lm(ToyEngine())):
        search = ToySearch(exact, **{"seed": 3, "optimizer_lm": toy_lm(ToyEngine(), "writer"), **options})
        return search.compile(student, trainset=words(12), valset=words(40, "v"), run_dir=run_dir)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture(scope="module")
def program(run_dir: Path) -> cuesmith.Compiled:
    return compiled(predict(), run_dir)


def test_it_says_where_the_prompt_comes_from(program: cuesmith.Compiled, run_dir: Path) -> None:
    found, whole = program.compilation.provenance, program.compilation
    assert found is not None and provenance(program) == found
    assert (found.cuesmith, found.compiler, found.seed) == (cuesmith.__version__, "toy-search", 3)
    assert (found.target, found.optimizer) == ("cuesmith-test/toy", "cuesmith-test/writer")
    assert found.prompt == whole.best.candidate.id != found.student == whole.baseline.candidate.id
    assert found.gain == whole.gain and found.gain is not None and found.gain.difference > 0
    assert found.score == whole.best.fresh and found.earlier is None
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found.created)).total_seconds()) < 600
    assert json.loads((run_dir / "record.json").read_text())["provenance"] == found.to_json()


def test_the_data_are_named_by_their_content(program: cuesmith.Compiled) -> None:
    found = provenance(program)
    with dspy.context(lm=toy_lm(ToyEngine())):
        other = ToySearch(exact, steps=1).compile(
            predict(), trainset=words(12)[::-1], valset=[*words(40, "v")[::-1], words(1, "v")[0]]
        )
        less = ToySearch(exact, steps=1).compile(predict(), trainset=words(11), valset=words(40, "v"))
    assert found is not None and other.compilation.provenance is not None and less.compilation.provenance is not None
    assert other.compilation.provenance.data == found.data != less.compilation.provenance.data


def test_plain_json_brings_it_back_without_a_word(
    program: cuesmith.Compiled, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program.save(tmp_path / "a.json")
    fresh = predict()
    with caplog.at_level(logging.DEBUG):
        fresh.load(tmp_path / "a.json")
    assert not caplog.records
    assert provenance(fresh) == provenance(program) == provenance(tmp_path / "a.json") is not None
    assert Candidate.of(fresh) == Candidate.of(program)
    fresh.save(tmp_path / "b.json")
    assert provenance(str(tmp_path / "b.json")) == provenance(program)


def test_it_is_in_copies(program: cuesmith.Compiled) -> None:
    for other in (copy.deepcopy(program), program.deepcopy(), cloudpickle.loads(cloudpickle.dumps(program))):
        assert provenance(other) == provenance(program) is not None
    assert provenance(program.reset_copy()) == provenance(program), "there are no demonstrations that it would lose"


def test_changed_prompts_come_from_nowhere(program: cuesmith.Compiled, tmp_path: Path) -> None:
    for change in ("instructions", "demonstration"):
        other = copy.deepcopy(program)
        if change == "instructions":
            other.signature = other.signature.with_instructions("Something of my own.")
        else:
            other.demos = [dspy.Example(question="say a", answer="a")]
        other.save(tmp_path / "own.json")
        assert provenance(other) is None and provenance(tmp_path / "own.json") is None
    assert provenance(predict()) is None


def test_another_compile_names_the_prompt_that_it_began_with(program: cuesmith.Compiled, tmp_path: Path) -> None:
    program.save(tmp_path / "a.json")
    student = predict()
    student.load(tmp_path / "a.json")
    again = compiled(student, tmp_path / "run", seed=4)
    found, first = provenance(again), provenance(program)
    assert found is not None and first is not None
    assert found.student == first.prompt and found.earlier == first and found.seed == 4
    assert provenance(student) == first, "the student stays as it was"
    again.save(tmp_path / "b.json")
    assert provenance(tmp_path / "b.json") == found
    assert len(json.loads((tmp_path / "b.json").read_text())["traces"]) == 1
    compiled(student, tmp_path / "run", seed=4)  # a run of the same student, which another compile is: it is resumed


class Tone(Enum):
    WARM = "warm"


class Place(pydantic.BaseModel):
    name: str
    spots: tuple[int, ...] = (1, 2)


class Typed(dspy.Signature):  # type: ignore[misc]
    """Read it."""

    place: Place = dspy.InputField()
    seen: dspy.Image = dspy.InputField()
    tone: Tone = dspy.OutputField()
    kind: Literal["a", "b"] = dspy.OutputField()
    places: list[Place] = dspy.OutputField()


FACTS = Provenance("0", "abo", 1, "t", "o", "d", "p", "s", Estimate95(0.5, math.nan, math.nan, 1),
                   Gain(math.nan, math.nan, math.nan, 1.0, 0), "2026-01-01T00:00:00+00:00")  # fmt: skip


class Two(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.parts = [dspy.Predict(Typed), dspy.ChainOfThought("question -> answer")]


def test_demonstrations_of_any_type_are_the_same_ones_after_loading(tmp_path: Path) -> None:
    program = Two()
    place = Place(name="é")
    program.parts[0].demos = [
        dspy.Example(
            place=place, seen=dspy.Image("data:image/png;base64,iVBORw0KGgo="), tone=Tone.WARM, kind="a", places=[place]
        )
    ]
    keep(program, FACTS, program)
    program.save(tmp_path / "typed.json")
    fresh = Two()
    fresh.load(tmp_path / "typed.json")
    found = provenance(fresh)
    assert found is not None and repr(found) == repr(FACTS), "what is no number is none afterwards too"
    keep(fresh, found, fresh)
    keep(fresh, found, fresh)
    assert sum(len(predictor.traces) for predictor in fresh.predictors()) == 1


@pytest.mark.parametrize(
    "entry",
    [
        {},
        None,
        "x",
        {"provenance": {}},
        {"frames": 3},
        {"frames": {"self": ["x"]}},
        {"provenance": {"seed": "x"}},
        {"provenance": {**FACTS.to_json(), "gain": 3}},
    ],
)
def test_what_is_no_provenance_is_none(entry: object, tmp_path: Path) -> None:
    program = predict()
    keep(program, FACTS, program)
    of = program.traces[0]["cuesmith"]["prompts"]
    program.traces = [{"cuesmith": {**entry, "prompts": of} if isinstance(entry, dict) else entry}, 3, None]
    program.save(tmp_path / "odd.json")
    assert provenance(program) is None and provenance(tmp_path / "odd.json") is None
    with pytest.raises(ValueError, match=r"^this is no provenance as Cuesmith writes it: see [\w, ]+$"):
        Provenance.from_json({"seed": "x"})


def test_a_later_version_may_say_more() -> None:
    assert repr(Provenance.from_json({**FACTS.to_json(), "more": 1, "earlier": FACTS.to_json()}).earlier) == repr(FACTS)


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    assert provenance(tmp_path / "a.json") is None
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json' is not JSON, as a program's `save` writes it"):
        provenance(tmp_path / "a.json")


@pytest.mark.parametrize("name", COMPILERS)
def test_a_compiler_is_called_as_the_registry_knows_it(name: str) -> None:
    kind = compiler_class(name)
    called = kind.called.fget(kind.__new__(kind))  # type: ignore[attr-defined]
    assert compiler_class(called) is kind and called == name


@pytest.mark.parametrize("name", ["APO", "Ape", "IterativeAPE"])
def test_a_compiler_of_the_users_is_told_from_ours_of_that_name(name: str) -> None:
    own = type(name, (ToySearch,), {"__module__": "mine"})(exact)
    assert own.title == own.called == f"mine.{name}"
    assert (own >> ToySearch(exact)).called == f"mine.{name} >> toy-search"


def test_an_installed_compiler_is_told_from_ours_of_that_class(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("mine")
    module.APO = type("APO", (ToySearch,), {"__module__": "mine"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setattr(registry, "_installed", lambda: {"my-apo": "mine:APO"})
    own = module.APO(exact)
    assert own.title == "mine.APO" and own.called == "my-apo"


# --- whole programs ------------------------------------------------------------------------------------------

LOAD = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cuesmith":
            raise ModuleNotFoundError("No module named " + repr(name), name=name)


sys.meta_path.insert(0, Missing())
import dspy

for folder in sys.argv[1:]:
    program = dspy.load(folder, allow_pickle=True)
    facts = program.inner.traces[0]["cuesmith"]["provenance"]
    assert facts["compiler"] == "toy-search" and program.compilation is None
    assert not [name for name in sys.modules if name.startswith("cuesmith")]
    if program.inner.lm is not None:
        assert program(question="say hello").answer == "hello"
    print("loaded", type(program).__name__)
"""


def test_a_program_that_is_saved_whole_needs_no_cuesmith(tmp_path: Path) -> None:
    """Program and model are of classes that no module has, as a script's or a notebook's: their code goes along."""

    class Mine(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = dspy.Predict("question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            return self.inner(question=question)

    class Own(dspy.BaseLM):  # type: ignore[misc]
        def forward(self, prompt: str | None = None, messages: Any = None, **options: object) -> object:
            from types import SimpleNamespace

            word = str(messages[-1]["content"]).partition("say ")[2].split()[0]
            message = SimpleNamespace(content=f"[[ ## answer ## ]]\n{word}\n\n[[ ## completed ## ]]", tool_calls=None)
            choice = SimpleNamespace(message=message, finish_reason="stop", index=0, logprobs=None)
            return SimpleNamespace(choices=[choice], usage={}, model="own")

    folders: list[str] = []
    for model in (None, Own("own/model", cache=False)):
        student = Mine()
        student.set_lm(model)
        made = compiled(student, steps=1)
        folders.append(str(tmp_path / f"whole-{len(folders)}"))
        made.save(folders[-1], save_program=True)
        here = dspy.load(folders[-1], allow_pickle=True)
        assert here.compilation.best.candidate == made.compilation.best.candidate
        assert provenance(here) == here.compilation.provenance == provenance(made) is not None
    done = subprocess.run([sys.executable, "-c", LOAD, *folders], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loaded Mine") == 2


def test_a_record_is_the_same_after_any_pickle(program: cuesmith.Compiled) -> None:
    record = program.compilation
    for pickler in (pickle, cloudpickle):
        found = pickler.loads(pickler.dumps(record))
        assert found == record and found.notes[0].kind == record.notes[0].kind
    assert copy.copy(record) == record and copy.deepcopy(record) is record


def test_workers_get_no_record_of_an_earlier_compile(program: cuesmith.Compiled) -> None:
    other = copy.deepcopy(program)
    object.__setattr__(other, "compilation", copy.copy(program.compilation))
    other.compilation.extras["lm"] = dspy.LM("openai/x", api_key=KEY)  # type: ignore[index]
    data, _ = packed(other, Redactor([]))
    assert KEY.encode() not in data and unpacked(data, ()).compilation is None
