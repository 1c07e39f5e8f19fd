"""Programs past one process: threads, a process pool, Dask and Ray on this machine, with and without a killed worker.

    python benchmarks/executors.py [--examples 5000] [--workers 2] [--executors processes dask ray] [--repeats 3]

The model answers at once and writes a line to a file for each call that it is paid for, whichever process makes it, so
that calls that are made twice are seen. Each row scores the same program on the same examples, in alternating repeats:
wall-clock milliseconds an example, and how many more than with threads in this process. Then a worker is killed
when half of the calls have been made (Dask and Ray go on with what is left; a process pool breaks, and is left out).
`--work` is what the program computes itself, in milliseconds: threads share one interpreter for it, processes do not.

    python benchmarks/executors.py --paper [--latency 0.05] [--door 0.5] [--cpu 1.5]

prints the cost model of docs/scaling.md instead: what n program runs take on so many machines. The door (milliseconds
of the run's own process for each call) and the processor time of a run (milliseconds in a worker) are what the rows
above show on this machine; `--check` measures a few of its cells here, beside what it says of them.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dspy
from dspy.lm15 import Message, Response, Usage

from cuesmith import Budget, RayExecutor
from cuesmith.programs.evaluation import evaluate
from cuesmith.teleprompters import IterativeAPE
from cuesmith.teleprompters.runtime.outcomes import Scores

IN_FLIGHT = 32
INPUT_TOKENS, OUTPUT_TOKENS = 600, 150
"""Of a call, in the cost model."""
USD_IN, USD_OUT = 0.40, 1.60
"""US dollars a million tokens, in the cost model: a small hosted model's list price."""


class Paid:
    """A model that answers at once and notes each call in a file.

    Args:
        log: The file.
        latency: Seconds that an answer takes.
    """

    def __init__(self, log: Path, latency: float = 0.0) -> None:
        self._log, self._latency = log, latency

    def complete(self, request: Any) -> Response:
        """Answer with the number in the question, right four times in five."""
        time.sleep(self._latency)
        question = str(request.messages[-1].text).partition("number ")[2].split()[0]
        with self._log.open("a") as file:
            file.write(f"{question} {os.getpid()}\n")
        answer = question if int(question) % 5 else "none"
        return Response(
            id="1",
            model=request.model,
            message=Message.assistant(f"[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]"),
            finish_reason="stop",
            usage=Usage(input_tokens=100, output_tokens=20, total_tokens=120),
        )


class Working(dspy.Module):  # type: ignore[misc]
    """Computes a while, and asks.

    Args:
        milliseconds: How long.
    """

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.milliseconds = milliseconds
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Answer."""
        end = time.thread_time() + self.milliseconds / 1000
        while time.thread_time() < end:
            pass
        return self.ask(question=question)


def exact(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """1 for the right answer."""
    return float(example.answer == prediction.answer)


@contextmanager
def cluster(kind: str, workers: int) -> Iterator[Any]:
    """Yield an executor of so many processes on this machine."""
    if kind == "processes":
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
            yield pool
    elif kind == "dask":
        distributed: Any = importlib.import_module("distributed")
        with (
            distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as local,
            distributed.Client(local) as client,
        ):
            yield client
    else:
        ray: Any = importlib.import_module("ray")
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield RayExecutor()
        finally:
            ray.shutdown()


def kill_at(calls: int, log: Path) -> None:
    """Kill the process that has made the last call, once so many have been made."""
    while True:
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) >= calls and int(lines[-1].split()[1]) != os.getpid():
            os.kill(int(lines[-1].split()[1]), signal.SIGKILL)
            return
        time.sleep(0.01)


def scored(
    where: Any, examples: list[dspy.Example], work: float, kill: bool = False, latency: float = 0.0,
    in_flight: int = IN_FLIGHT,
) -> tuple[Scores, float, float, Counter[str]]:  # fmt: skip
    """Score once.

    Returns:
        The scores, the seconds, those of this process's processors, and how often each example was paid for.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "calls"
        lm = dspy.LM("cuesmith-benchmark/paid", engine=Paid(log, latency), cache=False)
        if kill:
            threading.Thread(target=kill_at, args=(len(examples) // 2, log), daemon=True).start()
        began, used = time.perf_counter(), time.process_time()
        found = evaluate(Working(work), examples, exact, lm=lm, max_in_flight=in_flight, executor=where)
        seconds, used = time.perf_counter() - began, time.process_time() - used
        return found, seconds, used, Counter(line.split()[0] for line in log.read_text().splitlines())


def capped(where: Any, examples: list[dspy.Example], cap: int) -> tuple[int, int]:
    """Compile within a cap; returns the calls that were counted, and those that were made."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "calls"
        lm = dspy.LM("cuesmith-benchmark/paid", engine=Paid(log), cache=False)
        optimizer = dspy.LM("cuesmith-benchmark/optimizer", engine=Optimizer(log), cache=False)
        compiler = IterativeAPE(exact, optimizer_lm=optimizer, budget=Budget(calls=cap), executor=where, progress=False,
                                max_in_flight=IN_FLIGHT)  # fmt: skip
        student = dspy.Predict("question -> answer")
        with dspy.context(lm=lm):
            compiled = compiler.compile(student, trainset=examples[:50], valset=examples[50:150])
        return compiled.compilation.spent.total.calls, len(log.read_text().splitlines())


class Optimizer(Paid):
    """Proposes an instruction, another one each time."""

    def complete(self, request: Any) -> Response:
        """Answer."""
        with self._log.open("a") as file:
            file.write(f"optimizer {os.getpid()}\n")
        text = f"[[ ## analysis ## ]]\nNone.\n\n[[ ## instruction ## ]]\nGive the number ({time.time_ns()}).\n"
        message = Message.assistant(f"{text}\n[[ ## completed ## ]]")
        return Response(id="1", model=request.model, message=message, finish_reason="stop",
                        usage=Usage(input_tokens=100, output_tokens=20, total_tokens=120))  # fmt: skip


def predicted(n: int, machines: int, options: argparse.Namespace, *, slots: int = 64, cores: int = 8) -> float:
    """Return the seconds that n program runs take: whatever is slowest of models, workers and the run's own door.

    Args:
        n: Program runs of one call each.
        machines: How many.
        options: `latency` in seconds, `door` and `cpu` in milliseconds.
        slots: Runs at once on each machine.
        cores: Of each machine.
    """
    waves = math.ceil(n / (machines * slots))
    latency, cpu, door = (float(value) for value in (options.latency, options.cpu / 1000, options.door / 1000))
    return max(waves * latency, n * cpu / (machines * cores), n * door)


def paper(options: argparse.Namespace) -> None:
    """Print the cost model."""
    print("| program runs | tokens | USD | " + " | ".join(f"{m} machines" for m in (1, 4, 16, 64)) + " |")
    print("|---|---|---|---|---|---|---|")
    for n in (10, 1_000, 100_000):
        times = [predicted(n, machines, options) for machines in (1, 4, 16, 64)]
        tokens = n * (INPUT_TOKENS + OUTPUT_TOKENS)
        usd = n * (INPUT_TOKENS * USD_IN + OUTPUT_TOKENS * USD_OUT) / 1e6
        print(f"| {n:,} | {tokens:,} | {usd:,.2f} | " + " | ".join(_clock(seconds) for seconds in times) + " |")


def check(options: argparse.Namespace) -> None:
    """Measure cells of the cost model on this machine."""
    with cluster("processes", options.workers) as where:
        examples = [dspy.Example(question=f"number {i}", answer=str(i)).with_inputs("question") for i in range(2000)]
        scored(where, examples[:200], 0.0)
        for n, in_flight in ((200, 16), (2000, 16), (2000, 64)):
            found = scored(where, examples[:n], 0.0, latency=options.latency, in_flight=in_flight)[1]
            says = predicted(n, 1, options, slots=in_flight, cores=options.workers)
            print(f"{n} runs, {in_flight} at once in {options.workers} processes: {found:.1f} s, on paper {says:.1f}")


def _clock(seconds: float) -> str:
    unit, size = next(((u, s) for u, s in (("h", 3600), ("min", 60)) if seconds >= s), ("s", 1))
    return f"{seconds / size:.1f} {unit}"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--executors", nargs="+", default=["processes", "dask", "ray"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=float, nargs="+", default=[0.0, 10.0])
    parser.add_argument("--paper", action="store_true", help="print the cost model")
    parser.add_argument("--check", action="store_true", help="measure cells of the cost model here")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds that a call takes")
    parser.add_argument("--door", type=float, default=0.5, help="milliseconds of the run's process for a call")
    parser.add_argument("--cpu", type=float, default=1.5, help="milliseconds of a worker's processor for a run")
    options = parser.parse_args()
    if options.paper or options.check:
        (paper if options.paper else check)(options)
        return 0
    logging.getLogger("distributed").setLevel(logging.ERROR)
    examples = [dspy.Example(question=f"number {i}", answer=str(i)).with_inputs("question")
                for i in range(options.examples)]  # fmt: skip
    failed = False
    for kind in options.executors:
        with cluster(kind, options.workers) as where:
            scored(where, examples[:200], 0.0)  # imports, on both sides
            for work in options.work:
                rows = [(scored(None, examples, work), scored(where, examples, work))
                        for _ in range(options.repeats)]  # fmt: skip
                near, far = ([1000 * row[i][1] / len(examples) for row in rows] for i in (0, 1))
                door = [1000 * row[1][2] / len(examples) for row in rows]
                more = [f - n for f, n in zip(far, near, strict=True)]
                same = all(n[0].outcomes == f[0].outcomes for n, f in rows)
                failed |= not same
                print(f"{kind}, {work:g} ms of its own work: {_range(far)} ms an example, threads {_range(near)}, "
                      f"{_range(more)} more; {_range(door)} computed in this process; the same outcomes: {same}",
                      flush=True)  # fmt: skip
            cap = 40
            counted, made = capped(where, examples, cap)
            failed |= not counted == made <= cap
            print(f"{kind}, a cap of {cap} calls: {counted} counted, {made} made", flush=True)
            if kind in ("dask", "ray"):
                whole, killed = scored(None, examples, 0.0)[0], scored(where, examples, 0.0, True)
                twice = sum(n - 1 for n in killed[3].values())
                same = killed[0].values == whole.values
                failed |= not same
                print(f"{kind}, a worker killed half way: the same scores: {same}; {twice} calls made twice, of "
                      f"{IN_FLIGHT // options.workers} that it had under way at most", flush=True)  # fmt: skip
    return int(failed)


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    sys.exit(main())
