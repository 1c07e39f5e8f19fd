"""Worked demonstrations: examples worked by visibly following every step.

Source: 2402.02101 section 6 (an example of following the instruction is part of the prompt, and without it the
gain is lost); the tests a demonstration must pass are ours.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

import dspy

from cuesmith.signatures import render_steps
from cuesmith.teleprompters.runtime.candidate import Demo, Prompt
from cuesmith.teleprompters.runtime.evidence import REASONING, has_reasoning, render_fields, text_of
from cuesmith.teleprompters.runtime.guards import HEADER
from cuesmith.teleprompters.search.deviations import labelled
from cuesmith.teleprompters.search.material import Case

LONGEST_WORK = 4000
"""Characters the work of an example may have. Ours."""

SHORT_ANSWER = 12
"""Words of an answer that the work must end in; a longer one is not compared word by word. Ours."""


@dataclass(frozen=True)
class Demonstration:
    """A case and the work that follows every step to its answer."""

    case: Case
    work: str


@dataclass(frozen=True)
class Behavior:
    """What a predictor is to do: its task, the steps and demonstrations of following them."""

    task: str
    steps: tuple[str, ...]
    demonstrations: tuple[Demonstration, ...] = ()

    def prompt(self, signature: type[dspy.Signature]) -> Prompt:
        """Write the behaviour as a predictor's prompt.

        The work goes where the predictor thinks: into the `reasoning` field of its demonstrations, or, where
        it has none, with the example into the instructions.

        Args:
            signature: The predictor's signature.
        """
        if has_reasoning(signature):
            demos = tuple(_demo(one, signature) for one in self.demonstrations)
            return Prompt(render_steps(self.task, self.steps), demos)
        inlined = "\n\n".join(
            f"{render_fields(one.case.inputs)}\n{one.work}\n{render_fields(one.case.outputs)}"
            for one in self.demonstrations)
        return Prompt(render_steps(self.task, self.steps, inlined))


def _demo(one: Demonstration, signature: type[dspy.Signature]) -> Demo:
    values: Mapping[str, object] = {**one.case.inputs, REASONING: one.work, **one.case.outputs}
    return Demo.of({name: values[name] for name in signature.fields if name in values})


def fault(work: str, n_steps: int, outputs: Mapping[str, object]) -> str | None:
    """Return why a worked example may not become a demonstration; None if it may.

    Args:
        work: What was written.
        n_steps: How many steps it had to follow.
        outputs: The right outputs.
    """
    parts = list(labelled(work))
    if [number for number, _ in parts] != list(range(1, n_steps + 1)):
        return "it does not carry the label of every step in order"
    if not all(text for _, text in parts):
        return "the work of a step is empty"
    if len(work) > LONGEST_WORK or HEADER in work:
        return "it is too long or holds a field's header"
    return None if ends_in(parts[-1][1], outputs) else "its last step does not end in the right answer"


def ends_in(text: str, outputs: Mapping[str, object]) -> bool:
    """Return whether a text ends in one of the outputs and holds them all, up to case and punctuation.

    Only answers of at most `SHORT_ANSWER` words are looked for: the work of a longer one sums it up.
    """
    written = _words(text)
    answers = [_words(text_of(value)) for value in outputs.values()]
    short = [answer for answer in answers if 0 < len(answer) <= SHORT_ANSWER]
    if not short:
        return True
    return all(_holds(written, answer) for answer in short) and any(
        written[-len(answer):] == answer for answer in short)


def _words(text: str) -> list[str]:
    """The words, numbers with their sign, and ideographs one by one."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|(?<![\w.])-?\d+(?:[.,]\d+)*|[^\W_]+", plain)


def _holds(written: list[str], answer: list[str]) -> bool:
    n = len(answer)
    return any(written[i : i + n] == answer for i in range(len(written) - n + 1))
