"""What the study of reflection found, in words and figures: see `studies.reflection`. Source: ours."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cuesmith.programs.diagnosis.figures import Curve, Figure, Section, percent
from cuesmith.programs.diagnosis.likeness import Alike
from cuesmith.programs.diagnosis.planted import BATCH, FEWEST
from cuesmith.programs.diagnosis.similarity import compared
from cuesmith.programs.studies.reflection_analysis import OWN, PLACEBO, REWORDING, SECONDARY, SEEN, UNIFORM, Found

__all__ = ["limits", "sections"]


def sections(found: Found) -> tuple[Section, ...]:
    """Return the report's parts; what could not be measured says why."""
    first = Section("Do the errors make better refinements?", _summary(found), tuple(_differences(found)))
    if not found.arms:
        return (first,)
    said = "The feedback cannot be compared: too few reasons were given." if found.feedback is None else \
        _feedback_summary(found.feedback)
    return (
        first,
        Section("How good are the refinements?", _arms_summary(found), tuple(_arms(found)), _curves(found)),
        Section("Is the feedback about the errors?", said, tuple(_feedback_figures(found.feedback))),
    )


def _summary(found: Found) -> str:
    if not found.examples:
        return "The study was stopped before it was known which errors the prompt makes."
    if found.errors < FEWEST:
        return (f"The prompt made {found.errors} errors on {found.examples} training examples, and to reflect on them "
                f"at least {FEWEST} are needed: give more training examples, or a harder task.")
    main = found.differences.get(UNIFORM)
    if main is None:
        return "Nothing can be said: too few refinements were scored before the study ended."
    points = 100 * main.value.mean
    if main.sign > 0:
        return (f"Showing the errors makes better refinements: {points:.0f} points better than reflection without any."
                f"{_beside(found)}")
    if main.sign < 0:
        return f"Showing the errors makes worse refinements: {-points:.0f} points worse than reflection without any."
    return "That showing the errors makes better refinements than showing none was not found."


def _beside(found: Found) -> str:
    placebo = found.differences.get(PLACEBO)
    if placebo is None:
        return ""
    if placebo.sign > 0:
        return " Wrong errors do not do it: what the errors say matters."
    return " That right errors do more than wrong ones was not found."


def _differences(found: Found) -> Iterator[Figure]:
    for arm, one in found.differences.items():
        test = "paired sign-flip test" if arm == SEEN else "permutation test over refinements"
        many = "" if arm == UNIFORM else ", Holm"
        yield Figure(
            f"{OWN} less {arm} (points)", *percent(one.value), one.value.n, one.corrected,
            f"Refinements from the prompt's own errors score so much more than {_named(arm, found)} ({test}{many}).",
            _advice(arm, one.sign))


def _named(arm: str, found: Found) -> str:
    return {
        UNIFORM: "those from a reflection that saw no errors",
        PLACEBO: f"those from a placebo: {found.placebo} with another example's expected outputs",
        REWORDING: "the prompt said in other words",
        SEEN: "those from the same reasons with the errors also shown to the edit",
    }[arm]


def _advice(arm: str, sign: int) -> str:
    if arm == SEEN:
        return {1: "Do not show the errors to the edit: the reason says enough.",
                0: "No loss was found in editing from the reason alone: what it knows comes from the reflection.",
                -1: "Show the errors to the edit, as APO does: the reason loses something that they hold."}[sign]
    if sign > 0:
        return {UNIFORM: "Pay for reflection on errors, as APO and PromptAgent do.",
                PLACEBO: "Check labels before you reflect: what is expected decides what comes of it.",
                REWORDING: "Reflection is worth its calls here; rewording alone is not enough."}[arm]
    if arm == REWORDING:
        return "Rewording does as well as far as was shown, and costs one call less: use IterativeAPE."
    return "Do not pay for showing errors to this optimizer before a larger study, or another model, shows a gain."


def _arms_summary(found: Found) -> str:
    best = max(found.arms, key=lambda arm: found.arms[arm].score.mean)
    above = found.arms[best].above
    return (f"The prompt as it was scores {100 * found.student.mean:.0f} %. The best way on average is "
            f"\"{best}\": {100 * found.arms[best].score.mean:.0f} %, and {round(above.mean * above.n)} of {above.n} "
            "refinements above the prompt as it was.")


def _arms(found: Found) -> Iterator[Figure]:
    yield Figure(
        "the prompt as it was (%)", *percent(found.student), found.student.n, None,
        "The score of the student's own prompt on the validation examples, which are n here.",
        "Refinements below it are not worth scoring.")
    for arm, one in found.arms.items():
        yield Figure(
            f"{arm}: mean score (%)", *percent(one.score), one.score.n, None,
            "The mean over the refinements, with an interval over refinements and examples.",
            "Compare it with the student's; a search that keeps the best of several does better than the mean.")
        yield Figure(
            f"{arm}: better than before (%)", *percent(one.above), one.above.n, None,
            "The share of the refinements that score higher than the student's prompt on the same examples.",
            "At 50 or below a single refinement is no better than a guess: score it before you keep it.")


def _curves(found: Found) -> tuple[Curve, ...]:
    axes = "refinement, from the worst to the best of its way", "score (%)"
    longest = max(len(one.each) for one in found.arms.values())
    student = 100 * found.student.mean if found.student.n else None
    return (
        *(Curve(arm, list(range(1, len(one.each) + 1)), [100 * score for score in one.each], *axes)
          for arm, one in found.arms.items()),
        Curve("the prompt as it was", list(range(1, longest + 1)), [student] * longest, *axes),
    )


def _feedback_summary(found: Alike) -> str:
    if found.p_value <= 0.05 and found.likeness.high < 1.0:
        return "What is said of the errors differs from what is said without any: the optimizer looked at them."
    if found.likeness.low > 0.8:
        return "Much the same is said with and without errors: the feedback is what the optimizer knew before."
    return "That anything else is said with errors than without was not shown."


def _feedback_figures(found: Alike | None) -> Iterator[Figure]:
    if found is None:
        return
    one = found.likeness
    yield Figure(
        "likeness to feedback without errors", one.mean, one.low, one.high, one.n, found.p_value,
        "1 says that the same is said without any errors: the share of the feedback that is prior belief (permutation "
        "test of the difference).",
        "Near 1, the calls that show errors are wasted on this model; far below, it says something of its own of them.")
    parts = ((OWN, found.first, "two reasons from different batches of the prompt's own errors"),
             (UNIFORM, found.second, "two reasons that were given without errors"),
             (f"{OWN} and {UNIFORM}", found.across, "a reason from errors and one that was given without"))
    for name, value, what in parts:
        yield Figure(
            f"similarity of feedback: {name}", value, None, None, one.n, None,
            f"How alike {what} are (no test).",
            "Read it against the other two: by itself it has no scale.")


def limits(found: Found) -> Iterator[str]:
    """Yield what the figures do not show."""
    yield ("One prompt was refined once; whether a search of several steps gains by showing errors is another "
           "question, and so are other tasks and optimizer models.")
    yield ("The refinements of an arm are drawn from one sample of errors and one of validation examples; intervals "
           "count the latter, not the former.")
    main = found.differences.get(UNIFORM)
    if main is not None and not math.isnan(main.detectable):
        yield (f"With so many refinements a difference of about {100 * main.detectable:.0f} points from no errors "
               "would be found in 80 % of such studies; a smaller one mostly not.")
    if found.differences.keys() & set(SECONDARY):
        yield "The comparison with no errors is the main one; the others are corrected for each other, not for it."
    if PLACEBO not in found.arms and found.arms:
        yield "There is no placebo: no example's expected outputs could stand in for another's."
    if 0 < found.errors <= BATCH and found.arms:
        yield f"The prompt made {found.errors} errors, so that every reflection on its own errors saw the same ones."
    if found.feedback is not None:
        yield compared(found.by_words)
    if found.unusable:
        told = ", ".join(f"{arm}: {count}" for arm, count in found.unusable.items())
        yield f"Refinements that came to nothing, as a reply could not be used, are left out ({told})."
    short = [arm for arm, one in found.arms.items() if len(one.each) + found.unusable.get(arm, 0) < found.n]
    if short:
        yield (f"Fewer than {found.n} refinements were scored of: {'; '.join(short)}. After a stop, what is left "
               "depends on which answers came first.")
