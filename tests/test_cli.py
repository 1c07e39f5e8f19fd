"""The command line: one clear line for a wrong argument, one JSON object, quiet where nobody watches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes_support import Forked, on_a_terminal

import cuesmith
from cuesmith import cli
from cuesmith.teleprompters.registry import COMPILERS

ESCAPE = "\x1b"


MAIN = "import sys; from cuesmith import cli; sys.exit(cli.main())"


def cuesmith_command(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a fresh process, without the offline variables of the test run."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LITELLM_", "HF_", "OPENAI_"))}
    command = [sys.executable, "-m", "cuesmith.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=inherited | env)


def test_version(tmp_path: Path) -> None:
    done = cuesmith_command("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"cuesmith {cuesmith.__version__}\n")


def test_compilers_are_listed() -> None:
    done = Forked(MAIN, "compilers").done()
    assert done.returncode == 0 and done.stderr == ""
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == list(COMPILERS) and {"abo", "opro", "mipro"} <= set(names)
    assert all(len(line.split()) > 3 for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["quickstart", "--task", "poetry"], "no task family 'poetry': there are animals, "),
        (["quickstart", "--data", "none.json"], "--data none.json: no such file"),
        (["quickstart", "--data", "{tmp}/bad.json"], "bad.json: line 2: not JSON"),
        (["quickstart", "--data", "{tmp}/bad.yaml"], "bad.yaml: 0 different rows, at least 12 are needed"),
        (["quickstart", "--data", "{tmp}/good.json", "--metric", "exactt"], "did you mean 'exact'?"),
        (["quickstart", "--data", "{tmp}/good.json", "--inputs", "a,b"], "no column 'b'; there are: a, c"),
        (["quickstart", "--data", "{tmp}/good.json", "--outputs", "a,,b"], "'a,,b' is no list of columns"),
        (["quickstart", "--inputs", "a", "--metric", "exact"], "--inputs, --metric: only with --data"),
        (["quickstart", "--data", "x.json", "--task", "sum"], "--data: not allowed with --task"),
        (["quickstart", "--compiler", "magic"], 'Invalid value "magic" for --compiler. Choose from: "abo"'),
        (["quickstart", "--budget-usd", "0"], "'0' is not a positive amount"),
        (["quickstart", "--budget-usd", "inf"], "'inf' is not a positive amount"),
        (["quickstart", "--budget-calls", "1.5"], "'1.5' is not a whole number of at least 1"),
        (["quickstart", "--test-size", "0"], "'0' is not a whole number of at least 1"),
        (["quickstart", "--seed", "-1"], "'-1' is not a whole number of at least 0"),
        (["quickstart", "--lm", "gpt"], "'gpt' is not PROVIDER/MODEL"),
        (["quickstart", "--lm", "openai/x", "--local", "m.gguf"], "--local: not allowed with --lm"),
        (["quickstart", "--optimizer-lm", "openai/x", "--local-optimizer", "m.gguf"], "with --optimizer-lm"),
        (["quickstart", "--local", "none.gguf"], "none.gguf: No such file or directory"),
        (["quickstart", "--local", "{tmp}/bad.json"], "bad.json: not a GGUF file"),
        (["quickstart", "--threads", "2"], "--threads: only with --local or --local-optimizer"),
        (["quickstart", "--save", "{tmp}"], "must be the name of a file that ends in .json"),
        (["quickstart", "--run-dir", "{tmp}/bad.json"], "is not a folder"),
        (["quickstart", "--bud", "3"], "Unknown option: --bud"),
        (["quickstart", "more"], "unexpected argument: more"),
        (["slowstart"], "no command is called 'slowstart': there are quickstart, check"),
        ([], "COMMAND is missing"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    (tmp_path / "bad.json").write_text("{\n")
    (tmp_path / "bad.yaml").write_text("")
    (tmp_path / "good.json").write_text(json.dumps([{"a": f"a{k}", "c": f"c{k}"} for k in range(12)]))
    with pytest.raises(SystemExit) as stopped:
        cli.main([argument.format(tmp=tmp_path) for argument in arguments])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.count("\n") == 1 and problem in err and err.startswith("cuesmith")


QUICK = ("quickstart", "--task", "max", "--compiler", "iterative-ape", "--test-size", "20", "--budget-calls", "150")


def test_json_is_one_object_and_nothing_else(tmp_path: Path) -> None:
    done = cuesmith_command(*QUICK, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1 and ESCAPE not in done.stdout
    (row,) = result["compilers"]
    assert set(row["gain"]) == {"difference", "low", "high", "p_value", "n", "significant"}
    assert row["baseline"]["n"] == row["compiled"]["n"] == row["gain"]["n"] == 20
    assert sum(row["calls"].values()) <= 150 and row["stopped_by"] in (None, "calls")
    assert (tmp_path / row["saved"]).is_file()


def test_text_is_quiet_where_nobody_watches(tmp_path: Path) -> None:
    done = Forked(MAIN, *QUICK, cwd=tmp_path).done()
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and ESCAPE not in done.stdout and "\r" not in done.stdout
    assert "held-out score" in done.stdout and "no evidence about large models" in done.stdout


def test_progress_is_drawn_on_a_terminal(tmp_path: Path) -> None:
    done, text = on_a_terminal(MAIN, *QUICK, "--json", cwd=tmp_path)
    json.loads(done.stdout)
    assert ESCAPE in text and "candidates" in text and "calls" in text


def test_a_run_that_cannot_go_on_is_one_line_and_status_1(tmp_path: Path) -> None:
    refused = ("--lm", "openai/none", "--test-size", "5")
    unknown = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    done = Forked(MAIN, *QUICK[:3], *refused, cwd=tmp_path, env=unknown).done()
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("cuesmith: error: ") and "Traceback" not in done.stderr


def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        'import dspy\nprogram = dspy.Predict(dspy.Signature("a -> b", "Größe, 漢字 🎈"))\n', "utf-8"
    )
    for form in ("messages", "markdown"):
        words = ("export", "app.py:program", "--format", form)
        done = cuesmith_command(*words, cwd=tmp_path, PYTHONIOENCODING="ascii")
        assert done.returncode == 0 and "\\u6f22\\u5b57 \\ud83c\\udf88" in done.stdout, done.stderr
        if form == "messages":
            assert "Größe, 漢字 🎈" in json.loads(done.stdout)[0]["content"]
