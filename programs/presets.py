"""The models and settings of Align-Pro's experiments, by name, and a toy that needs nothing from outside.

The paper pairs two prompters with two frozen models on three data sets. It gives the learning rate, the reward model
and the decoding; the number of steps, the batch and lambda are not in it, and are ours here. Its text names the second
frozen model as the first one again; Table 1 has Qwen-2.5-7B-Instruct.

Source: 2501.03486, section "Experimental Setup" and Table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cuesmith.modules.decoding import PAPER, Decoding

PROMPTERS: Mapping[str, str] = MappingProxyType(
    {"P1": "microsoft/Phi-3.5-mini-instruct", "P2": "Qwen/Qwen2.5-1.5B-Instruct"}
)
"""The paper's prompters, by the paper's names."""

FROZEN: Mapping[str, str] = MappingProxyType(
    {"F1": "meta-llama/Llama-3.1-8B-Instruct", "F2": "Qwen/Qwen2.5-7B-Instruct"}
)
"""The paper's frozen models, by the paper's names."""

REWARD_MODEL = "weqweasdas/RM-Gemma-2B"
LEARNING_RATE = 1.41e-5


@dataclass(frozen=True)
class Preset:
    """What a study runs with unless its arguments say otherwise.

    Attributes:
        name: The preset's name.
        prompter: Hub name of the prompter; None where the toy makes it.
        frozen: Hub name of the frozen model; None where the toy makes it.
        reward_model: Hub name of the reward model; None where the toy makes it.
        dataset: Key of `cuesmith.programs.tasks.preferences.SOURCES`; None where the toy generates the data.
        learning_rate: Of the policy's training.
        steps: Training steps.
        batch_size: Rows a step.
        generations: Rewrites an input in a batch.
        kl_coefficient: The paper's lambda, in units of reward per nat.
        lora_rank: Rank of the adapters that are trained; None trains all weights.
        prompter_tokens: New tokens of a rewrite, at most.
        response_tokens: New tokens of an answer, at most.
        decoding: How rewrites are drawn in the evaluation.
        train_prompts: Prompts to train on, at most.
    """

    name: str
    prompter: str | None
    frozen: str | None
    reward_model: str | None
    dataset: str | None
    learning_rate: float = LEARNING_RATE
    steps: int = 1000
    batch_size: int = 64
    generations: int = 8
    kl_coefficient: float = 0.1
    lora_rank: int | None = 16
    prompter_tokens: int = 256
    response_tokens: int = 512
    decoding: Decoding = PAPER
    train_prompts: int = 20_000

    @property
    def is_toy(self) -> bool:
        """Whether models and data are made on this machine."""
        return self.prompter is None


def _paper(name: str, prompter: str, frozen: str) -> Preset:
    return Preset(name, PROMPTERS[prompter], FROZEN[frozen], REWARD_MODEL, "ultrafeedback")


TOY = Preset(
    "toy",
    prompter=None,
    frozen=None,
    reward_model=None,
    dataset=None,
    learning_rate=3e-4,
    steps=50,
    batch_size=48,
    lora_rank=None,
    prompter_tokens=16,
    response_tokens=24,
    train_prompts=600,
)
"""Models of some 100,000 weights and a language of some 60 words, from a seed."""

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            TOY,
            _paper("phi3.5-llama8b", "P1", "F1"),
            _paper("qwen1.5b-llama8b", "P2", "F1"),
            _paper("phi3.5-qwen7b", "P1", "F2"),
            _paper("qwen1.5b-qwen7b", "P2", "F2"),
        )
    }
)
"""All presets by name: the toy, and the four pairs of models of the paper's Table 1."""
