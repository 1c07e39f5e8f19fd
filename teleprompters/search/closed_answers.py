"""What labels tell of an answer without a model: that it is always one of a few texts.

A weak optimizer that is shown solved examples describes the inputs, and may leave out that every answer was "True" or
"False"; a program that is never told so is never right. Source: ours. Outputs with a type that lists their values
(`Literal`, an enum, bool) need none of this: DSPy's adapters name them in every prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dspy

from cuesmith.teleprompters.runtime.evidence import answer_fields, labels_of

MOST = 20
"""Different answers that are named, at most. Ours."""

EACH = 4
"""Examples for each of them, in the mean: with fewer, those that are not seen may be many. Ours."""

LONGEST = 60
"""Characters of an answer. Ours."""


def closed_answers(
    examples: Sequence[dspy.Example], signatures: Mapping[str, type[dspy.Signature]]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return which outputs are always one of a few texts, which no number is.

    Args:
        examples: Training examples with labels.
        signatures: Stage -> its signature, in the program's order.

    Returns:
        (stage, output) -> its values, sorted; an output belongs to the last stage that has it.
    """
    last = {field: name for name, one in signatures.items() for field in answer_fields(one)}
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for field, name in last.items():
        if signatures[name].output_fields[field].annotation is not str:
            continue
        values = [labels_of(example).get(field) for example in examples]
        texts = {value for value in values if isinstance(value, str)}
        if len(texts) > 1 and None not in values and all(map(_nameable, values)) and (
                len(texts) <= min(MOST, len(values) // EACH)):  # fmt: skip
            found[name, field] = tuple(sorted(texts))
    return found


def _nameable(value: object) -> bool:
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST or not value.isprintable():
        return False
    return not value.strip(" +-%$€£").replace(",", "").replace(".", "").isdigit()
