"""Bias and coverage of the yardstick's estimators, on instances whose attainable gain is known exactly.

    python benchmarks/yardstick.py [--repeats 50] [--seed 0] [--json FILE]

Each cell draws 40 inputs of a population of 1000, n rewrites of each from rho_sft, and m rewards of each rewrite of
0 or 1 (so that the standard deviation of the noise is up to 0.5). "few": 6 rewrites an input, so that draws repeat;
"many": 100. In the last block rewards have no noise and the estimators are told so. The gain is
E lambda log Z - E_{rho_sft} R, in units of reward. For each estimator: its bias, and how often its 95 % interval
covers the truth; for `naive`, which puts averages per distinct rewrite straight into the formula, too. `between`
is how often the truth lies from the lower end of `lower` to the upper end of `upper`. The last columns are the KL
of rho* in nats, its central estimate and the naive one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cuesmith.teleprompters.alignment.finite import Instance, log_mean_exp
from cuesmith.teleprompters.alignment.gains import Attainable, Sampled
from cuesmith.teleprompters.alignment.yardstick import attainable
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95

INPUTS = 40
POPULATION = 1000
REWRITES = {"few": 6, "many": 100}
ESTIMATORS = ("naive", "lower", "central", "upper")


@dataclass(frozen=True)
class Cell:
    """One setting and what was found in it; biases in units of reward, coverages as shares, nan where none."""

    support: str
    noisy: bool
    kl_coefficient: float
    draws: int
    rewards: int
    gain: float
    kl: float
    bias: dict[str, float]
    coverage: dict[str, float]
    between: float
    kl_bias: dict[str, float]


def population(support: str, rng: np.random.Generator) -> Instance:
    """Inputs of different difficulty; rewards 0 and 1, so that R is the probability of output 1."""
    rewrites = REWRITES[support]
    easy = rng.beta(2.0, 3.0, size=(POPULATION, 1))
    chance = rng.beta(4 * easy, 4 * (1 - easy), size=(POPULATION, rewrites))
    return Instance(
        prompts=np.full(POPULATION, 1 / POPULATION),
        reference=rng.dirichlet(np.full(rewrites, 0.5), size=POPULATION),
        frozen=np.stack([1 - easy[:, 0], easy[:, 0]], axis=-1),
        rewritten=np.stack([1 - chance, chance], axis=-1),
        rewards=np.tile([0.0, 1.0], (POPULATION, 1)),
    )


def draw(instance: Instance, inputs: int, n: int, m: int, noisy: bool, rng: np.random.Generator) -> list[list[Sampled]]:
    """Sample as a real run does: inputs from P, rewrites from rho_sft, rewards of the answers."""
    values = instance.rewrite_rewards()
    samples = []
    for x in rng.choice(len(instance.prompts), size=inputs, p=instance.prompts):
        rewrites = rng.choice(values.shape[1], size=n, p=instance.reference[x])
        mean = np.repeat(values[x, rewrites, None], m, axis=1)
        rewards = (rng.random((n, m)) < mean).astype(float) if noisy else mean
        rows = zip(rewrites.tolist(), rewards.tolist(), strict=True)
        samples.append([Sampled(str(k), tuple(row)) for k, row in rows])
    return samples


def naive(samples: list[list[Sampled]], kl_coefficient: float) -> Estimate95:
    """The plug-in: averages per distinct rewrite, put straight into lambda log mean exp(R / lambda)."""
    gains = []
    for draws in samples:
        rewards: dict[str, list[float]] = {}
        for sample in draws:
            rewards.setdefault(sample.text, []).extend(r for r in sample.rewards if r is not None)
        counts = np.array([sum(s.text == text for s in draws) for text in rewards], dtype=float)
        means = np.array([np.mean(values) for values in rewards.values()])
        share = counts / counts.sum()
        gains.append(kl_coefficient * float(log_mean_exp(share, means / kl_coefficient)) - float(share @ means))
    return estimate95(gains)


def measure(support: str, noisy: bool, kl_coefficient: float, n: int, m: int, repeats: int, seed: int) -> Cell:
    """Fill one cell."""
    # The same stream in every cell of a support, so that cells differ by their setting alone.
    instance = replace(population(support, np.random.default_rng(seed)), kl_coefficient=kl_coefficient)
    truth = instance.theory()
    gain = truth.attainable - truth.untrained
    rng = np.random.default_rng([seed, n, m])
    found: dict[str, list[Estimate95]] = {name: [] for name in ESTIMATORS}
    bests: list[Attainable] = []
    for repeat in range(repeats):
        samples = draw(instance, INPUTS, n, m, noisy, rng)
        best = attainable(samples, kl_coefficient, noise_variance=None if noisy else 0.0, seed=repeat)
        bests.append(best)
        rows = (naive(samples, kl_coefficient), best.gain_lower, best.gain, best.gain_upper)
        for name, row in zip(ESTIMATORS, rows, strict=True):
            if row is not None:
                found[name].append(row)
    central_kls = [best.kl.mean for best in bests if best.kl is not None]
    return Cell(
        support,
        noisy,
        kl_coefficient,
        n,
        m,
        gain,
        truth.kl,
        {name: _mean([row.mean - gain for row in rows]) for name, rows in found.items()},
        {name: _mean([float(row.low <= gain <= row.high) for row in rows]) for name, rows in found.items()},
        _mean([float(best.between[0] <= gain <= best.between[1]) for best in bests]),
        {
            "central": _mean([kl - truth.kl for kl in central_kls]),
            "naive": _mean([best.kl_upper.mean - truth.kl for best in bests]),
        },
    )


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def cells(repeats: int, seed: int) -> list[Cell]:
    """All cells, in the order in which they are printed."""
    lambdas = (0.1, 0.5, 2.0)
    noisy = itertools.product(REWRITES, (True,), lambdas, (8, 32), (1, 4))
    exact = itertools.product(REWRITES, (False,), lambdas, (8, 32), (1,))
    return [measure(*setting, repeats, seed) for setting in itertools.chain(noisy, exact)]


def show(rows: list[Cell]) -> None:
    """Print the table."""
    heads = "".join(f"{name:>17}" for name in ESTIMATORS)
    print(
        f"{'support':8}{'lambda':>6}{'n':>4}{'m':>3}{'gain':>8}{heads}{'between':>9}{'KL':>8}{'central':>9}{'naive':>8}"
    )
    for noisy in (True, False):
        print(f"{'rewards 0 and 1' if noisy else 'rewards without noise'}: bias, and coverage in % in brackets")
        for row in (r for r in rows if r.noisy == noisy):
            columns = [f"{row.bias[name]:+.4f} ({100 * row.coverage[name]:3.0f})" for name in ESTIMATORS]
            print(
                f"{row.support:8}{row.kl_coefficient:6g}{row.draws:4}{row.rewards:3}{row.gain:8.4f}"
                + "".join(f"{column:>17}" for column in columns)
                + f"{100 * row.between:8.0f}%{row.kl:8.3f}"
                + "".join(f"{row.kl_bias[name]:+9.3f}" for name in ("central", "naive"))
            )


def main() -> int:
    """Measure, print, and return whether the truth lay between the leaning estimates in 95 % of noisy runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    rows = cells(options.repeats, options.seed)
    show(rows)
    noisy = [row for row in rows if row.noisy]
    central = [row.coverage["central"] for row in noisy if not math.isnan(row.coverage["central"])]
    between = _mean([row.between for row in noisy])
    print(
        f"\nnoisy cells: central covers {100 * min(central):.0f} to {100 * max(central):.0f} %, mean "
        f"{100 * _mean(central):.1f} %; naive mean {100 * _mean([row.coverage['naive'] for row in noisy]):.1f} %; "
        f"between {100 * between:.1f} %; {options.repeats} repeats, {time.monotonic() - started:.0f} s"
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))
    return 0 if between >= 0.95 else 1


if __name__ == "__main__":
    raise SystemExit(main())
