"""Which predictor of a program to change next. Source: ours; 2402.02101's programs have one predictor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from cuesmith.teleprompters.runtime.evidence import REASONING
from cuesmith.teleprompters.runtime.outcomes import ParseFailure, Scored, Scores, Step
from cuesmith.teleprompters.search.material import Casebook

Strategy = Literal["round robin", "credit"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


def turn(names: Sequence[str], step: int) -> str:
    """Return the predictor that step 1, 2, ... changes: round robin in the program's order."""
    return names[(step - 1) % len(names)]


def blamed(names: Sequence[str], step: int, ran: Scores, book: Casebook, threshold: float) -> str:
    """Return the predictor where most failed runs went wrong.

    A run is compared with one that succeeded on the same example, of whichever candidate: the first predictor, in
    the program's order, that answered differently is to blame. A reply that cannot be used is that of the first
    predictor without a call. Where neither tells, and on ties, it is round robin.

    Args:
        names: All predictors.
        step: The step, for round robin.
        ran: A candidate's outcomes.
        book: What is known of successes.
        threshold: A lower score is a failure.
    """
    blame: Counter[str] = Counter()
    for example, outcome in ran.failures(threshold):
        if isinstance(outcome, ParseFailure):
            done = {call.predictor for call in outcome.trace}
            blame.update([name for name in names if name not in done][:1])
        elif isinstance(outcome, Scored) and (good := book.success(example)):
            blame.update([name for name in names if _said(outcome.trace, name) != _said(good, name)][:1])
    first = (step - 1) % len(names)
    order = [*names[first:], *names[:first]]
    return max(order, key=lambda name: blame[name])


def _said(trace: Sequence[Step], name: str) -> list[Mapping[str, object]]:
    return [{field: value for field, value in call.outputs.items() if field != REASONING}
            for call in trace if call.predictor == name]
