"""Budgets and the ledger that holds them: every call of every role, counted before it is sent.

A call is *admitted* (counted as in flight, with what it may cost at worst), then *settled* with what it did
cost. What is spent and what is in flight together never pass a cap, at any concurrency. Source: ours.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Never, TypeAlias, get_args

from cuesmith.teleprompters.runtime.checks import check_known

Role: TypeAlias = Literal["target", "optimizer", "judge", "reward", "embedder", "other"]
Cap: TypeAlias = Literal["usd", "calls", "tokens", "seconds"]


@dataclass(frozen=True, init=False)
class Budget:
    """Hard caps of one compile, over all roles and the final report together. Each is given by its name.

    Attributes:
        usd: US dollars.
        calls: Calls to any language model, retried attempts included; cache hits are free.
        tokens: Input and output tokens.
        seconds: Wall-clock seconds; no call is sent after them.

    Raises:
        TypeError: If a number has no name, or there is no cap of that name.
        ValueError: If a cap is not a positive finite number, or `calls` or `tokens` is not whole.
    """

    usd: float | None = None
    calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def __init__(
        self,
        *nameless: Never,  # 60 what? Nothing is guessed where it may be dollars
        usd: float | None = None,
        calls: int | None = None,
        tokens: int | None = None,
        seconds: float | None = None,
        **unknown: Never,
    ) -> None:
        """Check and keep the caps."""
        if nameless:
            raise TypeError(
                f"Budget({', '.join(map(repr, nameless))}) does not say what it caps: name it, as in "
                "Budget(calls=200) or Budget(usd=2); there are usd=, calls=, tokens= and seconds="
            )
        check_known("Budget", unknown, get_args(Cap))
        for name, cap in {"usd": usd, "calls": calls, "tokens": tokens, "seconds": seconds}.items():
            _check_cap(name, cap)
            object.__setattr__(self, name, cap)

    @classmethod
    def of(cls, given: Budget | None) -> Budget:
        """Return the budget that was given for an option `budget`; one without a cap for None.

        Raises:
            TypeError: If it is none.
        """
        if not (given is None or isinstance(given, Budget)):
            raise TypeError(f"budget={given!r} must be a cuesmith.Budget, e.g. Budget(usd=2), or None")
        return given or cls()

    @property
    def sizes(self) -> bool:
        """Whether it matters how long a request is."""
        return self.tokens is not None or self.usd is not None

    def less(self, used: Usage, seconds: float) -> dict[Cap, float]:
        """Return what each cap that is set leaves after so much; below 0 where more was used."""
        spent = {"usd": used.usd or 0.0, "calls": used.calls, "tokens": used.tokens, "seconds": seconds}
        caps = {name: getattr(self, name) for name in get_args(Cap)}
        return {name: cap - spent[name] for name, cap in caps.items() if cap is not None}


def _check_cap(name: str, cap: object) -> None:
    whole = name in ("calls", "tokens")
    kind = int if whole else int | float
    if cap is None:
        return
    if isinstance(cap, bool) or not isinstance(cap, kind) or not math.isfinite(cap) or cap <= 0:
        want = "a positive whole number" if whole else "a positive finite number"
        raise ValueError(f"Budget({name}={cap!r}): a cap is {want}, or None for no cap")


@dataclass(frozen=True)
class Usage:
    """What one role used.

    Attributes:
        calls: Calls that left the process, failed attempts included.
        input_tokens: As the provider reports them.
        output_tokens: As the provider reports them.
        usd: US dollars; None as soon as the price of one call is unknown (unknown is not zero).
        cache_hits: Calls that dspy's cache answered, free of charge.
        replayed: How many of `calls` an earlier session of this run had made and its journal answered.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = 0.0
    cache_hits: int = 0
    replayed: int = 0

    def to_json(self) -> dict[str, int | float | None]:
        """Return what a record or another process is told: all but what was replayed, which is a session's own."""
        return {name: value for name, value in vars(self).items() if name != "replayed"}

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        """Add two usages; an unknown price makes the sum unknown."""
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Usage(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            usd,
            self.cache_hits + other.cache_hits,
            self.replayed + other.replayed,
        )


@dataclass(frozen=True)
class Spent:
    """What a run used: by role, and the wall-clock seconds of this session."""

    by_role: Mapping[str, Usage] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def total(self) -> Usage:
        """All roles together."""
        return sum(self.by_role.values(), Usage())

    def __add__(self, other: Spent) -> Spent:
        """Add what another run used."""
        roles = dict.fromkeys((*self.by_role, *other.by_role))
        both = {role: self.by_role.get(role, Usage()) + other.by_role.get(role, Usage()) for role in roles}
        return Spent(both, self.seconds + other.seconds)


_STOPPED = {
    "usd": "stopped by the cap on dollars",
    "calls": "stopped by the cap on calls",
    "tokens": "stopped by the cap on tokens",
    "seconds": "stopped by the cap on seconds",
    "auth": "stopped by a provider that refuses the key",
    "billing": "stopped by a provider that asks for credit",
    "configuration": "stopped by a setting that cannot work",
    "outage": "stopped by an outage of a provider",
    "executor": "stopped by workers that cannot work",
    "journal": "stopped by a journal that cannot be written",
    "interrupted": "interrupted",
    "stopped": "stopped",
}


def stopped(by: str) -> str:
    """Return what has become of a run, for a sentence: "stopped by the cap on calls", "interrupted".

    Args:
        by: What stopped it, as `Compilation.stopped_by` has it.
    """
    return _STOPPED.get(by, f"stopped by {by}")


class RunStopped(BaseException):
    """Unwinds a search when a cap is reached or a circuit breaks. Not an `Exception`: no program may swallow it."""

    def __init__(self, by: str) -> None:
        """Remember what stopped the run: a cap's name, or a reason such as "auth"."""
        super().__init__(by)
        self.by = by


class UnknownPrice(ValueError):
    """A budget in dollars meets a model whose calls report no price."""

    @classmethod
    def of(cls, budget: Budget, model: str) -> UnknownPrice:
        """Return what says that a budget cannot be held with a model, and what to do."""
        return cls(
            f"Budget(usd={budget.usd}) needs the price of every call, but {model} reports none: register its price "
            "with litellm.register_model and reach it by dspy.LM(..., engine='litellm'), or cap calls= or tokens="
        )


@dataclass(eq=False)
class Ticket:
    """One admitted call: what is reserved for it until it is settled."""

    role: Role
    calls: int
    tokens: int
    usd: float
    may_hit: bool


class Ledger:
    """Counts what a run uses and refuses what would pass a cap. Thread-safe.

    Args:
        budget: The caps.
        clock: Seconds, monotonic.

    Attributes:
        largest: The most that was reserved for one call, once it was known what calls use.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self._clock = clock
        self._start = clock()
        self._lock = threading.Lock()
        self._used: dict[str, Usage] = {}
        self._open: list[Ticket] = []
        self._worst: dict[str, Usage] = {}
        self._held = {"report": Budget()}
        self.largest = Usage(calls=1)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the ledger was opened."""
        return self._clock() - self._start

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the budget's cap; None without one."""
        return None if self.budget.seconds is None else max(0.0, self.budget.seconds - self.seconds)

    def spent(self) -> Spent:
        """Return what has been used until now."""
        with self._lock:
            return Spent(dict(self._used), self.seconds)

    def hold(self, held: Budget, what: str = "report") -> None:
        """Keep a part of the caps back from now on, for the report or something else; `Budget()` gives it free."""
        with self._lock:
            self._held[what] = held

    def left(self) -> dict[Cap, float]:
        """Return what each cap leaves, less what is held back."""
        with self._lock:
            rest = self.budget.less(sum(self._used.values(), Usage()), self.seconds)
            return {name: max(0.0, left - self._kept(name)) for name, left in rest.items()}

    def _kept(self, name: Cap) -> float:
        return sum(getattr(held, name) or 0 for held in self._held.values())

    def affords(self, per_run: Usage, runs: int) -> bool:
        """Whether the caps, less what is held back, last for so many more program runs like these. Seconds: any left.

        Args:
            per_run: What one run uses.
            runs: How many.
        """
        with self._lock:
            used, budget, kept = sum(self._used.values(), Usage()), self.budget, self._kept
            left = (
                (budget.calls, kept("calls"), used.calls, per_run.calls),
                (budget.tokens, kept("tokens"), used.tokens, per_run.tokens),
                (budget.usd, kept("usd"), used.usd, per_run.usd),
            )
            in_time = budget.seconds is None or self.seconds < budget.seconds - kept("seconds")
        return in_time and all(
            cap is None or (spent or 0) + runs * (each or 0) <= cap - held for cap, held, spent, each in left
        )

    def admit(self, role: Role, calls: int, tokens: int, may_hit: bool, prompt: int = 0) -> Ticket | Cap | None:
        """Ask to send calls.

        Args:
            role: Whose calls they are.
            calls: How many leave the process at most.
            tokens: What they may use at most, as far as it is known beforehand.
            may_hit: Whether dspy's cache may answer, so that the reservation may come back.
            prompt: Tokens of one call's prompt, roughly; a longer one than any before reserves more.

        Returns:
            A ticket to settle; or the cap that refuses them; or None: ask again when a call in flight is settled,
            for it may give back what it reserved.
        """
        with self._lock:
            each = self._foreseen(role, prompt)
            ticket = Ticket(role, calls, tokens, 0.0, may_hit)
            if each is not None:
                ticket = Ticket(role, calls, each.tokens * calls, (each.usd or 0.0) * calls, may_hit)
            cap = self._refused_by(ticket)
            probing = self.budget.usd is not None and each is None and any(t.role == role for t in self._open)
            if cap is None and not probing:
                self._open.append(ticket)
                return ticket
            if probing or (cap != "seconds" and self._may_come_back(cap)):
                return None
            return cap

    def foresee(self, role: Role, prompt: int) -> None:
        """Note a call that is answered without being sent: `largest` is then what it is where it was sent."""
        with self._lock:
            self._foreseen(role, prompt)

    def _foreseen(self, role: Role, prompt: int) -> Usage | None:
        """Return the most that a call may use, by those that were settled; None as long as none was."""
        worst = self._worst.get(role)
        if worst is None:
            return None
        tokens = max(1.25 * worst.tokens, prompt + 1.25 * worst.output_tokens)
        growth = tokens / worst.tokens if worst.tokens else 1.25
        each = Usage(1, math.ceil(tokens), usd=growth * (worst.usd or 0.0))
        most = self.largest
        self.largest = Usage(1, max(most.tokens, each.tokens), usd=max(most.usd or 0.0, each.usd or 0.0))
        return each

    def _refused_by(self, ticket: Ticket) -> Cap | None:
        used, budget, kept = sum(self._used.values(), Usage()), self.budget, self._kept
        if budget.seconds is not None and self.seconds >= budget.seconds - kept("seconds"):
            return "seconds"
        if budget.calls is not None and (
            used.calls + sum(t.calls for t in self._open) + ticket.calls > budget.calls - kept("calls")
        ):
            return "calls"
        if budget.tokens is not None and (
            used.tokens + sum(t.tokens for t in self._open) + ticket.tokens > budget.tokens - kept("tokens")
        ):
            return "tokens"
        if budget.usd is not None and (
            (used.usd or 0.0) + sum(t.usd for t in self._open) + ticket.usd > budget.usd - kept("usd")
        ):
            return "usd"
        return None

    def _may_come_back(self, cap: Cap | None) -> bool:
        """Whether settling what is in flight can make room: reservations are worst cases, cache hits are free."""
        return any(t.may_hit for t in self._open) or (cap in ("tokens", "usd") and bool(self._open))

    def settle(self, ticket: Ticket, usage: Usage, *, answered: bool = True) -> None:
        """Replace a reservation by what the call did use; one that failed tells nothing of what calls cost."""
        with self._lock:
            self._open.remove(ticket)
            self._used[ticket.role] = self._used.get(ticket.role, Usage()) + usage
            if usage.calls and answered:
                self._learn(ticket.role, usage)

    def _learn(self, role: Role, usage: Usage) -> None:
        """Keep what the largest calls of a role used."""
        worst, per = self._worst.get(role, Usage()), max(1, usage.calls)
        self._worst[role] = replace(
            worst,
            input_tokens=max(worst.input_tokens, math.ceil(usage.input_tokens / per)),
            output_tokens=max(worst.output_tokens, math.ceil(usage.output_tokens / per)),
            usd=max(worst.usd or 0.0, (usage.usd or 0.0) / per),
        )

    def replay(self, role: Role, usage: Usage) -> None:
        """Count a call that an earlier session of the run made and its journal has answered now."""
        with self._lock:
            self._used[role] = self._used.get(role, Usage()) + replace(usage, replayed=usage.calls)
            if usage.tokens:
                self._learn(role, usage)
                self._foreseen(role, 0)
