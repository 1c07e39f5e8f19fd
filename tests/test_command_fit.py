"""A program and data that do not fit one another are told apart in one line, before anything is paid for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cuesmith import cli
from cuesmith.programs.arguments import parsed
from cuesmith.programs.commands.compiling import CompileOptions

APP = """
import dspy

print("an app that talks")

def metric(example, prediction, trace=None):
    print("a metric that talks")
    return example.answer == prediction.answer

def loose(example, prediction, trace=None):
    return example.urgent == (prediction.team == "tech")

class Route(dspy.Signature):
    "Say who it is for."
    ticket: str = dspy.InputField()
    team: str = dspy.OutputField()

class Two(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = dspy.Predict("question -> hint"), dspy.Predict("question, hint -> answer")
    def forward(self, question):
        return self.second(question=question, hint=self.first(question=question).hint)

def leaves():
    raise SystemExit(3)

async def late():
    return program

program = dspy.Predict("question -> answer")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data and a program, as the working directory."""
    rows = [{"ticket": f"Mail {k} is lost", "team": "ab"[k % 2], "urgent": k % 3 == 0} for k in range(30)]
    (tmp_path / "mails.jsonl").write_text("\n".join(map(json.dumps, rows)))
    short = [{"ticket": row["ticket"], "urgent": row["urgent"]} for row in rows]
    (tmp_path / "urgent.jsonl").write_text("\n".join(map(json.dumps, short)))
    (tmp_path / "odd.csv").write_text("\n".join(["class,from", *(f"c{k % 3},x{k}" for k in range(30))]))
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "app", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def called(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Call the command in this process."""
    capsys.readouterr()
    try:
        status = cli.main(words)
    except SystemExit as leaving:
        status = int(str(leaving.code))
    out, err = capsys.readouterr()
    return status, out, err


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Plan a compile on a model that is not asked."""
    return called(capsys, "compile", *words, "--lm", "openai/none", "--dry-run", "--json")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("ticket -> team", "--data", "urgent.jsonl"), "no column 'team'; there are: ticket, urgent"),
        (("ticket -> label", "--data", "mails.jsonl", "--outputs", "team"),
         "the program answers 'label', but the answer in the data is 'team': name the columns by --outputs"),
        (("ticket, sender -> team", "--data", "mails.jsonl"), "no column 'sender'; there are: ticket, team, urgent"),
        (("ticket -> team", "--data", "odd.csv"), "no column 'ticket'; there are: class, from"),
        (("ticket -> team", "--data", "mails.jsonl", "--metric", "number"), "metric 'number' gives the right answer"),
        (("mail -> team", "--data", "mails.jsonl", "--inputs", "ticket"),
         "the program takes 'mail', but what is asked in the data is 'ticket': name the columns by --inputs"),
        (("question -> result", "--task", "max"), "the program answers 'result'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], problem: str
) -> None:
    status, out, err = planned(capsys, *words)
    assert status == 2 and out == "" and problem in err, err
    assert err.count("\n") == 1


@pytest.mark.parametrize("side", [("--inputs", "ticket"), ("--outputs", "team"), ()])
def test_a_side_that_is_not_told_is_the_programs_own(
    here: Path, capsys: pytest.CaptureFixture[str], side: tuple[str, ...]
) -> None:
    status, out, err = planned(capsys, "ticket -> team", "--data", "mails.jsonl", *side)
    assert status == 0 and json.loads(out)["calls"] > 0, err


def test_a_metric_of_ones_own_may_compare_other_fields(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("ticket -> team", "--data", "urgent.jsonl", "--metric", "app.py:loose")
    assert planned(capsys, *words)[0] == 0


def test_what_may_be_meant_so_is_said_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = planned(capsys, "ticket -> team: Literal['a', 'c']", "--data", "mails.jsonl")
    assert status == 0 and "have 'b' as 'team', which is none of the options" in err
    assert planned(capsys, "ticket -> team: Literal['A ', 'b']", "--data", "mails.jsonl")[2] == ""


def test_columns_are_asked_for_in_the_shells_words(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bare.csv").write_text("\n".join(["alpha,beta gamma,delta", *(f"x{k},y{k},z{k}" for k in range(30))]))
    status, _, err = called(capsys, "quickstart", "--data", "bare.csv")
    assert status == 2 and "say which" in err
    status, _, err = planned(capsys, "app.py:program", "--data", "bare.csv", "--inputs", "alpha")
    assert status == 2 and "no column 'answer'" in err


def test_what_ones_own_code_prints_is_no_part_of_the_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"{k} {k + 7} {k + 3}", "answer": str(k + 7)} for k in range(10, 40)]
    (here / "max.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("app.py:program", "--metric", "app.py:metric", "--data", "max.jsonl", "--budget", "calls=40")
    status, out, err = called(capsys, "compile", *words, "--run-dir", "run", "--json")
    assert status == 0 and json.loads(out)["run_dir"] == "run", err
    assert "an app that talks" in err and "a metric that talks" in err
    sys.modules.pop("app")
    status, out, err = called(capsys, "export", "run")
    assert status == 0 and json.loads(out)[0]["role"] == "system" and "an app that talks" in err


def test_a_signature_of_ones_own_is_a_program(here: Path) -> None:
    import dspy

    plain = parsed(CompileOptions, ["app.py:Route", "--data", "mails.jsonl"]).program.load()
    thinking = parsed(CompileOptions, ["app.py:Route", "--cot", "--data", "mails.jsonl"]).program.load()
    assert type(plain) is dspy.Predict and type(thinking) is dspy.ChainOfThought
    assert plain.signature.instructions == "Say who it is for."


def test_a_state_leaves_the_program_of_the_module_as_it_is(here: Path) -> None:
    from app import program  # type: ignore[import-not-found]

    other = program.deepcopy()
    other.signature = other.signature.with_instructions("Other words.")
    other.save("other.json")
    words = ["app.py:program", "--state", "other.json", "--data", "mails.jsonl"]
    assert parsed(CompileOptions, words).program.load().signature.instructions == "Other words."
    assert program.signature.instructions != "Other words."


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("app.py:leaves",), "making the program fails: SystemExit: 3"),
        (("app.py:late",), "is a coroutine: it must be a dspy.Module"),
        (("app.py:Two", "--cot"), "--cot: only with a signature, not with app.py:Two"),
        (("app.py:program", "--state", "two.json"), "whose predictors are self: it has first, second"),
        (("app.py:Two", "--state", "one.json"), "whose predictors are first, second: it has a single predictor"),
        (("app.py:Two", "--option", "steps=1", "--option", "steps=2"), "--option steps: is given twice"),
    ],
)
def test_a_program_that_cannot_be_made_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], problem: str
) -> None:
    from app import Two, program

    program.save("one.json")
    Two().save("two.json")
    status, out, err = planned(capsys, *words, "--data", "mails.jsonl", "--inputs", "ticket", "--outputs", "team")
    assert status == 2 and out == "" and problem in err
    assert sum(line.startswith("cuesmith") for line in err.splitlines()) == 1


def test_where_the_program_is_to_go_is_tried_before_anything_is_paid_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("compile", "question -> answer", "--task", "max", "--budget", "calls=40", "--run-dir", "run")
    status, out, err = called(capsys, *words, "--save", "app.py/saved.json")
    assert status == 2 and out == "" and "--save app.py/saved.json: " in err and not (here / "run").exists()
    status, _, err = called(capsys, *words, "--save", "new/folder/saved.json", "--json")
    assert status == 0 and (here / "new" / "folder" / "saved.json").is_file(), err
