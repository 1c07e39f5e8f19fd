"""Reading a finished run, and the statistics of its diagnosis against scipy, published values and enumeration."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from e2e_support import ToyEngine, toy_compile, toy_lm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cuesmith.programs.diagnosis.inference import fisher_exact, holm, kappa, ratio, spearman, unpaired
from cuesmith.programs.diagnosis.run_record import UNUSABLE, RecordError, RunRecord, answer, passed
from cuesmith.teleprompters.runtime import journal
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.outcomes import MetricError, Outcome, ParseFailure, ProviderFailure, Scored, Step


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compilation]:
    directory = tmp_path_factory.mktemp("run")
    return directory, toy_compile(toy_lm(ToyEngine()), run_dir=directory).compilation


def test_a_record_holds_what_the_compile_returned(finished: tuple[Path, Compilation]) -> None:
    directory, compilation = finished
    record = RunRecord.read(directory)
    assert record.compiler == "ToySearch"
    assert record.best == compilation.best.candidate and record.baseline == compilation.baseline.candidate
    assert record.trials == compilation.candidates and record.steps == compilation.steps
    assert record.gain == compilation.gain and record.notes == compilation.notes
    assert record.scores_of(record.best) == compilation.candidates[0].scores
    assert (len(record.train), len(record.select)) == (12, 20)
    assert {child.origin.parents[0] for _, child in record.pairs()} == {parent.id for parent, _ in record.pairs()}
    assert len(list(record.pairs())) == len(compilation.candidates) - 1


def test_outcomes_are_those_of_the_journal(finished: tuple[Path, Compilation]) -> None:
    record = RunRecord.read(finished[0])
    for trial in record.trials:
        outcomes = record.outcomes[trial.candidate.id]
        assert [passed(outcomes[e.id], 1.0) for e in record.select] == [s == 1.0 for s in trial.scores]
        for example in record.select:
            said = answer(outcomes[example.id])
            assert said is not None and (said == f"answer: {example.labels['answer']}") == bool(
                passed(outcomes[example.id], 1.0)
            )
    held = record.held_out(record.best)
    assert len(held) == len(record.select) + len(record.fresh_best) == 40
    assert not {e.id for e in record.train} & set(held)


def test_reading_changes_nothing(finished: tuple[Path, Compilation]) -> None:
    def state() -> list[tuple[str, bytes]]:
        return sorted((p.name, p.read_bytes()) for p in finished[0].iterdir())

    before = state()
    RunRecord.read(finished[0])
    assert state() == before


def test_a_copy_that_may_not_be_written_is_read(finished: tuple[Path, Compilation], tmp_path: Path) -> None:
    copy = shutil.copytree(finished[0], tmp_path / "a copy? of #1 100%")
    for path in (*copy.iterdir(), copy):
        os.chmod(path, 0o555)
    try:
        assert RunRecord.read(copy).outcomes == RunRecord.read(finished[0]).outcomes
    finally:
        os.chmod(copy, 0o755)


def test_a_candidate_whose_texts_were_redacted_keeps_its_outcomes(
    finished: tuple[Path, Compilation], tmp_path: Path
) -> None:
    copy = shutil.copytree(finished[0], tmp_path / "run")
    stored = json.loads((copy / "record.json").read_text())
    known = {c["id"]: c for c in stored["candidates"]}
    parent = known[known[stored["best"]]["origin"]["parents"][0]]
    parent["prompts"]["self"]["instructions"] = "the key is [redacted]"
    (copy / "record.json").write_text(json.dumps(stored))
    record = RunRecord.read(copy)
    found = record.candidates[record.best.origin.parents[0]]
    assert found.id != parent["id"] and found.prompts["self"].instructions == "the key is [redacted]"
    assert len(record.outcomes[found.id]) >= len(record.select)
    assert found.id in record.steps[1].beam


def damaged(change: Callable[[dict[str, object]], None]) -> Callable[[Path], None]:
    def do(directory: Path) -> None:
        stored = json.loads((directory / "record.json").read_text())
        change(stored)
        (directory / "record.json").write_text(json.dumps(stored))

    return do


def journal_of_text(directory: Path) -> None:
    (directory / journal.FILE).write_text("not a journal, but long enough to look like a file\n" * 100)


def journal_with(body: dict[str, object]) -> Callable[[Path], None]:
    def do(directory: Path) -> None:
        with (directory / journal.FILE).open("rb") as file:
            rows = list(journal.read(file, ""))
        (directory / journal.FILE).unlink()
        written = journal.Journal(directory, {})
        for row in rows[1:]:
            assert row.table != "outcomes" or written.put("outcomes", row.key, body)
        written.close()

    return do


def journal_changed(directory: Path) -> None:
    path = directory / journal.FILE
    path.write_bytes(path.read_bytes().replace(b'"score":0.0', b'"score":1.0'))


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (lambda d: (d / "record.json").unlink(), "has not finished"),
        (lambda d: (d / journal.FILE).unlink(), "journal is missing"),
        (lambda d: shutil.rmtree(d), "no such folder"),
        (lambda d: [p.unlink() for p in d.iterdir()], "no run in it"),
        (lambda d: (d / "record.json").write_text("{"), "not the record of a run"),
        (lambda d: (d / "record.json").write_text("[]"), "not the record of a run"),
        (lambda d: (d / "record.json").write_bytes(b"\xff\xfe\x00"), "not the record of a run"),
        (damaged(lambda r: r.update(format=2)), "format 2"),
        (damaged(lambda r: r.update(best="0" * 16)), "not among its candidates"),
        (damaged(lambda r: r["candidates"][0]["scores"].pop()), "one score a selection example"),  # type: ignore[index]
        (damaged(lambda r: r["candidates"][0].update(prompts={"a": {}})), "not the record of a run"),  # type: ignore[index]
        (damaged(lambda r: r["fresh_scores"]["best"].pop()), "not in pairs"),  # type: ignore[index]
        (journal_of_text, "not usable as a journal"),
        (journal_with({}), "not a journal"),
        (journal_with({"outcome": {"kind": "Other", "body": {}}}), "not a journal"),
        (journal_with({"outcome": "text"}), "not a journal"),
        (journal_changed, "is damaged"),
        (lambda d: (d / "record.json").write_text("[" * 100_000), "not the record of a run"),
    ],
)
def test_what_is_no_finished_run_is_refused_in_one_line(
    finished: tuple[Path, Compilation], tmp_path: Path, do: Callable[[Path], object], said: str
) -> None:
    copy = shutil.copytree(finished[0], tmp_path / "run")
    do(copy)
    with pytest.raises(RecordError, match=said) as raised:
        RunRecord.read(copy)
    assert "\n" not in str(raised.value) and str(copy) in str(raised.value)


def test_the_folder_above_runs_names_them(finished: tuple[Path, Compilation], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "abo")
    with pytest.raises(RecordError, match="there are runs in its folders abo"):
        RunRecord.read(tmp_path)


def outcome(**outputs: str) -> Outcome:
    return Scored(1.0, "", (Step("a", {}, {"answer": "first"}), Step("b", {}, outputs)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (outcome(reasoning="long", answer="  Yes\n sir "), "answer: yes sir"),
        (outcome(reasoning="only this"), "reasoning: only this"),
        (outcome(answer=""), "answer: "),
        (ParseFailure("?", "raw"), UNUSABLE),
        (ProviderFailure("down"), None),
        (MetricError("raised", (Step("b", {}, {"answer": "3"}),)), "answer: 3"),
        (MetricError("raised"), None),
        (Scored(1.0), None),
    ],
)
def test_answer(given: Outcome, expected: str | None) -> None:
    assert answer(given) == expected


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [  # Newcombe 1998, table II, method 10: first minus second
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_shares_of_two_groups_as_published(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    a, b = ([1.0] * hits + [0.0] * (n - hits) for hits, n in (first, second))
    found = unpaired(b, a)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert found.value == pytest.approx(first[0] / first[1] - second[0] / second[1]) and found.n == first[1] + second[1]


def test_means_of_two_groups_as_scipy() -> None:
    rng = np.random.default_rng(1)
    for n, m, spread in ((2, 3, 1.0), (12, 30, 3.0), (40, 5, 0.1)):
        a, b = rng.normal(0, 1, n), rng.normal(1, spread, m)
        found, expected = unpaired(a.tolist(), b.tolist()), stats.ttest_ind(b, a, equal_var=False)
        interval = expected.confidence_interval()
        assert found.value == pytest.approx(b.mean() - a.mean())
        # The degrees of freedom are rounded down: never narrower, and little wider.
        assert found.low <= interval.low + 1e-9 and found.high >= interval.high - 1e-9
        degrees = math.floor(expected.df + 1e-9)
        half = stats.t.ppf(0.975, max(1, degrees)) * math.sqrt(a.var(ddof=1) / n + b.var(ddof=1) / m)
        assert found.high - found.value == pytest.approx(half)


def test_a_group_without_scores_has_no_difference() -> None:
    assert math.isnan(unpaired([], [1.0]).value) and math.isnan(unpaired([None], [1.0]).low)
    assert unpaired([0.5, 0.5], [0.25, 0.25]).low == unpaired([0.5, 0.5], [0.25, 0.25]).high == -0.25
    assert math.isnan(unpaired([0.5], [0.25, 0.5]).low)


def test_fisher_as_scipy() -> None:
    for table in itertools.product(range(7), repeat=4):
        a, b, c, d = table
        assert fisher_exact(a, b, c, d) == pytest.approx(stats.fisher_exact([[a, b], [c, d]]).pvalue, abs=1e-9), table
    assert fisher_exact(300, 20, 200, 90) == pytest.approx(stats.fisher_exact([[300, 20], [200, 90]]).pvalue)
    with pytest.raises(ValueError, match="negative"):
        fisher_exact(1, -1, 0, 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_holm_by_its_definition(p_values: list[float]) -> None:
    found, order = holm(p_values), sorted(p_values)
    m = len(order)
    for corrected, p_value in zip(found, p_values, strict=True):
        wanted = max(min(1.0, (m - k) * one) for k, one in enumerate(order) if one <= p_value)
        assert corrected == pytest.approx(wanted)
    # Rejecting step by step, as Holm wrote it, is the same as comparing the corrected ones with 5 %.
    steps = list(itertools.takewhile(lambda pair: pair[1] <= 0.05 / (m - pair[0]), enumerate(order)))
    assert sum(p <= 0.05 for p in found) == len(steps)


def test_holm_by_hand_and_under_the_null() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == () and holm([0.7]) == (0.7,) and holm([0.6, 0.6]) == (1.0, 1.0)
    rng = np.random.default_rng(0)
    assert np.mean([min(holm(rng.uniform(size=7).tolist())) <= 0.05 for _ in range(2000)]) <= 0.06


@pytest.mark.parametrize(("n", "studies"), [(3, 8), (4, 8), (6, 1)])
def test_spearman_with_few_pairs_is_exact(n: int, studies: int) -> None:
    rng = random.Random(n)
    for _ in range(studies):
        x, y = ([float(rng.randrange(4)) for _ in range(n)] for _ in range(2))  # with ties
        found = spearman(x, y)
        if len(set(x)) == 1 or len(set(y)) == 1:
            assert math.isnan(found.rho) and found.p_value == 1.0
            continue
        assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
        every = [abs(stats.spearmanr(x, order).statistic) for order in itertools.permutations(y)] if n < 6 else []
        if every:
            assert found.p_value == pytest.approx(np.mean(np.array(every) >= abs(found.rho) - 1e-9))
        else:
            exact = stats.permutation_test(
                (x,),
                lambda a, y=y: stats.spearmanr(a, y).statistic,
                permutation_type="pairings",
                n_resamples=math.inf,
                alternative="two-sided",
            )
            least = np.abs(exact.null_distribution) >= abs(found.rho) - 1e-9
            assert found.p_value == pytest.approx(least.mean())


def test_spearman_with_many_pairs_as_scipy() -> None:
    rng = np.random.default_rng(3)
    for n, slope in ((12, 0.5), (40, 0.3), (100, 0.1)):
        x = rng.normal(size=n)
        y = slope * x + rng.normal(size=n)
        found, expected = spearman(x.tolist(), y.tolist()), stats.spearmanr(x, y)
        assert found.rho == pytest.approx(expected.statistic)
        assert found.p_value == pytest.approx(expected.pvalue, abs=0.015)
        half = 1.959964 * math.sqrt(1.06 / (n - 3))
        assert math.atanh(found.high) - math.atanh(found.rho) == pytest.approx(half, rel=1e-5)
        assert math.atanh(found.rho) - math.atanh(found.low) == pytest.approx(half, rel=1e-5)
    assert spearman(range(20), range(20)).p_value == pytest.approx(1 / 10_001)
    with pytest.raises(ValueError, match="paired"):
        spearman([1.0], [])


def test_the_interval_of_a_ratio_covers() -> None:
    rng = np.random.default_rng(0)
    hits, studies, n = 0, 400, 60
    for _ in range(studies):
        wholes = rng.integers(2, 7, n)
        shares = rng.beta(6, 2, n)  # the checks of one response go together
        found = ratio(rng.binomial(wholes, shares).tolist(), wholes.tolist())
        hits += found.low <= 0.75 <= found.high
    assert 0.92 <= hits / studies <= 0.98
    whole = ratio([3, 2, 0], [3, 2, 0])
    assert (whole.mean, whole.n, whole.high) == (1.0, 2, 1.0)
    assert whole.low == pytest.approx(stats.binomtest(2, 2).proportion_ci(method="wilson").low)
    assert ratio([0], [0]).n == 0 and math.isnan(ratio([1], [2]).low)


def test_kappa() -> None:
    assert kappa(20, 5, 10, 15) == pytest.approx(0.4)  # Wikipedia's example
    assert kappa(5, 0, 0, 5) == 1.0 and math.isnan(kappa(5, 0, 0, 0)) and math.isnan(kappa(0, 0, 0, 0))


def test_candidates_of_the_record_are_real(finished: tuple[Path, Compilation]) -> None:
    record = RunRecord.read(finished[0])
    assert all(isinstance(c, Candidate) and key == c.id for key, c in record.candidates.items())
    example = record.select[0].example
    assert set(example.inputs()) == {"question"} and example.answer in example.question
