"""Caps are exact: what reaches the engine or the server is counted there, at one and at many in flight."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import dspy
import litellm
import pytest
from e2e_support import (
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    Provider,
    ToyEngine,
    ToySearch,
    exact,
    toy_compile,
    toy_lm,
    toy_reply,
    words,
)

from cuesmith import Budget
from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.teleprompters.compiler import Compiler, check_prices
from cuesmith.teleprompters.runtime import session
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.ledger import Ledger, RunStopped
from cuesmith.teleprompters.runtime.run import Run

PER_CALL = INPUT_TOKENS + OUTPUT_TOKENS


def big(lm: dspy.LM, **options: Any) -> dspy.Module:
    """Compile a task that needs more than 1,000 calls without a cap."""
    return toy_compile(lm, n_train=20, n_val=100, steps=5, width=5, **options)


def test_the_task_needs_a_thousand_calls() -> None:
    engine = ToyEngine()
    assert big(toy_lm(engine)).compilation.stopped_by is None
    assert engine.calls > 1000


@pytest.mark.parametrize("in_flight", [1, 64])
def test_exactly_a_hundred_calls_reach_the_engine(in_flight: int) -> None:
    engine = ToyEngine(0.002)
    compilation = big(toy_lm(engine), budget=Budget(calls=100), max_in_flight=in_flight).compilation
    assert engine.calls == compilation.spent.total.calls == 100
    assert compilation.stopped_by == "calls"
    assert engine.most <= in_flight


@pytest.mark.parametrize("in_flight", [pytest.param(1, marks=pytest.mark.slow), 64])
def test_exactly_a_hundred_calls_reach_the_server(in_flight: int) -> None:
    with Provider() as provider:
        compilation = big(provider.lm(), budget=Budget(calls=100), max_in_flight=in_flight).compilation
        time.sleep(0.1)
        assert provider.calls == compilation.spent.total.calls == 100
        assert compilation.stopped_by == "calls"


def test_the_best_so_far_is_returned() -> None:
    engine = ToyEngine()
    compiled = big(toy_lm(engine), budget=Budget(calls=400), max_in_flight=16)
    compilation = compiled.compilation
    assert engine.calls <= 400 and compilation.stopped_by == "calls"
    assert "skill=" in compiled.signature.instructions
    best = max(t.mean for t in compilation.candidates if t.n == 50)
    assert compilation.best.select is not None and compilation.best.select.mean == best
    assert compilation.gain is not None and compilation.gain.n > 10, "a share of the cap is kept for the report"


def test_a_cap_that_the_baseline_alone_exceeds_returns_the_student() -> None:
    engine = ToyEngine()
    compiled = big(toy_lm(engine), budget=Budget(calls=7), max_in_flight=32)
    assert engine.calls == 7 and compiled.compilation.stopped_by == "calls"
    assert compiled.compilation.best.candidate == compiled.compilation.baseline.candidate


@pytest.mark.parametrize("in_flight", [1, 64])
def test_tokens_stay_under_the_cap(in_flight: int) -> None:
    engine, cap = ToyEngine(0.002), 100 * PER_CALL + 50
    compilation = big(toy_lm(engine), budget=Budget(tokens=cap), max_in_flight=in_flight).compilation
    assert compilation.stopped_by == "tokens"
    assert compilation.spent.total.tokens == engine.calls * PER_CALL
    # Replies of one length: with what was seen reserved for each call, not one is too many. Reservations are 1.25 times
    # the largest call seen, so that at most a few calls' worth is left unused.
    assert cap - 35 * PER_CALL <= engine.calls * PER_CALL <= cap


@pytest.mark.parametrize("in_flight", [1, 64])
def test_no_call_is_sent_after_the_seconds(in_flight: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ToyEngine()
    clock = functools.partial(Ledger, clock=lambda: 0.1 * engine.calls)  # a tenth of a second a call, on any machine
    monkeypatch.setattr(session, "Ledger", clock)
    compilation = big(toy_lm(engine), budget=Budget(seconds=20.0), max_in_flight=in_flight).compilation
    assert compilation.stopped_by == "seconds"
    assert 100 < engine.calls <= 200 + in_flight, "what is in flight ends, nothing more is sent"


@pytest.mark.parametrize(("model", "engine"), [("gpt-4.1-mini", "auto"), ("toy-priced", "litellm")])
@pytest.mark.parametrize("in_flight", [pytest.param(1, marks=pytest.mark.slow), 64])
def test_dollars_stay_under_the_cap(in_flight: int, model: str, engine: str) -> None:
    price = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-5, "litellm_provider": "openai", "mode": "chat"}
    litellm.register_model({"toy-priced": price, "openai/toy-priced": price})
    with Provider() as provider:
        lm = provider.lm(model, engine=engine)
        lm("one call")
        dollars, provider.seen = lm.history[-1]["cost"], []
        assert dollars > 0
        compilation = big(lm, budget=Budget(usd=100.4 * dollars), max_in_flight=in_flight).compilation
        assert compilation.stopped_by == "usd"
        assert compilation.spent.total.usd == pytest.approx(provider.calls * dollars)
        assert 65 <= provider.calls <= 100


@pytest.mark.parametrize(("engine", "calls"), [("auto", 0), ("litellm", 1)])
def test_an_unknown_price_is_refused_as_soon_as_it_can_be_known(engine: str, calls: int) -> None:
    """LiteLLM may have other ways to what a call costs than its table: there the first call tells."""
    with Provider() as provider:
        with pytest.raises(ValueError, match="needs the price of every call, but openai/unpriced reports none"):
            big(provider.lm("unpriced", engine=engine), budget=Budget(usd=1.0), max_in_flight=64)
        assert provider.calls == calls


class Counting(dspy.LM):  # type: ignore[misc]
    """Another class's calls may report what they cost."""


@pytest.mark.parametrize(("lm", "refused"), [
    (dspy.LM("openai/unpriced"), True), (dspy.LM("openai/gpt-4.1-mini"), False),
    (dspy.LM("anthropic/claude-nobody"), True), (Counting("openai/unpriced"), False), (EmbeddedLM(), False),
    (dspy.LM("azure/my-deployment"), False), (dspy.LM("openrouter/some/model", engine="litellm"), False),
    (dspy.LM("openai/my-deployment", api_base="https://x.openai.azure.com/openai/v1"), False),
], ids=lambda each: str(getattr(each, "model", each)))  # fmt: skip
def test_only_models_that_cannot_report_a_price_are_refused(lm: dspy.BaseLM, refused: bool) -> None:
    with pytest.raises(ValueError, match="price of every call") if refused else nullcontext():
        check_prices(Budget(usd=1), [lm])
    check_prices(Budget(calls=1), [lm])


def test_an_engine_without_a_price_is_refused_before_any_call() -> None:
    engine = ToyEngine()
    with pytest.raises(ValueError, match="custom engine"):
        big(toy_lm(engine), budget=Budget(usd=1.0))
    assert engine.calls == 0


@pytest.mark.parametrize("in_flight", [1, 64])
def test_cache_hits_are_free(in_flight: int) -> None:
    warm, cold = ToyEngine(), ToyEngine(0.002)
    name = f"cached-{time.time_ns()}"
    with dspy.context(lm=toy_lm(warm, name, cache=True)):
        for example in words(100, "v"):
            dspy.Predict("question -> answer")(question=example.question)
    assert warm.calls == 100
    compilation = big(toy_lm(cold, name, cache=True), budget=Budget(calls=100), max_in_flight=in_flight).compilation
    assert cold.calls == compilation.spent.total.calls == 100
    assert compilation.spent.total.cache_hits >= 50


def test_a_judge_is_counted_as_such() -> None:
    engine, judging = ToyEngine(), ToyEngine()
    judge = dspy.Predict("question -> answer")
    judge.lm = toy_lm(judging, "judge")

    def judged(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return float(judge(question=example.question).answer != "?" and example.answer == prediction.answer)

    compilation = toy_compile(toy_lm(engine), metric=judged, n_val=20, steps=1).compilation
    by_role = compilation.spent.by_role
    assert by_role["judge"].calls == judging.calls > 0
    assert by_role["target"].calls + by_role["optimizer"].calls == engine.calls


def test_the_configured_lm_in_a_metric_is_the_judge_too() -> None:
    engine = ToyEngine()

    def judged(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return float(dspy.Predict("question -> answer")(question=f"say judge-{example.answer}").answer != "?")

    compilation = toy_compile(toy_lm(engine), metric=judged, n_val=20, steps=1).compilation
    by_role = compilation.spent.by_role
    assert by_role["judge"].calls == by_role["target"].calls > 0
    assert compilation.spent.total.calls == engine.calls


@pytest.mark.parametrize("in_flight", [1, 32])
def test_a_judges_calls_come_under_the_cap(in_flight: int) -> None:
    engine, judging = ToyEngine(0.001), ToyEngine(0.001)
    lm = toy_lm(judging, "judge")

    def judged(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return float(dspy.Predict("question -> answer")(question=example.question, lm=lm).answer == example.answer)

    compilation = big(toy_lm(engine), metric=judged, budget=Budget(calls=100), max_in_flight=in_flight).compilation
    assert engine.calls + judging.calls == compilation.spent.total.calls == 100


@pytest.mark.parametrize("in_flight", [pytest.param(1, marks=pytest.mark.slow), 16])
def test_retried_attempts_count(in_flight: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuesmith.teleprompters.runtime.gate.BACKOFF", 0.01)

    def flaky(nth: int, body: Mapping[str, object]) -> tuple[int, Mapping[str, str], object] | None:
        return (500, {}, {"error": {"message": "oops"}}) if nth % 3 == 0 else None

    with Provider(flaky) as provider:
        compilation = big(provider.lm(), budget=Budget(calls=100), max_in_flight=in_flight).compilation
        assert provider.calls == compilation.spent.total.calls == 100
        assert len(provider.answered) == 67
        assert compilation.spent.total.tokens == 67 * PER_CALL


def test_replies_that_do_not_parse_are_paid_and_counted() -> None:
    def babble(system: str, user: str, drawn: int | None) -> str:
        return "babble" if "say v1" in user else toy_reply(system, user, drawn)

    engine = ToyEngine(reply=babble)
    compilation = big(toy_lm(engine), budget=Budget(calls=100), max_in_flight=8).compilation
    assert engine.calls == compilation.spent.total.calls == 100
    outcomes = json.dumps([t.scores for t in compilation.candidates])
    assert "null" in outcomes or compilation.candidates


def test_the_estimate_is_an_upper_bound() -> None:
    engine = ToyEngine()
    compiler = ToySearch(exact, steps=2, width=3)
    trainset, valset = words(12, "t"), words(40, "v")
    forecast = compiler.estimate(dspy.Predict("question -> answer"), trainset=trainset, valset=valset)
    assert engine.calls == 0
    compilation = toy_compile(toy_lm(engine)).compilation
    assert 0 < engine.calls <= forecast.calls
    assert compilation.spent.by_role["optimizer"].calls == forecast.optimizer_calls


class HardFirst(Compiler):
    """Tries a prompt where the student fails, and is stopped there."""

    skill = 0

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        return Plan(0, n_select)

    async def search(self, run: Run) -> Candidate:
        [base] = await run.score([run.baseline], run.select)
        known = [v for v in base.values if v is not None]
        failed = [example for example, _ in base.failures(max(known))]
        child = run.baseline.replace(run.baseline.names[0], instructions=f"skill={self.skill}", origin=Origin("try"))
        [tried] = await run.score([child], failed[: 1 + len(run.select) // 2])
        assert tried.score > min(known), "on these alone the child looks better, and has more than half of them"
        raise RunStopped("calls")


def loss(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
    return float(exact(example, prediction)) - 7.5


@pytest.mark.parametrize(("skill", "chosen"), [(3, False), (9, True)])
@pytest.mark.parametrize("metric", [exact, loss])
def test_what_a_stop_left_unscored_counts_as_lost(
    monkeypatch: pytest.MonkeyPatch, skill: int, chosen: bool, metric: Callable[..., float]
) -> None:
    monkeypatch.setattr(HardFirst, "skill", skill)
    with dspy.context(lm=toy_lm(ToyEngine())):
        compiler = HardFirst(metric)
        compiled = compiler.compile(dspy.Predict("question -> answer"), trainset=words(20), valset=words(50, "v"))
    assert (compiled.compilation.best.candidate != compiled.compilation.baseline.candidate) == chosen
