"""How full the slots are: program runs and optimizer calls under way, over what `max_in_flight` allows.

    python benchmarks/utilisation.py [--in-flight 16 64 256] [--latency constant tail] [--compilers abo:frontier gepa]
    python benchmarks/utilisation.py --real --median 0.28 --hedge 4 --in-flight 64 --latency tail

The models take time and no processor: 50 ms a call, or in "tail" a log-normal time of that median with 5 s for one call
in a hundred. The clock is virtual: it moves only when every thread of the process sleeps, so that processors count as
infinitely fast, load on the machine changes nothing, and what is left is the order of the calls. `--real` sleeps.

DSPy's optimizers run natively beside ours, at the sizes that their authors recommend for small budgets: compare shares,
and seconds a call; the calls that they make differ.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import logging
import math
import os
import random
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dspy
from dspy.lm15 import Message, Request, Response, Usage
from nano.dspy_answers import teach

from cuesmith.modules.simulated_optimizer import SimulatedOptimizerEngine
from cuesmith.programs.tasks import generate
from cuesmith.teleprompters.registry import compile

MEDIAN, SHARE, TAIL = 0.05, 0.01, 100.0
"""Seconds of a call, which share of them is late, and how many times as long as the others these take."""
OURS = ("iterative-ape", "apo", "apo-sum", "prompt-agent", "opro", "abo", "portfolio", "reflective-mutation:frontier",
        "apo:frontier", "prompt-agent:frontier", "opro:frontier", "abo:frontier")  # fmt: skip
PEERS = ("mipro", "gepa", "simba", "bootstrap")


class Clock:
    """Time that passes while calls are under way, virtual or real; counts how many are."""

    def __init__(self, *, real: bool) -> None:
        self.real, self.now, self.busy = real, 0.0, 0.0
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int]] = []
        self._numbers = itertools.count()
        self.calls = 0

    def wait(self, seconds: float) -> None:
        """Let a call take its time."""
        with self._changed:
            self.calls += 1
            self.busy += seconds
            if not self.real:
                entry = (self.now + seconds, next(self._numbers))
                heapq.heappush(self._waiting, entry)
                while entry[0] > self.now:
                    self._changed.wait()
                return
        time.sleep(seconds)

    @contextmanager
    def ticking(self) -> Iterator[Clock]:
        """Move on whenever all threads sleep."""
        start, over = time.perf_counter(), threading.Event()
        if self.real:
            yield self
            self.now = time.perf_counter() - start
            return
        ticker = threading.Thread(target=self._tick, args=(over,), daemon=True)
        ticker.start()
        yield self
        over.set()
        ticker.join()

    def _tick(self, over: threading.Event) -> None:
        own, quiet = str(threading.get_native_id()), 0
        while not over.is_set():
            time.sleep(0.0005)
            quiet = quiet + 1 if _all_sleep(own) else 0
            if quiet < 3:
                continue
            with self._changed:
                if self._waiting:
                    self.now = max(self.now, self._waiting[0][0])
                    while self._waiting and self._waiting[0][0] <= self.now:
                        heapq.heappop(self._waiting)
                    self._changed.notify_all()
            quiet = 0


def _all_sleep(own: str) -> bool:
    """Return whether no thread of this process but one runs, or waits for a processor."""
    for task in os.listdir("/proc/self/task"):
        if task != own:
            try:
                state = Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "S":
                return False
    return True


@dataclass(eq=False)
class Engine:
    """A model that takes its time.

    Attributes:
        clock: Where its calls wait.
        reply: Its answer to a request.
        tail: Whether one call in a hundred takes long.
        median: Seconds of a call.
        times: How often each request came.
    """

    clock: Clock
    reply: Callable[[Request], Response]
    tail: bool
    median: float = MEDIAN
    times: Counter[str] = field(default_factory=Counter)

    def __deepcopy__(self, memo: object) -> Engine:
        return self

    def complete(self, request: Request) -> Response:
        """Answer after a while; how long, is the request's, and another time for one that is sent once more."""
        seconds = 1.0
        if self.tail:
            said = str(request.system) + str([message.text for message in request.messages])
            self.times[said] += 1
            rng = random.Random(zlib.crc32(f"{self.times[said]} {said}".encode()))
            seconds = TAIL if rng.random() < SHARE else math.exp(0.5 * rng.gauss(0.0, 1.0))
        self.clock.wait(self.median * seconds)
        return self.reply(request)


def answer(request: Request) -> Response:
    """Solve more questions, the more precise the instructions are: a rule, so that searches have something to find."""
    system, text = str(request.system), str(request.messages[-1].text)
    skill = 20 + 10 * min(6, len(set(system.lower().split()) & TELLING))
    luck = zlib.crc32((system + text).encode()) % 100  # by prompt and question: prompts solve different ones
    given = RIGHT.get(_question(text), "0") if luck < skill else "no"
    body = f"[[ ## reasoning ## ]]\nStep 1: so\n\n[[ ## answer ## ]]\n{given}"
    usage = Usage(input_tokens=1, output_tokens=1, total_tokens=2)
    message = Message.assistant(f"{body}\n\n[[ ## completed ## ]]")
    return Response(id="1", model=request.model, message=message, finish_reason="stop", usage=usage)


RIGHT: dict[str, str] = {}
TELLING = {"count", "items", "number", "quantities", "step", "write", "total"}


def _question(text: str) -> str:
    return text.partition("[[ ## question ## ]]\n")[2].partition("\n\n")[0].strip()


@dataclass(frozen=True)
class Filled:
    """What a compile made of its slots: calls, their time together, and how long it took."""

    name: str
    slots: int
    tail: bool
    calls: int
    busy: float
    wall: float


def measure(name: str, slots: int, tail: bool, real: bool, hedge: float | None, median: float) -> Filled:
    """Run one compile."""
    logging.disable(logging.WARNING)
    teach()
    task = generate("objects", seed=0)
    train, valid = list(task.train), list(task.validation)[:60]
    RIGHT.update({example.question: str(example.answer) for example in (*task.train, *task.validation)})
    clock, simulated = Clock(real=real), SimulatedOptimizerEngine()
    target = dspy.LM("bench/target", engine=Engine(clock, answer, tail, median), cache=False)
    optimizer = dspy.LM("bench/optimizer", engine=Engine(clock, simulated.complete, tail, median), cache=False)
    student = dspy.ChainOfThought(task.signature)
    with dspy.context(lm=target), clock.ticking():
        if name in PEERS:
            _native(name, task.metric, optimizer, slots, student, train, valid)
        else:
            compiler, _, form = name.partition(":")
            options: dict[str, Any] = {"search": form} if form else {}
            compile(student, compiler, metric=task.metric, trainset=train, valset=valid, optimizer_lm=optimizer,
                    max_in_flight=slots, progress=False, hedge=hedge, **options)  # fmt: skip
    return Filled(name, slots, tail, clock.calls, clock.busy, clock.now)


def _native(
    name: str, metric: Any, lm: dspy.LM, slots: int, student: dspy.Module, train: list[Any], valid: list[Any]
) -> None:
    def judged(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        score = float(metric(gold, pred))
        return dspy.Prediction(score=score, feedback=f"Expected {gold.answer}.") if pred_name else score

    made: Any = {
        "mipro": lambda: dspy.MIPROv2(metric, auto="light", prompt_model=lm, num_threads=slots),
        "gepa": lambda: dspy.GEPA(judged, max_metric_calls=1000, reflection_lm=lm, num_threads=slots),
        "simba": lambda: dspy.SIMBA(metric=metric, max_steps=4, prompt_model=lm, num_threads=slots),
        "bootstrap": lambda: dspy.BootstrapFewShotWithRandomSearch(
            metric, num_candidate_programs=16, num_threads=slots
        ),
    }[name]()
    more: dict[str, Any] = {} if name == "simba" else {"valset": valid}
    made.compile(student, trainset=train, **more)


def table(done: list[Filled]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    columns = sorted({(one.tail, one.slots) for one in done})
    heads = [f"{'tail' if tail else 'constant'}, {slots}" for tail, slots in columns]
    yield "| slots full, % (seconds; ms a call) | calls | " + " | ".join(heads) + " |"
    yield "|---" * (len(heads) + 2) + "|"
    for name in dict.fromkeys(one.name for one in done):
        own = {(one.tail, one.slots): one for one in done if one.name == name}
        calls = {one.calls for one in own.values()}
        cells = [f"{100 * o.busy / (o.wall * o.slots):.0f} ({o.wall:.2f}; {1000 * o.wall / o.calls:.1f})"
                 if (o := own.get(column)) else "" for column in columns]  # fmt: skip
        yield f"| {name} | {min(calls)}{f' to {max(calls)}' if len(calls) > 1 else ''} | " + " | ".join(cells) + " |"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--in-flight", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--latency", nargs="+", choices=("constant", "tail"), default=["constant", "tail"])
    parser.add_argument("--compilers", nargs="+", default=[*OURS, *PEERS])
    parser.add_argument("--real", action="store_true", help="sleep instead of moving a virtual clock")
    parser.add_argument("--hedge", type=float, help="given to ours, with --real: hedging goes by real time")
    parser.add_argument("--median", type=float, default=MEDIAN, help="seconds of a call")
    options = parser.parse_args()
    jobs = [(name, slots, latency == "tail", options.real, options.hedge, options.median) for name in options.compilers
            for latency in options.latency for slots in options.in_flight]  # fmt: skip
    done = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for one in pool.map(measure, *zip(*jobs, strict=True)):
            done.append(one)
            print(f"{one.name} {one.slots} {'tail' if one.tail else 'constant'}: {one.calls} calls", file=sys.stderr)
    print("\n".join(table(done)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
