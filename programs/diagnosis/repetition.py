"""Feedback repetition: is the same said whichever errors are shown?

Every batch of errors is asked about several times. How alike the feedback on different batches is means nothing by
itself, so it is placed between a ceiling, the feedback on the same batch asked again, and a floor, how alike it is to
the feedback on another task. Source: 2402.02101 ("similar feedbacks regardless of the error distributions"); the
definitions are ours, its formulas could not be read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis import words
from cuesmith.programs.diagnosis.asking import TooLittle
from cuesmith.programs.diagnosis.embedders import Similarity, TfIdf, average_linkage
from cuesmith.programs.diagnosis.figures import Section
from cuesmith.programs.diagnosis.inference import interval95, resamples
from cuesmith.teleprompters.runtime.statistics import Estimate95

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Theme:
    """Feedback that says much the same.

    Attributes:
        count: How many of the texts belong to it.
        example: The one of them that is most like the others; a model wrote it.
    """

    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Repetition:
    """How far the feedback repeats itself from batch to batch; similarities are means over pairs of texts.

    Attributes:
        across: Between feedback on different batches.
        ceiling: Between feedback on the same batch, asked again.
        floor: Between feedback on this task and feedback on another.
        normalised: (across - floor) / (ceiling - floor): 1 says that it makes no difference which errors are shown, 0
            that feedback on other errors is as different as feedback on another task. mean is nan where the ceiling
            is not above the floor with 95 % confidence: then `generic` is True.
        generic: Whether feedback on this task cannot be told from feedback on another.
        themes: Groups of the batches' first texts, the largest first.
        threshold: Least mean similarity of two groups that count as one theme: half-way between floor and ceiling.
        distinct: Themes per text, in (0, 1].
        entropy: Entropy of the themes' shares over the largest possible, in [0, 1]; nan for a single text.
        missing: Requests that no usable feedback came of.
    """

    across: Estimate95
    ceiling: Estimate95
    floor: Estimate95
    normalised: Estimate95
    generic: bool
    themes: tuple[Theme, ...]
    threshold: float
    distinct: float
    entropy: float
    missing: int


def repetition_of(
    feedback: Sequence[Sequence[str]],
    others: Sequence[str],
    *,
    similarity: Similarity | None = None,
    seed: int = 0,
    missing: int = 0,
) -> Repetition:
    """Measure repetition in feedback that is there already.

    Intervals are percentile bootstrap intervals over batches, and over the other task's texts; pairs of a batch with
    its own copy do not count as pairs of different batches. Source of the figures: ours; of the bootstrap: Efron 1979.

    Args:
        feedback: For each batch of errors what was said of it; batches without any do not count.
        others: What was said of another task's errors, one text a batch.
        similarity: How texts are compared; `TfIdf()` by default.
        seed: Seeds the bootstrap.
        missing: Requests that no feedback came of, for the record.

    Raises:
        TooLittle: With fewer than two batches, none of them asked about twice, or nothing of another task.
    """
    groups = [list(texts) for texts in feedback if texts]
    if len(groups) < 2 or not others or all(len(texts) < 2 for texts in groups):
        raise TooLittle(
            "repetition needs feedback on two batches or more, twice on one of them, and on another task; "
            f"got {[len(texts) for texts in groups]} texts on batches and {len(others)} on another task"
        )
    texts = [text for group in groups for text in group]
    matrix = (similarity or TfIdf()).matrix([*texts, *others])
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    tables = _tables(matrix, owner)
    anchors = [float(values[0]) for values in _anchors(*tables, np.ones((1, len(groups))), np.ones((1, len(others))))]
    boot = np.random.default_rng(seed)
    resampled = _anchors(*tables, *(resamples(len(side), boot) for side in (groups, others)))
    across, ceiling, floor = (
        interval95(value, values, n)
        for value, values, n in zip(anchors, resampled, (len(groups), len(groups), len(others)), strict=True)
    )
    room = interval95(anchors[1] - anchors[2], resampled[1] - resampled[2], len(groups))
    generic = not room.low > 0.0
    cut = (floor.mean + ceiling.mean) / 2
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    themes = _themes([texts[k] for k in first], matrix[np.ix_(first, first)], cut)
    return Repetition(
        across=across,
        ceiling=ceiling,
        floor=floor,
        normalised=_normalised(anchors, resampled, len(groups), generic),
        generic=generic,
        themes=themes,
        threshold=cut,
        distinct=len(themes) / len(first),
        entropy=entropy([theme.count for theme in themes]),
        missing=missing,
    )


def entropy(counts: Sequence[int]) -> float:
    """Return the entropy of shares over the logarithm of their total, the most it can be; nan for a total of 1."""
    total = sum(counts)
    if total < 2:
        return math.nan
    return max(0.0, -math.fsum(c / total * math.log(c / total) for c in counts if c) / math.log(total))


def _tables(matrix: Floats, owner: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
    """Mean similarities of batch and batch, of each batch with itself (nan for a single text), of batch and others."""
    n = len(owner)
    member = np.eye(int(owner.max()) + 1)[:, owner]
    sizes = member.sum(axis=1)
    sums = member @ matrix[:n, :n] @ member.T
    own = np.full(len(sizes), math.nan)
    np.divide(np.diag(sums) - sizes, sizes * (sizes - 1), out=own, where=sizes > 1)
    return sums / np.outer(sizes, sizes), own, member @ matrix[:n, n:] / sizes[:, None]


def _anchors(between: Floats, own: Floats, foreign: Floats, w: Floats, v: Floats) -> tuple[Floats, Floats, Floats]:
    """Across, ceiling and floor for each row of multiplicities of the batches (w) and of the other texts (v)."""
    pairs = w.sum(axis=1) ** 2 - (w**2).sum(axis=1)
    across = ((w @ between) * w).sum(axis=1) - (w**2) @ np.diag(between)
    asked = np.isfinite(own)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample of a single batch has no pairs: nan
        ceiling = w @ np.where(asked, own, 0.0) / (w @ asked)
        return across / pairs, ceiling, ((w @ foreign) * v).sum(axis=1) / (w.sum(axis=1) * v.sum(axis=1))


def _normalised(anchors: Sequence[float], resampled: Sequence[Floats], n: int, generic: bool) -> Estimate95:
    if generic:
        return Estimate95(math.nan, math.nan, math.nan, n)
    across, ceiling, floor = anchors
    values = (resampled[0] - resampled[2]) / np.maximum(resampled[1] - resampled[2], 1e-9)
    return interval95((across - floor) / (ceiling - floor), values, n)


def _themes(texts: Sequence[str], matrix: Floats, threshold: float) -> tuple[Theme, ...]:
    groups = np.array(average_linkage(matrix, threshold))
    themes = []
    for group, count in Counter(groups.tolist()).most_common():
        members = np.flatnonzero(groups == group)
        middle = members[int(matrix[np.ix_(members, members)].sum(axis=1).argmax())]
        themes.append(Theme(count, texts[middle]))
    return tuple(themes)


# --- the report --------------------------------------------------------------------------------------------


def section_of(result: Repetition) -> Section:
    """Return the part of the report that says how far feedback repeats itself."""
    return words.section_of("diagnosis/repetition", result)
