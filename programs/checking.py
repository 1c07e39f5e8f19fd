"""Is it worth compiling? What is known of a program before money is spent on a search, and one sentence on it.

Source: ours. Public work found every second optimizer run ending below the prompt that it began with; most of what
makes a search pointless can be seen beforehand, in some hundred calls.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import dspy

from cuesmith.programs import report
from cuesmith.programs.comparison import one_line
from cuesmith.programs.costing import CompileCost, compile_costs, entrants
from cuesmith.programs.probing import SAMPLE, ProbePlan, Probes, probe
from cuesmith.programs.readings import Failures, Noise, Tried
from cuesmith.programs.verdicts import CheckFigures, Finding, conclude, figures_of, in_percent, in_points
from cuesmith.teleprompters.compiler import (
    FRESH_EXAMPLES,
    Compiler,
    check_examples,
    check_prices,
    check_program,
    optimizer_model,
)
from cuesmith.teleprompters.runtime._dspy import is_free, models_of, named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate, Json
from cuesmith.teleprompters.runtime.checks import folder, whole
from cuesmith.teleprompters.runtime.compilation import Forecast, Note
from cuesmith.teleprompters.runtime.events import Callback
from cuesmith.teleprompters.runtime.interruption import Interruption, run_coroutine
from cuesmith.teleprompters.runtime.ledger import Budget, Spent, stopped
from cuesmith.teleprompters.runtime.metric import Metric, MetricFunction
from cuesmith.teleprompters.runtime.preflight import check_corpus, check_gold, check_inputs
from cuesmith.teleprompters.runtime.remarks import OF_A_COMPILE
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import CAPS, CompileError, Job, Session
from cuesmith.teleprompters.runtime.splitting import split_examples
from cuesmith.teleprompters.runtime.statistics import Estimate95

DRAWS = 3
"""Draws of each example that is drawn again, the first included. Ours."""


@dataclass(frozen=True)
class Check:
    """What is known of a program before a search.

    Attributes:
        verdict: One sentence on whether to compile, with its reason.
        finding: What decided it, in one word: "headroom", "perfect", "metric", "form", "noise", "few", ...
        worth: Whether to compile; None where the figures do not say.
        figures: The student's score, its failures, noise, generic prompts, examples needed.
        costs: Of each compiler on this program and data, at most; the cheapest first.
        forecast: Upper bounds of the check's own calls, known before the first.
        spent: What the check has used.
        stopped_by: The cap that ended it early; None if none did.
        notes: What else a reader should know.
    """

    verdict: str
    finding: Finding
    worth: bool | None
    figures: CheckFigures
    costs: tuple[CompileCost, ...]
    forecast: Forecast
    spent: Spent
    stopped_by: str | None = None
    notes: tuple[Note, ...] = field(default=())

    @property
    def student(self) -> Estimate95 | None:
        """The student's score with its interval, in the metric's unit; None if it has none."""
        return self.figures.student

    @property
    def failures(self) -> Failures:
        """How its runs ended."""
        return self.figures.failures

    @property
    def noise(self) -> Noise | None:
        """Of repeated draws; None if nothing was drawn twice."""
        return self.figures.noise

    @property
    def tried(self) -> tuple[Tried, ...]:
        """Generic prompts, the best first."""
        return self.figures.tried

    def lines(self) -> list[str]:
        """The figures behind the verdict, a sentence each, as plain text."""
        return [*_told(self.figures), *self._ended(), *(str(note) for note in self.notes)]

    def _ended(self) -> list[str]:
        used, bound = self.spent.total, self.forecast
        paid = "price unknown" if used.usd is None else f"${used.usd:.4f}"
        stop = f"; it was {stopped(self.stopped_by)}" if self.stopped_by else ""
        return [f"This check used {used.calls:,} calls (at most {bound.calls:,} foreseen), {paid}{stop}."]

    def to_markdown(self) -> str:
        """Return the check as Markdown: the verdict, the figures, what each compiler would cost."""
        table = ["| compiler | calls at most | to the optimizer | USD at most |", "|---|---|---|---|"]
        for cost in self.costs:
            if cost.forecast is None:
                table.append(f"| {cost.name} | {report.markdown(cost.reason)} | | |")
                continue
            usd = "price unknown" if cost.usd is None else f"{cost.usd:.2f}"
            table.append(f"| {cost.name} | {cost.forecast.calls:,} | {cost.forecast.optimizer_calls:,} | {usd} |")
        figures = [f"- {report.markdown(line)}" for line in self.lines()]
        return "\n".join([f"**{report.markdown(self.verdict)}**", "", *figures, "", *table]) + "\n"

    def to_json(self) -> dict[str, Json]:
        """Return everything as JSON data."""
        return {
            "verdict": self.verdict,
            "finding": self.finding,
            "worth": self.worth,
            **_figures_json(self.figures),
            "costs": [cost.to_json() for cost in self.costs],
            "forecast": {"calls": self.forecast.calls, "program_runs": self.forecast.program_runs},
            "spent": report.spent_json(self.spent),
            "seconds": round(self.spent.seconds, 2),
            "stopped_by": self.stopped_by,
            "notes": [str(note) for note in self.notes],
        }


def check(
    program: dspy.Module,
    *,
    metric: MetricFunction,
    data: Sequence[dspy.Example],
    lm: dspy.BaseLM | None = None,
    optimizer_lm: dspy.BaseLM | str | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    compilers: Sequence[str] | None = None,
    trainset: Sequence[dspy.Example] | None = None,
    valset: Sequence[dspy.Example] | None = None,
    sample: int = SAMPLE,
    draws: int = DRAWS,
    run_dir: str | os.PathLike[str] | None = None,
    max_in_flight: int = 32,
    callbacks: Sequence[Callback] = (),
) -> Check:
    """Find out, in some hundred calls of the program's own model, whether a compile is worth its money.

    The optimizer model is not asked anything. `check_forecast` says beforehand how many calls there are at most.

    Args:
        program: The program as it would be compiled; stays untouched.
        metric: As compilers take it.
        data: All examples that there are to compile and to compare with, inputs marked.
        lm: The model of predictors that carry none; the configured one by default.
        optimizer_lm: The model that would write prompts, for its price; the program's by default.
        budget: Hard caps over all of it.
        seed: Chooses the sample.
        compilers: Names of those whose cost is wanted; all by default.
        trainset: As a compile would be given it, for what that keeps for its report and costs; `data` by default.
        valset: Likewise; None if there would be none.
        sample: Examples that the program is scored on, at most.
        draws: Of the same example, to see how steady scores are; 1 draws none again.
        run_dir: Keeps a journal: the same check goes on there, and pays for no recorded call again.
        max_in_flight: Calls at once.
        callbacks: Get the events of the run; the first has the forecast.

    Raises:
        TypeError, ValueError: If an argument is wrong; nothing has been called then.
        CompileError: If the provider refuses the calls.
        JournalError: If `run_dir` is in use or holds another run.
        Interrupted: After Ctrl-C, and `Terminated` after SIGTERM: nothing was compiled, so there is no program.
    """
    plan, target, optimizer = _prepared(program, metric, data, lm, optimizer_lm, sample, draws, seed)
    named = entrants(compilers)
    bound, judge, budget = plan.forecast, Metric(metric), Budget.of(budget)
    notes = (
        *check_inputs(program, data=data),
        *check_corpus(judge, plan.sample, program),
        *run_coroutine(lambda: check_gold(judge, data, program, None)),
    )
    seen = Probes()

    async def search(run: Run) -> Candidate:
        await probe(run, plan, seen)
        return run.baseline

    job = Job(
        "check",
        search,
        program,
        judge,
        plan.split,
        target,
        optimizer,
        budget,
        seed,
        max_in_flight,
        600.0,
        folder("run_dir", run_dir),
        {"draws": draws},
        bound,
        callbacks,
        notes,
    )
    check_prices(budget, job.lms)
    session = Session(job)
    failed = _conducted(session)
    student = session.effects.so_far(session.effects.baseline, plan.sample)
    lms = models_of(program, target, target)
    trained = data if trainset is None else trainset
    fresh = split_examples(trained, valset, seed=seed, n_select=Compiler.scoring, n_fresh=FRESH_EXAMPLES).fresh
    figures = figures_of(seen, student, data, len(fresh), deterministic=all(map(_is_steady, lms)))
    stopped = session.gate.stopped_by
    found = conclude(figures, failed=failed, stopped_by=stopped)
    return Check(
        found.sentence,
        found.finding,
        found.worth,
        figures,
        compile_costs(
            program,
            named,
            metric=metric,
            trainset=trained,
            valset=valset,
            optimizer_lm=optimizer,
            run_price=_run_price(session, target),
        ),
        bound,
        session.ledger.spent(),
        stopped,
        _notes(session, plan, draws),
    )


def check_forecast(
    program: dspy.Module, data: Sequence[dspy.Example], *, sample: int = SAMPLE, draws: int = DRAWS
) -> Forecast:
    """Return upper bounds of the calls of `check` with these arguments; calls nothing.

    A reply that does not parse makes dspy ask once more, and a metric may call models too: both come on top.

    Raises:
        TypeError, ValueError: As `check`.
    """
    plan = _planned(program, data, sample, draws, 0)
    return plan.forecast


def _planned(program: dspy.Module, data: Sequence[dspy.Example], sample: int, draws: int, seed: int) -> ProbePlan:
    check_program("program", program)
    check_examples("data", data, program)
    if not data:
        raise ValueError("data is empty: give at least one dspy.Example, better 100 or more")
    sample, draws = whole("sample", sample, least=1), whole("draws", draws, least=1)
    return ProbePlan.of(program, data, sample=sample, draws=draws, seed=whole("seed", seed, least=0))


def _prepared(
    program: dspy.Module,
    metric: MetricFunction,
    data: Sequence[dspy.Example],
    lm: dspy.BaseLM | None,
    optimizer_lm: dspy.BaseLM | str | None,
    sample: int,
    draws: int,
    seed: int,
) -> tuple[ProbePlan, dspy.BaseLM | None, dspy.BaseLM]:
    plan = _planned(program, data, sample, draws, seed)
    target = lm if lm is not None else dspy.settings.lm
    if target is None and any(predictor.lm is None for _, predictor in named_predictors(program)):
        raise ValueError("no language model for the program: give lm=..., or call dspy.configure(lm=...)")
    if not isinstance(target, dspy.BaseLM | None):
        raise TypeError(f"lm must be a dspy.LM, got {type(target).__name__}")
    own = next((p.lm for _, p in named_predictors(program) if p.lm is not None), None)
    optimizer = optimizer_model(optimizer_lm) or target or own
    assert optimizer is not None
    return plan, target, optimizer


def _conducted(session: Session) -> str:
    """Run the check; return why nothing could be scored, "" if something was.

    Raises:
        CompileError: If the provider refuses the calls.
    """
    try:
        Interruption(compiles=False).run(session.compile)
    except CompileError as error:
        if error.stopped_by is not None and error.stopped_by not in CAPS:
            raise
        return "" if error.stopped_by else f"{one_line(error)}."
    return ""


def _is_steady(lm: dspy.BaseLM) -> bool:
    return bool(lm.kwargs.get("temperature") == 0)


def _run_price(session: Session, target: dspy.BaseLM | None) -> float | None:
    """Return what a run of the program has cost; None if that is not known, as where a cache has answered."""
    effects = session.effects
    keys = [effects.key(effects.baseline, example) for example in effects.select]
    used = [effects.costs[key] for key in keys if key in effects.costs]
    if target is not None and is_free(target) and not any(each.usd for each in used):
        return 0.0
    paid = [each.usd for each in used if each.calls and not each.cache_hits]
    known = [usd for usd in paid if usd is not None]
    return sum(known) / len(known) if known and len(known) == len(paid) else None


def _notes(session: Session, plan: ProbePlan, draws: int) -> tuple[Note, ...]:
    said = [note for note in session.effects.notes if note.kind not in OF_A_COMPILE | {"length"}]
    if plan.draws < draws:
        said.append(
            Note(
                "draws",
                "Predictors carry models of their own, which are not drawn from again: noise was not "
                "measured. Give lm= in place of set_lm() to see it.",
            )
        )
    return tuple(said)


def _told(figures: CheckFigures) -> list[str]:
    """The figures, a sentence each."""
    lines, failures, noise = [], figures.failures, figures.noise
    if figures.student is not None:
        lines.append(
            f"The student scores {in_percent(figures, figures.student)} of 100 (n = {figures.student.n}; 95 % "
            f"interval); the full score is {figures.scale.top:g}."
        )
        lines.append(
            f"Of {failures.failed} failures {failures.of_form} are of form ({failures.unread} unreadable, "
            f"{failures.beside} right beside other words), {failures.of_content} of content; {failures.missing} "
            "runs have no score."
        )
    if failures.first:
        lines.append(f"The first that cannot be read: {one_line(failures.first)}")
    if noise is not None:
        lines.append(_of_noise(figures, noise))
    for one in figures.tried:
        lines.append(
            f"Generic prompt ({one.name}): {in_percent(figures, one.score)}, {in_points(figures, one.gain)} "
            f"over the student, p = {one.p_value:.2g} (Holm)."
        )
    shows = "no gain" if figures.visible is None else f"no gain below {figures.visible} points"
    lines.append(f"{_needed(figures)} A compile of this data keeps {figures.fresh}, which show {shows}.")
    return lines


def _needed(figures: CheckFigures) -> str:
    """Say how many examples it takes, and what that rests on."""
    (ten, five), pilot = figures.needed, figures.needed_as_seen
    told = f"A gain of 10 points takes at least {ten} fresh examples to be seen, one of 5 takes {five}"
    rests = "two-sided at 5 %, in 8 of 10 such studies; scores of 0 and 1 of which none becomes worse"
    if pilot is None:
        return f"{told} ({rests})."
    return f"{told} ({rests}); {pilot[0]} and {pilot[1]} if answers change as much as under a generic prompt here."


def _of_noise(figures: CheckFigures, noise: Noise) -> str:
    best = f"the best of {noise.draws} draws scores {in_percent(figures, noise.best)}"
    if noise.deterministic and not noise.moved:
        return (
            f"The model runs at temperature 0 and is deterministic: {noise.draws} draws of {noise.examples} examples "
            "scored the same."
        )
    why = "at temperature 0, yet " if noise.deterministic else ""
    return (
        f"Between {noise.draws} draws of the same example the score moved on {noise.moved} of {noise.examples} ({why}"
        f"standard deviation {noise.within:.2g}); {best}. The metric judged {noise.judged_apart} of {noise.alike} "
        "pairs of equal answers differently."
    )


def _figures_json(figures: CheckFigures) -> dict[str, Json]:
    noise, failures = figures.noise, figures.failures
    return {
        "student": None if figures.student is None else report.estimate_json(figures.student),
        "scale": {"low": figures.scale.low, "top": figures.scale.top},
        "metric_on_right_answers": list(figures.gold),
        "metric_on_other_answers": list(figures.mistaken),
        "failures": {**vars(failures), "of_form": failures.of_form, "of_content": failures.of_content},
        "noise": None
        if noise is None
        else {
            "examples": noise.examples,
            "draws": noise.draws,
            "moved": noise.moved,
            "within": round(noise.within, 6),
            "deterministic": noise.deterministic,
            "equal_answers": noise.alike,
            "judged_apart": noise.judged_apart,
            "best": report.estimate_json(noise.best),
            "best_over_first": report.gain_json(noise.gained),
        },
        "generic_prompts": [one.to_json() for one in figures.tried],
        "most_frequent_label": round(figures.guess, 6) or None,
        "needed": {"10 points": figures.needed[0], "5 points": figures.needed[1]},
        "needed_as_seen": None
        if figures.needed_as_seen is None
        else {"10 points": figures.needed_as_seen[0], "5 points": figures.needed_as_seen[1]},
        "fresh": {"examples": figures.fresh, "shows_points": figures.visible},
    }
