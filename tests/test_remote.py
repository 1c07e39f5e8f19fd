"""Programs run by other processes: the same results, exact caps, no key in a pickle, dead workers, real clusters."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest
from e2e_support import (
    KEY,
    Answer,
    Provider,
    Saying,
    ToyEngine,
    error_body,
    exact,
    result_of,
    toy_compile,
    toy_lm,
    words,
)

from cuesmith import Budget, Remote
from cuesmith.programs.evaluation import evaluate
from cuesmith.teleprompters.runtime import remote
from cuesmith.teleprompters.runtime.executors import parcel
from cuesmith.teleprompters.runtime.metric import Metric
from cuesmith.teleprompters.runtime.outcomes import ParseFailure, ProviderFailure, Scored
from cuesmith.teleprompters.runtime.session import CompileError
from cuesmith.teleprompters.runtime.wire import CannotSend, Link

SMALL: dict[str, Any] = {"n_val": 24, "width": 2, "steps": 2}


def processes() -> ProcessPoolExecutor:
    """Return two processes that are forks of one with all imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["litellm", "cuesmith.teleprompters.runtime.remote_worker"])
    return ProcessPoolExecutor(2, mp_context=context)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two processes for all tests that do not end them."""
    with processes() as executor:
        yield executor


def paid_twice(provider: Provider, since: int = 0) -> int:
    """Return how many requests of the program came more than once; the optimizer is asked the same several times."""
    asked = [str(body["messages"]) for _, status, body, _ in provider.seen[since:] if status == 200]
    return sum(n - 1 for text, n in Counter(asked).items() if "`variation`" not in text)


def test_the_result_is_the_one_of_this_process(pool: ProcessPoolExecutor) -> None:
    with Provider() as provider:
        near = toy_compile(provider.lm(), max_in_flight=8, **SMALL)
        calls = provider.calls
        far = toy_compile(provider.lm(), max_in_flight=8, executor=pool, **SMALL)
        assert provider.calls == 2 * calls
    assert result_of(far) == result_of(near)


class Forking(Executor):
    """An executor that does not say that its processes are forks."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(2, mp_context=get_context("fork"))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit."""
        return self.pool.submit(fn, *args, **kwargs)


def test_forks_of_this_process_are_refused() -> None:
    """They share its connections: a provider's answers would reach the wrong one."""
    with Provider() as provider:
        forks = ProcessPoolExecutor(2, mp_context=get_context("fork"))
        with forks, pytest.raises(TypeError, match="forkserver"):
            toy_compile(provider.lm(), executor=forks, **SMALL)
        with pytest.raises(CompileError, match=r"stopped by workers that cannot work.*forks of this one"):
            toy_compile(provider.lm(), executor=Forking(), **SMALL)
        assert provider.calls == 0


def test_a_journal_serves_both(tmp_path: Path, pool: ProcessPoolExecutor) -> None:
    """A run that a cap has ended goes on elsewhere, and pays for nothing again."""
    with Provider() as provider:
        whole = toy_compile(provider.lm(), max_in_flight=4, **SMALL)
        calls = provider.calls
        toy_compile(provider.lm(), run_dir=tmp_path, max_in_flight=4, executor=pool, budget=Budget(calls=50), **SMALL)
        first = provider.calls - calls
        on = toy_compile(provider.lm(), run_dir=tmp_path, max_in_flight=4, **SMALL)
        assert first == 50 and not paid_twice(provider, calls)
    with Provider(port=provider.port) as provider:
        again = toy_compile(provider.lm(), run_dir=tmp_path, max_in_flight=4, executor=pool, **SMALL)
        assert provider.calls == 0
    assert [t.scores for t in on.compilation.candidates] == [t.scores for t in whole.compilation.candidates]
    assert result_of(again) == result_of(on)


@pytest.mark.parametrize("cap", [30, 61])
def test_caps_are_exact(pool: ProcessPoolExecutor, cap: int) -> None:
    with Provider(latency=0.002) as provider:
        near = toy_compile(provider.lm(), max_in_flight=8, budget=Budget(calls=cap), **SMALL)
        calls = provider.calls
        far = toy_compile(provider.lm(), max_in_flight=8, executor=pool, budget=Budget(calls=cap), **SMALL)
        assert provider.calls - calls == calls <= cap
    assert far.compilation.stopped_by == near.compilation.stopped_by == "calls"
    assert result_of(far) == result_of(near)


def test_a_cap_on_tokens(pool: ProcessPoolExecutor) -> None:
    with Provider(latency=0.002) as provider:
        far = toy_compile(provider.lm(), max_in_flight=8, executor=pool, budget=Budget(tokens=5000), **SMALL)
        assert 120 * provider.calls <= 5000 and far.compilation.spent.total.tokens == 120 * provider.calls


def test_a_revoked_key_stops_the_run(pool: ProcessPoolExecutor) -> None:
    body = error_body(f"Incorrect API key provided: {KEY}.", "invalid_api_key")
    with Provider(lambda nth, asked: (401, {}, body) if nth > 30 else None) as provider:
        far = toy_compile(provider.lm(), max_in_flight=8, executor=pool, **SMALL)
        assert provider.calls <= 38
    assert far.compilation.stopped_by == "auth" and KEY not in repr(far.compilation)


def test_a_provider_that_fails_now_and_then_is_asked_again(pool: ProcessPoolExecutor) -> None:
    """Attempts are the gate's: each is counted, and the result is the one without failures."""
    with Provider() as provider:
        near = toy_compile(provider.lm(), max_in_flight=8, **SMALL)
    failing: Callable[[int, Mapping[str, object]], Answer | None]
    failing = lambda nth, body: (503, {"Retry-After": "0"}, error_body("busy")) if nth % 7 == 0 else None  # noqa: E731
    with Provider(failing) as provider:
        far = toy_compile(provider.lm(), max_in_flight=8, executor=pool, **SMALL)
        assert far.compilation.spent.total.calls == provider.calls > near.compilation.spent.total.calls
    assert [t.scores for t in far.compilation.candidates] == [t.scores for t in near.compilation.candidates]


def test_a_request_that_is_refused_leaves_its_example_missing(pool: ProcessPoolExecutor) -> None:
    refuse: Callable[[int, Mapping[str, object]], Answer | None]
    refuse = lambda nth, body: (400, {}, error_body("odd")) if "w3" in str(body["messages"]) else None  # noqa: E731
    with Provider(refuse) as provider, dspy.context(lm=provider.lm()):
        student = dspy.Predict("question -> answer")
        near, far = (evaluate(student, words(6), exact, executor=where) for where in (None, pool))
    assert [type(o) for o in far.outcomes] == [type(o) for o in near.outcomes]
    assert far.outcomes == near.outcomes


# --- programs and metrics of all kinds ------------------------------------------------------------------------


class Awaited(dspy.Module):  # type: ignore[misc]
    """Has only an async forward, with two calls at once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.Predict("question -> answer")

    async def aforward(self, question: str) -> dspy.Prediction:
        """Answer twice."""
        found = await asyncio.gather(self.first.acall(question=question), self.second.acall(question=f"{question}!"))
        return found[0]


class Threaded(Saying):
    """Calls its predictor from threads of its own."""

    def forward(self, question: str) -> dspy.Prediction:
        """Answer in two threads."""
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(lambda text: self.say(question=text), [question, f"{question}!"]))
        return found[0]


def unordered(outcome: Any) -> object:
    """Return an outcome whose calls are in an order of their own: what runs at once ends in any."""
    return replace(outcome, trace=tuple(sorted(outcome.trace, key=repr)))


async def exact_awaited(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """Judge as `exact`, later."""
    await asyncio.sleep(0)
    return float(exact(example, prediction))


@pytest.mark.parametrize("metric", [exact, exact_awaited])
@pytest.mark.parametrize("kind", [Awaited, Threaded])
def test_programs_of_all_kinds(pool: ProcessPoolExecutor, kind: type[dspy.Module], metric: Any) -> None:
    with Provider() as provider, dspy.context(lm=provider.lm()):
        student = kind()
        student.set_lm(provider.lm())
        near, far = (evaluate(student, words(12), metric, executor=where) for where in (None, pool))
        assert provider.calls == 48
    assert 0 < near.score < 1 and [unordered(o) for o in far.outcomes] == [unordered(o) for o in near.outcomes]


class Broken(Saying):
    """Raises on some examples."""

    def forward(self, question: str) -> dspy.Prediction:
        """Answer, or raise."""
        if question.endswith("3"):
            raise LookupError("no such thing")
        return self.say(question=question)


def strange(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """Fail on some examples."""
    if example.answer.endswith("4"):
        raise ValueError("cannot judge")
    return float(exact(example, prediction))


def test_errors_are_the_same(pool: ProcessPoolExecutor) -> None:
    with Provider() as provider, dspy.context(lm=provider.lm()):
        near, far = (evaluate(Broken(), words(8), strange, executor=where) for where in (None, pool))
    assert far.outcomes == near.outcomes
    assert isinstance(far.outcomes[3], ParseFailure) and far.outcomes[3].raised


class Hanging(Saying):
    """Never ends on one example."""

    def forward(self, question: str) -> dspy.Prediction:
        """Answer, or hang."""
        while question.endswith("w1"):
            time.sleep(0.01)
        return self.say(question=question)


def test_a_program_that_hangs_is_given_up_and_its_thread_replaced(pool: ProcessPoolExecutor) -> None:
    with Provider() as provider, dspy.context(lm=provider.lm()):
        student = Hanging()
        where = Remote(pool, processes=1, threads=1)
        found = remote_scores(student, where, timeout=1.0)
    assert isinstance(found[1], ProviderFailure) and "did not end" in found[1].reason
    assert all(isinstance(outcome, Scored) for number, outcome in enumerate(found) if number != 1)


def remote_scores(student: dspy.Module, where: object, timeout: float | None = None) -> tuple[Any, ...]:
    """Score a program on six words."""
    from cuesmith.teleprompters.runtime.score_program import score_program

    return score_program(student, words(6), exact, executor=where, timeout=timeout).outcomes


class Slow(Saying):
    """Takes long on one example, and ends then."""

    def forward(self, question: str) -> dspy.Prediction:
        """Answer, late."""
        time.sleep(2.0 if question.endswith("w1") else 0.2)
        return self.say(question=question)


def test_a_program_that_is_late_and_ends_after_all_ends_nothing_else(pool: ProcessPoolExecutor) -> None:
    with Provider() as provider, dspy.context(lm=provider.lm()):
        found = remote_scores(Slow(), Remote(pool, processes=1, threads=1), timeout=1.0)
    assert [type(outcome) for outcome in found] == [Scored, ProviderFailure, Scored, Scored, Scored, Scored]


def test_threads_wait_as_long_as_their_worker_has_work(
    pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LINGER_S", 0.3)
    late = lambda nth, body: time.sleep(1.5) if "t0\n" in str(body["messages"]) else time.sleep(0.02)  # noqa: E731
    with Provider(late) as provider:
        toy_compile(provider.lm(), max_in_flight=8, executor=Remote(pool, processes=1), **SMALL)
        assert provider.most == 8


class Past(Saying):
    """Calls LiteLLM past dspy before it asks.

    Args:
        address: Of the provider.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address

    def forward(self, question: str) -> dspy.Prediction:
        """Answer."""
        import litellm

        messages = [{"role": "user", "content": question}]
        litellm.completion("openai/past", messages=messages, api_base=self.address, api_key="local")
        return self.say(question=question)


def test_calls_past_dspy_are_capped_and_counted(pool: ProcessPoolExecutor) -> None:
    with Provider() as provider:
        student = Past(f"http://127.0.0.1:{provider.port}/v1")
        options: dict[str, Any] = {**SMALL, "budget": Budget(calls=60), "max_in_flight": 8}
        far = toy_compile(provider.lm(), student=student, executor=pool, **options)
        assert provider.calls == far.compilation.spent.total.calls == 60
        assert far.compilation.spent.total.tokens == 60 * 120


def test_nothing_is_left_of_a_run(pool: ProcessPoolExecutor) -> None:
    def left() -> tuple[int, int]:
        return sum(t.name.startswith("cuesmith") for t in threading.enumerate()), len(os.listdir("/proc/self/fd"))

    with Provider() as provider, dspy.context(lm=provider.lm()):
        counts: list[tuple[int, int]] = []
        for _ in range(4):
            evaluate(dspy.Predict("question -> answer"), words(8), exact, executor=pool)
            until = time.monotonic() + 1.0
            while time.monotonic() < until and (not counts or left() > counts[0]):
                time.sleep(0.02)
            counts.append(left())
    assert counts[-1][0] <= counts[0][0] and counts[-1][1] <= counts[0][1] + 2


@pytest.mark.parametrize("host", ["203.0.113.9", "no.such.host.invalid"])
def test_an_address_that_nobody_can_listen_at_is_refused(pool: ProcessPoolExecutor, host: str, tmp_path: Path) -> None:
    with Provider() as provider, pytest.raises(CannotSend, match="nothing can listen at"):
        toy_compile(provider.lm(), executor=Remote(pool, host=host), run_dir=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists() and provider.calls == 0


# --- keys -----------------------------------------------------------------------------------------------------


class Spying(Executor):
    """Keeps what an executor is given, as it would be pickled."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.sent = executor, list[bytes]()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Note the task, and hand it on."""
        self.sent.append(cloudpickle.dumps((fn, args, kwargs)))
        return self.executor.submit(fn, *args, **kwargs)


def test_no_key_is_pickled(pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    spy, packed = Spying(pool), list[bytes]()
    real = Link.send_bytes

    def kept(link: Link, data: bytes) -> None:
        packed.append(data)
        real(link, data)

    monkeypatch.setattr(Link, "send_bytes", kept)
    with Provider() as provider, dspy.context(lm=provider.lm()):
        student = dspy.Predict("question -> answer")
        student.lm = provider.lm("own")
        scores = evaluate(student, words(4), exact, executor=spy)
        assert scores.n == 4 and {seen[3] for seen in provider.seen} == {f"Bearer {KEY}"}
    assert spy.sent and packed
    assert not [data for data in (*spy.sent, *packed) if KEY.encode() in data]


class Judged:
    """A metric with a model of its own.

    Args:
        lm: The model.
    """

    def __init__(self, lm: dspy.LM) -> None:
        self.lm = lm

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
        """Ask."""
        self.lm("good?")
        return exact(example, prediction)


def test_a_judges_key_that_a_provider_echoes_reaches_no_report(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    body = error_body(f"Odd request with {KEY.upper()}.", "odd")
    refuse: Callable[[int, Mapping[str, object]], Answer | None]
    refuse = lambda nth, asked: (400, {}, body) if "good?" in str(asked["messages"]) and nth > 20 else None  # noqa: E731
    with Provider(refuse) as provider:
        metric = Judged(provider.lm("judge", api_key=KEY.upper()))
        events: list[object] = []
        options: dict[str, Any] = {**SMALL, "callbacks": events.append}
        far = toy_compile(provider.lm(), metric=metric, executor=pool, run_dir=tmp_path, **options)
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert KEY.upper() not in repr(far.compilation) + repr(events) and KEY.upper().encode() not in kept
    assert "Odd request with" in repr(far.compilation) + repr(events)


def test_a_key_in_a_header_is_put_together_there(pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", KEY)
    lm = dspy.LM("openai/toy", api_base="http://127.0.0.1:1/v1", extra_headers={"Authorization": f"Bearer {KEY}"})
    sent = parcel(Remote(pool), dspy.Predict("question -> answer"), Metric(exact), lm, words(1))
    assert KEY.encode() not in sent.data
    assert [dict(each) for each in sent.secrets] == [{"environment": "TOY_KEY", "before": "Bearer ", "after": ""}]


def test_a_key_of_the_environment_is_the_workers_own(
    pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its name is sent; a worker that has none says so, before anything is called."""
    monkeypatch.setenv("TOY_KEY", KEY)
    with Provider() as provider:
        with pytest.raises(CompileError, match="no environment variable TOY_KEY"):
            toy_compile(provider.lm(), executor=pool, **SMALL)
        assert provider.calls == 0


def test_a_key_is_not_sent_to_other_machines(pool: ProcessPoolExecutor) -> None:
    with Provider() as provider, dspy.context(lm=provider.lm()), pytest.raises(CannotSend, match="environment of this"):
        evaluate(dspy.Predict("question -> answer"), words(4), exact, executor=Remote(pool, host="0.0.0.0"))


def test_a_key_elsewhere_in_the_program_is_refused(pool: ProcessPoolExecutor) -> None:
    with Provider() as provider, dspy.context(lm=provider.lm()):
        student = dspy.Predict("question -> answer")
        student.header = f"Bearer {KEY}"
        with pytest.raises(CannotSend, match="holds a key outside"):
            evaluate(student, words(4), exact, executor=pool)
        assert provider.calls == 0


def test_a_stranger_is_turned_away(pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[remote.RemoteWorkers] = []
    real = remote.RemoteWorkers.__init__

    def kept(self: remote.RemoteWorkers, *args: Any) -> None:
        real(self, *args)
        made.append(self)

    monkeypatch.setattr(remote.RemoteWorkers, "__init__", kept)
    refused: list[BaseException] = []

    def strange_call(nth: int, body: Mapping[str, object]) -> None:
        if nth == 2:
            try:
                Client(made[0]._listener.getsockname(), authkey=b"guessed")
            except BaseException as error:
                refused.append(error)

    with Provider(strange_call) as provider, dspy.context(lm=provider.lm()):
        assert evaluate(dspy.Predict("question -> answer"), words(4), exact, executor=pool).n == 4
    assert len(refused) == 1


# --- what cannot work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", [ThreadPoolExecutor(1), 4, "dask"])
def test_what_is_no_executor_of_processes_is_refused(executor: object) -> None:
    with pytest.raises(TypeError, match=r"dask\.distributed\.Client"):
        toy_compile(toy_lm(ToyEngine()), executor=executor)


def test_what_cannot_be_pickled_is_said_before_anything_is_called(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    with Provider() as provider:
        student = dspy.Predict("question -> answer")
        student.lock = threading.Lock()
        with pytest.raises(CannotSend, match="cannot be sent"):
            toy_compile(provider.lm(), student=student, executor=pool, run_dir=tmp_path / "run", **SMALL)
        assert provider.calls == 0 and not (tmp_path / "run").exists()


class Refusing(Executor):
    """An executor whose tasks fail."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Fail."""
        future: Future[Any] = Future()
        future.set_exception(ModuleNotFoundError("No module named 'cuesmith'"))
        return future


class Waiting(Executor):
    """An executor whose tasks never begin."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Wait."""
        return Future()


def test_that_no_worker_comes_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(remote, "SILENCE_S", 0.5)
    with Provider() as provider, pytest.raises(CompileError, match="stopped by the cap on seconds"):
        toy_compile(provider.lm(), executor=Waiting(), budget=Budget(seconds=1.5), **SMALL)
    assert [r.getMessage() for r in caplog.records if "no worker of executor= has come to 127.0.0.1:" in r.getMessage()]


def test_workers_that_cannot_begin_stop_the_run() -> None:
    with (
        Provider() as provider,
        pytest.raises(CompileError, match=r"that cannot work.*No module named 'cuesmith'"),
    ):
        toy_compile(provider.lm(), executor=Refusing(), **SMALL)
    assert provider.calls == 0


class Deadly(Saying):
    """Ends its process on one example."""

    def __init__(self, home: int) -> None:
        super().__init__()
        self.home = home

    def forward(self, question: str) -> dspy.Prediction:
        """Answer, or die."""
        if question.endswith("w1") and os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.say(question=question)


def test_a_pool_that_breaks_stops_the_run_and_it_can_go_on(tmp_path: Path) -> None:
    """`ProcessPoolExecutor` does not outlive a dead process; what was paid for is in the journal."""
    killed = threading.Event()
    with Provider(latency=0.01) as provider, processes() as pool:

        def kill(nth: int, body: Mapping[str, object]) -> None:
            if nth == 60 and not killed.is_set():
                killed.set()
                os.kill(next(iter(pool._processes)), signal.SIGKILL)

        provider.intercept = kill
        far = toy_compile(provider.lm(), run_dir=tmp_path, executor=pool, max_in_flight=8, **SMALL)
        assert far.compilation.stopped_by == "executor" and killed.is_set()
        on = toy_compile(provider.lm(), run_dir=tmp_path, max_in_flight=8, **SMALL)
        assert paid_twice(provider) <= 8, "at most what was under way"
        whole = toy_compile(provider.lm(), max_in_flight=8, **SMALL)
    assert [t.scores for t in on.compilation.candidates] == [t.scores for t in whole.compilation.candidates]
