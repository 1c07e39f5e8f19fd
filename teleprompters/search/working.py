"""Having examples worked by the optimizer, and keeping only work that holds. Source: 2402.02101 section 6; the
tests and the retries are ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cuesmith.signatures import WorkExample
from cuesmith.teleprompters.runtime.evidence import render_fields
from cuesmith.teleprompters.runtime.outcomes import value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.context import Requests
from cuesmith.teleprompters.search.demos import Demonstration, fault
from cuesmith.teleprompters.search.material import Case
from cuesmith.teleprompters.search.texts import text_field


async def demonstrate(requests: Requests, name: str, task: str, steps: Sequence[str], cases: Sequence[Case], *,
                      retries: int, threshold: float, salt: str) -> tuple[Demonstration, ...]:
    """Have each case worked by following the steps, and return the demonstrations in the order of their cases.

    A demonstration is kept only if its outputs earn the metric on its own example, its work carries every
    step's label in order, and the last step ends in the outputs. The run counts the others by what is wrong with them.

    Args:
        requests: Asks.
        name: The predictor.
        task: What it has to do.
        steps: What to follow.
        cases: What to work; their outputs are right as far as labels and past successes tell.
        retries: Further draws for a case whose work does not pass; then it is dropped.
        threshold: The score that earns the metric.
        salt: Separates draws on the same steps and cases.
    """
    run = requests.run
    found = await asyncio.gather(*(
        _work(requests, name, task, steps, case, retries, threshold, salt) for case in cases))
    run.seen.worked += len(found)
    run.seen.unworked.update(one for one in found if isinstance(one, str))
    return tuple(one for one in found if isinstance(one, Demonstration))


async def _work(requests: Requests, name: str, task: str, steps: Sequence[str], case: Case, retries: int,
                threshold: float, salt: str) -> Demonstration | str:
    """Return the demonstration, or why there is none."""
    if not await _earns(requests.run, case, threshold):
        return "its own outputs do not earn the metric"
    request = {"steps": list(steps), "inputs": render_fields(case.inputs), "outputs": render_fields(case.outputs)}
    why: str | None = "the optimizer gave no work"
    for attempt in range(retries + 1):
        asked = requests.ask(WorkExample, name, request, instructions=task, salt=f"{salt}, try {attempt}")
        for reply in await asked:
            work = text_field(reply, "work")
            why = fault(work, len(steps), case.outputs)
            if why is None:
                return Demonstration(case, work)
    return str(why)


async def _earns(run: Run, case: Case, threshold: float) -> bool:
    if case.judged:
        return True
    score = value(await run.judge(case.example, case.outputs))
    return score is not None and score >= threshold
