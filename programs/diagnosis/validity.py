"""Reflection validity: does feedback depend on the errors that are shown, and does it name their cause?

An optimizer is shown errors under controlled distributions, right answers passed off as errors, errors whose cause was
planted, and no errors at all. What it says is compared by similarity, judged, and held against chance.

Source: 2402.02101 ("biased by their own prior knowledge rather than genuinely reflecting on the errors"), and the check
that its text proposes, "error distributions are systematically manipulated"; the definitions are ours, its formulas
could not be read.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis import words
from cuesmith.programs.diagnosis.asking import Error, Evidence, TooLittle
from cuesmith.programs.diagnosis.embedders import Similarity, TfIdf
from cuesmith.programs.diagnosis.figures import Section
from cuesmith.programs.diagnosis.inference import binomial_tail, interval95, permutation_test, resamples
from cuesmith.programs.diagnosis.planted import (
    Planted,
    abstains,
    controlled,
    planted_batches,
    shuffled,
    without_errors,
)
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95

ENOUGH = 20
"""Feedbacks a condition for which `power` at `SHARE` is about 0.95. Source: ours, by simulation."""
SHARE = 0.3
"""Share of error-driven feedback at which the power is reported. Ours."""
_RELABELLED = 499
"""Permutations of the conditions in the test of identifiability."""
_TOLERANCE = 1e-9
Floats = NDArray[np.float64]
Judge = Callable[[str, Mapping[str, str]], str | None]
"""(feedback, condition -> its description) -> the condition that it was given under, as a rule or a model guesses; None
for no guess."""


# --- what is asked -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownConditions:
    """What an optimizer is shown, one entry a request.

    Attributes:
        conditions: Name -> batches of errors of one prompt; two conditions or more.
        without: The prompt without any errors.
        shuffled: Right answers shown as wrong.
        planted: Errors of a prompt with a planted fault.
        others: Batches of errors of another task's prompt: the floor of the prior bias.
    """

    conditions: Mapping[str, Sequence[Evidence]]
    without: Sequence[Evidence] = ()
    shuffled: Sequence[Evidence] = ()
    planted: Sequence[Evidence] = ()
    others: Sequence[Evidence] = ()

    @classmethod
    def of(
        cls,
        instructions: str,
        errors: Sequence[Error],
        *,
        rights: Sequence[Error] = (),
        fault: Planted | None = None,
        others: Sequence[Evidence] = (),
        n: int = ENOUGH,
        kind: Callable[[Error], str] | None = None,
        seed: int = 0,
    ) -> ShownConditions:
        """Draw a study from what a run left: `n` requests for each of 4 to 7 conditions.

        Args:
            instructions: The prompt.
            errors: Its observed errors.
            rights: Examples that it answered rightly, for the placebo; none without, or if all answers are the same.
            fault: A planted fault, if there is one.
            others: Batches of errors of another task.
            n: Feedbacks a condition; fewer than 20 are little, see `power`.
            kind: The class of an error; by default what the right answer is.
            seed: Chooses the batches.

        Raises:
            ValueError: As `controlled`.
        """
        differ = len({right.answer for right in rights}) > 1
        return cls(
            controlled(instructions, errors, n=n, kind=kind, seed=seed),
            without_errors(instructions, n=n),
            shuffled(instructions, rights, n=n, seed=seed) if differ else (),
            planted_batches(fault, n=n, seed=seed) if fault else (),
            others,
        )

    @property
    def requests(self) -> int:
        """How many requests the study makes."""
        return len(self.shown())

    @property
    def parts(self) -> list[Sequence[Evidence]]:
        """The conditions' batches and the others', in the order of `shown`."""
        return [*self.conditions.values(), self.without, self.shuffled, self.planted, self.others]

    def shown(self) -> list[Evidence]:
        """Return all entries in the order that `answered` takes the replies in."""
        return [evidence for part in self.parts for evidence in part]

    def answered(self, replies: Sequence[str | None]) -> Feedback:
        """Return the feedback, given the replies to `shown()`; None is a reply that could not be used."""
        left = iter(replies)

        def take(part: Sequence[Evidence]) -> tuple[str, ...]:
            return tuple(text for text in itertools.islice(left, len(part)) if text)

        named = {name: take(part) for name, part in self.conditions.items()}
        without, placebo, planted, others = map(take, (self.without, self.shuffled, self.planted, self.others))
        return Feedback(named, without, placebo, planted, others, sum(not text for text in replies))


@dataclass(frozen=True)
class Feedback:
    """What an optimizer said; the attributes of `ShownConditions`, with one text a request.

    Attributes:
        missing: Requests that no usable feedback came of.
    """

    conditions: Mapping[str, Sequence[str]]
    without: Sequence[str] = ()
    shuffled: Sequence[str] = ()
    planted: Sequence[str] = ()
    others: Sequence[str] = ()
    missing: int = 0


# --- what comes out ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Whether feedback follows the errors.

    Attributes:
        eta: Mean similarity within conditions minus that between them, with a bootstrap interval over feedbacks.
        within: Mean similarity of two feedbacks of one condition.
        between: Mean similarity of two feedbacks of different conditions.
        p_value: One-sided, of a permutation of the condition labels: the chance of such an eta if errors do not matter.
        exact: Whether all assignments of labels were tried.
        power: Chance of p <= 0.05 if a share `SHARE` of the feedback were driven by the errors and similarity saw
            without error what is said.
        measured_power: The same by the similarity that was used.
        detectable: Least share of error-driven feedback that would be found in 80 % of such studies, by the similarity
            that was used; nan if even all of it would not.
    """

    eta: Estimate95
    within: float
    between: float
    p_value: float
    exact: bool
    power: float
    measured_power: float
    detectable: float

    @property
    def found(self) -> bool:
        """Whether the test rejects at 5 % and the interval lies above 0; power is that of the test alone."""
        return self.p_value <= 0.05 and self.eta.low > 0.0


@dataclass(frozen=True, slots=True)
class Identified:
    """Whether the condition can be told from the feedback.

    Attributes:
        accuracy: Share of feedbacks whose condition the judge names.
        chance: 1 / number of conditions.
        p_value: One-sided: exact binomial for a judge; for the built-in rule, whose guesses depend on each other, a
            permutation of the condition labels.
        binomial_p: Exact binomial, one-sided; for the built-in rule too small (11 % instead of 5 % false findings).
        judged: Whether a judge was asked, not the built-in rule.
        undecided: Feedbacks that the judge had no guess for; they do not count.
    """

    accuracy: Estimate95
    chance: float
    p_value: float
    binomial_p: float
    judged: bool = False
    undecided: int = 0


@dataclass(frozen=True, slots=True)
class PriorBias:
    """How alike feedback with errors and feedback without any are.

    Attributes:
        likeness: Mean similarity of the two over the geometric mean of the similarities within each: 1 if errors make
            no difference; can pass 1 by chance.
        floor: The same likeness for feedback on another task; nan without such feedback.
        calibrated: (likeness - floor) / (1 - floor): 0 if the task's errors take feedback as far from what is said
            without as another task's do. nan without a floor, or where it is not below 1 with 95 % confidence.
        p_value: Permutation of with and without, one-sided: the chance of such a difference if errors do not matter.
    """

    likeness: Estimate95
    floor: Estimate95
    calibrated: Estimate95
    p_value: float


@dataclass(frozen=True, slots=True)
class Validity:
    """What a study of reflection found.

    Attributes:
        counts: Condition -> usable feedbacks.
        sensitivity: Whether feedback follows the errors.
        identified: Whether the condition can be told from the feedback.
        prior_bias: How much is said without any errors; None if that was not asked.
        cause_hits: Share of feedback that names the planted cause; None if none was planted.
        placebo: Share of feedback on right answers that still finds a cause; None if that was not asked.
        enough: Whether every condition has `ENOUGH` feedbacks; if not, mind `sensitivity.power`.
        missing: Requests that no usable feedback came of.
    """

    counts: Mapping[str, int]
    sensitivity: Sensitivity
    identified: Identified
    prior_bias: PriorBias | None
    cause_hits: Estimate95 | None
    placebo: Estimate95 | None
    enough: bool
    missing: int


@dataclass(frozen=True)
class Judging:
    """The rules and judges of a study.

    Attributes:
        condition: Guesses the condition of a feedback; None takes the condition whose other feedbacks are most like it.
        descriptions: Condition -> what to tell the judge of it; a condition's name by default.
        names_cause: Whether a feedback names the planted cause; None where no cause was planted.
        finds_cause: Whether a feedback finds any cause.
    """

    condition: Judge | None = None
    descriptions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    names_cause: Callable[[str], bool] | None = None
    finds_cause: Callable[[str], bool] = lambda text: not abstains(text)


def validity_of(
    feedback: Feedback, *, judging: Judging | None = None, similarity: Similarity | None = None, seed: int = 0
) -> Validity:
    """Measure the validity of feedback that is there already. Source: ours.

    Args:
        feedback: The texts.
        judging: Rules and judges.
        similarity: How texts are compared; `TfIdf()` by default.
        seed: Seeds permutations and bootstrap.

    Raises:
        TooLittle: If there are not at least two conditions of at least two feedbacks each.
    """
    sizes = {name: len(texts) for name, texts in feedback.conditions.items()}
    if len(sizes) < 2 or min(sizes.values()) < 2:
        raise TooLittle(f"validity needs two conditions or more, each with two feedbacks or more; got {sizes}")
    rules, rng, alike = judging or Judging(), np.random.default_rng(seed), similarity or TfIdf()
    shown = [text for texts in feedback.conditions.values() for text in texts]
    labels = np.repeat(np.arange(len(sizes)), list(sizes.values()))
    matrix = alike.matrix([*shown, *feedback.without, *feedback.others])
    own = matrix[: len(shown), : len(shown)]
    judged = feedback.planted if rules.names_cause else ()
    return Validity(
        counts=sizes,
        sensitivity=_sensitivity(own, labels, alike, rng),
        identified=_identified(own, labels, shown, list(sizes), rules, rng),
        prior_bias=_prior_bias(matrix, labels, len(feedback.without), rng) if len(feedback.without) > 1 else None,
        cause_hits=_share(rules.names_cause, judged) if rules.names_cause and judged else None,
        placebo=_share(rules.finds_cause, feedback.shuffled) if feedback.shuffled else None,
        enough=min(sizes.values()) >= ENOUGH,
        missing=feedback.missing,
    )


def _share(rule: Callable[[str], bool], texts: Sequence[str]) -> Estimate95:
    return estimate95([float(rule(text)) for text in texts])


# --- sensitivity -------------------------------------------------------------------------------------------


def _sensitivity(
    matrix: Floats, labels: NDArray[np.intp], similarity: Similarity, rng: np.random.Generator
) -> Sensitivity:
    ones = np.ones((1, len(labels)))
    within, between = _within_between(matrix, labels, ones)
    weights = _stratified(labels, rng)
    within_each, between_each = _within_between(matrix, labels, weights)
    value, resampled = float((within - between)[0]), within_each - between_each
    p_value, exact = permutation_test(matrix, labels, rng)
    sizes = np.bincount(labels)
    n, k = int(sizes.min()), len(sizes)
    return Sensitivity(
        eta=interval95(value, value + (resampled - value) * _excess(matrix, labels, resampled), len(labels)),
        within=float(within[0]),
        between=float(between[0]),
        p_value=p_value,
        exact=exact,
        power=power(n, k),
        measured_power=measured_power(n, k, similarity),
        detectable=detectable(n, k, similarity),
    )


def _within_between(matrix: Floats, labels: NDArray[np.intp], weights: Floats) -> tuple[Floats, Floats]:
    """Mean similarities within and between labels, for each row of multiplicities; no text is paired with itself."""
    member = np.eye(int(labels.max()) + 1)[labels]
    same = member @ member.T > 0
    own = weights**2
    sums = [((weights @ (matrix * mask)) * weights).sum(axis=1) for mask in (same, ~same)]
    pairs = [((weights @ mask.astype(np.float64)) * weights).sum(axis=1) for mask in (same, ~same)]
    with np.errstate(invalid="ignore", divide="ignore"):  # resamples of one text a label have no pairs: nan
        return (sums[0] - own @ np.diag(matrix)) / (pairs[0] - own.sum(axis=1)), sums[1] / pairs[1]


def _excess(matrix: Floats, labels: NDArray[np.intp], resampled: Floats) -> float:
    """By how much the bootstrap's deviations have to be scaled down.

    The part of the variance that belongs to single pairs and not to texts, V, comes out as 3 V, since the products of
    two multiplicities vary three times as much as a product of signs. Where wording varies much, this part is the
    larger one, and the interval would be far too wide. Source: Arcones and Gine 1992; the correction is ours.
    """
    same = labels[:, None] == labels
    pairs = [float(np.triu(mask, 1).sum()) for mask in (same, ~same)]
    share = np.where(same, 1 / pairs[0], 1 / pairs[1])
    excess = 2 * float((np.triu(share * _residuals(matrix, labels), 1) ** 2).sum())
    spread = float(np.nanvar(resampled))
    return math.sqrt(max(1 - excess / spread, 1 / 3)) if spread > 0 else 1.0


def _residuals(matrix: Floats, labels: NDArray[np.intp]) -> Floats:
    """What is left of the similarities without the effects of the two texts, for each pair of labels; 0 for a text."""
    known, left = ~np.eye(len(labels), dtype=bool), np.zeros_like(matrix)
    for a, b in itertools.product(range(int(labels.max()) + 1), repeat=2):
        block = np.ix_(labels == a, labels == b)
        mask, values = known[block], np.where(known[block], matrix[block], 0.0)
        rows = values.sum(axis=1, keepdims=True) / np.maximum(mask.sum(axis=1, keepdims=True), 1)
        columns = values.sum(axis=0, keepdims=True) / np.maximum(mask.sum(axis=0, keepdims=True), 1)
        n, m = mask.shape
        scale = math.sqrt(n * m / ((n - 1) * (m - 1)))
        left[block] = np.where(mask, (values - rows - columns + values.sum() / max(mask.sum(), 1)) * scale, 0.0)
    return left


def _stratified(labels: NDArray[np.intp], rng: np.random.Generator) -> Floats:
    """Multiplicities of bootstrap samples that keep the size of every label."""
    sizes = np.bincount(labels)
    return np.concatenate([resamples(int(size), rng) for size in sizes], axis=1)


# --- power -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def power(n: int, conditions: int, *, share: float = SHARE) -> float:
    """Return the chance that the permutation test finds sensitivity at 5 %, if similarity saw themes without error.

    In the simulated world a feedback names its condition's own theme with probability `share`, else any of 8 themes (of
    as many as there are conditions, if these are more); two feedbacks are alike (1) if they name the same theme and
    else not (0). So this is the most that n feedbacks can show; `measured_power` is what they show by a given
    similarity.

    Args:
        n: Feedbacks a condition, 2 or more.
        conditions: How many conditions.
        share: Share of feedback that the errors drive, in [0, 1].

    Returns:
        From 400 simulated studies: its standard error is at most 0.025.

    Raises:
        ValueError: If n or the number of conditions is below 2, or the share is none.
    """
    _check(n, conditions, share)
    rng, k, studies = np.random.default_rng(0), max(8, conditions), 400
    labels = np.repeat(np.arange(conditions), n)
    member = _orders(labels, rng)
    found = 0
    for _ in range(studies):
        driven = rng.random(len(labels)) < share
        said = np.eye(k)[np.where(driven, labels, rng.integers(0, k, len(labels)))]
        alike = ((member @ said) ** 2).sum(axis=(1, 2))  # as `_alike` for these similarities
        found += _is_extreme(alike)
    return found / studies


@lru_cache(maxsize=256)
def measured_power(n: int, conditions: int, similarity: Similarity, *, share: float = SHARE) -> float:
    """Return the chance that the permutation test finds sensitivity at 5 %, by a given similarity.

    In the simulated world a feedback names its condition's cause with probability `share` and is general advice
    otherwise, both in the many wordings of `world.json`; the last condition is a mixture of the others' causes, as
    "mixed" is. Causes are tasks, those with alike questions first. Other words than these can be easier or harder to
    tell apart.

    Args:
        n: Feedbacks a condition, 2 or more.
        conditions: How many conditions.
        similarity: How texts are compared; an embedder is asked once, for some 400 short texts.
        share: Share of feedback that the errors drive, in [0, 1].

    Returns:
        From 100 simulated studies: its standard error is at most 0.05.

    Raises:
        ValueError: If n or the number of conditions is below 2, or the share is none.
    """
    _check(n, conditions, share)
    rng, labels, studies = np.random.default_rng(0), np.repeat(np.arange(conditions), n), 100
    matrix, each = _world(conditions - 1, similarity)
    causes, member, found = each * (conditions - 1), _orders(labels, rng), 0
    for _ in range(studies):
        cause = np.where(labels < conditions - 1, labels, rng.integers(0, conditions - 1, len(labels)))
        named = cause * each + rng.integers(0, each, len(labels))
        advice = rng.integers(causes, len(matrix), len(labels))
        said = np.where(rng.random(len(labels)) < share, named, advice)
        alike = ((member @ matrix[np.ix_(said, said)]) * member).sum(axis=(1, 2))
        found += _is_extreme(alike)
    return found / studies


def detectable(n: int, conditions: int, similarity: Similarity) -> float:
    """Return the smallest of the shares 0.1, 0.2, ... 1.0 with a `measured_power` of 0.8; nan if none has."""
    shares = (tenths / 10 for tenths in range(1, 11))
    return next((s for s in shares if measured_power(n, conditions, similarity, share=s) >= 0.8), math.nan)


@lru_cache(maxsize=32)
def _world(causes: int, similarity: Similarity) -> tuple[Floats, int]:
    """Similarities of the sentences that name each cause and then of general advice; and the sentences a cause has."""
    told = json.loads(Path(__file__).with_name("world.json").read_text(encoding="utf-8"))
    if causes > len(told["causes"]):
        raise ValueError(f"power is known for at most {len(told['causes']) + 1} conditions")
    frames, advising = told["of_a_cause"], told["of_advice"]
    named = [[frame.replace("{}", noun) for frame in frames for noun in nouns] for nouns in told["causes"][:causes]]
    advice = [frame.replace("{}", one) for one in told["advice"] for frame in advising]
    return similarity.matrix([*itertools.chain(*named), *advice]), len(named[0])


def _check(n: int, conditions: int, share: float) -> None:
    if n < 2 or conditions < 2 or not 0.0 <= share <= 1.0:
        raise ValueError(f"no power for n={n}, conditions={conditions}, share={share}")


def _orders(labels: NDArray[np.intp], rng: np.random.Generator) -> Floats:
    """The labels as given, and 199 times permuted: for each, which text has which label."""
    orders = np.stack([labels, *(rng.permutation(labels) for _ in range(199))])
    member: Floats = np.eye(int(labels.max()) + 1)[orders].swapaxes(1, 2)
    return member


def _is_extreme(alike: Floats) -> bool:
    """Whether the first value, the observed one, is among the highest 5 %, itself counted."""
    return int((alike >= alike[0] - _TOLERANCE).sum()) <= 0.05 * len(alike)


# --- identifiability and prior bias ------------------------------------------------------------------------


def _identified(
    matrix: Floats,
    labels: NDArray[np.intp],
    texts: Sequence[str],
    names: Sequence[str],
    rules: Judging,
    rng: np.random.Generator,
) -> Identified:
    chance = 1 / len(names)
    if rules.condition is not None:
        told = {name: rules.descriptions.get(name, name) for name in names}
        guesses = [(rules.condition(text, told), names[label]) for text, label in zip(texts, labels, strict=True)]
        hits = [float(guess == name) for guess, name in guesses if guess is not None]
        binomial = binomial_tail(int(sum(hits)), len(hits), chance)
        return Identified(estimate95(hits), chance, binomial, binomial, True, len(texts) - len(hits))
    right = _hits(matrix, labels[None], rng)[0]
    orders = np.stack([rng.permutation(labels) for _ in range(_RELABELLED)])
    as_many = int((_hits(matrix, orders, rng).sum(axis=1) >= right.sum()).sum())
    binomial = binomial_tail(int(right.sum()), len(texts), chance)
    return Identified(estimate95(right.astype(float).tolist()), chance, (as_many + 1) / (_RELABELLED + 1), binomial)


def _hits(matrix: Floats, labels: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether each text is most like the other texts of its label, on average; ties are broken by chance.

    For each row of labels.
    """
    member = np.eye(int(labels.max()) + 1)[labels]
    means = (matrix @ member - member * np.diag(matrix)[:, None]) / (member.sum(axis=1, keepdims=True) - member)
    best = means >= means.max(axis=2, keepdims=True) - _TOLERANCE
    hits: NDArray[np.bool_] = np.where(best, rng.random(means.shape), -1.0).argmax(axis=2) == labels
    return hits


def _prior_bias(matrix: Floats, labels: NDArray[np.intp], without: int, rng: np.random.Generator) -> PriorBias:
    """With errors, without and, behind them, another task's, in the order of the matrix."""
    ends = np.cumsum([len(labels), without])
    parts = np.split(np.arange(len(matrix)), ends)
    group = np.repeat([0, 1], [len(labels), without])
    both = matrix[: ends[1], : ends[1]]
    weights = [_stratified(labels, rng), *(resamples(max(1, len(part)), rng) for part in parts[1:])]
    ones = [np.ones((1, len(part))) for part in parts]
    likeness = interval95(
        float(_likeness(matrix, parts[0], parts[1], ones[0], ones[1])[0]),
        boot := _likeness(matrix, parts[0], parts[1], weights[0], weights[1]),
        len(labels),
    )
    nothing = Estimate95(math.nan, math.nan, math.nan, len(parts[2]))
    floor = calibrated = nothing
    if len(parts[2]) > 1:
        value = float(_likeness(matrix, parts[2], parts[1], ones[2], ones[1])[0])
        floor = interval95(value, low := _likeness(matrix, parts[2], parts[1], weights[2], weights[1]), len(parts[2]))
        if floor.high < 1.0:
            ratio = (boot - low) / np.maximum(1.0 - low, _TOLERANCE)
            calibrated = interval95((likeness.mean - value) / (1.0 - value), ratio, len(labels))
    return PriorBias(likeness, floor, calibrated, permutation_test(both, group, rng)[0])


def _likeness(matrix: Floats, one: NDArray[np.intp], other: NDArray[np.intp], v: Floats, w: Floats) -> Floats:
    """The cosine of two groups' mean texts, free of the bias that pairs of a text with itself would bring."""
    across = ((v @ matrix[np.ix_(one, other)]) * w).sum(axis=1) / (v.sum(axis=1) * w.sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample of a single text has no pairs: nan
        inside = _inside(matrix[np.ix_(one, one)], v) * _inside(matrix[np.ix_(other, other)], w)
        ratio: Floats = across / np.sqrt(inside)
    return ratio


def _inside(matrix: Floats, w: Floats) -> Floats:
    squares = w**2
    sums = ((w @ matrix) * w).sum(axis=1) - squares @ np.diag(matrix)
    means: Floats = np.maximum(sums, 0.0) / (w.sum(axis=1) ** 2 - squares.sum(axis=1))
    return means


# --- the report --------------------------------------------------------------------------------------------


def section_of(result: Validity) -> Section:
    """Return the part of the report that says whether reflection looks at the errors."""
    return words.section_of("diagnosis/validity", result, ENOUGH)
