"""Does feedback change when the distribution of the errors is changed? One prompt, many batches of its errors.

Three instruments are read together. `diagnosis.validity` shows errors of one class, of another, mixed, alike, none at
all, right answers as wrong ones and a planted fault. `diagnosis.repetition` says how alike feedback on different
batches is, between the same batch asked again and another task. New here is what tells cause from surface:

- *exchange*: every mixed batch once more, with each error's expected and given answer in each other's place. The words
  stay the same, what they say is wrong does not. An optimizer that looks at the errors says something else then.
- *Mantel correlation*: whether batches that read alike get feedback that reads alike.

Classes may share one cause; then the right feedback is the same for all of them and validity finds nothing, rightly.
The exchange is the control that has no such excuse.

Errors are shown without the metric's words, which cannot be exchanged, and those whose answer could not be read are
left out. Source: 2402.02101, next check 1 ("error distributions are systematically manipulated while keeping semantic
similarity constant"); the correlation: Mantel 1967; exchange and statistics: ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis import repetition, validity
from cuesmith.programs.diagnosis.asking import Evidence, measured, reasons
from cuesmith.programs.diagnosis.embedders import Similarity, TfIdf, compared
from cuesmith.programs.diagnosis.figures import Curve, Section
from cuesmith.programs.diagnosis.inference import holm
from cuesmith.programs.diagnosis.likeness import Alike, Mantel, alike, mantel
from cuesmith.programs.diagnosis.planted import (
    BATCH,
    another_task,
    drawn,
    form_fault,
    planted_batches,
    shuffled,
    without_errors,
)
from cuesmith.programs.diagnosis.words import paragraphs_of, sections_of
from cuesmith.programs.studies.bench import Bench, Findings, Study
from cuesmith.programs.studies.observed import Observed, Shown, batch_text, exchanged, observed, round_robin
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.run import Run

DRAWS = 3
"""Requests for each mixed batch and for each exchanged one: for the ceiling of the repetition, and against noise."""
_STRANGERS = ("navigate", "objects")
"""Families that stand in for another task; the one that reads less like the task is taken."""
MIXED = "mixed"
Floats = NDArray[np.float64]


# --- what is shown -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownErrors:
    """What is shown.

    Attributes:
        study: For validity; its condition "mixed" alone if the errors have no two classes.
        twins: The mixed batches with expected and given answers exchanged.
        names_cause: Whether a feedback text names the planted fault.
    """

    study: validity.ShownConditions
    twins: tuple[Evidence, ...]
    names_cause: Callable[[str], bool]

    @property
    def mixed(self) -> tuple[Evidence, ...]:
        """The batches from the whole pool."""
        return tuple(self.study.conditions[MIXED])

    @property
    def parts(self) -> list[Sequence[Evidence]]:
        """The study's parts, the mixed batches again, and the exchanged ones."""
        return [*self.study.parts, *[self.mixed] * (DRAWS - 1), *[self.twins] * DRAWS]

    def shown(self) -> list[Evidence]:
        """Return every request, in the order of the replies: part after part."""
        return list(itertools.chain(*self.parts))

    def order(self) -> list[int]:
        """Return the order in which to ask, so that a stop leaves as much of every part."""
        return round_robin([len(part) for part in self.parts])

    def answered(self, replies: Sequence[str | None]) -> tuple[validity.Feedback, list[list[str]], list[list[str]]]:
        """Return the study's feedback, and what was said of each mixed batch and of its twin, whichever draw."""
        n, before = len(self.mixed), itertools.takewhile(lambda name: name != MIXED, self.study.conditions)
        first = sum(len(self.study.conditions[name]) for name in before)
        draws = [replies[start : start + n] for start in (first, *range(self.study.requests, len(replies), n))]
        mixed, twins = (
            [[text for text in said if text] for said in zip(*side, strict=True)]
            for side in (draws[:DRAWS], draws[DRAWS:])
        )
        return self.study.answered(replies[: self.study.requests]), mixed, twins


def plan(found: Observed, description: str, *, n: int, seed: int = 0) -> ShownErrors | None:
    """Choose what to show; calls nothing.

    Args:
        found: What the prompt was observed to do.
        description: What the task is, in words: the prompt that the fault of form is planted in.
        n: Feedbacks a condition.
        seed: Chooses the batches.

    Returns:
        None if there are not more errors than a batch holds.
    """
    errors = _readable(found)
    if len(errors) <= BATCH:
        return None
    rights = [replace(right, feedback="") for right in found.rights]
    fault = form_fault(description or found.instructions, [*rights, *errors])
    mixed = drawn(found.instructions, errors, n=n, seed=seed, label=MIXED)
    others = _others(mixed, n, seed)
    try:
        study = validity.ShownConditions.of(
            found.instructions, errors, rights=rights, fault=fault, others=others, n=n, seed=seed
        )
    except ValueError:  # no two classes
        differ = len({right.answer for right in rights}) > 1
        placebo = shuffled(found.instructions, rights, n=n, seed=seed) if differ else ()
        study = validity.ShownConditions(
            {MIXED: mixed},
            without_errors(found.instructions, n=n),
            placebo,
            planted_batches(fault, n=n, seed=seed),
            others,
        )
    twin = {error.shown(): exchanged(error) for error in errors}
    twins = [tuple(other for error in batch.errors if (other := twin[error.shown()])) for batch in mixed]
    return ShownErrors(study, tuple(Evidence(found.instructions, some) for some in twins), fault.names)


def _readable(found: Observed) -> list[Shown]:
    return [replace(error, feedback="") for error in found.errors if exchanged(error) is not None]


def _others(mixed: Sequence[Evidence], n: int, seed: int) -> list[Evidence]:
    strangers = [another_task(family, n=n, seed=seed) for family in _STRANGERS]
    likeness = TfIdf().matrix([" ".join(map(batch_text, part[:4])) for part in (mixed, *strangers)])[0, 1:]
    return strangers[int(likeness.argmin())]


# --- what comes out ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surface:
    """How alike the errors read that were shown: the design, not an estimate.

    Attributes:
        within: Mean similarity of two batches of one condition; None without two conditions.
        between: Mean similarity of two batches of different conditions; None likewise.
        exchanged: Mean similarity of a mixed batch and the same with answers exchanged.
        n: Batches of a condition.
    """

    within: float | None
    between: float | None
    exchanged: float
    n: int


@dataclass(frozen=True)
class ErrorsResult:
    """What the study found; None is what could not be measured.

    Attributes:
        examples: Training examples that the prompt was run on; 0 if the study was stopped before.
        errors: Those it failed on.
        unread: Errors that were left out, as their answer could not be read.
        requests: How much was to be asked.
        answered: How much of it gave a usable feedback.
        validity: By class.
        repetition: By batch.
        exchange: Feedback on mixed batches and on the same with answers exchanged.
        mantel: Over the mixed batches.
        surface: How alike the errors themselves read.
        corrected: p-values of exchange and Mantel correlation, corrected for there being two (Holm).
        by_words: Whether feedback was compared by its words, and not by an embedder.
    """

    examples: int
    errors: int
    unread: int
    requests: int
    answered: int
    validity: validity.Validity | None
    repetition: repetition.Repetition | None
    exchange: Alike | None
    mantel: Mantel | None
    surface: Surface | None
    corrected: Mapping[str, float]
    by_words: bool = True

    @property
    def changes(self) -> bool:
        """Whether it was shown that feedback changes with what the errors say: by test and interval."""
        return self.exchange is not None and self.corrected["exchange"] <= 0.05 and self.exchange.likeness.high < 1.0


def analysed(
    found: Observed | None,
    planned: ShownErrors | None,
    replies: Sequence[str | None],
    *,
    similarity: Similarity | None = None,
    seed: int = 0,
) -> ErrorsResult:
    """Measure what was collected, all of it or what a stop left.

    Args:
        found: What the prompt was observed to do; None if that is not known.
        planned: What was shown; None if nothing was.
        replies: What was said, in the order of the plan.
        similarity: How alike texts are; by default by their words.
        seed: Seeds permutations and bootstrap.
    """
    alike_by = similarity or TfIdf()
    valid, repeated, exchange, correlation, surface = None, None, None, None, None
    if planned is not None:
        feedback, mixed, twins = planned.answered(replies)
        judging = validity.Judging(names_cause=planned.names_cause)
        missing = DRAWS * len(mixed) - sum(map(len, mixed)) + len(planned.study.others) - len(feedback.others)
        valid, _ = measured(lambda: validity.validity_of(feedback, judging=judging, similarity=alike_by, seed=seed))
        repeated, _ = measured(
            lambda: repetition.repetition_of(mixed, feedback.others, similarity=alike_by, seed=seed, missing=missing)
        )
        both = [(own, twin) for own, twin in zip(mixed, twins, strict=True) if own and twin]
        said = [own for own, _ in both] + [twin for _, twin in both]
        exchange = alike(_between(said, alike_by), len(both), paired=True, seed=seed)
        asked = [(batch_text(batch), own) for batch, own in zip(planned.mixed, mixed, strict=True) if own]
        shown = alike_by.matrix([text for text, _ in asked])
        correlation = mantel(shown, _between([own for _, own in asked], alike_by), seed=seed)
        surface = _surface(planned)
    tests = {name: test for name, test in (("exchange", exchange), ("mantel", correlation)) if test is not None}
    return ErrorsResult(
        examples=found.n if found else 0,
        errors=len(found.errors) if found else 0,
        unread=len(found.errors) - len(_readable(found)) if found else 0,
        requests=len(replies),
        answered=sum(text is not None for text in replies),
        validity=valid,
        repetition=repeated,
        exchange=exchange,
        mantel=correlation,
        surface=surface,
        corrected=dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True)),
        by_words=isinstance(alike_by, TfIdf),
    )


def _between(groups: Sequence[Sequence[str]], similarity: Similarity) -> Floats:
    """Mean similarity of a text of one group and one of another, for each pair of groups; of none, nothing."""
    sizes = np.array([len(texts) for texts in groups], dtype=np.intp)
    matrix = similarity.matrix([text for texts in groups for text in texts])
    member = np.eye(len(groups))[:, np.repeat(np.arange(len(groups)), sizes)]
    means: Floats = member @ matrix @ member.T / np.outer(sizes, sizes)
    return means


def _surface(planned: ShownErrors) -> Surface:
    groups = list(planned.study.conditions.values())
    texts = [batch_text(batch) for group in [*groups, planned.twins] for batch in group]
    matrix = TfIdf().matrix(texts)
    of = np.repeat(np.arange(len(groups) + 1), [*map(len, groups), len(planned.twins)])
    own, twins = of == list(planned.study.conditions).index(MIXED), of == len(groups)
    same = of[:, None] == of
    known = np.triu(np.ones_like(same), 1) & ~(twins[:, None] | twins)
    several = len(groups) > 1
    return Surface(
        within=float(matrix[known & same].mean()) if several else None,
        between=float(matrix[known & ~same].mean()) if several else None,
        exchanged=float(np.diag(matrix[np.ix_(own, twins)]).mean()),
        n=len(planned.mixed),
    )


_PARTS = 8 + (DRAWS - 1) + DRAWS
"""Conditions at most: 4 distributions, no errors, placebo, planted, another task; mixed again, exchanged."""


# --- what is asked -----------------------------------------------------------------------------------------


@dataclass
class _Kept:
    """What the experiment has so far: the prompt's errors, what is shown, and what was said, in the plan's order."""

    found: Observed | None = None
    plan: ShownErrors | None = None
    replies: list[str | None] = field(default_factory=list)


async def _experiment(run: Run, description: str, n: int, kept: _Kept) -> None:
    """Observe the prompt's errors, then ask for everything at once."""
    kept.found = observed(run, (await run.score([run.baseline], run.train))[0])
    kept.plan = plan(kept.found, description, n=n, seed=run.seed)
    if kept.plan is not None:
        shown = kept.plan.shown()
        kept.replies = [None] * len(shown)
        await reasons(run, shown, kept.replies, order=kept.plan.order())


# --- the report -------------------------------------------------------------------------------------------


def sections(found: ErrorsResult) -> tuple[Section, ...]:
    """Put what was found into words and figures."""
    parts = (
        found.validity and validity.section_of(found.validity),
        found.repetition and repetition.section_of(found.repetition),
    )
    return sections_of("studies/errors", found, _curves(found), *parts, BATCH)


def _curves(found: ErrorsResult) -> tuple[Curve, ...]:
    if found.mantel is None:
        return ()
    x, y = zip(*found.mantel.pairs, strict=True)
    return (
        Curve("pairs of mixed batches", x, y, "similarity of the errors", "similarity of the feedback", points=True),
    )


def limits(found: ErrorsResult) -> tuple[str, ...]:
    """Return what the figures do not show."""
    return paragraphs_of("studies/errors", found, compared(found.by_words))


# --- the study ---------------------------------------------------------------------------------------------


def _conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    (task,), kept = tasks, _Kept()
    bench.conduct(STUDY.name, task, lambda run: _experiment(run, task.description, n, kept))
    result = analysed(kept.found, kept.plan, kept.replies, similarity=bench.similarity, seed=bench.seed)
    return Findings(result, sections(result), limits(result))


def _forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """The student on every training and validation example, and each condition n times."""
    runs = sum(len(task.train) + len(task.validation) for task in tasks)
    asks = _PARTS * n * len(tasks)
    return Forecast(asks, runs, asks + runs)


STUDY = Study(
    name="errors",
    families=("objects",),
    sizes=Sizes(train=120, validation=10, test=1),
    n=validity.ENOUGH,
    unit="feedbacks a condition",
    fewest=5,
    needs={"train": BATCH + 1},
    run=_conduct,
    bounds=_forecast,
)
