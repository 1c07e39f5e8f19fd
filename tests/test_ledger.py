"""The ledger: no cap is passed, whatever the threads do."""

import random
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuesmith.teleprompters.runtime.ledger import Budget, Ledger, Role, RunStopped, Spent, Ticket, Usage


def _paid(tokens: int = 10, usd: float | None = 0.0, calls: int = 1) -> Usage:
    return Usage(calls=calls, input_tokens=tokens // 2, output_tokens=tokens - tokens // 2, usd=usd)


def _ticket(ledger: Ledger, role: Role = "target", calls: int = 1, tokens: int = 0, may_hit: bool = False) -> Ticket:
    ticket = ledger.admit(role, calls, tokens, may_hit)
    assert isinstance(ticket, Ticket)
    return ticket


@pytest.mark.parametrize("name", ["usd", "calls", "tokens", "seconds"])
@pytest.mark.parametrize("cap", [0, -1, float("nan"), float("inf"), "5", True])
def test_bad_caps(name: str, cap: object) -> None:
    with pytest.raises(ValueError, match=rf"Budget\({name}={cap!r}\): a cap is a positive"):
        Budget(**{name: cap})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["calls", "tokens"])
def test_counts_are_whole(name: str) -> None:
    with pytest.raises(ValueError, match="positive whole number"):
        Budget(**{name: 10.0})  # type: ignore[arg-type]
    assert Budget(usd=1, seconds=2) == Budget(usd=1.0, seconds=2.0)


def test_usage_adds_up_and_an_unknown_price_stays_unknown() -> None:
    total = Spent({"target": Usage(2, 10, 5, 0.5, 1), "judge": Usage(1, 1, 1, None, 0, 1)}).total
    assert total == Usage(3, 11, 6, None, 1, 1) and total.tokens == 17
    assert Spent().total == Usage()


def _hammer(ledger: Ledger, cost: Callable[[random.Random], tuple[Usage, bool]], budget_of: Callable[[], bool]) -> int:
    """Send calls from 64 threads until all are refused; returns how many were sent. Checks the cap all the time."""
    sent, lock, broken = [0], threading.Lock(), []

    def work(number: int) -> None:
        rng, role = random.Random(number), ("target", "optimizer")[number % 2]
        while True:
            answer = ledger.admit(role, 1, 200, rng.random() < 0.5)  # type: ignore[arg-type]
            if answer is None:
                time.sleep(0.0005)
            elif not isinstance(answer, Ticket):
                return
            else:
                usage, answered = cost(rng)
                if usage.calls:
                    with lock:
                        sent[0] += 1
                if rng.random() < 0.3:
                    time.sleep(0.0002)
                ledger.settle(answer, usage, answered=answered)
                if not budget_of():
                    broken.append(ledger.spent())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads) and not broken
    return sent[0]


def test_calls_are_exact_under_64_threads() -> None:
    ledger = Ledger(Budget(calls=700))

    def cost(rng: random.Random) -> tuple[Usage, bool]:
        hit = rng.random() < 0.3
        return (Usage(cache_hits=1), True) if hit else (_paid(rng.randrange(50)), rng.random() < 0.9)

    sent = _hammer(ledger, cost, lambda: ledger.spent().total.calls <= 700)
    total = ledger.spent().total
    assert total.calls == sent == 700 and total.cache_hits > 0


def test_tokens_and_dollars_are_held_under_64_threads() -> None:
    """A call costs at most a quarter more than the first of its role: what the ledger reserves for."""
    for budget in (Budget(tokens=30_000), Budget(usd=30.0), Budget(tokens=30_000, usd=25.0, calls=400)):
        ledger = Ledger(budget)

        def cost(rng: random.Random) -> tuple[Usage, bool]:
            if rng.random() < 0.1:
                return Usage(calls=1, usd=0.0), False
            return Usage(1, rng.randrange(80, 100), 1, rng.uniform(0.08, 0.1)), True

        def held(ledger: Ledger = ledger, budget: Budget = budget) -> bool:
            total = ledger.spent().total
            return total.tokens <= (budget.tokens or 1e9) and (total.usd or 0) <= (budget.usd or 1e9)

        _hammer(ledger, cost, held)
        used = ledger.spent().total
        shares = [used.calls / (budget.calls or 10**9), used.tokens / (budget.tokens or 10**9)]
        assert max(*shares, (used.usd or 0) / (budget.usd or 1e9)) > 0.97


def test_a_failed_call_does_not_make_the_next_ones_look_free() -> None:
    ledger = Ledger(Budget(tokens=1000))
    ledger.settle(_ticket(ledger, tokens=400), Usage(calls=1), answered=False)
    assert _ticket(ledger, tokens=400).tokens == 400
    dollars = Ledger(Budget(usd=1.0))
    dollars.settle(_ticket(dollars), Usage(calls=1, usd=0.0), answered=False)
    _ticket(dollars)
    assert dollars.admit("target", 1, 0, False) is None  # still probing: no price is known


def test_under_dollars_one_call_a_role_probes_the_price() -> None:
    ledger = Ledger(Budget(usd=1.0))
    probe = _ticket(ledger)
    assert ledger.admit("target", 1, 0, False) is None
    other = _ticket(ledger, "optimizer")
    ledger.settle(probe, _paid(usd=0.4))
    assert _ticket(ledger).usd == pytest.approx(0.5)
    assert ledger.admit("target", 1, 0, False) is None  # 0.4 + 0.5 + 0.5 > 1, but what is in flight may cost less
    ledger.settle(other, Usage(cache_hits=1))
    assert isinstance(ledger.admit("optimizer", 1, 0, False), Ticket)  # a hit told no price: it probes again


def test_dollars_refuse_when_nothing_can_come_back() -> None:
    ledger = Ledger(Budget(usd=1.0))
    ledger.settle(_ticket(ledger), _paid(usd=0.6))
    assert ledger.admit("target", 1, 0, False) == "usd"


def test_hold_and_release() -> None:
    ledger = Ledger(Budget(calls=10, tokens=1000))
    ledger.hold(Budget(calls=4))
    for _ in range(6):
        ledger.settle(_ticket(ledger), Usage(calls=1))
    assert ledger.admit("target", 1, 0, False) == "calls"
    ledger.hold(Budget())
    tickets = [_ticket(ledger) for _ in range(4)]
    assert ledger.admit("target", 1, 0, False) == "calls"
    for ticket in tickets:
        ledger.settle(ticket, Usage(calls=1))
    assert ledger.spent().total.calls == 10


def test_hold_tokens_and_seconds() -> None:
    now = [0.0]
    ledger = Ledger(Budget(tokens=100, seconds=10), lambda: now[0])
    ledger.hold(Budget(tokens=40, seconds=4))
    assert ledger.admit("target", 1, 61, False) == "tokens"
    assert isinstance(ledger.admit("target", 1, 60, False), Ticket)
    now[0] = 6.0
    assert ledger.admit("target", 1, 0, False) == "seconds"
    ledger.hold(Budget())
    assert isinstance(ledger.admit("target", 1, 0, False), Ticket)
    assert ledger.seconds_left == 4.0 and ledger.seconds == 6.0
    now[0] = 11.0
    assert ledger.admit("target", 1, 0, False) == "seconds" and ledger.seconds_left == 0.0
    assert Ledger(Budget()).seconds_left is None


def test_a_call_that_may_hit_the_cache_gives_its_reservation_back() -> None:
    ledger = Ledger(Budget(calls=1))
    ticket = _ticket(ledger, may_hit=True)
    assert ledger.admit("target", 1, 0, False) is None
    ledger.settle(ticket, Usage(cache_hits=1))
    ledger.settle(_ticket(ledger), Usage(calls=1))
    assert ledger.admit("target", 1, 0, True) == "calls"
    assert ledger.spent().total == Usage(calls=1, cache_hits=1)


def test_several_calls_at_once_fit_whole_or_not_at_all() -> None:
    ledger = Ledger(Budget(calls=5))
    ledger.settle(_ticket(ledger, calls=3), Usage(calls=3))
    assert ledger.admit("target", 3, 0, False) == "calls"
    assert isinstance(ledger.admit("target", 2, 0, False), Ticket)


def test_replayed_calls_count_against_the_caps() -> None:
    ledger = Ledger(Budget(calls=3))
    ledger.replay("target", _paid(calls=2, usd=0.1))
    assert ledger.spent().by_role == {"target": Usage(2, 5, 5, 0.1, 0, 2)}
    ledger.settle(_ticket(ledger), Usage(calls=1))
    assert ledger.admit("optimizer", 1, 0, False) == "calls"


def test_roles_are_kept_apart_and_a_snapshot_does_not_move() -> None:
    ledger = Ledger(Budget())
    ledger.settle(_ticket(ledger, "judge"), _paid(usd=None))
    before = ledger.spent()
    ledger.settle(_ticket(ledger, "target"), _paid(usd=0.5))
    assert list(before.by_role) == ["judge"] and set(ledger.spent().by_role) == {"judge", "target"}
    assert ledger.spent().total.usd is None


@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.booleans()), max_size=40),
    st.integers(1, 6),
)
@settings(max_examples=50, deadline=None)
def test_any_order_of_settling_keeps_the_calls(cap: int, calls: list[tuple[int, bool, bool]], width: int) -> None:
    ledger, open_ = Ledger(Budget(calls=cap)), list[tuple[Ticket, int, bool]]()
    for n, hit, may_hit in calls:
        answer = ledger.admit("target", n, 0, may_hit)
        if isinstance(answer, Ticket):
            open_.append((answer, n, hit and may_hit))
        if len(open_) >= width or (open_ and not isinstance(answer, Ticket)):
            ticket, sent, was_hit = open_.pop(len(open_) // 2)
            ledger.settle(ticket, Usage(cache_hits=1) if was_hit else Usage(calls=sent))
        in_flight = sum(n for _, n, _ in open_)
        assert ledger.spent().total.calls + in_flight <= cap


def test_run_stopped_is_no_exception_a_program_would_swallow() -> None:
    assert not issubclass(RunStopped, Exception) and RunStopped("calls").by == "calls"
