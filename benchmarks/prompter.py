"""Does training reach the known optimum, and how fast: ``python benchmarks/prompter.py [--toy] [--throughput]``.

``--toy``: three inputs, a tiny Llama as prompter, rewrites of 1 and of 3 tokens over six words, a frozen target
whose answers are noisy. All rewrites can be enumerated, so the optimum of Lemma 1 (2501.03486) is known. The model can
represent it (with exact gradients of the objective it comes below the targets), so that what is measured is the
training; one setting serves all trainers, lambdas and seeds (96 rewrites a step, 2 updates on each, learning rate 2e-3
falling linearly to 0, lambda falling from 1 over the first half of the steps where it is smaller; 300 steps for 1
token, 800 for 3). Prints the total variation between the trained prompter and the optimum (mean over the inputs), for
PPO, RLOO and TRL's GRPO (its defaults, with beta), lambda 0.1, 0.5 and 2, and three seeds, with steps and seconds, and
that of the untrained prompter. Cells are appended to ``--json`` as they end; a run that was cut goes on from there.
Targets: 0.05 for 1 token, 0.10 for 3, for PPO and RLOO.

``--throughput``: steps/s of our PPO and RLOO, and TRL's own GRPOTrainer at the same sizes and updates per batch, with
a reward of 20 ms a row of which a whole batch is awaited at once. The trainers take turns in one run; printed is the
median of the rounds' ratios, with their range. Target: at least 1.0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from cuesmith.modules.policy import LocalPolicy
from cuesmith.teleprompters.alignment.training import Trainer, Training, train
from cuesmith.teleprompters.alignment.training_result import TrainingStepDone

# Of two words: after an input of one, a rewrite that begins with the same word looks to the model as if it had not
# begun (equal keys, equal values), and there are optima that it cannot represent.
INPUTS = ("a b", "b c", "c d")
WORDS = ("<end>", *"abcde")
LAMBDAS = (0.1, 0.5, 2.0)
SEEDS = (0, 1, 2)
LENGTHS = (1, 3)
TARGETS = {1: 0.05, 3: 0.10}
NOISE = 0.3
Rewrite = tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """One training of the toy."""

    trainer: Trainer
    length: int
    kl_coefficient: float
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came of it: total variations to the optimum, before and after."""

    cell: Cell
    untrained: float
    trained: float
    steps: int
    seconds: float


STEPS = {1: 300, 3: 800}
UPDATES = 2
KL_START = 1.0


def setting(cell: Cell) -> Training:
    """Return the one setting for all trainers and lambdas; longer rewrites take more steps."""
    return Training(
        trainer=cell.trainer, kl_coefficient=cell.kl_coefficient,
        kl_start=max(KL_START, cell.kl_coefficient), steps=STEPS[cell.length], seed=cell.seed,
        max_new_tokens=cell.length, learning_rate=2e-3, batch_size=96, generations=8, updates_per_batch=UPDATES,
    )  # fmt: skip


def untrained(seed: int) -> LocalPolicy:
    """Return a Llama of two layers with random weights, and a head large enough that its draws are not uniform."""
    return tiny_policy(WORDS, seed, hidden=64, head=6.0)


def tiny_policy(words: Sequence[str], seed: int, hidden: int, head: float) -> LocalPolicy:
    """Return a small Llama that knows `words`, the first of which is the end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=backend, eos_token=words[0], pad_token=words[0])
    torch.manual_seed(seed)
    shape: Any = LlamaConfig(
        vocab_size=len(words), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        model.lm_head.weight.mul_(head)
    return LocalPolicy(model, tokenizer)


class Target:
    """A frozen target: it reads a rewrite and gives one noisy answer that serves each input more or less well."""

    def __init__(self, length: int, seed: int) -> None:
        """Draw what each word does for each input, and what each pair of neighbours does for all of them."""
        numbers = np.random.default_rng([seed, length])
        self._words = numbers.normal(0, 0.4, (len(WORDS), len(INPUTS)))
        self._pairs = numbers.normal(0, 0.2, (len(WORDS), len(WORDS)))
        self._noise = np.random.default_rng([seed, length, 1])

    def quality(self, rewrite: Rewrite) -> npt.NDArray[np.float64]:
        """Return the mean of the answer's worth for each input."""
        neighbours = sum(float(self._pairs[first, second]) for first, second in pairwise(rewrite))
        return np.asarray(self._words[list(rewrite)].sum(0) + neighbours)

    def reward(self, indices: Sequence[int], rewrites: Sequence[str], *, length: int) -> list[float]:
        """Ask for an answer to each rewrite, and return what it is worth for the original input."""
        answers = [self.quality(tokens(text, length)) + self._noise.normal(0, NOISE) for text in rewrites]
        return [float(answer[index]) for index, answer in zip(indices, answers, strict=True)]


def tokens(text: str, length: int) -> Rewrite:
    """Return a rewrite's tokens; one that ended before `length` ends with the end token, 0."""
    ids = tuple(WORDS.index(word) for word in text.split())
    return ids if len(ids) == length else (*ids, 0)


@torch.no_grad()
def distribution(policy: LocalPolicy, text: str, length: int) -> dict[Rewrite, float]:
    """Return the probability of every rewrite, by going through all of them."""
    prompt = policy.prompt_ids(text)
    open_: dict[Rewrite, float] = {(): 0.0}
    found: dict[Rewrite, float] = {}
    for _ in range(length):
        ids = torch.tensor([[*prompt, *prefix] for prefix in open_])
        model: Any = policy.model
        rows = torch.log_softmax(model(ids).logits[:, -1].double(), -1).tolist()
        following = {
            (*prefix, token): logprob + row[token]
            for (prefix, logprob), row in zip(open_.items(), rows, strict=True)
            for token in range(len(WORDS))
        }
        found |= {prefix: logprob for prefix, logprob in following.items() if prefix[-1] == 0}
        open_ = {prefix: logprob for prefix, logprob in following.items() if prefix[-1] != 0}
    return {rewrite: float(np.exp(logprob)) for rewrite, logprob in (found | open_).items()}


def total_variation(policy: LocalPolicy, reference: LocalPolicy, target: Target, cell: Cell) -> float:
    """Return the total variation to rho*(x'|x) ~ rho_sft(x'|x) exp(E[r] / lambda) (Lemma 1), mean over x."""
    distances = []
    for i, text in enumerate(INPUTS):
        before, after = distribution(reference, text, cell.length), distribution(policy, text, cell.length)
        scores = np.array([np.log(p) + target.quality(x)[i] / cell.kl_coefficient for x, p in before.items()])
        best = np.exp(scores - scores.max())
        best /= best.sum()
        distances.append(0.5 * np.abs(best - np.array([after[x] for x in before])).sum())
    return float(np.mean(distances))


def run_cell(cell: Cell) -> Outcome:
    """Train one cell in this process."""
    quiet()
    policy, target = untrained(cell.seed), Target(cell.length, cell.seed)
    config = setting(cell)
    before = total_variation(policy, policy, target, cell)
    start = time.monotonic()
    trained = train(policy, INPUTS, partial(target.reward, length=cell.length), config)
    seconds = time.monotonic() - start
    return Outcome(cell, before, total_variation(trained, policy, target, cell), config.steps, seconds)


def quiet() -> None:
    """One thread, and none of the libraries' remarks."""
    from transformers.utils import logging as remarks

    progress: Any = remarks
    progress.disable_progress_bar()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("transformers", "trl", "accelerate", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def cells(quick: bool) -> list[Cell]:
    """Return the grid, long cells first; `quick`: lambda 0.5 and one seed."""
    lambdas, seeds = (LAMBDAS, SEEDS) if not quick else ((0.5,), (0,))
    grid = product(seeds, sorted(LENGTHS, reverse=True), lambdas, get_args(Trainer))
    return [Cell(trainer, length, kl, seed) for seed, length, kl, trainer in grid]


def read(path: Path | None) -> dict[Cell, Outcome]:
    """Return the outcomes of an earlier run; a line that was cut short is left out."""
    found = {}
    for line in path.read_text().splitlines() if path is not None and path.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        outcome = Outcome(**{**values, "cell": Cell(**values["cell"])})
        if outcome.steps == setting(outcome.cell).steps:
            found[outcome.cell] = outcome
    return found


def toy(grid: Sequence[Cell], path: Path | None, processes: int) -> None:
    """Run the cells that are not in `path` yet, and print the table."""
    done = {cell: outcome for cell, outcome in read(path).items() if cell in grid}
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        waiting = [pool.submit(run_cell, cell) for cell in grid if cell not in done]
        for ended in as_completed(waiting):
            outcome = ended.result()
            done[outcome.cell] = outcome
            print(line(outcome), flush=True)
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
    print(table(done.values()))


def line(outcome: Outcome) -> str:
    """Return one cell's outcome."""
    cell = outcome.cell
    return (
        f"{cell.trainer:5} tokens {cell.length} lambda {cell.kl_coefficient:<4} seed {cell.seed}: "
        f"{outcome.untrained:.3f} -> {outcome.trained:.3f} ({outcome.steps} steps, {outcome.seconds:.0f} s)"
    )


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the seeds' total variations of each trainer, length and lambda, and whether all meet the target."""
    groups: dict[tuple[int, float, str], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda o: (o.cell.length, o.cell.kl_coefficient, o.cell.trainer, o.cell.seed)):
        groups.setdefault((outcome.cell.length, outcome.cell.kl_coefficient, outcome.cell.trainer), []).append(outcome)
    names = ("tokens", "lambda", "trainer", "untrained", "total variation", "steps", "seconds", "target")
    rows = ["", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for (length, kl, trainer), found in groups.items():
        worst = max(outcome.trained for outcome in found)
        verdict = f"{TARGETS[length]} {'met' if worst <= TARGETS[length] else 'MISSED'}" if trainer != "grpo" else "-"
        rows.append(
            f"| {length} | {kl} | {trainer} | {statistics.mean(o.untrained for o in found):.3f} | "
            f"{' '.join(f'{o.trained:.3f}' for o in found)} | {found[0].steps} | "
            f"{statistics.mean(o.seconds for o in found):.0f} | {verdict} |"
        )
    return "\n".join(rows)


@dataclass(frozen=True)
class Size:
    """A prompter and its batches."""

    name: str
    hidden: int
    new_tokens: int
    batch: int


SIZES = (Size("toy: hidden 32, 3 tokens, 48 rows", 32, 3, 48), Size("hidden 128, 24 tokens, 48 rows", 128, 24, 48))
REWARD_SECONDS = 0.02
WARM = 3


def ours(trainer: Trainer, size: Size, steps: int) -> float:
    """Return the steps/s of one of our trainers."""
    ends: list[float] = []

    def note(_: TrainingStepDone) -> None:
        ends.append(time.monotonic())

    config = Training(
        trainer=trainer, kl_coefficient=0.5, steps=steps + WARM, batch_size=size.batch, generations=8,
        updates_per_batch=UPDATES, max_new_tokens=size.new_tokens, learning_rate=1e-4,
    )  # fmt: skip
    train(
        tiny_policy(WORDS, 0, size.hidden, 1.0),
        INPUTS,
        lambda _, texts: asyncio.run(_answers(texts)),
        config,
        on_step=note,
    )
    return (len(ends) - WARM) / (ends[-1] - ends[WARM - 1])


async def _answer(text: str) -> float:
    await asyncio.sleep(REWARD_SECONDS)
    return float(len(text.split()) % 3)


async def _answers(texts: Sequence[str]) -> list[float]:
    return list(await asyncio.gather(*(_answer(text) for text in texts)))


async def _trl_reward(completions: Sequence[str], **_: Any) -> list[float]:
    return await _answers(completions)


def theirs(size: Size, steps: int) -> float:
    """Return the steps/s of TRL's GRPOTrainer as it comes, with beta, and our updates per batch and sizes."""
    from datasets import Dataset
    from transformers import PrinterCallback

    from cuesmith.teleprompters.alignment._trl import GRPOConfig, GRPOTrainer, TrainerCallback

    ends: list[float] = []

    class Note(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % UPDATES == 0:
                ends.append(time.monotonic())

    policy = tiny_policy(WORDS, 0, size.hidden, 1.0)
    with tempfile.TemporaryDirectory() as scratch:
        policy.save_pretrained(Path(scratch, "model"))
        policy = LocalPolicy.from_pretrained(Path(scratch, "model"), device="cpu")
        rows = [{"prompt": policy.prompt(INPUTS[i % len(INPUTS)])} for i in range(size.batch // 8)]
        arguments = GRPOConfig(
            output_dir=scratch, use_cpu=True, bf16=False, gradient_checkpointing=False, beta=0.5,
            max_steps=(steps + WARM) * UPDATES, per_device_train_batch_size=size.batch, num_generations=8,
            num_iterations=UPDATES, max_completion_length=size.new_tokens, learning_rate=1e-4, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        model: Any = policy.model
        trainer = GRPOTrainer(
            model, _trl_reward, args=arguments, train_dataset=Dataset.from_list(rows),
            processing_class=policy.tokenizer, callbacks=[Note()],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return (len(ends) - WARM) / (ends[-1] - ends[WARM - 1])


def throughput(rounds: int, steps: int) -> None:
    """Let the trainers take turns, and print steps/s and the ratios to TRL's GRPOTrainer."""
    quiet()
    for size in SIZES:
        speeds: dict[str, list[float]] = {"ppo": [], "rloo": [], "trl grpo": []}
        for _ in range(rounds):
            speeds["trl grpo"].append(theirs(size, steps))
            for trainer in get_args(Trainer)[:2]:
                speeds[trainer].append(ours(trainer, size, steps))
        print(f"{size.name}: TRL's GRPOTrainer {statistics.median(speeds['trl grpo']):.2f} steps/s")
        for trainer in get_args(Trainer)[:2]:
            ratios = [a / b for a, b in zip(speeds[trainer], speeds["trl grpo"], strict=True)]
            print(
                f"  {trainer} {statistics.median(speeds[trainer]):.2f} steps/s, ratio {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


def main() -> None:
    """Run what the command line asks for; both parts without a choice."""
    parser = argparse.ArgumentParser(description="Prompter training: known optimum and throughput.")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--quick", action="store_true", help="lambda 0.5 and one seed; fewer rounds")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="only this seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="append the cells' outcomes here, and skip those that are there")
    options = parser.parse_args()
    everything = not (options.toy or options.throughput)
    if options.throughput or everything:
        throughput(1 if options.quick else 5, 15 if options.quick else 40)
    if options.toy or everything:
        grid = [cell for cell in cells(options.quick) if options.seed in (None, cell.seed)]
        toy(grid, options.json, options.processes)


if __name__ == "__main__":
    main()
