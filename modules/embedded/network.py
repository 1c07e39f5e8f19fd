"""The embedded model's weights, fused when loaded, and what a block computes apart from attention. Source: ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Phases: TypeAlias = NDArray[np.complex64]
Ints: TypeAlias = NDArray[np.int64]

NORM_EPS = 1e-5
MAX_SCORE = 80.0
"""Largest attention score whose exponential (times the context length) still fits float32."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block's fused weights, all (in, out) and C-contiguous."""

    qkv: Floats  # (d, 3 d), q and k columns in rotary pairs
    gain: Floats  # (2 heads, size), the norms of q (with the attention scale) and k
    out: Floats  # (d, d)
    gate_up: Floats  # (d, 2 hidden)
    down: Floats  # (hidden, d)


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
        """The (tokens, 5) input ids of a sequence that begins at position 0; see `EncodedPrompt`."""
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
