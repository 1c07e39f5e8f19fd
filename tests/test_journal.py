"""The journal: what `put` returned for is there, whatever happened to the process."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuesmith.teleprompters.runtime.journal import FILE, Journal, JournalError
from cuesmith.teleprompters.runtime.redaction import Redactor

IDENTITY = {"compiler": "ABO", "seed": "0", "student": "abc"}

_WRITER = """
import sys, types
from pathlib import Path
root = Path(sys.argv[1])
for name in ("cuesmith", "cuesmith.teleprompters", "cuesmith.teleprompters.runtime"):  # without dspy: fast to start
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [str(root)]
from cuesmith.teleprompters.runtime.journal import Journal
journal = Journal(Path(sys.argv[2]), {"compiler": "ABO", "seed": "0", "student": "abc"}, str)
start = int(sys.argv[3])
for i in range(start, start + 100_000):
    journal.put("calls" if i % 2 else "outcomes", f"key{i}", {"i": i, "text": "x" * (i % 3000)})
    sys.stdout.write(f"{i}\\n")
    sys.stdout.flush()
"""


def _plain(text: str) -> str:
    return text


def _open(path: Path, identity: dict[str, str] = IDENTITY) -> Journal:
    return Journal(path, identity, _plain)


def _writer(path: Path, start: int) -> "subprocess.Popen[str]":
    import cuesmith.teleprompters.runtime.journal as module

    root = str(Path(module.__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, root, str(path), str(start)], stdout=subprocess.PIPE, text=True
    )


def test_what_is_put_is_found_again(tmp_path: Path) -> None:
    journal = _open(tmp_path / "a" / "b")
    assert not journal.resumed and journal.get("calls", "k") is None
    journal.put("calls", "k", {"x": [1, None, "é\ud800"]})
    assert journal.get("calls", "k") == {"x": [1, None, "é\ud800"]} and journal.get("outcomes", "k") is None
    assert journal.resumed
    journal.close()
    again = _open(tmp_path / "a" / "b")
    assert again.resumed and again.get("calls", "k") == {"x": [1, None, "é\ud800"]}
    again.close()


def test_a_key_keeps_its_first_body(tmp_path: Path) -> None:
    journal = _open(tmp_path)
    journal.put("outcomes", "k", {"n": 1})
    journal.put("outcomes", "k", {"n": 2})
    assert journal.get("outcomes", "k") == {"n": 1}
    journal.close()


@given(st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=5), st.text(max_size=20)), max_size=5))
@settings(max_examples=8, deadline=None)
def test_any_text_round_trips(tmp_path_factory: pytest.TempPathFactory, bodies: dict[str, dict[str, object]]) -> None:
    journal = _open(tmp_path_factory.mktemp("run"))
    for key, body in bodies.items():
        journal.put("calls", key, body)
    assert {key: journal.get("calls", key) for key in bodies} == bodies
    journal.close()


def test_killed_again_and_again_it_loses_nothing_acknowledged(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    for lines in (1, 40, 7, 150, 23):
        writer = _writer(tmp_path, len(acknowledged))
        assert writer.stdout is not None
        for _ in range(lines):
            acknowledged.append(int(writer.stdout.readline()))
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        assert acknowledged == list(range(len(acknowledged)))
        journal = _open(tmp_path)
        for i in acknowledged:
            body = journal.get("calls" if i % 2 else "outcomes", f"key{i}")
            assert body == {"i": i, "text": "x" * (i % 3000)}
        journal.close()


def test_a_second_process_is_refused_while_it_is_open(tmp_path: Path) -> None:
    writer = _writer(tmp_path, 0)
    assert writer.stdout is not None
    try:
        writer.stdout.readline()
        with pytest.raises(JournalError, match="is another process compiling into it"):
            _open(tmp_path)
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    _open(tmp_path).close()


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    journal = _open(tmp_path)
    with pytest.raises(JournalError, match="another process"):
        _open(tmp_path)
    journal.put("calls", "k", {})
    journal.close()
    _open(tmp_path).close()


def test_another_run_is_refused_and_the_differences_named(tmp_path: Path) -> None:
    _open(tmp_path).close()
    other = {"compiler": "ABO", "seed": "1", "models": "m"}
    with pytest.raises(JournalError, match="differs in: models, seed, student"):
        _open(tmp_path, other)
    _open(tmp_path).close()  # the refusal left it free and unchanged


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 4000])
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(JournalError, match=r"run_dir .*not usable as a journal"):
        _open(tmp_path)


def test_a_file_in_the_directorys_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(JournalError, match="not usable as a journal"):
        _open(tmp_path / "run")


def test_no_secret_is_written_even_behind_an_escape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_API_KEY", 'pä"ss\\wörd1')
    journal = Journal(tmp_path, IDENTITY, Redactor())
    body = {
        "outputs": ['say pä"ss\\wörd1', {"text": "key:\nsk-Ab3dEf6hIj9kLm2n"}],
        "n": 1,
        "none": None,
        "outputs2": (),
    }
    journal.put("calls", "k", body)
    assert journal.get("calls", "k") == {
        "outputs": ["say [redacted]", {"text": "key:\n[redacted]"}],
        "n": 1,
        "none": None,
        "outputs2": [],
    }
    journal.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Ab3dEf6hIj9kLm2n" not in stored and b"rd1" not in stored


def test_a_secret_that_is_a_field_name_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD_TOKEN", "input_tokens")
    journal = Journal(tmp_path, IDENTITY, Redactor())
    journal.put("calls", "k", {"usage": {"input_tokens": 3}})
    assert journal.get("calls", "k") == {"usage": {"input_tokens": 3}}
    journal.close()


def test_many_threads_at_once(tmp_path: Path) -> None:
    journal = _open(tmp_path)

    def work(number: int) -> None:
        for i in range(30):
            journal.put("calls", f"{number % 4}:{i}", {"i": i})
            assert journal.get("calls", f"{number % 4}:{i}") == {"i": i}

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    with sqlite3.connect(tmp_path / FILE) as db:
        rows = db.execute("SELECT key, body FROM calls").fetchall()
    db.close()
    assert len(rows) == 120 and all(json.loads(body) == {"i": int(key.split(":")[1])} for key, body in rows)
