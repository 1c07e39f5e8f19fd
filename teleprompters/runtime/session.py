"""One compile from end to end: split, baseline, search, report. What `Compiler` starts and a run is made of.

Source: ours. The order of the stages and what each may spend is the honest part: the search cannot see the
fresh examples, and a share of every cap is kept for the report on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import cast

import dspy

from cuesmith.teleprompters.runtime._dspy import models_of, named_predictors, prepare
from cuesmith.teleprompters.runtime.candidate import Candidate, digest
from cuesmith.teleprompters.runtime.compilation import Compilation, Compiled, CompileWarning, Forecast, Note, Report
from cuesmith.teleprompters.runtime.corpus_statistics import estimate_of, gain_of
from cuesmith.teleprompters.runtime.effects import Effects
from cuesmith.teleprompters.runtime.events import Callback, Retried, RunFinished, RunStarted, Stopped, Stream
from cuesmith.teleprompters.runtime.executors import Parcel
from cuesmith.teleprompters.runtime.gate import Gate
from cuesmith.teleprompters.runtime.identity import Identity, identity_of
from cuesmith.teleprompters.runtime.interruption import current, warn
from cuesmith.teleprompters.runtime.journal import Journal, JournalError
from cuesmith.teleprompters.runtime.ledger import Budget, Ledger, RunStopped, Spent, stopped
from cuesmith.teleprompters.runtime.metric import Metric
from cuesmith.teleprompters.runtime.origins import version_of
from cuesmith.teleprompters.runtime.outcomes import MetricError, ParseFailure, ProviderFailure, Scored, Scores, common
from cuesmith.teleprompters.runtime.provenance import Provenance, keep, provenance
from cuesmith.teleprompters.runtime.record import examples_of, record_of, write_record
from cuesmith.teleprompters.runtime.redaction import Redactor, redacted
from cuesmith.teleprompters.runtime.remarks import (
    THOUGHT,
    Seen,
    needed,
    nothing_tried,
    points,
    remarks,
    replies,
    verdict,
)
from cuesmith.teleprompters.runtime.remote import RemoteWorkers
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.scoring import Pool, Scorer
from cuesmith.teleprompters.runtime.splitting import Split
from cuesmith.teleprompters.runtime.statistics import Gain
from cuesmith.teleprompters.runtime.throttle import Throttle
from cuesmith.teleprompters.runtime.watch import TICK_S

REPORT_SHARE = 0.3
"""At most this share of a cap is kept for the final report. Ours."""

_NO_GAIN = Gain(difference=0.0, low=0.0, high=0.0, p_value=1.0, n=0)
"""The student's over itself."""

GRACE_S = 2.0
"""Seconds that what is under way may still take once the run was stopped by anything but a cap. Ours."""
CAPS = ("usd", "calls", "tokens", "seconds")


class CompileError(RuntimeError):
    """Nothing could be scored: no result exists that could be returned.

    Attributes:
        stopped_by: The cap or the circuit that ended the run; None if it was not stopped.
        spent: What it had used.
    """

    def __init__(self, message: str, *, stopped_by: str | None = None, spent: Spent | None = None) -> None:
        """Remember how far the run came."""
        super().__init__(message)
        self.stopped_by = stopped_by
        self.spent = spent or Spent()


@dataclass(frozen=True)
class Job:
    """Everything a compile is given, validated.

    Attributes:
        compiler: The compiler's class name.
        search: Its `search`; where that returns None, the best that is known is taken.
        student: The program to compile.
        metric: The judge.
        split: The examples.
        task_lm: The LM for predictors without their own; None if all carry one.
        optimizer: The model that is asked.
        budget: The caps.
        seed: Seeds every decision.
        max_in_flight: Effects at once.
        timeout: Seconds an example may take.
        run_dir: Where the journal goes; None keeps none.
        options: The compiler's options that its search depends on.
        forecast: Upper bounds.
        callbacks: Readers of the events.
        notes: What was found before the first call.
        shortest: Whether of candidates that cannot be told apart the shortest is returned.
        hedge: A call that takes more than so many times the median of its kind is sent once more.
        parcel: For the workers that run the programs; None if they run here.
        called: The compiler's name, as the registry knows it.
    """

    compiler: str
    search: Callable[[Run], Awaitable[Candidate | None]]
    student: dspy.Module
    metric: Metric
    split: Split
    task_lm: dspy.BaseLM | None
    optimizer: dspy.BaseLM
    budget: Budget
    seed: int
    max_in_flight: int
    timeout: float | None
    run_dir: Path | None
    options: Mapping[str, object] = field(default_factory=dict)
    forecast: Forecast = field(default_factory=lambda: Forecast(0, 0, 0))
    callbacks: Sequence[Callback] = ()
    notes: tuple[Note, ...] = ()
    shortest: bool = False
    hedge: float | None = None
    parcel: Parcel | None = None
    called: str = ""

    @property
    def lms(self) -> list[dspy.BaseLM]:
        """All LMs in play."""
        return models_of(self.student, self.optimizer, self.task_lm)

    @cached_property
    def identity(self) -> Identity:
        """What the run is a run of."""
        return identity_of(self.compiler, self.options, self.seed, self.student, self.split, self.metric,
                           self.task_lm, self.optimizer)  # fmt: skip


class Session:
    """The stages of one compile.

    Args:
        job: What to compile, how, and within what.

    Raises:
        JournalError: If the run directory cannot be used.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        redactor = self._redactor = Redactor(job.lms)
        self.stream = Stream(job.callbacks)
        self.journal = Journal(job.run_dir, job.identity.parts) if job.run_dir is not None else None
        self.ledger = Ledger(job.budget)
        self.throttle = Throttle(job.max_in_flight)
        self.gate = Gate(
            self.ledger,
            self.journal,
            self.throttle,
            redactor,
            lambda reason, delay, attempt: self.stream.emit(Retried(reason, delay, attempt)),
            hedge=job.hedge,
        )
        self.scorer = Scorer(job.student, job.metric, job.task_lm, Pool(self.gate, job.timeout))
        if job.parcel is not None:
            self.scorer.pool.remote = RemoteWorkers(job.parcel, self.scorer.pool)
        self.effects = Effects(self.scorer, job.split, job.optimizer, self.stream, job.seed, self.journal, job.run_dir)
        self.run = Run(self.effects)
        if (job.budget.calls, job.budget.tokens, job.budget.usd) != (None, None, None):
            self.throttle.fits = lambda runs: self.ledger.affords(self.ledger.largest, runs * self.effects.most_calls)
        self._overruled: Gain | None = None
        self._holding = False
        self._releasing = threading.Lock()
        self._search: asyncio.Future[Candidate | None] | None = None
        interruption = current()
        if interruption is not None:
            interruption.gate = self.gate

    async def compile(self) -> Compiled:
        """Run all stages and return the compiled program with its `compilation`.

        Raises:
            CompileError: If not even the student could be scored.
            asyncio.CancelledError: If it was cancelled; the best so far is then the interruption's `program`.
        """
        await asyncio.to_thread(prepare, self.job.lms)
        watchdog = asyncio.create_task(self._watch())
        try:
            self._announce()
            best = await self._searched()
            gain = await self._reported(best)
            if gain is not None and self._is_behind(best, gain):
                self._overruled, best, gain = gain, self.effects.baseline, _NO_GAIN
            await self.gate.settled()
            return self._finished(best, gain)
        except (asyncio.CancelledError, KeyboardInterrupt):
            await self._wind_up()
            raise
        except BaseException:
            self.gate.close()
            await self.effects.abandon(GRACE_S)  # what is on its way is paid for, and kept
            raise
        finally:
            watchdog.cancel()
            self._close()

    async def _watch(self) -> None:
        """Give up what is under way once the provider is silent, or the run was stopped by anything but a cap."""
        while self.gate.stopped_by is None or self.gate.stopped_by in CAPS:
            await asyncio.sleep(TICK_S)
            self.gate.check_silence()
        await self.effects.abandon(GRACE_S)
        if self._search is not None:
            self._search.cancel()

    async def _wind_up(self) -> None:
        """Keep what a cancelled compile has found, and say how to go on."""
        self.gate.stop("interrupted", "the compile was cancelled")
        await self.effects.abandon(GRACE_S)
        await self.effects.finish()
        await self.gate.drained(GRACE_S)
        self.gate.count_lost()
        interruption = current()
        if interruption is None:
            return
        calls, run_dir = self.ledger.spent().total.calls, self.job.run_dir
        found = any(v is not None for v in self.effects.known(self.effects.baseline, self.job.split.select))
        kept = "Nothing was scored yet."
        if not interruption.compiles:
            kept = "Nothing was compiled."
        elif found:
            interruption.program = self._finished(self.effects.best_so_far(), None)
            kept = "The best program so far is this exception's `program`."
        go_on = (
            f"run the same again with run_dir={str(run_dir)!r}"
            if run_dir
            else "run it again (with run_dir= it would go on)"
        )
        interruption.message = f"interrupted after {calls} calls; nothing more is sent. {kept} To go on: {go_on}."

    def _finished(self, best: Candidate, gain: Gain | None) -> Compiled:
        self.gate.count_lost()
        if self.journal is not None and self.gate.stopped_by != "journal":
            try:
                self.journal.look()
            except JournalError as error:
                self.effects.note(str(error), "record")
        compilation = self._compilation(best, gain)
        ids = self.job.split.ids
        record = redacted(record_of(compilation, self.run, self.job.split.fresh, ids), self._redactor)
        if self.job.run_dir is not None:
            try:
                write_record(self.job.run_dir, {**record, **redacted(examples_of(self.run, ids), self._redactor)})
            except (OSError, JournalError) as error:
                note = Note("record", f"The run's record could not be written: {error}.")
                compilation = replace(compilation, notes=(*compilation.notes, note))
        compilation = replace(compilation, record=record)
        self.stream.emit(RunFinished(compilation))
        program = self.scorer.program(best)
        program._compiled = True
        program.compilation = compilation
        if compilation.provenance is not None:
            keep(program, compilation.provenance, self.job.student)
        return cast(Compiled, program)

    def _close(self) -> None:
        self.gate.close()
        self.scorer.pool.close()
        if self.journal is not None:
            with contextlib.suppress(JournalError):  # a full disk is no reason to lose the result
                self.journal.volatile(self.job.identity.changed(self.scorer.ran(self.effects.baseline)))
            self.journal.close()

    def _announce(self) -> None:
        job, split = self.job, self.job.split
        if self.journal is not None and job.identity.unread:
            self.effects.note(job.identity.unread, kind="identity")
        self.stream.emit(
            RunStarted(
                job.compiler,
                str(job.run_dir) if job.run_dir else None,
                self.journal is not None and self.journal.resumed,
                tuple(self.run.predictors),
                len(split.train),
                len(split.select),
                len(split.fresh),
                job.forecast,
            )
        )
        for note in (*split.notes, *job.notes):
            self.effects.note(note.text, note.kind)

    async def _searched(self) -> Candidate:
        effects, found = self.effects, None
        try:
            scores = (await effects.score([effects.baseline], effects.select))[0]
            self.gate.check()
            self._require_scores(scores)
            effects.weigh(scores)
            self._hold_back(scores)
            self._search = asyncio.ensure_future(self.job.search(self.run))
            found = await self._search
        except (RunStopped, asyncio.CancelledError) as stop:
            if isinstance(stop, asyncio.CancelledError) and _is_cancelled():
                raise
            self.stream.emit(Stopped(self.gate.stopped_by or str(stop), self.gate.reason))
            self._require_any()
        await effects.finish()
        if self.gate.stopped_by is not None:
            await self.gate.drained(GRACE_S)
        best = effects.best_so_far()
        best = best if found is None else self._better_of(found, best)
        return effects.shortest_as_good(best) if self.job.shortest else best

    def _better_of(self, found: Candidate, best: Candidate) -> Candidate:
        """Return the search's choice, unless another candidate scored above it, or none above the student."""
        if best == self.effects.baseline:
            return best
        own, other = (self.effects.so_far(candidate, self.effects.select) for candidate in (found, best))
        both = common([own, other])
        return found if both and own.score_on(both) >= other.score_on(both) else best

    def _require_scores(self, scores: Scores) -> None:
        """Raise if the student has no score, or its code raised on every example: nothing to compile by."""
        if scores.n == 0:
            first = scores.outcomes[0]
            assert isinstance(first, ProviderFailure | MetricError)
            who = "the metric failed" if isinstance(first, MetricError) else "the provider failed"
            why = f"{who} on all {len(scores.outcomes)} examples; the first: {first.reason}"
            raise CompileError(why, spent=self.ledger.spent())
        if math.isnan(scores.score) and self.effects.together is not None:
            why = f"the metric's `corpus` makes nothing of the student's answers: {self.effects.together.fault}"
            raise CompileError(why, spent=self.ledger.spent())
        raised = [o.reason for o in scores.outcomes if isinstance(o, ParseFailure) and o.raised]
        if len(raised) == len(scores.outcomes):
            why = f"{raised[0]} (on all {len(raised)} examples): mend the program before compiling it"
            raise CompileError(why, spent=self.ledger.spent())

    def _require_any(self) -> None:
        """Raise if the run stopped before anything had a score."""
        if not any(v is not None for v in self.effects.known(self.effects.baseline, self.effects.select)):
            self.gate.count_lost()
            raise CompileError(
                f"{stopped(self.gate.stopped_by or 'stopped')} before anything could be scored: {self.gate.reason}",
                stopped_by=self.gate.stopped_by,
                spent=self.ledger.spent(),
            ) from None

    def _hold_back(self, baseline: Scores) -> None:
        """Keep the report's cost out of the search's reach: both programs on all fresh examples, or a share."""
        used, n = self.effects.cost(baseline), max(1, len(baseline.outcomes))
        runs, budget = 2 * len(self.job.split.fresh), self.job.budget

        def held(cap: float | None, per_run: float) -> float | None:
            return None if cap is None else min(REPORT_SHARE * cap, runs * per_run)

        calls, tokens = held(budget.calls, used.calls / n), held(budget.tokens, 1.5 * used.tokens / n)
        if runs:
            self.ledger.hold(
                Budget(
                    usd=_positive(held(budget.usd, 1.5 * (used.usd or 0.0) / n)),
                    calls=_whole(calls),
                    tokens=_whole(tokens),
                    seconds=_positive(held(budget.seconds, self.ledger.seconds / n)),
                )
            )
            self._holding = True
            self.gate.release = self._release

    def _release(self) -> bool | None:
        """Give the search what is held for the report, if so far there is nothing to report on.

        Returns:
            Whether it was given; None while runs are under way whose scores may decide it.
        """
        with self._releasing:
            # A resumed run knows more when it comes to its first new call: it does as the run has done.
            given = self.journal is not None and self.journal.get("outcomes", self._given) is not None
            if self._holding and not given and self.effects.unsettled > self.gate.at_cap:
                return None
            if not self._holding or not (given or self.effects.best_so_far() == self.effects.baseline):
                return False
            if self.journal is not None:
                self.journal.put("outcomes", self._given, {})
            self.ledger.hold(Budget())
            self._holding = False
            return True

    @property
    def _given(self) -> str:
        """The journal's key for what a run under these caps has given: other caps decide anew."""
        return f"held back for the report was given to the search: {self.job.budget}"

    async def _reported(self, best: Candidate) -> Gain | None:
        """Score the baseline and the best on the fresh examples, with what is left of the budget."""
        fresh, by = self.job.split.fresh, self.gate.stopped_by
        if not fresh:
            self.effects.note("No gain is reported: there were too few examples to keep some fresh.", "unmeasured")
            return None
        if by is not None and by not in CAPS:
            self.effects.note(f"No gain is reported: the run was {stopped(by)}.", "stopped")
            return None
        if best == self.effects.baseline:
            return _NO_GAIN
        self.ledger.hold(Budget())
        self.gate.release = lambda: False
        self.gate.reopen()
        try:
            await self.effects.score_pairwise([self.effects.baseline, best], fresh)
        except RunStopped as stop:
            by = self.gate.stopped_by or stop.by
            text = f"The report was {stopped(by)}, which left fresh scores for only a part of the examples."
            self.effects.note(text, "partial")
        gain = gain_of(self.effects.so_far(self.effects.baseline, fresh), self.effects.so_far(best, fresh))
        return gain if gain.n else None

    def _is_behind(self, best: Candidate, gain: Gain) -> bool:
        """Whether the fresh examples put the search's choice below the student, and all examples do not clearly above.

        The best of many is chosen by few examples, so that chance is a part of its score. Ours.
        """
        effects, split = self.effects, self.job.split
        if not gain.difference < 0.0:  # nor if nothing can be made of the answers all together
            return False
        examples = [*split.select, *split.fresh]
        overall = gain_of(effects.so_far(effects.baseline, examples), effects.so_far(best, examples))
        return not (overall.significant and overall.difference > 0.0)

    def _compilation(self, best: Candidate, gain: Gain | None) -> Compilation:
        job, run, by = self.job, self.effects, self.gate.stopped_by
        if self.gate.hedged:
            run.note(f"{self.gate.hedged} calls were late and sent once more; both count.", kind="hedged")
        if self.gate.cleaned:
            run.note(THOUGHT, kind="thinking")
        if self.gate.unseen:
            run.note(f"Seen only in part: {'; '.join(sorted(self.gate.unseen))}.", kind="uncounted")
        if by is not None:
            why = "" if by in CAPS else f": {self.gate.reason.rstrip('.')}"
            run.note(f"The search was {stopped(by)}{why}.", kind="stopped")
        self._remark(best, gain)
        report = self._report(best)
        return Compilation(
            compiler=job.compiler,
            baseline=self._report(run.baseline),
            best=report,
            candidates=run.trials(),
            steps=tuple(run.steps),
            gain=gain,
            spent=self.ledger.spent(),
            stopped_by=by,
            run_dir=str(job.run_dir) if job.run_dir else None,
            notes=tuple(run.notes),
            extras=dict(run.extras),
            front=run.front(),
            provenance=self._provenance(report, gain),
        )

    def _provenance(self, best: Report, gain: Gain | None) -> Provenance:
        job, split = self.job, self.job.split
        used = (*split.train, *split.select, *split.fresh)
        lms = (predictor.lm or job.task_lm for _, predictor in named_predictors(job.student))
        return Provenance(
            cuesmith=version_of("cuesmith") or "",
            compiler=job.called or job.compiler,
            seed=job.seed,
            target=", ".join(dict.fromkeys(self._redactor(str(lm.model)) for lm in lms if lm is not None)),
            optimizer=self._redactor(str(job.optimizer.model)),
            data=digest(sorted(split.ids(example) for example in used)),
            prompt=best.candidate.id,
            student=self.effects.baseline.id,
            score=best.fresh,
            gain=gain,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            earlier=provenance(job.student),
        )

    def _remark(self, best: Candidate, gain: Gain | None) -> None:
        """Note what the run has to say of itself; its result comes last."""
        run, seen = self.effects, self._seen()
        notes = [*remarks(seen), *self._unjudged(), *self._length(best), self._verdict(best, gain, seen)]
        for note in notes:
            run.note(self._redactor(note.text), note.kind)
        if seen.asked and len(seen.lost) == seen.asked:
            warn(self._redactor(replies(seen.asked, seen.lost)), CompileWarning)

    def _unjudged(self) -> Iterator[Note]:
        """Yield how many candidates a metric that judges all answers together made nothing of."""
        lost = sum(math.isnan(trial.mean) for trial in self.effects.trials())
        if lost and self.effects.together is not None:
            yield Note(
                "corpus",
                f"The metric's `corpus` made nothing of the answers of {lost} candidates, which came "
                f"last: {self.effects.together.fault}.",
            )

    def _length(self, best: Candidate) -> Iterator[Note]:
        """Yield how long the new prompt is, and what a program run with it takes."""
        run, select = self.effects, self.job.split.select
        if best == run.baseline:
            return
        text = f"The prompt has {best.size:,} characters (the student's {run.baseline.size:,})"
        used = [run.cost(Scores(c, tuple(select), ())) for c in (best, run.baseline)]
        n = [sum(v is not None for v in run.known(c, select)) for c in (best, run.baseline)]
        if all(n) and all(usage.tokens for usage in used):
            text += f"; a program run takes {used[0].tokens / n[0]:.0f} tokens ({used[1].tokens / n[1]:.0f})"
            if all(usage.usd for usage in used):
                text += f" and ${(used[0].usd or 0.0) / n[0]:.2g} (${(used[1].usd or 0.0) / n[1]:.2g})"
        yield Note("length", f"{text}.")

    def _verdict(self, best: Candidate, gain: Gain | None, seen: Seen) -> Note:
        run, fresh = self.effects, self.job.split.fresh
        if best == run.baseline:
            if any(trial.candidate != run.baseline for trial in run.trials()):
                return verdict(True, self._overruled)
            used = self.ledger.spent().by_role.get("optimizer")
            return nothing_tried(seen, self.gate.stopped_by, used.calls if used else 0)
        pairs = zip(run.known(run.baseline, fresh), run.known(best, fresh), strict=True)
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        if run.together is not None:  # what an example adds to such a gain is not known
            return verdict(False, gain)
        unit = points([score for pair in both for score in pair])
        return verdict(False, gain, needed([b - a for a, b in both], unit))

    def _seen(self) -> Seen:
        run, split = self.effects, self.job.split
        judged = ((example, run.outcome_of(run.baseline, example)) for example in split.select)
        candidates = [run.baseline, *(trial.candidate for trial in run.trials())]
        evidence = {c.id: [v for v in run.known(c, split.train) if v is not None] for c in candidates}
        return replace(
            run.seen,
            ran=run.ran,
            evidence=[v for scores in evidence.values() for v in scores],
            shown=next(((e, o) for e, o in judged if isinstance(o, Scored)), None),
        )

    def _report(self, candidate: Candidate) -> Report:
        split = (self.job.split.select, self.job.split.fresh)
        return Report(candidate, *(estimate_of(self.effects.so_far(candidate, examples)) for examples in split))


def _is_cancelled() -> bool:
    """Whether somebody has cancelled this very task, rather than one that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _positive(value: float | None) -> float | None:
    return value if value else None


def _whole(value: float | None) -> int | None:
    return math.ceil(value) if value else None
