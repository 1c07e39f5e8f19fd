"""Reads what a finished run left: the compile's record and the journal's outcomes. Reads only. Source: ours."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Note, StepRecord, Trial
from cuesmith.teleprompters.runtime.evidence import REASONING, text_of
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, ProviderFailure, value
from cuesmith.teleprompters.runtime.record import FILE
from cuesmith.teleprompters.runtime.run_report.honest import Scoring
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, estimate95
from cuesmith.teleprompters.runtime.stored import (
    KnownExample,
    RecordError,
    adopted,
    outcomes_in,
    read_stored,
    step_of,
)

__all__ = ["UNUSABLE", "KnownExample", "RecordError", "RunRecord", "answer", "passed"]

UNUSABLE = ""
"""Stands for the answer of a reply that could not be parsed; a parsed one names its fields and is never empty."""


@dataclass(frozen=True)
class RunRecord:
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
        reports: "baseline" and "best" -> "select" and "fresh" -> the score as the compile reported it.
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
    reports: Mapping[str, Mapping[str, Estimate95 | None]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, run_dir: str | Path) -> RunRecord:
        """Read a run directory.

        Args:
            run_dir: As it was given to a compile, which has ended.

        Raises:
            RecordError: If there is no such folder, no run in it, or one that has not finished or is damaged.
        """
        directory = Path(run_dir)
        stored = read_stored(directory)
        by_id = adopted(stored, directory / FILE)
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
            steps=tuple(step_of(step, own) for step in stored.steps),
            train=tuple(stored.train),
            select=tuple(stored.select),
            fresh_baseline=tuple(fresh.get("baseline") or ()),
            fresh_best=tuple(fresh.get("best") or ()),
            gain=stored.gain,
            stopped_by=stored.stopped_by,
            notes=stored.told,
            outcomes={own.get(known, known): rows for known, rows in outcomes_in(directory).items()},
            reports=stored.reports,
        )

    @property
    def candidates(self) -> dict[str, Candidate]:
        """The candidates by id, best first."""
        return {t.candidate.id: t.candidate for t in self.trials}

    @property
    def scoring(self) -> Scoring:
        """How scores are written."""
        return Scoring.of(self._scores())

    @property
    def top(self) -> float:
        """The score from which on an answer counts as right: 1, or else the highest that was seen."""
        known = [v for trial in self.trials for v in trial.scores if v is not None]
        return 1.0 if Scoring.of(known).percent else max(known)

    def _scores(self) -> list[float]:
        rows = (self.fresh_baseline, self.fresh_best, *((*t.scores, t.mean) for t in self.trials))
        return [v for row in rows for v in row if v is not None and not math.isnan(v)]

    @property
    def together(self) -> bool:
        """Whether the metric judges all answers together, so that a score is no mean."""
        return any(trial.together for trial in self.trials)

    @property
    def labels(self) -> frozenset[str]:
        """The fields that the examples have a label for."""
        return frozenset(name for example in self.select for name in example.labels)

    def report(self, who: str, split: str) -> Estimate95 | None:
        """Return a score as the compile reported it, or the mean where a record has none; None if not measured.

        Args:
            who: "baseline" or "best".
            split: "select" or "fresh".
        """
        if who in self.reports:
            return self.reports[who].get(split)
        fresh, prompts = (self.fresh_baseline, self.baseline) if who == "baseline" else (self.fresh_best, self.best)
        found = estimate95(fresh if split == "fresh" else self.scores_of(prompts))
        return found if found.n else None

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


def answer(outcome: Outcome, labels: Collection[str] = ()) -> str | None:
    """Return what a program answered, in a form that can be compared; None where nothing is known.

    The answer is what was last written into the fields that have a label, whichever predictor did; where none was,
    what the last predictor wrote, without its reasoning. Case and white space do not count. A reply that could not be
    used is an answer of its own kind.
    """
    match outcome:
        case ProviderFailure():
            return None
        case ParseFailure():
            return UNUSABLE
    if not outcome.trace:
        return None
    written = {name: text for step in outcome.trace for name, text in step.outputs.items() if name in labels}
    outputs = written or outcome.trace[-1].outputs
    names = [name for name in outputs if name != REASONING] or list(outputs)
    return "\n".join(f"{name}: {' '.join(text_of(outputs[name]).split()).casefold()}" for name in names)


def passed(outcome: Outcome, threshold: float) -> bool | None:
    """Return whether an outcome counts as right; None where its score is missing. What nobody can read is not."""
    score = -math.inf if isinstance(outcome, ParseFailure) else value(outcome)
    return None if score is None else score >= threshold
