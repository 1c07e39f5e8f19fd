"""Reflection validity: each statistic against scipy or enumeration, the whole against an optimizer of known truth."""

from __future__ import annotations

import importlib.util
import itertools
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import dspy
import numpy as np
import pytest
from diagnose_support import said_by
from e2e_support import ToyEngine as Toy
from e2e_support import ToySearch, exact, toy_lm, words
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cuesmith.modules.simulated_optimizer import SimulatedOptimizer, SimulatedOptimizerEngine
from cuesmith.programs.diagnosis.asking import Error, Evidence, Inquiry, asked, reasons
from cuesmith.programs.diagnosis.embedders import TfIdf
from cuesmith.programs.diagnosis.inference import binomial_tail, permutation_test
from cuesmith.programs.diagnosis.planted import (
    abstains,
    another_task,
    controlled,
    drawn,
    form_fault,
    names_any,
    shuffled,
)
from cuesmith.programs.diagnosis.validity import (
    Feedback,
    Judging,
    ShownConditions,
    detectable,
    measured_power,
    power,
    section_of,
    validity_of,
)
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.run import Run

Floats = NDArray[np.float64]
CAUSES = {"only A": "count every quantity", "only B": "name the final entry", "mixed": "reverse whole list"}
FRAMES = ["you should {} here", "it fails to {}", "nothing says {}", "please {} instead", "always {} first"]


def load_benchmark() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "diagnostics.py"
    spec = importlib.util.spec_from_file_location("benchmark_diagnostics", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["benchmark_diagnostics"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = load_benchmark()


def symmetric(n: int, seed: int) -> Floats:
    upper = np.triu(np.random.default_rng(seed).random((n, n)), 1)
    return upper + upper.T + np.eye(n)


def eta(matrix: Floats, labels: Sequence[int]) -> float:
    pairs = list(itertools.combinations(range(len(labels)), 2))
    within = [matrix[i, j] for i, j in pairs if labels[i] == labels[j]]
    between = [matrix[i, j] for i, j in pairs if labels[i] != labels[j]]
    return float(np.mean(within) - np.mean(between))


def feedback(driven: float, seed: int, n: int = 20, **rest: Sequence[str]) -> Feedback:
    rng = random.Random(seed)

    def one(cause: str) -> str:
        told = cause if rng.random() < driven else rng.choice(list(CAUSES.values()))
        return rng.choice(FRAMES).format(told)

    return Feedback({name: [one(cause) for _ in range(n)] for name, cause in CAUSES.items()}, **rest)  # type: ignore[arg-type]


def errors(n: int, golds: str = "AB") -> list[Error]:
    return [Error({"q": f"question {k}"}, f"I say no to {k}", {"answer": golds[k % len(golds)]}) for k in range(n)]


# --- the statistics ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3), min_size=2, max_size=3).filter(lambda s: 3 <= sum(s) <= 6), st.integers(0, 9999))
@settings(max_examples=30, deadline=None)
def test_the_exact_permutation_test_enumerates(sizes: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    if max(sizes) < 2:
        return
    matrix = symmetric(len(labels), seed)
    every = [eta(matrix, order) for order in itertools.permutations(labels.tolist())]
    wanted = np.mean([value >= eta(matrix, labels.tolist()) - 1e-12 for value in every])
    p_value, is_exact = permutation_test(matrix, labels, np.random.default_rng(0))
    assert is_exact and p_value == pytest.approx(float(wanted))


def test_the_random_permutation_test_is_near_scipy_and_never_zero() -> None:
    labels = np.repeat([0, 1, 2], 10)

    def by_scipy(matrix: Floats, seed: int) -> float:
        found = stats.permutation_test(
            (labels,), lambda order: eta(matrix, order.tolist()), permutation_type="pairings", n_resamples=1999,
            alternative="greater", rng=np.random.default_rng(seed), vectorized=False,
        )  # fmt: skip
        return float(found.pvalue)

    for seed in range(4):
        matrix = symmetric(30, seed)
        matrix[:10, :10] += 0.03 * seed
        p_value, is_exact = permutation_test(matrix, labels, np.random.default_rng(seed))
        assert not is_exact and p_value == pytest.approx(by_scipy(matrix, seed + 50), abs=0.04)
    certain: Floats = np.kron(np.eye(3), np.ones((10, 10))).astype(np.float64)
    p_value, is_exact = permutation_test(certain, labels, np.random.default_rng(0))
    assert p_value == pytest.approx(1 / 2000) and not is_exact
    assert permutation_test(np.ones((30, 30)), labels, np.random.default_rng(0))[0] == 1.0


@given(st.integers(1, 300), st.floats(0.05, 0.95), st.data())
@settings(max_examples=100, deadline=None)
def test_the_binomial_against_scipy(n: int, chance: float, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    wanted = stats.binomtest(hits, n, chance, alternative="greater").pvalue
    assert binomial_tail(hits, n, chance) == pytest.approx(wanted, rel=1e-8, abs=1e-200)  # beyond, scipy is wrong


def test_the_binomial_against_exact_fractions() -> None:
    for hits, n in ((266, 300), (273, 299), (3, 20), (0, 7)):
        wanted = sum(Fraction(math.comb(n, k) * 15 ** (n - k), 16**n) for k in range(hits, n + 1))
        assert binomial_tail(hits, n, 0.0625) == pytest.approx(float(wanted), rel=1e-9, abs=0.0)


def test_power_is_that_of_the_research_note() -> None:
    """algorithms.md 4.2: 0.31, 0.59, 0.95 and 0.79, 0.99, 1.0 at 5, 10, 20 a condition; no more than 0.04 at none."""
    assert [power(n, 4, share=0.3) for n in (5, 20)] == pytest.approx([0.31, 0.95], abs=0.06)
    assert 0.54 <= power(10, 4, share=0.3) <= 0.74
    assert [power(n, 4, share=0.5) for n in (5, 10, 20)] == pytest.approx([0.79, 0.99, 1.0], abs=0.06)
    assert all(power(n, 4, share=0.0) <= 0.08 for n in (5, 10, 20))
    for arguments in ((1, 4, 0.3), (20, 1, 0.3), (20, 4, 1.5)):
        with pytest.raises(ValueError, match="no power"):
            power(arguments[0], arguments[1], share=arguments[2])


def test_measured_power_is_less_and_grows_with_share_and_n() -> None:
    shares = [measured_power(20, 4, TfIdf(), share=share) for share in (0.0, 0.3, 0.6, 1.0)]
    assert shares[0] <= 0.12 and shares[1] < power(20, 4) and shares == sorted(shares) and shares[-1] >= 0.95
    assert math.isnan(detectable(5, 4, TfIdf())) and detectable(40, 4, TfIdf()) < detectable(20, 4, TfIdf()) <= 0.9
    with pytest.raises(ValueError, match="at most"):
        measured_power(2, 40, TfIdf())


def test_sensitivity_is_within_minus_between() -> None:
    given_texts = feedback(0.5, 1, 6)
    found = validity_of(given_texts)
    matrix = TfIdf().matrix([text for texts in given_texts.conditions.values() for text in texts])
    assert found.sensitivity.eta.mean == pytest.approx(eta(matrix, np.repeat([0, 1, 2], 6).tolist()))
    assert found.sensitivity.within - found.sensitivity.between == pytest.approx(found.sensitivity.eta.mean)
    assert found.sensitivity.eta.low <= found.sensitivity.eta.mean <= found.sensitivity.eta.high


def test_what_follows_the_errors_is_found_and_what_does_not_is_not() -> None:
    follows, ignores = validity_of(feedback(1.0, 1)), validity_of(feedback(0.0, 2))
    assert follows.sensitivity.p_value < 0.001 and follows.identified.p_value < 0.01
    assert follows.sensitivity.eta.low > 0 and follows.identified.accuracy.mean > 0.9
    assert ignores.sensitivity.p_value > 0.05 and ignores.identified.p_value > 0.05
    assert ignores.identified.chance == pytest.approx(1 / 3) and follows.enough
    assert "follows the errors" in section_of(follows).summary


@pytest.mark.slow
def test_false_findings_of_both_tests_and_the_interval_of_eta() -> None:
    """160 studies of feedback that ignores its errors: 5 % false findings, give or take what so few studies allow."""
    ignoring = [validity_of(feedback(0.0, 100 + seed, 8), seed=seed) for seed in range(160)]
    assert sum(found.sensitivity.p_value <= 0.05 for found in ignoring) <= 15
    assert sum(found.identified.p_value <= 0.05 for found in ignoring) <= 15
    assert np.mean([found.identified.accuracy.mean for found in ignoring]) == pytest.approx(1 / 3, abs=0.025)
    assert 0.88 <= np.mean([found.sensitivity.eta.low <= 0 <= found.sensitivity.eta.high for found in ignoring]) <= 0.99
    half = [validity_of(feedback(0.5, 900 + seed, 8), seed=seed).sensitivity.eta for seed in range(160)]
    truth = np.mean([found.mean for found in half])
    assert truth > 0.02 and 0.86 <= np.mean([found.low <= truth <= found.high for found in half]) <= 0.99


def test_a_judge_is_asked_with_the_descriptions() -> None:
    told: list[Mapping[str, str]] = []

    def judge(text: str, descriptions: Mapping[str, str]) -> str:
        told.append(descriptions)
        return next(name for name, cause in CAUSES.items() if cause in text)

    rules = Judging(condition=judge, descriptions={"only A": "all answers are A"})
    found = validity_of(feedback(1.0, 3, 5), judging=rules).identified
    assert told[0] == {"only A": "all answers are A", "only B": "only B", "mixed": "mixed"} and len(told) == 15
    assert found.accuracy.mean == 1.0 and found.p_value == found.binomial_p == pytest.approx(3.0**-15)


def test_prior_bias_runs_from_another_task_to_no_difference() -> None:
    rng = random.Random(5)
    without = [rng.choice(FRAMES).format("consider general edge cases") for _ in range(20)]
    others = [rng.choice(FRAMES).format("walk north until stopping") for _ in range(20)]
    driven = validity_of(feedback(1.0, 1, without=without, others=others)).prior_bias
    same = {name: [rng.choice(FRAMES).format("consider general edge cases") for _ in range(20)] for name in CAUSES}
    prior = validity_of(Feedback(same, without=without, others=others)).prior_bias
    assert driven is not None and prior is not None
    assert driven.p_value < 0.01 and abs(driven.calibrated.mean) < 0.3
    assert prior.p_value > 0.05 and prior.likeness.mean == pytest.approx(1.0, abs=0.1)
    assert prior.calibrated.mean == pytest.approx(1.0, abs=0.2) and prior.floor.mean < 0.6
    unanchored = validity_of(feedback(1.0, 1, without=without)).prior_bias
    assert unanchored is not None and math.isnan(unanchored.calibrated.mean)
    assert unanchored.likeness.mean < 0.6 and math.isnan(unanchored.floor.mean)
    generic = validity_of(Feedback(same, without=without, others=without[::-1])).prior_bias
    assert generic is not None and math.isnan(generic.calibrated.mean)


def test_few_feedbacks_are_flagged_with_their_power_and_too_few_refused() -> None:
    few = validity_of(feedback(0.0, 1, 5))
    assert not few.enough and few.sensitivity.power == power(5, 3)
    summary = section_of(few).summary
    assert "Fewer than 20" in summary and "cannot be said" in summary
    for conditions in ({"A": ["a", "b"]}, {"A": ["a", "b"], "B": ["a"]}):
        with pytest.raises(ValueError, match="two conditions or more"):
            validity_of(Feedback(conditions))


def test_shares_and_the_section() -> None:
    texts = feedback(1.0, 1, without=["be careful", "be specific"] * 10, planted=["the form is open"] * 3 + ["hm"],
                     shuffled=["Nothing is wrong with it."] + ["It is vague."] * 4)  # fmt: skip
    found = validity_of(texts, judging=Judging(names_cause=names_any("form")))
    assert found.cause_hits is not None and found.cause_hits.mean == 0.75 and found.cause_hits.n == 4
    assert found.placebo is not None and found.placebo.mean == 0.8
    section = section_of(found)
    assert len(section.figures) == 5
    assert all(f.meaning.endswith(".") and f.advice.endswith(".") for f in section.figures)
    assert validity_of(texts).cause_hits is None


# --- what is shown -----------------------------------------------------------------------------------------


def test_conditions_show_what_they_say() -> None:
    pool = errors(30)
    shown = controlled("Answer.", pool, n=7, size=4)
    assert list(shown)[:3] == ["only answer: A", "only answer: B", "mixed"] and all(len(b) == 7 for b in shown.values())
    for name, batches in shown.items():
        golds = {error.gold["answer"] for batch in batches for error in batch.errors}
        assert golds == ({name[-1]} if name.startswith("only") else {"A", "B"}) or name == "one cluster"
        sizes = {len({error.shown() for error in batch.errors}) for batch in batches}
        assert sizes == {4} or (name == "one cluster" and len(sizes) == 1 and sizes <= {3, 4})
    assert shown == controlled("Answer.", pool, n=7, size=4)
    assert shown != controlled("Answer.", pool, n=7, size=4, seed=1)


def test_open_answers_are_controlled_by_cluster() -> None:
    texts = ["the cat sat on the warm mat", "seventeen plus four makes twenty one"]
    pool = [Error({"q": texts[k % 2]}, f"guess {k}", {"answer": f"{k}"}) for k in range(12)]
    names = list(controlled("Answer.", pool))
    assert names[:3] == ["only cluster 1", "only cluster 2", "mixed"]
    for batch in controlled("Answer.", pool)[names[0]]:
        assert len({error.inputs["q"] for error in batch.errors}) == 1
    with pytest.raises(ValueError, match="2 errors"):
        controlled("Answer.", errors(2))


def test_the_placebo_expects_what_is_not_right() -> None:
    rights = [replace(error, response=f"answer: {error.gold['answer']}") for error in errors(12, "ABC")]
    for batch in shuffled("Answer.", rights, n=5):
        assert all(str(e.gold["answer"]) != e.response[-1] and len(batch.errors) == 5 for e in batch.errors)
    with pytest.raises(ValueError, match="do not differ"):
        shuffled("Answer.", errors(5, "A"))
    study = ShownConditions.of("Answer.", errors(12), rights=errors(5, "A"), n=2)
    assert not study.shuffled and study.requests == 2 * (len(study.conditions) + 1)


def test_another_task_shows_errors_of_its_own() -> None:
    batches = another_task("navigate", n=6)
    assert len(batches) == 6 and batches == another_task("navigate", n=6)
    for batch in batches:
        assert len({error.shown() for error in batch.errors}) == 5
        assert all(error.response != error.gold["answer"] for error in batch.errors)


def test_drawn_batches_hold_no_error_twice() -> None:
    pool = errors(6)
    for batch in drawn("Answer.", pool, n=9, size=5):
        assert batch.instructions == "Answer." and len({error.shown() for error in batch.errors}) == 5
    assert all(len(batch.errors) == 6 for batch in drawn("Answer.", pool, n=2, size=9))


def test_a_planted_form_fault_shows_right_answers_in_sentences() -> None:
    fault = form_fault("Count.", errors(3))
    assert all(str(e.gold["answer"]) in e.response and e.response != e.gold["answer"] for e in fault.errors)
    assert fault.names("It does not rule out other words around it.")
    assert not fault.names("It never says what to count.") and not fault.names("It says nothing of a uniform.")


@pytest.mark.parametrize(
    ("text", "finds_nothing"),
    [("There is nothing wrong with the instruction.", True), ("No fault can be found.", True),
     ("The labels seem to be wrong.", True), ("All responses are right.", True),
     ("The expected outputs are inconsistent.", True), ("It never reminds the model to avoid common mistakes.", False),
     ("The model is left without a hint to double-check the answer.", False), ("It is too vague.", False),
     ("There is no request to reason step by step.", False), ("I see no reason for these failures.", True)],
)  # fmt: skip
def test_abstaining_is_recognised(text: str, finds_nothing: bool) -> None:
    assert abstains(text) is finds_nothing


# --- askers ------------------------------------------------------------------------------------------------


def evidence(seed: int = 0) -> Evidence:
    return Evidence(bench.VAGUE, bench.errors_of("objects", seed)[:5])


@pytest.mark.parametrize("bias", [0.0, 0.5, 1.0])
def test_the_benchmark_asks_for_the_same_texts_as_dspy_does(bias: float) -> None:
    shown = [evidence(), evidence(1), Evidence(bench.VAGUE), *bench.study_of(4).shuffled[:2]] * 3
    direct = bench.said(SimulatedOptimizerEngine(prior_bias=bias, seed=3), shown)
    assert said_by(SimulatedOptimizer(prior_bias=bias, seed=3), shown) == direct


def test_replies_that_cannot_be_used_are_missing() -> None:
    silent = Toy(reply=lambda system, user, drawn: "no idea")
    blank = Toy(reply=lambda s, u, d: '[[ ## reasons ## ]]\n["  "]\n\n[[ ## completed ## ]]')
    for engine in (silent, blank):
        assert asked(Inquiry(toy_lm(engine)), [[evidence()] * 2]) == [None, None]


def test_a_run_asks_the_same_as_its_journal_remembers() -> None:
    said: list[list[str | None]] = []
    study = ShownConditions(bench.study_of(1).conditions)

    class Asking(ToySearch):
        async def search(self, run: Run) -> Candidate:
            beam = await run.score([run.baseline], run.select)
            await run.record(0, beam)
            for draws in (3, 2):
                said.append([None] * draws)
                await reasons(run, [evidence()] * draws, said[-1], order=range(draws))
            shown = study.shown()
            feedback: list[str | None] = [None] * len(shown)
            await reasons(run, shown, feedback, order=range(len(shown)))
            found = validity_of(study.answered(feedback))
            assert found.sensitivity.p_value < 0.05 and found.missing == 0
            return run.baseline

    optimizer = SimulatedOptimizer()
    compiler = Asking(exact, optimizer_lm=optimizer)
    student = dspy.Predict("question -> answer")
    with dspy.context(lm=toy_lm(Toy())):
        compiler.compile(student, trainset=words(8), valset=words(12, "v"))
    texts = [text for part in said for text in part]
    assert len(texts) == 5 and texts[:2] == texts[3:] and len(set(texts)) == 3 and None not in texts


def test_a_study_is_as_large_as_it_says() -> None:
    study = ShownConditions.of("Answer.", errors(12), rights=errors(12), n=3, others=[Evidence("Other.")] * 2)
    shown = study.shown()
    found = validity_of(study.answered([f"reason {len(one.errors)} {k}" for k, one in enumerate(shown)]))
    assert len(shown) == study.requests == 3 * (len(study.conditions) + 2) + 2 and found.missing == 0
    assert set(found.counts.values()) == {3} and not found.enough


# --- known truth -------------------------------------------------------------------------------------------


def check(studies: int, knobs: Sequence[tuple[float, float]]) -> None:
    columns = zip(*(bench.run_seed(seed, knobs) for seed in range(studies)), strict=True)
    rows = {setting: bench.row_of(setting, ones) for setting, ones in zip(knobs, columns, strict=True)}
    ignoring, following = rows[1.0, 0.0], rows[0.0, 0.0]
    allowed = 0.05 if studies >= 200 else stats.binom.ppf(0.99, studies, 0.05) / studies
    assert ignoring.sensitive <= allowed and ignoring.identified <= allowed
    assert following.sensitive >= 0.95 and following.identified >= 0.95
    for row in rows.values():
        chance = 3 * math.sqrt(row.knob * (1 - row.knob) / (20 * studies))
        assert row.hits == pytest.approx(row.engine, abs=0.03) and row.worst <= 0.1
        assert row.hits == pytest.approx(row.knob, abs=0.03 if studies >= 200 else 0.03 + chance)


@pytest.mark.slow
def test_small_the_instruments_find_what_is_known_to_be_there() -> None:
    check(20, [(1.0, 0.0), (0.5, 0.3), (0.0, 0.0)])


@pytest.mark.slow
def test_the_instruments_find_what_is_known_to_be_there() -> None:
    check(200, bench.SETTINGS)
