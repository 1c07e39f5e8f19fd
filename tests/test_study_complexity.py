"""The study of complexity: targets that leave out known steps are found to, and its statistics hold what they say."""

from __future__ import annotations

import functools
import itertools
import math
import random
import re
from collections.abc import Callable, Sequence

import dspy
import numpy as np
import pytest
import study_support
from e2e_support import ToyEngine, number, toy_lm
from scipy import stats

from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.programs.diagnosis import page
from cuesmith.programs.diagnosis.inference import trend_of
from cuesmith.programs.studies.bench import Bench, labels_of
from cuesmith.programs.studies.complexity import (
    FORMS,
    LEVELS,
    STUDY,
    Complexity,
    Formed,
    StepsAsked,
    analyse,
    limit_of,
    sections,
    versions,
)
from cuesmith.programs.tasks import Row, Sizes, Task, build
from cuesmith.signatures import parse_steps, render_steps
from cuesmith.signatures.probes import HARMLESS_STEPS
from cuesmith.teleprompters.runtime.ledger import Budget

whole = functools.partial(study_support.whole, tests=("test", "permutation"))
STEPS = ("Write the sentence.", "Number its words.", "Name the last word.", "Give it.")
Target = Callable[[str, int, str], str]
"""(system message, steps asked for, word) -> the reply."""


def words(name: str = "words", n: int = 90) -> Task:
    return build(
        name, "", [Row({"question": f"say {name}{i}"}, (f"{name}{i}",)) for i in range(n)], sizes=Sizes(20, 48, 20)
    )


def fields(work: str, answer: str) -> str:
    return f"[[ ## reasoning ## ]]\n{work}\n\n[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]"


def leaving_out(left: Callable[[int, int], bool]) -> Target:
    """A target that is right and leaves out step k of n where `left(k, n)`."""

    def target(system: str, n: int, word: str) -> str:
        kept = [f"Step {k}: work of {k}" for k in range(1, n + 1) if not left(k, n)]
        return fields("\n".join(kept) or "hm", word)

    return target


def bench(target: Target, **options: object) -> tuple[Bench, ToyEngine]:
    def reply(system: str, user: str, drawn: int | None) -> str:
        found = re.search(r"\[\[ ## question ## \]\]\s*say (\S+)", user)
        asked = re.findall(r"^\s*Step (\d+): ", system, re.MULTILINE)
        return target(system, len(asked), found[1] if found else "")

    engine = ToyEngine(reply=reply)
    return Bench(toy_lm(engine), SimulatedOptimizer(seed=1), **options), engine  # type: ignore[arg-type]


def studied(target: Target, n: int = 3, tasks: Sequence[Task] = (), **options: object) -> Complexity:
    found = STUDY.conduct(bench(target, **options)[0], tasks or [words()], n).result
    assert isinstance(found, Complexity)
    return found


# --- the instrument ------------------------------------------------------------------------------------------


def test_a_target_that_skips_step_3_is_found_to_skip_step_3() -> None:
    found = studied(leaving_out(lambda k, n: k == 3))
    assert [share.mean for share in found.positions] == [1.0, 1.0, 0.0] + [1.0] * 9
    for level in found.levels:
        assert level.compliance.mean == pytest.approx(1.0 if level.steps < 3 else (level.steps - 1) / level.steps)
        assert level.accuracy.mean == 1.0 and level.compliance.n == 3
    assert found.limit.steps.mean == 2.0 and not found.limit.end
    assert [one.steps for one in found.levels] == list(LEVELS) and found.procedures == 3 and found.prompts == 27
    said = sections(found)
    whole(said)
    assert "Up to 2 steps" in said[0].summary
    assert "at most 2 steps" in said[0].figures[0].advice


def test_a_target_that_follows_everything_has_no_limit() -> None:
    found = studied(leaving_out(lambda k, n: False))
    assert found.limit.end and found.limit.steps.mean == LEVELS[-1]
    assert math.isnan(found.compliance.rho.mean) and found.compliance.p_value == found.compliance.holm == 1.0
    said = sections(found)
    whole(said)
    assert "no limit was found" in said[0].summary and "more was not tried" in said[0].figures[0].advice
    assert found.tasks == {"words": 1.0}


@pytest.mark.parametrize("most", [0, 1, 4, 8])
def test_the_number_of_steps_that_is_followed_is_found(most: int) -> None:
    found = studied(leaving_out(lambda k, n: k > most))
    last = max((k for k in (0, *LEVELS) if k == 0 or min(k, most) / k >= 0.9), default=0)
    assert found.limit.steps.mean == last
    assert [share.mean for share in found.positions] == [float(k <= most) for k in range(1, 13)]
    if most:
        assert found.compliance.rho.mean < -0.7 and found.compliance.shown and found.compliance.holm < 0.01
    whole(sections(found))


def test_a_target_that_breaks_down_follows_nothing() -> None:
    """A reply that cannot be used and has no labels counts as none followed, not as the last step failed."""
    steady = leaving_out(lambda k, n: False)
    found = studied(lambda system, n, word: "??" if n > 5 else steady(system, n, word))
    assert [level.compliance.mean for level in found.levels] == [1.0] * 5 + [0.0] * 4
    assert [level.accuracy.mean for level in found.levels] == [1.0] * 5 + [0.0] * 4
    assert found.limit.steps.mean == 5 and found.accuracy.shown
    assert "Right answers fall" in sections(found)[1].summary


def test_demands_on_the_form() -> None:
    def target(system: str, n: int, word: str) -> str:
        told = system.split("objective is:")[1]
        if "square brackets" in told:
            return fields("hm", f"[{word}]")
        if "capital letters" in told and number(word) % 2:
            return fields("hm", word.upper())
        if "Begin the answer" in told:
            return "answer"  # cannot be used
        return fields("hm", "??" if "full stop" in told else word)

    task = build("words", "", [Row({"question": f"say w{i}"}, (f"w{i}",)) for i in range(90)], sizes=Sizes(20, 84, 9))
    found = studied(target, n=7, tasks=[task])
    forms = {one.kind: one for one in found.forms}
    assert list(forms) == list(FORMS)
    assert forms["brackets"].asked.mean == 1.0 and forms["brackets"].without.mean == 0.0
    assert forms["brackets"].gain.p_value == pytest.approx(2 / 2**7) and forms["brackets"].holm < 0.1
    assert 0.2 < forms["capitals"].asked.mean < 0.8 and forms["capitals"].without.mean == 0.0
    assert forms["one word"].asked.mean == forms["one word"].without.mean == 1.0 and forms["one word"].holm == 1.0
    assert forms["opening"].asked.mean == forms["full stop"].asked.mean == 0.0
    assert found.plain.mean == 1.0
    said = sections(found)[-1]
    whole([said])
    assert said.summary.startswith("brackets, one word are met")


@pytest.mark.parametrize(
    ("kind", "text", "met"),
    [("capitals", "CAT", True), ("capitals", "Cat", False), ("capitals", "12", None), ("brackets", "[a b]", True),
     ("brackets", "a]", False), ("one word", "a b", False), ("one word", "12", True), ("opening", "Answer: a", True),
     ("opening", "the answer", False), ("full stop", "a.", True), ("full stop", "a", False)],
)  # fmt: skip
def test_rules_of_the_form(kind: str, text: str, met: bool | None) -> None:
    assert FORMS[kind][1](text) is met


def test_a_program_without_reasoning_shows_its_work_in_the_answer() -> None:
    found = studied(
        lambda system, n, word: (
            "[[ ## answer ## ]]\n"
            + " ".join(f"Step {k}: x" for k in range(1, n + 1))
            + (word if not n else "")
            + "\n\n[[ ## completed ## ]]"
        ),
        program=lambda task: dspy.Predict(task.signature),
    )
    assert found.limit.end and found.plain.mean == 1.0


# --- the experiment ------------------------------------------------------------------------------------------


def test_versions_keep_the_procedure() -> None:
    for seed in range(30):
        made = versions(STEPS, LEVELS, random.Random(seed))
        assert list(made) == list(LEVELS)
        for level, texts in made.items():
            assert len(texts) == level == len(set(texts))
            assert parse_steps(render_steps("Repeat.", texts)) == ("Repeat.", texts)
            assert texts[-1].casefold().endswith("give it.")
            rest = " ".join(text for text in texts if text not in HARMLESS_STEPS).casefold()
            places = [rest.index(step.rstrip(".").casefold()) for step in STEPS]
            assert places == sorted(places)
        assert made[4] == STEPS and set(made[12]) - set(STEPS) <= set(HARMLESS_STEPS)
    assert versions(STEPS, LEVELS, random.Random(1)) == versions(STEPS, LEVELS, random.Random(1))
    assert len({versions(STEPS, (6,), random.Random(seed))[6] for seed in range(9)}) > 5
    assert versions(["Name X.", "DNA first."], [1], random.Random(0)) == {1: ("Name X, and then DNA first.",)}


@pytest.mark.slow
def test_the_same_result_at_any_concurrency() -> None:
    target = leaving_out(lambda k, n: k * n % 5 == 4)
    tasks = [words("a"), words("b")]
    one, many = (page.plain(studied(target, tasks=tasks, max_in_flight=k)) for k in (1, 64))  # nan is not nan
    assert one == many


@pytest.mark.slow
def test_what_is_spent_is_within_the_forecast() -> None:
    tasks = [words("a"), words("b")]
    most = STUDY.forecast(tasks, 3)
    for target in (leaving_out(lambda k, n: False), lambda system, n, word: "??"):
        on, engine = bench(target)
        found = STUDY.conduct(on, tasks, 3)
        whole(found.sections, found.limits)
        assert on.spent.total.calls <= most.calls and on.spent.by_role["optimizer"].calls <= 2 * most.optimizer_calls
        assert engine.calls <= 2 * most.program_runs
    assert engine.calls > 0.9 * 2 * most.program_runs  # every reply was asked for twice


@pytest.mark.parametrize("calls", [1, 20, 40, 60, 150, 400])
def test_a_budget_leaves_what_was_seen(calls: int) -> None:
    on, engine = bench(leaving_out(lambda k, n: k == 3), budget=Budget(calls=calls))
    found = STUDY.conduct(on, [words("a"), words("b")], 3)
    assert engine.calls <= calls and on.stopped_by == "calls"
    whole(found.sections, found.limits)
    result = found.result
    assert isinstance(result, Complexity)
    assert all(share.mean in (0.0, 1.0) for share in result.positions)
    if calls == 400:
        assert set(result.tasks) == {"a", "b"}
    if calls == 1:
        assert result.prompts == 0 and "ended" in found.sections[0].summary


def test_what_does_not_fit_is_refused_before_a_call() -> None:
    cases = [([], 3, "one task or more, got 0"), ([words()], STUDY.fewest - 1, "at least")]
    study_support.refuses(STUDY, cases, forecast=True)


def test_tasks_of_one_name_are_told_apart() -> None:
    assert labels_of([words("a"), words("b"), words("a")]) == ["a-1", "b", "a-3"]


# --- the statistics ------------------------------------------------------------------------------------------


def test_the_trend_is_pages_test_where_that_applies() -> None:
    rng = np.random.default_rng(3)
    for blocks, slope in ((4, 0.0), (4, 0.8), (6, -0.6)):
        data = rng.normal(size=(blocks, 5)) + slope * np.arange(5)
        rho, p_value = trend_of([list(zip(map(float, range(5)), row.tolist(), strict=True)) for row in data])
        page_l = stats.page_trend_test(data if slope >= 0 else data[:, ::-1], method="exact")
        flipped = stats.page_trend_test(data[:, ::-1] if slope >= 0 else data, method="exact")
        expected = min(1.0, 2 * min(page_l.pvalue, flipped.pvalue))
        assert p_value == pytest.approx(expected, abs=4 * math.sqrt(expected / 5000) + 4e-4)
        rhos = [stats.spearmanr(range(5), row).statistic for row in data]
        assert rho.mean == pytest.approx(np.mean(rhos))
        ci = stats.ttest_1samp(rhos, 0).confidence_interval()
        assert rho.low == pytest.approx(max(-1, ci.low)) and rho.high == pytest.approx(min(1, ci.high))


def test_the_trend_by_exact_enumeration_with_ties() -> None:
    block = [(1.0, 0.5), (2.0, 0.5), (3.0, 0.25), (4.0, 0.0)]
    x = np.arange(4) - 1.5
    ranks = np.array([3.5, 3.5, 2.0, 1.0]) - 2.5
    values = [abs(np.array(order) @ x) for order in itertools.permutations(ranks)]
    exact = np.mean([value >= abs(ranks @ x) - 1e-9 for value in values])
    rho, p_value = trend_of([block])
    assert p_value == pytest.approx(exact, abs=0.02)
    assert rho.mean == pytest.approx(stats.spearmanr(*zip(*block, strict=True)).statistic)
    assert math.isnan(rho.low)  # one block says nothing of others
    assert trend_of([[(1.0, 1.0)], []])[1] == 1.0


def prompts(rng: np.random.Generator, slope: float, blocks: int = 8) -> list[list[tuple[float, float]]]:
    """Blocks that differ in how well they are followed; `slope` a step, with binomial noise, as real shares have."""
    made = []
    for level in rng.uniform(0.3, 0.9, size=blocks):
        shares = np.clip(level + slope * np.arange(9), 0.02, 0.98)
        made.append([(float(k), float(rng.binomial(24, share)) / 24) for k, share in zip(LEVELS, shares, strict=True)])
    return made


@pytest.mark.slow
def test_the_trend_is_rarely_found_where_there_is_none_and_mostly_where_there_is() -> None:
    rng = np.random.default_rng(0)
    null = [trend_of(prompts(rng, 0.0), seed=i) for i in range(300)]
    assert 0.01 < np.mean([p <= 0.05 for _, p in null]) <= 0.07
    assert np.mean([rho.low <= 0 <= rho.high for rho, _ in null]) >= 0.92
    planted = [trend_of(prompts(rng, -0.02), seed=i)[1] for i in range(60)]
    assert np.mean([p <= 0.05 for p in planted]) > 0.9


def test_the_limit_by_brute_force() -> None:
    rng = np.random.default_rng(1)
    wholes = rng.integers(0, 20, size=(200, len(LEVELS))).astype(float)
    parts = np.floor(wholes * rng.choice([0.8, 0.9, 0.95, 1.0], size=wholes.shape, p=[0.1, 0.2, 0.3, 0.4]))

    def slow(part: np.ndarray, all_: np.ndarray) -> int:
        last = 0
        for level, p, w in zip(LEVELS, part, all_, strict=True):
            if w and p / w < 0.9 - 1e-12:
                return last
            last = level
        return last

    assert limit_of(LEVELS, parts, wholes).tolist() == [slow(*row) for row in zip(parts, wholes, strict=True)]


def asked(task: str, base: int, steps: int, follow: float, right: float = 0.5, n: int = 10) -> StepsAsked:
    checks = tuple(tuple(i * steps + k < follow * n * steps for k in range(steps)) for i in range(n))
    return StepsAsked(task, base, steps, checks, tuple(i < right * n for i in range(n)))


def test_the_analysis_does_not_depend_on_the_order() -> None:
    seen = [asked(t, b, k, 1.0 if k < 4 else 0.5, 0.1 * b) for t in "ab" for b in range(4) for k in (0, 1, 4, 8)]
    formed = [Formed("a", b, "one word", (True, b > 1), (False, b > 1)) for b in range(4)]
    found = analyse(seen, formed)
    assert page.plain(found) == page.plain(analyse(seen[::-1], formed[::-1]))
    assert [level.compliance.mean for level in found.levels] == [1.0, 0.5, 0.5]
    assert found.limit.steps.mean == 1 and found.plain.n == 8 and found.prompts == 24 and found.procedures == 8
    assert found.forms[0].gain.difference == pytest.approx(0.5)
    assert found.tasks == {"a": pytest.approx(7 / 13), "b": pytest.approx(7 / 13)}
    whole(sections(found))


def test_nothing_seen_says_so() -> None:
    found = analyse([], [])
    assert found.prompts == 0 and math.isnan(found.limit.steps.mean)
    whole(sections(found))
    assert all("ended" in section.summary for section in sections(found))
