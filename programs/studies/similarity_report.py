"""What the study of similarity found, in words and figures: see `studies.similarity`. Source: ours."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cuesmith.programs.diagnosis.change import section_of
from cuesmith.programs.diagnosis.figures import Curve, Figure, Section, percent
from cuesmith.programs.diagnosis.mantel import RankMantel
from cuesmith.programs.diagnosis.similarity import compared
from cuesmith.programs.studies.similarity_analysis import TESTS, Alike

__all__ = ["limits", "sections"]


def sections(result: Alike) -> tuple[Section, ...]:
    """Put the result into figures, each with what it means and what to do about it."""
    figures = (*_tests(result), *_spread(result), *_noise(result))
    alike = Section("Do prompts that read alike act alike?", _summary(result), figures, _curves(result))
    if result.neighbourhood is not None:
        return alike, section_of(result.neighbourhood)
    why = ("no edit was made, because the student's errors or the optimizer model gave none"
           if all(p.move != "edit" for p in result.prompts) else "the budget or missing scores left no data for it")
    return alike, Section("Right idea, wrong wording?", f"Nothing can be said: {why}.", ())


def _summary(result: Alike) -> str:
    answers, near, within = result.answers, result.nearest, result.within
    if answers is None or near is None or within is None:
        return (f"There is too little data: {len(result.prompts)} different prompts and {result.examples} examples "
                f"that all of them answered.")
    if math.isnan(answers.rho):
        return "All prompts give the same answers, or all read equally different: there is nothing to compare."
    share = f"{100 * answers.rho**2:.0f} %"
    if answers.sign > 0:
        said = f"Prompts that read more differently answer more differently: their distance explains {share} of the " \
               "variance in the ranks of that difference."
        if not math.isnan(within.rho):
            said += " That also holds among paraphrases of one prompt." if within.sign > 0 else \
                    " Among paraphrases of one prompt that was not shown."
        return said
    if answers.sign < 0:
        return "Reversed: prompts that read more differently answer more alike."
    return f"It was not shown that prompts that read alike act alike: their distance explains {share} of the " \
           "variance in the ranks of the difference of the answers, which chance does as well."


def _tests(result: Alike) -> Iterator[Figure]:
    if result.answers is None or result.scores is None or result.within is None or result.nearest is None:
        return
    yield _correlation("Distance of the texts with share of different answers (Spearman)", result.answers,
                       "prompts that read more differently also answer more examples differently",
                       "A small edit of the words is a small step: take larger ones when a search is stuck.")
    yield _correlation("Distance of the texts with difference of the scores (Spearman)", result.scores,
                       "prompts that read more differently also differ more in their scores",
                       "Distance tells how much a prompt may change the score, not whether for the better.")
    yield _correlation("The first, among paraphrases of one prompt (Spearman)", result.within,
                       "also of prompts with the same meaning those that read more differently act more differently",
                       "Vary wordings boldly: near copies of a prompt bring little new.")
    near = result.nearest
    shown = near.adjusted < 0.05
    yield Figure(
        "Score told by the most similar prompt, better than by the mean (points)", 100 * near.gain, None, None,
        near.prompts, near.adjusted,
        f"The most similar prompt's score is off by {100 * near.error:.1f} points on average, the mean of all others "
        f"by {100 * near.of_mean:.1f} (permutation test, scores dealt to prompts at random, Holm-corrected for {TESTS} "
        f"tests).",
        "A similar prompt's score may serve as a first guess." if shown and near.gain > 0 else
        "Similar prompts have similar scores, but the mean is as good a guess: score every prompt." if shown else
        "Do not guess a prompt's score from a similar one: score every prompt.")


def _correlation(name: str, found: RankMantel, claim: str, advice: str) -> Figure:
    how = f"(Mantel test, prompts permuted, Holm-corrected for {TESTS} tests)"
    if math.isnan(found.rho):
        return Figure(name, None, None, None, found.prompts, None,
                      "The pairs do not differ, or there are none, so nothing can be correlated.",
                      "Take more prompts, or a task on which they differ.")
    if not found.sign:
        return Figure(name, found.rho, None, None, found.prompts, found.adjusted,
                      f"It was not shown that {claim} {how}.", "Score prompts, do not judge them by reading.")
    if found.sign < 0:
        return Figure(name, found.rho, None, None, found.prompts, found.adjusted,
                      f"It is the other way round than that {claim} {how}.",
                      "Score prompts, do not judge them by reading.")
    return Figure(name, found.rho, None, None, found.prompts, found.adjusted,
                  f"{claim[0].upper()}{claim[1:]}; their distance explains {100 * found.rho**2:.0f} % of the variance "
                  f"in the ranks {how}.", advice)


def _spread(result: Alike) -> Iterator[Figure]:
    """Means over pairs, without an interval: pairs share prompts."""
    for same, name, meaning in (
            (True, "paraphrases of one prompt", "So many answers does wording alone change (mean over the pairs)."),
            (False, "prompts made apart", "So many answers differ where more than wording may (mean over pairs).")):
        found = [pair.flips for pair in result.pairs if pair.same is same]
        if found:
            yield Figure(
                f"Different answers between {name} (%)", 100 * math.fsum(found) / len(found), None, None, len(found),
                None, meaning,
                "If wording alone changes nearly as much as meaning, let the search try several wordings of each idea.")


def _noise(result: Alike) -> Iterator[Figure]:
    for name, share in zip(("student's prompt", "best edit"), result.noise, strict=False):
        yield Figure(
            f"Answers that change by themselves, {name} (%)", *percent(share), share.n, None,
            "The share of the examples with another answer when the same prompt is run again; it is not subtracted.",
            "Answers repeat: every difference is the prompt's doing." if share.mean == 0.0 else
            "Differences of this size mean nothing; lower the temperature to lower it.")


def _curves(result: Alike) -> tuple[Curve, ...]:
    axes = ("distance of the words (0 the same, 1 nothing in common)", "different answers (%)")
    curves = []
    for same, name in ((True, "paraphrases of one prompt"), (False, "prompts made apart")):
        found = sorted((p.distance, 100 * p.flips) for p in result.pairs if p.same is same)
        if found:
            curves.append(Curve(name, [x for x, _ in found], [y for _, y in found], *axes, points=True))
    return tuple(curves)


def limits(result: Alike, stopped_by: str | None) -> Iterator[str]:
    """Yield what the figures do not show.

    Args:
        result: What was found.
        stopped_by: The cap that ended the study early.
    """
    yield (f"The {len(result.prompts)} prompts are the unit, not their {len(result.pairs)} pairs, compared on "
           f"{result.examples} examples; the correlations have no interval, for none is known to hold for such pairs.")
    if stopped_by is not None:
        yield f"The study was stopped by {stopped_by} and rests on what was scored until then."
    if result.answers is not None and math.isfinite(result.answers.critical):
        yield (f"A correlation below {result.answers.critical:.2f} could not have been shown with these prompts, even "
               "without the correction for several tests.")
    if result.within is not None and math.isfinite(result.within.critical):
        yield f"Among paraphrases of one prompt that holds below {result.within.critical:.2f}."
    yield ("Prompts with a common origin read and act alike for that reason: the test among paraphrases of one prompt "
           "is free of it, and has fewer prompts to find something with.")
    yield compared(result.by_words)
    if result.neighbourhood is not None:
        yield ("The edit was chosen by its score on other examples than its neighbourhood is judged on; it is one "
               "edit, and others may differ.")
