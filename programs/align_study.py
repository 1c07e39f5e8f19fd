"""`cuesmith align-study`: the evaluation of Align-Pro, with the control, the intervals and the tests it lacks.

Four configurations on the same held-out prompts: the frozen model alone, an untrained prompter before it, the trained
one (Align-Pro), and the frozen model itself trained by the same trainer on the same reward (the RLHF oracle). The toy
makes everything from a seed on this machine; every other preset runs the same code on the paper's models.

Source: 2501.03486, section "Experimental Evaluations"; see `cuesmith.programs.alignment.configurations`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cuesmith.programs.arguments import amount, count, seed, values_of
from cuesmith.programs.presets import PRESETS

if TYPE_CHECKING:
    from rich.console import Console

    from cuesmith.programs.alignment.configurations import AlignStudy
    from cuesmith.programs.alignment.findings import AlignFindings
    from cuesmith.programs.alignment.setup import AlignSettings, Ready
    from cuesmith.teleprompters.runtime.candidate import Json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="toy", help="models and settings (default: toy)")
    add("--dataset", metavar="NAME", help="ultrafeedback, helpsteer, orca, or a .json, .jsonl or .parquet file")
    add("--prompter", metavar="M", help="the prompter: a folder or a hub name")
    add("--frozen", metavar="M", help="the frozen model: a folder, hf:NAME of the hub, or a LiteLLM model")
    reward = parser.add_mutually_exclusive_group()
    reward.add_argument("--reward-model", metavar="M", help="the reward model: a folder or a hub name")
    reward.add_argument("--train-reward", metavar="BASE", nargs="?", const="", help="train one on the data's pairs")
    add("--judge", metavar="LITELLM_MODEL", help="compares answers in both orders (default: the reward does)")
    add("--trainer", choices=("ppo", "rloo", "grpo"), default="ppo", help="default: ppo, as the paper")
    add("--kl-coefficient", metavar="L", type=amount, help="the paper's lambda, reward per nat")
    add("--steps", metavar="N", type=count, help="training steps")
    add("--n-test", metavar="N", type=count, default=100, help="held-out prompts (default: 100)")
    add("--seed", metavar="S", type=seed, default=0, help="seed of data, training and draws (default: 0)")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--out", metavar="DIR", type=Path, help="for models, answers, figures (default: in runs/align-study/)")


def command(options: argparse.Namespace) -> int:
    """Run the study and show what it found.

    Args:
        options: Parsed by what `arguments` added.

    Returns:
        0; 1 if the run failed, 2 if the arguments or the data are wrong, with one line on standard error.
    """
    from cuesmith.programs.tasks.task import TaskError
    from cuesmith.teleprompters.runtime.ledger import RunStopped

    try:
        return main(settings_of(options), as_json=options.json)
    except (TaskError, ValueError) as error:
        return _fail(error, 2)
    except RunStopped as stopped:
        return _fail(f"the provider refuses the calls ({stopped.by})", 1)
    except (ImportError, OSError) as error:  # the extra is not installed; a model or file is not there
        return _fail(error, 1)


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

    from cuesmith.programs.alignment import configurations, findings, setup
    from cuesmith.teleprompters.runtime.progress import Progress

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
        console.file.write(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
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


def settings_of(options: argparse.Namespace) -> AlignSettings:
    """Return the settings that the arguments ask for."""
    from cuesmith.programs.alignment.setup import AlignSettings

    out = options.out or Path("runs") / "align-study" / f"{options.preset}-{options.seed}"
    return AlignSettings(**values_of(options, AlignSettings, preset=PRESETS[options.preset], out=out))


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
    from cuesmith.programs.alignment import findings

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
    from cuesmith.programs.alignment import findings

    plan = settings.plan()
    training = plan.prompter_training
    reward = ready.reward_training
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
            name: [{"step": s.step, "reward": _number(s.reward), "kl": _number(s.kl), "missing": s.missing}
                   for s in one.curve]
            for name, one in result.configurations.items()
            if one.curve
        },
        "meaning": list(findings.meaning(found)),
        "limits": list(findings.limits(found, toy=settings.preset.is_toy)),
        "seconds": round(seconds, 2),
    }  # fmt: skip


def _number(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if math.isnan(value) else round(value, 6)


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


def _fail(problem: object, status: int) -> int:
    print(f"cuesmith: error: {' '.join(_visible(str(problem)).split())[:300]}", file=sys.stderr)
    return status
