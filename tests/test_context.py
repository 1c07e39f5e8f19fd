"""What every request is told of the program: fields, values, stage, what follows, what is rewarded, the data."""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable
from typing import Any, Literal

import dspy
import pydantic
import pytest
from replies_support import Told

from cuesmith import Budget
from cuesmith.modules.simulated.request import Asked
from cuesmith.teleprompters.registry import compile as compile_by_name
from cuesmith.teleprompters.registry import compiler_class
from cuesmith.teleprompters.runtime.thinking import thinks
from cuesmith.teleprompters.search.closed_answers import closed_answers
from cuesmith.teleprompters.search.context import ProgramContext, kind_of, rewarded
from cuesmith.testing import Engine
from cuesmith.testing.fakes import simulated

OURS = ["iterative-ape", "apo", "apo-sum", "prompt-agent", "opro", "abo", "reflective-mutation", "portfolio"]
MULTI = ["unified", "native"]


class Extract(dspy.Signature):  # type: ignore[misc]
    """Note what the mail wants."""

    mail: str = dspy.InputField(desc="an e-mail from a tenant")
    notes: str = dspy.OutputField(desc="the wish in the tenant's words")


class Sort(dspy.Signature):  # type: ignore[misc]
    """Sort the wish."""

    wish: str = dspy.InputField(desc="what was noted")
    urgency: Literal["low", "high"] = dspy.OutputField(desc="how soon somebody has to come")


class Desk(dspy.Module):  # type: ignore[misc]
    """Two stages; the output of the first has another name as the second's input."""

    def __init__(self) -> None:
        super().__init__()
        self.extract, self.sort = dspy.Predict(Extract), dspy.ChainOfThought(Sort)

    def forward(self, mail: str) -> dspy.Prediction:
        """Sort a mail."""
        return self.sort(wish=self.extract(mail=mail).notes)


def answer(system: str, text: str, number: int) -> str:
    """Answer every third mail wrongly."""
    mail = int(re.findall(r"mail (\d+)", text)[-1])
    if "[[ ## wish ## ]]" not in text:
        return f"[[ ## notes ## ]]\nthe tenant of mail {mail} wants a repair\n\n[[ ## completed ## ]]"
    urgency = ("low", "high")[mail % 2 if mail % 3 else (mail + 1) % 2]
    return f"[[ ## reasoning ## ]]\nSo.\n\n[[ ## urgency ## ]]\n{urgency}\n\n[[ ## completed ## ]]"


def right(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    """Whether the urgency is the one that the desk gave it.

    Anything else is of no interest.
    """
    return bool(prediction.urgency == example.urgency)


MAILS = [dspy.Example(mail=f"mail {k}", urgency=("low", "high")[k % 2]).with_inputs("mail") for k in range(60)]


def requests(name: str, **options: Any) -> list[str]:
    optimizer = Engine(simulated())
    with dspy.context(lm=Told(answer).lm("desk")):
        compile_by_name(Desk(), name, metric=right, trainset=MAILS, progress=False,
                        optimizer_lm=optimizer.lm("optimizer"), **options)  # fmt: skip
    assert optimizer.sent
    return [sent.user for sent in optimizer.sent]


@functools.cache
def usual(name: str, form: str) -> list[str]:
    small = {"steps": 2, "width": 2, "branch": 2, "initial": 2, "task_description": "Tenants write to a desk."}
    if (name, form) == ("apo", "native"):
        small["selection"] = "full"
    return requests(name, search=form, minibatch=12, **small)


@pytest.mark.parametrize("form", MULTI)
@pytest.mark.parametrize("name", OURS)
def test_every_request_knows_the_program(name: str, form: str) -> None:
    for text in usual(name, form):
        context = text.partition("[[ ## context ## ]]\n")[2].partition("\n\n[[ ## ")[0]
        assert re.search(r'this stage: "(extract|sort)', context)
        assert '"extract" (mail -> notes), then "sort.predict" (wish -> urgency)' in context
        for told in (
            "an e-mail from a tenant",
            "the wish in the tenant's words",
            "what was noted",
            "how soon",
            "one of 'low', 'high'",
            'goes to stage "sort.predict" as wish',
            "the program's answer",
        ):
            assert told in context, told
        if "[[ ## summary ## ]]" not in text:  # the data are to be summarised, not what else is known
            assert "how answers are scored: Whether the urgency is the one that the desk gave it." in context
            assert "task: Tenants write to a desk." in context
        assert "Anything else" not in context
        assert ("the data: " in context) == (form == "unified" and "[[ ## summary ## ]]" not in text)


@pytest.mark.parametrize("name", OURS)
def test_no_stage_is_shown_anothers_label_as_its_own(name: str) -> None:
    found = usual(name, "unified")
    first = [text for text in found if 'this stage: "extract"' in text]
    assert first and not any("expected urgency" in t.replace("the program's expected urgency", "") for t in first)
    failed = [text for text in first if Asked.parse(text).texts("failures")]
    assert failed or name in ("iterative-ape", "opro", "abo", "reflective-mutation")
    assert all("the program's expected urgency: " in text and '\\"sort.predict\\" gave' in text for text in failed)
    last = [text for text in found if 'this stage: "sort.predict"' in text]
    assert last and not any("the program's expected" in text for text in last)


@pytest.mark.parametrize("analysis", [True, False])
def test_analysis_comes_first_or_not_at_all(analysis: bool) -> None:
    wanted = ("WriteInstructions", "CriticizeInstruction", "EditInstruction")
    for text in requests("apo", analysis=analysis, steps=1, width=1, branch=1, initial=1):
        asked = Asked.parse(text)
        if asked.name in wanted:
            assert next(iter(asked.outputs)) == "analysis" if analysis else "analysis" not in asked.outputs


@pytest.mark.parametrize(("style", "told"), [("brief", "short: "), ("expert", "as an expert would brief")])
def test_the_style_is_what_was_chosen(style: str, told: str) -> None:
    found = [Asked.parse(text).text("style") for text in requests("opro", style=style, steps=1, width=1, branch=1)]
    assert [text for text in found if text] and all(text.startswith(told) for text in found if text)


def test_the_summary_is_one_call_or_none() -> None:
    for wanted in (True, False):
        found = requests("iterative-ape", dataset_summary=wanted, steps=1, width=1, branch=1, initial=1)
        assert sum("[[ ## summary ## ]]" in text for text in found) == wanted


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"analysis": "never"}, ValueError),
        ({"style": "long"}, ValueError),
        ({"task_description": None}, TypeError),
        ({"dataset_summary": "yes"}, TypeError),
        ({"metric_description": 3}, TypeError),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        compiler_class("apo")(right, **options)


def test_what_nobody_wrote_is_not_shown_as_an_instruction() -> None:
    for program in (dspy.Predict("question -> answer"), dspy.ChainOfThought("question -> answer: int")):
        ((name, predictor),) = program.named_predictors()
        own = predictor.signature.instructions
        context = ProgramContext({name: predictor.signature}, {name: own})
        assert "present instruction" not in context.shown(name, own)
        assert "present instruction: Add." in context.shown(name, "Add.")


class Colour(enum.Enum):
    """Two of them."""

    RED, BLUE = "red", "blue"


class Room(pydantic.BaseModel):
    """A room."""

    floor: int = pydantic.Field(description="0 is the ground")
    colour: Colour
    beside: Room | None = None


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (str, "str"),
        (int, "int"),
        (Literal["a", 2], "one of 'a', 2"),
        (Colour, "one of 'red', 'blue'"),
        (list[str], "list of str"),
        (dict[str, float], "mapping from str to float"),
        (int | None, "int or none"),
        (list[Literal["x"]], "list of one of 'x'"),
        (tuple[int, str], "tuple of int and str"),
        (Any, "Any"),
        (Room, "Room with {floor: int (0 is the ground); colour: one of 'red', 'blue'; beside: Room or none}"),
    ],
)
def test_types_are_told_with_their_values(annotation: Any, told: str) -> None:
    assert kind_of(annotation) == told


def test_long_lists_of_values_are_cut() -> None:
    many = Literal[tuple(f"v{k}" for k in range(150))]  # type: ignore[valid-type]
    assert kind_of(many).endswith("'v99' and 50 more")


class Judge:
    """Says how good an answer is."""

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (right, "Whether the urgency is the one that the desk gave it."),
        (lambda e, p: 1.0, ""),
        (functools.partial(right, trace=None), "Whether the urgency is the one that the desk gave it."),
        (Judge(), "Says how good an answer is."),
        (dspy.evaluate.answer_exact_match, None),
    ],
)
def test_a_metric_tells_what_it_rewards(metric: Callable[..., Any], told: str | None) -> None:
    found = rewarded(metric)
    assert found == told if told is not None else found


@pytest.mark.parametrize(
    ("model", "options", "thinking"),
    [
        ("openai/gpt-4.1", {}, False),
        ("openai/o3", {}, True),
        ("openai/o4-mini", {}, True),
        ("openai/gpt-5-mini", {}, True),
        ("openai/gpt-5-chat-latest", {}, False),
        ("anthropic/claude-sonnet-4-5", {}, False),
        ("anthropic/claude-sonnet-4-5", {"reasoning_effort": "low"}, True),
        ("anthropic/claude-sonnet-4-5", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ("deepseek/deepseek-reasoner", {}, True),
        ("deepseek/deepseek-chat", {}, False),
        ("gemini/gemini-2.5-pro", {}, True),
        ("ollama/qwq", {}, True),
        ("openai/gpt-4.1", {"reasoning_effort": "none"}, False),
    ],
)
def test_models_that_think_by_themselves_are_known(model: str, options: dict[str, Any], thinking: bool) -> None:
    assert thinks(dspy.LM(model, **options)) is thinking


LABELLED = [dspy.Example(mail=f"mail {k}", urgency=("low", "high")[k % 2]).with_inputs("mail") for k in range(60)]
NAMED = "The field `urgency` is exactly one of: high, low."


def _told(system: str, text: str, number: int) -> str:
    """Answer rightly, but in the label's words only where the prompt names them."""
    urgency = ("low", "high")[int(re.findall(r"mail (\d+)", text)[-1]) % 2]
    said = urgency if NAMED in system else f"It is {urgency}."
    return f"[[ ## urgency ## ]]\n{said}\n\n[[ ## completed ## ]]"


@pytest.mark.parametrize("form", ["unified", "frontier", "native"])
@pytest.mark.parametrize("name", OURS[:-1])
def test_answers_that_are_few_texts_are_named_without_the_optimizers_help(name: str, form: str) -> None:
    optimizer = Engine(simulated())
    options: dict[str, Any] = {"selection": "full"} if (name, form) == ("apo", "native") else {}
    with dspy.context(lm=Told(_told).lm("desk")):
        compiled = compile_by_name(
            dspy.Predict("mail -> urgency"), name, metric=right, trainset=LABELLED, progress=False, search=form,
            steps=1, width=1, branch=1, initial=1, minibatch=8, budget=Budget(calls=400),
            optimizer_lm=optimizer.lm("optimizer"), **options)  # fmt: skip
    native = form == "native"
    assert (NAMED in compiled.signature.instructions) is not native
    selected = compiled.compilation.best.select
    assert selected is not None and selected.mean == (0.0 if native else 1.0)
    assert all(("; in the examples always one of 'high', 'low'" in sent.user) is not native for sent in optimizer.sent)


@pytest.mark.parametrize(
    "labels",
    [
        ["low", "high", *map(str, range(58))],  # many
        [str(k % 3) for k in range(60)],  # numbers, of which others may come
        ["$1,000.50", "7 %"] * 30,
        ["low", None] * 30,
        ["low"] * 60,
        ["low\nhigh", "high"] * 30,
        ["low" * 30, "high"] * 30,
        [True, False] * 30,
    ],
)
def test_answers_that_are_not_always_few_texts_are_not_named(labels: list[object]) -> None:
    examples = [dspy.Example(mail="m", urgency=label).with_inputs("mail") for label in labels]
    signature = dspy.Signature("mail -> urgency")
    assert closed_answers(examples, {"self": signature}) == {}
    assert closed_answers(LABELLED, {"first": signature, "last": signature}) == {("last", "urgency"): ("high", "low")}
    assert closed_answers(LABELLED, {"self": dspy.Signature("mail -> urgency: Literal['low', 'high']")}) == {}
