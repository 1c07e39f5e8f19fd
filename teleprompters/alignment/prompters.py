"""What Align-Pro does with prompters: sample and reward their rewrites, train them.

Source: 2501.03486 sections 4 and 5; the order of things and the early end are ours.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from pydantic import TypeAdapter

from cuesmith.modules.decoding import POLICY
from cuesmith.modules.prompter import Prompter
from cuesmith.signatures.rewriting import RewriteInput
from cuesmith.teleprompters.alignment.checkpoints import LearningCurve
from cuesmith.teleprompters.alignment.frozen import Frozen
from cuesmith.teleprompters.alignment.gains import PolicyKL, Sampled
from cuesmith.teleprompters.alignment.training import Training, train
from cuesmith.teleprompters.alignment.training_result import TrainingStepDone
from cuesmith.teleprompters.alignment.yardstick import policy_kl
from cuesmith.teleprompters.runtime.candidate import Json, digest
from cuesmith.teleprompters.runtime.outcomes import MetricError
from cuesmith.teleprompters.runtime.run import Run

TEXTS = TypeAdapter(list[list[str]])
LOGPROBS = TypeAdapter(list[float | None])

WINDOW = 20
"""Steps that are averaged to see whether anything is left to gain. Ours."""


async def sampled(
    prompter: Prompter, frozen: Frozen, run: Run, rows: Sequence[int], n: int, seed: int, longest: int
) -> list[list[Sampled]]:
    """Draw rewrites of inputs from a prompter itself and reward them.

    Args:
        prompter: What to sample.
        frozen: Gives the rewards.
        run: Records the draws.
        rows: Which of the inputs.
        n: Draws an input.
        seed: Of the draws.
        longest: Tokens at which a local prompter's rewrite is cut off: where training cuts it off.
    """
    texts = [frozen.texts[row] for row in rows]
    if prompter.policy is None:
        asked = await asyncio.gather(*(run.ask(RewriteInput, {"text": text}, n=n) for text in texts))
        rewrites = [[str(reply.rewritten) for reply in replies] for replies in asked]
    else:

        def draw() -> Json:
            drawn = prompter.sample(texts, n, replace(POLICY, max_new_tokens=longest), seed=seed)
            return [[rewrite.text for rewrite in draws] for draws in drawn]

        key = digest(prompter.fingerprint, texts, n, seed, longest)
        rewrites = TEXTS.validate_python(await run.effect(f"rewrites:{key}", draw))
    return await frozen.samples(rows, rewrites)


async def kl_of(
    prompter: Prompter,
    untrained: Prompter,
    run: Run,
    texts: Sequence[str],
    draws: Sequence[Sequence[Sampled]],
    longest: int,
) -> PolicyKL:
    """Estimate KL(rho || rho_sft) from draws of rho.

    Args:
        prompter: rho.
        untrained: rho_sft.
        run: Records the log-probabilities.
        texts: The inputs.
        draws: Of each input, rewrites drawn from rho.
        longest: Tokens at which they were cut off.
    """
    flat_texts = [text for text, each in zip(texts, draws, strict=True) for _ in each]
    flat = [draw.text for each in draws for draw in each]

    async def logprobs(each: Prompter) -> list[list[float | None]]:
        policy = each.policy
        assert policy is not None
        key = digest(each.fingerprint, flat_texts, flat, longest)
        found = await run.effect(
            f"logprobs:{key}", lambda: list(policy.logprobs(flat_texts, flat, max_new_tokens=longest))
        )
        values = iter(LOGPROBS.validate_python(found))
        return [[next(values) for _ in row] for row in draws]

    return policy_kl(await logprobs(prompter), await logprobs(untrained))


async def check_label_free(run: Run) -> None:
    """Refuse a metric that fails without the example's labels.

    Raises:
        ValueError: If it does.
    """
    example = run.train[0]
    labels = {name: v for name, v in example.items() if name not in example.inputs()}
    outcome = await run.judge(example.inputs(), labels)
    if isinstance(outcome, MetricError):
        raise ValueError(
            "mode='weights' judges rewrites whenever the program runs, where there are no labels, but without them "
            f"the metric fails ({outcome.reason}): use a reward model or a judge, or mode='train'"
        )


async def trained(
    untrained: Prompter, frozen: Frozen, training: Training, goal: float | None, spare: int
) -> tuple[Prompter, tuple[TrainingStepDone, ...]]:
    """Train the prompter, and tell the run of each step.

    It ends early where its objective has come up to `goal`, and where the budget would not last for what follows.

    Args:
        untrained: rho_sft.
        frozen: Gives the rewards.
        training: How.
        goal: The best value of the objective that any prompter can reach; None if it is not known.
        spare: Program runs that must be left for what follows.

    Returns:
        The trained prompter and its learning curve.

    Raises:
        RunStopped: If the run was stopped; a resumed run goes on from the last checkpoint.
    """
    directory = frozen.folder("prompter")
    curve = LearningCurve(directory)

    def on_step(step: TrainingStepDone) -> bool:
        curve.add(step)
        frozen.tell(step)
        if goal is not None and _has_reached(goal, curve.steps, training.kl_coefficient):
            frozen.note(f"Training ended after {step.step} steps: nothing is left to gain.")
            return True
        if not frozen.affords(training.batch_size + spare):
            frozen.note(f"Training ended after {step.step} steps: the rest of the budget is kept.")
            return True
        return False

    given = untrained.policy
    assert given is not None
    policy = await frozen.apart(
        lambda: train(given, frozen.texts, frozen.blocking, training, directory=directory, on_step=on_step)
    )
    return Prompter(policy, decoding=untrained.decoding), tuple(curve.steps)


def _has_reached(goal: float, steps: Sequence[TrainingStepDone], kl_coefficient: float) -> bool:
    """Whether the lower end of a 95 % interval of the last steps' mean objective is at the goal."""
    last = [s.reward - kl_coefficient * s.kl for s in steps[-WINDOW:]]
    if len(last) < WINDOW or any(map(math.isnan, last)):
        return False
    mean = math.fsum(last) / WINDOW
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in last) / (WINDOW - 1) / WINDOW)
    return mean - 2 * spread >= goal
