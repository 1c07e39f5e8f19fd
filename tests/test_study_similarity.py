"""The study of prompts that read and act alike: statistics against enumeration, planted worlds, whole runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import dspy
import numpy as np
import pytest
from e2e_support import ToyEngine
from numpy.typing import NDArray
from scipy import stats
from study_support import pairs_of

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.programs.diagnosis import page
from cuesmith.programs.diagnosis.likeness import rank_mantel
from cuesmith.programs.studies.bench import Bench, Findings
from cuesmith.programs.studies.similarity import STUDY, Sample, SimilarityResult, analyse, nearest, sections
from cuesmith.programs.tasks import Sizes, Task, generate
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.outcomes import Outcome, ProviderFailure, Scored, Step

Floats = NDArray[np.float64]


# --- statistics ----------------------------------------------------------------------------------------------


def distances(points: Floats) -> Floats:
    return np.asarray(np.abs(points[:, None] - points[None, :]))


def test_mantel_as_full_enumeration() -> None:
    rng = np.random.default_rng(0)
    for k in range(4):
        x = rng.normal(size=6)
        first, second = distances(x), distances(x + k * rng.normal(size=6)).round(1)
        rho = stats.spearmanr(pairs_of(first), pairs_of(second)).statistic
        orders = [np.array(order) for order in itertools.permutations(range(6))]
        tried = [stats.spearmanr(pairs_of(first), pairs_of(second[np.ix_(o, o)])).statistic for o in orders]
        found = rank_mantel(first, second)
        assert found.rho == pytest.approx(rho) and (found.prompts, found.pairs) == (6, 15)
        assert found.p_value == pytest.approx(np.mean(np.abs(tried) >= abs(rho) - 1e-9))
        assert found.critical == pytest.approx(np.quantile(np.abs(tried), 0.95))


def test_mantel_with_random_orders_comes_near_all_of_them() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=8)
    first, second = distances(x), distances(x + 1.5 * rng.normal(size=8))
    ranks = [stats.rankdata(pairs_of(m)) for m in (first, second)]
    square = np.zeros((8, 8))
    square[np.triu_indices(8, 1)] = ranks[1] - ranks[1].mean()
    square += square.T
    rho = stats.spearmanr(*ranks).statistic
    tried = [pairs_of(square[np.ix_(o, o)]) @ (ranks[0] - ranks[0].mean()) for o in itertools.permutations(range(8))]
    exact = np.mean(np.abs(tried) >= abs(pairs_of(square) @ (ranks[0] - ranks[0].mean())) - 1e-9)
    found = rank_mantel(first, second)
    assert found.rho == pytest.approx(rho) and found.p_value == pytest.approx(exact, abs=0.02)


def test_mantel_within_meanings_as_full_enumeration() -> None:
    rng = np.random.default_rng(2)
    first, second = (distances(rng.normal(size=7)) for _ in range(2))
    meanings = [0, 1, 0, 1, 0, 1, 2]  # the last has nobody to be compared with
    groups = [[0, 2, 4], [1, 3, 5]]

    def total(order: Sequence[int]) -> float:
        moved = second[np.ix_(order, order)]
        parts = [[stats.rankdata(pairs_of(m[np.ix_(g, g)])) for g in groups] for m in (first, moved)]
        return float(sum((a - a.mean()) @ (b - b.mean()) for a, b in zip(*parts, strict=True)))

    tried = []
    for a, b in itertools.product(*(itertools.permutations(g) for g in groups)):
        order = np.arange(7)
        order[groups[0]], order[groups[1]] = a, b
        tried.append(total(order.tolist()))
    found = rank_mantel(first, second, meanings)
    assert found.p_value == pytest.approx(np.mean(np.abs(tried) >= abs(tried[0]) - 1e-9))
    assert (found.prompts, found.pairs) == (6, 6) and found.rho == pytest.approx(tried[0] / 4)


def test_mantel_without_differences_says_nothing() -> None:
    same = rank_mantel(np.ones((5, 5)), distances(np.arange(5.0)))
    assert math.isnan(same.rho) and same.p_value == 1.0 and same.sign == 0
    assert math.isnan(rank_mantel(distances(np.arange(4.0)), distances(np.arange(4.0)), [0, 1, 2, 3]).rho)


def test_nearest_by_hand() -> None:
    likeness = np.array(
        [
            [1, 0.9, 0.1, 0.2, 0.0],
            [0.9, 1, 0.3, 0.1, 0.0],
            [0.1, 0.3, 1, 0.8, 0.0],
            [0.2, 0.1, 0.8, 1, 0.0],
            [0, 0, 0, 0, 1.0],
        ]
    )
    scores = [0.1, 0.2, 0.8, 0.9, 0.5]
    found = nearest(likeness, scores)
    assert found.error == pytest.approx(np.mean([0.1, 0.1, 0.1, 0.1, 0.0]))  # the last: four equally unlike
    others = [np.mean(scores[:k] + scores[k + 1 :]) for k in range(5)]
    assert found.of_mean == pytest.approx(np.mean(np.abs(np.array(scores) - others)))
    tried = [nearest(likeness, order).error for order in itertools.permutations(scores)]
    assert found.p_value == pytest.approx(np.mean([error <= found.error + 1e-9 for error in tried]))


@pytest.mark.slow
def test_false_positives_without_an_association() -> None:
    counts, runs = {"mantel": 0, "nearest": 0, "within": 0}, 200
    for k in range(runs):
        rng = np.random.default_rng(k)
        words, scores = distances(rng.normal(size=12)), rng.random(12)
        counts["mantel"] += rank_mantel(words, distances(scores), seed=k).p_value < 0.05
        counts["nearest"] += nearest(1 - words, scores.tolist(), seed=k).p_value < 0.05
        # Prompts of a meaning read alike and act alike; among them there is nothing to find.
        meaning = np.repeat([0, 1, 2], 4)
        near, behaviour = distances(5 * meaning + rng.normal(size=12)), distances(5 * meaning + rng.normal(size=12))
        counts["within"] += rank_mantel(near, behaviour, meaning.tolist(), seed=k).p_value < 0.05
    assert max(counts.values()) <= 0.07 * runs


def test_a_planted_association_is_found() -> None:
    counts, runs = {"mantel": 0, "nearest": 0, "within": 0}, 100
    for k in range(runs):
        rng = np.random.default_rng(k)
        x = rng.normal(size=16)
        y = x + 0.4 * rng.normal(size=16)
        counts["mantel"] += rank_mantel(distances(x), distances(y), seed=k).p_value < 0.05
        counts["nearest"] += nearest(-distances(x), y.tolist(), seed=k).p_value < 0.05
        counts["within"] += rank_mantel(distances(x), distances(y), [i // 4 for i in range(16)], seed=k).p_value < 0.05
    assert min(counts.values()) > 0.8 * runs


# --- analysis ------------------------------------------------------------------------------------------------


def said(text: str, score: float) -> Outcome:
    return Scored(score, "", (Step("p", {}, {"answer": text}),))


def world(skills: Sequence[float], texts: Sequence[str], meanings: Sequence[int], n: int = 60) -> list[Sample]:
    """Prompts that are right on the examples that are easier than their skill."""
    easy = np.random.default_rng(0).random(n)
    moves = ["student", *["edit"] * (len(skills) - 1)]
    return [
        Sample(text, move, meaning, [said("yes" if e < skill else "no", float(e < skill)) for e in easy])
        for skill, text, move, meaning in zip(skills, texts, moves, meanings, strict=True)
    ]


def texts_at(places: Sequence[float] | Floats, seed: int = 0) -> list[str]:
    """Texts that share the more words the nearer their places are."""
    rng = np.random.default_rng(seed)
    return [" ".join([f"w{int(10 * place) + k}" for k in range(12)] + [f"x{rng.integers(10**6)}"]) for place in places]


def test_a_world_where_words_tell_all() -> None:
    skills = np.linspace(0.1, 0.9, 12)
    result = analyse(world(skills.tolist(), texts_at(skills), [0] * 6 + [1] * 6))
    assert result.answers is not None and result.nearest is not None and result.scores is not None
    assert result.answers.sign == 1 and result.scores.sign == 1 and result.nearest.gain > 0
    assert len(result.pairs) == 66 and sum(p.same for p in result.pairs) == 30 and result.examples == 60
    first = result.pairs[0]
    outcomes = [sample.outcomes for sample in world(skills.tolist(), texts_at(skills), [0] * 12)]
    differ = np.mean([repr(a) != repr(b) for a, b in zip(outcomes[0], outcomes[1], strict=True)])
    assert first.flips == pytest.approx(differ) == pytest.approx(first.difference)
    said_of = sections(result)[0]
    assert "more differently" in said_of.summary and len(said_of.curves) == 2
    assert f"{100 * result.answers.rho**2:.0f} %" in said_of.summary
    for figure in said_of.figures:
        assert figure.meaning.endswith(".") and figure.advice.endswith(".")


def test_a_world_where_words_tell_nothing_and_one_where_they_mislead() -> None:
    places = np.linspace(0.0, 1.0, 12)
    skills = np.random.default_rng(8).random(12)
    nothing = analyse(world(skills.tolist(), texts_at(places), [0] * 12))
    assert nothing.answers is not None and nothing.answers.sign == 0
    assert sections(nothing)[0].summary.startswith("It was not shown")
    # All texts of one kind of behaviour share no word; those of different kinds do.
    texts = [
        " ".join(f"w{i}and{j}" if k % 2 else f"w{j}and{i}" for j in range(6))
        for k, i in ((k, k // 2) for k in range(12))
    ]
    reversed_ = analyse(world(np.tile([0.05, 0.95], 6).tolist(), texts, [0] * 12))
    assert reversed_.answers is not None and reversed_.answers.sign == -1
    assert sections(reversed_)[0].summary.startswith("Reversed")


def test_too_little_data_in_words() -> None:
    few = analyse(world([0.2, 0.8], texts_at([0.1, 0.9]), [0, 1]))
    assert few.answers is None and "too little data" in sections(few)[0].summary
    nothing = analyse([])
    assert nothing.prompts == () and "too little data" in sections(nothing)[0].summary
    alike = analyse(world([0.5] * 6, texts_at(np.linspace(0, 1, 6)), [0] * 6))
    assert "nothing to compare" in sections(alike)[0].summary
    torn = world([0.1, 0.4, 0.6, 0.9], texts_at([0.1, 0.3, 0.6, 0.9]), [0] * 4)
    rows = [list(sample.outcomes) for sample in torn]
    rows[0][3], rows[1][5] = ProviderFailure("down"), None
    kept = [Sample(s.text, s.move, s.meaning, row) for s, row in zip(torn, rows, strict=True)]
    assert analyse(kept).examples == 58


# --- whole runs ----------------------------------------------------------------------------------------------

SMALL = Sizes(train=16, validation=12, test=20)


def task(family: str = "reverse") -> Task:
    return generate(family, sizes=SMALL, seed=0)


def conducted(budget: Budget | None = None, *, flight: int = 32) -> tuple[Findings, Bench]:
    bench = Bench(EmbeddedLM(), SimulatedOptimizer(seed=0), budget=budget, max_in_flight=flight)
    return STUDY.conduct(bench, [task()], 8), bench


@pytest.fixture(scope="module")
def whole() -> tuple[Findings, Bench]:
    return conducted()


@pytest.mark.filterwarnings("ignore:rollout_id has no effect")
def test_a_whole_study(whole: tuple[Findings, Bench]) -> None:
    findings, bench = whole
    result = findings.result
    assert isinstance(result, SimilarityResult) and bench.stopped_by is None
    assert len({p.text for p in result.prompts}) == len(result.prompts) == 8 and result.examples == 12
    assert {p.move for p in result.prompts} == {"student", "vary", "initial", "edit"}
    assert [p.meaning for p in result.prompts].count(0) >= 2 and result.prompts[0].move == "student"
    assert [share.mean for share in result.noise] == [0.0, 0.0]  # temperature 0
    hood = result.neighbourhood
    assert hood is not None and hood.n == hood.shortfall.n == 10 and len(hood.parent) <= 8 and len(hood.child) <= 8
    bound, roles = STUDY.forecast([task()], 8), bench.spent.by_role
    assert roles["optimizer"].calls <= bound.optimizer_calls and roles["target"].calls <= bound.program_runs
    page.as_json({}, findings.sections, {"similarity": result})
    assert len(findings.sections) == 2 and all(limit.endswith(".") for limit in findings.limits)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:rollout_id has no effect")
def test_the_order_of_answers_does_not_matter(whole: tuple[Findings, Bench]) -> None:
    assert [repr(conducted(flight=k)[0].result) for k in (1, 64)] == [repr(whole[0].result)] * 2


@pytest.mark.filterwarnings("ignore:rollout_id has no effect")
@pytest.mark.parametrize("calls", [5, 110, 250])
def test_a_budget_leaves_words_or_a_part(calls: int) -> None:
    findings, bench = conducted(Budget(calls=calls))
    result = findings.result
    assert isinstance(result, SimilarityResult) and bench.spent.total.calls <= calls
    if result.answers is None:
        assert "too little data" in findings.sections[0].summary
    if result.neighbourhood is None:
        assert "Nothing can be said" in findings.sections[1].summary
    assert bench.stopped_by is None or any("stopped by the cap on calls" in limit for limit in findings.limits)


@pytest.mark.filterwarnings("ignore:rollout_id has no effect")
def test_an_optimizer_that_gives_nothing() -> None:
    engine = ToyEngine(reply=lambda system, user, drawn: "no such thing")
    bench = Bench(EmbeddedLM(), dspy.LM("toy/optimizer", engine=engine, cache=False))
    findings = STUDY.conduct(bench, [task()], 8)
    assert isinstance(findings.result, SimilarityResult) and len(findings.result.prompts) == 1
    assert "too little data" in findings.sections[0].summary and "no edit was made" in findings.sections[1].summary


def test_what_does_not_fit_is_refused_before_any_call() -> None:
    bench = Bench(EmbeddedLM(), SimulatedOptimizer())
    with pytest.raises(ValueError, match="one task"):
        STUDY.conduct(bench, [], 8)
    with pytest.raises(ValueError, match="10 validation examples"):
        STUDY.conduct(bench, [generate("first", sizes=Sizes(12, 6, 30))], 8)
    with pytest.raises(ValueError, match="20 test examples"):
        STUDY.conduct(bench, [generate("first", sizes=Sizes(12, 12, 10))], 8)
    assert bench.spent.total.calls == 0
