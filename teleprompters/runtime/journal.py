"""The journal of a run: what completed is on disk before anything is built on it.

One file that is only appended to, a line of JSON a body: `["calls", KEY, BODY, CHECKSUM]`. `put` returns when the
operating system has the line, so a process killed at any moment loses nothing that `put` returned for. A checksum
covers the line, its place in the file and the file's own random number: a line that was changed, moved, doubled, taken
out or brought in from elsewhere is noticed when the file is opened, so that what is read is always the beginning of
what was written, as if the process had been killed there. The last line without its end is that kill, and is dropped.
Source: ours; measured in benchmarks/kernel.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pydantic_core

Table = Literal["calls", "outcomes"]

FILE = "journal.jsonl"
FORMAT = 1
_LOOK_S = 0.1
"""Seconds between two looks at whether the file is still there. Ours."""
_MAGIC = b'["cuesmith journal '
_HEAD = re.compile(re.escape(_MAGIC) + rb'(\d+)","[0-9a-f]{16}",')
_ROW = re.compile(rb'\["(calls|outcomes|volatile|cuesmith journal \d+)","((?:[^"\\]|\\.)*)",')
_TAIL = len(',"0123456789abcdef"]\n')
_SOON = 64
"""Bodies that `put_soon` keeps back at most."""
_NAMED = 5
"""Differing parts that a refusal names at most."""


class JournalError(ValueError):
    """The run directory cannot be used (in use, full, read-only, damaged, of another run); the message is one line."""


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A line of a journal whose checksum holds; the first line's table is the file's format, its body the identity."""

    table: str
    key: str
    start: int
    line: bytes

    @property
    def body(self) -> dict[str, object]:
        """The stored body."""
        body: dict[str, object] = json.loads(self.line)[2]
        return body


def read(file: BinaryIO, where: str) -> Iterator[JournalRow]:
    """Yield the rows of a journal in the order in which they were written.

    Args:
        file: The journal, opened for reading bytes.
        where: Its name for error messages.

    Raises:
        JournalError: At the first line that is not as it was written.
    """
    run, start = b"", 0
    for line in file:
        whole = line.endswith(b"\n")
        if not start:
            _require_journal(line, whole, where)
        if not whole:
            return
        row = _ROW.match(line)
        if row is None or line[-_TAIL:] != _tail(line[:-_TAIL], run, start):
            raise JournalError(_damaged(where, start))
        yield JournalRow(row[1].decode(), _text(row[2]), start, line)
        run = run or bytes.fromhex(row[2].decode())
        start += len(line)


def _require_journal(line: bytes, whole: bool, where: str) -> None:
    head = _HEAD.match(line)
    if head is not None and int(head[1]) != FORMAT:
        raise JournalError(
            f"{where} has format {int(head[1])} of the journal, this version has {FORMAT}: give a new directory"
        )
    if head is None and (whole or not (line.startswith(_MAGIC) or _MAGIC.startswith(line))):
        raise JournalError(f"{where} is not usable as a journal: {FILE} is something else. Give a new directory")


def _damaged(where: str, start: int) -> str:
    return f"{where} is damaged ({FILE}, byte {start:,}): restore it from a copy, or give a new directory"


def _text(quoted: bytes) -> str:
    return str(json.loads(b'"%s"' % quoted)) if b"\\" in quoted else quoted.decode()


def _tail(content: bytes, run: bytes, start: int) -> bytes:
    checksum = hashlib.blake2b(content, digest_size=8, salt=run, person=start.to_bytes(8, "big"))
    return b',"%s"]\n' % checksum.hexdigest().encode()


class Journal:
    """An append-only store of completed effects in a run directory. Thread-safe.

    Args:
        run_dir: The directory; made if it does not exist.
        identity: What the run is a run of: readable name of a part -> its digest. A directory that holds a run of
            something else is refused.

    Raises:
        JournalError: If the directory cannot be written, another process has it open, it holds another run or
            something else, or any part of it is not as it was written.
    """

    def __init__(self, run_dir: Path, identity: Mapping[str, str]) -> None:
        self._where = f"run_dir {str(run_dir)!r}"
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, str, bytes]] = deque()
        self._places: dict[str, dict[str, tuple[int, int]]] = {"calls": {}, "outcomes": {}, "volatile": {}}
        self._run, self._end, self._failed = b"", 0, ""
        self._path, self._look_again = (run_dir / FILE).absolute(), 0.0
        self._file = self._opened(run_dir)
        try:
            self._load(identity)
        except BaseException:
            self.close()
            raise
        _OPEN.add(self)

    def _opened(self, run_dir: Path) -> int:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            file = os.open(run_dir / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise OSError(errno.EINVAL, f"{FILE} is not a regular file")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a kill frees it
            except BaseException:
                os.close(file)
                raise
        except BlockingIOError as error:
            raise JournalError(
                f"{self._where} is in use: is another process compiling into it? Give each run its own directory"
            ) from error
        except (OSError, ValueError) as error:  # a ValueError is a path with a null byte
            raise self._unusable(error) from error
        return file

    def _unusable(self, error: Exception) -> JournalError:
        said = " ".join(str(getattr(error, "strerror", None) or error).split())
        return JournalError(f"{self._where} is not usable as a journal: {said}. Give another directory")

    def _load(self, identity: Mapping[str, str]) -> None:
        stored: dict[str, object] | None = None
        try:
            with open(self._file, "rb", closefd=False) as file:
                for row in read(file, self._where):
                    if stored is None:
                        self._run, stored = bytes.fromhex(row.key), row.body
                    else:
                        self._places.setdefault(row.table, {}).setdefault(row.key, (row.start, len(row.line)))
                    self._end = row.start + len(row.line)
            if stored is not None:
                self._require_same(stored, identity)
            os.ftruncate(self._file, self._end)  # what follows is a line without its end
        except OSError as error:
            raise self._unusable(error) from error
        if stored is None:
            table, run = f"cuesmith journal {FORMAT}", os.urandom(8)
            head = _content(table, run.hex(), identity)
            assert head is not None, "an identity is text"
            self._append([(table, run.hex(), head)])
            self._run = run

    def _require_same(self, stored: Mapping[str, object], identity: Mapping[str, str]) -> None:
        names = {*stored, *identity} - {*self._places["volatile"]}
        differing = [" ".join(n.split()) for n in sorted(names) if stored.get(n) != identity.get(n)]
        if differing:
            more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
            raise JournalError(
                f"{self._where} holds a run that differs in: {', '.join(differing[:_NAMED])}{more}. "
                "Resume it with the same arguments, or give a new directory"
            )

    @property
    def resumed(self) -> bool:
        """Whether the directory held completed effects when it was opened, or holds some now."""
        return bool(self._places["calls"] or self._places["outcomes"])

    def volatile(self, names: Iterable[str]) -> None:
        """Say which parts of the identity a run changes by itself: they are not compared when it is resumed.

        Raises:
            JournalError: As `put`.
        """
        self._write(*(("volatile", name, _content("volatile", name, {})) for name in sorted(names)))

    def get(self, table: Table, key: str) -> dict[str, object] | None:
        """Return the body stored under `key`, or None; a closed journal has none.

        Raises:
            JournalError: If it has been changed on disk since the journal was opened.
        """
        place = self._places[table].get(key)  # without the lock: most keys are new
        return None if place is None else self._body(*place)

    def bodies(self, table: Table) -> Iterator[dict[str, object]]:
        """Yield every body of a table, in the order of writing.

        Raises:
            JournalError: As `get`.
        """
        for place in list(self._places[table].values()):
            body = self._body(*place)
            if body is not None:
                yield body

    def _body(self, start: int, size: int) -> dict[str, object] | None:
        with self._lock:
            if self._file < 0:
                return None
            try:
                line = os.pread(self._file, size, start)
            except OSError as error:
                raise self._unusable(error) from error
        if line[-_TAIL:] != _tail(line[:-_TAIL], self._run, start):
            raise JournalError(_damaged(self._where, start))
        return JournalRow("", "", start, line).body

    def put(self, table: Table, key: str, body: Mapping[str, object]) -> bool:
        """Store a body; it survives a kill once this returns. A key that is there already keeps its body.

        Returns:
            Whether it is stored: not if the journal is closed, or in a process forked from the run's, or if the body
            has no form in JSON.

        Raises:
            JournalError: If it cannot be written, the disk being full for instance, or an earlier one could not.
        """
        content = _content(table, key, body)
        return content is not None and self._write((table, key, content))

    def put_soon(self, table: Table, key: str, body: Mapping[str, object]) -> None:
        """Store a body with the next `put` or `flush`: fewer writes for what need not survive by itself.

        Raises:
            JournalError: As `put`.
        """
        content = _content(table, key, body)
        if content is not None:
            self._waiting.append((table, key, content))
        if self._failed or len(self._waiting) >= _SOON:
            self._write()

    def flush(self) -> None:
        """Write what `put_soon` has kept back.

        Raises:
            JournalError: As `put`.
        """
        self._write()

    def _write(self, *rows: tuple[str, str, bytes | None]) -> bool:
        """Write what waits: whoever has the lock writes for all who wait for it."""
        self._waiting.extend((table, key, content) for table, key, content in rows if content is not None)
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if self._file < 0:
                return False
            if self._failed:
                raise JournalError(self._failed)
            self._look()
            self._append(batch)
        return True

    def look(self) -> None:
        """Look whether the file is still the run's.

        Raises:
            JournalError: If it is not, or could not be written earlier.
        """
        with self._lock:
            if self._failed:
                raise JournalError(self._failed)
            self._look_again = 0.0
            if self._file >= 0:
                self._look()

    def _look(self) -> None:
        """Look, now and then, whether the file that is written is still the run's.

        Raises:
            JournalError: If it was deleted, moved, replaced or cut meanwhile: what would be written is lost.
        """
        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + _LOOK_S
        try:
            there, ours = os.stat(self._path), os.fstat(self._file)
            same = (there.st_dev, there.st_ino, there.st_size) == (ours.st_dev, ours.st_ino, self._end)
        except OSError:
            same = False
        if not same:
            self._failed = (
                f"{self._where} was deleted, moved or changed while the run wrote it: what was paid since then is not "
                "kept; run again with a new directory"
            )
            raise JournalError(self._failed)

    def _append(self, batch: Iterable[tuple[str, str, bytes]]) -> None:
        lines, places, end = [], {}, self._end
        for table, key, content in batch:
            if (table, key) not in places and key not in self._places.get(table, ()):
                lines.append(content + _tail(content, self._run, end))
                places[table, key] = (end, len(lines[-1]))
                end += len(lines[-1])
        try:
            _write_all(self._file, b"".join(lines))
        except BaseException as error:
            with contextlib.suppress(OSError):  # else the next session drops the line that has no end
                os.ftruncate(self._file, self._end)
            why = error.strerror if isinstance(error, OSError) else type(error).__name__
            self._failed = (
                f"{self._where} cannot be written ({why}): make room there and run the same command again; what was "
                "paid until then is kept"
            )
            if not isinstance(error, OSError):
                raise
            raise JournalError(self._failed) from error
        self._end = end
        for (table, key), place in places.items():
            self._places.setdefault(table, {})[key] = place

    def close(self) -> None:
        """Let the directory go; another process can open it. Later puts are not stored. Never raises."""
        if not self._failed:
            with contextlib.suppress(JournalError):
                self._write()
        with self._lock:
            file, self._file = self._file, -1
            if file >= 0:
                with contextlib.suppress(OSError):
                    os.close(file)


_OPEN: weakref.WeakSet[Journal] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """In a forked process: two that append would damage the file, and the copied lock may be held for ever."""
    for journal in list(_OPEN):
        journal._lock = threading.Lock()
        journal._failed = ""
        journal._waiting.clear()
        journal.close()


os.register_at_fork(after_in_child=_leave_to_parent)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _content(table: str, key: str, body: Mapping[str, object]) -> bytes | None:
    """Return the line up to its checksum, or None if JSON has no form for it."""
    try:
        try:
            return pydantic_core.to_json([table, key, body], inf_nan_mode="constants")[:-1]
        except ValueError:  # half a surrogate pair, or deeper than pydantic goes
            return json.dumps([table, key, body], separators=(",", ":")).encode()[:-1]
    except (TypeError, ValueError, RecursionError):
        return None
