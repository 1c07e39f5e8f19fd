"""Inference of the embedded language model on numpy, without torch.

`NanoEngine` holds the weights and answers whole chats; `Decoder` is its batched decoding loop, used directly by
`cuesmith.modules.embedded.batching`. The model itself is defined in `benchmarks/nano/architecture.py`.

How it is made fast:
    * Weights that always act together are fused when loading: the five input maps become look-up tables, norm gains
      go into the matrices behind them, q/k/v and gate/up are one matrix each, rotary pairs lie side by side so that
      the rotation is one complex product.
    * Calls with the same beginning (system message and demonstrations) share its keys and values. They are computed
      once, kept in a bounded LRU cache, and all rows of a batch attend to them in one matrix product.
    * Rows of a batch end independently; a freed row is filled by moving the last one into it.

Why numpy: one decoding step at 140 tokens of context, one thread each, on two busy cores, took 1.9 ms on numpy, 3.7 on
torch and 1.3 on onnxruntime for one row, and 5.5, 13.5 and 12.2 ms for 32 rows (the other two without a shared
prefix; ``python benchmarks/generation.py --engines``). Compiling asks many questions at once.

How it is made repeatable: a row's result must not depend on its neighbours. Every matrix product has at least two
rows (one row alone takes another BLAS routine with another order of summation), sizes that vary with the batch are
padded with exact zeros to multiples of `BLOCK`, and softmax needs neither a maximum nor a sum over a padded axis:
query/key norms bound the scores, and a column of ones beside the values accumulates the denominator. With OpenBLAS's
kernels for AVX-512 the logits are then the same to the bit; its kernels for older processors sum the last rows of a
product in another order, and the logits agree to the last digits (a text differs only where two tokens tie in these).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeAlias

import numpy as np

from cuesmith.modules.embedded.attention import (
    MIN_ROOM,
    Group,
    Prefix,
    PrefixCache,
    Rows,
    compute_prefix,
    grouped,
    prefill,
    round_up,
    share,
)
from cuesmith.modules.embedded.blas import single_blas_thread
from cuesmith.modules.embedded.network import Floats, Ints, Weights

Chat: TypeAlias = Sequence[tuple[str, str]]
FinishReason: TypeAlias = Literal["stop", "length"]


class ContextLengthError(ValueError):
    """A prompt and the tokens asked for do not fit the model's context."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished generation.

    Attributes:
        text: The decoded text, without the stop token.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens generated, the stop token included.
        cached_tokens: How many of the prompt's tokens came from the prefix cache.
        finish_reason: "stop" where the model ended by itself, "length" where ``max_new_tokens`` ended it.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    finish_reason: FinishReason


class ChatTokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def roles(self) -> dict[str, int]:
        """The mark that opens a message of each role."""
        ...

    @property
    def end(self) -> int:
        """The mark that closes a message."""
        ...

    def encode_message(self, role: str, text: str) -> list[int]:
        """Token ids of one message with its marks."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of generated ids."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """An encoded chat.

    Attributes:
        context: (tokens, 5) ids that make up each position's input: the token, the two before it, the first token of
            the word and of the previous word. The vocabulary's size stands for "nothing".
        prefix: How many leading tokens form the shareable prefix (everything before the last user message).
    """

    context: Ints
    prefix: int

    def __len__(self) -> int:
        return len(self.context)

    @property
    def key(self) -> bytes:
        """Identity of the shareable prefix."""
        return self.context[: self.prefix, 0].tobytes()


@dataclass(slots=True, eq=False)
class Generation:
    """One row to decode, and what has been decoded so far.

    Attributes:
        prompt: The encoded chat.
        max_new_tokens: Most tokens to generate, at least 1.
        temperature: 0 takes the most likely token; above, tokens are drawn.
        seed: Seed of the draws; the same prompt, temperature and seed draw the same tokens in any batch.
        tokens: Ids generated so far, the stop token excluded.
        cached: Prompt tokens whose keys and values came from the prefix cache.
        finish_reason: Why it ended; None while it runs.
    """

    prompt: EncodedPrompt
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    finish_reason: FinishReason | None = None
    _draws: np.random.Generator | None = None

    def draw(self) -> float:
        """The next uniform number in [0, 1) of this row's own random stream."""
        if self._draws is None:
            self._draws = np.random.Generator(np.random.Philox(key=self.seed % 2**64))
        return float(self._draws.random())

    def accept(self, token: int, stops: Container[int]) -> bool:
        """Add a token; True when the generation is complete."""
        if token in stops:
            self.finish_reason = "stop"
            return True
        self.tokens.append(token)
        if len(self.tokens) >= self.max_new_tokens:
            self.finish_reason = "length"
            return True
        return False


class Decoder:
    """Batched decoding: rows are admitted, advanced together one token a step, and leave when they end.

    Not safe under threads: one thread drives a decoder. Buffers grow with use and are kept between batches.
    """

    CHUNK = 512
    """Most tokens processed at once when rows are admitted, so that a layer's activations stay in the CPU cache."""

    def __init__(self, engine: NanoEngine) -> None:
        """Create an idle decoder of an engine."""
        self._engine, self._weights = engine, engine.weights
        self._running: list[Generation] = []
        self._cache = Rows(self._weights, 8, 64)
        self._context: Ints = np.zeros((8, 5), np.int64)
        self._start: Ints = np.zeros(8, np.int64)  # the position of a row's first own token
        self._place: Ints = np.zeros(8, np.int64)  # the position of its next token
        self._prefixes: list[Prefix | None] = []
        self._groups: list[Group] = []

    @property
    def active(self) -> int:
        """Rows being decoded."""
        return len(self._running)

    def admit(self, jobs: Sequence[Generation]) -> list[Generation]:
        """Process prompts, choose each one's first token and add those that go on to the batch.

        Returns:
            The generations that ended with their first token.
        """
        # Rows of one prefix side by side: their tokens then share the prefix in one product.
        ordered = sorted(jobs, key=lambda job: job.prompt.key)
        finished: list[Generation] = []
        while ordered:
            count, tokens = 0, 0
            while count < len(ordered) and (count == 0 or tokens < self.CHUNK):
                tokens += len(ordered[count].prompt) - ordered[count].prompt.prefix
                count += 1
            finished += self._admit(ordered[:count])
            ordered = ordered[count:]
        return finished

    def _admit(self, jobs: Sequence[Generation]) -> list[Generation]:
        first, count = self.active, len(jobs)
        prefixes = self._find_prefixes(jobs)
        parts = [job.prompt.context[job.prompt.prefix :] for job in jobs]
        self._reserve(first + count, max(map(len, parts)))
        self._cache.values[:, first : first + count] = 0.0
        starts = [job.prompt.prefix for job in jobs]
        x = prefill(self._weights, self._cache, first, parts, starts, prefixes)
        rows = slice(first, first + count)
        self._context[rows] = [part[-1] for part in parts]
        self._start[rows] = starts
        self._place[rows] = [len(job.prompt) for job in jobs]
        self._running += jobs
        self._prefixes += prefixes
        return self._choose(first, self._weights.logits(x)[:count])

    def _find_prefixes(self, jobs: Sequence[Generation]) -> list[Prefix | None]:
        found: list[Prefix | None] = []
        for key, same in groupby(jobs, key=lambda job: job.prompt.key):
            together = list(same)
            prefix, hit = self._engine.prefix(key, together[0].prompt)
            for i, job in enumerate(together):
                job.cached = job.prompt.prefix if hit or i else 0
                found.append(prefix)
        return found

    def step(self) -> list[Generation]:
        """Advance every row by one token.

        Returns:
            The generations that ended.
        """
        weights, n = self._weights, self.active
        m = max(n, 2)  # a product of one row would sum in another order
        own = self._place[:m] - self._start[:m]
        longest = int(own[:n].max()) + 1
        self._reserve(m, longest)
        if n < m:
            self._start[n:m] = self._place[n:m] = own[n:m] = 0
        room, index = max(round_up(longest), MIN_ROOM), (np.arange(m), own)
        self._cache.values[:, index[0], :, own, weights.size] = 1.0
        rotation = weights.rotation[self._place[:m]]
        x = weights.inputs(self._context[:m])
        for i, layer in enumerate(weights.layers):
            q, k, v = weights.project(layer, x, rotation)
            self._cache.write(i, index, k, v)
            total = self._cache.attend(i, slice(0, m), room, q)
            share(i, q, total, self._groups)
            x = weights.finish(layer, x, total)
        self._place[:n] += 1
        return self._choose(0, weights.logits(x)[:n])

    def _choose(self, first: int, logits: Floats) -> list[Generation]:
        """Choose the next token of the rows from `first` on and take out those that end."""
        tokens = logits.argmax(axis=1)
        rows = self._running[first:]
        for i, job in enumerate(rows):
            if job.temperature > 0:
                tokens[i] = _sample(logits[i], job.temperature, job.draw())
        self._weights.advance(self._context[first : self.active], tokens)
        stops = self._engine.stops
        ended = [
            first + i
            for i, (job, token) in enumerate(zip(rows, tokens.tolist(), strict=True))
            if job.accept(token, stops)
        ]
        finished = [self._running[row] for row in ended]
        for row in reversed(ended):
            self._remove(row)
        if first or ended or not self._groups:
            self._groups = grouped(self._prefixes)
        return finished

    def _remove(self, row: int) -> None:
        last = self.active - 1
        if row != last:
            self._cache.move(last, row)
            for array in (self._context, self._start, self._place):
                array[row] = array[last]
            self._running[row], self._prefixes[row] = self._running[last], self._prefixes[last]
        self._running.pop()
        self._prefixes.pop()

    def _reserve(self, rows: int, room: int) -> None:
        """Make place for a number of rows (at least 2) and tokens a row, by doubling."""
        have_rows, have_room = self._cache.shape
        if rows <= have_rows and room <= have_room:
            return
        while have_rows < rows:
            have_rows *= 2
        while have_room < room:
            have_room *= 2
        larger = Rows(self._weights, have_rows, have_room)
        larger.take_over(self._cache)
        self._cache = larger
        extra = have_rows - len(self._place)
        self._context = np.pad(self._context, ((0, extra), (0, 0)))
        self._start, self._place = np.pad(self._start, (0, extra)), np.pad(self._place, (0, extra))


def _sample(logits: Floats, temperature: float, uniform: float) -> int:
    """Draw a token from softmax(logits / temperature) by the inverse of its distribution function."""
    scaled = logits.astype(np.float64) / temperature
    cumulative = np.cumsum(np.exp(scaled - scaled.max()))
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))


class NanoEngine:
    """The embedded model, ready to answer chats; safe under threads.

    Attributes:
        weights: The fused weights.
        prefixes: Keys and values of prompt prefixes seen lately.
        stops: Tokens that end a completion.
    """

    MAX_ROWS = 64
    """Most chats decoded together."""

    _shared: ClassVar[dict[Path, NanoEngine]] = {}
    _loading: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, weights: Weights, tokenizer: ChatTokenizer) -> None:
        """Create an engine; `load` is the usual way.

        Args:
            weights: The model.
            tokenizer: Its tokenizer.
        """
        self.weights, self.tokenizer = weights, tokenizer
        self.prefixes = PrefixCache(64 << 20)  # about 4.2 KB a token
        self.stops = frozenset([tokenizer.end, *tokenizer.roles.values()])
        self._encode_prefix = lru_cache(maxsize=256)(self._encode_messages)

    @classmethod
    def load(cls, path: str | Path | None = None) -> NanoEngine:
        """The engine of a folder with ``weights.safetensors``, ``config.json`` and ``tokenizer.json``.

        Loaded at the first call and shared by the whole process.

        Args:
            path: The folder; by default the model in the package.
        """
        from safetensors.numpy import load_file

        from cuesmith.modules.embedded.tokenizer import Tokenizer

        folder = Path(path).resolve() if path is not None else Path(__file__).resolve().parent
        with cls._loading:
            if folder not in cls._shared:
                config = json.loads((folder / "config.json").read_text())
                weights = Weights(load_file(folder / "weights.safetensors"), config)
                cls._shared[folder] = cls(weights, Tokenizer(folder / "tokenizer.json"))
            return cls._shared[folder]

    def prepare(
        self,
        chat: Chat,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Generation:
        """Encode a chat and check that it fits.

        Args:
            chat: Messages as (role, text); roles are "system", "user" and "assistant".
            max_new_tokens: Most tokens to generate.
            temperature: 0 for the most likely tokens.
            seed: Seed of the draws at a temperature above 0.

        Raises:
            ContextLengthError: If prompt and new tokens exceed the model's context.
            ValueError: If the chat is empty or an option is out of range.
        """
        if not chat:
            raise ValueError("a chat needs at least one message")
        if max_new_tokens < 1 or not 0 <= temperature < float("inf"):
            raise ValueError(f"need max_new_tokens >= 1, 0 <= temperature; got {max_new_tokens}, {temperature}")
        prompt = self.encode(chat)
        if len(prompt) + max_new_tokens > self.weights.limit:
            raise ContextLengthError(
                f"{len(prompt)} prompt tokens + {max_new_tokens} new tokens exceed the context of "
                f"{self.weights.limit} tokens"
            )
        return Generation(prompt, max_new_tokens, temperature, seed)

    def encode(self, chat: Chat) -> EncodedPrompt:
        """The input of a chat, ending where the assistant's answer begins."""
        asked = max((i for i, (role, _) in enumerate(chat) if role == "user"), default=len(chat) - 1)
        prefix = self._encode_prefix(tuple(chat[:asked]))
        ids = [*prefix, *self._encode_messages(tuple(chat[asked:])), self.tokenizer.roles["assistant"]]
        return EncodedPrompt(self.weights.context(ids), len(prefix))

    def _encode_messages(self, messages: tuple[tuple[str, str], ...]) -> list[int]:
        return [token for role, text in messages for token in self.tokenizer.encode_message(role, text)]

    def prefix(self, key: bytes, prompt: EncodedPrompt) -> tuple[Prefix | None, bool]:
        """Keys and values of a prompt's prefix (None if it has none), and whether they were cached."""
        if not prompt.prefix:
            return None, False
        found = self.prefixes.get(key)
        if found is not None:
            return found, True
        made = compute_prefix(self.weights, prompt.context[: prompt.prefix])
        self.prefixes.put(key, made)
        return made, False

    def completion(self, job: Generation) -> Completion:
        """The outcome of a generation that has ended."""
        assert job.finish_reason is not None
        return Completion(
            text=self.tokenizer.decode(job.tokens),
            prompt_tokens=len(job.prompt),
            completion_tokens=len(job.tokens) + (job.finish_reason == "stop"),
            cached_tokens=job.cached,
            finish_reason=job.finish_reason,
        )

    def generate(
        self,
        chats: Sequence[Chat],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Answer chats in batches of up to `MAX_ROWS`.

        Args:
            chats: Each a sequence of (role, text).
            max_new_tokens: Most tokens to generate for each.
            temperature: 0 for the most likely tokens.
            seeds: One seed a chat for draws at a temperature above 0; by default 0, 1, 2, ...

        Returns:
            One completion a chat, in their order.

        Raises:
            ContextLengthError: If a chat does not fit; nothing is generated then.
        """
        chosen = range(len(chats)) if seeds is None else seeds
        jobs = [
            self.prepare(chat, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
            for chat, seed in zip(chats, chosen, strict=True)
        ]
        self.run(jobs)
        return [self.completion(job) for job in jobs]

    def run(self, jobs: Sequence[Generation]) -> None:
        """Decode prepared generations to their ends."""
        decoder, waiting = Decoder(self), list(jobs)
        with single_blas_thread:
            while waiting or decoder.active:
                free = self.MAX_ROWS - decoder.active
                if waiting and free >= min(self.MAX_ROWS // 4, len(waiting)):
                    admitted, waiting = waiting[:free], waiting[free:]
                    decoder.admit(admitted)
                if decoder.active:
                    decoder.step()
