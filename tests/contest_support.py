"""Compilers that the tests of checks and comparisons enter by name."""

from __future__ import annotations

from e2e_support import ToySearch

from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.run import Run


class NeedsOptuna(ToySearch):
    """Lacks a package."""

    def __init__(self, *args: object, **options: object) -> None:
        raise ImportError("this needs optuna: pip install optuna")


class Breaks(ToySearch):
    """Fails in the middle of its search."""

    async def search(self, run: Run) -> Candidate:
        """Fail."""
        raise RuntimeError("a <b>bug</b> | in\nthe search")
