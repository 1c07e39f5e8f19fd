"""The reward of a rewrite: the program sees the rewrite, the metric the original; paid once, journalled."""

from __future__ import annotations

import re
from pathlib import Path

import dspy
import pytest
from dspy.utils.exceptions import LMServerError
from e2e_support import ToyEngine, toy_lm

from cuesmith import Budget
from cuesmith.teleprompters.alignment.frozen import Frozen
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.ledger import Ledger, Usage
from cuesmith.teleprompters.runtime.run import Run

SEEN: list[tuple[str, str]] = []
FOUND: list[list[tuple[float, ...]]] = []


def echo(system: str, user: str, drawn: int | None) -> str:
    found = re.search(r"\[\[ ## question ## \]\]\s*(\S+)", user)
    return f"[[ ## answer ## ]]\n{found.group(1) if found else '?'}\n\n[[ ## completed ## ]]"


def spied(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
    SEEN.append((example.question, prediction.answer))
    return float(prediction.answer == example.answer)


class Rewards(Compiler):
    """Rewards a few rewrites, twice."""

    draws = 1

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        return Plan(0, 8)

    async def search(self, run: Run) -> Candidate:
        FOUND.clear()
        frozen = Frozen(run, run.train, "question", self.draws)
        FOUND.extend([await frozen.rewards((0, 0, 0), ("yes", "no", "yes")) for _ in range(2)])
        return run.baseline


def rewarded(compiler: Rewards, engine: ToyEngine, run_dir: Path | None = None) -> dspy.Module:
    examples = [dspy.Example(question=f"q{i}", answer="yes").with_inputs("question") for i in range(20)]
    with dspy.context(lm=toy_lm(engine)):
        return compiler.compile(dspy.Predict("question -> answer"), trainset=examples, valset=examples, run_dir=run_dir)


def test_the_program_sees_the_rewrite_and_the_metric_the_original() -> None:
    SEEN.clear()
    engine, compiler = ToyEngine(reply=echo), Rewards(spied)
    done = rewarded(compiler, engine)
    assert FOUND == [[(1.0,), (0.0,), (1.0,)]] * 2
    assert {(q, a) for q, a in SEEN if a in ("yes", "no")} == {(SEEN[-1][0], "yes"), (SEEN[-1][0], "no")}
    assert all(question.startswith("q") for question, _ in SEEN)
    selection = len(done.compilation.candidates[0].scores)
    assert engine.calls == selection + 2, "the baseline's selection examples, and two distinct rewrites"


def test_several_answers_are_several_calls_even_with_a_cache(tmp_path: Path) -> None:
    engine, compiler = ToyEngine(reply=echo), Rewards(spied)
    compiler.draws = 3
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    examples = [dspy.Example(question=f"c{i}", answer="yes").with_inputs("question") for i in range(20)]
    with dspy.context(lm=toy_lm(engine, cache=True, temperature=1.0)):
        done = compiler.compile(dspy.Predict("question -> answer"), trainset=examples, valset=examples)
    assert FOUND[0] == [(1.0,) * 3, (0.0,) * 3, (1.0,) * 3]
    assert engine.calls == len(done.compilation.candidates[0].scores) + 2 * 3


def test_a_resumed_run_pays_for_no_reward_again(tmp_path: Path) -> None:
    engine, compiler = ToyEngine(reply=echo), Rewards(spied)
    rewarded(compiler, engine, tmp_path / "run")
    calls, found = engine.calls, list(FOUND)
    rewarded(compiler, engine, tmp_path / "run")
    assert engine.calls == calls and found == FOUND


def test_an_outage_is_no_reward_and_not_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuesmith.teleprompters.runtime.gate.BACKOFF", 0.001)

    def down_for_no(system: str, user: str, drawn: int | None) -> str:
        if "\nno\n" in user:
            raise LMServerError("down", model="toy")
        return echo(system, user, drawn)

    compiler = Rewards(spied)
    rewarded(compiler, ToyEngine(reply=down_for_no))
    assert FOUND == [[(1.0,), (), (1.0,)]] * 2


def test_a_candidate_behind_a_prompter_is_another_one() -> None:
    plain = Candidate.of(dspy.Predict("question -> answer"))
    one, other = (plain.behind(name, Origin("trained", (plain.id,))) for name in ("rho1", "rho2"))
    assert len({plain.id, one.id, other.id}) == 3 and one.behind("", Origin("x")) == plain
    assert Candidate.from_json(one.to_json()) == one and Candidate.from_json(plain.to_json()).prompter == ""
    assert one.replace("self", origin=Origin("vary"), instructions="Other.").prompter == "rho1"


def test_what_a_budget_affords() -> None:
    run = Usage(calls=2, input_tokens=80, output_tokens=20, usd=0.01)
    assert Ledger(Budget()).affords(run, 10**9)
    for budget, most in ((Budget(calls=20), 10), (Budget(tokens=550), 5), (Budget(usd=0.035), 3)):
        ledger = Ledger(budget)
        assert ledger.affords(run, most) and not ledger.affords(run, most + 1)
    held = Ledger(Budget(calls=20))
    held.hold(Budget(calls=6))
    assert held.affords(run, 7) and not held.affords(run, 8)
    clock = iter([0.0, 1.0, 9.0]).__next__
    timed = Ledger(Budget(seconds=5), clock)
    assert timed.affords(run, 1) and not timed.affords(run, 1)
