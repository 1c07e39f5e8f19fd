"""Showing a program's examples, answers and failures to the optimizer model, as text. Source: ours.

Only pure functions from values to text: what is asked of the optimizer stands in `cuesmith.signatures`, what
it is shown is rendered here, the same way for every compiler.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import dspy
import pydantic
from dspy.adapters.types.base_type import CUSTOM_TYPE_END_IDENTIFIER, CUSTOM_TYPE_START_IDENTIFIER
from pydantic_core import to_jsonable_python

from cuesmith.teleprompters.runtime.candidate import to_json
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored

REASONING = "reasoning"
"""The output field that `dspy.ChainOfThought` adds: room to think in, never a gold label."""

LONGEST = 4000
"""Characters of one value that the optimizer is shown at most; the middle of a longer one is left out."""

PROGRAMS = "the program's expected"
"""How a label is called that is not the shown predictor's."""

SHORT = 300
"""Characters of a value of dspy's own types that are shown as they are."""


def text_of(value: object) -> str:
    """Return a field's value as text for a reader.

    A string is itself, other values are JSON data. What is no text (an image, a recording, a file) is named by its
    kind and size, also inside lists, mappings and models: a part of it would be of no use to anyone.
    """
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    data = _shown(value)
    return sound(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False))


def _shown(value: object) -> object:
    match value:
        case str():
            found = _MEDIUM.fullmatch(value)
            return f"<{found[1]}, {_size(value)}>" if found else _named("", value) if _is_marked(value) else value
        case pydantic.BaseModel():
            written = to_jsonable_python(value, fallback=str, bytes_mode="base64")
            if _is_marked(written):
                return _named(type(value).__name__.lower(), written)
            if isinstance(value, dspy.Type) or CUSTOM_TYPE_START_IDENTIFIER not in json.dumps(written):
                return written
            return {name: _shown(getattr(value, name)) for name in type(value).model_fields}
        case Mapping():
            return {str(name): _shown(held) for name, held in value.items()}
        case list() | tuple():
            return [_shown(held) for held in value]
        case _:
            return to_json(value)


_MEDIUM = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w=-]+)*,\S{200,}")
"""A whole text that is an encoded file."""


_TELLING = ("filename", "title", "format", "media_type")
"""What of a block says which file it is."""


def _is_marked(value: object) -> bool:
    return isinstance(value, str) and value.startswith(CUSTOM_TYPE_START_IDENTIFIER)


def _named(name: str, marked: str) -> str:
    """Return what stands for a value that dspy writes as blocks of a message; the blocks themselves if they are short
    text."""
    inner = marked.removeprefix(CUSTOM_TYPE_START_IDENTIFIER).removesuffix(CUSTOM_TYPE_END_IDENTIFIER)
    try:
        leaves = _leaves(json.loads(inner))
    except ValueError:
        leaves = [("", inner)]
    longest = max((text for _, text in leaves), key=len, default="")
    encoded = re.match(r"data:([\w.+-]+/[\w.+-]+)", longest)
    if len(inner) <= SHORT and not encoded:
        return inner
    kinds = [text for key, text in leaves if key in _TELLING and len(text) <= SHORT]
    about = ", ".join([*kinds, *([encoded[1]] if encoded else [])])
    kind = name or next((text for key, text in leaves if key == "type"), "value").partition("_")[0]
    return f"<{kind} {about}, {_size(longest)}>" if about else f"<{kind}, {_size(longest)}>"


def _leaves(data: object, key: str = "") -> list[tuple[str, str]]:
    match data:
        case str():
            return [(key, data)]
        case dict():
            return [leaf for name, held in data.items() for leaf in _leaves(held, str(name))]
        case list():
            return [leaf for held in data for leaf in _leaves(held, key)]
        case _:
            return []


def _size(encoded: str) -> str:
    """Return about how large the file is that a text encodes in base 64."""
    return f"{max(1, round(len(encoded) * 3 / 4000))} kB"


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
    return own_gold(example, signature) or labels_of(example)


def own_gold(example: dspy.Example, signature: type[dspy.Signature]) -> dict[str, object]:
    """Return the labels of an example that `signature` has as answers."""
    labels = labels_of(example)
    return {name: labels[name] for name in answer_fields(signature) if name in labels}


def expected(example: dspy.Example, signature: type[dspy.Signature], *, alone: bool) -> dict[str, object]:
    """Return what should come out on an example, by name.

    Args:
        example: The program's example.
        signature: A predictor's.
        alone: Whether the program has no other predictor: if it has, labels that are none of this one's outputs are
            called the program's.
    """
    own = own_gold(example, signature)
    if own or alone:
        return own or labels_of(example)
    return {f"{PROGRAMS} {name}": value for name, value in labels_of(example).items()}


def inputs_of(example: dspy.Example) -> dict[str, object]:
    """Return the inputs of an example, as the program gets them."""
    return {str(name): value for name, value in example.inputs().items()}


def labels_of(example: dspy.Example) -> dict[str, object]:
    """Return what of an example is no input: the right answers, and what else its metric reads."""
    return {str(name): value for name, value in example.labels().items()}


def shown_example(inputs: Mapping[str, object], outputs: Mapping[str, object]) -> str:
    """Return a solved example for the optimizer: inputs first, right outputs last."""
    return render_fields({**inputs, **outputs})


def as_expected(values: Mapping[str, object]) -> dict[str, object]:
    """Return what `expected` gives under names that say so."""
    return {name if name.startswith(PROGRAMS) else f"expected {name}": held for name, held in values.items()}


def shown_failure(
    inputs: Mapping[str, object], expected: Mapping[str, object], response: str, feedback: str = "", later: str = ""
) -> str:
    """Return a failed example for the optimizer.

    Args:
        inputs: The predictor's.
        expected: What should have come out, as the function of that name gives it.
        response: What the predictor wrote.
        feedback: The metric's words.
        later: What the later predictors made of it.
    """
    entries: dict[str, object] = {**inputs, **as_expected(expected), "response": response}
    if later:
        entries["later stages"] = later
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
