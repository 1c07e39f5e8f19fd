"""The gate, driven with a fake `send`: order of journal, ledger and call; retries; what stops a run."""

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
    LMInvalidRequestError,
    LMNotConfiguredError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
    LMUnsupportedModelError,
)

from cuesmith.teleprompters.runtime.calls import Reply, Request, public_options
from cuesmith.teleprompters.runtime.gate import Effect, Gate, effect
from cuesmith.teleprompters.runtime.journal import Journal
from cuesmith.teleprompters.runtime.ledger import Budget, Ledger, RunStopped, UnknownPrice, Usage
from cuesmith.teleprompters.runtime.outages import Refused
from cuesmith.teleprompters.runtime.redaction import Redactor
from cuesmith.teleprompters.runtime.throttle import Throttle


@pytest.fixture(autouse=True)
def _within_an_effect() -> Iterator[None]:
    token = effect.set(Effect("e", "other"))
    yield
    effect.reset(token)


PAID = Usage(calls=1, input_tokens=10, output_tokens=5, usd=0.01)


class _House:
    """A gate with all it stands between; the waits of retries are noted, not slept."""

    def __init__(self, budget: Budget = Budget(), run_dir: Path | None = None, width: int = 4) -> None:  # noqa: B008
        self.ledger = Ledger(budget)
        self.journal = None if run_dir is None else Journal(run_dir, {"a": "b"})
        self.throttle = Throttle(width)
        self.retries: list[tuple[str, float, int]] = []
        self.waited: list[float] = []
        self.sent = 0
        self.gate = Gate(self.ledger, self.journal, self.throttle, Redactor(), self._retried, max_retries=3)
        self.gate._halt = _Halt(self.waited)

    def _retried(self, reason: str, delay: float, attempt: int) -> None:
        self.retries.append((reason, delay, attempt))

    def sends(self, *answers: Reply | BaseException) -> Callable[[], Reply]:
        """Return a `send` that gives these answers, one after the other, then the last again."""
        left = list(answers)

        def send() -> Reply:
            self.sent += 1
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return send


class _Halt(threading.Event):
    def __init__(self, waited: list[float]) -> None:
        super().__init__()
        self._waited = waited

    def wait(self, timeout: float | None = None) -> bool:
        """Note the wait instead of taking it."""
        self._waited.append(timeout or 0.0)
        return super().wait(0.0005)


def _request(text: str = "hi", *, calls: int = 1, may_hit: bool = False, max_tokens: int | None = 20) -> Request:
    return Request("model", (None, [{"role": "user", "content": text}], {}), calls, max_tokens, may_hit, False)


def _reply(*outputs: object, usage: Usage = PAID, price_known: bool = True) -> Reply:
    answer = list(outputs) or ["answer"]
    return Reply(answer, usage, price_known, answer if all(isinstance(each, str) for each in answer) else None)


@contextmanager
def _within(key: str = "effect") -> Iterator[Effect]:
    current = Effect(key, "target")
    token = effect.set(current)
    try:
        yield current
    finally:
        effect.reset(token)


def test_one_call() -> None:
    house = _House()
    with _within() as current:
        assert house.gate.call(_request(), house.sends(_reply("a", "b"))) == ["a", "b"]
    assert house.sent == 1 and current.used == {"target": PAID} and house.ledger.spent().by_role == {"target": PAID}
    assert house.gate.call(_request(), house.sends(_reply())) == ["answer"]  # outside of any effect


def test_the_journal_is_asked_first(tmp_path: Path) -> None:
    first = _House(run_dir=tmp_path)
    assert first.journal is not None
    with _within():
        first.gate.call(_request(), first.sends(_reply("one")))
    first.journal.close()
    house = _House(Budget(calls=1), run_dir=tmp_path)
    with _within() as current:
        assert house.gate.call(_request(), house.sends(_reply("two"))) == ["one"]
    assert house.sent == 0 and current.used == {"target": PAID}
    assert house.ledger.spent().total == Usage(1, 10, 5, 0.01, 0, 1)
    house.gate.stop("auth")
    with _within():  # what is known is known even when the door is closed
        assert house.gate.call(_request(), house.sends(_reply("two"))) == ["one"]
    with _within("other"), pytest.raises(RunStopped):
        house.gate.call(_request(), house.sends(_reply("two")))
    assert house.journal is not None
    house.journal.close()


def test_what_earlier_sessions_paid_counts_from_the_start(tmp_path: Path) -> None:
    first = _House(run_dir=tmp_path)
    assert first.journal is not None
    with _within() as current:
        first.gate.call(_request(), first.sends(LMServerError("x"), _reply()))
        current.role = "judge"
        first.gate.call(_request(), first.sends(_reply({"text": None, "tool_calls": [1]})))  # paid, but not kept
    first.journal.close()
    house = _House(Budget(calls=4), run_dir=tmp_path)
    assert house.ledger.spent().by_role == {
        "target": Usage(2, 10, 5, 0.01, 0, 2),
        "judge": Usage(1, 10, 5, 0.01, 0, 1),
    }
    with _within("new"):
        house.gate.call(_request(), house.sends(_reply()))
        with pytest.raises(RunStopped, match="calls"):
            house.gate.call(_request(), house.sends(_reply()))
    assert house.sent == 1 and house.journal is not None
    house.journal.close()


def test_a_call_past_the_door_whose_end_is_never_told_counts_in_every_session(tmp_path: Path) -> None:
    first = _House(run_dir=tmp_path)
    assert first.journal is not None
    with _within() as current:
        late, told = (first.gate.admit_foreign(Request.foreign("m", "hi"), current, "target") for _ in range(2))
        first.gate.settle_foreign(told, PAID, current)
        first.gate.count_lost()
        assert first.ledger.spent().total.calls == 2
        first.gate.settle_foreign(late, PAID, current)  # it is told after all
    assert first.ledger.spent().total.calls == 2
    first.journal.close()
    house = _House(run_dir=tmp_path)
    assert house.ledger.spent().total.calls == 2 and house.journal is not None
    house.journal.close()


def test_identical_requests_of_an_effect_are_told_apart_by_their_number(tmp_path: Path) -> None:
    house = _House(run_dir=tmp_path)
    assert house.journal is not None
    with _within():
        send = house.sends(_reply("1"), LMServerError("x"), _reply("2"), _reply("3"))
        assert [house.gate.call(_request(), send) for _ in range(2)] == [["1"], ["2"]]  # a retry is no new request
        assert house.gate.call(_request("other"), send) == ["3"]
    with _within():
        again = [house.gate.call(_request(t), house.sends(_reply("new"))) for t in ("hi", "other", "hi", "hi")]
    assert again == [["1"], ["3"], ["2"], ["new"]]
    with _within() as current:
        current.role = "judge"
        assert house.gate.call(_request(), house.sends(_reply("judged"))) == ["judged"]
    house.journal.close()


def test_a_request_is_recognised_whatever_its_secrets_and_the_order_of_its_options() -> None:
    assert public_options({"api_key": "k", "headers": {}, "temperature": 1, "api_base": "u"}) == {"temperature": 1}


@pytest.mark.parametrize("stored", [["text"], {"text": None, "tool_calls": [{"name": "f"}]}, None])
def test_only_replies_that_can_be_kept_are_journalled(tmp_path: Path, stored: object) -> None:
    house = _House(run_dir=tmp_path)
    assert house.journal is not None
    answer = Reply("live", PAID, True, stored)
    request = replace(_request(), load=lambda kept: ("loaded", kept))
    with _within() as first:
        assert house.gate.call(request, house.sends(answer)) == "live"
    with _within():
        again = house.gate.call(request, house.sends(answer))
    assert first.replayable == (stored is not None)
    assert again == ("live" if stored is None else ("loaded", stored)) and house.sent == (2 if stored is None else 1)
    house.journal.close()


@pytest.mark.parametrize("kind", [LMServerError, LMTimeoutError, LMTransportError, LMRateLimitError])
def test_what_may_pass_is_tried_again(kind: type[LMError]) -> None:
    house = _House()
    with _within() as current:
        answer = house.gate.call(_request(), house.sends(kind("a"), kind("b"), _reply()))
    assert answer == ["answer"] and house.sent == 3 and house.ledger.spent().total.calls == 3
    assert [attempt for _, _, attempt in house.retries] == [1, 2]
    assert all(base * 0.5 <= delay <= base * 1.5 for base, (_, delay, _) in zip((0.5, 1.0), house.retries, strict=True))
    assert house.waited == [delay for _, delay, _ in house.retries]
    assert house.throttle.limit == (2.5 if kind is LMRateLimitError else 4.0)
    assert current.used == {"target": PAID + Usage(calls=2)}


def test_retry_after_is_honoured() -> None:
    house = _House()
    house.gate.call(_request(), house.sends(LMRateLimitError("slow", retry_after=30.0), _reply()))
    assert 30.0 <= house.waited[0] <= 33.0 and house.throttle.limit == 2.5


def test_it_gives_up_after_the_last_attempt() -> None:
    house = _House()
    with pytest.raises(LMServerError, match="still"):
        house.gate.call(_request(), house.sends(LMServerError("still")))
    assert house.sent == 4 and len(house.retries) == 3 and house.gate.stopped_by is None


@pytest.mark.parametrize("error", [LMInvalidRequestError("bad"), ContextWindowExceededError(), ValueError("own")])
def test_what_cannot_pass_is_raised_at_once_and_stops_nothing(error: Exception) -> None:
    house = _House()
    for _ in range(12):
        with pytest.raises(type(error)):
            house.gate.call(_request(), house.sends(error))
    assert house.sent == 12 and house.retries == [] and house.gate.stopped_by is None


@pytest.mark.parametrize(
    ("error", "by"),
    [
        (LMAuthError("key sk-Ab3dEf6hIj9kLm2n is wrong"), "auth"),
        (LMBillingError("no credit"), "billing"),
        (LMConfigurationError("x"), "configuration"),
        (LMNotConfiguredError("x"), "configuration"),
        (LMUnsupportedModelError("x"), "configuration"),
    ],
)
def test_what_can_never_pass_stops_the_run(error: LMError, by: str) -> None:
    house = _House()
    with pytest.raises(RunStopped) as stopped:
        house.gate.call(_request(), house.sends(error))
    assert stopped.value.by == house.gate.stopped_by == by
    assert "Ab3dEf6" not in house.gate.reason
    for _ in range(3):
        with pytest.raises(RunStopped, match=by):
            house.gate.call(_request(), house.sends(_reply()))
    assert house.sent == 1
    house.gate.stop("calls", "later")
    assert house.gate.stopped_by == by  # the first reason stays
    house.gate.reopen()
    assert house.gate.call(_request(), house.sends(_reply())) == ["answer"]


def test_an_outage_stops_the_run_but_one_answer_resets_the_count() -> None:
    house = _House(width=4)

    def fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(LMTransportError):
                house.gate.call(_request(), house.sends(LMTransportError("down")))

    fail(7)
    house.gate.call(_request(), house.sends(_reply()))
    fail(7)
    assert house.gate.stopped_by is None
    fail(1)
    assert house.gate.stopped_by == "outage" and "8 calls in a row" in house.gate.reason
    with pytest.raises(RunStopped):
        house.gate.call(_request(), house.sends(_reply()))


def test_retried_attempts_count_and_none_is_sent_past_the_cap() -> None:
    house = _House(Budget(calls=2))
    with pytest.raises(RunStopped) as stopped:
        house.gate.call(_request(), house.sends(LMServerError("x")))
    assert stopped.value.by == "calls" and house.sent == 2 and house.ledger.spent().total.calls == 2


def test_a_cap_may_be_released() -> None:
    house = _House(Budget(calls=4))
    house.ledger.hold(Budget(calls=3))
    house.gate.call(_request(), house.sends(_reply()))
    asked = []

    def release() -> bool:
        asked.append(1)
        house.ledger.hold(Budget())
        return len(asked) == 1

    house.gate.release = release
    for _ in range(3):
        house.gate.call(_request(), house.sends(_reply()))
    with pytest.raises(RunStopped, match="calls"):
        house.gate.call(_request(), house.sends(_reply()))
    assert house.sent == 4 and len(asked) == 2


def test_all_who_wait_at_a_cap_go_on_when_it_is_released_once() -> None:
    house, callers = _House(Budget(calls=9)), 8
    house.ledger.hold(Budget(calls=8))
    house.gate.call(_request(), house.sends(_reply()))
    held = [True]
    refused = threading.Barrier(callers)

    def release() -> bool | None:
        if held and house.gate.at_cap < callers:
            return None
        with contextlib.suppress(threading.BrokenBarrierError):
            refused.wait(1)  # each of them was refused before the first is answered
        if held and held.pop():
            house.ledger.hold(Budget())
            return True
        return False

    house.gate.release = release
    with ThreadPoolExecutor(callers) as pool:
        replies = list(pool.map(lambda _: house.gate.call(_request(), house.sends(_reply())), range(callers)))
    assert len(replies) == callers and house.sent == 9 and house.gate.at_cap == 0
    with pytest.raises(RunStopped, match="calls"):
        house.gate.call(_request(), house.sends(_reply()))


def test_tokens_are_reserved_for_prompt_and_reply() -> None:
    house = _House(Budget(tokens=100))
    with pytest.raises(RunStopped, match="tokens"):
        house.gate.call(_request("x" * 300), house.sends(_reply()))
    assert house.sent == 0
    unbounded = _House(Budget(tokens=1000))
    with pytest.raises(RunStopped, match="tokens"):
        unbounded.gate.call(_request(max_tokens=None), unbounded.sends(_reply()))


def test_cache_hits_are_free() -> None:
    house = _House(Budget(calls=1))
    for _ in range(5):
        house.gate.call(_request(may_hit=True), house.sends(_reply(usage=Usage(cache_hits=1))))
    house.gate.call(_request(), house.sends(_reply()))
    assert house.ledger.spent().total == Usage(1, 10, 5, 0.01, 5)


def test_a_price_that_is_not_known_cannot_be_capped() -> None:
    house = _House(Budget(usd=1.0))
    unpriced = _reply(usage=Usage(calls=1, input_tokens=3, usd=None), price_known=False)
    with pytest.raises(UnknownPrice, match=r"Budget\(usd=1.0\) needs the price of every call, but model reports none"):
        house.gate.call(_request(), house.sends(unpriced))
    assert house.gate.stopped_by == "configuration" and house.sent == 1
    free = _House(Budget(calls=5))
    assert free.gate.call(_request(), free.sends(unpriced)) == ["answer"]
    assert free.ledger.spent().total.usd is None


def test_calls_are_exact_from_many_threads() -> None:
    house, lock, sent, stopped = _House(Budget(calls=50)), threading.Lock(), [0], [0]

    def send() -> Reply:
        with lock:
            sent[0] += 1
            number = sent[0]
        if number % 5 == 0:
            raise LMServerError("x")
        hit = number % 7 == 0
        return _reply(usage=Usage(cache_hits=1) if hit else PAID)

    def work() -> None:
        try:
            while True:
                house.gate.call(_request(may_hit=True), send)
        except Refused:  # it is no thread of the run's
            with lock:
                stopped[0] += 1

    threads = [threading.Thread(target=work) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    total = house.ledger.spent().total
    assert stopped == [24] and total.calls == 50 and total.calls + total.cache_hits == sent[0]


def test_a_base_exception_settles_its_call_and_passes() -> None:
    house = _House(Budget(calls=5))
    with pytest.raises(KeyboardInterrupt):
        house.gate.call(_request(), house.sends(KeyboardInterrupt()))
    assert house.ledger.spent().total.calls == 1 and house.retries == []


def test_from_a_coroutine(tmp_path: Path) -> None:
    house = _House(run_dir=tmp_path)
    house.gate._jitter.uniform = lambda a, b: 0.01  # type: ignore[method-assign]

    async def body() -> None:
        send = house.sends(LMServerError("x"), _reply("late"), asyncio.CancelledError())

        async def asend() -> Reply:
            await asyncio.sleep(0)
            return send()

        with _within():
            assert await house.gate.acall(_request(), asend) == ["late"]
        with _within():
            assert await house.gate.acall(_request(), asend) == ["late"]
        with _within("b"), pytest.raises(asyncio.CancelledError):
            await house.gate.acall(_request(), asend)

    asyncio.run(body())
    assert house.sent == 3 and house.ledger.spent().total.calls == 3 and len(house.retries) == 1
    assert house.journal is not None
    house.journal.close()


def test_a_stop_ends_the_wait_of_a_retry() -> None:
    async def body() -> None:
        house = _House()

        async def asend() -> Reply:
            raise LMRateLimitError("slow", retry_after=30.0)

        waiting = asyncio.create_task(_stopped(house.gate.acall(_request(), asend)))
        await asyncio.sleep(0.05)
        house.gate.stop("auth")
        assert await asyncio.wait_for(waiting, 2) == "auth"

    async def _stopped(call: object) -> str:
        try:
            await call  # type: ignore[misc]
        except RunStopped as stop:
            return stop.by
        return ""

    asyncio.run(body())
    gate = Gate(Ledger(Budget()), None, Throttle(2), Redactor(), lambda reason, delay, attempt: None)
    seen: list[str] = []

    def thread() -> None:
        try:
            gate.call(_request(), _House().sends(LMRateLimitError("slow", retry_after=30.0)))
        except RunStopped as stop:
            seen.append(stop.by)

    worker = threading.Thread(target=contextvars.copy_context().run, args=(thread,))
    worker.start()
    time.sleep(0.05)
    gate.stop("billing")
    worker.join(2)
    assert seen == ["billing"]
