"""Racing: a step keeps the same scores as by full scoring, without scoring every candidate on every example.

Source: ours. It is branch and bound: a candidate is given up as soon as it can no longer enter the beam, whatever it
scores on the examples still to come. The order in which examples and candidates are taken makes that come early.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import dspy

from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.outcomes import Scores, rank
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.beam import distinct

BLOCK = 4
"""Examples from one look to the next, or a quarter of those so far where that is more. Ours, measured."""

LEADERS = 2
"""Candidates that may be scored to the end at each look. Ours, measured: one, two and four cost nearly the same."""


async def race(run: Run, pool: Sequence[Candidate], width: int) -> list[Scores]:
    """Find the best candidates on the selection examples without scoring all of them on all examples.

    The bar is the candidate with the `width`-th best score of those that are known on all examples: parents first of
    all, which cost nothing. All others walk through the examples, those first on which the best parents score lowest:
    there a child shows whether it gains anything. At each look those that cannot rise above the bar any more, even with
    the highest score on every example still to come, are dropped; then the best of those that are ahead of it so far
    are scored to the end, which raises the bar for the rest.

    Nothing is lost by it: the scores of the beam are exactly those of full scoring. Of candidates with equal scores
    another may be kept, for one that can only draw level is dropped too. The highest score is taken to be 1, or the
    highest seen so far where that is more. A missing score counts for the candidate as the highest, for the bar as 0.

    What it saves depends on how far the children are from the beam. Share of the program runs of full scoring, in
    simulated searches (beam of 4; 5 candidates, then 3 steps of 16 children; 0/1 scores on 50 examples of common
    difficulty; the study stands in `tests/test_racing.py`), and in compiles on the embedded model
    (`benchmarks/compilers.py --racing`):

    | children's true accuracy | share |
    |---|---|
    | 10 to 80 % | 0.62 |
    | 50 to 60 % | 0.84 |
    | 80 to 95 % | 0.53 |
    | the parent's - 3 +- 10 points | 0.75 |
    | embedded model | 0.42 |

    Args:
        run: The run.
        pool: Parents and children; of equal ones the first counts.
        width: How many to keep.

    Returns:
        The best, best first, scored on all selection examples.

    Raises:
        RunStopped: As `run.score`.
    """
    pool = distinct(pool)
    done = [c for c in pool if None not in run.known(c, run.select)]
    left = [c for c in pool if c not in done]
    order, n = _hardest_first(run, done, width), 0
    while left:
        n = min(len(order), n + max(BLOCK, n // 4))
        await run.score(left, order[:n])
        left = _open(run, done, left, width)
        leaders = left if n == len(order) else _ahead(run, done, left, width, order[:n])
        await run.score(leaders, run.select)
        done += leaders
        left = _open(run, done, [c for c in left if c not in leaders], width)
    return rank(await run.score(done, run.select))[:width]


def _hardest_first(run: Run, parents: Sequence[Candidate], width: int) -> list[dspy.Example]:
    """Return the selection examples, by the sum of the best parents' scores and, where equal, in a seeded order."""
    rows = [run.known(c, run.select) for c in _best(run, parents, run.select)[:width]]
    seeded = run.rng("race").sample(range(len(run.select)), len(run.select))
    return [run.select[i] for i in sorted(seeded, key=lambda i: math.fsum(row[i] or 0.0 for row in rows))]


def _ahead(run: Run, done: Sequence[Candidate], left: Sequence[Candidate], width: int, seen: Sequence[dspy.Example]
           ) -> list[Candidate]:
    """Return the best of `left` on the examples seen so far, only such as are above the bar there if there is one."""
    bars = _best(run, done, run.select)[width - 1 : width]
    return [c for c in _best(run, left, seen)[:LEADERS] if all(_sum(run, c, seen) > _sum(run, b, seen) for b in bars)]


def _open(run: Run, done: Sequence[Candidate], left: Sequence[Candidate], width: int) -> list[Candidate]:
    """Return those of `left` that can still rise above the bar."""
    known = [v for c in (*done, *left) for v in run.known(c, run.select) if v is not None]
    highest = max([1.0, *known])
    bars = [_sum(run, c, run.select) for c in _best(run, done, run.select)[width - 1 : width]]
    return [c for c in left if all(_sum(run, c, run.select, highest) > bar for bar in bars)]


def _best(run: Run, candidates: Sequence[Candidate], examples: Sequence[dspy.Example]) -> list[Candidate]:
    return sorted(candidates, key=lambda c: (-_sum(run, c, examples), c.size))


def _sum(run: Run, candidate: Candidate, examples: Sequence[dspy.Example], unknown: float = 0.0) -> float:
    return math.fsum(unknown if v is None else v for v in run.known(candidate, examples))
