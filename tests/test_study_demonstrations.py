"""The 2 x 2 study of instructions and demonstrations: statistics against enumeration, planted effects, whole runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import dspy
import numpy as np
import pytest
from e2e_support import ToyEngine
from numpy.typing import NDArray
from scipy import stats

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.programs.diagnosis import page
from cuesmith.programs.diagnosis.inference import holm, two_way_interval, two_way_sign_flip
from cuesmith.programs.studies.bench import Bench, Findings
from cuesmith.programs.studies.demonstrations import EFFECTS, STUDY, Demonstrations, Factorial, analyse, sections
from cuesmith.programs.tasks import Sizes, Task, generate
from cuesmith.teleprompters.runtime.ledger import Budget, stopped

Floats = NDArray[np.float64]


# --- statistics ----------------------------------------------------------------------------------------------


def test_sign_flip_as_full_enumeration() -> None:
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.5, 1.0):
        matrix = rng.normal(shift, 1, (7, 6)) + rng.normal(0, 0.3, (7, 1))
        rows, columns = matrix.mean(axis=1), matrix.mean(axis=0)
        sums = [
            np.mean(np.array(s) * rows) + np.mean(np.array(t) * columns)
            for s in itertools.product((-1, 1), repeat=7)
            for t in itertools.product((-1, 1), repeat=6)
        ]
        joint = np.mean(np.abs(sums) >= abs(matrix.mean()) - 1e-9)
        alone = stats.permutation_test((rows,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        assert two_way_sign_flip(matrix) == pytest.approx(max(joint, alone), abs=0.015)


def test_sign_flip_is_never_below_the_exact_test_over_refinements() -> None:
    matrix = np.full((5, 50), 0.4)
    assert two_way_sign_flip(matrix) == pytest.approx(2 / 2**5, abs=0.01) and two_way_sign_flip(matrix) >= 2 / 2**5
    assert two_way_sign_flip(np.zeros((5, 50))) == 1.0


def crossed(rng: np.random.Generator, rows: float, columns: float, rest: float, shift: float = 0.0) -> Floats:
    """Differences of 8 refinements on 40 examples that vary with refinements, with examples and by themselves."""
    return np.asarray(
        shift + rng.normal(0, rows, (8, 1)) + rng.normal(0, columns, (1, 40)) + rng.normal(0, rest, (8, 40))
    )


def binary(rng: np.random.Generator, right: float = 0.5) -> Floats:
    """Scores of 8 refinements less those of one student, all right on a share of equally hard examples."""
    return (rng.random((8, 40)) < right).astype(float) - (rng.random(40) < 0.5)


MAKERS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "refinements vary": lambda rng: crossed(rng, 1.0, 0.0, 0.1),
    "examples vary": lambda rng: crossed(rng, 0.0, 1.0, 0.1),
    "both alike": lambda rng: crossed(rng, 1.0, math.sqrt(5), 0.5),
    "noise": lambda rng: crossed(rng, 0.0, 0.0, 1.0),
    "a student of its own luck": binary,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_false_positives_and_coverage_without_an_effect(name: str) -> None:
    found, missed, runs = 0, 0, 250
    for k in range(runs):
        matrix = MAKERS[name](np.random.default_rng(k))
        found += two_way_sign_flip(matrix, seed=k) < 0.05
        interval = two_way_interval(matrix, seed=k)
        missed += not interval.low <= 0.0 <= interval.high
    assert found <= 0.07 * runs and missed <= 0.08 * runs


def test_a_planted_effect_is_found() -> None:
    found = [
        two_way_sign_flip(crossed(np.random.default_rng(k), 0.1, 0.3, 0.4, 0.25), seed=k) < 0.05 for k in range(100)
    ]
    assert np.mean(found) > 0.8
    assert np.mean([two_way_sign_flip(binary(np.random.default_rng(k), 0.9), seed=k) < 0.05 for k in range(100)]) > 0.8


def test_a_test_over_examples_alone_would_be_too_sure() -> None:
    """Where refinements vary, taking each score for an observation finds effects that are not there."""
    wrong = [
        stats.ttest_1samp(MAKERS["refinements vary"](np.random.default_rng(k)).ravel(), 0).pvalue < 0.05
        for k in range(100)
    ]
    assert np.mean(wrong) > 0.5


def test_interval_at_the_edges() -> None:
    assert two_way_interval(np.ones((4, 20))).low == pytest.approx(
        stats.binomtest(20, 20).proportion_ci(method="wilson").low
    )
    one = two_way_interval(np.array([[0.0, 1.0, 1.0]]))
    assert one.mean == pytest.approx(2 / 3) and math.isnan(one.low)


# --- analysis ------------------------------------------------------------------------------------------------


def planted(
    student: float,
    alone: float,
    shown: float,
    both: float,
    *,
    r: int = 8,
    n: int = 80,
    seed: int = 0,
    follow: tuple[float, float] = (0.5, 1.0),
) -> Factorial:
    """Scores with given chances of being right; harder examples are hard for all."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n)

    def cell(chance: float) -> Floats:
        return ((0.7 * hard + 0.3 * rng.random((r, n))) < chance).astype(float)

    share = [(rng.random((r, n)) < chance).astype(float) for chance in follow]
    return Factorial(cell(student)[0], cell(alone), cell(shown), cell(both), *share)


def shown_by(result: Demonstrations) -> dict[str, int]:
    return {effect.name: effect.sign for effect in result.effects}


def test_cells_and_effects_by_hand() -> None:
    data = planted(0.3, 0.4, 0.5, 0.9)
    result = analyse(data)
    assert (result.refinements, result.examples) == (8, 80) and result.least == pytest.approx(6 / 256)
    means = [data.student.mean(), data.demonstrations.mean(), data.instruction.mean(), data.both.mean()]
    assert [cell.score.mean for cell in result.cells] == pytest.approx(means)
    assert result.cells[3].each == pytest.approx(data.both.mean(axis=1))
    s, d, i, b = means
    assert {e.name: e.value.mean for e in result.effects} == pytest.approx(
        dict(zip(EFFECTS, (i - s, b - i, d - s, b - s, b - i - d + s), strict=True))
    )
    assert [e.adjusted for e in result.effects] == pytest.approx(
        [*holm([e.p_value for e in result.effects[:2]]), *holm([e.p_value for e in result.effects[2:]])]
    )
    assert result.following is not None
    full, right = data.share_both >= 1, data.both
    assert result.following.shown.mean == pytest.approx(data.share_both.mean())
    assert math.isnan(result.following.worth_shown.mean) == bool(full.all())
    full, right = data.share_alone >= 1, data.instruction
    assert result.following.worth_without.mean == pytest.approx(right[full].mean() - right[~full].mean())
    assert result.following.change.sign == 1


def test_findings_in_words() -> None:
    nothing = analyse(planted(0.5, 0.5, 0.5, 0.5, seed=4))
    assert set(shown_by(nothing).values()) == {0} and sections(nothing)[0].summary.startswith("Nothing was shown")
    needed = analyse(planted(0.4, 0.4, 0.4, 0.8))
    assert shown_by(needed)["demonstrations added to the instruction"] == 1 and shown_by(needed)["interaction"] == 1
    assert sections(needed)[0].summary.startswith("Yes")
    partly = analyse(planted(0.3, 0.55, 0.3, 0.8))
    assert sections(partly)[0].summary.startswith("Partly")
    enough = analyse(planted(0.3, 0.8, 0.8, 0.8))
    said = sections(enough)[0].summary
    assert said.startswith("No:") and "student's own instruction" in said and shown_by(enough)["interaction"] == -1
    reversed_ = analyse(planted(0.5, 0.7, 0.5, 0.3))
    assert sections(reversed_)[0].summary.startswith("Reversed")
    few = analyse(planted(0.3, 0.8, 0.8, 0.8, r=3))
    assert set(shown_by(few).values()) == {0} and "7 are needed" in sections(few)[0].summary
    for result in (nothing, needed, enough, few):
        for figure in (f for section in sections(result) for f in section.figures):
            assert figure.meaning.endswith(".") and figure.advice.endswith(".")


def test_no_effect_is_seldom_shown() -> None:
    """Chance of any false finding in the family that answers the question."""
    found = 0
    for k in range(200):
        data = planted(0.5, 0.5, 0.5, 0.5, n=40, seed=k)
        contrasts = (data.instruction - data.student, data.both - data.instruction)
        found += min(holm([two_way_sign_flip(one, seed=k) for one in contrasts])) < 0.05
    assert found <= 0.07 * 200


def test_examples_without_all_scores_are_left_out() -> None:
    data = planted(0.3, 0.4, 0.5, 0.9)
    data.both[2, 7] = data.student[9] = math.nan
    data.share_alone[1, 3] = math.nan
    result = analyse(data)
    assert result.examples == 78 and result.following is not None and result.following.without.n == 77
    empty = np.zeros((0, 0))
    none = analyse(Factorial(np.zeros(0), empty, empty, empty, empty, empty))
    assert none.cells == () and "no steps" in sections(none)[0].summary
    lost = np.full((2, 15), math.nan)
    assert "Too few examples" in sections(analyse(Factorial(lost[0], lost, lost, lost, lost, lost)))[0].summary


# --- whole runs ----------------------------------------------------------------------------------------------

SMALL = Sizes(train=12, validation=6, test=24)


SOME = replace(STUDY, fewest=2)
"""The study for fewer refinements than its tests make sense with."""


def task() -> Task:
    return generate("first", sizes=SMALL, seed=0)


def conducted(n: int = 3, budget: Budget | None = None, *, flight: int = 32) -> tuple[Findings, Bench]:
    bench = Bench(EmbeddedLM(), SimulatedOptimizer(seed=0), budget=budget, max_in_flight=flight)
    return SOME.conduct(bench, [task()], n), bench


@pytest.fixture(scope="module")
def whole() -> tuple[Findings, Bench]:
    return conducted()


def test_a_whole_study(whole: tuple[Findings, Bench]) -> None:
    findings, bench = whole
    result = findings.result
    assert isinstance(result, Demonstrations)
    assert result.refinements == 3 and result.examples == 24 and len(set(result.instructions)) == 3
    assert bench.stopped_by is None and len(findings.sections) == 2
    bound, roles = SOME.forecast([task()], 3), bench.spent.by_role
    assert roles["optimizer"].calls <= bound.optimizer_calls and roles["target"].calls <= bound.program_runs
    assert bound.calls == bound.optimizer_calls + bound.program_runs
    page.as_json({}, findings.sections, {"demonstrations": result})
    assert all(limit.endswith(".") for limit in findings.limits)


@pytest.mark.slow
def test_the_order_of_answers_does_not_matter(whole: tuple[Findings, Bench]) -> None:
    assert [repr(conducted(flight=k)[0].result) for k in (1, 64)] == [repr(whole[0].result)] * 2


@pytest.mark.parametrize("calls", [3, 30, 110])
def test_a_budget_leaves_words_or_a_part(calls: int) -> None:
    findings, bench = conducted(budget=Budget(calls=calls))
    result = findings.result
    assert isinstance(result, Demonstrations) and bench.spent.total.calls <= calls and findings.sections
    if not result.cells:
        assert "nothing" in findings.sections[0].summary
        assert any(stopped(str(bench.stopped_by)) in limit for limit in findings.limits)


def test_half_of_the_budget_still_gives_fresh_scores() -> None:
    result = conducted(budget=Budget(calls=SOME.forecast([task()], 3).calls // 2))[0].result
    assert isinstance(result, Demonstrations) and result.examples >= 10 and result.refinements >= 1 and result.cells


def test_an_optimizer_without_steps() -> None:
    engine = ToyEngine(reply=lambda system, user, drawn: "no such thing")
    bench = Bench(EmbeddedLM(), dspy.LM("toy/optimizer", engine=engine, cache=False))
    findings = SOME.conduct(bench, [task()], 2)
    assert "no steps" in findings.sections[0].summary and bench.stopped_by is None


def test_what_does_not_fit_is_refused_before_any_call() -> None:
    bench = Bench(EmbeddedLM(), SimulatedOptimizer())
    with pytest.raises(ValueError, match="one task"):
        SOME.conduct(bench, [task(), task()], 3)
    with pytest.raises(ValueError, match="20 test examples"):
        SOME.conduct(bench, [generate("first", sizes=Sizes(12, 6, 10))], 3)
    assert bench.spent.total.calls == 0
