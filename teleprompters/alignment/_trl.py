"""What we use of TRL and transformers and what their types do not say; the only module here with untyped names."""

from __future__ import annotations

import warnings
from typing import Any

import transformers
import trl
from trl.trainer import utils

# What TRL 1.16 asks transformers for under its old names is nothing that a user could mend.
warnings.filterwarnings("ignore", r".*gradient_checkpointing` is deprecated", FutureWarning)

Trainer: Any = transformers.Trainer
TrainerCallback: Any = transformers.TrainerCallback
GenerationConfig: Any = transformers.GenerationConfig
GRPOTrainer: Any = trl.GRPOTrainer  # type: ignore[attr-defined]
RLOOTrainer: Any = trl.RLOOTrainer  # type: ignore[attr-defined]
GRPOConfig: Any = trl.GRPOConfig  # type: ignore[attr-defined]
RLOOConfig: Any = trl.RLOOConfig  # type: ignore[attr-defined]
add_fused_lm_head: Any = utils.add_fused_lm_head
