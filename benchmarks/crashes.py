"""What becomes of a compile that is killed, changed, interrupted, or very long: the other modes of `faults.py`."""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import litellm  # noqa: F401  (before the forks: each would load it for itself)
from loopback import (
    FORK,
    SCHEDULING,
    TRAIN,
    UNORDERED,
    VALID,
    Body,
    Fault,
    Found,
    Http,
    Rule,
    forked,
    hang,
    keep,
    options_of,
    provider,
    read_log,
    result_of,
    send,
    strict,
)
from rich.console import Console
from rich.table import Table

import cuesmith
from cuesmith.modules.sampling import draw
from cuesmith.testing.fakes import KEY, Answer, Engine, Sent, Server, examples, plain, ruled

# --- kills -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Killed:
    """What became of the compiles of one kind that were killed: how many ended as the one that was not.

    Attributes:
        calls: Of the one that was not killed.
        stable: Whether two that were not killed are the same.
        repeated: Calls that were paid again, beyond those that can have been in flight at a kill.
    """

    compiler: str
    cap: int | None
    in_flight: int
    calls: int
    stable: bool
    kills: int
    same: int
    repeated: int
    errors: tuple[str, ...]


def in_process(compiler: str, run_dir: Path, log: Path, cap: int | None, in_flight: int, kill_at: float) -> Found:
    """Compile on models in this process, which dies at a call: on its arrival, or half a call later on its answer."""
    reply, numbers, paid = Rule(), itertools.count(1), os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def answer(sent: Sent) -> str:
        nth = next(numbers)
        if nth == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        text = reply(sent)
        os.write(paid, (hashlib.md5(repr((sent.text, sent.draw)).encode()).hexdigest() + "\n").encode())
        if nth == kill_at - 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        return text

    engine = Engine(answer, latency=0.001, jitter=0.004)
    try:
        with dspy.context(lm=engine.lm("target")):
            compiled = cuesmith.compile(
                plain(), compiler, metric=strict, trainset=TRAIN, valset=VALID, run_dir=run_dir,
                optimizer_lm=engine.lm("optimizer"), max_in_flight=in_flight,
                budget=None if cap is None else cuesmith.Budget(calls=cap), **options_of(compiler),
            )  # fmt: skip
    except Exception as error:
        return {"result": f"{type(error).__name__}: {error}", "error": True}
    return {"result": result_of(compiled), "counted": compiled.compilation.spent.total.calls}


def kill_all(compiler: str, capped: bool, in_flight: int, kills: int) -> Killed:
    """Kill compiles of one kind at points spread over their calls, and go on with each."""
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as directory:

        def run(name: str, cap: int | None, at: float = 0) -> Found | None:
            place = Path(directory) / name
            work = functools.partial(in_process, compiler, place, place.with_suffix(".log"), cap, in_flight, at)
            return forked(work, Path(directory) / f"{name}-{next(numbers)}.json")

        def paid(name: str) -> Counter[str]:
            return Counter((Path(directory) / f"{name}.log").read_text().split())

        cap = max(1, int(0.6 * (run("free", None) or {}).get("counted", 1))) if capped else None
        whole, twice, needed = run("whole", cap), run("twice", cap), paid("whole")
        assert whole is not None, "a compile without any trouble did not end"
        same, repeated, errors = 0, 0, []
        for i in range(kills):
            total = sum(needed.values())
            point = max(1, round(total * (i + 1) / kills)) + 0.5 * (i % 2)
            run(f"kill{i}", cap, point)
            found = run(f"kill{i}", cap) or {"result": "did not end", "error": True}
            same += found["result"] == whole["result"]
            errors += [found["result"]] if "error" in found else []
            again = sum(max(0, n - max(1, needed[key])) for key, n in paid(f"kill{i}").items())
            repeated += max(0, again - in_flight)
        stable = twice is not None and twice["result"] == whole["result"]
        return Killed(compiler, cap, in_flight, total, stable, kills, same, repeated, tuple(errors))


def kills(given: argparse.Namespace, compilers: Sequence[str]) -> int:
    """Kill compiles of all compilers, with and without a cap, at 1 and 8 in flight; returns what went wrong."""
    kinds = [(c, capped, n) for c in compilers for capped in (False, True) for n in (1, 8)
             if n == 1 or c not in UNORDERED]  # fmt: skip
    shares = [given.kills // len(kinds) + (i < given.kills % len(kinds)) for i in range(len(kinds))]
    with ProcessPoolExecutor(min(given.slots, 4), FORK) as pool:
        running = [pool.submit(kill_all, *kind, n) for kind, n in zip(kinds, shares, strict=True) if n]
        rows = [done.result() for done in running]
    printed = Table("compiler", "cap", "in flight", "calls", "stable", "kills", "same", "repeated", "errors",
                    title="SIGKILL", title_justify="left")  # fmt: skip
    for row in rows:
        cells_ = (row.compiler, row.cap or "", row.in_flight, row.calls, row.stable, row.kills, row.same, row.repeated)
        printed.add_row(*map(str, cells_), "; ".join(sorted({error[:60] for error in row.errors})))
    Console(width=160).print(printed)
    keep(given, rows)
    killed, same = sum(row.kills for row in rows), sum(row.same for row in rows)
    repeated = sum(row.repeated for row in rows)
    print(f"{killed} killed: {same} ended as the one that was not; {repeated} calls repeated")
    return killed - same + repeated + sum(not row.stable for row in rows)


# --- changes -----------------------------------------------------------------------------------------------


class Choosy(Server):
    """A provider whose models answer by their name, options, address and the form of the request."""

    def answer(self, path: str, headers: Mapping[str, str], body: Mapping[str, object]) -> Answer | None:
        """Answer one request."""
        named = ("model", "temperature", "max_tokens", "max_completion_tokens")
        options = repr([*(body.get(name) for name in named), path])

        def right(sent: Sent) -> bool:
            told = hashlib.md5(repr((options, sent.asked.as_json, sent.system, sent.turns[-1])).encode()).digest()
            return told[0] % 2 == 0

        plainly = Rule()
        self.reply = lambda sent: ruled(sent, right) if "answer" in sent.asked.outputs else plainly(sent)
        return super().answer(path, headers, body)


GRADES = {"wrong": 0.2}


def grade(right: bool) -> float:
    """Score, by a table of the module."""
    return 1.0 if right else GRADES["wrong"]


def by_helper(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
    """Score by a helper, which another may have replaced."""
    return grade(prediction.answer == example.answer)


def with_default(wrong: float) -> Callable[..., float]:
    """Return a metric with a default argument."""

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None, wrong: float = wrong) -> float:
        return 1.0 if prediction.answer == example.answer else wrong

    return metric


def with_closure(wrong: float) -> Callable[..., float]:
    """Return a metric that encloses a value."""

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return 1.0 if prediction.answer == example.answer else wrong

    return metric


@dataclass
class Grader:
    """A metric that is an object."""

    wrong: float

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        """Score."""
        return 1.0 if prediction.answer == example.answer else self.wrong


def bound(example: dspy.Example, prediction: dspy.Prediction, trace: object = None, *, wrong: float) -> float:
    """Score, by an argument that is bound elsewhere."""
    return 1.0 if prediction.answer == example.answer else wrong


class Program(dspy.Module):  # type: ignore[misc]
    """A program with an attribute, and a part that has one."""

    def __init__(self, upper: bool = False, table: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.say, self.upper, self.table = plain(), upper, dict(table or {})

    def forward(self, question: str) -> dspy.Prediction:
        """Answer."""
        answer = str(self.say(question=question).answer)
        return dspy.Prediction(answer=answer.upper() if self.upper else self.table.get(answer, answer))


def edited_program(suffix: bool) -> dspy.Module:
    """Return a program whose class has the same name, and other code."""

    class Edited(Program):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=str(self.say(question=question).answer))

    class Later(Program):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=str(self.say(question=question).answer) + ".")

    Later.__name__, Later.__qualname__ = Edited.__name__, Edited.__qualname__
    return Later() if suffix else Edited()


@dataclass(frozen=True)
class Setup:
    """All that a compile is given; a change is a difference of two."""

    compiler: str = "iterative-ape"
    model: str = "target"
    own_model: str = ""
    path: str = ""
    lm: Mapping[str, object] = field(default_factory=dict)
    adapter: Callable[[], dspy.Adapter] | None = None
    student: Callable[[], dspy.Module] = plain
    metric: Callable[..., float] = strict
    trainset: Sequence[dspy.Example] = tuple(TRAIN)
    prepare: Callable[[], object] = lambda: None
    options: Mapping[str, object] = field(default_factory=dict)

    def compile(self, server: Server, run_dir: Path) -> str:
        """Compile and return the result's digest."""
        where: dict[str, Any] = {"api_key": KEY, "cache": False, "api_base": server.base + self.path}
        lm = dspy.LM(f"openai/{self.model}", **{**where, **self.lm})
        student = self.student()
        if self.own_model:
            student.set_lm(dspy.LM(f"openai/{self.own_model}", **where))
        options = {**options_of(self.compiler), **self.options}
        self.prepare()
        with dspy.context(lm=lm, adapter=self.adapter() if self.adapter else None):
            compiled = cuesmith.compile(
                student, self.compiler, metric=self.metric, trainset=list(self.trainset), valset=VALID, run_dir=run_dir,
                max_in_flight=4, optimizer_lm=dspy.LM("openai/optimizer", **where), **options,
            )  # fmt: skip
        return result_of(compiled)


def rebound(name: str, value: object) -> Callable[[], object]:
    """Return what sets a name of this module."""
    return lambda: globals().update({name: value})


def signed(text: str) -> Callable[[], dspy.Module]:
    """Return what makes a program of that signature."""
    return lambda: dspy.Predict(dspy.Signature(text, "Answer as you are asked."))


STRICTER = lambda right: 1.0 if right else 0.3  # noqa: E731  (a helper as another writes it)
SWAP = {example.answer: "?" for example in VALID}
CHANGES: Mapping[str, tuple[Setup, Setup]] = {
    "the model's name": (Setup(), Setup(model="other")),
    "the seed": (Setup(), Setup(options={"seed": 1})),
    "the trainset": (Setup(), Setup(trainset=tuple(examples(10, "others")))),
    "the compiler": (Setup(), Setup(compiler="opro")),
    "an option": (Setup(), Setup(options={"initial": 4})),
    "a helper of the metric": (Setup(metric=by_helper), Setup(metric=by_helper, prepare=rebound("grade", STRICTER))),
    "a default argument of the metric": (Setup(metric=with_default(0.2)), Setup(metric=with_default(0.3))),
    "a value that the metric encloses": (Setup(metric=with_closure(0.2)), Setup(metric=with_closure(0.3))),
    "an attribute of the metric": (Setup(metric=Grader(0.2)), Setup(metric=Grader(0.3))),
    "forward's code": (Setup(student=lambda: edited_program(False)), Setup(student=lambda: edited_program(True))),
    "an attribute of the program": (Setup(student=Program), Setup(student=lambda: Program(upper=True))),
    "a predictor's own model": (Setup(), Setup(own_model="other")),
    "a field's type": (Setup(student=signed("question -> answer")), Setup(student=signed("question -> answer: int"))),
    "the temperature": (Setup(), Setup(lm={"temperature": 0.5})),
    "max_tokens": (Setup(lm={"max_tokens": 1000}), Setup(lm={"max_tokens": 900})),
    "api_base": (Setup(), Setup(path="/v2")),
    "the adapter": (Setup(), Setup(adapter=dspy.JSONAdapter)),
    # Beyond the seventeen: the same kinds by other ways.
    "a partial argument of the metric": (
        Setup(metric=functools.partial(bound, wrong=0.2)), Setup(metric=functools.partial(bound, wrong=0.3))),
    "a table that a helper reads": (
        Setup(metric=by_helper), Setup(metric=by_helper, prepare=lambda: GRADES.update(wrong=0.3))),
    "a dict of the program": (Setup(student=Program), Setup(student=lambda: Program(table=SWAP))),
    "the program's class": (Setup(student=Program), Setup(student=lambda: edited_program(True))),
    "a field's name": (Setup(student=signed("question -> answer")), Setup(student=signed("question -> hint, answer"))),
}  # fmt: skip
SEVENTEEN = 17


def changes(given: argparse.Namespace) -> int:
    """Compile, change, compile again in the same directory and in a fresh one; returns how many go wrong."""
    printed = Table("change", "calls again", "verdict", title="Changes", title_justify="left")
    own, rows = grade, list[dict[str, Any]]()
    for n, (name, (before, after)) in enumerate(CHANGES.items(), 1):
        with tempfile.TemporaryDirectory() as directory, Choosy(Rule()) as server:
            place = Path(directory)
            first = before.compile(server, place / "run")
            paid = len(server.answered)
            assert before.compile(server, place / "run") == first, f"{name}: the same again gives something else"
            kept = len(server.answered) == paid
            paid = len(server.answered)
            try:
                later = after.compile(server, place / "run")
                again = len(server.answered) - paid
            except Exception as error:
                later, again = f"{type(error).__name__}: {error}", 0
            fresh = after.compile(server, place / "fresh")
        globals()["grade"] = own
        GRADES["wrong"] = 0.2
        refused = later.startswith("JournalError")
        stale = "STALE: the old result" if later == first else "MIXED: neither the old nor a fresh result"
        verdict = "refused" if refused else "as a fresh run" if later == fresh else later if ":" in later else stale
        verdict += " (which are the same: nothing was tested)" if fresh == first else ""
        verdict += "" if kept else "; and the SAME again made calls"
        right = kept and fresh != first and (refused or later == fresh)
        rows.append({"change": name, "verdict": verdict, "again": again, "right": right})
        printed.add_row(f"{n}. {name}", str(again), verdict)
    Console(width=120).print(printed)
    keep(given, rows)
    wrong = [row["change"] for row in rows if not row["right"]]
    print(f"{sum(row['right'] for row in rows[:SEVENTEEN])} of {SEVENTEEN} right; {len(wrong)} wrong in all")
    return len(wrong)


# --- memory ------------------------------------------------------------------------------------------------


class Forgetful:
    """A model in this process that keeps nothing: another instruction for every draw, and answers by the rule."""

    def __init__(self) -> None:
        self.runs = 0

    def complete(self, request: Any) -> Any:
        """Answer."""
        sent = Sent(str(request.system or ""), tuple(str(m.text or "") for m in request.messages), draw.get())
        asked = sent.asked
        if "answer" in asked.outputs:
            self.runs += 1
            text = ruled(sent)
        else:
            number = hashlib.md5(repr((sent.text, sent.draw)).encode()).hexdigest()
            text = asked.render(dict.fromkeys(asked.outputs, f"Name the last word, as in case {number}."))
        usage = dspy.lm15.Usage(input_tokens=400, output_tokens=100, total_tokens=500)
        told = dspy.lm15.Message.assistant(text)
        return dspy.lm15.Response(id="1", model=request.model, message=told, finish_reason="stop", usage=usage)

    def __deepcopy__(self, memo: object) -> Forgetful:
        """Return itself."""
        return self


def resident() -> float:
    """Return the megabytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(given: argparse.Namespace) -> int:
    """Compile with 20,000 program runs; returns whether it grows, or leaves something open."""
    engine, peak, over = Forgetful(), [0.0], threading.Event()
    train, valid = examples(60, "train"), examples(100, "valid")

    def compiled(steps: int, width: int) -> Any:
        lm = dspy.LM("test/forgetful", engine=engine, cache=False)
        with tempfile.TemporaryDirectory() as run_dir, dspy.context(lm=lm):
            return cuesmith.compile(
                plain(), "iterative-ape", metric=strict, trainset=train, valset=valid, run_dir=run_dir, steps=steps,
                width=width, branch=width, initial=width, max_in_flight=16, racing=False,
            ).compilation  # fmt: skip

    def watch() -> None:
        while not over.wait(0.2):
            peak[0] = max(peak[0], resident())

    compiled(1, 2)
    open_before, threads_before, engine.runs = len(os.listdir("/proc/self/fd")), threading.active_count(), 0
    before, began = resident(), time.monotonic()
    watcher = threading.Thread(target=watch)
    watcher.start()
    found = compiled(16, 5)
    over.set()
    watcher.join()
    grown = max(peak[0], resident()) - before
    threads, files = threading.active_count() - threads_before, len(os.listdir("/proc/self/fd")) - open_before
    print(f"{engine.runs:,} program runs of {len(found.candidates)} candidates in {time.monotonic() - began:.0f} s: "
          f"{before:.0f} MB, {grown:+.0f} MB at the peak; threads {threads:+}, open files {files:+}")  # fmt: skip
    keep(given, {"runs": engine.runs, "before_mb": before, "grown_mb": grown, "threads": threads, "files": files})
    return int(engine.runs < 20_000) + int(grown >= 100) + int(threads > 0) + int(files > 0)


# --- signals -----------------------------------------------------------------------------------------------


def slow(http: Http, answer: Body) -> None:
    """Answer after a tenth of a second."""
    time.sleep(0.1)
    send(http, 200, json.dumps(answer).encode())


WAYS = ("script", "asyncio.run", "notebook")
"""How `compile` is called: from a script; by a coroutine under `asyncio.run`, which takes SIGINT for itself; by a
coroutine in a loop that leaves SIGINT to Python, as a notebook does."""


def interrupted(way: str, base: str, run_dir: str) -> None:
    """Compile until a signal comes, and say what it raised (the child process of `signals`)."""

    def work() -> object:
        lm = dspy.LM("openai/target", api_base=base, api_key=KEY, cache=False)
        other = dspy.LM("openai/optimizer", api_base=base, api_key=KEY, cache=False)
        with dspy.context(lm=lm):
            return cuesmith.compile(plain(), "iterative-ape", metric=strict, trainset=TRAIN, valset=VALID,
                                    optimizer_lm=other, max_in_flight=4, run_dir=run_dir, steps=8)  # fmt: skip

    async def task() -> object:
        return work()

    try:
        if way == "script":
            work()
        elif way == "asyncio.run":
            asyncio.run(task())
        else:
            asyncio.new_event_loop().run_until_complete(task())
    except BaseException as error:
        best = getattr(error, "program", None)
        print(json.dumps({"type": type(error).__name__, "text": str(error), "program": best is not None}), flush=True)
        raise


@dataclass(frozen=True)
class Ended:
    """How a compile ended after a signal: seconds, None if it had to be killed; what it raised, and what it said."""

    way: str
    signal: str
    provider: str
    later_calls: int
    seconds: float | None
    code: int
    raised: str
    program: bool
    text: str

    @property
    def right(self) -> bool:
        """Whether it was quick, sent nothing more, handed the best so far out and said how to go on."""
        wanted = {"SIGINT": "Interrupted", "SIGTERM": "Terminated"}[self.signal]
        quick = self.seconds is not None and self.seconds < 10
        return quick and self.later_calls == 0 and self.raised == wanted and self.program and bool(self.text)


def signalled(way: str, which: signal.Signals, fault: Fault) -> Ended:
    """Send a signal to a compile in a process of its own."""
    with tempfile.TemporaryDirectory() as directory, provider(fault, Path(directory) / "log") as (base, _):
        log = Path(directory) / "log"
        command = [sys.executable, str(Path(__file__).with_name("faults.py")), "--child", way, base, f"{directory}/run"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            while (not log.exists() or log.read_text().count('"fault"') < 24) and child.poll() is None:
                time.sleep(0.05)
            time.sleep(0.5)
            sent = time.monotonic()
            child.send_signal(which)
            try:
                out, shown = child.communicate(timeout=30)
                took: float | None = round(time.monotonic() - sent, 1)
            except subprocess.TimeoutExpired:
                child.kill()
                out, shown = child.communicate()
                took = None
        late = sum("fault" in line and line["at"] > sent + SCHEDULING for line in read_log(log))
    told: Found = json.loads(out.splitlines()[-1]) if out.strip() else {"type": "", "text": "", "program": False}
    text = told["text"] or (shown.strip().splitlines() or [""])[-1]
    return Ended(way, which.name, fault.what, late, took, child.returncode, told["type"], told["program"], text)


def signals(given: argparse.Namespace) -> int:
    """Send SIGINT and SIGTERM to compiles; returns how many do not end as they should."""
    printed = Table("called in", "signal", "provider", "later calls", "exit, s", "code", "raised", "best so far",
                    "text", title="Signals", title_justify="left")  # fmt: skip
    providers = (Fault("well", slow, "from the start"), Fault("hung", hang, "after 20"))
    rows = [signalled(*one) for one in itertools.product(WAYS, (signal.SIGINT, signal.SIGTERM), providers)]
    for row in rows:
        took = "killed" if row.seconds is None else f"{row.seconds:.1f}"
        printed.add_row(
            row.way, row.signal, row.provider, str(row.later_calls), took, str(row.code), row.raised or "nothing",
            "yes" if row.program else "no", row.text[:60], style="" if row.right else "red",
        )  # fmt: skip
    Console(width=170).print(printed)
    keep(given, rows)
    print(f"{sum(row.right for row in rows)} of {len(rows)} right")
    return sum(not row.right for row in rows)
