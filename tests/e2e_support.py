"""Real parts for testing the kernel end to end: a toy compiler, engines that log calls, a loopback HTTP provider.

The toy models are deterministic functions of the request's own text, so that runs can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import dspy

from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Compilation, Plan
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.outcomes import rank
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.testing import Engine, Sent, Server, fakes

Answer: TypeAlias = fakes.Answer
KEY, number = fakes.KEY, fakes.number_of
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


class ToyEngine(Engine):
    """The toy model in this process; it may log its calls to a file.

    Args:
        latency: Seconds a call takes at most; each takes a random share, of at least half.
        log: File to which one line is appended when a call's reply is made, before it is returned.
        reply: Makes the reply from (system, user, draw).
        hook: Called with the call's number (from 1) before the reply is made; may raise.
    """

    tokens = INPUT_TOKENS, OUTPUT_TOKENS

    def __init__(
        self,
        latency: float = 0.0,
        log: Path | None = None,
        reply: Callable[[str, str, int | None], str] = toy_reply,
        hook: Callable[[int], object] = lambda nth: None,
    ) -> None:
        super().__init__(self._answer, latency=latency / 2, jitter=latency / 2)
        self.says, self._hook = reply, hook
        self._log = None if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def _answer(self, sent: Sent) -> str:
        self._hook(sent.nth)
        text = self.says(sent.system, sent.user, sent.draw)
        if self._log is not None:
            os.write(self._log, f"{number(sent.system, sent.user, sent.draw):012x} {os.getpid()}\n".encode())
        return text


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


class Provider(Server):
    """The toy model on the loopback interface.

    Args:
        intercept: Called with the request's number (from 1) and body; returns what to answer with instead of the toy
            model, or None.
        latency: Seconds an answer of the toy model takes.
        port: Where it listens; 0 picks one. A stopped provider may be started again on the same port.

    Attributes:
        seen: (monotonic seconds, status, body, Authorization header) of every request, in order of arrival.
        most: Most requests at work at once.
    """

    tokens = INPUT_TOKENS, OUTPUT_TOKENS

    def __init__(
        self, intercept: Callable[[int, Mapping[str, object]], Answer | None] = lambda nth, body: None,
        latency: float = 0.0, port: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(lambda sent: toy_reply(sent.system, sent.user), port=port)
        self.intercept, self.latency = intercept, latency
        self.seen: list[tuple[float, int, Mapping[str, object], str]] = []
        self.most, self._now = 0, 0

    @property
    def calls(self) -> int:
        """How many requests came in."""
        return len(self.seen)

    def lm(self, name: str = "toy", **options: object) -> dspy.LM:
        """Return a `dspy.LM` that reaches this server."""
        given = {"api_base": self.base, "api_key": KEY, "cache": False, **options}
        return dspy.LM(f"openai/{name}", **given)

    def answer(self, path: str, headers: Mapping[str, str], body: Mapping[str, object]) -> Answer | None:
        """Answer one request."""
        began, key = time.monotonic(), headers.get("Authorization", "")
        with self._lock:
            self.seen.append((began, 0, body, key))
            nth = len(self.seen)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            answer = self.intercept(nth, body) or self._toy(path, headers, body)
        finally:
            with self._lock:
                self._now -= 1
        assert answer is not None
        with self._lock:
            self.seen[nth - 1] = (began, answer[0], body, key)
        return answer

    def _toy(self, path: str, headers: Mapping[str, str], body: Mapping[str, object]) -> Answer | None:
        time.sleep(self.latency)
        return super().answer(path, headers, body)


def error_body(message: str, code: str = "error") -> dict[str, object]:
    """Return an error as OpenAI's API words it."""
    return {"error": {"message": message, "type": code, "code": code, "param": None}}


class Saying(dspy.Module):  # type: ignore[misc]
    """One predictor, `say`; what extends it has a `forward` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict("question -> answer")


class OnlyAsync(Saying):
    """A program for async code only."""

    async def aforward(self, question: str) -> dspy.Prediction:
        """Answer."""
        return await self.say.acall(question=question)


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


COMPILE = "from e2e_support import main; main()"
"""Code of a process that compiles: see `main`."""


def main() -> None:
    """Compile once and write the result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--max-in-flight", type=int, default=8)
    parser.add_argument("--latency", type=float, default=0.006)
    parser.add_argument("--calls", type=int, default=None)
    options = parser.parse_args()
    compiled = toy_compile(
        toy_lm(ToyEngine(options.latency, options.log)),
        run_dir=options.run_dir,
        max_in_flight=options.max_in_flight,
        budget=None if options.calls is None else Budget(calls=options.calls),
    )
    options.result.write_text(json.dumps(result_of(compiled)))
