"""Keeping the best of parents and children. Source: beam search as in 2402.02101 section 3; details ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import dspy

from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.outcomes import Scores, rank
from cuesmith.teleprompters.runtime.run import Run


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates without those whose prompts another one before has, in order."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.id, candidate)
    return list(first.values())


async def keep_best(run: Run, pool: Iterable[Candidate], width: int) -> list[Scores]:
    """Score every distinct candidate on the selection examples and return the best, best first.

    All candidates x examples go out in one call, so that the pool of calls stays full; parents cost nothing
    again. Ties go to the shorter prompt, then to the earlier candidate.

    Args:
        run: The run.
        pool: Parents and children.
        width: How many to keep.
    """
    return rank(await run.score(distinct(pool), run.select))[:width]


async def record_step(run: Run, step: int, beam: Sequence[Scores], watched: Sequence[dspy.Example]) -> None:
    """Record a step: the beam's scores on the selection examples and the best one's on training examples.

    Args:
        run: The run.
        step: The step's number; 0 is the initial beam.
        beam: The kept candidates, best first.
        watched: The same training examples at every step; none gives no training score.
    """
    train = await run.score([beam[0].candidate], watched) if watched else []
    await run.record(step, beam, train=train)
