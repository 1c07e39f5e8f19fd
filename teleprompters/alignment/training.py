"""Training a prompter rho(x'|x) against a black-box reward: E[r] - lambda KL(rho || rho_sft) (2501.03486 eq. 9).

Three trainers on TRL 1.16. PPO (the paper's) and RLOO have the closed form of Lemma 1 as their fixed point; GRPO, with
TRL's defaults, has it for rewrites of one token only, and is here to compare with. What would move the fixed point is
not an option: rewrites are drawn at temperature 1, top-p 1 and without top-k, rewards are not scaled, and dropout is
off.

A step is one batch: `batch_size` rewrites are drawn, scored, and used for `updates_per_batch` optimizer updates. The
learning rate falls linearly to 0 over the training. A rewrite that is empty, or cut off at `max_new_tokens`, is scored
as it is: cutting off is part of the policy, whose fixed point is then the closed form over cut-off rewrites.

Several processes: start the program with `accelerate launch` or `torchrun`; each process asks the reward for its own
rows only, `on_step` runs on the main process, and every process returns the same policy.

Needs the `[train]` extra, imported on the first call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import dspy

from cuesmith.modules.decoding import Decoding
from cuesmith.modules.policy import LocalPolicy, require_train
from cuesmith.modules.prompter import Prompter
from cuesmith.teleprompters.alignment.training_result import TrainingStepDone
from cuesmith.teleprompters.runtime.checks import chosen, number, whole

if TYPE_CHECKING:
    from cuesmith.teleprompters.alignment.checkpoints import Checkpoint

RewardFunction = Callable[[Sequence[int], Sequence[str]], Sequence[float | None]]
"""From each row's index into `inputs` and its rewrite to its reward; None where there is none (an outage).

Called once per step, with all rows of the process, on the thread that called `train`, and awaited: concurrency within
a batch is its own affair, nothing else holds it up, and the policy's and the reference's passes over the rewrites run
meanwhile. Whatever it raises ends the training, after a checkpoint, and is raised.
"""

Trainer = Literal["ppo", "rloo", "grpo"]

PrompterModel: TypeAlias = Prompter | LocalPolicy | dspy.BaseLM | str | Path
"""A prompter, or what one can be made of: a local model, a folder or name to load one from, a language model."""


@dataclass(frozen=True)
class Training:
    """How to train a prompter.

    Attributes:
        trainer: "ppo" (the paper's), "rloo", or "grpo" (biased where a rewrite has several tokens).
        kl_coefficient: The paper's lambda, in units of reward per nat; greater than 0.
        kl_start: lambda at the first step; it falls geometrically to `kl_coefficient` over the first half of the steps
            and stays there. A larger one at the start keeps several good rewrites of an input alive where a small
            lambda would let the first that is found displace them. None: `kl_coefficient` from the start. Ours.
        steps: How many batches.
        batch_size: Rewrites in a batch over all processes: inputs times generations.
        generations: Rewrites per input in a batch, at least 2 (TRL's trainers compare them).
        updates_per_batch: Optimizer updates on each batch.
        learning_rate: At the start; it falls linearly to 0.
        max_new_tokens: Where a rewrite is cut off.
        gradient_accumulation: In how many parts an update goes through the batch, to save memory.
        lora_rank: Train a LoRA adapter of this rank on all linear layers but the head; None trains all weights. The
            reference is then the model with the adapter off, and the policy returned has the adapter merged.
        save_every: Steps between checkpoints.
        clip: PPO's epsilon, for the policy's ratio and for the values; RLOO's and GRPO's for theirs.
        gae_lambda: PPO's lambda of generalised advantage estimation (gamma is 1).
        value_coefficient: The value loss's weight in PPO.
        seed: Seeds the draws and the order of the inputs.
    """

    trainer: Trainer = "ppo"
    kl_coefficient: float = 0.1
    kl_start: float | None = None
    steps: int = 200
    batch_size: int = 48
    generations: int = 8
    updates_per_batch: int = 4
    learning_rate: float = 1e-4
    max_new_tokens: int = 64
    gradient_accumulation: int = 1
    lora_rank: int | None = None
    save_every: int = 50
    clip: float = 0.2
    gae_lambda: float = 0.95
    value_coefficient: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            TypeError: A value is of the wrong type.
            ValueError: A value cannot be right; the message holds it.
        """
        chosen("trainer", self.trainer, get_args(Trainer))
        for name in ("kl_coefficient", "learning_rate", "clip"):
            number(name, getattr(self, name), least=0, above=True)
        if self.kl_start is not None:
            number("kl_start", self.kl_start, least=self.kl_coefficient)
        for name in ("gae_lambda", "value_coefficient"):
            number(name, getattr(self, name), least=0)
        if self.gae_lambda > 1:
            raise ValueError(f"gae_lambda must be in [0, 1], got {self.gae_lambda}")
        for name in ("steps", "batch_size", "updates_per_batch", "max_new_tokens", "gradient_accumulation",
                     "save_every"):  # fmt: skip
            whole(name, getattr(self, name))
        whole("generations", self.generations, least=2)
        if self.lora_rank is not None:
            whole("lora_rank", self.lora_rank)
        whole("seed", self.seed, least=0)
        for name in ("generations", "gradient_accumulation"):
            part = getattr(self, name)
            if self.batch_size % part:
                raise ValueError(f"batch_size {self.batch_size} is no multiple of {name} {part}")

    def kl_at(self, step: int) -> float:
        """Return lambda at a step.

        Args:
            step: Counts from 0.
        """
        if self.kl_start is None:
            return self.kl_coefficient
        done = min(1.0, 2 * step / self.steps)
        return float(self.kl_coefficient * (self.kl_start / self.kl_coefficient) ** (1 - done))


def train(
    policy: LocalPolicy,
    inputs: Sequence[str],
    reward: RewardFunction,
    config: Training,
    *,
    directory: Path | None = None,
    on_step: Callable[[TrainingStepDone], bool | None] | None = None,
) -> LocalPolicy:
    """Train a copy of `policy`, which is rho_sft, and return it (2501.03486 eq. 9).

    With `directory`, checkpoints are written every `config.save_every` steps, at the end, and before an error of the
    reward is raised; they lie between batches. A directory with a checkpoint is resumed: weights, optimizer, learning
    rate, random numbers and the order of inputs go on where they were, so that on a CPU a training that was killed
    ends with the very weights of one that was not. Rewards of steps up to the checkpoint are not asked again; those
    after it are, and `on_step` sees these steps a second time. If the checkpoint is the one that an early end wrote,
    `on_step` is first asked again about its last step.

    Args:
        policy: rho_sft; not changed.
        inputs: The inputs x.
        reward: See `RewardFunction`.
        config: How to train.
        directory: Where checkpoints go.
        on_step: Called after each step; True ends the training with what it has.

    Returns:
        The trained policy.

    Raises:
        ImportError: The `[train]` extra is not installed.
        ValueError: There are no inputs, an input makes an empty prompt, the batch cannot be split over the processes,
            or the directory holds the checkpoints of another training.
    """
    require_train()
    if not inputs:
        raise ValueError("training needs at least one input")
    from cuesmith.teleprompters.alignment.trainers import train as trained

    return trained(policy, inputs, reward, config, directory, on_step)


def warm_start(
    policy: LocalPolicy,
    pairs: Sequence[tuple[str, str]],
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> LocalPolicy:
    """Teach a copy of `policy` by supervision, to become a better rho_sft; the pairs' source does not matter.

    The loss is the mean over the tokens of the rewrites, with their end; prompts are not learned. The learning rate
    falls linearly to 0.

    Args:
        policy: The policy to start from; not changed.
        pairs: Inputs and good rewrites.
        steps: Optimizer updates.
        batch_size: Pairs per update.
        learning_rate: At the start.
        seed: Seeds the order of the pairs.

    Returns:
        The taught policy.

    Raises:
        ImportError: The `[train]` extra is not installed.
        ValueError: There are no pairs, or a number is not positive.
    """
    require_train()
    if not pairs:
        raise ValueError("a warm start needs at least one pair")
    whole("steps", steps)
    whole("batch_size", batch_size)
    number("learning_rate", learning_rate, least=0, above=True)
    from cuesmith.teleprompters.alignment.supervised import warm_start as taught

    return taught(policy, pairs, steps, batch_size, learning_rate, seed)


def prompter_of(model: PrompterModel, decoding: Decoding, *, local: bool) -> Prompter:
    """Return the prompter that a user meant.

    Args:
        model: A prompter, or its model.
        decoding: How it decodes in the compiled program; a given `Prompter` keeps its own.
        local: Whether it must be a local model, to be trained.

    Raises:
        ImportError: If a local model is asked for without `cuesmith[train]`.
        TypeError: If it is something else.
        ValueError: If a language model behind an API is to be trained.
    """
    if local or isinstance(model, Path):
        require_train()
        if isinstance(model, str | Path):
            model = LocalPolicy.from_pretrained(model)
    prompter = model if isinstance(model, Prompter) else Prompter(model, decoding=decoding)
    if local and prompter.policy is None:
        raise ValueError(
            "mode='train' trains a local prompter: give a LocalPolicy, or the folder or name of a causal language "
            "model for transformers; a model behind an API can be used with mode='weights'"
        )
    return prompter


def warm_started(
    prompter: Prompter, pairs: Sequence[tuple[str, str]], steps: int, seed: int, kept: Path | None
) -> Prompter:
    """Return rho_sft: the prompter fine-tuned on the pairs, if any. A resumed run finds it in the folder `kept`."""
    if not pairs:
        return prompter
    assert prompter.policy is not None
    if kept is not None and (kept / "done").exists():
        policy = LocalPolicy.from_pretrained(kept)
    else:
        policy = warm_start(prompter.policy, pairs, steps=steps, seed=seed)
        if kept is not None:
            policy.save_pretrained(kept)
            (kept / "done").touch()
    return Prompter(policy, decoding=prompter.decoding)


def identity(policy: LocalPolicy, inputs: Sequence[str], config: Training, processes: int) -> dict[str, object]:
    """Return what a checkpoint and the training that resumes it must have in common."""
    fields = {name: value for name, value in asdict(config).items() if name != "save_every"}
    content = hashlib.sha256(json.dumps(list(inputs)).encode()).hexdigest()
    return {**fields, "inputs": content, "policy": policy.fingerprint, "processes": processes}


def check_resumable(found: Checkpoint, wanted: dict[str, object]) -> None:
    """Raise ValueError, with the values, where a checkpoint is another training's."""
    for name, value in wanted.items():
        if found.about.get(name) != value:
            raise ValueError(
                f"{found.path.parent} holds another training: {name} was {found.about.get(name)!r} there and is "
                f"{value!r} now; use another directory"
            )
