"""A cap and a kill change nothing in a result: it is the same at any concurrency, whenever the run was killed.

States after a kill are made from the journal of a finished run: what it held after its first n calls.

As a script it compiles once, to be killed: python tests/test_peers_resume.py NAME CALLS RUN_DIR LOG
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import dspy
import pytest
from e2e_support import ToyEngine, exact, number, result_of, toy_lm, words
from test_peers import SMALL, reply

from cuesmith import Budget
from cuesmith.teleprompters.registry import compile
from cuesmith.teleprompters.runtime.journal import FILE

OWN = ("iterative-ape", "apo", "abo")
CALL = b'["calls",'


class Uneven(dspy.Module):  # type: ignore[misc]
    """Calls its predictor once to three times, as the question has it."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Answer by the last call."""
        for attempt in range(1 + number(question) % 3):
            answer = self.answer(question=question, config={"rollout_id": attempt + 1, "temperature": 1.0})
        return answer


def judged(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    """Ask a model, and judge by the answer as well."""
    with dspy.context(lm=toy_lm(ToyEngine(0.001, reply=lambda *request: "True"), "judge")):
        said = dspy.settings.lm(f"Is {prediction.answer} fine?")
    return exact(example, prediction) and said == ["True"]


class Case:
    """One compile, again and again.

    Args:
        name: The compiler.
        budget: Its caps.
        uneven: Whether programs and metric make several calls, and not each as many.
        log: Where calls are logged.
    """

    def __init__(self, name: str, budget: Budget, uneven: bool = False, log: Path | None = None) -> None:
        self.name, self.budget, self.uneven, self.log = name, budget, uneven, log
        self.engines: list[ToyEngine] = []

    def run(self, run_dir: Path | None, in_flight: int, latency: float = 0.003) -> dict[str, object]:
        """Compile; returns all that must be equal."""
        self.engines = [ToyEngine(latency, self.log, reply) for _ in range(2)]
        with dspy.context(lm=toy_lm(self.engines[0])):
            compiled = compile(
                Uneven() if self.uneven else dspy.Predict("question -> answer"),
                self.name,
                metric=judged if self.uneven else exact,
                trainset=words(12, "t"),
                valset=words(40, "v"),
                optimizer_lm=toy_lm(self.engines[1], "optimizer"),
                run_dir=run_dir,
                max_in_flight=in_flight,
                budget=self.budget,
                **SMALL.get(self.name, (None, {}))[1],
            )
        return result_of(compiled)

    @property
    def calls(self) -> int:
        """Calls that the last run made."""
        return sum(engine.calls for engine in self.engines)


def rows(run_dir: Path) -> int:
    """Return how many calls the journal holds."""
    return sum(line.startswith(CALL) for line in (run_dir / FILE).open("rb"))


def killed(run_dir: Path, to: Path, n: int) -> Path:
    """Copy a finished run as a kill after n calls would have left it: the journal is only appended to."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    left = n
    with (run_dir / FILE).open("rb") as whole, (to / FILE).open("wb") as part:
        for line in whole:
            left -= line.startswith(CALL)
            if left < 0:
                break
            part.write(line)
    return to


def check(case: Case, tmp_path: Path, in_flight: int) -> None:
    """Compare a run one by one with one at `in_flight`, and with its resumptions after a kill here and there."""
    expected, run = case.run(tmp_path / "one", 1, 0.0), tmp_path / "run"
    one = rows(tmp_path / "one")
    assert case.run(run, in_flight) == expected, "at any concurrency"
    assert rows(run) == one
    for share in (0.1, 0.4, 0.7, 0.95, 1.0):
        n = int(one * share)
        assert case.run(killed(run, tmp_path / "killed", n), in_flight) == expected, f"{n} of {one}"
        assert rows(tmp_path / "killed") == one
        assert case.calls == 0 or share < 1


@pytest.mark.parametrize(
    ("calls", "in_flight"),
    [(70, 8), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((70, 1), (131, 1), (131, 8)))],
)
@pytest.mark.parametrize("name", [*SMALL, *OWN])
def test_a_cap_on_calls_and_a_kill_change_nothing(name: str, calls: int, in_flight: int, tmp_path: Path) -> None:
    check(Case(name, Budget(calls=calls)), tmp_path, in_flight)


def test_what_the_search_was_given_after_a_stop_is_not_given_before_it(tmp_path: Path) -> None:
    """SIMBA is stopped, its best is validated with what was held for the report; a resumed one is stopped there too."""
    case = Case("simba", Budget(calls=93))
    expected = case.run(tmp_path / "run", 1)
    for n in range(60, rows(tmp_path / "run") + 1, 4):
        assert case.run(killed(tmp_path / "run", tmp_path / "killed", n), 1) == expected, n


@pytest.mark.parametrize("name", ["gepa", "mipro", "simba", "apo"])
def test_nor_if_runs_make_several_calls(name: str, tmp_path: Path) -> None:
    check(Case(name, Budget(calls=230), uneven=True), tmp_path, 64)


@pytest.mark.parametrize("name", ["gepa", "bootstrap", "apo"])
def test_nor_under_a_cap_on_tokens(name: str, tmp_path: Path) -> None:
    check(Case(name, Budget(tokens=120 * 147)), tmp_path, 8)


def test_what_was_given_to_the_search_stays_given(tmp_path: Path) -> None:
    """Given while nothing was above the student, it is not held back again by a resumed run that knows of better."""
    case, run = Case("gepa", Budget(calls=70)), tmp_path / "run"
    expected = case.run(run, 8)
    assert expected["best"] != Case("gepa", Budget(calls=30)).run(None, 8)["best"]
    assert case.run(killed(run, tmp_path / "killed", rows(run) - 3), 8) == expected


def test_other_caps_are_decided_anew(tmp_path: Path) -> None:
    Case("gepa", Budget(calls=70)).run(tmp_path / "run", 8)
    wider = Case("gepa", Budget(calls=400))
    assert wider.run(tmp_path / "run", 8) == Case("gepa", Budget(calls=400)).run(None, 8)
    assert wider.calls > 0


def test_a_refused_call_of_a_resumed_search_is_no_wrong_answer(tmp_path: Path) -> None:
    """Nothing of a resumed run's own needs a thread before its first call is refused, in a thread of dspy's."""
    case, run = Case("mipro", Budget(calls=150)), tmp_path / "run"
    expected = case.run(run, 8)
    assert expected["stopped_by"] == "calls"
    assert case.run(run, 8) == expected and case.calls == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALL))
def test_killed_processes_resume_to_the_same_result(name: str, tmp_path: Path) -> None:
    expected, run, log = Case(name, Budget(calls=131)).run(None, 8), tmp_path / "run", tmp_path / "log"
    log.touch()
    for goal in (20, 60, 90):
        child = subprocess.Popen([sys.executable, __file__, name, "131", str(run), str(log)])
        while child.poll() is None and log.read_text().count("\n") < goal:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it was killed on its way"
    case = Case(name, Budget(calls=131), log=log)
    assert case.run(run, 8) == expected
    sent = Counter(line.split()[0] for line in log.read_text().splitlines())
    assert sum(n - 1 for n in sent.values()) <= 3 * 8 + repeated(name), "at most what was in flight at a kill"


def repeated(name: str) -> int:
    """Return how many requests an uninterrupted run makes again by itself (several draws of one)."""
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"whole-{os.getpid()}-{name}"
    try:
        Case(name, Budget(calls=131), log=log).run(None, 8)
        sent = Counter(line.split()[0] for line in log.read_text().splitlines())
        return sum(n - 1 for n in sent.values())
    finally:
        log.unlink(missing_ok=True)


if __name__ == "__main__":
    Case(sys.argv[1], Budget(calls=int(sys.argv[2])), log=Path(sys.argv[4])).run(Path(sys.argv[3]), 8, 0.02)
    os._exit(0)
