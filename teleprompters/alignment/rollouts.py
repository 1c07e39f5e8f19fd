"""What the three trainers share: rollouts whose rewards are awaited while the models score them, and checkpoints.

TRL's trainers generate, run the policy and the reference over the rewrites, and then call the reward. Here a helper
thread does TRL's part, and hands the rewrites to the training thread, which calls the reward meanwhile: the two
forward passes take place while a frozen model somewhere else is answering. The next batch is not generated ahead, as
its rewrites would be those of an older policy.

Overrides private methods of TRL 1.16; `tests/test_training.py` compares their signatures.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PrinterCallback, TrainerControl, TrainerState, TrainingArguments

from cuesmith.teleprompters.alignment._trl import (
    GenerationConfig,
    GRPOTrainer,
    RLOOTrainer,
    Trainer,
    TrainerCallback,
    add_fused_lm_head,
)
from cuesmith.teleprompters.alignment.checkpoints import Checkpoints
from cuesmith.teleprompters.alignment.training import RewardFunction, Training
from cuesmith.teleprompters.alignment.training_result import TrainingStepDone

WEIGHTS = "trained.safetensors"
Batch = dict[str, Any]


@dataclass(frozen=True)
class RolloutSetting:
    """What a trainer needs beyond TRL's arguments.

    Attributes:
        config: How to train.
        reward: The reward function.
        prompt_ids: The token ids of each input's prompt.
        order: The inputs' indices in the order of use, `batch_size / generations` of them for each step.
        reference: The policy to stay close to, or None where that is the trained one without its adapter.
        checkpoints: Where to write them, or None.
        about: Noted in each checkpoint; a resumed training must agree with it.
        on_step: Called after each step on the main process; True ends the training.
    """

    config: Training
    reward: RewardFunction
    prompt_ids: Sequence[Sequence[int]]
    order: Sequence[int]
    reference: PreTrainedModel | None
    checkpoints: Checkpoints | None
    about: dict[str, object]
    on_step: Callable[[TrainingStepDone], bool | None] | None


class RewardFailedElsewhere(RuntimeError):
    """Raised on the processes whose own rewards were fine when those of another process failed."""


class _NoRewards(Exception):
    """Ends TRL's part of a rollout whose reward raised."""


class _Order(Sampler[int]):
    """The rows of every update: each batch is fetched once per update and micro-batch, as TRL expects."""

    def __init__(self, order: Sequence[int], inputs: int, generations: int, repeats: int) -> None:
        self._order, self._inputs, self._generations, self._repeats = order, inputs, generations, repeats

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self._order), self._inputs):
            batch = self._order[start : start + self._inputs]
            for _ in range(self._repeats):
                for index in batch:
                    yield from [index] * self._generations

    def __len__(self) -> int:
        return len(self._order) * self._generations * self._repeats


class Rollouts(Trainer):  # type: ignore[misc]
    """Mixed in before one of TRL's trainers; `prepare` must be called before `train`."""

    _setting: RolloutSetting

    def prepare(self, setting: RolloutSetting) -> None:
        """Attach the reference, the reward and the checkpoints."""
        self._setting = setting
        # TRL fetches and moves a batch's rows for each of its updates; numbers are quick to fetch.
        self.train_dataset = range(len(setting.prompt_ids))
        self.data_collator = _numbers
        self.beta = setting.config.kl_at(0)
        self.ref_model = None
        if setting.reference is not None:
            reference: Any = setting.reference
            add_fused_lm_head(reference, temperature=1.0)
            self.ref_model = self.accelerator.prepare_model(reference.eval(), evaluation_mode=True)
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="rollouts", initializer=self._enter_helper)
        self._passes: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._step_started = time.monotonic()
        self._summary = (math.nan, math.nan, 0)
        self.stopped = False
        self.last: TrainingStepDone | None = None
        without_printing(self)
        self.add_callback(_Steps(self))

    def close(self) -> None:
        """End the helper thread and take TRL's changes off the models."""
        self._helper.shutdown(wait=True)
        for model in (self._bare(), self._setting.reference):
            if model is not None:
                model.__dict__.pop("forward", None)

    def _bare(self) -> PreTrainedModel:
        model = self.accelerator.unwrap_model(self.model)
        return cast(PreTrainedModel, model.get_base_model() if is_peft_model(model) else model)

    def _enter_helper(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.set_device(self.accelerator.device)

    # rollouts

    def _get_train_sampler(self, dataset: object = None) -> Sampler[int]:
        config, rows = self._setting.config, self.args.generation_batch_size
        repeats = config.updates_per_batch * self.args.steps_per_generation
        return _Order(self._setting.order, rows // config.generations, config.generations, repeats)

    def _generate_and_score_completions(self, inputs: Batch) -> Batch:
        self._step_started = time.monotonic()
        config = self._setting.config
        self.beta = config.kl_at(self.state.global_step // config.updates_per_batch)
        self._randomness = _randomness()
        self._indices = [int(index) for index in inputs["index"]]
        self._texts: Future[list[str]] = Future()
        self._rewards: Future[list[float] | None] = Future()
        self._passes = []
        rows = [{"prompt": ""} for _ in self._indices]  # `_tokenize_prompts` knows the prompts
        scored = self._helper.submit(super()._generate_and_score_completions, rows)
        scored.add_done_callback(self._release)
        failure = self._call_reward()
        try:
            output = cast(Batch, scored.result())
        except _NoRewards:
            self._save_before_failing()
            raise (failure or RewardFailedElsewhere("the reward function raised on another process")) from None
        return self._complete(output)

    def _release(self, scored: Future[Batch]) -> None:
        """Pass an error before the hand-over on to the waiting training thread."""
        if not self._texts.done():
            error = scored.exception()
            self._texts.set_exception(error or RuntimeError("TRL scored a batch without generating it"))

    def _call_reward(self) -> BaseException | None:
        texts = self._texts.result()
        try:
            rewards = list(self._setting.reward(self._indices, texts))
            if len(rewards) != len(texts):
                raise ValueError(f"the reward function returned {len(rewards)} rewards for {len(texts)} rewrites")
            numbers = [math.nan if r is None else float(r) for r in rewards]
            bad = [r for r in rewards if r is not None and not math.isfinite(r)]
            if bad:
                raise ValueError(f"a reward must be a finite number or None, got {bad[0]}")
            self._rewards.set_result(numbers)
            return None
        except BaseException as error:
            self._rewards.set_result(None)
            return error

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, object]]:
        return [list(self._setting.prompt_ids[index]) for index in self._indices], None, {}

    def _generate(self, prompts: list[str]) -> Any:
        generated = super()._generate(prompts)
        texts = self.processing_class.batch_decode(  # as LocalPolicy.sample does
            generated[1], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        self._texts.set_result(texts)
        return generated

    def _calculate_rewards(self, inputs: object, prompts: object, completions: object, ids: object) -> Tensor:
        rewards = self._rewards.result()
        rows = len(self._indices)
        table: Tensor = torch.tensor([rewards or [math.nan] * rows, [float(rewards is None)] * rows])
        table = cast(Tensor, self.accelerator.gather(table.T.contiguous().to(self.accelerator.device)))
        if bool(table[:, 1].any()):
            raise _NoRewards
        self._all_rewards = table[:, 0]
        return table[:, :1]

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if not torch.is_grad_enabled():
            self._passes.append(result[0])
        return result

    def _complete(self, output: Batch) -> Batch:
        """Take the missing rewards out of a scored batch, and note what the step's summary needs."""
        if len(self._passes) == 1:  # TRL skips the policy's own pass where it makes one update per batch
            self._policy_pass(output)
        old, reference = self._passes
        mask = output["completion_mask"]
        rows = len(self._indices)
        first = self.accelerator.process_index * rows
        rewards = self._all_rewards[first : first + rows]
        ratios = self.accelerator.gather(((old - reference) * mask).sum(1))
        missing = self._all_rewards.isnan()
        self._summary = (float(self._all_rewards.nanmean()), float(ratios.mean()), int(missing.sum()))
        scored = ~rewards.isnan()
        output["completion_mask"] = mask * scored[:, None].to(mask.dtype)
        return self._advantages(output, rewards, old, reference)

    def _policy_pass(self, output: Batch) -> None:
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        rows, kept = self.args.per_device_train_batch_size, output["completion_ids"].size(1)
        with torch.no_grad():
            self._get_per_token_logps_and_entropies(self.model, ids, mask, kept, rows)
        self._passes.reverse()

    def _advantages(self, output: Batch, rewards: Tensor, old: Tensor, reference: Tensor) -> Batch:
        """Adapt TRL's batch to what the trainer learns from; missing rows are masked already."""
        raise NotImplementedError

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Note the loss of a micro-batch."""
        loss = cast(Tensor, super().training_step(model, inputs, num_items_in_batch))
        self._losses.append(loss)
        return loss

    def summarise(self, step: int) -> TrainingStepDone:
        """Return what happened in the step that just ended; the same on all processes."""
        config = self._setting.config
        loss = self.accelerator.reduce(torch.stack(self._losses).sum(), "mean") / config.updates_per_batch
        self._losses.clear()
        self._metrics["train"].clear()
        reward, kl, missing = self._summary
        seconds = time.monotonic() - self._step_started
        self.last = TrainingStepDone(step, config.steps, reward, kl, float(loss), missing, seconds)
        return self.last

    # checkpoints

    def _get_output_dir(self, trial: object = None) -> str:
        checkpoints = self._setting.checkpoints
        return str(checkpoints.staging) if checkpoints else str(self.args.output_dir)

    def _save_checkpoint(self, model: object, trial: object = None) -> None:
        checkpoints = self._setting.checkpoints
        if checkpoints is None or checkpoints.has(self.state.global_step):
            return
        if self.accelerator.is_main_process:
            checkpoints.clear_staging()
        self.accelerator.wait_for_everyone()
        Trainer._save_checkpoint(self, model, trial)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            last = asdict(self.last) if self.last else None
            about = {**self._setting.about, "stopped": self.stopped, "last": last}
            checkpoints.commit(self.state.global_step, about)
        self.accelerator.wait_for_everyone()

    def _save_before_failing(self) -> None:
        """Write a checkpoint of the state before this batch, so that a resumed training draws the same rewrites."""
        _restore(self._randomness)
        if self.state.global_step > 0:
            self._save_checkpoint(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained parameters: the adapter's where there is one, and the value head's."""
        if self.accelerator.is_main_process and output_dir is not None:
            model = self.accelerator.unwrap_model(self.model)
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
            save_file(trained, Path(output_dir, WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.load_trained(Path(resume_from_checkpoint))

    @torch.no_grad()
    def load_trained(self, path: Path) -> None:
        """Load what `save_model` wrote."""
        state = load_file(path / WEIGHTS)
        trained = {n: p for n, p in self.accelerator.unwrap_model(self.model).named_parameters() if p.requires_grad}
        if state.keys() != trained.keys():
            raise ValueError(f"the checkpoint {path} holds other parameters than this model trains")
        for name, parameter in trained.items():
            parameter.copy_(state[name])

    def _send_telemetry(self) -> None:
        """Send nothing: TRL reports each training to its makers."""


def _numbers(indices: list[int]) -> Batch:
    return {"index": torch.tensor(indices)}


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Ends a step after its last update: reports it, and says whether to save and to stop."""

    def __init__(self, trainer: Rollouts) -> None:
        self._trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        trainer, setting = self._trainer, self._trainer._setting
        control.should_log = control.should_evaluate = False
        if state.global_step % setting.config.updates_per_batch:
            return control
        step = trainer.summarise(state.global_step // setting.config.updates_per_batch)
        trainer.stopped = agree(trainer, step, setting)
        control.should_training_stop = control.should_training_stop or trainer.stopped
        done = control.should_training_stop or state.global_step >= state.max_steps
        control.should_save = done or step.step % setting.config.save_every == 0
        return control


def agree(trainer: Rollouts, step: TrainingStepDone, setting: RolloutSetting) -> bool:
    """Ask `on_step` on the main process whether to stop, and tell the others."""
    answer = [False]
    if setting.on_step is not None and trainer.accelerator.is_main_process:
        answer = [bool(setting.on_step(step))]
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(answer)
    return answer[0]


class RLOO(Rollouts, RLOOTrainer):  # type: ignore[misc]
    """TRL's RLOO: the sequence's log-ratio is charged in the reward, so that lambda is the paper's."""

    def _advantages(self, output: Batch, rewards: Tensor, old: Tensor, reference: Tensor) -> Batch:
        output["old_logps"] = (old * output["completion_mask"]).sum(1)
        scored = int((~self._all_rewards.isnan()).sum())
        output["scale"] = torch.tensor(len(self._all_rewards) / scored if scored else 0.0, device=old.device)
        return output

    def _compute_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        return cast(Tensor, super()._compute_loss(model, inputs) * inputs["scale"])  # a mean over scored rows


class GRPO(Rollouts, GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPO with its defaults and a KL term: biased on rewrites of several tokens (research/trl.md)."""

    def _advantages(self, output: Batch, rewards: Tensor, old: Tensor, reference: Tensor) -> Batch:
        output["num_items_in_batch"] = self.accelerator.gather(output["completion_mask"].sum()).sum()
        return output


def _randomness() -> tuple[object, ...]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _restore(state: tuple[object, ...]) -> None:
    python, numpy, cpu, cuda = state
    random.setstate(cast(tuple[Any, ...], python))
    np.random.set_state(cast(dict[str, Any], numpy))
    torch.set_rng_state(cast(Tensor, cpu))
    if cuda is not None:
        torch.cuda.set_rng_state(cast(Tensor, cuda))


def without_printing(trainer: Any) -> None:
    """Take off the callback that prints a summary where there is no progress bar."""
    trainer.remove_callback(PrinterCallback)


class OwnRandomness:
    """Leaves the process's random numbers as they were before the training."""

    def __enter__(self) -> None:
        """Note them."""
        self._state = _randomness()

    def __exit__(self, *_: object) -> None:
        """Put them back."""
        _restore(self._state)


def plain_generation(model: PreTrainedModel) -> None:
    """Forget a model's own decoding (Qwen's top-k 20 and repetition penalty): only the policy's draws are right."""
    own = model.generation_config
    tokens = {name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**tokens)
