"""Whether a provider is down, as far as its silence and what was given up tell. Source: ours."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from dspy.utils.exceptions import LMRateLimitError, LMServerError, LMTimeoutError

from cuesmith.teleprompters.runtime.ledger import Role
from cuesmith.teleprompters.runtime.outages import is_unreadable

PATIENCE, SLOWNESS, FIRST_PATIENCE = 30.0, 20.0, 300.0
"""Silence that means an outage: so many seconds, and so many times the slowest answer; before any answer. Ours."""

TICK_S = 0.25
"""How often it is looked whether a provider is silent. Ours."""

FIRST_IN_ROLE = 4.0
"""How many times as long a model may be silent before its first answer in a role: as the target it may say a word,
and as the optimizer write for a minute. Ours."""

FEW = 8
"""Calls given up in a row, none answered in between, that mean an outage: so many, or up to twice so many with as many
in flight. Ours."""


class Watch:
    """What is known of each model's provider. Each is counted by itself: a judge may be down while the target is well.

    Args:
        max_retries: Further attempts after the first.
    """

    def __init__(self, max_retries: int) -> None:
        self._max_retries = max_retries
        self._failures_in_a_row: Counter[str] = Counter()
        self._answered: set[str] = set()
        self._slowest: dict[tuple[str, Role], float] = {}
        self._last_sign: dict[str, float] = {}

    def heard(self, model: str, role: Role, seconds: float) -> None:
        """Note an answer, and how long it took."""
        self._answered.add(model)
        self._failures_in_a_row.pop(model, None)
        self._failures_in_a_row.pop("", None)
        self._last_sign[model] = time.monotonic()
        self._slowest[model, role] = max(self._slowest.get((model, role), 0.0), seconds)

    def silence(self, model: str, role: Role, sent: Sequence[float]) -> str:
        """Return, in words, that a model has been silent for far longer than any answer took; "" if it has not.

        Args:
            model: Its name.
            role: Whose calls are under way.
            sent: When they were sent, by the monotonic clock.
        """
        slowest = max((took for (name, _), took in self._slowest.items() if name == model), default=None)
        patience = FIRST_PATIENCE if slowest is None else FIRST_IN_ROLE * max(PATIENCE, SLOWNESS * slowest)
        if (known := self._slowest.get((model, role))) is not None:
            patience = max(PATIENCE, SLOWNESS * known)
        silent = time.monotonic() - max(min(sent), self._last_sign.get(model, 0.0))
        if silent <= patience:
            return ""
        return f"{len(sent)} calls of {model} are under way and none was answered for {silent:.0f} s"

    def given_up(self, model: str, what: str, reason: str, at_once: int) -> str:
        """Note that something failed for good; return, in words, that it is one too many in a row, or "".

        Args:
            model: Whose call it was; "" if nobody knows.
            what: What was given up.
            reason: Why.
            at_once: How many may be under way.
        """
        self._failures_in_a_row[model] += 1
        failed = self._failures_in_a_row[model]
        if failed < (min(max(FEW, at_once), 2 * FEW) if model in self._answered else FEW):
            return ""
        return f"{failed} {what} in a row failed after retries; the last: {reason}"

    def retries(self, model: str, error: Exception) -> int:
        """Return how often to try again.

        Where nothing was ever reached, an address is likelier wrong than busy; where the call before was given up and
        none has been answered since, one more attempt shows whether it is over.
        """
        if self._failures_in_a_row[model] and not isinstance(error, LMRateLimitError):
            return min(1, self._max_retries)
        heard = model in self._answered or isinstance(error, LMServerError | LMRateLimitError | LMTimeoutError)
        heard &= not is_unreadable(error)
        return self._max_retries if heard else min(2, self._max_retries)
