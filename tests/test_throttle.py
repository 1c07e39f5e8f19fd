"""The throttle: never more than the limit, first come first served, and TCP's way of sharing."""

import asyncio
import random

import pytest

from cuesmith.teleprompters.runtime.throttle import Throttle


async def _use(throttle: Throttle, order: list[int], number: int, most: list[int], pauses: int = 2) -> None:
    async with throttle:
        order.append(number)
        most[0] = max(most[0], throttle.in_flight)
        for _ in range(pauses):
            await asyncio.sleep(0)


@pytest.mark.parametrize("limit", [1, 3, 64])
def test_at_most_limit_and_in_order(limit: int) -> None:
    async def main() -> None:
        throttle, order, most = Throttle(limit), list[int](), [0]
        await asyncio.gather(*(_use(throttle, order, i, most) for i in range(40)))
        assert order == list(range(40)) and most[0] == min(limit, 40)
        assert throttle.in_flight == 0 and throttle.pending == 0

    asyncio.run(main())


def test_halves_once_a_window_and_grows_back() -> None:
    now = [0.0]
    throttle = Throttle(32, lambda: now[0])
    for _ in range(32):
        throttle.slow_down(None)
    assert throttle.limit == 16.0
    now[0] = 0.99
    throttle.slow_down(None)
    assert throttle.limit == 16.0
    now[0] = 1.0
    throttle.slow_down(5.0)
    now[0] = 5.9
    throttle.slow_down(None)
    assert throttle.limit == 8.0
    for _ in range(8):
        throttle.speed_up()
    assert 8.9 < throttle.limit <= 9.0
    for _ in range(2000):
        throttle.speed_up()
    assert throttle.limit == 32.0


def test_a_retry_after_of_zero_is_still_one_signal() -> None:
    now = [7.0]
    throttle = Throttle(32, lambda: now[0])
    for _ in range(32):
        throttle.slow_down(0.0)
    assert throttle.limit == 16.0


def test_never_below_one() -> None:
    now = [0.0]
    throttle = Throttle(4, lambda: now[0])
    for i in range(10):
        now[0] = 10.0 * i
        throttle.slow_down(None)
    assert throttle.limit == 1.0


def test_a_shrunk_limit_is_respected_and_growth_is_used() -> None:
    async def main() -> None:
        throttle, order, most = Throttle(8), list[int](), [0]
        tasks = [asyncio.create_task(_use(throttle, order, i, most, pauses=5)) for i in range(30)]
        await asyncio.sleep(0)
        assert throttle.in_flight == 8 and throttle.pending == 22
        throttle.slow_down(None)
        while throttle.in_flight > 4:
            await asyncio.sleep(0)
        most[0] = 0
        for _ in range(12):
            await asyncio.sleep(0)
        assert 0 < most[0] <= 4
        throttle.limit = 8.0
        await asyncio.gather(*tasks)
        assert most[0] == 8 and order == list(range(30))

    asyncio.run(main())


def test_cancelled_waiters_neither_keep_nor_lose_a_place() -> None:
    async def main(seed: int) -> None:
        rng, throttle, order, most = random.Random(seed), Throttle(2), list[int](), [0]
        tasks = [asyncio.create_task(_use(throttle, order, i, most)) for i in range(30)]
        for _ in range(40):
            await asyncio.sleep(0)
            rng.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most[0] <= 2 and throttle.in_flight == 0
        await asyncio.wait_for(_use(throttle, order, 99, most), 1)
        assert order[-1] == 99

    for seed in range(20):
        asyncio.run(main(seed))


def test_an_error_inside_gives_the_place_back() -> None:
    async def main() -> None:
        throttle = Throttle(1)
        with pytest.raises(ValueError):
            async with throttle:
                raise ValueError
        assert throttle.in_flight == 0

    asyncio.run(main())
