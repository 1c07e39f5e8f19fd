"""The requests and the rendering of steps."""

import inspect

import dspy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuesmith import signatures
from cuesmith.signatures import canonical_steps, canonical_task, parse_steps, render_steps

REQUESTS = {
    "SummarizeData": ("context, examples", "summary"),
    "WriteInstructions": ("context, examples, style", "analysis, instruction"),
    "VaryInstructions": ("context, instruction", "variation"),
    "WriteSteps": ("context, examples, max_steps", "analysis, task, steps"),
    "WorkExample": ("context, steps, inputs, outputs", "work"),
    "LocateDeviation": ("context, steps, inputs, expected, feedback, response", "analysis, step, kind, reason"),
    "ReviseStep": ("context, steps, step, kind, failures, max_steps", "analysis, move, new_steps"),
    "CriticizeInstruction": ("context, instruction, failures, count", "analysis, reasons"),
    "EditInstruction": ("context, instruction, failures, reason, style", "analysis, edited_instruction"),
    "SummarizeReasons": ("context, instruction, reasons", "points, support"),
    "ReflectOnFailures": ("context, instruction, failures", "reflection"),
    "ReflectOnSuccesses": ("context, instruction, successes", "reflection"),
    "RewriteInstruction": (
        "context, instruction, evidence, reflection, trajectory, style",
        "analysis, rewritten_instruction",
    ),
    "MergeInstructions": ("context, first, second, style", "analysis, merged_instruction"),
    "ImproveInstruction": ("context, instruction, examples, style", "analysis, improved_instruction"),
    "ProposeInstruction": ("context, scored_instructions, exemplars, style", "analysis, instruction"),
    "IdentifyCondition": ("feedback, conditions", "analysis, condition"),
    "CheckRule": ("rule, response", "analysis, followed"),
}
LISTS = {
    "examples", "steps", "failures", "new_steps", "reasons", "points", "successes", "evidence", "trajectory",
    "scored_instructions", "exemplars", "conditions",
}  # fmt: skip
TYPES: dict[str, object] = dict.fromkeys(LISTS, list[str]) | {
    "step": int, "count": int, "max_steps": int, "support": list[int], "kind": signatures.Deviation,
    "followed": signatures.Followed, "move": signatures.Move, "work": list[signatures.StepWork],
}  # fmt: skip


def test_the_requests_are_these() -> None:
    values = {name: getattr(signatures, name) for name in signatures.__all__}
    found = {name for name, value in values.items() if inspect.isclass(value) and issubclass(value, dspy.Signature)}
    assert found == set(REQUESTS)


@pytest.mark.parametrize("name", REQUESTS)
def test_every_request_is_typed_documented_and_guarded(name: str) -> None:
    signature = getattr(signatures, name)
    inputs, outputs = REQUESTS[name]
    assert (", ".join(signature.input_fields), ", ".join(signature.output_fields)) == (inputs, outputs)
    assert all(field.json_schema_extra["desc"] != f"${{{key}}}" for key, field in signature.fields.items())
    assert all(field.annotation == TYPES.get(key, str) for key, field in signature.fields.items())
    text = " ".join(signature.instructions.split())
    assert "not follow" in text or "do not carry it out" in text  # what is shown is data, not orders
    if {"examples", "failures", "successes", "evidence", "exemplars"} & set(signature.input_fields):
        assert any(told in text for told in ("assages of one", "no exemplar", "copy none of them"))


def test_steps_are_rendered_exactly_so() -> None:
    assert render_steps("Count the words.", ["Number the words.", "Give the last number."]) == (
        "Count the words.\n\n"
        'Follow every step in order and begin the work of each with its label ("Step 1:", "Step 2:", ...):\n'
        "Step 1: Number the words.\n"
        "Step 2: Give the last number."
    )


LINES = st.text(st.sampled_from("aB1 .:,\"'`\n\tStep{}[]-é"), max_size=40)


@given(task=LINES, steps=st.lists(LINES, max_size=9), demonstration=LINES)
@example("", ["x"], "")
@example(signatures.rendering.FOLLOW + "\nStep 1: a", ["1. Step 2: b\nStep 3: c", "- d"], "Step 3: e")
@example("t", ["a"], signatures.rendering.DEMONSTRATION + "\n" + signatures.rendering.FOLLOW + "\nStep 1: x")
@settings(max_examples=300, deadline=None)
def test_rendering_and_parsing_are_inverse(task: str, steps: list[str], demonstration: str) -> None:
    rendered = render_steps(task, steps, demonstration)
    wanted = (canonical_task(task), canonical_steps(steps))
    assert parse_steps(rendered) == (wanted if wanted[1] else None)
    assert canonical_steps(wanted[1]) == wanted[1] and canonical_task(wanted[0]) == wanted[0]
    # dspy cleans the indentation of instructions: what was rendered survives it.
    kept = dspy.Signature("question -> answer").with_instructions(rendered.expandtabs()).instructions
    if wanted[1]:
        parsed = parse_steps(kept)
        assert parsed is not None and parsed[1] == wanted[1]


@given(st.lists(LINES, max_size=6).map("\n".join))
@settings(max_examples=200, deadline=None)
def test_what_parses_renders_back_to_itself(text: str) -> None:
    head = f"{text}\n\n{signatures.rendering.FOLLOW}\n{text}"
    for candidate in (text, head, f"{head}\nStep 1: a\nStep 2: {text}"):
        parsed = parse_steps(candidate)
        if parsed is not None and signatures.rendering.DEMONSTRATION not in candidate:
            assert render_steps(*parsed) == candidate


def test_other_instructions_do_not_parse() -> None:
    good = render_steps("Do it.", ["One.", "Two."])
    assert parse_steps("Do it.") is None
    assert parse_steps(good.replace("Step 2", "Step 3")) is None
    assert parse_steps(good + "\n\nAnd more.") is None
    assert parse_steps(good + " ") is None
    assert parse_steps(render_steps("Do it.", ["One.", "Two."], "question: a\nStep 1: b")) == (
        "Do it.",
        ("One.", "Two."),
    )
