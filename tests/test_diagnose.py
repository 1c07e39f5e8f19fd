"""`cuesmith diagnose`: its three outputs, bad input, and that nothing a model wrote becomes markup."""

from __future__ import annotations

import html.parser
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from diagnose_support import abo_run, run, toy_run
from e2e_support import ToyEngine, toy_compile, toy_lm
from rich.console import Console

from cuesmith.programs import diagnose
from cuesmith.programs.diagnosis import page
from cuesmith.programs.diagnosis.figures import Curve, Figure, Section
from cuesmith.programs.diagnosis.live import plan
from cuesmith.programs.diagnosis.run_record import RunRecord, passed
from cuesmith.programs.tasks import generate

EVIL = "<script>alert(1)</script>\x1b[31m\x00\u202e\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}[red]"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Collects a page's elements and text; refuses what is not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def abo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return abo_run(tmp_path_factory.mktemp("abo"))


def test_tables(abo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(abo) == 0
    out = capsys.readouterr().out
    assert "Diagnosis of a run of ABO" in out
    for title in ("Trajectory of the search", "Change of the words", "Following the prompt of 'predict'"):
        assert title in out
    assert "n = " in out and max(map(len, out.splitlines())) <= 80


def numbers_of(value: object) -> Iterator[object]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers_of(one)
    else:
        yield value


def test_json(abo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(abo, "--json") == 0
    out = capsys.readouterr().out
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert out.count("\n") == 1 and set(found) == {"run", "sections", "results"}
    record = json.loads((abo / "record.json").read_text())
    assert found["run"]["best"] == record["best"] and found["run"]["candidates"] == len(record["candidates"])
    refinements = found["results"]["changes"]["changes"]
    assert len(refinements) == sum(bool(c["origin"]["parents"]) for c in record["candidates"])
    assert found["results"]["trajectory"]["search"]["mean"] == record["candidates"][0]["mean"]
    assert found["results"]["following"][0]["rate"]["n"] > 0
    for section in found["sections"]:
        for figure in section["figures"]:
            assert figure["meaning"].endswith(".") and figure["advice"].endswith(".") and figure["n"] >= 0
    assert all(isinstance(v, str | int | float | bool) or v is None for v in numbers_of(found))


def test_page(abo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.html"
    assert run(abo, "--html", target) == 0
    assert str(target) in capsys.readouterr().out.replace("\n", "")
    text = target.read_text("utf-8")
    seen = Page(text)
    tags = {tag for tag, _ in seen.seen}
    assert {"svg", "polyline", "circle", "table"} <= tags
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert not any(name.startswith("on") or name in ("src", "href", "style") for _, a in seen.seen for name in a)
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "") and "url(" not in text
    assert "prefers-color-scheme: dark" in text and "default-src 'none'" in text
    record = json.loads((abo / "record.json").read_text())
    best = next(c for c in record["candidates"] if c["id"] == record["best"])
    assert best["prompts"]["predict"]["instructions"] in seen.text


def test_json_with_a_page_prints_nothing_else(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(toy, "--json", "--html", tmp_path / "page.html") == 0
    json.loads(capsys.readouterr().out)
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize("missing", ["folder", "run", "record", "journal"])
def test_bad_input_is_one_line_and_2(
    toy: Path, tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "a run\nwith a line end" if missing == "folder" else tmp_path / "run"
    if missing == "run":
        directory.mkdir()
    elif missing != "folder":
        shutil.copytree(toy, directory)
        (directory / {"record": "record.json", "journal": "journal.jsonl"}[missing]).unlink()
    assert run(directory, "--json") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("cuesmith diagnose: error: ")


def test_a_page_that_cannot_be_written_is_one_line_and_1(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(toy, "--html", tmp_path / "no" / "such.html") == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "such.html" in captured.err


@pytest.fixture
def evil(toy: Path, tmp_path: Path) -> Path:
    """A run whose prompts, moves, notes, compiler and training inputs were written by an enemy."""
    copy = shutil.copytree(toy, tmp_path / "evil")
    stored = json.loads((copy / "record.json").read_text())
    stored["compiler"], stored["notes"], stored["stopped_by"] = EVIL, [EVIL, "\ud800"], EVIL
    words = " ".join(f"<b{i}>" for i in range(12))
    for i, candidate in enumerate(stored["candidates"]):
        candidate["origin"]["move"] = EVIL
        steps = f"Step 1: {EVIL.replace(chr(10), ' ')} {i}"
        line = 'Follow every step in order and begin the work of each with its label ("Step 1:", "Step 2:", ...):'
        candidate["prompts"]["self"]["instructions"] = f"{words} {EVIL}\n\n{line}\n{steps}"
    stored["train"][0]["inputs"]["question"] = words
    (copy / "record.json").write_text(json.dumps(stored))
    return copy


def test_what_a_model_wrote_comes_out_as_text(evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.html"
    assert run(evil, "--html", target) == 0
    printed, text = capsys.readouterr().out, target.read_text("utf-8")
    seen = Page(text)
    assert not {tag for tag, _ in seen.seen} & {"script", "img", "b0", "b1"}
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script>alert(1)</script>\\x1b[31m\\x00\\u202e" in seen.text and "{{ 7 * 7 }}[red]" in seen.text
    assert "\\ud800" in seen.text
    for shown in (printed, text):
        assert not {c for c in shown if c != "\n" and not c.isprintable()}
    assert "[red]" in printed and "<script>" in printed.replace("\n", "")
    assert run(evil, "--json") == 0
    assert json.loads(capsys.readouterr().out)["run"]["compiler"] == EVIL


def test_rules_written_by_an_enemy_come_out_as_text(evil: Path) -> None:
    """A step of the prompt becomes the name of a figure."""
    name = f"Rule 1 followed (%): {EVIL}"
    section = Section(
        EVIL,
        EVIL,
        (Figure(name, 1.0, None, None, 1, None, EVIL, EVIL),),
        (Curve(EVIL, [0.0, 1.0], [1.0, None], EVIL, EVIL, [0.5, 0.5], [2.0, None]),),
    )
    text = page.html(EVIL, EVIL, [section], [page.Quote(EVIL, EVIL)])
    seen = Page(text)
    assert "<script" not in text and "<img" not in text and seen.text.count("<script>alert(1)</script>") >= 10
    svg = next(attributes for tag, attributes in seen.seen if tag == "svg")
    assert set(svg) == {"class", "viewbox", "role", "aria-label"} and "<script>" in str(svg["aria-label"])
    console = Console(width=60, record=True, file=io.StringIO(), force_terminal=True)
    page.show(EVIL, [EVIL], [section], console)
    assert "\x1b[31m" not in console.export_text() and "\x00" not in console.export_text()


@pytest.mark.parametrize("y", [[], [None, None], [1.0], [5.0, 5.0], [0.0, 1e9], [None, 1.0, None, 2.0, 3.0]])
@pytest.mark.parametrize("points", [True, False])
def test_curves_of_any_kind_can_be_drawn(y: list[float | None], points: bool) -> None:
    x = [float(i) for i in range(len(y))]
    low, high = ([None if v is None else v + by for v in y] for by in (-1, 1))
    curve = Curve("a", x, y, "x", "y", low, high, points)
    seen = Page(page.html("t", "s", [Section("t", "s", (), (curve,))]))
    known = sum(v is not None for v in y)
    assert sum(tag == "circle" for tag, _ in seen.seen) == known
    for tag, attributes in seen.seen:
        if tag == "circle":
            assert 0 <= float(str(attributes["cx"])) <= 640 and 0 <= float(str(attributes["cy"])) <= 240
    lines = [attributes for tag, attributes in seen.seen if tag == "polyline"]
    assert len(lines) == (0 if points or not known else 2 if y[0] is None else 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "-"), (0.0, "0"), (3.0000000001, "3"), (0.123456, "0.123"), (-12.34, "-12.3"), (12345.6, "12,346"),
     (0.001, "0.001"), (-0.00001, "-1e-05")],
)  # fmt: skip
def test_numbers(value: float | None, expected: str) -> None:
    assert page.number(value) == expected


def test_figures_in_words() -> None:
    assert page.measured(Figure("a", 6.0, -3.78, 17.01, 1, None, "", "")) == "6 [-3.78, 17.0]"
    assert page.measured(Figure("a", 6.0, None, None, 1, None, "", "")) == "6"
    assert page.measured(Figure("a", None, None, None, 1, None, "", "")) == "-"
    assert [page.probability(p) for p in (None, 0.0004, 0.031)] == ["", "<0.001", "0.031"]


def test_from_python(toy: Path) -> None:
    found = diagnose.diagnose(toy)
    assert len(found.changes.changes) == 6 and found.following == ()
    assert [section.title for section in found.sections][-1] == "Following the prompt"
    assert "judge" in found.sections[-1].summary
    plain = cast(dict[str, object], page.plain(found.trajectory))
    assert plain["gain_per_hundred_tokens"] is None


def test_live_instruments_on_the_errors_of_the_run(abo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(abo, "--lm", "simulated", "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [s["title"] for s in found["sections"][-2:]] == [
        "Does the feedback repeat itself?",
        "Does the reflection look at the errors?",
    ]
    record = RunRecord.read(abo)
    planned = plan(record)
    assert captured.err == f"cuesmith diagnose: asking simulated at most {planned.requests} times\n"
    # The student has the most errors, and what is shown are its own, with the labels of their examples.
    assert planned.candidate == record.baseline
    known = {e.text: e.labels["answer"] for e in (*record.train, *record.select)}
    assert all(known[str(error.inputs["question"])] == error.gold["answer"] for error in planned.errors)
    wrong = [o for o in record.outcomes[record.baseline.id].values() if passed(o, 1.0) is False]
    assert 5 < len(planned.errors) <= len(wrong)
    strangers = {str(e.question) for e in generate("reverse", seed=0).train}  # another task than the run's "objects"
    assert {str(error.inputs["question"]) for batch in planned.others for error in batch.errors} <= strangers
    assert found["results"]["live"]["repetition"]["across"]["n"] == 20


def test_a_run_with_few_errors_has_nothing_to_ask_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path, n_val=8, n_train=2, steps=1)
    assert run(tmp_path, "--lm", "simulated") == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "errors of one prompt" in captured.err


def test_a_model_that_cannot_be_asked_is_one_line(abo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(abo, "--lm", "nobody-knows-this-provider/model")
    captured = capsys.readouterr()
    assert status in (1, 2) and captured.out == ""
    assert captured.err.splitlines()[-1].startswith("cuesmith diagnose: error: --lm")


def test_a_threshold_that_no_score_reaches_is_told(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(toy, "--json", "--threshold", "1.5") == 0
    found = json.loads(capsys.readouterr().out)
    assert "No score of the run reaches 1.5" in found["run"]["notes"][-1]
    assert all(one["fixed"] == one["broken"] == 0 for one in found["results"]["changes"]["changes"])
    assert run(toy) == 0
    out = capsys.readouterr().out
    assert "No score" not in out and "gain on fresh examples" in out
    with pytest.raises(SystemExit) as stop:
        run(toy, "--threshold", "nan")
    assert stop.value.code == 2
