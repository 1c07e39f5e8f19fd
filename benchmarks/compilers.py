"""All compilers, DSPy's five among them, on the same tasks within the same budget of calls: one table.

    python benchmarks/compilers.py [--families objects ...] [--seeds 0 1 2] [--calls 600] [--test-size 200]
                                   [--compilers abo mipro ...] [--processes 2] [--json FILE]
    python benchmarks/compilers.py --racing [...]

Every compile gets `Budget(calls=...)`: program runs and calls to the optimizer together, final report included. All get
the same program, training, validation and held-out examples; the target is the embedded model, the optimizer simulated.
What varies is the compile: a cell shows the mean of its compiles and the lowest and highest of them, and a difference
of two compilers has Student's interval over compiles, paired by task and seed. Compilers are ordered by mean rank over
the families (ties share ranks), which says little where cells lie within each other's range.

`--racing` compares each prompt search with and without racing, without a budget: the share of the program runs, and the
difference of the held-out scores, compile by compile.

It illustrates the machinery. The target was trained to follow steps, and the simulated optimizer knows its families and
answers DSPy's requests by the same rules as ours: that ranks compilers on this instrument, and not on large models.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dspy
from nano.dspy_answers import teach

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.programs.evaluation import evaluate
from cuesmith.programs.tasks import Sizes, generate
from cuesmith.teleprompters.registry import COMPILERS, compile, compiler_class
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.session import CompileError
from cuesmith.teleprompters.runtime.statistics import estimate95

FAMILIES = ("objects", "navigate", "sum", "animals", "items", "position")
PEERS = ("mipro", "gepa", "simba", "copro", "bootstrap")
RACERS = ("iterative-ape", "apo", "apo-sum", "prompt-agent", "abo")
BASELINE = "(baseline)"


WRITERS = tuple(name for name in COMPILERS if name != "align-pro")
"""Compilers that write prompts; the trained prompter changes none, see benchmarks/align_pro.py."""


@dataclass(frozen=True)
class Job:
    """One compile.

    Attributes:
        family: The task.
        seed: Of the task, the compiler and the optimizer.
        compiler: A name, with ":frontier" or ":native" where that form of it is meant; `BASELINE` for the student.
        calls: The budget; None for none.
        test_size: Held-out examples.
        racing: Given to the compiler where it is not None.
    """

    family: str
    seed: int
    compiler: str
    calls: int | None
    test_size: int
    racing: bool | None = None


@dataclass(frozen=True)
class Done:
    """What became of it: held-out scores, calls by role, seconds of compiling, and why it stopped.

    Attributes:
        selection_runs: Program runs that comparing candidates took: those of them on selection examples.
    """

    job: Job
    scores: list[float | None]
    task_calls: int
    optimizer_calls: int
    seconds: float
    stopped_by: str | None
    selection_runs: int
    error: str = ""


def run(job: Job) -> Done:
    """Compile and score."""
    for library in ("dspy", "LiteLLM", "optuna"):
        logging.getLogger(library).setLevel(logging.ERROR)
    teach()
    task = generate(job.family, sizes=Sizes(test=job.test_size), seed=job.seed)
    program: dspy.Module = dspy.ChainOfThought(task.signature)
    compilation, error, start = None, "", time.perf_counter()
    with dspy.context(lm=EmbeddedLM()):
        if job.compiler != BASELINE:
            name, _, form = job.compiler.partition(":")
            options: dict[str, Any] = {} if job.racing is None else {"racing": job.racing}
            options |= {"search": form} if form else {}
            if name == "gepa" and job.calls:
                options["max_metric_calls"] = job.calls
            try:
                program = compile(
                    program,
                    name,
                    metric=task.metric,
                    trainset=list(task.train),
                    valset=list(task.validation),
                    optimizer_lm=SimulatedOptimizer(seed=job.seed),
                    seed=job.seed,
                    budget=Budget(calls=job.calls) if job.calls else None,
                    **options,
                )
                compilation = program.compilation
            except CompileError as failed:
                error = str(failed)
        seconds = time.perf_counter() - start
        scores = evaluate(program, task.test, task.metric)
    spent = compilation.spent.by_role if compilation else {}
    by_role = {role: spent[role].calls if role in spent else 0 for role in ("target", "optimizer")}
    return Done(
        job,
        list(scores.values),
        by_role["target"],
        by_role["optimizer"],
        seconds,
        compilation.stopped_by if compilation else None,
        sum(trial.n for trial in compilation.candidates if trial.candidate != compilation.baseline.candidate)
        if compilation
        else 0,
        error,
    )


def run_all(jobs: Sequence[Job], processes: int, file: Path | None) -> list[Done]:
    """Run jobs on so many processes; what `file` has already is not run again, and what is new is added to it."""
    done = [one for one in _stored(file) if one.job in set(jobs)]
    todo = [job for job in jobs if job not in {one.job for one in done}]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, job) for job in todo]):
            done.append(future.result())
            if file:
                with file.open("a") as lines:
                    lines.write(json.dumps(asdict(done[-1])) + "\n")
            job = done[-1].job
            print(f"\r{len(done)}/{len(jobs)} {job.family} {job.seed} {job.compiler:14}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return done


def _stored(file: Path | None) -> list[Done]:
    if file is None or not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [Done(**{**row, "job": Job(**row["job"])}) for row in rows]


def mean(one: Done) -> float:
    """Return a compile's held-out score, over the examples that have one."""
    return statistics.mean(value for value in one.scores if value is not None)


def difference(pairs: Iterable[tuple[Done, Done]]) -> str:
    """Return the mean difference "first less second" of compiles, in points, with its 95 % interval over compiles."""
    e = estimate95(mean(a) - mean(b) for a, b in pairs)
    return f"{100 * e.mean:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}], {e.n} compiles"


def ranks(means: dict[str, float]) -> dict[str, float]:
    """Return each name's rank, 1 for the highest; equal means share the mean of their ranks."""
    ordered = sorted(means.values(), reverse=True)
    return {name: statistics.mean(i for i, v in enumerate(ordered, 1) if v == mean) for name, mean in means.items()}


def table(done: Sequence[Done], families: Sequence[str], compilers: Sequence[str]) -> dict[str, float]:
    """Print scores, ranks, calls and seconds; return the mean ranks."""
    cells: dict[tuple[str, str], list[Done]] = defaultdict(list)
    for one in done:
        cells[one.job.compiler, one.job.family].append(one)
    means = {key: statistics.mean(mean(one) for one in many) for key, many in cells.items()}
    by_family = {f: ranks({c: means[c, f] for c in compilers}) for f in families}
    mean_rank = {c: statistics.mean(by_family[f][c] for f in families) for c in compilers}
    print(
        f"{'compiler':14}"
        + "".join(f"{family:>20}" for family in families)
        + f"{'mean':>7}{'rank':>6}{'task':>7}{'opt.':>6}{'s':>6}"
    )
    for name in [BASELINE, *sorted(compilers, key=lambda c: mean_rank[c])]:
        row = f"{name:14}"
        for family in families:
            each = [100 * mean(one) for one in cells[name, family]]
            row += f"{f'{statistics.mean(each):.1f} ({min(each):.0f} to {max(each):.0f})':>20}"
        own = [one for family in families for one in cells[name, family]]
        row += f"{100 * statistics.mean(means[name, f] for f in families):7.1f}"
        row += f"{mean_rank[name]:6.2f}" if name in mean_rank else f"{'':6}"
        row += "".join(
            f"{statistics.mean(getattr(one, what) for one in own):{width}.0f}"
            for what, width in (("task_calls", 7), ("optimizer_calls", 6), ("seconds", 6))
        )
        print(row)
    for one in done:
        if one.error:
            print(f"  {one.job.compiler} on {one.job.family}, seed {one.job.seed}: {one.error}")
    return mean_rank


def verdicts(done: Sequence[Done], families: Sequence[str], mean_rank: dict[str, float]) -> list[bool]:
    """Print and return whether the targets are met."""
    found = {(one.job.compiler, one.job.family, one.job.seed): one for one in done}
    seeds = sorted({one.job.seed for one in done})

    def gap(ours: str, theirs: str, over: Sequence[str]) -> str:
        return difference((found[ours, f, k], found[theirs, f, k]) for f in over for k in seeds)

    first = min(mean_rank, key=lambda c: mean_rank[c])
    print(f"\nfirst by mean rank: {first} (target: abo)")
    ours, peers = [c for c in mean_rank if c not in PEERS], [c for c in mean_rank if c in PEERS]
    best = min(ours, key=lambda c: mean_rank[c])
    for peer in peers:
        print(f"  {best} less {peer}: {gap(best, peer, families)}")
    ahead = 0
    for family in families:
        scores = {c: statistics.mean(mean(found[c, family, k]) for k in seeds) for c in mean_rank}
        top, rival = (max(names, key=lambda c: scores[c]) for names in (ours, peers))
        ahead += scores[top] > scores[rival]
        print(f"  {family}: {top} less {rival}: {gap(top, rival, [family])}")
    print(f"one of ours above every DSPy optimizer on {ahead} of {len(families)} families (target: all but one)")
    return [first == "abo", ahead >= len(families) - 1]


def racing(options: argparse.Namespace) -> int:
    """Compare racing with full scoring."""
    jobs = [
        Job(family, seed, name, None, options.test_size, race)
        for name in options.compilers
        for seed in options.seeds
        for family in options.families
        for race in (True, False)
    ]
    done = {one.job: one for one in run_all(jobs, options.processes, options.json)}
    every: list[tuple[Done, Done]] = []
    print("program runs on selection examples (in brackets: of the whole compile), and held-out difference in points\n")
    print(f"{'compiler':14}{'racing':>16}{'full':>16}{'share':>12}  racing - full")
    for name in [*options.compilers, "all"]:
        pairs = (
            [
                (done[job], done[Job(**{**asdict(job), "racing": False})])
                for job in jobs
                if job.racing and job.compiler == name
            ]
            if name != "all"
            else every
        )
        every += pairs if name != "all" else []
        fast, full, all_fast, all_full = (
            sum(getattr(pair[i], what) for pair in pairs) for what in ("selection_runs", "task_calls") for i in (0, 1)
        )
        gain = estimate95(mean(a) - mean(b) for a, b in pairs)
        print(
            f"{name:14}{f'{fast:,} ({all_fast:,})':>16}{f'{full:,} ({all_full:,})':>16}"
            f"{f'{fast / full:.2f} ({all_fast / all_full:.2f})':>12}  {difference(pairs)}"
        )
    holds = fast / full <= 0.5 and gain.high > 0
    print(f"at most half of the program runs, with no significant loss: {'holds' if holds else 'does not hold'}")
    return 0 if holds else 1


def comparison(options: argparse.Namespace) -> int:
    """Run all compilers and print the table."""
    jobs = [
        Job(family, seed, name, options.calls, options.test_size)
        for seed in options.seeds
        for family in options.families
        for name in [BASELINE, *options.compilers]
    ]
    start = time.perf_counter()
    done = run_all(jobs, options.processes, options.json)
    print(
        f"held-out score in %, mean (lowest to highest) of {len(options.seeds)} compiles, on {options.test_size} "
        f"examples each; at most {options.calls} calls a compile; means of calls and seconds\n"
    )
    mean_rank = table(done, options.families, options.compilers)
    met = verdicts(done, options.families, mean_rank) if {*PEERS, "abo"} <= set(options.compilers) else [True]
    print(f"{time.perf_counter() - start:.0f} s on {options.processes} processes")
    return 0 if all(met) else 1


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--test-size", type=int, default=200)
    parser.add_argument("--compilers", nargs="+", help=f"by default {', '.join(WRITERS)}")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--racing", action="store_true", help="racing against full scoring instead")
    parser.add_argument("--json", type=Path, help="JSON lines, one a compile; a run that was cut short goes on there")
    options = parser.parse_args()
    options.compilers = options.compilers or list(RACERS if options.racing else WRITERS)
    for name in options.compilers:
        compiler_class(name.partition(":")[0])
    mode: Callable[[argparse.Namespace], int] = racing if options.racing else comparison
    return mode(options)


if __name__ == "__main__":
    sys.exit(main())
