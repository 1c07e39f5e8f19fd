"""Makes the parts of a study: models, reward and prompts, loaded by name or, for the toy, made from a seed.

Source: ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import dspy

from cuesmith.modules.judges import RewardModel
from cuesmith.modules.policy import LocalPolicy, require_train
from cuesmith.programs.align_experiment import toy
from cuesmith.programs.align_experiment.configurations import StudyParts, StudyPlan
from cuesmith.programs.presets import Preset
from cuesmith.programs.tasks.preferences import Preference, load_preferences, load_prompts
from cuesmith.programs.tasks.task import TaskError
from cuesmith.teleprompters.alignment.reward_training import RewardTraining, train_reward_model
from cuesmith.teleprompters.alignment.training import Trainer, Training

Stage = Callable[[str], None]


@dataclass(frozen=True)
class AlignSettings:
    """What to study; None leaves it to the preset.

    Attributes:
        preset: Models and numbers.
        out: Where models, answers and figures go.
        dataset: Key of `SOURCES`, or a file of preferences or prompts.
        prompter: A folder or a hub name.
        frozen: A folder, "hf:" and a hub name, or a LiteLLM name.
        reward_model: A folder or a hub name.
        train_reward: Base model of a reward model to be trained on the data's pairs; "" takes the prompter's.
        judge: LiteLLM name of the judge.
        trainer: "ppo", "rloo" or "grpo".
        kl_coefficient: The paper's lambda.
        steps: Training steps.
        n_test: Held-out prompts.
        seed: Of data, training and draws.
        sizes: How much the toy's models are taught.
    """

    preset: Preset
    out: Path
    dataset: str | None = None
    prompter: str | None = None
    frozen: str | None = None
    reward_model: str | None = None
    train_reward: str | None = None
    judge: str | None = None
    trainer: Trainer = "ppo"
    kl_coefficient: float | None = None
    steps: int | None = None
    n_test: int = 100
    seed: int = 0
    sizes: toy.ToySizes = field(default_factory=toy.ToySizes)

    def plan(self) -> StudyPlan:
        """Return how to train and decode.

        Raises:
            ValueError: If a number cannot be.
        """
        preset = self.preset
        training = Training(
            trainer=self.trainer,
            kl_coefficient=self.kl_coefficient or preset.kl_coefficient,
            steps=self.steps or preset.steps,
            batch_size=preset.batch_size,
            generations=preset.generations,
            learning_rate=preset.learning_rate,
            max_new_tokens=preset.prompter_tokens,
            lora_rank=preset.lora_rank,
            seed=self.seed,
        )
        return StudyPlan(
            training,
            replace(training, max_new_tokens=preset.response_tokens),
            replace(preset.decoding, max_new_tokens=preset.prompter_tokens),
            replace(preset.decoding, max_new_tokens=preset.response_tokens),
            self.seed,
            self.out / "checkpoints" / self._key,
        )

    @property
    def _key(self) -> str:
        """Names everything that a training depends on, so that only the very same one is resumed."""
        content = repr(replace(self, out=Path(), judge=None))
        return hashlib.blake2b(content.encode(), digest_size=6).hexdigest()


@dataclass(frozen=True)
class Ready:
    """The parts, and what is known of them.

    Attributes:
        parts: Of the study.
        names: What each part is, for a reader: "prompter", "frozen", "reward_model", "data".
        reward_training: Where a reward model was trained.
        rule: The toy's rule behind the preferences, (prompt, answer) -> quality; nothing is trained on it.
    """

    parts: StudyParts
    names: dict[str, str]
    reward_training: RewardTraining | None
    rule: Callable[[str, str], float] | None = None


def prepare(settings: AlignSettings, *, stage: Stage = lambda text: None) -> Ready:
    """Load or make everything that a study needs.

    Raises:
        ImportError: If the extra `train` is not installed.
        TaskError: If the data is not what it should be.
        OSError: If a model is not there.
    """
    require_train()
    if settings.preset.is_toy and settings.dataset is None:
        return _toy(settings, stage)
    return _real(settings, stage)


def _toy(settings: AlignSettings, stage: Stage) -> Ready:
    seed, sizes = settings.seed, settings.sizes
    language = toy.Language.of(seed)
    asked = language.prompts(seed, settings.preset.train_prompts + settings.n_test)
    train, test = asked[settings.n_test :], asked[: settings.n_test]
    stage("making the toy's prompter")
    prompter = _policy(settings.prompter) if settings.prompter else toy.prompter(language, seed, sizes)
    stage("making the toy's frozen model")
    frozen = _frozen(settings.frozen) if settings.frozen else toy.frozen(language, seed, sizes)
    stage("training the toy's reward model")
    # It starts from the model that knows the facts, as reward models do, or else from the prompter.
    base = settings.out / "reward-model-base"
    (frozen if isinstance(frozen, LocalPolicy) else prompter).save_pretrained(base)
    pairs = language.preferences(seed, sizes.preferences)
    reward, trained = _reward(settings, base, pairs, test, steps=sizes.reward_steps, learning_rate=1e-3)
    names = {
        "prompter": settings.prompter or "toy",
        "frozen": settings.frozen or "toy",
        "reward_model": settings.reward_model or "toy, trained here",
        "data": "toy language",
    }
    parts = StudyParts(prompter, frozen, reward, tuple(train), tuple(test), _judge(settings))
    return Ready(parts, names, trained, language.quality)


def _real(settings: AlignSettings, stage: Stage) -> Ready:
    preset = settings.preset
    dataset = settings.dataset or preset.dataset
    prompter, frozen = settings.prompter or preset.prompter, settings.frozen or preset.frozen
    if not (dataset and prompter and frozen):
        raise TaskError("the toy preset has no models for other data: give --prompter and --frozen, or a --preset")
    stage(f"reading {dataset}")
    asked = load_prompts(dataset, size=preset.train_prompts + settings.n_test, seed=settings.seed)
    if len(asked) < 2 * settings.n_test:
        raise TaskError(f"{dataset}: {len(asked)} different prompts; {settings.n_test} to test on need twice as many")
    train, test = asked[settings.n_test :], asked[: settings.n_test]
    if settings.train_reward is not None:
        stage("training the reward model")
        pairs = load_preferences(dataset, seed=settings.seed)
        base = settings.train_reward or prompter
        reward, trained = _reward(settings, base, pairs, test, steps=None, learning_rate=1e-5)
    else:
        name = settings.reward_model or preset.reward_model
        if name is None:
            raise TaskError("no reward model: give --reward-model or --train-reward")
        stage("loading the reward model")
        reward, trained = RewardModel.from_pretrained(name), None
    stage("loading the prompter and the frozen model")
    is_name = settings.frozen is None
    parts = StudyParts(
        _policy(prompter), _frozen(f"hf:{frozen}" if is_name else frozen), reward, train, test, _judge(settings)
    )
    shown = f"trained here from {settings.train_reward or prompter}" if trained else None
    names = {
        "prompter": prompter,
        "frozen": frozen,
        "reward_model": shown or settings.reward_model or str(preset.reward_model),
        "data": dataset,
    }
    return Ready(parts, names, trained)


def _reward(
    settings: AlignSettings,
    base: str | Path,
    pairs: Sequence[Preference],
    test: Sequence[str],
    *,
    steps: int | None,
    learning_rate: float,
) -> tuple[RewardModel, RewardTraining | None]:
    """Train a reward model on pairs of other prompts than the test prompts, unless one is given."""
    if settings.reward_model is not None:
        return RewardModel.from_pretrained(settings.reward_model), None
    known = set(test)
    trained = train_reward_model(
        base,
        [pair for pair in pairs if pair.prompt not in known],
        settings.out / "reward-model",
        steps=steps,
        learning_rate=learning_rate,
        seed=settings.seed,
    )
    return RewardModel.from_pretrained(trained.directory), trained


def _policy(name: str) -> LocalPolicy:
    return LocalPolicy.from_pretrained(name.removeprefix("hf:"))


def _frozen(name: str) -> LocalPolicy | dspy.BaseLM:
    """A folder or "hf:" and a hub name is a local model, which gets the question and no instructions."""
    if name.startswith("hf:") or Path(name).is_dir():
        return LocalPolicy.from_pretrained(name.removeprefix("hf:"), instructions="")
    return dspy.LM(name)


def _judge(settings: AlignSettings) -> dspy.BaseLM | None:
    return None if settings.judge is None else dspy.LM(settings.judge)
