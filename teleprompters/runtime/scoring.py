"""Runs one program on one example and judges the answer: the `score` effect at its smallest.

Every way this can end is an `Outcome`; whose fault it was decides which. Source: ours.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError

from cuesmith.teleprompters.runtime._dspy import door, runs_async
from cuesmith.teleprompters.runtime.calls import reply_texts
from cuesmith.teleprompters.runtime.candidate import Candidate, to_json
from cuesmith.teleprompters.runtime.corpus_statistics import Corpus
from cuesmith.teleprompters.runtime.gate import Effect, Gate, effect
from cuesmith.teleprompters.runtime.guards import HEADER
from cuesmith.teleprompters.runtime.interruption import current as current_interruption
from cuesmith.teleprompters.runtime.ledger import RunStopped, UnknownPrice
from cuesmith.teleprompters.runtime.lines import ThreadLine, line
from cuesmith.teleprompters.runtime.metric import BadScore, Judged, Metric
from cuesmith.teleprompters.runtime.outages import is_outage
from cuesmith.teleprompters.runtime.outcomes import (
    MetricError,
    Outcome,
    ParseFailure,
    ProviderFailure,
    Scored,
    Step,
)
from cuesmith.teleprompters.runtime.thinking import strip_thinking
from cuesmith.teleprompters.runtime.traces import Names, Trace, failed_step, steps_of
from cuesmith.teleprompters.runtime.workers import Workers

T = TypeVar("T")

GRACE = 1.0
"""Seconds that a call in flight may outlast the budget's seconds: it is paid for."""


@dataclass(frozen=True)
class Bound:
    """A candidate bound to the student, its LMs behind the gate, ready to run from many threads.

    Attributes:
        program: The bound copy.
        names: Of its predictors.
        is_async: Whether it is to be awaited.
    """

    program: dspy.Module
    names: Names
    is_async: bool


class _Unjudged(NamedTuple):
    """An answer that waits for an async metric."""

    prediction: dspy.Prediction
    steps: tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class ProgramRun:
    """A run of a program on an example, for another process.

    Attributes:
        candidate: What runs.
        example: What it runs on.
        rewritten: Values that the program gets in place of the example's own.
        draw: Number of the draw.
        current: The effect that its calls are made for.
    """

    candidate: Candidate
    example: dspy.Example
    rewritten: Mapping[str, object]
    draw: int
    current: Effect


class Elsewhere(Protocol):
    """Processes that run programs for this one."""

    @property
    def waiting(self) -> int:
        """Tasks that wait for a place."""

    @property
    def in_flight(self) -> int:
        """Tasks under way."""

    def run(self, task: ProgramRun) -> Awaitable[Outcome]:
        """Run a program there. Raises `TimeoutError` if it takes too long."""

    def close(self) -> None:
        """Let them go."""


class Pool:
    """Where a run's work is done. From its making until it is closed, calls pass the gate.

    Args:
        gate: Where all calls go through.
        timeout: Seconds an example may take before it counts as missing; None waits for ever.

    Attributes:
        remote: Where programs run instead; None if they run here.
    """

    def __init__(self, gate: Gate, timeout: float | None) -> None:
        self.gate, self.timeout = gate, timeout
        self.remote: Elsewhere | None = None
        self._workers: Workers | None = None
        door.open(gate)

    @property
    def waiting(self) -> int:
        """Runs that wait for a place. Asked from any thread, while `workers` are made on the event loop."""
        near = self._workers.pending if self._workers is not None else 0
        return near + self.gate.throttle.pending + (self.remote.waiting if self.remote is not None else 0)

    @property
    def in_flight(self) -> int:
        """Blocking work under way, here and elsewhere."""
        near = self._workers.in_flight if self._workers is not None else 0
        return near + (self.remote.in_flight if self.remote is not None else 0)

    @property
    def workers(self) -> Workers:
        """The threads for blocking work, made on first use by the event loop that uses them."""
        if self._workers is None:
            left = self.gate.ledger.seconds_left
            deadline = None if left is None else time.monotonic() + left + GRACE
            self._workers = Workers(self.gate.throttle, self.timeout, deadline)
        return self._workers

    async def in_time(self, work: Awaitable[T]) -> T:
        """Await an example's work of the event loop; its own errors that would end the loop come as `_Contained`.

        Raises:
            TimeoutError: If it takes longer than an example may, or than the budget lasts.
        """
        left = self.gate.ledger.seconds_left
        ends = [seconds for seconds in (self.timeout, None if left is None else left + GRACE) if seconds is not None]
        return await asyncio.wait_for(_contained(work), min(ends, default=None))

    def close(self) -> None:
        """Let the threads go, and calls pass as ever."""
        door.close(self.gate)
        for each in (self._workers, self.remote):
            if each is not None:
                each.close()


class Scorer:
    """Runs candidates on examples.

    Args:
        student: The program that candidates are bound to.
        metric: The judge of its answers.
        lm: The LM for predictors that carry none.
        pool: Where they run.

    Attributes:
        together: Judges all answers of a candidate together; None if the metric does not.
        fronts: Fingerprint of what may stand in front of a program (`Candidate.prompter`) -> puts it there: returns a
            new module that holds the given one.
    """

    def __init__(self, student: dspy.Module, metric: Metric, lm: dspy.BaseLM | None, pool: Pool) -> None:
        self.fronts: dict[str, Callable[[dspy.Module], dspy.Module]] = {}
        self.student, self.pool = student, pool
        self.together = None if metric.corpus is None else Corpus(metric.corpus, student)
        self.metric, self.lm, self._gate = metric, lm, pool.gate
        self._bound: dict[str, Bound] = {}
        self._has_scored = False

    def program(self, candidate: Candidate) -> dspy.Module:
        """Return a copy of the student as the candidate has it: with its prompts, and behind its prompter.

        Raises:
            KeyError: If the prompter is not known.
        """
        return self._front(candidate, candidate.bind(self.student))

    def ran(self, candidate: Candidate) -> dspy.Module | None:
        """Return the copy of the student that has run as `candidate`, as the runs have left it; None if none has."""
        bound = self._bound.get(candidate.id)
        return None if bound is None else bound.program

    def _front(self, candidate: Candidate, program: dspy.Module) -> dspy.Module:
        return self.fronts[candidate.prompter](program) if candidate.prompter else program

    async def run(
        self,
        candidate: Candidate,
        example: dspy.Example,
        current: Effect,
        *,
        rewritten: Mapping[str, object] = MappingProxyType({}),
        draw: int = 0,
    ) -> Outcome:
        """Run a candidate on an example and judge the answer.

        Args:
            candidate: What to run.
            example: Its inputs go to the program, all of it to the metric.
            current: The effect that its calls are made for.
            rewritten: Values that the program gets in place of the example's own; the metric does not see them.
            draw: Number of the draw. From 1 on the LM for predictors without their own gets it as rollout id, so
                that a cache does not give the same answer again.

        Raises:
            RunStopped: If the gate is closed.
            UnknownPrice: If the budget is in dollars and a call reports no price.
        """
        strays = self._gate.stray.failures
        if self.pool.remote is not None and not candidate.prompter:
            running: Awaitable[Outcome] = self.pool.remote.run(ProgramRun(candidate, example, rewritten, draw, current))
        else:
            running = self._run_near(candidate, example, current, rewritten, draw)
        with settling(current):
            try:
                outcome = await running
            except TimeoutError:
                return self._overdue(current)
            return _with_asides(self._settled(outcome, current, strays), current.said)

    async def _run_near(
        self, candidate: Candidate, example: dspy.Example, current: Effect, rewritten: Mapping[str, object], draw: int
    ) -> Outcome:
        """Run in this process, on the pool's threads or on the event loop."""
        bound, inputs = self._bind(candidate), {**example.inputs(), **rewritten}
        trace = Trace()
        effect.set(current)
        line.set(ThreadLine())
        with self._context(draw, trace=trace):
            if bound.is_async:
                ran = await self._run_async(bound, inputs, trace)
            else:
                ran = await self.pool.workers.submit(functools.partial(self._run, bound, example, inputs, trace))
            if not isinstance(ran, _Unjudged):
                return ran
            if self.metric.is_async:
                return await self._ajudge(example, *ran)
            return await self.pool.workers.submit(functools.partial(self._judge, example, *ran))

    def run_here(
        self,
        candidate: Candidate,
        example: dspy.Example,
        current: Effect,
        rewritten: Mapping[str, object],
        draw: int,
        awaited: Callable[[Coroutine[Any, Any, Outcome | _Unjudged]], Outcome | _Unjudged],
    ) -> Outcome:
        """Run a candidate in this thread, and judge the answer.

        Args:
            candidate: What to run.
            example: As `run` takes it.
            current: The effect that its calls are made for.
            rewritten: As `run` takes it.
            draw: As `run` takes it.
            awaited: Runs what is async to its end.
        """
        bound, inputs = self._bind(candidate), {**example.inputs(), **rewritten}
        trace = Trace()
        effect.set(current)
        line.set(ThreadLine())
        with self._context(draw, trace=trace), settling(current):
            work = functools.partial(self._run, bound, example, inputs, trace)
            ran = awaited(self._run_async(bound, inputs, trace)) if bound.is_async else work()
            if isinstance(ran, _Unjudged):
                judged = awaited(self._ajudge(example, *ran)) if self.metric.is_async else self._judge(example, *ran)
                assert not isinstance(judged, _Unjudged)
                return judged
            return ran

    def _overdue(self, current: Effect) -> Outcome:
        """Give an effect up that has taken too long."""
        current.abandoned = True
        if self._gate.ledger.seconds_left == 0.0:
            raise self._gate.stop("seconds", "the budget's cap on seconds is reached") from None
        return ProviderFailure(self._gate.note_timeout(self.pool.timeout, current.sending > 0))

    def _settled(self, outcome: Outcome, current: Effect, strays: int) -> Outcome:
        """Return the outcome, unless a call of the effect failed for good: then nothing is known of it.

        Whatever the program or the metric made of the error: what it answered then is no answer of the model's. A call
        of a thread that was there before the run is any effect's that was under way.
        """
        stray = self._gate.stray
        if current.stopped or stray.stopped:
            raise RunStopped(self._gate.stopped_by or "stopped")
        failure = current.failure or next(iter(current.refused.values()), "")
        if stray.failures > strays:
            failure = failure or stray.failure
        unfit = outcome if isinstance(outcome, ParseFailure) and outcome.unfit else None
        if failure and (unfit or isinstance(outcome, Scored | MetricError)):
            return ProviderFailure(failure)
        self._has_scored |= isinstance(outcome, Scored)
        if unfit and not self._has_scored:
            raise self._gate.stop("configuration", unfit.reason)  # it will be so on every example
        if current.failure and isinstance(outcome, ParseFailure):
            return ProviderFailure(current.failure)
        if current.cut and isinstance(outcome, Scored | ParseFailure):
            return replace(outcome, cut=current.cut)
        return outcome

    async def judge(self, example: dspy.Example, outputs: Mapping[str, object], current: Effect) -> Outcome:
        """Judge given output values as if a program had answered them on `example`."""
        effect.set(current)
        strays = self._gate.stray.failures
        prediction = dspy.Prediction(**outputs)
        with self._context(trace=[]), settling(current):
            work = functools.partial(self._judge, example, prediction, ())
            try:
                if self.metric.is_async:
                    return self._settled(await self._ajudge(example, prediction, ()), current, strays)
                return self._settled(await self.pool.workers.submit(work), current, strays)
            except TimeoutError:
                return self._overdue(current)

    def _context(self, draw: int = 0, **overrides: object) -> AbstractContextManager[None]:
        if self.lm is not None:
            overrides["lm"] = redrawn(self.lm, draw)
        context: AbstractContextManager[None] = dspy.context(**overrides)
        return context

    def _bind(self, candidate: Candidate) -> Bound:
        if candidate.id not in self._bound:
            inner = candidate.bind(self.student)
            program = self._front(candidate, inner)
            # The student's predictors keep the names that its candidates know them by.
            self._bound[candidate.id] = Bound(program, Names(program, inner), runs_async(program))
        return self._bound[candidate.id]

    def _run(
        self, bound: Bound, example: dspy.Example, inputs: Mapping[str, object], trace: Trace
    ) -> Outcome | _Unjudged:
        self._gate.check(effect.get())
        try:
            prediction = bound.program(**inputs)
        except _RAISED as error:
            return self._failure(error, trace, bound)
        steps = steps_of(trace, bound.names)
        return _Unjudged(prediction, steps) if self.metric.is_async else self._judge(example, prediction, steps)

    async def _run_async(self, bound: Bound, inputs: Mapping[str, object], trace: Trace) -> Outcome | _Unjudged:
        async with self._gate.throttle:
            self._gate.check(effect.get())
            try:
                prediction = await self.pool.in_time(bound.program.acall(**inputs))
            except TimeoutError:
                raise
            except Exception as error:
                return self._failure(_uncontained(error), trace, bound)
        return _Unjudged(prediction, steps_of(trace, bound.names))

    def _judge(self, example: dspy.Example, prediction: dspy.Prediction, steps: tuple[Step, ...]) -> Outcome:
        _as_judge()
        try:
            judged = self.metric.call(example, prediction)
        except _RAISED as error:
            return self._metric_failure(error, prediction, steps)
        return scored(self.metric, judged, prediction, steps)

    async def _ajudge(self, example: dspy.Example, prediction: dspy.Prediction, steps: tuple[Step, ...]) -> Outcome:
        _as_judge()
        try:
            judged = await self.pool.in_time(self.metric.acall(example, prediction))
        except TimeoutError:
            raise
        except Exception as error:
            return self._metric_failure(_uncontained(error), prediction, steps)
        return scored(self.metric, judged, prediction, steps)

    def _failure(self, error: BaseException, trace: Trace, bound: Bound) -> Outcome:
        reason, steps, failed = self._reason(error), steps_of(trace, bound.names), failed_step(error, bound.names)
        match error:
            case UnknownPrice():
                raise error
            case KeyboardInterrupt():
                raise self._interrupted()
            case AdapterParseError():
                return ParseFailure(f"the reply does not parse: {reason}", str(error.lm_response), steps, failed=failed)
            case ContextWindowExceededError():
                return ParseFailure(f"the prompt is too long for the model: {reason}", "", steps, failed=failed)
            case _ if is_outage(error):
                return ProviderFailure(reason)
            case _:
                return ParseFailure(f"the program raised {reason}", "", steps, raised=True, failed=failed)

    def _metric_failure(self, error: BaseException, prediction: object, steps: tuple[Step, ...]) -> Outcome:
        if isinstance(error, UnknownPrice):
            raise error
        if isinstance(error, KeyboardInterrupt):
            raise self._interrupted()
        reason = self._reason(error)
        if is_outage(error):
            return ProviderFailure(reason)
        if isinstance(prediction, dspy.Prediction) or isinstance(error, BadScore):
            return MetricError(reason, steps)
        kind, shown = type(prediction).__name__, self._gate.redactor(repr(prediction))[:80]
        told = f"the program ({type(self.student).__name__}) returned {shown}, a {kind}, and the metric raised {reason}"
        return ParseFailure(f"{told}: programs return dspy.Prediction(...)", "", steps, raised=True, unfit=True)

    def _interrupted(self) -> RunStopped:
        """End the run: a program or a metric has raised what Ctrl-C does."""
        if (interruption := current_interruption()) is not None:
            interruption.interrupt()
        return self._gate.stop("interrupted", "the program or the metric raised KeyboardInterrupt")

    def _reason(self, error: BaseException) -> str:
        text = self._gate.redactor(str(error)).strip()
        return f"{type(error).__name__}: {text[:400]}"


def scored(metric: Metric, judged: Judged, prediction: object, steps: tuple[Step, ...] = ()) -> Scored:
    """Return the outcome of an answer that was judged; with the answer where all are judged together too."""
    answer = None if metric.corpus is None else to_json(prediction)
    return Scored(judged.score, judged.feedback, steps, objectives=judged.objectives, answer=answer)


_RAISED = (Exception, SystemExit, GeneratorExit, KeyboardInterrupt)
"""What a program or a metric may raise of its own; the rest ends a run or a task."""


class _Contained(RuntimeError):
    """Carries out of a task what would end its event loop, or be taken for the end of its time."""


async def _contained(work: Awaitable[T]) -> T:
    try:
        return await work
    except (SystemExit, KeyboardInterrupt, TimeoutError) as error:
        raise _Contained from error


def _uncontained(error: Exception) -> BaseException:
    return error.__cause__ or error if isinstance(error, _Contained) else error


@contextmanager
def settling(current: Effect) -> Iterator[None]:
    """Be within an effect: once its result is known, what its threads still do is no part of it."""
    try:
        yield
    except asyncio.CancelledError:
        current.abandoned = True
        raise
    finally:
        current.end()


def _as_judge() -> None:
    current = effect.get()
    if current is not None:
        current.role = current.judge


def _with_asides(outcome: Outcome, said: Sequence[object]) -> Outcome:
    """Add to each call what its reply held before the first field, where every call had one reply."""
    if isinstance(outcome, ProviderFailure) or not 0 < len(outcome.trace) == len(said):
        return outcome
    left, steps = [(_text(reply), _aside(reply)) for reply in said], []
    if not any(aside for _, aside in left):
        return outcome
    for step in outcome.trace:  # replies came in any order, where several threads made the calls
        values = [value for value in step.outputs.values() if isinstance(value, str)]
        own = next((one for one in left if all(value in one[0] for value in values)), None)
        if own is None:
            return outcome
        left.remove(own)
        steps.append(replace(step, aside=own[1]))
    return replace(outcome, trace=tuple(steps))


def _text(stored: object) -> str:
    return next(iter(reply_texts(stored)), "")


def _aside(stored: object) -> str:
    """Return the text before the first field of a reply in dspy's chat format; "" in any other."""
    head, found, _ = strip_thinking(_text(stored)).partition(HEADER)
    return head.strip() if found else ""


def redrawn(lm: dspy.BaseLM, draw: int) -> dspy.BaseLM:
    """Return the LM for draw 0, and for another draw a copy that is asked anew.

    At temperature 0 dspy has no use for a rollout id, and answers from its cache: there it is the cache that goes.
    """
    if not draw:
        return lm
    copied: dspy.BaseLM = lm.copy(cache=False) if lm.kwargs.get("temperature") == 0 else lm.copy(rollout_id=draw)
    return copied
