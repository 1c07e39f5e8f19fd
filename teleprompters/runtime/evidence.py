"""Showing a program's examples, answers and failures to the optimizer model, as text. Source: ours.

Only pure functions from values to text: what is asked of the optimizer stands in `cuesmith.signatures`, what
it is shown is rendered here, the same way for every compiler.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import dspy

from cuesmith.teleprompters.runtime.candidate import to_json
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored

REASONING = "reasoning"
"""The output field that `dspy.ChainOfThought` adds: room to think in, never a gold label."""

LONGEST = 4000
"""Characters of one value that the optimizer is shown at most; the middle of a longer one is left out."""


def text_of(value: object) -> str:
    """Return a field's value as text: a string as it is, other values as JSON data, a boolean as Python's."""
    if isinstance(value, str):
        return sound(value)
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    data = to_json(value)
    return sound(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False))


def sound(text: str) -> str:
    """Return a text with "?" for each half of a surrogate pair, which no file and no request can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def render_fields(values: Mapping[str, object]) -> str:
    """Return one "name: value" entry a line for each field, in the mapping's order."""
    return "\n".join(f"{name}: {shortened(text_of(value))}" for name, value in values.items())


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return `text`, or its beginning and end with "[...]" between where it has more characters."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} [...] {text[-(longest - longest // 2) :]}"


def answer_fields(signature: type[dspy.Signature]) -> tuple[str, ...]:
    """Return the names of the output fields that are answers, that is, without the reasoning."""
    names = tuple(signature.output_fields)
    return tuple(name for name in names if name != REASONING) or names


def has_reasoning(signature: type[dspy.Signature]) -> bool:
    """Return whether there is a reasoning field beside the answers."""
    return REASONING in signature.output_fields and REASONING not in answer_fields(signature)


def gold(example: dspy.Example, signature: type[dspy.Signature]) -> dict[str, object]:
    """Return the labels of an example that `signature` has as answers; all labels where it has none of them."""
    labels = labels_of(example)
    own = {name: labels[name] for name in answer_fields(signature) if name in labels}
    return own or labels


def inputs_of(example: dspy.Example) -> dict[str, object]:
    """Return the inputs of an example, as the program gets them."""
    return {str(name): value for name, value in example.inputs().items()}


def labels_of(example: dspy.Example) -> dict[str, object]:
    """Return what of an example is no input: the right answers, and what else its metric reads."""
    return {str(name): value for name, value in example.labels().items()}


def shown_example(inputs: Mapping[str, object], outputs: Mapping[str, object]) -> str:
    """Return a solved example for the optimizer: inputs first, right outputs last."""
    return render_fields({**inputs, **outputs})


def shown_failure(
    inputs: Mapping[str, object], expected: Mapping[str, object], response: str, feedback: str = ""
) -> str:
    """Return a failed example for the optimizer: inputs, expected outputs, the response, the metric's words."""
    entries: dict[str, object] = {**inputs, **{f"expected {name}": v for name, v in expected.items()}}
    entries["response"] = response
    if feedback:
        entries["feedback"] = feedback
    return render_fields(entries)


def feedback_of(outcome: Outcome) -> str:
    """Return what is known about why an outcome is no success: the metric's feedback or the parse error."""
    match outcome:
        case Scored(feedback=feedback):
            return feedback
        case ParseFailure(reason=reason):
            return reason
        case _:
            return ""


def describe_task(signature: type[dspy.Signature], instructions: str) -> str:
    """Return what a program says of a predictor's task: its instructions and its fields with their types.

    Args:
        signature: The predictor's signature.
        instructions: Its present instructions.
    """
    inputs = [_describe_field(signature, name) for name in signature.input_fields]
    outputs = [_describe_field(signature, name) for name in answer_fields(signature)]
    return "\n".join([instructions, f"inputs: {', '.join(inputs)}", f"outputs: {', '.join(outputs)}"])


def _describe_field(signature: type[dspy.Signature], name: str) -> str:
    info = signature.fields[name]
    kind = getattr(info.annotation, "__name__", None) if isinstance(info.annotation, type) else None
    extra = info.json_schema_extra
    said = extra.get("desc") if isinstance(extra, dict) else None
    known = f": {said}" if isinstance(said, str) and said and said != f"${{{name}}}" else ""
    return f"{name} ({kind or info.annotation}{known})"
