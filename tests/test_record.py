"""What a finished compile leaves beside its journal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from e2e_support import KEY, ToyEngine, toy_compile, toy_lm, toy_reply

from cuesmith import Budget
from cuesmith.teleprompters.runtime import journal
from cuesmith.teleprompters.runtime.record import FILE


def test_the_record_says_what_the_compilation_says(tmp_path: Path) -> None:
    engine = ToyEngine()
    c = toy_compile(toy_lm(engine), run_dir=tmp_path).compilation
    record = json.loads((tmp_path / FILE).read_text())
    assert record["best"] == c.best.candidate.id and record["baseline"] == c.baseline.candidate.id
    assert [(r["id"], r["scores"], r["mean"]) for r in record["candidates"]] == [
        (t.candidate.id, list(t.scores), t.mean) for t in c.candidates
    ]
    assert [s["best_id"] for s in record["steps"]] == [s.best_id for s in c.steps]
    assert len(record["selection"]) == len(c.candidates[0].scores) == len(record["select"])
    assert record["predictors"] == {"self": {"inputs": ["question"], "outputs": ["answer"]}}
    fresh = record["fresh_scores"]
    assert c.gain is not None and record["gain"]["difference"] == c.gain.difference
    pairs = [(a, b) for a, b in zip(fresh["baseline"], fresh["best"], strict=True) if a is not None and b is not None]
    assert len(pairs) == c.gain.n and sum(b - a for a, b in pairs) / len(pairs) == pytest.approx(c.gain.difference)
    assert set(record["selection"]).isdisjoint(e["id"] for e in record["train"])
    assert {e["labels"]["answer"] for e in record["select"]} <= {e["inputs"]["question"][4:] for e in record["select"]}


def test_every_score_in_it_has_its_outcome_in_the_journal(tmp_path: Path) -> None:
    toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path)
    record = json.loads((tmp_path / FILE).read_text())
    with (tmp_path / journal.FILE).open("rb") as file:
        keys = {row.key for row in journal.read(file, "") if row.table == "outcomes"}
    scored = [
        f"{candidate['id']}:{example}"
        for candidate in record["candidates"]
        for example, score in zip(record["selection"], candidate["scores"], strict=True)
        if score is not None
    ]
    assert scored and set(scored) <= keys


def test_it_is_written_at_the_end_and_replaced_by_a_resumed_run(tmp_path: Path) -> None:
    engine = ToyEngine()
    toy_compile(toy_lm(engine), run_dir=tmp_path, budget=Budget(calls=60))
    first = json.loads((tmp_path / FILE).read_text())
    assert first["stopped_by"] == "calls"
    toy_compile(toy_lm(engine), run_dir=tmp_path)
    assert json.loads((tmp_path / FILE).read_text())["stopped_by"] is None
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []


def test_a_key_that_a_model_repeats_is_not_in_it(tmp_path: Path) -> None:
    def repeats(system: str, user: str, drawn: int | None) -> str:
        return toy_reply(system, user, drawn).replace("Repeat the word.", f"Repeat the word.\n{KEY}")

    c = toy_compile(toy_lm(ToyEngine(reply=repeats)), run_dir=tmp_path).compilation
    assert any(KEY in prompt.instructions for t in c.candidates for _, prompt in t.candidate)
    assert KEY not in (tmp_path / FILE).read_text() and "Repeat the word." in (tmp_path / FILE).read_text()
