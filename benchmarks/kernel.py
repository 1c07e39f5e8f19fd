"""What the kernel costs beside the model: milliseconds a program call, journal writes, utilisation.

    python benchmarks/kernel.py [--calls 1000] [--repeats 7] [--json FILE]

Everything is measured in one process and one run, in alternating repeats, and given as the median over the
repeats with the smallest and the largest. Overhead is against bare `dspy.Predict` in a loop with the same
instant engine. A search scores several candidates on the same examples: so does every row here, and a whole run with
a journal may take no more processor time than `dspy.Evaluate` with as many threads, called once a candidate: the
ratio of the two, repeat by repeat, decides. Utilisation is against the ideal of a 50 ms engine: calls x 50 ms / in
flight. On a machine with other work, read the milliseconds of processor time, which are given beside the wall-clock
time: other processes cannot add to them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dspy
from dspy.lm15 import Message, Response, Usage

from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate, made_from
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.journal import Journal
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.score_program import score_program

IN_FLIGHT = (1, 16, 64)
CANDIDATES = 10
"""Programs that are scored on the same examples."""
PUTS = 3200


class Engine:
    """Answers after `latency` seconds."""

    def __init__(self, latency: float) -> None:
        self.latency = latency

    def complete(self, request: object) -> Response:
        """Answer."""
        if self.latency:
            time.sleep(self.latency)
        return Response(
            id="1",
            model=request.model,  # type: ignore[attr-defined]
            message=Message.assistant("[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"),
            finish_reason="stop",
            usage=Usage(input_tokens=100, output_tokens=20, total_tokens=120),
        )

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself."""
        return self


class ScoresAll(Compiler):
    """Scores ten candidates on the selection examples: a whole run with nothing but the kernel in it."""

    scoring = 10**6

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return what `search` asks for: nothing that is not scored anyway."""
        return Plan(0, 0)

    async def search(self, run: Run) -> Candidate:
        """Return the student, which has been scored before, after nine candidates that differ from it."""
        name, origin = run.baseline.names[0], made_from("benchmark", (), run.baseline)
        told = [f"Answer the question, please: {i}." for i in range(1, CANDIDATES)]
        await run.score([run.baseline.replace(name, instructions=t, origin=origin) for t in told], run.select)
        return run.baseline


def metric(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    """Return whether the answer is right."""
    return bool(example.answer == prediction.answer)


def examples(n: int) -> list[dspy.Example]:
    """Return n distinct examples."""
    return [dspy.Example(question=f"question {i}", answer="yes").with_inputs("question") for i in range(n)]


def seconds(work: Callable[[], object]) -> float:
    """Return what one run takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare(program: dspy.Module, data: list[dspy.Example]) -> None:
    """Run dspy alone, one call after the other, with the metric."""
    for example in data:
        metric(example, program(**example.inputs()))


def times(work: Callable[[], object]) -> Callable[[], object]:
    """Return work that is done once a candidate."""
    return lambda: [work() for _ in range(CANDIDATES)]


def whole_run(program: dspy.Module, data: list[dspy.Example], in_flight: int) -> Callable[[], object]:
    """Return work that compiles with a journal: half of `data` is selected on, so twice the data is given."""

    def work() -> None:
        with tempfile.TemporaryDirectory() as run_dir:
            compiled = ScoresAll(metric, max_in_flight=in_flight).compile(
                program, trainset=data[:1], valset=[*data[1:], *more], run_dir=run_dir
            )
            assert compiled.compilation.spent.total.calls == CANDIDATES * len(data), compiled.compilation.spent

    more = [dspy.Example(question=f"more {i}", answer="yes").with_inputs("question") for i in range(len(data) + 1)]
    return work


Rows = dict[str, list[float]]


def overhead(calls: int, repeats: int) -> tuple[Rows, Rows]:
    """Return, by name, milliseconds a call of each repeat: wall clock, and processor time of this process."""
    program, data = dspy.Predict("question -> answer"), examples(calls // CANDIDATES)
    calls = CANDIDATES * len(data)
    works: dict[str, Callable[[], object]] = {"bare": times(lambda: bare(program, data))}
    for n in IN_FLIGHT:
        evaluate = dspy.Evaluate(devset=data, metric=metric, num_threads=n, display_progress=False)
        works[f"dspy.Evaluate, {n} in flight"] = times(lambda e=evaluate: e(program))  # type: ignore[misc]
        scored = lambda n=n: score_program(program, data, metric, max_in_flight=n)  # noqa: E731
        works[f"score_program, {n} in flight"] = times(scored)
        works[f"whole run with journal, {n} in flight"] = whole_run(program, data, n)
    with dspy.context(lm=dspy.LM("cuesmith-bench/instant", engine=Engine(0.0), cache=False)):
        for work in works.values():
            work()  # warm
        wall: Rows = {name: [] for name in works}
        cpu: Rows = {name: [] for name in works}
        for _ in range(repeats):
            for name, work in works.items():
                before = time.process_time()
                wall[name].append(1e3 * seconds(work) / calls)
                cpu[name].append(1e3 * (time.process_time() - before) / calls)
    return wall, cpu


def ratios(rows: Rows) -> Rows:
    """Return, by name, a whole run's time over that of `dspy.Evaluate` in the same repeat."""
    return {
        f"whole run / dspy.Evaluate, {n} in flight": [
            run / evaluate
            for run, evaluate in zip(
                rows[f"whole run with journal, {n} in flight"], rows[f"dspy.Evaluate, {n} in flight"], strict=True
            )
        ]
        for n in IN_FLIGHT
    }


def journal_rate(repeats: int) -> Rows:
    """Return, by name, puts a second of a body of half a kilobyte, from one thread and from many at once."""

    def work(threads: int) -> None:
        def put(number: int) -> None:
            for i in range(PUTS // threads):
                journal.put("calls", f"{number}-{i}", {"outputs": ["x" * 400], "usage": {"calls": 1, "usd": 0.1}})

        with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(threads) as pool:
            journal = Journal(Path(directory), {"a": "b"})
            list(pool.map(put, range(threads)))
            journal.close()

    return {
        f"puts a second, {n} in flight": [PUTS / seconds(lambda n=n: work(n)) for _ in range(repeats)]  # type: ignore[misc]
        for n in IN_FLIGHT
    }


def utilisation(repeats: int) -> dict[str, list[float]]:
    """Return, by name, the share of the ideal throughput reached with a 50 ms engine."""
    program, rows = dspy.Predict("question -> answer"), {}
    with dspy.context(lm=dspy.LM("cuesmith-bench/slow", engine=Engine(0.05), cache=False)):
        for n in (16, 64):
            data = examples(16 * n)
            ideal = len(data) * 0.05 / n
            evaluate = dspy.Evaluate(devset=data, metric=metric, num_threads=n, display_progress=False)
            works: dict[str, Callable[[], object]] = {
                f"score_program, {n} in flight": lambda n=n, d=data: score_program(program, d, metric, max_in_flight=n),  # type: ignore[misc]
                f"dspy.Evaluate, {n} threads": lambda e=evaluate: e(program),  # type: ignore[misc]
            }
            found: dict[str, list[float]] = {name: [] for name in works}
            for _ in range(repeats):
                for name, work in works.items():
                    found[name].append(ideal / seconds(work))
            rows.update(found)
    return rows


def show(title: str, rows: dict[str, list[float]], unit: str) -> None:
    """Print medians with their range."""
    print(f"\n{title}")
    for name, row in rows.items():
        print(f"  {name:42} {statistics.median(row):9.3f} {unit}   ({min(row):.3f} to {max(row):.3f})")


def main() -> int:
    """Measure, print, and return whether the target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.WARNING)
    cost, cpu = overhead(options.calls, options.repeats)
    rate = journal_rate(options.repeats)
    used = utilisation(max(1, options.repeats // 2))
    show("Milliseconds a program call, wall clock", cost, "ms")
    show("The same in processor time", cpu, "ms")
    show("Processor time of a whole run with a journal, as a multiple of what dspy.Evaluate takes", ratios(cpu), "")
    show("Journal", rate, "/s")
    show("Share of the ideal throughput, 50 ms engine", used, "")
    holds = all(statistics.median(row) <= 1.0 for row in ratios(cpu).values())
    verdict = "holds" if holds else "does not hold"
    print(f"\na whole run with a journal takes no more than dspy.Evaluate: {verdict}; load {os.getloadavg()}")
    if options.json:
        options.json.write_text(json.dumps({"wall_ms": cost, "cpu_ms": cpu, "journal": rate, "utilisation": used}))
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
