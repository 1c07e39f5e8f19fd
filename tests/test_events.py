"""The stream of events: in order, one at a time, and a raising callback harms no one."""

import logging
import threading

import pytest

from cuesmith.teleprompters.runtime.events import Event, Malformed, Retried, SpentChanged, Stopped, Stream
from cuesmith.teleprompters.runtime.ledger import Spent


def test_every_callback_gets_every_event_in_order() -> None:
    events: list[Event] = [SpentChanged(Spent()), Retried("x", 0.5, 1), Malformed("S", "y"), Stopped("calls")]
    first: list[Event] = []
    second: list[Event] = []
    stream = Stream([first.append, second.append])
    for event in events:
        stream.emit(event)
    assert first == second == events
    Stream([]).emit(events[0])


def test_a_raising_callback_is_reported_once_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []
    calls = []

    def bad(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("broken display")

    stream = Stream([bad, seen.append])
    with caplog.at_level(logging.WARNING, "cuesmith"):
        for _ in range(3):
            stream.emit(Stopped("usd"))
    assert len(calls) == 1 and len(seen) == 3
    assert len(caplog.records) == 1 and "broken display" in caplog.text


def test_callbacks_never_run_at_once_and_a_broken_one_is_dropped_once() -> None:
    inside, most, calls = 0, 0, 0
    barrier = threading.Barrier(8)

    def slow(event: Event) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.002)
        inside -= 1

    def bad(event: Event) -> None:
        nonlocal calls
        calls += 1
        raise ValueError

    stream = Stream([slow, bad])
    failed: list[BaseException] = []

    def emit() -> None:
        barrier.wait()
        try:
            stream.emit(Retried("x", 0.1, 1))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=emit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, calls, failed) == (1, 1, [])


def test_an_interrupt_passes() -> None:
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stream([interrupted]).emit(Stopped("x"))
