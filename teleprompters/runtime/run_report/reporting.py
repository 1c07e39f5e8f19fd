"""What is known of one compile, from its record: for a browser, a notebook, a terminal, a program. Source: ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter

from cuesmith.teleprompters.runtime.candidate import Candidate, Json
from cuesmith.teleprompters.runtime.compilation import Compilation, Note, StepRecord, Trial
from cuesmith.teleprompters.runtime.ledger import Spent, Usage
from cuesmith.teleprompters.runtime.record import MOST_SHOWN, view_of
from cuesmith.teleprompters.runtime.run_report.contrast import Contrast, contrast_of
from cuesmith.teleprompters.runtime.run_report.family import Member, MoveTally, family_of, line_to, moves_of
from cuesmith.teleprompters.runtime.run_report.honest import GainVerdict, Scoring, verdict_of
from cuesmith.teleprompters.runtime.run_report.word_diff import PromptChange, prompt_changes, prompt_diff
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, estimate95
from cuesmith.teleprompters.runtime.stored import (
    RecordError,
    StoredRun,
    StoredView,
    adopted,
    outcomes_in,
    read_stored,
    step_of,
    stored_of,
)

__all__ = ["RunReport"]

_VIEWS = TypeAdapter(dict[str, list[StoredView]])


@dataclass(frozen=True)
class RunReport:
    """The report of one compile. `of` and `read` make one.

    Attributes:
        compiler: The compiler's class name.
        baseline: The student's prompts.
        best: The prompts that were returned.
        trials: All candidates with scores on selection examples, best first.
        steps: The search's steps.
        gain: On fresh examples, pair by pair; None if it was not measured.
        spent: What was used, and the seconds of the last session (NaN where a record does not have them).
        stopped_by: What ended the search early; None if it ran to its end.
        notes: What a reader should know.
        run_dir: Where the run is; None if it was not kept.
        provenance: Where the compiled program comes from; None if it is not known.
    """

    compiler: str
    baseline: Candidate
    best: Candidate
    trials: tuple[Trial, ...] = field(repr=False)
    steps: tuple[StepRecord, ...] = field(repr=False)
    gain: Gain | None
    spent: Spent
    stopped_by: str | None
    notes: tuple[Note, ...] = field(repr=False)
    run_dir: str | None
    provenance: Mapping[str, object] | None = field(repr=False)
    _stored: StoredRun = field(repr=False, compare=False)

    @classmethod
    def of(cls, compilation: Compilation) -> RunReport:
        """Return the report of a compile that has just been made.

        Raises:
            ValueError: If it was not made by this version.
        """
        if not compilation.record:
            raise ValueError("this compilation has no record to report on: it was made by an earlier version")
        report = cls._of(stored_of(compilation.record), compilation.run_dir, "the compilation's record")
        later = compilation.notes[len(report.notes) :]  # what became of writing the record is not in it
        return report if not later else cls._with(report, later)

    @classmethod
    def read(cls, run_dir: str | Path) -> RunReport:
        """Return the report of a run that has ended.

        Args:
            run_dir: As it was given to a compile.

        Raises:
            ValueError: If there is no such folder, no run in it, or one that has not finished or is damaged: one line.
        """
        stored = read_stored(Path(run_dir))
        if not stored.shown:
            stored.shown = _from_journal(Path(run_dir), stored)
        return cls._of(stored, str(run_dir), run_dir)

    @classmethod
    def _of(cls, stored: StoredRun, run_dir: str | None, where: object) -> RunReport:
        by_id = adopted(stored, where)
        own = {known: candidate.id for known, candidate in by_id.items()}
        used = {role: Usage(**vars(usage)) for role, usage in stored.spent.items()}
        stored.front = [own.get(known, known) for known in stored.front]
        return cls(
            compiler=stored.compiler,
            baseline=by_id[stored.baseline],
            best=by_id[stored.best],
            trials=tuple(Trial(by_id[c.id], tuple(c.scores), c.mean, c.n) for c in stored.candidates),
            steps=tuple(step_of(step, own) for step in stored.steps),
            gain=stored.gain,
            spent=Spent(used, math.nan if stored.seconds is None else stored.seconds),
            stopped_by=stored.stopped_by,
            notes=stored.told,
            run_dir=run_dir,
            provenance=stored.provenance,
            _stored=stored,
        )

    @classmethod
    def _with(cls, report: RunReport, later: Sequence[Note]) -> RunReport:
        return cls(**{**vars(report), "notes": (*report.notes, *later)})

    @property
    def unchanged(self) -> bool:
        """Whether the student itself is returned."""
        return self.best == self.baseline

    @cached_property
    def scoring(self) -> Scoring:
        """How scores are written."""
        fresh = [scores or [] for scores in self._stored.fresh_scores.values()]
        rows = [*(trial.scores for trial in self.trials), *fresh, [t.mean for t in self.trials]]
        return Scoring.of([v for row in rows for v in row if v is not None and not math.isnan(v)])

    @cached_property
    def verdict(self) -> GainVerdict:
        """The honest sentence."""
        why = ""
        if self.unchanged:
            said = [note.text for note in self.notes if note.kind == "verdict"]
            why = said[-1] if said else "Nothing scored above the student: it is returned unchanged."
        select = self.estimate("baseline", "select"), self.estimate("best", "select")
        differences = [b - a for a, b in zip(*self._fresh, strict=True) if a is not None and b is not None]
        return verdict_of(self.scoring, self.gain, why, select, differences)

    def estimate(self, who: str, split: str) -> Estimate95 | None:
        """Return a score with its interval; None if it was not measured.

        Args:
            who: "baseline" or "best".
            split: "select" or "fresh".
        """
        if who in self._stored.reports:
            return self._stored.reports[who].get(split)
        place = 0 if who == "baseline" else 1
        found = estimate95((self._select if split == "select" else self._fresh)[place])
        return found if found.n else None

    @property
    def _fresh(self) -> tuple[list[float | None], list[float | None]]:
        scores = self._stored.fresh_scores
        before, after = (list(scores.get(who) or []) for who in ("baseline", "best"))
        return (before, after) if len(before) == len(after) else ([], [])

    @property
    def _select(self) -> tuple[list[float | None], list[float | None]]:
        scores = {trial.candidate.id: list(trial.scores) for trial in self.trials}
        return scores.get(self.baseline.id, []), scores.get(self.best.id, [])

    @cached_property
    def changes(self) -> tuple[PromptChange, ...]:
        """What became of each predictor's prompt, from the student to what is returned."""
        return prompt_changes(self.baseline, self.best)

    @cached_property
    def parent(self) -> Candidate | None:
        """The (first) parent of the returned prompts; None if it is the student, or not on record."""
        parents = self.best.origin.parents
        known = {trial.candidate.id: trial.candidate for trial in self.trials}
        found = known.get(parents[0]) if parents else None
        return None if found is None or found == self.baseline or self.unchanged else found

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """All scored candidates, best first."""
        return family_of(self.trials, self.steps, self.baseline.id, self.best.id, self._stored.front)

    @cached_property
    def line(self) -> tuple[Member, ...]:
        """The candidates that led to the returned one, the oldest first and itself last."""
        return tuple(line_to(self.members, self.best.id))

    @cached_property
    def moves(self) -> tuple[MoveTally, ...]:
        """What each kind of move was worth."""
        return moves_of(self.trials)

    @cached_property
    def contrasts(self) -> tuple[Contrast, ...]:
        """The examples won and lost: the fresh ones, which count, and those that prompts were chosen by."""
        splits = (("fresh", self._fresh, "fresh"), ("selection", self._select, "select"))
        top = self._right()
        found = [
            contrast_of(name, *scores, self._stored.shown.get(key, [])[: len(scores[0])], top)
            for name, scores, key in splits
            if len(scores[0]) == len(scores[1])
        ]
        return tuple(one for one in found if any(case.fate != "missing" for case in one.cases))

    def _right(self) -> float:
        """Return the score from which on an answer counts as right: 1, or else the highest that was seen."""
        if self.scoring.percent:
            return 1.0
        known = [v for row in (*self._fresh, *self._select) for v in row if v is not None]
        return max(known, default=1.0)

    def diff(self, predictor: str | None = None) -> str:
        """Return what the compile changed, as a unified difference from the student's prompts; empty if nothing.

        Args:
            predictor: The one that is wanted; None for all.

        Raises:
            ValueError: If there is no such predictor.
        """
        if predictor is None:
            return prompt_diff(self.baseline, self.best)
        if predictor not in self.best.prompts:
            raise ValueError(f"no predictor {predictor!r}: the program has {', '.join(self.best.names)}")
        before, after = (Candidate({predictor: one.prompts[predictor]}) for one in (self.baseline, self.best))
        return prompt_diff(before, after)

    def to_html(self) -> str:
        """Return the report as one page that needs nothing but itself."""
        from cuesmith.teleprompters.runtime.run_report.document import page

        return page(self)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        from cuesmith.teleprompters.runtime.run_report.document import markdown

        return markdown(self)

    def to_json(self) -> dict[str, Json]:
        """Return the report as JSON data; null stands for what is not known."""
        from cuesmith.teleprompters.runtime.run_report.document import json_data

        return json_data(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from cuesmith.teleprompters.runtime.run_report.document import fragment

        return fragment(self)


def _from_journal(directory: Path, stored: StoredRun) -> dict[str, list[StoredView]]:
    """Return what older records leave to the journal: the answers on the selection examples."""
    try:
        outcomes = outcomes_in(directory, {stored.baseline, stored.best})
    except RecordError:  # a copy without its journal has no words, but its scores
        return {}
    rows = [
        view_of(
            known.id,
            known.inputs,
            known.labels,
            *(outcomes.get(one, {}).get(known.id) for one in (stored.baseline, stored.best)),
        )
        for known in stored.select[:MOST_SHOWN]
    ]
    return _VIEWS.validate_python({"select": rows})
