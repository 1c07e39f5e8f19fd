"""Language models that run in this process: their draws are pure functions of the request, and they cost nothing.

dspy keeps `rollout_id` out of what an engine sees, and asks an engine for one answer at a time; providers never
see the number of the draw that a compiler asks for. A model in this process reads all three here, so that several
draws of one request differ and each is reproducible at any concurrency.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self

import dspy

from cuesmith.modules.sampling import draw


@dataclass(slots=True)
class _Call:
    """What one dspy call says besides its requests: its rollout id, and how many answers it has had."""

    rollout: int | None
    answers: int = 0


_call: ContextVar[_Call | None] = ContextVar("cuesmith_in_process_call", default=None)


@contextmanager
def calling(rollout: int | None) -> Iterator[None]:
    """Let `draw_marks` within tell the call's draws apart by this rollout id."""
    token = _call.set(_Call(rollout))
    try:
        yield
    finally:
        _call.reset(token)


def draw_marks() -> tuple[int | None, int, int | None]:
    """Return what tells this request from others of the same words: rollout id, place among `n` answers, draw."""
    call = _call.get()
    if call is None:
        return None, 0, draw.get()
    call.answers += 1
    return call.rollout, call.answers - 1, draw.get()


def hashed_seed(content: object, *, bits: int = 64) -> int:
    """Return a seed that is a function of the content's `repr` alone."""
    data = repr(content).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") % (1 << bits)


class InProcessLM(dspy.LM):  # type: ignore[misc, unused-ignore]
    """A `dspy.LM` whose engine computes in this process: offline, and free."""

    free_because = "the model runs in this process"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `dspy.LM`."""
        with calling(kwargs.get("rollout_id", self.kwargs.get("rollout_id"))):
            return super().__call__(*args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """As `dspy.LM`."""
        with calling(kwargs.get("rollout_id", self.kwargs.get("rollout_id"))):
            return await super().acall(*args, **kwargs)

    def restored(self, state: dict[str, Any]) -> Self:
        """Return itself with the settings of a saved one, less its class, its engine and how it was made.

        Args:
            state: What `dump_state` said, without what the constructor has been given; it is changed.
        """
        lm: Any = self
        lm.num_retries = state.pop("num_retries", lm.num_retries)
        for name in ("_lm_class", "model", "model_type", "async_engine", "finetuning_model", "launch_kwargs",
                     "train_kwargs", "use_developer_role"):  # fmt: skip
            state.pop(name, None)
        lm.kwargs = {**lm.kwargs, **state}
        return self

    def update_history(self, entry: dict[str, Any]) -> None:
        """Record a call, at the price of 0 USD that dspy cannot know."""
        entry |= {"cost": 0.0, "cost_details": {"kind": "exact", "reason": self.free_because}}
        super().update_history(entry)
