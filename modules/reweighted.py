"""The best prompter without training: rewrites of the untrained one, weighted by Lemma 1 when the program runs.

Source: 2501.03486 Lemma 1 (eq. 10); applying it at inference time is ours.
"""

from __future__ import annotations

import contextvars
import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import dspy

from cuesmith.modules.decoding import POLICY
from cuesmith.modules.prompter import Prompter

Reward: TypeAlias = Callable[[dspy.Example, dspy.Prediction], float]
"""r(x, y) of the original inputs and the answer; it gets no labels."""


class Reweighted(dspy.Module):  # type: ignore[misc]
    """A frozen program that answers several rewrites of its input and returns one of the answers, drawn by Lemma 1.

    With n rewrites x' of the untrained prompter rho_sft and R(x, x') the reward of the answer to x', x' is drawn with
    probability proportional to (its share of the n rewrites) * exp(R(x, x') / kl_coefficient). As n grows this is the
    optimum rho* of the regularised objective. A run costs one program run for each distinct rewrite.

    Args:
        prompter: The untrained prompter.
        program: The frozen program.
        field: The input field that is rewritten.
        reward: Judges an answer without a label.
        kl_coefficient: lambda, above 0, in units of the reward: the smaller, the greedier.
        rewrites: n, draws of the prompter a run.
        seed: Seeds all draws; the same input gets the same rewrites.
    """

    def __init__(
        self,
        prompter: Prompter,
        program: dspy.Module,
        field: str,
        reward: Reward,
        *,
        kl_coefficient: float,
        rewrites: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not kl_coefficient > 0:
            raise ValueError(f"kl_coefficient must be above 0, got {kl_coefficient}")
        if rewrites < 1:
            raise ValueError(f"rewrites must be at least 1, got {rewrites}")
        self.prompter = prompter
        self.program = program
        self.field = field
        self.reward = reward
        self.kl_coefficient = kl_coefficient
        self.rewrites = rewrites
        self.seed = seed

    def forward(self, **inputs: object) -> dspy.Prediction:
        """Answer the inputs; what the program or the reward raises is raised, if no rewrite got a reward."""
        text = str(inputs[self.field])
        chance = random.Random(_number(self.seed, text))
        drawn = self.prompter.sample([text], self.rewrites, POLICY, seed=chance.randrange(2**31))[0]
        counts = Counter(rewrite.text.strip() or text for rewrite in drawn)
        example = dspy.Example(**inputs).with_inputs(*inputs)
        answers: list[tuple[int, float, dspy.Prediction]] = []
        failure: Exception | None = None
        for (_, count), result in zip(counts.items(), self._answer_all(list(counts), example), strict=True):
            if isinstance(result, Exception):
                failure = result
            else:
                answers.append((count, *result))
        if not answers:
            assert failure is not None
            raise failure
        best = max(reward for _, reward, _ in answers)
        weights = [count * math.exp((reward - best) / self.kl_coefficient) for count, reward, _ in answers]
        return chance.choices([prediction for *_, prediction in answers], weights)[0]

    def _answer_all(
        self, rewrites: list[str], example: dspy.Example
    ) -> list[tuple[float, dspy.Prediction] | Exception]:
        with ThreadPoolExecutor(len(rewrites), thread_name_prefix="cuesmith-rewrite") as pool:
            futures = [pool.submit(contextvars.copy_context().run, self._answer, text, example) for text in rewrites]
            return [future.result() for future in futures]

    def _answer(self, rewrite: str, example: dspy.Example) -> tuple[float, dspy.Prediction] | Exception:
        try:
            prediction = self.program(**{**example.inputs(), self.field: rewrite})
            return float(self.reward(example, prediction)), prediction
        except Exception as error:
            return error


def _number(seed: int, text: str) -> int:
    content = f"{seed}:{text}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
