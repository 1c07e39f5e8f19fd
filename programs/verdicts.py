"""The one sentence on whether a compile is worth its money, from what the probes showed. Pure functions. Source: ours.

The order of the rules is the order in which a person would mend things: what cannot be measured, a metric that does not
measure, nothing to gain, replies that cannot be read, noise, too few examples; only then is headroom asked about.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import dspy

from cuesmith.programs.probing import HIGH, MetricScale, Probes, too_many_unjudged, upside_down
from cuesmith.programs.readings import (
    Failures,
    Noise,
    Tried,
    differences_of,
    most_frequent,
    read_failures,
    read_noise,
    read_tried,
)
from cuesmith.teleprompters.runtime.corpus_statistics import estimate_of
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.runtime.remarks import needed
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, pairs_to_show

Finding: TypeAlias = Literal[
    "unmeasured", "metric", "perfect", "program", "form", "noise", "few", "hopeless", "headroom", "doubtful"
]
"""What decided; "headroom" alone says that a compile is worth it, "doubtful" and "unmeasured" say neither."""

ENOUGH = 8
"""Scores below which nothing is concluded from the student's. Ours."""


@dataclass(frozen=True)
class CheckFigures:
    """What is concluded from.

    Attributes:
        student: Its score with the interval, in the metric's unit; None if it has none.
        scale: Of the scores, up to what the metric gives to right answers, as far as it was asked.
        unjudged: Whether the metric failed on so many of the student's answers that the rest say little.
        refused: Whether the metric gives nothing above 0 to anything, right answers included.
        gold: What it gave to right answers.
        mistaken: What it gave to the right answers of other examples.
        failures: How the student's runs ended.
        noise: Of repeated draws; None if nothing was drawn twice.
        tried: Generic prompts, the best first.
        guess: Share of the most frequent label; 0 where labels rarely recur.
        fresh: Examples that a compile would keep for its final report.
        needed: Fresh examples that show a gain of 10 points, and of 5, at best: scores of 0 and 1, none worse.
        needed_as_seen: The same if answers change as much as they did with the generic prompt that changed most; None
            if none was tried.
        visible: The least gain that `fresh` examples can show, in points, at best; None if they show none.
        differences: Seen between the student and that prompt, in shares of the full score.
    """

    student: Estimate95 | None
    scale: MetricScale
    unjudged: bool
    refused: bool
    gold: tuple[float, ...]
    mistaken: tuple[float, ...]
    failures: Failures
    noise: Noise | None
    tried: tuple[Tried, ...]
    guess: float
    fresh: int
    needed: tuple[int, int]
    needed_as_seen: tuple[int, int] | None
    visible: int | None
    differences: tuple[float, ...] = ()

    @property
    def room(self) -> float:
        """Points between the student and the full score."""
        return 0.0 if self.student is None else 100 * (1 - self.scale.share(self.student.mean))

    @property
    def highest(self) -> float:
        """The highest mean that anything had."""
        means = [one.score.mean for one in self.tried] + ([self.noise.best.mean] if self.noise else [])
        return max([*means, self.student.mean if self.student else -math.inf])


@dataclass(frozen=True)
class Conclusion:
    """What follows.

    Attributes:
        finding: What decided.
        worth: Whether to compile; None where the figures do not say.
        sentence: The verdict with its reason.
    """

    finding: Finding
    worth: bool | None
    sentence: str


def figures_of(
    seen: Probes, student: Scores, data: Sequence[dspy.Example], fresh: int, *, deterministic: bool
) -> CheckFigures:
    """Return what the probes of a program say.

    Args:
        seen: The probes.
        student: The student's scores, as far as they were had.
        data: All examples.
        fresh: How many of them a compile would keep for its report.
        deterministic: Whether the program's models run at temperature 0.
    """
    differences = differences_of(seen)
    shown = [gain for gain in range(1, 101) if at_best(gain / 100, differences) <= fresh]
    return CheckFigures(
        estimate_of(student),
        seen.scale,
        too_many_unjudged(student),
        seen.refused,
        tuple(seen.gold),
        tuple(seen.mistaken),
        read_failures(student, seen.scale.top),
        read_noise(seen, deterministic=deterministic),
        read_tried(seen),
        most_frequent(data),
        fresh,
        needed((), 1.0),
        needed(differences, 1.0) if differences else None,
        min(shown, default=None),
        tuple(differences),
    )


def at_best(gain: float, differences: Sequence[float]) -> int:
    """Return how many fresh examples show a gain at best: as scores of 0 and 1 do, none worse, or as graded ones moved.

    Graded scores move by less than the whole, so that fewer examples tell; those that move by a fixed step are like 0
    and 1 on the scale of that step.
    """
    step = max(map(abs, differences), default=0.0)
    plain = pairs_to_show(gain)
    return min(plain, pairs_to_show(gain / step, [one / step for one in differences])) if step else plain


def in_percent(figures: CheckFigures, estimate: Estimate95) -> str:
    """Return a score in percent of the full score, with its interval."""
    low, mean, high = (100 * figures.scale.share(each) for each in (estimate.low, estimate.mean, estimate.high))
    return f"{mean:.0f}" if math.isnan(low) else f"{mean:.0f} [{low:.0f}, {high:.0f}]"


def in_points(figures: CheckFigures, gain: Gain) -> str:
    """Return a gain in points of 100, with its interval."""
    low, mean, high = (100 * each / figures.scale.unit for each in (gain.low, gain.difference, gain.high))
    return f"{mean:+.0f} [{low:+.0f}, {high:+.0f}]"


def conclude(figures: CheckFigures, *, failed: str = "", stopped_by: str | None = None) -> Conclusion:
    """Return the verdict.

    Args:
        figures: What was seen.
        failed: Why nothing could be scored; "" if something was.
        stopped_by: The cap that ended the check early.
    """
    if failed:
        return Conclusion("unmeasured", None, f"Nothing could be measured: {failed}")
    found = next(_faults(figures, stopped_by), None)
    if found is None and stopped_by is not None and not figures.tried and figures.student is not None:
        score = in_percent(figures, figures.student)
        return Conclusion(
            "unmeasured",
            None,
            f"Not decided: the budget's cap on {stopped_by} was reached before anything but the student was scored: "
            f"{score} (n = {figures.student.n}).",
        )
    return found or _headroom(figures)


def _faults(figures: CheckFigures, stopped_by: str | None) -> Iterator[Conclusion]:
    """Yield what speaks against a compile, what is to be mended first at the front."""
    student, failures = figures.student, figures.failures
    if figures.unjudged:
        yield Conclusion(
            "metric",
            False,
            f"Mend the metric first: it failed on {failures.unjudged} of {failures.n + failures.missing} answers, "
            f"which have no score for it, and the others say little. {failures.objection}",
        )
    if student is None or (stopped_by is not None and student.n < ENOUGH):
        n = 0 if student is None else student.n
        yield Conclusion("unmeasured", None, f"Not decided: the budget's cap on {stopped_by} left {n} scored examples.")
        return
    yield from _of_the_metric(figures, student)
    score = in_percent(figures, student)
    if figures.scale.share(student.mean) >= HIGH:
        yield Conclusion(
            "perfect", False, f"Not worth compiling: the student already scores {score} (n = {student.n})."
        )
    if failures.raised > failures.failed / 2:
        yield Conclusion(
            "program",
            False,
            f"Mend the program first: its own code raised on {failures.raised} of {failures.n} examples.",
        )
    if failures.of_form >= 3 and failures.of_form >= failures.failed / 2 and failures.of_form >= failures.n / 10:
        yield _form(figures)
    if (noise := figures.noise) is not None and noise.of_the_metric:
        yield Conclusion(
            "noise",
            False,
            f"The metric is noisy: of {noise.alike} pairs of equal answers to an example it "
            f"scored {noise.judged_apart} differently. Steady it first: a judge at temperature 0, or the "
            "mean of several judgements.",
        )
    yield from _too_few(figures)
    if figures.highest <= figures.scale.low and failures.wrong and student.n >= ENOUGH and figures.tried:
        drawn = f", the best of {figures.noise.draws} draws neither" if figures.noise else ""
        yield Conclusion(
            "hopeless",
            False,
            f"Not worth compiling as it stands: the metric gives right answers {figures.scale.top:g}, "
            f"but the student never scores above {figures.scale.low:g} (n = {student.n}), {len(figures.tried)} generic "
            f"prompts neither{drawn}. Look at what the model is told of the task, or take a stronger one.",
        )


def _of_the_metric(figures: CheckFigures, student: Estimate95) -> Iterator[Conclusion]:
    gold, mistaken = figures.gold, figures.mistaken
    if upside_down(gold, mistaken):
        yield Conclusion(
            "metric",
            False,
            f"The metric is upside down: it gives right answers {max(gold):g} at most and wrong ones {min(mistaken):g} "
            f"at least (the right answer of another example, {len(mistaken)} asked). The better an answer, the higher "
            "its score must be.",
        )
    if figures.refused:
        yield Conclusion(
            "metric",
            False,
            f"The metric is broken: it never gives above 0, and right answers {max(gold):g} ({len(gold)} asked).",
        )
    if len(mistaken) >= 2 and min(mistaken) >= figures.scale.top > figures.scale.low:
        yield Conclusion(
            "metric",
            False,
            f"The metric is broken: it gives the full score to wrong answers too (the "
            f"right answer of another example, {len(mistaken)} of {len(mistaken)}).",
        )
    if not gold and student.low == student.mean == 0.0 == figures.highest and figures.failures.wrong:
        yield Conclusion(
            "metric",
            None,
            f"The metric may be broken: it never gave above 0 (n = {student.n}), and could "
            "not be asked about a right answer.",
        )


def _form(figures: CheckFigures) -> Conclusion:
    failures = figures.failures
    parts = {"cannot be read": failures.unread, "have the right answer beside other words": failures.beside}
    told = ", ".join(f"{n} {what}" for what, n in parts.items() if n)
    better = next((one for one in figures.tried if one.gains), None)
    also = f" ({better.name} alone gains {in_points(figures, better.gain)})" if better else ""
    cut = f" {failures.cut} replies were cut at max_tokens: raise it." if failures.cut else ""
    mend = (
        "a stricter adapter or JSON mode"
        if failures.unread >= failures.beside
        else "a typed field, or a metric that finds the answer,"
    )
    return Conclusion(
        "form",
        False,
        f"The failures are of form: of {failures.failed} answers that fail {told}. Try {mend} first{also}.{cut}",
    )


def _too_few(figures: CheckFigures) -> Iterator[Conclusion]:
    """Yield that no gain that is still to be had would be shown."""
    if math.isnan(figures.room) or (figures.visible is not None and figures.visible <= figures.room):
        return
    wanted = max(0.05, min(0.2, figures.room / 200))
    least = 4 * at_best(wanted, figures.differences)
    shows = "show no gain at all" if figures.visible is None else f"show a gain of {figures.visible} points or more"
    yield Conclusion(
        "few",
        False,
        f"Too few examples to see a gain: a compile keeps {figures.fresh} for its report, which "
        f"{shows}, and {figures.room:.0f} points are to be had. About {least} examples would show "
        f"{100 * wanted:.0f} points.",
    )


def _headroom(figures: CheckFigures) -> Conclusion:
    student, noise = figures.student, figures.noise
    assert student is not None
    score = f"the student scores {in_percent(figures, student)} (n = {student.n})"
    if (better := next((one for one in figures.tried if one.gains), None)) is not None:
        return Conclusion(
            "headroom",
            True,
            f"Worth compiling: {score}, and a generic prompt ({better.name}) alone gains "
            f"{in_points(figures, better.gain)} points.",
        )
    blind = figures.guess > 0 and figures.scale.share(student.low) <= figures.guess
    if noise is not None and not blind and noise.gained.low > 0 and noise.gained.difference >= 0.1 * figures.scale.unit:
        return Conclusion(
            "headroom",
            True,
            f"Worth compiling: {score}, and the best of {noise.draws} draws "
            f"{in_percent(figures, noise.best)}: the model can do more than it does.",
        )
    why = "no generic prompt is shown to gain anything"
    if blind:
        why += f", and always giving the most frequent answer scores {100 * figures.guess:.0f}"
    return Conclusion(
        "doubtful",
        None,
        f"Doubtful: {score}, {figures.room:.0f} points are to be had, but {why}. A compile may "
        "still find more: begin with the cheapest.",
    )
