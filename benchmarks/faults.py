"""What becomes of a compile when its provider fails, its process dies or its arguments change: measured from outside.

    python benchmarks/faults.py [--quick] [--compilers abo gepa ...] [--faults 503 ...] [--in-flight 1 8 64]
                                [--no-peers] [--slots 10] [--json FILE]
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
which they score as 0. `--kills` ends compiles by SIGKILL at points spread over all their calls and compares what the next
compile in the same directory returns. `--changes` does so after the program, the metric or a model has changed: right is
a refusal, or what a fresh run gives. `--memory` is a compile of 20,000 program runs, `--signals` Ctrl-C and SIGTERM.

The exit status is 1 if a promise of the README is broken anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import hashlib
import importlib
import importlib.util
import itertools
import json
import logging
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal, TypeAlias

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dspy
import litellm  # noqa: F401  (before the forks: each would load it for itself)
from rich.console import Console
from rich.table import Table

import cuesmith
from cuesmith.modules.sampling import draw
from cuesmith.modules.simulated_optimizer import SimulatedOptimizerEngine
from cuesmith.teleprompters.conformance import KEY, Engine, Sent, Server, examples, facts, graded, plain, ruled
from cuesmith.teleprompters.registry import COMPILERS, compiler_class
from cuesmith.teleprompters.runtime.events import EffectDone, Event

Role = Literal["target", "optimizer", "judge"]
Http: TypeAlias = BaseHTTPRequestHandler
Body: TypeAlias = dict[str, Any]
Does: TypeAlias = Callable[[Http, Body], None]

TRAIN, VALID = examples(10, "train"), examples(16, "valid")
WATCHED = 3.0
"""Seconds that the provider is watched after a compile has come back."""
PATIENCE, PEERS_PATIENCE = 150.0, 45.0
"""Seconds after which a compile that has not come back is ended: ours, dspy's."""
SCHEDULING = 0.1
"""Seconds that a request may take from the socket to the provider's note of it."""
UNORDERED = ("simba", "bootstrap")
"""Compilers whose decisions hang on the order in which answers arrive (README, Limits)."""
FORK = multiprocessing.get_context("fork")

OPTIONS: Mapping[str, Mapping[str, object]] = {
    "mipro": {"auto": None, "num_candidates": 2, "num_trials": 3, "max_bootstrapped_demos": 2,
              "max_labeled_demos": 2, "minibatch": False},
    "gepa": {"max_metric_calls": 50},
    "simba": {"bsize": 4, "num_candidates": 3, "max_steps": 3, "max_demos": 2},
    "copro": {"breadth": 2, "depth": 2},
    "bootstrap": {"num_candidate_programs": 2, "max_bootstrapped_demos": 2, "max_labeled_demos": 2},
}  # fmt: skip
LOADED: Mapping[str, Sequence[str]] = {
    "mipro": ["optuna"], "align-pro": ["peft", "cuesmith.teleprompters.alignment.engine", "cuesmith.teleprompters.alignment.ppo"]}
"""What a compiler imports late: it is imported before the forks, which would each do so for themselves."""
SMALL: Mapping[str, object] = {"width": 2, "branch": 2, "steps": 1, "initial": 2, "init_examples": 4, "minibatch": 4}
"""Options for compiles of some fifty to two hundred calls."""


def options_of(compiler: str) -> dict[str, Any]:
    """Return options that make a compiler's compile small."""
    if compiler != "align-pro":
        known = compiler_class(compiler).options()
        return dict(OPTIONS.get(compiler) or {name: value for name, value in SMALL.items() if name in known})
    from cuesmith.modules.tiny import tiny_policy
    from cuesmith.teleprompters.alignment.training import Training

    words = {word for example in TRAIN for word in example.question.split()}
    training = Training(steps=3, batch_size=8, generations=2, max_new_tokens=3, learning_rate=1e-3)
    policy = tiny_policy(words, hidden=16, layers=1)
    return {"prompter": policy, "training": training, "rewrites": 2, "yardstick": 0}


# --- faults ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A way to fail.

    Attributes:
        what: Its name.
        does: What is done with a request in place of answering it: the connection, and the right answer.
        when: Which requests of that model it befalls, a key of `WHEN`.
        who: Which model fails.
        stops: What the compile may be stopped by.
        within: Seconds in which it must be over then.
        own: Whether it is the model's own failure, which may cost it the example.
        timeout: The compile's `example_timeout`.
        around: What stands around the calls, if not a bare predictor and an exact match: one of `CLEAN`'s.
    """

    what: str
    does: Does
    when: str = "burst of 20"
    who: Role = "target"
    stops: tuple[str | None, ...] = (None, "outage")
    within: float = 60.0
    own: bool = False
    timeout: float = 600.0
    around: str = ""

    @property
    def name(self) -> str:
        """What is shown of it."""
        parts = (self.what, "" if self.who == "target" else f"{self.who} only", self.around, self.when)
        return ", ".join(part for part in parts if part)

    def __reduce__(self) -> tuple[Callable[[str], Fault], tuple[str]]:
        """Travel to another process by name."""
        return fault_named, (self.name,)


def fault_named(name: str) -> Fault:
    """Return a fault of the table."""
    return next(fault for fault in FAULTS if fault.name == name)


WHEN: Mapping[str, Callable[[int], bool]] = {
    "never": lambda nth: False,
    "from the start": lambda nth: True,
    "after 20": lambda nth: nth > 20,
    "every 3rd": lambda nth: nth % 3 == 0,
    "burst of 20": lambda nth: 10 < nth <= 30,
}


def send(http: Http, code: int, data: bytes, headers: Mapping[str, str] | None = None, length: int | None = None) -> None:
    """Send a response, and say that it has `length` bytes."""
    http.send_response(code)
    given = {"Content-Type": "application/json", "Content-Length": str(len(data) if length is None else length)}
    for name, value in {**given, **(headers or {})}.items():
        http.send_header(name, value)
    http.end_headers()
    http.wfile.write(data)


def status(code: int, kind: str = "server_error", text: str = "no luck", **headers: str) -> Does:
    """Refuse with a status, as OpenAI words it."""
    error = {"error": {"message": text, "type": kind, "code": kind, "param": None}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda http, answer: send(http, code, json.dumps(error).encode(), named)


def says(data: str) -> Does:
    """Say 200, and something else than an answer."""
    return lambda http, answer: send(http, 200, data.encode())


def edited(change: Callable[[Body], object]) -> Does:
    """Say 200 with the answer, changed."""

    def does(http: Http, answer: Body) -> None:
        change(answer)
        send(http, 200, json.dumps(answer).encode())

    return does


def message(finish: str = "stop", **fields: object) -> Does:
    """Say 200 with another message."""

    def change(answer: Body) -> None:
        answer["choices"][0]["finish_reason"] = finish
        answer["choices"][0]["message"].update(fields)

    return edited(change)


def cut(answer: Body) -> None:
    """Keep half of the answer's text."""
    text = answer["choices"][0]["message"]["content"]
    answer["choices"][0].update(finish_reason="length")
    answer["choices"][0]["message"]["content"] = text[: len(text) // 2]


def reset(http: Http, answer: Body) -> None:
    """Reset the connection."""
    http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    http.close_connection = True
    http.connection.close()


def drop(http: Http, answer: Body) -> None:
    """Hang up in the middle of the answer."""
    data = json.dumps(answer).encode()
    send(http, 200, data[: len(data) // 2], length=len(data))
    http.close_connection = True
    http.connection.shutdown(socket.SHUT_RDWR)


def hang(http: Http, answer: Body) -> None:
    """Never answer."""
    time.sleep(3600)


def drip(http: Http, answer: Body) -> None:
    """Send the answer at a byte each half second."""
    data = json.dumps(answer).encode()
    send(http, 200, b"", length=len(data))
    for byte in data:
        time.sleep(0.5)
        http.wfile.write(bytes([byte]))


_LONG = ("context_length_exceeded", "This model's maximum context length is 8192 tokens; you requested 9000.")
_WARM = ("unsupported_value", "Unsupported value: 'temperature' does not support 1.0 with this model.")

CLEAN: Sequence[Fault] = [
    Fault("none", hang, "never", stops=(None,), around=around)
    for around in ("", "a forgiving program", "a judge", "a judge that swallows errors")
]
"""No fault: what a run needs, with each thing that stands around the calls."""

FAULTS: Sequence[Fault] = (
    *CLEAN,
    Fault("401", status(401, "invalid_api_key"), "from the start", stops=("auth",), within=10),
    Fault("401", status(401, "invalid_api_key"), "after 20", stops=("auth",), within=10),
    Fault("402", status(402, "billing"), "after 20", stops=("billing",), within=10),
    Fault("403", status(403, "forbidden"), "after 20", stops=("auth", "configuration"), within=10),
    Fault("404", status(404, "model_not_found"), "after 20", stops=("configuration",), within=10),
    Fault("429, no credit", status(429, "insufficient_quota"), "after 20", stops=("billing",), within=10),
    Fault("408", status(408, "timeout")),
    Fault("429", status(429, "rate_limit_exceeded")),
    Fault("429, Retry-After 1", status(429, "rate_limit_exceeded", Retry_After="1")),
    Fault("429, Retry-After 3600", status(429, "rate_limit_exceeded", Retry_After="3600"), "after 20",
          stops=("outage",), timeout=2),
    Fault("500", status(500)),
    Fault("502", status(502)),
    Fault("503", status(503)),
    Fault("503", status(503), "every 3rd", stops=(None,)),
    Fault("503", status(503), "from the start", stops=("outage",)),
    Fault("503", status(503), "after 20", stops=("outage",)),
    Fault("529", status(529, "overloaded_error")),
    Fault("reset", reset),
    Fault("drop in mid-body", drop),
    Fault("hang", hang, "after 20", stops=("outage",), timeout=2),
    Fault("slow body", drip, "after 20", stops=("outage",), timeout=2),
    Fault("200, error body", says('{"error": {"message": "upstream failed", "type": "server_error", "code": 500}}')),
    Fault("200, HTML", says("<html><body>Bad gateway</body></html>")),
    Fault("200, cut JSON", says('{"id": "1", "object": "chat.completion", "choices": [{"index": 0, "mess')),
    Fault("200, empty body", says("")),
    Fault("200, no choices", edited(lambda answer: answer.pop("choices"))),
    Fault("200, empty choices", edited(lambda answer: answer.update(choices=[]))),
    Fault("200, content null", message(content=None)),
    Fault("200, content null", message(content=None), "every 3rd"),
    Fault("200, content_filter", message("content_filter", content=None)),
    Fault("200, cut at max_tokens", edited(cut), own=True),
    Fault("200, refusal", message(content=None, refusal="I can't help with that."), own=True),
    Fault("400, context length", status(400, *_LONG), own=True),
    Fault("400, temperature", status(400, *_WARM), "from the start", stops=("configuration", "outage", None), own=True),
    Fault("503", status(503), "after 20", stops=("outage",), around="a forgiving program"),
    Fault("503", status(503), "from the start", "judge", stops=("outage",), around="a judge"),
    Fault("503", status(503), "after 20", "judge", stops=("outage",), around="a judge that swallows errors"),
    Fault("200, content null", message(content=None), who="judge", around="a judge"),
    Fault("503", status(503), "from the start", "optimizer", stops=("outage",)),
    Fault("401", status(401, "invalid_api_key"), "from the start", "optimizer", stops=("auth",), within=10),
    Fault("hang", hang, "from the start", "optimizer", timeout=2),
    Fault("200, content null", message(content=None), "from the start", "optimizer"),
    Fault("200, cut at max_tokens", edited(cut), "every 3rd", "optimizer"),
    Fault("400, context length", status(400, *_LONG), "every 3rd", "optimizer", stops=(None,)),
    Fault("400, temperature", status(400, *_WARM), "from the start", "optimizer", stops=("configuration", "outage", None)),
)  # fmt: skip
QUICK = {
    "none, never", "401, after 20", "429, Retry-After 1, burst of 20", "503, every 3rd", "reset, burst of 20",
    "hang, after 20", "200, content null, burst of 20", "503, judge only, a judge that swallows errors, after 20",
    "401, optimizer only, from the start",
}  # fmt: skip


# --- the provider ------------------------------------------------------------------------------------------


class Rule:
    """The rule by which all three models answer."""

    def __init__(self) -> None:
        self.fails = threading.local()
        self._drawn: Counter[Sent] = Counter()
        self._engine, self._lock = SimulatedOptimizerEngine(), threading.Lock()

    def __call__(self, sent: Sent) -> str:
        """Answer; another request for the same is another draw, unless the answer `fails` to arrive."""
        asked = sent.asked
        if set(asked.outputs) & {"answer", "hint"}:
            return ruled(sent)
        if "verdict" in asked.outputs:
            return asked.render({"verdict": "yes" if asked.inputs["wanted"] == asked.inputs["given"] else "no"})
        with self._lock:
            number = self._drawn[sent]
            self._drawn[sent] += not getattr(self.fails, "now", False)
        return asked.render(self._engine.answer(asked, number if sent.draw is None else sent.draw))


class FaultyServer(Server):
    """A provider that fails as it is told and writes down every request.

    Args:
        fault: How and when.
        log: File of one JSON line for a request's arrival, and another for its right answer.
        session: Shared with the parent: 0 for the first compile, 1 for its resumption, when all is well.
    """

    def __init__(self, fault: Fault, log: Path, session: Any) -> None:
        self.rule = Rule()
        super().__init__(self.rule)
        self.fault, self.session = fault, session
        self._log = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._seen: Counter[str] = Counter()
        self._counting = threading.Lock()

    def _write(self, **line: object) -> None:
        line |= {"at": time.monotonic(), "session": self.session.value}
        os.write(self._log, (json.dumps(line) + "\n").encode())

    def respond(self, http: Http, body: Mapping[str, object]) -> None:
        """Answer, or fail."""
        role = str(body["model"])
        with self._counting:
            self._seen[role] += 1
            nth = self._seen[role]
        befallen = role == self.fault.who and WHEN[self.fault.when](nth) and self.session.value == 0
        key = hashlib.md5(json.dumps([role, body["messages"]]).encode()).hexdigest()
        self._write(role=role, key=key, fault=befallen)
        self.rule.fails.now = befallen
        answer = self.answer(body)
        assert answer is not None and isinstance(answer[1], dict)
        try:
            if befallen:
                self.fault.does(http, answer[1])
            else:
                send(http, *(answer[0], json.dumps(answer[1]).encode()))
                self._write(answered=key, role=role)
        except OSError:  # the client has given up
            http.close_connection = True


def serve(fault: Fault, log: Path, port: Any, session: Any) -> None:
    """Be a provider until the process is ended."""
    silence()
    with FaultyServer(fault, log, session) as server:
        port.value = int(server.base.split(":")[2].split("/")[0])
        signal.pause()


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


def strict(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
    """Score as `graded`, and what `Forgiving` answers for a failed call 0.0."""
    return graded(example, prediction) if prediction.answer else 0.0


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


Found: TypeAlias = dict[str, Any]


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


def result_of(compiled: dspy.Module) -> str:
    """Return a digest of what two runs of one compile must have in common."""
    known = facts(compiled.compilation, spent=False)
    kept = [known[name] for name in ("best", "candidates", "gain", "stopped_by")]
    kept.append(getattr(getattr(compiled, "prompter", None), "fingerprint", None))
    return hashlib.md5(json.dumps(kept).encode()).hexdigest()


def native_gepa(metric: Callable[..., float], lms: Mapping[str, dspy.BaseLM], threads: int) -> None:
    """Compile by dspy's GEPA."""

    def five(gold: Any, pred: Any, trace: Any = None, name: Any = None, inner: Any = None) -> float:
        return metric(gold, pred)

    dspy.GEPA(metric=five, max_metric_calls=50, reflection_lm=lms["optimizer"], num_threads=threads).compile(
        Counted(), trainset=TRAIN, valset=VALID[:8]
    )


def native_mipro(metric: Callable[..., float], lms: Mapping[str, dspy.BaseLM], threads: int) -> None:
    """Compile by dspy's MIPROv2."""
    made = dspy.MIPROv2(metric=metric, prompt_model=lms["optimizer"], task_model=lms["target"], auto=None,
                        num_candidates=2, max_bootstrapped_demos=2, max_labeled_demos=2, num_threads=threads)  # fmt: skip
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


def forked(work: Callable[[], Found], place: Path, stays: float = 0.0, patience: float = PATIENCE) -> Found | None:
    """Do the work in a process of its own, which then stays a while; None if it was not done in time."""

    def child() -> None:
        silence()
        found = work()
        part = place.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.rename(place)
        time.sleep(stays)
        os._exit(0)  # threads that were left behind are not waited for

    process = FORK.Process(target=child)
    process.start()
    process.join(patience + stays)
    if process.is_alive():
        process.kill()
        process.join()
    return json.loads(place.read_text()) if place.exists() else None


def silence() -> None:
    """Keep libraries off the table."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    logging.disable()


def run_cell(cell: Cell, needed: Mapping[str, int]) -> Row:
    """Compile while the fault lasts, then resume without it."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        port, session = FORK.Value("i", 0), FORK.Value("i", 0)
        provider = FORK.Process(target=serve, args=(cell.fault, place / "log", port, session))
        provider.start()
        while not port.value:
            time.sleep(0.01)
        base = f"http://127.0.0.1:{port.value}/v1"
        work = functools.partial(compile_once, cell, base, None if cell.compiler in PEERS else place / "run")
        try:
            began = time.monotonic()
            patience = PEERS_PATIENCE if cell.compiler in PEERS else PATIENCE
            first = forked(work, place / "first.json", WATCHED, patience)
            ended = time.monotonic()
            session.value = 1
            log = [json.loads(line) for line in (place / "log").read_text().splitlines()]
            resumes = first is not None and cell.compiler not in PEERS and any("answered" in line for line in log)
            second = forked(work, place / "second.json") if resumes else None
            log = [json.loads(line) for line in (place / "log").read_text().splitlines()]
        finally:
            provider.kill()
            provider.join()
    if first is None:
        first = {"began": began, "returned": ended, "zeros": 0, "counted": None, "stopped": "(killed)", "said": ""}
    row = _row(cell, first, log, needed)
    resumed = "" if second is None or "error" not in second else f"resumed: {second['error']}: {second['said']}"
    return replace(row, wrong=broken(cell, row, resumed))


def _row(cell: Cell, first: Found, log: Sequence[Found], needed: Mapping[str, int]) -> Row:
    arrived = [line for line in log if "fault" in line and line["session"] == 0]
    answered = Counter(line["answered"] for line in log if "answered" in line)
    known = needed or answered
    # How often a request is due that a clean run does not make is not known of draws, and of what dspy's own search runs.
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
    names = ("fault", "compiler", "in flight", "requests", "zeros", "repeated", "late", "stop, s", "stopped by", "wrong")
    own = {fault.name for fault in FAULTS if fault.own}
    printed = Table(*names, title="Faults", title_justify="left")
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
        console.print(f"{row.fault}, {row.compiler}, {row.in_flight}: {row.said[:160]!r}", markup=False, highlight=False)
    wrong = [row for row in rows if row.wrong]
    ours = [row for row in rows if row.compiler not in PEERS]
    print(f"\n{len(ours)} rows of ours: {len(ours) - len(wrong)} keep every promise, {len(wrong)} do not")
    return len(wrong)


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
    """Kill compiles of all compilers, with and without a cap, at 1 and 8 in flight; returns how many ended otherwise."""
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

    def respond(self, http: Http, body: Mapping[str, object]) -> None:
        """Answer."""
        super().respond(http, {**body, "path": http.path})

    def answer(self, body: Mapping[str, object]) -> tuple[int, object] | None:
        """Answer one request."""
        options = repr([body.get(name) for name in ("model", "temperature", "max_tokens", "max_completion_tokens", "path")])

        def right(sent: Sent) -> bool:
            told = hashlib.md5(repr((options, sent.asked.as_json, sent.system, sent.turns[-1])).encode()).digest()
            return told[0] % 2 == 0

        plainly = Rule()
        self.reply = lambda sent: ruled(sent, right) if "answer" in sent.asked.outputs else plainly(sent)
        return super().answer(body)


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
    own, printed, wrong, rows = grade, Table("change", "calls again", "verdict", title="Changes", title_justify="left"), 0, []
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
        verdict = ("refused" if refused else "as a fresh run" if later == fresh else "STALE: the old result"
                   if later == first else later if ":" in later else "MIXED: neither the old nor a fresh result")  # fmt: skip
        verdict += " (which are the same: nothing was tested)" if fresh == first else ""
        verdict += "" if kept else "; and the SAME again made calls"
        right = kept and fresh != first and (refused or later == fresh)
        wrong += not right
        rows.append({"change": name, "verdict": verdict, "again": again, "right": right})
        printed.add_row(f"{n}. {name}", str(again), verdict)
    Console(width=120).print(printed)
    keep(given, rows)
    print(f"{sum(bool(row['right']) for row in rows[:SEVENTEEN])} of {SEVENTEEN} right; {wrong} wrong in all")
    return wrong


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
            text = "\n\n".join(f"[[ ## {name} ## ]]\nName the last word, as in case {number}." for name in asked.outputs)
            text += "\n\n[[ ## completed ## ]]"
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
        with tempfile.TemporaryDirectory() as run_dir, dspy.context(lm=dspy.LM("test/forgetful", engine=engine, cache=False)):
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
"""How `compile` is called: from a script; by a coroutine under `asyncio.run`, which takes SIGINT for itself; by a coroutine
in a loop that leaves SIGINT to Python, as a notebook does."""


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
        told = {"type": type(error).__name__, "text": str(error), "program": getattr(error, "program", None) is not None}
        print(json.dumps(told), flush=True)
        raise


def signals(given: argparse.Namespace) -> int:
    """Send SIGINT and SIGTERM to compiles; returns how many do not end as they should."""
    printed = Table("called in", "signal", "provider", "later calls", "exit, s", "code", "raised", "best so far", "text",
                    title="Signals", title_justify="left")  # fmt: skip
    wrong, rows = 0, []
    hung = Fault("hang", hang, "after 20")
    for way, which, fault in itertools.product(WAYS, (signal.SIGINT, signal.SIGTERM), (Fault("well", slow, "from the start"), hung)):
        with tempfile.TemporaryDirectory() as directory:
            port, session, log = FORK.Value("i", 0), FORK.Value("i", 0), Path(directory) / "log"
            provider = FORK.Process(target=serve, args=(fault, log, port, session))
            provider.start()
            while not port.value:
                time.sleep(0.01)
            command = [sys.executable, __file__, "--child", way, f"http://127.0.0.1:{port.value}/v1", f"{directory}/run"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
                while not log.exists() or (log.read_text().count('"fault"') < 24 and child.poll() is None):
                    time.sleep(0.05)
                time.sleep(0.5)
                sent = time.monotonic()
                child.send_signal(which)
                try:
                    out, shown = child.communicate(timeout=30)
                except subprocess.TimeoutExpired:
                    child.kill()
                    out, shown = child.communicate()
                took = time.monotonic() - sent
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            provider.kill()
            provider.join()
        late = sum("fault" in line and line["at"] > sent + SCHEDULING for line in lines)
        told = json.loads(out.splitlines()[-1]) if out.strip() else {"type": "", "text": "", "program": False}
        text = told["text"] or (shown.strip().splitlines() or [""])[-1]
        wanted = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}[which]
        right = told["type"] == wanted and told["program"] and late == 0 and took < 10 and bool(told["text"])
        wrong += not right
        row = (way, which.name, fault.what, str(late), f"{took:.1f}" if took < 30 else "killed", str(child.returncode),
               told["type"] or "nothing", "yes" if told["program"] else "no", text[:60])  # fmt: skip
        rows.append(dict(zip(("way", "signal", "provider", "late", "seconds", "code", "raised", "best", "text"), row, strict=True)))
        printed.add_row(*row, style="" if right else "red")
    Console(width=170).print(printed)
    keep(given, rows)
    print(f"{len(rows) - wrong} of {len(rows)} right")
    return wrong


# --- the command -------------------------------------------------------------------------------------------


def keep(given: argparse.Namespace, found: object) -> None:
    """Write what was found to the file asked for."""
    if given.json is not None:
        plainly = [asdict(row) for row in found] if isinstance(found, list) and found and not isinstance(found[0], dict) else found
        given.json.write_text(json.dumps(plainly, indent=1), encoding="utf-8")


def available(names: Sequence[str]) -> Iterator[str]:
    """Yield the compilers that can run here, loaded, and say which cannot."""
    for name in names:
        missing = [m for m in ("torch", "trl") if name == "align-pro" and importlib.util.find_spec(m) is None]
        if missing:
            print(f"{name} is left out: {missing[0]} is not installed", file=sys.stderr)
            continue
        compiler_class(name)
        for module in LOADED.get(name, ()):
            importlib.import_module(module)
        if name == "align-pro":
            options_of(name)
            sys.modules["torch"].set_num_threads(1)
        yield name


def main() -> int:
    """Measure what is asked for, print it, and return whether a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="nine faults and four compilers at 8 in flight")
    parser.add_argument("--compilers", nargs="+", choices=[*COMPILERS], metavar="NAME", help="default: all")
    parser.add_argument("--faults", nargs="+", metavar="TEXT", help="those whose name has one of these in it")
    parser.add_argument("--in-flight", type=int, nargs="+", help="default: 8, and 1 and 64 for the faults of --quick")
    parser.add_argument("--no-peers", action="store_true", help="without dspy's own optimizers")
    parser.add_argument("--slots", type=int, default=10, help="cells at once: most of them wait")
    parser.add_argument("--kills", type=int, metavar="N")
    for mode in ("changes", "memory", "signals"):
        parser.add_argument(f"--{mode}", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every row here")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        interrupted(*given.child)
        return 0
    logging.disable()
    quick = ("iterative-ape", "abo", "gepa", "mipro")
    names = given.compilers or [name for name in COMPILERS if not given.quick or name in quick]
    if given.changes or given.memory or given.signals:
        return int((changes if given.changes else memory if given.memory else signals)(given) > 0)
    compilers = list(available(names))
    if given.kills:
        return int(kills(given, compilers) > 0)
    gc.freeze()  # or the collector would copy the memory that the forks share
    rows = table(given, compilers)
    keep(given, [replace(row, needed={}) for row in rows])
    return int(show(rows) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
