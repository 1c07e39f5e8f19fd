"""The honest sentence of a report, and how its scores are written. Source: ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cuesmith.teleprompters.runtime.remarks import needed
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain

__all__ = ["GainVerdict", "Scoring", "Tone", "p_words", "verdict_of"]

Tone: TypeAlias = Literal["gain", "loss", "none", "unknown"]


@dataclass(frozen=True)
class GainVerdict:
    """What came out.

    Attributes:
        tone: A gain, a loss, none that can be told, or not measured.
        text: One sentence.
        grounds: From which examples, and how many would tell more; one or two sentences.
    """

    tone: Tone
    text: str
    grounds: str


@dataclass(frozen=True)
class Scoring:
    """How scores are written: those from 0 to 1 in percent, others in the metric's own unit.

    Attributes:
        percent: Whether they are from 0 to 1.
    """

    percent: bool

    @classmethod
    def of(cls, scores: Sequence[float]) -> Scoring:
        """Return how such scores are written."""
        return cls(all(0.0 <= score <= 1.0 for score in scores))

    @property
    def factor(self) -> float:
        """What a score is multiplied by."""
        return 100.0 if self.percent else 1.0

    @property
    def axis(self) -> str:
        """The name of an axis of scores."""
        return "score, %" if self.percent else "score"

    def number(self, score: float | None) -> str:
        """A score without its unit: ``97.2``; a dash where there is none."""
        return "–" if score is None or math.isnan(score) else self._figure(score * self.factor)

    def score(self, score: float | None) -> str:
        """A score: ``97.2 %``; a dash where there is none."""
        shown = self.number(score)
        return f"{shown} %" if self.percent and shown != "–" else shown

    def interval(self, low: float, high: float) -> str:
        """An interval: ``35.0 to 47.1``; empty where there is none."""
        if math.isnan(low) or math.isnan(high):
            return ""
        return f"{self.number(low)} to {self.number(high)}"

    def estimate(self, estimate: Estimate95 | None) -> str:
        """A score with its interval: ``97.2 % [94.3, 98.6]``; a dash where there is none."""
        if estimate is None or not estimate.n:
            return "–"
        inside = self.interval(estimate.low, estimate.high).replace(" to ", ", ")
        return f"{self.score(estimate.mean)} [{inside}]" if inside else self.score(estimate.mean)

    def change(self, difference: float | None) -> str:
        """A difference with its sign: ``+41.2``; a dash where there is none."""
        if difference is None or math.isnan(difference):
            return "–"
        shown = self._figure(abs(difference) * self.factor)
        return shown if float(shown.replace(",", "")) == 0.0 else f"{'+' if difference > 0 else '−'}{shown}"

    def gain(self, gain: Gain | None) -> str:
        """A gain with its interval: ``+41.2 [+35.0, +47.1]``."""
        if gain is None or not gain.n:
            return "–"
        known = not (math.isnan(gain.low) or math.isnan(gain.high))
        inside = f" [{self.change(gain.low)}, {self.change(gain.high)}]" if known else ""
        return f"{self.change(gain.difference)}{inside}"

    def points(self, difference: float) -> str:
        """A difference in words, without its sign: ``41.2 points``."""
        shown = self._figure(abs(difference) * self.factor)
        return f"{shown} points" if self.percent else f"{shown} in the metric's unit"

    def _figure(self, value: float) -> str:
        return f"{value:,.1f}" if self.percent or abs(value) >= 100 else f"{value:.3g}"


def p_words(p_value: float) -> str:
    """A p-value: ``p < 0.001``, ``p = 0.77``."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}" if p_value < 0.995 else "p = 1"


def verdict_of(
    scoring: Scoring,
    gain: Gain | None,
    unchanged: str,
    select: tuple[Estimate95 | None, Estimate95 | None],
    differences: Sequence[float],
) -> GainVerdict:
    """Return what came out of a compile.

    Args:
        scoring: How scores are written.
        gain: As it was measured.
        unchanged: Why the student is returned; "" if another prompt is.
        select: The scores of the student and of the returned prompt on selection examples.
        differences: Of the pairs of fresh scores.
    """
    n = select[0].n if select[0] is not None else 0
    chosen = f"Prompts were compared on {n} selection examples" if n else "Prompts were compared on selection examples"
    if unchanged:
        score = scoring.estimate(select[0])
        return GainVerdict("none", unchanged, f"{chosen}; the student's score on them is {score}.")
    if gain is None or not gain.n:
        return GainVerdict(
            "unknown",
            "Whether the new prompt is better cannot be told: it was not measured on fresh examples.",
            f"{chosen}: {scoring.estimate(select[1])} against the student's {scoring.estimate(select[0])}. That is "
            "optimistic, for the prompt was chosen by these very examples.",
        )
    examples = f"{gain.n} fresh example{'s' if gain.n > 1 else ''} that no decision of the search had seen"
    between = scoring.interval(gain.low, gain.high)
    sure = f"95 % interval {between}, " if between else ""
    grounds = f"Measured on {examples}, pair by pair. {chosen}."
    if gain.significant:
        does = "gains" if gain.difference > 0 else "loses"
        text = f"The compiled prompt {does} {scoring.points(gain.difference)} against the student"
        tone: Tone = "gain" if gain.difference > 0 else "loss"
        more = "" if gain.difference > 0 else ": keep the student"
        return GainVerdict(tone, f"{text} ({sure}n = {gain.n}, {p_words(gain.p_value)}){more}.", grounds)
    text = f"No gain can be told: {scoring.change(gain.difference)} {'points' if scoring.percent else 'in the score'}"
    return GainVerdict(
        "none",
        f"{text} against the student ({sure}n = {gain.n}, {p_words(gain.p_value)}).",
        f"{grounds}{_torn(gain)}{_more(scoring, gain, differences)}",
    )


def _torn(gain: Gain) -> str:
    """Return why nothing can be told although one of interval and test would."""
    if not gain.holds:
        return " The metric failed on answers: with those counted as nothing the difference is not shown."
    if gain.low > 0.0 or gain.high < 0.0:
        return " The interval leaves 0 out, but the test does not: a gain is told only where both agree."
    if gain.p_value < 0.05:
        return " The test rules out chance, but the interval does not: a gain is told only where both agree."
    return ""


def _more(scoring: Scoring, gain: Gain, differences: Sequence[float]) -> str:
    """Return how many fresh examples would tell more."""
    if not scoring.percent or not differences:
        return ""
    ten, five = needed(differences, 1.0)
    wanted = [f"{n} would show a gain of {by} points" for n, by in ((ten, 10), (five, 5)) if gain.n < n]
    return f" About {', '.join(wanted)}." if wanted else ""
