"""Values stay whole: typed data in traces and demonstrations, media named and never cut, what modules wrote kept."""

from __future__ import annotations

import base64
import datetime
import enum
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.predict.react_v2 import ReActV2
from dspy.predict.rlm import RLM
from replies_support import Told, written

from cuesmith.teleprompters import ABO, Compiler, IterativeAPE
from cuesmith.teleprompters.peers.copro import COPRO
from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, Origin, question_key, to_json, typed
from cuesmith.teleprompters.runtime.evidence import render_fields, text_of
from cuesmith.teleprompters.runtime.guards import Guard
from cuesmith.teleprompters.search.context import ProgramContext

PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG" * 15_000).decode()
IMAGE = dspy.Image(url=PNG)
AUDIO = dspy.Audio(data="UklG" * 4000, audio_format="wav")
FILE = dspy.File(file_data="data:application/pdf;base64," + "JVBE" * 4000, filename="a.pdf")
WHEN = datetime.datetime(2024, 5, 6, 7, 8)


class Kind(enum.Enum):
    A, B = "a", "b"


class Person(pydantic.BaseModel):
    name: str
    born: datetime.date
    face: dspy.Image | None = None


class Pose(dspy.Type):  # type: ignore[misc]
    """A type of a user's own that writes itself as text."""

    joints: list[int]

    def format(self) -> str:
        return f"pose of {len(self.joints)} joints"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Kind.A, Kind),
        (Kind.B, Kind | None),
        (None, Kind | None),
        ([Kind.A], list[Kind]),
        (WHEN, datetime.datetime),
        (Person(name="x", born=WHEN.date()), Person),
        (Person(name="x", born=WHEN.date(), face=IMAGE), Person),
        ([Person(name="x", born=WHEN.date())], list[Person]),
        ((1, Kind.A), tuple[int, Kind]),
        ({1, 2}, set[int]),
        ({"a": Kind.B}, dict[str, Kind]),
        (IMAGE, dspy.Image),
        ([IMAGE, IMAGE], list[dspy.Image]),
        (AUDIO, dspy.Audio),
        (FILE, dspy.File),
        (dspy.Code(code="x = 1"), dspy.Code),
        (dspy.Reasoning(content="so"), dspy.Reasoning),
        (dspy.History(messages=[{"question": "a", "answer": "b"}]), dspy.History),
        (Pose(joints=[1, 2]), Pose),
        (True, bool),
        (0.5, float),
        ("[1, 2]", str),
        (dspy.ToolCalls.from_dict_list([{"name": "f", "args": {}}]), dspy.ToolCalls),
    ],
)
def test_a_value_is_read_back_from_its_data(value: object, kind: Any) -> None:
    data = json.loads(json.dumps(to_json(value)))
    assert typed(data, kind) == value and type(typed(data, kind)) is type(value)
    signature = dspy.Signature({"given": (kind, dspy.InputField()), "out": (str, dspy.OutputField())})
    demo = Demo.of({"given": value}).to_example(signature)
    assert demo["given"] == value and Demo.of(dict(demo.items())) == Demo.of({"given": value})


class Hiding(pydantic.BaseModel):
    name: str
    secret: str = pydantic.Field(default="none", exclude=True)


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    born: datetime.date
    kind: Kind


class Writing(pydantic.BaseModel):
    born: datetime.date

    @pydantic.field_serializer("born")
    def short(self, born: datetime.date) -> str:
        """Write it as nobody reads it."""
        return born.strftime("%d/%m/%y")


@pytest.mark.parametrize(
    "value",
    [
        Hiding(name="n", secret="s"),
        Strict(born=datetime.date(2020, 3, 4), kind=Kind.B),
        Writing(born=datetime.date(2020, 3, 4)),
        b"some bytes",
        [Hiding(name="n", secret="s")],
    ],
)
def test_a_value_that_writes_itself_in_another_form_is_read_back(value: object) -> None:
    kind = list[Hiding] if isinstance(value, list) else type(value)
    back = typed(json.loads(json.dumps(to_json(value))), kind)
    assert back == value and type(back) is type(value)


def test_an_image_in_a_place_of_no_type_stays_whole_for_prompts() -> None:
    history = dspy.History(messages=[{"picture": IMAGE, "answer": "b"}])
    again = typed(to_json(history), dspy.History)
    assert isinstance(again, dspy.History) and PNG in again.messages[0]["picture"]
    assert PNG not in text_of(history) and "kB" in text_of(history)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (IMAGE, "<image image/png, 60 kB>"),
        ([IMAGE, "x"], '["<image image/png, 60 kB>", "x"]'),
        ({"a": {"b": AUDIO}}, '{"a": {"b": "<audio wav, 12 kB>"}}'),
        (FILE, "<file a.pdf, application/pdf, 12 kB>"),
        (
            Person(name="x", born=WHEN.date(), face=IMAGE),
            '{"name": "x", "born": "2024-05-06", "face": "<image image/png, 60 kB>"}',
        ),
        (to_json(IMAGE), '{"url": "<image/png, 60 kB>"}'),
        (Pose(joints=[1]), "pose of 1 joints"),
        (dspy.Reasoning(content="so"), "so"),
        (Kind.A, "a"),
        (WHEN, "2024-05-06T07:08:00"),
        ("a" * 9, "a" * 9),
    ],
)
def test_what_is_no_text_is_named(value: object, text: str) -> None:
    assert text_of(value) == text and render_fields({"x": value}) == f"x: {text}"


def test_a_picture_by_its_address_is_shown() -> None:
    assert "https://example.org/x.png" in text_of(dspy.Image(url="https://example.org/x.png"))


def test_examples_with_other_pictures_are_other_questions() -> None:
    pictures = [dspy.Image(url="data:image/png;base64," + base64.b64encode(bytes([k]) * 9000).decode()) for k in (1, 2)]
    keys = {question_key(dspy.Example(picture=p, answer="a").with_inputs("picture")) for p in pictures}
    assert len(keys) == 2


# --- what modules wrote ------------------------------------------------------------------------------------


def look_up(word: str) -> str:
    """Look a word up in the glossary."""
    return word


class Own(dspy.Module):  # type: ignore[misc]
    """An agent of a user's own."""

    def __init__(self, keeps_signature: bool) -> None:
        super().__init__()
        given = dspy.Signature("question -> answer", "Be brief.")
        self.signature = given if keeps_signature else None
        self.tools = [dspy.Tool(look_up)]
        told = "\n".join(str(tool) for tool in self.tools)
        self.act = dspy.ChainOfThought(
            given.with_instructions(f"{given.instructions}\n{told}\nReply with one call, in JSON.")
        )


TASK = dspy.Signature("question -> answer", "Be brief.")
AGENTS: Mapping[str, tuple[Callable[[], dspy.Module], str, str]] = {
    "ReAct": (lambda: dspy.ReAct(TASK, tools=[look_up]), "react", "Look a word up in the glossary."),
    "ReAct without a task": (lambda: dspy.ReAct(TASK.with_instructions(""), tools=[look_up]), "react", "'word'"),
    "ReActV2": (lambda: ReActV2(TASK, tools=[look_up]), "react", "call `submit`"),
    "CodeAct": (lambda: dspy.CodeAct(TASK, tools=[look_up]), "codeact", "Look a word up in the glossary."),
    "ProgramOfThought": (lambda: dspy.ProgramOfThought(TASK), "code_generate.predict", "`SUBMIT()`"),
    "RLM": (lambda: RLM(TASK, tools=[look_up]), "generate_action", "Look a word up in the glossary."),
    "own": (lambda: Own(True), "act.predict", "Reply with one call, in JSON."),
    "own, by its tools": (lambda: Own(False), "act.predict", "Reply with one call, in JSON."),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", AGENTS)
def test_what_a_module_wrote_is_kept(name: str) -> None:
    make, changed, kept = AGENTS[name]
    program = make()
    whole = {name: p.signature.instructions for name, p in program.named_predictors()}
    student = Candidate.of(program)
    assert {n: p.signature.instructions for n, p in student.bind(program).named_predictors()} == whole
    assert kept in whole[changed] and kept not in student.prompts[changed].instructions
    once = student.replace(changed, instructions="Think twice.", origin=Origin("x")).bind(program)
    twice = Candidate.of(once).replace(changed, instructions="Think thrice.", origin=Origin("x")).bind(once)
    for compiled, said in ((once, "Think twice."), (twice, "Think thrice.")):
        text = dict(compiled.named_predictors())[changed].signature.instructions
        assert text.count(kept) == whole[changed].count(kept) and said in text and "Be brief." not in text
    assert "Think twice." not in text
    signature = dict(program.named_predictors())[changed].signature
    context = ProgramContext({changed: signature}, {changed: student.prompts[changed].instructions})
    assert kept in context.shown(changed), "the optimizer sees what its text stands beside"


class Ruled(dspy.Module):  # type: ignore[misc]
    """Writes rules behind what it is told, and nothing that shows where they begin."""

    def __init__(self) -> None:
        super().__init__()
        self.signature = TASK
        self.act = dspy.Predict(TASK.with_instructions(f"{TASK.instructions}\n\nRULE: never say please."))

    def forward(self, question: str) -> dspy.Prediction:
        return self.act(question=question)


def test_what_a_module_wrote_is_kept_where_the_result_is_compiled_again(tmp_path: Path) -> None:
    def answer(system: str, asked: str, number: int) -> str:
        return f"[[ ## answer ## ]]\n{re.findall(r'say (.+)', asked)[-1] if 'BETTER' in system else 'no'}"

    def make() -> Compiler:
        return IterativeAPE(right, steps=1, width=1, branch=1, initial=1, **options(Told(written("BETTER."))))

    target = Told(answer)
    data = [dspy.Example(question=f"say w{k}", answer=f"w{k}").with_inputs("question") for k in range(10)]
    with dspy.context(lm=dspy.LM("test/target", engine=target, cache=False)):
        first = make().compile(Ruled(), trainset=data, valset=data)
        assert "BETTER." in first.act.signature.instructions
        first.save(tmp_path / "first.json")
        loaded: dspy.Module = Ruled()
        loaded.load(tmp_path / "first.json")
        for again in (first, loaded):
            compiled = make().compile(again, trainset=data, valset=data)
            assert all("RULE: never say please." in str(sent.system) for sent in target.requests)
            assert Candidate.of(compiled).prompts["act"].instructions == "BETTER."


def search(query: str) -> str:
    return query


def test_a_helper_that_is_no_tool_leaves_the_prompt_to_the_compiler() -> None:
    class Rag(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.retrieve = search
            self.say = dspy.Predict(dspy.Signature("question -> answer", "Answer from the search results."))

        def forward(self, question: str) -> dspy.Prediction:
            return self.say(question=self.retrieve(question))

    student = Candidate.of(Rag())
    assert student.prompts["say"].instructions == "Answer from the search results."
    other = student.replace("say", instructions="Say it.", origin=Origin("test"))
    assert other.bind(Rag()).say.signature.instructions == "Say it."


def test_a_module_without_text_of_its_own_is_free() -> None:
    class Plain(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.signature = TASK
            self.first, self.second = dspy.ChainOfThought(TASK), dspy.Predict("answer -> short")

    program = Plain()
    student = Candidate.of(program)
    assert [prompt.instructions for _, prompt in student] == [p.signature.instructions for p in program.predictors()]


def agent(system: str, asked: str, number: int) -> str:
    """Answer as a model that drives `dspy.ReAct`."""
    word = re.findall(r"say (\w+)", asked)[-1]
    if "next_tool_name" not in asked.rpartition("Respond with")[2]:
        return f"[[ ## reasoning ## ]]\nr\n[[ ## answer ## ]]\n{word if 'BETTER' in system else 'no'}"
    return "[[ ## next_thought ## ]]\nt\n[[ ## next_tool_name ## ]]\nfinish\n[[ ## next_tool_args ## ]]\n{}"


def right(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(example.answer == prediction.answer)


def options(optimizer: Told) -> dict[str, Any]:
    return {"optimizer_lm": dspy.LM("test/optimizer", engine=optimizer, cache=False)}


@pytest.mark.parametrize(
    "make",
    [
        lambda o: IterativeAPE(right, steps=1, width=1, branch=1, initial=1, **options(o)),
        lambda o: ABO(right, steps=1, width=1, branch=1, initial=1, **options(o)),
        lambda o: COPRO(right, breadth=2, depth=1, **options(o)),
    ],
    ids=["IterativeAPE", "ABO", "COPRO"],
)
def test_every_prompt_of_an_agent_has_its_tools(make: Callable[[Told], Compiler]) -> None:
    def optimize(system: str, asked: str, number: int) -> str:
        wanted = re.findall(r"`\[\[ ## (\w+) ## \]\]`( \(must be formatted as a valid Python list)?", asked)
        return "\n".join(
            f"[[ ## {n} ## ]]\n" + ('["Read BETTER.", "Answer."]' if kind else f"BETTER {number}.")
            for n, kind in wanted
            if n != "completed"
        )

    target, data = (
        Told(agent),
        [dspy.Example(question=f"say w{k}", answer=f"w{k}").with_inputs("question") for k in range(10)],
    )
    with dspy.context(lm=dspy.LM("test/target", engine=target, cache=False)):
        compiled = make(Told(optimize)).compile(dspy.ReAct(TASK, tools=[look_up]), trainset=data, valset=data)
    steps = [str(r.system) for r in target.requests if "next_tool_name" in str(r.messages[-1].text)]
    assert any("BETTER" in text for text in steps)
    assert all("Look a word up in the glossary." in text and "interleave next_thought" in text for text in steps)
    assert "BETTER" in str(compiled.compilation.best.candidate.to_json())
    assert all("glossary" not in t.candidate.prompts["react"].instructions for t in compiled.compilation.candidates)


# --- demonstrations of typed steps -------------------------------------------------------------------------


class Read(dspy.Signature):  # type: ignore[misc]
    """Read it."""

    question: str = dspy.InputField()
    when: datetime.datetime = dspy.InputField()
    kind: Kind | None = dspy.OutputField()
    people: list[Person] = dspy.OutputField()
    place: tuple[int, int] = dspy.OutputField()
    more: dict[str, Kind] = dspy.OutputField()


class Two(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.read, self.tell = dspy.ChainOfThought(Read), dspy.Predict("people: list[str] -> answer")

    def forward(self, question: str, when: datetime.datetime) -> dspy.Prediction:
        return self.tell(people=[person.name for person in self.read(question=question, when=when).people])


def test_demonstrations_of_a_step_inside_a_program_keep_their_types() -> None:
    def target(system: str, asked: str, number: int) -> str:
        word = re.findall(r"say (\w+)|\[\"(\w+)\"\]", asked)[-1]
        if "`[[ ## answer ## ]]`" in asked:
            return f"[[ ## answer ## ]]\n{word[1]}"
        name = word[0] if "Step 1" in system or number % 2 else "no"
        values = {
            "reasoning": "r",
            "kind": "a",
            "place": "[1, 2]",
            "more": '{"x": "b"}',
            "people": json.dumps([{"name": name, "born": "2001-02-03"}]),
        }
        return "\n".join(f"[[ ## {key} ## ]]\n{value}" for key, value in values.items())

    def work(system: str, asked: str, number: int) -> str:
        if "`[[ ## work ## ]]`" in asked:
            outputs = asked.split("[[ ## outputs ## ]]")[-1].split("Respond with")[0].strip()
            said = " ".join(line.split(": ", 1)[-1] for line in outputs.splitlines())
            return f"[[ ## work ## ]]\n{json.dumps(['read.', said])}"
        wanted = re.findall(r"`\[\[ ## (\w+) ## \]\]`( \(must be formatted as a valid Python list)?", asked)
        return "\n".join(
            f"[[ ## {n} ## ]]\n" + ('["Read it.", "Say it."]' if kind else "Do it.")
            for n, kind in wanted
            if n != "completed"
        )

    model, optimizer = Told(target), Told(work)
    data = [
        dspy.Example(question=f"say w{k}", when=WHEN, answer=f"w{k}").with_inputs("question", "when") for k in range(24)
    ]
    with dspy.context(lm=dspy.LM("test/target", engine=model, cache=False)):
        compiled = ABO(right, steps=2, width=2, branch=2, initial=2, max_in_flight=1, **options(optimizer)).compile(
            Two(), trainset=data
        )
    demos = [
        demo for trial in compiled.compilation.candidates for demo in trial.candidate.bind(Two()).read.predict.demos
    ]
    assert demos, "nothing was demonstrated"
    for demo in demos:
        assert demo.kind is Kind.A and demo.place == (1, 2) and demo.more == {"x": Kind.B} and demo.when == WHEN
        assert isinstance(demo.people[0], Person)
    shown = [str(message.text) for r in (*model.requests, *optimizer.requests) for message in r.messages]
    assert any('"born": "2001-02-03"' in text for text in shown)
    assert not any("Kind.A" in text or "datetime.date(" in text or "name='w" in text for text in shown)


# --- guards ------------------------------------------------------------------------------------------------

LABEL = "the customer wants the full amount of the invoice back at once"
OTHER = "a fault of the product is reported for the very first time here"


class Sorted(dspy.Signature):  # type: ignore[misc]
    """Sort the message into one of the classes that the handbook of the company has for them."""

    text: str = dspy.InputField(desc="a message that came in by mail, by telephone or over the counter of a shop")
    label: Literal["the customer wants the full amount of the invoice back at once", "other"] = dspy.OutputField()
    level: list[Kind] | None = dspy.OutputField()


@pytest.mark.parametrize(
    "text",
    [
        f"Say '{LABEL}' or 'other'.",
        f"Say {OTHER}.",
        "It is a message that came in by mail, by telephone or over the counter.",
        "Sort the message into one of the classes that the handbook of the company has.",
    ],
)
def test_what_the_task_says_itself_is_no_copy(text: str) -> None:
    rare = [OTHER, OTHER, LABEL, *(str(k) for k in range(37))]
    said = "a message that came in by mail, by telephone or over the counter of a shop"
    data = [
        dspy.Example(text=said if k == 3 else str(k), label=label).with_inputs("text") for k, label in enumerate(rare)
    ]
    guard = Guard.of(data, [Sorted.instructions], {}, None, [Sorted])
    assert guard.usable("p", text) == text
    alone = dspy.Example(text="my dog ate the parcel that your driver had left there", label="x").with_inputs("text")
    assert (
        Guard.of([*data, alone], [], {}, None, [Sorted]).fault("My dog ate the parcel that your driver had left.")
        == "copied example"
    )


@pytest.mark.parametrize(("longest", "used"), [(None, True), (60_000, True), (5_000, False)])
def test_a_long_prompt_can_be_rewritten(longest: int | None, used: bool) -> None:
    rules = "\n".join(f"Rule {k}: in case {k} apply the handling of the manual's page {k}." for k in range(550))
    target = Told(lambda s, u, n: f"[[ ## answer ## ]]\n{re.findall(r'say (w.)', u)[-1] if 'BETTER' in s else 'no'}")
    optimizer = Told(lambda s, u, n: written(f"BETTER {n}.\n{rules}")(s, u, n))
    data = [dspy.Example(question=f"say w{k}", answer=f"w{k}").with_inputs("question") for k in range(10)]
    compiler = IterativeAPE(right, steps=1, width=1, branch=2, initial=2, longest=longest, **options(optimizer))
    with dspy.context(lm=dspy.LM("test/target", engine=target, cache=False)):
        found = compiler.compile(dspy.Predict(dspy.Signature("question -> answer", rules)), trainset=data).compilation
    assert (len(found.candidates) > 1) is used
    assert any(rules in "\n".join(str(m.text) for m in r.messages) for r in optimizer.requests), "shown in part"


@pytest.mark.parametrize(("most", "used"), [(2, False), (3, True)])
def test_steps_that_are_too_many_are_refused_and_never_cut(most: int, used: bool) -> None:
    optimizer = Told(lambda s, u, n: '[[ ## task ## ]]\nt\n[[ ## steps ## ]]\n["Read.", "Write BETTER.", "Say."]')
    target = Told(lambda s, u, n: "[[ ## answer ## ]]\nno")
    data = [dspy.Example(question=f"say w{k}", answer=f"w{k}").with_inputs("question") for k in range(10)]
    compiler = ABO(right, max_steps=most, steps=0, initial=1, demonstrations=False, **options(optimizer))
    with dspy.context(lm=dspy.LM("test/target", engine=target, cache=False)):
        found = compiler.compile(dspy.Predict("question -> answer"), trainset=data).compilation
    texts = [trial.candidate.prompts["self"].instructions for trial in found.candidates[1:]]
    assert ["Step 3: Say." in text for text in texts] == [True] * used
    assert used or any("too many steps" in note for note in found.notes if note.kind == "dropped")
