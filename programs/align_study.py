"""`cuesmith align-study`: the evaluation of Align-Pro, with the control, the intervals and the tests it lacks.

Four configurations on the same held-out prompts: the frozen model alone, an untrained prompter before it, the trained
one (Align-Pro), and the frozen model itself trained by the same trainer on the same reward (the RLHF oracle). The toy
makes everything from a seed on this machine; every other preset runs the same code on the paper's models.

Source: 2501.03486, section "Experimental Evaluations"; see `cuesmith.programs.align_experiment.configurations`.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from cuesmith.programs.arguments import Amount, BadInput, Count, Seed, complain, metavar, only_one, values_of
from cuesmith.programs.presets import PRESETS

if TYPE_CHECKING:
    from rich.console import Console

    from cuesmith.programs.align_experiment.configurations import AlignStudy
    from cuesmith.programs.align_experiment.findings import AlignFindings
    from cuesmith.programs.align_experiment.setup import AlignSettings, Ready
    from cuesmith.teleprompters.runtime.candidate import Json


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AlignStudyOptions:
    """What `cuesmith align-study` is told.

    Attributes:
        preset: Models and settings (default: toy).
        dataset: ultrafeedback, helpsteer, orca, or a .json, .jsonl or .parquet file.
        prompter: The prompter: a folder or a hub name.
        frozen: The frozen model: a folder, hf:NAME of the hub, or a LiteLLM model.
        reward_model: The reward model: a folder or a hub name.
        train_reward: Train one on the data's pairs; with a value, from this base: a folder or a hub name (default: the
            prompter's model).
        judge: A LiteLLM model that compares answers in both orders (default: the reward does).
        trainer: Default: ppo, as the paper.
        kl_coefficient: The paper's lambda, reward per nat.
        steps: Training steps.
        n_test: Held-out prompts (default: 100).
        seed: Seed of data, training and draws (default: 0).
        json: Print one JSON object instead of text.
        out: For models, answers, figures (default: in runs/align-study/).
    """

    preset: Literal["toy", "phi3.5-llama8b", "qwen1.5b-llama8b", "phi3.5-qwen7b", "qwen1.5b-qwen7b"] = "toy"
    dataset: Annotated[str | None, metavar("NAME")] = None
    prompter: Annotated[str | None, metavar("M")] = None
    frozen: Annotated[str | None, metavar("M")] = None
    reward_model: Annotated[str | None, metavar("M")] = None
    train_reward: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=(0, 1), metavar="[BASE]")] = None
    judge: Annotated[str | None, metavar("LITELLM_MODEL")] = None
    trainer: Literal["ppo", "rloo", "grpo"] = "ppo"
    kl_coefficient: Amount | None = None
    steps: Count | None = None
    n_test: Count = 100
    seed: Seed = 0
    json: bool = False
    out: Annotated[Path | None, metavar("DIR")] = None

    def __post_init__(self) -> None:
        """Check what can be checked at once.

        Raises:
            BadInput: If arguments do not go together.
        """
        only_one(reward_model=self.reward_model, train_reward=self.train_reward is not None)
        if len(self.train_reward or ()) > 1:
            raise BadInput("--train-reward: given twice")

    @property
    def base(self) -> str | None:
        """What a reward model is trained from: "" for the prompter's model; None if none is trained."""
        return None if self.train_reward is None else "".join(self.train_reward)


def command(options: AlignStudyOptions = AlignStudyOptions()) -> int:
    """Compare a trained prompter with the frozen model, the untrained prompter and RLHF.

    Args:
        options: What to study.

    Returns:
        0; 1 if the run failed, 2 if the arguments or the data are wrong, with one line on standard error.
    """
    from cuesmith.programs.tasks.task import TaskError
    from cuesmith.teleprompters.runtime.ledger import RunStopped
    from cuesmith.teleprompters.runtime.score_program import EvaluationStopped

    try:
        return main(settings_of(options), as_json=options.json)
    except (TaskError, ValueError) as error:
        return complain("cuesmith", str(error)[:300], 2)
    except (RunStopped, EvaluationStopped) as stopped:
        return complain("cuesmith", f"the provider refuses the calls ({stopped.by})", 1)
    except (ImportError, OSError) as error:  # the extra is not installed; a model or file is not there
        return complain("cuesmith", str(error)[:300], 1)


def main(settings: AlignSettings, *, as_json: bool = False) -> int:
    """Run a study and show it on standard output.

    Args:
        settings: What to study.
        as_json: Whether to print one JSON object instead of text.

    Returns:
        The exit status, 0.

    Raises:
        ImportError: If the extra `train` is not installed.
        TaskError: If the data is not what it should be.
        ValueError: If numbers do not fit each other.
        OSError: If a model is not there, or the folder cannot be written.
        RunStopped: If a provider refuses calls for good.
    """
    from rich.console import Console

    from cuesmith.programs.align_experiment import configurations, findings, setup
    from cuesmith.teleprompters.runtime.progress_bar import Progress

    _be_quiet()
    started, console = time.perf_counter(), Console(highlight=False)
    if not as_json:
        console.print(_heading(settings), soft_wrap=True)
    with Progress() as progress:
        ready = setup.prepare(settings, stage=progress.stage)
        result = configurations.conduct(ready.parts, settings.plan(), stage=progress.stage)
    found = findings.findings(result, ready.parts.test, judge=settings.judge, rule=ready.rule)
    seconds = time.perf_counter() - started
    data = _json(settings, ready, result, found, seconds)
    _save(settings.out, result, ready, data)
    if as_json:
        from cuesmith.programs.report import json_text

        console.file.write(json_text(data) + "\n")
    else:
        _show(console, settings, ready, found, seconds)
    return 0


def _be_quiet() -> None:
    """Silence the libraries' bars and remarks: what is going on is shown here, what failed is counted."""
    from cuesmith.modules.policy import require_train

    require_train()
    import datasets
    from transformers.utils import logging as of_transformers

    for library in ("dspy", "LiteLLM", "transformers", "trl", "datasets", "accelerate"):
        logging.getLogger(library).setLevel(logging.ERROR)
    hide: Callable[[], None] = of_transformers.disable_progress_bar
    hide()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)


def settings_of(options: AlignStudyOptions) -> AlignSettings:
    """Return the settings that the arguments ask for."""
    from cuesmith.programs.align_experiment.setup import AlignSettings

    out = options.out or Path("runs") / "align-study" / f"{options.preset}-{options.seed}"
    preset = PRESETS[options.preset]
    return AlignSettings(**values_of(options, AlignSettings, preset=preset, out=out, train_reward=options.base))


def _heading(settings: AlignSettings) -> str:
    plan = settings.plan()
    training, decoding = plan.prompter_training, plan.prompter_decoding
    lines = [
        f"preset      {settings.preset.name}",
        f"training    {training.trainer}, lambda {training.kl_coefficient:g}, {training.steps} steps of "
        f"{training.batch_size} rewrites, learning rate {training.learning_rate:g}; for the oracle the same",
        f"evaluation  {settings.n_test} held-out prompts; temperature {decoding.temperature:g}, "
        f"top-p {decoding.top_p:g}, top-k {decoding.top_k}",
        f"folder      {settings.out}",
    ]
    return _visible("\n".join(lines)) + "\n"


def _show(console: Console, settings: AlignSettings, ready: Ready, found: AlignFindings, seconds: float) -> None:
    from rich.text import Text

    from cuesmith.programs import report
    from cuesmith.programs.align_experiment import findings

    for table in findings.tables(found):
        console.print(table)
        console.print()
    console.print("Means, variances and gains in units of reward, with 95 % intervals; p two-sided.", soft_wrap=True)
    console.print("\nWhat it means", style="bold")
    console.print(Text(report.bullet_list(findings.meaning(found))), soft_wrap=True)
    console.print("\nWhat it does not show", style="bold")
    remarks = [*_reward_words(ready), *findings.limits(found, toy=settings.preset.is_toy)]
    console.print(Text(report.bullet_list(remarks)), soft_wrap=True)
    console.print(f"\n{seconds:.0f} seconds in all; models, answers and figures: {settings.out}", soft_wrap=True)


def _reward_words(ready: Ready) -> list[str]:
    from cuesmith.programs import report

    trained = ready.reward_training
    if trained is None:
        return []
    accuracy = report.describe_estimate(trained.accuracy)
    return [
        f"The reward model was trained on {trained.pairs:,} pairs and orders {accuracy} % of {trained.held_out:,} "
        "held-out pairs rightly; the rewards are no better than that."
    ]


def _json(
    settings: AlignSettings, ready: Ready, result: AlignStudy, found: AlignFindings, seconds: float
) -> dict[str, Json]:
    from cuesmith.programs import report
    from cuesmith.programs.align_experiment import findings

    plan = settings.plan()
    training = plan.prompter_training
    reward, number = ready.reward_training, report.number_json
    return {
        "preset": settings.preset.name,
        **ready.names,
        "seed": settings.seed,
        "n_test": settings.n_test,
        "n_train": len(ready.parts.train),
        "training": dict(asdict(training)),
        "decoding": dict(asdict(plan.prompter_decoding)),
        "reward_model_accuracy": None if reward is None else report.estimate_json(reward.accuracy),
        **findings.to_json(found),
        "curves": {
            name: [{"step": s.step, "reward": number(s.reward), "kl": number(s.kl), "missing": s.missing}
                   for s in one.curve]
            for name, one in result.configurations.items()
            if one.curve
        },
        "meaning": list(findings.meaning(found)),
        "limits": list(findings.limits(found, toy=settings.preset.is_toy)),
        "seconds": round(seconds, 2),
    }  # fmt: skip


def _save(folder: Path, result: AlignStudy, ready: Ready, data: dict[str, Json]) -> None:
    """Keep the trained models, every answer, and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    result.prompter.save_pretrained(folder / "prompter")
    if result.oracle is not None:
        result.oracle.save_pretrained(folder / "oracle")
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
        for name, one in result.configurations.items():
            rows = zip(ready.parts.test, one.questions, one.responses, one.rewards, strict=True)
            for prompt, question, response, reward in rows:
                row = {"configuration": name, "prompt": prompt, "question": question, "response": response}
                file.write(json.dumps(row | {"reward": reward}, ensure_ascii=False) + "\n")
    (folder / "study.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _visible(text: str) -> str:
    from cuesmith.programs.report import visible

    return visible(text)
