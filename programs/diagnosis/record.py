"""Reads what a finished run left: the compile's record and the journal's outcomes. Reads only. Source: ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dspy
from pydantic import TypeAdapter, ValidationError

from cuesmith.teleprompters.runtime import journal
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Note, StepRecord, Trial
from cuesmith.teleprompters.runtime.evidence import REASONING, text_of
from cuesmith.teleprompters.runtime.outcomes import (
    Outcome,
    ParseFailure,
    ProviderFailure,
    outcome_from_json,
    value,
)
from cuesmith.teleprompters.runtime.record import FILE, FORMAT
from cuesmith.teleprompters.runtime.statistics import Gain

__all__ = ["UNUSABLE", "KnownExample", "Record", "RecordError", "answer", "passed"]

_KEY = re.compile(r"([0-9a-f]{16}):([0-9a-f]{16})")
"""Keys of program runs; those of rewards and judgements have more parts."""

UNUSABLE = ""
"""Stands for the answer of a reply that could not be parsed; a parsed one names its fields and is never empty."""


class RecordError(ValueError):
    """The folder holds no finished run that can be read; the message is one line."""


@dataclass(frozen=True)
class KnownExample:
    """An example of the run.

    Attributes:
        id: Its content hash, as in the journal.
        inputs: The values that the program was given.
        labels: The others.
    """

    id: str
    inputs: Mapping[str, object]
    labels: Mapping[str, object]

    @property
    def example(self) -> dspy.Example:
        """The example as dspy takes it; values that JSON could not hold are text."""
        return dspy.Example(**{**self.labels, **self.inputs}).with_inputs(*self.inputs)

    @property
    def text(self) -> str:
        """Its inputs as one text."""
        return "\n".join(text_of(value) for value in self.inputs.values())


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        directory: Where it is.
        compiler: The compiler's class name.
        inputs: Predictor name -> its input fields, in the program's order.
        outputs: Predictor name -> its output fields.
        baseline: The student's prompts.
        best: The prompts that were returned.
        trials: All candidates with scores on selection examples, best first.
        steps: The search's steps.
        train: Examples that the optimizer may have seen.
        select: Examples that candidates were compared on, in the order of a trial's scores.
        fresh_baseline: The baseline's scores on examples that no decision has seen; empty if there are none.
        fresh_best: The best's, on the same ones.
        gain: As the compile reported it.
        stopped_by: The cap or the circuit that ended the search; None if it ran to its end.
        notes: What the compile had to say, each with its kind.
        outcomes: Candidate id -> example id -> what became of the run.
    """

    directory: Path
    compiler: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, tuple[str, ...]]
    baseline: Candidate
    best: Candidate
    trials: tuple[Trial, ...] = field(repr=False)
    steps: tuple[StepRecord, ...] = field(repr=False)
    train: tuple[KnownExample, ...] = field(repr=False)
    select: tuple[KnownExample, ...] = field(repr=False)
    fresh_baseline: tuple[float | None, ...] = field(repr=False)
    fresh_best: tuple[float | None, ...] = field(repr=False)
    gain: Gain | None
    stopped_by: str | None
    notes: tuple[Note, ...]
    outcomes: Mapping[str, Mapping[str, Outcome]] = field(repr=False)

    @classmethod
    def read(cls, run_dir: str | Path) -> Record:
        """Read a run directory.

        Args:
            run_dir: As it was given to a compile, which has ended.

        Raises:
            RecordError: If there is no such folder, no run in it, or one that has not finished or is damaged.
        """
        directory = Path(run_dir)
        stored = _stored(directory)
        by_id = _candidates(directory, stored)
        own = {known: candidate.id for known, candidate in by_id.items()}
        fresh = stored.fresh_scores
        return cls(
            directory=directory,
            compiler=stored.compiler,
            inputs={name: tuple(p.inputs) for name, p in stored.predictors.items()},
            outputs={name: tuple(p.outputs) for name, p in stored.predictors.items()},
            baseline=by_id[stored.baseline],
            best=by_id[stored.best],
            trials=tuple(Trial(by_id[c.id], tuple(c.scores), c.mean, c.n) for c in stored.candidates),
            steps=tuple(_step(step, own) for step in stored.steps),
            train=tuple(stored.train),
            select=tuple(stored.select),
            fresh_baseline=tuple(fresh.get("baseline") or ()),
            fresh_best=tuple(fresh.get("best") or ()),
            gain=stored.gain,
            stopped_by=stored.stopped_by,
            notes=tuple(_note(note) for note in stored.notes),
            outcomes={own.get(known, known): rows for known, rows in _outcomes(directory).items()},
        )

    @property
    def candidates(self) -> dict[str, Candidate]:
        """The candidates by id, best first."""
        return {t.candidate.id: t.candidate for t in self.trials}

    def pairs(self) -> Iterator[tuple[Candidate, Candidate]]:
        """Yield every refinement as (parent, child), the first parent of each child that has one on record."""
        known = self.candidates
        for child in known.values():
            parents = child.origin.parents
            if parents and parents[0] in known and parents[0] != child.id:
                yield known[parents[0]], child

    def held_out(self, candidate: Candidate) -> dict[str, Outcome]:
        """Return a candidate's outcomes on all examples that are not training examples, by example id."""
        train = {one.id for one in self.train}
        return {key: one for key, one in self.outcomes.get(candidate.id, {}).items() if key not in train}

    def scores_of(self, candidate: Candidate) -> tuple[float | None, ...]:
        """Return a candidate's scores on the selection examples; empty if it has none."""
        return next((t.scores for t in self.trials if t.candidate.id == candidate.id), ())


def answer(outcome: Outcome) -> str | None:
    """Return what a program answered, in a form that can be compared; None where nothing is known.

    The answer is what the last predictor wrote, without its reasoning, up to case and white space. A reply that
    could not be used is an answer of its own kind.
    """
    match outcome:
        case ProviderFailure():
            return None
        case ParseFailure():
            return UNUSABLE
    if not outcome.trace:
        return None
    outputs = outcome.trace[-1].outputs
    names = [name for name in outputs if name != REASONING] or list(outputs)
    return "\n".join(f"{name}: {' '.join(outputs[name].split()).casefold()}" for name in names)


def passed(outcome: Outcome, threshold: float) -> bool | None:
    """Return whether an outcome counts as right; None where its score is missing."""
    score = value(outcome)
    return None if score is None else score >= threshold


@dataclass
class _Predictor:
    inputs: list[str]
    outputs: list[str]


@dataclass
class _Candidate:
    id: str
    prompts: dict[str, dict[str, object]]
    origin: dict[str, object]
    scores: list[float | None]
    mean: float
    n: int
    prompter: str = ""


@dataclass
class _Note:
    kind: str
    text: str


@dataclass
class _Stored:
    format: int
    compiler: str
    predictors: dict[str, _Predictor]
    baseline: str
    best: str
    candidates: list[_Candidate]
    steps: list[StepRecord]
    train: list[KnownExample]
    select: list[KnownExample]
    fresh_scores: dict[str, list[float | None] | None]
    gain: Gain | None
    stopped_by: str | None
    notes: list[_Note | str]


def _note(stored: _Note | str) -> Note:
    """Return a note; records of the first version have sentences without a kind."""
    return Note("search", stored) if isinstance(stored, str) else Note(stored.kind, stored.text)


def _stored(directory: Path) -> _Stored:
    path = directory / FILE
    if not directory.is_dir():
        raise RecordError(f"{directory}: no such folder")
    if not path.is_file():
        raise RecordError(_why_no_record(directory))
    try:
        # json, not pydantic, reads the text: it takes half a surrogate pair, which a model may have written.
        stored = TypeAdapter(_Stored).validate_python(json.loads(path.read_bytes()))
    except ValidationError as error:
        raise RecordError(f"{path}: {_first(error)}") from None
    except (ValueError, RecursionError):
        raise RecordError(f"{path}: not the record of a run (no JSON)") from None
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None
    if stored.format != FORMAT:
        raise RecordError(f"{path}: has format {stored.format}, this version reads {FORMAT}")
    return stored


def _why_no_record(directory: Path) -> str:
    if (directory / journal.FILE).is_file():
        return f"{directory}: the run in it has not finished; compile again with the same arguments to resume it"
    inside = sorted(child.parent.name for child in directory.glob(f"*/{FILE}"))
    hint = f"; there are runs in its folders {', '.join(inside[:5])}" if inside else ""
    return f"{directory}: no run in it (no {FILE}){hint}"


def _candidates(directory: Path, stored: _Stored) -> dict[str, Candidate]:
    """Return the candidates by their id on record.

    That id can differ from the content's: a key in a prompt is taken out before the record is written. The lineage
    and all else are therefore brought to the ids that the candidates have now.

    Raises:
        RecordError: If what they are, or what is said of them, does not fit together.
    """
    path = directory / FILE
    for one in stored.candidates:
        if len(one.scores) != len(stored.select):
            raise RecordError(f"{path}: candidate {one.id!r} has not one score a selection example")
    try:
        read = {
            c.id: Candidate.from_json({"prompts": c.prompts, "origin": c.origin, "prompter": c.prompter})
            for c in stored.candidates
        }
    except ValidationError as error:
        raise RecordError(f"{path}: {_first(error)}") from None
    for role, name in (("baseline", stored.baseline), ("best", stored.best)):
        if name not in read:
            raise RecordError(f"{path}: the {role} {name!r} is not among its candidates")
    if len({len(scores) for scores in stored.fresh_scores.values() if scores}) > 1:
        raise RecordError(f"{path}: the fresh scores are not in pairs")
    return {known: _adopted(candidate, read) for known, candidate in read.items()}


def _adopted(candidate: Candidate, read: Mapping[str, Candidate]) -> Candidate:
    origin = candidate.origin
    parents = tuple(read[known].id if known in read else known for known in origin.parents)
    return Candidate(candidate.prompts, Origin(origin.move, parents, origin.evidence), candidate.prompter)


def _step(step: StepRecord, own: Mapping[str, str]) -> StepRecord:
    beam = tuple(own.get(known, known) for known in step.beam)
    return StepRecord(step.step, own.get(step.best_id, step.best_id), beam, step.train, step.validation)


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, in one line, without the value itself."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"not the record of a run ({f'{where}: ' if where else ''}{first['msg']})"


def _outcomes(directory: Path) -> dict[str, dict[str, Outcome]]:
    """Read the journal, without locking or changing it.

    Raises:
        RecordError: If it is missing or damaged.
    """
    path = directory / journal.FILE
    if not path.is_file():
        raise RecordError(f"{directory}: the run's journal is missing (no {journal.FILE})")
    found: dict[str, dict[str, Outcome]] = {}
    try:
        with path.open("rb") as file:
            for row in journal.read(file, str(path)):
                if (match := _KEY.fullmatch(row.key)) and row.table == "outcomes":
                    found.setdefault(match[1], {})[match[2]] = _outcome(row)
    except journal.JournalError as error:
        raise RecordError(str(error)) from None
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, RecursionError) as error:
        raise RecordError(f"{path}: not a journal that can be read ({' '.join(str(error).split())[:200]})") from None
    return found


def _outcome(row: journal.Row) -> Outcome:
    outcome = row.body["outcome"]
    if not isinstance(outcome, dict):
        raise ValueError(f"the outcome of {row.key} is no object")
    return outcome_from_json(outcome)
