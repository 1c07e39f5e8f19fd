"""The papers' studies on recorded replies: what was conducted once is computed again without a model."""

from __future__ import annotations

import importlib
import json
import zlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from dspy import lm15
from gguf_support import write_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


class Talker:
    """A model of rules, that fails now and then; `asked` counts."""

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, request: lm15.Request, marks: object) -> lm15.Response:
        """Return what the rules say."""
        self.asked += 1
        text = "".join(p.text for m in request.messages for p in m.parts if isinstance(p, lm15.TextPart))
        usage = lm15.Usage(input_tokens=1, output_tokens=1, total_tokens=2)
        return lm15.Response(id=None, model=request.model, message=lm15.Message.assistant(self.said(text)),
                             finish_reason="stop", usage=usage)  # fmt: skip

    def said(self, text: str) -> str:
        """Return a reply in the form that is asked for."""
        wanted = {"fits": "True", "rewritten": "What is it?", "reasons": '["it is wrong"]', "output": "positive"}
        for name, value in wanted.items():
            if f"[[ ## {name} ## ]]" in text:
                return f"[[ ## {name} ## ]]\n{value}\n\n[[ ## completed ## ]]"
        return " ".join("abcdefghijklmnopqrstuvwxyz"[zlib.crc32(text.encode()) % 2 :: 2])


@pytest.fixture
def papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, on data and records of its own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("papers")
    folder = tmp_path / "instruction_induction" / "execute"
    folder.mkdir(parents=True)
    data: dict[str, list[tuple[str, str]]] = {
        "sentiment": [(f"film number {k}", ("positive", "negative")[k % 2]) for k in range(100)],
        "singular_to_plural": [(f"w{chr(97 + k % 26)}{k}", f"w{chr(97 + k % 26)}{k}s") for k in range(100)],
        "first_word_letter": [(f"{chr(97 + k % 26)}x{k}", chr(97 + k % 26)) for k in range(100)],
    }
    for name, rows in data.items():
        examples = {str(k): {"input": given, "output": wanted} for k, (given, wanted) in enumerate(rows)}
        (folder / f"{name}.json").write_text(json.dumps({"examples": examples}))
    monkeypatch.setattr(script, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(script, "ALIGNED", tmp_path / "records" / "papers" / "shorthand-qwen05")
    return script


def test_a_study_is_computed_again_from_its_record(
    papers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talker, cell = Talker(), papers.Cell("errors", "sentiment")
    monkeypatch.setattr(papers, "model_at", lambda place: talker)
    first = papers.run(cell, tmp_path, dict.fromkeys(("qwen05", "qwen15"), "http://"))
    assert talker.asked > 0 and first.findings.result.requests > 0
    asked = talker.asked
    again = papers.run(cell, tmp_path, {})
    assert talker.asked == asked and list(papers.report(again)) == list(papers.report(first))
    other = papers.RECORDS / "sentiment-qwen05"
    cell.folder.rename(other)
    papers.run(cell, tmp_path, dict.fromkeys(("qwen05", "qwen15"), "http://"))
    assert talker.asked == asked, "the replies of another folder serve"
    assert (cell.folder / "errors.jsonl.xz").read_bytes() and (other / "errors.jsonl.xz").exists()


def test_a_study_that_an_outage_stopped_is_not_whole(
    papers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Talker):
        def said(self, text: str) -> str:
            if "[[ ## reasons ## ]]" in text:
                raise lm15.AuthError("gone", provider="local")
            return super().said(text)

    monkeypatch.setattr(papers, "model_at", lambda place: Silent())
    cell = papers.Cell("errors", "sentiment")
    with pytest.raises(papers.RecordError, match="stopped by"):
        papers.run(cell, tmp_path, dict.fromkeys(("qwen05", "qwen15"), "http://"))
    assert not list(cell.folder.glob("*.xz")) and (cell.folder / "errors.jsonl").read_bytes()


@pytest.mark.slow
def test_align_pro_is_computed_again_from_its_record(
    papers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl")
    monkeypatch.setattr(papers, "model_at", lambda place: Talker())
    short: dict[str, Any] = {"max_new_tokens": 4}
    monkeypatch.setattr(papers, "TRAINING", replace(papers.TRAINING, steps=2, **short))
    monkeypatch.setattr(papers, "DECODING", replace(papers.DECODING, **short))
    model = write_model(tmp_path / "tiny.gguf")
    papers.align(tmp_path, dict.fromkeys(("qwen05", "qwen15"), "http://"), model, tmp_path / "work")
    assert "mode='weights'" in capsys.readouterr().out
    table = [line for line in papers.aligned(tmp_path) if line.startswith("|")]
    assert [line.split(" | ")[0][2:] for line in table[2:]] == [
        "0.5B alone", "1.5B", "SmolLM2 as it is", "untrained", "Align-Pro", "weights of Lemma 1"]  # fmt: skip
