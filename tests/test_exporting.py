"""Exported prompts: what the adapter sends, without dspy; and they score over plain HTTP what the program scores."""

from __future__ import annotations

import itertools
import json
import math
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import dspy
import pydantic
import pytest
from dspy import lm15

from cuesmith import EmbeddedLM, Provenance, SimulatedOptimizer, compile, evaluate, export
from cuesmith.modules.embedded.lm import EmbeddedEngine
from cuesmith.modules.prompter import Prompted, Prompter
from cuesmith.programs.tasks.generated import generate
from cuesmith.programs.tasks.task import Sizes
from cuesmith.teleprompters.runtime.provenance import keep
from cuesmith.teleprompters.runtime.statistics import Gain
from cuesmith.testing.fakes import Sent, Server

SECRET = "sk-exported-0123456789abcdef"


class Pair(dspy.Module):  # type: ignore[misc]
    """Two predictors, and a compiled program inside, whose predictor dspy hides."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> hint")
        self.second = [dspy.Predict("question, hint -> answer: bool")]
        self.frozen = dspy.Predict("answer -> told")
        self.frozen._compiled = True


# --- the same score over HTTP --------------------------------------------------------------------------------


def embedded(sent: Sent) -> str:
    """Answer as the embedded model: after the system message, turns of user and assistant follow each other."""
    makers = itertools.cycle((lm15.Message.user, lm15.Message.assistant))
    turns = tuple(make(text) for make, text in zip(makers, sent.turns, strict=False))
    request = lm15.Request(model="any", system=sent.system, messages=turns, config=lm15.Config(temperature=0))
    return str(EmbeddedEngine().complete(request).message.text)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The embedded model behind an OpenAI-compatible server."""
    with Server(embedded) as served:
        yield f"{served.base}/chat/completions"


def posted(url: str, body: Mapping[str, object]) -> str:
    data = json.dumps({**body, "model": "any"}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
        found = json.load(answer)
    return str(found["choices"][0]["message"]["content"])


def filled(messages: Sequence[Mapping[str, str]], question: str) -> list[Mapping[str, str]]:
    last = messages[-1]
    return [*messages[:-1], {**last, "content": last["content"].replace("{question}", question)}]


TASK = generate("objects", sizes=Sizes(train=12, validation=24, test=30))


@pytest.fixture(scope="module")
def program() -> dspy.Module:
    with dspy.context(lm=EmbeddedLM(temperature=0)):
        made = compile(
            dspy.ChainOfThought("question -> answer"), "abo", metric=TASK.metric, trainset=TASK.train,
            valset=TASK.validation, optimizer_lm=SimulatedOptimizer(), steps=1, width=2)  # fmt: skip
    assert made.compilation.gain is not None and made.compilation.gain.difference > 0.2
    assert made.predict.demos, "demonstrations are exported too"
    return made


@pytest.mark.parametrize("format", ["messages", "openai"])
def test_an_exported_prompt_scores_what_the_program_scores(
    format: Literal["messages", "openai"], program: dspy.Module, server: str
) -> None:
    """Sent by `urllib` alone; only the reply is read by the adapter's own parser, to be judged by the same metric."""
    adapter = dspy.ChatAdapter() if format == "messages" else dspy.JSONAdapter()
    found = json.loads(export(program, format))
    body = {"messages": found, "temperature": 0} if format == "messages" else found
    signature = program.predict.signature

    def score(example: dspy.Example) -> float:
        reply = posted(server, {**body, "messages": filled(body["messages"], example.question)})
        return float(cast(float, TASK.metric(example, dspy.Prediction(**adapter.parse(signature, reply)))))

    with ThreadPoolExecutor(8) as threads:
        sent = list(threads.map(score, TASK.test))
    with dspy.context(adapter=adapter):
        here = evaluate(program, TASK.test, TASK.metric, lm=EmbeddedLM(temperature=0))
    assert tuple(sent) == here.values
    assert sum(sent) > 15 or format == "openai", "it is the compiled prompt, and a good one"


def test_messages_are_those_that_are_sent(program: dspy.Module) -> None:
    lm = EmbeddedLM(temperature=0)
    with dspy.context(lm=lm):
        program(question="I have a wolf and two pianos.")
        assert json.loads(export(program, "messages", {"question": "I have a wolf and two pianos."})) == (
            lm.history[-1]["messages"])  # fmt: skip
    assert len(lm.history) == 1, "to export asks no model"


# --- form ----------------------------------------------------------------------------------------------------


def test_several_predictors_are_told_apart_and_values_stand_where_they_are_known() -> None:
    found = json.loads(export(Pair(), "messages", {"question": "Why?"}))
    assert list(found) == ["first", "second[0]", "frozen"], "a frozen program's prompt is sent as well"
    last = {name: messages[-1]["content"] for name, messages in found.items()}
    assert "Why?" in last["first"] and "Why?" in last["second[0]"]
    assert "{hint}" in last["second[0]"] and "{answer}" in last["frozen"]


def test_the_schema_is_that_of_the_outputs() -> None:
    class Read(dspy.Signature):  # type: ignore[misc]
        """Read it."""

        text: str = dspy.InputField()
        label: Literal["a", "b"] = dspy.OutputField()
        scores: list[float] = dspy.OutputField()

    program = dspy.Predict(Read, temperature=0.3)
    program.lm = dspy.LM(
        "openai/gpt-4.1", api_key=SECRET, api_base="http://10.0.0.1/v1", max_tokens=77, temperature=0.9
    )
    text = export(program, "openai", {"text": "t"})
    body = json.loads(text)
    form = body["response_format"]["json_schema"]
    assert form["strict"] and form["name"] == "Read"
    assert form["schema"]["properties"]["label"]["enum"] == ["a", "b"]
    assert form["schema"]["required"] == ["label", "scores"] and form["schema"]["additionalProperties"] is False
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("{model}", 0.3, 77)
    assert "JSON object" in body["messages"][-1]["content"], "the messages ask for what the schema enforces"
    assert SECRET not in text and "10.0.0.1" not in text


class Basket(pydantic.BaseModel):
    """Names of its own, inside."""

    prices: dict[str, float] = {}


class Order(pydantic.BaseModel):
    """Names that are known."""

    pieces: list[int]


@pytest.mark.parametrize(
    ("kind", "is_open"),
    [
        (dict[str, int], True), (dict, True), (Basket, True), (list[dict[str, str]], True), (Basket | None, True),
        (Order, False), (list[Order] | None, False),
    ],
)  # fmt: skip
def test_a_type_that_no_strict_schema_allows_asks_for_json(kind: Any, is_open: bool) -> None:
    program = dspy.Predict(dspy.Signature("text -> found").with_updated_fields("found", type_=kind))
    form = json.loads(export(program, "openai"))["response_format"]
    assert (form == {"type": "json_object"}) is is_open and (form["type"] == "json_schema") is not is_open


def test_a_page_tells_a_gain_in_the_unit_of_the_metric() -> None:
    program = dspy.Predict("question -> answer")
    gain = Gain(1.5, math.nan, math.nan, 1.0, 1)
    keep(program, Provenance("0", "abo", 1, "t", "o", "d", "p", "s", None, gain, "2026-01-01"), program)
    assert "Gain on fresh examples: +1.5, p = 1, n = 1. Prompt" in export(program, "markdown")


@pytest.mark.parametrize("adapter", [dspy.XMLAdapter(), dspy.JSONAdapter(), dspy.TwoStepAdapter(EmbeddedLM())])
def test_messages_are_those_of_the_configured_adapter(adapter: dspy.Adapter) -> None:
    program = dspy.Predict("question -> answer")
    with dspy.context(adapter=adapter):
        found = json.loads(export(program, "messages"))
    assert found == adapter.format(program.signature, [], {"question": "{question}"})


@pytest.mark.parametrize(
    "signature",
    [
        "photo: dspy.Image, question -> answer",
        "history: dspy.History, question -> answer",
        "tools: list[dspy.Tool], question -> call: dspy.ToolCalls",
        "n: int, at: list[float] -> answer",
    ],
)
@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()])
def test_inputs_of_any_type_have_placeholders(signature: str, adapter: dspy.Adapter) -> None:
    program = dspy.Predict(signature)
    with dspy.context(adapter=adapter):
        for format in ("messages", "openai"):
            text = export(program, format)
            for name in set(program.signature.input_fields) - {"history"}:
                assert f"{{{name}}}" in text


def test_a_page_shows_everything_as_text() -> None:
    program = dspy.Predict("question -> answer")
    hostile = "Answer.\n```\n# Not a heading\n````\n<script>alert(1)</script>"
    program.signature = program.signature.with_instructions(hostile)
    keep(program, Provenance("0", "abo`\n# x", 1, "t", "o", "d", "p", "s", None, None, "2026-01-01"), program)
    page = export(program, "markdown")
    inside, fence = False, ""
    for line in page.splitlines():
        if not inside and line.startswith("```"):
            inside, fence = True, line.removesuffix("text")
        elif inside and line == fence:
            inside = False
        elif not inside:
            assert "script" not in line and "Not a heading" not in line and line != "# x"
    assert not inside and hostile.splitlines()[-1] in page and "Compiled by `abo' # x` of Cuesmith" in page
    assert "## Predictor `self`" in page


@pytest.mark.parametrize("format", ["messages", "openai"])
def test_json_reads_back_as_it_was_and_has_nothing_a_terminal_obeys(format: Any) -> None:
    instructions = "Say \x1b[31m \u202e it \x00 \x9b, as 漢字 🎈."
    text = export(dspy.Predict(dspy.Signature("question -> answer", instructions)), format)
    read = json.loads(text)
    assert instructions in (read["messages"] if format == "openai" else read)[0]["content"]
    assert text.replace("\n", "").isprintable() and "漢字 🎈" in text


def test_what_cannot_be_exported_is_one_line() -> None:
    program = dspy.Predict("question -> answer")
    prompter, nothing = Prompter(), dspy.Module()
    prompter.policy = cast(Any, object())  # a local model, which nothing here runs
    local = Prompted(prompter, program, ["question"])
    wrong: list[tuple[Callable[[], str], str]] = [
        (lambda: export(program, cast(Any, "yaml")), "format='yaml' must be one of messages, openai, markdown"),
        (lambda: export(program, "messages", {"q": 1}), "inputs has 'q', which no predictor takes: they take question"),
        (lambda: export(nothing, "messages"), "Module has no predictors, and so no prompt to export"),
        (lambda: export(local, "messages"), "a local prompter rewrites the inputs of this program"),
    ]
    for call, said in wrong:
        with pytest.raises(ValueError, match=re.escape(said)) as error:
            call()
        assert "\n" not in str(error.value)
    asking: dspy.Module = Prompted(Prompter(), program, ["question"])
    asked = json.loads(export(asking, "messages"))
    assert list(asked) == ["prompter.rewriting", "program"]
