"""The embedded language model: a small decoder-only transformer in PyTorch (training and reference only).

Inference in the package runs on numpy; this module is the definition that it mirrors.

Definition. Let ``E`` be the embedding table ``embed.weight`` (vocab, d) and ``ids`` a sequence t = 0, 1, ...

*Input.* ``word_start`` is a boolean table over the vocabulary, saved with the weights as ``word_start`` (uint8).
With ``start(t)`` the largest s <= t whose token has ``word_start``, and ``previous(t)`` = ``start(start(t) - 1)``::

    x[t] = E[ids[t]] + back1.weight @ E[ids[t-1]]           + back2.weight @ E[ids[t-2]]
                     + word0.weight @ E[ids[start(t)]]      + word1.weight @ E[ids[previous(t)]]

Any term whose position does not exist (t-1 < 0, no word start so far, start(t) = 0 for ``previous``) is zero.

*Layer* i (all maps bias-free, weights (out, in) as in ``torch.nn.Linear``, y = x @ W.T)::

    x = x + wo( attention( norm1(x) ) )
    x = x + down( silu(gate(h)) * up(h) ),   h = norm2(x)

``norm(x) = x / sqrt(mean(x**2) + 1e-5) * weight`` over the last axis, in float32. Attention: q, k, v =
``layers.i.wq/wk/wv``; split into heads of size ``d / heads`` (head j is columns j*size ... (j+1)*size); q and k are
normalised per head by ``layers.i.q_norm`` and ``layers.i.k_norm`` (the same norm, weight of size ``d / heads``),
then rotated; softmax(q k^T / sqrt(size)) with a causal mask; heads concatenated; ``layers.i.wo``.

*RoPE*, half-split layout: for position p and i < size/2, angle = p * rope_base ** (-2 i / size);
``rotated[i] = a[i] cos - a[i + size/2] sin`` and ``rotated[i + size/2] = a[i + size/2] cos + a[i] sin``.
Positions count from 0 at the first token of the sequence.

*Output.* logits = norm(x; ``norm.weight``) @ E.T (tied head).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class NanoConfig:
    """The sizes of a model, stored as ``config.json`` beside its weights."""

    vocab_size: int = 2048
    dim: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 320
    rope_base: float = 10000.0
    max_length: int = 1536

    def save(self, path: Path) -> None:
        """Write the configuration as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> NanoConfig:
        """Read the configuration from JSON."""
        return cls(**json.loads(path.read_text()))


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last axis."""

    def __init__(self, size: int) -> None:
        """Create the norm with unit weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return functional.rms_norm(x, (x.shape[-1],), self.weight, NORM_EPS)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Layer(nn.Module):
    """One pre-norm block of attention and SwiGLU."""

    def __init__(self, config: NanoConfig) -> None:
        """Create the block's weights."""
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.q_norm, self.k_norm = RMSNorm(dim // config.heads), RMSNorm(dim // config.heads)
        self.wq, self.wk, self.wv, self.wo = (_linear(dim, dim) for _ in range(4))
        self.gate, self.up = _linear(dim, config.hidden), _linear(dim, config.hidden)
        self.down = _linear(config.hidden, dim)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both normalised and rotated) and values as (batch, heads, time, size)."""
        batch, time, _ = x.shape
        h = self.norm1(x)
        q, k, v = (m(h).view(batch, time, self.heads, -1).transpose(1, 2) for m in (self.wq, self.wk, self.wv))
        return _rotate(self.q_norm(q), cos, sin), _rotate(self.k_norm(k), cos, sin), v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention's output and the feed-forward network's to the stream."""
        x = x + self.wo(attended.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        out: Tensor = x + self.down(functional.silu(self.gate(h)) * self.up(h))
        return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class NanoTransformer(nn.Module):
    """The model; see the module's docstring for its definition."""

    word_start: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, config: NanoConfig, word_start: Sequence[bool]) -> None:
        """Create a randomly initialised model.

        Args:
            config: The sizes.
            word_start: For each token of the vocabulary whether it begins a word.
        """
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.back1, self.back2, self.word0, self.word1 = (_linear(config.dim, config.dim) for _ in range(4))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim)
        size = config.dim // config.heads
        rates = config.rope_base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.outer(torch.arange(config.max_length, dtype=torch.float64), rates)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        self.register_buffer("word_start", torch.tensor(list(word_start), dtype=torch.uint8))
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.embed.weight, std=0.05)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for block in self.layers:
            assert isinstance(block, Layer)
            nn.init.zeros_(block.wo.weight)
            nn.init.zeros_(block.down.weight)

    def inputs(self, ids: Tensor) -> Tensor:
        """The input vectors of whole sequences (batch, time) that begin at position 0."""
        time = ids.shape[1]
        table = torch.cat((self.embed.weight, self.embed.weight.new_zeros(1, self.config.dim)))
        place = torch.arange(1, time + 1, device=ids.device).expand_as(ids)
        begins = self.word_start[ids].long()
        start = (place * begins).cummax(1).values  # 1-based, 0 where there is none
        padded = functional.pad(start, (1, 0))
        previous = padded.gather(1, (start - 1).clamp(min=0))  # start(start(t) - 1), 1-based
        tokens = functional.pad(ids, (1, 0), value=self.config.vocab_size)  # index 0 is "nothing"
        result = functional.embedding(ids, table)
        for weights, index in (
            (self.back1, place - 1),
            (self.back2, (place - 2).clamp(min=0)),
            (self.word0, start),
            (self.word1, previous),
        ):
            result = result + weights(functional.embedding(tokens.gather(1, index), table))
        return result

    def hidden(self, ids: Tensor) -> Tensor:
        """The normalised last hidden states of right-padded sequences (batch, time)."""
        x = self.inputs(ids)
        time = ids.shape[1]
        cos, sin = self.cos[:time], self.sin[:time]
        for layer in self.layers:
            assert isinstance(layer, Layer)
            q, k, v = layer.project(x, cos, sin)
            x = layer.finish(x, functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        out: Tensor = self.norm(x)
        return out

    def forward(self, ids: Tensor) -> Tensor:
        """The logits at every position of right-padded sequences (batch, time)."""
        return self.hidden(ids) @ self.embed.weight.T

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: int) -> list[list[int]]:
        """Complete prompts greedily with a key/value cache; the reference for faster engines.

        Args:
            prompts: Token ids.
            max_new_tokens: The most tokens to add.
            stop: The token that ends a completion; it is not part of the result.
        """
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        rows, width = torch.arange(len(prompts)), int(lengths.max())
        ids = torch.zeros(len(prompts), width + max_new_tokens, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        x, caches = self._prefill(ids, width)
        last, done = self.norm(x[rows, lengths - 1]), torch.zeros(len(prompts), dtype=torch.bool)
        for step in range(max_new_tokens):
            token = (last @ self.embed.weight.T).argmax(-1)
            ids[rows, lengths + step] = torch.where(done, stop, token)
            done |= token == stop
            if done.all():
                ids[:, width:] = torch.where(ids[:, width:] == 0, stop, ids[:, width:])
                break
            last = self._advance(ids, lengths + step, caches)
        made = [ids[row, n : n + max_new_tokens].tolist() for row, n in enumerate(lengths.tolist())]
        return [one[: one.index(stop)] if stop in one else one for one in made]

    def _prefill(self, ids: Tensor, width: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        x = self.inputs(ids[:, :width])
        caches, room = [], ids.shape[1] - width
        for layer in self.layers:
            assert isinstance(layer, Layer)
            q, k, v = layer.project(x, self.cos[:width], self.sin[:width])
            x = layer.finish(x, functional.scaled_dot_product_attention(q, k, v, is_causal=True))
            caches.append((functional.pad(k, (0, 0, 0, room)), functional.pad(v, (0, 0, 0, room))))
        return x, caches

    def _advance(self, ids: Tensor, place: Tensor, caches: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Process the token at each row's ``place`` and return its last hidden state."""
        rows = torch.arange(len(ids))
        x = self._inputs_at(ids, place)[:, None]
        cos, sin = self.cos[place][:, None, None], self.sin[place][:, None, None]
        mask = (torch.arange(ids.shape[1]) <= place[:, None])[:, None, None]
        for layer, (keys, values) in zip(self.layers, caches, strict=True):
            assert isinstance(layer, Layer)
            q, k, v = layer.project(x, cos, sin)
            keys[rows, :, place], values[rows, :, place] = k[:, :, 0], v[:, :, 0]
            x = layer.finish(x, functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask))
        out: Tensor = self.norm(x[:, 0])
        return out

    def _inputs_at(self, ids: Tensor, place: Tensor) -> Tensor:
        """The input vectors at one position of each row (positions of at least 2, a word start before)."""
        rows, columns = torch.arange(len(ids)), torch.arange(ids.shape[1])
        begins = self.word_start[ids].bool() & (columns <= place[:, None])
        start = (columns * begins).amax(1)
        previous = (columns * (begins & (columns < start[:, None]))).amax(1)
        result = self.embed(ids[rows, place])
        for weights, index in (
            (self.back1, place - 1), (self.back2, place - 2), (self.word0, start), (self.word1, previous),
        ):  # fmt: skip
            result = result + weights(self.embed(ids[rows, index]))
        return torch.as_tensor(result)
