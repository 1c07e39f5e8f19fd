"""Held-out scores of programs, and the comparison of two of them.

Source: ours; the statistics are those of `cuesmith.teleprompters.runtime.statistics`.
"""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from cuesmith.teleprompters.runtime.candidate import example_id
from cuesmith.teleprompters.runtime.corpus_statistics import estimate_of, gain_of
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.runtime.score_program import score_program
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, estimate95


def evaluate(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    metric: MetricFunction,
    *,
    lm: dspy.BaseLM | None = None,
    max_in_flight: int = 32,
    executor: object = None,
) -> Scores:
    """Score a program on examples that no compiler saw.

    A provider's or the metric's failure leaves an example without a score; it is never a zero.

    Args:
        program: The program.
        examples: Held-out examples.
        metric: Judges a prediction; of 2, 3 or 5 arguments.
        lm: The language model of predictors that carry none; the configured one by default.
        max_in_flight: Program runs at once, at most.
        executor: Where programs run, as compilers take it; None for this process.

    Raises:
        TypeError: If the program cannot run there.
        ValueError: If there are no examples.
        EvaluationStopped: If the provider refuses calls for good (wrong key, no credit, no such model), or is silent.
    """
    if not examples:
        raise ValueError("evaluate() needs at least one example")
    return score_program(program, examples, metric, lm=lm, max_in_flight=max_in_flight, executor=executor)


def estimate(scores: Scores) -> Estimate95:
    """Return the score with its 95 % interval; examples without one are left out."""
    return estimate_of(scores) or estimate95(())


def compare(baseline: Scores, best: Scores) -> Gain:
    """Compare two programs on the same examples, pair by pair.

    Args:
        baseline: The scores to compare with.
        best: The other program's scores.

    Returns:
        Difference "best minus baseline" with its 95 % interval and p-value, over the examples that both
        have a score for.

    Raises:
        TypeError: If they are no scores.
        ValueError: If the two are not over the same examples.
    """
    if not (isinstance(baseline, Scores) and isinstance(best, Scores)):
        raise TypeError(
            "compare() takes two results of evaluate(); compilers are run side by side by compare_compilers()"
        )
    if [*map(example_id, baseline.examples)] != [*map(example_id, best.examples)]:
        raise ValueError("only scores on the same examples can be compared")
    return gain_of(baseline, best)
