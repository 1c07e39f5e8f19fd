"""The frozen program as a prompter's training sees it: rewrites go in, rewards of the original inputs come out.

Source: 2501.03486 eq. 9: r(x, y) is always of the original x. No gradient and no logit of the program is used; it may
be anywhere. Ours: rewards are effects of the run, so that they are metered, journalled and never a zero for an outage.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

import dspy

from cuesmith.teleprompters.alignment.yardstick import Sampled
from cuesmith.teleprompters.runtime.run import Run


class Frozen:
    """Rewards rewrites of the examples' inputs.

    Made and used on the run's event loop.

    Args:
        run: The run; its baseline is the frozen program.
        examples: Whose inputs are rewritten.
        field: The input that is rewritten.
        responses: Answers a rewrite, of which the mean reward is taken.

    Attributes:
        texts: The inputs x, in the examples' order.
        deterministic: Whether the program answers the same rewrite always alike: all its LMs are at temperature 0.
    """

    def __init__(self, run: Run, examples: Sequence[dspy.Example], field: str, responses: int) -> None:
        self.texts = [str(example[field]) for example in examples]
        lms = [predictor.lm or dspy.settings.lm for predictor in run.predictors.values()]
        self.deterministic = all(getattr(lm, "kwargs", {}).get("temperature") == 0 for lm in lms)
        self._run = run
        self._examples = list(examples)
        self._field = field
        self._responses = responses
        self._loop = asyncio.get_running_loop()

    async def rewards(
        self, rows: Sequence[int], rewrites: Sequence[str], answers: int | None = None
    ) -> list[tuple[float, ...]]:
        """Return the rewards of each row; an empty rewrite stands for the input itself.

        Args:
            rows: Index of each row's input.
            rewrites: What it was rewritten to.
            answers: Answers a rewrite; `responses` by default.

        Raises:
            RunStopped: If a cap is reached, or the provider fails for good.
        """
        pairs = [
            (self._examples[row], {self._field: rewrite.strip() or self.texts[row]})
            for row, rewrite in zip(rows, rewrites, strict=True)
        ]
        return await self._run.reward(self._run.baseline, pairs, draws=answers or self._responses)

    def blocking(self, rows: Sequence[int], rewrites: Sequence[str]) -> list[float | None]:
        """Return the mean reward of each row, None without any: what a trainer needs, from its own thread."""
        found = asyncio.run_coroutine_threadsafe(self.rewards(rows, rewrites), self._loop).result()
        return [math.fsum(values) / len(values) if values else None for values in found]

    async def samples(self, rows: Sequence[int], draws: Sequence[Sequence[str]]) -> list[list[Sampled]]:
        """Reward several rewrites of each input, for the yardstick.

        Where the program samples, each gets two answers at least: one cannot tell noise from spread.

        Args:
            rows: Which inputs.
            draws: For each of them, its rewrites.
        """
        answers = self._responses if self.deterministic else max(2, self._responses)
        each = [row for row, texts in zip(rows, draws, strict=True) for _ in texts]
        flat = await self.rewards(each, [text for texts in draws for text in texts], answers)
        values = iter(flat)
        return [[Sampled(text, next(values)) for text in texts] for texts in draws]

    def on_loop(self, call: Callable[[], None]) -> None:
        """Run `call` on the run's event loop, from another thread."""
        self._loop.call_soon_threadsafe(call)
