"""One program on given examples: scored by itself, without a run. Source: ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import dspy

from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.executors import parcel, remote_of
from cuesmith.teleprompters.runtime.gate import Effect, Gate
from cuesmith.teleprompters.runtime.interruption import run_coroutine
from cuesmith.teleprompters.runtime.ledger import Budget, Ledger, RunStopped, stopped
from cuesmith.teleprompters.runtime.metric import Metric, MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Outcome, Scores
from cuesmith.teleprompters.runtime.redaction import Redactor
from cuesmith.teleprompters.runtime.remote import RemoteWorkers
from cuesmith.teleprompters.runtime.scoring import Pool, Scorer
from cuesmith.teleprompters.runtime.throttle import Throttle
from cuesmith.teleprompters.runtime.watch import TICK_S


class EvaluationStopped(RuntimeError):
    """A provider refuses the calls for good, or does not answer any more.

    Attributes:
        by: In one word, as `Compilation.stopped_by`.
    """

    def __init__(self, by: str, reason: str) -> None:
        """Remember why."""
        super().__init__(f"{stopped(by)}: {reason}")
        self.by = by


def score_program(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    metric: MetricFunction,
    *,
    lm: dspy.BaseLM | None = None,
    max_in_flight: int = 32,
    timeout: float | None = 600.0,
    executor: object = None,
) -> Scores:
    """Run a program on examples, all in one pool, and return what became of each.

    Args:
        program: Any dspy module; it stays untouched.
        examples: With inputs marked by `with_inputs`.
        metric: As compilers take it.
        lm: The LM for predictors that carry none; default is the configured one.
        max_in_flight: Program runs at once.
        timeout: Seconds an example may take before it counts as missing.
        executor: Where programs run, as compilers take it; None for this process.

    Returns:
        The outcomes in the examples' order.

    Raises:
        TypeError: If the program cannot run there.
        EvaluationStopped: If the provider refuses calls for good (wrong key, no credit, no such model), or is silent.
    """
    throttle, judge, remote = Throttle(max_in_flight), Metric(metric), remote_of(executor)
    chosen = lm if lm is not None else dspy.settings.lm
    sent = None if remote is None else parcel(remote, program, judge, chosen, examples)
    redactor = Redactor([chosen] if chosen is not None else [])
    gate = Gate(Ledger(Budget()), None, throttle, redactor, lambda reason, delay, attempt: None)
    pool = Pool(gate, timeout)
    pool.remote = None if sent is None else RemoteWorkers(sent, pool)
    scorer = Scorer(program, judge, chosen, pool)
    candidate = Candidate.of(program)

    async def one(number: int, example: dspy.Example) -> Outcome:
        return await scorer.run(candidate, example, Effect(str(number), "target", gate))

    async def watch(runs: asyncio.Future[list[Outcome]]) -> None:
        while gate.stopped_by is None:
            await asyncio.sleep(TICK_S)
            gate.check_silence()
        runs.cancel()

    async def everything() -> list[Outcome]:
        runs = asyncio.gather(*(asyncio.create_task(one(i, e)) for i, e in enumerate(examples)))
        watchdog = asyncio.create_task(watch(runs))
        try:
            return list(await runs)
        except (RunStopped, asyncio.CancelledError):
            if gate.stopped_by is None:
                raise
            raise EvaluationStopped(gate.stopped_by, gate.reason) from None
        finally:
            watchdog.cancel()
            gate.close()
            pool.close()

    return Scores(candidate, tuple(examples), tuple(run_coroutine(everything)), scorer.together)
