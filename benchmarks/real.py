"""All compilers on real language models and public tasks, replayable by anyone without a model.

    python benchmarks/real.py --replay                                  # the tables, from the records beside this file
    python benchmarks/real.py --replay --write                          # into docs/real.md, and the README's rows
    python benchmarks/real.py --local qwen05=FILE qwen15=FILE           # fill the cells that have no record yet
    python benchmarks/real.py --server qwen05=URL qwen15=URL --tasks objects --compilers abo gepa --seeds 0

The small instruct models come from the Python package index, the data is public and read by path (`--data`). A cell is
one compile: a task, a target, a compiler, a seed. All get one budget over both models, final report included, and the
same examples; held-out ones are seen by nobody before. Every reply is recorded before it is used, so that a killed run
goes on where it was, and `--replay` computes the same tables from the records (`records.py`).

Settings were fixed before any held-out example was scored. What varies between compiles of one compiler is the seed of
its search; intervals over several seeds take the compile as the unit, see `spread`.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dspy
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from kinds import Listed, judged, unlabelled, with_parity
from records import PACKED, Book, Model, RecordedLM, RecordError, ServerModel

from cuesmith.modules.local import LocalEngine
from cuesmith.programs.evaluation import evaluate
from cuesmith.programs.report import prompt_text
from cuesmith.programs.spread import spread
from cuesmith.programs.tasks import Sizes, Task, TaskError, load
from cuesmith.teleprompters.registry import compile
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import ParseFailure, Scores
from cuesmith.teleprompters.runtime.session import CompileError
from cuesmith.teleprompters.runtime.statistics import estimate95

ROOT = Path(__file__).parents[1]
RECORDS = Path(__file__).parent / "records"
DATA = Path(__file__).parents[2] / "shared" / "data"
SIZES = Sizes(train=32, validation=40, test=100)
CALLS = 200
"""Of one compile: program runs and calls to the optimizer together, final report included."""
ROOM = 600
"""Of a compile whose search is smaller than that, and which no cap ends."""
STUDENT = "student"
SMALL = "abo-small"
OPTIMIZER = "qwen15"
MODELS = {
    "qwen05": "qwen2.5-coder-0.5b-instruct-q4_k_m",
    "qwen15": "qwen2.5-coder-1.5b-instruct-q4_k_m",
}
SEEN: dict[str, dict[str, Any]] = {"target": {"temperature": 0.0}, "optimizer": {"temperature": 0.7, "max_tokens": 512}}
"""Options of the two roles."""


@dataclass(frozen=True)
class Problem:
    """A task: where its data is, what the program is, how long an answer may be."""

    kind: str
    path: str
    module: Callable[[Any], dspy.Module]
    max_tokens: int
    options: tuple[tuple[str, Any], ...] = ()
    every: int = 1
    """Of a table of classes: every so many-th class of its alphabet only."""
    calls: int = CALLS
    kind_of: Callable[[Task, MetricFunction], tuple[Task, MetricFunction]] | None = None
    """Makes another kind of task or metric of it (`kinds.py`)."""


TASKS = {
    "objects": Problem("reasoning with a fixed answer", "bigbench/object_counting.json", dspy.ChainOfThought, 256),
    "banking": Problem("26 of 77 classes", "banking77", dspy.Predict, 64, every=3),
    "gsm8k": Problem("word problems", "gsm8k", dspy.ChainOfThought, 320),
    "navigate": Problem("yes or no after steps", "bigbench/navigate.json", dspy.ChainOfThought, 256),
    "snarks": Problem("which of two is sarcastic", "bigbench/snarks.json", dspy.ChainOfThought, 256),
    "selection": Problem("which question", "bigbench/question_selection.json", dspy.ChainOfThought, 256),
    "sentiment": Problem("two classes", "instruction_induction/induce/sentiment.json", dspy.Predict, 64),
    "facility": Problem("typed extraction", "facility_support/dataset.json", dspy.Predict, 400),
}

KINDS = {
    "plain": Problem("no field for reasoning", "bigbench/object_counting.json", dspy.Predict, 256, calls=ROOM),
    "judge": Problem("a judge without full marks", "bigbench/object_counting.json", dspy.ChainOfThought, 256,
                     calls=ROOM, kind_of=judged),
    "unlabelled": Problem("the judge, and no labels", "bigbench/object_counting.json", dspy.ChainOfThought, 256,
                          calls=ROOM, kind_of=unlabelled),
    "parity": Problem("two outputs", "bigbench/object_counting.json", dspy.ChainOfThought, 256, calls=ROOM,
                      kind_of=with_parity),
    "stages": Problem("two stages", "bigbench/object_counting.json", Listed, 128, calls=ROOM),
    "negation": Problem("free text, by F1", "instruction_induction/induce/negation.json", dspy.Predict, 64,
                        (("metric", "f1"),), calls=ROOM),
}  # fmt: skip
"""Programs and metrics unlike those of the tasks above, for ABO."""

PROBLEMS = TASKS | KINDS


@dataclass(frozen=True)
class Way:
    """A compiler as a user would call it, at this budget."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    in_flight: int = 8
    """DSPy's own compilers depend on the order in which replies come, as ABO does where a cap ends it while requests
    and runs are under way together: one call at a time is replayable."""


WAYS = {
    "iterative-ape": Way("iterative-ape"),
    "apo": Way("apo"),
    "apo-sum": Way("apo-sum"),
    "prompt-agent": Way("prompt-agent"),
    "opro": Way("opro"),
    "abo": Way("abo", (), 1),
    SMALL: Way("abo", (("steps", 1), ("width", 2), ("branch", 2), ("initial", 2), ("minibatch", 8), ("scoring", 20))),
    "abo-steps": Way("abo", (("demonstrations", False),), 1),
    "mutation-frontier": Way("reflective-mutation", (("search", "frontier"),)),
    "apo-frontier": Way("apo", (("search", "frontier"),)),
    "gepa": Way("gepa", (("max_metric_calls", CALLS),), 1),
    "mipro": Way("mipro", (), 1),
    "simba": Way("simba", (("bsize", 8), ("num_candidates", 4), ("max_steps", 4)), 1),
    "bootstrap": Way("bootstrap", (), 1),
}


@dataclass(frozen=True)
class Told:
    """A metric that says what the right answer is, as a user of GEPA would write it; all compilers get the same."""

    metric: MetricFunction
    outputs: tuple[str, ...]

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
        """1 for the right answer, else 0."""
        judged: Any = self.metric(example, prediction)
        score = float(getattr(judged, "score", judged))
        feedback = getattr(judged, "feedback", "") or self._told(example, score)
        return dspy.Prediction(score=score, feedback=feedback)

    def _told(self, example: dspy.Example, score: float) -> str:
        if score >= 1.0:
            return "Right."
        right = "; ".join(f"{name}: {getattr(example, name)}" for name in self.outputs)
        return f"Wrong. The right answer is {right}"


@dataclass(frozen=True)
class Cell:
    """One compile, or, for `STUDENT`, none."""

    task: str
    target: str
    way: str
    seed: int

    @property
    def folder(self) -> Path:
        """The group's records: replies of the target to the same request serve all its cells."""
        return RECORDS / f"{self.task}-{self.target}"

    @property
    def name(self) -> str:
        """The name of its own records."""
        return self.way if self.way == STUDENT else f"{self.way}-{self.seed}"

    @property
    def packed(self) -> Path:
        """Its finished record."""
        return self.folder / f"{self.name}{PACKED}"


@dataclass(frozen=True)
class Done:
    """What became of a cell.

    Attributes:
        scores: Held-out scores, an example each.
        malformed: Held-out replies that could not be parsed.
        calls: Of the compile, by role.
        tokens: Of the compile, both roles.
        seconds: The compile's replies' own times, over the calls in flight.
        candidates: Prompts that were scored.
        stopped_by: The cap that ended the search.
        notes: The compile's own.
        prompt: What was found.
        changed: Whether it is another program than the student.
    """

    cell: Cell
    scores: tuple[float | None, ...]
    malformed: int
    calls: Mapping[str, int]
    tokens: int
    seconds: float
    candidates: int
    stopped_by: str | None
    notes: tuple[str, ...]
    prompt: str
    changed: bool


def read(task: str, data: Path) -> tuple[Task, MetricFunction]:
    """Return a task and its metric."""
    problem = PROBLEMS[task]
    with _every(data / problem.path, problem.every) as path:
        found = load(path, sizes=SIZES, seed=0, **dict(problem.options))
    metric = found.metric
    if problem.kind_of is not None:
        found, metric = problem.kind_of(found, metric)
    signature = dspy.Signature(found.signature) if isinstance(found.signature, str) else found.signature
    return found, Told(metric, tuple(signature.output_fields))


@contextmanager
def _every(path: Path, step: int) -> Iterator[Path]:
    """Yield a folder of tables with the rows of every so many-th class; their last column is the class."""
    if step == 1:
        yield path
        return
    tables = {file.name: list(csv.reader(file.open(newline="", encoding="utf-8"))) for file in path.glob("*.csv")}
    kept = set(sorted({row[-1] for rows in tables.values() for row in rows[1:]})[::step])
    with TemporaryDirectory() as folder:
        for name, rows in tables.items():
            with (Path(folder) / name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([rows[0], *(row for row in rows[1:] if row[-1] in kept)])
        yield Path(folder)


def run(cell: Cell, data: Path, models: Mapping[str, str]) -> Done:
    """Compile and score a cell; replies that are not in the records come from the models.

    Raises:
        RecordError: If there is no such reply, and no model.
    """
    for library in ("dspy", "LiteLLM", "optuna"):
        logging.getLogger(library).setLevel(logging.ERROR)
    problem, way = PROBLEMS[cell.task], WAYS.get(cell.way)
    book = Book(cell.folder, cell.name, filling=bool(models))
    engines = {name: model_at(place) for name, place in models.items()}
    target = RecordedLM(MODELS[cell.target], book, engines.get(cell.target), max_tokens=problem.max_tokens,
                        **SEEN["target"])  # fmt: skip
    optimizer = RecordedLM(MODELS[OPTIMIZER], book, engines.get(OPTIMIZER), **SEEN["optimizer"])
    task, metric = read(cell.task, data)
    student: dspy.Module = problem.module(task.signature)
    program, compilation, error = student, None, ""
    with dspy.context(lm=target, disable_history=True):
        if way is not None:
            try:
                program = compile(
                    student, way.name, metric=metric, trainset=list(task.train), valset=list(task.validation),
                    optimizer_lm=optimizer, seed=cell.seed, budget=Budget(calls=problem.calls), progress=False,
                    max_in_flight=way.in_flight, example_timeout=None, **dict(way.options),
                )  # fmt: skip
                compilation = program.compilation
                if compilation.stopped_by not in (None, "calls"):
                    raise RecordError(f"{cell} was stopped by {compilation.stopped_by}: run it again to go on")
            except CompileError as failed:
                error = str(failed)
            book.check()
        asked = [*target.asked, *optimizer.asked]
        scores = evaluate(program, task.test, metric, max_in_flight=8)
        book.check()
    book.close()
    spent = compilation.spent.by_role if compilation else {}
    return Done(
        cell,
        scores.values,
        _malformed(scores),
        {role: spent[role].calls for role in ("target", "optimizer") if role in spent},
        sum(entry["in"] + entry["out"] for entry in asked),
        sum(entry.get("s", 0.0) for entry in asked) / (way.in_flight if way else 1),
        len(compilation.candidates) if compilation else 0,
        compilation.stopped_by if compilation else None,
        tuple(str(note) for note in compilation.notes) if compilation else ((error,) if error else ()),
        prompt_text(Candidate.of(program)),
        Candidate.of(program) != Candidate.of(student),
    )


def model_at(place: str) -> Model:
    """Return the model behind a server's address, or in a file."""
    return ServerModel(place) if place.startswith("http") else LocalEngine(place)


def _malformed(scores: Scores) -> int:
    return sum(isinstance(outcome, ParseFailure) for outcome in scores.outcomes)


# --- tables -----------------------------------------------------------------------------------------------------


def tables(done: Sequence[Done]) -> Iterator[str]:
    """Yield the lines of all Markdown tables."""
    for _, lines in _grouped(done):
        yield from lines


def _grouped(done: Sequence[Done]) -> Iterator[tuple[str, list[str]]]:
    """Yield each table's name and lines: one for each task and target, and one for the other kinds of program."""
    groups = dict.fromkeys((one.cell.task, one.cell.target) for one in done if one.cell.task in TASKS)
    for task, target in groups:
        cells = [one for one in done if (one.cell.task, one.cell.target) == (task, target)]
        yield f"{task} {target}", [*_table(task, target, cells)]
    for target in MODELS:
        if others := [one for one in done if one.cell.task in KINDS and one.cell.target == target]:
            yield f"kinds {target}", [*_kinds(target, others)]


def write(done: Sequence[Done], page: Path, readme: Path) -> None:
    """Bring the pages' tables up to date.

    Args:
        done: All cells.
        page: Has whole tables, each after a line `<!-- table TASK TARGET -->`.
        readme: Has some rows of the first of them, which are exchanged; which ones, it says by having them.
    """
    text = page.read_text()
    rows: dict[str, str] = {}
    for name, lines in _grouped(done):
        table = [line for line in lines if line.startswith("|")]
        place = re.compile(rf"(<!-- table {name} -->\n)(?:\|.*\n)*")
        if not place.search(text):
            print(f"{page} has no place for it: <!-- table {name} -->", file=sys.stderr)
        text = place.sub(lambda found, table=table: found[1] + "\n".join(table) + "\n", text)  # type: ignore[misc]
        rows = rows or {line.split("|")[1].strip(): line for line in table}
    page.write_text(text)
    kept = [rows.get(line.split("|")[1].strip(), line) if line.count("|") == _COLUMNS else line
            for line in readme.read_text().splitlines()]  # fmt: skip
    readme.write_text("\n".join(kept) + "\n")


_COLUMNS = 10
"""Bars in a row of a table."""


def _kinds(target: str, cells: Sequence[Done]) -> Iterator[str]:
    yield f"ABO on programs and metrics of other kinds, target {MODELS[target]}, n = {len(cells[0].scores)} held-out"
    yield ""
    yield "| program and metric | student | ABO | gain | malformed | calls target + optimizer | tokens |"
    yield "|---|---|---|---|---|---|---|"
    for task, problem in KINDS.items():
        own = {one.cell.way: one for one in cells if one.cell.task == task}
        if {STUDENT, SMALL} <= own.keys():
            before, after = own[STUDENT], own[SMALL]
            yield (f"| {problem.kind} | {_held(before)} | {_held(after)} | {spread([after.scores], [before.scores])} "
                   f"| {after.malformed} | {after.calls.get('target', 0)} + {after.calls.get('optimizer', 0)} "
                   f"| {after.tokens / 1000:.0f}k |")  # fmt: skip
    yield ""


def _held(one: Done) -> str:
    held = estimate95(one.scores)
    return f"{100 * held.mean:.0f} [{100 * held.low:.0f}, {100 * held.high:.0f}]"


def _table(task: str, target: str, cells: Sequence[Done]) -> Iterator[str]:
    problem = PROBLEMS[task]
    ways = list(dict.fromkeys(one.cell.way for one in cells))
    rows = {way: [one.scores for one in cells if one.cell.way == way] for way in ways}
    yield f"{task} ({problem.kind}; {problem.path}), target {MODELS[target]}, n = {len(cells[0].scores)} held-out"
    yield ""
    yield ("| compiler | compiles | held-out % | over the student | over gepa | malformed | calls target + optimizer "
           "| tokens | s |")  # fmt: skip
    yield "|---|---|---|---|---|---|---|---|---|"
    for way in sorted(ways, key=lambda w: -_mean(rows[w])):
        yield _row(way, [one for one in cells if one.cell.way == way], rows)
    yield ""


def _row(way: str, own: Sequence[Done], rows: Mapping[str, Sequence[Sequence[float | None]]]) -> str:
    against = {name: str(spread(rows[way], rows[name])) if name in rows and name != way and way != STUDENT else ""
               for name in (STUDENT, "gepa")}  # fmt: skip
    held = estimate95(v for scores in rows[way] for v in scores) if len(own) == 1 else None
    score = f"{100 * _mean(rows[way]):.0f}"
    score += f" [{100 * held.low:.0f}, {100 * held.high:.0f}]" if held else ""
    malformed = sum(one.malformed for one in own) / len(own)
    calls = " + ".join(f"{np.mean([one.calls.get(r, 0) for one in own]):.0f}" for r in ("target", "optimizer"))
    if way == STUDENT:
        return f"| {way} |  | {score} |  |  | {malformed:.0f} |  |  |  |"
    tokens, seconds = (np.mean([getattr(one, what) for one in own]) for what in ("tokens", "seconds"))
    return (f"| {way} | {len(own)} | {score} | {against[STUDENT]} | {against['gepa']} | {malformed:.0f} | {calls} "
            f"| {tokens / 1000:.0f}k | {seconds:.0f} |")  # fmt: skip


def _mean(rows: Iterable[Sequence[float | None]]) -> float:
    return float(np.mean([v for row in rows for v in row if v is not None]))


def prompts(done: Sequence[Done]) -> Iterator[str]:
    """Yield each cell's prompt in full, and its notes."""
    for one in done:
        cell = one.cell
        stop = f", stopped by {one.stopped_by}" if one.stopped_by else ""
        yield f"{cell.task}, {cell.target}, {cell.way}, seed {cell.seed}: {one.candidates} candidates{stop}"
        yield textwrap.indent(one.prompt if one.changed or cell.way == STUDENT else "(the student's)", "    ")
        yield from (f"  - {note}" for note in one.notes)
        yield ""


# --- running ----------------------------------------------------------------------------------------------------


def recorded(wanted: Callable[[Cell], bool]) -> list[Cell]:
    """Return the cells whose records are whole, in the order of the tables."""
    found = []
    for task in PROBLEMS:
        for target in MODELS:
            folder = Cell(task, target, STUDENT, 0).folder
            names = {path.name.removesuffix(PACKED) for path in folder.glob(f"*{PACKED}")}
            cells = [Cell(task, target, way, seed) for way in WAYS for seed in range(20)]
            found += [cell for cell in (Cell(task, target, STUDENT, 0), *cells) if cell.name in names]
    return [cell for cell in found if wanted(cell)]


def replay(cells: Sequence[Cell], data: Path, processes: int) -> list[Done]:
    """Compute cells from their records.

    Raises:
        RecordError: If a record is missing or damaged.
    """
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(replayed, cells, [data] * len(cells)))


def replayed(cell: Cell, data: Path) -> Done:
    """Compute a cell from its records, at a second try where the first misses a reply: where a cap ends a search whose
    requests and runs are under way together, the pace of threads decides now and then which of them is the last.

    Raises:
        RecordError: As `run`.
    """
    with suppress(RecordError):
        return run(cell, data, {})
    return run(cell, data, {})


def fill(work: Iterable[tuple[Path, Callable[[], Iterable[str]]]]) -> None:
    """Do the work that has no record yet, one after the other, and print what it tells.

    Args:
        work: Where the record of each goes, and what makes it.
    """
    for packed, conduct in work:
        if packed.exists():
            continue
        begun = time.monotonic()
        try:
            told = "\n".join(conduct())
        except RecordError as error:
            print(error, file=sys.stderr, flush=True)
            continue
        print(f"{told}\n{time.monotonic() - begun:.0f} s", flush=True)


def filled(cell: Cell, data: Path, models: Mapping[str, str]) -> Iterator[str]:
    """Run a cell and yield what became of it."""
    done = run(cell, data, models)
    yield f"{cell}: {100 * _mean([done.scores]):.0f} %, {done.calls}, stopped by {done.stopped_by}"
    yield from prompts([done])


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--replay", action="store_true", help="print the tables from the records; asks no model")
    parser.add_argument("--local", nargs="+", default=[], metavar="NAME=FILE", help="models from .gguf files")
    parser.add_argument("--server", nargs="+", default=[], metavar="NAME=URL", help="models behind servers")
    parser.add_argument("--tasks", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--targets", nargs="+", choices=MODELS, default=["qwen05"])
    parser.add_argument("--compilers", nargs="+", choices=[STUDENT, *WAYS], default=[STUDENT, *WAYS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the public data sets")
    parser.add_argument("--write", action="store_true", help="with --replay: into docs/real.md and README.md as well")
    parser.add_argument("--prompts", action="store_true", help="print the prompts found, in full")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.write and not (options.replay and len(options.tasks) == len(PROBLEMS) and STUDENT in options.compilers
                              and len(options.compilers) > len(WAYS)):  # fmt: skip
        parser.error("--write: with --replay, and with all tasks and compilers")
    try:
        if not options.replay:
            models = dict(pair.split("=", 1) for pair in [*options.local, *options.server])
            cells = [Cell(task, target, way, 0 if way == STUDENT else seed) for seed in options.seeds
                     for task in options.tasks for target in options.targets for way in options.compilers]  # fmt: skip
            fill((cell.packed, partial(filled, cell, options.data, models)) for cell in dict.fromkeys(cells))
            return 0
        wanted = recorded(lambda c: c.task in options.tasks and c.target in options.targets
                          and c.way in options.compilers)  # fmt: skip
        done = replay(wanted, options.data, options.processes)
    except (RecordError, TaskError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.write:
        write(done, ROOT / "docs" / "real.md", ROOT / "README.md")
    print("\n".join([*tables(done), *(prompts(done) if options.prompts else ())]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
