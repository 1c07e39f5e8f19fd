"""From which score on an answer is a success, where nobody said so. Source: ours."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from cuesmith.teleprompters.runtime.evidence import labels_of
from cuesmith.teleprompters.runtime.outcomes import value
from cuesmith.teleprompters.runtime.run import Run

GOLD = 3
"""Examples whose right answers are judged."""


async def success_threshold(run: Run, usual: float) -> float:
    """Return the score from which on an answer counts as a success.

    It is the usual one where some of the student's answers have it and all scores lie between 0 and 1. If not, the
    metric may have another scale (1 to 5, percent, a negative loss) or no full marks to give, and is asked what it
    gives to the right answers of some training examples.

    Args:
        run: The run; its student has been scored.
        usual: The threshold for scores from 0 to 1.

    Raises:
        RunStopped: As `Run.judge`.
    """
    seen = [v for v in run.known(run.baseline, run.select) if v is not None]
    if max(seen) >= usual and min(seen) < max(seen) and all(0.0 <= v <= 1.0 for v in seen):
        return usual
    labelled = [(example, labels) for example in run.train if (labels := labels_of(example))][:GOLD]
    judged = await asyncio.gather(*(run.judge(example, labels) for example, labels in labelled))
    return threshold_of(seen, [v for one in judged if (v := value(one)) is not None], usual)


def threshold_of(seen: Sequence[float], gold: Sequence[float], usual: float) -> float:
    """Return the threshold for a metric.

    - All scores, gold ones included, between 0 and 1: the usual one, unless right answers do not get it.
    - No answer scored above the right ones: the least score of these.
    - The metric has no high opinion of them: the highest score seen; if no other was seen, anything above it.

    Args:
        seen: Scores of the student's answers, at least one.
        gold: Scores of right answers; none if it could not be asked.
        usual: The threshold for scores from 0 to 1.
    """
    if all(0.0 <= v <= 1.0 for v in (*seen, *gold)) and (not gold or min(gold) >= usual or max(gold) == 0.0):
        return usual
    if gold and min(gold) >= max(seen):
        return min(gold)
    return max(seen) if min(seen) < max(seen) else math.nextafter(max(seen), math.inf)


def within_reach(threshold: float, rows: Sequence[Sequence[float | None]]) -> float:
    """Return the threshold, or where nothing has come up to it what the best quarter of the best row has.

    Args:
        threshold: What would be a success.
        rows: Scores of candidates on the same examples, the best candidate first; None where one is missing.
    """
    known = [sorted(v for v in row if v is not None) for row in rows]
    if not known or not known[0] or any(row[-1] >= threshold for row in known if row):
        return threshold
    best = known[0]
    above = [v for v in best if v > best[0]]  # the lowest score of all is no success, however many have it
    return max(best[math.ceil(0.75 * len(best)) - 1], above[0]) if above else threshold
