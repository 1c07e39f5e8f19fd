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
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis import repetition, validity
from cuesmith.programs.diagnosis.asking import Evidence
from cuesmith.programs.diagnosis.association import holm
from cuesmith.programs.diagnosis.figures import Curve, Figure, Section
from cuesmith.programs.diagnosis.planted import (
    BATCH,
    another_task,
    drawn,
    form_fault,
    planted_batches,
    shuffled,
    without_errors,
)
from cuesmith.programs.diagnosis.similarity import TfIdf
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.studies.bench import Bench, Findings, Study
from cuesmith.programs.studies.observed import (
    Alike,
    Observed,
    Shown,
    alike,
    batch_text,
    exchanged,
    jackknife,
    observed,
    one_task,
    reasons,
    round_robin,
)
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.statistics import Estimate95

__all__ = ["STUDY", "Experiment", "Found", "Mantel", "Plan", "Surface", "analysed", "mantel", "plan", "sections"]

DRAWS = 3
"""Requests for each mixed batch and for each exchanged one: for the ceiling of the repetition, and against noise."""
_PARTS = 8 + (DRAWS - 1) + DRAWS
"""Conditions at most: 4 distributions, no errors, placebo, planted, another task; mixed again, exchanged."""
_STRANGERS = ("navigate", "objects")
"""Families that stand in for another task; the one that reads less like the task is taken."""
_EXACT = 7
"""Batches up to which all orders are tried (7! = 5,040)."""
_TOLERANCE = 1e-9
_REACH = NormalDist().inv_cdf(0.95) + NormalDist().inv_cdf(0.8)
"""Standard errors that an effect is away from 0 if a one-sided test at 5 % finds it in 80 % of all studies."""
MIXED = "mixed"
ALIKE = 0.8
"""From this likeness on feedback counts as hardly different. Ours."""
Floats = NDArray[np.float64]


# --- what is asked -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is shown.

    Attributes:
        study: For validity; its condition "mixed" alone if the errors have no two classes.
        twins: The mixed batches with expected and given answers exchanged.
        names_cause: Whether a feedback text names the planted fault.
    """

    study: validity.Study
    twins: tuple[Evidence, ...]
    names_cause: Callable[[str], bool]

    @property
    def mixed(self) -> tuple[Evidence, ...]:
        """The batches from the whole pool."""
        return tuple(self.study.conditions[MIXED])

    def shown(self) -> list[Evidence]:
        """Return every request, in the order of the replies: the study's, mixed ones again, exchanged ones."""
        return [*self.study.shown(), *self.mixed * (DRAWS - 1), *self.twins * DRAWS]

    def order(self) -> list[int]:
        """Return the order in which to ask, so that a stop leaves as much of every part."""
        study, n = self.study, len(self.mixed)
        parts = (*study.conditions.values(), study.without, study.shuffled, study.planted, study.others)
        return round_robin([*map(len, parts), *[n] * (2 * DRAWS - 1)])

    def of_mixed(self, replies: Sequence[str | None]) -> list[list[str]]:
        """Return what was said of each mixed batch, whichever draw."""
        before = itertools.takewhile(lambda pair: pair[0] != MIXED, self.study.conditions.items())
        first = sum(len(part) for _, part in before)
        return self._said(replies, (first, *self._starts[: DRAWS - 1]))

    def of_twins(self, replies: Sequence[str | None]) -> list[list[str]]:
        """Return what was said of each mixed batch with answers exchanged, whichever draw."""
        return self._said(replies, self._starts[DRAWS - 1 :])

    @property
    def _starts(self) -> range:
        """Where the draws that are not the study's begin."""
        n = len(self.mixed)
        return range(self.study.requests, self.study.requests + (2 * DRAWS - 1) * n, n)

    def _said(self, replies: Sequence[str | None], starts: Sequence[int]) -> list[list[str]]:
        return [[text for first in starts if (text := replies[first + k])] for k in range(len(self.mixed))]


def plan(found: Observed, description: str, *, n: int, seed: int = 0) -> Plan | None:
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
        study = validity.Study.of(found.instructions, errors, rights=rights, fault=fault, others=others, n=n, seed=seed)
    except ValueError:  # no two classes
        differ = len({right.answer for right in rights}) > 1
        placebo = shuffled(found.instructions, rights, n=n, seed=seed) if differ else ()
        study = validity.Study({MIXED: mixed}, without_errors(found.instructions, n=n), placebo,
                               planted_batches(fault, n=n, seed=seed), others)
    twin = {error.shown(): exchanged(error) for error in errors}
    twins = [tuple(other for error in batch.errors if (other := twin[error.shown()])) for batch in mixed]
    return Plan(study, tuple(Evidence(found.instructions, some) for some in twins), fault.names)


def _readable(found: Observed) -> list[Shown]:
    return [replace(error, feedback="") for error in found.errors if exchanged(error) is not None]


def _others(mixed: Sequence[Evidence], n: int, seed: int) -> list[Evidence]:
    strangers = [another_task(family=family, n=n, seed=seed) for family in _STRANGERS]
    likeness = TfIdf().matrix([" ".join(map(batch_text, part[:4])) for part in (mixed, *strangers)])[0, 1:]
    return strangers[int(likeness.argmin())]


class Experiment:
    """Observes the prompt's errors, then asks for everything at once.

    Attributes:
        found: What was observed; None until then.
        plan: What is shown; None until it is known, and if there are too few errors.
        replies: What was said, in the order of the plan; None where nothing came (yet).
    """

    def __init__(self, description: str, n: int) -> None:
        """Take what the plan needs.

        Args:
            description: What the task is, in words.
            n: Feedbacks a condition.
        """
        self.found: Observed | None = None
        self.plan: Plan | None = None
        self.replies: list[str | None] = []
        self._description, self._n = description, n

    async def __call__(self, run: Run) -> None:
        """Run it.

        Raises:
            RunStopped: As `Run.score`.
        """
        self.found = observed(run, (await run.score([run.baseline], run.train))[0])
        self.plan = plan(self.found, self._description, n=self._n, seed=run.seed)
        if self.plan is not None:
            shown = self.plan.shown()
            self.replies = [None] * len(shown)
            await reasons(run, shown, self.replies, order=self.plan.order())


# --- what comes out ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mantel:
    """Whether batches that are alike get feedback that is alike.

    Attributes:
        r: Pearson's correlation over pairs of batches, with a jackknife interval over batches.
        p_value: One-sided; permutation of the batches.
        exact: Whether all orders were tried.
        detectable: The least correlation that would be found in 80 % of such studies (normal approximation).
        pairs: (similarity of two batches, similarity of the feedback on them), one a pair.
    """

    r: Estimate95
    p_value: float
    exact: bool
    detectable: float
    pairs: tuple[tuple[float, float], ...]


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
class Found:
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

    @property
    def changes(self) -> bool:
        """Whether it was shown that feedback changes with what the errors say: by test and interval."""
        return self.exchange is not None and self.corrected["exchange"] <= 0.05 and self.exchange.likeness.high < 1.0


def analysed(found: Observed | None, planned: Plan | None, replies: Sequence[str | None], *, seed: int = 0) -> Found:
    """Measure what was collected, all of it or what a stop left.

    Args:
        found: What the prompt was observed to do; None if that is not known.
        planned: What was shown; None if nothing was.
        replies: What was said, in the order of the plan.
        seed: Seeds permutations and bootstrap.
    """
    valid, repeated, exchange, correlation, surface = None, None, None, None, None
    if planned is not None:
        valid, repeated = _validity(planned, replies, seed), _repetition(planned, replies, seed)
        exchange, correlation = _exchange(planned, replies, seed), _mantel(planned, replies, seed)
        surface = _surface(planned)
    tests = {name: test for name, test in (("exchange", exchange), ("mantel", correlation)) if test is not None}
    return Found(
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
    )


def _validity(planned: Plan, replies: Sequence[str | None], seed: int) -> validity.Validity | None:
    feedback = planned.study.answered(replies[: planned.study.requests])
    try:
        return validity.validity_of(feedback, judging=validity.Judging(names_cause=planned.names_cause), seed=seed)
    except ValueError:
        return None


def _repetition(planned: Plan, replies: Sequence[str | None], seed: int) -> repetition.Repetition | None:
    said = planned.of_mixed(replies)
    others = planned.study.answered(replies[: planned.study.requests]).others
    missing = DRAWS * len(said) - sum(map(len, said)) + len(planned.study.others) - len(others)
    try:
        return repetition.repetition_of(said, others, seed=seed, missing=missing)
    except ValueError:
        return None


def _exchange(planned: Plan, replies: Sequence[str | None], seed: int) -> Alike | None:
    both = zip(planned.of_mixed(replies), planned.of_twins(replies), strict=True)
    pairs = [(own, twin) for own, twin in both if own and twin]
    said = [own for own, _ in pairs] + [twin for _, twin in pairs]
    return alike(_between(said), len(pairs), paired=True, seed=seed)


def _mantel(planned: Plan, replies: Sequence[str | None], seed: int) -> Mantel | None:
    pairs = zip(planned.mixed, planned.of_mixed(replies), strict=True)
    asked = [(batch_text(batch), said) for batch, said in pairs if said]
    shown = TfIdf().matrix([text for text, _ in asked])
    return mantel(shown, _between([said for _, said in asked]), seed=seed)


def _between(groups: Sequence[Sequence[str]]) -> Floats:
    """Mean similarity of a text of one group and one of another, for each pair of groups; of none, nothing."""
    sizes = np.array([len(texts) for texts in groups], dtype=np.intp)
    matrix = TfIdf().matrix([text for texts in groups for text in texts])
    member = np.eye(len(groups))[:, np.repeat(np.arange(len(groups)), sizes)]
    means: Floats = member @ matrix @ member.T / np.outer(sizes, sizes)
    return means


def mantel(first: Floats, second: Floats, *, seed: int = 0) -> Mantel | None:
    """Correlate two similarity matrices of the same units over all pairs of them. Source: Mantel 1967.

    Args:
        first: Symmetric; the diagonal does not count.
        second: As many rows.
        seed: Seeds the random orders, where there are more than 7 units.

    Returns:
        None with fewer than 5 units, or if all pairs of one matrix (without any one unit, too) are equally alike.
    """
    n = len(first)
    left = [np.delete(np.arange(n), k) for k in range(n)]
    if n < 5 or any(_is_flat(side[np.ix_(some, some)]) for side in (first, second) for some in left):
        return None
    rows, columns = np.triu_indices(n, 1)
    if exact := n <= _EXACT:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        rng = np.random.default_rng(seed)
        orders = np.stack([np.arange(n), *(rng.permutation(n) for _ in range(validity.PERMUTATIONS))])
    fixed = first[rows, columns] - first[rows, columns].mean()
    moved = second[orders[:, rows], orders[:, columns]]
    moved = moved - moved.mean(axis=1, keepdims=True)
    values = moved @ fixed / (math.sqrt(fixed @ fixed) * np.sqrt((moved**2).sum(axis=1)))
    value = float(values[0])
    p_value = float((values >= value - _TOLERANCE).mean())
    within = [_pearson(first[np.ix_(some, some)], second[np.ix_(some, some)]) for some in left]
    r = jackknife(value, within, [n])
    r = Estimate95(r.mean, max(-1.0, r.low), min(1.0, r.high), n)
    pairs = tuple(zip(first[rows, columns].tolist(), second[rows, columns].tolist(), strict=True))
    return Mantel(r, p_value, exact, _REACH * float(values.std()), tuple(sorted(pairs)))


def _is_flat(matrix: Floats) -> bool:
    return float(np.ptp(matrix[np.triu_indices(len(matrix), 1)])) < _TOLERANCE


def _pearson(first: Floats, second: Floats) -> float:
    pairs = np.triu_indices(len(first), 1)
    return float(np.corrcoef(first[pairs], second[pairs])[0, 1])


def _surface(planned: Plan) -> Surface:
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


# --- the study ---------------------------------------------------------------------------------------------


def conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    """Conduct the study on one task, with n feedbacks a condition.

    Raises:
        ValueError: Before any call, if it is not one task with training examples enough.
    """
    task = one_task(STUDY.name, tasks, n, fewest=STUDY.fewest, train=BATCH + 1)
    experiment = Experiment(task.description, n)
    bench.conduct(STUDY.name, task, experiment)
    result = analysed(experiment.found, experiment.plan, experiment.replies, seed=bench.seed)
    return Findings(result, sections(result), tuple(_limits(result)))


def forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Return upper bounds: the student on every training and validation example, and each condition n times."""
    runs = sum(len(task.train) + len(task.validation) for task in tasks)
    asks = _PARTS * n * len(tasks)
    return Forecast(asks, runs, asks + runs)


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


def _limits(found: Found) -> Iterator[str]:
    yield ("One prompt and the errors that it made on these training examples were studied: other prompts, tasks and "
           "optimizer models can differ.")
    yield ("Texts are compared by the words they share: two that say the same in other words count as different, and "
           "a test by words misses differences of meaning alone.")
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


STUDY = Study(
    name="errors",
    question=STUDIES["errors"],
    families=("objects",),
    sizes=Sizes(train=120, validation=10, test=1),
    n=validity.ENOUGH,
    unit="feedbacks a condition",
    fewest=5,
    conduct=conduct,
    forecast=forecast,
)
