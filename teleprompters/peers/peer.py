"""The base of the compilers that are dspy's own optimizers, hosted: what they search is theirs, the rest is ours.

Source: dspy 3.4 for the optimizers and their defaults; the border around them is ours.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar, Unpack

import dspy
from dspy.utils.exceptions import AdapterParseError, LMError

from cuesmith.teleprompters.compiler import Compiler, Options, check_prices
from cuesmith.teleprompters.peers.hosting import Host
from cuesmith.teleprompters.peers.teaching import check_teacher, taught_by, teacher_of
from cuesmith.teleprompters.runtime._dspy import language_models, modules_of, named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.ledger import RunStopped, UnknownPrice
from cuesmith.teleprompters.runtime.metric import Metric, MetricFunction
from cuesmith.teleprompters.runtime.outcomes import mean, rank
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import CompileError


class Peer(Compiler):
    """One of dspy's optimizers, run within this run's border.

    The optimizer works on a copy of the student, with threads of its own: as many as `max_in_flight`, which is its
    `num_threads`; the seed is the compile's. Every call of every model goes through the run's gate, so that caps are
    hard and a resumed run pays no call again (dspy's optimizers make the same calls again, in any order). It gets the
    run's training examples to learn from and the selection examples to compare by; the examples of the report stay
    hidden from it. Each program it scores becomes a candidate of the record, so that a stop returns the best so far.

    dspy's optimizers count as 0 what has no score, which here stops the run if the provider failed, and is noted if the
    metric did. `example_timeout` bounds each call: one without an answer by then stops the run. (dspy sends the last
    runs of an evaluation again if they take over two minutes.) Demonstrations and instructions are all that a candidate
    holds: what else an optimizer changes is left out, and noted.

    Args:
        metric: As for `Compiler`, in any of dspy's forms; it is given the trace where dspy gives one.
        **options: As for `Compiler`.

    Raises:
        ImportError: If the optimizer needs a package that is not there; the message says which to install.
    """

    MOVE: ClassVar[str]
    """The origin of its candidates."""

    NEEDS: ClassVar[tuple[str, str] | None] = None
    """A package that dspy does not install by itself, and what installs it."""

    def __init__(self, metric: MetricFunction, **options: Unpack[Options]) -> None:
        super().__init__(metric, **options)
        if self.NEEDS is not None and importlib.util.find_spec(self.NEEDS[0]) is None:
            raise ImportError(f"{type(self).__name__} needs {self.NEEDS[0]}: pip install '{self.NEEDS[1]}'")

    SELECTS: ClassVar[bool] = True
    """Whether it compares candidates on selection examples. If not, none is known there until the end."""

    teacher: dspy.Module | None = None
    """A program whose successful runs become demonstrations in place of the student's."""

    teacher_settings: Mapping[str, object] = MappingProxyType({})
    """dspy's settings while it runs, such as a stronger `lm`."""

    def _taught(self) -> dict[str, object]:
        """Return the settings as bootstrapping gets them: with a model that is known as a teacher's."""
        settings = dict(self.teacher_settings)
        return settings | ({"lm": taught_by(lm)} if isinstance(lm := settings.get("lm"), dspy.BaseLM) else {})

    def _teacher(self) -> dspy.Module | None:
        return None if self.teacher is None else teacher_of(self.teacher)

    @abstractmethod
    def optimize(self, run: Run, host: Host) -> dspy.Module:
        """Run dspy's optimizer to its end; called in a thread of its own.

        Args:
            run: Has the examples.
            host: Has the program, the models and the metric to give to it.
        """

    async def search(self, run: Run) -> Candidate:
        """Search; see the class."""
        if self.remote is not None:
            run.note(
                f"{type(self).__name__} runs programs itself, in this process: executor='s workers score the "
                "student and the final report only.",
                "executor",
            )
        run.guard = None  # what dspy's optimizers write has been run by the time it comes here
        base = await run.score([run.baseline], run.select)
        await run.record(0, base)
        task, optimizer = self._models(run.student)
        host = Host(
            run,
            metric=Metric(self.metric),
            task=task,
            optimizer=optimizer,
            move=self.MOVE,
            timeout=self.example_timeout,
        )
        found = await self._found(run, host)
        scores = await run.score([found], run.select) if found != run.baseline else []
        if host.best() == run.baseline:
            found, beam = run.baseline, [*base, *scores]
        else:
            beam = rank([*scores, *base])
        await run.record(1, beam)
        return found

    async def _found(self, run: Run, host: Host) -> Candidate:
        try:
            program = await host.run(lambda: self.optimize(run, host), last_reserve=self.SELECTS)
        except RunStopped:
            if not self.SELECTS and host.reopen():
                await self._validate(run, host)
            raise
        except UnknownPrice:
            raise
        except Exception as error:
            return self._left_by(error, run, host)
        return self._read(program, run, host)

    async def _validate(self, run: Run, host: Host) -> None:
        """Score the best on training examples on the selection examples, with what is held for the report."""
        tried = [(c, [v for v in run.known(c, run.train) if v is not None]) for c in host.candidates.values()]
        enough = max((len(values) for _, values in tried), default=0) / 2
        best = max(((mean(v), -c.size, c.id, c) for c, v in tried if v and len(v) >= enough), default=None)
        if best is not None:
            run.note(
                "Stopped half way: the best on training examples until then was scored on selection examples.",
                "stopped",
            )
            await run.score([best[-1]], run.select)

    def _left_by(self, error: Exception, run: Run, host: Host) -> Candidate:
        """Return the best that is known from an optimizer that failed half way, as at a reply that it cannot read."""
        reason = host.reason(error)
        unread = isinstance(error, AdapterParseError | UnicodeError | LMError)
        if not unread and not any(
            any(v is not None for v in run.known(c, run.select)) for c in host.candidates.values()
        ):
            raise CompileError(f"dspy's {type(self).__name__} failed before it scored a candidate: {reason}") from error
        run.note(
            f"dspy's {type(self).__name__} failed on the way ({reason}); what it had scored until then is kept.",
            "failed",
        )
        return host.best()

    def _read(self, program: dspy.Module, run: Run, host: Host) -> Candidate:
        found = Candidate.of(program)
        if set(found.names) != set(run.baseline.names):
            run.note(
                f"{type(self).__name__} changed which predictors the program has: its result cannot be held.", "changed"
            )
            return host.best()
        found = replace(found, origin=Origin(self.MOVE, (run.baseline.id,)))
        if _beyond_prompts(program) != _beyond_prompts(run.student):
            run.note(
                f"{type(self).__name__} changed more than instructions and demonstrations: only those are kept.",
                "changed",
            )
        return found if found != run.baseline else run.baseline

    def check_student(self, student: dspy.Module) -> None:
        """Raise if dspy's optimizer cannot take the student; called before anything is paid for.

        Raises:
            TypeError: If the teacher is no program.
            ValueError: If it cannot, if the teacher cannot teach it, or if a cap in dollars cannot be held.
        """
        if not hasattr(type(student), "forward"):
            raise ValueError(f"{type(self).__name__} is synchronous: {type(student).__name__} needs a `forward`")
        if self.teacher is not None:
            check_teacher(self.teacher, student)
        models = [self.teacher_settings.get("lm"), *(language_models(self.teacher) if self.teacher is not None else ())]
        check_prices(self.budget, [lm for lm in models if isinstance(lm, dspy.BaseLM)])


def _beyond_prompts(program: dspy.Module) -> list[object]:
    """Return what of a program a compiler's candidate does not hold: fields, and code that an optimizer may write."""
    fields = [
        (name, field, str(info.annotation), info.json_schema_extra.get("desc"))
        for name, predictor in named_predictors(program)
        for field, info in predictor.signature.fields.items()
    ]
    return [fields, [code for m in modules_of(program) if (code := getattr(m, "module_src", None)) is not None]]
