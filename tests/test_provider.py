"""A provider that fails: what a real loopback HTTP server sees, and what the compile makes of it."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dspy
import pytest
from e2e_support import KEY, Answer, Provider, ToyEngine, error_body, toy_compile, toy_lm, toy_reply, words

from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.events import Event, Missing, Retried
from cuesmith.teleprompters.runtime.score_program import score_program
from cuesmith.teleprompters.runtime.session import CompileError

GATE = "cuesmith.teleprompters.runtime.gate"


def revoked(after: int) -> Callable[[int, Mapping[str, object]], Answer | None]:
    """Return an `intercept` that refuses the key from some request on; it echoes the key, as a careless server does."""
    message = f"Incorrect API key provided: {KEY}."
    return lambda nth, body: (401, {}, error_body(message, "invalid_api_key")) if nth > after else None


def everything(run_dir: Path) -> bytes:
    """Return all bytes of a run directory."""
    return b"".join(f.read_bytes() for f in run_dir.iterdir())


@pytest.mark.parametrize(
    ("engine", "in_flight"), [pytest.param("auto", 1, marks=pytest.mark.slow), ("auto", 16), ("litellm", 16)]
)
def test_a_key_revoked_in_mid_run(
    tmp_path: Path, engine: str, in_flight: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    small: dict[str, Any] = {"n_val": 24, "width": 2, "steps": 2}
    events: list[Event] = []
    with Provider(revoked(30), latency=0.002) as provider:
        compiled = toy_compile(
            provider.lm(engine=engine),
            run_dir=tmp_path,
            max_in_flight=in_flight,
            callbacks=[events.append],
            **small,
        )
        time.sleep(0.1)
        refused = provider.calls - 30
    compilation = compiled.compilation
    assert compilation.stopped_by == "auth"
    assert 1 <= refused <= in_flight
    with Provider() as healthy:
        whole = toy_compile(healthy.lm(), max_in_flight=in_flight, **small).compilation
    known = {t.candidate.id: t.scores for t in whole.candidates}
    for trial in compilation.candidates:
        for mine, right in zip(trial.scores, known[trial.candidate.id], strict=True):
            assert mine is None or mine == right, "an example was scored because of the refusal"
    logged = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("cuesmith"))
    for text in (repr(compilation), repr(events), logged):
        assert KEY not in text
    assert KEY.encode() not in everything(tmp_path)
    with Provider(port=provider.port) as healthy:  # another address would be another run
        resumed = toy_compile(healthy.lm(engine=engine), run_dir=tmp_path, max_in_flight=in_flight, **small)
        assert resumed.compilation.stopped_by is None
        assert healthy.calls + 30 == whole.spent.total.calls, "no call that was answered is repeated"
    assert Candidate.of(resumed) == whole.best.candidate and resumed.compilation.gain == whole.gain
    assert [t.scores for t in resumed.compilation.candidates] == [t.scores for t in whole.candidates]


def test_a_wrong_key_at_the_first_call_is_one_clear_error(tmp_path: Path) -> None:
    with Provider(revoked(0)) as provider:
        with pytest.raises(CompileError, match="stopped by a provider that refuses the key before") as caught:
            toy_compile(provider.lm(), run_dir=tmp_path, max_in_flight=8)
        assert provider.calls <= 8
    assert KEY not in str(caught.value)
    assert KEY.encode() not in everything(tmp_path)


def test_a_rate_limit_is_waited_for_and_slows_the_run() -> None:
    moments: list[float] = []
    early: list[int] = []

    def limited(nth: int, body: Mapping[str, object]) -> Answer | None:
        now = time.monotonic()
        if 20 < nth <= 36:
            moments.append(now)
            return 429, {"Retry-After": "1"}, error_body("slow down", "rate_limit_exceeded")
        return None

    events: list[Event] = []
    with Provider(limited, latency=0.02) as provider:
        compilation = toy_compile(
            provider.lm(), max_in_flight=16, n_val=100, steps=1, callbacks=[events.append]
        ).compilation
        assert compilation.stopped_by is None
        refused = {str(body["messages"]): at for at, status, body, _ in provider.seen if status == 429}
        for at, status, body, _ in provider.seen:
            if status == 200 and (limit := refused.get(str(body["messages"]))) is not None and at > limit:
                early.append(at - limit < 1.0)
        assert early and not any(early), "a refused request came back before Retry-After"
    assert all(v is not None for t in compilation.candidates for v in t.scores)
    retries = [e for e in events if isinstance(e, Retried)]
    assert retries and all(e.delay_s >= 1.0 for e in retries)


def test_concurrency_shrinks_after_a_rate_limit() -> None:
    now, most_after, lock = [0], [0], threading.Lock()
    limited_at: list[float] = []

    def limited(nth: int, body: Mapping[str, object]) -> Answer | None:
        with lock:
            now[0] += 1
            if limited_at and time.monotonic() - limited_at[-1] > 0.3:
                most_after[0] = max(most_after[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        if 40 < nth <= 48:
            limited_at.append(time.monotonic())
            return 429, {"Retry-After": "1"}, error_body("slow down", "rate_limit_exceeded")
        return None

    with Provider(limited) as provider, dspy.context(lm=provider.lm()):
        scores = score_program(
            dspy.Predict("question -> answer"), words(120), lambda e, p: e.answer == p.answer, max_in_flight=16
        )
    assert scores.missing == 0
    assert 0 < most_after[0] < 16


def test_server_errors_are_retried_then_missing_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{GATE}.BACKOFF", 0.005)
    tries = [0]

    def broken(nth: int, body: Mapping[str, object]) -> Answer | None:
        text = str(body["messages"])
        if "say v1\\" in text or "say v2\\" in text:
            tries[0] += 1
            return 500, {}, error_body("internal")
        return None

    events: list[Event] = []
    with Provider(broken) as provider:
        compilation = toy_compile(provider.lm(), max_in_flight=4, callbacks=[events.append], steps=1).compilation
    assert compilation.stopped_by is None
    assert tries[0] >= 6, "one attempt and five retries, but where the call before was given up as well"
    if any(None in t.scores for t in compilation.candidates):
        assert any(isinstance(e, Missing) for e in events)
        assert any("have no score" in note for note in compilation.notes)
    assert compilation.gain is not None
    shorter = sum(None in t.scores for t in compilation.candidates) > 0 or compilation.gain.n < 20
    assert shorter, "the two examples are missing somewhere"


def test_an_outage_stops_the_run_and_it_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{GATE}.BACKOFF", 0.005)
    provider = Provider()

    def falling(nth: int, body: Mapping[str, object]) -> Answer | None:
        if nth == 50:
            threading.Thread(target=provider.stop).start()
        return None

    provider.intercept = falling
    with provider:
        lm = provider.lm()
        first = toy_compile(lm, run_dir=tmp_path, max_in_flight=8).compilation
        assert first.stopped_by == "outage"
        before = len(provider.answered)
        provider.intercept = lambda nth, body: None
        with provider:
            second = toy_compile(lm, run_dir=tmp_path, max_in_flight=8)
        task = [sent for sent, n in Counter(provider.answered).items() if n > 1 and "`variation`" not in sent.text]
        assert second.compilation.stopped_by is None and before >= 49
        assert len(task) <= 8, "only replies lost with the connection may be asked for again"
    with Provider() as healthy:
        whole = toy_compile(healthy.lm(), max_in_flight=8)
    assert [t.scores for t in second.compilation.candidates] == [t.scores for t in whole.compilation.candidates]


def test_an_example_that_hangs_is_missing() -> None:
    def slow(nth: int) -> None:
        if nth in (5, 9):
            time.sleep(20.0)

    engine, start = ToyEngine(hook=slow), time.monotonic()
    with dspy.context(lm=toy_lm(engine)):
        scores = score_program(
            dspy.Predict("question -> answer"),
            words(30),
            lambda e, p: e.answer == p.answer,
            max_in_flight=2,
            timeout=2.0,
        )
    assert time.monotonic() - start < 15.0, "a busy machine is slow, but who waits takes 20 seconds"
    assert scores.missing == 2 and scores.n == 28
    assert engine.calls == 30, "no straggler is sent again"


def test_a_compile_with_a_hanging_example_ends() -> None:
    start = time.monotonic()

    def hang(system: str, user: str, drawn: int | None) -> str:
        if "say v3\n" in user:
            time.sleep(20.0)
        return toy_reply(system, user, drawn)

    compilation = toy_compile(
        toy_lm(ToyEngine(reply=hang)), max_in_flight=4, steps=1, n_val=20, example_timeout=1.0
    ).compilation
    assert time.monotonic() - start < 18.0
    assert compilation.stopped_by is None
    unscored = {i for t in compilation.candidates for i, v in enumerate(t.scores) if v is None}
    assert len(unscored) == 1 or (compilation.gain is not None and compilation.gain.n == 9)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("gpt-4o-mini-typo", {"engine": "litellm"}, "LLM Provider NOT provided"),
        ("openai/any", {"api_base": "localhost:9"}, "URL missing scheme"),
    ],
)
def test_a_model_that_cannot_be_called_stops_the_run_at_the_first_call(
    name: str, options: dict[str, str], said: str
) -> None:
    lm = dspy.LM(name, api_key=KEY, cache=False, num_retries=0, **options)
    with pytest.raises(CompileError, match=f"stopped by a setting that cannot work before.*{said}") as caught:
        toy_compile(lm, max_in_flight=1)
    assert caught.value.stopped_by == "configuration" and caught.value.spent.total.calls == 1
