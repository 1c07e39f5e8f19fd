"""What the study of ABO's gain found, in words and figures: see `studies.abo_gain`. Source: ours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cuesmith.programs.diagnosis.association import Correlation
from cuesmith.programs.diagnosis.figures import Curve, Figure, Section, percent
from cuesmith.programs.studies.abo_gain_analysis import FEWEST_TASKS, PREDICTORS, AboGain, Predictor, TaskGain, known

__all__ = ["limits", "sections"]


def sections(found: AboGain) -> tuple[Section, ...]:
    """Put the result into figures, each with what it means and what to do about it."""
    if not found.mean.n:
        said = "The budget or the provider ended before ABO's gain was measured on any task."
        return (Section("On which tasks does ABO help?", said, ()),)
    return (_gains_section(found), _predictors_section(found))


def _gains_section(found: AboGain) -> Section:
    n = found.mean.n
    figures = [
        Figure("ABO's gain, mean over the tasks (points)", *percent(found.mean), n, found.sign_p,
               f"Of {_tasks(n)} {found.better} gain and {found.worse} lose (sign test over tasks; Student's t "
               "interval, a task is one observation).",
               "Expect about this much of a task of this kind; read the tasks below for how much it varies."),
        Figure("Tasks with a gain that is significant by itself", float(found.significant), None, None, n, None,
               f"Exact paired test on each task's fresh examples, corrected by Holm for {_tasks(n)}; "
               f"{found.harmed} are significantly worse.",
               "On the others, do not count on ABO: compile, and keep the student unless its report shows a gain."),
        Figure("Share of the possible gain that was realised, mean (%)", *percent(found.realised), found.realised.n,
               None, "What was gained, of all that the student left to gain; Student's t interval over tasks.",
               "If it is near 100, ABO has nothing left to do here: try harder tasks."),
        *(_task_figure(one) for one in found.tasks),
    ]
    return Section("On which tasks does ABO help?", _gains_summary(found), tuple(figures))


def _gains_summary(found: AboGain) -> str:
    n, mean = found.mean.n, 100 * found.mean.mean
    said = f"On {_tasks(n)} ABO changes the score by {mean:+.0f} points on average; significantly better by itself: "
    said += f"{found.significant}, worse: {found.harmed}. "
    if found.sign_p < 0.05 and found.mean.low > 0:
        return said + "That it helps on tasks like these is shown."
    if found.sign_p < 0.05 and found.mean.high < 0:
        return said + "That it harms on tasks like these is shown."
    return said + "That it helps on tasks like these, beyond the single ones, is not shown."


def _tasks(n: int) -> str:
    return f"{n} task{'s' * (n != 1)}"


def _task_figure(one: TaskGain) -> Figure:
    name, gain, base = f"Gain on {one.observed.task} (points)", one.observed.gain, one.observed.base
    if gain is None:
        return Figure(name, None, None, None, 0, None, "The budget or the provider ended before it was measured.",
                      "Give a larger budget if you want to know.")
    if gain.n == 0:
        return Figure(name, 0.0, None, None, 0, None, "Nothing that ABO wrote beat the student, which stays as it is.",
                      "Use another compiler here, or a stronger target model.")
    part = one.realised if one.realised is not None and gain.difference > 0 else None
    rest = "" if part is None else f"; ABO gains {100 * part:.0f} % of what there was to gain"
    said = "" if base is None else f"The student scores {100 * base:.0f} %{rest}"
    early = f"; stopped early by {one.observed.stopped_by}" if one.observed.stopped_by else ""
    sure = one.holm is not None and one.holm < 0.05 and gain.significant
    advice = "Use ABO here." if sure and gain.difference > 0 else (
        "Do not use ABO here." if sure else "Not shown: measure on more examples before you use it.")
    return Figure(name, 100 * gain.difference, 100 * gain.low, 100 * gain.high, gain.n, one.holm,
                  f"{said}{early} (exact paired test on fresh examples, corrected by Holm).", advice)


def _predictors_section(found: AboGain) -> Section:
    title = "What tells it beforehand?"
    if not found.predictors:
        return Section(title, f"Too few tasks for correlations: {found.mean.n} with a gain, {FEWEST_TASKS} are needed.",
                       ())
    figures = [figure for one in found.predictors for figure in _predictor_figures(one)]
    return Section(title, _predictors_summary(found), tuple(figures), tuple(_curves(found)))


def _predictors_summary(found: AboGain) -> str:
    gain = [(one.name, one.gain.rho) for one in found.predictors if one.gain_holm < 0.05]
    realised = [(one.name, one.realised.rho) for one in found.predictors if one.realised_holm < 0.05]
    constant = [PREDICTORS[one.name] for one in found.predictors if math.isnan(one.gain.rho)]
    said = f"A larger gain goes with {_listed(gain)}" if gain else "No measure was shown to go with the gain"
    said += f", a larger share of the possible gain with {_listed(realised)}." if realised else (
        "; none was shown to tell how much of the possible gain is realised.")
    same = f" Nothing can be said of what is the same for all tasks: {', '.join(constant)}."
    return said + (same if constant else "")


def _listed(pairs: Sequence[tuple[str, float]]) -> str:
    return " and ".join(f"a {'higher' if rho > 0 else 'lower'} {PREDICTORS[name]}" for name, rho in pairs)


def _predictor_figures(one: Predictor) -> Iterator[Figure]:
    what = PREDICTORS[one.name]
    tested = "(Spearman, permutation test over tasks, corrected by Holm for all correlations)"
    rows: list[tuple[str, Correlation, float, str]] = [
        ("gain", one.gain, one.gain_holm, "ABO's gain"),
        ("realised share", one.realised, one.realised_holm, "the share of the possible gain that is realised")]
    for short, found, corrected, outcome in rows:
        name = f"{short} against {what} (rho)"
        if math.isnan(found.rho):
            yield Figure(name, None, None, None, found.n, None,
                         "One of the two is the same for all tasks: there is nothing to correlate.",
                         "Add tasks that differ in it.")
            continue
        shown = corrected < 0.05
        direction = "larger" if found.rho > 0 else "smaller"
        said = f"Where it is higher, {outcome} is {direction}" if shown else f"No relation with {outcome} was shown"
        note = _mechanical(one.name, short)
        advice = note if shown and note else (
            "Measure it before you pay for a compile." if shown else "Do not choose tasks by it.")
        yield Figure(name, found.rho, found.low, found.high, found.n, corrected, f"{said} {tested}.", advice)


def _mechanical(name: str, outcome: str) -> str:
    if name == "student" and outcome == "gain":
        return "Expected by arithmetic: nobody can gain more than 1 less the score; read the realised share instead."
    if name == "steps_gain" and outcome == "gain":
        return "Partly arithmetic, as both are bounded by the student's score; trying the steps costs little, so do it."
    return ""


def _curves(found: AboGain) -> Iterator[Curve]:
    label = "ABO's gain (points)"
    for name in ("student", "followed", "steps_gain"):
        rows = sorted((x, one.observed.gain.difference) for one in found.tasks
                      if (x := known(one, name)) is not None and one.observed.gain)
        if rows:
            xs = [100 * x for x, _ in rows]
            yield Curve("tasks", xs, [100 * y for _, y in rows], f"{PREDICTORS[name]} (%)", label, points=True)
            if name == "student":
                yield Curve("most there is to gain", xs, [100 - x for x in xs], f"{PREDICTORS[name]} (%)", label)


def limits(found: AboGain) -> tuple[str, ...]:
    """Return what the figures do not show."""
    n = found.mean.n
    said = [
        "The student's score and the gain are mechanically related: a gain cannot exceed 1 less the score. The score "
        "is measured on other examples than the gain, so that chance does not add to it.",
        "The tasks were chosen, not drawn: intervals over tasks hold for tasks like these.",
        "1 is taken as the best score there is.",
        "ABO ran in a small setting, once a task: another seed or a larger search may gain otherwise.",
    ]
    if found.predictors and math.isfinite(found.detectable):
        said.append(
            f"With {_tasks(n)} a correlation is found in 80 % of such studies from |rho| = {found.detectable:.2f} on "
            f"if it is tested alone, and after the correction for {found.tests} tests at the latest from "
            f"{found.detectable_corrected:.2f} on: weaker ones are mostly missed.")
    elif found.predictors:
        said.append(f"With {_tasks(n)} only correlations close to 1 can be found: use 10 or more.")
    else:
        said.append(f"With {_tasks(n)} nothing can be said of what tells the gain: use 10 or more.")
    early = sum(one.observed.stopped_by is not None for one in found.tasks)
    if early:
        said.append(f"Tasks on which ABO was ended early: {early}; their gain may be smaller than it would have been.")
    return tuple(said)
