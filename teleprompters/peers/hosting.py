"""What an optimizer of dspy's needs to work within a run: a program, models, a metric, and someone who takes notes.

What it finds out is the run's knowledge at once: each program run that its metric judges, or that raises, is an
outcome of the candidate that the program is at that moment. So a stop finds the best so far, and nothing is paid a
second time to learn it. What dspy runs side by side begins in order, and near a cap only as far as it surely fits, so
that a cap cuts the search at the same run whatever its threads do. Source: ours.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, TypeVar, get_args

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import ContextWindowExceededError
from dspy.utils.parallelizer import ParallelExecutor

from cuesmith.teleprompters.peers.border import Border, hosted, keep_models
from cuesmith.teleprompters.peers.quiet import MARK, quiet
from cuesmith.teleprompters.peers.teaching import is_taught
from cuesmith.teleprompters.runtime._dspy import copy_program, language_models
from cuesmith.teleprompters.runtime.calls import reply_texts
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin, digest, to_json
from cuesmith.teleprompters.runtime.effects import effects_of
from cuesmith.teleprompters.runtime.events import Malformed
from cuesmith.teleprompters.runtime.frames import frames_of, restore
from cuesmith.teleprompters.runtime.gate import effect
from cuesmith.teleprompters.runtime.ledger import Cap
from cuesmith.teleprompters.runtime.metric import Metric, read_judgement
from cuesmith.teleprompters.runtime.outages import is_outage
from cuesmith.teleprompters.runtime.outcomes import (
    MetricError,
    Outcome,
    ParseFailure,
    ProviderFailure,
    value,
)
from cuesmith.teleprompters.runtime.replies import lost_by_finish, lost_by_text
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.scoring import scored

T = TypeVar("T")

_TICK = 0.05
"""Seconds between two looks of a waiting thread at whether the run goes on."""

_NO_LIMIT = 10**9
"""dspy gives up after ten failed program runs and loses all; here a reply that does not parse counts as 0."""


class Host:
    """One stay of an optimizer of dspy's in a run. Made on the search's event loop; used once.

    Args:
        run: The run.
        metric: The judge.
        task: The LM for predictors without their own; None if all carry one.
        optimizer: The model that writes prompts.
        move: The origin of candidates that are seen here.
        timeout: Seconds a call may take before it stops the run; None for ever.

    Attributes:
        program: A copy of the student to work on.
        task: The LM for predictors without their own, or another of the student's.
        optimizer: The model that writes prompts.
        candidates: Id -> candidate, of every program that was seen to run except for the student.
    """

    def __init__(
        self,
        run: Run,
        *,
        metric: Metric,
        task: dspy.BaseLM | None,
        optimizer: dspy.BaseLM,
        move: str,
        timeout: float | None,
    ) -> None:
        self.candidates: dict[str, Candidate] = {}
        self._run, self._effects = run, effects_of(run)
        self._metric = metric
        self._origin = Origin(move, (run.baseline.id,))
        self._now = threading.local()
        self._over = False
        self._frames = frames_of(run.student)
        self._examples: dict[str, list[dspy.Example]] = {}
        for example in (*run.train, *run.select):
            self._examples.setdefault(_named(dict(example.inputs().items())), []).append(example)
        self._border = Border(self._effects.gate, f"{run.seed}:{move}", timeout, self._note_refusal)
        self.optimizer = hosted(optimizer, "optimizer")
        self.program = copy_program(run.student)
        self.program._compiled = False  # a student may have been compiled before
        keep_models(self.program)
        self.task = task if task is not None else language_models(self.program)[0]

    async def run(self, work: Callable[[], T], *, last_reserve: bool = True) -> T:
        """Run the optimizer in a thread, with what it prints dropped.

        Args:
            work: Blocking; uses `program`, `task`, `optimizer` and one of the metrics below, and no other model.
            last_reserve: Whether it may use up what is held for the report as long as there is nothing to report on.

        Raises:
            RunStopped: If a cap is reached, the provider fails, or a call does not come back.
            UnknownPrice: If the budget is in dollars and a call reports no price.
            Exception: What `work` raised.
        """
        gate = self._border.gate
        release = gate.release
        if not last_reserve:
            gate.release = lambda: False
        try:
            return await self._border.run(lambda: self._at_work(work))
        finally:
            gate.release = release
            self._over = True
            self._count_replies()

    def _at_work(self, work: Callable[[], T]) -> T:
        settings = {
            "lm": self.task,
            "max_errors": _NO_LIMIT,
            "trace": None,
            "caller_modules": [],
            "allow_tool_async_sync_conversion": True,  # dspy's optimizers await no program
            MARK: True,
        }
        callbacks = [*dspy.settings.callbacks, _Sight(self._border, self)]
        _host.set(self)
        with quiet(), _in_order(), dspy.context(**settings, callbacks=callbacks):
            try:
                return work()
            except BaseException as error:
                if not isinstance(error, Exception):
                    traceback.clear_frames(error.__traceback__)  # of progress bars, which are quiet here alone
                raise

    def best(self) -> Candidate:
        """Return the best candidate by what is known now."""
        return self._effects.best_so_far()

    def keep(self, name: str, value: object) -> None:
        """Leave something besides candidates for the compilation (`Compilation.extras`)."""
        self._effects.extras[name] = value

    def reopen(self) -> bool:
        """Open the run's gate again after a cap closed it, to score what was found; returns whether it is open."""
        if self._border.gate.stopped_by in get_args(Cap):
            self._border.gate.reopen()
            return True
        return False

    def score(
        self,
        example: dspy.Example,
        prediction: dspy.Prediction | None,
        trace: object = None,
        pred_name: str | None = None,
        pred_trace: object = None,
    ) -> float:
        """Judge an answer by the user's metric, whichever of dspy's forms it has. Called by the optimizer.

        Raises:
            Exception: What the metric raised.
        """
        return self._judged(example, prediction, trace, pred_name, pred_trace)[0]

    def score_with_feedback(
        self,
        example: dspy.Example,
        prediction: dspy.Prediction | None,
        trace: object = None,
        pred_name: str | None = None,
        pred_trace: object = None,
    ) -> float | dspy.Prediction:
        """Judge as `score`, and pass on what else the metric gave: feedback, scores of several objectives."""
        score, feedback, more = self._judged(example, prediction, trace, pred_name, pred_trace)
        return dspy.Prediction(**{**more, "score": score, "feedback": feedback or None}) if feedback or more else score

    def _judged(
        self, example: dspy.Example, prediction: dspy.Prediction | None, *more: object
    ) -> tuple[float, str, Mapping[str, object]]:
        """Return score, feedback, and whatever else the metric gave."""
        if prediction is None:  # the program raised, which is noted already
            return 0.0, "", {}
        metric, ran = self._metric, getattr(self._now, "candidate", None)
        token = effect.set(self._border.judge)
        try:
            answer = metric.function(*(example, prediction, *more)[: metric.arity])
            answer = self._awaited(answer) if inspect.isawaitable(answer) else answer
            judged = read_judgement(answer)
        except Exception as error:
            kind = ProviderFailure if is_outage(error) else MetricError
            self._observe(ran, example, kind(self.reason(error)))
            raise
        finally:
            effect.reset(token)
        if all(part is None for part in more):  # neither in bootstrapping nor for one predictor alone
            self._observe(ran, example, scored(metric, judged, prediction))
        given = answer.items() if isinstance(answer, dspy.Prediction | dspy.Example | Mapping) else ()
        rest = {str(name): value for name, value in given if name not in ("score", "feedback")}
        return judged.score, judged.feedback, rest

    def _awaited(self, answer: Awaitable[object]) -> object:
        """Wait in this thread for what an async metric returns, which runs where it runs in every search."""

        async def wait() -> object:
            return await answer

        return asyncio.run_coroutine_threadsafe(wait(), self._border.loop).result()

    def optimizing(self, work: Callable[..., T]) -> Callable[..., T]:
        """Return `work`, a part of the optimizer that the user wrote, with all its model calls counted as such."""

        def optimize(*args: object, **options: object) -> T:
            token = effect.set(self._border.optimizer)
            try:
                return work(*args, **options)
            finally:
                effect.reset(token)

        return optimize

    def ran(self, program: dspy.Module) -> None:
        """Note which program begins to run in this thread, if what becomes of it is a candidate's."""
        if self._is_search():
            self._now.candidate = None
            if isinstance(program, type(self._run.student)):
                restore(program, self._frames)
                self._now.candidate = None if is_taught(program) else Candidate.of(program)

    def _is_search(self) -> bool:
        """Whether this thread runs programs, and neither the metric nor a part of the optimizer."""
        return effect.get() not in (self._border.judge, self._border.optimizer)

    def raised(self, inputs: Mapping[str, object], error: Exception) -> None:
        """Note that the program which began in this thread raised."""
        if self._is_search():
            lost = is_outage(error) and not isinstance(error, ContextWindowExceededError)
            reason = self.reason(error)
            raised = ParseFailure(f"the program raised {reason}", raised=True)
            outcome = ProviderFailure(reason) if lost else raised
            for example in self._examples.get(_named(inputs), ()):
                self._observe(getattr(self._now, "candidate", None), example, outcome)

    def reason(self, error: Exception) -> str:
        """Return an error in a line without keys."""
        return f"{type(error).__name__}: {self._border.gate.redactor(str(error)).strip()[:400]}"

    def _observe(self, candidate: Candidate | None, example: dspy.Example, outcome: Outcome) -> None:
        if candidate is None or candidate.names != self._run.baseline.names:
            return
        seen, told = replace(candidate, origin=self._origin), threading.Event()

        def tell() -> None:
            try:
                self._learn(seen, example, outcome)
            except BaseException as error:  # a callback may end a run; the loop would only log it here
                self._border.fail(error)
            self._border.loop.call_soon(told.set)  # after the task that holds what was observed

        with suppress(RuntimeError):  # the loop is gone
            self._border.loop.call_soon_threadsafe(tell)
        while not told.wait(_TICK):  # the next call may be one that a cap refuses, by what is known then
            self._border.check()

    def _learn(self, candidate: Candidate, example: dspy.Example, outcome: Outcome) -> None:
        if self._over:  # from a thread left behind
            return
        if candidate != self._run.baseline:
            self.candidates.setdefault(candidate.id, candidate)
        if value(outcome) is None:
            self._run.note(
                "dspy's optimizer counted as 0 what has no score: the metric or the provider failed.", "missing"
            )
        self._effects.observe(candidate, example, outcome)

    def turns(self) -> _Turns:
        """Return who says when each of some program runs may begin."""
        return _Turns(self._border)

    def _count_replies(self) -> None:
        """Count what came back from the optimizer's model, and what of it is of no use: gepa logs it at most."""
        for stored, finish in self._border.replies:
            whole = lost_by_finish(finish)
            for lost in [whole] if whole else map(lost_by_text, reply_texts(stored)):
                self._effects.count(Malformed(self._origin.move, f"the reply is {lost}", lost) if lost else None)

    def _note_refusal(self, error: Exception) -> None:
        self._run.note(
            f"dspy's optimizer counted as failed what the provider refused ({type(error).__name__}).", "refused"
        )


class _Sight(BaseCallback):  # type: ignore[misc]
    """Sees each program run begin and fail."""

    def __init__(self, border: Border, host: Host) -> None:
        self._border = border
        self._host = host
        self._runs: dict[str, Mapping[str, object]] = {}

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note a program's start, not that of the modules inside it."""
        self._border.check()
        if not dspy.settings.caller_modules:
            self._host.ran(instance)
            self._runs[call_id] = inputs.get("kwargs", {})

    def on_module_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        """Note a program's failure; its success is noted with the score."""
        inputs = self._runs.pop(call_id, None)
        if inputs is not None and isinstance(exception, Exception):
            self._host.raised(inputs, exception)


class _Turns:
    """Lets program runs begin in their order, one beside the other as far as the throttle admits it."""

    def __init__(self, border: Border) -> None:
        self._border = border
        self._changed = threading.Condition()
        self._begun = self._running = 0

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait until run `number` may begin; the block is the run. One that dspy sends again begins at once.

        Raises:
            RunStopped: If the border is closed, or the gate.
        """
        with self._changed:
            while number > self._begun or (
                number == self._begun and not self._border.gate.throttle.admits(self._running)
            ):
                self._changed.wait(_TICK)
                self._border.check()
                self._border.gate.check()
            self._begun = max(self._begun, number + 1)
            self._running += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()


_host: ContextVar[Host | None] = ContextVar("cuesmith_host", default=None)
"""Whose optimizer runs in this thread; dspy's worker threads do not inherit it."""

_execute = ParallelExecutor.execute
_lock = threading.Lock()
_open = 0


def _execute_in_order(executor: ParallelExecutor, function: Callable[[Any], object], data: Sequence[Any]) -> Any:
    host = _host.get()
    if host is None:
        return _execute(executor, function, data)
    turns = host.turns()

    def run(numbered: tuple[int, Any]) -> object:
        with turns.turn(numbered[0]):
            return function(numbered[1])

    return _execute(executor, run, list(enumerate(data)))


@contextmanager
def _in_order() -> Iterator[None]:
    """Give hosted program runs their turns, as long as the block lasts: all that dspy runs side by side passes here."""
    global _open
    with _lock:
        _open += 1
        ParallelExecutor.execute = _execute_in_order
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if not _open:
                ParallelExecutor.execute = _execute


def _named(inputs: Mapping[str, object]) -> str:
    return digest(to_json(dict(inputs)))
