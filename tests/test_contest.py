"""`cuesmith.compare_compilers`: shared held-out scores, one budget, resume, failures as rows, and what it prints."""

from __future__ import annotations

import json
import math
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import dspy
import pytest
from e2e_support import KEY, Answer, Provider, ToyEngine, exact, toy_lm, words

from cuesmith import Budget, Entrant, compare_compilers
from cuesmith.corpus import MacroF1
from cuesmith.programs.contest import Contest, ContestInterrupted, ContestRow, contest_forecast
from cuesmith.programs.spread import Spread, spread
from cuesmith.teleprompters.registry import COMPILERS
from cuesmith.teleprompters.runtime.journal import JournalError
from cuesmith.teleprompters.runtime.outcomes import Outcome, ProviderFailure, Scored
from cuesmith.teleprompters.runtime.session import CompileError
from cuesmith.teleprompters.runtime.statistics import estimate95, paired_gain

PROGRAM = dspy.Predict("question -> answer")
TRAIN, VAL, TEST = words(6, "t"), words(12, "v"), words(20, "h")


@pytest.fixture(autouse=True)
def entered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in {"toy": "e2e_support:ToySearch", "broken": "contest_support:Breaks",
                        "lacking": "contest_support:NeedsOptuna"}.items():  # fmt: skip
        monkeypatch.setitem(COMPILERS, name, place)


def contest(engine: ToyEngine | dspy.BaseLM, compilers: Any = ("toy",), **options: Any) -> Contest:
    """Compare on the toy task; one model for both roles."""
    lm = toy_lm(engine) if isinstance(engine, ToyEngine) else engine
    given = {
        "metric": exact,
        "trainset": TRAIN,
        "valset": VAL,
        "testset": TEST,
        "optimizer_lm": lm,
        "lms": lm,
        **options,
    }
    return compare_compilers(given.pop("program", PROGRAM), compilers, **given)


class Counting(ToyEngine):
    """Counts how often each held-out word is asked with each system message."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.heard: Counter[tuple[str, str]] = Counter()

    def complete(self, request: Any) -> Any:
        """Count and answer."""
        user = str(request.messages[-1].text)
        self.heard.update((str(request.system), word.question) for word in TEST if f"{word.question}\n" in user)
        return super().complete(request)


def test_the_table_has_paired_gains_over_the_student_and_what_it_cost() -> None:
    engine = Counting()
    found = contest(engine, {"toy": {}, "short": Entrant("toy", {"steps": 1})})
    assert set(engine.heard.values()) == {1}  # every prompt, the student's too, once on each held-out example
    assert found.used.calls == engine.calls and len(found.rows) == 2 and found.unfinished == ()
    student = found.students["cuesmith-test/toy"]
    for row in found.rows:
        (entry,) = row.done
        assert entry.scores is not None and entry.compilation is not None and entry.program is not None
        gain = paired_gain(student.values, entry.scores.values)
        assert entry.gain == gain and row.gain is not None
        assert (row.gain.mean, row.gain.low, row.gain.high) == (gain.difference, gain.low, gain.high)
        assert row.score == estimate95(entry.scores.values) and f"{gain.difference * 100:+.1f}" in found.to_markdown()
        shown = "<0.001" if gain.p_value < 0.001 else f"{gain.p_value:.3f}"
        assert row.p_value == gain.p_value and f"{gain.high * 100:+.1f}] | {shown} | " in found.to_markdown()
        assert entry.used == entry.compilation.spent.total
    assert any("Newcombe's for pairs; p: McNemar's exact test" in sentence for sentence in found.sentences())
    means = [row.score.mean for row in found.rows]
    assert means == sorted(means, reverse=True) and found.best == found.rows[0].entries[0]


def test_who_is_known_in_part_stands_below_the_others() -> None:
    found = contest(ToyEngine(), {"toy": {}, "short": Entrant("toy", {"steps": 1})})
    first, last = (row.done[0] for row in found.rows)
    assert first.scores is not None and last.scores is not None and found.best == first and not found._partly()
    one: list[Outcome] = [Scored(1.0), *(ProviderFailure("a cap") for _ in last.scores.outcomes[1:])]
    lucky = replace(last, scores=replace(last.scores, outcomes=tuple(one)))
    told = replace(found, rows=(replace(found.rows[1], entries=(lucky,), score=estimate95([1.0])), found.rows[0]))
    assert told.best == first and told.rows[0].rank > told.rows[1].rank
    assert f"Not all held-out examples have a score: {lucky.compiler} on 1 of {len(one)}." in told.sentences()


def test_another_scale_stands_in_the_table_as_it_is() -> None:
    hundred = lambda example, prediction, trace=None: 50.0 + 50.0 * exact(example, prediction)  # noqa: E731
    found = contest(ToyEngine(), metric=hundred)
    assert found.best is not None and found.best.scores is not None
    assert "else Student's t of the differences; p: a sign-flip test" in found.to_markdown().replace("\\", "")
    assert f"| {found.best.scores.mean:.1f} [" in found.to_markdown() and "held-out %" not in found.to_markdown()


def test_several_seeds_take_the_compile_as_the_unit() -> None:
    found = contest(ToyEngine(), seeds=(0, 1, 2))
    (row,) = found.rows
    assert [entry.seed for entry in row.done] == [0, 1, 2]
    scores = [entry.scores.values for entry in row.done if entry.scores]
    assert row.gain == spread(scores, [found.students[row.model].values]) and row.gain.compiles == 3
    assert "compiles and examples vary" in found.to_markdown() and row.p_value is None
    assert [said for said in found.sentences() if "95 %" in said] == [
        "95 % intervals over several compiles: Student's t, of compiles and examples that both vary; there is no p."
    ]
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["rows"][0]["compiles"] == 3 and len(told["rows"][0]["entries"]) == 3


def test_one_budget_covers_all_and_every_compile_has_the_same_share() -> None:
    engine = ToyEngine()
    found = contest(engine, {"toy": {}, "long": Entrant("toy", {"steps": 9})}, seeds=(0, 1), budget=Budget(calls=240))
    assert engine.calls == found.used.calls <= 240
    assert found.share == Budget(calls=(240 - 20 - 4 * 20) // 4) and all(not row.errors for row in found.rows)
    assert all(entry.used and entry.used.calls <= 35 for entry in found.entries) and "calls = 35" in found.to_markdown()
    assert {entry.compilation.stopped_by for entry in found.entries if entry.compilation} == {"calls"}


def test_tokens_and_dollars_are_shared_out_likewise() -> None:
    with Provider() as provider:
        lm = provider.lm("gpt-4.1-mini")
        found = contest(lm, budget=Budget(usd=0.01, tokens=40_000))
    assert found.used.tokens <= 40_000 and found.used.usd is not None and found.used.usd <= 0.01
    assert found.share.tokens is not None and found.share.usd is not None and not found.rows[0].errors


def test_a_comparison_goes_on_and_grows_without_paying_twice(tmp_path: Path) -> None:
    engine = Counting()
    first = contest(engine, run_dir=tmp_path)
    paid, took = engine.calls, json.loads((tmp_path / "contest.json").read_text())
    took["rows"][0]["entries"][0]["seconds"] = 500.0
    (tmp_path / "contest.json").write_text(json.dumps(took))
    again = contest(engine, run_dir=tmp_path)
    assert 500.0 <= (again.rows[0].seconds or 0.0) < 600.0, "those of the session before count"
    assert engine.calls == paid == again.used.calls and again.rows[0].gain == first.rows[0].gain
    more = contest(engine, {"toy": {}, "short": Entrant("toy", {"steps": 1})}, run_dir=tmp_path)
    assert more.used.calls == engine.calls > paid and set(engine.heard.values()) == {1}
    kept = json.loads((tmp_path / "contest.json").read_text())
    assert {row["compiler"] for row in kept["rows"]} == {"toy", "short"} and kept["unfinished"] == []


def test_two_comparisons_at_once_have_a_folder_each(tmp_path: Path) -> None:
    second: list[str] = []

    def begin(_nth: int) -> None:
        if not second:
            second.append("")
            with pytest.raises(JournalError, match="is in use: another comparison works in it") as refused:
                contest(idle, run_dir=tmp_path)
            second[0] = str(refused.value)

    idle = ToyEngine()
    contest(ToyEngine(hook=begin), run_dir=tmp_path)
    assert "\n" not in second[0] and idle.calls == 0
    contest(idle, run_dir=tmp_path)  # the folder is free again


def test_a_cache_shares_the_students_scores_among_compiles_too() -> None:
    engine = Counting()
    lm = toy_lm(engine, uuid4().hex, cache=True)
    found = contest(lm, {"toy": {"steps": 1}, "other": Entrant("toy", {"steps": 1, "width": 2})}, testset=TEST)
    assert set(engine.heard.values()) == {1} and found.used.calls == engine.calls and found.used.cache_hits > 0
    assert f"{found.used.cache_hits:,} answers came from dspy's cache" in found.to_markdown().replace("\\", "")


def test_a_share_is_kept_for_held_out_scores_where_a_cache_gave_the_students() -> None:
    lm = toy_lm(ToyEngine(), uuid4().hex, cache=True)
    contest(lm, {"toy": {"steps": 1}})
    found = contest(lm, {"toy": {"steps": 4}}, seeds=(7, 8), budget=Budget(calls=200, tokens=20_000))
    assert found.used.calls <= 200 and [row.errors for row in found.rows] == [()]
    assert found.share == Budget(calls=80, tokens=5_000) and len(found.rows[0].done) == 2


def test_seconds_are_shared_out_too() -> None:
    found = contest(ToyEngine(), {"toy": {"steps": 1}}, budget=Budget(seconds=300))
    assert found.share.seconds is not None and 100 < found.share.seconds < 300 and not found.rows[0].errors


def test_a_failure_is_a_row_that_says_why(tmp_path: Path) -> None:
    found = contest(ToyEngine(), ("broken", "toy", "lacking"), run_dir=tmp_path)
    rows = {row.compiler: row for row in found.rows}
    assert rows["toy"].gain is not None and found.rows[0].compiler == "toy"
    assert "a <b>bug</b> | in the search" in rows["broken"].errors[0]
    assert rows["lacking"].errors == ("this needs optuna: pip install optuna",)
    text = found.to_markdown()
    assert "<b>" not in text and "bug" in text and len([line for line in text.splitlines() if "bug" in line]) == 1


def test_what_a_failed_compile_has_used_is_counted() -> None:
    engine = ToyEngine()
    found = contest(engine, ("broken", "toy", "lacking"))
    used = {row.compiler: row.entries[0].used for row in found.rows}
    assert found.used.calls == engine.calls and used["broken"] is not None and used["broken"].calls > 0
    assert used["lacking"] is None, "it was not begun"


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    """A model that refuses has nothing at all, an engine of one's own no price, a pair without scores no gain."""
    refusal: Answer = (401, {}, {"error": {"message": "no"}})
    with Provider(intercept=lambda nth, body: refusal) as provider:
        lms = {"good": toy_lm(ToyEngine()), "bad": provider.lm()}
        found = contest(lms["good"], {"toy": {"steps": 1}}, lms=lms, run_dir=tmp_path)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert json.loads((tmp_path / "contest.json").read_text())["rows"] == told["rows"]
    good, bad = told["rows"]
    assert told["students"]["bad"] == {"mean": None, "low": None, "high": None, "n": 0} and told["usd"] is None
    assert good["gain"]["mean"] is not None and good["usd"] is None and good["calls"] > 0
    assert bad["score"]["mean"] is bad["gain"] is bad["calls"] is bad["usd"] is bad["seconds"] is None
    (entry,) = bad["entries"]
    assert {entry[name] for name in ("score", "gain", "calls", "usd", "characters", "seconds", "stopped_by")} == {None}
    nan = math.nan
    unpaired = ContestRow("toy", "good", (), estimate95(()), Spread(nan, nan, nan, nan, nan, 0))
    assert json.loads(json.dumps(unpaired.to_json(), allow_nan=False))["gain"]["mean"] is None
    text = found.to_markdown() + replace(found, rows=(unpaired,)).to_markdown()
    assert "nan" not in text and text.count("| unknown |") > 2


def test_a_chain_is_compared_by_its_name() -> None:
    found = contest(ToyEngine(), ("toy >> toy", "toy"), budget=Budget(calls=240))
    assert {row.compiler for row in found.rows} == {"toy >> toy", "toy"} and not any(row.errors for row in found.rows)
    with pytest.raises(ValueError, match="no compiler is called 'toi'"):
        contest(ToyEngine(), ("toy >> toi",))


def test_rows_are_worked_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def counting(*rows: Any) -> Any:
        calls.append(rows)
        return spread(*rows)

    monkeypatch.setattr("cuesmith.programs.contest.spread", counting)
    both = {"toy": {"steps": 1}, "other": Entrant("toy", {"steps": 1, "width": 2})}
    contest(ToyEngine(), both, seeds=(0, 1), run_dir=tmp_path)
    assert len(calls) == 2 * len(both), "a score and a gain each, though the table was kept after every compile"


class Counted(MacroF1):
    """Counts how often it judges all answers."""

    judged = 0

    def corpus(self, examples: Any, predictions: Any) -> float:
        """Count and judge."""
        Counted.judged += 1
        return super().corpus(examples, predictions)


def test_showing_a_table_works_nothing_out_again() -> None:
    found = contest(ToyEngine(), {"toy": {"steps": 1}}, metric=Counted("answer"))
    shown, before = (found.to_markdown(), found.to_json()), Counted.judged
    assert (found.to_markdown(), found.to_json()) == shown and Counted.judged == before > 0
    assert "a bootstrap over examples; p: a test that swaps answers" in found.to_markdown()


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    def press(nth: int) -> None:
        if nth == 110:
            signal.raise_signal(signal.SIGINT)

    engine = ToyEngine(hook=press)
    compilers = {"toy": {"steps": 1}, "second": Entrant("toy", {"steps": 3}), "third": Entrant("toy")}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(ContestInterrupted) as caught:
            contest(engine, compilers, run_dir=tmp_path, max_in_flight=1)
    finally:
        signal.signal(signal.SIGINT, before)
    partial = caught.value.contest
    assert [row.compiler for row in partial.rows] == ["toy"] and len(partial.unfinished) == 2
    assert "1 of 3 compiles are done" in str(caught.value) and "Not done: second (seed 0)" in partial.to_markdown()
    whole = contest(engine, compilers, run_dir=tmp_path, max_in_flight=1)
    assert whole.used.calls == engine.calls and not whole.unfinished


def test_models_have_tables_of_their_own_and_one_that_refuses_stops_no_other() -> None:
    refusal: Answer = (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with Provider(intercept=lambda nth, body: refusal) as provider:
        good, other = toy_lm(ToyEngine(), "good"), toy_lm(ToyEngine(), "other")
        lms = {"good": good, "bad": provider.lm(), "other": other}
        found = contest(good, lms=lms)
        assert [row.model for row in found.rows] == ["good", "bad", "other"]
        bad = found.rows[1]
        assert bad.gain is None and "refuses the key" in bad.errors[0]
        for text in (found.to_markdown(), json.dumps(found.to_json(), allow_nan=False)):
            assert KEY not in text
        with pytest.raises(CompileError, match="refuses the key"):
            contest(good, lms=provider.lm())


def test_a_metric_of_all_answers_together_is_compared_by_its_value() -> None:
    data = [
        dspy.Example(question=f"say {w}", answer=w).with_inputs("question") for w in ("yes", "no", "so", "oh", "hm")
    ]
    found = contest(ToyEngine(), {"toy": {"steps": 1}}, metric=MacroF1("answer"), seeds=(0, 1), testset=data)
    (row,) = found.rows
    student = found.students[row.model].score
    gains = [entry.scores.score - student for entry in row.done if entry.scores]
    assert row.gain is not None and row.gain.mean == pytest.approx(sum(gains) / 2)


def test_the_forecast_bounds_what_a_comparison_uses() -> None:
    engine = ToyEngine()
    most, costs = contest_forecast(PROGRAM, ("toy", "lacking"), metric=exact, trainset=TRAIN, valset=VAL, testset=TEST,
                                   seeds=2)  # fmt: skip
    assert [bool(cost.forecast) for cost in costs] == [True, False]
    assert contest(engine, ("toy",), seeds=(0, 1)).used.calls == engine.calls <= most


def test_held_out_examples_are_in_no_other_set() -> None:
    found = contest(ToyEngine(), testset=[*TEST, *TEST[:3], *TRAIN, *VAL])
    assert found.held_out == len(TEST)


def _refused() -> Sequence[tuple[dict[str, Any], str]]:
    own = dspy.Predict("question -> answer")
    own.set_lm(toy_lm(ToyEngine()))
    return [
        ({"compilers": ("toi",)}, "no compiler is called 'toi'"),
        ({"compilers": ()}, "compilers is empty"),
        ({"compilers": ("toy", "toy")}, "names one twice"),
        ({"compilers": {"toy": {"depth": 1}}}, "has no option depth"),
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (-1,)}, "seed"),
        ({"testset": TRAIN}, "testset has no example that is not in the other sets"),
        ({"trainset": []}, "trainset is empty"),
        ({"optimizer_lm": 3}, "optimizer_lm must be a dspy.LM or a LiteLLM model string, got int"),
        ({"optimizer_lm": " "}, "is no model name"),
        ({"budget": Budget(calls=40)}, "is too small"),
        ({"budget": Budget(usd=1.0)}, "custom engine"),
        ({"lms": [toy_lm(ToyEngine()), toy_lm(ToyEngine())]}, "of different names"),
        ({"program": own}, "set_lm"),
        ({"program": dspy.Module()}, "program Module has no predictors"),
        ({"program": dspy.Predict("question -> ")}, "has no output field"),
    ]


@pytest.mark.parametrize(("options", "problem"), _refused())
def test_wrong_arguments_are_one_line_before_any_call(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    engine = ToyEngine()
    with pytest.raises((TypeError, ValueError), match=problem) as caught:
        contest(engine, **{"run_dir": tmp_path / "new", **options})
    assert engine.calls == 0 and "\n" not in str(caught.value) and not (tmp_path / "new").exists()


def test_labels_are_no_paths(tmp_path: Path) -> None:
    inside = tmp_path / "run"
    contest(
        ToyEngine(), {"../../evil/..": Entrant("toy", {"steps": 1})}, lms={"../x": toy_lm(ToyEngine())}, run_dir=inside
    )
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert {path.name for path in inside.iterdir()} == {"x", "contest.json"}
