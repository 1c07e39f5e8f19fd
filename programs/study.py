"""`cuesmith study NAME`: a question of 2402.02101 as a ready study, on generated tasks or one's own, with any models.

Without `--lm` everything runs on this machine: the target is the embedded model, and the optimizer is simulated.

Source: the questions are the paper's; designs and statistics are ours, see `cuesmith.programs.studies`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cuesmith.programs.arguments import (
    Amount,
    BadInput,
    Count,
    Model,
    RunFailed,
    Seed,
    Share,
    be_offline,
    complain,
    meant,
    metavar,
    of,
    only_one,
    values_of,
)
from cuesmith.programs.studies import STUDIES, study

if TYPE_CHECKING:
    import dspy

    from cuesmith.programs.diagnosis.figures import Section
    from cuesmith.programs.studies.bench import Bench, Findings, Study
    from cuesmith.programs.tasks import Task
    from cuesmith.teleprompters.runtime.candidate import Json
    from cuesmith.teleprompters.runtime.events import Callback

COMMAND = "cuesmith study"


@dataclass(frozen=True)
class StudySettings:
    """What to run.

    Attributes:
        name: Of the study.
        families: Generated tasks; those of the study by default.
        files: Task files, in place of generated tasks.
        lm: LiteLLM name of the target; the embedded model by default.
        optimizer_lm: LiteLLM name of the optimizer; by default that of `lm`, or the simulated one.
        prior_bias: Share of its answers in which a simulated optimizer does not look at the evidence.
        n: How large the study is; by default as it says itself.
        budget_usd: Dollars that it may cost.
        budget_calls: Calls that it may make.
        seed: Of examples and decisions.
        embedder: Name of what compares texts; None compares them by their words.
        run_dir: Where journals go; a study that is given it again goes on there.
    """

    name: str
    families: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    lm: str | None = None
    optimizer_lm: str | None = None
    prior_bias: float | None = None
    n: int | None = None
    budget_usd: float | None = None
    budget_calls: int | None = None
    seed: int = 0
    embedder: str | None = None
    run_dir: Path | None = None

    @property
    def optimizer(self) -> str | None:
        """LiteLLM name of the optimizer; None for the simulated one."""
        return self.optimizer_lm or self.lm


@dataclass(frozen=True)
class StudyReport:
    """What a study found, and what it took.

    Attributes:
        study: The study.
        tasks: What it was about.
        n: How large it was.
        bench: What was spent, and by what it was stopped.
        findings: What was found.
        seconds: It took.
    """

    study: Study
    tasks: tuple[Task, ...]
    n: int
    bench: Bench
    findings: Findings
    seconds: float


def _study_named(name: str) -> str:
    if name not in STUDIES:
        raise ValueError(f"no study is called {name!r}: {meant(name, STUDIES)}")
    return name


@Parameter(name="*")
@dataclass(frozen=True)
class StudyOptions:
    """What `cuesmith study` is told.

    Attributes:
        name: Which study.
        task: A generated task; may be repeated.
        data: A file or folder of data; may be repeated.
        lm: A LiteLLM model instead of the embedded one.
        optimizer_lm: A LiteLLM model as optimizer (default: --lm).
        prior_bias: Of the simulated optimizer: the share of its answers that ignore the evidence (default: 0).
        n: How large the study is, in the unit that it names.
        budget_usd: Dollars it may cost.
        budget_calls: Calls it may make.
        seed: Seed of examples and decisions (default: 0).
        embedder: Compare texts by this embedder, not by their words: a LiteLLM embedding model (no cap holds it), or
            st:NAME or st:FOLDER for sentence-transformers.
        run_dir: Keep journals here; goes on with what is there.
        json: Print one JSON object instead of tables.
        html: Also write the report to this file, as a page for a browser.
    """

    name: Annotated[str, of(_study_named, "NAME")]
    _: KW_ONLY
    task: Annotated[tuple[str, ...], metavar("FAMILY")] = ()
    data: Annotated[tuple[Path, ...], metavar("FILE")] = ()
    lm: Model | None = None
    optimizer_lm: Model | None = None
    prior_bias: Share | None = None
    n: Count | None = None
    budget_usd: Amount | None = None
    budget_calls: Count | None = None
    seed: Seed = 0
    embedder: Annotated[str | None, metavar("NAME")] = None
    run_dir: Annotated[Path | None, metavar("DIR")] = None
    json: bool = False
    html: Annotated[Path | None, metavar("FILE")] = None

    def __post_init__(self) -> None:
        """Check what can be checked at once.

        Raises:
            BadInput: If arguments do not go together, or there is no such file.
        """
        only_one(task=self.task, data=self.data)
        for path in self.data:
            if not path.exists():
                raise BadInput(f"--data {path}: no such file")

    @property
    def settings(self) -> StudySettings:
        """What the arguments ask for."""
        return StudySettings(**values_of(self, StudySettings, families=self.task, files=self.data))


def command(options: StudyOptions) -> int:
    """Run a ready study of reflection, refinement, demonstrations or compliance.

    Returns:
        The exit status: 0; 1 if a provider refused the calls or the page cannot be written; 2 if the arguments or the
        data are wrong.
    """
    from cuesmith.teleprompters.runtime.journal import JournalError
    from cuesmith.teleprompters.runtime.session import CAPS, CompileError

    for library in ("dspy", "LiteLLM"):  # what they warn of, call by call, is counted in the result
        logging.getLogger(library).setLevel(logging.ERROR)
    settings = options.settings
    be_offline(models=settings.optimizer is not None, embedder=settings.embedder is not None)
    if options.html is not None and (options.html.is_dir() or not options.html.parent.is_dir()):
        return complain(COMMAND, f"--html {options.html}: not a file in a folder that there is", 2)
    try:
        found = run(settings, quiet=options.json)
    except (BadInput, JournalError) as error:
        return complain(COMMAND, str(error), 2)
    except (CompileError, RunFailed) as error:
        return complain(COMMAND, str(error), 1)
    _show(settings, found, as_json=options.json)
    if options.html is not None and (problem := _write(settings, found, options.html)):
        return complain(COMMAND, f"--html {options.html}: {problem}", 1)
    return 0 if found.bench.stopped_by in (None, *CAPS) else 1


def run(settings: StudySettings, *, quiet: bool = False) -> StudyReport:
    """Run a study.

    Args:
        settings: Which, on what, with which models, within which caps.
        quiet: Whether nothing is said on standard error beforehand, and no progress is shown.

    Raises:
        BadInput: Before any call: if the settings, the tasks and the study do not fit each other.
        CompileError: If the program has no score on a task.
        JournalError: If `run_dir` is in use or holds another study.
        RunFailed: If the embedder fails.
    """
    from cuesmith.programs.diagnosis.embedders import SimilarityError
    from cuesmith.teleprompters.runtime.ledger import UnknownPrice
    from cuesmith.teleprompters.runtime.progress_bar import Progress

    chosen = study(settings.name)
    tasks, n = _tasks(settings, chosen), settings.n or chosen.n
    if n < chosen.fewest:
        raise BadInput(f"--n {n}: study {chosen.name} needs at least {chosen.fewest} {chosen.unit}")
    started = time.perf_counter()
    with Progress() as progress:
        bench = _bench(settings, () if quiet else (progress,))
        try:
            if not quiet:
                print(_announced(settings, chosen, tasks, n), file=sys.stderr)
            findings = chosen.conduct(bench, tasks, n)
        except UnknownPrice as error:
            raise BadInput(str(error)) from None
        except SimilarityError as error:
            raise RunFailed(f"--embedder: {error}") from None
        except ValueError as error:
            if bench.spent.total.calls:
                raise  # what is wrong with the arguments is found before the first call
            raise BadInput(str(error)) from None
    return StudyReport(chosen, tasks, n, bench, findings, time.perf_counter() - started)


def _bench(settings: StudySettings, callbacks: Sequence[Callback]) -> Bench:
    """Return what the study works with, once the embedder has answered: it would fail at the end, all being paid."""
    from cuesmith.programs.diagnosis.embedders import SimilarityError, similarity_named
    from cuesmith.programs.studies.bench import Bench
    from cuesmith.teleprompters.runtime.ledger import Budget

    target, optimizer = _models(settings)
    try:
        similarity = None if settings.embedder is None else similarity_named(settings.embedder)
        if similarity is not None:
            similarity.matrix(["one", "two"])
    except SimilarityError as error:
        raise BadInput(f"--embedder: {error}") from None
    try:
        return Bench(
            target,
            optimizer,
            budget=Budget(usd=settings.budget_usd, calls=settings.budget_calls),
            seed=settings.seed,
            run_dir=settings.run_dir,
            callbacks=callbacks,
            similarity=similarity,
        )
    except ValueError as error:
        raise BadInput(str(error)) from None


def _tasks(settings: StudySettings, chosen: Study) -> tuple[Task, ...]:
    from cuesmith.programs.tasks import TaskError, generate, load

    families = settings.families or chosen.families
    if not chosen.several and max(len(settings.families), len(settings.files)) > 1:
        raise BadInput(f"study {chosen.name} is about one task: give one --task or one --data")
    try:
        if settings.files:
            return tuple(load(path, sizes=chosen.sizes, seed=settings.seed) for path in settings.files)
        return tuple(generate(name, sizes=chosen.sizes, seed=settings.seed) for name in families)
    except TaskError as error:
        raise BadInput(str(error)) from None


def _models(settings: StudySettings) -> tuple[dspy.BaseLM, dspy.BaseLM]:
    from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
    from cuesmith.programs import comparison

    if settings.prior_bias is not None and settings.optimizer is not None:
        raise BadInput(f"--prior-bias {settings.prior_bias:g} is of the simulated optimizer: leave it out with a model")
    target, optimizer = comparison.models(comparison.Settings(lm=settings.lm, optimizer_lm=settings.optimizer_lm))
    simulated = settings.optimizer is None
    return target, SimulatedOptimizer(
        prior_bias=settings.prior_bias or 0.0, seed=settings.seed
    ) if simulated else optimizer


def _announced(settings: StudySettings, chosen: Study, tasks: Sequence[Task], n: int) -> str:
    from cuesmith.programs.report import visible

    most = chosen.forecast(tasks, n)
    caps = {"calls": settings.budget_calls, "dollars": settings.budget_usd}
    within = ", ".join(f"{cap:,} {unit}" for unit, cap in caps.items() if cap is not None)
    said = f"cuesmith study {chosen.name}: at most {most.calls:,} calls" + (f", cut off at {within}" if within else "")
    return visible(f"{said}; {n} {chosen.unit}; {', '.join(task.name for task in tasks)}")


def _show(settings: StudySettings, found: StudyReport, *, as_json: bool) -> None:
    from rich.console import Console

    from cuesmith.programs.diagnosis import page

    sections, console = _sections(settings, found), Console(highlight=False)
    if as_json:
        results = {"result": found.findings.result}
        console.file.write(page.as_json(_about(settings, found), sections, results) + "\n")
    else:
        page.show(_title(found), _notes(settings, found), sections, console)


def _write(settings: StudySettings, found: StudyReport, path: Path) -> str:
    """Write the report's page, and return what is wrong; nothing if it is written."""
    from cuesmith.programs.diagnosis.page import html

    try:
        path.write_text(html(_title(found), " ".join(_notes(settings, found)), _sections(settings, found)), "utf-8")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _title(found: StudyReport) -> str:
    return f"Study {found.study.name}: {found.study.question}"


def _sections(settings: StudySettings, found: StudyReport) -> tuple[Section, ...]:
    from cuesmith.programs.diagnosis.figures import Section
    from cuesmith.programs.models import EMBEDDED, SIMULATED

    simulated = [SIMULATED.caveat] if settings.optimizer is None else []
    tiny = [EMBEDDED.caveat] if settings.lm is None else []
    limits = " ".join([*found.findings.limits, *tiny, *simulated])
    return (*found.findings.sections, Section("What this does not show", limits, ()))


def _notes(settings: StudySettings, found: StudyReport) -> list[str]:
    from cuesmith.programs.report import describe_calls, usd
    from cuesmith.teleprompters.runtime.ledger import stopped

    spent, by = found.bench.spent, found.bench.stopped_by
    target, optimizer = settings.lm or "the embedded model", settings.optimizer or "the simulated optimizer"
    ran = f"{', '.join(task.name for task in found.tasks)}: {target}, with {optimizer}; {found.n} {found.study.unit}."
    calls = describe_calls({role: usage.calls for role, usage in sorted(spent.by_role.items())})
    parts = (f"calls: {calls}", usd(spent.total.usd), f"{found.seconds:.0f} seconds.")
    took = "; ".join(part for part in parts if part)
    cut = [] if by is None else [f"The study was {stopped(by)}: what follows is of what was done until then."]
    return [ran, took, *cut, *found.bench.notes]


def _about(settings: StudySettings, found: StudyReport) -> Mapping[str, Json]:
    from cuesmith.programs.report import spent_json

    return {
        "study": found.study.name,
        "question": found.study.question,
        "tasks": [task.name for task in found.tasks],
        "lm": settings.lm or "cuesmith/nano",
        "optimizer_lm": settings.optimizer or "cuesmith/simulated-optimizer",
        "prior_bias": None if settings.optimizer else settings.prior_bias or 0.0,
        "n": found.n,
        "unit": found.study.unit,
        "seed": settings.seed,
        "spent": spent_json(found.bench.spent),
        "stopped_by": found.bench.stopped_by,
        "notes": list(found.bench.notes),
        "seconds": round(found.seconds, 2),
        "limits": list(found.findings.limits),
    }
