"""The quickstart's parts: comparison, evaluation, report and progress, on models that answer at once."""

from __future__ import annotations

import ast
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
from dspy.lm15 import AuthError, Message, Request, Response, Usage
from rich.console import Console

from cuesmith import SimulatedOptimizer
from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.programs import quickstart, report
from cuesmith.programs.comparison import BadInput, Result, RunFailed, Settings, Variant, forecast, read_task, run
from cuesmith.programs.evaluation import compare, estimate, evaluate
from cuesmith.programs.tasks import Sizes, generate, load
from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, Origin, Prompt
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.events import EffectDone, Retried, RunStarted, Stopped
from cuesmith.teleprompters.runtime.fingerprint import fingerprint
from cuesmith.teleprompters.runtime.progress import Progress
from cuesmith.teleprompters.runtime.statistics import Gain

SETTINGS = Settings(task="max", compilers=("iterative-ape",), test_size=30)
SHORT = replace(SETTINGS, test_size=12, budget_calls=450)


class Obedient:
    """Answers right if the instructions say anything of numbers or demonstrations are given, else wrongly."""

    def __init__(self) -> None:
        self.calls = 0

    def complete(self, request: Request) -> Response:
        """Answer in the format of dspy's chat adapter."""
        self.calls += 1
        question = str(request.messages[-1].text).split("[[ ## question ## ]]\n", 1)[1].split("\n\n", 1)[0]
        prompt = str(request.system)
        solved = FAMILIES["max"].solve(question)
        told = any(text in prompt for text in FAMILIES["max"].instructions) or len(request.messages) > 1
        answer = solved.answer if told and solved else "none"
        text = f"[[ ## reasoning ## ]]\nSo.\n\n[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]"
        usage = Usage(input_tokens=10, output_tokens=5, total_tokens=15)
        return Response(
            id="1", model=request.model, message=Message.assistant(text), finish_reason="stop", usage=usage
        )

    def __deepcopy__(self, memo: object) -> Obedient:
        return self


class Refusing:
    """A provider whose key is wrong."""

    def complete(self, request: Request) -> Response:
        """Refuse."""
        raise AuthError("the key is [bold]wrong[/bold]")

    def __deepcopy__(self, memo: object) -> Refusing:
        return self


def target() -> dspy.LM:
    return dspy.LM("test/quickstart-target", engine=Obedient(), cache=False)


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
    assert quickstart.TINY in " ".join(text.split()) and quickstart.SIMULATED in " ".join(text.split())


def test_a_wrong_key_is_one_clear_line() -> None:
    lm = dspy.LM("test/quickstart-refusing", engine=Refusing(), cache=False)
    with pytest.raises(RunFailed, match="auth") as caught:
        run(SETTINGS, read_task(SETTINGS), lm, SimulatedOptimizer())
    assert "\n" not in str(caught.value)


def test_a_run_directory_resumes_and_refuses_another_run(tmp_path: Path) -> None:
    settings, engine = replace(SHORT, run_dir=tmp_path / "run"), Obedient()
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
    engine = Obedient()
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
    heading = str(quickstart._heading(settings, task))
    assert 'ChainOfThought("a, c -> b: one of 2")' in heading and "metric     ExactMatch(output='b')" in heading


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
    assert "stopped by usd: the cap \\x1b[2J [red]of[/red]" in console.file.getvalue()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are saved under the working directory unless told otherwise."""
    monkeypatch.chdir(tmp_path)
