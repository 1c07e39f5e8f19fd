"""How many effects run at once: a bounded pool that shrinks when a provider says 429 and grows back.

Additive increase, multiplicative decrease, as TCP does. Source: ours.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType


class Throttle:
    """An async context manager that lets at most `limit` bodies run at once, first come first served.

    Entering and leaving happen on one event loop; `slow_down` may be called from any thread.

    Args:
        maximum: The limit to start from and to grow back to.
        clock: Seconds, monotonic.

    Attributes:
        limit: How many may run at once now.
        in_flight: How many do, of those that enter here.
        fits: Whether the caps surely last for so many runs side by side.
    """

    def __init__(self, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.maximum = maximum
        self.limit = float(maximum)
        self.in_flight = 0
        self.fits: Callable[[int], bool] = lambda runs: True
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._clock = clock
        self._deaf_until = 0.0

    @property
    def pending(self) -> int:
        """How many bodies wait for a place."""
        return len(self._waiting)

    def admits(self, running: int) -> bool:
        """Whether one more may begin beside so many.

        Near a cap only what surely fits runs side by side, and then one after the other: so a cap ends a run at the
        same call at any concurrency.
        """
        return running < int(self.limit) and (running == 0 or self.fits(running + 1))

    def slow_down(self, retry_after: float | None) -> None:
        """Halve the limit; further calls are ignored for `retry_after` seconds (at least 1).

        All calls in flight hit one rate limit together: that is one signal, not thirty-two.
        """
        now = self._clock()
        if now < self._deaf_until:
            return
        self._deaf_until = now + max(1.0, retry_after or 0.0)
        self.limit = max(1.0, self.limit / 2)

    def speed_up(self) -> None:
        """Grow the limit by one for every `limit` successes."""
        self.limit = min(float(self.maximum), self.limit + 1.0 / self.limit)

    async def __aenter__(self) -> None:
        """Wait for a place and take it."""
        if self.admits(self.in_flight) and not self._waiting:
            self.in_flight += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the place to the next."""
        self._leave()

    def _leave(self) -> None:
        self.in_flight -= 1
        while self._waiting and self.admits(self.in_flight):
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(None)
