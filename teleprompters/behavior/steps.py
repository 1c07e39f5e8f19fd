"""Steps: where a response first leaves them (by rule first, by asking for the rest), and what comes in their place.

Source: 2402.02101 section 6 analyses where the target fails to follow; rules, the count that decides what to edit,
limits and order are ours.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cuesmith.signatures import Deviation, LocateDeviation, Move, StepWork, canonical_steps
from cuesmith.teleprompters.runtime.evidence import render_fields
from cuesmith.teleprompters.runtime.guards import Guard
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.search.context import Requests
from cuesmith.teleprompters.search.examples import Failure, read_failure
from cuesmith.teleprompters.search.scene import text_field

KINDS: tuple[Deviation, ...] = ("skipped", "misapplied", "insufficient", "format")
"""In the order that breaks ties."""

LONGEST_STEP = 600
"""Characters one step may have, or its share of what all instructions may. Ours."""

_LABEL = re.compile(r"\bstep\s*(\d{1,3})\s*\**\s*[:.)]", re.IGNORECASE)


def labelled(text: str) -> Iterator[tuple[int, str]]:
    """Yield (k, the work) of every "Step k:" in a text, in the text's order."""
    marks = list(_LABEL.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=False):
        yield int(mark[1]), text[mark.end() : end].strip(" \n\t*")


def under_labels(found: object) -> str:
    """Return the work of the steps with each text under its label, which models leave out.

    Args:
        found: What was written, meant to be the work of each step; one text that has the labels itself will do.
    """
    results = [one.result for one in found if isinstance(one, StepWork)] if isinstance(found, list) else []
    texts = [text.strip(" \n\t*") for text in results]
    if len(texts) == 1 and first_missing(texts[0], 2) is None:
        return texts[0]
    plain = (text[mark.end() :].strip(" \n\t*") if (mark := _LABEL.match(text)) else text for text in texts)
    return "\n".join(f"Step {k}: {text}" for k, text in enumerate(plain, 1))


def first_missing(text: str, n_steps: int) -> int | None:
    """Return the first of the steps 1..n that has no label behind the label before it; None if all have one."""
    due = 1
    for number, _ in labelled(text):
        due += number == due
    return due if due <= n_steps else None


def by_rule(failure: Failure, n_steps: int) -> tuple[int, Deviation] | None:
    """Return the first deviating step and its kind where a rule can tell; None is for the model to tell.

    A step without its label in order was skipped. With all labels there, or none at all, a reply that could
    not be used, or an empty answer, breaks the last step, which is about the answer's form.

    Args:
        failure: The failed response.
        n_steps: How many steps it had to follow.
    """
    missing = None if failure.reasoning is None else first_missing(failure.reasoning, n_steps)
    if missing is not None and (failure.parsed or missing > 1):
        return missing, "skipped"
    return None if failure.parsed else (n_steps, "format")


@dataclass(frozen=True)
class Located:
    """A failure with its first deviating step, and what was found of it."""

    failure: Failure
    step: int
    kind: Deviation
    reason: str = ""

    def shown(self) -> str:
        """Return it as the optimizer is shown it."""
        found = f"\nfound: {self.reason}" if self.reason else ""
        return f"{self.failure.shown()}{found}"


def most_frequent(located: Sequence[Located]) -> list[tuple[int, Deviation]]:
    """Return the (step, kind) pairs, the most frequent first; ties: the earlier step, then `KINDS`."""
    counts = Counter((one.step, one.kind) for one in located)
    return sorted(counts, key=lambda pair: (-counts[pair], pair[0], KINDS.index(pair[1])))


async def locate(
    requests: Requests,
    task: str,
    steps: Sequence[str],
    name: str,
    ran: Scores,
    *,
    threshold: float,
    most: int,
    salt: str,
) -> list[Located]:
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
    read = [
        read_failure(example, outcome, name, run.baseline.names, signature)
        for example, outcome in ran.failures(threshold)
    ]
    failures = [failure for failure in read if failure is not None][:most]
    found = await asyncio.gather(*(_locate(requests, task, steps, name, failure, salt) for failure in failures))
    return [one for one in found if one is not None]


async def _locate(
    requests: Requests, task: str, steps: Sequence[str], name: str, failure: Failure, salt: str
) -> Located | None:
    if (ruled := by_rule(failure, len(steps))) is not None:
        return Located(failure, *ruled)
    later = f"\nlater stages: {failure.later}" if failure.later else ""
    request = {
        "steps": list(steps),
        "inputs": render_fields(failure.inputs),
        "feedback": failure.feedback,
        "expected": render_fields(failure.expected),
        "response": f"{failure.response}{later}",
    }
    for reply in await requests.ask(LocateDeviation, name, request, instructions=task, salt=salt):
        step, kind = reply.get("step"), reply.get("kind")
        if isinstance(step, int) and 1 <= step <= len(steps) and kind in KINDS:
            return Located(failure, step, kind, text_field(reply, "reason"))
    return None


def step_list(found: object) -> tuple[str, ...]:
    """Return a usable list of steps, in canonical form and without repetitions.

    Args:
        found: What was written, meant to be a list of strings.

    Returns:
        The steps; none if what was written is no list.
    """
    if isinstance(found, str) or not isinstance(found, Sequence):
        return ()
    texts = canonical_steps([step for step in found if isinstance(step, str)])
    return tuple({step.casefold(): step for step in texts if any(map(str.isalnum, step))}.values())


def mend(steps: Sequence[str], number: int, move: object, new: Sequence[str]) -> tuple[Move, tuple[str, ...]]:
    """Put new steps in the place of one, or before it; all others stay as they are.

    What a model writes again although it stays (another step, or all of them) is no new step. A move that does not fit
    what was written is taken for the one that does.

    Args:
        steps: The procedure.
        number: The step's, from 1 on.
        move: What was said to be done.
        new: What was written.

    Returns:
        The move, and the procedure; no steps if nothing would be changed.
    """
    i = number - 1
    others = {step.casefold() for k, step in enumerate(steps) if k != i}
    fresh = [step for step in new if step.casefold() not in others]
    if move == "add":
        fresh = [step for step in fresh if step.casefold() != steps[i].casefold()]
        mended, done = (*steps[:i], *fresh, *steps[i:]), "add"
    elif not fresh:
        mended, done = ((*steps[:i], *steps[i + 1 :]), "delete") if move == "delete" else (tuple(steps), "edit")
    else:
        mended, done = (*steps[:i], *fresh, *steps[i + 1 :]), "split" if len(fresh) > 1 else "edit"
    found: Move = done  # type: ignore[assignment]
    return found, () if mended == tuple(steps) else mended


def steps_fault(steps: Sequence[str], most: int, guard: Guard) -> str | None:
    """Return why a list of steps may not be used; None if it may. Nothing is ever taken out of the middle of one.

    Args:
        steps: As `step_list` returns them.
        most: Steps that it may have.
        guard: What holds of all that is written.
    """
    if len(steps) > most:
        return "too many steps"
    if any(len(step) > max(LONGEST_STEP, guard.longest // most) for step in steps):
        return "too long"
    return guard.fault("\n".join(steps))
