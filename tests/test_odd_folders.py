"""Runs by other metrics in a list, and records that are damaged or foreign: what is told of them is true, and ends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from e2e_support import ToyEngine, exact, toy_compile, toy_lm

from cuesmith import RunReport, cli
from cuesmith.programs.commands.run_folders import line_of


def stars(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """From 1 to 1.6: no interval of a gain leaves -1 to 1."""
    return 1.6 if exact(example, prediction) else 1.0


def graded(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """From 0.9 to 0.99: an interval may go beyond 1."""
    return 0.99 if exact(example, prediction) else 0.1


@pytest.mark.parametrize(
    ("metric", "score", "gain"), [(stars, "1.39 [1.25, 1.53]", "+0.3 [+0.13, +0.47]"), (graded, "67.8 % [", "+44.5 [")]
)
def test_a_list_writes_score_and_gain_of_a_run_by_one_scale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: Callable[..., object], score: str, gain: str
) -> None:
    toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path / "run", metric=metric)
    assert cli.main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert score in out and gain in out


def test_a_run_with_one_fresh_example_is_not_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path / "run", metric=graded, n_val=2)
    line = line_of(tmp_path / "run")
    assert line.state == "finished" and line.score is not None and math.isnan(line.score[1])
    assert cli.main(["runs", str(tmp_path)]) == 0 and "nan" not in capsys.readouterr().out
    assert cli.main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["score"][1:] == [None, None]


def test_a_record_of_something_else_is_no_finished_run(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"title": "of another program"}')
    assert line_of(tmp_path).state == "damaged"


def edited(folder: Path, edit: Callable[[Any], object]) -> Path:
    """Make a run whose record was edited."""
    toy_compile(toy_lm(ToyEngine()), run_dir=folder)
    record = json.loads((folder / "record.json").read_text())
    edit(record)
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def test_the_report_of_a_record_whose_lineage_goes_round_in_a_circle_ends(tmp_path: Path) -> None:
    def close(record: Any) -> None:
        best = next(one for one in record["candidates"] if one["id"] == record["best"])
        best["origin"]["parents"] = [best["id"]]

    assert RunReport.read(edited(tmp_path, close)).to_html().rstrip().endswith("</html>")


def test_a_record_with_an_infinite_score_is_refused(tmp_path: Path) -> None:
    def spoil(record: Any) -> None:
        record["candidates"][0]["scores"][0] = math.inf

    with pytest.raises(ValueError, match="a score is no finite number"):
        RunReport.read(edited(tmp_path, spoil))
