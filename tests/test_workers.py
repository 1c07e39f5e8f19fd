"""The pool of threads: every result delivered, the full width used, nothing left busy."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from cuesmith.teleprompters.runtime.ledger import RunStopped
from cuesmith.teleprompters.runtime.throttle import Throttle
from cuesmith.teleprompters.runtime.workers import Workers


def _run(
    body: Callable[[Workers, Throttle], Awaitable[None]],
    width: int = 4,
    timeout: float | None = None,
    deadline: float | None = None,
) -> None:
    async def main() -> None:
        throttle = Throttle(width)
        workers = Workers(throttle, timeout, None if deadline is None else time.monotonic() + deadline)
        try:
            await asyncio.wait_for(body(workers, throttle), 15)
        finally:
            workers.close()

    asyncio.run(main())


class _Gauge:
    """Work that knows how many of it run at once, and waits until there were `wanted` (or 3 seconds)."""

    def __init__(self, wanted: int = 0) -> None:
        self.now = self.most = 0
        self.order: list[int] = []
        self.wanted = wanted
        self._changed = threading.Condition()

    def work(self, number: int = 0) -> int:
        """Run beside the others; returns `number`."""
        with self._changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(number)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most >= self.wanted, 3)
        time.sleep(0.001 if self.wanted else 0)
        with self._changed:
            self.now -= 1
        return number

    def call(self, number: int) -> Callable[[], int]:
        """Return the work for one item."""
        return lambda: self.work(number)


def test_results_and_errors_reach_whoever_waits() -> None:
    async def body(workers: Workers, throttle: Throttle) -> None:
        def fail() -> int:
            raise KeyError("x")

        futures = [workers.submit(fail if i % 3 == 0 else lambda i=i: i) for i in range(60)]  # type: ignore[misc]
        answers = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(a, KeyError) if i % 3 == 0 else a == i for i, a in enumerate(answers))

    _run(body)


@pytest.mark.parametrize(
    ("error", "seen"),
    [(RunStopped("calls"), RunStopped), (GeneratorExit(), GeneratorExit), (StopIteration(1), RuntimeError)],
)
def test_errors_that_are_no_exceptions_are_delivered(error: BaseException, seen: type[BaseException]) -> None:
    async def body(workers: Workers, throttle: Throttle) -> None:
        def fail() -> None:
            raise error

        bad, good = workers.submit(fail), [workers.submit(lambda: 1) for _ in range(5)]
        assert await asyncio.gather(*good) == [1] * 5
        await asyncio.wait([bad])
        assert isinstance(bad.exception(), seen)

    _run(body, 1)


def test_one_at_a_time_starts_in_order() -> None:
    async def body(workers: Workers, throttle: Throttle) -> None:
        gauge = _Gauge()
        await asyncio.gather(*(workers.submit(gauge.call(i)) for i in range(200)))
        assert gauge.order == list(range(200)) and gauge.most == 1

    _run(body, 1)


def test_a_second_burst_gets_the_full_width_though_few_threads_are_idle() -> None:
    async def body(workers: Workers, throttle: Throttle) -> None:
        await workers.submit(lambda: None)  # leaves one idle thread
        gauge = _Gauge(8)
        await asyncio.gather(*(workers.submit(gauge.call(i)) for i in range(16)))
        assert gauge.most == 8

    _run(body, 8)


def test_a_shrunk_limit_is_respected_and_growth_is_used() -> None:
    async def body(workers: Workers, throttle: Throttle) -> None:
        gauge = _Gauge(8)
        await asyncio.gather(*(workers.submit(gauge.call(i)) for i in range(8)))
        assert gauge.most == 8
        throttle.slow_down(None)
        gauge.most, gauge.wanted = 0, 4
        await asyncio.gather(*(workers.submit(gauge.call(i)) for i in range(24)))
        assert gauge.most == 4
        throttle.limit, gauge.most, gauge.wanted = 8.0, 0, 8
        await asyncio.gather(*(workers.submit(gauge.call(i)) for i in range(48)))
        assert gauge.most == 8

    _run(body, 8)


def test_hung_items_are_given_up_and_the_pool_keeps_its_width() -> None:
    async def body(workers: Workers, throttle: Throttle) -> None:
        forever = threading.Event()
        hung = [workers.submit(lambda: forever.wait(20)) for _ in range(4)]
        gauge = _Gauge(4)
        futures = [workers.submit(gauge.call(i)) for i in range(12)]
        assert await asyncio.gather(*futures) == list(range(12))
        answers = await asyncio.gather(*hung, return_exceptions=True)
        assert all(isinstance(a, TimeoutError) for a in answers) and gauge.most == 4
        assert workers.in_flight == 0 and workers.pending == 0
        forever.set()  # the late results are dropped
        await asyncio.sleep(0.02)
        assert await workers.submit(lambda: 5) == 5

    _run(body, 4, timeout=0.5)


def test_a_hung_item_under_a_shrunk_limit_frees_the_idle_threads() -> None:
    async def body(workers: Workers, throttle: Throttle) -> None:
        await asyncio.gather(*(workers.submit(lambda: time.sleep(0.02)) for _ in range(4)))
        throttle.limit = 1.0
        forever = threading.Event()
        hung = workers.submit(lambda: forever.wait(20))
        rest = [workers.submit(lambda i=i: i) for i in range(6)]  # type: ignore[misc]
        assert await asyncio.wait_for(asyncio.gather(*rest), 5) == list(range(6))
        assert isinstance((await asyncio.gather(hung, return_exceptions=True))[0], TimeoutError)
        forever.set()

    _run(body, 4, timeout=0.2)


def test_the_deadline_gives_up_what_is_in_flight() -> None:
    async def body(workers: Workers, throttle: Throttle) -> None:
        forever = threading.Event()
        start = time.monotonic()
        answers = await asyncio.gather(
            *(workers.submit(lambda: forever.wait(20)) for _ in range(5)), return_exceptions=True
        )
        assert all(isinstance(a, TimeoutError) for a in answers) and time.monotonic() - start < 12
        forever.set()

    _run(body, 2, deadline=0.2)


def test_work_sees_a_copy_of_the_submitters_context() -> None:
    variable = contextvars.ContextVar("variable", default=0)

    async def body(workers: Workers, throttle: Throttle) -> None:
        def work() -> int:
            seen = variable.get()
            variable.set(99)
            return seen

        futures = []
        for i in range(20):
            variable.set(i)
            futures.append(workers.submit(work))
        assert await asyncio.gather(*futures) == list(range(20)) and variable.get() == 19

    _run(body)


def test_many_short_items() -> None:
    async def body(workers: Workers, throttle: Throttle) -> None:
        for _ in range(5):
            futures = [workers.submit(lambda i=i: i) for i in range(400)]  # type: ignore[misc]
            assert await asyncio.gather(*futures) == list(range(400))
        assert workers.in_flight == workers.pending == 0

    _run(body, 32, timeout=5.0)


def test_cancelled_waiters_are_left_out() -> None:
    async def body(workers: Workers, throttle: Throttle) -> None:
        gauge = _Gauge(1)
        futures = [workers.submit(gauge.call(i)) for i in range(12)]
        for future in futures[::2]:
            future.cancel()
        assert await asyncio.gather(*futures[1::2]) == [1, 3, 5, 7, 9, 11]
        assert await workers.submit(lambda: "after") == "after"

    _run(body, 2)


def test_close_lets_the_threads_go() -> None:
    before = threading.active_count()

    async def body(workers: Workers, throttle: Throttle) -> None:
        event = threading.Event()
        running = workers.submit(lambda: event.wait(5))
        await asyncio.gather(*(workers.submit(lambda: time.sleep(0.01)) for _ in range(10)))
        workers.close()
        event.set()
        await asyncio.sleep(0.05)
        assert not running.done()

    _run(body, 4, timeout=5.0)
    end = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before
    busy = time.process_time()
    time.sleep(0.1)
    assert time.process_time() - busy < 0.08


def test_a_result_after_the_loop_is_gone_harms_no_one(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    event = threading.Event()

    async def main() -> Workers:
        workers = Workers(Throttle(1), None, None)
        workers.submit(lambda: event.wait(5))
        await asyncio.sleep(0.02)
        return workers

    workers = asyncio.run(main())
    event.set()
    time.sleep(0.05)
    workers.close()
    assert raised == []
