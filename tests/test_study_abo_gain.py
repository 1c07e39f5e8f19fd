"""The study of ABO's gain: what it measures, what tells it beforehand, and how seldom it errs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from e2e_support import Answer, Provider, ToyEngine, error_body, number, toy_lm
from scipy import stats
from study_support import refuses, whole

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.programs.diagnosis import page
from cuesmith.programs.diagnosis.inference import detectable_rho
from cuesmith.programs.studies.abo_gain import (
    FEWEST_TASKS,
    PREDICTORS,
    STUDY,
    AboGain,
    Before,
    ObservedTask,
    analyse,
    sections,
)
from cuesmith.programs.studies.bench import Bench
from cuesmith.programs.tasks import Row, Sizes, Task, build, generate
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.statistics import Gain

SMALL = Sizes(12, 20, 10)


def words(name: str = "words", answer: str = "{}") -> Task:
    rows = [Row({"question": f"say {name}{i}"}, (answer.format(f"{name}{i}"),)) for i in range(60)]
    return build(name, "", rows, sizes=Sizes(16, 24, 12))


def toy(skilled: float, *, steps: float | None = None, **options: object) -> tuple[Bench, ToyEngine]:
    """A target that is right on a share `skilled` of the questions, and on `steps` where its prompt has steps.

    It follows the first two steps only.
    """

    def reply(system: str, user: str, drawn: int | None) -> str:
        found = re.search(r"\[\[ ## question ## \]\]\s*say (\S+)", user)
        word, told = found[1] if found else "", "Step 1:" in system
        share = skilled if steps is None or not told else steps
        answer = word if number("right", word) % 100 < 100 * share else "no"
        work = "Step 1: a\nStep 2: b" if told else "hm"
        return f"[[ ## reasoning ## ]]\n{work}\n\n[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]"

    engine = ToyEngine(reply=reply)
    return Bench(toy_lm(engine), SimulatedOptimizer(seed=0), **options), engine  # type: ignore[arg-type]


def result(bench: Bench, tasks: Sequence[Task], n: int = 10) -> AboGain:
    findings = STUDY.conduct(bench, tasks, n)
    whole(findings.sections, findings.limits)
    assert isinstance(findings.result, AboGain)
    return findings.result


# --- the experiment ------------------------------------------------------------------------------------------


def test_steps_that_help_are_found_to_help() -> None:
    on, _ = toy(0.2, steps=1.0)
    found = result(on, [words("a"), words("b")])
    for one in found.tasks:
        seen = one.observed
        assert seen.gain is not None and seen.gain.n == 10 and one.realised == pytest.approx(1.0)
        assert seen.base == pytest.approx(1 - seen.gain.difference) and seen.stopped_by is None
        before = seen.before
        assert before.student is not None and before.steps_gain == pytest.approx(1 - before.student)
        assert before.steps is not None and before.followed == pytest.approx(2 / before.steps)
        assert (before.words, before.unusable) == (2.0, 0.0)
        assert before.entropy == pytest.approx(math.log2(26))  # 16 + 10 different answers
    assert found.better == 2 and found.worse == 0 and found.sign_p == 0.5 and found.significant == 2
    assert found.predictors == () and "Too few tasks" in sections(found)[1].summary
    assert "is not shown" in sections(found)[0].summary  # two tasks show nothing of others


def test_a_student_that_nothing_beats_stays_and_gains_nothing() -> None:
    found = result(toy(1.0)[0], [words()])
    one = found.tasks[0]
    assert one.observed.gain is not None and (one.observed.gain.difference, one.observed.gain.n) == (0.0, 0)
    assert one.observed.base == 1.0 and one.realised is None and one.holm == 1.0
    assert found.mean.mean == 0.0 and math.isnan(found.mean.low) and math.isnan(found.realised.mean)
    assert any("Nothing that ABO wrote beat the student" in f.meaning for f in sections(found)[0].figures)
    found = result(toy(0.5)[0], [words()])
    assert found.tasks[0].realised == 0.0 and found.sign_p == 1.0  # there was something to gain


def test_what_is_measured_before_is_measured_on_examples_of_its_own() -> None:
    """The score and the steps are tried on test examples only, which ABO never sees."""
    asked: list[str] = []
    on, engine = toy(0.2, steps=1.0)
    inner = engine.says

    def reply(system: str, user: str, drawn: int | None) -> str:
        asked.append(user)
        return inner(system, user, drawn)

    engine.says = reply
    task = words()
    result(on, [task])
    mine = [f"say {e.answer}\n" for e in task.test[:10]]
    runs = [sum(text in one for one in asked) for text in mine]
    assert runs == [2] * 10


@pytest.mark.parametrize("calls", [1, 8, 25, 60, 200, 500])
def test_a_budget_leaves_what_was_found(calls: int) -> None:
    tasks = [words("a"), words("b")]
    on, engine = toy(0.2, steps=1.0, budget=Budget(calls=calls))
    found = result(on, tasks)
    assert engine.calls <= calls and len(found.tasks) == 2
    for one in found.tasks:
        if one.observed.gain is None:
            assert one.holm is None and one.realised is None
        else:
            assert one.observed.gain.n > 0 and one.observed.gain.difference > 0
    if calls == 1:
        assert on.stopped_by == "calls" and "ended before" in sections(found)[0].summary
    if calls == 500:
        assert all(one.observed.before.student is not None for one in found.tasks)  # every task has its part


def test_a_search_that_a_cap_ended_says_nothing_of_abo() -> None:
    """A student that stays because the budget ended is not a gain of 0."""
    found = result(toy(0.2, steps=1.0, budget=Budget(calls=30))[0], [words()])
    assert found.tasks[0].observed.gain is None and found.tasks[0].observed.stopped_by == "calls"


def refused(after: int) -> Callable[[int, Mapping[str, object]], Answer | None]:
    return lambda nth, body: (401, {}, error_body("Incorrect API key", "invalid_api_key")) if nth > after else None


@pytest.mark.slow
def test_a_provider_that_is_gone_leaves_what_was_found() -> None:
    """A model through LiteLLM; its key is refused from some call on."""
    tasks, most = [words("a"), words("b")], 0
    for after in (300, 100_000):
        with Provider(refused(after)) as provider:
            on = Bench(provider.lm(), SimulatedOptimizer(seed=0))
            found = result(on, tasks)
            assert on.stopped_by == ("auth" if after == 300 else None)
        assert "a" in {one.observed.task for one in found.tasks if one.observed.before.student is not None}
        assert found.mean.n >= most
        most = found.mean.n
    assert most == 2


def test_what_does_not_fit_is_refused_before_a_call() -> None:
    short, few = replace(words(), validation=words().validation[:3]), STUDY.fewest - 1
    cases = [([], 10, "one task or more, got 0"), ([words()], few, "at least"), ([words("a"), short], 10, "at least")]
    refuses(STUDY, cases, forecast=True)


@pytest.mark.slow
def test_the_embedded_model_gains_the_same_at_any_concurrency_and_within_the_forecast() -> None:
    tasks = [generate(name, sizes=SMALL, seed=0) for name in ("sum", "bool")]
    found = []
    for in_flight in (1, 64):
        on = Bench(EmbeddedLM(), SimulatedOptimizer(seed=0), max_in_flight=in_flight)
        found.append(result(on, tasks))
        most = STUDY.forecast(tasks, 10)
        assert on.spent.total.calls <= most.calls
        assert on.spent.by_role["target"].calls <= 2 * most.program_runs
        assert on.spent.by_role["optimizer"].calls <= 2 * most.optimizer_calls
    assert page.plain(found[0]) == page.plain(found[1])
    gains = {one.observed.task: one.observed.gain for one in found[0].tasks}
    assert gains["sum"] is not None and gains["sum"].difference > 0.5


@pytest.mark.slow
def test_all_families() -> None:
    tasks = [generate(name, sizes=STUDY.sizes, seed=0) for name in STUDY.families]
    on = Bench(EmbeddedLM(), SimulatedOptimizer(seed=0))
    found = result(on, tasks, STUDY.n)
    assert len(found.tasks) == 15 and found.mean.low > 0.4 and found.sign_p < 0.01
    student = next(one for one in found.predictors if one.name == "student")
    assert student.gain.rho < -0.7 and student.gain_holm < 0.05
    assert on.spent.total.calls <= STUDY.forecast(tasks, STUDY.n).calls


# --- the statistics ------------------------------------------------------------------------------------------


def gain(value: float, p_value: float = 0.5, n: int = 50) -> Gain:
    return Gain(value, value - 0.1, value + 0.1, p_value, n)


def observed(k: int, value: float, base: float = 0.5, p_value: float = 0.5, **before: float) -> ObservedTask:
    return ObservedTask(f"task {k}", Before(**before), gain(value, p_value), base)


def test_the_mean_over_tasks_as_scipy_has_it() -> None:
    gains = [0.4, 0.1, -0.05, 0.3, 0.0, 0.2, 0.25]
    found = analyse([observed(k, value, base=0.2 + 0.1 * k) for k, value in enumerate(gains)])
    ci = stats.ttest_1samp(gains, 0).confidence_interval()
    assert (found.mean.mean, found.mean.low, found.mean.high) == pytest.approx((np.mean(gains), ci.low, ci.high))
    assert (found.better, found.worse) == (5, 1)
    assert found.sign_p == pytest.approx(stats.binomtest(5, 6).pvalue)
    shares = [value / (0.8 - 0.1 * k) for k, value in enumerate(gains)]
    assert found.realised.mean == pytest.approx(np.mean(shares))
    assert [one.observed.task for one in found.tasks][:2] == ["task 0", "task 3"]


def test_gains_of_0_and_1_are_no_shares() -> None:
    found = analyse([observed(k, float(k < 2), base=0.0) for k in range(5)])
    ci = stats.ttest_1samp([1, 1, 0, 0, 0], 0).confidence_interval()
    assert found.mean.low == pytest.approx(ci.low) and ci.high > 1 == found.mean.high
    assert math.isnan(analyse([observed(k, 0.0) for k in range(5)]).mean.low)


@pytest.mark.parametrize("better", range(0, 13))
def test_the_sign_test_as_scipy_has_it(better: int) -> None:
    found = analyse([observed(k, 0.1 if k < better else -0.1) for k in range(12)])
    assert found.sign_p == pytest.approx(stats.binomtest(better, 12).pvalue)


def test_single_tasks_are_corrected_for_their_number() -> None:
    p_values = [0.001, 0.02, 0.04, 0.3]
    found = analyse([observed(k, 0.3, p_value=p) for k, p in enumerate(p_values)])
    by_name = {one.observed.task: one.holm for one in found.tasks}
    assert [by_name[f"task {k}"] for k in range(4)] == pytest.approx([0.004, 0.06, 0.08, 0.3])
    assert found.significant == 1 and found.harmed == 0
    assert analyse([observed(0, -0.3, p_value=0.001)]).harmed == 1


def test_gain_is_bounded_by_what_there_is_to_gain() -> None:
    """All of the possible gain is realised everywhere: the score tells the gain by arithmetic, and nothing else."""
    bases = [0.05 * k for k in range(12)]
    found = analyse([observed(k, 1 - base, base=base, student=base) for k, base in enumerate(bases)])
    student = next(one for one in found.predictors if one.name == "student")
    assert student.gain.rho == pytest.approx(-1.0) and student.gain_holm < 0.05
    assert math.isnan(student.realised.rho) and student.realised_holm == 1.0
    assert found.realised.mean == pytest.approx(1.0) and found.tests == 1
    section = sections(found)[1]
    assert any("Expected by arithmetic" in figure.advice for figure in section.figures)
    assert "goes with a lower score of the student before" in section.summary
    whole(sections(found))
    assert {curve.name for curve in section.curves} == {"tasks", "most there is to gain"}


def test_missing_measures_leave_their_task_out_of_their_correlation() -> None:
    seen = [observed(k, 0.1 * k, words=float(k), **({} if k == 3 else {"student": 0.1 * k})) for k in range(7)]
    seen.append(ObservedTask("gone", Before(words=3.0, student=0.4), None, None, "calls"))
    found = analyse(seen)
    sizes = {one.name: one.gain.n for one in found.predictors}
    assert sizes["words"] == 7 and sizes["student"] == 6 and sizes["entropy"] == 0
    assert found.mean.n == 7 and found.tasks[-1].observed.task == "gone"
    whole(sections(found))
    assert analyse(seen[: FEWEST_TASKS - 1]).predictors == () != analyse(seen[:FEWEST_TASKS]).predictors
    assert [one.name for one in found.predictors] == list(PREDICTORS)


def study_of(rng: np.random.Generator, n: int, link: float) -> AboGain:
    """Tasks with random measures; the gain follows the share followed as far as `link` says."""
    seen = []
    for k in range(n):
        before = {name: float(rng.uniform()) for name in PREDICTORS}
        value = link * before["followed"] + (1 - link) * float(rng.uniform())
        seen.append(observed(k, value - 0.5, base=float(rng.uniform(0, 0.4)), **before))
    return analyse(seen)


@pytest.mark.slow
def test_what_tells_the_gain_is_rarely_found_where_nothing_does_and_mostly_where_something_does() -> None:
    rng = np.random.default_rng(0)
    found = [study_of(rng, 7, 0.0) for _ in range(200)]
    assert all(one.tests == 14 for one in found)
    any_found = [min(min(p.gain_holm, p.realised_holm) for p in one.predictors) <= 0.05 for one in found]
    assert np.mean(any_found) <= 0.07
    planted = [next(p for p in study_of(rng, 8, 0.9).predictors if p.name == "followed") for _ in range(30)]
    assert np.mean([p.gain_holm <= 0.05 for p in planted]) > 0.8


def test_that_it_helps_is_rarely_claimed_where_it_does_not() -> None:
    rng = np.random.default_rng(1)
    claimed = [
        (one.sign_p < 0.05 and not one.mean.low <= 0 <= one.mean.high)
        for one in (
            analyse(
                [observed(k, float(value)) for k, value in enumerate(rng.normal(0, 0.1, size=5))]
                + [observed(9, float(rng.normal(0, 0.1)))]
            )
            for _ in range(300)
        )
    ]
    assert np.mean(claimed) <= 0.06
    helped = analyse([observed(k, float(value)) for k, value in enumerate(rng.normal(0.15, 0.1, size=15))])
    assert "is shown" in sections(helped)[0].summary and helped.sign_p < 0.05


@pytest.mark.parametrize("n", [10, 15, 30])
def test_the_smallest_correlation_that_is_found(n: int) -> None:
    rho = detectable_rho(n)
    pearson = 2 * math.sin(math.pi * rho / 6)  # of a normal pair with that rank correlation
    rng = np.random.default_rng(n)
    pairs = rng.multivariate_normal([0, 0], [[1, pearson], [pearson, 1]], size=(1500, n))
    found = [stats.spearmanr(pair[:, 0], pair[:, 1]).pvalue <= 0.05 for pair in pairs]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)
    assert rho < detectable_rho(n, tests=14) < 1 and math.isnan(detectable_rho(9))
