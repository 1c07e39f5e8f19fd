"""How a local policy draws rewrites, and what it draws. Free of torch. Source: ours, but for `PAPER`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GREEDY", "PAPER", "POLICY", "Decoding", "Rewrite"]


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: the temperature first, then the `top_k` most likely, of these the `top_p` share.

    Attributes:
        temperature: 1 draws from the policy itself, 0 takes the most likely token (greedy).
        top_p: Least total probability of the tokens that may be drawn, in (0, 1].
        top_k: Most tokens that may be drawn; 0 sets no limit.
        max_new_tokens: Most tokens of a rewrite, its end token included. What has no end by then is cut off.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one is out of range.
        """
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and at least 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {self.top_k}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")


POLICY = Decoding()
"""Draws from the policy itself: the only right decoding for training (top-p makes the draws off-policy)."""

GREEDY = Decoding(temperature=0.0)
"""The most likely token, always."""

PAPER = Decoding(temperature=1.5, top_p=0.6, top_k=20)
"""The decoding of the evaluation in 2501.03486, section "Experimental Evaluations"."""


@dataclass(frozen=True)
class Rewrite:
    """One rewrite of an input.

    Attributes:
        text: The rewrite, as the model wrote it.
        logprob: Log-probability (nats, temperature 1, whole vocabulary) of the tokens that were drawn, the end token
            included; of a rewrite that was cut off, that of its tokens alone. None if the model gives none.
    """

    text: str
    logprob: float | None
