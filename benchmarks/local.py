"""How fast `LocalLM` is: ``python benchmarks/local.py MODEL.gguf [--calls N] [--rounds N] [--threads N]``.

Side by side on the same weights, in turns: `LocalLM`; llama.cpp's own server, used plainly over HTTP; and
transformers' `generate` in float32, one call at a time and in batches of 8. As when a candidate is scored, the calls
of a round have a beginning of some 400 tokens in common, which is another one in each round. 8 calls are in flight;
replies have at most 40 tokens. Prints calls per second (medians over the rounds) and ratios to the others.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from dspy import lm15

from cuesmith import LocalLM

IN_FLIGHT = 8
CONTEXT = 1024
NEW_TOKENS = 40
SHARED_WORDS = 300
"""About 400 tokens."""

WORDS = ["river", "stone", "window", "garden", "paper", "music", "winter", "silver", "table", "morning", "letter"]
WORDS += ["bridge", "forest", "market", "engine", "harbour", "captain", "village", "basket", "candle", "mirror"]

Chat = list[dict[str, str]]
Backend = Callable[[Sequence[Chat]], list[int]]
"""Answers chats; returns how many tokens each reply has."""


def chats(count: int, seed: int) -> list[Chat]:
    """Return chats that have a system message in common, which no other seed has."""
    rng = random.Random(seed)
    system = "You tell long stories. Use as many of these words as you can: " + " ".join(
        rng.choices(WORDS, k=SHARED_WORDS)
    )
    return [
        [
            {"role": "system", "content": system},
            {"role": "user", "content": f"Tell a story about {topic} and {number}."},
        ]
        for topic, number in zip(rng.choices(WORDS, k=count), rng.sample(range(1000), count), strict=True)
    ]


def local_lm(model: Path, threads: int) -> Backend:
    """`LocalLM`."""
    lm = LocalLM(model, slots=IN_FLIGHT, context=CONTEXT, threads=threads)

    def answer(chat: Chat) -> int:
        system, user = (each["content"] for each in chat)
        config = lm15.Config(max_tokens=NEW_TOKENS, temperature=0.0)
        request = lm15.Request(model=lm.model, messages=(lm15.Message.user(user),), system=system, config=config)
        return int(lm(request).usage.output_tokens)

    return lambda asked: _in_flight(answer, asked)


def _in_flight(answer: Callable[[Chat], int], asked: Sequence[Chat]) -> list[int]:
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(answer, asked))


def _serve(model: Path, threads: int, told: Connection) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx = str(model), IN_FLIGHT, IN_FLIGHT * CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames, params.port, params.verbosity = ["127.0.0.1"], 0, -1
    server = xllamacpp.Server(params)
    told.send(server.listening_address)
    time.sleep(10**6)


@contextmanager
def own_server(model: Path, threads: int) -> Iterator[Backend]:
    """llama.cpp's own server, in a process of its own, with what it does by default."""
    spawned = multiprocessing.get_context("spawn")
    here, there = spawned.Pipe()
    process = spawned.Process(target=_serve, args=(model, threads, there), daemon=True)
    process.start()
    address = str(here.recv()).removeprefix("http://")

    def answer(chat: Chat) -> int:
        link = http.client.HTTPConnection(address)
        body = {"messages": chat, "max_tokens": NEW_TOKENS, "temperature": 0.0}
        link.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        with link.getresponse() as reply:
            return int(json.load(reply)["usage"]["completion_tokens"])

    try:
        yield lambda asked: _in_flight(answer, asked)
    finally:
        process.kill()
        process.join()


def transformers(model: Path, threads: int) -> Callable[[int], Backend]:
    """transformers' `generate` on the file's weights in float32; called with the size of batches."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    place = {"pretrained_model_name_or_path": str(model.parent), "gguf_file": model.name}
    tokenizer = AutoTokenizer.from_pretrained(**place, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    network = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)  # set to evaluate

    def answer(batch: Sequence[Chat]) -> list[int]:
        inputs: Any = tokenizer.apply_chat_template(
            list(batch), add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            found = network.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = found[:, inputs["input_ids"].shape[1] :]
        return [int((row != tokenizer.pad_token_id).sum()) for row in new]

    def batched(size: int) -> Backend:
        return lambda asked: [
            count for first in range(0, len(asked), size) for count in answer(asked[first : first + size])
        ]

    return batched


@dataclass
class Measured:
    """Of one backend.

    Attributes:
        name: Its name.
        backend: How it is asked.
        share: It is asked for one call in so many: the slow ones' rate does not depend on how many there are.
        rates: Calls per second, of each round.
        tokens: New tokens, of each call.
    """

    name: str
    backend: Backend
    share: int
    rates: list[float]
    tokens: list[int]

    def round(self, asked: Sequence[Chat]) -> None:
        """Measure a round."""
        mine = asked[:: self.share]
        begun = time.perf_counter()
        self.tokens += self.backend(mine)
        self.rates.append(len(mine) / (time.perf_counter() - begun))

    def line(self, ours: Measured) -> str:
        """Tell of it, beside ours."""
        ratios = [mine / other for mine, other in zip(ours.rates, self.rates, strict=True)]
        rate, new = statistics.median(self.rates), statistics.mean(self.tokens)
        faster = f"LocalLM is {statistics.median(ratios):5.2f} times as fast [{min(ratios):.2f}, {max(ratios):.2f}]"
        return f"{self.name:26} {rate:8.3f} calls/s {new:6.1f} new tokens   {faster}"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path, help="a .gguf file")
    parser.add_argument("--calls", type=int, default=32, help="calls of a round; the slow ones answer a part of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    model: Path = options.model.absolute()
    generate = transformers(model, options.threads)
    with own_server(model, options.threads) as server:
        rows = [
            Measured("LocalLM", local_lm(model, options.threads), 1, [], []),
            Measured("llama.cpp's own server", server, 1, [], []),
            Measured("transformers, batches of 8", generate(8), max(1, options.calls // 8), [], []),
            Measured("transformers, one by one", generate(1), max(1, options.calls // 4), [], []),
        ]
        for each in rows:
            each.backend(chats(1, seed=-1))  # what is done once: loading, compiling
        for number in range(options.rounds):
            asked = chats(options.calls, seed=number)
            for each in rows if number % 2 == 0 else rows[::-1]:
                each.round(asked)
    print(f"{model.name}: {options.threads} threads, {options.rounds} rounds of {options.calls} calls")
    for each in rows:
        print(each.line(rows[0]))


if __name__ == "__main__":
    main()
