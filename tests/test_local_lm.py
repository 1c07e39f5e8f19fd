"""A .gguf file as a `dspy.LM`, by real llama.cpp: what dspy asks, what users do to it, and what calls share."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import fcntl
import os
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from dspy import lm15
from gguf_support import write_model
from processes_support import Forked

import cuesmith
from cuesmith import Budget, LocalLM
from cuesmith.modules import local, shared_slots
from cuesmith.modules.gguf_header import LocalModelError
from cuesmith.modules.local import LocalEngine
from cuesmith.modules.shared_slots import PASSED_OVER, SharedSlots, Slots
from cuesmith.teleprompters.runtime.journal import JournalError

pytest.importorskip("xllamacpp")

LONG = "Be brief, be right, and never say more than was asked of you. " * 10
"""A system message that is worth sharing."""


class Mood(dspy.Signature):  # type: ignore[misc, unused-ignore]
    """Say how it is."""

    question: str = dspy.InputField()
    mood: Literal["calm", "wild"] = dspy.OutputField()
    sure: bool = dspy.OutputField()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def lm(model: Path) -> LocalLM:
    return LocalLM(model, slots=2, context=2048, threads=1, max_tokens=12)


def request(text: str, system: str | None = None, **config: Any) -> lm15.Request:
    """A request to `tiny`."""
    options = lm15.Config(**{"max_tokens": 12, **config})
    return lm15.Request(model="local/tiny", messages=(lm15.Message.user(text),), system=system, config=options)


def in_threads(threads: int, work: Callable[[int], Any], items: int) -> list[Any]:
    """Do it for 0, 1, ... at once, each under dspy's settings of this thread."""
    contexts = [contextvars.copy_context() for _ in range(items)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda k: contexts[k].run(work, k), range(items)))


# --- what dspy asks of a model ----------------------------------------------------------------------------------


def test_a_reply_its_counts_and_its_end(lm: LocalLM) -> None:
    reply = lm(request("hello"))
    assert reply.finish_reason == "length" and reply.usage.output_tokens == 12
    assert reply.usage.input_tokens == 1 + len("|user|hello\n|assistant|")  # a token is a byte; one begins the text
    assert lm.history[-1]["cost"] == 0.0 and lm.history[-1]["usage"]["total_tokens"] == reply.usage.total_tokens
    assert lm("hello") == [reply.message.text]
    assert lm(request("hello", "be wild")).message.text != reply.message.text
    text = lm(request("hello", max_tokens=40)).message.text
    stop = next(letter for letter in text[3:] if letter.isascii())
    cut = lm(request("hello", max_tokens=40, stop=(stop,)))
    assert cut.message.text == text[: text.index(stop)] and cut.finish_reason == "stop"


def test_log_probabilities(lm: LocalLM) -> None:
    (reply,) = lm("hello", logprobs=True, top_logprobs=3)
    tokens = reply["logprobs"]["content"]
    assert 4 <= len(tokens) <= 12  # llama.cpp tells the bytes of a letter as one
    assert all(len(each["top_logprobs"]) == 3 for each in tokens)
    assert all(each["logprob"] == each["top_logprobs"][0]["logprob"] < 0 for each in tokens)


def test_draws_repeat_by_rollout_and_differ_between_answers(model: Path) -> None:
    lm = LocalLM(model, slots=2, context=2048, threads=1, max_tokens=12, temperature=1.0)
    first = lm("tell me something")
    assert lm("tell me something") == first
    by_rollout = [lm("tell me something", rollout_id=i)[0] for i in range(6)]
    assert len(set(by_rollout)) == 6
    assert lm("tell me something", rollout_id=3)[0] == by_rollout[3]
    assert lm.copy(rollout_id=3)("tell me something")[0] == by_rollout[3]
    assert asyncio.run(lm.acall("tell me something", rollout_id=3))[0] == by_rollout[3]
    several = lm("tell me something", n=4)
    assert several[0] == first[0] and len(set(several)) == 4 and lm("tell me something", n=4) == several
    assert lm("tell me something", seed=1) != first


def test_structured_output_is_held_by_a_grammar(lm: LocalLM) -> None:
    with dspy.context(lm=lm.copy(max_tokens=300), adapter=dspy.JSONAdapter()):
        found = dspy.Predict(Mood)(question="how is it?")
        assert found.mood in ("calm", "wild") and isinstance(found.sure, bool)
        assert len(dspy.settings.lm.history) == 1  # no second, looser attempt


def test_tools_are_called(tmp_path: Path) -> None:
    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """Tell the weather."""
        return city

    class Ask(dspy.Signature):  # type: ignore[misc, unused-ignore]
        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    caller = LocalLM(
        write_model(tmp_path / "caller.gguf", width=264, says="|<do>\n"), slots=1, threads=1, max_tokens=100
    )
    with dspy.context(lm=caller, adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        found = dspy.Predict(Ask)(question="What is the weather in Rome?", tools=[dspy.Tool(weather)])
    call = found.calls.tool_calls[0]
    assert call.name == "weather" and any(city in str(call.args) for city in ("Rome", "Oslo"))


@pytest.mark.parametrize("text", ["naïve 日本語 🙂 \u202e", "\x00\x01 \x7f\n", "  ", ""])
def test_odd_text_is_only_text(lm: LocalLM, text: str) -> None:
    reply = lm(request(text))
    written = f"|user|{text}\n|assistant|".replace(" ", "▁")  # as this kind of vocabulary does
    assert reply.usage.input_tokens == 1 + len(written.encode())


def test_async_threads_and_evaluate_give_the_same(lm: LocalLM) -> None:
    program = dspy.Predict(Mood)
    questions = [f"how is number {i}?" for i in range(8)]

    def ask(k: int) -> tuple[str, bool]:
        found = program(question=questions[k])
        return found.mood, found.sure

    async def gathered(call: Callable[..., Any]) -> list[tuple[str, bool]]:
        found = await asyncio.gather(*(call(question=each) for each in questions))
        return [(each.mood, each.sure) for each in found]

    with dspy.context(lm=lm.copy(max_tokens=100), adapter=dspy.JSONAdapter()):
        serial = [ask(k) for k in range(8)]
        assert in_threads(8, ask, 8) == serial
        assert asyncio.run(gathered(program.acall)) == serial
        assert asyncio.run(gathered(dspy.asyncify(program))) == serial
        examples = [dspy.Example(question=each).with_inputs("question") for each in questions]
        scored = dspy.Evaluate(devset=examples, metric=lambda e, p: p.mood == "calm", num_threads=8)(program)
    assert [(found.mood, found.sure) for _, found, _ in scored.results] == serial


def test_streaming_gives_the_same(lm: LocalLM) -> None:
    async def streamed() -> list[Any]:
        program = dspy.streamify(dspy.Predict(Mood), async_streaming=True)
        return [piece async for piece in program(question="how?")]

    with dspy.context(lm=lm.copy(max_tokens=100), adapter=dspy.JSONAdapter()):
        *_, last = asyncio.run(streamed())
        assert dict(last) == dict(dspy.Predict(Mood)(question="how?"))


# --- programs that carry it, and caches -------------------------------------------------------------------------


def test_copies_share_the_model(lm: LocalLM, model: Path) -> None:
    program = dspy.Predict(Mood)
    program.set_lm(lm)
    assert program.deepcopy().lm.engine is lm.engine
    expected = lm("a b")
    again = LocalLM(model, slots=2, context=2048, threads=1, max_tokens=12)
    before = len(local._models)
    assert copy.deepcopy(lm)("a b") == again("a b") == asyncio.run(again.acall("a b")) == expected
    assert len(local._models) == before


def test_a_saved_program_keeps_its_model(lm: LocalLM, tmp_path: Path) -> None:
    program = dspy.ChainOfThought("question -> answer")
    program.set_lm(lm.copy(temperature=0.5, max_tokens=33, rollout_id=7))
    program.save(tmp_path / "program.json")
    fresh = dspy.ChainOfThought("question -> answer")
    fresh.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    loaded = fresh.get_lm()
    assert type(loaded) is LocalLM and loaded.dump_state() == program.get_lm().dump_state()
    assert loaded.kwargs == {"temperature": 0.5, "max_tokens": 33, "rollout_id": 7}
    assert loaded("a b c") == program.get_lm()("a b c")
    with pytest.raises(ValueError, match="allow_unsafe_lm_state"):
        fresh.load(tmp_path / "program.json")
    program.save(tmp_path / "whole", save_program=True)
    assert dspy.load(tmp_path / "whole", allow_pickle=True).get_lm()("a b c") == loaded("a b c")


def test_the_cache_knows_files_by_their_content(model: Path, tmp_path: Path) -> None:
    def cached(path: Path) -> LocalLM:
        return LocalLM(path, slots=2, context=2048, threads=1, max_tokens=12, cache=True)

    text = f"hello {os.getpid()} {time.time_ns()}"
    lm = cached(model)
    first = lm(text)
    assert lm(text) == first and lm.history[-1]["usage"] == {}
    os.link(model, tmp_path / model.name)
    moved = cached(tmp_path / model.name)
    assert moved(text) == first and moved.history[-1]["usage"] == {}
    (tmp_path / "other").mkdir()
    other = cached(write_model(tmp_path / "other" / model.name, seed=1))
    assert other(text) != first and other.history[-1]["usage"]
    uncached = lm.copy(cache=False)
    assert uncached(text) == first and uncached.history[-1]["usage"]


# --- bad input --------------------------------------------------------------------------------------------------


def refused(path: Path | str, **options: Any) -> str:
    """Return what is said of a file or of options, in one line."""
    with pytest.raises(LocalModelError) as caught:
        LocalLM(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_no_model(model: Path, tmp_path: Path) -> None:
    whole, file = model.read_bytes(), tmp_path / "bad.gguf"
    assert "No such file" in refused(tmp_path / "none.gguf")
    assert "Is a directory" in refused(tmp_path)
    for content in (b"", b"GGUF", b"hello world", b"GGUF\x09\0\0\0" + whole[8:], whole[:4] + b"\0\0\0\x03" + whole[8:]):
        file.write_bytes(content)
        assert "not a GGUF file of version 2 or 3" in refused(file)
    for size in (8, 12, 20, 24, 30, 100, 1000, 5000, 9000, len(whole) // 2, len(whole) - 40_000):
        file.write_bytes(whole[:size])
        assert "cut off" in refused(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"llama.context_length", 0),
        (b"llama.context_length", 2**31),
        (b"llama.block_count", 0),
        (b"llama.block_count", 2**31 - 1),
        (b"llama.attention.layer_norm_rms_epsilon", 2**32 - 1),
    ],
)
def test_damage_on_which_llama_cpp_would_end_the_process(key: bytes, value: int, model: Path, tmp_path: Path) -> None:
    content, file = bytearray(model.read_bytes()), tmp_path / "damaged.gguf"
    at = content.index(key) + len(key) + 4
    content[at : at + 4] = value.to_bytes(4, "little")
    file.write_bytes(content)
    assert "damaged" in refused(file) and key.decode() in refused(file)


def test_what_llama_cpp_cannot_load_ends_a_run(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "strange.gguf"
    file.write_bytes(model.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.9.attn_q.weight"))
    lm = LocalLM(file, slots=1, threads=1)
    with pytest.raises(dspy.utils.exceptions.LMConfigurationError, match=r"llama\.cpp cannot load it") as caught:
        lm("hello")
    assert "\n" not in str(caught.value)
    with pytest.raises(dspy.utils.exceptions.LMConfigurationError):
        asyncio.run(lm.acall("hello"))
    file.unlink()
    with pytest.raises(dspy.utils.exceptions.LMConfigurationError, match="No such file"):
        lm("hello")


@pytest.mark.parametrize("name", ["slots", "context", "threads"])
@pytest.mark.parametrize("value", [0, -1, 10**6, 10**30, 2.5, "8", True])
def test_absurd_numbers(name: str, value: object, model: Path) -> None:
    assert name in refused(model, **{name: value})


def test_more_than_the_machine_has(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "memory", lambda: 100 << 20)
    assert "256 slots of 4096 tokens take" in refused(model, slots=256)


def test_a_model_with_less_context_than_the_default_has_all_of_it(tmp_path: Path) -> None:
    lm = LocalLM(write_model(tmp_path / "short.gguf", context=512), slots=1, threads=1, max_tokens=5)
    assert lm.engine.context == 512
    with pytest.raises(dspy.ContextWindowExceededError, match="512 tokens"):
        lm("word " * 200)
    assert lm.history == [] and len(lm("word")) == 1


# --- slots and what they share ----------------------------------------------------------------------------------


def test_a_common_beginning_is_computed_once(model: Path) -> None:
    lm = LocalLM(model, slots=8, context=2048, threads=1)
    replies = in_threads(8, lambda k: lm(request(f"question {k}", LONG, max_tokens=4)), 40)
    # In 8 slots: all are given what was computed beside them. On a busy machine the first call may be alone.
    assert sum((each.usage.cache_read_tokens or 0) < len(LONG) for each in replies) <= 1


def test_replies_are_the_same_without_sharing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(lm: LocalLM) -> list[Any]:
        replies = in_threads(8, lambda k: lm(request(f"question {k}", LONG, max_tokens=20, logprobs=2)), 16)
        return [each.provider_data["choices"][0]["logprobs"]["content"] for each in replies]

    shared = ask(LocalLM(model, slots=4, context=1024, threads=1))
    monkeypatch.setattr(shared_slots, "SHARED", 10**9)
    alone = ask(LocalLM(model, slots=1, context=1024, threads=1))
    for ours, theirs in zip(shared, alone, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            if mine["bytes"] != other["bytes"]:  # by the last bits of a figure: the two tokens are as likely
                first, second = (each["logprob"] for each in other["top_logprobs"])
                assert first - second < 0.05
                break
            assert mine["logprob"] == pytest.approx(other["logprob"], abs=0.05)


def test_many_threads_on_two_slots(lm: LocalLM) -> None:
    systems = [LONG + f"You are number {k}." for k in range(5)] + [None]
    replies = in_threads(64, lambda k: lm(request(f"question {k}", systems[k % 6], max_tokens=3)), 192)
    assert all(each.usage.output_tokens == 3 for each in replies)


def test_a_call_that_fails_or_is_given_up_leaves_its_slot(model: Path) -> None:
    lm = LocalLM(model, slots=1, context=1024, threads=1, max_tokens=900)

    async def give_up(seconds: float) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(lm.acall(f"{k} of many") for k in range(3))), seconds)

    for _ in range(2):
        with pytest.raises(dspy.ContextWindowExceededError):
            lm("word " * 400)
        for seconds in (0.0, 0.001, 0.02):
            asyncio.run(give_up(seconds))
    assert len(lm("hello", max_tokens=3)) == 1


def test_a_freed_slot_goes_on_where_it_was_but_no_call_waits_for_ever() -> None:
    async def order() -> list[str]:
        slots, done, queued = Slots([0]), list[str](), asyncio.Event()

        async def call(prefix: str) -> None:
            async with slots.taken(prefix):
                await queued.wait()
                done.append(prefix)

        async with asyncio.TaskGroup() as tasks:
            for prefix in ["a", "b", *["a"] * (PASSED_OVER + 5), "b"]:
                tasks.create_task(call(prefix))
                await asyncio.sleep(0)
            queued.set()
        assert slots.free == [0] and slots.queue == []
        return done

    assert "".join(asyncio.run(order())) == "a" * (PASSED_OVER + 1) + "bb" + "a" * 5


def test_given_up_while_it_waits_or_as_it_is_given_a_slot() -> None:
    async def run() -> None:
        slots = Slots([0])

        async def call() -> None:
            async with slots.taken("a"):
                await asyncio.sleep(0)

        for steps in range(6):
            tasks = [asyncio.ensure_future(call()) for _ in range(3)]
            for _ in range(steps):
                await asyncio.sleep(0)
            tasks[1].cancel()
            tasks[steps % 3].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert slots.free == [0] and slots.queue == []

    asyncio.run(run())


def test_a_server_that_is_gone_is_an_error() -> None:
    slots = SharedSlots(1, "http://127.0.0.1:9")
    try:
        assert slots.submit({"messages": [{"role": "user", "content": "hi"}]}).result()["error"]["code"] == 503
    finally:
        slots.close()


# --- compiling --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::cuesmith.CompileWarning")
def test_a_compile_holds_its_cap_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "words.gguf", width=264, says='"ab"ba"')  # strings that end, in JSON
    asked: list[str] = []
    answer = LocalEngine.answer

    def logged(self: LocalEngine, request: lm15.Request, marks: tuple[int | None, ...]) -> lm15.Response:
        asked.append(repr((request.system, request.messages, request.config, marks)))
        return answer(self, request, marks)

    monkeypatch.setattr(LocalEngine, "answer", logged)
    examples = [dspy.Example(question=f"{k}?", mood="calm", sure=True).with_inputs("question") for k in range(12)]

    def compile(path: Path) -> Any:
        lm = LocalLM(path, slots=4, threads=1, max_tokens=40)
        with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
            return cuesmith.compile(
                dspy.Predict(Mood),
                "iterative-ape",
                metric=lambda example, found, trace=None: example.mood == found.mood,
                trainset=examples,
                run_dir=tmp_path / "run",
                budget=Budget(calls=40, usd=0.000001),
                optimizer_lm=lm,
            )

    first = compile(model).compilation
    assert first.stopped_by == "calls" and len(asked) == 40 == len(set(asked))
    assert sum(each.calls for each in first.spent.by_role.values()) == 40
    assert all(each.usd == 0.0 for each in first.spent.by_role.values())
    (tmp_path / "other").mkdir()
    moved = model.rename(tmp_path / "other" / model.name)
    again = compile(moved).compilation
    assert again.best == first.best and again.candidates == first.candidates and len(asked) == 40
    with pytest.raises(JournalError, match="engine"):
        compile(write_model(model, seed=1))


# --- processes --------------------------------------------------------------------------------------------------

BEGIN = """
import logging, os, signal, sys, threading, time
logging.disable(logging.WARNING)
import cuesmith
from cuesmith.modules import local
lm = cuesmith.LocalLM(sys.argv[1], slots=2, context=4096, threads=1, max_tokens=4000)
def say(*text): print(*text, file=sys.stdout, flush=True)
"""


FOLDER = "cuesmith-llama-"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose replies of 4000 tokens take seconds."""
    return write_model(tmp_path_factory.mktemp("slow") / "slow.gguf", width=512)


def left() -> set[Path]:
    """The folders of models that no process has loaded any more."""
    found = set()
    for folder in Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()).glob(f"{FOLDER}*"):
        held = os.open(folder, os.O_RDONLY)
        with suppress(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.add(folder)
        os.close(held)
    return found


def run(model: Path, code: str, status: int = 0, stderr: str = "") -> str:
    """Return what a process prints; check that all ends as it should, and that it leaves nothing."""
    before = left()
    done = Forked(BEGIN + code, model).done()
    assert (done.returncode, done.stderr) == (status, done.stderr if stderr and stderr in done.stderr else ""), done
    assert left() <= before
    return done.stdout


def test_a_process_that_ends_while_calls_are_under_way(slow: Path) -> None:
    code = """
for k in range(4):
    threading.Thread(target=lm, args=(f"question {k}",), daemon=True).start()
while not local._models: time.sleep(0.01)
time.sleep(0.2)
say("end")
"""
    assert run(slow, code) == "end\n"
    assert run(slow, code + "raise SystemExit(3)", status=3) == "end\n"
    assert run(slow, code + "raise RuntimeError('mine')", status=1, stderr="RuntimeError: mine") == "end\n"


def test_signals_are_the_programs_own(slow: Path) -> None:
    code = """
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append("term"))
def kill(after=0.0): time.sleep(after); os.kill(os.getpid(), signal.SIGINT)
try:
    threading.Thread(target=kill, args=(0.02,)).start()
    lm("hello", max_tokens=3); time.sleep(9)
except KeyboardInterrupt: say("while loading")
loader = threading.Thread(target=local.loaded, args=(lm.engine.file, 1, 512, 1)); loader.start(); loader.join()
os.kill(os.getpid(), signal.SIGTERM); say(*got)
threading.Thread(target=kill, args=(0.3,)).start()
try: [lm(f"hello {k}") for k in range(20)]
except KeyboardInterrupt: begun = time.monotonic(); say("in a call")
lm("hello", max_tokens=3); say(time.monotonic() - begun < 3)
kill()
"""
    before = "while loading\nterm\nin a call\nTrue\n"
    assert run(slow, code, status=-signal.SIGINT, stderr="KeyboardInterrupt") == before


def test_a_forked_process_loads_its_own(model: Path) -> None:
    code = """
import multiprocessing
lm = cuesmith.LocalLM(sys.argv[1], slots=2, context=1024, threads=1, max_tokens=60)
asked = lambda: lm("hello", max_tokens=5)
first = asked()
def child(ask, status):
    pid = os.fork()
    if pid == 0:
        if ask: say(asked() == first)
        sys.exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
say(child(False, 3), child(True, 4))
threads = [threading.Thread(target=lm, args=(f"question {k}",), daemon=True) for k in range(3)]
[each.start() for each in threads]
process = multiprocessing.get_context("fork").Process(target=lambda: say(asked() == first))
process.start(); process.join(); say(process.exitcode, asked() == first)
[each.join() for each in threads]
"""
    assert run(model, code) == "True\n3 4\nTrue\n0 True\n"


def test_what_a_killed_process_leaves_is_removed_at_the_next_start(model: Path) -> None:
    code = 'lm("hello", max_tokens=3); say("loaded"); time.sleep(60)'
    process = Forked(BEGIN + code, model)
    assert process.stdout.readline() == "loaded\n"
    (mine,) = Path("/dev/shm").glob(f"{FOLDER}{process.pid}-*")
    assert run(model, 'lm("hello", max_tokens=3)') == "" and mine.exists()  # it is in use
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert mine in left()
    run(model, 'lm("hello", max_tokens=3)')
    assert not mine.exists()
