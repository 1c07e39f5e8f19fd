"""Late calls are sent once more: the first answer counts, both are paid, and no cap is passed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from e2e_support import exact, words
from test_abo import question_of

from cuesmith import Budget
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.teleprompters import IterativeAPE
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.hedging import ENOUGH, HedgingPolicy, Tries, first_success
from cuesmith.testing import Engine, Sent
from cuesmith.testing.fakes import chat


class Straggling(Engine):
    """Says the word at once; every so many-th new request is not answered at its first sending until `free` is set."""

    def __init__(self, every: int = 12) -> None:
        self.every, self.free = every, threading.Event()
        super().__init__(self._answer)
        self.lock, self.seen, self.stuck = threading.Lock(), set[str](), 0

    def _answer(self, sent: Sent) -> str:
        text = sent.system + sent.turns[-1]
        with self.lock:
            late = text not in self.seen and len(self.seen) % self.every == self.every - 1
            self.seen.add(text)
            self.stuck += late
        if late:
            assert self.free.wait(60)
        return chat({"answer": question_of(sent.turns[-1]).removeprefix("say ")})


@pytest.fixture
def engine() -> Iterator[Straggling]:
    made = Straggling()
    yield made
    made.free.set()


def compiled(engine: Straggling, run_dir: Path | None = None, **options: Any) -> Compilation:
    given = {"steps": 1, "width": 2, "branch": 2, "initial": 2, "max_in_flight": 8, "progress": False, **options}
    with dspy.context(lm=dspy.LM("test/straggling", engine=engine, cache=False)):
        compiler = IterativeAPE(exact, optimizer_lm=SimulatedOptimizer(), **given)
        found = compiler.compile(dspy.Predict("question -> answer"), trainset=words(12, "t"), valset=words(24, "v"),
                                 run_dir=run_dir).compilation  # fmt: skip
    assert isinstance(found, Compilation)
    return found


@pytest.mark.parametrize("every", [2, ENOUGH + 4])  # sent before a median is known, and after
def test_a_call_that_never_comes_back_holds_nothing_up(engine: Straggling, every: int) -> None:
    engine.every = every
    found = compiled(engine, hedge=20)
    assert engine.stuck > 0 and not engine.free.is_set()
    spent = found.spent.by_role["target"]
    assert spent.calls == engine.calls, "both are counted, also the one that nobody waited for"
    assert any(note.kind == "hedged" for note in found.notes)
    assert found.baseline.select is not None and found.baseline.select.mean == 1.0
    calm = Straggling(every=10**9)
    same = compiled(calm)
    assert {t.candidate.id: t.scores for t in found.candidates} == {t.candidate.id: t.scores for t in same.candidates}


@pytest.mark.parametrize("cap", [40, 60])
def test_no_cap_is_passed(engine: Straggling, cap: int) -> None:
    engine.every = ENOUGH + 4
    threading.Timer(3.0, engine.free.set).start()  # where no budget is left for a second try, the first is waited for
    found = compiled(engine, hedge=20, budget=Budget(calls=cap))
    assert engine.calls <= cap and sum(usage.calls for usage in found.spent.by_role.values()) <= cap


def test_a_resumed_run_counts_what_was_sent_twice(engine: Straggling, tmp_path: Path) -> None:
    engine.every = ENOUGH + 4
    first = compiled(engine, tmp_path / "run", hedge=20)
    engine.free.set()
    calls = engine.calls
    again = compiled(engine, tmp_path / "run", hedge=20)
    assert engine.calls == calls and again.spent.by_role["target"].calls == first.spent.by_role["target"].calls


def test_nothing_is_late_before_the_median_is_known_or_without_the_option() -> None:
    policy = HedgingPolicy(3.0)
    for _ in range(ENOUGH - 1):
        policy.note("a", 2.0)
    assert policy.patience("a") is None
    policy.note("a", 100.0)
    assert policy.patience("a") == 6.0 and policy.patience("b") is None
    off = HedgingPolicy(None)
    for _ in range(ENOUGH):
        off.note("a", 2.0)
    assert off.patience("a") is None


@pytest.mark.parametrize("hedge", [1, 0, -2.0, float("nan"), True, "3"])
def test_odd_multiples_are_refused(hedge: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="hedge must be"):
        IterativeAPE(exact, hedge=hedge)


Script = list[tuple[str, bool]]
"""Answers in the order in which they come, and whether each is of the first try."""


@pytest.mark.parametrize(
    ("script", "taken", "late"),
    [
        ([("good", True), ("good 2", False)], "good", ["good 2"]),
        ([("good 2", False), ("good", True)], "good 2", ["good"]),
        ([("bad", True), ("good", False)], "good", ["bad"]),
        ([("bad", False), ("good", True)], "good", ["bad"]),
        ([("bad", True), ("bad 2", False)], "bad 2", ["bad"]),
        ([("good", True), ("bad", False)], "good", ["bad"]),
    ],
)
@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_the_first_success_counts(kind: str, script: Script, taken: str, late: list[str]) -> None:
    others: list[str] = []

    def good(answer: str) -> bool:
        return answer.startswith("good")

    if kind == "threads":
        tries = Tries(good, others.append)
        gates = [threading.Event(), threading.Event()]
        answers = {first: answer for answer, first in script}

        def work(first: bool) -> Callable[[], str]:
            def done() -> str:
                assert gates[not first].wait(20)
                return answers[first]

            return done

        tries.begin(work(True))
        assert tries.wait(lambda waited: 0.01 - waited) is None
        tries.begin(work(False))
        for n, (_, first) in enumerate(script):
            gates[not first].set()
            while n == 0 and tries.wait(lambda waited: 0.05 - waited) is None and not tries._answers:
                pass
        assert tries.wait() == taken
        for _ in range(200):
            if others == late:
                break
            threading.Event().wait(0.02)
    else:
        assert asyncio.run(_tasks(script, good, others)) == taken
    assert others == late


async def _tasks(script: Script, good: Callable[[str], bool], others: list[str]) -> str:
    turns = {first: n for n, (_, first) in enumerate(script)}
    answers = {first: answer for answer, first in script}
    over = [asyncio.Event(), asyncio.Event()]

    def work(first: bool) -> Callable[[], Awaitable[str]]:
        async def done() -> str:
            if turns[first]:
                await over[0].wait()
                await asyncio.sleep(0.01)
            else:
                await asyncio.sleep(0.05)
                over[0].set()
            over[turns[first]].set()
            return answers[first]

        return done

    found = await first_success(work(True), lambda waited: 0.01 - waited, lambda: work(False), good, others.append)
    await over[1].wait()
    await asyncio.sleep(0.02)
    return found
