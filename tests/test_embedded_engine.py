"""The numpy engine: agreement with the torch reference, prefix cache, batching, repeatability, limits."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped, unused-ignore]

from cuesmith.modules.embedded import attention
from cuesmith.modules.embedded import engine as engine_module
from cuesmith.modules.embedded.attention import PrefixCache
from cuesmith.modules.embedded.batching import Batcher
from cuesmith.modules.embedded.blas import single_blas_thread
from cuesmith.modules.embedded.engine import (
    Completion,
    ContextLengthError,
    Decoder,
    Generation,
    NanoEngine,
)
from cuesmith.modules.embedded.network import Weights

VOCAB = 300


class NumberTokenizer:
    """Texts are numbers: each is a token."""

    def __init__(self) -> None:
        self.roles = {"system": 0, "user": 1, "assistant": 2}
        self.end = 3

    def encode_message(self, role: str, text: str) -> list[int]:
        return [self.roles[role], *map(int, text.split()), self.end]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))


def random_tensors(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Random weights of the embedded architecture (its own widths, a smaller vocabulary)."""
    random = np.random.default_rng(seed)
    dim, hidden, layers, heads = 128, 320, 4, 4

    def matrix(outputs: int, inputs: int, scale: float = 1.0) -> np.ndarray:
        return np.asarray(random.standard_normal((outputs, inputs)) * scale * inputs**-0.5, dtype=np.float16)

    def gains(size: int) -> np.ndarray:
        return np.asarray(1 + 0.2 * random.standard_normal(size), dtype=np.float16)

    tensors = {"embed.weight": matrix(VOCAB, dim, 2.0), "norm.weight": gains(dim)}
    tensors |= {f"{name}.weight": matrix(dim, dim) for name in ("back1", "back2", "word0", "word1")}
    for i in range(layers):
        square = {f"layers.{i}.{name}.weight": matrix(dim, dim) for name in ("wq", "wk", "wv", "wo")}
        wide = {f"layers.{i}.{name}.weight": matrix(hidden, dim) for name in ("gate", "up")}
        norms = {f"layers.{i}.{name}.weight": gains(dim) for name in ("norm1", "norm2")}
        norms |= {f"layers.{i}.{name}.weight": gains(dim // heads) for name in ("q_norm", "k_norm")}
        tensors |= square | wide | norms | {f"layers.{i}.down.weight": matrix(dim, hidden)}
    tensors["word_start"] = (np.arange(VOCAB) % 3 == 0).astype(np.uint8)
    config = {"heads": heads, "layers": layers, "rope_base": 10000.0, "max_length": 700}
    return tensors, config


@pytest.fixture
def engine() -> NanoEngine:
    return NanoEngine(Weights(*random_tensors()), NumberTokenizer())


def numbers(random: np.random.Generator, count: int) -> str:
    return " ".join(map(str, random.integers(4, VOCAB, count)))


def make_chats(count: int, seed: int = 0, systems: int = 3) -> list[list[tuple[str, str]]]:
    """Chats of varied length with a few system messages and one demonstration; every seventh has no prefix."""
    random = np.random.default_rng(seed)
    starts = [
        [("system", numbers(random, 20 + 45 * i)), ("user", numbers(random, 9)), ("assistant", numbers(random, 7))]
        for i in range(systems)
    ]
    return [
        [*([] if i % 7 == 6 else starts[i % systems]), ("user", numbers(random, int(random.integers(1, 60))))]
        for i in range(count)
    ]


def run_logits(engine: NanoEngine, chats: Sequence[Sequence[tuple[str, str]]], new: int) -> list[np.ndarray]:
    """The logits of every token chosen, (new, vocab) for each chat, decoded as one batch."""
    seen: dict[int, list[np.ndarray]] = {}

    class Recorder(Decoder):
        def _choose(self, first: int, logits: np.ndarray) -> list[Generation]:
            for job, row in zip(self._running[first:], logits, strict=True):
                seen.setdefault(id(job), []).append(row.copy())
            return super()._choose(first, logits)

    engine.stops = frozenset()
    jobs = [engine.prepare(chat, max_new_tokens=new) for chat in chats]
    decoder = Recorder(engine)
    with single_blas_thread:
        decoder.admit(jobs)
        while decoder.active:
            decoder.step()
    return [np.array(seen[id(job)]) for job in jobs]


def test_numpy_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # on a busy machine two wait for each other
    from nano.architecture import NanoConfig, NanoTransformer

    tensors, config = random_tensors()
    engine = NanoEngine(Weights(tensors, config), NumberTokenizer())
    sizes = NanoConfig(vocab_size=VOCAB, max_length=int(config["max_length"]))
    assert {name: asdict(sizes)[name] for name in config} == config
    model = NanoTransformer(sizes, tensors["word_start"].astype(bool).tolist())
    state = {
        name: torch.from_numpy(t.astype(np.uint8 if name == "word_start" else np.float32))
        for name, t in tensors.items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing and not unexpected

    chats = make_chats(9)
    for chat, logits in zip(chats, run_logits(engine, chats, 12), strict=True):
        prompt = engine.encode(chat)
        ids = [*prompt.context[:, 0].tolist(), *logits.argmax(1).tolist()]
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0].numpy()[len(prompt) - 1 : -1]
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_text_does_not_depend_on_the_batch(engine: NanoEngine) -> None:
    chats = make_chats(32)
    together = engine.generate(chats, max_new_tokens=24)
    assert len({answer.text for answer in together}) > 16
    alone = [engine.generate([chat], max_new_tokens=24)[0].text for chat in chats]
    assert alone == [answer.text for answer in together]
    shuffled = engine.generate(chats[::-1] + make_chats(20, seed=5), max_new_tokens=24)[:32]
    assert alone == [answer.text for answer in shuffled[::-1]]


def blas_kernels() -> str:
    """The processor whose kernels BLAS uses, as OpenBLAS names it; "" for another library."""
    libraries = ThreadpoolController().select(internal_api="openblas").info()
    return str(libraries[0]["architecture"]) if libraries else ""


@pytest.mark.parametrize("size", [2, 5, 17, 40])
def test_logits_do_not_depend_on_the_batch(engine: NanoEngine, size: int) -> None:
    """To the bit with the kernels whose orders of summation were checked, elsewhere to the last digits."""
    exact = blas_kernels() in ("SkylakeX", "Cooperlake", "SapphireRapids")
    chats = make_chats(size, systems=2)
    together = run_logits(engine, chats, 10)
    for i in {0, 1, size // 2, size - 1}:
        engine.prefixes.clear()
        (alone,) = run_logits(engine, [chats[i]], 10)
        np.testing.assert_allclose(alone, together[i], rtol=0, atol=0 if exact else 1e-4)
        assert alone.argmax(1).tolist() == together[i].argmax(1).tolist()


def test_long_prompts_do_not_depend_on_the_batch(engine: NanoEngine) -> None:
    random = np.random.default_rng(3)
    system = ("system", numbers(random, 330))
    chats = [[system, ("user", numbers(random, n))] for n in (300, 4, 90)]
    together = run_logits(engine, chats, 4)
    for chat, logits in zip(chats, together, strict=True):
        (alone,) = run_logits(engine, [chat], 4)
        np.testing.assert_allclose(alone, logits, atol=1e-4)
        assert alone.argmax(1).tolist() == logits.argmax(1).tolist()


def test_prefix_cache_changes_the_work_but_not_the_text(engine: NanoEngine) -> None:
    chat = make_chats(1)[0]
    miss, hit = (engine.generate([chat], max_new_tokens=20)[0] for _ in range(2))
    prefix = sum(len(engine.tokenizer.encode_message(*message)) for message in chat[:-1])
    assert (miss.cached_tokens, hit.cached_tokens) == (0, prefix)
    assert miss.text == hit.text
    engine.prefixes.clear()
    assert engine.generate([chat], max_new_tokens=20)[0] == miss
    other = [("system", "5 6 7"), *chat[1:]]
    assert engine.generate([other], max_new_tokens=20)[0].text != miss.text


def test_shared_prefix_is_computed_once(engine: NanoEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    compute = attention.compute_prefix

    def counting(weights: Weights, context: np.ndarray) -> object:
        lengths.append(len(context))
        return compute(weights, context)

    monkeypatch.setattr(engine_module, "compute_prefix", counting)
    chats = [[("system", "9 8 7 6 5"), ("user", str(10 + i))] for i in range(40)]
    answers = engine.generate(chats, max_new_tokens=3)
    assert lengths == [7]
    assert sorted(answer.cached_tokens for answer in answers) == [0] + [7] * 39


def test_prefix_cache_is_bounded_and_drops_the_oldest(engine: NanoEngine) -> None:
    chats = [[("system", f"{i} 8 7 6"), ("user", "5")] for i in range(10, 16)]
    engine.generate(chats[:1], max_new_tokens=1)
    one = engine.prefixes.nbytes
    engine.prefixes = PrefixCache(3 * one)
    for chat in [*chats[:3], chats[0], chats[3]]:  # the second is now the oldest, and the fourth one too many
        engine.generate([chat], max_new_tokens=1)
        assert engine.prefixes.nbytes <= 3 * one
    assert len(engine.prefixes) == 3
    cached = [engine.generate([chat], max_new_tokens=1)[0].cached_tokens for chat in (chats[0], chats[3], chats[1])]
    assert cached == [6, 6, 0]


def test_context_length_is_an_error_before_any_work(engine: NanoEngine) -> None:
    limit = engine.weights.limit
    prompt = "7 " * (limit - 10 - 3)
    assert engine.generate([[("user", prompt)]], max_new_tokens=10)[0].prompt_tokens == limit - 10
    with pytest.raises(ContextLengthError, match=f"{limit - 10} prompt tokens \\+ 11 new tokens exceed.* {limit} "):
        engine.generate([[("user", "5")], [("user", prompt)]], max_new_tokens=11)


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}])
def test_options_out_of_range(engine: NanoEngine, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need max_new_tokens"):
        engine.prepare([("user", "5")], **options)  # type: ignore[arg-type]


def test_gains_that_could_overflow_are_refused() -> None:
    tensors, config = random_tensors()
    tensors["layers.2.q_norm.weight"] = tensors["layers.2.q_norm.weight"] * 20
    with pytest.raises(ValueError, match=r"layers\.2\.q_norm"):
        Weights(tensors, config)


def test_draws_repeat_by_seed_and_follow_the_distribution(engine: NanoEngine) -> None:
    chats = make_chats(6)
    first = engine.generate(chats, max_new_tokens=12, temperature=0.9, seeds=range(6))
    again = [
        engine.generate([chat], max_new_tokens=12, temperature=0.9, seeds=[seed])[0] for seed, chat in enumerate(chats)
    ]
    assert [answer.text for answer in first] == [answer.text for answer in again]
    chat = chats[0]
    many = engine.generate([chat] * 600, max_new_tokens=1, temperature=2.0, seeds=range(600))
    (logits,) = run_logits(engine, [chat], 1)
    likely = int(logits[0][4:].argmax()) + 4  # ids below are marks, which end an answer
    weights = np.exp((logits[0] - logits[0].max()) / 2.0)
    expected = weights[likely] / weights.sum()
    share = sum(answer.text == str(likely) for answer in many) / 600
    assert abs(share - expected) < 5 * (expected * (1 - expected) / 600) ** 0.5
    cold = engine.generate([chat], max_new_tokens=12, temperature=1e-4)[0]
    assert cold.text == engine.generate([chat], max_new_tokens=12)[0].text


def test_stop_and_length(engine: NanoEngine) -> None:
    chats = make_chats(60)
    answers = engine.generate(chats, max_new_tokens=40)
    reasons = {answer.finish_reason for answer in answers}
    assert reasons == {"stop", "length"}
    for answer in answers:
        made = answer.text.split()
        assert not {"0", "1", "2", "3"} & set(made)
        assert answer.completion_tokens == len(made) + (answer.finish_reason == "stop") <= 40
        assert (answer.finish_reason == "length") == (len(made) == 40)


def test_threads_get_their_own_answers(engine: NanoEngine) -> None:
    chats = make_chats(96)
    expected = [answer.text for answer in engine.generate(chats, max_new_tokens=16)]
    batcher = Batcher(engine)
    with ThreadPoolExecutor(32) as pool:
        jobs = [engine.prepare(chat, max_new_tokens=16) for chat in chats]
        assert [answer.text for answer in pool.map(batcher.complete, jobs)] == expected
    batcher.close()


def test_event_loops_get_their_own_answers(engine: NanoEngine) -> None:
    chats = make_chats(64)
    expected = [answer.text for answer in engine.generate(chats, max_new_tokens=16)]
    batcher = Batcher(engine)

    async def ask_all() -> list[Completion]:
        jobs = [engine.prepare(chat, max_new_tokens=16) for chat in chats]
        return await asyncio.gather(*map(batcher.acomplete, jobs))

    for _ in range(2):  # a second loop meets a running worker
        assert [answer.text for answer in asyncio.run(ask_all())] == expected
    batcher.close()


def test_concurrent_calls_share_batches(engine: NanoEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    step = Decoder.step

    def counting(self: Decoder) -> list[Generation]:
        sizes.append(self.active)
        return step(self)

    monkeypatch.setattr(Decoder, "step", counting)
    engine.stops = frozenset()
    batcher = Batcher(engine)
    jobs = [engine.prepare(chat, max_new_tokens=20) for chat in make_chats(32)]
    futures = [batcher.submit(job) for job in jobs]
    for future in futures:
        future.result(timeout=30)
    assert max(sizes) >= 16 and len(sizes) < 32 * 19 / 4
    batcher.close()


def test_an_error_reaches_its_batch_and_nobody_else(engine: NanoEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.stops = frozenset()
    batcher = Batcher(engine)
    chat = make_chats(1)[0]
    expected = batcher.complete(engine.prepare(chat, max_new_tokens=5)).text
    broken = threading.Event()
    step = Decoder.step

    def breaking(self: Decoder) -> list[Generation]:
        if broken.is_set():
            raise FloatingPointError("broken")
        return step(self)

    monkeypatch.setattr(Decoder, "step", breaking)
    broken.set()
    with pytest.raises(FloatingPointError, match="broken"):
        batcher.complete(engine.prepare(chat, max_new_tokens=5))
    broken.clear()
    assert batcher.complete(engine.prepare(chat, max_new_tokens=5)).text == expected
    batcher.close()


def test_closing_fails_what_waits_and_refuses_what_comes(engine: NanoEngine) -> None:
    engine.stops = frozenset()
    batcher = Batcher(engine)
    job = engine.prepare([("user", "5")], max_new_tokens=690)
    running: Future[Completion] = batcher.submit(job)
    batcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        running.result(timeout=10)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(engine.prepare([("user", "5")]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_answers(engine: NanoEngine) -> None:
    batcher = Batcher(engine)
    chat = make_chats(1)[0]
    expected = batcher.complete(engine.prepare(chat, max_new_tokens=4)).text
    child = os.fork()
    if child == 0:
        same = batcher.submit(engine.prepare(chat, max_new_tokens=4)).result(timeout=20).text == expected
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    batcher.close()


def test_blas_threads_are_restored() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def limits() -> list[int]:
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = limits()
        with single_blas_thread:
            with single_blas_thread:
                pass
            assert set(limits()) == {1}
        assert limits() == before


def test_context_features_match_their_definition(engine: NanoEngine) -> None:
    weights = engine.weights
    ids = np.random.default_rng(1).integers(0, VOCAB, 50).tolist()
    whole = weights.context(ids)
    starts = [i for i, token in enumerate(ids) if weights.word_start[token]]
    assert all(b > a for a, b in pairwise(starts)) and len(starts) > 5
    for place in range(50):
        before = [i for i in starts if i <= place]
        expected = [
            ids[place],
            ids[place - 1] if place >= 1 else VOCAB,
            ids[place - 2] if place >= 2 else VOCAB,
            ids[before[-1]] if before else VOCAB,
            ids[before[-2]] if len(before) > 1 else VOCAB,
        ]
        assert whole[place].tolist() == expected
    stepped = whole[:1].copy()
    for place in range(1, 50):
        weights.advance(stepped, np.array(ids[place : place + 1]))
        assert stepped[0].tolist() == whole[place].tolist()
