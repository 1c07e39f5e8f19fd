"""The journal: what `put` returned for is there whatever happens to the process; what is damaged is not believed."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import dspy
import pytest
from e2e_support import ToyEngine, result_of, toy_compile, toy_lm
from hypothesis import given, settings
from hypothesis import strategies as st

from cuesmith.teleprompters.runtime.journal import FILE, Journal, JournalError, read

IDENTITY = {"compiler": "ABO", "seed": "0", "student": "abc"}

_WRITER = """
import sys, types
from pathlib import Path
root = Path(sys.argv[1])
for name in ("cuesmith", "cuesmith.teleprompters", "cuesmith.teleprompters.runtime"):  # without dspy: fast to start
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [str(root)]
from cuesmith.teleprompters.runtime.journal import Journal
journal = Journal(Path(sys.argv[2]), {"compiler": "ABO", "seed": "0", "student": "abc"})
start = int(sys.argv[3])
for i in range(start, start + 100_000):
    journal.put("calls" if i % 2 else "outcomes", f"key{i}", {"i": i, "text": "x" * (i % 3000)})
    sys.stdout.write(f"{i}\\n")
    sys.stdout.flush()
"""


def _open(path: Path, identity: dict[str, str] = IDENTITY) -> Journal:
    return Journal(path, identity)


def _writer(path: Path, start: int) -> subprocess.Popen[str]:
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
    with pytest.raises(JournalError, match=r"differs in: models, seed, student\."):
        _open(tmp_path, other)
    _open(tmp_path).close()  # the refusal left it free and unchanged
    with pytest.raises(JournalError, match=r"in: compiler, n ame0, n ame1, n ame10, n ame11 and 98 more\.") as said:
        _open(tmp_path, {f"n\name{i}": "" for i in range(100)})
    assert "\n" not in str(said.value)


def test_parts_that_a_run_changes_by_itself_are_not_compared(tmp_path: Path) -> None:
    journal = _open(tmp_path)
    journal.volatile({"seed", "memory"})
    journal.put("calls", "k", {"n": 1})
    journal.volatile(["seed"])
    journal.close()
    again = _open(tmp_path, {**IDENTITY, "seed": "1", "memory": "new"})
    assert again.get("calls", "k") == {"n": 1}
    again.close()
    with pytest.raises(JournalError, match=r"differs in: student\."):
        _open(tmp_path, {**IDENTITY, "seed": "1", "student": "x"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a journal at all" * 100, "not usable as a journal"),
        (b"not a journal at all\n" * 100, "not usable as a journal"),
        (b"SQLite format 3\x00" + b"\xff" * 4000, "not usable as a journal"),
        (b"\x00" * 4096, "not usable as a journal"),
        (b"{}\n", "not usable as a journal"),
        (b'["calls","k",{},"0123456789abcdef"]\n', "not usable as a journal"),
        (b'["cuesmith journal 1","0123456789abcdef",{"a":"b"},"0123456789abcdef"]\n', "is damaged"),
        (b'["cuesmith journal 1","0123456789abcdef",\n', "is damaged"),
        (b'["cuesmith journal 7","0123456789abcdef",{}]\n', "has format 7 of the journal, this version has 1"),
    ],
)
def test_a_foreign_file_is_a_clear_error_and_stays(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(JournalError, match=rf"^run_dir .*{said}.*ew directory$"):
        _open(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


@pytest.mark.parametrize("make", ["directory", "fifo", "full", "dangling", "null"])
def test_what_is_no_file_in_its_place_is_a_clear_error(tmp_path: Path, make: str) -> None:
    path = tmp_path / FILE
    match make:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "full":
            path.symlink_to("/dev/full")
        case "dangling":
            path.symlink_to(tmp_path / "no" / "such")
    with pytest.raises(JournalError, match=r"^run_dir [^\n]*not usable as a journal[^\n]*$"):
        _open(tmp_path / "nu\0ll" if make == "null" else tmp_path)


def test_a_file_in_the_directorys_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(JournalError, match="not usable as a journal"):
        _open(tmp_path / "run")


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
    with (tmp_path / FILE).open("rb") as file:
        rows = list(read(file, ""))[1:]
    assert len(rows) == 120 and all(row.body == {"i": int(row.key.split(":")[1])} for row in rows)


def test_what_may_wait_is_written_with_the_next(tmp_path: Path) -> None:
    journal = _open(tmp_path)
    size = (tmp_path / FILE).stat().st_size
    journal.put_soon("outcomes", "a", {"n": 1})
    assert (tmp_path / FILE).stat().st_size == size
    journal.put("calls", "b", {"n": 2})
    assert [journal.get("outcomes", "a"), list(journal.bodies("calls"))] == [{"n": 1}, [{"n": 2}]]
    journal.put_soon("outcomes", "c", {"n": 3})
    journal.close()
    again = _open(tmp_path)
    assert again.get("outcomes", "c") == {"n": 3}
    again.close()


def test_a_closed_journal_takes_and_gives_nothing(tmp_path: Path) -> None:
    journal = _open(tmp_path)
    assert journal.put("calls", "k", {"n": 1})
    journal.close()
    assert not journal.put("calls", "late", {})
    assert journal.get("calls", "k") is None and not list(journal.bodies("calls"))
    journal.put_soon("calls", "late", {})
    journal.flush()
    journal.close()
    again = _open(tmp_path)
    assert list(again.bodies("calls")) == [{"n": 1}]
    again.close()


def test_what_json_cannot_hold_is_not_stored(tmp_path: Path) -> None:
    journal = _open(tmp_path)
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert not journal.put("outcomes", "a", {"x": object()}) and not journal.put("outcomes", "b", {"x": deep})
    assert journal.put("outcomes", "c", {"x": float("nan")})
    journal.close()
    again = _open(tmp_path)
    assert [repr(body) for body in again.bodies("outcomes")] == ["{'x': nan}"]
    again.close()


def test_a_forked_process_leaves_it_to_its_parent(tmp_path: Path) -> None:
    journal = _open(tmp_path)
    journal.put("calls", "k", {"n": 1})
    stop = threading.Event()

    def work() -> None:
        for i in itertools.count():
            if stop.is_set():
                return
            journal.put("calls", f"{i}", {})

    busy = threading.Thread(target=work)
    busy.start()
    for _ in range(5):
        child = os.fork()
        if not child:
            stored = journal.put("calls", "of the child", {})
            os._exit(int(stored))
        assert os.waitpid(child, 0)[1] == 0
    stop.set()
    busy.join()
    journal.close()
    again = _open(tmp_path)
    assert again.get("calls", "k") == {"n": 1} and again.get("calls", "of the child") is None
    again.close()


def test_a_change_on_disk_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    journal = _open(tmp_path)
    journal.put("outcomes", "k", {"score": 0.0})
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().replace(b"0.0", b"1.0"))
    with pytest.raises(JournalError, match="is damaged"):
        journal.get("outcomes", "k")
    with pytest.raises(JournalError, match="is damaged"):
        list(journal.bodies("outcomes"))
    journal.close()


@pytest.mark.parametrize("change", ["deleted", "moved", "replaced", "cut", "longer"])
def test_a_file_that_is_no_longer_the_runs_is_noticed(tmp_path: Path, change: str) -> None:
    journal, file = Journal(tmp_path, {"a": "b"}), tmp_path / "journal.jsonl"
    journal.put("calls", "k", {"x": 1})
    match change:
        case "deleted":
            file.unlink()
        case "moved":
            file.rename(tmp_path / "other")
        case "replaced":
            (tmp_path / "other").write_bytes(file.read_bytes())
            (tmp_path / "other").replace(file)
        case "cut":
            os.truncate(file, 10)
        case _:
            with file.open("ab") as end:
                end.write(b"more")
    for _ in range(2):
        with pytest.raises(JournalError, match="was deleted, moved or changed while the run wrote it"):
            journal.look()
    with pytest.raises(JournalError):
        journal.put("calls", "l", {"x": 1})
    journal.close()


def test_fifty_thousand_rows_open_in_thrice_the_time_of_reading_them(tmp_path: Path) -> None:
    journal = _open(tmp_path)
    for i in range(50_000):
        journal.put_soon("calls" if i % 2 else "outcomes", f"{i:090d}", {"outputs": ["x" * 400], "n": i})
    journal.close()
    start = time.process_time()
    with (tmp_path / FILE).open("rb") as file:
        assert len([json.loads(line) for line in file]) > 50_000
    ideal = time.process_time() - start
    journal = _open(tmp_path)
    taken = time.process_time() - start - ideal
    assert journal.get("calls", f"{49_999:090d}") == {"outputs": ["x" * 400], "n": 49_999}
    journal.close()
    assert taken < 3 * ideal


# Damage to the journal of a finished run: an error in one line, or a resume with the same result.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    engine, run_dir = ToyEngine(), tmp_path_factory.mktemp("finished") / "run"
    result = result_of(_compile(engine, run_dir))
    data = (run_dir / FILE).read_bytes()
    with (run_dir / FILE).open("rb") as file:
        identity = {name: str(digest) for name, digest in next(read(file, "")).body.items()}
    assert engine.calls > 30 and data.count(b"\n") > 50
    return Finished(data, identity, result, engine.calls)


def _compile(engine: ToyEngine, run_dir: Path) -> dspy.Module:
    return toy_compile(toy_lm(engine), run_dir=run_dir, n_train=4, n_val=10, steps=1, width=2)


class Finished(NamedTuple):
    data: bytes
    identity: dict[str, str]
    result: dict[str, object]
    calls: int

    def resumes(self, run_dir: Path, data: bytes) -> bool:
        """Whether a journal of these bytes resumes to the same result, rather than being refused in one line."""
        run_dir.mkdir(exist_ok=True)
        (run_dir / FILE).write_bytes(data)
        try:
            journal = Journal(run_dir, self.identity)
        except JournalError as error:
            assert re.fullmatch(r"run_dir .*(restore it from a copy|ive a new directory).*", str(error)), error
            assert (run_dir / FILE).read_bytes() == data  # nothing that a copy could mend is lost
            return False
        held = sum(body["outputs"] is not None for body in journal.bodies("calls"))
        journal.close()
        engine = ToyEngine()
        assert result_of(_compile(engine, run_dir)) == self.result
        assert engine.calls == self.calls - held  # all that is left is replayed, and only that
        return True

    def lines(self) -> list[bytes]:
        return self.data.splitlines(keepends=True)


def test_undamaged_it_resumes_without_a_call(finished: Finished, tmp_path: Path) -> None:
    assert finished.resumes(tmp_path, finished.data)


def test_a_bit_flipped_anywhere_is_refused(finished: Finished, tmp_path: Path) -> None:
    numbers, resumed = random.Random(0), 0
    for place in (*range(0, len(finished.data), 50), *range(120), len(finished.data) - 1):
        data = bytearray(finished.data)
        data[place] ^= 1 << numbers.randrange(8)
        resumed += finished.resumes(tmp_path, bytes(data))
    assert resumed == 1  # the end of the last line: the line is dropped and paid again


def test_cut_anywhere_it_resumes(finished: Finished, tmp_path: Path) -> None:
    lines = finished.lines()
    ends = [sum(map(len, lines[:n])) for n in (1, 2, len(lines) // 2, len(lines) - 1)]
    for size in (0, 1, 18, 19, 40, *(end + more for end in ends for more in (-2, -1, 0, 1, 30))):
        assert finished.resumes(tmp_path, finished.data[:size]), size


@pytest.mark.parametrize("block", [1, 16, 512, 4096])
def test_zeroed_blocks(finished: Finished, tmp_path: Path, block: int) -> None:
    for start in range(0, len(finished.data), max(block, len(finished.data) // 12)):
        data = finished.data[:start] + bytes(len(finished.data[start : start + block])) + finished.data[start + block :]
        # A zeroed end is how a file system may leave a cut of the power: no line has an end there, so it is dropped.
        to_the_end = start + block >= len(finished.data) and start != 0
        assert finished.resumes(tmp_path, data) == to_the_end, start


def _swapped_bodies(lines: list[bytes]) -> list[bytes]:
    first, second = (next(i for i, line in enumerate(lines) if line.startswith(b'["outcomes"') and w in line)
                     for w in (b'"score":0.0', b'"score":1.0'))  # fmt: skip
    a, b = (re.fullmatch(rb'(\["outcomes","[^"]*",)(.*)(,"[0-9a-f]{16}"\]\n)', lines[i]) for i in (first, second))
    assert a is not None and b is not None
    lines[first], lines[second] = a[1] + b[2] + a[3], b[1] + a[2] + b[3]
    return lines


EDITS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "score": lambda lines: [b"".join(lines).replace(b'"score":0.0', b'"score":1.0', 1)],
    "reply": lambda lines: [b"".join(lines).replace(b"skill=4", b"skill=5", 1)],
    "count": lambda lines: [b"".join(lines).replace(b'"calls":1', b'"calls":0', 1)],
    "key": lambda lines: [b"".join(lines).replace(b'["outcomes","', b'["outcomes","0', 1)],
    "table": lambda lines: [b"".join(lines).replace(b'["calls",', b'["outcomes",', 1)],
    "identity": lambda lines: [re.sub(rb'"seed":"(\w)', rb'"seed":"x\1', b"".join(lines), count=1)],
    "bodies swapped": _swapped_bodies,
    "line doubled": lambda lines: [*lines[:9], lines[8], *lines[9:]],
    "line doubled at the end": lambda lines: [*lines, lines[8]],
    "lines reordered": lambda lines: [lines[0], *reversed(lines[1:])],
    "two lines of one length swapped": lambda lines: _same_length_swapped(lines),
    "line taken out": lambda lines: [*lines[:9], *lines[10:]],
    "head doubled": lambda lines: [lines[0], *lines],
    "head taken out": lambda lines: lines[1:],
    "line emptied": lambda lines: [*lines[:9], b"\n", *lines[10:]],
    "other line ends": lambda lines: [line.replace(b"\n", b"\r\n") for line in lines],
    "another encoding": lambda lines: [b"".join(lines).decode().encode("utf-16")],
    "a mark before it": lambda lines: [b"\xef\xbb\xbf", *lines],
    "formatted": lambda lines: [(json.dumps(json.loads(line)) + "\n").encode() for line in lines],
}


def _same_length_swapped(lines: list[bytes]) -> list[bytes]:
    for i, line in enumerate(lines[1:], 1):
        for j in range(i + 1, len(lines)):
            if len(lines[j]) == len(line):
                lines[i], lines[j] = lines[j], lines[i]
                return lines
    raise AssertionError("no two lines have one length")


@pytest.mark.parametrize("edit", EDITS)
def test_edited_it_is_refused(finished: Finished, tmp_path: Path, edit: str) -> None:
    data = b"".join(EDITS[edit](finished.lines()))
    assert data != finished.data
    assert not finished.resumes(tmp_path, data)


def test_lines_of_another_journal_of_the_same_run_are_refused(finished: Finished, tmp_path: Path) -> None:
    _compile(ToyEngine(), tmp_path / "other")
    other = (tmp_path / "other" / FILE).read_bytes().splitlines(keepends=True)
    lines = finished.lines()
    assert len(other[0]) == len(lines[0])
    assert not finished.resumes(tmp_path / "run", b"".join([lines[0], *other[1:]]))
    assert not finished.resumes(tmp_path / "run", b"".join([*lines, other[5]]))


def test_the_journal_of_another_run_is_refused(finished: Finished, tmp_path: Path) -> None:
    toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path / "other", n_train=4, n_val=10, steps=1, width=2, seed=5)
    assert not finished.resumes(tmp_path / "run", (tmp_path / "other" / FILE).read_bytes())


# A disk that fills up.

_FILLER = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
OPEN
import threading
sure, errors = [], []
def work(n):
    for i in range(40):
        try:
            journal.put("calls", f"key{n}:{i}", {"text": "x" * 100})
            sure.append(f"key{n}:{i}")
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
journal.close()
print(*sure)
print(*{e for e in errors}, sep="\\n")
""".replace("OPEN", _WRITER.partition("start = ")[0])


def _fill(run_dir: Path, script: str) -> tuple[list[str], list[str]]:
    root = str(Path(Journal.__init__.__code__.co_filename).parent)
    command = [sys.executable, "-c", script, root, str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sure, *errors = done.stdout.splitlines()
    return sure.split(), errors


def test_a_file_that_may_not_grow_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    sure, errors = _fill(tmp_path, _FILLER)
    _check_full(tmp_path, sure, errors, "File too large")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(tmp_path)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        sure, errors = _fill(tmp_path, _FILLER.replace("(5000, 5000)", "(-1, -1)"))
        _check_full(tmp_path, sure, errors, "No space left on device")
        (tmp_path / "ballast").write_bytes(b"")
        shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    _check_full(tmp_path.with_name("copy"), sure, errors, "No space left on device")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_read_only_or_full_folder_is_one_line_before_any_call(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(tmp_path)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    engine = ToyEngine()
    try:
        (tmp_path / "ballast").write_bytes(b"x" * 4096)
        with pytest.raises(JournalError, match=r"^run_dir [^\n]*cannot be written \(No space left on device\)[^\n]*$"):
            _compile(engine, tmp_path)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        for run_dir in (tmp_path, tmp_path / "new"):
            with pytest.raises(JournalError, match=r"^run_dir [^\n]*not usable as a journal: Read-only[^\n]*$"):
                _compile(engine, run_dir)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert engine.calls == 0


def _check_full(run_dir: Path, sure: list[str], errors: list[str], why: str) -> None:
    assert 10 < len(sure) < 150
    assert len(errors) == 1 and errors[0].startswith("JournalError: run_dir ")
    assert f"cannot be written ({why}): make room there and run the same command again" in errors[0]
    with (run_dir / FILE).open("rb") as file:
        rows = list(read(file, ""))
    assert (run_dir / FILE).stat().st_size == rows[-1].start + len(rows[-1].line)  # no half a line
    assert set(sure) <= {row.key for row in rows}
    _open(run_dir).close()
