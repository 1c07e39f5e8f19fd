"""The programs in examples/ do what their pages say: compile, save, load, use, without a model and over HTTP."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from pages_support import ROOT, clone, settings

NAMES = ("router", "rag", "agent", "extraction")


def _right(name: str, said: str, folder: Path) -> None:
    scores = re.search(r"held out: (\d\.\d\d) before, (\d\.\d\d) after", said)
    assert scores is not None and float(scores[2]) > float(scores[1]) + 0.3, said
    assert (folder / f"{name}.json").exists()
    last = {"router": "billing", "rag": "140 euros", "agent": "186", "extraction": "vendor='Miller & Sons'"}[name]
    assert said.splitlines()[-1].startswith(last)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_without_a_model(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--save", str(tmp_path)])
    monkeypatch.syspath_prepend(ROOT / "examples")
    with settings():
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    _right(name, capsys.readouterr().out, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_program_of_its_own(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--save", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DSPY_CACHEDIR": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    _right(name, done.stdout, tmp_path)


@pytest.mark.slow
def test_an_example_runs_on_a_provider(tmp_path: Path) -> None:
    """A model that knows nothing of it: what counts is that both models are asked and a program comes out."""
    command = [sys.executable, str(ROOT / "examples" / "router.py"), "--save", str(tmp_path)]
    with clone(tmp_path):
        done = subprocess.run([*command, "--lm", "openai/gpt-4.1-mini", "--optimizer-lm", "openai/gpt-4.1"],
                              capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "router.json").exists()


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_has_data_of_its_own(name: str) -> None:
    source = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(source.splitlines()) < 80
    files = re.findall(r'records\("(.+?)"\)', source)
    assert files
    for file in files:
        assert len((ROOT / "examples" / file).read_text().splitlines()) >= 20
