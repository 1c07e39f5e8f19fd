"""Racing: candidates compared on the same examples, and the hopeless dropped before they are fully scored.

Source: ours, after optuna's `WilcoxonPruner` (a paired test on the examples that both have seen) and Hoeffding races
(Maron and Moore 1994). The test is the exact sign-flip test of `statistics.paired_gain`, which is the exact McNemar
test for scores of 0 and 1, and unlike Wilcoxon's compares what candidates are ranked by, the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.checks import whole
from cuesmith.teleprompters.runtime.outcomes import Scores, rank
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.statistics import paired_gain
from cuesmith.teleprompters.search.beam import distinct

ALPHA = 0.2
"""How sure a drop must be. Ours, measured (see `race`)."""

FIRST = 8
"""Examples before the first look. Ours."""

BLOCK = 4
"""Examples from one look to the next, or a quarter of those so far where that is more. Ours, measured: at equal cost,
many looks by a stricter test lose less than few by a lenient one."""

RESERVE = 4
"""A narrower beam is compared with its fourth best too, not with its best. Ours, measured: a rank of distance protects
the winner better than a stricter test does."""


async def race(run: Run, pool: Sequence[Candidate], width: int, *, alpha: float = ALPHA, first: int = FIRST
               ) -> list[Scores]:
    """Find the best candidates on the selection examples without scoring all of them on all examples.

    All candidates walk through one seeded order of the selection examples, the same in every step of a run. After 8
    examples, and then after every further quarter (at least 4), those that a paired one-sided test finds worse than the
    `width`-th best (the fourth best, if `width` is less) are dropped. The rest are scored on all examples and ranked as
    by full scoring. What is known already costs nothing, so parents are free, and a candidate that is known on all
    examples is not dropped. Program runs: at most those of full scoring.

    After n of N examples a candidate is dropped if p <= Phi(Phi^-1(alpha) sqrt(1 - n / N)): alpha while nearly all
    examples are still to come, rising to 1/2. This is the usual correction for a finite population: what counts is
    whether it can still overtake on these N examples, not on all there might be.

    alpha is the level of one test. It is no error rate of the race: there are several looks and many candidates, and
    the reference is itself picked by its scores. What the default costs was measured in 200 to 500 simulated searches
    (beam of 4; 5 candidates and then 3 steps of 16 children; 0/1 scores on 50 examples of common difficulty; the study
    stands in `tests/test_racing.py`):

    | children's true accuracy | share of the runs | loss of the head's true accuracy, points | another head |
    |---|---|---|---|
    | 10 to 80 % | 0.44 | -0.01 +- 0.01 | 0.5 % of searches |
    | 50 to 60 % | 0.59 | 0.01 +- 0.02 | 4 % |
    | 80 to 95 % | 0.64 | 0.00 +- 0.00 | 0 % |
    | the parent's - 3 +- 10 points | 0.55 | 0.40 +- 0.12 | 14 % |

    With more examples the share falls (0.34 and 0.28 of the runs for the first kind at 100 and 200), with fewer it
    rises (0.63 at 20).

    Args:
        run: The run.
        pool: Parents and children; of equal ones the first counts.
        width: How many to keep.
        alpha: How sure a drop must be, at most 0.5; a smaller one drops later.
        first: Examples before the first look.

    Returns:
        The best, best first, scored on all selection examples.

    Raises:
        TypeError: If a number is of the wrong type.
        ValueError: If a number is out of range.
        RunStopped: As `run.score`.
    """
    if not 0.0 < alpha <= 0.5:
        raise ValueError(f"alpha must be above 0 and at most 0.5, got {alpha}")
    distance = max(whole("width", width), RESERVE)
    order = run.rng("race").sample(run.select, len(run.select))
    left = distinct(pool)
    for n in _looks(whole("first", first), len(order)):
        if len(left) <= distance:
            break
        ranked = rank(await run.score(left, order[:n]))
        level = NormalDist().cdf(NormalDist().inv_cdf(alpha) * math.sqrt(1 - n / len(order)))
        worse = {s.candidate for s in ranked[distance:] if _is_worse(s, ranked[distance - 1], level)}
        left = [c for c in left if c not in worse or None not in run.known(c, run.select)]
    return rank(await run.score(left, run.select))[:width]


def _looks(first: int, n_examples: int) -> Iterator[int]:
    n = first
    while n < n_examples:
        yield n
        n += max(BLOCK, n // 4)


def _is_worse(one: Scores, reference: Scores, level: float) -> bool:
    gain = paired_gain(reference.values, one.values)
    # The null distribution of sign flips is symmetric: one side has half of the two-sided p-value.
    return gain.difference < 0 and gain.p_value / 2 <= level
