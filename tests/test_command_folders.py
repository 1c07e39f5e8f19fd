"""What the commands leave in folders: a comparison's winner is carried home, and no command takes another's folder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import dspy
import pytest

from cuesmith import cli, compare_compilers
from cuesmith.programs.tasks import Sizes, generate
from cuesmith.teleprompters.runtime.journal import JournalError

TASK = ("question -> answer", "--cot", "--task", "max")
SMALL = ("--option", "steps=1", "--train-size", "6", "--validation-size", "8")


def called(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Call the command in this process."""
    capsys.readouterr()
    try:
        status = cli.main(words)
    except SystemExit as leaving:
        status = int(str(leaving.code))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compared(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    """Compare two compilers on a small budget."""
    words = ("compare", *TASK, "--compilers", "opro,iterative-ape", *SMALL, "--test-size", "12", *more)
    return called(capsys, *words, "--budget", "calls=200", "--run-dir", "all")


def test_the_winner_of_a_comparison_is_carried_home(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = compared(capsys)
    assert status == 0 and "- the best here: " in out, err
    data = json.loads(called(capsys, "show", "all", "--json")[1])
    best = Path(data["best"])
    assert f"its program is {best / 'program.json'}" in out and f"cuesmith export {best}" in out
    made = [Path(entry["run_dir"]) for row in data["rows"] for entry in row["entries"]]
    assert best in made and all((folder / "program.json").is_file() for folder in made)
    status, exported, err = called(capsys, "export", str(best))
    assert status == 0, err
    prompt = json.loads((best / "program.json").read_text())["predict"]["signature"]["instructions"]
    assert prompt.splitlines()[0] in json.loads(exported)[0]["content"]
    assert called(capsys, "show", "all")[1].strip() == out.strip()
    for command in ("report", "export"):
        status, _, err = called(capsys, command, "all")
        assert status == 2 and str(best) in err and err.count("\n") == 1
    listed = json.loads(called(capsys, "runs", "all", "--json")[1])["runs"]
    assert {run["folder"] for run in listed} == {str(folder) for folder in made}
    assert {(run["about"], run["compiler"]) for run in listed} == {("max", "opro"), ("max", "iterative-ape")}


def test_a_check_is_shown_as_what_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = called(capsys, "check", *TASK, "--compilers", "opro", "--run-dir", "checked")
    assert status == 0, err
    assert called(capsys, "show", "checked")[1].strip() == out.strip()
    assert json.loads(called(capsys, "show", "checked", "--json")[1])["verdict"] in out.replace("\\", "")
    status, _, err = called(capsys, "report", "checked")
    assert status == 2 and "is no compile; cuesmith show checked prints what was found" in err
    status, out, err = called(capsys, "diagnose", "checked")
    assert (status, out) == (2, "") and "of a check; cuesmith show checked prints what was found" in err
    (here / "checked" / "result.json").write_text("[]")
    assert called(capsys, "show", "checked")[0] == 2
    (here / "checked" / "result.json").unlink()
    status, _, err = called(capsys, "show", "checked")
    assert status == 2 and "holds no compile, but the scores of a check" in err


def test_a_check_foresees_the_compile_that_follows_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"{k} {k + 7} {k + 3}", "answer": str(k + 7)} for k in range(10, 40)]
    (here / "max.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("question -> answer", "--data", "max.jsonl")
    found = json.loads(called(capsys, "check", *words, "--compilers", "opro", "--json")[1])
    planned = json.loads(called(capsys, "compile", *words, "--compiler", "opro", "--dry-run", "--json")[1])
    assert found["costs"][0]["calls"] == planned["calls"]
    made = json.loads(called(capsys, "compile", *words, "--budget", "calls=40", "--json")[1])
    (kept,) = (note["text"] for note in made["notes"] if note["kind"] == "power")
    assert kept.startswith(f"{found['fresh']['examples']} fresh examples measure the gain")


def test_no_command_takes_the_folder_of_another(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*TASK, "--budget", "calls=40", "--run-dir", "one")
    assert called(capsys, "compile", *words)[0] == 0
    kept = (here / "one" / "command.json").read_bytes()
    for command in (("check",), ("compare", "--compilers", "opro")):
        status, out, err = called(capsys, *command, *words)
        assert status == 2 and out == "" and "holds a run of cuesmith compile: give a new folder" in err
    assert (here / "one" / "command.json").read_bytes() == kept
    task = generate("max", sizes=Sizes(6, 8, 12))
    with pytest.raises(JournalError, match="holds a run that is no comparison"):
        compare_compilers(dspy.Predict("question -> answer"), ["opro"], metric=task.metric,
                          trainset=task.train, testset=task.test, run_dir="one", lms="openai/none")  # fmt: skip


@pytest.mark.parametrize("command", [
    ("compile", "--lm", "openai/unpriced", "--budget", "usd=1"),
    ("check", "--lm", "openai/unpriced", "--budget", "usd=1"),
    ("compare", "--compilers", "opro", "--budget", "calls=1"),
    ("compare", "--compilers", "opro", "--option", "stepz=1"),
], ids=" ".join)  # fmt: skip
def test_a_command_that_began_no_run_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    for place in ((), ("--run-dir", "new/one"), ("--run-dir", "there")):
        (here / "there").mkdir(exist_ok=True)
        status, _, err = called(capsys, *command[:1], *TASK, *command[1:], *place)
        assert status == 2 and err.count("\n") == 1
        assert [p.name for p in here.rglob("*")] == ["there"]


def test_what_is_to_be_typed_can_be_typed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = called(capsys, "compile", *TASK, "--budget", "calls=40", "--run-dir", "my $(runs)")
    assert status == 0 and "`cuesmith report 'my $(runs)'`" in out
    assert f"cuesmith export {shlex.quote('my $(runs)')}" in out


def test_a_run_has_its_own_program(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(capsys, "compile", *TASK, "--budget", "calls=40", "--run-dir", "one")[0] == 0
    status, _, err = called(capsys, "export", "one", "--cot")
    assert status == 2 and "--cot: not with a run: one has its own program" in err


def test_what_cannot_be_looked_into_is_left_out_of_a_list(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "shut").mkdir()
    listing = Path.iterdir

    def refused(folder: Path) -> object:
        if folder.name == "shut":
            raise PermissionError(13, "Permission denied")
        return listing(folder)

    monkeypatch.setattr(Path, "iterdir", refused)
    status, out, err = called(capsys, "runs", ".")
    assert status == 0 and out == ".: no runs in it\n" and err == ""
