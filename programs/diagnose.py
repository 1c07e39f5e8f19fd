"""`cuesmith diagnose`: what a finished run tells about its optimizer's edits and about how its model follows them.

With `--lm` an optimizer model is asked for feedback on the errors that the run observed, and that is measured too; with
`--judge` it also judges what no rule can. All that is asked stays within the caps.

Source: ours; the instruments name theirs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cuesmith.programs.arguments import Amount, BadInput, Count, Score, be_offline, complain, metavar, model, of
from cuesmith.programs.commands.run_folders import check_finished, no_compile

if TYPE_CHECKING:
    from cuesmith.programs.diagnosis.asking import Inquiry
    from cuesmith.programs.diagnosis.change import Changes
    from cuesmith.programs.diagnosis.embedders import Similarity
    from cuesmith.programs.diagnosis.figures import Section
    from cuesmith.programs.diagnosis.following import Following, Judge
    from cuesmith.programs.diagnosis.live import Live, LivePlan
    from cuesmith.programs.diagnosis.run_record import RunRecord
    from cuesmith.programs.diagnosis.trajectory import Trajectory
    from cuesmith.teleprompters.runtime.candidate import Json
    from cuesmith.teleprompters.runtime.ledger import Spent

COMMAND = "cuesmith diagnose"
SIMULATED = "simulated"
"""Stands for the simulated optimizer, which needs no key and no network."""
JUDGED = 20
"""Responses to each prompt that a model judges. Ours."""


@dataclass(frozen=True)
class Account:
    """What was asked of a model, and what it cost.

    Attributes:
        model: Its name.
        planned: Requests at most.
        answered: Requests with a usable reply.
        unusable: Requests whose reply could not be used.
        stopped_by: The cap or the failure that ended the asking; None if none did.
        failure: Why the model could not be asked any further; None if it could.
        spent: What was used.
    """

    model: str
    planned: int
    answered: int
    unusable: int
    stopped_by: str | None
    failure: str | None
    spent: Spent

    @property
    def note(self) -> str:
        """The account in a sentence or two."""
        from cuesmith.programs.report import usd
        from cuesmith.teleprompters.runtime.ledger import stopped

        total, done = self.spent.total, self.answered + self.unusable
        price = f", {usd(total.usd)}" if usd(total.usd) else ""
        lost = f" ({self.unusable} with nothing that could be used)" if self.unusable else ""
        cached = f", {total.cache_hits} replies from the cache" if total.cache_hits else ""
        said = (
            f"{self.model} answered {done} of at most {self.planned} requests{lost}: {total.calls} calls{cached}, "
            f"{total.tokens} tokens{price}."
        )
        if self.stopped_by is None:
            return said
        rest = "what needed the others is missing or rests on less, as its n says."
        return f"{said} The asking was {stopped(self.stopped_by)} after {done} of {self.planned} requests: {rest}"


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
        judged: How a sample of the responses follows the returned prompts, as a model judges it; empty without one.
        account: What was asked of a model; None if none was.
    """

    record: RunRecord
    trajectory: Trajectory
    changes: Changes
    following: tuple[Following, ...]
    live: Live | None = None
    threshold: float = 1.0
    judged: tuple[Following, ...] = ()
    account: Account | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the run had to say, and what a reader of the diagnosis should know."""
        told = () if self.account is None else (self.account.note,)
        reached = any(score is not None and score >= self.threshold for t in self.record.trials for score in t.scores)
        if reached and not self.record.scoring.percent:
            told = (
                *told,
                f"Scores are not from 0 to 1: an answer counts as right from {self.threshold:g} on (threshold).",
            )
        if reached:
            return (*self.record.notes, *told)
        never = (
            f"No score of the run reaches {self.threshold:g}, so no answer counts as right: if the metric gives parts "
            "of a point, set a lower threshold."
        )
        return (*self.record.notes, *told, never)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The results as parts of a report."""
        from cuesmith.programs.diagnosis import change, following, live, trajectory
        from cuesmith.programs.diagnosis.words import sections_of

        both = (*self.following, *self.judged)
        nothing = () if both else sections_of("diagnosis/following", part="nothing")
        followed = (*map(following.section_of, both), *nothing)
        asked = () if self.live is None else live.sections_of(self.live)
        return (trajectory.section_of(self.trajectory), change.section_of(self.changes), *followed, *asked)


def diagnose(
    run_dir: str | Path,
    *,
    similarity: Similarity | None = None,
    judge: Judge | None = None,
    threshold: float | None = None,
) -> Diagnosis:
    """Diagnose a finished run from what it left; no model is called, but by a judge that is given.

    Args:
        run_dir: The `run_dir` of a compile.
        similarity: How alike prompts are; by default by their words.
        judge: Says whether a response follows a rule, where no rule can tell.
        threshold: A score from which on an answer counts as right; None is 1 where scores are from 0 to 1, and else
            the highest that was seen.

    Raises:
        RecordError: If there is no finished compile in it.
    """
    from cuesmith.programs.diagnosis.change import changes
    from cuesmith.programs.diagnosis.following import following
    from cuesmith.programs.diagnosis.run_record import RecordError, RunRecord
    from cuesmith.programs.diagnosis.trajectory import trajectory

    record = RunRecord.read(run_dir)
    if said := no_compile(Path(run_dir), record.compiler):
        raise RecordError(said)
    threshold = record.top if threshold is None else threshold
    return Diagnosis(
        record,
        trajectory(record),
        changes(record, similarity, threshold=threshold),
        following(record, judge=judge, threshold=threshold),
        threshold=threshold,
    )


def _optimizer(text: str) -> str:
    return text if text == SIMULATED else model(text)


def _embedder(text: str) -> str:
    return text if text.startswith("st:") else model(text)


@Parameter(name="*")
@dataclass(frozen=True)
class DiagnoseOptions:
    """What `cuesmith diagnose` is told.

    Attributes:
        run_dir: The run_dir of a finished compile.
        json: Print one JSON object instead of tables.
        lm: Also ask this model for feedback on the run's errors, and measure that: a LiteLLM model, or 'simulated'.
        judge: Have that model also judge whether rules are followed, and which errors a feedback is about.
        labels: Measure the judge by these hand labels: JSONL with rule, response and followed (default: 24 of ours).
        budget_usd: Dollars that asking that model may cost.
        budget_calls: Calls of that model at most.
        embedder: Compare texts by this embedder, not by their words: a LiteLLM embedding model (no cap holds it), or
            st:NAME or st:FOLDER for sentence-transformers.
        threshold: A score from which on an answer counts as right (default: 1, or the highest seen on another scale).
        html: Also write the report to this file, as a page for a browser.
    """

    run_dir: Path
    _: KW_ONLY
    json: bool = False
    lm: Annotated[str | None, of(_optimizer, "MODEL")] = None
    judge: bool = False
    labels: Annotated[Path | None, metavar("FILE")] = None
    budget_usd: Amount | None = None
    budget_calls: Count | None = None
    embedder: Annotated[str | None, of(_embedder, "NAME")] = None
    threshold: Score | None = None
    html: Annotated[Path | None, metavar("FILE")] = None


def command(options: DiagnoseOptions) -> int:
    """Show what a finished run tells: its course, its refinements, how its prompts are followed.

    Returns:
        The exit status: 0; 1 if the page cannot be written or the model or the embedder fails (what was found before
        is shown); 2 if there is no finished run to read, or an argument is wrong.
    """
    if problem := _misfit(options):
        return complain(COMMAND, problem, 2)
    try:
        check_finished(options.run_dir)
    except BadInput as error:
        return complain(COMMAND, str(error), 2)
    be_offline(models=options.lm not in (None, SIMULATED), embedder=options.embedder is not None)

    from cuesmith.programs.diagnosis.embedders import SimilarityError, similarity_named
    from cuesmith.programs.diagnosis.lm_judges import LabelsError
    from cuesmith.programs.diagnosis.run_record import RecordError

    if options.html is not None and not options.html.parent.is_dir():  # before anything is paid for
        return complain(COMMAND, f"--html {options.html}: no such folder", 1)
    try:
        similarity = None if options.embedder is None else similarity_named(options.embedder)
    except SimilarityError as error:
        return complain(COMMAND, f"--embedder: {error}", 2)
    try:
        labels = _labels(options)
        found = diagnose(options.run_dir, similarity=similarity, threshold=options.threshold)
        if options.lm is not None:
            found = _asked(found, options, labels, similarity)
    except (RecordError, BadModel, LabelsError) as error:
        return complain(COMMAND, str(error), 2)
    except (LiveFailed, SimilarityError) as error:
        return complain(COMMAND, str(error), 1)
    return _report(found, options)


def _misfit(options: DiagnoseOptions) -> str:
    """Say which arguments do not go together; nothing if all do."""
    if options.lm is None:
        given = {"--judge": options.judge, "--budget-usd": options.budget_usd, "--budget-calls": options.budget_calls}
        alone = next((name for name, value in given.items() if value), None)
        return f"{alone} is about a model that is asked: name one with --lm" if alone else ""
    return "--labels measures a judge: add --judge" if options.labels is not None and not options.judge else ""


def _report(found: Diagnosis, options: DiagnoseOptions) -> int:
    from rich.console import Console

    from cuesmith.programs.diagnosis import page

    if options.html is not None:
        try:
            options.html.write_text(_page(found), encoding="utf-8")
        except OSError as error:
            return complain(COMMAND, f"--html {options.html}: {error.strerror or error}", 1)
    console = Console(highlight=False)
    if options.json:
        results = {name: getattr(found, name) for name in RESULTS}
        console.file.write(page.as_json(_about(found), found.sections, results) + "\n")
    else:
        page.show(_title(found.record), found.notes, found.sections, console)
        if options.html is not None:
            console.print(f"\npage: {options.html}", markup=False, soft_wrap=True)
    failure = None if found.account is None else found.account.failure
    return 0 if failure is None else complain(COMMAND, f"--lm {options.lm}: {failure}", 1)


RESULTS = ("trajectory", "changes", "following", "judged", "live", "account")
"""The typed results that the JSON output holds."""


class BadModel(ValueError):
    """There is no such model; the message is one line."""


class LiveFailed(RuntimeError):
    """The model could not be asked, or there is nothing to ask about; the message is one line."""


def _asked(
    found: Diagnosis,
    options: DiagnoseOptions,
    labels: Sequence[tuple[str, str, bool]],
    similarity: Similarity | None,
) -> Diagnosis:
    """Return the diagnosis with what a model says of the run's errors, and how it judges.

    Raises:
        BadModel: If dspy does not take the model's name, or a cap cannot be held with it.
        LiveFailed: If there is nothing to ask about, or the provider gives no reply at all.
    """
    from cuesmith.programs.comparison import one_line
    from cuesmith.programs.diagnosis.following import pairs_of
    from cuesmith.programs.diagnosis.lm_judges import VOTES
    from cuesmith.teleprompters.runtime.ledger import UnknownPrice

    inquiry = _inquiry(options)
    pairs = pairs_of(found.record, threshold=found.threshold, sample=JUDGED) if options.judge else []
    hand = labels if pairs else ()
    planned = _planned(found, options, bool(pairs))
    asked = 0 if isinstance(planned, str) else planned.requests + (planned.judgements if options.judge else 0)
    most = asked + VOTES * len({*pairs, *((rule, response) for rule, response, _ in hand)})
    within = "" if options.budget_calls is None else f", within {options.budget_calls} calls"
    print(f"cuesmith diagnose: asking {options.lm} at most {most} times{within}", file=sys.stderr)
    try:
        said = _live(planned, inquiry, options.judge, similarity)
        judged = _judged(found, inquiry, pairs, hand)
    except UnknownPrice as error:
        raise LiveFailed(f"--lm {options.lm}: {one_line(error)}") from None
    if inquiry.failure is not None and not inquiry.answered:
        raise LiveFailed(f"--lm {options.lm}: {one_line(inquiry.failure)}")
    done = (inquiry.answered, inquiry.unusable, inquiry.stopped_by, inquiry.failure, inquiry.spent)
    return replace(found, live=said, judged=judged, account=Account(str(options.lm), most, *done))


def _inquiry(options: DiagnoseOptions) -> Inquiry:
    import dspy

    from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
    from cuesmith.programs.comparison import one_line
    from cuesmith.programs.diagnosis.asking import Inquiry
    from cuesmith.teleprompters.runtime.ledger import Budget

    try:
        lm = SimulatedOptimizer() if options.lm == SIMULATED else dspy.LM(options.lm)
        return Inquiry(lm, budget=Budget(usd=options.budget_usd, calls=options.budget_calls))
    except Exception as error:  # whatever is objected to, it is the name or the cap
        raise BadModel(f"--lm {options.lm!r}: {one_line(error)}") from None


def _planned(found: Diagnosis, options: DiagnoseOptions, dispensable: bool) -> LivePlan | str:
    """Return what to ask about the run's errors; why not, if there are too few and there is something else to ask.

    Raises:
        LiveFailed: If there are too few.
    """
    from cuesmith.programs.diagnosis.live import plan

    try:
        return plan(found.record, threshold=found.threshold)
    except ValueError as error:
        if dispensable:
            return f"{str(error)[:1].upper()}{str(error)[1:]}."
        raise LiveFailed(f"--lm {options.lm}: {error}") from None


def _live(planned: LivePlan | str, inquiry: Inquiry, judge: bool, similarity: Similarity | None) -> Live:
    from cuesmith.programs.diagnosis.live import Live, live

    if isinstance(planned, str):
        return Live(None, None, planned, planned)
    return live(planned, inquiry, judge=judge, similarity=similarity)


def _judged(
    found: Diagnosis, inquiry: Inquiry, pairs: Sequence[tuple[str, str]], hand: Sequence[tuple[str, str, bool]]
) -> tuple[Following, ...]:
    """Have a model judge how the returned prompts are followed; nothing if it gives out."""
    from cuesmith.programs.diagnosis.following import following
    from cuesmith.programs.diagnosis.lm_judges import JudgeFailed, RuleJudge

    if not pairs:
        return ()
    judge = RuleJudge(inquiry)
    try:
        judge.prefetch([*((rule, response) for rule, response, _ in hand), *pairs])
        if inquiry.stopped_by is not None and all(judge(*pair) is None for pair in pairs):
            return ()
        return following(found.record, judge=judge, hand=hand, threshold=found.threshold, sample=JUDGED)
    except JudgeFailed:
        return ()


def _labels(options: DiagnoseOptions) -> Sequence[tuple[str, str, bool]]:
    from cuesmith.programs.diagnosis.lm_judges import HAND, labels_of

    return HAND if options.labels is None else labels_of(options.labels)


def _title(record: RunRecord) -> str:
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
    from cuesmith.teleprompters.runtime.ledger import stopped

    record = found.record
    early = f" It was {stopped(record.stopped_by)}." if record.stopped_by else ""
    subtitle = f"{record.directory}: {len(record.trials)} candidates in {len(record.steps)} steps.{early}"
    quotes = [Quote("The returned prompts", prompt_text(record.best))]
    if difference := prompt_diff(record.baseline, record.best):
        quotes.append(Quote("What changed from the student's prompts", difference))
    return html(_title(record), f"{subtitle} {' '.join(found.notes)}", found.sections, quotes)
