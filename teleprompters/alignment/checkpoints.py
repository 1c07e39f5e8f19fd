"""Checkpoints of a training as folders that appear whole or not at all; no torch in here.

A checkpoint is written into a staging folder, listed in a manifest with its files' sizes, flushed to the disk, and
moved into place by one rename. What a killed process leaves behind is the staging folder, which the next one removes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from cuesmith.teleprompters.alignment.training_result import TrainingStepDone

MANIFEST = "manifest.json"
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        path: Its folder.
        updates: How many optimizer updates it has seen.
        about: What the training noted in it (JSON).
    """

    path: Path
    updates: int
    about: Mapping[str, object]


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, directory: Path) -> None:
        """Use `directory`, which is created when the first checkpoint is written."""
        self.directory = directory
        self.staging = directory / ".writing"

    def clear_staging(self) -> None:
        """Remove what a killed process was writing."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose files are all there in full, or None."""
        found = [(int(match[1]), path) for path in self._folders() if (match := _NAME.fullmatch(path.name))]
        for updates, path in sorted(found, reverse=True):
            about = _read(path)
            if about is not None:
                return Checkpoint(path, updates, about)
        return None

    def has(self, updates: int) -> bool:
        """Return whether there is a whole checkpoint after so many updates."""
        return _read(self.directory / f"checkpoint-{updates}") is not None

    def commit(self, updates: int, about: Mapping[str, object]) -> None:
        """Move the staged checkpoint into place and remove all but the newest `KEPT`.

        Args:
            updates: How many optimizer updates it has seen; the trainer staged it as `checkpoint-<updates>`.
            about: What to note in it, as JSON.

        Raises:
            OSError: The disk is full or the folder cannot be written.
        """
        staged, final = self.staging / f"checkpoint-{updates}", self.directory / f"checkpoint-{updates}"
        files = {path.name: path.stat().st_size for path in sorted(staged.iterdir())}
        (staged / MANIFEST).write_text(json.dumps({"files": files, "about": about}))
        for path in [*staged.iterdir(), staged]:
            _flush(path)
        if final.exists():  # damaged, or latest() would have found it
            shutil.rmtree(final)
        os.replace(staged, final)
        _flush(self.directory)
        whole = sorted((int(m[1]), path) for path in self._folders() if (m := _NAME.fullmatch(path.name)))
        for _, path in whole[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)
        self.clear_staging()

    def _folders(self) -> list[Path]:
        return [path for path in self.directory.iterdir() if path.is_dir()] if self.directory.is_dir() else []


class LearningCurve:
    """The learning curve, kept beside the checkpoints in one folder; None keeps it nowhere."""

    def __init__(self, directory: Path | None) -> None:
        self._file = file = None if directory is None else directory / "curve.jsonl"
        rows = file.read_text().splitlines() if file is not None and file.exists() else []
        self.steps: list[TrainingStepDone] = []
        for row in rows:
            with contextlib.suppress(ValueError):  # a line that a crash cut off
                self._note(TrainingStepDone(**json.loads(row)))

    def _note(self, event: TrainingStepDone) -> None:
        self.steps = [step for step in self.steps if step.step < event.step] + [event]

    def add(self, event: TrainingStepDone) -> None:
        """Add a step; one that is repeated after a kill replaces its first time."""
        self._note(event)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as lines:
                lines.write("\n" + json.dumps(asdict(event)))


def _read(path: Path) -> Mapping[str, object] | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        whole = all((path / name).stat().st_size == size for name, size in manifest["files"].items())
        return cast(Mapping[str, object], manifest["about"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
