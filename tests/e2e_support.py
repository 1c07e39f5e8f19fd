"""Real parts for testing the kernel end to end: a toy compiler, engines that log calls, a loopback HTTP provider.

The toy models are deterministic functions of the request's own text, so that runs can be compared.

As a script it compiles once and writes the result as JSON to RESULT, or, with --nursery, forks a child for every
line of such arguments (see `Nursery`), so that tests can kill compiles without paying for imports each time:

    python tests/e2e_support.py RUN_DIR LOG RESULT [--max-in-flight N] [--latency S] [--calls N]
    python tests/e2e_support.py --nursery
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

import dspy
from dspy.lm15 import Message, Response, Usage

from cuesmith.modules.sampling import draw
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Compilation, Plan
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.outcomes import rank
from cuesmith.teleprompters.runtime.run import Run

KEY = "sk-loopback-0123456789abcdef"
INPUT_TOKENS, OUTPUT_TOKENS = 100, 20


class Vary(dspy.Signature):  # type: ignore[misc]
    """Write a variation of the instructions."""

    prompt: str = dspy.InputField()
    variation: str = dspy.OutputField()


class ToySearch(Compiler):
    """A beam of one: `steps` times, `width` variations of the best prompt of the first predictor are scored.

    Args:
        metric: As every compiler.
        steps: Steps after step 0.
        width: Variations a step.
        shared: Options of every compiler.
    """

    def __init__(self, metric: Callable[..., object], *, steps: int = 2, width: int = 3, **shared: object) -> None:
        super().__init__(metric, **shared)  # type: ignore[arg-type]
        self.steps = steps
        self.width = width

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return what `search` asks for."""
        return Plan(self.steps * self.width, self.steps * self.width * n_select + n_train)

    async def search(self, run: Run) -> Candidate:
        """Climb, asking for variations of the best so far."""
        beam = await run.score([run.baseline], run.select)
        await run.record(0, beam)
        for step in range(1, self.steps + 1):
            best = beam[0].candidate
            name = best.names[0]
            replies = await run.ask(Vary, {"prompt": best.prompts[name].instructions}, n=self.width, salt=f"step{step}")
            moves = [
                best.replace(name, instructions=f"{r.variation} v{step}.{i}", origin=Origin("vary", (best.id,)))
                for i, r in enumerate(replies)
            ]
            beam = rank([*beam, *await run.score(moves, run.select)])
            fit = await run.score([beam[0].candidate], run.train[:4])
            await run.record(step, beam, train=fit)
        return beam[0].candidate


def number(*parts: object) -> int:
    """Return a hash of the parts that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def toy_reply(system: str, user: str, drawn: int | None = None) -> str:
    """Answer as the toy model: instructions with a higher "skill=" are right more often.

    Args:
        system: System message.
        user: Last user message.
        drawn: The number of the draw, for the optimizer's requests.
    """
    found = re.findall(r"skill=(\d+)", user if "`variation`" in system else system)
    skill = int(found[-1]) if found else 2
    if "`variation`" in system:
        better = min(9, skill + 1 + number(user, drawn) % 3)
        return f"[[ ## variation ## ]]\nRepeat the word. skill={better}\n\n[[ ## completed ## ]]"
    match = re.search(r"\[\[ ## question ## \]\]\s*say (\S+)", user)
    word = match.group(1) if match else "what"
    answer = word if number(word, skill) % 10 < skill else "no"
    return f"[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]"


class ToyEngine:
    """An in-process engine for `dspy.LM(engine=...)` that counts its calls and may log them to a file.

    Args:
        latency: Seconds a call takes at most; each takes a random share, of at least half.
        log: File to which one line is appended when a call's reply is made, before it is returned.
        reply: Makes the reply from (system, user, draw).
        hook: Called with the call's number (from 1) before the reply is made; may raise.
    """

    def __init__(
        self,
        latency: float = 0.0,
        log: Path | None = None,
        reply: Callable[[str, str, int | None], str] = toy_reply,
        hook: Callable[[int], None] | None = None,
    ) -> None:
        self.calls = 0
        self.most = 0
        self._now = 0
        self._latency = latency
        self._log = None if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._reply = reply
        self._hook = hook
        self._lock = threading.Lock()
        self._random = random.Random()

    def complete(self, request: object) -> Response:
        """Answer one request."""
        with self._lock:
            self.calls += 1
            nth = self.calls
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self._complete(request, nth)
        finally:
            with self._lock:
                self._now -= 1

    def _complete(self, request: object, nth: int) -> Response:
        if self._latency:
            time.sleep(self._latency * self._random.uniform(0.5, 1.0))
        if self._hook is not None:
            self._hook(nth)
        system, user = str(request.system), str(request.messages[-1].text)  # type: ignore[attr-defined]
        text = self._reply(system, user, draw.get())
        if self._log is not None:
            os.write(self._log, f"{number(system, user, draw.get()):012x} {os.getpid()}\n".encode())
        return Response(
            id="1",
            model=request.model,  # type: ignore[attr-defined]
            message=Message.assistant(text),
            finish_reason="stop",
            usage=Usage(
                input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, total_tokens=INPUT_TOKENS + OUTPUT_TOKENS
            ),
        )

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself: copies of an LM count into one engine."""
        return self


def toy_lm(engine: ToyEngine, name: str = "toy", **options: object) -> dspy.LM:
    """Return a `dspy.LM` on the engine, without dspy's cache unless asked for."""
    return dspy.LM(f"cuesmith-test/{name}", engine=engine, **{"cache": False, **options})


def words(n: int, prefix: str = "w") -> list[dspy.Example]:
    """Return n examples of the toy task: repeat a word."""
    return [dspy.Example(question=f"say {prefix}{i}", answer=f"{prefix}{i}").with_inputs("question") for i in range(n)]


def exact(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    """Return whether the answer is the example's."""
    return bool(example.answer == prediction.answer)


def result_of(compiled: dspy.Module) -> dict[str, object]:
    """Return what must be equal in two runs of one compile, as JSON data: all but the clock and the replays."""
    c: Compilation = compiled.compilation
    return {
        "prompts": Candidate.of(compiled).to_json(),
        "best": c.best.candidate.to_json(),
        "baseline": repr(c.baseline),
        "select": repr(c.best.select),
        "fresh": repr(c.best.fresh),
        "candidates": [[t.candidate.to_json(), list(t.scores), t.mean] for t in c.candidates],
        "steps": [repr(s) for s in c.steps],
        "gain": repr(c.gain),
        "spent": {
            role: [u.calls, u.input_tokens, u.output_tokens, u.usd, u.cache_hits]
            for role, u in sorted(c.spent.by_role.items())
        },
        "stopped_by": c.stopped_by,
        "notes": [note for note in c.notes if note.kind != "identity"],  # only a run that is kept has one
    }


Answer = tuple[int, Mapping[str, str], object]


@dataclass
class Provider:
    """An OpenAI-compatible chat server on the loopback interface, in threads; use it as a context manager.

    Attributes:
        intercept: Called with the request's number (from 1) and body; returns (status, headers, body) to answer with
            instead of the toy model, or None.
        latency: Seconds an answer takes.
        seen: (monotonic seconds, status, body, Authorization header) of every request, in order of arrival.
        most: Most requests at work at once.
        port: Where it listens; 0 picks one. A stopped provider may be started again on the same port.
    """

    intercept: Callable[[int, Mapping[str, object]], Answer | None] = lambda nth, body: None
    latency: float = 0.0
    seen: list[tuple[float, int, Mapping[str, object], str]] = field(default_factory=list)
    most: int = 0
    port: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: ThreadingHTTPServer | None = None

    @property
    def calls(self) -> int:
        """How many requests came in."""
        return len(self.seen)

    @property
    def answered(self) -> Counter[str]:
        """How often each request (by its messages) was answered with 200."""
        return Counter(json.dumps(body["messages"]) for _, status, body, _ in self.seen if status == 200)

    def lm(self, name: str = "toy", **options: object) -> dspy.LM:
        """Return a `dspy.LM` that reaches this server."""
        given = {"api_base": f"http://127.0.0.1:{self.port}/v1", "api_key": KEY, "cache": False, **options}
        return dspy.LM(f"openai/{name}", **given)

    def answer(self, body: Mapping[str, object], key: str) -> Answer:
        """Answer one request."""
        with self._lock:
            nth = len(self.seen) + 1
            self.seen.append((time.monotonic(), 0, body, key))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            status, headers, reply = self.intercept(nth, body) or self._toy(body)
        finally:
            with self._lock:
                self._now -= 1
        with self._lock:
            self.seen[nth - 1] = (self.seen[nth - 1][0], status, body, key)
        return status, headers, reply

    def _toy(self, body: Mapping[str, object]) -> Answer:
        if self.latency:
            time.sleep(self.latency)
        messages = body["messages"]
        assert isinstance(messages, list)
        text = toy_reply(str(messages[0]["content"]), str(messages[-1]["content"]))
        usage = {
            "prompt_tokens": INPUT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS,
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        }
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        model = body.get("model", "toy")
        return 200, {}, {
            "id": "1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage
        }  # fmt: skip

    def __enter__(self) -> Self:
        """Start serving."""
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                if provider._server is None:  # a connection that was kept alive when the server went down
                    self.close_connection = True
                    return
                status, headers, reply = provider.answer(body, self.headers.get("Authorization", ""))
                data = json.dumps(reply).encode()
                try:
                    self.send_response(status)
                    for name, header in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, header)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client has given up
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening: further connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving."""
        self.stop()


def error_body(message: str, code: str = "error") -> dict[str, object]:
    """Return an error as OpenAI's API words it."""
    return {"error": {"message": message, "type": code, "code": code, "param": None}}


def toy_compile(
    lm: dspy.LM,
    *,
    n_train: int = 12,
    n_val: int = 40,
    run_dir: Path | str | None = None,
    metric: Callable[..., object] = exact,
    student: dspy.Module | None = None,
    steps: int = 2,
    width: int = 3,
    **options: object,
) -> dspy.Module:
    """Compile the toy program with the toy compiler on the toy task. `options` go to the compiler."""
    compiler = ToySearch(metric, steps=steps, width=width, **options)
    with dspy.context(lm=lm):
        return compiler.compile(
            student if student is not None else dspy.Predict("question -> answer"),
            trainset=words(n_train, "t"),
            valset=words(n_val, "v"),
            run_dir=run_dir,
        )


class Nursery:
    """Processes that compile, forked from one that has done its imports; use it as a context manager.

    Args:
        hash_seed: The processes' PYTHONHASHSEED.
    """

    def __init__(self, hash_seed: int = 0) -> None:
        self._mother = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        )

    def _tell(self, order: object) -> int:
        assert self._mother.stdin is not None and self._mother.stdout is not None
        self._mother.stdin.write(json.dumps(order) + "\n")
        self._mother.stdin.flush()
        return int(self._mother.stdout.readline())

    def start(self, *arguments: object) -> int:
        """Start a compile with the script's arguments; returns its process id."""
        return self._tell([str(a) for a in arguments])

    def wait(self, pid: int) -> int:
        """Wait for a process's end; returns its exit code, negative for a signal."""
        return self._tell(pid)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the mother process."""
        assert self._mother.stdin is not None and self._mother.stdout is not None
        self._mother.stdin.close()
        self._mother.wait()
        self._mother.stdout.close()


def nurse() -> None:
    """Fork a compile for every line of arguments, wait for every process id."""
    for line in sys.stdin:
        order = json.loads(line)
        if isinstance(order, int):
            print(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            code = 1
            try:
                main(order)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile once and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--max-in-flight", type=int, default=8)
    parser.add_argument("--latency", type=float, default=0.006)
    parser.add_argument("--calls", type=int, default=None)
    options = parser.parse_args(arguments)
    compiled = toy_compile(
        toy_lm(ToyEngine(options.latency, options.log)),
        run_dir=options.run_dir,
        max_in_flight=options.max_in_flight,
        budget=None if options.calls is None else Budget(calls=options.calls),
    )
    options.result.write_text(json.dumps(result_of(compiled)))


if __name__ == "__main__":
    if sys.argv[1:] == ["--nursery"]:
        nurse()
    else:
        main()
