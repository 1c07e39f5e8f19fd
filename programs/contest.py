"""Compilers, seeds and models in one table: what each gains over the student on examples that none of them saw.

The student's held-out scores are paid once a model; one budget covers all, a share of it each compile alike; a compile
that fails is a row that says why. What varies between compiles of one compiler is the seed: with several the interval
takes the compile as the unit (`spread`). Source: ours.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias, TypeVar

import dspy

from cuesmith.programs.comparison import one_line, why_missing
from cuesmith.programs.contest_table import Contest, ContestEntry, ContestRow
from cuesmith.programs.costing import CompileCost, Compilers, Entrant, compile_costs, entrants
from cuesmith.programs.spread import Spread, spread
from cuesmith.programs.studies.bench import by_example
from cuesmith.teleprompters.compiler import check_examples, check_prices, check_program, optimizer_model
from cuesmith.teleprompters.registry import compiler_of
from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate, question_key
from cuesmith.teleprompters.runtime.checks import folder, whole
from cuesmith.teleprompters.runtime.corpus_statistics import gain_of
from cuesmith.teleprompters.runtime.events import Callback, Event, SpentChanged
from cuesmith.teleprompters.runtime.interruption import Interrupted, Interruption
from cuesmith.teleprompters.runtime.journal import JournalError
from cuesmith.teleprompters.runtime.ledger import Budget, Cap, Spent, Usage
from cuesmith.teleprompters.runtime.metric import Metric, MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Outcome, ProviderFailure, Scores
from cuesmith.teleprompters.runtime.preflight import check_inputs
from cuesmith.teleprompters.runtime.redaction import Redactor
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import CompileError, Job, Session
from cuesmith.teleprompters.runtime.splitting import Split
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95

__all__ = [
    "Contest",
    "ContestEntry",
    "ContestInterrupted",
    "ContestRow",
    "Models",
    "compare_compilers",
    "contest_forecast",
]

Models: TypeAlias = Mapping[str, dspy.BaseLM | str] | Sequence[dspy.BaseLM | str] | dspy.BaseLM | str
"""Models of a program: one, several, or label -> model."""

T = TypeVar("T")

HELD_OUT_SHARE = 0.5
"""At most this share of what is left of a cap is kept for held-out scores. Ours."""

LONGER = 1.5
"""How much more a held-out run of a compiled program is allowed to take than one of the student. Ours."""


class ContestInterrupted(Interrupted):
    """Ctrl-C has ended a comparison.

    Attributes:
        contest: What was done by then.
    """

    def __init__(self, message: str, contest: Contest, program: dspy.Module | None = None) -> None:
        """Remember how far it came."""
        super().__init__(message, program)
        self.contest = contest


def compare_compilers(
    program: dspy.Module,
    compilers: Compilers,
    *,
    metric: MetricFunction,
    trainset: Sequence[dspy.Example],
    testset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example] | None = None,
    lms: Models | None = None,
    optimizer_lm: dspy.BaseLM | str | None = None,
    seeds: Sequence[int] = (0,),
    budget: Budget | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    max_in_flight: int = 32,
    callbacks: Sequence[Callback] = (),
    stage: Callable[[str], None] = lambda text: None,
) -> Contest:
    """Compile with several compilers, seeds and models, and compare all with the student on held-out examples.

    Args:
        program: The student; stays untouched.
        compilers: Names; or name -> options; or any label -> `cuesmith.Entrant(name, options)`.
        metric: As compilers take it.
        trainset: As `Compiler.compile` takes it.
        testset: Held-out examples; those that stand in the other sets too are left out.
        valset: As `Compiler.compile` takes it.
        lms: Models of the program: one, several, or label -> model; the configured one by default.
        optimizer_lm: The model that writes prompts; each program's own model by default.
        seeds: One compile each.
        budget: Caps over everything. What is left after the students' held-out scores, and what is kept for the
            compiled programs', is shared out among all compiles alike.
        run_dir: A folder; each compile has one within it. The same comparison goes on there, pays for no recorded call
            again, and may have further compilers, seeds and models. `contest.json` has what is done.
        max_in_flight: Calls at once.
        callbacks: Get the events of every compile.
        stage: Is told what is done next.

    Raises:
        TypeError, ValueError: If an argument is wrong; nothing has been called then. Also if the budget turns out to
            be too small for one compile.
        CompileError: If the student has no score on any model.
        JournalError: If `run_dir` is in use or holds another comparison.
        ContestInterrupted: After Ctrl-C, with what was done by then.
    """
    named, chosen = entrants(compilers), _models(program, lms)
    seeds = tuple(dict.fromkeys(whole("seed", seed, least=0) for seed in seeds))
    if not seeds:
        raise ValueError("seeds is empty: give at least one")
    held_out = _held_out(program, trainset, valset, testset)
    writer = optimizer_model(optimizer_lm)
    for one in named.values():
        with suppress(ImportError):  # its row will say so
            compiler_of(one.compiler, metric, **one.options)
    budget = Budget.of(budget)
    check_prices(budget, [*chosen.values(), *([writer] if writer is not None else [])])
    compiles = [_Compile(label, model, seed) for seed in seeds for model in chosen for label in named]
    runs = len(held_out) * (len(chosen) + len(compiles)) * len(named_predictors(program))
    if budget.calls is not None and budget.calls < runs + len(compiles):
        raise ValueError(
            f"Budget(calls={budget.calls}) is too small: the held-out scores of {len(compiles)} compiles and "
            f"{len(chosen)} students alone take {runs:,} calls"
        )
    with _folder(run_dir) as place:
        running = _Running(
            program,
            named,
            metric,
            trainset,
            valset,
            held_out,
            chosen,
            writer,
            budget,
            place,
            run_dir is not None,
            max_in_flight,
            tuple(callbacks),
            stage,
        )
        return running.all(compiles)


def contest_forecast(
    program: dspy.Module,
    compilers: Compilers,
    *,
    metric: MetricFunction,
    trainset: Sequence[dspy.Example],
    testset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example] | None = None,
    optimizer_lm: dspy.BaseLM | str | None = None,
    models: int = 1,
    seeds: int = 1,
) -> tuple[int, tuple[CompileCost, ...]]:
    """Return the calls of a comparison at most, and what one compile of each compiler takes; calls nothing.

    Args:
        program: As `compare_compilers` takes it, and likewise the others.
        models: How many models.
        seeds: How many seeds.

    Raises:
        TypeError, ValueError: As `compare_compilers`.
    """
    held_out = _held_out(program, trainset, valset, testset)
    costs = compile_costs(
        program,
        entrants(compilers),
        metric=metric,
        trainset=trainset,
        valset=valset,
        optimizer_lm=optimizer_model(optimizer_lm),
    )
    judged = len(held_out) * len(named_predictors(program)) * (1 + seeds * len(costs))
    return models * (judged + seeds * sum(cost.forecast.calls for cost in costs if cost.forecast)), costs


class _Compile(NamedTuple):
    label: str
    model: str
    seed: int

    def __str__(self) -> str:
        return f"{self.label} (seed {self.seed}) on {self.model}"


@dataclass
class _Running:
    """A comparison under way."""

    program: dspy.Module
    named: Mapping[str, Entrant]
    metric: MetricFunction
    trainset: Sequence[dspy.Example]
    valset: Sequence[dspy.Example] | None
    held_out: tuple[dspy.Example, ...]
    models: Mapping[str, dspy.BaseLM]
    writer: dspy.BaseLM | None
    budget: Budget
    folder: Path
    kept: bool
    max_in_flight: int
    callbacks: tuple[Callback, ...]
    stage: Callable[[str], None]
    begun: float = field(default_factory=time.monotonic)
    students: dict[str, Scores] = field(default_factory=dict)
    paid: dict[str, Usage] = field(default_factory=dict)
    judged: dict[tuple[str, str], Scores] = field(default_factory=dict)
    entries: dict[_Compile, ContestEntry] = field(default_factory=dict)
    rows: dict[tuple[str, str], ContestRow] = field(default_factory=dict)
    share: Budget = field(default_factory=Budget)
    used: Usage = field(default_factory=Usage)
    left: list[_Compile] = field(default_factory=list)
    before: dict[_Compile, float] = field(default_factory=dict)

    def all(self, compiles: Sequence[_Compile]) -> Contest:
        """Score the students, then compile and score one after the other."""
        self.left = list(compiles)
        self.before = _kept(self.folder / "contest.json", _seconds) or {}  # it is written anew after each compile
        try:
            refused = self._students()
            self.share = self._shared()
            for one in compiles:
                entry = ContestEntry(*one, error=refused[one.model]) if one.model in refused else self._compiled(one)
                self.entries[one] = entry
                self.rows.pop((one.label, one.model), None)
                self.left.remove(one)
                self._write()
        except Interrupted as stop:
            done = f"{len(self.entries)} of {len(compiles)} compiles are done"
            go_on = "the same comparison goes on from there" if self.kept else "give run_dir= to be able to go on"
            raise ContestInterrupted(f"interrupted: {done}; {go_on}", self.contest(), stop.program) from None
        return self.contest()

    def contest(self) -> Contest:
        """Return what is done; a row is worked out once, until one more compile belongs to it."""
        for key in {(one.label, one.model) for one in self.entries} - self.rows.keys():
            self.rows[key] = self._row(*key)
        keys = [(label, model) for model in self.students for label in self.named]
        rows, places = [self.rows[key] for key in keys if key in self.rows], list(self.students)
        rows.sort(key=lambda row: (places.index(row.model), *row.rank))
        return Contest(
            tuple(rows),
            dict(self.students),
            len(self.held_out),
            self.share,
            self.used,
            time.monotonic() - self.begun,
            tuple(map(str, self.left)),
        )

    def _students(self) -> dict[str, str]:
        """Score the student on each model; return those on which it has no score, with the reason."""
        refused = {}
        for model in self.models:
            self.stage(f"the student on held-out examples, {model}")
            try:
                student, self.paid[model] = self._scored(model, Candidate.of(self.program), self._budget_left())
            except CompileError as error:
                if len(self.models) == 1:
                    raise
                self.used += error.spent.total
                refused[model], self.students[model] = f"the student: {self._told(error)}", self._nothing()
                continue
            self.students[model] = student
            self.used += self.paid[model]
        if len(refused) == len(self.models):
            raise CompileError("; ".join(f"{model}: {reason}" for model, reason in refused.items()))
        return refused

    def _nothing(self) -> Scores:
        missing = tuple(ProviderFailure("not scored") for _ in self.held_out)
        return Scores(Candidate.of(self.program), self.held_out, missing)

    def _compiled(self, one: _Compile) -> ContestEntry:
        """Compile and score; what fails is an entry that says why."""
        label, model, seed = one
        chosen, begun = self.named[label], time.monotonic()
        used: Spent | None = None

        def look(event: Event) -> None:
            nonlocal used
            used = event.spent if isinstance(event, SpentChanged) else used or Spent()

        given = {
            "optimizer_lm": self.writer,
            "budget": self.share,
            "seed": seed,
            "progress": False,
            "max_in_flight": self.max_in_flight,
            "callbacks": (look, *self.callbacks),
            **chosen.options,
        }
        self.stage(str(one))
        before = self._seconds_before(one)
        try:
            with dspy.context(lm=self._carried(model)):
                compiled = compiler_of(chosen.compiler, self.metric, **given).compile(
                    self.program,
                    trainset=self.trainset,
                    valset=self.valset,
                    run_dir=self._folder(one) if self.kept else None,
                )
        except Exception as error:  # compilers are other people's code too: the others go on
            used = error.spent if isinstance(error, CompileError) else used
            total = None if used is None else used.total
            self.used += total or Usage()
            return ContestEntry(*one, used=total, seconds=before + time.monotonic() - begun, error=self._told(error))
        made = compiled.compilation
        self.used += made.spent.total
        seconds = before + time.monotonic() - begun
        entry = ContestEntry(*one, used=made.spent.total, compilation=made, seconds=seconds, program=compiled)
        return self._judged(one, entry)

    def _judged(self, one: _Compile, entry: ContestEntry) -> ContestEntry:
        """Add the held-out score."""
        assert entry.compilation is not None
        best, student = entry.compilation.best.candidate, self.students[one.model]
        known = self.judged.get((one.model, best.id)) or (student if best == student.candidate else None)
        if known is not None:
            return replace(entry, scores=known, gain=gain_of(student, known))
        self.stage(f"{one} on held-out examples")
        try:
            budget = self._budget_left(len(self.left) - 1)
            if best.prompter:
                assert entry.program is not None
                scores, used = self._scored(
                    one.model, Candidate.of(entry.program), budget, entry.program, self._folder(one)
                )
            else:
                scores, used = self._scored(one.model, best, budget)
        except (CompileError, JournalError, ValueError) as error:
            if isinstance(error, CompileError) and best.prompter:  # else most of it is the student's, paid before
                self.used += error.spent.total
            return replace(entry, error=f"no held-out score: {self._told(error)}")
        self.used += used
        if not scores.n:
            return replace(entry, error=f"no held-out score: {why_missing(scores)}")
        if not scores.missing:
            self.judged[one.model, best.id] = scores
        return replace(entry, scores=scores, gain=gain_of(student, scores))

    def _scored(
        self,
        model: str,
        candidate: Candidate,
        budget: Budget,
        program: dspy.Module | None = None,
        place: Path | None = None,
    ) -> tuple[Scores, Usage]:
        """Score a candidate on the held-out examples, in a run whose journal has the student's already.

        Raises:
            CompileError: If there is no score at all.
            JournalError: If the folder holds another comparison.
        """
        kept: dict[tuple[str, int], Outcome] = {}

        async def search(run: Run) -> Candidate:
            run.guard = None  # the compile has had its own
            await by_example(run, [candidate], run.select, kept)
            return run.baseline

        student, lm = program or self.program, self._carried(model)
        before = self.paid.get(model, Usage()) if program is None else Usage()
        writer = self.writer or self.models[model]
        job = Job(
            "held-out",
            search,
            student,
            Metric(self.metric),
            Split((), self.held_out, ()),
            lm,
            writer,
            _more(budget, before),
            0,
            self.max_in_flight,
            600.0,
            (place or self.folder / _slug(model)) / "held-out",
        )
        session = Session(job)
        with dspy.context(lm=lm):
            Interruption(compiles=False).run(session.compile)
        scores = session.effects.so_far(candidate, self.held_out)
        return scores, session.effects.cost(scores)

    def _carried(self, model: str) -> dspy.BaseLM | None:
        """Return the model for predictors that carry none; None if all carry their own."""
        return None if all(p.lm is not None for _, p in named_predictors(self.program)) else self.models[model]

    def _folder(self, one: _Compile) -> Path:
        return self.folder / _slug(one.model) / f"{_slug(one.label)}-{one.seed}"

    def _seconds_before(self, one: _Compile) -> float:
        """Return the seconds that earlier sessions of the comparison took for a compile, as far as they kept them."""
        if one in self.before:
            return self.before[one]
        return _kept(self._folder(one) / "record.json", lambda record: float(record["seconds"])) or 0.0

    def _told(self, error: BaseException) -> str:
        """Return an error in one line, without a key."""
        return one_line(Redactor([*self.models.values(), *([self.writer] if self.writer else [])])(str(error)))

    def _rest(self) -> dict[Cap, float]:
        return self.budget.less(self.used, time.monotonic() - self.begun)

    def _budget_left(self, compiles: int = 0) -> Budget:
        """Return what is left of the budget, less the share of so many compiles.

        Raises:
            ValueError: If nothing is.
        """
        left: dict[str, Any] = {}
        for name, rest in self._rest().items():
            left[name] = _whole(name, rest - (getattr(self.share, name) or 0.0) * compiles)
            if left[name] <= 0:
                raise ValueError(f"nothing is left of the budget's {name}")
        return replace(Budget(), **left)

    def _shared(self) -> Budget:
        """Return what each compile may use.

        Raises:
            ValueError: If that is nothing.
        """
        runs = {model: sum(one.model == model for one in self.left) for model in self.paid}
        n, share = sum(runs.values()), dict[str, Any]()
        for name, rest in self._rest().items():
            kept = sum(runs[model] * self._judging(name, usage, rest / n) for model, usage in self.paid.items())
            share[name] = _whole(name, (rest - min(kept, HELD_OUT_SHARE * rest)) / n)
            if share[name] <= 0:
                cap = getattr(self.budget, name)
                raise ValueError(f"the budget's {name} are too few: {cap:g} leave nothing for each of {n} compiles")
        return replace(Budget(), **share)

    def _judging(self, name: str, student: Usage, each: float) -> float:
        """Return how much of a cap one compiled program's held-out score may take.

        Args:
            name: The cap.
            student: What the student's has used.
            each: What there is for a compile and its score together.
        """
        if name == "calls":
            return max(student.calls, len(self.held_out) * len(named_predictors(self.program)))
        if name == "seconds":
            return LONGER * (time.monotonic() - self.begun) / len(self.models)
        # What a cache has answered tells nothing of the price of a prompt that is new.
        return HELD_OUT_SHARE * each if student.cache_hits else LONGER * (getattr(student, name) or 0.0)

    def _row(self, label: str, model: str) -> ContestRow:
        entries = tuple(entry for one, entry in self.entries.items() if one[:2] == (label, model))
        scores = [entry.scores for entry in entries if entry.scores is not None]
        if not scores:
            return ContestRow(label, model, entries, estimate95(()), None)
        if len(scores) == 1:
            score, gain = next((e.score, e.gain) for e in entries if e.score is not None and e.gain is not None)
            one = Spread(gain.difference, gain.low, gain.high, gain.difference, gain.difference, 1)
            return ContestRow(label, model, entries, score, one)
        student = self.students[model]
        return ContestRow(label, model, entries, _pooled(scores), _over(student, scores))

    def _write(self) -> None:
        """Keep what is done where a person may look for it."""
        if self.kept:
            text = json.dumps(self.contest().to_json(), ensure_ascii=False, indent=1, allow_nan=False)
            path = self.folder / "contest.json"
            path.with_suffix(".tmp").write_text(text, encoding="utf-8")
            path.with_suffix(".tmp").replace(path)


def _pooled(compiled: Sequence[Scores]) -> Estimate95:
    """Return the held-out score of several compiles, of which each is one observation."""
    if compiled[0].together is not None:
        return estimate95(scores.score for scores in compiled)
    over = spread([scores.values for scores in compiled], [[0.0] * len(compiled[0].values)])
    least = min((v for scores in compiled for v in scores.values if v is not None), default=0.0)
    return Estimate95(over.mean, max(over.low, min(least, 0.0)), over.high, over.compiles)


def _over(student: Scores, compiled: Sequence[Scores]) -> Spread:
    """Return the gain of several compiles over the student: the compile is the unit."""
    if student.together is not None:  # judged all together: no example has a gain of its own
        gains = [scores.score - student.score for scores in compiled]
        each = estimate95(gains)
        return Spread(each.mean, each.low, each.high, min(gains), max(gains), len(gains))
    known = [place for place, v in enumerate(student.values) if v is not None]
    return spread([[scores.values[i] for i in known] for scores in compiled], [[student.values[i] for i in known]])


def _models(program: dspy.Module, lms: Models | None) -> dict[str, dspy.BaseLM]:
    """Return label -> model, the labels' folders all different."""
    carried = [predictor.lm for _, predictor in named_predictors(program) if predictor.lm is not None]
    if lms is None:
        found = [lm for lm in (dspy.settings.lm, *carried) if lm is not None][:1]
        if not found or (dspy.settings.lm is None and len(carried) < len(named_predictors(program))):
            raise ValueError("no language model for the program: give lms=..., or call dspy.configure(lm=...)")
        return {found[0].model: found[0]}
    if carried:
        raise ValueError("lms= are for predictors without a model of their own: call program.set_lm(None) first")
    if isinstance(lms, Mapping):
        pairs = list(lms.items())
    else:
        several = [lms] if isinstance(lms, str | dspy.BaseLM) else list(lms)
        pairs = [(one if isinstance(one, str) else one.model, one) for one in several]
    models = {label: dspy.LM(one) if isinstance(one, str) else one for label, one in pairs}
    if not pairs or len({_slug(label) for label in models}) < len(pairs):
        raise ValueError(
            f"lms must be models of different names, got {[label for label, _ in pairs]}: give label -> model"
        )
    return models


def _held_out(
    program: dspy.Module,
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example] | None,
    testset: Sequence[dspy.Example],
) -> tuple[dspy.Example, ...]:
    """Return the held-out examples that stand in no other set, each question once.

    Raises:
        TypeError, ValueError: If a set is wrong.
    """
    check_program("program", program)
    sets = {"trainset": trainset, "testset": testset} | ({} if valset is None else {"valset": valset})
    for name, examples in sets.items():
        check_examples(name, examples, program)
    if not trainset:
        raise ValueError("trainset is empty: give at least one dspy.Example, better 20 or more")
    check_inputs(program, **sets)
    seen = {question_key(example) for example in (*trainset, *(valset or ()))}
    kept = {question_key(example): example for example in reversed(testset)}
    found = tuple(example for key, example in reversed(kept.items()) if key not in seen)
    if not found:
        raise ValueError("testset has no example that is not in the other sets: held-out ones are what is compared on")
    return found


@contextmanager
def _folder(run_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield the folder of the comparison; without one held-out scores are kept as long as it lasts."""
    kept = folder("run_dir", run_dir)
    if kept is None:
        with TemporaryDirectory(prefix="cuesmith-") as passing:
            yield Path(passing)
    else:
        if (kept / "journal.jsonl").exists():
            raise JournalError(f"run_dir {str(run_dir)!r} holds a run that is no comparison: give a new directory")
        kept.mkdir(parents=True, exist_ok=True)
        held = os.open(kept, os.O_RDONLY)
        try:
            _lock(held, kept)
            yield kept
        finally:
            os.close(held)


def _lock(held: int, folder: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a kill frees it
    except BlockingIOError:
        told = f"run_dir {str(folder)!r} is in use: another comparison works in it. Give each its own directory"
        raise JournalError(told) from None
    except OSError:  # a file system that locks no folders: each run's journal has its own lock
        pass


def _kept(path: Path, read: Callable[[Any], T]) -> T | None:
    """Return what is read out of a file of JSON; None if it is not there."""
    try:
        return read(json.loads(path.read_bytes()))
    except (OSError, LookupError, TypeError, ValueError):
        return None


def _seconds(contest: Mapping[str, Any]) -> dict[_Compile, float]:
    return {
        _Compile(row["compiler"], row["model"], entry["seed"]): float(entry["seconds"])
        for row in contest["rows"]
        for entry in row["entries"]
        if entry["seconds"] is not None
    }


def _more(budget: Budget, replayed: Usage) -> Budget:
    """Return the budget with room for what a journal answers."""
    amounts = {"usd": replayed.usd or 0.0, "calls": replayed.calls, "tokens": replayed.tokens}
    return replace(
        budget,
        **{
            name: getattr(budget, name) + amount
            for name, amount in amounts.items()
            if getattr(budget, name) is not None
        },
    )


def _whole(name: str, amount: float) -> float:
    return math.floor(amount) if name in ("calls", "tokens") else amount


def _slug(label: str) -> str:
    """Return a label as the name of a folder: nothing in it leads elsewhere."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-.") or "model"
