"""Bandits: published shares by hand, budgets kept to the pull, and better selections than an equal share gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import dspy
import numpy as np
import pytest
from e2e_support import ToyEngine, ToySearch, exact, toy_lm, words
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.outcomes import Scores, rank
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.statistics import paired_gain
from cuesmith.teleprompters.search.selection import METHODS, Bandit, Method, select

Asked = list[dict[int, tuple[int, ...]]]


def play(bandit: Bandit, table: Sequence[Sequence[float | None]]) -> Asked:
    """Play to the end and return all that was asked for."""
    asked = []
    while pulls := bandit.next():
        asked.append(pulls)
        bandit.tell({arm: [table[arm][example] for example in examples] for arm, examples in pulls.items()})
    return asked


def ladder(arms: int, examples: int) -> list[list[float | None]]:
    """Return scores without noise: each arm is worse than the one before it."""
    return [[1.0 - arm / arms] * examples for arm in range(arms)]


@pytest.mark.parametrize(
    ("width", "pulls"),
    [
        # 95 / (1.78333 (6 - k)) = 10.7, 13.3, 17.8, 26.6, with logbar(5) = 1/2 + 1/2 + 1/3 + 1/4 + 1/5 = 1.78333
        (1, (27, 27, 18, 14, 11)),
        # 95 / (1.45 (6 - k)) = 13.1, 16.4, 21.8, with 2/3 + 1/3 + 1/4 + 1/5 = 1.45
        (2, (22, 22, 22, 17, 14)),
        # one phase: 95 / (1 * 5) = 19, with 4/5 + 1/5 = 1
        (4, (19, 19, 19, 19, 19)),
    ],
)
def test_successive_rejects_has_the_published_phases(width: int, pulls: tuple[int, ...]) -> None:
    bandit = Bandit("sr", 5, width, range(99), 100)
    asked = play(bandit, ladder(5, 99))
    assert bandit.pulls == pulls and bandit.best() == list(range(width))
    assert [sorted(phase) for phase in asked] == [list(range(5 - k)) for k in range(5 - width)]


@pytest.mark.parametrize(
    ("arms", "width", "budget", "pulls"),
    [
        (8, 1, 96, (28, 28, 12, 12, 4, 4, 4, 4)),  # 96 / 3 rounds = 32: 8 arms 4 times, 4 arms 8, 2 arms 16
        (8, 2, 96, (18, 18, 18, 18, 6, 6, 6, 6)),  # 2 rounds of 48: 8 arms 6 times, 4 arms 12
        (7, 1, 90, (26, 26, 11, 11, 4, 4, 4)),  # 3 rounds of 30: 7 arms 4 times, 4 arms 7, 2 arms 15
        (5, 4, 52, (10, 10, 10, 10, 10)),
    ],
)  # the beam's boundary: one round, and no more than one arm is dropped
def test_halving_has_the_published_rounds(arms: int, width: int, budget: int, pulls: tuple[int, ...]) -> None:
    bandit = Bandit("sh", arms, width, range(99), budget)
    play(bandit, ladder(arms, 99))
    assert bandit.pulls == pulls and bandit.best() == list(range(width))


@pytest.mark.parametrize(("method", "spread"), [("ucb", math.log), ("ucb-e", lambda t: 1)])
def test_a_round_pulls_the_arms_of_highest_index(method: Method, spread: Callable[[int], float]) -> None:
    arms, samples = 20, 6
    table = (np.random.default_rng(1).random((arms, 200)) < 0.5).astype(float).tolist()
    bandit = Bandit(method, arms, 3, range(200), 64 * samples)
    n, total = [0] * arms, [0.0] * arms
    for t in range(8):
        index = [total[a] / max(1, n[a]) + math.sqrt(spread(t or 1) / (n[a] + 0.001)) for a in range(arms)]
        pulls = bandit.next()
        assert list(pulls) == sorted(range(arms), key=lambda a: (-index[a], a))[:8], f"round {t}"
        for arm, examples in pulls.items():
            assert examples == tuple(range(n[arm], n[arm] + samples))
            n[arm] += samples
            total[arm] += sum(table[arm][e] for e in examples)
        bandit.tell({arm: [table[arm][e] for e in examples] for arm, examples in pulls.items()})
    assert bandit.next() == {} and sum(bandit.pulls) == bandit.budget
    assert bandit.best() == sorted(range(arms), key=lambda a: (-total[a] / n[a], a))[:3]


def test_ucb_comes_back_to_an_arm_that_a_greedy_choice_leaves() -> None:
    unlucky = [0.0] * 6 + [1.0] * 994
    table = [[0.5] * 1000, *([[0.3] * 1000] * 8), unlucky]
    bandit = Bandit("ucb", 10, 1, range(1000), 384)
    play(bandit, table)
    assert bandit.pulls[9] > 6 and bandit.best() == [9]


TABLES = st.tuples(st.integers(1, 12), st.integers(1, 20), st.integers(0, 9)).flatmap(
    lambda shape: st.lists(
        st.lists(st.sampled_from([0.0, 1.0, 0.5] + [None] * (shape[2] == 0)), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@given(TABLES, st.sampled_from(METHODS), st.integers(1, 14), st.integers(0, 300))
@settings(max_examples=300, deadline=None)
def test_what_holds_for_every_selection(
    table: list[list[float | None]], method: Method, width: int, spare: int
) -> None:
    arms, n = len(table), len(table[0])
    order = np.random.default_rng(spare).permutation(n).tolist()
    bandit, again = (Bandit(method, arms, width, order, arms + spare) for _ in range(2))
    asked = play(bandit, table)
    assert asked == play(again, table) and bandit.best() == again.best(), "determinism"
    seen: dict[int, list[int]] = {arm: [] for arm in range(arms)}
    for pulls in asked:
        for arm, examples in pulls.items():
            seen[arm] += examples
    assert all(examples == order[: len(examples)] for examples in seen.values()), "one order, each example once"
    known = [[table[arm][e] for e in examples] for arm, examples in seen.items()]
    assert bandit.pulls == tuple(sum(v is not None for v in row) for row in known)
    assert sum(bandit.pulls) <= bandit.budget
    best = bandit.best()
    assert len(set(best)) == len(best) == min(width, arms)
    if width >= arms:
        assert asked == [] and best == list(range(arms))
    elif None not in [v for row in table for v in row]:
        assert min(bandit.pulls) >= 1, "every arm had its chance"
        if method in ("ucb", "ucb-e") and bandit.budget < 64:
            assert sum(bandit.pulls) == min(bandit.budget, arms * n), "the whole budget"


def test_a_missing_score_is_no_pull() -> None:
    table = ladder(5, 99)
    table[4] = [None, *[0.9] * 98]  # the last arm is nearly the best, after an outage
    bandit = Bandit("sr", 5, 1, range(99), 100)
    asked = play(bandit, table)
    assert next(p for p in asked if len(p) == 1) == {4: (11,)}, "the next example takes the missing one's place"
    assert bandit.pulls == (27, 18, 14, 11, 27)


def test_nothing_but_missing_scores_ends_and_keeps_the_given_order() -> None:
    for method in METHODS:
        bandit = Bandit(method, 5, 2, range(20), 50)
        play(bandit, [[None] * 20] * 5)
        assert bandit.pulls == (0,) * 5 and bandit.best() == [0, 1]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"method": "full"}, ValueError, "'full'"),
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"arms": 0}, ValueError, "arms"),
        ({"budget": 0}, ValueError, "budget"),
        ({"budget": 1.5}, TypeError, "1.5"),
        ({"budget": 4}, ValueError, "4 pulls is not enough to pull each of 5 arms once"),
    ],
)
def test_bad_numbers_are_refused(change: dict[str, object], error: type[Exception], says: str) -> None:
    given: dict[str, object] = {"method": "ucb", "arms": 5, "width": 2, "order": range(9), "budget": 20}
    with pytest.raises(error, match=says):
        Bandit(**{**given, **change})  # type: ignore[arg-type]


def test_the_dialogue_must_be_kept() -> None:
    bandit = Bandit("sh", 3, 1, range(9), 20)
    pulls = bandit.next()
    with pytest.raises(RuntimeError):
        bandit.next()
    with pytest.raises(ValueError):
        bandit.tell({arm: [1.0] * (len(e) + 1) for arm, e in pulls.items()})
    with pytest.raises(ValueError):
        bandit.tell({0: [1.0] * len(pulls[0])})
    bandit.tell({arm: [1.0] * len(e) for arm, e in pulls.items()})
    assert bandit.next()


def hits(
    method: Method | None, tables: Sequence[tuple[int, NDArray[np.bool_]]], width: int, budget: int
) -> list[float]:
    """Return for each table whether its best arm is kept; None gives all arms an equal share."""
    found = []
    for best, table in tables:
        if method is None:
            means = table[:, : budget // len(table)].mean(1)
            kept = sorted(range(len(table)), key=lambda arm: (-means[arm], arm))[:width]
        else:
            bandit = Bandit(method, len(table), width, range(table.shape[1]), budget)
            play(bandit, table.astype(float).tolist())
            kept = bandit.best()
        found.append(float(best in kept))
    return found


def bernoulli(means: Iterator[NDArray[np.float64]], pulls: int) -> list[tuple[int, NDArray[np.bool_]]]:
    rng = np.random.default_rng(0)
    return [(int(row.argmax()), rng.random((len(row), pulls)) < row[:, None]) for row in means]


def test_the_best_of_32_prompts_is_kept_more_often_than_by_an_equal_share() -> None:
    rng = np.random.default_rng(2305)
    tables = bernoulli((rng.normal(0.6, 0.05, 32).clip(0.01, 0.99) for _ in range(400)), 400)
    equal = hits(None, tables, 4, 2048)
    assert np.mean(equal) == pytest.approx(0.60, abs=0.06)  # research/algorithms.md 2.2: 0.60, ucb 0.68
    for method in METHODS:
        kept = hits(method, tables, 4, 2048)
        gain = paired_gain(equal, kept)
        assert gain.difference > 0.05 and gain.low > 0, (method, gain)
        assert np.mean(kept) == pytest.approx(0.68, abs=0.06), method


def test_the_best_of_20_arms_is_found_more_often_than_by_an_equal_share() -> None:
    """The first experiment of Audibert, Bubeck and Munos: one arm of 0.5, nineteen of 0.4, a budget of H1 = 2,000."""
    rng = np.random.default_rng(2010)
    tables = bernoulli((rng.permutation([0.5] + [0.4] * 19) for _ in range(150)), 2000)
    equal = hits(None, tables, 1, 2000)
    rates = {method: hits(method, tables, 1, 2000) for method in METHODS}
    for method, kept in rates.items():
        assert paired_gain(equal, kept).low > 0, (method, np.mean(equal), np.mean(kept))


class Bandits(ToySearch):
    """Selects among prompts of different skill by a bandit, then by full scoring."""

    def __init__(self, engine: ToyEngine, method: Method, width: int, pulls: int, max_in_flight: int = 16) -> None:
        super().__init__(exact, max_in_flight=max_in_flight)
        self.engine, self.method, self.beam, self.pulls = engine, method, width, pulls
        self.calls: list[int] = []
        self.kept: list[Scores] = []
        self.full: list[Scores] = []

    async def search(self, run: Run) -> Candidate:
        name = run.baseline.names[0]
        pool = [
            run.baseline.replace(name, instructions=f"skill={skill} v{v}", origin=Origin("given"))
            for v in range(2)
            for skill in (1, 2, 3, 4, 8, 9)
        ]
        self.calls = [self.engine.calls]
        self.kept = await select(run, [*pool, pool[0]], self.beam, method=self.method, budget=self.pulls, key=1)
        self.calls.append(self.engine.calls)
        again = await select(run, [*pool, pool[0]], self.beam, method=self.method, budget=self.pulls, key=1)
        assert again == self.kept and self.engine.calls == self.calls[-1], "what was asked before is free"
        self.full = rank(await run.score(pool, run.select))
        await run.record(0, self.kept)
        return self.kept[0].candidate


@pytest.mark.parametrize("method", METHODS)
def test_a_run_selects_within_the_budget_and_scores_the_winners_fully(method: Method) -> None:
    kept = []
    for in_flight in (1, 16):
        engine = ToyEngine()
        compiler = Bandits(engine, method, 3, 100, max_in_flight=in_flight)
        with dspy.context(lm=toy_lm(engine)):
            compiler.compile(dspy.Predict("question -> answer"), trainset=words(8, "t"), valset=words(40, "v"))
        n = len(compiler.full[0].examples)
        assert compiler.calls[1] - compiler.calls[0] <= 100 + 3 * n < 12 * n
        assert [s.n for s in compiler.kept] == [n] * 3 and compiler.kept == rank(compiler.kept)
        assert {s.candidate.id for s in compiler.kept} <= {s.candidate.id for s in compiler.full[:4]}
        kept.append([s.candidate.id for s in compiler.kept])
    assert kept[0] == kept[1]


def test_a_pool_no_wider_than_the_beam_is_only_scored() -> None:
    engine = ToyEngine()
    compiler = Bandits(engine, "sr", 12, 20)
    with dspy.context(lm=toy_lm(engine)):
        compiler.compile(dspy.Predict("question -> answer"), trainset=words(8, "t"), valset=words(20, "v"))
    assert compiler.kept == compiler.full
