"""The commands on a person's own program and data: end to end in real processes, and every wrong call in one line."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from e2e_support import KEY, Provider
from processes_support import Forked

from cuesmith import cli
from cuesmith.programs.arguments import parsed
from cuesmith.programs.commands.compiling import CompileOptions, value_of
from cuesmith.programs.commands.run_folders import KeptCommand, line_of, words_of
from cuesmith.teleprompters.registry import COMPILERS

APP = '''
import dspy

def metric(example, prediction, trace=None):
    """The largest number."""
    return example.answer == prediction.answer

class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.ChainOfThought("question -> answer")
    def forward(self, question):
        return self.answer(question=question)

program = Program()
number = 3
def broken():
    raise OSError("no\\nway")
'''

QUICK = ("--data", "max.jsonl", "--budget", "calls=220")


def rows(n: int) -> list[dict[str, str]]:
    """Questions of the embedded model's family `max`."""
    rng = random.Random(0)
    drawn = [rng.sample(range(1, 99), 3) for _ in range(n)]
    return [{"question": " ".join(map(str, numbers)), "answer": str(max(numbers))} for numbers in drawn]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a person has one: a program, data, and a run that a real process made."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "app.py").write_text(APP)
    (folder / "bad.py").write_text("import nothing_of_that_name\nprogram = 1\n")
    (folder / "wrong.py").write_text("def program(:\n")
    (folder / "max.jsonl").write_text("\n".join(json.dumps(row) for row in rows(60)))
    other = [{"text": f"mail {k}", "label": "ab"[k % 2]} for k in range(40)]
    (folder / "other.jsonl").write_text("\n".join(map(json.dumps, other)))
    (folder / "few.jsonl").write_text("\n".join(json.dumps(row) for row in rows(5)))
    (folder / "state.json").write_text("{}")
    (folder / "cut.gguf").write_bytes(b"GGUF" + struct.pack("<IQQI", 3, 1, 1, 9))
    (folder / "empty").mkdir()
    return folder


MAIN = "import sys; from cuesmith import cli; sys.exit(cli.main())"


def shell(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Call the command in a process of its own."""
    return Forked(MAIN, *words, cwd=where).done()


@pytest.fixture(scope="module")
def made(place: Path) -> dict[str, Any]:
    """What `cuesmith compile` says as JSON; the run is in `run`."""
    done = shell(place, "compile", "app.py:program", "--metric", "app.py:metric", *QUICK, "--run-dir", "run",
                 "--save", "saved.json", "--option", "steps=1", "--seed", "1", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and done.stdout.count("\n") == 1
    data: dict[str, Any] = json.loads(done.stdout)
    return data


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, as the working directory of this process."""
    monkeypatch.chdir(place)
    return place


def called(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Call the command in this process."""
    capsys.readouterr()
    try:
        status = cli.main(words)
    except SystemExit as leaving:
        status = int(str(leaving.code))
    out, err = capsys.readouterr()
    return status, out, err


def test_compile_makes_a_program_that_is_saved_and_kept(made: dict[str, Any], place: Path) -> None:
    assert made["stopped_by"] in (None, "calls") and made["lm"] == "cuesmith/nano" and made["simulated"] is True
    assert made["task"] == "max" and made["saved"] == "saved.json"
    assert (place / "saved.json").read_bytes() == (place / "run" / "program.json").read_bytes()
    kept = KeptCommand.read(place / "run")
    assert kept.command == "compile" and "--option=steps=1" in kept.words and not kept.redacted
    assert kept.about["compiler"] == "iterative-ape"


def test_resume_pays_nothing_again_from_anywhere(made: dict[str, Any], place: Path, tmp_path: Path) -> None:
    journal = (place / "run" / "journal.jsonl").read_bytes()
    done = shell(tmp_path, "resume", str(place / "run"), "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["best"] == made["best"] and again["gain"] == made["gain"]
    assert (place / "run" / "journal.jsonl").read_bytes() == journal


def test_a_finished_run_is_not_made_anew_from_less_than_it_used(made: dict[str, Any], place: Path) -> None:
    before = (place / "run" / "record.json").read_bytes()
    done = shell(place, "resume", "run", "--budget", "calls=50")
    assert done.returncode == 2 and "has used" in done.stderr and done.stderr.count("\n") == 1
    assert (place / "run" / "record.json").read_bytes() == before


def test_a_program_that_no_run_has_made_is_not_replaced(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "program.json").write_text("mine")
    told = ("compile", "question -> answer", *QUICK, "--run-dir", str(tmp_path))
    status, _, err = called(capsys, *told)
    assert status == 2 and "program.json" in err and err.count("\n") == 1
    assert (tmp_path / "program.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "number", "status", "said"),
    [
        ("compile", signal.SIGINT, 130, "interrupted: "),
        ("compile", signal.SIGTERM, 143, "interrupted: "),
        ("check", signal.SIGINT, 130, "interrupted: nothing was compiled; "),
    ],
)
def test_a_run_that_was_interrupted_goes_on(
    place: Path, command: str, number: signal.Signals, status: int, said: str
) -> None:
    folder = f"cut-{command}-{status}"
    process = Forked(MAIN, command, "question -> answer", "--cot", "--task", "max", "--run-dir", folder, cwd=place)
    journal, patience = place / folder / "journal.jsonl", time.monotonic() + 600
    while not journal.is_file() or journal.stat().st_size < 20_000:
        assert time.monotonic() < patience and process.poll() is None
        time.sleep(0.02)
    assert line_of(place / folder).state == "running"
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == status and err.count("\n") == 1
    assert err.startswith(f"cuesmith: {said}") and f"to go on: cuesmith resume {folder}" in err
    line = line_of(place / folder)
    assert line.state == "interrupted" and line.calls > 10


def test_runs_are_listed(made: dict[str, Any], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "damaged").mkdir(exist_ok=True)
    (here / "damaged" / "record.json").write_text('{"stopped_by": 3, "spent": {"target": 7}}')
    status, out, err = called(capsys, "runs", ".", "--json")
    assert (status, err) == (0, "")
    listed = {row["folder"]: row for row in json.loads(out)["runs"]}
    mine = listed["run"]
    assert mine["compiler"] == "iterative-ape" and mine["about"] == "max" and 50 < mine["calls"] <= 220
    assert mine["gain"][0] == pytest.approx(made["gain"]["difference"])
    assert listed["damaged"]["state"] == "damaged"
    status, out, _ = called(capsys, "runs", ".")
    assert status == 0 and "run " in out and " % [" in out
    status, out, _ = called(capsys, "runs", "empty")
    assert (status, out) == (0, "empty: no runs in it\n")


def test_show_and_report(made: dict[str, Any], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = called(capsys, "show", "run")
    assert (status, err) == (0, "") and "| Returned |" in out and "+++ after" in out
    status, out, _ = called(capsys, "show", "run", "--json")
    assert status == 0 and json.loads(out)["gain"] == made["gain"]
    status, out, _ = called(capsys, "report", "run")
    assert status == 0 and out == "run/report.html\n"
    assert (here / "run" / "report.html").read_text().lstrip().lower().startswith("<!doctype html")
    status, out, _ = called(capsys, "report", "run", "-o", "page.html", "--json")
    assert json.loads(out) == {"report": "page.html"} and (here / "page.html").is_file()


@pytest.mark.parametrize("words", [("run",), ("app.py:program", "--state", "saved.json")])
def test_export(made: dict[str, Any], here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    status, out, err = called(capsys, "export", *words, "--format", "messages", "--input", "question=1 2 3")
    assert (status, err) == (0, "")
    messages = json.loads(out)
    assert messages[0]["role"] == "system" and "1 2 3" in messages[-1]["content"]
    status, out, _ = called(capsys, "export", *words, "-o", "prompt.md", "--format", "markdown")
    assert (status, out) == (0, "") and "question" in (here / "prompt.md").read_text()


def test_check(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("question -> answer", "--cot", "--data", "max.jsonl", "--compilers", "iterative-ape,opro")
    status, out, err = called(capsys, "check", *words, "--budget", "calls=80", "--run-dir", "checked", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["verdict"] and {cost["compiler"] for cost in found["costs"]} == {"iterative-ape", "opro"}
    status, out, err = called(capsys, "resume", "checked")
    assert status == 0 and found["verdict"].split(":")[0] in out
    assert called(capsys, "resume", "checked", "--budget", "calls=90")[0] == 0
    kept = KeptCommand.read(here / "checked")
    assert kept.command == kept.about["compiler"] == "check" and "--budget=calls=90" in kept.words


def test_compare(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("question -> answer", "--cot", *QUICK[:2], "--compilers", "iterative-ape,opro", "--budget", "calls=400")
    sizes = ("--validation-size", "12", "--test-size", "15", "--option", "steps=1", "--run-dir", "compared")
    status, out, err = called(capsys, "compare", *words, *sizes)
    assert status == 0, err
    assert "iterative-ape" in out and "opro" in out
    kept = KeptCommand.read(here / "compared")
    status, again, err = called(capsys, "resume", "compared")
    assert status == 0 and again.count("| opro |") == 1 and KeptCommand.read(here / "compared") == kept


@pytest.mark.parametrize("own", [True, False])
def test_models_of_a_comparison_write_their_own_prompts(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    first, second, third = (f"{name}-{uuid4().hex}" for name in ("one", "two", "three"))  # that no cache knows
    words = ["text -> label: Literal['a', 'b']", "--data", "other.jsonl", "--lms", f"openai/{first},openai/{second}"]
    words += ["--compilers", "iterative-ape", "--budget", "calls=200", "--run-dir", first]
    words += ["--validation-size", "12", "--test-size", "12", *([] if own else ["--optimizer-lm", f"openai/{third}"])]
    with Provider() as provider:
        monkeypatch.setenv("OPENAI_API_BASE", f"http://127.0.0.1:{provider.port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        status, out, err = called(capsys, "compare", *words, "--json")
    assert status == 0, err
    assert [row["model"] for row in json.loads(out)["rows"]] == [f"openai/{first}", f"openai/{second}"]
    systems: list[tuple[str, Any]] = [(str(body["model"]), body["messages"]) for _, _, body, _ in provider.seen]
    asked = [(model, "`label`" in messages[0]["content"]) for model, messages in systems]
    assert {model for model, runs in asked if runs} == {first, second}
    assert {model for model, runs in asked if not runs} == ({first, second} if own else {third})


def test_compilers_tell_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = called(capsys, "compilers", "ABO", "--json")
    told = json.loads(out)
    assert status == 0 and told["name"] == "abo" and told["summary"]
    options = {each["name"]: each for each in told["options"]}
    assert options["demonstrations"]["default"] == "True" and options["steps"]["help"] and options["hedge"]["help"]
    status, out, _ = called(capsys, "compilers", "opro")
    assert status == 0 and "  steps: int | None [default: None]" in out
    status, out, _ = called(capsys, "compilers", "--json")
    assert [each["name"] for each in json.loads(out)["compilers"]] == list(COMPILERS)


def test_a_dry_run_calls_nothing_and_leaves_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.iterdir())
    paid = ("--lm", "openai/gpt-4.1-mini", "--optimizer-lm", "openai/gpt-4.1", "--dry-run", "--budget", "calls=300")
    status, out, err = called(capsys, "compile", "text -> label", "--data", "other.jsonl", "--json", *paid)
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["calls"] == 300 < told["calls_without_cap"] and 0 < told["usd"] < 2 and told["minutes"] is None
    status, out, _ = called(capsys, "compile", "question -> answer", *QUICK, "--dry-run")
    assert status == 0 and "- cost: free" in out and "- time: about " in out
    assert sorted(here.iterdir()) == before


@pytest.mark.slow
def test_a_provider_s_model_compiles_and_its_key_stays_out(place: Path) -> None:
    with Provider() as provider:
        lm = ("--lm", "openai/toy", "--compiler", "opro", "--budget", "calls=60", "--run-dir", "paid")
        reached = {"OPENAI_API_BASE": f"http://127.0.0.1:{provider.port}/v1", "OPENAI_API_KEY": KEY,
                   "DSPY_CACHEDIR": str(place / "cache")}  # fmt: skip
        command = [sys.executable, "-m", "cuesmith.cli", "compile", "text -> label: Literal['a', 'b']",
                   "--data", "other.jsonl", *lm]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, env={**os.environ, **reached})
    assert done.returncode == 0, done.stderr
    assert 0 < provider.calls <= 60 and "| Calls | " in done.stdout
    assert all(KEY not in path.read_text(errors="replace") for path in (place / "paid").iterdir())


WRONG = [
    ("compile", "TARGET is missing"),
    ("compile app.py:program", "--data is missing"),
    ("compile app.py:program --data none.jsonl", "--data none.jsonl: no such file"),
    ("compile app.py:programm --data max.jsonl", "app.py defines no 'programm': did you mean 'program'?"),
    ("compile app.py --data max.jsonl", "which of its names? Write app.py:NAME"),
    ("compile none.py:program --data max.jsonl", "no such file none.py"),
    ("compile wrong.py:program --data max.jsonl", "wrong.py is not Python: SyntaxError"),
    ("compile nomodule:program --data max.jsonl", "no module is called 'nomodule'"),
    ("compile app:programm --data max.jsonl", "app defines no 'programm': did you mean 'program'?"),
    ("compile app:program --data max.jsonl --metric app:metrik", "app defines no 'metrik': did you mean 'metric'?"),
    ("compile app:program:x --data max.jsonl", "neither a file that ends in .py nor the name of a module"),
    ("compile bare --data max.jsonl", "TARGET 'bare': no such program; it is module:program"),
    ("compile empty --data max.jsonl", "no saved program in this folder"),
    ("compile question-> --data max.jsonl", "TARGET 'question->': names no field on one side of ->"),
    ("compile state.json --data max.jsonl", "a saved state has no code"),
    ("compile app.py:program --cot --data max.jsonl", "--cot: only with a signature"),
    ("compile app.py:program --data max.jsonl --metric exactt", "no metric 'exactt': did you mean 'exact'?"),
    ("compile app.py:program --data max.jsonl --metric app.py:metrik", "defines no 'metrik': did you mean 'metric'?"),
    ("compile app.py:program --data max.jsonl --budget usd", "'usd' is no cap, such as usd=2"),
    ("compile app.py:program --data max.jsonl --budget dollars=2", "'dollars=2' is no cap"),
    ("compile app.py:program --data max.jsonl --budget calls=1.5", "'1.5' is not a whole number"),
    ("compile app.py:program --data max.jsonl --budget usd=2,usd=3", "usd is given twice"),
    ("compile app.py:program --data max.jsonl --compiler aboo", "no compiler is called 'aboo': did you mean 'abo'?"),
    ("compile app.py:program --data max.jsonl --compilr abo", "Unknown option: --compilr. Did you mean --compiler?"),
    ("compile app.py:program --data max.jsonl --option steps", "'steps' is not KEY=VALUE"),
    ("compile app.py:program --data max.jsonl --option seed=3", "has an option of its own, --seed"),
    ("compile app.py:program --data max.jsonl --option executor=x", "can only be given in Python"),
    ("compile app.py:program --data max.jsonl --inputs question=,b", "'question=,b' is no list of columns, such as"),
    ("compile app.py:program --data max.jsonl --inputs a=b,a=c", "a is given twice"),
    ("compile app.py:program --data max.jsonl --seed -1", "'-1' is not a whole number of at least 0"),
    ("compile app.py:program --data max.jsonl --lm gpt", "'gpt' is not PROVIDER/MODEL"),
    ("compile app.py:program --data max.jsonl --lm openai/x --local m.gguf", "--local: not allowed with --lm"),
    ("compile app.py:program --data max.jsonl --local none.gguf", "--local none.gguf: No such file"),
    ("compile app.py:program --data max.jsonl --local max.jsonl", "--local max.jsonl: not a GGUF file"),
    ("compile app.py:program --data max.jsonl --local empty", "--local empty: Is a directory"),
    ("check app.py:program --data max.jsonl --local cut.gguf", "--local cut.gguf: cut off at 28 bytes"),
    ("compare app.py:program --data max.jsonl --compilers abo --local-optimizer app.py", "app.py: not a GGUF"),
    ("compile app.py:program --data max.jsonl --threads 2", "--threads: only with --local"),
    ("compile app.py:program --data max.jsonl --save out.txt", "must be the name of a file that ends in .json"),
    ("compile app.py:program --data max.jsonl --run-dir max.jsonl", "--run-dir max.jsonl: is not a folder"),
    ("compile app.py:program --data max.jsonl --state none.json", "--state none.json: must be a file that ends"),
    ("compile app.py:program --data max.jsonl --task max", "--data: not allowed with --task"),
    ("compile app.py:program --data max.jsonl extra", "unexpected argument: extra"),
    ("compare app.py:program --data max.jsonl", "--compilers is missing"),
    ("compare app.py:program --data max.jsonl --compilers abo,magic", "no compiler is called 'magic': there are abo"),
    ("compare app.py:program --data max.jsonl --compilers abo,abo", "--compilers: abo is given twice"),
    ("compare app.py:program --data max.jsonl --compilers abo --seeds 0,x", "'x' is not a whole number"),
    ("compare app.py:program --data max.jsonl --compilers abo --seeds 1,0,0", "--seeds: 0 is given twice"),
    ("check app.py:program", "--data is missing"),
    ("compile app.py:program --data max.jsonl --run-dir ''", "--run-dir is empty: give it a value, or leave it out"),
    ("compile app.py:program --data=", "--data is empty: give it a value, or leave it out"),
    ("study errors --data ''", "--data is empty: give it a value, or leave it out"),
    ("runs ''", "an argument is empty: give it a value, or leave it out"),
    ("resume none", "none: no such folder"),
    ("resume empty", "empty: no run of the command line in it"),
    ("runs none", "none: no such folder"),
    ("show empty", "empty: no run in it"),
    ("diagnose none", "none: no such folder"),
    ("diagnose empty", "empty: no run in it"),
    ("compile app.py:program --task maxx", "--task: no task family 'maxx': did you mean 'max'?"),
    ("compile app.py:program --data max.jsonl --search sideways", 'Invalid value "sideways" for --search'),
    ("report empty -o no/such/x.html", "--output no/such/x.html: not a file in a folder that there is"),
    ("export nothing", "TARGET 'nothing': no such program"),
    ("export app.py:program --format html", 'Invalid value "html" for --format. Choose from: "messages"'),
    ("export app.py:program --input question", "'question' is not FIELD=VALUE"),
    ("compilers magic", "no compiler is called 'magic'"),
    ("compil x", "no command is called 'compil': did you mean 'compile'?"),
]


@pytest.mark.parametrize(("words", "problem"), WRONG)
def test_a_wrong_call_is_one_line(here: Path, capsys: pytest.CaptureFixture[str], words: str, problem: str) -> None:
    status, out, err = called(capsys, *shlex.split(words))
    assert status == 2 and out == "" and err.count("\n") == 1
    assert problem in err and err.startswith("cuesmith")


def test_wrong_calls_are_answered_before_dspy_is_loaded(place: Path) -> None:
    code = f"""
import contextlib, io, sys, time
from cuesmith import cli
slow = 0.0
for words in {[shlex.split(words) for words, _ in WRONG]!r}:
    start = time.process_time()
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        cli.main(words)
    slow = max(slow, time.process_time() - start)
print([name for name in ("dspy", "litellm", "numpy") if name in sys.modules], slow < 1.0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=place)
    assert done.stdout == "[] True\n", done.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("compile bad.py:program --data max.jsonl", "importing bad.py fails: ModuleNotFoundError"),
        ("compile app.py:number --data max.jsonl", "app.py:number: is a int: it must be a dspy.Module"),
        ("compile app.py:broken --data max.jsonl", "making the program fails: OSError: no way"),
        ("compile app.py:program --data few.jsonl", "5 different rows, at least 12 are needed\n"),
        (
            "compile app.py:program --data other.jsonl",
            "other.jsonl: no column 'question'; there are: text, label; write --inputs question=COLUMN",
        ),
        (
            "compile question->answer --data other.jsonl",
            "no column 'question'; there are: text, label; write --inputs question=COLUMN --outputs answer=COLUMN",
        ),
        (
            "compile app.py:program --data other.jsonl --inputs question=txt --outputs answer=label",
            "other.jsonl: no column 'txt'; did you mean 'text'? There are: text, label",
        ),
        ("check app.py:program --data other.jsonl --inputs 2nd=text", "'2nd' cannot be the name of a field"),
        ("compile text->label:Litteral['a'] --data other.jsonl", "not a signature"),
        ("compile text->label --data other.jsonl", "no language model: give --lm PROVIDER/MODEL or --local FILE.gguf"),
        ("compile app.py:program --data max.jsonl --state state.json", "--state state.json: does not fit the program"),
        ("compile app.py:program --data max.jsonl --metric app.py:number", "--metric app.py:number: TypeError"),
        ("compile app.py:program --data max.jsonl --option stepz=3", "has no option stepz"),
        ("compile app.py:program --data max.jsonl --option steps=many", "steps"),
    ],
)
def test_what_only_loading_can_tell_is_one_line_too(
    here: Path, capsys: pytest.CaptureFixture[str], words: str, problem: str
) -> None:
    status, out, err = called(capsys, *words.split())
    assert status == 2 and out == "" and err.count("\n") == 1, err
    assert problem in err


def test_a_run_folder_of_another_run_is_refused(
    made: dict[str, Any], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (here / "run" / "command.json").read_text()
    status, _, err = called(capsys, "compile", "app.py:program", *QUICK, "--seed", "5", "--run-dir", "run", "--json")
    assert status == 2 and err.count("\n") == 1 and "differs" in err
    assert (here / "run" / "command.json").read_text() == kept


def test_a_command_s_words_are_read_as_they_were_told(here: Path) -> None:
    words = ["app.py:program", "--data", "max.jsonl", "--inputs", "a,b", "--budget", "usd=2,calls=1000000", "--option",
             "x=1", "--option", "y=a,b", "--seed", "7", "--save", "p.json"]  # fmt: skip
    options = parsed(CompileOptions, words)
    assert options.inputs == ("a", "b") and options.own_options == {"x": 1, "y": "a,b"}
    assert parsed(CompileOptions, words_of(options)) == options
    assert words_of(options)[0] == "--target=app.py:program" and "--seed=7" in words_of(options)


def test_columns_are_called_as_the_program_calls_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = [{"prompt_text": row["question"], "largest": row["answer"], "note": "x"} for row in rows(60)]
    (here / "named.jsonl").write_text("\n".join(map(json.dumps, named)))
    words = ["app.py:program", "--data", "named.jsonl", "--inputs", "question=prompt_text", "--outputs",
             "answer=largest", "--budget", "calls=60", "--run-dir", "named", "--json"]  # fmt: skip
    options = parsed(CompileOptions, words)
    assert options.inputs == {"question": "prompt_text"}
    assert parsed(CompileOptions, words_of(options)) == replace(options, run_dir=None, json=False)
    status, out, err = called(capsys, "compile", *words)
    assert status == 0, err
    assert json.loads(out)["task"] == "named"
    assert called(capsys, "resume", "named", "--json")[0] == 0
    mixed = parsed(CompileOptions, ["app.py:program", "--data", "max.jsonl", "--inputs", "question=a, b"])
    assert mixed.inputs == {"question": "a", "b": "b"}


def test_a_key_in_a_command_is_not_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = "sk-abcdefghij0123456789ABCDEFGHIJ"
    words = ("compile", "question -> answer", *QUICK, "--run-dir", "keyed", "--option", f"task_description={secret}")
    assert called(capsys, *words)[0] == 0
    assert secret not in (here / "keyed" / "command.json").read_text()
    status, _, err = called(capsys, "resume", "keyed")
    assert status == 2 and "had a key in it" in err


@pytest.mark.parametrize(
    "text",
    ['{"format": 1, "command": "quickstart", "words": [], "directory": "/"}', "[]", "{", '{"format": 2}',
     '{"format": 1, "command": "compile", "words": ["--nothing"], "directory": "/"}',
     '{"format": 1, "command": "compile", "words": ["x"], "directory": "/no/such/folder"}'],
)  # fmt: skip
def test_a_command_file_of_somebody_else_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "command.json").write_text(text)
    status, out, err = called(capsys, "resume", str(tmp_path))
    assert status == 2 and out == "" and err.count("\n") == 1


def as_csv(rows: list[dict[str, str]], separator: str = ",") -> str:
    return "\n".join([separator.join(rows[0]), *(separator.join(row.values()) for row in rows)])


def as_bigbench(rows: list[dict[str, str]]) -> str:
    return json.dumps({"name": "max", "examples": [{"input": r["question"], "target": r["answer"]} for r in rows]})


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", as_csv),
        ("a.tsv", lambda rows: as_csv(rows, "\t")),
        ("a.json", json.dumps),
        ("task.json", as_bigbench),
        ("folder/train.csv", as_csv),
    ],
)
def test_files_of_all_kinds_compile(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, write: Callable[[list[dict[str, str]]], str]
) -> None:
    path = here / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(write(rows(60)))
    data = path.parent if path.parent != here else path
    status, out, err = called(capsys, "compile", "question -> answer", "--data", str(data), "--dry-run", "--json")
    assert status == 0 and json.loads(out)["calls"] > 100, err


def test_a_parquet_file_compiles_or_the_error_says_what_to_install(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("compile", "question -> answer", "--data", "a.parquet", "--dry-run", "--json")
    (here / "a.parquet").write_bytes(b"PAR1")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        status, out, err = called(capsys, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "a.parquet: reading it needs the package 'pyarrow' (pip install pyarrow)" in err
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows(60)), here / "a.parquet")
    status, out, err = called(capsys, *words)
    assert status == 0 and json.loads(out)["calls"] > 100, err


@pytest.mark.parametrize(("file", "problem"), [("none.gguf", "No such file"), ("app.py", "not a GGUF file")])
def test_a_model_file_that_is_none_is_refused_by_the_real_command(place: Path, file: str, problem: str) -> None:
    done = shell(place, "compile", "app.py:program", *QUICK, "--local", file)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"cuesmith compile: error: --local {file}: {problem}" in done.stderr


def test_values_are_written_as_in_json() -> None:
    texts = ["3", "0.5", "true", "True", "None", "native", '"3"', "[1, 2]"]
    assert [value_of(text) for text in texts] == [3, 0.5, True, True, None, "native", "3", [1, 2]]


def test_programs_that_were_saved_whole_compile(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import dspy

    dspy.ChainOfThought("question -> answer").save(here / "whole", save_program=True)
    told = parsed(CompileOptions, ["whole", *QUICK, "--dry-run"])
    assert told.program.load().predictors()
    status, out, err = called(capsys, "compile", "whole", *QUICK, "--dry-run")
    assert status == 0 and "- calls: at most 220" in out, err
