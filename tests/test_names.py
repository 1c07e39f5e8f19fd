"""A module and a public class have a name of their own, and no file is too long to be read."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_LINES = 700


def modules() -> Iterator[Path]:
    """Yield the package's modules."""
    for folder in ("signatures", "modules", "teleprompters", "programs", "cuesmith"):
        yield from (path for path in (ROOT / folder).rglob("*.py") if not path.is_symlink())


def test_modules_have_names_of_their_own() -> None:
    places = defaultdict(list)
    for path in modules():
        places[path.parent.name if path.stem == "__init__" else path.stem].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_public_classes_have_names_of_their_own() -> None:
    places = defaultdict(list)
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_file_is_too_long() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {path: n for path, n in lines.items() if n > MOST_LINES} == {}
