"""What becomes of a compile when its provider fails, its process dies or its arguments change: measured from outside.

    python benchmarks/faults.py [--quick] [--compilers abo gepa ...] [--faults 503 ...] [--in-flight 1 8 64]
                                [--no-peers] [--slots 16] [--json FILE]
    python benchmarks/faults.py --kills 200 | --changes | --memory | --signals     [--json FILE]

The table has a row for every fault, compiler and number of calls in flight. A provider on the loopback interface, in a
process of its own, answers by a known rule, fails as it is told, and writes down every request; a compile is forked,
watched for three seconds after it has come back, and resumed on a provider that is well again. What is counted:

- requests: those that arrived; in brackets what the compile says it made, where that is something else;
- zeros: examples that were scored 0.0. The metric gives a wrong answer 0.2, so no answer by the rule has that score.
  Faults that are the model's own (a refusal, a cut reply, a prompt too long) may cost it: those zeros are in brackets;
- repeated: requests that had been answered well and were sent again, in the run or by its resumption;
- late: requests that arrived after `compile` had come back;
- stop: seconds from the first fault to the end, where the run did not reach its own.

DSPy's own GEPA, MIPROv2 and SIMBA stand below, on the same faults; their zeros are program runs that raised, each of
which they score as 0.

`--kills` ends compiles by SIGKILL at points spread over all their calls, and compares what the next compile in the same
directory returns. `--changes` does so after the program, the metric or a model has changed: right is a refusal, or what
a fresh run gives. `--memory` is a compile of 20,000 program runs; `--signals` are Ctrl-C and SIGTERM.

The exit status is 1 if a promise of the README is broken anywhere.
"""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import crashes
import dspy
import litellm  # noqa: F401  (before the forks: each would load it for itself)
from loopback import (
    CLEAN,
    FAULTS,
    FORK,
    PATIENCE,
    PEERS_PATIENCE,
    QUICK,
    SCHEDULING,
    TRAIN,
    UNORDERED,
    VALID,
    WATCHED,
    WHEN,
    Fault,
    Found,
    available,
    forked,
    keep,
    options_of,
    provider,
    read_log,
    result_of,
    strict,
)
from rich.console import Console
from rich.table import Table

import cuesmith
from cuesmith.teleprompters.registry import COMPILERS
from cuesmith.teleprompters.runtime.events import EffectDone, Event
from cuesmith.testing.fakes import KEY, plain

# --- one compile -------------------------------------------------------------------------------------------


class Forgiving(dspy.Module):  # type: ignore[misc]
    """A program that answers "" where its call fails."""

    def __init__(self) -> None:
        super().__init__()
        self.say = plain()

    def forward(self, question: str) -> dspy.Prediction:
        """Answer."""
        try:
            return self.say(question=question)
        except Exception:
            return dspy.Prediction(answer="")


class Counted(Forgiving):
    """A program that counts the runs in which it raised."""

    raised = 0

    def forward(self, question: str) -> dspy.Prediction:
        """Answer."""
        try:
            return self.say(question=question)
        except Exception:
            Counted.raised += 1
            raise


def judged(lm: dspy.BaseLM, swallows: bool) -> Callable[..., float]:
    """Return a metric whose judge is called by a helper, through an object."""
    judges = {"judge": dspy.Predict("wanted, given -> verdict"), "lm": lm}

    def ask(wanted: str, given: str) -> float:
        with dspy.context(lm=judges["lm"]):
            return 1.0 if judges["judge"](wanted=wanted, given=given).verdict == "yes" else 0.2

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        try:
            return ask(example.answer, prediction.answer)
        except Exception:
            if swallows:
                return 0.0
            raise

    return metric


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
        fault: What goes wrong.
        compiler: A name of the registry, or dspy's own class.
        in_flight: Calls at once.
    """

    fault: Fault
    compiler: str
    in_flight: int


def compile_once(cell: Cell, base: str, run_dir: Path | None) -> Found:
    """Compile against the provider and return what came of it, as JSON data."""
    lms = {role: dspy.LM(f"openai/{role}", api_base=base, api_key=KEY, cache=False)
           for role in ("target", "optimizer", "judge")}  # fmt: skip
    around, zeros = cell.fault.around, [0]
    metric = judged(lms["judge"], "swallows" in around) if "judge" in around else strict

    def watch(event: Event) -> None:
        if isinstance(event, EffectDone) and event.role == "target" and event.value == 0.0:
            zeros[0] += 1

    found: Found = {"stopped": None, "said": "", "counted": None, "result": "", "began": time.monotonic()}
    try:
        with dspy.context(lm=lms["target"]):
            if cell.compiler in PEERS:
                PEERS[cell.compiler](metric, lms, cell.in_flight)
            else:
                student = Forgiving() if around == "a forgiving program" else plain()
                compiled = cuesmith.compile(
                    student, cell.compiler, metric=metric, trainset=TRAIN, valset=VALID, run_dir=run_dir,
                    optimizer_lm=lms["optimizer"], max_in_flight=cell.in_flight, callbacks=[watch],
                    example_timeout=cell.fault.timeout, **options_of(cell.compiler),
                )  # fmt: skip
                record = compiled.compilation
                found |= {"stopped": record.stopped_by, "said": " ".join(record.notes),
                          "counted": record.spent.total.calls, "result": result_of(compiled)}  # fmt: skip
    except Exception as error:
        found["error"] = type(error).__name__
        found["said"] = str(error)
        found["stopped"] = getattr(error, "stopped_by", None)
        if (spent := getattr(error, "spent", None)) is not None:
            found["counted"] = spent.total.calls
    found |= {"returned": time.monotonic(), "zeros": zeros[0] or Counted.raised}
    return found


def native_gepa(metric: Callable[..., float], lms: Mapping[str, dspy.BaseLM], threads: int) -> None:
    """Compile by dspy's GEPA."""

    def five(gold: Any, pred: Any, trace: Any = None, name: Any = None, inner: Any = None) -> float:
        return metric(gold, pred)

    dspy.GEPA(metric=five, max_metric_calls=50, reflection_lm=lms["optimizer"], num_threads=threads).compile(
        Counted(), trainset=TRAIN, valset=VALID[:8]
    )


def native_mipro(metric: Callable[..., float], lms: Mapping[str, dspy.BaseLM], threads: int) -> None:
    """Compile by dspy's MIPROv2."""
    made = dspy.MIPROv2(
        metric=metric, prompt_model=lms["optimizer"], task_model=lms["target"], auto=None, num_candidates=2,
        max_bootstrapped_demos=2, max_labeled_demos=2, num_threads=threads,
    )  # fmt: skip
    made.compile(Counted(), trainset=TRAIN, valset=VALID[:8], num_trials=3, minibatch=False)


def native_simba(metric: Callable[..., float], lms: Mapping[str, dspy.BaseLM], threads: int) -> None:
    """Compile by dspy's SIMBA."""
    made = dspy.SIMBA(metric=metric, bsize=4, num_candidates=3, max_steps=3, max_demos=2, num_threads=threads,
                      prompt_model=lms["optimizer"])  # fmt: skip
    made.compile(Counted(), trainset=TRAIN)


PEERS: Mapping[str, Callable[[Callable[..., float], Mapping[str, dspy.BaseLM], int], None]] = {
    "dspy.GEPA": native_gepa, "dspy.MIPROv2": native_mipro, "dspy.SIMBA": native_simba}  # fmt: skip


# --- one cell ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What a cell showed; the module's docstring says what is counted.

    Attributes:
        befallen: How many of the requests failed.
        needed: How often a clean run had each request answered.
        wrong: The promises that it broke.
    """

    fault: str
    compiler: str
    in_flight: int
    requests: int
    befallen: int
    counted: int | None
    zeros: int
    repeated: int
    late: int
    stop: float | None
    seconds: float
    stopped_by: str | None
    said: str
    needed: Mapping[str, int] = field(repr=False)
    wrong: tuple[str, ...] = ()


def run_cell(cell: Cell, needed: Mapping[str, int]) -> Row:
    """Compile while the fault lasts, then resume without it."""
    with tempfile.TemporaryDirectory() as directory, provider(cell.fault, Path(directory) / "log") as (base, session):
        place, peer = Path(directory), cell.compiler in PEERS
        work = functools.partial(compile_once, cell, base, None if peer else place / "run")
        began = time.monotonic()
        first = forked(work, place / "first.json", WATCHED, PEERS_PATIENCE if peer else PATIENCE)
        ended = time.monotonic()
        session.value = 1
        resumes = first is not None and not peer and any("answered" in line for line in read_log(place / "log"))
        second = forked(work, place / "second.json") if resumes else None
        log = read_log(place / "log")
    if first is None:
        first = {"began": began, "returned": ended, "zeros": 0, "counted": None, "stopped": "(killed)", "said": ""}
    row = _row(cell, first, log, needed)
    resumed = "" if second is None or "error" not in second else f"resumed: {second['error']}: {second['said']}"
    return replace(row, wrong=broken(cell, row, resumed))


def _row(cell: Cell, first: Found, log: Sequence[Found], needed: Mapping[str, int]) -> Row:
    arrived = [line for line in log if "fault" in line and line["session"] == 0]
    answered = Counter(line["answered"] for line in log if "answered" in line)
    known = needed or answered
    # How often a request is due that no clean run makes is not known of draws, nor of what dspy's own search runs.
    hosted = ".peers." in COMPILERS.get(cell.compiler, "")
    due = {line["answered"]: known.get(line["answered"], 1) for line in log if "answered" in line
           and (line["answered"] in known or (line["role"] != "optimizer" and not hosted))}  # fmt: skip
    again = sum(max(0, answered[key] - n) for key, n in due.items())
    faults = [line["at"] for line in arrived if line["fault"]]
    over = first["stopped"] is not None or "error" in first
    return Row(
        cell.fault.name, cell.compiler, cell.in_flight,
        requests=len(arrived), befallen=len(faults), counted=first["counted"], zeros=first["zeros"],
        repeated=0 if cell.compiler in PEERS else again,
        late=sum(line["at"] > first["returned"] + SCHEDULING for line in arrived),
        stop=round(first["returned"] - min(faults), 1) if over and faults else None,
        seconds=round(first["returned"] - first["began"], 1), stopped_by=first["stopped"] or first.get("error"),
        said=first["said"], needed=answered if cell.fault in CLEAN else {},
    )  # fmt: skip


def broken(cell: Cell, row: Row, resumed: str) -> tuple[str, ...]:
    """Return which promises a row breaks."""
    if cell.compiler in PEERS:
        return ()
    fault, found = cell.fault, [resumed] if resumed else []
    if row.stopped_by == "(killed)":
        return (f"did not end in {PATIENCE:.0f} s",)
    if row.zeros and not fault.own:
        found.append(f"{row.zeros} zeros")
    if row.counted is not None and row.counted != row.requests:
        found.append(f"{row.counted} counted of {row.requests}")
    if row.repeated and not (cell.compiler in UNORDERED and cell.in_flight > 1):
        found.append(f"{row.repeated} repeated")
    if row.late:
        found.append(f"{row.late} late")
    allowed = {*fault.stops, *(["CompileError"] if None in fault.stops and WHEN[fault.when](1) else [])}
    if row.befallen and row.stopped_by not in allowed:
        found.append(f"stopped by {row.stopped_by}, not {' or '.join(map(str, fault.stops))}")
    if row.befallen and row.stopped_by is None and fault.who == "optimizer" and "optimizer" not in row.said:
        found.append("no note on the optimizer")
    if row.stop is not None and row.stop > fault.within:
        found.append(f"took {row.stop} s")
    return tuple(found)


def cells(given: argparse.Namespace, compilers: Sequence[str]) -> list[Cell]:
    """Return the cells asked for."""
    named = [f for f in FAULTS if any(part.lower() in f.name.lower() for part in given.faults or [""])]
    faults = [f for f in named if not given.quick or f.name in QUICK]
    sizes = given.in_flight or ([8] if given.quick or given.faults else [1, 8, 64])
    every = given.in_flight or [8]
    ours = [Cell(f, c, n) for f in faults for c in compilers for n in sizes if n in every or f.name in QUICK]
    return ours + [Cell(f, c, 8) for f in faults for c in ([] if given.no_peers else PEERS) if not f.around]


def table(given: argparse.Namespace, compilers: Sequence[str]) -> list[Row]:
    """Run all cells: the clean ones first, for they say what a run needs."""
    asked = cells(given, compilers)
    clean = {replace(cell, fault=next(f for f in CLEAN if f.around == cell.fault.around)) for cell in asked}
    rows: list[Row] = []
    needed: dict[tuple[str, str, int], Mapping[str, int]] = {}
    with ProcessPoolExecutor(given.slots, FORK) as pool:
        for group in ([*clean], [cell for cell in asked if cell.fault not in CLEAN]):
            keys = {cell: (cell.compiler, cell.fault.around, cell.in_flight) for cell in group}
            running = {pool.submit(run_cell, cell, needed.get(keys[cell], {})): cell for cell in group}
            for n, done in enumerate(as_completed(running), 1):
                row = done.result()
                rows.append(row)
                print(f"\r{n} of {len(group)} ", end="", file=sys.stderr, flush=True)
                needed |= {keys[running[done]]: row.needed} if row.needed else {}
    order = [fault.name for fault in FAULTS]
    return sorted(rows, key=lambda r: (order.index(r.fault), r.compiler in PEERS, r.compiler, r.in_flight))


def show(rows: Sequence[Row]) -> int:
    """Print the table; returns how many rows of ours break a promise."""
    own = {fault.name for fault in FAULTS if fault.own}
    printed = Table("fault", "compiler", "in flight", "requests", "zeros", "repeated", "late", "stop, s", "stopped by",
                    "wrong", title="Faults", title_justify="left")  # fmt: skip
    for row in rows:
        counted = "" if row.counted in (None, row.requests) else f" ({row.counted})"
        zeros = f"({row.zeros})" if row.fault in own else str(row.zeros)
        printed.add_row(
            row.fault, row.compiler, str(row.in_flight), f"{row.requests}{counted}", zeros, str(row.repeated),
            str(row.late), "" if row.stop is None else f"{row.stop:.1f}", row.stopped_by or "", "; ".join(row.wrong),
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(printed)
    for row in {(row.fault, row.stopped_by): row for row in rows if row.said}.values():
        said = f"{row.fault}, {row.compiler}, {row.in_flight}: {row.said[:160]!r}"
        console.print(said, markup=False, highlight=False)
    wrong = [row for row in rows if row.wrong]
    ours = [row for row in rows if row.compiler not in PEERS]
    print(f"\n{len(ours)} rows of ours: {len(ours) - len(wrong)} keep every promise, {len(wrong)} do not")
    return len(wrong)


# --- the command -------------------------------------------------------------------------------------------


def main() -> int:
    """Measure what is asked for, print it, and return whether a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="nine faults and four compilers at 8 in flight")
    parser.add_argument("--compilers", nargs="+", choices=[*COMPILERS], metavar="NAME", help="default: all")
    parser.add_argument("--faults", nargs="+", metavar="TEXT", help="those whose name has one of these in it")
    parser.add_argument("--in-flight", type=int, nargs="+", help="default: 8, and 1 and 64 for the faults of --quick")
    parser.add_argument("--no-peers", action="store_true", help="without dspy's own optimizers")
    parser.add_argument("--slots", type=int, default=16, help="cells at once: most of them wait")
    parser.add_argument("--kills", type=int, metavar="N")
    modes = (crashes.changes, crashes.memory, crashes.signals)
    for mode in modes:
        parser.add_argument(f"--{mode.__name__}", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every row here")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        crashes.interrupted(*given.child)
        return 0
    logging.disable()
    quick = ("iterative-ape", "abo", "gepa", "mipro")
    names = given.compilers or [name for name in COMPILERS if not given.quick or name in quick]
    for mode in modes:
        if getattr(given, mode.__name__):
            return int(mode(given) > 0)
    compilers = list(available(names))
    if given.kills:
        return int(crashes.kills(given, compilers) > 0)
    gc.freeze()  # or the collector would copy the memory that the forks share
    rows = table(given, compilers)
    keep(given, [replace(row, needed={}) for row in rows])
    return int(show(rows) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
