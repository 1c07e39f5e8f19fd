"""What the study of complexity found, in words and figures: see `studies.complexity`. Source: ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cuesmith.programs.diagnosis.figures import Curve, Figure, Section, percent
from cuesmith.programs.studies.complexity_analysis import ENOUGH, EXAMPLES, FORMS, Complexity, Form
from cuesmith.teleprompters.runtime.statistics import Estimate95

__all__ = ["limits", "sections"]

_CLUSTERED = "the interval takes a prompt as one observation"


def sections(found: Complexity) -> tuple[Section, ...]:
    """Put the result into figures, each with what it means and what to do about it."""
    if not found.levels:
        said = "The budget ended, or the optimizer's steps could not be used, before any prompt with steps was tried."
        return (Section("How many steps are followed?", said, ()), _forms_section(found))
    return (_steps_section(found), _accuracy_section(found), _forms_section(found))


def _steps_section(found: Complexity) -> Section:
    limit, trend = found.limit, found.compliance
    figures = [Figure(
        f"Steps up to which at least {100 * ENOUGH:.0f} % are followed", limit.steps.mean, limit.steps.low,
        limit.steps.high, limit.steps.n, None,
        f"Every length tried ({_listed(found)}) up to this one is followed to that share; the interval is a bootstrap "
        "over the optimizer's procedures.",
        _how_many(found))]
    figures += [_level(one.steps, one.compliance) for one in found.levels]
    figures.append(Figure(
        "Following against number of steps (rho)", trend.rho.mean, trend.rho.low, trend.rho.high, trend.rho.n,
        trend.holm,
        "-1 means that every added step lowers the share followed, 0 no relation (permutation of the lengths within "
        "each procedure, corrected by Holm for two trends).",
        "If it is clearly negative, drop steps before you reword them; below stands what joining them costs."))
    return Section("How many steps are followed?", _steps_summary(found), tuple(figures), _steps_curves(found))


def _steps_summary(found: Complexity) -> str:
    said = f"{found.prompts} prompts of {found.levels[0].steps} to {found.levels[-1].steps} steps, made of "
    said += f"{found.procedures} procedures of the optimizer. "
    last, limit = found.levels[-1], found.limit.steps.mean
    if found.limit.end:
        return said + f"At least {100 * ENOUGH:.0f} % of the steps are followed at every length: no limit was found."
    if limit == 0:
        return said + f"Not even prompts of {_count(found.levels[0].steps)} are followed to {100 * ENOUGH:.0f} %."
    falls = found.compliance.shown and found.compliance.rho.mean < 0
    shown = "falls with their number" if falls else "was not shown to fall steadily"
    return said + (f"Up to {_count(round(limit))} the model follows at least {100 * ENOUGH:.0f} %, of {last.steps} "
                   f"only {100 * last.compliance.mean:.0f} %; the share {shown}.")


def _how_many(found: Complexity) -> str:
    if found.limit.end:
        return f"Ask for as many steps as the task needs, up to {found.levels[-1].steps}: more was not tried."
    if found.limit.steps.mean == 0:
        return "Do not rely on steps with this model: use demonstrations, or a stronger target model."
    most = _count(round(found.limit.steps.mean))
    return f"Ask for at most {most}; drop what adds nothing, or split the program in two."


def _level(steps: int, share: Estimate95) -> Figure:
    low = share.mean < ENOUGH
    return Figure(
        f"Steps followed (%): prompts of {_count(steps)}", *_interval(share), share.n, None,
        f"The share of the steps with work under their label, over {share.n} prompts; {_CLUSTERED}.",
        "Do not ask for so many." if low else "Nothing needs to be done.")


def _accuracy_section(found: Complexity) -> Section:
    trend, figures = found.accuracy, []
    if found.plain.n:
        figures.append(Figure(
            "Right answers (%): prompts without steps", *_interval(found.plain), found.plain.n, None,
            f"The task in one sentence of the optimizer; {_CLUSTERED}.",
            "If no length below is better, leave the steps out: they cost tokens."))
    for one in found.levels:
        figures.append(Figure(
            f"Right answers (%): prompts of {_count(one.steps)}", *_interval(one.accuracy), one.accuracy.n, None,
            f"The share of right answers over {one.accuracy.n} prompts; {_CLUSTERED}.",
            "Compare with the other lengths: following is worth nothing by itself."))
    figures.append(Figure(
        "Right answers against number of steps (rho)", trend.rho.mean, trend.rho.low, trend.rho.high, trend.rho.n,
        trend.holm,
        "-1 means that every added step lowers the score (permutation of the lengths within each procedure, corrected "
        "by Holm for two trends).",
        "Up to the number that the optimizer wrote, fewer means joined steps; beyond, more means harmless ones."))
    if not trend.shown:
        said = "No change of the right answers with the number of steps was shown that holds over the procedures."
    else:
        said = f"Right answers {'fall' if trend.rho.mean < 0 else 'rise'} with the number of steps."
    return Section("What do more steps do to the answers?", said, tuple(figures), (
        _curve("right answers", [(one.steps, one.accuracy) for one in found.levels], "steps asked for",
               "right answers (%)"),))


def _forms_section(found: Complexity) -> Section:
    title = "Which demands on the form are met?"
    if not found.forms:
        return Section(title, "The budget ended before any demand on the form was tried.", ())
    met = [one.kind for one in found.forms if one.asked.mean >= ENOUGH]
    moved = [one.kind for one in found.forms if one.holm < 0.05 and one.gain.difference > 0]
    said = f"{_names(met)} met in at least {100 * ENOUGH:.0f} % of the answers; asking changed the answers "
    said += f"for {', '.join(moved)}." if moved else "for none of the demands."
    return Section(title, said, tuple(figure for one in found.forms for figure in _form_figures(one)))


def _count(steps: int) -> str:
    return f"{steps} step{'s' * (steps != 1)}"


def _names(kinds: Sequence[str]) -> str:
    return "None is" if not kinds else f"{', '.join(kinds)} {'is' if len(kinds) == 1 else 'are'}"


def _form_figures(one: Form) -> Iterator[Figure]:
    yield Figure(
        f"Answers that meet the demand '{one.kind}' (%)", *_interval(one.asked), one.asked.n, None,
        f"Asked by the sentence {FORMS[one.kind][0].removesuffix('.')!r}; {_CLUSTERED}.",
        "Rely on it." if one.asked.mean >= ENOUGH else "Do not rely on words alone: demonstrate it or mend it by code.")
    gain = one.gain
    yield Figure(
        f"The same, less what is met unasked: '{one.kind}' (points)", 100 * gain.difference, 100 * gain.low,
        100 * gain.high, gain.n, one.holm,
        f"Without the demand {100 * one.without.mean:.0f} % meet it (sign-flip test over prompts, corrected by Holm "
        "for the number of demands).",
        "If it is 0, the sentence does nothing: leave it out.")


def _steps_curves(found: Complexity) -> tuple[Curve, ...]:
    return (_curve("steps followed", [(one.steps, one.compliance) for one in found.levels], "steps asked for",
                   "followed (%)"),
            _curve("all prompts", list(enumerate(found.positions, 1)), "position of the step", "followed (%)"))


def _interval(share: Estimate95) -> tuple[float, float | None, float | None]:
    """Value, low and high in percent; no interval where all prompts are equal: that says nothing of other prompts."""
    value, low, high = percent(share)
    return (value, None, None) if low == high else (value, low, high)


def _curve(name: str, points: Sequence[tuple[int, Estimate95]], x_label: str, y_label: str) -> Curve:
    rows = [[v if np.isfinite(v) else None for v in percent(share)] for _, share in points]
    values, lows, highs = ([row[k] for row in rows] for k in range(3))
    return Curve(name, [float(x) for x, _ in points], values, x_label, y_label, low=lows, high=highs)


def _listed(found: Complexity) -> str:
    return ", ".join(str(one.steps) for one in found.levels)


def limits(found: Complexity, names: Sequence[str]) -> tuple[str, ...]:
    """Return what the figures do not show.

    Args:
        found: What was found.
        names: The tasks.
    """
    said = [
        "A step counts as followed if its label stands in its place with work under it: whether the work is right is "
        "not checked.",
        "More steps than the optimizer wrote are harmless additions, fewer are its steps joined: another procedure of "
        "that length may be followed otherwise.",
        f"It holds for {', '.join(names)}: intervals are over prompts of these tasks, not over tasks.",
    ]
    halves = [50 * (one.compliance.high - one.compliance.low) for one in found.levels]
    known = [half for half in halves if np.isfinite(half)]
    if known:
        said.append(f"At each length the share followed is known to {max(known):.0f} points or better, by 95 % "
                    "intervals that are not corrected for their number: smaller differences are missed.")
    if found.prompts:
        said.append(f"{found.procedures} procedures were tried, each on the same {EXAMPLES} examples or fewer at every "
                    "length.")
    return tuple(said)
