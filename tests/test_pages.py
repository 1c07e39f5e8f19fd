"""README.md and docs/: every block runs as it stands, without a key, and the site is built without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages_support import LANGUAGES, PAGES, ROOT, Page, clone

import cuesmith

NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_of_a_page_run(name: str, tmp_path: Path) -> None:
    with clone(tmp_path):
        Page().run(ROOT / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_blocks_of_a_page_run_with_commands_in_a_shell(name: str, tmp_path: Path) -> None:
    with clone(tmp_path):
        Page(slow=True).run(ROOT / name)


@pytest.mark.parametrize("name", NAMES)
def test_code_stands_in_blocks_of_a_known_language(name: str) -> None:
    """Else it would be read by people and run by nobody."""
    fences = re.findall(r"^```(.*)$", (ROOT / name).read_text(), re.MULTILINE)
    assert len(fences) % 2 == 0 and not any(fences[1::2])
    assert set(fences[::2]) <= set(LANGUAGES)
    outside = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^::: .*\n(?:    .*\n)*", "", outside, flags=re.MULTILINE)
    assert not re.search(r"^    \S", outside, re.MULTILINE), "indented code is run by nobody"


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    compilers = "".join(path.read_text() for path in (tmp_path / "site" / "compilers").rglob("index.html"))
    shown = set(re.findall(r'id="cuesmith\.(?:\w+\.)*(\w+)"', api + compilers))
    assert set(cuesmith.__all__) - {"__version__"} <= shown
    assert (tmp_path / "site" / "real" / "index.html").exists()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
