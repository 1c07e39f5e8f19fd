"""Drawing by weight, and the number of the draw that an in-process model is asked for.

Distinct draws of one request differ only in their number. Providers never see it: dspy keeps `rollout_id`
out of the request. A model that runs in this process (the embedded one, the simulated optimizer) reads it
here, so that several draws differ and each is reproducible at any concurrency.
"""

import random
from collections.abc import Sequence
from contextvars import ContextVar

DRAWS_PER_ASK = 1024
"""Numbers that one request has for its draws: `draw // DRAWS_PER_ASK` tells requests apart, the rest draws."""

draw: ContextVar[int | None] = ContextVar("cuesmith_draw", default=None)
"""The number of the draw that is under way; None outside of one."""


def weighted_order(rng: random.Random, weights: Sequence[float]) -> list[int]:
    """Return all positions in random order, heavy ones rather first: any beginning is a sample without replacement.

    Source: Efraimidis and Spirakis 2006 ("Weighted random sampling with a reservoir").
    """
    keys = [rng.random() ** (1.0 / weight) for weight in weights]
    return sorted(range(len(keys)), key=lambda i: -keys[i])
