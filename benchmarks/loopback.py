"""A provider on the loopback interface that fails on demand, and small compiles by all compilers to try it on.

What `faults.py` and `crashes.py` have in common.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import logging
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal, TypeAlias

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dspy
import litellm  # noqa: F401  (before the forks: each would load it for itself)
from nano.dspy_answers import teach

from cuesmith.modules.simulated_optimizer import SimulatedOptimizerEngine
from cuesmith.teleprompters.registry import compiler_class
from cuesmith.testing.fakes import Sent, Server, examples, graded, ruled
from cuesmith.testing.ran import facts

Role = Literal["target", "optimizer", "judge"]
Http: TypeAlias = BaseHTTPRequestHandler
Body: TypeAlias = dict[str, Any]
Does: TypeAlias = Callable[[Http, Body], None]
Found: TypeAlias = dict[str, Any]

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
    "mipro": ["optuna"],
    "align-pro": [
        "peft", "cuesmith.teleprompters.alignment.trainers", "cuesmith.teleprompters.alignment.ppo"],
}  # fmt: skip
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


def send(
    http: Http, code: int, data: bytes, length: int | None = None, headers: Iterable[tuple[str, str]] = ()
) -> None:
    """Send a response, and say that it has `length` bytes."""
    http.send_response(code)
    size = len(data) if length is None else length
    for name, value in (("Content-Type", "application/json"), ("Content-Length", str(size)), *headers):
        http.send_header(name, value)
    http.end_headers()
    http.wfile.write(data)


def status(code: int, kind: str = "server_error", text: str = "no luck", **headers: str) -> Does:
    """Refuse with a status, as OpenAI words it."""
    error = {"error": {"message": text, "type": kind, "code": kind, "param": None}}
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda http, answer: send(http, code, json.dumps(error).encode(), headers=named)


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
    Fault("400, temperature", status(400, *_WARM), "from the start", "optimizer",
          stops=("configuration", "outage", None)),
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
        teach()
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
        answer = self.answer(http.path, dict(http.headers), body)
        assert answer is not None and isinstance(answer[2], dict)
        try:
            if befallen:
                self.fault.does(http, answer[2])
            else:
                send(http, *(answer[0], json.dumps(answer[2]).encode()))
                self._write(answered=key, role=role)
        except OSError:  # the client has given up
            http.close_connection = True


def serve(fault: Fault, log: Path, port: Any, session: Any) -> None:
    """Be a provider until the process is ended."""
    silence()
    with FaultyServer(fault, log, session) as server:
        port.value = int(server.base.split(":")[2].split("/")[0])
        signal.pause()


@contextmanager
def provider(fault: Fault, log: Path) -> Iterator[tuple[str, Any]]:
    """Run a provider in a process of its own; gives its address, and the number of the session, which may be set."""
    port, session = FORK.Value("i", 0), FORK.Value("i", 0)
    process = FORK.Process(target=serve, args=(fault, log, port, session))
    process.start()
    try:
        while not port.value:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port.value}/v1", session
    finally:
        process.kill()
        process.join()


def read_log(log: Path) -> list[Found]:
    """Return what a provider wrote down."""
    return [json.loads(line) for line in log.read_text().splitlines()]


# --- compiles ----------------------------------------------------------------------------------------------


def strict(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
    """Score as `graded`, and what `Forgiving` answers for a failed call 0.0."""
    return graded(example, prediction) if prediction.answer else 0.0


def result_of(compiled: dspy.Module) -> str:
    """Return a digest of what two runs of one compile must have in common."""
    known = facts(compiled.compilation, spent=False)
    kept = [known[name] for name in ("best", "candidates", "gain", "stopped_by")]
    kept.append(getattr(getattr(compiled, "prompter", None), "fingerprint", None))
    return hashlib.md5(json.dumps(kept).encode()).hexdigest()


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


def keep(given: argparse.Namespace, found: object) -> None:
    """Write what was found to the file asked for."""
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1, default=asdict), encoding="utf-8")
