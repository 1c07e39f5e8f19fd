"""The programs in examples/ do what their pages say: compile, save, load, use, without a model and over HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("router", "rag", "agent", "extraction")


def _run(name: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--save", str(folder), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DSPY_CACHEDIR": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["router", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_an_example_runs_without_a_model(name: str, tmp_path: Path) -> None:
    said = _run(name, tmp_path)
    scores = re.search(r"held out: (\d\.\d\d) before, (\d\.\d\d) after", said)
    assert scores is not None and float(scores[2]) > float(scores[1]) + 0.3, said
    assert (tmp_path / f"{name}.json").exists()
    last = {"router": "billing", "rag": "140 euros", "agent": "186", "extraction": "vendor='Miller & Sons'"}[name]
    assert said.splitlines()[-1].startswith(last)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_has_data_of_its_own(name: str) -> None:
    source = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(source.splitlines()) < 80
    for file in re.findall(r'records\("(.+?)"\)', source):
        assert len((ROOT / "examples" / file).read_text().splitlines()) >= 20
