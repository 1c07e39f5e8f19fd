"""What a compile found, in one record that is honest about noise: selection and report use different examples.

Source: ours.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cloudpickle
import dspy

from cuesmith.teleprompters.runtime.candidate import Candidate, Json
from cuesmith.teleprompters.runtime.ledger import Spent
from cuesmith.teleprompters.runtime.outcomes import mean, worst_last
from cuesmith.teleprompters.runtime.provenance import Provenance
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain

if TYPE_CHECKING:
    from cuesmith.teleprompters.runtime.run_report import RunReport


class Note(str):
    """What a reader of a compilation should know: a sentence, with the kind of thing that it says.

    It is the sentence itself (a `str`), so that it prints, searches and serialises as one; code asks for `kind`.

    Attributes:
        kind: One word, the same for every sentence of that kind, such as "verdict", "dropped" or "unseen".
    """

    kind: str

    def __new__(cls, kind: str, text: str) -> Note:
        """Make the note of that kind."""
        made = super().__new__(cls, text)
        made.kind = kind
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """Return what a copy is made of."""
        return self.kind, str(self)

    @property
    def text(self) -> str:
        """The sentence."""
        return str(self)


class CompileWarning(UserWarning):
    """A compile cannot do what it is for, as when no reply of the optimizer can be used; its notes say so too."""


@dataclass(frozen=True)
class Plan:
    """Upper bounds of what a search asks for.

    Attributes:
        optimizer_calls: Draws of the optimizer model.
        program_runs: Runs of the student program on one example.
    """

    optimizer_calls: int
    program_runs: int


@dataclass(frozen=True)
class Forecast:
    """Upper bounds of a whole compile: search, baseline and final report.

    Attributes:
        optimizer_calls: Draws of the optimizer model.
        program_runs: Runs of the student program on one example.
        calls: Language-model calls, with one call a predictor and program run. Replies that do not parse make
            dspy ask once more, and a metric may call models too: both come on top.
    """

    optimizer_calls: int
    program_runs: int
    calls: int


@dataclass(frozen=True)
class Report:
    """A candidate and what is known of it.

    Attributes:
        candidate: The prompts.
        select: Score on the examples that the search selected by; optimistic for the best of many. Here and below: the
            mean, or a corpus metric's value with a bootstrap interval.
        fresh: Score on examples that no decision has seen; None if there were none, or no budget for them.
    """

    candidate: Candidate
    select: Estimate95 | None
    fresh: Estimate95 | None


@dataclass(frozen=True)
class Trial:
    """A candidate that the search has scored.

    Attributes:
        candidate: The prompts with their lineage (parents, move, evidence).
        scores: Score per selection example, in order; None where it is missing.
        mean: Mean of those that are there, or what the metric makes of all their answers together; what candidates
            are compared by. NaN where it makes nothing of them.
        n: How many there are.
    """

    candidate: Candidate
    scores: tuple[float | None, ...] = field(repr=False)
    mean: float
    n: int

    @property
    def together(self) -> bool:
        """Whether the metric judged all answers together, so that `mean` is no mean of the scores."""
        return self.n > 0 and not math.isclose(self.mean, mean(self.scores), abs_tol=1e-9)


@dataclass(frozen=True)
class Standing:
    """Where a candidate stands in all that counts.

    Attributes:
        candidate_id: Its id.
        score: What candidates are compared by, as `Trial.mean`.
        objectives: Mean of each of the metric's `objective_scores`.
        size: Characters of its prompt.
        tokens: Tokens of a program run; None if they were not counted.
    """

    candidate_id: str
    score: float
    objectives: Mapping[str, float]
    size: int
    tokens: float | None


def undominated(standings: Sequence[Standing]) -> tuple[Standing, ...]:
    """Return those that no other dominates, best first: higher score, shorter where equal.

    One dominates another that is nowhere better and somewhere worse: in score or an objective (higher is better), in
    size or tokens (lower is). An objective that a candidate was never scored on is the worst it can be; tokens count
    only if they are known of all. Source: Pareto; what is compared is ours.
    """
    names = sorted({name for one in standings for name in one.objectives})
    counted = all(one.tokens is not None for one in standings)

    def merits(one: Standing) -> tuple[float, ...]:
        scores = (one.score, *(one.objectives.get(name, -math.inf) for name in names))
        known = tuple(-math.inf if math.isnan(score) else score for score in scores)
        return (*known, -one.size, -(one.tokens or 0.0) if counted else 0.0)

    rows = [(one, merits(one)) for one in standings]
    kept = [
        one
        for one, row in rows
        if not any(other != row and all(a >= b for a, b in zip(other, row, strict=True)) for _, other in rows)
    ]
    return tuple(sorted(kept, key=lambda one: (*worst_last(one.score), one.size, one.candidate_id)))


@dataclass(frozen=True)
class StepRecord:
    """One step of the search.

    Attributes:
        step: 0, 1, 2, ...
        best_id: Id of the head of the beam.
        beam: Ids of the beam, best first.
        train: The head's score on training examples, if the compiler asked for it.
        validation: The head's score on the selection examples.
        calls: Calls of all roles until it was recorded, those in flight left out; None where it is not known. How many
            they are depends on what happened to be answered by then, so that equal steps may differ in it.
    """

    step: int
    best_id: str
    beam: tuple[str, ...]
    train: Estimate95 | None
    validation: Estimate95
    calls: int | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Compilation:
    """The record of one compile.

    Attributes:
        compiler: The compiler's class name.
        baseline: The student as it was given.
        best: What was returned; the baseline itself if nothing scored above it.
        candidates: All that were scored on selection examples, best first.
        steps: The search's steps.
        gain: Best minus baseline, paired, on fresh examples; None if it could not be measured.
        spent: Calls, tokens and dollars by role, and seconds.
        stopped_by: The cap ("usd", "calls", "tokens", "seconds") or circuit ("auth", "billing", "configuration",
            "outage") that ended the search early; None if it ran to its end.
        run_dir: Where the journal is.
        notes: What a reader should know, in plain words; each has a `kind`.
        extras: What a search leaves besides candidates, by name; `alignment_of` reads a prompter's training there.
        front: The candidates scored on all selection examples (that the student has a score on) that no other dominates
            in score, objectives, size of the prompt and tokens of a program run. `best` is the one of the highest
            score; where prompt searches cannot tell shorter ones from it, the shortest of them.
        record: What its report shows, as JSON data without keys: `record.json` in the run directory, but for the whole
            examples.
        provenance: Where `best` comes from, in the few facts that the compiled program itself carries.
    """

    compiler: str
    baseline: Report
    best: Report
    candidates: tuple[Trial, ...] = field(repr=False)
    steps: tuple[StepRecord, ...]
    gain: Gain | None
    spent: Spent
    stopped_by: str | None
    run_dir: str | None
    notes: tuple[Note, ...]
    extras: Mapping[str, Any] = field(default_factory=dict)
    front: tuple[Standing, ...] = field(default=(), repr=False)
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    provenance: Provenance | None = None

    @property
    def report(self) -> RunReport:
        """What is known of the compile, for a reader: a page, JSON, Markdown, a difference of prompts."""
        from cuesmith.teleprompters.runtime.run_report import RunReport

        return RunReport.of(self)

    def to_html(self) -> str:
        """Return the report as one HTML page that needs nothing but itself."""
        return self.report.to_html()

    def to_json(self) -> dict[str, Json]:
        """Return the report as JSON data."""
        return self.report.to_json()

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        return self.report.to_markdown()

    def diff(self, predictor: str | None = None) -> str:
        """Return what the compile changed, as a unified difference from the student's prompts; empty if nothing.

        Args:
            predictor: The one that is wanted; None for all.

        Raises:
            ValueError: If there is no such predictor.
        """
        return self.report.diff(predictor)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return self.report._repr_html_()

    def __deepcopy__(self, memo: object) -> Compilation:
        """Return itself: it cannot change."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Return what reads as this record where Cuesmith is installed, and as None where it is not.

        A program that is saved whole (`save_program=True`) holds it, and has to load without Cuesmith too.
        """
        held = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return pickle.loads, (cloudpickle.dumps(_Kept(cloudpickle.dumps(held))),)


class _Kept:
    """A pickled record with what reads it, whose code goes along: it is a function that no module has."""

    def __init__(self, held: bytes) -> None:
        self.held = held

    def __reduce__(self) -> tuple[object, ...]:
        def read(held: bytes) -> Any:
            try:
                from cuesmith.teleprompters.runtime.compilation import Compilation

                return Compilation(**pickle.loads(held))
            except (ImportError, AttributeError, TypeError):  # it is not installed, or of another version
                return None

        return read, (self.held,)


class Compiled(dspy.Module):  # type: ignore[misc]
    """What `compile` returns, to a type checker: a module with its `compilation`. It is of the student's own class.

    Attributes:
        compilation: The record of the compile.
    """

    compilation: Compilation
