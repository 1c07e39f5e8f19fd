"""A progress display on a terminal, read off the kernel's events. It is silent anywhere else.

Source: ours.
"""

from __future__ import annotations

import math
import threading
import time
from types import TracebackType

from rich import progress as bars
from rich.console import Console
from rich.text import Text

from cuesmith.teleprompters.runtime.events import (
    EffectDone,
    Event,
    Noted,
    Progressed,
    Retried,
    RunFinished,
    RunStarted,
    SpentChanged,
    StepDone,
    Stopped,
)
from cuesmith.teleprompters.runtime.formatting import describe_estimate, usd, visible
from cuesmith.teleprompters.runtime.ledger import Spent, stopped

_WIDE = 110
"""Columns of a terminal from which on there is room for a bar beside the figures."""

_DRAWING = threading.Lock()
"""Held by the one display that draws: two at once would overwrite each other's lines."""


class Progress:
    """Shows candidates, the best score with its interval, calls, dollars, the time left, and what the run notes.

    A compiler on a terminal shows one by itself. To keep one for several compiles, give it as one of the `callbacks`,
    inside a `with` block:

        with Progress() as progress:
            ABO(metric=metric, callbacks=(progress,)).compile(program, trainset=train)

    Args:
        console: Where to draw; standard error by default. Nothing is drawn unless it is a terminal, or while
            another display draws.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars: bars.Progress | None = None
        self._bar: bars.TaskID | None = None
        self._candidates: set[str] = set()
        self._done = self._expected = 0
        self._best, self._notice, self._factor = "-", "", 100.0
        self._spent = Spent()
        self._started = 0.0

    def __enter__(self) -> Progress:
        """Begin to draw, on a terminal."""
        drawable = self._console.is_terminal and not self._console.is_dumb_terminal
        if drawable and _DRAWING.acquire(blocking=False):
            columns: list[bars.ProgressColumn] = [
                bars.TextColumn("{task.description}", markup=False),
                bars.TextColumn("{task.fields[status]}", markup=False),
            ]
            if self._console.width >= _WIDE:
                columns.insert(1, bars.BarColumn(bar_width=20))
            self._bars = bars.Progress(
                *columns,
                console=self._console,
                refresh_per_second=4,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the display away again."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._bar = None
            _DRAWING.release()

    def stage(self, description: str) -> None:
        """Name what is going on between two compiles, such as a held-out evaluation."""
        if self._bars is not None:
            self._show_bar(description, total=None)

    def __call__(self, event: Event) -> None:
        """Take one event of a compile."""
        if self._bars is None:
            return
        match event:
            case RunStarted():
                self._begin(event)
            case EffectDone():
                self._done, self._notice = self._done + 1, ""
                if event.candidate_id is not None:
                    self._candidates.add(event.candidate_id)
                if event.value is not None and not 0.0 <= event.value <= 1.0:
                    self._factor = 1.0
            case SpentChanged():
                self._spent = event.spent
            case StepDone():
                self._best = describe_estimate(event.record.validation, self._factor)
            case Progressed():
                self._notice = str(event)
            case Retried():
                self._notice = f"provider failed, trying again in {event.delay_s:.0f} s"
            case Stopped():
                self._say(stopped(event.by) + (f": {event.reason}" if event.reason else ""))
            case Noted():
                self._say(event.note)
            case RunFinished():
                self._done = self._expected
            case _:
                return
        self._refresh()

    def _begin(self, event: RunStarted) -> None:
        self._candidates.clear()
        self._factor = 100.0  # of a score, until one is seen that is not from 0 to 1
        self._done, self._best, self._spent, self._started = 0, "-", Spent(), time.monotonic()
        self._expected = event.forecast.optimizer_calls + event.forecast.program_runs
        self._show_bar(event.compiler, total=self._expected)

    def _show_bar(self, description: str, total: int | None) -> None:
        assert self._bars is not None
        if self._bar is not None:
            self._bars.remove_task(self._bar)
        self._bar = self._bars.add_task(description, total=total, status="")

    def _refresh(self) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, completed=min(self._done, self._expected), status=self.status())

    def status(self) -> str:
        """The line beside the bar."""
        total = self._spent.total
        parts = [
            f"{len(self._candidates)} candidates",
            f"best {self._best}",
            f"{total.calls:,} calls",
            self._time_left(),
            usd(total.usd),
            self._notice,
        ]
        return " · ".join(part for part in parts if part)

    def _time_left(self) -> str:
        """Seconds left at the pace so far. What is expected is an upper bound, so this is one too."""
        if not 0 < self._done < self._expected:
            return ""
        elapsed = time.monotonic() - self._started
        return f"≤ {math.ceil(elapsed / self._done * (self._expected - self._done))} s left"

    def _say(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(Text(visible(text)), highlight=False)
