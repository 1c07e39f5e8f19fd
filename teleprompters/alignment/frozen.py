"""The run as a prompter's training sees it: rewrites go into a frozen program, rewards of the original inputs come out.

Source: 2501.03486 eq. 9: r(x, y) is always of the original x. No gradient and no logit of the program is used; it may
be anywhere. Ours: rewards are effects of the run, so that they are metered, journalled and never a zero for an outage.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import dspy

from cuesmith.teleprompters.alignment.gains import Sampled
from cuesmith.teleprompters.alignment.training_result import Alignment
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin, digest
from cuesmith.teleprompters.runtime.effects import effects_of
from cuesmith.teleprompters.runtime.events import Event
from cuesmith.teleprompters.runtime.ledger import Usage
from cuesmith.teleprompters.runtime.outcomes import Outcome, value
from cuesmith.teleprompters.runtime.run import Run

T = TypeVar("T")


class Frozen:
    """Rewards rewrites of the examples' inputs, and is what else of the run a training needs.

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
        self._effects, self._baseline = effects_of(run), run.baseline
        self._examples = list(examples)
        self._field = field
        self._responses = responses
        self._loop = asyncio.get_running_loop()

    async def rewards(
        self, rows: Sequence[int], rewrites: Sequence[str], answers: int | None = None
    ) -> list[tuple[float, ...]]:
        """Return the rewards of each row, less those that the provider or the metric failed.

        What was rewarded before is not run again. An empty rewrite stands for the input itself.

        Args:
            rows: Index of each row's input.
            rewrites: What it was rewritten to.
            answers: Answers a rewrite; `responses` by default.

        Raises:
            RunStopped: If a cap is reached, or the provider fails for good.
        """
        self._effects.check_open()
        tasks = [
            [self._reward(row, rewrite.strip() or self.texts[row], draw) for draw in range(answers or self._responses)]
            for row, rewrite in zip(rows, rewrites, strict=True)
        ]
        await self._effects.settle([task for each in tasks for task in each])
        return [tuple(v for task in each if (v := value(task.result())) is not None) for each in tasks]

    def _reward(self, row: int, text: str, draw: int) -> asyncio.Future[Outcome]:
        frozen, example, rewritten = self._baseline, self._examples[row], {self._field: text}
        key = f"reward:{self._effects.key(frozen, example)}:{digest(rewritten)}:{draw}"
        return self._effects.outcome(frozen, example, key=key, rewritten=rewritten, draw=draw, judge="reward")

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

    def affords(self, runs: int) -> bool:
        """Whether the budget's calls and tokens last for so many more program runs, at what runs have cost so far."""
        each = list(self._effects.costs.values())
        total, n = sum(each, Usage()), max(1, len(each))
        mean = Usage(
            calls=math.ceil(total.calls / n),
            input_tokens=math.ceil(total.input_tokens / n),
            output_tokens=math.ceil(total.output_tokens / n),
            usd=(total.usd or 0.0) / n,
        )
        return self._effects.gate.ledger.affords(mean, runs)

    def behind(self, fingerprint: str, front: Callable[[dspy.Module], dspy.Module], move: str) -> Candidate:
        """Return the frozen program behind a prompter.

        Args:
            fingerprint: Content hash of the prompter.
            front: Puts it in front of a program: returns a new module that holds the given one.
            move: What made it.
        """
        self._effects.scorer.fronts[fingerprint] = front
        return self._baseline.behind(fingerprint, Origin(move, (self._baseline.id,)))

    def folder(self, name: str) -> Path | None:
        """Return where the run keeps weights under that name; None if it keeps nothing."""
        return None if self._effects.directory is None else self._effects.directory / name

    async def apart(self, work: Callable[[], T]) -> T:
        """Do what has checkpoints of its own in a thread."""
        return await asyncio.to_thread(work)

    def keep(self, alignment: Alignment) -> None:
        """Leave what the training came to for the compilation (`alignment_of`)."""
        self._effects.extras["alignment"] = alignment

    def tell(self, event: Event) -> None:
        """Emit an event, from another thread."""
        self._loop.call_soon_threadsafe(self._effects.stream.emit, event)

    def note(self, text: str) -> None:
        """Note how the training went, from another thread."""
        self._loop.call_soon_threadsafe(self._effects.note, text, "training")
