"""The instruments that ask an optimizer model, applied to the errors that a finished run observed. Source: ours."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dspy

from cuesmith.programs.diagnosis.asking import (
    Error,
    Evidence,
    Inquiry,
    asked,
    measured,
    requests_of,
)
from cuesmith.programs.diagnosis.embedders import Similarity, TfIdf
from cuesmith.programs.diagnosis.figures import Section
from cuesmith.programs.diagnosis.lm_judges import ConditionJudge, JudgeFailed, describe
from cuesmith.programs.diagnosis.planted import BATCH, shuffled
from cuesmith.programs.diagnosis.repetition import Repetition, repetition_of
from cuesmith.programs.diagnosis.repetition import section_of as repetition_section
from cuesmith.programs.diagnosis.run_record import RunRecord, passed
from cuesmith.programs.diagnosis.validity import ENOUGH, Feedback, Judging, ShownConditions, Validity, validity_of
from cuesmith.programs.diagnosis.validity import section_of as validity_section
from cuesmith.programs.tasks import generate
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.evidence import REASONING, render_fields
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored

DRAWS = 3
"""Requests for each batch of errors, for the ceiling of the repetition."""

STRANGERS = ("reverse", "objects")
"""Generated tasks that stand in for another task; the one that reads less like the run's own is taken."""


@dataclass(frozen=True)
class LivePlan:
    """What is going to be asked.

    Attributes:
        candidate: Whose errors are shown: of all prompts of the run the one with the most. None behind a prompter:
            what such a program gets wrong is not the instruction's doing.
        instructions: The prompt.
        errors: Its observed errors, on examples whose labels the record has.
        batches: Batches of them, for the repetition.
        others: Batches of another task.
        study: For the validity; None if the errors have no two kinds.
    """

    candidate: Candidate
    instructions: str
    errors: tuple[Error, ...]
    batches: tuple[Evidence, ...]
    others: tuple[Evidence, ...]
    study: ShownConditions | None

    @property
    def repeated(self) -> list[Sequence[Evidence]]:
        """What is asked for the repetition."""
        return [[batch for batch in self.batches for _ in range(DRAWS)], self.others]

    @property
    def requests(self) -> int:
        """How many requests of the optimizer model it takes; the other task's batches are asked about once for both."""
        studied = [] if self.study is None else self.study.parts
        return len({request.key for parts in (self.repeated, studied) for request in requests_of(parts)})

    @property
    def judgements(self) -> int:
        """How many requests a judge of the conditions takes at most."""
        return 0 if self.study is None else sum(map(len, self.study.conditions.values()))


@dataclass(frozen=True)
class Live:
    """What was found.

    Attributes:
        repetition: Whether feedback on different errors differs; None if too little was answered.
        validity: Whether it follows the errors; None if the errors have no two kinds, or too little was answered.
        no_repetition: Why there is none.
        no_validity: Why there is none.
    """

    repetition: Repetition | None
    validity: Validity | None
    no_repetition: str = ""
    no_validity: str = ""


def plan(record: RunRecord, *, threshold: float = 1.0) -> LivePlan:
    """Choose what to show, from a finished run; calls nothing.

    Args:
        record: The run.
        threshold: A score below which an answer counts as an error.

    Raises:
        ValueError: If no prompt of the run has errors enough for two different batches.
    """
    prompts = [candidate for candidate in record.candidates.values() if not candidate.prompter]
    seen = {c.id: list(_answers(record, c, threshold)) for c in prompts}
    chosen = max(prompts, key=lambda c: sum(not right for _, right in seen[c.id]))
    errors = [error for error, right in seen[chosen.id] if not right]
    if len(errors) <= BATCH:
        raise ValueError(f"the run observed at most {len(errors)} errors of one prompt; more than {BATCH} are needed")
    instructions = chosen.prompts[_predictor(record)].instructions
    rng = random.Random("live:0")
    batches = tuple(Evidence(instructions, tuple(rng.sample(errors, BATCH))) for _ in range(ENOUGH))
    others = tuple(_others(record))
    rights = [error for error, right in seen[chosen.id] if right]
    try:
        study = ShownConditions.of(instructions, errors, rights=rights, others=others)
    except ValueError:
        study = None
    return LivePlan(chosen, instructions, tuple(errors), batches, others, study)


def live(planned: LivePlan, inquiry: Inquiry, *, judge: bool = False, similarity: Similarity | None = None) -> Live:
    """Ask a model and measure. A stop leaves what can be measured by what was answered.

    Args:
        planned: What to show; `planned.requests` requests, and `planned.judgements` with a judge.
        inquiry: Asks the optimizer model.
        judge: Whether the model also judges under which condition each feedback was given.
        similarity: How texts are compared; `TfIdf()` by default.

    Raises:
        SimilarityError: If the embedder cannot be used.
    """
    repeated, no_repetition = measured(lambda: _repetition(planned, inquiry, similarity))
    valid, no_validity = None, _ONE_KIND
    if (study := planned.study) is not None:
        feedback = study.answered(asked(inquiry, study.parts))
        judging = _judging(study, feedback, inquiry) if judge else None
        valid, no_validity = measured(lambda: validity_of(feedback, judging=judging, similarity=similarity))
    return Live(repeated, valid, no_repetition, no_validity)


_ONE_KIND = (
    "The errors of the run have no two kinds, so that their distribution cannot be controlled and nothing can be said "
    "of whether feedback follows it. Run on more examples."
)


def _repetition(planned: LivePlan, inquiry: Inquiry, similarity: Similarity | None) -> Repetition:
    replies, first = asked(inquiry, planned.repeated), DRAWS * len(planned.batches)
    said = [[text for text in replies[k : k + DRAWS] if text] for k in range(0, first, DRAWS)]
    others = [text for text in replies[first:] if text]
    return repetition_of(said, others, similarity=similarity, missing=replies.count(None))


def _judging(study: ShownConditions, feedback: Feedback, inquiry: Inquiry) -> Judging | None:
    """Have the conditions judged; None if the model gives out, or names no condition before a cap."""
    told, judge = describe(study.conditions), ConditionJudge(inquiry)
    # In turn, so that a cap leaves the conditions about equally many.
    texts = [text for part in itertools.zip_longest(*feedback.conditions.values()) for text in part if text]
    try:
        judge.prefetch(texts, told)
    except JudgeFailed:
        return None
    return Judging(judge, told) if any(judge(text, told) is not None for text in texts) else None


def sections_of(found: Live) -> tuple[Section, ...]:
    """Return the parts of the report; of what could not be measured, why."""
    first = Section("Does the feedback repeat itself?", found.no_repetition, ())
    second = Section("Does the reflection look at the errors?", found.no_validity, ())
    return (
        first if found.repetition is None else repetition_section(found.repetition),
        second if found.validity is None else validity_section(found.validity),
    )


def _predictor(record: RunRecord) -> str:
    """The predictor that gives the answer: the last one."""
    return list(record.outputs)[-1]


def _answers(record: RunRecord, candidate: Candidate, threshold: float) -> Iterator[tuple[Error, bool]]:
    """Yield what the last predictor wrote on each example with known labels, and whether the answer was right."""
    outcomes = record.outcomes.get(candidate.id, {})
    fields = [name for name in record.outputs[_predictor(record)] if name != REASONING]
    for example in (*record.train, *record.select):
        outcome = outcomes.get(example.id)
        if outcome is None or (right := passed(outcome, threshold)) is None:
            continue
        inputs, text = _shown(record, outcome, example.inputs)
        gold = {name: example.labels[name] for name in fields if name in example.labels} or dict(example.labels)
        if text:
            yield Error(inputs, text, gold, outcome.feedback if isinstance(outcome, Scored) else ""), right


def _shown(record: RunRecord, outcome: Outcome, inputs: object) -> tuple[dict[str, object], str]:
    given = dict(inputs) if isinstance(inputs, dict) else {}
    if isinstance(outcome, ParseFailure):
        return given, outcome.response
    calls = [step for step in getattr(outcome, "trace", ()) if step.predictor == _predictor(record)]
    return (dict(calls[-1].inputs), render_fields(calls[-1].outputs)) if calls else (given, "")


def _others(record: RunRecord) -> list[Evidence]:
    """Batches of errors of a task that is not the run's own: right answers of a generated task, shuffled."""
    own = "\n".join(example.text for example in record.train[:20])
    tasks = [generate(name) for name in STRANGERS]
    asked = ["\n".join(render_fields(e.inputs().toDict()) for e in task.train[:20]) for task in tasks]
    alike = TfIdf().matrix([own, *asked])[0, 1:]
    task = tasks[int(alike.argmin())]
    signature = dspy.Signature(task.signature)
    rights = []
    for example in task.train:
        gold = {name: value for name, value in example.labels().items() if name in signature.output_fields}
        rights.append(Error(example.inputs().toDict(), render_fields(gold), gold))
    return shuffled(str(signature.instructions), rights, n=ENOUGH)
