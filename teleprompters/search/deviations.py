"""Where a response first leaves its steps: rules that need no model, and the count that decides what to edit.

Source: 2402.02101 section 6 analyses where the target fails to follow; the rules and the count are ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import dspy

from cuesmith.signatures import Deviation
from cuesmith.teleprompters.runtime.candidate import typed_fields
from cuesmith.teleprompters.runtime.evidence import (
    REASONING,
    answer_fields,
    expected,
    feedback_of,
    has_reasoning,
    inputs_of,
    render_fields,
    shown_failure,
    text_of,
)
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored

KINDS: tuple[Deviation, ...] = ("skipped", "misapplied", "insufficient", "format")
"""In the order that breaks ties."""

_LABEL = re.compile(r"\bstep\s*(\d{1,3})\s*\**\s*[:.)]", re.IGNORECASE)


def labelled(text: str) -> Iterator[tuple[int, str]]:
    """Yield (k, the work) of every "Step k:" in a text, in the text's order."""
    marks = list(_LABEL.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=False):
        yield int(mark[1]), text[mark.end() : end].strip(" \n\t*")


def first_missing(text: str, n_steps: int) -> int | None:
    """Return the first of the steps 1..n that has no label behind the label before it; None if all have one."""
    due = 1
    for number, _ in labelled(text):
        due += number == due
    return due if due <= n_steps else None


@dataclass(frozen=True)
class Failure:
    """What one predictor did on an example that the program failed on.

    Attributes:
        example: The program's example.
        inputs: What the predictor was given.
        expected: What should have come out as far as labels tell it, as `evidence.expected` names it.
        response: All that it wrote.
        reasoning: The text in which its steps' labels stand; None where nothing shows it.
        parsed: Whether its reply could be used.
        feedback: The metric's words, or the parse error.
        later: What later predictors made of it.
    """

    example: dspy.Example
    inputs: Mapping[str, object]
    expected: Mapping[str, object]
    response: str
    reasoning: str | None
    parsed: bool
    feedback: str
    later: str = ""

    def shown(self) -> str:
        """Return the failure as the optimizer is shown it."""
        return shown_failure(self.inputs, self.expected, self.response, self.feedback, self.later)


def read_failure(example: dspy.Example, outcome: Outcome, name: str, names: Sequence[str],
                 signature: type[dspy.Signature]) -> Failure | None:
    """Return what predictor `name` did in a failed run; None if it had no part in it.

    A reply that could not be used is that of the first predictor, in the program's order, without a call in the
    trace: the others are not blamed for it.

    Args:
        example: The program's example.
        outcome: What became of it.
        name: The predictor.
        names: All predictors.
        signature: The predictor's signature.
    """
    if not isinstance(outcome, Scored | ParseFailure):
        return None
    calls = [step for step in outcome.trace if step.predictor == name]
    feedback, right = feedback_of(outcome), expected(example, signature, alone=len(names) == 1)
    if isinstance(outcome, ParseFailure):
        done = {step.predictor for step in outcome.trace}
        if name != next((other for other in names if other not in done), None):
            return None
        inputs = inputs_of(example)
        reasoning = outcome.response if has_reasoning(signature) else None
        return Failure(example, inputs, right, outcome.response, reasoning, False, feedback)
    if not calls:
        return None
    last = calls[-1]
    inputs, outputs = typed_fields(last.inputs, signature), typed_fields(last.outputs, signature)
    reasoning = text_of(outputs.get(REASONING, "")) if has_reasoning(signature) else last.aside or None
    answered = all(text_of(outputs.get(field, "")).strip() for field in answer_fields(signature))
    response = "\n".join(part for part in (last.aside, render_fields(outputs)) if part)
    behind = [step for step in outcome.trace[outcome.trace.index(last) + 1 :] if step.predictor != name]
    later = "\n".join(f'"{step.predictor}" gave {render_fields(step.outputs)}' for step in behind)
    return Failure(example, inputs, right, response, reasoning, answered, feedback, later)


def by_rule(failure: Failure, n_steps: int) -> tuple[int, Deviation] | None:
    """Return the first deviating step and its kind where a rule can tell; None is for the model to tell.

    A step without its label in order was skipped. With all labels there, or none at all, a reply that could
    not be used, or an empty answer, breaks the last step, which is about the answer's form.

    Args:
        failure: The failed response.
        n_steps: How many steps it had to follow.
    """
    missing = None if failure.reasoning is None else first_missing(failure.reasoning, n_steps)
    if missing is not None and (failure.parsed or missing > 1):
        return missing, "skipped"
    return None if failure.parsed else (n_steps, "format")


@dataclass(frozen=True)
class Located:
    """A failure with its first deviating step, and what was found of it."""

    failure: Failure
    step: int
    kind: Deviation
    reason: str = ""

    def shown(self) -> str:
        """Return it as the optimizer is shown it."""
        found = f"\nfound: {self.reason}" if self.reason else ""
        return f"{self.failure.shown()}{found}"


def most_frequent(located: Sequence[Located]) -> list[tuple[int, Deviation]]:
    """Return the (step, kind) pairs, the most frequent first; ties: the earlier step, then `KINDS`."""
    counts = Counter((one.step, one.kind) for one in located)
    return sorted(counts, key=lambda pair: (-counts[pair], pair[0], KINDS.index(pair[1])))
