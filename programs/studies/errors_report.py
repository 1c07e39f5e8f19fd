"""What the study of errors found, in words and figures: see `studies.errors`. Source: ours."""

from __future__ import annotations

from collections.abc import Iterator

from cuesmith.programs.diagnosis import repetition, validity
from cuesmith.programs.diagnosis.figures import Curve, Figure, Section
from cuesmith.programs.diagnosis.planted import BATCH
from cuesmith.programs.diagnosis.similarity import compared
from cuesmith.programs.studies.errors_analysis import Found, Surface

__all__ = ["limits", "sections"]

ALIKE = 0.8
"""From this likeness on feedback counts as hardly different. Ours."""


def sections(found: Found) -> tuple[Section, ...]:
    """Return the report's parts; what could not be measured says why."""
    own = Section("Does the feedback follow what the errors say?", _summary(found), tuple(_figures(found)),
                  _curves(found))
    if found.requests == 0:
        return (own,)
    few = f"Only {found.answered} of {found.requests} requests gave a usable feedback." if found.answered < \
        found.requests else "The errors have no two classes, nor clusters, of at least 3."
    return (
        own,
        validity.section_of(found.validity) if found.validity
        else Section("Does the reflection look at the errors?", f"This could not be measured. {few}", ()),
        repetition.section_of(found.repetition) if found.repetition
        else Section("Does the feedback repeat itself?", f"This could not be measured. {few}", ()),
    )


def _summary(found: Found) -> str:
    if found.examples == 0:
        return "The study was stopped before it was known which errors the prompt makes."
    if found.requests == 0:
        return (f"The prompt made {found.errors} errors on {found.examples} training examples, of which "
                f"{found.errors - found.unread} can be shown; more than {BATCH} are needed: give more examples.")
    if found.exchange is None:
        return (f"Nothing can be said: {found.answered} of {found.requests} requests gave a usable feedback before "
                "the study ended.")
    if found.changes:
        said = ("Feedback changes with what the errors say: with expected and given answers exchanged, in the same "
                "words, other feedback comes.")
    elif found.exchange.likeness.low > ALIKE:
        said = ("Feedback hardly changes with what the errors say: with expected and given answers exchanged much the "
                "same is said.")
    else:
        said = "That feedback changes with what the errors say was not shown."
    return f"{said} {_mantel_summary(found)}"


def _mantel_summary(found: Found) -> str:
    if found.mantel is None:
        return "Whether errors that read alike get feedback that reads alike could not be measured."
    if found.corrected["mantel"] <= 0.05:
        return "Errors that read more alike get feedback that reads more alike."
    return "That errors which read more alike get feedback which reads more alike was not shown."


def _figures(found: Found) -> Iterator[Figure]:
    if found.exchange is not None:
        one = found.exchange.likeness
        yield Figure(
            "likeness of feedback after the exchange", one.mean, one.low, one.high, one.n, found.corrected["exchange"],
            f"1 says that the same is said when expected and given answers change places ({found.exchange.across:.2f} "
            f"alike, against {found.exchange.first:.2f} among batches as they were; paired permutation test, Holm).",
            "The optimizer reads the errors; if it repeats itself below, they share a cause." if found.changes else
            "Do not count on this optimizer to read the errors: try another model, or use IterativeAPE or ABO.")
    if found.surface is not None:
        yield from _surface_figures(found.surface)
    if found.mantel is not None:
        r = found.mantel.r
        yield Figure(
            "errors alike, feedback alike (Mantel correlation)", r.mean, r.low, r.high, r.n, found.corrected["mantel"],
            "The correlation, over pairs of batches, of how alike the errors read and how alike the feedback on them "
            "does (Mantel's permutation test, Holm).",
            "Far above 0, choose the errors that you show with care, as their wording is reflected."
            if found.corrected["mantel"] <= 0.05
            else "Do not expect other feedback from errors that only read differently.")


def _surface_figures(surface: Surface) -> Iterator[Figure]:
    yield Figure(
        "similarity of the errors before and after", surface.exchanged, None, None, surface.n, None,
        "How alike a batch reads to the same batch with its answers exchanged, by the words they share (no test: it "
        "is what was shown).",
        "Near 1, only what the errors say differs, and the line above is about nothing else.")
    if surface.within is None or surface.between is None:
        return
    yield Figure(
        "similarity of the errors: within less between", surface.within - surface.between, None, None, surface.n, None,
        f"Batches of one condition read {surface.within:.2f} alike and batches of different conditions "
        f"{surface.between:.2f} (no test: it is what was shown).",
        "Compare with the sensitivity to the errors below: near 0, the conditions differ in class and not in wording.")


def _curves(found: Found) -> tuple[Curve, ...]:
    if found.mantel is None:
        return ()
    x, y = zip(*found.mantel.pairs, strict=True)
    return (Curve("pairs of mixed batches", x, y, "similarity of the errors", "similarity of the feedback",
                  points=True),)


def limits(found: Found) -> Iterator[str]:
    """Yield what the figures do not show."""
    yield ("One prompt and the errors that it made on these training examples were studied: other prompts, tasks and "
           "optimizer models can differ.")
    yield compared(found.by_words)
    if found.mantel is not None:
        yield (f"With {found.mantel.r.n} batches a Mantel correlation of about {found.mantel.detectable:.2f} would be "
               "found in 80 % of such studies; a smaller one mostly not.")
    if found.validity is not None:
        yield ("If all errors have one cause, the same feedback is right for every class of them: then that the "
               "classes make no difference is no fault of the optimizer.")
        yield ("The exchange and the Mantel correlation are corrected for being two tests; the tests of the "
               "sections on validity are not.")
    if found.unread:
        yield f"{found.unread} errors were left out, as their answer could not be read."
    if found.answered < found.requests:
        yield (f"{found.requests - found.answered} of {found.requests} requests gave no usable feedback; after a stop "
               "what is left depends on which answers came first.")
