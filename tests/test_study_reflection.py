"""The study of reflection: its statistics against scipy and enumeration, its design, and what it finds and does not."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import dspy
import numpy as np
import pytest
from dspy.lm15 import Request, Response
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from study_support import bench, readable, refuses, symmetric

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.simulated_optimizer import Asked, SimulatedOptimizerEngine
from cuesmith.programs.diagnosis.inference import holm, jackknife, permutation_test, permuted
from cuesmith.programs.diagnosis.likeness import alike
from cuesmith.programs.studies.bench import Bench
from cuesmith.programs.studies.observed import Observed, Shown, exchanged, round_robin, swapped
from cuesmith.programs.studies.reflection import (
    ARMS,
    OWN,
    PLACEBO,
    REWORDING,
    SEEN,
    STUDY,
    UNIFORM,
    Collected,
    Refinement,
    ReflectionResult,
    analysed,
    sections,
)
from cuesmith.programs.tasks import Sizes, Task, generate
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.statistics import estimate95

Floats = NDArray[np.float64]
SMALL = Sizes(train=30, validation=16, test=1)


def shown(gold: str, answered: str | None, feedback: str = "") -> Shown:
    outputs = {} if answered is None else {"reasoning": "so", "answer": answered}
    text = "?" if answered is None else f"reasoning: so\nanswer: {answered}"
    return Shown({"q": gold}, text, {"answer": gold}, feedback, outputs)


# --- the statistics ----------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=5), st.lists(st.integers(0, 20), min_size=2, max_size=5),
    st.sampled_from([1.0, 7.0, 60.0, math.pi]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_exact_permutation_test_against_scipy(one: list[int], other: list[int], unit: float) -> None:
    first, second = [k / unit for k in one], [k / unit for k in other]
    n = len(first)
    pool = [*one, *other]  # in whole numbers, where ties are ties
    every = [
        abs(sum(pool[k] for k in some) * len(pool) - sum(pool) * n)
        for some in itertools.combinations(range(len(pool)), n)
    ]
    wanted = float(np.mean([value >= abs(sum(one) * len(pool) - sum(pool) * n) for value in every]))
    assert permuted(first, second) == pytest.approx(wanted)
    if len(one) == len(other) and unit == 1.0:  # scipy's two-sided test doubles the smaller tail, else another thing
        by_scipy = stats.permutation_test(
            (np.array(first), np.array(second)), lambda a, b: np.mean(a) - np.mean(b), n_resamples=np.inf
        ).pvalue
        assert permuted(first, second) == pytest.approx(min(1.0, by_scipy), abs=1e-9)


def test_the_permutation_test_stays_exact_for_the_study_and_is_random_beyond() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 61, 12) / 60, rng.integers(10, 61, 12) / 60
    by_scipy = stats.permutation_test(
        (a, b), lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis), n_resamples=200_000, vectorized=True,
        rng=np.random.default_rng(1)).pvalue  # fmt: skip
    assert permuted(a.tolist(), b.tolist()) == pytest.approx(by_scipy, abs=0.005)
    assert permuted(a.tolist(), b.tolist(), seed=1) == permuted(a.tolist(), b.tolist(), seed=2)  # exact: no chance
    c, d = rng.normal(0, 1, 25), rng.normal(0.5, 1, 25)
    assert permuted(c.tolist(), d.tolist()) == pytest.approx(float(stats.ttest_ind(c, d).pvalue), abs=0.02)
    assert permuted([1.0] * 30, rng.normal(0, 0.1, 30).tolist()) == pytest.approx(1 / 10_001)
    assert permuted([0.5] * 5, [0.5] * 4) == 1.0 and permuted([1.0] * 4, [0.0] * 4) == pytest.approx(2 / 70)
    with pytest.raises(ValueError, match="two groups"):
        permuted([], [1.0])


def test_likeness_by_hand_and_its_tests_by_enumeration() -> None:
    matrix, n = symmetric(10, 3), 5
    found = alike(matrix, n, paired=True)
    assert found is not None and found.exact
    within = [
        float(np.mean([matrix[i, j] for i, j in itertools.combinations(part, 2)])) for part in (range(5), range(5, 10))
    ]
    across = float(np.mean([matrix[i, j] for i in range(5) for j in range(5, 10)]))
    assert [found.first, found.second, found.across] == pytest.approx([*within, across])
    assert found.likeness.mean == pytest.approx(across / math.sqrt(within[0] * within[1]))

    def eta(first: Sequence[int]) -> float:
        pairs = list(itertools.combinations(range(10), 2))
        same = [matrix[i, j] for i, j in pairs if (i in first) == (j in first)]
        return float(np.mean(same) - np.mean([matrix[i, j] for i, j in pairs if (i in first) != (j in first)]))

    swaps = [eta([k + n * bit for k, bit in enumerate(bits)]) for bits in itertools.product((0, 1), repeat=n)]
    assert found.p_value == pytest.approx(np.mean([value >= eta(range(5)) - 1e-12 for value in swaps]))
    free = alike(matrix, 4)
    labels = (np.arange(10) >= 4).astype(int)
    assert free is not None and free.p_value == permutation_test(matrix, labels, np.random.default_rng(0))[0]
    assert alike(np.eye(4), 2, paired=True) is None and alike(np.eye(5), 3) is None
    with pytest.raises(ValueError, match="cannot be paired"):
        alike(np.eye(7), 3, paired=True)


def test_the_random_swaps_are_near_the_exact_ones() -> None:
    for seed in range(3):
        matrix = symmetric(28, seed)
        matrix[:14, :14] += 0.02 * seed
        exact = alike(matrix, 14, paired=True)
        assert exact is not None and exact.exact
        signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(4000, 14))
        both = np.concatenate([signs, -signs], axis=1)
        held = matrix - np.diag(np.diag(matrix))
        sums = ((both @ held) * both).sum(axis=1)
        labels = np.repeat((1.0, -1.0), 14)
        assert exact.p_value == pytest.approx(np.mean(sums >= labels @ held @ labels - 1e-9), abs=0.03)


def test_the_jackknife_of_a_mean_is_students_interval_and_of_two_samples_their_sum() -> None:
    values = np.random.default_rng(0).normal(2, 1, 15)
    left = [float(np.delete(values, k).mean()) for k in range(15)]
    found, wanted = jackknife(float(values.mean()), left, [15]), estimate95(values.tolist())
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    other = np.random.default_rng(1).normal(0, 2, 15)
    both = [*(one - other.mean() for one in left), *(values.mean() - np.delete(other, k).mean() for k in range(15))]
    two = jackknife(float(values.mean() - other.mean()), both, [15, 15])
    half = stats.t.ppf(0.975, 14) * math.sqrt(values.var(ddof=1) / 15 + other.var(ddof=1) / 15)
    assert two.high - two.mean == pytest.approx(half)


# --- false errors ------------------------------------------------------------------------------------------


def test_swapped_expectations_are_another_examples_and_never_what_was_answered() -> None:
    pool = [shown(gold, answer, "the metric's words") for gold, answer in
            [("1", "2"), ("2", "1"), ("3", "1"), ("1", "3"), ("2", None)]]  # fmt: skip
    for seed in range(20):
        false = swapped(pool, random.Random(seed))
        assert len(false) == len(pool)
        for one, was in zip(false, pool, strict=True):
            assert one.gold != was.gold and one.answered != one.answer and one.feedback == ""
            assert (one.inputs, one.response) == (was.inputs, was.response)
    assert swapped([shown("True", "False"), shown("False", "True")], random.Random(0)) == []
    assert swapped([shown("a", "a")] * 5, random.Random(0)) == []


def test_an_exchange_keeps_the_words_and_turns_what_they_say() -> None:
    error = shown("7", "3", "too low")
    other = exchanged(error)
    assert other is not None and other.gold == {"answer": "3"} and other.response == "reasoning: so\nanswer: 7"
    assert Counter(other.shown().split()) == Counter(replace(error, feedback="").shown().split())
    assert exchanged(other) == replace(error, feedback="")
    assert exchanged(shown("7", None)) is None and exchanged(shown("7", "7")) is None


@given(st.lists(st.integers(0, 4), max_size=5))
def test_every_part_gets_its_turn(parts: list[int]) -> None:
    order = round_robin(parts)
    assert sorted(order) == list(range(sum(parts)))
    turn = [place - start for place in order for start, size in
            zip(itertools.accumulate(parts, initial=0), parts, strict=False) if 0 <= place - start < size]  # fmt: skip
    assert turn == sorted(turn)


# --- the analysis ------------------------------------------------------------------------------------------


def collected(
    effect: Mapping[str, float], seed: int, *, n: int = 12, examples: int = 40, spread: float = 0.15
) -> Collected:
    """Refinements whose quality varies, on examples whose difficulty varies: score 1 with the sum's probability."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 0.15, examples)

    def scores(quality: float) -> tuple[float, ...]:
        return tuple((rng.random(examples) < np.clip(quality + hard, 0, 1)).astype(float).tolist())

    made = [
        Refinement(arm, k, f"{arm} {k}", scores(0.4 + effect.get(arm, 0.0) + rng.normal(0, spread)))
        for k in range(n)
        for arm in ARMS
    ]
    random.Random(seed).shuffle(made)  # in whatever order they come
    errors = tuple(shown(str(k), "no") for k in range(20))
    said: dict[str, list[str | None]] = {
        arm: [f"reason {rng.integers(9)} is {rng.integers(9)}" for _ in range(n)] for arm in (OWN, UNIFORM, PLACEBO)
    }
    return Collected(Observed("self", "Do it.", errors, (), 30), scores(0.4), "errors", said, {}, made)


def mean_of(one: Refinement) -> float:
    return float(np.mean([score for score in one.scores if score is not None]))


def test_figures_are_means_over_refinements() -> None:
    kept = collected({OWN: 0.3}, 1)
    found = analysed(kept, 12)
    means = {arm: sorted(mean_of(one) for one in kept.refinements if one.arm == arm) for arm in ARMS}
    student = estimate95(kept.student)
    assert found.student == student and (found.examples, found.errors) == (30, 20)
    for arm, one in found.arms.items():
        assert one.each == pytest.approx(means[arm]) and one.score.mean == pytest.approx(np.mean(means[arm]))
        assert one.above.mean == pytest.approx(np.mean([m > student.mean + 1e-12 for m in means[arm]]))
        assert one.score.low < one.score.mean < one.score.high
    assert set(found.differences) == {UNIFORM, PLACEBO, REWORDING, SEEN}
    main = found.differences[UNIFORM]
    assert main.value.mean == pytest.approx(np.mean(means[OWN]) - np.mean(means[UNIFORM]))
    assert main.p_value == main.corrected == permuted(means[OWN], means[UNIFORM]) and main.sign == 1
    spread = math.sqrt(sum(float(np.var(means[arm], ddof=1)) / 12 for arm in (OWN, UNIFORM)))  # of refinements alone
    assert main.detectable == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * spread, rel=0.2)
    others = [found.differences[arm] for arm in (PLACEBO, REWORDING, SEEN)]
    assert holm([one.p_value for one in others]) == tuple(one.corrected for one in others)


def test_the_same_reasons_are_compared_in_pairs() -> None:
    rng = np.random.default_rng(0)
    quality = rng.uniform(0.1, 0.8, 12)  # reasons differ much more than what the edit adds
    kept = collected({}, 0)
    made = [
        Refinement(arm, k, "", tuple((np.arange(40) < round(40 * (quality[k] - more))).astype(float).tolist()))
        for arm, more in ((OWN, 0.0), (SEEN, 0.1))
        for k in range(12)
    ]
    found = analysed(replace(kept, refinements=made), 12).differences
    assert set(found) == {SEEN} and found[SEEN].sign == 1 and found[SEEN].p_value == pytest.approx(2 / 2**12)
    by_scipy = stats.permutation_test(
        (list(map(mean_of, made[:12])), list(map(mean_of, made[12:]))),
        lambda a, b: np.mean(np.subtract(a, b)), permutation_type="samples", n_resamples=np.inf).pvalue  # fmt: skip
    assert found[SEEN].p_value == pytest.approx(by_scipy)


@pytest.mark.slow
def test_nothing_is_found_where_there_is_nothing() -> None:
    # What is said is left out, as it takes time and is tested by itself.
    studies = [analysed(replace(collected({}, seed), reasons={}), 12).differences for seed in range(200)]
    false = [bool(one[UNIFORM].sign) for one in studies]
    assert sum(false) <= 14, sum(false)  # 7 % of 200
    assert sum(one[UNIFORM].p_value <= 0.05 for one in studies) <= 18  # the test alone: 5 % with its own chance
    assert sum(any(one[arm].sign for arm in (PLACEBO, REWORDING, SEEN)) for one in studies) <= 14
    covered = [one[UNIFORM].value.low <= 0 <= one[UNIFORM].value.high for one in studies]
    assert sum(covered) >= 180, sum(covered)


@pytest.mark.slow
def test_an_effect_is_found_as_often_as_is_said() -> None:
    planted = {OWN: 0.3, SEEN: 0.3}
    studies = [analysed(replace(collected(planted, seed), reasons={}), 12).differences for seed in range(60)]
    assert sum(one[UNIFORM].sign == 1 for one in studies) >= 57
    assert sum(one[PLACEBO].sign == one[REWORDING].sign == 1 for one in studies) >= 54
    least = float(np.mean([one[UNIFORM].detectable for one in studies]))
    again = [analysed(replace(collected({OWN: least}, seed), reasons={}), 12).differences for seed in range(100, 160)]
    assert 0.15 < least < 0.25 and 42 <= sum(one[UNIFORM].sign == 1 for one in again) <= 57  # 80 % of 60 are 48
    worse = [analysed(collected({OWN: -0.3}, seed), 12) for seed in range(10)]
    assert all(one.differences[UNIFORM].sign == -1 and "worse refinements" in sections(one)[0].summary for one in worse)
    covered = [one[UNIFORM].value.low <= 0.3 <= one[UNIFORM].value.high for one in studies]
    assert sum(covered) >= 54, sum(covered)


def test_missing_scores_are_left_out_and_never_zero() -> None:
    kept = collected({OWN: 0.3}, 2)
    holes = random.Random(0)
    made = [
        replace(one, scores=tuple(None if holes.random() < 0.2 else s for s in one.scores)) for one in kept.refinements
    ]
    made[0] = replace(made[0], scores=(None,) * 40)
    found = analysed(replace(kept, refinements=made, student=(None, *kept.student[1:])), 12)
    assert len(found.arms[made[0].arm].each) == 11 and found.student.n == 39
    for arm in ARMS:
        wanted = [mean_of(one) for one in made[1:] if one.arm == arm]
        assert found.arms[arm].score.mean == pytest.approx(np.mean(wanted))
    assert found.differences[UNIFORM].sign == 1


def test_whatever_a_stop_leaves_is_said_in_words() -> None:
    full = collected({OWN: 0.3}, 3)
    whole = analysed(full, 12)
    readable(sections(whole), whole)
    nothing = analysed(Collected(), 12)
    assert "stopped before" in sections(nothing)[0].summary and not nothing.differences and nothing.feedback is None
    readable(sections(nothing), nothing)
    assert full.observed is not None
    few = analysed(Collected(replace(full.observed, errors=full.observed.errors[:2]), full.student), 12)
    assert "made 2 errors on 30 training examples" in sections(few)[0].summary and len(sections(few)) == 1
    readable(sections(few), few)
    unscored = analysed(replace(full, refinements=[]), 12)
    assert "Nothing can be said" in sections(unscored)[0].summary and not unscored.arms
    readable(sections(unscored), unscored)
    for many in (1, 2, 3, 7, 11):
        left = analysed(replace(full, refinements=full.refinements[:many]), 12)
        readable(sections(left), left)
        for arm, one in left.differences.items():
            assert len(left.arms[arm].each) > 1 and 0 < one.p_value <= 1
    equal = [replace(one, scores=(1.0,) * 40) for one in full.refinements]
    same = analysed(replace(full, refinements=equal), 12)
    assert same.differences[UNIFORM].p_value == 1.0 and same.differences[UNIFORM].sign == 0
    readable(sections(same), same)


# --- the study ---------------------------------------------------------------------------------------------


class Recorder:
    """The simulated optimizer, and what it was asked."""

    free = True

    def __init__(self, prior_bias: float = 0.0) -> None:
        self.engine, self.asked = SimulatedOptimizerEngine(prior_bias=prior_bias), list[Asked]()

    def complete(self, request: Request) -> Response:
        self.asked.append(Asked.parse(str(request.messages[-1].text)))
        return self.engine.complete(request)

    def __deepcopy__(self, memo: object) -> Recorder:
        return self


def small(sizes: Sizes = SMALL) -> Task:
    return generate("objects", sizes=sizes)


def found_by(on: Bench, n: int = 6, sizes: Sizes = SMALL) -> ReflectionResult:
    result = STUDY.conduct(on, [small(sizes)], n).result
    assert isinstance(result, ReflectionResult)
    return result


def test_an_optimizer_that_looks_gains_by_errors_and_one_that_does_not_gains_nothing() -> None:
    on = bench()
    looks, most = found_by(on), STUDY.forecast([small()], 6)
    assert looks.differences[UNIFORM].sign == looks.differences[REWORDING].sign == 1
    assert looks.differences[UNIFORM].value.mean > 0.3 and looks.arms[OWN].above.mean == 1.0
    assert looks.feedback is not None and looks.feedback.likeness.high < 1.0 and looks.feedback.p_value < 0.01
    assert "makes better refinements" in sections(looks)[0].summary
    assert on.spent.by_role["optimizer"].calls <= most.optimizer_calls == 48
    assert on.spent.by_role["target"].calls <= most.program_runs and on.spent.total.calls <= most.calls
    blind = found_by(bench(1.0))
    assert not any(one.sign for one in blind.differences.values())
    assert blind.feedback is not None and blind.feedback.likeness.high > 1.0
    assert "was not found" in sections(blind)[0].summary
    readable(sections(looks), looks)
    readable(sections(blind), blind)


def test_only_the_arm_that_says_so_shows_errors_to_the_edit() -> None:
    recorder = Recorder()
    optimizer = dspy.LM("cuesmith-test/recorder", engine=recorder, cache=False)
    found = STUDY.conduct(Bench(EmbeddedLM(), optimizer), [small()], 5).result
    assert isinstance(found, ReflectionResult) and found.placebo == "errors"
    by_name = {name: [one for one in recorder.asked if one.name == name] for name in
               ("CriticizeInstruction", "EditInstruction", "VaryInstructions")}  # fmt: skip
    assert [len(some) for some in by_name.values()] == [15, 20, 5]
    sizes = Counter(len(one.texts("failures")) for one in by_name["EditInstruction"])
    assert sizes == {0: 15, 5: 5}
    reflected = Counter(len(one.texts("failures")) for one in by_name["CriticizeInstruction"])
    assert reflected == {0: 5, 5: 10}
    with_errors = [one for one in by_name["EditInstruction"] if one.texts("failures")]
    own = [one.texts("failures") for one in by_name["CriticizeInstruction"]]
    reasons = Counter(one.text("reason") for one in by_name["EditInstruction"])
    assert all(one.texts("failures") in own for one in with_errors)  # the batch that its reason is about
    assert all(reasons[one.text("reason")] >= 2 for one in with_errors)  # which is edited without it, too
    golds = {example.question: example.answer for example in small().train}
    wrong = [
        text
        for one in by_name["CriticizeInstruction"]
        for text in one.texts("failures")
        if f"expected answer: {golds[text.splitlines()[0].removeprefix('question: ')]}\n" not in text
    ]
    assert len(wrong) == 25


@pytest.mark.slow
def test_the_same_result_at_any_concurrency_and_no_call_twice(tmp_path: Path) -> None:
    tiny, many = Sizes(train=16, validation=8, test=1), bench(max_in_flight=64, run_dir=tmp_path)
    one = found_by(bench(max_in_flight=1), 4, tiny)
    assert one.differences and one == found_by(many, 4, tiny)
    again = bench(max_in_flight=64, run_dir=tmp_path)
    assert one == found_by(again, 4, tiny) and again.spent.total.calls == many.spent.total.calls > 0


@pytest.mark.parametrize("calls", [10, 40, 70, 110, 300])
def test_a_cap_holds_and_leaves_a_report(calls: int) -> None:
    on = bench(budget=Budget(calls=calls))
    found = found_by(on)
    assert on.spent.total.calls <= calls and on.stopped_by == "calls"
    readable(sections(found), found)
    if calls == 300:
        made = [len(one.each) for one in found.arms.values()]
        assert len(made) == len(ARMS) and max(made) - min(made) <= 2 and sum(made) < 30


def test_tasks_that_do_not_fit_are_refused_before_a_call() -> None:
    tiny = generate("objects", sizes=Sizes(train=2, validation=10, test=10))
    refuses(STUDY, [
        ([], 6, "about one task, got 0"), ([small(), small()], 6, "about one task, got 2"),
        ([small()], 3, "n of at least 4, got 3"), ([tiny], 6, "at least 3 train examples, and objects has 2"),
    ])  # fmt: skip


def test_a_prompt_without_errors_is_told_so() -> None:
    task = replace(small(), metric=lambda example, prediction, trace=None: True)
    findings = STUDY.conduct(bench(), [task], 4)
    assert "made 0 errors on 30 training examples" in findings.sections[0].summary
    assert isinstance(findings.result, ReflectionResult) and not findings.result.arms


def test_the_placebo_is_of_right_answers_where_there_are_enough() -> None:
    recorder = Recorder()
    optimizer = dspy.LM("cuesmith-test/recorder", engine=recorder, cache=False)
    task = generate("trues", sizes=Sizes(train=60, validation=10, test=1))  # the student has half of these right
    found = STUDY.conduct(Bench(EmbeddedLM(), optimizer), [task], 4).result
    assert isinstance(found, ReflectionResult) and found.placebo == "right answers" and found.errors < 50
    golds = {example.question: example.answer for example in task.train}
    wrong = 0
    for one in recorder.asked:
        for text in one.texts("failures") if one.name == "CriticizeInstruction" else ():
            question, expected = (line.partition(": ")[2] for line in text.splitlines()[:2])
            answered = text.rpartition("answer: ")[2].strip()
            assert answered != expected
            wrong += answered == golds[question] != expected
    assert wrong == 20


@pytest.mark.slow
@pytest.mark.parametrize("family", ["objects", "navigate", "max"])
def test_as_it_comes(family: str) -> None:
    task = generate(family, sizes=STUDY.sizes)
    on = bench()
    found = STUDY.conduct(on, [task], STUDY.n).result
    assert isinstance(found, ReflectionResult) and found.differences[UNIFORM].sign == 1
    assert on.spent.total.calls <= STUDY.forecast([task], STUDY.n).calls
