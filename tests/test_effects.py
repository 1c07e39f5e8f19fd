"""The recorded effect for work that is neither asked nor scored: done once, replayed, metered, never half known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import dspy
import pytest
from dspy.utils.exceptions import LMServerError
from e2e_support import ToyEngine, exact, toy_lm, words

from cuesmith import Budget
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate, Json
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.run import Run

WORK: list[Callable[[], Json]] = []
FOUND: list[Json] = []


class Working(Compiler):
    """Does a piece of work twice at once, and once more under another name."""

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        return Plan(0, 0)

    async def search(self, run: Run) -> Candidate:
        FOUND.extend(await asyncio.gather(run.effect("one", WORK[0]), run.effect("one", WORK[0])))
        FOUND.append(await run.effect("two", WORK[0]))
        return run.baseline


def compiled(work: Callable[[], Json], run_dir: Path | None = None, **options: object) -> dspy.Module:
    FOUND.clear()
    WORK[:] = [work]
    engine = ToyEngine()
    with dspy.context(lm=toy_lm(engine)):
        compiler = Working(exact, **options)  # type: ignore[arg-type]
        return compiler.compile(dspy.Predict("question -> answer"), trainset=words(12), run_dir=run_dir)


def test_work_in_flight_is_done_once_and_a_resumed_run_has_it_from_the_journal(tmp_path: Path) -> None:
    done: list[int] = []

    def work() -> Json:
        done.append(len(done))
        return {"nth": [len(done), 0.1 + 0.2, None, "ä"]}

    compiled(work, tmp_path / "run")
    assert done == [0, 1] and FOUND[0] == FOUND[1] == {"nth": [1, 0.1 + 0.2, None, "ä"]} != FOUND[2]
    first = list(FOUND)
    compiled(work, tmp_path / "run")
    assert done == [0, 1] and first == FOUND


def test_its_calls_are_metered_and_capped(tmp_path: Path) -> None:
    engine = ToyEngine()
    lm = toy_lm(engine)

    def work() -> Json:
        for k in range(20):
            dspy.Predict("question -> answer")(question=f"w{k}", lm=lm)
        return None

    c = compiled(work, tmp_path / "free").compilation
    assert c.spent.by_role["other"].calls == engine.calls == 40
    before = engine.calls
    c = compiled(work, tmp_path / "capped", budget=Budget(calls=15)).compilation
    assert c.stopped_by == "calls" and c.spent.total.calls <= 15 and FOUND == []
    assert engine.calls - before == c.spent.by_role["other"].calls


def test_a_result_made_of_a_failed_call_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuesmith.teleprompters.runtime.gate.BACKOFF", 0.001)
    down = [True]

    def reply(system: str, user: str, drawn: int | None) -> str:
        if down[0]:
            raise LMServerError("down", model="toy")
        return "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"

    lm = toy_lm(ToyEngine(reply=reply))

    def work() -> Json:
        try:
            return str(dspy.Predict("question -> answer")(question="q", lm=lm).answer)
        except LMServerError:
            return "nothing"

    assert compiled(work, tmp_path / "run").compilation.stopped_by == "outage" and FOUND == []
    down[0] = False
    assert compiled(work, tmp_path / "run").compilation.stopped_by is None and FOUND == ["yes"] * 3


def test_what_the_work_raises_is_raised_and_a_key_is_kept_out_of_the_journal(tmp_path: Path) -> None:
    def broken() -> Json:
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError):
        compiled(broken)
    secret = "sk-" + "secret0123456789"
    lm = dspy.LM("openai/never-called", api_key=secret)
    compiled(lambda: f"said {secret}", tmp_path / "run", optimizer_lm=lm)
    assert FOUND and all(secret not in str(one) for one in FOUND)
    assert all(secret.encode() not in file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file())
