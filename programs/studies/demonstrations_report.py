"""What the study of demonstrations found, in words and figures: see `studies.demonstrations`. Source: ours."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cuesmith.programs.diagnosis.figures import Curve, Figure, Section, percent
from cuesmith.programs.studies.demonstrations_analysis import (
    EFFECTS,
    FAMILIES,
    FEWEST_REFINEMENTS,
    Cell,
    Demonstrations,
    Effect,
    Followed,
)
from cuesmith.teleprompters.runtime.statistics import Estimate95

__all__ = ["limits", "sections"]


def sections(result: Demonstrations) -> tuple[Section, ...]:
    """Put the result into figures, each with what it means and what to do about it."""
    if not result.cells:
        return (Section("Instruction and demonstrations", _missing(result), ()),)
    figures = (*map(_cell, result.cells), *(_effect(one, result.refinements) for one in result.effects))
    both = (Section("Instruction and demonstrations", _summary(result), figures, _curves(result)),)
    return both if result.following is None else (*both, _following(result.following, result.refinements))


def _missing(result: Demonstrations) -> str:
    if not result.refinements:
        return "ABO found no steps with demonstrations of following them, so there was nothing to compare."
    return (f"Too few examples have a score in all four cells ({result.examples}), so nothing can be said of the "
            f"{result.refinements} refined instructions.")


def _summary(result: Demonstrations) -> str:
    effect = {one.name: one for one in result.effects}
    alone, added, shown, both = (effect[name] for name in EFFECTS[:4])
    if result.least >= 0.05:
        return (f"With {result.refinements} different refined instructions no effect can be shown beyond chance: "
                f"{FEWEST_REFINEMENTS} are needed. The means below are a first impression.")
    if added.sign > 0 and alone.sign > 0:
        said = f"Partly: the refined instruction alone changes the score by {_points(alone)}, demonstrations add " \
               f"{_points(added)}."
    elif added.sign > 0:
        said = f"Yes: demonstrations add {_points(added)} to a refined instruction, which alone was not shown to help."
    elif added.sign < 0:
        said = f"Reversed: demonstrations change the score of a refined instruction by {_points(added)}."
    elif alone.sign > 0:
        said = f"No: the refined instruction alone changes the score by {_points(alone)}, and demonstrations were " \
               "not shown to add anything to it."
    elif alone.sign < 0:
        said = f"The refined instruction makes the score worse ({_points(alone)}), with demonstrations or without."
    else:
        said = "Nothing was shown: neither the refined instruction alone nor demonstrations added to it change the " \
               "score beyond chance."
    if shown.sign and (not both.sign or abs(shown.value.mean) >= 0.9 * abs(both.value.mean)):
        return f"{said} The same demonstrations under the student's own instruction change it by {_points(shown)}."
    return said


def _points(effect: Effect) -> str:
    points = round(100 * effect.value.mean)
    return f"{points:+d} point{'s' * (abs(points) != 1)}"


def _cell(cell: Cell) -> Figure:
    what = "refined instruction" if cell.instruction else "student's own instruction"
    how = "with demonstrations" if cell.demonstrations else "without demonstrations"
    over = "refinements and examples" if cell.instruction or cell.demonstrations else "examples"
    return Figure(
        f"Score, {what}, {how} (%)", *percent(cell.score), cell.score.n, None,
        f"The mean score on fresh examples, with an interval over {over}.",
        "Compare the four cells; what separates them is tested below.")


_ADVICE = {
    "instruction alone": (
        "The instruction is worth having also where there is no room for demonstrations.",
        "Do not use these refined instructions without demonstrations.",
        "Do not expect a better instruction by itself to change what this model does."),
    "demonstrations alone": (
        "Try demonstrations before you pay for a search over instructions.",
        "Do not give demonstrations without the instruction that they follow.",
        "Demonstrations need the instruction that they follow."),
    "both together": (
        "ABO helps on this task: use its prompts as they are.",
        "Keep the student's prompt: ABO's are worse.",
        "Keep the student's prompt, or try a larger search or another optimizer model."),
    "demonstrations added to the instruction": (
        "Keep the demonstrations: what they cost in tokens is paid back.",
        "Leave the demonstrations out.",
        "Demonstrations may be left out to save tokens; check the interval for what that could cost."),
    "interaction": (
        "Change instruction and demonstrations together: each makes the other worth more.",
        "One of the two is enough: take the cheaper one.",
        "Take the two as separate improvements."),
}
"""Effect -> advice where it is above 0, below 0, and not shown."""
_MEANING = {
    "instruction alone": "So much does the refined instruction change the score without demonstrations",
    "demonstrations alone": "So much do the demonstrations change the score under the student's own instruction",
    "both together": "So much do the refined instruction and its demonstrations change the score together",
    "demonstrations added to the instruction": "So much do demonstrations change the score of the refined instruction",
    "interaction": "So much more do both change the score together than the sum of each alone (below 0 also where one "
                   "alone leaves no room to improve)",
}


def _effect(effect: Effect, refinements: int) -> Figure:
    up, down, nothing = _ADVICE[effect.name]
    family = next(family for family in FAMILIES if EFFECTS.index(effect.name) in family)
    return Figure(
        f"Effect: {effect.name} (points)", *percent(effect.value), effect.value.n, effect.adjusted,
        f"{_MEANING[effect.name]} (sign-flip test over {refinements} refinements and the examples, Holm-corrected for "
        f"{len(family)} effects).",
        {1: up, -1: down, 0: nothing}[effect.sign])


def _curves(result: Demonstrations) -> tuple[Curve, ...]:
    alone, both = (next(c for c in result.cells if c.instruction and c.demonstrations is d) for d in (False, True))
    pairs = sorted(zip(alone.each, both.each, strict=True))
    axes = ("score without demonstrations (%)", "score with demonstrations (%)")
    return (Curve("refined instructions", [100 * a for a, _ in pairs], [100 * b for _, b in pairs], *axes, points=True),
            Curve("no difference", [0.0, 100.0], [0.0, 100.0], *axes))


def _following(found: Followed, refinements: int) -> Section:
    change = found.change
    could = 2 / 2**refinements < 0.05
    said = f"Responses follow {100 * found.without.mean:.0f} % of the steps without demonstrations and " \
           f"{100 * found.shown.mean:.0f} % with them: " \
           + ("a difference beyond chance." if change.sign else
              "no difference beyond chance." if could else "too few refinements to tell chance from effect.")
    figures = (
        _share("Steps followed without demonstrations (%)", found.without),
        _share("Steps followed with demonstrations (%)", found.shown),
        Figure("Steps followed, with less without demonstrations (points)", *percent(change.value), change.value.n,
               change.p_value, "So much do demonstrations change the share of the steps that a response follows "
               "(sign-flip test over refinements and examples).",
               "Demonstrations make the model follow: use them." if change.sign > 0 else
               "Demonstrations make the model follow less: leave them out." if change.sign < 0 else
               "If the share is high without demonstrations, the model needs none in order to follow."),
        _value("without", found.worth_without), _value("with", found.worth_shown))
    return Section("Are the steps followed?", said, figures)


def _share(name: str, share: Estimate95) -> Figure:
    return Figure(
        name, *percent(share), share.n, None,
        "The mean share of the prompt's steps that have their label, in order and with work under it.",
        "Below 90, write fewer and smaller steps, or take a stronger target model." if share.mean < 0.9 else
        "Nothing needs to be done.")


def _value(how: str, worth: Estimate95) -> Figure:
    known = math.isfinite(worth.mean)
    return Figure(
        f"Right answers when all is followed, less when not, {how} demonstrations (points)", *percent(worth), worth.n,
        None,
        "Responses that follow every step are right so much more often than others, which may also be due to easier "
        "inputs (no test)." if known else "All responses follow every step alike, or none does: nothing to compare.",
        "If the interval lies above 0, make the model follow; else do not ask for following for the score's sake.")


def limits(result: Demonstrations, *, written: int, examples: int, stopped_by: str | None) -> Iterator[str]:
    """Yield what the figures do not show.

    Args:
        result: What was found.
        written: Different instructions that ABO wrote.
        examples: Test examples of the task.
        stopped_by: The cap that ended the study early.
    """
    yield (f"{result.refinements} refined instructions with demonstrations and {result.examples} fresh examples were "
           f"compared; ABO wrote {written} different instructions.")
    if stopped_by is not None:
        yield f"The study was stopped by {stopped_by} and rests on what was scored until then."
    if result.cells and result.examples < examples:
        yield f"{examples - result.examples} examples lack a score in some cell and were left out."
    if result.effects:
        yield ("Two families of effects are tested, each at 5 % by Holm: the two that answer the question, and the "
               "other three; the test of following stands by itself.")
        width = result.effects[1].value
        if math.isfinite(width.low):
            yield (f"To be found in four of five such studies, an effect of added demonstrations has to be about "
                   f"{max(1, math.ceil(70 * (width.high - width.low)))} points or more.")
    yield ("The refinements are those that ABO scored best with their demonstrations, from one search: what holds for "
           "instructions of another origin is not shown, and their being chosen together may favour the pair.")
    yield "A step counts as followed by rule: label, order and work under it; whether the work is right is not checked."
