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
query/key norms bound the scores, and a column of ones beside the values accumulates the denominator.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Phases: TypeAlias = NDArray[np.complex64]
Ints: TypeAlias = NDArray[np.int64]
Chat: TypeAlias = Sequence[tuple[str, str]]
FinishReason: TypeAlias = Literal["stop", "length"]

NORM_EPS = 1e-5
BLOCK = 16
"""Sizes that vary with the batch are rounded up to this: BLAS sums edges in another order."""

MIN_ROOM = 64
"""Fewest keys in a product of a single query, for the same reason."""

PIECE = 256
"""Most keys in a product of many queries, for the same reason."""

MAX_SCORE = 80.0
"""Largest attention score whose exponential (times the context length) still fits float32."""


class ContextLengthError(ValueError):
    """A prompt and the tokens asked for do not fit the model's context."""

    def __init__(self, prompt_tokens: int, max_new_tokens: int, limit: int) -> None:
        """Describe the request that does not fit (all sizes in tokens)."""
        super().__init__(
            f"{prompt_tokens} prompt tokens + {max_new_tokens} new tokens exceed the context of {limit} tokens"
        )
        self.prompt_tokens, self.max_new_tokens, self.limit = prompt_tokens, max_new_tokens, limit


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
class Prompt:
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
        fixed_length: Generate exactly ``max_new_tokens`` and ignore the stop token (for benchmarks).
        tokens: Ids generated so far, the stop token excluded.
        cached: Prompt tokens whose keys and values came from the prefix cache.
        finish_reason: Why it ended; None while it runs.
    """

    prompt: Prompt
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    fixed_length: bool = False
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
        if token in stops and not self.fixed_length:
            self.finish_reason = "stop"
            return True
        self.tokens.append(token)
        if len(self.tokens) >= self.max_new_tokens:
            self.finish_reason = "length"
            return True
        return False


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block's fused weights, all (in, out) and C-contiguous."""

    qkv: Floats  # (d, 3 d), q and k columns in rotary pairs
    gain: Floats  # (2 heads, size), the norms of q (with the attention scale) and k
    out: Floats  # (d, d)
    gate_up: Floats  # (d, 2 hidden)
    down: Floats  # (hidden, d)


@dataclass(frozen=True, slots=True)
class _Prefix:
    """Keys (layers, heads, size, tokens) and values (layers, heads, tokens, width) of a shared prefix.

    Tokens and width are padded with zeros to multiples of `BLOCK`; column ``size`` of the values is 1 at tokens.
    """

    keys: Floats
    values: Floats

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.keys.nbytes + self.values.nbytes


class PrefixCache:
    """Keys and values of prompt prefixes: least recently used out first, bounded in bytes, safe under threads."""

    def __init__(self, max_bytes: int) -> None:
        """Create an empty cache.

        Args:
            max_bytes: Most bytes kept; a single prefix larger than this is not kept at all.
        """
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, _Prefix] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> _Prefix | None:
        """The entry of a key, now the most recently used, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: bytes, entry: _Prefix) -> None:
        """Keep an entry and drop the least recently used ones beyond the limit."""
        with self._lock:
            if entry.nbytes > self.max_bytes or key in self._entries:
                return
            self._entries[key] = entry
            self._bytes += entry.nbytes
            while self._bytes > self.max_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= dropped.nbytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def forget_threads(self) -> None:
        """Release the lock in a forked child, where the thread that may have held it does not exist."""
        self._lock = threading.Lock()


class _SingleBlasThread:
    """Counts who wants one BLAS thread: the first sets the limit, the last restores what was before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limit: AbstractContextManager[object] = nullcontext()

    def enter(self) -> None:
        with self._lock:
            if self._users == 0:
                self._limit = _blas_limit()
                self._limit.__enter__()
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limit.__exit__(None, None, None)

    def forget(self) -> None:
        """Start afresh in a forked child."""
        self._lock, self._users = threading.Lock(), 0


def _blas_limit() -> AbstractContextManager[object]:
    try:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped, unused-ignore]
    except ImportError:  # then only OPENBLAS_NUM_THREADS=1 and the like help
        return nullcontext()
    limit: AbstractContextManager[object] = ThreadpoolController().limit(limits=1, user_api="blas")
    return limit


_single_blas_thread = _SingleBlasThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_single_blas_thread.forget)


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread meanwhile.

    The products here take 10 to 300 microseconds. A second BLAS thread gains 10 to 25 % on an idle machine, but
    each product waits for both: with two busy processes on two cores it was 5 to 20 times slower.
    """
    _single_blas_thread.enter()
    try:
        yield
    finally:
        _single_blas_thread.leave()


def _normalise(x: Floats) -> Floats:
    """x / rms(x) over the last axis of (n, d); the gain is part of the next matrix."""
    scale = np.einsum("nd,nd->n", x, x)
    scale *= 1.0 / x.shape[1]
    scale += NORM_EPS
    np.sqrt(scale, out=scale)
    return np.asarray(x / scale[:, None], dtype=np.float32)


class Weights:
    """The fused float32 weights of a model and the arithmetic of one block.

    Attributes:
        vocab: Tokens in the vocabulary.
        heads: Attention heads.
        size: Width of a head.
        limit: Context length in tokens.
    """

    def __init__(self, tensors: dict[str, NDArray[np.generic]], config: dict[str, float]) -> None:
        """Fuse a model's tensors.

        Args:
            tensors: As saved by training: names of the torch modules, plus ``word_start`` (vocab,).
            config: The fields of ``config.json``.

        Raises:
            ValueError: If the query/key gains allow scores that overflow float32.
        """
        self._tensors = {name: np.asarray(t, dtype=np.float32) for name, t in tensors.items()}
        self.heads, self.limit = int(config["heads"]), int(config["max_length"])
        embed = self._tensors["embed.weight"]
        self.vocab, self.dim = embed.shape
        self.size = self.dim // self.heads
        self.word_start: NDArray[np.bool_] = np.asarray(tensors["word_start"], dtype=np.bool_)
        self.head: Floats = np.ascontiguousarray((embed * self._tensors["norm.weight"]).T)
        self._table = self._input_table(embed)
        self._offsets: Ints = np.arange(5, dtype=np.int64) * (self.vocab + 1)
        half = self.size // 2
        rates = float(config["rope_base"]) ** (-np.arange(half, dtype=np.float64) / half)
        angles = np.arange(self.limit, dtype=np.float64)[:, None] * rates
        self.rotation: Phases = np.exp(1j * angles).astype(np.complex64)
        self.layers = [self._fuse(f"layers.{i}.") for i in range(int(config["layers"]))]
        del self._tensors

    def _input_table(self, embed: Floats) -> Floats:
        """(5 (vocab + 1), d): what each token adds to the input in each of its five parts; "nothing" adds zero."""
        maps = [embed] + [embed @ self._tensors[f"{m}.weight"].T for m in ("back1", "back2", "word0", "word1")]
        table = np.zeros((5, self.vocab + 1, self.dim), np.float32)
        table[:, : self.vocab] = maps
        return table.reshape(-1, self.dim)

    def _fuse(self, name: str) -> _Layer:
        t = self._tensors
        half = self.size // 2
        # Half-split rotary pairs (i, i + half) become neighbours, so that a head is a row of complex numbers.
        pairs = np.arange(self.size).reshape(2, half).T.ravel()
        columns = (np.arange(self.heads)[:, None] * self.size + pairs).ravel()
        norm1, norm2 = t[name + "norm1.weight"][:, None], t[name + "norm2.weight"][:, None]
        q, k = t[name + "wq.weight"].T[:, columns], t[name + "wk.weight"].T[:, columns]
        q_gain, k_gain = t[name + "q_norm.weight"][pairs], t[name + "k_norm.weight"][pairs]
        bound = float(np.abs(q_gain).max() * np.abs(k_gain).max()) * self.size**0.5
        if bound > MAX_SCORE:
            raise ValueError(f"{name}q_norm and k_norm allow attention scores up to {bound:.0f} (limit {MAX_SCORE})")
        gain = np.repeat(np.stack([q_gain * self.size**-0.5, k_gain]), self.heads, axis=0)
        return _Layer(
            qkv=np.ascontiguousarray(norm1 * np.concatenate([q, k, t[name + "wv.weight"].T], axis=1)),
            gain=np.ascontiguousarray(gain, dtype=np.float32),
            out=np.ascontiguousarray(t[name + "wo.weight"].T),
            gate_up=np.ascontiguousarray(
                norm2 * np.concatenate([t[name + "gate.weight"].T, t[name + "up.weight"].T], 1)
            ),
            down=np.ascontiguousarray(t[name + "down.weight"].T),
        )

    def context(self, ids: Sequence[int]) -> Ints:
        """The (tokens, 5) input ids of a sequence that begins at position 0; see `Prompt`."""
        tokens = np.asarray(ids, dtype=np.int64)
        place = np.arange(1, len(tokens) + 1)
        start = np.maximum.accumulate(place * self.word_start[tokens])  # 1-based, 0 where there is none
        previous = np.concatenate([[0], start])[np.maximum(start - 1, 0)]
        padded = np.concatenate([[self.vocab], tokens])
        index = np.stack([place, place - 1, np.maximum(place - 2, 0), start, previous], axis=1)
        return np.asarray(padded[index], dtype=np.int64)

    def advance(self, context: Ints, tokens: Ints) -> None:
        """Move rows of `context` (n, 5) one position on, to the new tokens (n,), in place."""
        starts = self.word_start[tokens]
        context[:, 4] = np.where(starts, context[:, 3], context[:, 4])
        context[:, 3] = np.where(starts, tokens, context[:, 3])
        context[:, 2] = context[:, 1]
        context[:, 1] = context[:, 0]
        context[:, 0] = tokens

    def inputs(self, context: Ints) -> Floats:
        """Input vectors (n, d) of context ids (n, 5)."""
        return np.asarray(self._table[context + self._offsets].sum(axis=1), dtype=np.float32)

    def project(self, layer: _Layer, x: Floats, rotation: Phases) -> tuple[Floats, Floats, Floats]:
        """Rotated queries and keys, and values, each (n, heads, size), of the stream x (n, d)."""
        n, width = len(x), 2 * self.dim
        fused = _normalise(x) @ layer.qkv
        qk = fused[:, :width].reshape(n, 2 * self.heads, self.size)
        scale = np.einsum("nhd,nhd->nh", qk, qk)
        scale *= 1.0 / self.size
        scale += NORM_EPS
        np.sqrt(scale, out=scale)
        qk /= scale[:, :, None]
        qk *= layer.gain
        rotated = (qk.view(np.complex64) * rotation[:, None, :]).view(np.float32)
        return rotated[:, : self.heads], rotated[:, self.heads :], fused[:, width:].reshape(n, self.heads, self.size)

    def finish(self, layer: _Layer, x: Floats, total: Floats) -> Floats:
        """Add the attention's output and the feed-forward network's to the stream x (n, d).

        Args:
            layer: The block.
            x: The stream.
            total: (n, heads, size + 1), sums of weighted values and, last, of the weights.
        """
        attended = total[..., : self.size] / total[..., self.size :]
        x = np.asarray(x + attended.reshape(len(x), self.dim) @ layer.out, dtype=np.float32)
        both = _normalise(x) @ layer.gate_up
        hidden = both.shape[1] // 2
        gate, up = both[:, :hidden], both[:, hidden:]
        silu = np.exp(-gate)
        silu += 1.0
        np.divide(gate, silu, out=silu)
        silu *= up
        x += silu @ layer.down
        return x

    def logits(self, x: Floats) -> Floats:
        """Next-token logits (n, vocab) of the last stream x (n, d)."""
        return np.asarray(_normalise(x) @ self.head)


class _Rows:
    """Keys and values of the rows' own tokens (those after the shared prefix).

    Attributes:
        keys: (layers, rows, heads, room, size).
        values: (layers, rows, heads, room, size + 1); the last column is 1 where a token stands. Everything else
            beyond a row's tokens is 0, which makes a mask unnecessary.
    """

    def __init__(self, weights: Weights, rows: int, room: int) -> None:
        """Allocate zeros for a number of rows of a number of tokens each."""
        layers, heads, size = len(weights.layers), weights.heads, weights.size
        self.keys: Floats = np.zeros((layers, rows, heads, room, size), np.float32)
        self.values: Floats = np.zeros((layers, rows, heads, room, size + 1), np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens per row."""
        return self.keys.shape[1], self.keys.shape[3]

    def take_over(self, other: _Rows) -> None:
        """Copy another, smaller set of rows."""
        rows, room = other.shape
        self.keys[:, :rows, :, :room] = other.keys
        self.values[:, :rows, :, :room] = other.values

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]

    def write(self, layer: int, index: tuple[Ints, Ints], k: Floats, v: Floats) -> None:
        """Store keys and values (n, heads, size) of n tokens, given as their rows and places in the row."""
        row, place = index
        self.keys[layer][row, :, place] = k
        self.values[layer][row, :, place, : v.shape[2]] = v

    def attend(self, layer: int, rows: slice, room: int, q: Floats) -> Floats:
        """Attention (n, heads, size + 1) of one query (n, heads, size) a row to the row's own tokens.

        `room` is at least `MIN_ROOM`: below, BLAS sums in another order.
        """
        scores = q[:, :, None] @ self.keys[layer][rows, :, :room].swapaxes(2, 3)
        np.exp(scores, out=scores)
        return np.asarray((scores @ self.values[layer][rows, :, :room])[:, :, 0])


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that share a prefix: a slice, or indices (at least two, repeated if need be)."""

    prefix: _Prefix
    rows: slice | Ints


def _group(prefixes: Sequence[_Prefix | None]) -> list[_Group]:
    """One group per distinct prefix of the rows."""
    members: dict[int, list[int]] = {}
    for row, prefix in enumerate(prefixes):
        members.setdefault(id(prefix), []).append(row)
    groups = []
    for rows in members.values():
        prefix = prefixes[rows[0]]
        if prefix is not None:
            whole = len(rows) == len(prefixes)
            # At least two rows: one row alone would sum in another order.
            index = slice(0, max(len(rows), 2)) if whole else np.array(rows if len(rows) > 1 else rows * 2)
            groups.append(_Group(prefix, index))
    return groups


def _spans(prefixes: Sequence[_Prefix | None], lengths: Sequence[int]) -> list[_Group]:
    """One group per run of equal prefixes, as a slice of the concatenated tokens."""
    groups, begin = [], 0
    for _, run in groupby(range(len(prefixes)), key=lambda i: id(prefixes[i])):
        rows = list(run)
        end = begin + sum(lengths[i] for i in rows)
        prefix = prefixes[rows[0]]
        if prefix is not None:
            groups.append(_Group(prefix, slice(begin, end)))
        begin = end
    return groups


def _weigh(scores: Floats, values: Floats) -> Floats:
    """scores (..., n, keys) @ values (..., keys, width), in pieces that BLAS sums in one order for any n."""
    total = scores[..., :PIECE] @ values[..., :PIECE, :]
    for begin in range(PIECE, scores.shape[-1], PIECE):
        total += scores[..., begin : begin + PIECE] @ values[..., begin : begin + PIECE, :]
    return np.asarray(total)


def _share(layer: int, q: Floats, total: Floats, groups: Iterable[_Group]) -> None:
    """Add every group's attention to its prefix: q (n, heads, size), total (n, heads, size + 1) changed in place."""
    for group in groups:
        scores = q[group.rows].swapaxes(0, 1) @ group.prefix.keys[layer]
        np.exp(scores, out=scores)
        weighed = _weigh(scores, group.prefix.values[layer])
        total[group.rows] += weighed[..., : total.shape[2]].swapaxes(0, 1)


def _round_up(n: int) -> int:
    return -(-n // BLOCK) * BLOCK


class _Padded:
    """Queries, keys and values of several rows' tokens, each row padded with zeros to the longest one."""

    def __init__(self, weights: Weights, row: Ints, offset: Ints, rows: int, longest: int) -> None:
        """Prepare for tokens given by their row and offset."""
        self.row, self.offset = row, offset
        heads, size = weights.heads, weights.size
        self.queries: Floats = np.zeros((rows, heads, longest, size), np.float32)
        self.keys: Floats = np.zeros((rows, heads, size, longest), np.float32)
        self.values: Floats = np.zeros((rows, heads, longest, _round_up(size + 1)), np.float32)
        self.values[row, :, offset, size] = 1.0
        self._causal: Floats = np.tri(longest, dtype=np.float32)

    def attend(self, q: Floats, k: Floats, v: Floats) -> Floats:
        """Causal attention (tokens, heads, size + 1) of each row's tokens (tokens, heads, size) to themselves."""
        size = q.shape[2]
        self.queries[self.row, :, self.offset] = q
        self.keys[self.row, :, :, self.offset] = k
        self.values[self.row, :, self.offset, :size] = v
        scores = self.queries @ self.keys
        np.exp(scores, out=scores)
        scores *= self._causal
        return np.asarray(_weigh(scores, self.values)[self.row, :, self.offset, : size + 1])


def _prefill(
    weights: Weights,
    cache: _Rows,
    first: int,
    parts: Sequence[Ints],
    places: Sequence[int],
    prefixes: Sequence[_Prefix | None],
) -> Floats:
    """Process several rows' tokens at once.

    Args:
        weights: The model.
        cache: Where keys and values go; the rows from `first` on must be zero.
        first: The row of the first part.
        parts: Context ids (tokens, 5) of each row.
        places: Position of each row's first token.
        prefixes: What each row attends to besides its own tokens.

    Returns:
        The last stream at each part's last token, (rows, d) but never fewer than two rows.
    """
    lengths = [len(part) for part in parts]
    count, longest = len(parts), max(lengths)
    row, offset = np.repeat(np.arange(count), lengths), np.concatenate([np.arange(n) for n in lengths])
    index = (row + first, offset)
    rotation = weights.rotation[np.repeat(places, lengths) + offset]
    padded = _Padded(weights, row, offset, count, _round_up(longest))
    spans = _spans(prefixes, lengths)
    x = weights.inputs(np.concatenate(parts))
    cache.values[:, index[0], :, offset, weights.size] = 1.0
    *layers, final = weights.layers
    for i, layer in enumerate(layers):
        q, k, v = weights.project(layer, x, rotation)
        cache.write(i, index, k, v)
        total = padded.attend(q, k, v)
        _share(i, q, total, spans)
        x = weights.finish(layer, x, total)
    # Of the final layer only the keys and values of all tokens and the output of the last ones are needed.
    i, ends = len(layers), np.cumsum(lengths) - 1
    q, k, v = weights.project(final, x, rotation)
    cache.write(i, index, k, v)
    if count == 1:
        ends = np.repeat(ends, 2)  # one row alone would sum in another order
    q = q[ends]
    total = cache.attend(i, slice(first, first + count), max(_round_up(longest), MIN_ROOM), q)
    _share(i, q, total, _group(prefixes))
    return weights.finish(final, x[ends], total)


def _compute_prefix(weights: Weights, context: Ints) -> _Prefix:
    """Keys and values of a prompt's first tokens (tokens, 5), padded with zeros for products with many rows."""
    tokens = len(context)
    rows = _Rows(weights, 1, max(_round_up(tokens), MIN_ROOM))
    _prefill(weights, rows, 0, [context], [0], [None])
    layers, heads, size = len(weights.layers), weights.heads, weights.size
    keys: Floats = np.zeros((layers, heads, size, _round_up(tokens)), np.float32)
    values: Floats = np.zeros((layers, heads, _round_up(tokens), _round_up(size + 1)), np.float32)
    keys[..., :tokens] = rows.keys[:, 0, :, :tokens].swapaxes(2, 3)
    values[..., :tokens, : size + 1] = rows.values[:, 0, :, :tokens]
    return _Prefix(keys, values)


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
        self._cache = _Rows(self._weights, 8, 64)
        self._context: Ints = np.zeros((8, 5), np.int64)
        self._start: Ints = np.zeros(8, np.int64)  # the position of a row's first own token
        self._place: Ints = np.zeros(8, np.int64)  # the position of its next token
        self._prefixes: list[_Prefix | None] = []
        self._groups: list[_Group] = []

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
        x = _prefill(self._weights, self._cache, first, parts, starts, prefixes)
        rows = slice(first, first + count)
        self._context[rows] = [part[-1] for part in parts]
        self._start[rows] = starts
        self._place[rows] = [len(job.prompt) for job in jobs]
        self._running += jobs
        self._prefixes += prefixes
        return self._choose(first, self._weights.logits(x)[:count])

    def _find_prefixes(self, jobs: Sequence[Generation]) -> list[_Prefix | None]:
        found: list[_Prefix | None] = []
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
        room, index = max(_round_up(longest), MIN_ROOM), (np.arange(m), own)
        self._cache.values[:, index[0], :, own, weights.size] = 1.0
        rotation = weights.rotation[self._place[:m]]
        x = weights.inputs(self._context[:m])
        for i, layer in enumerate(weights.layers):
            q, k, v = weights.project(layer, x, rotation)
            self._cache.write(i, index, k, v)
            total = self._cache.attend(i, slice(0, m), room, q)
            _share(i, q, total, self._groups)
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
            self._groups = _group(self._prefixes)
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
        larger = _Rows(self._weights, have_rows, have_room)
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

    def __init__(self, weights: Weights, tokenizer: ChatTokenizer, *, prefix_bytes: int = 64 << 20) -> None:
        """Create an engine; `load` is the usual way.

        Args:
            weights: The model.
            tokenizer: Its tokenizer.
            prefix_bytes: Most bytes of keys and values kept for prompt prefixes (about 4.2 KB a token).
        """
        self.weights, self.tokenizer = weights, tokenizer
        self.prefixes = PrefixCache(prefix_bytes)
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
        fixed_length: bool = False,
    ) -> Generation:
        """Encode a chat and check that it fits.

        Args:
            chat: Messages as (role, text); roles are "system", "user" and "assistant".
            max_new_tokens: Most tokens to generate.
            temperature: 0 for the most likely tokens.
            seed: Seed of the draws at a temperature above 0.
            fixed_length: Ignore the stop token and generate exactly ``max_new_tokens``.

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
            raise ContextLengthError(len(prompt), max_new_tokens, self.weights.limit)
        return Generation(prompt, max_new_tokens, temperature, seed, fixed_length)

    def encode(self, chat: Chat) -> Prompt:
        """The input of a chat, ending where the assistant's answer begins."""
        asked = max((i for i, (role, _) in enumerate(chat) if role == "user"), default=len(chat) - 1)
        prefix = self._encode_prefix(tuple(chat[:asked]))
        ids = [*prefix, *self._encode_messages(tuple(chat[asked:])), self.tokenizer.roles["assistant"]]
        return Prompt(self.weights.context(ids), len(prefix))

    def _encode_messages(self, messages: tuple[tuple[str, str], ...]) -> list[int]:
        return [token for role, text in messages for token in self.tokenizer.encode_message(role, text)]

    def prefix(self, key: bytes, prompt: Prompt) -> tuple[_Prefix | None, bool]:
        """Keys and values of a prompt's prefix (None if it has none), and whether they were cached."""
        if not prompt.prefix:
            return None, False
        found = self.prefixes.get(key)
        if found is not None:
            return found, True
        made = _compute_prefix(self.weights, prompt.context[: prompt.prefix])
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
        with single_blas_thread():
            while waiting or decoder.active:
                free = self.MAX_ROWS - decoder.active
                if waiting and free >= min(self.MAX_ROWS // 4, len(waiting)):
                    admitted, waiting = waiting[:free], waiting[free:]
                    decoder.admit(admitted)
                if decoder.active:
                    decoder.step()
