"""What the probes of a program say: how it fails, how steady it is, what it could reach. Pure functions.

Source: ours.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import dspy
import numpy as np

from cuesmith.programs import report
from cuesmith.programs.diagnosis.inference import holm
from cuesmith.programs.probing import REPEATED, Probes
from cuesmith.teleprompters.runtime.candidate import Json, to_json
from cuesmith.teleprompters.runtime.corpus_statistics import estimate_of, gain_of
from cuesmith.teleprompters.runtime.evidence import labels_of, text_of
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored, Scores, value
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, estimate95, paired_gain


@dataclass(frozen=True)
class Failures:
    """How the student's runs ended; each is counted once.

    Attributes:
        n: Runs with a score.
        right: With the full score.
        unread: The reply does not parse, or has a value of the wrong type.
        raised: The program's own code raised.
        beside: The right answer stands in the answer, beside other words.
        wrong: Anything else below the full score.
        cut: Of all these, those with a reply that was cut at `max_tokens`.
        missing: Runs without a score: the provider or the metric failed.
        first: Why the first of `unread` could not be read; "" without one.
        unjudged: Of `missing`, those on which the metric failed.
        objection: Why it failed on the first of them; "" without one.
    """

    n: int = 0
    right: int = 0
    unread: int = 0
    raised: int = 0
    beside: int = 0
    wrong: int = 0
    cut: int = 0
    missing: int = 0
    first: str = ""
    unjudged: int = 0
    objection: str = ""

    @property
    def failed(self) -> int:
        """Runs below the full score."""
        return self.n - self.right

    @property
    def of_form(self) -> int:
        """Failures that are of form: nothing says that the answer itself was wrong."""
        return self.unread + self.beside

    @property
    def of_content(self) -> int:
        """Failures that are of content."""
        return self.failed - self.of_form


@dataclass(frozen=True)
class Noise:
    """How much scores move between repeated draws of the same example.

    Attributes:
        examples: That were drawn several times.
        draws: Of each.
        moved: Examples whose score was not always the same.
        within: Standard deviation of the score between draws of an example, in the metric's unit.
        deterministic: Whether the program's models run at temperature 0.
        alike: Pairs of draws of an example with the same answer, word for word.
        judged_apart: Such pairs of which the metric scored the two differently.
        best: Mean of the best score of each example.
        gained: The best of all draws over the first, with its interval.
    """

    examples: int
    draws: int
    moved: int
    within: float
    deterministic: bool
    alike: int
    judged_apart: int
    best: Estimate95
    gained: Gain

    @property
    def of_the_metric(self) -> bool:
        """Whether the metric is seen to judge the same answer differently, in at least one of ten pairs and three."""
        return self.judged_apart >= 3 and 10 * self.judged_apart >= self.alike


@dataclass(frozen=True)
class Tried:
    """A generic prompt, compared with the student on the same examples.

    Attributes:
        name: What it is.
        score: Of the student with it.
        gain: Over the student.
        p_value: Of the gain, corrected for the number of generic prompts (Holm).
    """

    name: str
    score: Estimate95
    gain: Gain
    p_value: float

    @property
    def gains(self) -> bool:
        """Whether it is shown to be better than the student."""
        return self.p_value < 0.05 and self.gain.low > 0.0

    def to_json(self) -> dict[str, Json]:
        """Return the figures as JSON data."""
        return {
            "name": self.name,
            "score": report.estimate_json(self.score),
            "gain": report.gain_json(self.gain),
            "p_holm": round(self.p_value, 6),
        }


def read_failures(scores: Scores, top: float) -> Failures:
    """Count how runs ended.

    Args:
        scores: The student's.
        top: The full score.
    """
    pairs = list(zip(scores.examples, scores.outcomes, strict=True))
    kinds = Counter(_kind(example, outcome, top) for example, outcome in pairs)
    unread = [o.reason for _, o in pairs if isinstance(o, ParseFailure) and not o.raised]
    cut = sum(isinstance(o, Scored | ParseFailure) and o.cut > 0 for _, o in pairs)
    missing, unjudged = kinds.pop("missing", 0), scores.unjudged
    told = {"missing": missing, "unjudged": len(unjudged), **kinds}
    return Failures(
        sum(kinds.values()),
        cut=cut,
        first=min(unread, default=""),
        objection=" ".join(min(unjudged, default="").split()),
        **told,
    )


def _kind(example: dspy.Example, outcome: Outcome, top: float) -> str:
    match outcome:
        case ParseFailure():
            return "raised" if outcome.raised else "unread"
        case Scored():
            if outcome.score >= top - 1e-9 * abs(top):
                return "right"
            return "beside" if _stands_beside(example, outcome) else "wrong"
        case _:
            return "missing"


def _stands_beside(example: dspy.Example, outcome: Scored) -> bool:
    """Whether each label is found, as whole words, in the longer text that was answered in its field."""
    answered = outcome.trace[-1].outputs if outcome.trace else {}
    labels = {name: text_of(v).strip() for name, v in labels_of(example).items() if name in answered}
    if not all(labels.values()) or not labels:
        return False
    texts = {name: text_of(answered[name]).strip() for name in labels}
    return texts != labels and all(
        re.search(rf"(?<!\w){re.escape(label)}(?!\w)", texts[name], re.IGNORECASE) for name, label in labels.items()
    )


def read_noise(seen: Probes, *, deterministic: bool) -> Noise | None:
    """Compare repeated draws; None where no example was drawn twice."""
    if seen.student is None or not seen.repeats:
        return None
    rows = [
        [outcome, *(kept[place] for kept in seen.repeats.values() if place in kept)]
        for place, outcome in enumerate(seen.student.outcomes[:REPEATED])
    ]
    draws = 1 + len(seen.repeats)
    whole = [row for row in rows if len(row) == draws and all(value(outcome) is not None for outcome in row)]
    if not whole:
        return None
    values = np.array([[value(outcome) for outcome in row] for row in whole], dtype=float)
    pairs = [
        (a, b)
        for row in whole
        for i, a in enumerate(row)
        for b in row[:i]
        if isinstance(a, Scored) and isinstance(b, Scored) and _said(a) == _said(b)
    ]
    best = values.max(axis=1)
    return Noise(
        len(whole),
        draws,
        int((np.ptp(values, axis=1) > 0).sum()),
        float(math.sqrt(values.var(axis=1, ddof=1).mean())),
        deterministic,
        len(pairs),
        sum(a.score != b.score for a, b in pairs),
        estimate95(best.tolist()),
        paired_gain(values[:, 0].tolist(), best.tolist()),
    )


def _said(outcome: Scored) -> Json:
    return [to_json(dict(step.outputs)) for step in outcome.trace]


def read_tried(seen: Probes) -> tuple[Tried, ...]:
    """Compare each generic prompt with the student, the best first."""
    if seen.student is None:
        return ()
    student = seen.student
    gains = {name: gain_of(student, scores) for name, scores in seen.tried.items()}
    gains = {name: gain for name, gain in gains.items() if gain.n}
    corrected = holm([gain.p_value for gain in gains.values()])
    found = [
        Tried(name, estimate_of(seen.tried[name]) or estimate95(()), gain, p)
        for (name, gain), p in zip(gains.items(), corrected, strict=True)
    ]
    return tuple(sorted(found, key=lambda one: -one.gain.difference))


def differences_of(seen: Probes) -> list[float]:
    """Return the differences between the student and the generic prompt that changed most, in shares of the full score.

    What a compiler will find is not known; it is taken to change answers as much as that prompt did.
    """
    unit = seen.scale.unit
    rows = [_differences(seen.student, scores, unit) for scores in seen.tried.values()] if seen.student else []
    return max(rows, key=lambda row: float(np.var(row)) if row else -1.0, default=[])


def _differences(first: Scores, second: Scores, unit: float) -> list[float]:
    pairs = zip(first.values, second.values, strict=True)
    return [(b - a) / unit for a, b in pairs if a is not None and b is not None]


def most_frequent(data: Sequence[dspy.Example]) -> float:
    """Return the share of the most frequent label: what is right without looking; 0 where labels rarely recur."""
    labels = Counter(text_of(to_json(labels_of(example))) for example in data if labels_of(example))
    n = sum(labels.values())
    return max(labels.values()) / n if labels and len(labels) <= n / 3 else 0.0
