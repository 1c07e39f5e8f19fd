"""The report of a compile: what it says, that it says the same of a run in memory and on disk, and that nothing that a
model wrote is more than text in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import dspy
import pytest
from e2e_support import KEY, ToyEngine, ToySearch, exact, toy_compile, toy_lm, toy_reply, words
from report_support import EVIL, hostile_run, large_run

from cuesmith import Budget, Compilation, CompileError, RunReport
from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, Origin, Prompt
from cuesmith.teleprompters.runtime.record import FILE
from cuesmith.teleprompters.runtime.run_report.honest import Scoring, verdict_of
from cuesmith.teleprompters.runtime.run_report.word_diff import Piece, prompt_changes, word_diff
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain

TAGS = {
    *("a", "b", "body", "circle", "code", "dd", "del", "details", "div", "dl", "dt", "figcaption", "figure", "footer"),
    *("h1", "h2", "h3", "h4", "head", "header", "html", "ins", "li", "line", "main", "nav", "ol", "p", "path"),
    *("polygon", "polyline", "rect", "script", "section", "span", "strong", "style", "summary", "svg", "table"),
    *("tbody", "td", "text", "tfoot", "th", "thead", "title", "tr", "ul"),
}
VOID = {"br", "meta"}


class Parsed(HTMLParser):
    """A page, read strictly: what is opened is closed in turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._said: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert not self.open
        self.said = {tag: "".join(texts) for tag, texts in self._said.items()}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self._said.setdefault(tag, []).append(data)

    def values(self, name: str) -> list[str]:
        return [value or "" for known, value in self.attributes if known == name]


def require_inert(page: str) -> Parsed:
    """Return a whole page, parsed, of which nothing but its own script runs, and nothing is fetched."""
    parsed = Parsed(page)
    assert set(parsed.tags) <= TAGS | VOID
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("src", "style", "srcset")]
    ids, links = parsed.values("id"), parsed.values("href")
    assert len(set(ids)) == len(ids) and set(links) <= {f"#{one}" for one in ids}
    policy = next(value for value in parsed.values("content") if "default-src" in value)
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parsed.said[tag].encode()).digest()).decode()
        assert parsed.tags.count(tag) == 1 and f"{tag}-src 'sha256-{digest}'" in policy
    return parsed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compilation]:
    directory = tmp_path_factory.mktemp("run")
    return directory, toy_compile(toy_lm(ToyEngine()), run_dir=directory).compilation


def test_a_page_says_what_the_compilation_knows(finished: tuple[Path, Compilation]) -> None:
    directory, c = finished
    parsed = require_inert(c.to_html())
    said = parsed.said["body"]
    assert c.gain is not None and c.best.fresh is not None and c.baseline.fresh is not None
    difference = f"{100 * c.gain.difference:.1f} points"
    assert difference in parsed.said["h1"] and f"n = {c.gain.n}" in parsed.said["h1"]
    assert f"{100 * c.best.fresh.mean:.1f} %" in said and f"{100 * c.baseline.fresh.mean:.1f} %" in said
    assert f"{c.spent.total.calls:,}" in said and f"cuesmith diagnose {directory}" in said
    assert c.best.candidate.prompts["self"].instructions in said
    assert all(note.text in said for note in c.notes)
    assert said.count("What changed") == len(RunReport.of(c).line) - 1
    won = sum(b == 1 and a == 0 for a, b in zip(*_select(c), strict=True))
    assert f"Won: the returned prompt did better: {won}" in said
    assert "say v" in said and parsed.tags.count("polyline") >= 2


def _select(c: Compilation) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    scores = {t.candidate.id: t.scores for t in c.candidates}
    return scores[c.baseline.candidate.id], scores[c.best.candidate.id]


def test_every_word_of_the_answers_is_one_click_away(finished: tuple[Path, Compilation]) -> None:
    report = RunReport.of(finished[1])
    for contrast in report.contrasts:
        assert [case.number for case in contrast.cases] == list(range(1, 21))
        for case in contrast.cases:
            assert case.view is not None and case.view.best is not None and case.view.baseline is not None
            right = case.view.labels["answer"]
            assert (case.view.best.steps[0][1]["answer"] == right) == (case.view.best.score == 1) == (case.after == 1)
            assert (
                case.fate
                == {(0, 0): "wrong", (0, 1): "won", (1, 0): "lost", (1, 1): "right"}[
                    int(case.before or 0), int(case.after or 0)
                ]
            )


def test_the_run_directory_tells_the_same(finished: tuple[Path, Compilation]) -> None:
    directory, c = finished
    read = RunReport.read(directory)
    assert read.to_json() == c.to_json() and read.to_markdown() == c.to_markdown() and read.diff() == c.diff()
    assert read.to_html() == c.to_html()
    told = json.loads(json.dumps(c.to_json(), allow_nan=False))
    assert told["gain"]["difference"] == c.gain.difference if c.gain else False
    assert told["best"]["id"] == c.best.candidate.id and told["calls"] == c.spent.total.calls
    assert [m["id"] for m in told["candidates"]] == [t.candidate.id for t in c.candidates]
    assert told["lineage"][-1] == c.best.candidate.id and told["lineage"][0] == c.baseline.candidate.id


def test_a_run_that_was_not_kept_has_the_same_report(finished: tuple[Path, Compilation]) -> None:
    c = toy_compile(toy_lm(ToyEngine())).compilation
    told, kept = c.to_json(), finished[1].to_json()
    for one in (told, kept):
        for name in ("run_dir", "seconds", "spent", "steps", "notes", "provenance"):
            del one[name]
    assert told == kept
    assert "With <code>run_dir=</code>" in c.to_html()


def test_steps_know_the_calls_until_then(finished: tuple[Path, Compilation]) -> None:
    c = finished[1]
    calls = [step.calls or 0 for step in c.steps]
    assert calls == sorted(calls) and calls[0] >= len(_select(c)[0]) and calls[-1] <= c.spent.total.calls


def test_the_difference_is_of_one_predictor_or_of_all(finished: tuple[Path, Compilation]) -> None:
    c = finished[1]
    assert c.diff() == c.diff("self") and "-Given the fields" in c.diff() and "+Repeat the word." in c.diff()
    with pytest.raises(ValueError, match="no predictor 'other': the program has self"):
        c.diff("other")


def test_what_models_wrote_is_text_and_no_more(tmp_path: Path) -> None:
    c = hostile_run(tmp_path)
    assert "<script>document.title='run'</script>" in c.best.candidate.prompts["self"].instructions
    report = RunReport.read(tmp_path)
    page, fragment = report.to_html(), report._repr_html_()
    parsed = require_inert(page)
    assert parsed.tags.count("title") == 1 + sum(tag == "circle" for tag in parsed.tags) - page.count('class="dot')
    assert "</script></style></title><script>" in parsed.said["body"] and "{{ 7 * 7 }}" in parsed.said["body"]
    assert set(Parsed(fragment).tags) <= TAGS | VOID
    for text in (page, fragment, report.to_markdown()):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
        assert r"\u202e" in text or text is fragment
    fenced = re.sub(r"(?s)^(`{3,})diff\n.*?\n\1$", "", report.to_markdown(), flags=re.MULTILINE)
    assert not re.search(r"(?<!\\)<(script|img|svg|a)\b", fenced)
    assert len(page) < 600_000, "words of 100 kB are cut"


def test_no_key_is_in_a_report(tmp_path: Path) -> None:
    def repeats(system: str, user: str, drawn: int | None) -> str:
        return (
            toy_reply(system, user, drawn)
            .replace("Repeat the word.", f"Repeat the word.\n{KEY}")
            .replace("\nno\n", f"\nno {KEY}\n")
        )

    c = toy_compile(toy_lm(ToyEngine(reply=repeats)), run_dir=tmp_path).compilation
    assert KEY in c.best.candidate.prompts["self"].instructions
    for r in (RunReport.of(c), RunReport.read(tmp_path)):
        for text in (r.to_html(), r.to_markdown(), r.diff(), r._repr_html_(), str(r.to_json())):
            assert KEY not in text
        assert "Repeat the word." in r.to_html()


def test_a_record_of_an_earlier_version_shows_what_it_has(finished: tuple[Path, Compilation], tmp_path: Path) -> None:
    record = json.loads((finished[0] / FILE).read_text())
    for name in ("seconds", "reports", "shown", "front", "provenance"):
        record.pop(name, None)
    for step in record["steps"]:
        del step["calls"]
    for used in record["spent"].values():
        del used["cache_hits"], used["replayed"]
    record["notes"] = [note["text"] for note in record["notes"]]
    (tmp_path / FILE).write_text(json.dumps(record))
    bare = RunReport.read(tmp_path)
    assert bare.verdict.text == finished[1].report.verdict.text and bare.contrasts[0].counts["won"] > 0
    assert "was not run on this example" not in require_inert(bare.to_html()).said["body"], "no words, no empty boxes"
    (tmp_path / "journal.jsonl").write_bytes((finished[0] / "journal.jsonl").read_bytes())
    whole = RunReport.read(tmp_path)
    case = whole.contrasts[1].cases[0]
    assert case.view is not None and case.view.best is not None and case.view.best.steps[0][0] == "self"
    assert require_inert(whole.to_html()).said["h1"] == require_inert(bare.to_html()).said["h1"]


def test_what_is_no_finished_run_is_one_clear_line(finished: tuple[Path, Compilation], tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "journal.jsonl").write_bytes((finished[0] / "journal.jsonl").read_bytes())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / FILE).write_text('{"format": 1')
    wrong = {"none": "no such folder", "begun": "has not finished", "bad": "no JSON", ".": "no run in it"}
    for name, said in wrong.items():
        with pytest.raises(ValueError, match=said) as raised:
            RunReport.read(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_a_compile_that_scored_nothing_leaves_no_report(tmp_path: Path) -> None:
    def broken(nth: int) -> None:
        raise ConnectionError("down")

    with pytest.raises(CompileError):
        toy_compile(toy_lm(ToyEngine(hook=broken), num_retries=0), run_dir=tmp_path)
    with pytest.raises(ValueError, match="has not finished; compile again"):
        RunReport.read(tmp_path)


def test_a_stopped_run_says_by_what(tmp_path: Path) -> None:
    c = toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path, budget=Budget(calls=60)).compilation
    page = require_inert(c.to_html()).said["body"]
    assert c.stopped_by == "calls" and "The search was stopped by the cap on calls" in page
    assert "stopped by the cap on calls" in c.to_markdown()


def test_a_student_that_is_returned_is_called_so() -> None:
    def stubborn(system: str, user: str, drawn: int | None) -> str:
        return toy_reply(system, user, drawn).replace("skill=", "level=")

    c = toy_compile(toy_lm(ToyEngine(reply=stubborn))).compilation
    assert c.best == c.baseline and c.diff() == ""
    parsed = require_inert(c.to_html())
    assert "unchanged" in parsed.said["h1"] and "The returned prompt:" not in parsed.said["body"]
    assert c.report.verdict.tone == "none" and "(unchanged)" in c.to_markdown()


def test_scores_of_another_scale_are_not_percent() -> None:
    def marks(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return 10.0 * exact(example, prediction)

    c = (
        ToySearch(marks, optimizer_lm=toy_lm(ToyEngine()), max_in_flight=4)
        .compile(_student(), trainset=words(12, "t"), valset=words(40))
        .compilation
    )
    said = require_inert(c.to_html()).said["body"]
    assert "in the metric's unit" in c.report.verdict.text and " %, " not in said and "score by" in c.to_html()
    assert c.report.contrasts[0].counts["right"] + c.report.contrasts[0].counts["won"] > 0


def _student() -> dspy.Module:
    program = dspy.Predict("question -> answer")
    program.set_lm(toy_lm(ToyEngine()))
    return program


def test_a_program_of_several_predictors_has_a_difference_for_each() -> None:
    demo = Demo.of({"q": "1", "a": "2"})
    before = Candidate({"a": Prompt("Do it.", (demo,)), "b": Prompt("Then this.")})
    after = Candidate(
        {"a": Prompt("Do it well.", (demo, Demo.of({"q": "3", "a": "4"}))), "b": Prompt("Then this.")},
        Origin("edit", (before.id,)),
    )
    first, second = prompt_changes(before, after)
    assert first.changed and not second.changed
    assert [(piece.kind, piece.text) for piece in first.demos] == [("same", "q: 1\na: 2"), ("new", "q: 3\na: 4")]
    assert [piece for piece in first.instructions if piece.kind != "same"] == [Piece("new", " well")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a b c", "a x c"),
        ("", "new"),
        ("old", ""),
        ("same", "same"),
        ("a\n\nb", "a\nb c"),
        ("1, 2; 3", "1, 3"),
        ("one two three four", "entirely other words"),
        ("w" * 100_000, "w" * 99_999),
        ("x y " * 5000, "x z " * 5000),
    ],
)
def test_a_word_diff_loses_nothing(before: str, after: str) -> None:
    start = time.perf_counter()
    pieces = word_diff(before, after)
    assert "".join(p.text for p in pieces if p.kind != "new") == before
    assert "".join(p.text for p in pieces if p.kind != "gone") == after
    assert (before == after) == all(p.kind == "same" for p in pieces) and time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("gain", "tone", "text"),
    [
        (Gain(0.4, 0.3, 0.5, 1e-5, 50), "gain", "gains 40.0 points against the student (95 % interval 30.0 to 50.0, n"),
        (Gain(-0.4, -0.5, -0.3, 1e-5, 50), "loss", "loses 40.0 points against the student"),
        (Gain(0.02, -0.1, 0.14, 0.77, 50), "none", "No gain can be told: +2.0 points against the student"),
        (Gain(1.0, float("nan"), float("nan"), 1.0, 1), "none", "(n = 1, p = 1)"),
        (None, "unknown", "cannot be told: it was not measured on fresh examples"),
    ],
)
def test_the_honest_sentence(gain: Gain | None, tone: str, text: str) -> None:
    select = Estimate95(0.2, 0.1, 0.3, 40), Estimate95(0.9, 0.8, 1.0, 40)
    found = verdict_of(Scoring(True), gain, "", select, [0.0] * 48 + [1.0, 0.0])
    assert found.tone == tone and text in found.text and "40 selection examples" in found.grounds
    assert ("would show a gain of" in found.grounds) == (tone == "none")


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (Gain(0.8, 0.193, 0.964, 0.125, 5), " The interval leaves 0 out, but the test does not:"),
        (Gain(0.1, -0.01, 0.2, 0.04, 50), " The test rules out chance, but the interval does not:"),
        (Gain(0.1, -0.1, 0.2, 0.4, 50), ""),
    ],
)
def test_where_interval_and_test_disagree_it_says_so(gain: Gain, said: str) -> None:
    found = verdict_of(Scoring(True), gain, "", (None, None), [1.0, 0.0])
    assert found.tone == "none" and said in found.grounds
    assert ("a gain is told only where both agree" in found.grounds) == bool(said)


def test_a_page_of_2000_candidates_is_small_and_quick(tmp_path: Path) -> None:
    report = RunReport.read(large_run(tmp_path, 2_000, 20))
    start = time.process_time()
    page = report.to_html()
    assert time.process_time() - start < 8 and len(page) < 1_500_000
    assert require_inert(page).tags.count("tr") > 2_000 and "All 2,000 candidates" in page
    assert len(report._repr_html_()) < 60_000


def test_evil_is_evil() -> None:
    with pytest.raises(AssertionError):
        Parsed(f"<p>{EVIL}</p>")


def test_a_prompter_in_front_is_said(finished: tuple[Path, Compilation]) -> None:
    record = dict(finished[1].record)
    best = next(c for c in record["candidates"] if c["id"] == record["best"])
    student = next(c for c in record["candidates"] if c["id"] == record["baseline"])
    changed = {**best, "prompts": student["prompts"], "prompter": "f" * 16}
    rows = [changed if c is best else c for c in record["candidates"]]
    report = RunReport.of(replace(finished[1], record={**record, "candidates": rows}))
    assert not report.unchanged and report.diff() == ""
    assert "A trained prompter stands in front of the program" in require_inert(report.to_html()).said["body"]


def test_provenance_is_shown_without_the_digits_that_mean_nothing(finished: tuple[Path, Compilation]) -> None:
    told = {"score": {"mean": 0.4444444444444444, "n": 9}, "seed": 0}
    report = RunReport.of(replace(finished[1], record={**finished[1].record, "provenance": told}))
    assert "0.4444" in report.to_html() and "0.44444" not in report.to_html()


def test_provenance_is_shown_whatever_it_holds(finished: tuple[Path, Compilation]) -> None:
    told = {"seed": 3, "score": {"mean": 0.5}, "target": EVIL[:-1], "created": "2026-11-30", "gain": None}
    report = RunReport.of(replace(finished[1], record={**finished[1].record, "provenance": told}))
    said = require_inert(report.to_html()).said["body"]
    assert "score.mean" in said and "2026-11-30" in said and "Where it comes from" in said and "{{ 7 * 7 }}" in said
