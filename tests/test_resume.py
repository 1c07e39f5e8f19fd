"""kill -9 at random moments: the resumed compile ends as an uninterrupted one, and pays no completed call twice."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import dspy
import pytest
from e2e_support import COMPILE, ToyEngine, result_of, toy_compile, toy_lm
from processes_support import Forked

from cuesmith import Budget
from cuesmith.teleprompters.runtime.journal import FILE, JournalError, read

IN_FLIGHT = 8


def run_to_end(run_dir: Path, log: Path) -> dict[str, object]:
    """Compile in a child process; return its result."""
    result = log.with_suffix(".json")
    assert Forked(COMPILE, run_dir, log, result, "--max-in-flight", IN_FLIGHT).done().returncode == 0
    found: dict[str, object] = json.loads(result.read_text())
    return found


def run_and_kill(run_dir: Path, log: Path, after: int) -> bool:
    """Start a child, kill -9 it when `after` further calls have completed; returns whether it was still at work."""
    goal, start = lines(log) + after, time.monotonic()
    child = Forked(COMPILE, run_dir, log, log.with_suffix(".killed"), "--max-in-flight", IN_FLIGHT)
    while lines(log) < goal and time.monotonic() < start + 20:
        time.sleep(0.0005)
    time.sleep(random.uniform(0, 0.004))
    child.send_signal(signal.SIGKILL)
    return child.done().returncode == -signal.SIGKILL


def lines(log: Path) -> int:
    """Return how many calls the engine has logged."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def journalled(run_dir: Path) -> int:
    """Return how many replies the journal holds (read after the kill)."""
    with (run_dir / FILE).open("rb") as file:
        return sum(row.table == "calls" for row in read(file, ""))


def kill_and_resume(tmp_path: Path, kills: int) -> None:
    """The check itself; prints what it counted (`pytest -s`)."""
    run_dir, log = tmp_path / "killed", tmp_path / "killed.log"
    expected = run_to_end(tmp_path / "whole", tmp_path / "whole.log")
    calls = lines(tmp_path / "whole.log")
    assert calls == journalled(tmp_path / "whole") and not repeated(tmp_path / "whole.log")
    left, unsaved = calls, []
    for kill in range(kills):
        share = max(1, left // (kills - kill + 1))
        assert run_and_kill(run_dir, log, random.randint(1, max(1, 2 * share - 1))), "it ended too early"
        done = len({line.split()[0] for line in log.read_text().splitlines()})
        unsaved.append(done - journalled(run_dir))
        left = calls - journalled(run_dir)
    assert run_to_end(run_dir, log) == expected
    again = repeated(log)
    print(f"\n{kills} kills of a compile of {calls} calls: repeated {again.total()}; lost at each kill {unsaved}")
    # A reply on its way from the engine to the journal when the process dies has completed for no one: it must be
    # asked for again, and these are the only ones. At most what is in flight can be on its way.
    assert again.total() <= sum(unsaved)
    assert max(unsaved) <= IN_FLIGHT
    assert journalled(run_dir) == calls


def repeated(log: Path) -> Counter[str]:
    """Return the requests that the engine answered more than once, and how often more."""
    seen = Counter(line.split()[0] for line in log.read_text().splitlines())
    return Counter({request: n - 1 for request, n in seen.items() if n > 1})


def test_five_kills(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 5)


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 20)


def test_a_finished_run_resumes_without_any_call(tmp_path: Path) -> None:
    first, second = ToyEngine(), ToyEngine()
    a = toy_compile(toy_lm(first), run_dir=tmp_path)
    b = toy_compile(toy_lm(second), run_dir=tmp_path)
    assert second.calls == 0
    assert result_of(a) == result_of(b)
    spent = b.compilation.spent.total
    assert spent.replayed == spent.calls == first.calls


@pytest.mark.parametrize("in_flight", [1, 64])
def test_a_resumed_run_stays_under_its_cap(tmp_path: Path, in_flight: int) -> None:
    budget, total = Budget(calls=60), 0
    for _ in range(3):
        engine = ToyEngine(0.002)
        compiled = toy_compile(toy_lm(engine), run_dir=tmp_path, budget=budget, max_in_flight=in_flight)
        total += engine.calls
        assert compiled.compilation.stopped_by == "calls"
        assert compiled.compilation.spent.total.calls <= 60
    assert total == 60


def test_failed_attempts_of_an_earlier_session_stay_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuesmith.teleprompters.runtime.gate.BACKOFF", 0.01)

    def flaky(nth: int) -> None:
        if nth % 5 == 0:
            raise dspy.LMServerError("down for a moment")

    first = ToyEngine(hook=flaky)
    a = toy_compile(toy_lm(first), run_dir=tmp_path, max_in_flight=4)
    b = toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path, max_in_flight=4)
    assert a.compilation.spent.total.calls == first.calls
    assert result_of(a) == result_of(b)


def test_a_directory_of_another_run_is_refused(tmp_path: Path) -> None:
    toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path)
    engine = ToyEngine()
    with pytest.raises(JournalError, match=r"differs in: .*seed"):
        toy_compile(toy_lm(engine), run_dir=tmp_path, seed=1)
    assert engine.calls == 0


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = Forked(COMPILE, tmp_path / "run", log, tmp_path / "json", "--latency", 0.2)
    while lines(log) == 0:
        time.sleep(0.01)
    with pytest.raises(JournalError, match="another process"):
        toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path / "run")
    child.send_signal(signal.SIGKILL)
    child.done()


def test_a_damaged_journal_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 200)
    with pytest.raises(JournalError, match="not usable as a journal"):
        toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path)
