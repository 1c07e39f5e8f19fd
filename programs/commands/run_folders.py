"""Run folders: the command that made a run is kept beside its journal, so that it can be resumed; and what there is.

Both files are data: the command is parsed as if it were typed, and its keys are taken out before it is written.

Source: ours.
"""

from __future__ import annotations

import fcntl
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cuesmith.programs.arguments import BadInput

FILE = "command.json"
FORMAT = 1
JOURNAL, RECORD, CONTEST = "journal.jsonl", "record.json", "contest.json"
PROGRAM = "program.json"
"""The compiled program in a run folder."""

HELD_OUT = "held-out"
"""The folder of a comparison's held-out scores: no compile of its own."""

RESULT = "result.json"
"""What a check or a comparison has found."""

_LEFT_OUT, _REPEATED = ("run_dir", "json", "dry_run"), ("option",)
_DEPTH = 3
_LARGEST = 256_000_000
"""Bytes of a record above which it is not read for a list."""


@dataclass(frozen=True)
class KeptCommand:
    """The command that made a run.

    Attributes:
        command: Its name, such as "compile".
        words: What followed it.
        directory: Where it was called.
        about: What it was about, for a reader: the task, the models.
        redacted: Whether keys were taken out, so that it cannot be repeated as it is.
    """

    command: str
    words: tuple[str, ...]
    directory: str
    about: Mapping[str, str]
    redacted: bool

    def write(self, folder: Path, *, replace_old: bool = True) -> None:
        """Write it into a run folder.

        Args:
            folder: It is made if it is not there.
            replace_old: Whether one that is there already is replaced.

        Raises:
            BadInput: If that cannot be done, or another command has made what is there.
        """
        if (made := _command_in(folder)) not in (None, self.command):
            raise BadInput(
                f"--run-dir {folder}: holds a run of cuesmith {made}: give a new folder, or go on with that "
                f"by {to_call('resume', folder)}"
            )
        data = {"format": FORMAT, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        text = json.dumps({**data, **vars(self), "about": dict(self.about)}, indent=1)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if replace_old or not (folder / FILE).exists():
                (folder / FILE).write_text(text + "\n", "utf-8")
        except OSError as error:
            raise BadInput(f"--run-dir {folder}: {error.strerror or error}") from None

    @classmethod
    def read(cls, folder: Path) -> KeptCommand:
        """Read the command of a run folder.

        Raises:
            BadInput: If there is none that can be read.
        """
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such folder")
        path = folder / FILE
        if not path.is_file():
            hint = f"; there are runs in it: {', '.join(p.name for p in found(folder))}" if any(found(folder)) else ""
            made = " (a run that Python code made goes on by the same code)" if (folder / JOURNAL).exists() else hint
            raise BadInput(f"{folder}: no run of the command line in it (no {FILE}){made}")
        data = _json(path)
        words, about = data.get("words"), data.get("about")
        if data.get("format") != FORMAT or not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise BadInput(f"{path}: not a command of this version")
        facts = {str(k): str(v) for k, v in about.items()} if isinstance(about, dict) else {}
        name, where = str(data.get("command")), str(data.get("directory"))
        return cls(name, tuple(words), where, facts, data.get("redacted") is True)

    @classmethod
    def of_compile(cls, folder: Path) -> KeptCommand:
        """Read the command that made a compile: its own, or that of the comparison that it is a part of.

        Raises:
            BadInput: If there is none that can be read.
        """
        around = [each for each in folder.resolve().parents[:_DEPTH] if _command_in(each) == "compare"]
        return cls.read(folder if (folder / FILE).is_file() or not around else around[0])

    @contextmanager
    def beginning(self, folder: Path) -> Iterator[None]:
        """Have it stand in its run's folder; of a command that fails before it began a run nothing stays.

        What has begun there keeps its own command until this one went through: then it was of the same run.

        Raises:
            BadInput: As `write`.
        """
        from cuesmith.teleprompters.runtime.journal import JournalError

        file, made = folder / FILE, [each for each in (folder, *folder.parents) if not each.exists()]
        before = file.read_bytes() if file.is_file() else None
        self.write(folder, replace_old=not any((folder / begun).exists() for begun in (JOURNAL, CONTEST)))
        try:
            yield
        except Exception as error:
            if isinstance(error, JournalError) or not any(p.is_file() and p != file for p in folder.rglob("*")):
                file.unlink() if before is None else file.write_bytes(before)
                with suppress(OSError):  # the first one that holds anything
                    for each in made:
                        each.rmdir()
            raise
        self.write(folder)


@dataclass(frozen=True)
class KeptResult:
    """What a check or a comparison has found, as it was printed.

    Attributes:
        data: As JSON.
        text: As Markdown.
    """

    data: Mapping[str, Any]
    text: str

    def write(self, folder: Path) -> None:
        """Write it into the run's folder.

        Raises:
            BadInput: If that cannot be done.
        """
        from cuesmith.teleprompters.runtime.formatting import json_text

        try:
            (folder / RESULT).write_text(json_text({"data": self.data, "text": self.text}) + "\n", "utf-8")
        except OSError as error:
            raise BadInput(f"--run-dir {folder}: {error.strerror or error}") from None


def result_of(folder: Path) -> KeptResult | None:
    """Return what a check or a comparison has found; None if the folder is of none that is done.

    Raises:
        BadInput: If it cannot be read.
    """
    path = folder / RESULT
    if _command_in(folder) not in ("check", "compare") or not path.is_file():
        return None
    kept = _json(path)
    data, text = kept.get("data"), kept.get("text")
    if not isinstance(data, dict) or not isinstance(text, str):
        raise BadInput(f"{path}: not the result of a check or a comparison")
    return KeptResult(data, text)


def _command_in(folder: Path) -> str | None:
    """Return the command that made what a folder holds; None if that is not known."""
    try:
        return KeptCommand.read(folder).command
    except BadInput:
        return None


def keep_command(command: str, options: Any, about: Mapping[str, str]) -> KeptCommand:
    """Return a command as it is to be kept: without keys.

    Args:
        command: Its name.
        options: The dataclass that it was told.
        about: What it is about, for a reader.
    """
    from cuesmith.teleprompters.runtime.redaction import Redactor

    words, redact = words_of(options), Redactor()
    clean = tuple(redact(word) for word in words)
    return KeptCommand(command, clean, str(Path.cwd()), about, clean != words)


def words_of(options: Any) -> tuple[str, ...]:
    """Return the words that tell a command these options; where its run goes and what it prints are left out."""
    words: list[str] = []
    for each in fields(options):
        value, name = getattr(options, each.name), f"--{each.name.replace('_', '-')}"
        if each.name in _LEFT_OUT or value is None or value == each.default:
            continue
        if isinstance(value, Mapping):
            value = ",".join(f"{key}={cap}" for key, cap in value.items())
        elif isinstance(value, tuple) and each.name not in _REPEATED:
            value = ",".join(map(str, value))
        several = value if isinstance(value, tuple) else (value,)
        words += [name] if value is True else [f"{name}={one}" for one in several]
    return tuple(words)


def to_call(command: str, folder: Path | str) -> str:
    """Return what a person types to call a command on a folder."""
    return f"cuesmith {command} {shlex.quote(str(folder))}"


def new_folder(compiler: str, task: str) -> Path:
    """Return a folder for a new run that there is not yet: runs/COMPILER-TASK-TIME."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', f'{compiler}-{task}')[:80]}-{stamp}"
    return next(path for n in range(1, 10_000) if not (path := base if n == 1 else Path(f"{base}-{n}")).exists())


def found(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Yield the folders of runs in a folder, itself included, by name; what cannot be looked into is left out."""
    if any((folder / name).is_file() for name in (JOURNAL, RECORD)):
        yield folder
    if not depth:
        return
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.is_symlink())
    except OSError:
        return
    for child in children:
        if child.name != HELD_OUT:
            yield from found(child, depth - 1)


def inside(folder: Path) -> str:
    """Return where there are runs in a folder, for a message; "" if there are none."""
    there = [str(path) for path in found(folder) if path != folder]
    return f"; there are runs in {', '.join(there[:5])}" if there else ""


def check_finished(folder: Path) -> None:
    """Raise if a folder holds no finished run.

    Raises:
        BadInput: If so; it says what is there instead.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    if (folder / RECORD).is_file():
        return
    if not (folder / JOURNAL).is_file():
        raise BadInput(f"{folder}: no run in it{inside(folder)}")
    if _locked(folder / JOURNAL):
        raise BadInput(f"{folder}: the run in it is still going on")
    go_on = to_call("resume", folder) if (folder / FILE).is_file() else "run the same code again"
    raise BadInput(f"{folder}: the run in it has not finished; to go on: {go_on}")


def no_compile(folder: Path, compiler: str) -> str:
    """Return that a record is of a check or of a comparison's held-out scores; "" if it is a compile's.

    What these made is no program, and no gain was looked for.

    Args:
        folder: Where it is.
        compiler: What it says that made it.
    """
    if compiler not in ("check", HELD_OUT):
        return ""
    made = "comparison" if compiler == HELD_OUT else "check"
    shown = f"; {to_call('show', folder)} prints what was found" if result_of(folder) is not None else ""
    return f"{folder}: holds no compile, but the scores of a {made}{shown}"


@dataclass(frozen=True)
class RunLine:
    """A run in a list.

    Attributes:
        folder: Where it is.
        compiler: The compiler's name; "" if it is not known.
        about: What it was about: the task.
        score: The returned program's mean on fresh examples, with its interval; None if there is none.
        gain: Over the student, likewise. Ends of an interval that there is none of are NaN.
        calls: Of models.
        usd: Dollars; None if a price is not known.
        state: "finished", "stopped by ...", "interrupted", "running", or "damaged".
        percent: Whether all scores of the run are from 0 to 1, and so are told in percent.
    """

    folder: str
    compiler: str
    about: str
    score: tuple[float, float, float] | None
    gain: tuple[float, float, float] | None
    calls: int
    usd: float | None
    state: str
    percent: bool = True


def line_of(folder: Path) -> RunLine:
    """Return what a list says of a run; whatever its files hold."""
    from cuesmith.teleprompters.runtime.ledger import stopped

    try:
        kept = KeptCommand.of_compile(folder)
        task, compiler = kept.about.get("task", ""), "" if kept.command == "compare" else kept.about.get("compiler", "")
    except BadInput:
        task, compiler = "", ""
    if not (folder / RECORD).is_file():
        state = "running" if _locked(folder / JOURNAL) else "interrupted"
        return RunLine(str(folder), compiler, task, None, None, _paid(folder / JOURNAL), None, state)
    try:
        data = _json(folder / RECORD)
        by, spent = data.get("stopped_by"), dict(data.get("spent") or {}).values()
        prices = [used.get("usd") for used in spent]
        state = "finished" if by is None else stopped(by)
        facts = data.get("provenance") or {}
        return RunLine(
            str(folder), compiler or str(facts.get("compiler") or data.get("compiler")), task, _score(data),
            _interval(data.get("gain"), "difference"), sum(int(used["calls"]) for used in spent),
            None if None in prices else float(sum(prices)), state, _is_percent(data))  # fmt: skip
    except (BadInput, AttributeError, KeyError, TypeError, ValueError):
        return RunLine(str(folder), compiler, task, None, None, 0, None, "damaged")


def spent_in(folder: Path) -> dict[str, float]:
    """Return what a finished run has used, by the names of caps; nothing of what cannot be read."""
    with suppress(BadInput, AttributeError, KeyError, TypeError, ValueError):
        spent = list(dict(_json(folder / RECORD)["spent"]).values())
        names = {"calls": ("calls",), "tokens": ("input_tokens", "output_tokens"), "usd": ("usd",)}
        return {cap: sum(float(used[n] or 0.0) for used in spent for n in each) for cap, each in names.items()}
    return {}


def _paid(journal: Path) -> int:
    """Return the calls that a journal has on record, as far as it can be read."""
    from cuesmith.teleprompters.runtime.journal import JournalError, read

    calls = 0
    with suppress(OSError, JournalError, KeyError, TypeError), journal.open("rb") as file:
        for row in read(file, str(journal)):
            calls += int(row.body["usage"]["calls"]) if row.table == "calls" else 0  # type: ignore[index]
    return calls


def _score(data: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Return the mean of the returned program on fresh examples, with its interval."""
    facts = data.get("provenance") or {}
    if facts.get("score"):
        return _interval(facts["score"], "mean")
    values = [float(v) for v in (data.get("fresh_scores") or {}).get("best") or () if v is not None]
    if not values:
        return None
    from cuesmith.teleprompters.runtime.statistics import estimate95

    estimate = estimate95(values)
    return estimate.mean, estimate.low, estimate.high


def _interval(data: Mapping[str, Any] | None, name: str) -> tuple[float, float, float] | None:
    if not data or not data.get("n"):
        return None
    mean, low, high = (math.nan if data[key] is None else float(data[key]) for key in (name, "low", "high"))
    return mean, low, high


def _is_percent(data: Mapping[str, Any]) -> bool:
    rows = [*((*one["scores"], one["mean"]) for one in data["candidates"]), *data["fresh_scores"].values()]
    known = [float(v) for row in rows if row for v in row if v is not None]
    return all(0.0 <= v <= 1.0 for v in known if not math.isnan(v))


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise BadInput(f"{path}: too large")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise BadInput(f"{path}: no JSON") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}: no object")
    return data


def _locked(path: Path) -> bool:
    """Whether a process compiles into a journal: it holds a lock on it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
