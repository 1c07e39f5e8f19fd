"""Racing: the same scores as by full scoring, for fewer runs: by hand, by property and in simulated searches."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dspy
import numpy as np
import pytest
from e2e_support import ToyEngine, ToySearch, exact, toy_lm, words
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cuesmith.teleprompters.runtime.candidate import Candidate, Origin, Prompt
from cuesmith.teleprompters.runtime.outcomes import Outcome, ProviderFailure, Scored, Scores
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.selection import keep_best, race

Row = Sequence[float | None]
BINARY: dict[float | None, Outcome] = {0.0: Scored(0.0), 1.0: Scored(1.0), None: ProviderFailure("down")}


def outcome(score: float | None) -> Outcome:
    return BINARY.get(score) or Scored(score or 0.0)


class Table:
    """The part of a run that a race looks at, over tables of scores, so that thousands of races take seconds.

    Attributes:
        runs: Program runs so far, each (candidate, example) once.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        self.select = tuple(dspy.Example(q=i).with_inputs("q") for i in range(n))
        self.runs = 0
        self._rows: dict[str, Row] = {}
        self._done: dict[str, set[int]] = {}
        self._seed = seed

    def rng(self, *key: object) -> random.Random:
        return random.Random(repr((self._seed, key)))

    def add(self, row: Row, known: bool = False) -> Candidate:
        """Return a new candidate with these scores."""
        candidate = Candidate({"p": Prompt(f"{len(self._rows):06d}")})
        self._rows[candidate.id] = row
        self._done[candidate.id] = set(range(len(row)) if known else ())
        return candidate

    def known(self, candidate: Candidate, examples: Sequence[dspy.Example]) -> tuple[float | None, ...]:
        row, done = self._rows[candidate.id], self._done[candidate.id]
        return tuple(row[e.q] if e.q in done else None for e in examples)

    async def score(self, candidates: Sequence[Candidate], examples: Sequence[dspy.Example]) -> list[Scores]:
        for candidate in candidates:
            done = self._done[candidate.id]
            self.runs -= len(done)
            done.update(e.q for e in examples)
            self.runs += len(done)
        rows = [self._rows[c.id] for c in candidates]
        return [
            Scores(c, tuple(examples), tuple(outcome(row[e.q]) for e in examples))
            for c, row in zip(candidates, rows, strict=True)
        ]


def raced(table: Table, pool: Sequence[Candidate], width: int) -> list[Candidate]:
    return [s.candidate for s in asyncio.run(race(table, pool, width))]  # type: ignore[arg-type]


def best(table: Table, pool: Sequence[Candidate], width: int) -> list[Candidate]:
    return [s.candidate for s in asyncio.run(keep_best(table, pool, width))]  # type: ignore[arg-type]


# One parent, known; it fails on the first four of eight examples. Children walk over those four first.
@pytest.mark.parametrize(
    ("child", "runs"),
    [
        ("0000 1111", 4),  # gains nothing there: can only draw level
        ("1000 1111", 8),  # ahead by one, and stays so
        ("1111 0000", 8),  # gives all of it back on the last of them
        ("0000 0000", 4),
    ],
)
def test_a_child_is_dropped_once_it_cannot_rise_above_its_parent(child: str, runs: int) -> None:
    table = Table(8)
    parent = table.add([0.0] * 4 + [1.0] * 4, known=True)
    row = [float(digit) for digit in child.replace(" ", "")]
    other = table.add(row)
    assert raced(table, [parent, other], 1) == [other if sum(row) > 4 else parent]
    assert table.runs == runs


def test_leaders_are_scored_to_the_end_and_raise_the_bar_for_the_rest() -> None:
    table = Table(40)
    parents = [table.add([0.0] * 8 + [1.0] * 32, known=True) for _ in range(2)]
    twins = [table.add([1.0] * 40) for _ in range(10)]
    assert raced(table, [*parents, *twins], 2) == twins[:2]
    assert table.runs == 2 * 40 + 8 * 4, "two are perfect: eight more, as good after four examples, can only draw level"


def test_none_leads_that_is_not_ahead_of_the_bar() -> None:
    table = Table(40)
    parents = [table.add([0.0] * 8 + [1.0] * 32, known=True) for _ in range(2)]
    level = [table.add([0.0] * 8 + [1.0] * 32) for _ in range(10)]
    assert raced(table, [*parents, *level], 2) == parents and table.runs == 10 * 8


def test_without_a_bar_none_is_dropped() -> None:
    table = Table(40)
    pool = [table.add([0.0] * 40), table.add([1.0] * 40), table.add([0.0] * 40)]
    assert len(raced(table, pool, 4)) == 3 and table.runs == 3 * 40


def test_a_missing_score_is_no_reason_to_drop() -> None:
    table = Table(16)
    parent = table.add([0.0] * 8 + [1.0] * 8, known=True)
    silent = table.add([None] * 16)
    half = table.add([None if i % 2 else 1.0 for i in range(16)])
    bad = table.add([0.0] * 8 + [None] * 8)
    assert raced(table, [parent, silent, half, bad], 1) == [half]
    assert table.known(silent, table.select) == (None,) * 16 and table.runs == 16 * 2 + 8


def test_a_missing_score_below_zero_raises_no_bar() -> None:
    table = Table(16)
    pool = [*(table.add([None] * 4 + [-5.0] * 12) for _ in range(2)), table.add([-4.5] * 16)]
    assert raced(table, pool, 1) == best(table, pool, 1) == pool[-1:]


def test_scores_above_one_are_bounded_by_the_highest_seen() -> None:
    table = Table(20)
    parent = table.add([0.0] * 4 + [9.0] * 16, known=True)
    child = table.add([2.0] * 4 + [9.0] * 16)
    assert raced(table, [parent, child], 1) == [child]


def test_what_is_known_costs_nothing_and_is_not_dropped() -> None:
    table = Table(50)
    parents = [table.add(row, known=True) for row in np.eye(6, 50).tolist()]
    assert set(raced(table, parents, 4)) <= set(parents) and table.runs == 0
    children = [table.add([1.0] * 50) for _ in range(4)]
    assert set(raced(table, [*parents, *children], 4)) == set(children) and table.runs == 4 * 50
    assert raced(table, [*parents, *children], 4) == raced(table, [*children, *parents], 4)
    assert table.runs == 4 * 50


POOLS = st.tuples(st.integers(1, 40), st.booleans()).flatmap(
    lambda of: st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.5] + [None] * of[1]), min_size=of[0], max_size=of[0]),
        ),
        min_size=1,
        max_size=12,
    )
)


@given(POOLS, st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_what_holds_for_every_race(rows: list[tuple[bool, list[float | None]]], width: int, seed: int) -> None:
    one, other, full = (Table(len(rows[0][1]), seed) for _ in range(3))
    pools = [[table.add(row, known) for known, row in rows] for table in (one, other, full)]
    kept = raced(one, [*pools[0], pools[0][0]], width)
    assert kept == raced(other, pools[1], width) and one.runs == other.runs, "determinism"
    assert len(set(kept)) == len(kept) == min(width, len(rows))
    if None not in [v for _, row in rows for v in row]:
        means = [
            [math.fsum(v or 0.0 for v in rows[pool.index(c)][1]) for c in beam]
            for pool, beam in ((pools[0], kept), (pools[2], best(full, pools[2], width)))
        ]
        assert means[0] == means[1] == sorted(means[0], reverse=True), "the scores of full scoring, best first"
    assert one.runs <= sum(len(row) for known, row in rows if not known)


# --- What racing saves and costs, in simulated searches ---------------------------------------------------------------

Draw = Callable[[np.random.Generator, NDArray[np.float64]], NDArray[np.float64]]
MIXES: dict[str, Draw] = {
    "spread": lambda rng, parents: rng.uniform(0.1, 0.8, 16),
    "hard": lambda rng, parents: rng.uniform(0.5, 0.6, 16),
    "high": lambda rng, parents: rng.uniform(0.8, 0.95, 16),
    "near": lambda rng, parents: np.clip(np.resize(parents, 16) + rng.normal(-0.03, 0.1, 16), 0.02, 0.98),
}
"""The true accuracies of a step's 16 children, given those of their parents, best first."""


@dataclass(frozen=True)
class Study:
    """What many simulated searches came to; accuracies are true ones, in points.

    Attributes:
        share: Program runs of racing over those of full scoring.
        losses: Of each search, the accuracy of full scoring's head minus that of racing's.
    """

    share: float
    losses: NDArray[np.float64]

    @property
    def most(self) -> float:
        """Upper end of the 95 % interval of the mean loss."""
        return float(self.losses.mean() + 1.96 * self.losses.std(ddof=1) / math.sqrt(len(self.losses)))

    @property
    def other(self) -> float:
        """Share of the searches that end with another head, or one of another accuracy, than with full scoring."""
        return float((self.losses != 0).mean())


Keep = Callable[[Table, Sequence[Candidate], int], list[Candidate]]
LEVELS = np.linspace(-9, 9, 361)


def searches(
    keep: Keep, mix: str, number: int, n: int, width: int, hardness: float, graded: bool
) -> tuple[int, NDArray[np.float64]]:
    """Return the program runs and the head's true accuracy of simulated searches: 5 candidates, then 3 steps of 16.

    Examples are hard or easy for all candidates alike (a logistic model); a search has its own examples.
    """
    spread = np.random.default_rng(0).normal(0, hardness, 4000)
    mean = (1 / (1 + np.exp(spread[:, None] - LEVELS))).mean(0)
    runs, heads = 0, []
    for seed in range(number):
        rng = np.random.default_rng((3, seed))
        table, difficulty = Table(n, seed), rng.normal(0, hardness, n)
        accuracy: dict[Candidate, float] = {}
        beam: list[Candidate] = []
        for step in range(4):
            drawn = MIXES[mix](rng, np.array([accuracy[c] for c in beam] or [0.45]))[: None if step else 5]
            p = 1 / (1 + np.exp(difficulty - np.interp(drawn, mean, LEVELS)[:, None]))
            noise = rng.random(p.shape)
            rows = np.clip(p + 0.3 * (noise - 0.5), 0, 1) if graded else (noise < p).astype(float)
            children = [table.add(row) for row in rows.tolist()]
            accuracy.update(zip(children, drawn.tolist(), strict=True))
            beam = keep(table, [*beam, *children], width)
        runs += table.runs
        heads.append(100 * accuracy[beam[0]])
    return runs, np.array(heads)


def study(
    keep: Keep, mix: str, number: int, *, n: int = 50, width: int = 4, hardness: float = 1.5, graded: bool = False
) -> Study:
    """Compare a way to keep candidates with full scoring, in the same searches."""
    runs, heads = searches(keep, mix, number, n, width, hardness, graded)
    of, best_heads = searches(best, mix, number, n, width, hardness, graded)
    return Study(runs / of, best_heads - heads)


@pytest.mark.parametrize(("mix", "share"), [("spread", 0.65), ("high", 0.57)])
def test_racing_saves_runs_and_does_not_lose_the_best(mix: str, share: float) -> None:
    found = study(raced, mix, 25)
    assert found.share <= share, "of the program runs of full scoring"
    assert found.other <= 0.08, "searches that end with another head: one of equal score"
    assert found.most < 0.5, "points of true accuracy"


def test_the_study_can_tell_a_race_that_drops_too_much() -> None:
    def hasty(table: Table, pool: Sequence[Candidate], width: int) -> list[Candidate]:
        """Keep the best quarter after 8 examples, without a test."""
        scores = asyncio.run(table.score(pool, table.select[:8]))
        quarter = sorted(scores, key=lambda s: -s.mean)[: max(width, len(pool) // 4)]
        return best(table, [s.candidate for s in quarter], width)

    assert study(hasty, "spread", 25).other > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("mix", "share"), [("spread", 0.63), ("hard", 0.86), ("high", 0.55), ("near", 0.77)])
def test_the_numbers_of_the_docstring(mix: str, share: float) -> None:
    found = study(raced, mix, 300)
    assert share - 0.04 <= found.share <= share and found.most < 0.4


class Races(ToySearch):
    """Keeps the best of prompts of different skill by a race, then by full scoring."""

    def __init__(self, engine: ToyEngine, max_in_flight: int) -> None:
        super().__init__(exact, max_in_flight=max_in_flight)
        self.engine = engine
        self.calls: list[int] = []
        self.kept: list[Scores] = []

    async def search(self, run: Run) -> Candidate:
        name = run.baseline.names[0]
        pool = [
            run.baseline.replace(name, instructions=f"skill={skill} v{v}", origin=Origin("given"))
            for v in range(2)
            for skill in (1, 1, 2, 3, 4, 6, 8, 9)
        ]
        self.calls = [self.engine.calls]
        self.kept = await race(run, pool, 2)
        self.calls.append(self.engine.calls)
        assert await race(run, [one.candidate for one in self.kept], 2) == self.kept
        assert self.engine.calls == self.calls[-1], "parents are free"
        assert [s.mean for s in await keep_best(run, pool, 2)] == [s.mean for s in self.kept]
        self.calls.append(self.engine.calls)
        await run.record(0, self.kept)
        return self.kept[0].candidate


def test_a_run_races_alike_at_any_concurrency_and_for_less() -> None:
    kept = []
    for in_flight in (1, 16):
        engine = ToyEngine()
        compiler = Races(engine, in_flight)
        with dspy.context(lm=toy_lm(engine)):
            compiler.compile(dspy.Predict("question -> answer"), trainset=words(8, "t"), valset=words(60, "v"))
        start, raced_at, full_at = compiler.calls
        assert raced_at - start < 0.75 * (full_at - start) and full_at - start == 14 * 30
        kept.append([s.candidate.id for s in compiler.kept])
    assert kept[0] == kept[1]
