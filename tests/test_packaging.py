"""The package list, the links and the built wheel hold everything that is on disk."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import cuesmith

ROOT = Path(__file__).parents[1]
FOLDERS = ("modules", "programs", "signatures", "teleprompters")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources() -> set[str]:
    """Every Python file of the package, as the wheel should name it."""
    files = {f"cuesmith/{path.name}" for path in (ROOT / "cuesmith").glob("*.py")}
    for folder in FOLDERS:
        files |= {f"cuesmith/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
    return files


def test_every_package_on_disk_is_listed() -> None:
    on_disk = {str(Path(name).parent).replace("/", ".") for name in sources()}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_mapped_and_is_a_package(folder: str) -> None:
    assert PROJECT["tool"]["setuptools"]["package-dir"][f"cuesmith.{folder}"] == folder
    for directory in {path.parent for path in (ROOT / folder).rglob("*.py")}:
        assert (directory / "__init__.py").is_file(), directory


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_linked_for_type_checkers(folder: str) -> None:
    link = ROOT / "cuesmith" / folder
    if not link.is_symlink():
        pytest.skip("a checkout without symbolic links: it runs, but type checkers see less")
    assert link.readlink() == Path("..") / folder


def test_versions_agree() -> None:
    assert cuesmith.__version__ == PROJECT["project"]["version"]
    heading = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None and heading[1] == cuesmith.__version__


def test_the_base_install_has_no_training_framework() -> None:
    base = " ".join(PROJECT["project"]["dependencies"])
    assert not re.search(r"torch|transformers|trl|datasets", base)


def test_modules_import_only_what_stands_below_them() -> None:
    below = {"signatures": (), "modules": ("signatures",), "teleprompters": ("signatures", "modules")}
    for folder, allowed in below.items():
        for path in (ROOT / folder).rglob("*.py"):
            for found in re.findall(r"(?:from|import) cuesmith\.(\w+)", path.read_text()):
                assert found in (folder, *allowed), f"{path} imports cuesmith.{found}"


@pytest.mark.parametrize("name", sorted(sources()))
def test_each_module_imports(name: str) -> None:
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:  # a module of an extra that is not installed
        if (error.name or "").split(".")[0] in ("cuesmith", "dspy", "litellm"):
            raise
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_the_weights(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
        timeout=600,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert sources() <= names
    weights = {
        f"cuesmith/{path.relative_to(ROOT).as_posix()}"
        for suffix in ("*.safetensors", "*.json")
        for path in (ROOT / "modules" / "embedded").glob(suffix)
    }
    assert any(name.endswith(".safetensors") for name in weights)
    assert weights <= names and "cuesmith/py.typed" in names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    assert wheel.stat().st_size < 10e6
