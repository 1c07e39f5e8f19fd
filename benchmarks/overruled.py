"""What it is worth to give up a choice that fresh examples put below the student: a simulation, no model.

    python benchmarks/overruled.py

Candidates differ from the student by a normal number of points; each difference is seen through the noise of its
examples (a variance of .3 an example, as of two prompts of middling score that agree on most). The best on the
selection examples is returned if it is above the student: always, or by the rule of `Session`, which fresh examples
and all together decide.
"""

from __future__ import annotations

import math

import numpy as np

RUNS, CANDIDATES, VARIANCE, HARM = 20_000, 10, 0.3, 0.02
CASES = ((-0.2, 0.1), (-0.1, 0.1), (-0.05, 0.05), (0.0, 0.05), (0.1, 0.1), (0.3, 0.15))
SIZES = ((20, 8), (40, 20), (50, 100))


def simulate(mean: float, deviation: float, select: int, fresh: int) -> dict[str, tuple[float, float]]:
    """Return, by policy, the mean gain and the share of runs that end more than 2 points below the student, in %."""
    rng = np.random.default_rng(0)
    true = rng.normal(mean, deviation, (RUNS, CANDIDATES))
    seen = true + rng.normal(0, math.sqrt(VARIANCE / select), true.shape)
    best = seen.argmax(axis=1)[:, None]
    chosen, selected = np.take_along_axis(true, best, 1)[:, 0], np.take_along_axis(seen, best, 1)[:, 0]
    measured = chosen + rng.normal(0, math.sqrt(VARIANCE / fresh), RUNS)
    overall = (select * selected + fresh * measured) / (select + fresh)
    clear = overall > 1.96 * math.sqrt(VARIANCE / (select + fresh))
    above = selected > 0
    policies = {"always": above, "by the rule": above & ((measured >= 0) | clear)}
    gains = {name: np.where(kept, chosen, 0.0) for name, kept in policies.items()}
    return {name: (100 * float(gain.mean()), 100 * float((gain < -HARM).mean())) for name, gain in gains.items()}


def main() -> None:
    """Print the table."""
    print("| candidates' gain, points | select, fresh | always: gain, % harmed | by the rule: gain, % harmed |")
    print("|---|---|---|---|")
    for mean, deviation in CASES:
        for select, fresh in SIZES:
            told = " | ".join(
                f"{gain:.1f}, {harm:.0f}" for gain, harm in simulate(mean, deviation, select, fresh).values()
            )
            print(f"| {100 * mean:+.0f} +- {100 * deviation:.0f} | {select}, {fresh} | {told} |")


if __name__ == "__main__":
    main()
