"""The journal of a run: what completed is on disk before anything is built on it.

SQLite in WAL mode: a process killed at any moment loses nothing that a call to `put` returned for. Two
tables of JSON bodies: `calls` (replies of language models) and `outcomes` (program runs on examples), both
keyed by content hashes, so that a resumed run finds what it asks for whatever the order. Requests, keys and
headers are never written. Source: ours; measured in benchmarks/kernel.py.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import pydantic_core

from cuesmith.teleprompters.runtime.redaction import redacted

Table = Literal["calls", "outcomes"]

FILE = "journal.sqlite3"
_ESCAPES = (("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r"), ('\\"', '"'), ("\\b", " "), ("\\f", " "), ("\\u00", " "))
_SOON = 64
"""Bodies that `put_soon` keeps back at most."""


class JournalError(ValueError):
    """The run directory cannot be used: it is in use, damaged, or holds a run of something else."""


class Journal:
    """An append-only store of completed effects in a run directory.

    Args:
        run_dir: The directory; made if it does not exist.
        identity: What the run is a run of (compiler, options, seed, student, data). A directory that holds
            a run of something else is refused.
        redact: Applied to every body before it is written.

    Raises:
        JournalError: If another process has the directory open, or it holds another run, or is no journal.
    """

    def __init__(self, run_dir: Path, identity: Mapping[str, str], redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._lock = threading.Lock()
        self._soon: deque[tuple[Table, str, str]] = deque()
        opened = contextlib.ExitStack()
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(run_dir / FILE, check_same_thread=False, isolation_level=None, timeout=1.0)
            opened.callback(self._db.close)
            self._open(run_dir)
            self._known = {table: self._rows(table) for table in ("calls", "outcomes")}
        except sqlite3.OperationalError as error:
            opened.close()
            raise JournalError(
                f"run_dir {str(run_dir)!r} cannot be opened ({error}): is another process "
                "compiling into it? Give each run its own directory"
            ) from error
        except (sqlite3.DatabaseError, OSError) as error:
            opened.close()
            raise JournalError(f"run_dir {str(run_dir)!r} is not usable as a journal: {error}") from error
        self._check_identity(run_dir, identity)

    def _open(self, run_dir: Path) -> None:
        # An exclusive lock held for the connection's life keeps a second process out; kill -9 drops it.
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL"):
            self._db.execute(f"PRAGMA {pragma}")
        for table in ("meta", "calls", "outcomes", "volatile"):
            # No index: this process alone has the file open and knows all keys, and a write is twice as fast.
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} (key TEXT NOT NULL, body TEXT NOT NULL)")

    def _rows(self, table: str) -> dict[str, int]:
        return {str(key): int(row) for row, key in self._db.execute(f"SELECT rowid, key FROM {table}")}

    def _check_identity(self, run_dir: Path, identity: Mapping[str, str]) -> None:
        stored = {str(k): str(v) for k, v in self._db.execute("SELECT key, body FROM meta")}
        if not stored:
            self._db.execute("BEGIN")  # all of it or nothing: half an identity would refuse its own run
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", list(identity.items()))
            self._db.execute("COMMIT")
            return
        names = {*stored, *identity} - {str(k) for (k,) in self._db.execute("SELECT key FROM volatile")}
        differing = sorted(k for k in names if stored.get(k) != identity.get(k))
        if differing:
            self.close()
            raise JournalError(
                f"run_dir {str(run_dir)!r} holds a run that differs in: {', '.join(differing[:5])}. "
                "Resume it with the same arguments, or give a new directory"
            )

    @property
    def resumed(self) -> bool:
        """Whether the directory held completed effects when it was opened, or holds some now."""
        return any(self._known.values())

    def volatile(self, names: Iterable[str]) -> None:
        """Say which parts of the identity a run changes by itself: they are not compared when it is resumed."""
        with self._lock:
            self._db.executemany("INSERT INTO volatile VALUES (?, '')", [(name,) for name in names])

    def get(self, table: Table, key: str) -> dict[str, object] | None:
        """Return the body stored under `key`, or None."""
        number = self._known[table].get(key)  # without the lock: most keys are new, and writers hold it long
        if number is None:
            return None
        with self._lock:
            row = self._db.execute(f"SELECT body FROM {table} WHERE rowid = ?", (number,)).fetchone()
        body: dict[str, object] = json.loads(row[0])
        return body

    def bodies(self, table: Table) -> Iterator[dict[str, object]]:
        """Yield every body of a table, in no particular order."""
        with self._lock:
            rows = self._db.execute(f"SELECT body FROM {table}").fetchall()
        for (text,) in rows:
            body: dict[str, object] = json.loads(text)
            yield body

    def put(self, table: Table, key: str, body: Mapping[str, object]) -> None:
        """Store a body; it survives a kill once this returns. A key that is there already keeps its body."""
        self._write((table, key, self._text(body)))

    def put_soon(self, table: Table, key: str, body: Mapping[str, object]) -> None:
        """Store a body with the next `put` or `flush`: half the disk writes for what need not survive by itself."""
        self._soon.append((table, key, self._text(body)))
        if len(self._soon) >= _SOON:
            self.flush()

    def flush(self) -> None:
        """Write what `put_soon` has kept back."""
        self._write()

    def _text(self, body: Mapping[str, object]) -> str:
        text = _json(body)
        seen = _plain(text)  # one look at all texts; rewriting each is for the rare case
        return text if self._redact(seen) == seen else _json(redacted(dict(body), self._redact))

    def _write(self, *rows: tuple[Table, str, str]) -> None:
        with self._lock:
            batch = [self._soon.popleft() for _ in range(len(self._soon))] + list(rows)
            if not batch:
                return
            if len(batch) > 1:
                self._db.execute("BEGIN")
            for table, key, text in batch:
                if key not in self._known[table]:
                    added = self._db.execute(f"INSERT INTO {table} VALUES (?, ?)", (key, text))
                    self._known[table][key] = added.lastrowid or 0
            if len(batch) > 1:
                self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the files; a closed journal can be opened by another process."""
        self._write()
        with self._lock:
            self._db.close()


def _json(body: object) -> str:
    try:
        return pydantic_core.to_json(body, inf_nan_mode="constants").decode()
    except pydantic_core.PydanticSerializationError:  # half a surrogate pair
        return json.dumps(body, ensure_ascii=True, separators=(",", ":"))


def _plain(text: str) -> str:
    """Undo JSON's escapes, roughly: a secret that stands in a value stands here too, with no letter put before it."""
    if "\\" not in text:
        return text
    single = text.replace("\\\\", "\\")
    plain = single
    for escape, character in _ESCAPES:
        plain = plain.replace(escape, character)
    return plain if single == text else f"{plain}\0{single}"
