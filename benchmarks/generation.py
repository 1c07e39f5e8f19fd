"""Speed of the embedded model: ``python benchmarks/generation.py [--engines]``.

Prints calls/s of one-at-a-time generation by `transformers` (a Llama of the same shape, random weights, one torch
thread) and of the embedded engine with 32 concurrent callers and with one, on prompts and answers of equal length,
and the ratio of both. The two take turns in one run, so that a busy machine slows both; the ratio is the median of
the rounds' ratios, with their range. ``--engines`` compares one decoding step on numpy, torch and onnxruntime.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import cast

import numpy as np
import torch
from nano.architecture import NORM_EPS, NanoConfig, NanoTransformer, RMSNorm
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from cuesmith.modules.embedded.batching import Batcher
from cuesmith.modules.embedded.blas import single_blas_thread
from cuesmith.modules.embedded.engine import Decoder, EncodedPrompt, Generation, NanoEngine
from cuesmith.modules.embedded.network import Weights

CALLERS = 32


@dataclass(frozen=True, slots=True)
class Workload:
    """Calls of one length, in tokens; `prefix` of the prompt's are shared by all calls of a candidate."""

    name: str
    prompt: int
    prefix: int
    new: int


WORKLOADS = (
    Workload("Predict, 86 + 12 tokens", 86, 58, 12),
    Workload("ChainOfThought, 140 + 45 tokens", 140, 98, 45),
)


class _Marks:
    """A tokenizer's marks; the benchmark makes its prompts of random ids."""

    def __init__(self) -> None:
        self.roles = {"system": 0, "user": 1, "assistant": 2}
        self.end = 3

    def encode_message(self, role: str, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: object) -> str:
        return ""


def make_model() -> NanoTransformer:
    """The embedded architecture with random weights."""
    torch.manual_seed(0)
    model = NanoTransformer(NanoConfig(), [i % 3 == 0 for i in range(NanoConfig().vocab_size)]).eval()
    for name, weight in model.named_parameters():
        if name.endswith(("wo.weight", "down.weight")):
            nn.init.normal_(weight, std=0.05)
    return model


def make_engine(model: NanoTransformer) -> NanoEngine:
    """The numpy engine of a torch model."""
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    config = model.config
    sizes = {"heads": config.heads, "layers": config.layers, "max_length": config.max_length}
    return NanoEngine(Weights(tensors, {**sizes, "rope_base": config.rope_base}), _Marks())


class Reference:
    """One-at-a-time greedy generation through `transformers`."""

    def __init__(self, config: NanoConfig) -> None:
        """Create a Llama of the embedded model's shape."""
        shape = LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.max_length,
            tie_word_embeddings=True,
        )
        model: nn.Module = LlamaForCausalLM(shape)
        model.train(False)
        self._generate = cast(Callable[..., Tensor], model.generate)
        self._vocab = config.vocab_size

    def rate(self, work: Workload, calls: int) -> float:
        """Calls a second of `calls` calls."""
        prompts = torch.randint(4, self._vocab, (calls, 1, work.prompt))
        begin = time.perf_counter()
        for ids in prompts:
            out = self._generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=work.new,
                min_new_tokens=work.new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert out.shape[1] == work.prompt + work.new
        return calls / (time.perf_counter() - begin)


class Embedded:
    """The embedded engine behind its batcher, called by threads."""

    def __init__(self, engine: NanoEngine) -> None:
        """Serve an engine."""
        engine.stops = frozenset()  # exactly as many tokens as the workload says
        self._engine, self._batcher = engine, Batcher(engine)
        self._random = np.random.default_rng(0)
        self._pool = ThreadPoolExecutor(CALLERS)

    def jobs(self, work: Workload, calls: int) -> list[Generation]:
        """Prompts with one prefix, never seen before, and a tail of their own."""
        vocab = self._engine.weights.vocab
        prefix = self._random.integers(4, vocab, work.prefix)
        tails = self._random.integers(4, vocab, (calls, work.prompt - work.prefix))
        prompts = [EncodedPrompt(self._engine.weights.context([*prefix, *tail]), work.prefix) for tail in tails]
        return [Generation(prompt, work.new) for prompt in prompts]

    def rate(self, work: Workload, calls: int, callers: int) -> float:
        """Calls a second of `calls` calls by `callers` threads, each waiting for its answer before its next call."""
        jobs, place = self.jobs(work, calls), count()
        made = []

        def call() -> None:
            while (i := next(place)) < calls:
                made.append(self._batcher.complete(jobs[i]).completion_tokens)

        begin = time.perf_counter()
        for done in [self._pool.submit(call) for _ in range(callers)]:
            done.result()
        seconds = time.perf_counter() - begin
        assert made == [work.new] * calls
        return calls / seconds


def compare(rounds: int) -> None:
    """Print the table of rates and ratios."""
    torch.set_num_threads(1)
    model = make_model()
    reference, embedded = Reference(model.config), Embedded(make_engine(model))
    print(f"calls/s, median of {rounds} alternating rounds; ratio to transformers with its range")
    print(f"{'':34}{'transformers':>13}{'1 caller':>10}{'32 callers':>12}{'ratio (range)':>24}{'calls':>12}")
    for work in WORKLOADS:
        slow, many = max(2, 96 // work.new), 4 * CALLERS
        reference.rate(work, 2)  # both warm
        embedded.rate(work, CALLERS, CALLERS)
        rates = [
            (reference.rate(work, slow), embedded.rate(work, slow, 1), embedded.rate(work, many, CALLERS))
            for _ in range(rounds)
        ]
        base, one, full = (statistics.median(column) for column in zip(*rates, strict=True))
        ratios = sorted(row[2] / row[0] for row in rates)
        spread = f"x{statistics.median(ratios):.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f})"
        calls = f"{rounds * slow}/{rounds * many}"
        print(f"{work.name:34}{base:13.1f}{one:10.1f}{full:12.1f}{spread:>24}{calls:>12}", flush=True)


class _Step(nn.Module):
    """One decoding step of the architecture with its past as an input, for torch and onnxruntime."""

    def __init__(self, model: NanoTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """Logits (rows, vocab), new keys and values, of inputs (rows, 1, d); past (layers, rows, heads, time, size)."""
        made = []
        for i, layer in enumerate(self.model.layers):
            q, k, v = layer.project(x, cos, sin)  # type: ignore[operator]
            made += [k, v]
            k, v = torch.cat((keys[i], k), 2), torch.cat((values[i], v), 2)
            x = layer.finish(x, functional.scaled_dot_product_attention(q, k, v))  # type: ignore[operator]
        return (self.model.norm(x)[:, 0] @ self.model.embed.weight.T, *made)


class _PlainNorm(nn.Module):
    """RMSNorm in operators that ONNX exports."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + NORM_EPS) * self.weight


def _exportable(model: NanoTransformer) -> _Step:
    copy = deepcopy(model)
    for module in list(copy.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, RMSNorm):
                setattr(module, name, _PlainNorm(child.weight))
    return _Step(copy)


def _fastest(run: Callable[[], object], seconds: float = 0.25) -> float:
    """Milliseconds of the fastest run within a time."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times) * 1e3


def engines(rounds: int) -> None:
    """Print milliseconds of one decoding step at about 140 tokens of context, one thread each."""
    import onnxruntime

    torch.set_num_threads(1)
    model = make_model()
    step, engine = _Step(model), make_engine(model)
    config = model.config
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    print("ms per decoding step, fastest of alternating rounds; torch and onnxruntime without choosing the tokens")
    print(f"{'rows':>6}{'numpy':>10}{'torch':>10}{'onnxruntime':>14}")
    for rows in (1, 32):
        past = (config.layers, rows, config.heads, 140, config.dim // config.heads)
        inputs = (
            torch.randn(rows, 1, config.dim), model.cos[140:141], model.sin[140:141],
            torch.randn(past), torch.randn(past),
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "step.onnx")
            names = ["x", "cos", "sin", "keys", "values"]
            torch.onnx.export(_exportable(model), inputs, file, input_names=names, dynamo=False)
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        best = [float("inf")] * 3
        for _ in range(rounds):
            with torch.inference_mode(), single_blas_thread:
                runs: Sequence[Callable[[], object]] = (
                    _decoder(engine, rows).step,
                    partial(step, *inputs),
                    partial(session.run, None, feed),
                )
                best = [min(old, _fastest(run)) for old, run in zip(best, runs, strict=True)]
        print(f"{rows:6}{best[0]:10.2f}{best[1]:10.2f}{best[2]:14.2f}", flush=True)


def _decoder(engine: NanoEngine, rows: int) -> Decoder:
    decoder = Decoder(engine)
    decoder.admit(Embedded(engine).jobs(Workload("", 140, 98, 1200), rows))
    return decoder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--engines", action="store_true", help="compare numpy, torch and onnxruntime instead")
    options = parser.parse_args(arguments)
    (engines if options.engines else compare)(options.rounds)


if __name__ == "__main__":
    main()
