"""Trains the embedded model from scratch on generated chats: `python -m nano.train --minutes 75` in `benchmarks/`.

Two processes of one thread each draw their own chats, and average their gradients; the learning rate follows the
wall clock, so that the run ends when it was told to. Matrices are trained by Muon, the rest by AdamW. The first
eighth of the time teaches copying, on which everything else builds. Needs the `[train]` extra.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing import spawn  # type: ignore[attr-defined]
from torch.nn import functional

from cuesmith.modules import embedded
from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.modules.embedded.tokenizer import Tokenizer
from nano.architecture import NanoConfig, NanoTransformer
from nano.corpus import COPYING, EMPHASIS, draw
from nano.vocabulary import build

logger = logging.getLogger(__name__)

TOKENS = 4096  # a step, all processes together
MUON_RATE, ADAM_RATE = 0.02, 4e-3
CONSTANT, FLOOR, COPY_FIRST = 0.35, 0.02, 0.12
EXPORT_SECONDS = 300.0
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_ARENA_MAX": "2",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """A training run.

    Attributes:
        minutes: Its length on the wall clock.
        out: The folder for the weights, the tokenizer and the checkpoint.
        seed: Seeds the weights and the chats.
        processes: How many processes of one thread share the work.
        resume: Whether to go on from the folder's checkpoint, with the rate falling from the start.
        rate: Scales the learning rates; a resumed run wants less than 1.
    """

    minutes: float
    out: Path
    seed: int
    processes: int
    resume: bool
    rate: float = 1.0


@dataclass
class Batch:
    """Right-padded sequences (rows, time), which positions predict a learned token, and whose task a row is."""

    ids: Tensor
    learned: Tensor
    families: list[tuple[str, ...]] = field(default_factory=list)


class Chats:
    """An endless stream of batches of about `tokens` tokens, chats of like length together."""

    def __init__(self, tokenizer: Tokenizer, rng: random.Random, tokens: int) -> None:
        """Start a stream."""
        self._tokenizer, self._rng, self._tokens = tokenizer, rng, tokens
        self.weights: dict[str, float] = {name: EMPHASIS.get(name, 1.0) for name in FAMILIES}
        self._ready: deque[Batch] = deque()

    def next(self, copying: bool) -> Batch:
        """Return the next batch; `copying` asks for copying tasks and repeated strings only.

        Some strings are repeated to the end: copying a word that no chat has needs its tokens' embeddings, which
        nothing else trains.
        """
        if self._rng.random() < (0.3 if copying else 0.08):
            return self._repeated()
        if not self._ready:
            self._fill({name: w for name, w in self.weights.items() if name in COPYING} if copying else self.weights)
        return self._ready.popleft()

    def _repeated(self) -> Batch:
        length, rows = self._rng.randint(12, 48), 0
        rows = max(1, self._tokens // (2 * length))
        size = self._tokenizer.vocab_size
        half = torch.tensor([[self._rng.randrange(size) for _ in range(length)] for _ in range(rows)])
        learned = torch.zeros(rows, 2 * length - 1, dtype=torch.bool)
        learned[:, length:] = True
        return Batch(torch.cat((half, half), 1), learned, [()] * rows)

    def _fill(self, weights: Mapping[str, float]) -> None:
        samples = []
        for _ in range(192):
            sample = draw(self._rng, weights)
            ids: list[int] = []
            learned: list[bool] = []
            for turn in sample.turns:
                tokens = self._tokenizer.encode_message(turn.role, turn.text)
                ids += tokens
                learned += [False, *[turn.learned] * (len(tokens) - 1)]
            if any(learned) and len(ids) <= 1024:
                samples.append((ids, learned, sample.families))
        samples.sort(key=lambda s: len(s[0]))
        batches: list[Batch] = []
        while samples:
            rows = max(1, self._tokens // len(samples[-1][0]))
            batches.append(_pad(samples[-rows:]))
            del samples[-rows:]
        self._rng.shuffle(batches)
        self._ready.extend(batches)


def _pad(samples: list[tuple[list[int], list[bool], tuple[str, ...]]]) -> Batch:
    width = max(len(ids) for ids, _, _ in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    learned = torch.zeros(len(samples), width - 1, dtype=torch.bool)
    for row, (tokens, marks, _) in enumerate(samples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        learned[row, : len(marks) - 1] = torch.tensor(marks[1:])
    return Batch(ids, learned, [families for _, _, families in samples])


def losses(model: NanoTransformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss to train on, and each row's own mean; the head runs at learned positions only.

    A row of n learned tokens counts as sqrt(n) tokens: at n, worked reasoning would drown the short direct answers.
    """
    hidden = model.hidden(batch.ids[:, :-1])[batch.learned]
    targets = batch.ids[:, 1:][batch.learned]
    each = functional.cross_entropy(hidden @ model.embed.weight.T, targets, reduction="none")
    rows = batch.learned.nonzero()[:, 0]
    counts = torch.bincount(rows, minlength=len(batch.ids)).clamp(min=1).float()
    weights = counts[rows].rsqrt()
    with torch.no_grad():
        per_row = torch.zeros(len(batch.ids)).index_add_(0, rows, each) / counts
    return (each * weights).sum() / weights.sum(), per_row


class Muon:
    """Momentum whose update is orthogonalised; matrices of one shape are handled together, in float32.

    torch.optim.Muon orthogonalises one matrix after the other in bfloat16, which CPUs emulate.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float = 0.95, decay: float = 0.01) -> None:
        """Group the matrices by shape."""
        self._groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for p in parameters:
            self._groups.setdefault((p.shape[0], p.shape[1]), []).append(p)
        self.buffers = {shape: torch.zeros(len(ps), *shape) for shape, ps in self._groups.items()}
        self._momentum, self._decay = momentum, decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update all matrices."""
        for shape, parameters in self._groups.items():
            gradient = torch.stack([p.grad for p in parameters if p.grad is not None])
            buffer = self.buffers[shape].lerp_(gradient, 1 - self._momentum)
            update = orthogonal(gradient.lerp(buffer, self._momentum)) * max(1.0, shape[0] / shape[1]) ** 0.5
            for p, u in zip(parameters, update, strict=True):
                p.mul_(1 - rate * self._decay).add_(u, alpha=-rate)


def orthogonal(x: Tensor) -> Tensor:
    """Return the nearest orthogonal matrices, roughly: five Newton-Schulz steps of Muon's quintic."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.transpose(-2, -1) if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.transpose(-2, -1)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.transpose(-2, -1) if tall else x


class Trainer:
    """One process of a run."""

    def __init__(self, options: Options, rank: int) -> None:
        """Set up the model, the optimizers and the stream of chats."""
        self._options, self._rank = options, rank
        torch.manual_seed(options.seed)
        self._tokenizer = Tokenizer(options.out / "tokenizer.json")
        self.config = NanoConfig(vocab_size=self._tokenizer.vocab_size)
        self.model = NanoTransformer(self.config, self._tokenizer.word_start)
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and name != "embed.weight"]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or name == "embed.weight"]
        self._muon = Muon(matrices)
        self._adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
        self._steps, self._tokens = 0, 0
        if options.resume:
            self._restore()
        rng = random.Random(f"{options.seed} {rank} {self._steps}")
        self._chats = Chats(self._tokenizer, rng, TOKENS // options.processes)
        self._family_loss: dict[str, float] = {}

    def run(self) -> None:
        """Train until the time is over."""
        start = exported = logged = time.monotonic()
        total, smooth, progress = self._options.minutes * 60, math.nan, 0.0
        while progress < 1:
            batch = self._chats.next(progress < COPY_FIRST and not self._options.resume)
            loss, per_row = losses(self.model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            progress = self._average((time.monotonic() - start) / total)
            self._update(progress)
            self._note(batch, per_row)
            smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
            now = time.monotonic()
            if self._rank == 0 and now - logged > 20:
                logged = now
                worst = sorted(self._family_loss.items(), key=lambda kv: -kv[1])[:5]
                logger.info(
                    "%.0f s, step %d, %d tokens, loss %.4f, worst %s",
                    now - start,
                    self._steps,
                    self._tokens,
                    smooth,
                    " ".join(f"{k} {v:.3f}" for k, v in worst),
                )
            if self._rank == 0 and now - exported > EXPORT_SECONDS:
                exported = now
                self.export()
        if self._rank == 0:
            self.export()
            logger.info("done: %d steps, %d tokens, loss %.4f", self._steps, self._tokens, smooth)

    def _average(self, progress: float) -> float:
        """Average gradients, and agree on the progress: clocks differ, and all must stop together."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([progress])])
        if self._options.processes > 1:
            dist.all_reduce(flat)
            flat /= self._options.processes
        norm = flat[:-1].norm().item()
        flat[:-1] *= min(1.0, 1.0 / (norm + 1e-6))
        place = 0
        for g in gradients:
            g.copy_(flat[place : place + g.numel()].view_as(g))
            place += g.numel()
        return float(flat[-1])

    def _update(self, progress: float) -> None:
        constant = 0.0 if self._options.resume else CONSTANT
        decay = max(0.0, (progress - constant) / (1 - constant))
        factor = self._options.rate * min(1.0, (self._steps + 1) / 40) * (1 - (1 - FLOOR) * decay)
        self._muon.step(MUON_RATE * factor)
        for group in self._adam.param_groups:
            group["lr"] = ADAM_RATE * factor
        self._adam.step()
        self.model.zero_grad(set_to_none=True)
        self._steps += 1

    def _note(self, batch: Batch, per_row: Tensor) -> None:
        """Follow each family's loss, and draw those that lag more often."""
        self._tokens += batch.ids.numel() * self._options.processes
        for families, loss in zip(batch.families, per_row.tolist(), strict=True):
            for name in families[:1]:
                old = self._family_loss.get(name, loss)
                self._family_loss[name] = 0.98 * old + 0.02 * loss
        if self._steps % 50 == 0 and len(self._family_loss) == len(FAMILIES):
            mean = sum(self._family_loss.values()) / len(FAMILIES)
            lag = {n: min(2.0, max(0.6, v / mean)) for n, v in self._family_loss.items()}
            self._chats.weights = {n: EMPHASIS.get(n, 1.0) * factor for n, factor in lag.items()}

    def export(self) -> None:
        """Write the weights, the configuration and a checkpoint, each in one move."""
        out = self._options.out
        state = {name: t if t.dtype == torch.uint8 else t.half() for name, t in self.model.state_dict().items()}
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        _replace(out / "weights.safetensors", lambda path: save_file(tensors, path))
        _replace(out / "config.json", self.config.save)
        checkpoint = {
            "model": self.model.state_dict(),
            "muon": self._muon.buffers,
            "adam": self._adam.state_dict(),
            "steps": self._steps,
            "tokens": self._tokens,
        }
        _replace(out / "checkpoint.pt", lambda path: torch.save(checkpoint, path))

    def _restore(self) -> None:
        """Go on from the checkpoint, or from exported weights alone, whose optimizers start anew."""
        if not (self._options.out / "checkpoint.pt").exists():
            state = load_file(self._options.out / "weights.safetensors")
            self.model.load_state_dict({k: t if t.dtype == torch.uint8 else t.float() for k, t in state.items()})
            return
        checkpoint = torch.load(self._options.out / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(checkpoint["model"])
        self._muon.buffers.update(checkpoint["muon"])
        self._adam.load_state_dict(checkpoint["adam"])
        self._steps, self._tokens = checkpoint["steps"], checkpoint["tokens"]


def _replace(path: Path, write: object) -> None:
    temporary = path.with_name(path.name + ".new")
    assert callable(write)
    write(temporary)
    os.replace(temporary, path)


def corpus_texts(seed: int, samples: int) -> Iterator[str]:
    """Yield the texts that the tokenizer is built from."""
    rng = random.Random(f"tokenizer {seed}")
    for _ in range(samples):
        yield from (turn.text for turn in draw(rng).turns)


def _worker(rank: int, options: Options) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    torch.set_num_threads(1)
    if options.processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{options.out.resolve()}/rendezvous", rank=rank, world_size=options.processes
        )
    Trainer(options, rank).run()
    if options.processes > 1:
        dist.destroy_process_group()


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description="Train the embedded model from scratch.")
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--out", type=Path, default=Path(embedded.__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint or the weights in --out")
    parser.add_argument("--rate", type=float, default=1.0, help="scales the learning rates, e.g. 0.5 to resume")
    options = Options(**vars(parser.parse_args()))
    if os.environ.get("MALLOC_TOP_PAD_") != ENVIRONMENT["MALLOC_TOP_PAD_"]:  # read by libc before main
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ENVIRONMENT})
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rendezvous").unlink(missing_ok=True)
    if not options.resume:
        build(corpus_texts(options.seed, 12_000), options.out / "tokenizer.json")
    spawn(_worker, (options,), nprocs=options.processes)  # type: ignore[no-untyped-call]
    (options.out / "rendezvous").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
