"""Puts a training together from TRL's parts; `training` is the door to it and explains what it does."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel

from cuesmith.modules.policy import LocalPolicy
from cuesmith.teleprompters.alignment._trl import GRPOConfig, RLOOConfig
from cuesmith.teleprompters.alignment.checkpoints import Checkpoints
from cuesmith.teleprompters.alignment.ppo import PPO
from cuesmith.teleprompters.alignment.rollouts import (
    GRPO,
    RLOO,
    OwnRandomness,
    Rollouts,
    RolloutSetting,
    plain_generation,
)
from cuesmith.teleprompters.alignment.training import (
    RewardFunction,
    Training,
    check_resumable,
    identity,
)
from cuesmith.teleprompters.alignment.training_result import TrainingStepDone


def train(
    policy: LocalPolicy,
    inputs: Sequence[str],
    reward: RewardFunction,
    config: Training,
    directory: Path | None,
    on_step: Callable[[TrainingStepDone], bool | None] | None,
) -> LocalPolicy:
    """See `training.train`."""
    prompt_ids = [policy.prompt_ids(text) for text in inputs]
    _check_lengths(policy, inputs, prompt_ids, config.max_new_tokens)
    on_cpu = next(policy.model.parameters()).device.type == "cpu"
    processes = PartialState(cpu=on_cpu).num_processes
    parts = processes * config.gradient_accumulation
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be split over {processes} processes and "
            f"gradient_accumulation {config.gradient_accumulation}"
        )
    about = identity(policy, inputs, config, processes)
    checkpoints = Checkpoints(directory) if directory is not None else None
    reference = _reference(policy) if config.lora_rank is None else None
    setting = RolloutSetting(
        config, reward, prompt_ids, _order(len(inputs), config), reference, checkpoints, about, on_step
    )
    with OwnRandomness(), tempfile.TemporaryDirectory() as scratch:
        return _run(policy, setting, _arguments(config, scratch, on_cpu, config.batch_size // parts))


def _run(policy: LocalPolicy, setting: RolloutSetting, arguments: Any) -> LocalPolicy:
    config = setting.config
    found = setting.checkpoints.latest() if setting.checkpoints else None
    if found is not None:
        check_resumable(found, setting.about)
    pupil = policy.copy()
    model = _plain(pupil.model)
    plain_generation(model)
    trainer = _trainer(config, model, pupil, arguments)
    trainer.prepare(setting)
    try:
        if found is not None and _has_ended(found.updates, found.about, setting):
            trainer.load_trained(found.path)
        else:
            trainer.train(resume_from_checkpoint=str(found.path) if found else None)
    finally:
        trainer.close()
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora_rank is not None:
        trained = trained.merge_and_unload()
    for mark in ("_is_accelerate_prepared", "model_tags"):
        trained.__dict__.pop(mark, None)
    for parameter in trained.parameters():
        parameter.grad = None
    own = _plain(policy.model)
    trained.generation_config = copy.deepcopy(own.generation_config)
    trained.train(own.training)
    return LocalPolicy(trained, pupil.tokenizer, instructions=policy.instructions)


def _has_ended(updates: int, about: Any, setting: RolloutSetting) -> bool:
    if updates >= setting.config.steps * setting.config.updates_per_batch:
        return True
    if not about["stopped"] or setting.on_step is None:
        return False
    return bool(setting.on_step(TrainingStepDone(**{"of": setting.config.steps, **about["last"]})))


def _trainer(config: Training, model: PreTrainedModel, pupil: LocalPolicy, args: Any) -> Rollouts:
    kind = {"ppo": PPO, "rloo": RLOO, "grpo": GRPO}[config.trainer]
    unused = Dataset.from_dict({"prompt": [""]})  # TRL insists on one; `prepare` puts the inputs' numbers there
    trainer: Any = kind(
        model, _no_reward, args=args, train_dataset=unused, processing_class=pupil.tokenizer,
        peft_config=_adapter(config),
    )  # fmt: skip
    return cast(Rollouts, trainer)


def _arguments(config: Training, scratch: str, on_cpu: bool, rows: int) -> Any:
    kind = RLOOConfig if config.trainer == "rloo" else GRPOConfig
    return kind(
        output_dir=scratch,
        use_cpu=on_cpu,
        bf16=False,  # the model computes in its own dtype; TRL's default would round on CPUs
        gradient_checkpointing=not on_cpu,
        max_steps=config.steps * config.updates_per_batch,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=config.gradient_accumulation,
        num_generations=config.generations,
        num_iterations=config.updates_per_batch,
        epsilon=config.clip,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0,
        max_completion_length=config.max_new_tokens,
        beta=0.0,  # `prepare` sets it, with a reference that need not be loaded from a disk
        disable_dropout=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        shuffle_dataset=False,
        seed=config.seed,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )


def _adapter(config: Training) -> Any:
    if config.lora_rank is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank, lora_alpha=2 * config.lora_rank, lora_dropout=0.0, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip


def _reference(policy: LocalPolicy) -> PreTrainedModel:
    """Return rho_sft as a model of its own that shares the tensors, so that it can be changed and costs no memory."""
    model = policy.model if _plain(policy.model) is policy.model else _plain(policy.copy().model)
    shared: dict[int, Any] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


def _plain(model: Any) -> PreTrainedModel:
    """Return the transformers model, with an adapter merged."""
    return cast(PreTrainedModel, model.merge_and_unload() if hasattr(model, "merge_and_unload") else model)


def _order(inputs: int, config: Training) -> list[int]:
    """Return the inputs in shuffled passes, as many as the training needs."""
    needed = config.steps * config.batch_size // config.generations
    numbers = np.random.default_rng(config.seed)
    passes = [numbers.permutation(inputs) for _ in range(-(-needed // inputs))]
    return [int(index) for index in np.concatenate(passes)[:needed]]


def _check_lengths(policy: LocalPolicy, inputs: Sequence[str], prompts: Sequence[Sequence[int]], new: int) -> None:
    room = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    for text, ids in zip(inputs, prompts, strict=True):
        if not ids:
            raise ValueError(f"the input {text!r} makes an empty prompt")
        if room is not None and len(ids) + new > room:
            raise ValueError(
                f"a prompt of {len(ids)} tokens and max_new_tokens {new} do not fit the model's {room}: {text[:80]!r}"
            )


def _no_reward(**_: object) -> list[float]:
    """Stands where TRL wants a reward function; `Rollouts` calls the real one."""
    raise AssertionError("TRL called the reward itself")
