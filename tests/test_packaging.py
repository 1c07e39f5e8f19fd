"""The package list, the links and the built wheel hold everything that is on disk."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import partial
from pathlib import Path

import pytest

import cuesmith
from cuesmith.programs.tasks.metrics import METRICS, ExactMatch
from cuesmith.teleprompters import COMPILERS
from cuesmith.teleprompters.registry import compiler_class, compiler_of

ROOT = Path(__file__).parents[1]
FOLDERS = ("modules", "programs", "signatures", "teleprompters")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources() -> set[str]:
    """Every Python file of the package, as the wheel should name it."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cuesmith").rglob("*.py")}
    for folder in FOLDERS:
        files |= {f"cuesmith/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
    return files


def test_every_package_on_disk_is_listed() -> None:
    on_disk = {str(Path(name).parent).replace("/", ".") for name in sources()}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_a_package(folder: str) -> None:
    for directory in {path.parent for path in (ROOT / folder).rglob("*.py")}:
        assert (directory / "__init__.py").is_file(), directory


@pytest.mark.parametrize("link", ["src/cuesmith", *(f"cuesmith/{folder}" for folder in FOLDERS)])
def test_the_package_is_links_to_the_root(link: str) -> None:
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {"": "src"}
    assert (ROOT / link).readlink() == Path("..") / Path(link).name


USER = """
import dspy
from cuesmith import ABO, Budget, compare, evaluate

def exact(example: dspy.Example, prediction: dspy.Prediction) -> float:
    return float(example.answer == prediction.answer)

compiler = ABO(metric=exact, budget=Budget(calls=300), steps=2)
program = compiler.compile(dspy.Predict("question -> answer"), trainset=[])
reveal_type(program.compilation.gain)
reveal_type(compare(evaluate(program, [], exact), evaluate(program, [], exact)))
ABO(metric=exact, budget=Budget(calls="many"), stepz=2)
"""


FAR = ",".join(next(each for each in PROJECT["tool"]["mypy"]["overrides"] if "follow_imports" in each)["module"])
"""What dspy imports and no type of ours needs: it would take most of the time."""


@pytest.mark.parametrize("where", ["editable", pytest.param("wheel", marks=pytest.mark.slow)])
def test_a_type_checker_sees_the_package(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In an editable install it goes by the .pth file alone: there is no PYTHONPATH."""
    (tmp_path / "user.py").write_text(USER)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    if where == "wheel":
        with zipfile.ZipFile(request.getfixturevalue("wheel")) as archive:
            archive.extractall(tmp_path / "site")
        env["MYPYPATH"] = str(tmp_path / "site")
    elif installed_from() != ROOT:
        pytest.skip("another tree is installed here")
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n[mypy-{FAR}]\nfollow_imports = skip\n")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "user.py"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    found = checked.stdout
    assert 'Revealed type is "cuesmith.teleprompters.runtime.statistics.Gain | None"' in found, found
    assert 'Revealed type is "cuesmith.teleprompters.runtime.statistics.Gain"' in found
    assert 'Argument "calls" to "Budget" has incompatible type "str"' in found and "stepz" in found
    assert "Found 2 errors in 1 file" in found


def installed_from() -> Path | None:
    """Return the tree that an editable install of this interpreter is of."""
    told = json.loads(importlib.metadata.distribution("cuesmith").read_text("direct_url.json") or "{}")
    return Path(str(told.get("url", "")).removeprefix("file://")) if told else None


def test_versions_agree() -> None:
    assert cuesmith.__version__ == PROJECT["project"]["version"]
    heading = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None and heading[1] == cuesmith.__version__


def test_the_base_install_has_no_training_framework() -> None:
    base = " ".join(PROJECT["project"]["dependencies"])
    assert not re.search(r"torch|transformers|trl|datasets", base)


ARROWS = (
    ("signatures/__init__.py", "import cuesmith.modules.sampling", "the folders",
     "cuesmith.signatures -> cuesmith.modules.sampling"),
    ("teleprompters/runtime/run.py", "from cuesmith.teleprompters.alignment import training_result", "the kernel knows",
     "cuesmith.teleprompters.runtime.run -> cuesmith.teleprompters.alignment.training_result"),
    ("teleprompters/search/scene.py", "import cuesmith.teleprompters.runtime.effects", "a search sees",
     "cuesmith.teleprompters.search.scene -> cuesmith.teleprompters.runtime.effects"),
    ("programs/report.py", "import cuesmith.programs.quickstart", "no circles", ".report -> .quickstart"),
)  # fmt: skip
"""File, a line that goes up, the contract that it breaks, and how that names it."""


@pytest.fixture(scope="module")
def said_of_arrows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is said of all these lines at once, where nothing was to say without them."""
    tree = tmp_path_factory.mktemp("arrows")
    shutil.copytree(ROOT / "cuesmith", tree / "cuesmith", ignore=shutil.ignore_patterns("__pycache__", "*.json*"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    env = os.environ | {"PYTHONPATH": str(tree)}
    run = partial(subprocess.run, command, cwd=tree, env=env, capture_output=True, text=True, timeout=120)
    kept = run()
    assert kept.returncode == 0, kept.stdout
    for file, line, _, _ in ARROWS:
        with (tree / "cuesmith" / file).open("a") as module:
            module.write(f"\n{line}\n")
    broken = run()
    assert broken.returncode == 1
    return broken.stdout


@pytest.mark.parametrize(("contract", "arrow"), [each[2:] for each in ARROWS])
def test_the_import_contract_catches_an_arrow_that_goes_up(said_of_arrows: str, contract: str, arrow: str) -> None:
    assert re.search(f"{contract}.* BROKEN", said_of_arrows), said_of_arrows
    assert arrow in " ".join(said_of_arrows.split()), said_of_arrows


@pytest.mark.parametrize("name", sorted(sources()))
def test_each_module_imports(name: str) -> None:
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:  # a module of an extra that is not installed
        if (error.name or "").split(".")[0] in ("cuesmith", "dspy", "litellm"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"  # a copy: setuptools leaves a build/ folder behind, from which it takes stale files
    for name in (*FOLDERS, "cuesmith", "src"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(tree)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_the_weights_tables_and_templates(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert sources() <= names
    weights = {
        f"cuesmith/{path.relative_to(ROOT).as_posix()}"
        for suffix in ("*.safetensors", "*.json", "*.jsonl", "*.txt", "*.j2")
        for folder in FOLDERS
        for path in (ROOT / folder).rglob(suffix)
    }
    assert any(name.endswith(".safetensors") for name in weights)
    assert weights <= names and "cuesmith/py.typed" in names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    assert wheel.stat().st_size < 10e6


def test_the_command_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys, cuesmith.cli; print(cuesmith.__file__, file=sys.stderr); "
        "sys.exit(cuesmith.cli.main(['quickstart', '--json', '--budget-calls', '60', '--test-size', '5']))"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(tmp_path / "site"))
    assert json.loads(done.stdout)["task"] == "objects"


def test_the_pages_name_what_there_is() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("cuesmith"):
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, alias.name) for alias in node.names), (page.name, node.module)
    for name, known in (("compilers/index", COMPILERS), ("data", METRICS)):
        text = (ROOT / "docs" / f"{name}.md").read_text()
        assert set(re.findall(r"^\| `([a-z0-9_-]+)` \|", text, re.MULTILINE)) == set(known)


def test_an_installed_package_adds_its_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "mine-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    names = ("random-search = mine:Random", "odd = mine:ODD", "abo = mine:Other", "own-third = mine:Third")
    (told / "entry_points.txt").write_text("\n".join(["[cuesmith.compilers]", *names]))
    code = "from cuesmith import APO, IterativeAPE as Random\nODD = 3\nclass Other(APO): ...\nclass Third(APO): ...\n"
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert compiler_class("RandomSearch").__name__ == "IterativeAPE"
    with pytest.raises(TypeError, match="mine:ODD, which is no subclass"):
        compiler_class("odd")
    with pytest.raises(ValueError, match="did you mean 'random"):
        compiler_class("random-serch")
    for name, called in {"random-search": "iterative-ape", "own-third": "own-third", "abo": "abo"}.items():
        made = compiler_of(name, ExactMatch("answer"))
        assert made.called == called and compiler_class(made.called) is type(made)
    assert sys.modules["mine"].Other(ExactMatch("answer")).called == "other", "its entry point's name is taken"
    chain = sys.modules["mine"].Third(ExactMatch("answer")) >> compiler_of("apo", ExactMatch("answer"))
    assert chain.called == "own-third >> apo"


def test_the_page_on_architecture_shows_the_compiler_that_is_tested() -> None:
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL)[0]
    tested = (ROOT / "tests" / "test_own_compiler.py").read_text()
    imports, _, body = shown.partition("\n\n\n")
    assert body.strip() in tested and set(imports.strip().splitlines()) - {""} <= set(tested.splitlines())
