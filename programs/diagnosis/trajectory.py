"""Where a search went: best so far, how optimistic its score is, what it kept, how the prompt grew, what it copied.

Source: definitions in the project's notes on 2402.02101, section 4.5; intervals, and what counts as copied, are ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuesmith.programs.diagnosis import words
from cuesmith.programs.diagnosis.change import texts_of_prompts
from cuesmith.programs.diagnosis.figures import Curve, Section, percent_curve
from cuesmith.programs.diagnosis.inference import Difference, unpaired
from cuesmith.programs.diagnosis.run_record import KnownExample, RunRecord
from cuesmith.signatures.rendering import DEMONSTRATION
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.guards import COMMON, COPIED_WORDS, runs_in, words_in
from cuesmith.teleprompters.runtime.run_report.honest import Scoring
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95

CHARACTERS_PER_TOKEN = 4
"""A rough rule for English; no tokenizer of the target is known here."""


@dataclass(frozen=True)
class BestAfter:
    """The best candidate after one step.

    Attributes:
        step: 0, 1, 2, ...
        candidate: Its id.
        search: Its score on the selection examples.
        fresh: Its score on fresh examples; None where it was not run on them.
        characters: Of its prompts, demonstrations included.
    """

    step: int
    candidate: str
    search: Estimate95
    fresh: Estimate95 | None
    characters: int


@dataclass(frozen=True)
class Copied:
    """The longest run of words that instructions share with training inputs.

    Attributes:
        words: Its length in words.
        text: The run itself, in lower case; "" without any.
        inputs: How many training inputs have it.
    """

    words: int
    text: str
    inputs: int

    @property
    def leaks(self) -> bool:
        """Whether it is long enough to count as copied from an example."""
        return self.words >= COPIED_WORDS


@dataclass(frozen=True)
class Trajectory:
    """What a search did to the prompt and to its score.

    Attributes:
        points: The best so far, one a step; at the end what was returned, if no step tells of it.
        scoring: How scores are written: in points, or in the metric's own unit.
        search: The returned candidate's score on selection examples, as the compile reported it.
        fresh: Its score on fresh examples; None without any.
        optimism: Search minus fresh score of the returned candidate; None without fresh scores, or where the metric
            judges all answers together: then scores of single examples do not tell.
        gain_optimism: Gain over the baseline by search minus the gain by fresh score: what of the optimism is not
            that the fresh examples are harder; None as `optimism`, or if the baseline was returned.
        accepted: Share of the children that any step's beam kept; of none where no step tells of a choice.
        duplicates: Share of the candidates whose prompts another one has in the same words.
        baseline_characters: Characters of the student's prompts, demonstrations included.
        best_characters: Of the returned ones.
        per_hundred_tokens: Points of score, fresh if known, per 100 rough tokens of the returned prompts.
        gain_per_hundred_tokens: Points of score gained per 100 rough tokens added; nan if none were added.
        copied: What the returned instructions share with training inputs.
    """

    points: tuple[BestAfter, ...]
    scoring: Scoring
    search: Estimate95
    fresh: Estimate95 | None
    optimism: Difference | None
    gain_optimism: Difference | None
    accepted: Estimate95
    duplicates: Estimate95
    baseline_characters: int
    best_characters: int
    per_hundred_tokens: float
    gain_per_hundred_tokens: float
    copied: Copied


def trajectory(record: RunRecord) -> Trajectory:
    """Read a search's course from the record of its run."""
    best, start = record.best, record.baseline
    known = {start.id: record.report("baseline", "fresh"), best.id: record.report("best", "fresh")}
    search, on_fresh = record.report("best", "select") or estimate95([]), known[best.id]
    score = on_fresh or search
    basis = known[start.id] if on_fresh else record.report("baseline", "select")
    added, factor = _tokens(best.size) - _tokens(start.size), record.scoring.factor
    return Trajectory(
        points=_points(record, known),
        scoring=record.scoring,
        search=search,
        fresh=on_fresh,
        optimism=unpaired(record.fresh_best, record.scores_of(best)) if on_fresh and not record.together else None,
        gain_optimism=None if record.together else _gain_optimism(record),
        accepted=_accepted(record),
        duplicates=_duplicates(list(record.candidates.values())),
        baseline_characters=start.size,
        best_characters=best.size,
        per_hundred_tokens=factor * score.mean / _tokens(best.size) * 100 if best.size else math.nan,
        gain_per_hundred_tokens=(
            factor * (score.mean - basis.mean) / added * 100 if basis is not None and added > 0 else math.nan
        ),
        copied=copied(best, start, record.train),
    )


def _tokens(characters: int) -> float:
    return characters / CHARACTERS_PER_TOKEN


def _points(record: RunRecord, known: Mapping[str, Estimate95 | None]) -> tuple[BestAfter, ...]:
    candidates = record.candidates
    points = [
        BestAfter(
            step.step,
            step.best_id,
            step.validation,
            known.get(step.best_id),
            candidates[step.best_id].size if step.best_id in candidates else 0,
        )
        for step in record.steps
    ]
    if points and points[-1].candidate != record.best.id and (search := record.report("best", "select")):
        # dspy's optimizers tell of no step, and a stop can come between two.
        points.append(BestAfter(points[-1].step + 1, record.best.id, search, known[record.best.id], record.best.size))
    return tuple(points)


def _gain_optimism(record: RunRecord) -> Difference | None:
    best, start = record.best, record.baseline
    if best == start:
        return None
    by_search = _differences(record.scores_of(start), record.scores_of(best))
    by_fresh = _differences(record.fresh_baseline, record.fresh_best)
    return unpaired(by_fresh, by_search) if by_search and by_fresh else None


def _differences(first: Sequence[float | None], second: Sequence[float | None]) -> list[float]:
    if len(first) != len(second):
        return []
    return [b - a for a, b in zip(first, second, strict=True) if a is not None and b is not None]


def _accepted(record: RunRecord) -> Estimate95:
    children = [c.id for c in record.candidates.values() if c.origin.parents and c != record.baseline]
    kept = {known for step in record.steps for known in step.beam} & set(children)
    if record.best.id in children:
        if not kept:  # no step tells of the choice that was made: dspy's optimizers
            return estimate95([])
        kept.add(record.best.id)  # chosen, though a stop may have come before its step was recorded
    return estimate95(child in kept for child in children)


def _duplicates(candidates: Sequence[Candidate]) -> Estimate95:
    """Prompts are the same if their words are, behind the same prompter: case and punctuation do not count."""
    words = [(c.prompter, *(tuple(words_in(text)) for text in texts_of_prompts(c))) for c in candidates]
    counts = Counter(words)
    return estimate95(counts[one] > 1 for one in words)


def copied(candidate: Candidate, baseline: Candidate, train: Sequence[KnownExample]) -> Copied:
    """Return the longest run of words that a candidate's instructions share with a training input.

    Demonstrations are examples by their nature and are not looked at. What the student's instructions said
    already, and runs that one training input in five has (the task's own phrases), are no copies.

    Args:
        candidate: Whose instructions.
        baseline: The student.
        train: The examples that the optimizer may have seen.
    """
    own = [p.instructions for _, p in baseline]
    written = [p.instructions.partition(f"\n\n{DEMONSTRATION}\n")[0] for _, p in candidate]
    inputs = [example.text for example in train]
    length, runs = 0, dict[tuple[str, ...], int]()
    while length < COPIED_WORDS and (longer := _shared(written, inputs, own, length + 1)):
        length, runs = length + 1, longer
    too_long = 1 + max((len(words_in(text)) for text in written), default=0) if length == COPIED_WORDS else length + 1
    while too_long - length > 1:  # by halves: a passage of a thousand words would take minutes word by word
        middle = min(2 * length, (length + too_long) // 2)
        if longer := _shared(written, inputs, own, middle):
            length, runs = middle, longer
        else:
            too_long = middle
    if not runs:
        return Copied(0, "", 0)
    run, count = max(runs.items(), key=lambda entry: (entry[1], entry[0]))
    return Copied(length, " ".join(run), count)


def _shared(
    written: Sequence[str], inputs: Sequence[str], own: Sequence[str], length: int
) -> dict[tuple[str, ...], int]:
    """Return the runs of so many words that are in the instructions and in some input, and in how many.

    Runs that are the student's, or common, are kept while they are short of a copy: a longer one may hold them.
    """
    ours = {run for text in written for run in runs_in(text, length)}
    counts = Counter(run for text in inputs for run in ours.intersection(runs_in(text, length)))
    if length < COPIED_WORDS:
        return dict(counts)
    student = {run for text in own for run in runs_in(text, length)}
    common = max(2, len(inputs) / COMMON)
    return {run: n for run, n in counts.items() if n < common and run not in student}


def section_of(found: Trajectory) -> Section:
    """Put a trajectory into words and figures."""
    curves = _curves(found.points, found.scoring)
    return words.section_of("diagnosis/trajectory", found, curves, COPIED_WORDS, CHARACTERS_PER_TOKEN)


def _curves(points: Sequence[BestAfter], scoring: Scoring) -> tuple[Curve, ...]:
    if not points:
        return ()
    steps = [float(p.step) for p in points]
    factor, axis = scoring.factor, "score (points)" if scoring.percent else "score"
    scores = [(p.step, p.search) for p in points]
    search = percent_curve("search score", scores, "step", axis, factor=factor)
    fresh = [None if p.fresh is None else factor * p.fresh.mean for p in points]
    size = Curve("prompt length", steps, [float(p.characters) for p in points], "step", "characters")
    if not any(score is not None for score in fresh):
        return search, size
    return search, Curve("fresh score", steps, fresh, "step", axis), size
