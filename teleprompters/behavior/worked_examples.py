"""Behaviours and the candidates written from them: steps, and examples worked by visibly following every step.

Source: 2402.02101 section 6 (an example of following the instruction is part of the prompt, and without it the
gain is lost); the tests a demonstration must pass, and the retries, are ours.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dspy

from cuesmith.signatures import WorkExample, render_steps
from cuesmith.teleprompters.behavior.steps import labelled, under_labels
from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, Origin, Prompt, question_key, typed_fields
from cuesmith.teleprompters.runtime.evidence import REASONING, answer_fields, has_reasoning, render_fields, text_of
from cuesmith.teleprompters.runtime.guards import HEADER
from cuesmith.teleprompters.runtime.outcomes import Scored, Scores, value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.context import Requests
from cuesmith.teleprompters.search.examples import Case
from cuesmith.teleprompters.search.scene import Scene

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
        texts = (
            f"{render_fields(one.case.inputs)}\n{one.work}\n{render_fields(one.case.outputs)}"
            for one in self.demonstrations
        )
        inlined = "\n\n".join(text for text in texts if HEADER not in text)  # which would begin a field there
        return Prompt(render_steps(self.task, self.steps, inlined))


def _demo(one: Demonstration, signature: type[dspy.Signature]) -> Demo:
    values: Mapping[str, object] = {**one.case.inputs, REASONING: one.work, **one.case.outputs}
    return Demo.of({name: values[name] for name in signature.fields if name in values})


@dataclass(frozen=True)
class Draft:
    """A candidate and what its changed predictors are to do.

    Attributes:
        candidate: The prompts.
        behaviors: Predictor name -> behaviour; a predictor that still has the student's prompt is not in it.
    """

    candidate: Candidate
    behaviors: Mapping[str, Behavior]

    @classmethod
    def of(cls, scene: Scene, candidate: Candidate) -> Draft:
        """Return what a candidate of the search was written from; of another's, that nothing is known."""
        known = scene.memory.get(candidate.id)
        return known if isinstance(known, cls) else cls(candidate, {})

    def change(self, scene: Scene, behaviors: Mapping[str, Behavior], origin: Origin) -> Candidate:
        """Return a candidate with other behaviours for some predictors, and remember what it is written from."""
        signatures = {name: predictor.signature for name, predictor in scene.run.predictors.items()}
        prompts = {name: behavior.prompt(signatures[name]) for name, behavior in behaviors.items()}
        candidate = Candidate({**self.candidate.prompts, **prompts}, origin)
        lost = [name for name in prompts if name not in self.behaviors and self.candidate.prompts[name].demos]
        if lost:
            scene.run.note(
                f"Prompts with steps leave out the demonstrations that {', '.join(map(repr, lost))} came with: "
                "those follow no steps."
            )
        scene.memory.setdefault(candidate.id, Draft(candidate, {**self.behaviors, **behaviors}))
        return candidate

    def shows(self) -> set[str]:
        """Return the contents of the examples that are its demonstrations."""
        return {question_key(one.case.example) for b in self.behaviors.values() for one in b.demonstrations}


def outside_demonstrations(drafts: Sequence[Draft], examples: Sequence[dspy.Example]) -> list[dspy.Example]:
    """Return the examples that none of the drafts demonstrates; all of them if there is no other."""
    shown: set[str] = set().union(*(draft.shows() for draft in drafts))
    return [example for example in examples if question_key(example) not in shown] or list(examples)


async def demonstrate(
    requests: Requests,
    name: str,
    task: str,
    steps: Sequence[str],
    cases: Sequence[Case],
    *,
    retries: int,
    threshold: float,
    salt: str,
) -> tuple[Demonstration, ...]:
    """Have each case worked by following the steps, and return the demonstrations in the order of their cases.

    A demonstration is kept only if its outputs earn the metric on its own example, its work carries every
    step's label in order, and the last step ends in the outputs. The run counts the others by what is wrong with them.

    Args:
        requests: Asks.
        name: The predictor.
        task: What it has to do.
        steps: What to follow.
        cases: What to work; their outputs are right as far as labels and past successes tell.
        retries: Further draws for a case whose work does not pass; then it is dropped.
        threshold: The score that earns the metric.
        salt: Separates draws on the same steps and cases.
    """
    run = requests.run
    found = await asyncio.gather(
        *(_work(requests, name, task, steps, case, retries, threshold, salt) for case in cases)
    )
    run.seen.worked += len(found)
    run.seen.unworked.update(one for one in found if isinstance(one, str))
    return tuple(one for one in found if isinstance(one, Demonstration))


async def _work(
    requests: Requests,
    name: str,
    task: str,
    steps: Sequence[str],
    case: Case,
    retries: int,
    threshold: float,
    salt: str,
) -> Demonstration | str:
    """Return the demonstration, or why there is none."""
    if not await _earns(requests.run, case, threshold):
        return "its own outputs do not earn the metric"
    request = {"steps": list(steps), "inputs": render_fields(case.inputs), "outputs": render_fields(case.outputs)}
    why: str | None = "the optimizer gave no work"
    for attempt in range(retries + 1):
        asked = requests.ask(WorkExample, name, request, instructions=task, salt=f"{salt}, try {attempt}")
        for reply in await asked:
            work = under_labels(reply.get("work"))
            why = fault(work, steps, case.outputs)
            if why is None:
                return Demonstration(case, work)
    return str(why)


def followed(
    ran: Scores, name: str, signature: type[dspy.Signature], steps: Sequence[str], threshold: float
) -> list[Demonstration]:
    """Return the runs of a candidate in which predictor `name` followed its steps to a success, as demonstrations.

    Args:
        ran: The candidate's outcomes.
        name: The predictor.
        signature: Its signature.
        steps: What it had to follow.
        threshold: The score of a success.
    """
    found = []
    for example, outcome in zip(ran.examples, ran.outcomes, strict=True):
        calls = [step for step in outcome.trace if step.predictor == name] if isinstance(outcome, Scored) else []
        if not calls or not isinstance(outcome, Scored) or outcome.score < threshold:
            continue
        inputs, outputs = (typed_fields(values, signature) for values in (calls[-1].inputs, calls[-1].outputs))
        work = text_of(outputs.get(REASONING, "")) if has_reasoning(signature) else calls[-1].aside
        right = {field: outputs[field] for field in answer_fields(signature) if field in outputs}
        if fault(work, steps, right) is None:
            found.append(Demonstration(Case(example, inputs, right, judged=True), work))
    return found


def with_demonstrations(
    behavior: Behavior, offered: Sequence[Demonstration], workable: Sequence[dspy.Example], most: int
) -> Behavior:
    """Return a behaviour with the first of the demonstrations offered.

    Args:
        behavior: What is to be done.
        offered: Of an example shown twice the first counts.
        workable: The examples that may be shown.
        most: How many at most.
    """
    allowed = {question_key(example) for example in workable}
    usable: dict[str, Demonstration] = {}
    for one in offered:
        usable.setdefault(question_key(one.case.example), one)
    demos = tuple(one for key, one in usable.items() if key in allowed)[:most]
    return Behavior(behavior.task, behavior.steps, demos)


async def _earns(run: Run, case: Case, threshold: float) -> bool:
    if case.judged:
        return True
    score = value(await run.judge(case.example, case.outputs))
    return score is not None and score >= threshold


def fault(work: str, steps: Sequence[str], outputs: Mapping[str, object]) -> str | None:
    """Return why a worked example may not become a demonstration; None if it may.

    Args:
        work: What was written.
        steps: What it had to follow.
        outputs: The right outputs.
    """
    parts = list(labelled(work))
    if [number for number, _ in parts] != list(range(1, len(steps) + 1)):
        return "it has not one text for each step"
    if not all(text for _, text in parts):
        return "the work of a step is empty"
    if any(_words(text) == _words(step) for (_, text), step in zip(parts, steps, strict=True)):
        return "it repeats a step's wording"
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
        written[-len(answer) :] == answer for answer in short
    )


def _words(text: str) -> list[str]:
    """The words, numbers with their sign, and ideographs one by one."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|(?<![\w.])-?\d+(?:[.,]\d+)*|[^\W_]+", plain)


def _holds(written: list[str], answer: list[str]) -> bool:
    n = len(answer)
    return any(written[i : i + n] == answer for i in range(len(written) - n + 1))
