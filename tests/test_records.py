"""Benchmarks on real models: what is recorded is answered again without a model, and nothing else is."""

from __future__ import annotations

import importlib
import json
import lzma
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import dspy
import pytest
from dspy import lm15
from gguf_support import write_model

from cuesmith import Budget
from cuesmith.modules.local import LocalEngine
from cuesmith.programs.spread import spread
from cuesmith.teleprompters import IterativeAPE

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PAGES = (BENCHMARKS.parent / "docs" / "real.md", BENCHMARKS.parent / "README.md")


def _benchmark(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


records, real = _benchmark("records"), _benchmark("real")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    """A real model, though one that says nothing but noise."""
    path = write_model(tmp_path_factory.mktemp("model") / "noise.gguf")
    return LocalEngine(str(path), slots=2, context=4096, threads=1)


def _compiled(folder: Path, cell: str, model: LocalEngine | None) -> tuple[Any, list[dict[str, Any]]]:
    """Return a compile's record and the replies it was given."""
    book = records.Book(folder, cell, filling=model is not None)
    lm = records.RecordedLM("noise", book, model, max_tokens=8, temperature=0.7)
    examples = [dspy.Example(question=f"{k} + {k}", answer=str(2 * k)).with_inputs("question") for k in range(20)]
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    compiler = IterativeAPE(_is_right, optimizer_lm=lm, budget=Budget(calls=30), max_in_flight=4)
    compiled = compiler.compile(program, trainset=examples)
    book.check()
    book.close()
    return compiled.compilation, lm.asked


def _is_right(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(example.answer == prediction.answer)


def test_a_replay_asks_no_model_and_gives_the_same(tmp_path: Path, model: LocalEngine) -> None:
    first, said = _compiled(tmp_path, "cell", model)
    again, replayed = _compiled(tmp_path, "cell", None)
    assert first.spent.total.calls == again.spent.total.calls > 0
    assert sorted(e["key"] for e in said) == sorted(e["key"] for e in replayed)
    assert [trial.scores for trial in first.candidates] == [trial.scores for trial in again.candidates]
    assert again.notes == first.notes


def test_a_killed_cell_goes_on_and_other_cells_serve_it(tmp_path: Path, model: LocalEngine) -> None:
    whole, said = _compiled(tmp_path / "a", "cell", model)
    lines = [json.dumps(entry) for entry in said]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cell.jsonl").write_text("\n".join(lines[:9]) + '\n{"key": "cut')
    resumed, _ = _compiled(tmp_path / "b", "cell", model)
    assert resumed.spent.total.calls == whole.spent.total.calls
    _compiled(tmp_path / "a", "other", model)
    kept = [lzma.decompress(path.read_bytes()).splitlines()[:-1] for path in sorted((tmp_path / "a").iterdir())]
    assert sorted(kept[0]) == sorted(kept[1]), "the other's replies, copied, so that each record is whole"


def test_a_record_without_one_of_its_lines_is_refused(tmp_path: Path, model: LocalEngine) -> None:
    _compiled(tmp_path, "cell", model)
    path = tmp_path / "cell.jsonl.xz"
    lines = lzma.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(lzma.compress(b"".join(lines[1:])))
    with pytest.raises(records.RecordError, match=r"was changed: .*get the file from the repository again"):
        _compiled(tmp_path, "cell", None)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(records.RecordError, match="cannot be read"):
        _compiled(tmp_path, "cell", None)


def test_what_was_never_recorded_is_named(tmp_path: Path) -> None:
    lm = records.RecordedLM("noise", book := records.Book(tmp_path, "cell", filling=False), None)
    with pytest.raises(Exception, match="no record of request"):
        lm("hello")
    with pytest.raises(records.RecordError, match=r"no record of request .* to noise"):
        book.check()


def test_a_server_that_is_gone_leaves_no_record(tmp_path: Path) -> None:
    class Gone:
        def answer(self, request: lm15.Request, marks: object) -> lm15.Response:
            raise lm15.ServerError("has not answered", provider="local")

    lm = records.RecordedLM("noise", book := records.Book(tmp_path, "cell", filling=True), Gone(), num_retries=0)
    with pytest.raises(Exception, match="has not answered"):
        lm("hello")
    assert len(book) == 0 and not (tmp_path / "cell.jsonl").read_bytes()


def test_a_spread_over_compiles_is_not_one_over_answers() -> None:
    """One compile of three fails: pooled answers would call 3 x 100 of them a narrow interval."""
    failed, fine, base = [0.0] * 100, [1.0] * 100, [0.0] * 100
    three = spread([failed, fine, fine], [base])
    assert three.compiles == 3 and (three.least, three.most) == (0.0, 1.0)
    assert three.low < 0.0 and three.high == 1.0
    one = spread([fine], [base])
    assert one.compiles == 1 and one.low > 0.9


@pytest.mark.skipif(not real.DATA.exists(), reason="the public data sets are not there")
def test_the_table_of_the_pages_is_what_the_records_give() -> None:
    cells = real.recorded(lambda cell: cell.task == "objects" and cell.way in ("student", "iterative-ape", "gepa"))
    assert cells
    done = real.replay(cells, real.DATA, processes=1)
    text = PAGES[0].read_text()
    for line in real.tables(done):
        name = line.split("|")[1].strip() if line.startswith("| ") else ""
        assert name not in ("student", "iterative-ape", "gepa") or line in text


def test_the_readmes_rows_are_rows_of_the_page() -> None:
    """So that figures are brought up to date in one place, or a test says that they were not."""
    page, readme = (set(re.findall(r"^\| [a-z-]+ \|.*\[.*$", path.read_text(), re.MULTILINE)) for path in PAGES)
    rows = {row for row in readme if row.split("|")[1].strip() in {*real.WAYS, real.STUDENT}}
    assert len(rows) >= 4 and rows <= page


def test_tables_are_written_where_the_pages_have_them(tmp_path: Path) -> None:
    def done(way: str, score: float) -> Any:
        cell = real.Cell("objects", "qwen05", way, 0)
        return real.Done(cell, (score,) * 10, 0, {"target": 5, "optimizer": 1}, 900, 3.0, 2, None, (), "", True)

    page, readme = tmp_path / "real.md", tmp_path / "README.md"
    page.write_text("Before\n\n<!-- table objects qwen05 -->\n| old |\n\nAfter\n")
    readme.write_text("| a | b |\n" + "| gepa |" + " old |" * 8 + "\nEnd\n")
    real.write([done("student", 0.0), done("gepa", 1.0)], page, readme)
    text = page.read_text()
    assert "| old |" not in text and text.startswith("Before") and text.endswith("\n\nAfter\n")
    (row,) = [line for line in text.splitlines() if line.startswith("| gepa |")]
    assert readme.read_text() == f"| a | b |\n{row}\nEnd\n"


def test_a_reply_that_answers_a_schema_is_recorded_as_its_text(tmp_path: Path, model: LocalEngine) -> None:
    for engine in (model, None):
        book = records.Book(tmp_path, "cell", filling=engine is not None)
        lm = records.RecordedLM("noise", book, engine, max_tokens=64)
        program = dspy.Predict("question -> label: Literal['yes', 'no']")
        with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
            assert program(question="Is it?").label in ("yes", "no")
        assert json.loads(lm.asked[-1]["text"])["label"] in ("yes", "no")
        book.close()
