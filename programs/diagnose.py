"""`cuesmith diagnose`: what a finished run tells about its optimizer's edits and about how its model follows them.

With `--lm` an optimizer model is asked for feedback on the errors that the run observed, and that is judged too.

Source: ours; the instruments name theirs.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuesmith.programs.diagnosis.change import Changes
    from cuesmith.programs.diagnosis.figures import Section
    from cuesmith.programs.diagnosis.following import Following, Judge
    from cuesmith.programs.diagnosis.live import Live
    from cuesmith.programs.diagnosis.record import Record
    from cuesmith.programs.diagnosis.similarity import Similarity
    from cuesmith.programs.diagnosis.trajectory import Trajectory
    from cuesmith.teleprompters.runtime.candidate import Json

SIMULATED = "simulated"
"""Stands for the simulated optimizer, which needs no key and no network."""


@dataclass(frozen=True)
class Diagnosis:
    """What a finished run tells.

    Attributes:
        record: The run.
        trajectory: Where the search went.
        changes: What each refinement changed.
        following: How the returned prompts were followed, one result a predictor that has rules.
        live: What an optimizer model says of the run's errors; None if none was asked.
        threshold: A score from which on an answer counted as right.
    """

    record: Record
    trajectory: Trajectory
    changes: Changes
    following: tuple[Following, ...]
    live: Live | None = None
    threshold: float = 1.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What the run had to say, and what a reader of the diagnosis should know."""
        reached = any(score is not None and score >= self.threshold for t in self.record.trials for score in t.scores)
        if reached:
            return self.record.notes
        never = (
            f"No score of the run reaches {self.threshold:g}, so no answer counts as right: if the metric gives parts "
            "of a point, set a lower threshold."
        )
        return (*self.record.notes, never)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The results as parts of a report."""
        from cuesmith.programs.diagnosis import change, following, trajectory

        followed = tuple(following.section_of(one) for one in self.following) or (_nothing_to_follow(),)
        asked = () if self.live is None else _live_sections(self.live)
        return (trajectory.section_of(self.trajectory), change.section_of(self.changes), *followed, *asked)


def diagnose(
    run_dir: str | Path,
    *,
    similarity: Similarity | None = None,
    judge: Judge | None = None,
    threshold: float = 1.0,
) -> Diagnosis:
    """Diagnose a finished run from what it left; no model is called, but by a judge that is given.

    Args:
        run_dir: The `run_dir` of a compile.
        similarity: How alike prompts are; by default by their words.
        judge: Says whether a response follows a rule, where no rule can tell.
        threshold: A score from which on an answer counts as right.

    Raises:
        RecordError: If there is no finished run in it.
    """
    from cuesmith.programs.diagnosis.change import changes
    from cuesmith.programs.diagnosis.following import following
    from cuesmith.programs.diagnosis.record import Record
    from cuesmith.programs.diagnosis.trajectory import trajectory

    record = Record.read(run_dir)
    return Diagnosis(
        record,
        trajectory(record),
        changes(record, similarity, threshold=threshold),
        following(record, judge=judge, threshold=threshold),
        threshold=threshold,
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cuesmith diagnose`."""
    add = parser.add_argument
    add("run_dir", metavar="RUN_DIR", type=Path, help="the run_dir of a finished compile")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add("--lm", metavar="MODEL", help="also ask this model for feedback on the run's errors, and judge that: a LiteLLM "
        "model, or 'simulated'")
    add("--threshold", metavar="X", type=_score, default=1.0, help="a score from which on an answer counts as right "
        "(default: 1)")
    add("--html", metavar="FILE", type=Path, help="also write the report to this file, as a page for a browser")


def command(options: argparse.Namespace) -> int:
    """Diagnose, and show what was found.

    Returns:
        The exit status: 0, 1 if the page cannot be written or the model cannot be asked, 2 if there is no finished
        run to read or no such model.
    """
    if options.lm in (None, SIMULATED):  # dspy and litellm fetch price lists that no run here has a use for
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")

    from rich.console import Console

    from cuesmith.programs.diagnosis import page
    from cuesmith.programs.diagnosis.record import RecordError

    try:
        found = diagnose(options.run_dir, threshold=options.threshold)
        if options.lm is not None:
            found = _asked(found, options.lm)
    except (RecordError, BadModel) as error:
        return _complain(str(error), 2)
    except LiveFailed as error:
        return _complain(str(error), 1)
    if options.html is not None:
        try:
            options.html.write_text(_page(found), encoding="utf-8")
        except OSError as error:
            return _complain(f"--html {options.html}: {error.strerror or error}", 1)
    console = Console(highlight=False)
    if options.json:
        results = {name: getattr(found, name) for name in ("trajectory", "changes", "following", "live")}
        console.file.write(page.as_json(_about(found), found.sections, results) + "\n")
        return 0
    page.show(_title(found.record), found.notes, found.sections, console)
    if options.html is not None:
        console.print(f"\npage: {options.html}", markup=False, soft_wrap=True)
    return 0


class BadModel(ValueError):
    """There is no such model; the message is one line."""


class LiveFailed(RuntimeError):
    """The model could not be asked, or there is nothing to ask about; the message is one line."""


def _asked(found: Diagnosis, model: str) -> Diagnosis:
    """Return the diagnosis with what a model says of the run's errors.

    Raises:
        BadModel: If dspy does not take the model's name.
        LiveFailed: If there are too few errors, or the provider fails.
    """
    import dspy

    from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
    from cuesmith.programs.comparison import one_line
    from cuesmith.programs.diagnosis.live import live, plan

    try:
        lm = SimulatedOptimizer() if model == SIMULATED else dspy.LM(model)
    except Exception as error:  # whatever is objected to, it is the name
        raise BadModel(f"--lm {model!r}: {one_line(error)}") from None
    try:
        planned = plan(found.record, threshold=found.threshold)
        print(f"cuesmith diagnose: asking {model} {planned.requests} times", file=sys.stderr)
        return replace(found, live=live(planned, lm))
    except Exception as error:  # a provider's failures are of many kinds
        raise LiveFailed(f"--lm {model}: {one_line(error)}") from None


def _live_sections(found: Live) -> tuple[Section, ...]:
    from cuesmith.programs.diagnosis import repetition, validity
    from cuesmith.programs.diagnosis.figures import Section

    first = repetition.section_of(found.repetition)
    if found.validity is not None:
        return first, validity.section_of(found.validity)
    return first, Section(
        "Validity of the reflection",
        "The errors of the run have no two kinds, so that their distribution cannot be controlled and nothing can be "
        "said of whether feedback follows it. Run on more examples.",
        (),
    )


def _score(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _complain(problem: str, status: int) -> int:
    from cuesmith.programs.report import visible

    print(f"cuesmith diagnose: error: {' '.join(visible(problem).split())}", file=sys.stderr)
    return status


def _title(record: Record) -> str:
    return f"Diagnosis of a run of {record.compiler}"


def _about(found: Diagnosis) -> dict[str, Json]:
    record = found.record
    return {
        "directory": str(record.directory),
        "compiler": record.compiler,
        "baseline": record.baseline.id,
        "best": record.best.id,
        "candidates": len(record.trials),
        "stopped_by": record.stopped_by,
        "notes": list(found.notes),
        "threshold": found.threshold,
    }


def _page(found: Diagnosis) -> str:
    from cuesmith.programs.diagnosis.page import Quote, html
    from cuesmith.programs.report import prompt_diff, prompt_text

    record = found.record
    stopped = f" It was stopped by {record.stopped_by}." if record.stopped_by else ""
    subtitle = f"{record.directory}: {len(record.trials)} candidates in {len(record.steps)} steps.{stopped}"
    quotes = [Quote("The returned prompts", prompt_text(record.best))]
    if difference := prompt_diff(record.baseline, record.best):
        quotes.append(Quote("What changed from the student's prompts", difference))
    return html(_title(record), f"{subtitle} {' '.join(found.notes)}", found.sections, quotes)


def _nothing_to_follow() -> Section:
    from cuesmith.programs.diagnosis.figures import Section

    return Section(
        "Following the prompt",
        "The returned prompts have no numbered steps whose work is asked for under labels, so no rule can check "
        "whether they are followed. Compile with ABO, or call `following` with a judge.",
        (),
    )
