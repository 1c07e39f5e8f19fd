"""Finding where failed responses leave their steps: by rule first, by asking for the rest. Source: 2402.02101
section 6; rules, limits and order ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cuesmith.signatures import LocateDeviation
from cuesmith.teleprompters.runtime.evidence import render_fields
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.search.context import Requests
from cuesmith.teleprompters.search.deviations import KINDS, Failure, Located, by_rule, read_failure
from cuesmith.teleprompters.search.texts import text_field


async def locate(requests: Requests, task: str, steps: Sequence[str], name: str, ran: Scores, *, threshold: float,
                 most: int, salt: str) -> list[Located]:
    """Return the first deviating step of each failed response, in the order of the examples.

    Args:
        requests: Asks.
        task: What predictor `name` had to do.
        steps: What predictor `name` had to follow.
        name: The predictor.
        ran: The candidate's outcomes on a minibatch.
        threshold: A lower score is a failure.
        most: Failures looked at.
        salt: Separates draws on the same responses.

    Returns:
        At most `most`; none for a response of which the optimizer gave no step and kind that exist.
    """
    run = requests.run
    signature = run.predictors[name].signature
    read = [read_failure(example, outcome, name, run.baseline.names, signature)
            for example, outcome in ran.failures(threshold)]
    failures = [failure for failure in read if failure is not None][:most]
    found = await asyncio.gather(*(_locate(requests, task, steps, name, failure, salt) for failure in failures))
    return [one for one in found if one is not None]


async def _locate(requests: Requests, task: str, steps: Sequence[str], name: str, failure: Failure, salt: str
                  ) -> Located | None:
    if (ruled := by_rule(failure, len(steps))) is not None:
        return Located(failure, *ruled)
    later = f"\nlater stages: {failure.later}" if failure.later else ""
    request = {"steps": list(steps), "inputs": render_fields(failure.inputs), "feedback": failure.feedback,
               "expected": render_fields(failure.expected), "response": f"{failure.response}{later}"}
    for reply in await requests.ask(LocateDeviation, name, request, instructions=task, salt=salt):
        step, kind = reply.get("step"), reply.get("kind")
        if isinstance(step, int) and 1 <= step <= len(steps) and kind in KINDS:
            return Located(failure, step, kind, text_field(reply, "reason"))
    return None
