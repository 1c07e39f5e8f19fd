"""Proximal policy optimisation (1707.06347) on TRL's GRPOTrainer, which TRL 1.16 itself no longer has.

Kept from the parent: sampling, generation, the reference, accelerate and checkpoints. Overridden: the advantages and
the loss. The reward of a token is -lambda (log rho - log rho_sft), plus r(x, y) at the last one, so that the sequence
pays for its whole log-ratio and the fixed point is the closed form of Lemma 1 (2501.03486).
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from cuesmith.teleprompters.alignment._trl import GRPOTrainer, add_fused_lm_head
from cuesmith.teleprompters.alignment.rollouts import Batch, Rollouts, RolloutSetting


def token_rewards(rewards: Tensor, old: Tensor, reference: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Return each token's reward (rows, tokens): the KL charge, and the row's reward at its last token.

    Args:
        rewards: One per row, NaN where it is missing; such rows are masked and get zeros.
        old: Log-probabilities of the tokens under the policy that drew them, (rows, tokens).
        reference: The same under rho_sft.
        mask: 1 at tokens that count, (rows, tokens).
        kl_coefficient: The paper's lambda.
    """
    per_token = -kl_coefficient * (old - reference) * mask
    last = (mask.sum(1, keepdim=True) - 1).clamp(min=0).long()
    ends = torch.zeros_like(per_token).scatter_(1, last, 1.0) * mask
    return per_token + ends * torch.nan_to_num(rewards, nan=0.0)[:, None]


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gae_lambda: float) -> Tensor:
    """Return generalised advantage estimates (1506.02438) with gamma 1, (rows, tokens); tokens stand to the left.

    Args:
        rewards: Each token's reward, (rows, tokens).
        values: The value before each token, (rows, tokens).
        mask: 1 at tokens that count.
        gae_lambda: 1: the return minus the value; 0: one-step differences.
    """
    values = values * mask
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    following = torch.zeros_like(running)
    for t in reversed(range(values.size(1))):
        running = (rewards[:, t] + following - values[:, t] + gae_lambda * running) * mask[:, t]
        advantages[:, t] = running
        following = values[:, t]
    return advantages


def clipped_losses(
    ratio: Tensor, advantages: Tensor, values: Tensor, old_values: Tensor, returns: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Return the clipped policy and value losses of each token, (rows, tokens) (1707.06347)."""
    policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    near = old_values + (values - old_values).clamp(-clip, clip)
    value = 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)
    return policy, value


class PPO(Rollouts, GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer's rollouts, a learned value head, GAE and clipped losses."""

    def prepare(self, setting: RolloutSetting) -> None:
        """Also attach the value head, so that the optimizer, the checkpoints and DDP know it."""
        super().prepare(setting)
        base = self._bare()
        head = nn.Linear(base.config.get_text_config().hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.model.value_head = head.to(self.accelerator.device)
        self._values: list[Tensor] = []
        self._route_values(base)

    def close(self) -> None:
        """Also take the value head off the model."""
        super().close()
        del self.model.value_head

    def _route_values(self, base: PreTrainedModel) -> None:
        """Compute the values inside TRL's fused forward, from the hidden states it reads the log-probabilities from."""
        base.__dict__.pop("forward", None)
        add_fused_lm_head(base, temperature=1.0)  # without the entropies, which nothing here reads
        fused, head = base.forward, self.model.value_head

        def note(_module: nn.Module, _args: object, output: Any) -> None:
            self._values.append(head(output.last_hidden_state[:, :-1].float()).squeeze(-1))

        @functools.wraps(fused)
        def forward(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
            if not fused_lm_head:
                return fused(*args, **kwargs)
            hook = base.base_model.register_forward_hook(note)
            try:
                return fused(*args, fused_lm_head=True, **kwargs)
            finally:
                hook.remove()

        base.forward = forward

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
        batch_size: int | None = None, compute_entropy: bool = False, **kwargs: Any,
    ) -> Any:  # fmt: skip
        self._values.clear()
        result = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, batch_size, False, **kwargs
        )
        values = torch.cat(self._values)[:, -logits_to_keep:] if self._values else None
        self._values.clear()
        if torch.is_grad_enabled():
            self._new_values = values
        elif values is not None and not _adapter_is_off(model):  # the reference may be the same model
            self._old_values = values
        return result

    def _advantages(self, output: Batch, rewards: Tensor, old: Tensor, reference: Tensor) -> Batch:
        mask = output["completion_mask"].float()
        charged = token_rewards(rewards, old, reference, mask, self.beta)
        advantages = generalised_advantages(charged, self._old_values, mask, self._setting.config.gae_lambda)
        values = self._old_values * mask
        output["returns"], output["old_values"], output["old_logps"] = advantages + values, values, old
        output["advantages"], tokens = self._whitened(advantages, mask)
        output["normaliser"] = (tokens / self.accelerator.num_processes).clamp(min=1.0)
        return output

    def _whitened(self, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the advantages with mean 0 and variance 1 over all processes' tokens, and the number of tokens."""
        sums = torch.stack([mask.sum(), (advantages * mask).sum()])
        tokens, total = self.accelerator.reduce(sums, "sum")
        centred = (advantages - total / tokens.clamp(min=1.0)) * mask
        square = self.accelerator.reduce((centred**2).sum(), "sum")
        return centred * torch.rsqrt(square / tokens.clamp(min=1.0) + 1e-8), tokens

    def _compute_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        mask = inputs["completion_mask"]
        # Rows without a reward stay visible to the model: only their loss is masked.
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        seen = torch.cat([inputs["prompt_mask"], mask], 1)
        new, _, _ = self._get_per_token_logps_and_entropies(model, ids, seen, mask.size(1))
        ratio = torch.exp((new - inputs["old_logps"]) * mask)
        policy, value = clipped_losses(
            ratio, inputs["advantages"], cast(Tensor, self._new_values), inputs["old_values"], inputs["returns"],
            self._setting.config.clip,
        )  # fmt: skip
        losses = (policy + self._setting.config.value_coefficient * value) * mask
        return cast(Tensor, losses.sum() / inputs["normaliser"])


def _adapter_is_off(model: nn.Module) -> bool:
    if not is_peft_model(model):
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) and module.disable_adapters for module in model.modules())
