"""Supervised warm start on (input, rewrite) pairs; `training.warm_start` is the door to it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import TrainingArguments

from cuesmith.modules.policy import LocalPolicy, plain_text
from cuesmith.teleprompters.alignment._trl import Trainer
from cuesmith.teleprompters.alignment.rollouts import OwnRandomness, without_printing

IGNORED = -100  # transformers' label for a token without a loss


def warm_start(
    policy: LocalPolicy, pairs: Sequence[tuple[str, str]], steps: int, batch_size: int, learning_rate: float, seed: int
) -> LocalPolicy:
    """See `training.warm_start`."""
    pupil = policy.copy()
    model: Any = pupil.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    on_cpu = str(next(model.parameters()).device.type) == "cpu"
    rows = [_example(pupil, text, rewrite) for text, rewrite in pairs]
    with OwnRandomness(), tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch, use_cpu=on_cpu, max_steps=steps, per_device_train_batch_size=min(batch_size, len(rows)),
            learning_rate=learning_rate, lr_scheduler_type="linear", seed=seed, report_to="none",
            logging_strategy="no", save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        padding = _Padding(pupil.tokenizer.pad_token_id or 0)
        trainer = Trainer(model, arguments, data_collator=padding, train_dataset=Dataset.from_list(rows))
        without_printing(trainer)
        trainer.train()
    taught: Any = trainer.accelerator.unwrap_model(trainer.model)
    taught.__dict__.pop("_is_accelerate_prepared", None)
    for parameter in taught.parameters():
        parameter.grad = None
    taught.generation_config = copy.deepcopy(getattr(policy.model, "generation_config", taught.generation_config))
    return LocalPolicy(taught.train(policy.model.training), pupil.tokenizer, instructions=policy.instructions)


def _example(policy: LocalPolicy, text: str, rewrite: str) -> dict[str, list[int]]:
    prompt, tokenizer = policy.prompt_ids(text), policy.tokenizer
    answer = list(tokenizer(plain_text(tokenizer, rewrite), add_special_tokens=False)["input_ids"])
    answer.append(int(tokenizer.eos_token_id))
    return {"input_ids": [*prompt, *answer], "labels": [*[IGNORED] * len(prompt), *answer]}


class _Padding:
    """Pads a batch on the right, where a causal model does not look."""

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        fills = {"input_ids": self._pad, "labels": IGNORED}
        padded = {
            name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])
            for name, fill in fills.items()
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = (torch.arange(width)[None, :] < lengths[:, None]).long()
        return {**padded, "attention_mask": mask}
