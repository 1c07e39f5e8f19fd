"""What a run says of itself: pure functions from what was counted to notes. Nothing fails in silence.

A search that could not work looks, by its scores, like one that found nothing. What it counted tells them apart.
Source: ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import dspy

from cuesmith.teleprompters.runtime.compilation import Note
from cuesmith.teleprompters.runtime.events import Malformed
from cuesmith.teleprompters.runtime.evidence import labels_of, shortened, text_of
from cuesmith.teleprompters.runtime.ledger import stopped
from cuesmith.teleprompters.runtime.outcomes import MetricError, Outcome, ParseFailure, ProviderFailure, Scored, value
from cuesmith.teleprompters.runtime.statistics import Gain, pairs_to_show

OF_A_COMPILE = frozenset({"verdict", "unmeasured", "power"})
"""Kinds of notes about a compile's result and its report, which mean nothing of a run that is made for a study."""

THOUGHT = (
    "The target's server leaves thinking (such as <think>) in its replies. It was taken off before they were scored; "
    "the compiled program gets them whole, and may do worse. Let the server's reasoning parser, or "
    "your LM, take it off."
)
"""What a run says whose scores are not quite those of the program as it is deployed."""

_LONGEST = 200
"""Characters of a reply, an answer or an error that a note repeats."""
_MANY_UNREAD = 0.05
"""Share of program runs without an answer that can be read from which on a note tells. Ours."""
_REASONS = 2
"""Reasons for missing runs that a note tells."""


@dataclass
class Seen:
    """What is counted while a run goes on; the last three when it is over.

    Attributes:
        asked: Draws of the optimizer model that came back.
        lost: Those of them that could not be used.
        drafts: Prompts that were read out of the others.
        dropped: Why some of these were dropped -> how many.
        worked: Examples that were to become demonstrations.
        unworked: Why some became none -> how many.
        threshold: The score that the search counts as a success; None if it asks for none.
        ran: What became of the program runs.
        evidence: Scores on training examples, which the search looked for failures in.
        shown: The student's first answer that the metric judged, with its example; None if there is none.
    """

    asked: int = 0
    lost: list[Malformed] = field(default_factory=list)
    drafts: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    worked: int = 0
    unworked: Counter[str] = field(default_factory=Counter)
    threshold: float | None = None
    ran: Sequence[Outcome] = ()
    evidence: Sequence[float] = ()
    shown: tuple[dspy.Example, Outcome] | None = None


def remarks(seen: Seen) -> Iterator[Note]:
    """Yield what a reader should know of a run besides its result."""
    if seen.lost:
        yield Note("replies", replies(seen.asked, seen.lost))
    if seen.dropped:
        yield _dropped("drafts", seen.drafts, seen.dropped)
    if seen.unworked:
        yield _dropped("demonstrations", seen.worked, seen.unworked)
    yield from _missing(seen.ran)
    yield from _unread(seen.ran)
    yield from _cut(seen.ran)
    yield from _scale(seen)


def replies(asked: int, lost: Sequence[Malformed]) -> str:
    """Return how many of the optimizer's replies could be used, and why others could not.

    One reason is told in full: the first by its text, for which reply came back first is chance.

    Args:
        asked: All that came back.
        lost: Those that could not be used.
    """
    kinds: Counter[str] = Counter(one.kind for one in lost)
    most = _most(kinds)[0][0]
    example = min(one.reason for one in lost if one.kind == most)
    return (
        f"{asked - len(lost)} of {asked} optimizer replies could be used: "
        f"{', '.join(f'{n} {kind}' for kind, n in _most(kinds))}; the first: {_short(example)}"
    )


def verdict(unchanged: bool, gain: Gain | None, needed: tuple[int, int] | None = None) -> Note:
    """Return what came out, where something was tried.

    Args:
        unchanged: Whether the student is returned.
        gain: As it was measured; if the student is returned, that of a choice which was given up for it.
        needed: Fresh examples that would show a gain of 10 and of 5 points.
    """
    if unchanged and gain is not None:
        told = f"scored {-gain.difference:.2g} less than the student on fresh ones (n = {gain.n})"
        return Note("verdict", f"The best by the selection examples {told}: the student is returned unchanged.")
    if unchanged:
        return Note("verdict", "Nothing scored above the student: it is returned unchanged.")
    if gain is None:
        return Note("verdict", "The gain was not measured on fresh examples: the selection score is optimistic.")
    if gain.significant:
        return Note("verdict", f"The gain on fresh examples is significant (n = {gain.n}).")
    if not gain.holds:
        return Note("verdict", f"No gain is shown (n = {gain.n}) with the answers counted on which the metric failed.")
    text = f"No significant gain on fresh examples (n = {gain.n}, p = {gain.p_value:.2g})"
    if needed is not None and gain.n < needed[1]:
        text += f": about {needed[0]} would show a gain of 10 points, {needed[1]} one of 5"
    return Note("verdict", f"{text}.")


def nothing_tried(seen: Seen, stopped_by: str | None, optimizer_calls: int) -> Note:
    """Return why no prompt but the student's own was ever scored.

    Args:
        seen: What was counted.
        stopped_by: What ended the run early.
        optimizer_calls: Calls of the optimizer model, whoever made them.
    """
    called = max(optimizer_calls, seen.asked)
    if seen.lost and len(seen.lost) == seen.asked:
        why = f"not one of {seen.asked} optimizer replies could be used."
    elif stopped_by is not None:
        after = f" after {called} calls of the optimizer model," if called else ""
        why = f"the run was {stopped(stopped_by)}{',' if after else ''}{after} before a new prompt was scored."
    elif seen.dropped and sum(seen.dropped.values()) >= seen.drafts:
        why = _dropped("drafts", seen.drafts, seen.dropped)
    elif not called:
        why = "the optimizer model was never asked, for the search found nothing to ask about."
    else:
        why = f"{called} calls of the optimizer model gave no prompt that differs from the student's and may be used."
    return Note("verdict", f"Nothing was tried, and the student is returned unchanged: {why}")


def points(values: Sequence[float]) -> float:
    """Return the unit of which 100 points are made: 1, or where scores leave 0..1 the distance of the outermost."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    return 1.0 if low >= 0.0 and high <= 1.0 else (high - low) or 1.0


def needed(differences: Sequence[float], unit: float) -> tuple[int, int]:
    """Return how many fresh examples would show a gain of 10 points, and of 5.

    Args:
        differences: Paired, as far as they were seen.
        unit: What 100 points are.
    """
    scaled = [one / unit for one in differences]
    return pairs_to_show(0.1, scaled), pairs_to_show(0.05, scaled)


def few_fresh(n: int) -> Note | None:
    """Return how little so many fresh examples can show; None if they can show a gain of 10 points."""
    ten, five = needed((), 1.0)
    if not 0 < n < ten:
        return None
    said = "example measures" if n == 1 else "examples measure"
    return Note(
        "power",
        f"{n} fresh {said} the gain: with scores of 0 and 1 a gain of 10 points takes at least {ten} to be shown, "
        f"one of 5 takes {five}.",
    )


def _dropped(what: str, of: int, why: Mapping[str, int]) -> Note:
    reasons = ", ".join(f"{reason} ({n})" if " " in reason else f"{reason} {n}" for reason, n in _most(why))
    return Note("dropped", f"{sum(why.values())} of {of} {what} dropped: {reasons}.")


def _missing(ran: Sequence[Outcome]) -> Iterator[Note]:
    reasons = Counter(one.reason for one in ran if isinstance(one, ProviderFailure | MetricError))
    if reasons:
        told = _most(reasons)[:_REASONS]
        more = f"; {len(reasons) - len(told)} more reasons" if len(reasons) > len(told) else ""
        yield Note(
            "missing",
            f"{sum(reasons.values())} of {len(ran)} program runs have no score, and were compared without: "
            f"{'; '.join(f'{n} times {_short(reason)}' for reason, n in told)}{more}.",
        )


def _unread(ran: Sequence[Outcome]) -> Iterator[Note]:
    """Yield how many answers could not be read, where it is not all of them, which another note says."""
    known = [one for one in ran if isinstance(one, Scored | ParseFailure) and not one.cut]
    reasons = Counter(one.reason for one in known if isinstance(one, ParseFailure))
    if _MANY_UNREAD * len(known) <= sum(reasons.values()) < len(known) and reasons:
        told = f"{sum(reasons.values())} of {len(ran)} program runs gave no answer that could be read"
        yield Note("unread", f"{told}, which counts as a failure: {_short(_most(reasons)[0][0])}")


def _cut(ran: Sequence[Outcome]) -> Iterator[Note]:
    cut = sum(isinstance(one, Scored | ParseFailure) and one.cut > 0 for one in ran)
    if cut:
        yield Note(
            "cut", f"In {cut} of {len(ran)} program runs a reply was cut at max_tokens: a higher one may score better."
        )


def _scale(seen: Seen) -> Iterator[Note]:
    """Yield what the scores themselves show to be wrong: their scale, the threshold, a metric that finds nothing."""
    values = [v for one in seen.ran if (v := value(one)) is not None]
    if not values:
        return
    low, high = min(values) + 0.0, max(values) + 0.0  # a loss of nothing is 0, not -0
    yield from _of_zero(seen, low, high)
    if low < 0.0 or high > 1.0:
        success = "" if seen.threshold is None else f"; an answer counted as a success from {seen.threshold + 0.0:g} on"
        unread = [one.score for one in seen.ran if isinstance(one, ParseFailure)]
        why = "which is above others here" if max(unread, default=0.0) > low else "the lowest of the student's"
        zero = f"; a reply that cannot be read counts as {max(unread):g}, {why}" if low < 0.0 and unread else ""
        seen_from = f"Scores went from {low:g} to {high:g}" if low < high else f"All scores were {low:g}"
        yield Note("scale", f"{seen_from}: the metric's scale is not 0 to 1{success}{zero}.")
    if 0.0 < low == high <= 1.0 and len(values) > 1:
        yield Note(
            "scale",
            f"Every one of {len(values)} program runs scored {low:g}: by this metric nothing can be "
            "better than anything else.",
        )
    if seen.threshold is None or not seen.evidence:
        return
    reached = sum(v >= seen.threshold for v in seen.evidence)
    worst, best = min(seen.evidence), max(seen.evidence)
    if reached == len(seen.evidence) and worst < best:
        yield Note(
            "threshold",
            f"Every one of {reached} answers on training examples counted as a success (scores {worst:g} to {best:g}, "
            f"threshold {seen.threshold:g}), so no failure was ever shown to the optimizer: if some were wrong, give "
            f"threshold= the score of a right answer.",
        )
    elif high < seen.threshold and not low == high == 0.0:
        yield Note(
            "threshold",
            f"No answer came up to the threshold of {seen.threshold:g}: the highest score is {high:g}. If right "
            "answers do not score more, give threshold= what they score.",
        )


def _of_zero(seen: Seen, low: float, high: float) -> Iterator[Note]:
    if not low == high == 0.0:
        return
    if all(isinstance(one, ParseFailure) for one in seen.ran if value(one) is not None):
        reasons = Counter(one.reason for one in seen.ran if isinstance(one, ParseFailure))
        yield Note("zero", f"No program run gave an answer that could be read: {_short(_most(reasons)[0][0])}")
        return
    text = "Nothing ever scored above 0: is the metric right, and the field that it reads?"
    if seen.shown is not None:
        example, outcome = seen.shown
        last = outcome.trace[-1].outputs if isinstance(outcome, Scored) and outcome.trace else {}
        text += f" One answer: {listed(last)}; expected: {listed(labels_of(example))}."
    yield Note("zero", text)


def listed(values: Mapping[str, object]) -> str:
    """Return fields with their values as a note repeats them: each on one line, and cut."""
    return ", ".join(f"{name} = {_short(text_of(v))!r}" for name, v in values.items()) or "nothing"


def _short(text: str) -> str:
    return shortened(" ".join(text.split()), _LONGEST)


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the entries, the most frequent first: the same whatever order they were counted in."""
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
