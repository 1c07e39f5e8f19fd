"""Does a prompt that reads differently act differently? What each refinement changed in words and in answers.

`changes` reads it from a finished run and calls no model. `noise_flips` scores anew through a function that it is
given: the share of answers that change by themselves. `neighbourhood_of` tells from scores whether a refinement is
better or worse for what it says ("right idea") or for how it says it ("wrong wording").

Source: 2402.02101 compares both kinds of change; definitions in the project's notes, section 4.3; ours.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import dspy
import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis import words
from cuesmith.programs.diagnosis.embedders import Similarity, TfIdf
from cuesmith.programs.diagnosis.figures import Curve, Section
from cuesmith.programs.diagnosis.inference import Correlation, drawn_shares, spearman
from cuesmith.programs.diagnosis.run_record import RunRecord, answer, passed
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.outcomes import Outcome, value
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, estimate95, paired_gain

FEW = 10
"""A refinement that is compared on fewer examples says little about itself. Ours."""

PARAPHRASES = 8
"""Neighbours of a prompt. Source: the project's notes."""


class Score(Protocol):
    """Runs a candidate on examples, anew."""

    def __call__(self, candidate: Candidate, examples: Sequence[dspy.Example], draw: int) -> Sequence[Outcome]:
        """Return one outcome an example, in order; another `draw` may give other answers, the same draw does not."""
        ...


Row = Sequence[Outcome | None]
"""What became of a prompt on each example; None where it was not run."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """What one refinement changed.

    Attributes:
        parent: Id of the candidate that was refined.
        child: Id of what came of it.
        move: The compiler's name of the refinement.
        distance: 1 - similarity of the prompts' texts, demonstrations included (d_sem).
        flips: Share of the examples whose parsed answer changed; n is smaller where answers are not known.
        fixed: Examples that became right.
        broken: Examples that became wrong.
        gain: (fixed - broken) / n with interval and McNemar's exact p-value.
    """

    parent: str
    child: str
    move: str
    distance: float
    flips: Estimate95
    fixed: int
    broken: int
    gain: Gain


@dataclass(frozen=True)
class Changes:
    """All refinements of a run.

    Attributes:
        changes: One a refinement, in the order of the children's scores.
        unknown: Refinements that could not be compared: no example has a score for both prompts.
        association: Spearman's correlation of distance and |gain|.
        later: The same without what was made from the student's own prompts, which all else is far from.
        improved: Share of the refinements with gain > 0.
        flips: Mean share of flipped answers over the refinements.
        significant: Refinements that differ from their parent at 5 %, divided by their number (Bonferroni).
    """

    changes: tuple[Change, ...]
    unknown: int
    association: Correlation
    later: Correlation
    improved: Estimate95
    flips: Estimate95
    significant: int


def changes(record: RunRecord, similarity: Similarity | None = None, *, threshold: float = 1.0) -> Changes:
    """Compare every refined prompt with the one it was made from, on the selection examples both have a score on.

    A candidate that racing stopped early is compared on the few examples it was run on, and counted like the others:
    leaving it out would make refinements look better than they are. What changed is the prompter in front of the
    program is no refinement of a prompt, and left out.

    Args:
        record: The run.
        similarity: How alike texts are; TF-IDF over all candidates of the run by default.
        threshold: A score from which on an answer counts as right.
    """
    pairs = [(parent, child) for parent, child in record.pairs() if parent.prompter == child.prompter]
    texts = {c.id: text_of_prompts(c) for pair in pairs for c in pair}
    place = {name: i for i, name in enumerate(texts)}
    likeness = (similarity or TfIdf()).matrix(list(texts.values())) if texts else np.zeros((0, 0))
    found = []
    for parent, child in pairs:
        distance = 1.0 - float(likeness[place[parent.id], place[child.id]])
        if (one := _change(record, parent, child, max(0.0, distance), threshold)) is not None:
            found.append(one)
    later = [one for one in found if one.parent != record.baseline.id]
    return Changes(
        changes=tuple(found),
        unknown=len(pairs) - len(found),
        association=_association(found),
        later=_association(later),
        improved=estimate95(one.gain.difference > 0 for one in found),
        flips=_share(estimate95([one.flips.mean for one in found if one.flips.n])),
        significant=sum(one.gain.p_value * len(found) < 0.05 for one in found),
    )


def _share(estimate: Estimate95) -> Estimate95:
    """Student's interval of a mean of shares, which are from 0 to 1."""
    low, high = np.clip((estimate.low, estimate.high), 0.0, 1.0).tolist()
    return replace(estimate, low=low, high=high)


def _association(found: Sequence[Change]) -> Correlation:
    return spearman([one.distance for one in found], [abs(one.gain.difference) for one in found])


def text_of_prompts(candidate: Candidate) -> str:
    """Return all that a compiler may change of a program as one text: instructions and demonstrations."""
    return "\n".join(texts_of_prompts(candidate))


def texts_of_prompts(candidate: Candidate) -> Iterator[str]:
    """Yield instructions and values of demonstrations, predictor by predictor."""
    for _, prompt in candidate:
        yield prompt.instructions
        yield from (str(text) for demo in prompt.demos for _, text in demo.values)


def _change(record: RunRecord, parent: Candidate, child: Candidate, distance: float, threshold: float) -> Change | None:
    before, after = (_row(record, c) for c in (parent, child))
    old, new = (_right(record, c, row, threshold) for c, row in ((parent, before), (child, after)))
    gain = paired_gain(old, new)
    if not gain.n:
        return None
    both = [(a, b) for a, b in zip(old, new, strict=True) if a is not None and b is not None]
    return Change(
        parent=parent.id,
        child=child.id,
        move=child.origin.move,
        distance=distance,
        flips=flips(before, after, labels=record.labels),
        fixed=sum(a < b for a, b in both),
        broken=sum(a > b for a, b in both),
        gain=gain,
    )


def _row(record: RunRecord, candidate: Candidate) -> Row:
    known = record.outcomes.get(candidate.id, {})
    return [known.get(example.id) for example in record.select]


def _right(record: RunRecord, candidate: Candidate, row: Row, threshold: float) -> list[bool | None]:
    """Whether each selection example was answered rightly, by its score where there is no outcome.

    The journal of a hosted optimizer has none: its programs are run by dspy, which tells scores alone.
    """
    scores = record.scores_of(candidate) or (None,) * len(record.select)
    return [
        passed(one, threshold) if one is not None else None if score is None else score >= threshold
        for one, score in zip(row, scores, strict=True)
    ]


def flips(
    before: Sequence[Outcome | None], after: Sequence[Outcome | None], *, labels: Collection[str] = ()
) -> Estimate95:
    """Return the share of the examples whose parsed answer differs, over those where both answers are known.

    Args:
        before: What became of one prompt on each example; None where it was not run.
        after: What became of the other.
        labels: The fields that the examples have a label for: the answer, if any predictor writes them.
    """
    both = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    pairs = [(answer(a, labels), answer(b, labels)) for a, b in both]
    return estimate95(a != b for a, b in pairs if a is not None and b is not None)


@dataclass(frozen=True)
class NoiseFlips:
    """How much of the answers change when nothing is changed.

    Attributes:
        flips: Share of the examples whose parsed answer differs between two draws of the same prompt.
        gain: Second draw minus first, as a refinement's gain: what "no change" looks like on these examples.
    """

    flips: Estimate95
    gain: Gain


def noise_flips(
    score: Score, candidate: Candidate, examples: Sequence[dspy.Example], *, threshold: float = 1.0
) -> NoiseFlips:
    """Run one prompt twice against itself. At temperature 0 the share should be 0; compare a refinement's with it.

    Args:
        score: Runs it, 2 runs an example.
        candidate: The prompt.
        examples: On which.
        threshold: A score from which on an answer counts as right.
    """
    first, second = (score(candidate, examples, draw) for draw in (0, 1))
    old, new = ([passed(one, threshold) for one in outcomes] for outcomes in (first, second))
    labels = {name for example in examples for name in example.labels()}
    return NoiseFlips(flips(first, second, labels=labels), paired_gain(old, new))


@dataclass(frozen=True)
class Neighbourhood:
    """A refinement p -> p' judged by prompts that say the same as p and as p'.

    Attributes:
        parent: Mean score of each paraphrase of p on the examples.
        child: Mean score of each paraphrase of p'.
        own: The score of p' itself on the same examples.
        validity: Mean of `child` less mean of `parent`: what the change of meaning alone is worth (semantic
            validity), with a bootstrap interval over examples and paraphrases.
        shortfall: The best paraphrase of p' less p' itself, on fresh examples: what the wording costs.
        rank: Rank of p' among itself and its paraphrases, 1 is the best; equal scores share their mean rank.
        n: Examples that every prompt has a score on.
    """

    parent: tuple[float, ...]
    child: tuple[float, ...]
    own: float
    validity: Estimate95
    shortfall: Gain
    rank: float
    n: int


def best_paraphrase(parent: Sequence[Row], refined: Row, child: Sequence[Row]) -> int:
    """Return which paraphrase of p' has the best mean, on the examples that every prompt has a score on.

    Args:
        parent: What became of each paraphrase of p, one outcome an example.
        refined: What became of p' itself.
        child: What became of each paraphrase of p'.

    Raises:
        ValueError: If a neighbourhood is empty, or no example has a score for every prompt.
    """
    return int(_complete(parent, refined, child)[1].mean(axis=1).argmax())


def neighbourhood_of(
    parent: Sequence[Row], refined: Row, child: Sequence[Row], fresh: tuple[Row, Row], *, seed: int = 0
) -> Neighbourhood:
    """Test whether a refinement p -> p' has the right idea and the wrong wording.

    A validity clearly above 0 together with a large shortfall says so. The best paraphrase is chosen on the examples
    and compared on fresh ones: the best of several is lucky on the examples it was chosen by.

    Args:
        parent: What became of each paraphrase of p, one outcome an example.
        refined: What became of p' itself.
        child: What became of each paraphrase of p'.
        fresh: What became of p' and of its best paraphrase (`best_paraphrase`) on other examples.
        seed: Seeds the bootstrap.

    Raises:
        ValueError: As `best_paraphrase`.
    """
    of_parent, of_child, refined_row = _complete(parent, refined, child)
    means, own = of_child.mean(axis=1), float(refined_row.mean())
    return Neighbourhood(
        parent=tuple(of_parent.mean(axis=1).tolist()),
        child=tuple(means.tolist()),
        own=own,
        validity=_bootstrap(of_parent, of_child, seed),
        shortfall=paired_gain(*map(_values, fresh), seed=seed),
        rank=1.0 + float((means > own).sum()) + float((means == own).sum()) / 2,
        n=of_child.shape[1],
    )


def _complete(parent: Sequence[Row], refined: Row, child: Sequence[Row]) -> tuple[Floats, Floats, Floats]:
    """The scores on the examples that every prompt has one on: of the paraphrases of p, those of p', and p' itself."""
    if not parent or not child:
        raise ValueError("both neighbourhoods need at least one paraphrase")
    rows = [_values(row) for row in (*parent, *child, refined)]
    scores = np.array([[math.nan if v is None else v for v in row] for row in rows])
    scores = scores[:, ~np.isnan(scores).any(axis=0)]
    if not scores.shape[1]:
        raise ValueError("no example has a score for every prompt")
    return scores[: len(parent)], scores[len(parent) : -1], scores[-1]


def _values(row: Row) -> list[float | None]:
    return [None if one is None else value(one) for one in row]


def _bootstrap(first: Floats, second: Floats, seed: int) -> Estimate95:
    """Difference of means, second less first, with the percentile interval of drawing prompts and examples anew.

    Rows are prompts, columns the examples they share. Both are drawn with replacement, the same examples for both
    sides (the pigeonhole bootstrap, Owen 2007, which errs on the wide side).
    """
    rng = np.random.default_rng(seed)
    n = first.shape[1]
    columns = drawn_shares(rng, n)
    a, b = (((drawn_shares(rng, len(side)) @ side) * columns).sum(axis=1) for side in (first, second))
    drawn = b - a
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate95(float(second.mean() - first.mean()), float(low), float(high), n)


def section_of(found: Changes | NoiseFlips | Neighbourhood) -> Section:
    """Put a result into words and figures."""
    if not isinstance(found, Changes):
        part = "noise" if isinstance(found, NoiseFlips) else "neighbours"
        return words.section_of("diagnosis/change", found, part=part)
    better = sum(one.gain.difference > 0 for one in found.changes)
    few = sum(one.gain.n < FEW for one in found.changes)
    shown = _curves(found.changes), better, few, _extremes(found.changes), FEW
    return words.section_of("diagnosis/change", found, *shown, part="changes")


def _extremes(found: Sequence[Change]) -> list[tuple[str, Change]]:
    """The refinement with the highest gain, and that with the greatest loss."""
    if not found:
        return []
    most, least = (pick(found, key=lambda one: one.gain.difference) for pick in (max, min))
    both = [("gain", most)] if most.gain.difference > 0 else []
    return [*both, ("loss", least)] if least.gain.difference < 0 else both


def _curves(found: Sequence[Change]) -> tuple[Curve, ...]:
    ordered = sorted(found, key=lambda one: one.distance)
    if not ordered:
        return ()
    gains = [100 * one.gain.difference for one in ordered]
    axis = "distance of the words (0 the same, 1 nothing in common)"
    return (Curve("refinements", [one.distance for one in ordered], gains, axis, "gain (points)", points=True),)
