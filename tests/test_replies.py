"""What comes back from the optimizer model: thinking, cut and refused replies, refused requests, options sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest
from dspy.lm15 import InvalidRequestError
from replies_support import Told, written

import cuesmith
from cuesmith.signatures import WriteSteps
from cuesmith.teleprompters import IterativeAPE
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.events import Event, Malformed
from cuesmith.teleprompters.runtime.replies import ADAPTER, is_refusal, reaches
from cuesmith.teleprompters.runtime.thinking import strip_thinking

GOOD = "BETTER: say the word."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>no</think>yes", "yes"),
        ("  <thinking>\nno\n</thinking>\n\nyes", "\n\nyes"),
        ("<unused94>no<unused95>yes", "yes"),
        ("◁think▷no◁/think▷yes", "yes"),
        ("<reasoning>a</reasoning><think>b</think>yes", "yes"),
        ("<THINK>no</THINK> yes", " yes"),
        ("[THINK]no[/THINK]yes", "yes"),
        ("<think>it never ends", ""),
        ("", ""),
        ("what the template opened\n</think>\n\nyes", "\n\nyes"),
        ("hm</think>", ""),
        ("<|channel|>analysis<|message|>no<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>", "yes"),
        ("yes", "yes"),
        ("Put your work into <think>...</think> tags.", "Put your work into <think>...</think> tags."),
        ("Close it with </think> and go on.", "Close it with </think> and go on."),
        ("a < b, thinking > c", "a < b, thinking > c"),
    ],
)
def test_thinking_is_taken_off_the_front(text: str, answer: str) -> None:
    assert strip_thinking(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<reasoning>a</reasoning><answer>b</answer>", "<reasoning>a</reasoning><answer>b</answer>"),
        ("<think>no</think><Reasoning>a</Reasoning>b", "<Reasoning>a</Reasoning>b"),
        ("no</think>\n<reasoning>a</reasoning>b", "\n<reasoning>a</reasoning>b"),
        ("a</reasoning>\nb", "a</reasoning>\nb"),
    ],
)
def test_a_tag_that_the_request_names_is_no_thinking(text: str, answer: str) -> None:
    assert strip_thinking(text, "Write <reasoning>{reasoning}</reasoning>") == answer


def test_a_chain_of_thought_in_xml_is_scored() -> None:
    target = Told(lambda system, user, n: "<reasoning>easy</reasoning>\n<answer>yes</answer>")
    example = dspy.Example(question="?", answer="yes").with_inputs("question")
    with dspy.context(lm=target.lm("target"), adapter=dspy.XMLAdapter()):
        found = cuesmith.evaluate(
            dspy.ChainOfThought("question -> answer"), [example], lambda e, p, trace=None: e.answer == p.answer
        )
    assert list(found.values) == [1.0]


@pytest.mark.parametrize("listed", [False, True])
def test_a_header_of_another_field_cuts_nothing(listed: bool) -> None:
    kind = "list[str]" if listed else "str"
    text = "BETTER: in this form:\n\n[[ ## answer ## ]]\n<the word>\n\nNever more."
    reply = f"[[ ## instruction ## ]]\n{text}\n\n[[ ## completed ## ]]\n\n[[ ## examples ## ]]\nmore"
    read = ADAPTER.parse(dspy.Signature(f"examples -> instruction: {kind}"), reply)["instruction"]
    joined = "\n".join(read) if listed else read
    assert joined.endswith("Never more.") and "[[ ##" in joined


def test_an_instruction_with_a_header_on_its_line_is_dropped_and_counted() -> None:
    found, _ = compiled(Told(written(f"{GOOD}\n\n[[ ## answer ## ]]\n<the word>\n\nNever more.")))
    assert "field header" in next(str(note) for note in found.notes if note.kind == "dropped" or "drafts" in note)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "Sorry, I am unable to comply.",
        "I’m sorry, I won’t be able to provide instructions for this.",
        "As an AI language model, I cannot generate that.",
        "As an AI language model, I am unable to rewrite this prompt.",
    ],
)
def test_a_refusal_is_known(text: str) -> None:
    assert is_refusal(text) and not is_refusal(f"Answer politely. If you must decline, say: {text}")


@pytest.mark.parametrize(
    "text",
    [
        "Sort the words.",
        "I have three apples; count them.",
        "Say that you are sorry, then answer.",
        "",
        "If you cannot, say so.",
    ],
)
def test_an_instruction_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)


def test_instructions_are_found_whatever_an_adapter_does_to_their_lines() -> None:
    assert reaches("Do it.\n\nStep 1: a", "your objective is:\n        Do it.\n        \n        Step 1: a\n")
    assert not reaches("Do it.", "Do that.")


def compiled(
    optimizer: Told, model: str = "test/optimizer", sampled_at: float | None = None, **lm: Any
) -> tuple[Compilation, list[Malformed]]:
    """Compile a student that is right only with `GOOD`."""
    target = Told(
        lambda system, asked, number: (
            "[[ ## answer ## ]]\n" + (re.findall(r"say (\w+)", asked)[-1] if "BETTER" in system else "none")
        )
    )
    events: list[Event] = []
    data = [dspy.Example(question=f"say w{k}", answer=f"w{k}").with_inputs("question") for k in range(12)]
    compiler = IterativeAPE(
        lambda example, prediction, trace=None: example.answer == prediction.answer,
        steps=1,
        width=1,
        branch=2,
        temperature=sampled_at,
        optimizer_lm=dspy.LM(model, engine=optimizer, cache=False, **lm),
        initial=6,
        callbacks=[events.append],
    )
    with dspy.context(lm=dspy.LM("test/target", engine=target, cache=False)):
        program = compiler.compile(dspy.Predict("question -> answer"), trainset=data)
    found = program.compilation
    assert isinstance(found, Compilation)
    return found, [event for event in events if isinstance(event, Malformed)]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (lambda s, u, n: (written(GOOD)(s, u, n), "length"), "cut"),
        (lambda s, u, n: (written(GOOD)(s, u, n), "content_filter"), "refused"),
        (written("I'm sorry, but I can't help with that."), "refused"),
        (lambda s, u, n: "I cannot assist with this request.", "refused"),
        (lambda s, u, n: "", "empty"),
        (written(" "), "empty"),
        (written("None"), "empty"),
        (lambda s, u, n: "<think>" + written(GOOD)(s, u, n), "thinking only"),
        (written("<think>it goes on"), "empty"),
        (lambda s, u, n: "Here is some prose.", "unreadable"),
    ],
)
def test_a_reply_of_no_use_is_a_lost_draw(reply: Callable[[str, str, int], Any], kind: str) -> None:
    found, lost = compiled(Told(reply))
    assert found.stopped_by is None and found.best.candidate == found.baseline.candidate
    assert len(found.candidates) == 1 and lost and {event.kind for event in lost} == {kind}


@pytest.mark.parametrize(
    "before", ["<think>{draft}</think>\n", "Sure.\n<think>{draft}</think>\n", "{draft}\n</think>\n"]
)
def test_a_draft_in_the_thinking_is_not_the_answer(before: str) -> None:
    def reply(system: str, asked: str, number: int) -> str:
        return before.format(draft=written("DRAFT")(system, asked, number)) + written(GOOD)(system, asked, number)

    found, lost = compiled(Told(reply))
    assert not lost and found.best.candidate.prompts["self"].instructions == GOOD


@pytest.mark.parametrize(
    ("body", "steps"),
    [
        ("- Copy the numbers.\n- Add them.", ["Copy the numbers.", "Add them."]),
        ("1. Copy the numbers.\n2) Add them.\n", ["Copy the numbers.", "Add them."]),
        ('Copy the "numbers".\n\nAdd them, 3 + 4.', ['Copy the "numbers".', "Add them, 3 + 4."]),
        ("```\n* Zähle 数.\n```", ["Zähle 数."]),
        ("Step 1: Copy.\nStep 2: Add.", ["Step 1: Copy.", "Step 2: Add."]),
        ('["Copy.", "Add."]', ["Copy.", "Add."]),
        ("['Copy.', 'Add.']", ["Copy.", "Add."]),
        ("-5 is the first.\n- 7 is the next.", ["-5 is the first.", "7 is the next."]),
    ],
)
@pytest.mark.parametrize("order", [("analysis", "task", "steps"), ("steps", "task")])
def test_a_list_that_is_written_line_by_line_is_read(body: str, steps: list[str], order: tuple[str, ...]) -> None:
    values = {"analysis": "hm", "task": "Add the numbers.", "steps": body}
    text = "\n\n".join(f"[[ ## {name} ## ]]\n{values[name]}" for name in order)
    read = ADAPTER.parse(WriteSteps, f"{text}\n\n[[ ## completed ## ]]")
    assert read["steps"] == steps and read["task"] == "Add the numbers."


def test_json_behind_thinking_is_read() -> None:
    def reply(system: str, asked: str, number: int) -> str:
        names = re.findall(r"`(\w+)`", asked.partition("fields: ")[2])
        return f"<think>hm, {{}}</think>{json.dumps(dict.fromkeys(names, GOOD))}" if names else "no such format"

    found, lost = compiled(Told(reply))
    assert not lost and found.best.candidate.prompts["self"].instructions == GOOD


def refusing(numbers: Sequence[int]) -> Told:
    def reply(system: str, asked: str, number: int) -> str:
        if number in numbers:
            raise InvalidRequestError("content_filter: the prompt was filtered")
        return written(GOOD)(system, asked, number)

    return Told(reply)


def test_a_refused_request_costs_its_draw() -> None:
    found, lost = compiled(refusing(range(1, 4)))
    assert found.stopped_by is None and found.best.candidate.prompts["self"].instructions == GOOD
    assert [event.kind for event in lost] == ["invalid request"] * 3


def test_a_provider_that_refuses_every_request_stops_the_run() -> None:
    data = [dspy.Example(question=f"say w{k}", answer=f"w{k}").with_inputs("question") for k in range(12)]
    target, optimizer = Told(lambda s, u, n: "[[ ## answer ## ]]\nnone"), refusing(range(1000))
    compiler = IterativeAPE(
        lambda example, prediction, trace=None: example.answer == prediction.answer,
        steps=1,
        initial=30,
        optimizer_lm=dspy.LM("test/optimizer", engine=optimizer, cache=False),
        max_in_flight=1,
    )
    with dspy.context(lm=dspy.LM("test/target", engine=target, cache=False)):
        found = compiler.compile(dspy.Predict("question -> answer"), trainset=data).compilation
    assert found.stopped_by == "configuration" and 8 <= len(optimizer.requests) < 30


@pytest.mark.parametrize(("options", "sent"), [({}, None), ({"temperature": 0.0}, 1.0), ({"temperature": 0.7}, 0.7)])
def test_a_temperature_that_nobody_set_is_not_sent(options: dict[str, Any], sent: float | None) -> None:
    engine = Told(written(GOOD))
    compiled(engine, **options)
    assert {request.config.temperature for request in engine.requests} == {sent}


@pytest.mark.parametrize(
    ("model", "options", "sent"),
    [
        ("test/optimizer", {}, 0.4),
        ("test/optimizer", {"temperature": 0.0}, 0.4),
        ("test/optimizer", {"temperature": 0.9}, 0.9),
        ("test/gpt-5", {}, None),
        ("test/gpt-5", {"temperature": 1.0}, 1.0),
    ],
)
def test_a_searchs_temperature_is_sent_unless_the_model_has_its_own_or_takes_none(
    model: str, options: dict[str, Any], sent: float | None
) -> None:
    engine = Told(written(GOOD))
    found, _ = compiled(engine, model, 0.4, **options)
    assert found.best.candidate.prompts["self"].instructions == GOOD
    assert {request.config.temperature for request in engine.requests} == {sent}


@pytest.mark.parametrize("adapter", [dspy.XMLAdapter(), dspy.JSONAdapter()])
def test_the_users_adapter_is_for_the_users_program(adapter: dspy.Adapter) -> None:
    engine = Told(written(GOOD))
    with dspy.context(adapter=adapter):
        compiled(engine)
    assert all(
        "[[ ## instruction ## ]]" in str(r.messages[-1].text)
        or "variation" in str(r.messages[-1].text)
        or "[[ ## summary ## ]]" in str(r.messages[-1].text)
        for r in engine.requests
    ) and not any("<instruction>" in str(r.system) for r in engine.requests)


class Plainly(dspy.BaseLM):  # type: ignore[misc]
    """A model as before dspy 3: called itself, and answering with texts."""

    def __call__(self, prompt: object = None, messages: Any = None, **options: object) -> list[str]:
        good, word = GOOD in messages[0]["content"], messages[-1]["content"].split("say ")[-1].split()[0]
        return [f"[[ ## answer ## ]]\n{word if good else 'no'}"]


def test_instructions_reach_a_model_that_is_called_itself() -> None:
    data = [dspy.Example(question=f"say w{k}", answer=f"w{k}").with_inputs("question") for k in range(12)]
    compiler = IterativeAPE(
        lambda example, prediction, trace=None: example.answer == prediction.answer,
        steps=1,
        initial=2,
        optimizer_lm=dspy.LM("test/optimizer", engine=Told(written(GOOD)), cache=False),
    )
    with dspy.context(lm=Plainly("own/model")):
        found = compiler.compile(dspy.Predict("question -> answer"), trainset=data).compilation
    assert found.best.candidate.prompts["self"].instructions == GOOD
    assert not [note for note in found.notes if getattr(note, "kind", "") == "unseen"]


class Rebuilt(dspy.Module):  # type: ignore[misc]
    """A program that says something else than its predictor does, or nothing at all."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.say, self.never = how, dspy.Predict("question -> answer"), dspy.Predict("question -> hint")

    def forward(self, question: str) -> dspy.Prediction:
        if self.how == "sound":
            self.never(question=question)
        if self.how == "replaced":
            return dspy.Predict(self.say.signature.with_instructions("Fixed."))(question=question)
        return self.say(question=question)


@pytest.mark.parametrize(("how", "unseen"), [("sound", set()), ("uncalled", {"never"}), ("replaced", {"say", "never"})])
def test_instructions_that_reach_no_prompt_are_found_out(how: str, unseen: set[str], tmp_path: Any) -> None:
    data = [dspy.Example(question=f"say w{k}", answer=f"w{k}").with_inputs("question") for k in range(12)]
    target = Told(lambda system, asked, number: "[[ ## answer ## ]]\nx\n[[ ## hint ## ]]\ny")
    notes = []
    for _ in range(2):  # the second time from the journal
        compiler = IterativeAPE(
            lambda example, prediction, trace=None: example.answer == prediction.answer,
            steps=1,
            width=1,
            branch=1,
            optimizer_lm=dspy.LM(
                "test/optimizer", engine=Told(lambda s, u, n: written(f"{GOOD} {n}")(s, u, n)), cache=False
            ),
            initial=2,
        )
        with dspy.context(lm=dspy.LM("test/target", engine=target, cache=False)):
            found = compiler.compile(Rebuilt(how), trainset=data, run_dir=tmp_path).compilation
        notes.append({note for note in found.notes if getattr(note, "kind", "") == "unseen"})
    assert notes[0] == notes[1] and {re.findall(r"'(\w+)'", note)[0] for note in notes[0]} == unseen
