"""A run that cannot go on ends in seconds: providers that hang, are silent or send rubbish, Ctrl-C and SIGTERM."""

from __future__ import annotations

import asyncio
import importlib
import json
import multiprocessing.pool
import re
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
import pytest
from e2e_support import Answer, OnlyAsync, Provider, Saying, ToyEngine, exact, toy_compile, toy_lm, toy_reply, words
from processes_support import Forked

import cuesmith
from cuesmith.teleprompters import IterativeAPE
from cuesmith.teleprompters.runtime import gate as gates
from cuesmith.teleprompters.runtime import watch
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.events import RunFinished
from cuesmith.teleprompters.runtime.ledger import Budget, stopped
from cuesmith.teleprompters.runtime.outcomes import ProviderFailure, Scored
from cuesmith.teleprompters.runtime.score_program import EvaluationStopped, score_program
from cuesmith.teleprompters.runtime.session import CAPS, CompileError
from cuesmith.testing.fakes import completion

LITTLE: dict[str, Any] = {"n_val": 24, "width": 2}
"""A compile of some hundred calls."""


class Hanging:
    """An intercept that never answers from one request on, until it is let go."""

    def __init__(self, after: int) -> None:
        self.after, self.go = after, threading.Event()

    def __call__(self, nth: int, body: Mapping[str, object]) -> Answer | None:
        """Hang, or let the request be answered."""
        if nth > self.after:
            self.go.wait(60)
        return None


@pytest.mark.parametrize("in_flight", [pytest.param(4, marks=pytest.mark.slow), 32])
def test_a_provider_that_hangs_is_an_outage(in_flight: int) -> None:
    hanging, threads = Hanging(20), threading.active_count()
    with Provider() as provider:
        # What a first call loads takes longer than an example may here.
        score_program(dspy.Predict("question -> answer"), words(2), exact, lm=provider.lm())
        provider.seen.clear()
        provider.intercept = hanging
        began = time.monotonic()
        found: Compilation = toy_compile(provider.lm(), max_in_flight=in_flight, example_timeout=1.5).compilation
        took, sent = time.monotonic() - began, provider.calls
        hanging.go.set()
        time.sleep(0.5)
        assert provider.calls == sent, "sent after the return"
    assert found.stopped_by == "outage" and took < 45
    said = " ".join(note for note in found.notes if note.kind == "stopped")
    assert "no answer within 1.5 s" in said, said
    assert found.spent.total.calls == sent, "what never came back is counted too"
    assert all(value in (0.0, 1.0) for trial in found.candidates for value in trial.scores if value is not None)
    assert threading.active_count() <= threads + 2 * in_flight + 8


def test_silence_far_longer_than_any_answer_took_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE", 0.5)
    hanging = Hanging(20)
    with Provider(hanging) as provider:
        began = time.monotonic()
        found: Compilation = toy_compile(provider.lm(), max_in_flight=8).compilation  # 600 s an example
        hanging.go.set()
    assert found.stopped_by == "outage" and time.monotonic() - began < 45
    assert any("none was answered for" in note for note in found.notes)


@pytest.mark.parametrize(
    ("how", "by"),
    [
        ("silent", "stopped by an outage.*: .* none was answered for"),
        ("refused", "stopped by a provider that refuses the key: .*revoked"),
    ],
)
def test_an_evaluation_ends_as_a_compile_does_and_says_why(how: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE", 0.5)
    hanging = Hanging(5)

    def refused(nth: int, body: Mapping[str, object]) -> Answer | None:
        return (401, {}, {"error": {"message": "key revoked", "code": "invalid_api_key"}}) if nth > 5 else None

    with Provider(hanging if how == "silent" else refused) as provider:
        began = time.monotonic()
        with pytest.raises(EvaluationStopped, match=by):
            cuesmith.evaluate(dspy.Predict("question -> answer"), words(20), exact, lm=provider.lm(), max_in_flight=4)
        hanging.go.set()
    assert time.monotonic() - began < 45


def test_a_model_that_answers_in_a_word_may_write_for_long_as_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE", 0.5)

    def reply(system: str, user: str, drawn: int | None) -> str:
        if "`variation`" in system:
            time.sleep(1.2)
        return toy_reply(system, user, drawn)

    found: Compilation = toy_compile(toy_lm(ToyEngine(reply=reply)), max_in_flight=8, steps=1).compilation
    assert found.stopped_by is None and found.best.candidate != found.baseline.candidate


def test_nothing_is_sent_after_an_error() -> None:
    def busy(nth: int, body: Mapping[str, object]) -> Answer | None:
        time.sleep(1.0)
        return 503, {}, {"error": {"message": "busy", "type": "server_error", "code": "busy"}}

    with Provider(busy) as provider:
        with pytest.raises(CompileError, match="stopped by an outage of a provider before") as caught:
            toy_compile(provider.lm(), max_in_flight=4, example_timeout=0.4)
        sent = provider.calls
        assert caught.value.stopped_by == "outage" and caught.value.spent.total.calls == sent
        time.sleep(2.5)
        assert provider.calls == sent


def test_an_address_where_nobody_listens_is_told_in_seconds() -> None:
    began = time.monotonic()
    nobody = dspy.LM("openai/toy", api_base="http://127.0.0.1:9/v1", api_key="sk-0123456789", cache=False)
    with pytest.raises(CompileError, match="refused"):
        toy_compile(nobody)
    assert time.monotonic() - began < 45


def test_replies_that_cannot_be_read_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "BACKOFF", 0.01)

    def rubbish(nth: int, body: Mapping[str, object]) -> Answer | None:
        return (200, {"Content-Type": "text/html"}, "<html>") if 10 < nth <= 16 else None

    with Provider() as well, Provider(rubbish) as ill:
        whole = toy_compile(well.lm(), max_in_flight=2, **LITTLE).compilation
        found = toy_compile(ill.lm(), max_in_flight=2, **LITTLE).compilation
    assert found.stopped_by is None and found.gain == whole.gain
    assert [t.scores for t in found.candidates] == [t.scores for t in whole.candidates]


@pytest.mark.parametrize(
    "choices",
    [
        [],
        None,
        [{"index": 0, "finish_reason": "stop", "message": {"content": None}}],
        [{"index": 0, "finish_reason": "content_filter", "message": {"content": None}}],
    ],
)
@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_a_reply_without_content_is_no_zero(choices: list[object] | None, engine: str) -> None:
    def empty(nth: int, body: Mapping[str, object]) -> Answer | None:
        return 200, {}, {"id": "1", "object": "chat.completion", "created": 1, "model": "toy",
                         **({} if choices is None else {"choices": choices}),
                         "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}  # fmt: skip

    with Provider(empty) as provider, pytest.MonkeyPatch.context() as quick:
        quick.setattr(gates, "BACKOFF", 0.001)
        scores = score_program(dspy.Predict("question -> answer"), words(3), exact, lm=provider.lm(engine=engine))
    assert scores.n == 0 and all(isinstance(outcome, ProviderFailure) for outcome in scores.outcomes)


@pytest.mark.parametrize(("tokens", "missing"), [(0, 2), (1, 0)])
def test_a_reply_of_no_tokens_is_empty(tokens: int, missing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "BACKOFF", 0.01)

    def nothing(nth: int, body: Mapping[str, object]) -> Answer | None:
        status, headers, data = completion("")
        assert isinstance(data, dict)
        return status, headers, {**data, "usage": {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9}}

    with Provider(nothing) as provider:
        scores = score_program(dspy.Predict("question -> answer"), words(2), exact, lm=provider.lm())
    assert scores.missing == missing


def test_a_cut_reply_is_told_from_a_wrong_one() -> None:
    def cut(nth: int, body: Mapping[str, object]) -> Answer | None:
        return completion("[[ ## answer ## ]]\nw0 and", "length")

    with Provider(cut) as provider:
        scores = score_program(dspy.Predict("question -> answer"), words(2), exact, lm=provider.lm())
    assert [(o.score, o.cut) for o in scores.outcomes if isinstance(o, Scored)] == [(0.0, 1)] * 2


@pytest.mark.parametrize("in_flight", [1, 4, 64])
def test_a_program_for_async_code_ends_at_a_cap(in_flight: int) -> None:
    with Provider() as provider:
        began = time.monotonic()
        found: Compilation = toy_compile(
            provider.lm(), student=OnlyAsync(), max_in_flight=in_flight, budget=Budget(calls=40)
        ).compilation
        assert provider.calls == found.spent.total.calls <= 40 and found.stopped_by == "calls"
    assert time.monotonic() - began < 30


SCRIPT = """
import asyncio, sys, tempfile
sys.path.insert(0, sys.argv[1])
from e2e_support import *
import cuesmith
port, loop, run_dir = int(sys.argv[2]), sys.argv[3] == "loop", sys.argv[4]
lm = dspy.LM("openai/toy", api_base=f"http://127.0.0.1:{port}/v1", api_key=KEY, cache=False)
def go():
    return toy_compile(lm, max_in_flight=8, run_dir=run_dir)
async def main():
    go()
try:
    asyncio.run(main()) if loop else go()
except (cuesmith.Interrupted, cuesmith.Terminated) as stop:
    said = stop.message if isinstance(stop, cuesmith.Terminated) else str(stop)
    print(type(stop).__name__, "|", stop.program.compilation.stopped_by, "|", said, flush=True)
    if isinstance(stop, cuesmith.Terminated):
        raise
"""


@pytest.mark.parametrize(
    ("number", "where", "hung"),
    [
        (signal.SIGINT, "script", True),
        pytest.param(signal.SIGINT, "loop", False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "script", False, marks=pytest.mark.slow),
        (signal.SIGTERM, "loop", True),
    ],
)
def test_a_signal_stops_sending_and_keeps_the_best(
    number: signal.Signals, where: str, hung: bool, tmp_path: Path
) -> None:
    at = threading.Event()

    def intercept(nth: int, body: Mapping[str, object]) -> Answer | None:
        time.sleep(0.01)
        if nth >= 24:
            at.set()
            if hung:
                time.sleep(60)
        return None

    with Provider(intercept) as provider:
        process = Forked(SCRIPT, Path(__file__).parent, provider.port, where, tmp_path)
        assert at.wait(60)
        process.send_signal(number)
        began, before = time.monotonic(), provider.calls
        out, err = process.communicate(timeout=50)
        took, sent = time.monotonic() - began, provider.calls
        time.sleep(0.5)
        assert provider.calls == sent <= before + 16 and took < 40
        kind = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}[number]
        assert out.startswith(f"{kind} | interrupted | interrupted after "), err
        assert f"To go on: run the same again with run_dir='{tmp_path}'" in out
        assert process.returncode == (143 if number == signal.SIGTERM else 0)
        if not hung:  # and so it goes on
            resumed = toy_compile(provider.lm(), max_in_flight=8, run_dir=tmp_path).compilation
            assert resumed.stopped_by is None and resumed.spent.total.replayed >= 16


def test_an_awaited_compile_is_interrupted_likewise(tmp_path: Path) -> None:
    script = SCRIPT.replace("toy_compile(lm", "compiled(lm").replace(
        "async def main():\n    go()", "async def main():\n    await go()"
    ).replace("def go():", """async def compiled(lm, run_dir, **options):
    with dspy.context(lm=lm):
        return await ToySearch(exact, steps=2, width=3, **options).acompile(
            dspy.Predict("question -> answer"), trainset=words(12, "t"), valset=words(40, "v"), run_dir=run_dir)
def go():""")  # fmt: skip
    at = threading.Event()

    def intercept(nth: int, body: Mapping[str, object]) -> Answer | None:
        time.sleep(0.05)
        if nth >= 24:
            at.set()
        return None

    with Provider(intercept) as provider:
        process = Forked(script, Path(__file__).parent, provider.port, "loop", tmp_path)
        assert at.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=50)
    assert out.startswith("Interrupted | interrupted | interrupted after "), err
    assert f"To go on: run the same again with run_dir='{tmp_path}'" in out


def test_a_signal_that_comes_at_the_very_end_is_not_lost() -> None:
    def late(event: object) -> None:
        if isinstance(event, RunFinished):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(cuesmith.Interrupted, match="had just ended") as caught:
            toy_compile(toy_lm(ToyEngine()), callbacks=[late])
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.program is not None and caught.value.program.compilation.gain is not None


class Raising:
    """A metric or a program's step that raises once, in the middle of a run."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.n = error, 0

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        """Judge."""
        self.n += 1
        if self.n == 60:
            raise self.error
        return exact(example, prediction)


def test_ctrl_c_of_a_metrics_own_ends_the_run_with_the_best() -> None:
    with pytest.raises(cuesmith.Interrupted) as caught:
        toy_compile(toy_lm(ToyEngine()), metric=Raising(KeyboardInterrupt()))
    assert caught.value.program is not None and caught.value.program.compilation.stopped_by == "interrupted"


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit()])
def test_an_exit_of_a_metrics_own_is_an_example_without_a_score(error: BaseException) -> None:
    found: Compilation = toy_compile(toy_lm(ToyEngine()), metric=Raising(error)).compilation
    assert found.stopped_by is None
    (said,) = [note for note in found.notes if note.kind == "missing"]
    assert said.startswith("1 of ") and type(error).__name__ in said


def test_an_awaited_metric_that_hangs_is_given_up() -> None:
    async def hangs(example: dspy.Example, prediction: dspy.Prediction) -> float:
        await asyncio.sleep(60)
        return 1.0

    began = time.monotonic()
    with pytest.raises(CompileError, match=r"did not end within 0\.3 s, with no call of a model on its way"):
        toy_compile(toy_lm(ToyEngine()), metric=hangs, example_timeout=0.3, max_in_flight=4)
    with pytest.raises(CompileError, match="stopped by the cap on seconds") as caught:
        toy_compile(toy_lm(ToyEngine()), metric=hangs, budget=Budget(seconds=1))
    assert caught.value.stopped_by == "seconds" and time.monotonic() - began < 30


@pytest.mark.parametrize("role", ["embedder", "litellm"])
def test_what_a_client_tries_again_by_itself_counts(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "BACKOFF", 0.01)
    tried = [0]

    def intercept(nth: int, body: Mapping[str, object]) -> Answer | None:
        if body["model"] != "inner":
            return None
        tried[0] += 1
        if tried[0] % 3:
            return 500, {"Retry-After": "0"}, {"error": {"message": "oops", "type": "server_error", "code": "x"}}
        rows = [{"object": "embedding", "index": 0, "embedding": [1.0]}]
        if "input" in body:
            return 200, {}, {"object": "list", "data": rows, "model": "inner", "usage": {"prompt_tokens": 1}}
        return None

    with Provider(intercept) as provider:
        options = {"api_base": f"http://127.0.0.1:{provider.port}/v1", "api_key": "sk-0123456789"}

        class Twice(Saying):
            def __init__(self) -> None:
                super().__init__()
                self.embed = dspy.Embedder("openai/inner", caching=False, **options)

            def forward(self, question: str) -> dspy.Prediction:
                if role == "embedder":
                    self.embed([question])
                else:
                    message = {"role": "user", "content": question}
                    importlib.import_module("litellm").completion("openai/inner", messages=[message], **options)
                return self.say(question=question)

        found: Compilation = toy_compile(
            provider.lm(), student=Twice(), max_in_flight=4, budget=Budget(calls=60)
        ).compilation
        assert provider.calls == found.spent.total.calls <= 60 and found.stopped_by == "calls"


@pytest.mark.parametrize("wait", ["3600", "Fri, 31 Dec 2099 23:59:59 GMT"])
def test_a_provider_that_asks_to_come_back_tomorrow_is_an_outage(wait: str) -> None:
    def busy(nth: int, body: Mapping[str, object]) -> Answer | None:
        refused = {"error": {"message": "slow", "type": "rate_limit_exceeded", "code": "rate_limit_exceeded"}}
        return (429, {"Retry-After": wait}, refused) if nth > 60 else None

    began = time.monotonic()
    with Provider(busy) as provider:
        found: Compilation = toy_compile(provider.lm()).compilation
    assert found.stopped_by == "outage" and time.monotonic() - began < 45
    assert any("asks to come back in" in note for note in found.notes)


@pytest.mark.parametrize("body", [[], None, "hi", {"choices": "no"}])
def test_json_that_is_no_completion_is_tried_again(body: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "BACKOFF", 0.01)

    def odd(nth: int, sent: Mapping[str, object]) -> Answer | None:
        return (200, {}, body) if 40 < nth <= 42 else None

    with Provider(odd) as provider:
        found: Compilation = toy_compile(provider.lm(), max_in_flight=1, **LITTLE).compilation
    assert found.stopped_by is None and all(None not in trial.scores for trial in found.candidates)


def test_a_refusal_of_one_draw_by_an_odd_status_costs_the_draw() -> None:
    def legal(nth: int, body: Mapping[str, object]) -> Answer | None:
        asks = "variation" in json.dumps(body["messages"][0])  # type: ignore[index]
        return (451, {}, {"error": {"message": "legal", "type": "x", "code": "x"}}) if asks else None

    with Provider(legal) as provider:
        found: Compilation = toy_compile(provider.lm()).compilation
    assert found.stopped_by is None and any("6 invalid request" in note for note in found.notes)


def test_a_failure_in_a_thread_from_before_the_run_is_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "BACKOFF", 0.001)

    def down(nth: int, body: Mapping[str, object]) -> Answer | None:
        asks = json.dumps(body["messages"][-1])  # type: ignore[index]
        error = {"error": {"message": "down", "type": "server_error", "code": "x"}}
        return (500, {}, error) if re.search(r"say v[0-5]\b", asks) else None

    class Swallowing(Saying):
        def forward(self, question: str) -> dspy.Prediction:
            try:
                return OLD.apply(self.say, kwds={"question": question})
            except Exception:
                return dspy.Prediction(answer="sorry")

    student = Swallowing()
    with Provider(down) as provider:
        student.set_lm(provider.lm())
        found: Compilation = toy_compile(provider.lm(), student=student, max_in_flight=1, **LITTLE).compilation
    missing = [trial.scores.count(None) for trial in found.candidates]
    assert len(set(missing)) == 1 and missing[0] > 0, "some questions are never answered"


def test_a_cap_leaves_threads_from_before_the_run_alive() -> None:
    class Pooled(Saying):
        def forward(self, question: str) -> dspy.Prediction:
            return OLD.apply(self.say, kwds={"question": question})

    for _ in range(2):
        student, engine = Pooled(), ToyEngine()
        student.set_lm(toy_lm(engine))
        found: Compilation = toy_compile(toy_lm(engine), student=student, budget=Budget(calls=40)).compilation
        assert engine.calls == found.spent.total.calls == 40 and found.stopped_by == "calls"
    assert OLD.apply(int, ("7",)) == 7


OLD = multiprocessing.pool.ThreadPool(4)


def test_a_cancelled_task_is_cancelled() -> None:
    engine = ToyEngine(0.02)

    async def main() -> None:
        compiler = IterativeAPE(exact, optimizer_lm=toy_lm(engine))
        task = asyncio.create_task(compiler.acompile(dspy.Predict("question -> answer"), trainset=words(40)))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with dspy.context(lm=toy_lm(engine)):
        asyncio.run(main())
    sent = engine.calls
    time.sleep(0.3)
    assert 0 < engine.calls == sent


def test_every_reason_to_stop_reads_as_a_sentence() -> None:
    """What is written for a person has no bare word of the code: every literal that stops a run has its words."""
    package = Path(cuesmith.__file__).parent
    code = "\n".join(path.read_text() for path in (package / "teleprompters").resolve().rglob("*.py"))
    reasons = {*re.findall(r'\.stop\("(\w+)"', code), *re.findall(r'LM\w+Error, "(\w+)"\)', code), *CAPS}
    assert {"interrupted", "configuration", "outage", "auth", "journal", "executor"} <= reasons
    assert {by for by in reasons if stopped(by) == f"stopped by {by}"} == set()


def test_a_cap_is_told_once_and_in_words() -> None:
    notes = toy_compile(toy_lm(ToyEngine()), budget=Budget(calls=60)).compilation.notes
    assert [str(note) for note in notes if note.kind == "stopped"] == ["The search was stopped by the cap on calls."]
