"""A reward model from preference pairs: the Bradley-Terry loss, by TRL's `RewardTrainer`.

Source: 2501.03486 eq. 1 (Bradley and Terry 1952); held-out accuracy and its interval are ours.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cuesmith.modules.judges import RewardModel
from cuesmith.modules.policy import require_train
from cuesmith.teleprompters.runtime.checks import number
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PreferencePair(Protocol):
    """A prompt with a better and a worse response; `cuesmith.programs.tasks.preferences.Preference` is one.

    Attributes:
        prompt: What was asked.
        chosen: The better response.
        rejected: The worse response.
    """

    @property
    def prompt(self) -> str: ...
    @property
    def chosen(self) -> str: ...
    @property
    def rejected(self) -> str: ...


@dataclass(frozen=True)
class RewardTraining:
    """What a training gave.

    Attributes:
        directory: The reward model and its tokenizer; `RewardModel.from_pretrained` reads it.
        accuracy: Share of the held-out pairs in which the better response has the higher reward, with its 95 %
            interval. Equal rewards count as wrong. Pairs of one prompt are not independent: where prompts have many
            pairs, the interval is too narrow.
        pairs: Pairs that were trained on.
        held_out: Pairs that were not, of prompts that were not.
        too_long: Pairs that were left out, as one of the responses did not fit.
    """

    directory: Path
    accuracy: Estimate95
    pairs: int
    held_out: int
    too_long: int


def train_reward_model(
    base_model: str | Path | PreTrainedModel,
    preferences: Sequence[PreferencePair],
    directory: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    gradient_accumulation: int = 1,
    learning_rate: float = 1e-5,
    max_length: int = 1024,
    held_out: float = 0.1,
    seed: int = 0,
) -> RewardTraining:
    """Train a sequence classifier so that the better response of a pair gets the higher reward.

    The loss is -log sigmoid(r(x, chosen) - r(x, rejected)). Rewards are free up to a constant, so nothing but their
    differences means anything. Texts are given as `RewardModel` gives them. A share of the *prompts* is held out, with
    all their pairs.

    Args:
        base_model: A folder, a hub name or a model: a sequence classifier, or a causal language model, whose head
            then is new.
        preferences: The pairs.
        directory: Where the reward model goes; the trainer's own files do not.
        tokenizer: The model's; by default the one that lies with it.
        steps: Optimizer updates; one pass over the pairs by default.
        batch_size: Pairs an update.
        gradient_accumulation: Parts an update is computed in, to save memory.
        learning_rate: At the start; falls linearly to 0.
        max_length: Pairs of which a response, with its prompt, has more tokens are left out, and counted.
        held_out: Share of the prompts that the accuracy is measured on.
        seed: Of the head, the order of the pairs, and what is held out.

    Returns:
        Where the model is, and how well it does on the held-out pairs.

    Raises:
        ImportError: Without the extra `train`.
        ValueError: If a number cannot be, or there are too few pairs to train on and to hold out.
        OSError: If there is no such base model.
    """
    require_train()
    _check(batch_size, gradient_accumulation, learning_rate, held_out)
    from cuesmith.teleprompters.alignment.rollouts import OwnRandomness

    trained_on, tested_on = _divide(preferences, held_out, seed)
    with OwnRandomness():
        reward = _classifier(base_model, tokenizer, seed)
        rows = [
            {
                "chosen_ids": reward.token_ids(pair.prompt, pair.chosen),
                "rejected_ids": reward.token_ids(pair.prompt, pair.rejected),
            }
            for pair in trained_on
        ]
        rows = [row for row in rows if max(map(len, row.values())) <= max_length]
        if not rows or not tested_on:
            raise ValueError(
                f"{len(preferences)} pairs leave {len(rows)} to train on (at most {max_length} tokens each) and "
                f"{len(tested_on)} to hold out; at least one of each is needed"
            )
        _fit(reward, rows, steps, batch_size, gradient_accumulation, learning_rate, seed)
    reward.save_pretrained(directory)
    chosen = reward([pair.prompt for pair in tested_on], [pair.chosen for pair in tested_on])
    rejected = reward([pair.prompt for pair in tested_on], [pair.rejected for pair in tested_on])
    right = estimate95(float(a > b) for a, b in zip(chosen, rejected, strict=True))
    return RewardTraining(directory, right, len(rows), len(tested_on), len(trained_on) - len(rows))


def _check(batch_size: int, gradient_accumulation: int, learning_rate: float, held_out: float) -> None:
    if batch_size < 1 or gradient_accumulation < 1 or batch_size % gradient_accumulation:
        raise ValueError(
            f"batch_size must be a multiple of gradient_accumulation, got {batch_size} and {gradient_accumulation}"
        )
    number("learning_rate", learning_rate, least=0, above=True)
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be between 0 and 1, got {held_out}")


def _divide(
    preferences: Sequence[PreferencePair], held_out: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Divide by prompt, in an order that depends on the prompts' text and the seed alone; one at least is held out."""
    prompts = {pair.prompt for pair in preferences}
    order = sorted(prompts, key=lambda prompt: hashlib.sha256(f"{seed}:{prompt}".encode()).digest())
    kept = set(order[math.ceil(held_out * len(order)) :])
    trained_on = [pair for pair in preferences if pair.prompt in kept]
    return trained_on, [pair for pair in preferences if pair.prompt not in kept]


def _classifier(
    base_model: str | Path | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, seed: int
) -> RewardModel:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    set_seed(seed)  # a head that is not in the weights is drawn
    model: Any = base_model
    if isinstance(base_model, str | Path):
        model = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1, dtype=torch.float32)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(base_model)
    if tokenizer is None:
        raise ValueError("a model that is not loaded by name needs its tokenizer")
    return RewardModel(model, tokenizer)


def _fit(
    reward: RewardModel,
    rows: list[dict[str, list[int]]],
    steps: int | None,
    batch_size: int,
    gradient_accumulation: int,
    learning_rate: float,
    seed: int,
) -> None:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory(prefix="cuesmith-reward-") as folder:
        arguments = RewardConfig(
            output_dir=folder,
            max_steps=steps or -1,
            num_train_epochs=1,
            per_device_train_batch_size=batch_size // gradient_accumulation,
            gradient_accumulation_steps=gradient_accumulation,
            learning_rate=learning_rate,
            max_length=None,  # what is too long has been left out
            seed=seed,
            bf16=on_gpu and torch.cuda.is_bf16_supported(),
            gradient_checkpointing=on_gpu,
            use_cpu=not on_gpu,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
        )
        model: Any = reward.model
        model.train()
        trainer = RewardTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=reward.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model.eval()
