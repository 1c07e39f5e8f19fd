"""Same seed and same answers give the same result: at any concurrency, whatever finishes first, in any process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from e2e_support import COMPILE, ToyEngine, result_of, toy_compile, toy_lm
from processes_support import Forked


@pytest.fixture(scope="module")
def one_by_one() -> dict[str, object]:
    """Return the result at one in flight."""
    return result_of(toy_compile(toy_lm(ToyEngine()), max_in_flight=1))


@pytest.mark.parametrize("in_flight", [8, 64])
@pytest.mark.parametrize("attempt", [0, 1])
def test_the_same_at_any_concurrency(one_by_one: dict[str, object], in_flight: int, attempt: int) -> None:
    engine = ToyEngine(0.01)
    assert result_of(toy_compile(toy_lm(engine), max_in_flight=in_flight)) == one_by_one
    assert engine.most > 4, "calls did overlap"


def test_the_seed_matters(one_by_one: dict[str, object]) -> None:
    other = result_of(toy_compile(toy_lm(ToyEngine()), seed=1))
    assert other["candidates"] != one_by_one["candidates"]


def test_the_same_with_and_without_a_journal(one_by_one: dict[str, object], tmp_path: Path) -> None:
    assert result_of(toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path, max_in_flight=16)) == one_by_one


def test_the_same_in_processes_that_hash_differently(one_by_one: dict[str, object], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("run", "log", "result")]
    assert Forked(COMPILE, *folders, "--latency", 0.002).done().returncode == 0
    assert json.loads(folders[2].read_text()) == json.loads(json.dumps(one_by_one))
    # This process resumes the other's finished run: it is recognised, and nothing is paid.
    assert result_of(toy_compile(toy_lm(ToyEngine(0.002, folders[1])), run_dir=folders[0])) == one_by_one
    assert len({line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}) == 1
