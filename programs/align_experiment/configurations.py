"""The four configurations of the study, trained and evaluated on the same prompts.

1. The frozen model alone: no prompter.
2. The untrained prompter before it: the control that the paper lacks. What it gains is no merit of training.
3. Align-Pro: the trained prompter before it.
4. The RLHF oracle: the frozen model itself, trained by the same trainer on the same reward. Only where its weights
   are here.

The reward is always of the original prompt. A response that an outage swallowed is missing, and so is its reward.

Source: 2501.03486, section "Experimental Evaluations"; the second configuration is ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import dspy

from cuesmith.modules.decoding import PAPER, Decoding
from cuesmith.modules.judges import PairwiseJudge
from cuesmith.modules.policy import LocalPolicy
from cuesmith.programs.align_experiment.measures import Verdict
from cuesmith.teleprompters.alignment.training import Training, train
from cuesmith.teleprompters.alignment.training_result import TrainingStepDone
from cuesmith.teleprompters.runtime.score_program import score_program

ALONE, UNTRAINED, ALIGN_PRO, ORACLE = "frozen alone", "untrained prompter", "Align-Pro", "RLHF oracle"

Reward: TypeAlias = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(prompts, responses) -> rewards; a `cuesmith.modules.judges.RewardModel` is one."""


Answer: TypeAlias = Callable[[Sequence[str], int], list[str | None]]
"""(questions, seed) -> the answer to each, None where there was none to be had: a frozen model."""


def local(policy: LocalPolicy, decoding: Decoding) -> Answer:
    """Return a local model as the frozen one.

    Args:
        policy: The model.
        decoding: How its answers are drawn.
    """
    return lambda questions, seed: [draws[0].text for draws in policy.sample(questions, 1, decoding, seed=seed)]


def remote(lm: dspy.BaseLM) -> Answer:
    """Return a dspy language model as the frozen one: it reads the question and nothing else, with its own settings.

    Another seed makes other draws of the same question. What it returns raises `RunStopped` if the provider refuses
    calls for good.

    Args:
        lm: The model.
    """

    def answer(questions: Sequence[str], seed: int) -> list[str | None]:
        found: dict[int, str] = {}

        def keep(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
            found[example.number] = str(prediction.response)
            return 1.0

        examples = [dspy.Example(question=q, number=n).with_inputs("question") for n, q in enumerate(questions)]
        score_program(_Ask(), examples, keep, lm=lm.copy(rollout_id=seed) if seed else lm)
        return [found.get(number) for number in range(len(questions))]

    return answer


class _Ask(dspy.Module):  # type: ignore[misc]
    """Hands the question to the configured model as it is."""

    def forward(self, question: str) -> dspy.Prediction:
        reply = dspy.settings.lm(question)[0]
        return dspy.Prediction(response=reply if isinstance(reply, str) else reply["text"])


@dataclass(frozen=True)
class StudyParts:
    """What a study is made of.

    Attributes:
        prompter: The untrained prompter.
        frozen: The frozen model.
        reward: Rewards answers to the original prompts.
        train: Prompts to train on.
        test: Prompts to evaluate on; none of them is in `train`.
        judge: Language model that compares answers; None leaves it to the reward.
    """

    prompter: LocalPolicy
    frozen: LocalPolicy | dspy.BaseLM
    reward: Reward
    train: tuple[str, ...] = field(repr=False)
    test: tuple[str, ...] = field(repr=False)
    judge: dspy.BaseLM | None = None

    def __post_init__(self) -> None:
        """Check the prompts.

        Raises:
            ValueError: If there are none, or a test prompt is trained on.
        """
        if not self.train or not self.test:
            raise ValueError(f"prompts are needed: {len(self.train)} to train on, {len(self.test)} to test on")
        if shared := set(self.train) & set(self.test):
            raise ValueError(f"{len(shared)} test prompts are trained on, such as {min(shared)!r:.80}")


@dataclass(frozen=True)
class StudyPlan:
    """How a study runs.

    Attributes:
        prompter_training: Of the prompter.
        oracle_training: Of the frozen model itself.
        prompter_decoding: How rewrites are drawn in the evaluation; training draws from the policy itself.
        response_decoding: How a local model's answers are drawn, in the evaluation and for the prompter's rewards.
        seed: Of the draws.
        directory: For checkpoints; None keeps none.
    """

    prompter_training: Training
    oracle_training: Training
    prompter_decoding: Decoding = PAPER
    response_decoding: Decoding = PAPER
    seed: int = 0
    directory: Path | None = None


@dataclass(frozen=True)
class Evaluated:
    """One configuration on the test prompts.

    Attributes:
        name: One of `ALONE`, `UNTRAINED`, `ALIGN_PRO`, `ORACLE`.
        questions: What the model was asked, one a prompt.
        responses: Its answers; None where it gave none.
        rewards: Of the answers, for the original prompts; None where there is none.
        verdicts: Of the judge, against the frozen model alone; None without a judge.
        inconsistent: Pairs on which the judge contradicted itself when the order was changed; counted as ties.
        curve: The training of it, step by step.
    """

    name: str
    questions: tuple[str, ...] = field(repr=False)
    responses: tuple[str | None, ...] = field(repr=False)
    rewards: tuple[float | None, ...] = field(repr=False)
    verdicts: tuple[Verdict | None, ...] | None = field(default=None, repr=False)
    inconsistent: int = 0
    curve: tuple[TrainingStepDone, ...] = field(default=(), repr=False)

    @property
    def lengths(self) -> list[float | None]:
        """Characters of each answer."""
        return [None if response is None else float(len(response)) for response in self.responses]


@dataclass(frozen=True)
class AlignStudy:
    """What a study found.

    Attributes:
        configurations: By name, in the order in which they are shown.
        prompter: The trained prompter.
        oracle: The trained frozen model; None where its weights are elsewhere.
    """

    configurations: Mapping[str, Evaluated]
    prompter: LocalPolicy
    oracle: LocalPolicy | None


def conduct(parts: StudyParts, plan: StudyPlan, *, stage: Callable[[str], None] = lambda text: None) -> AlignStudy:
    """Train what is to be trained, and evaluate all configurations on the test prompts.

    Args:
        parts: Models, reward and prompts.
        plan: How to train and to decode.
        stage: Is told what is going on.

    Returns:
        The configurations; the oracle is left out where the frozen model is not local.

    Raises:
        RunStopped: If a provider refuses calls for good.
    """
    frozen = parts.frozen
    answer = local(frozen, plan.response_decoding) if isinstance(frozen, LocalPolicy) else remote(frozen)
    prompter, curve = _trained("prompter", parts.prompter, parts, plan, stage, answer)
    stage("evaluating the prompters on the test prompts")
    found = [
        _evaluate(ALONE, parts, plan, answer, None),
        _evaluate(UNTRAINED, parts, plan, answer, parts.prompter),
        _evaluate(ALIGN_PRO, parts, plan, answer, prompter, curve),
    ]
    oracle = None
    if isinstance(frozen, LocalPolicy):
        oracle, curve = _trained("oracle", frozen, parts, plan, stage)
        stage("evaluating the oracle on the test prompts")
        found.append(_evaluate(ORACLE, parts, plan, local(oracle, plan.response_decoding), None, curve))
    if parts.judge is not None:
        stage("judging")
        for k, one in enumerate(found[1:], 1):
            verdicts, inconsistent = judge_pairs(parts.test, one.responses, found[0].responses, parts.judge)
            found[k] = replace(one, verdicts=tuple(verdicts), inconsistent=inconsistent)
    return AlignStudy({one.name: one for one in found}, prompter, oracle)


def rewards_of(reward: Reward, prompts: Sequence[str], responses: Sequence[str | None]) -> list[float | None]:
    """Reward the responses that there are; the others have no reward, which is not a reward of 0."""
    there = [number for number, response in enumerate(responses) if response is not None]
    values = reward([prompts[n] for n in there], [responses[n] or "" for n in there]) if there else []
    by_number = dict(zip(there, values, strict=True))
    return [by_number.get(number) for number in range(len(responses))]


def _trained(
    what: str,
    policy: LocalPolicy,
    parts: StudyParts,
    plan: StudyPlan,
    stage: Callable[[str], None],
    answer: Answer | None = None,
) -> tuple[LocalPolicy, tuple[TrainingStepDone, ...]]:
    """Train a policy by the reward of its texts, or of what `answer` makes of them as rewrites; tell of each step."""
    training, steps = plan.oracle_training if answer is None else plan.prompter_training, list[TrainingStepDone]()

    def reward(rows: Sequence[int], texts: Sequence[str]) -> list[float | None]:
        prompts = [parts.train[row] for row in rows]
        if answer is None:
            return rewards_of(parts.reward, prompts, texts)
        # Every batch gets draws of its own: one lucky answer to a rewrite must not be paid again and again. They
        # follow from the batch, not from a counter, so that a resumed training gets the same ones.
        content = repr((plan.seed, rows, texts)).encode()
        seed = int.from_bytes(hashlib.blake2b(content, digest_size=6).digest(), "big")
        return rewards_of(parts.reward, prompts, answer(_or_original(texts, prompts), seed))

    def on_step(step: TrainingStepDone) -> None:
        steps.append(step)
        stage(f"training the {what}: step {step.step} of {step.of}, reward {step.reward:.2f}, KL {step.kl:.2f}")

    stage(f"training the {what}")
    directory = plan.directory and plan.directory / what
    made = train(policy, parts.train, reward, training, directory=directory, on_step=on_step)
    return made, tuple(steps)


def _evaluate(
    name: str,
    parts: StudyParts,
    plan: StudyPlan,
    answer: Answer,
    prompter: LocalPolicy | None,
    curve: tuple[TrainingStepDone, ...] = (),
) -> Evaluated:
    questions: Sequence[str] = parts.test
    if prompter is not None:
        draws = prompter.sample(parts.test, 1, plan.prompter_decoding, seed=plan.seed)
        questions = _or_original([rewrites[0].text for rewrites in draws], parts.test)
    responses = answer(questions, plan.seed)
    rewards = rewards_of(parts.reward, parts.test, responses)
    return Evaluated(name, tuple(questions), tuple(responses), tuple(rewards), curve=curve)


def _or_original(rewrites: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """An empty rewrite stands for the prompt itself."""
    return [rewrite.strip() or prompt for rewrite, prompt in zip(rewrites, prompts, strict=True)]


def judge_pairs(
    prompts: Sequence[str],
    responses: Sequence[str | None],
    baseline: Sequence[str | None],
    judge: dspy.BaseLM,
) -> tuple[list[Verdict | None], int]:
    """Let a language model compare answers to the original prompts, in both orders.

    Args:
        prompts: The original prompts.
        responses: The answers that may win.
        baseline: The answers that they are compared with.
        judge: The language model.

    Returns:
        A verdict a prompt, None where an answer or the judgement is missing; and how often the two orders disagreed.

    Raises:
        RunStopped: If the provider refuses calls for good.
    """
    found: dict[int, tuple[Verdict, bool]] = {}
    meaning: dict[str, Verdict] = {"first": "win", "second": "loss", "tie": "tie"}

    def keep(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        found[example.number] = (meaning[str(prediction.verdict)], bool(prediction.consistent))
        return 1.0

    examples = [
        dspy.Example(question=prompt, first=first, second=second, number=number).with_inputs(
            "question", "first", "second"
        )
        for number, (prompt, first, second) in enumerate(zip(prompts, responses, baseline, strict=True))
        if first is not None and second is not None
    ]
    if examples:
        score_program(PairwiseJudge(), examples, keep, lm=judge)
    verdicts = [found[number][0] if number in found else None for number in range(len(prompts))]
    return verdicts, sum(not consistent for _, consistent in found.values())
