"""The quickstart's parts: comparison, evaluation, report and progress, on models that answer at once."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
from dspy.lm15 import AuthError
from gguf_support import write_model
from rich.console import Console

from cuesmith import Interrupted, LocalLM, SimulatedOptimizer
from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.programs import quickstart, report
from cuesmith.programs.arguments import parsed
from cuesmith.programs.commands import quick
from cuesmith.programs.comparison import (
    BadInput,
    Result,
    RunFailed,
    Settings,
    Variant,
    forecast,
    models,
    read_task,
    run,
)
from cuesmith.programs.evaluation import compare, estimate, evaluate
from cuesmith.programs.models import EMBEDDED, SIMULATED
from cuesmith.programs.pace import LONGER, RACED, Pace, expect, measure
from cuesmith.programs.tasks import Sizes, generate, load
from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, Origin, Prompt
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.events import EffectDone, Retried, RunStarted, Stopped
from cuesmith.teleprompters.runtime.fingerprint import fingerprint
from cuesmith.teleprompters.runtime.progress_bar import Progress
from cuesmith.teleprompters.runtime.statistics import Gain
from cuesmith.testing import Engine, Sent
from cuesmith.testing.fakes import Reply, chat

SETTINGS = Settings(task="max", compilers=("iterative-ape",), test_size=30)
SHORT = replace(SETTINGS, test_size=12, budget_calls=450)


def obedient(sent: Sent) -> str:
    """Answer right if the instructions say anything of numbers or demonstrations are given, else wrongly."""
    solved = FAMILIES["max"].solve(str(sent.asked.inputs["question"]))
    told = any(text in sent.system for text in FAMILIES["max"].instructions) or len(sent.turns) > 1
    return chat({"reasoning": "So.", "answer": solved.answer if told and solved else "none"})


def impatient(sent: Sent) -> str:
    """Have its user press Ctrl-C, once, when the student has been scored."""
    if sent.nth == 152:
        signal.raise_signal(signal.SIGINT)
    return obedient(sent)


def refusing(sent: Sent) -> str:
    """Be a provider whose key is wrong."""
    raise AuthError("the key is [bold]wrong[/bold]")


def target(reply: Reply = obedient) -> dspy.LM:
    return Engine(reply).lm("quickstart-target")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    settings = replace(SETTINGS, save=tmp_path_factory.mktemp("saved") / "deep" / "program.json")
    return run(settings, read_task(settings), target(), SimulatedOptimizer())


def test_compiling_shows_its_gain_on_held_out_examples(result: Result) -> None:
    (row,) = result.rows
    assert estimate(result.baseline).mean == 0.0 and estimate(row.scores).mean == 1.0
    assert row.gain.n == 30 and row.gain.difference == 1.0 and row.gain.significant
    assert row.compilation.stopped_by is None and row.compilation.spent.by_role["optimizer"].calls > 0


def test_the_saved_program_loads(result: Result) -> None:
    (row,) = result.rows
    assert row.saved == result.settings.save
    loaded = dspy.ChainOfThought(result.task.signature)
    loaded.load(row.saved)
    with dspy.context(lm=target()):
        assert loaded(question="3 9 4").answer == "9"


def test_the_result_as_json(result: Result) -> None:
    data = json.loads(json.dumps(quickstart.to_json(result), allow_nan=False))
    (row,) = data["compilers"]
    assert row["compiler"] == "iterative-ape" and row["diff"].startswith("--- before\n+++ after\n")
    assert row["baseline"] == data["baseline"] and row["compiled"]["mean"] == 1.0
    assert row["calls"]["target"] == row["spent"]["target"]["calls"] > 0


def test_the_result_as_text(result: Result) -> None:
    console = Console(file=io.StringIO(), width=200)
    quickstart.show(result, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in ("0.0 [0.0, ", "100.0 [", "+100.0 [", "<0.001", "calls: ", "--- before", "+++ after"):
        assert part in text
    assert str(result.rows[0].saved) in text
    assert EMBEDDED.caveat in " ".join(text.split()) and SIMULATED.caveat in " ".join(text.split())


def test_a_wrong_key_is_one_clear_line() -> None:
    lm = target(refusing)
    with pytest.raises(RunFailed, match="refuses the key") as caught:
        run(SETTINGS, read_task(SETTINGS), lm, SimulatedOptimizer())
    assert "\n" not in str(caught.value)


def test_a_run_directory_resumes_and_refuses_another_run(tmp_path: Path) -> None:
    settings, engine = replace(SHORT, run_dir=tmp_path / "run"), Engine(obedient)
    lm = dspy.LM("test/quickstart-resumed", engine=engine, cache=False)
    first = run(settings, read_task(settings), lm, SimulatedOptimizer()).rows[0]
    made = engine.calls
    second = run(settings, read_task(settings), lm, SimulatedOptimizer()).rows[0]
    assert engine.calls - made == 2 * settings.test_size  # the held-out scores alone
    assert second.compilation.best.candidate == first.compilation.best.candidate
    assert second.compilation.spent.total.replayed == second.compilation.spent.total.calls > 0
    with pytest.raises(BadInput, match="run"):
        run(replace(settings, seed=1), read_task(replace(settings, seed=1)), lm, SimulatedOptimizer())


def test_a_dollar_cap_on_a_model_without_a_price_is_refused_before_any_call() -> None:
    engine = Engine(obedient)
    lm = dspy.LM("test/quickstart-unpriced", engine=engine, cache=False)
    settings = replace(SETTINGS, budget_usd=1.0)
    with pytest.raises(BadInput, match="usd"):
        run(settings, read_task(settings), lm, SimulatedOptimizer())
    assert engine.calls == 0


def test_variants_and_their_names() -> None:
    settings = Settings(ablation=True)
    assert [v.slug for v in settings.variants] == ["iterative-ape", "abo", "abo-no-demos"]
    bounds = forecast(settings, read_task(settings))
    assert all(f.calls > 100 and f.optimizer_calls > 0 for f in bounds.values())


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(task="sum", lm="openai/gpt-4.1-mini", budget_usd=2.0, budget_calls=500),
        Settings(data=Path("it's.json"), optimizer_lm="anthropic/claude", test_size=100),
        Settings(data=Path("rows.csv"), inputs=("a b", "c"), outputs=("d",), metric="f1"),
        Settings(local=Path("it's.gguf"), threads=1, validation_size=60, test_size=60, budget_calls=300),
    ],
)
def test_the_printed_python_is_complete(settings: Settings) -> None:
    tree = ast.parse(quickstart.python_lines(settings, Variant("abo", demonstrations=False)))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {alias.name for node in imports for alias in node.names}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names - {"task", "compiled", "int"} == imported
    assert len(tree.body) - len(imports) == 3


def test_the_printed_python_does_the_same(result: Result) -> None:
    code = quickstart.python_lines(result.settings, result.rows[0].variant)
    code = code.replace("dspy.configure(lm=EmbeddedLM())\n", "")
    space: dict[str, object] = {}
    with dspy.context(lm=target()):
        exec(code, space)
    compiled = space["compiled"]
    assert isinstance(compiled, dspy.Module)
    assert Candidate.of(compiled) == result.rows[0].compilation.best.candidate


def test_told_columns_of_data_are_read_and_printed(tmp_path: Path) -> None:
    rows = [{"a": f"text {k}", "b": ("x y", "z w")[k % 2], "c": "other"} for k in range(30)]
    (path := tmp_path / "rows.json").write_text(json.dumps(rows))
    settings = Settings(data=path, inputs=("a", "c"), outputs=("b",), metric="exact", test_size=8)
    task = read_task(settings)
    assert task.fields == "a, c -> b: one of 2" and len(task.test) == 8
    code = quickstart.python_lines(settings, Variant("abo"))
    call = f"load({str(path)!r}, inputs=('a', 'c'), outputs=('b',), metric='exact', sizes=Sizes(test=8), seed=0)"
    assert f"task = {call}\n" in code
    space: dict[str, object] = {"load": load, "Sizes": Sizes}
    assert fingerprint(eval(call, space).train) == fingerprint(task.train)
    forecasts = forecast(settings, task)
    assert all(each.calls > 100 for each in forecasts.values())
    heading = str(quickstart._heading(settings, task, forecasts))
    assert 'ChainOfThought("a, c -> b: one of 2")' in heading and "metric     ExactMatch(output='b')" in heading


def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell ignores it
    settings = replace(SETTINGS, save=tmp_path / "best.json")
    lm = target(impatient)
    try:
        with pytest.raises(Interrupted, match=r"the best so far is .*best\.json; --run-dir keeps") as caught:
            run(settings, read_task(settings), lm, SimulatedOptimizer())
    finally:
        signal.signal(signal.SIGINT, before)
    loaded = dspy.ChainOfThought("question -> answer")
    loaded.load(tmp_path / "best.json")
    assert Candidate.of(loaded) == Candidate.of(caught.value.program)


# --- a model file ---


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A run on a tiny model that writes noise, which no second request as JSON would mend."""
    file = write_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    short = Settings(task="max", compilers=("iterative-ape",), local=file, threads=1)
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        yield replace(short, validation_size=4, test_size=3, budget_calls=16)


def test_a_model_file_runs_the_whole_job_and_says_its_minutes_beforehand(
    local: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = replace(local, save=tmp_path / "program.json")
    assert quickstart.main(settings) == 0
    text = capsys.readouterr().out
    before, _, after = text.partition("held-out score, %")
    assert "on local/tiny\noptimizer  local/tiny\ncalls      at most 16 (iterative-ape)" in before
    assert re.search(r"time       about \S+( to \S+)? minutes: .* to compile, .* for the held-out scores\n", before)
    assert "measured just now: " in before and "--validation-size" in before
    assert f"LocalLM({str(settings.local)!r}, threads=1, max_tokens=256)" in after
    assert EMBEDDED.caveat not in text and SIMULATED.caveat not in text
    assert json.loads((tmp_path / "program.json").read_text())["predict"]["lm"] is None


def test_what_a_run_was_expected_to_take_stands_in_its_json(
    local: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quickstart.main(local, as_json=True) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["lm"], data["optimizer_lm"], data["simulated"]) == ("local/tiny", "local/tiny", False)
    assert data["expected"]["at_once"] == 8 and data["expected"]["seconds"]["program_run"] > 0
    minutes = data["expected"]["minutes"]
    assert 0 < minutes["whole"][0] < minutes["whole"][1] and set(minutes) == {"whole", "compiling", "held_out"}


def test_the_printed_models_are_those_of_the_run(local: Settings) -> None:
    for made, choice in zip(models(local), (local.target, local.optimizer), strict=True):
        printed = eval(choice.code, {"LocalLM": LocalLM})
        assert printed.dump_state() == made.dump_state()


def test_which_model_does_what() -> None:
    a, b = Path("a.gguf"), Path("b.gguf")
    given = [
        Settings(local=a, local_optimizer=b),
        Settings(local=a, optimizer_lm="openai/gpt-4.1"),
        Settings(lm="openai/gpt-4.1-mini", local_optimizer=b),
        Settings(),
    ]
    assert [(each.target.name, each.optimizer.name) for each in given] == [
        ("local/a", "local/b"),
        ("local/a", "openai/gpt-4.1"),
        ("openai/gpt-4.1-mini", "local/b"),
        ("cuesmith/nano", "cuesmith/simulated-optimizer"),
    ]


def test_minutes_follow_from_the_bounds_the_budget_and_the_pace(local: Settings) -> None:
    settings = replace(local, budget_calls=50, test_size=30)
    task = read_task(settings)
    expected = expect(settings, task, [Forecast(10, 90, 100)], Pace(2.0, 12.0, 8))
    least = 5 * 12 + 45 * 2  # every candidate is scored in full: the budget ends it, half way
    most = 10 * 12 + 90 * RACED * 2 * LONGER  # candidates are dropped early: more of the calls are requests
    assert expected.compiling == pytest.approx((least / 60, most / 60))
    assert expected.scoring == pytest.approx((2.0, 1 + LONGER))
    assert expected.lines()[0] == "about 4 to 7 minutes: 2.5 to 4 to compile, 2.0 to 3 for the held-out scores"


def test_only_what_is_free_is_measured(local: Settings) -> None:
    optimizer = target(refusing)
    settings = replace(local, optimizer_lm="test/quickstart-unasked")
    pace = measure(settings, read_task(settings), models(local)[0], optimizer)
    assert pace.request is None and pace.run is not None
    first, second = expect(settings, read_task(settings), [Forecast(1, 9, 10)], pace).lines()
    assert first.endswith("; a provider's time comes on top") and "optimizer" not in second


def test_a_damaged_model_file_is_one_line_before_anything_runs(tmp_path: Path, local: Settings) -> None:
    (file := tmp_path / "damaged.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(100))
    with pytest.raises(BadInput, match=r"damaged\.gguf: .*") as caught:
        quickstart.main(replace(local, local=file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "compilers", "test_size", "calls"),
    [
        ([], ("iterative-ape", "abo"), 250, None),
        (["--local", "m.gguf"], quick.LOCAL["compilers"], 60, 300),
        (["--local-optimizer", "m.gguf", "--compiler", "both"], ("iterative-ape", "abo"), 60, 300),
        (["--local", "m.gguf", "--test-size", "9", "--budget-calls", "7"], quick.LOCAL["compilers"], 9, 7),
    ],
)
def test_a_model_file_brings_smaller_numbers_unless_others_are_given(
    given: list[str], compilers: tuple[str, ...], test_size: int, calls: int | None
) -> None:
    settings = parsed(quick.QuickOptions, given).settings
    assert (settings.compilers, settings.test_size, settings.budget_calls) == (compilers, test_size, calls)


# --- evaluation ---


def test_evaluate_and_compare() -> None:
    task = generate("max")
    program = dspy.ChainOfThought(task.signature)
    told = Candidate({"predict": Prompt(FAMILIES["max"].instructions[0])}, Origin("test")).bind(program)
    lm = target()
    scores = [evaluate(p, task.test[:10], task.metric, lm=lm) for p in (program, told)]
    gain = compare(*scores)
    assert (gain.difference, gain.n) == (1.0, 10)
    with pytest.raises(ValueError, match="same examples"):
        compare(scores[0], evaluate(told, task.test[1:11], task.metric, lm=lm))
    with pytest.raises(ValueError, match="at least one example"):
        evaluate(program, [], task.metric, lm=lm)


# --- report ---


def test_untrusted_text_cannot_reach_the_terminal() -> None:
    evil = "fine\x1b[2J\x07\u202e [red]x[/red] \r\n\tend"
    safe = report.visible(evil)
    assert not set(safe) & {"\x1b", "\x07", "\r", "\u202e"} and "[red]x[/red]" in safe and "\n\tend" in safe
    prompts = [Candidate({"p": Prompt(text)}, Origin("test")) for text in ("calm", evil)]
    console = Console(file=io.StringIO(), force_terminal=False)
    console.print(report.styled_diff(report.prompt_diff(*prompts)))
    assert isinstance(console.file, io.StringIO)
    assert "\x1b" not in console.file.getvalue() and "[red]x[/red]" in console.file.getvalue()


def test_a_prompt_difference_shows_instructions_and_demonstrations() -> None:
    demos = (Demo.of({"question": "q1", "answer": 3}),)
    before, after = Candidate({"p": Prompt("old")}), Candidate({"p": Prompt("new", demos)})
    diff = report.prompt_diff(before, after).splitlines()
    assert "-old" in diff and "+new" in diff and "+question: q1" in diff and "+answer: 3" in diff
    assert report.prompt_diff(before, before) == ""


def test_gains_are_described_plainly() -> None:
    sure, none = Gain(0.412, 0.3, 0.5, 1e-9, 250), Gain(-0.01, -0.02, 0.04, 0.4, 250)
    assert (report.describe_gain(sure), report.describe_p(sure)) == ("+41.2 [+30.0, +50.0]", "<0.001")
    assert (report.describe_gain(none), report.describe_p(none)) == ("-1.0 [-2.0, +4.0]", "0.400")
    assert report.describe_gain(Gain(math.nan, math.nan, math.nan, 1.0, 0)) == "not measured"


def test_no_significant_gain_is_said_in_plain_words(result: Result) -> None:
    row = replace(result.rows[0], gain=Gain(0.01, -0.02, 0.04, 0.4, 250))
    console = Console(file=io.StringIO(), width=80)
    quickstart.show(replace(result, rows=(row,)), console)
    assert isinstance(console.file, io.StringIO)
    assert "no significant gain on the held-out examples" in console.file.getvalue()


# --- progress ---


def test_progress_is_silent_without_a_terminal() -> None:
    console = Console(file=io.StringIO())
    with Progress(console) as progress:
        run(SHORT, read_task(SETTINGS), target(), SimulatedOptimizer(), callbacks=(progress,))
        progress.stage("held-out")
    assert isinstance(console.file, io.StringIO) and console.file.getvalue() == ""


def test_progress_counts_candidates_and_calls() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160, legacy_windows=False)
    with Progress(console) as progress:
        run(SHORT, read_task(SETTINGS), target(), SimulatedOptimizer(), callbacks=(progress,))
        status = progress.status()
    assert "candidates" in status and "best 100.0 [" in status and "calls" in status


def test_progress_shows_a_failing_provider_and_hides_it_again() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160, legacy_windows=False)
    with Progress(console) as progress:
        progress(RunStarted("ABO", None, False, ("p",), 1, 1, 1, Forecast(10, 90, 100)))
        progress(Retried("rate limit", 8.0, 1))
        assert "trying again in 8 s" in progress.status()
        progress(EffectDone("target", "c1", "e1", "Scored", 1.0, 1, 0))
        assert "again" not in progress.status() and progress.status().startswith("1 candidates · best -")
        progress(Stopped("usd", "the cap \x1b[2J [red]of[/red]"))
    assert isinstance(console.file, io.StringIO)
    assert "stopped by the cap on dollars: the cap \\x1b[2J [red]of[/red]" in console.file.getvalue()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are saved under the working directory unless told otherwise."""
    monkeypatch.chdir(tmp_path)
