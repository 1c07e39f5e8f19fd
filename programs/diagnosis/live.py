"""The instruments that ask an optimizer model, applied to the errors that a finished run observed. Source: ours."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import dspy

from cuesmith.programs.diagnosis.asking import Error, Evidence, lm_asker
from cuesmith.programs.diagnosis.planted import BATCH, shuffled
from cuesmith.programs.diagnosis.record import Record, passed
from cuesmith.programs.diagnosis.repetition import Repetition, repetition
from cuesmith.programs.diagnosis.similarity import TfIdf
from cuesmith.programs.diagnosis.validity import Study, Validity, validity
from cuesmith.programs.tasks import generate
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.evidence import REASONING, render_fields
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored

__all__ = ["Live", "LivePlan", "live", "plan"]

DRAWS = 3
"""Requests for each batch of errors, for the ceiling of the repetition."""

STRANGERS = ("reverse", "objects")
"""Generated tasks that stand in for another task; the one that reads less like the run's own is taken."""


@dataclass(frozen=True)
class LivePlan:
    """What is going to be asked.

    Attributes:
        candidate: Whose errors are shown: of all prompts of the run the one with the most.
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
    study: Study | None

    @property
    def requests(self) -> int:
        """How many requests it takes."""
        again = 0 if self.study is None else self.study.requests
        return DRAWS * len(self.batches) + len(self.others) + again


@dataclass(frozen=True)
class Live:
    """What was found.

    Attributes:
        repetition: Whether feedback on different errors differs.
        validity: Whether it follows the errors; None if the errors have no two kinds.
    """

    repetition: Repetition
    validity: Validity | None


def plan(record: Record, *, n: int = 20, threshold: float = 1.0, seed: int = 0) -> LivePlan:
    """Choose what to show, from a finished run; calls nothing.

    Args:
        record: The run.
        n: Batches a condition.
        threshold: A score below which an answer counts as an error.
        seed: Chooses the batches.

    Raises:
        ValueError: If no prompt of the run has errors enough for two different batches.
    """
    seen = {c.id: list(_answers(record, c, threshold)) for c in record.candidates.values()}
    chosen = max(record.candidates.values(), key=lambda c: sum(not right for _, right in seen[c.id]))
    errors = [error for error, right in seen[chosen.id] if not right]
    if len(errors) <= BATCH:
        raise ValueError(f"the run observed at most {len(errors)} errors of one prompt; more than {BATCH} are needed")
    instructions = chosen.prompts[_predictor(record)].instructions
    rng = random.Random(f"live:{seed}")
    batches = tuple(Evidence(instructions, tuple(rng.sample(errors, BATCH))) for _ in range(n))
    others = tuple(_others(record, n, seed))
    rights = [error for error, right in seen[chosen.id] if right]
    try:
        study = Study.of(instructions, errors, rights=rights, others=others, n=n, seed=seed)
    except ValueError:
        study = None
    return LivePlan(chosen, instructions, tuple(errors), batches, others, study)


def live(planned: LivePlan, lm: dspy.BaseLM, *, threads: int = 8, seed: int = 0) -> Live:
    """Ask a model and measure.

    Args:
        planned: What to show; `planned.requests` calls.
        lm: The optimizer model.
        threads: Requests in flight at once.
        seed: Of draws, permutations and bootstrap.

    Raises:
        ValueError: If too few replies can be used.
    """
    ask = lm_asker(lm, seed=seed)
    repeated = repetition(ask, planned.batches, planned.others, draws=DRAWS, seed=seed, threads=threads)
    valid = None if planned.study is None else validity(ask, planned.study, seed=seed, threads=threads)
    return Live(repeated, valid)


def _predictor(record: Record) -> str:
    """The predictor that gives the answer: the last one."""
    return list(record.outputs)[-1]


def _answers(record: Record, candidate: Candidate, threshold: float) -> Iterator[tuple[Error, bool]]:
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


def _shown(record: Record, outcome: Outcome, inputs: object) -> tuple[dict[str, object], str]:
    given = dict(inputs) if isinstance(inputs, dict) else {}
    if isinstance(outcome, ParseFailure):
        return given, outcome.response
    calls = [step for step in getattr(outcome, "trace", ()) if step.predictor == _predictor(record)]
    return (dict(calls[-1].inputs), render_fields(calls[-1].outputs)) if calls else (given, "")


def _others(record: Record, n: int, seed: int) -> list[Evidence]:
    """Batches of errors of a task that is not the run's own: right answers of a generated task, shuffled."""
    own = "\n".join(example.text for example in record.train[:20])
    tasks = [generate(name, seed=seed) for name in STRANGERS]
    asked = ["\n".join(render_fields(e.inputs().toDict()) for e in task.train[:20]) for task in tasks]
    alike = TfIdf().matrix([own, *asked])[0, 1:]
    task = tasks[int(alike.argmin())]
    signature = dspy.Signature(task.signature)
    rights = []
    for example in task.train:
        gold = {name: value for name, value in example.labels().items() if name in signature.output_fields}
        rights.append(Error(example.inputs().toDict(), render_fields(gold), gold))
    return shuffled(str(signature.instructions), rights, n=n, seed=seed)
