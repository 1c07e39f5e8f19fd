"""Reads the record that a compile leaves (`record.py`), of this version or an earlier one. Reads only. Source: ours."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dspy
from pydantic import TypeAdapter, ValidationError

from cuesmith.teleprompters.runtime import journal
from cuesmith.teleprompters.runtime.candidate import Candidate, Json, Origin
from cuesmith.teleprompters.runtime.compilation import Note, StepRecord
from cuesmith.teleprompters.runtime.evidence import text_of
from cuesmith.teleprompters.runtime.outcomes import Outcome, outcome_from_json
from cuesmith.teleprompters.runtime.record import FILE, FORMAT
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain

__all__ = [
    "KnownExample",
    "RecordError",
    "StoredAnswer",
    "StoredCandidate",
    "StoredRun",
    "StoredUsage",
    "StoredView",
    "adopted",
    "first_fault",
    "outcomes_in",
    "read_stored",
    "step_of",
    "stored_of",
]

_KEY = re.compile(r"([0-9a-f]{16}):([0-9a-f]{16})")
"""Keys of program runs; those of rewards and judgements have more parts."""


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


@dataclass
class StoredPredictor:
    """A predictor's fields, by name."""

    inputs: list[str]
    outputs: list[str]


@dataclass
class StoredCandidate:
    """A candidate with its scores on the selection examples; their mean is NaN where a metric made nothing of them."""

    id: str
    prompts: dict[str, dict[str, object]]
    origin: dict[str, object]
    scores: list[float | None]
    mean: float
    n: int
    prompter: str = ""


@dataclass
class StoredNote:
    """A note."""

    kind: str
    text: str


@dataclass
class StoredUsage:
    """What a role used; `usd` is None where a price is not known."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = None
    cache_hits: int = 0
    replayed: int = 0


@dataclass
class StoredAnswer:
    """What became of a program on an example, for a reader.

    Attributes:
        score: As it counts; None where it is missing.
        outcome: The class of the outcome.
        steps: The predictors that answered, in order, each with its fields as text.
        words: The metric's feedback, or why there is no answer.
        response: A reply that could not be used, as far as it is known.
    """

    score: float | None
    outcome: str
    steps: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: str = ""
    response: str = ""


@dataclass
class StoredView:
    """An example, its values as text, and what the student and the returned prompt made of it; None if not run."""

    id: str
    inputs: dict[str, str]
    labels: dict[str, str]
    baseline: StoredAnswer | None
    best: StoredAnswer | None


@dataclass
class StoredRun:
    """A record as it is on disk. What follows `notes` is not in those of the first versions.

    Attributes:
        spent: Role -> what it used.
        seconds: Of the last session.
        reports: "baseline" and "best" -> "select" and "fresh" -> the score with its interval.
        shown: "select" and "fresh" -> the first of these examples with their answers, in the order of the scores.
        front: Ids of the candidates that no other dominates.
        provenance: Where the compiled program comes from.
    """

    format: int
    compiler: str
    predictors: dict[str, StoredPredictor]
    baseline: str
    best: str
    candidates: list[StoredCandidate]
    steps: list[StepRecord]
    train: list[KnownExample]
    select: list[KnownExample]
    fresh_scores: dict[str, list[float | None] | None]
    gain: Gain | None
    stopped_by: str | None
    notes: list[StoredNote | str]
    spent: dict[str, StoredUsage] = field(default_factory=dict)
    seconds: float | None = None
    reports: dict[str, dict[str, Estimate95 | None]] = field(default_factory=dict)
    shown: dict[str, list[StoredView]] = field(default_factory=dict)
    front: list[str] = field(default_factory=list)
    provenance: dict[str, object] | None = None

    @property
    def told(self) -> tuple[Note, ...]:
        """The notes; records of the first version have sentences without a kind."""
        return tuple(Note("search", n) if isinstance(n, str) else Note(n.kind, n.text) for n in self.notes)


_STORED = TypeAdapter(StoredRun)


def stored_of(record: Mapping[str, Json]) -> StoredRun:
    """Return what `record.record_of` said, without the examples whole, as it would be read from disk.

    Raises:
        ValidationError: If it is no such record.
    """
    return _STORED.validate_python({**record, "train": [], "select": []})


def read_stored(directory: Path) -> StoredRun:
    """Read the record in a run directory.

    Raises:
        RecordError: If there is no such folder, no run in it, or one that has not finished or is damaged.
    """
    path = directory / FILE
    if not directory.is_dir():
        raise RecordError(f"{directory}: no such folder")
    if not path.is_file():
        raise RecordError(_why_no_record(directory))
    try:
        # json, not pydantic, reads the text: it takes half a surrogate pair, which a model may have written.
        stored = _STORED.validate_python(json.loads(path.read_bytes()))
    except ValidationError as error:
        raise RecordError(f"{path}: {first_fault(error)}") from None
    except (ValueError, RecursionError):
        raise RecordError(f"{path}: not the record of a run (no JSON)") from None
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None
    if stored.format != FORMAT:
        raise RecordError(f"{path}: has format {stored.format}, this version reads {FORMAT}")
    for one in stored.candidates:
        if len(one.scores) != len(stored.select):
            raise RecordError(f"{path}: candidate {one.id!r} has not one score a selection example")
    scores = [*(one.scores for one in stored.candidates), *stored.fresh_scores.values()]
    if not all(math.isfinite(score) for row in scores for score in row or () if score is not None):
        raise RecordError(f"{path}: a score is no finite number")
    return stored


def _why_no_record(directory: Path) -> str:
    if (directory / journal.FILE).is_file():
        return f"{directory}: the run in it has not finished; compile again with the same arguments to resume it"
    inside = sorted(child.parent.name for child in directory.glob(f"*/{FILE}"))
    hint = f"; there are runs in its folders {', '.join(inside[:5])}" if inside else ""
    return f"{directory}: no run in it (no {FILE}){hint}"


def adopted(stored: StoredRun, where: object) -> dict[str, Candidate]:
    """Return the candidates by their id on record.

    That id can differ from the content's: a key in a prompt is taken out before the record is written. The lineage
    and all else are therefore brought to the ids that the candidates have now.

    Args:
        stored: The record.
        where: What it was read from, for error messages.

    Raises:
        RecordError: If what they are, or what is said of them, does not fit together.
    """
    try:
        read = {
            c.id: Candidate.from_json({"prompts": c.prompts, "origin": c.origin, "prompter": c.prompter})
            for c in stored.candidates
        }
    except ValidationError as error:
        raise RecordError(f"{where}: {first_fault(error)}") from None
    for role, name in (("baseline", stored.baseline), ("best", stored.best)):
        if name not in read:
            raise RecordError(f"{where}: the {role} {name!r} is not among its candidates")
    if len({len(scores) for scores in stored.fresh_scores.values() if scores}) > 1:
        raise RecordError(f"{where}: the fresh scores are not in pairs")
    return {known: _adopted(candidate, read) for known, candidate in read.items()}


def _adopted(candidate: Candidate, read: Mapping[str, Candidate]) -> Candidate:
    origin = candidate.origin
    parents = tuple(read[known].id if known in read else known for known in origin.parents)
    return Candidate(candidate.prompts, Origin(origin.move, parents, origin.evidence), candidate.prompter)


def step_of(step: StepRecord, own: Mapping[str, str]) -> StepRecord:
    """Return a step by the ids that its candidates have now (id on record -> id)."""
    beam = tuple(own.get(known, known) for known in step.beam)
    return StepRecord(step.step, own.get(step.best_id, step.best_id), beam, step.train, step.validation, step.calls)


def first_fault(error: ValidationError) -> str:
    """Return the first thing that is wrong with a record, in one line, without the value itself."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"not the record of a run ({f'{where}: ' if where else ''}{first['msg']})"


def outcomes_in(directory: Path, of: Collection[str] | None = None) -> dict[str, dict[str, Outcome]]:
    """Read what became of program runs from the journal, without locking or changing it.

    Args:
        directory: The run directory.
        of: Ids of the candidates that are wanted; None for all.

    Returns:
        Candidate id -> example id -> outcome.

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
                match = _KEY.fullmatch(row.key)
                if match and row.table == "outcomes" and (of is None or match[1] in of):
                    found.setdefault(match[1], {})[match[2]] = _outcome(row)
    except journal.JournalError as error:
        raise RecordError(str(error)) from None
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, RecursionError) as error:
        raise RecordError(f"{path}: not a journal that can be read ({' '.join(str(error).split())[:200]})") from None
    return found


def _outcome(row: journal.JournalRow) -> Outcome:
    outcome = row.body["outcome"]
    if not isinstance(outcome, dict):
        raise ValueError(f"the outcome of {row.key} is no object")
    return outcome_from_json(outcome)
