"""Keys and values of rows and of what rows share, and attention to them; `engine` says why it is so. Source: ours."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from cuesmith.modules.embedded.network import Floats, Ints, Weights

BLOCK = 16
"""Sizes that vary with the batch are rounded up to this: BLAS sums edges in another order."""

MIN_ROOM = 64
"""Fewest keys in a product of a single query, for the same reason."""

PIECE = 256
"""Most keys in a product of many queries, for the same reason."""


@dataclass(frozen=True, slots=True)
class Prefix:
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
        self._entries: OrderedDict[bytes, Prefix] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Prefix | None:
        """The entry of a key, now the most recently used, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: bytes, entry: Prefix) -> None:
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


class Rows:
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

    def take_over(self, other: Rows) -> None:
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
class Group:
    """Rows that share a prefix: a slice, or indices (at least two, repeated if need be)."""

    prefix: Prefix
    rows: slice | Ints


def grouped(prefixes: Sequence[Prefix | None]) -> list[Group]:
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
            groups.append(Group(prefix, index))
    return groups


def spans_of(prefixes: Sequence[Prefix | None], lengths: Sequence[int]) -> list[Group]:
    """One group per run of equal prefixes, as a slice of the concatenated tokens."""
    groups, begin = [], 0
    for _, run in groupby(range(len(prefixes)), key=lambda i: id(prefixes[i])):
        rows = list(run)
        end = begin + sum(lengths[i] for i in rows)
        prefix = prefixes[rows[0]]
        if prefix is not None:
            groups.append(Group(prefix, slice(begin, end)))
        begin = end
    return groups


def _weigh(scores: Floats, values: Floats) -> Floats:
    """scores (..., n, keys) @ values (..., keys, width), in pieces that BLAS sums in one order for any n."""
    total = scores[..., :PIECE] @ values[..., :PIECE, :]
    for begin in range(PIECE, scores.shape[-1], PIECE):
        total += scores[..., begin : begin + PIECE] @ values[..., begin : begin + PIECE, :]
    return np.asarray(total)


def share(layer: int, q: Floats, total: Floats, groups: Iterable[Group]) -> None:
    """Add every group's attention to its prefix: q (n, heads, size), total (n, heads, size + 1) changed in place."""
    for group in groups:
        scores = q[group.rows].swapaxes(0, 1) @ group.prefix.keys[layer]
        np.exp(scores, out=scores)
        weighed = _weigh(scores, group.prefix.values[layer])
        total[group.rows] += weighed[..., : total.shape[2]].swapaxes(0, 1)


def round_up(n: int) -> int:
    return -(-n // BLOCK) * BLOCK


class _Padded:
    """Queries, keys and values of several rows' tokens, each row padded with zeros to the longest one."""

    def __init__(self, weights: Weights, row: Ints, offset: Ints, rows: int, longest: int) -> None:
        """Prepare for tokens given by their row and offset."""
        self.row, self.offset = row, offset
        heads, size = weights.heads, weights.size
        self.queries: Floats = np.zeros((rows, heads, longest, size), np.float32)
        self.keys: Floats = np.zeros((rows, heads, size, longest), np.float32)
        self.values: Floats = np.zeros((rows, heads, longest, round_up(size + 1)), np.float32)
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


def prefill(
    weights: Weights,
    cache: Rows,
    first: int,
    parts: Sequence[Ints],
    places: Sequence[int],
    prefixes: Sequence[Prefix | None],
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
    padded = _Padded(weights, row, offset, count, round_up(longest))
    spans = spans_of(prefixes, lengths)
    x = weights.inputs(np.concatenate(parts))
    cache.values[:, index[0], :, offset, weights.size] = 1.0
    *layers, final = weights.layers
    for i, layer in enumerate(layers):
        q, k, v = weights.project(layer, x, rotation)
        cache.write(i, index, k, v)
        total = padded.attend(q, k, v)
        share(i, q, total, spans)
        x = weights.finish(layer, x, total)
    # Of the final layer only the keys and values of all tokens and the output of the last ones are needed.
    i, ends = len(layers), np.cumsum(lengths) - 1
    q, k, v = weights.project(final, x, rotation)
    cache.write(i, index, k, v)
    if count == 1:
        ends = np.repeat(ends, 2)  # one row alone would sum in another order
    q = q[ends]
    total = cache.attend(i, slice(first, first + count), max(round_up(longest), MIN_ROOM), q)
    share(i, q, total, grouped(prefixes))
    return weights.finish(final, x[ends], total)


def compute_prefix(weights: Weights, context: Ints) -> Prefix:
    """Keys and values of a prompt's first tokens (tokens, 5), padded with zeros for products with many rows."""
    tokens = len(context)
    rows = Rows(weights, 1, max(round_up(tokens), MIN_ROOM))
    prefill(weights, rows, 0, [context], [0], [None])
    layers, heads, size = len(weights.layers), weights.heads, weights.size
    keys: Floats = np.zeros((layers, heads, size, round_up(tokens)), np.float32)
    values: Floats = np.zeros((layers, heads, round_up(tokens), round_up(size + 1)), np.float32)
    keys[..., :tokens] = rows.keys[:, 0, :, :tokens].swapaxes(2, 3)
    values[..., :tokens, : size + 1] = rows.values[:, 0, :, :tokens]
    return Prefix(keys, values)
