"""What Align-Pro does with prompters: make them ready, sample and reward their rewrites, train them.

Source: 2501.03486 sections 4 and 5; the order of things and the early end are ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeAlias

import dspy

from cuesmith.modules.decoding import POLICY, Decoding
from cuesmith.modules.policy import LocalPolicy, require_train
from cuesmith.modules.prompter import Prompter
from cuesmith.signatures.rewriting import RewriteInput
from cuesmith.teleprompters.alignment.frozen import Frozen
from cuesmith.teleprompters.alignment.training import Training, TrainingStep, train, warm_start
from cuesmith.teleprompters.alignment.yardstick import PolicyKL, Sampled, policy_kl
from cuesmith.teleprompters.runtime.events import TrainingStepDone
from cuesmith.teleprompters.runtime.outcomes import MetricError
from cuesmith.teleprompters.runtime.run import Run

PrompterModel: TypeAlias = Prompter | LocalPolicy | dspy.BaseLM | str | Path
"""A prompter, or what one can be made of: a local model, a folder or name to load one from, a language model."""

WINDOW = 20
"""Steps that are averaged to see whether anything is left to gain. Ours."""


def prompter_of(model: PrompterModel, decoding: Decoding, *, local: bool) -> Prompter:
    """Return the prompter that a user meant.

    Args:
        model: A prompter, or its model.
        decoding: How it decodes in the compiled program; a given `Prompter` keeps its own.
        local: Whether it must be a local model, to be trained.

    Raises:
        ImportError: If a local model is asked for without `cuesmith[train]`.
        TypeError: If it is something else.
        ValueError: If a language model behind an API is to be trained.
    """
    if local or isinstance(model, Path):
        require_train()
        if isinstance(model, str | Path):
            model = LocalPolicy.from_pretrained(model)
    prompter = model if isinstance(model, Prompter) else Prompter(model, decoding=decoding)
    if local and prompter.policy is None:
        raise ValueError(
            "mode='train' trains a local prompter: give a LocalPolicy, or the folder or name of a causal language "
            "model for transformers; a model behind an API can be used with mode='weights'"
        )
    return prompter


async def warm_started(
    prompter: Prompter, pairs: Sequence[tuple[str, str]], steps: int, seed: int, directory: Path | None
) -> Prompter:
    """Return rho_sft: the prompter fine-tuned on the pairs, if any. A resumed run finds it in its directory."""
    if not pairs:
        return prompter
    assert prompter.policy is not None
    kept = None if directory is None else directory / "untrained-prompter"
    if kept is not None and (kept / "done").exists():
        policy = LocalPolicy.from_pretrained(kept)
    else:
        policy = await asyncio.to_thread(warm_start, prompter.policy, pairs, steps=steps, seed=seed)
        if kept is not None:
            policy.save_pretrained(kept)
            (kept / "done").touch()
    return Prompter(policy, decoding=prompter.decoding)


async def sampled(prompter: Prompter, frozen: Frozen, run: Run, rows: Sequence[int], n: int, seed: int, longest: int
                  ) -> list[list[Sampled]]:
    """Draw rewrites of inputs from a prompter itself and reward them.

    Args:
        prompter: What to sample.
        frozen: Gives the rewards.
        run: For a prompter behind an API.
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
        drawn = await asyncio.to_thread(prompter.sample, texts, n, replace(POLICY, max_new_tokens=longest), seed=seed)
        rewrites = [[rewrite.text for rewrite in draws] for draws in drawn]
    return await frozen.samples(rows, rewrites)


async def kl_of(prompter: Prompter, untrained: Prompter, texts: Sequence[str], draws: Sequence[Sequence[Sampled]],
                longest: int) -> PolicyKL:
    """Estimate KL(rho || rho_sft) from draws of rho.

    Args:
        prompter: rho.
        untrained: rho_sft.
        texts: The inputs.
        draws: Of each input, rewrites drawn from rho.
        longest: Tokens at which they were cut off.
    """
    flat_texts = [text for text, each in zip(texts, draws, strict=True) for _ in each]
    flat = [draw.text for each in draws for draw in each]

    def logprobs(policy: LocalPolicy) -> list[list[float | None]]:
        found = iter(policy.logprobs(flat_texts, flat, max_new_tokens=longest))
        return [[next(found) for _ in each] for each in draws]

    assert prompter.policy is not None and untrained.policy is not None
    ours = await asyncio.to_thread(logprobs, prompter.policy)
    return policy_kl(ours, await asyncio.to_thread(logprobs, untrained.policy))


async def check_label_free(run: Run) -> None:
    """Refuse a metric that fails without the example's labels.

    Raises:
        ValueError: If it does.
    """
    example = run.train[0]
    labels = {name: v for name, v in example.toDict().items() if name not in example.inputs()}
    outcome = await run.judge(example.inputs(), labels)
    if isinstance(outcome, MetricError):
        raise ValueError(
            "mode='weights' judges rewrites whenever the program runs, where there are no labels, but without them "
            f"the metric fails ({outcome.reason}): use a reward model or a judge, or mode='train'"
        )


async def trained(
    untrained: Prompter, frozen: Frozen, run: Run, training: Training, goal: float | None, spare: int
) -> tuple[Prompter, tuple[TrainingStepDone, ...]]:
    """Train the prompter, and tell the run of each step.

    It ends early where its objective has come up to `goal`, and where the budget would not last for what follows.

    Args:
        untrained: rho_sft.
        frozen: Gives the rewards.
        run: The run.
        training: How.
        goal: The best value of the objective that any prompter can reach; None if it is not known.
        spare: Program runs that must be left for what follows.

    Returns:
        The trained prompter and its learning curve.

    Raises:
        RunStopped: If the run was stopped; a resumed run goes on from the last checkpoint.
    """
    directory = None if run.directory is None else run.directory / "prompter"
    curve = _Curve(None if directory is None else directory / "curve.jsonl")

    def on_step(step: TrainingStep) -> bool:
        event = TrainingStepDone(
            step.step, training.steps, step.reward, step.kl, step.loss, step.missing, step.seconds
        )
        curve.add(event)
        frozen.on_loop(lambda: run.tell(event))
        if goal is not None and curve.has_reached(goal, training.kl_coefficient):
            left = f"Training ended after {step.step} steps: nothing is left to gain."
            frozen.on_loop(lambda: run.note(left, "training"))
            return True
        if not run.affords(training.batch_size + spare):
            kept = f"Training ended after {step.step} steps: the rest of the budget is kept."
            frozen.on_loop(lambda: run.note(kept, "training"))
            return True
        return False

    assert untrained.policy is not None
    policy = await asyncio.to_thread(
        train, untrained.policy, frozen.texts, frozen.blocking, training, directory=directory, on_step=on_step
    )
    return Prompter(policy, decoding=untrained.decoding), tuple(curve.steps)


class _Curve:
    """The learning curve, kept beside the checkpoints."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        rows = file.read_text().splitlines() if file is not None and file.exists() else []
        self.steps: list[TrainingStepDone] = []
        for row in rows:
            with contextlib.suppress(ValueError):  # a line that a crash cut off
                self._note(TrainingStepDone(**json.loads(row)))

    def _note(self, event: TrainingStepDone) -> None:
        self.steps = [step for step in self.steps if step.step < event.step] + [event]

    def add(self, event: TrainingStepDone) -> None:
        """Add a step; one that is repeated after a kill replaces its first time."""
        self._note(event)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as lines:
                lines.write("\n" + json.dumps(asdict(event)))

    def has_reached(self, goal: float, kl_coefficient: float) -> bool:
        """Whether the lower end of a 95 % interval of the last steps' mean objective is at the goal."""
        last = [s.reward - kl_coefficient * s.kl for s in self.steps[-WINDOW:]]
        if len(last) < WINDOW or any(map(math.isnan, last)):
            return False
        mean = math.fsum(last) / WINDOW
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in last) / (WINDOW - 1) / WINDOW)
        return mean - 2 * spread >= goal

