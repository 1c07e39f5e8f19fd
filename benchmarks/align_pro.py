"""Align-Pro on the embedded model: a prompter, made and trained here, learns slang in front of a frozen program.

    python benchmarks/align_pro.py [--seeds 0 1 2] [--trainer ppo] [--steps N] [--http]

The frozen program is `dspy.Predict("request, text -> answer")` on the embedded model, which has never seen the slang in
which requests are made; the prompter is a Llama of 0.1 million random parameters, warm-started on the pairs of a poor
teacher (right about two slang words in five) and trained by the program's exact-match reward. With --http the program
of the first seed is reached through LiteLLM on a loopback server in another process, which holds the weights: no
gradient and no logit of it can be used.

Printed for each seed: held-out mean reward (n = 250) of the program alone, behind the untrained prompter and behind the
trained one, with intervals and paired tests, the share of the attainable gain that training realised, and seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dspy
from vague import SIGNATURE, vague_requests

from cuesmith import EmbeddedLM
from cuesmith.modules.prompter import Prompted, Prompter
from cuesmith.modules.tiny import tiny_policy
from cuesmith.programs.evaluation import evaluate
from cuesmith.programs.tasks import ExactMatch
from cuesmith.teleprompters import AlignPro
from cuesmith.teleprompters.alignment.training import Training, warm_start
from cuesmith.teleprompters.runtime.statistics import estimate95, paired_gain

STEPS = 120
WARM_START_STEPS = 500
KL_COEFFICIENT = 0.1
LEARNING_RATE = 1e-3
TARGET_S = 600


@contextlib.contextmanager
def served() -> Iterator[dspy.LM]:
    """Yield the embedded model as a LiteLLM model on a loopback server in another process, which holds the weights."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("serve_embedded.py"))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = next(line.strip() for line in server.stdout if line.strip().isdigit())
        base = f"http://127.0.0.1:{port}/v1"
        yield dspy.LM("openai/nano", api_base=base, api_key="none", temperature=0, cache=False)
    finally:
        server.kill()
        server.wait()


@dataclass(frozen=True)
class Done:
    """What became of one seed; scores are held-out rewards, an example each."""

    seed: int
    through: str
    alone: tuple[float | None, ...]
    untrained: tuple[float | None, ...]
    trained: tuple[float | None, ...]
    share: tuple[float | None, float, float]
    kl: float
    steps: int
    calls: int
    seconds: float
    verdict: str


def study(seed: int, lm: dspy.BaseLM, through: str, training: Training) -> Done:
    """Train and measure one seed."""
    vague, metric, start = vague_requests(seed=seed), ExactMatch(), time.perf_counter()
    student = dspy.Predict(dspy.Signature(SIGNATURE, "Answer the request."))
    policy = tiny_policy(vague.words, seed=seed)
    with dspy.context(lm=lm):
        compiler = AlignPro(
            metric,
            prompter=policy,
            field="request",
            pairs=vague.pairs,
            warm_start_steps=WARM_START_STEPS,
            training=training,
            seed=seed,
        )
        compiled = compiler.compile(student, trainset=list(vague.task.train), valset=list(vague.task.validation))
        seconds = time.perf_counter() - start
        rho_sft = warm_start(policy, vague.pairs, steps=WARM_START_STEPS, seed=seed)
        untrained = Prompted(Prompter(rho_sft), student, ["request"])
        alone, before, after = (
            tuple(evaluate(p, vague.task.test, metric).values) for p in (student, untrained, compiled)
        )
    found = compiled.compilation.extras["alignment"]
    done = found.realised
    share = (done.share, done.low, done.high) if done else (None, math.nan, math.nan)
    return Done(
        seed,
        through,
        alone,
        before,
        after,
        share,
        found.kl.k1 if found.kl else 0.0,
        len(found.curve),
        compiled.compilation.spent.total.calls,
        seconds,
        found.verdict(),
    )


def show(done: Done) -> bool:
    """Print one seed; return whether the trained prompter is above both others and in time."""
    print(
        f"\nseed {done.seed}, frozen program {done.through}: {done.steps} steps, {done.calls:,} calls, "
        f"{done.seconds:.0f} s (target <= {TARGET_S})"
    )
    gains = []
    rows = {"program alone": done.alone, "untrained prompter": done.untrained, "trained": done.trained}
    for name, scores in rows.items():
        e, gain = estimate95([v for v in scores if v is not None]), paired_gain(scores, done.trained)
        gains.append(gain)
        behind = (
            ""
            if name == "trained"
            else (
                f"   trained is better by {100 * gain.difference:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] "
                f"points, p = {gain.p_value:.2g}, n = {gain.n}"
            )
        )
        print(f"  {name:20}{100 * e.mean:6.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}] %{behind}")
    print(f"  {done.verdict}")
    return all(gain.low > 0 for gain in gains[:2]) and done.seconds <= TARGET_S


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trainer", choices=["ppo", "rloo", "grpo"], default="ppo")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--kl-coefficient", type=float, default=KL_COEFFICIENT)
    parser.add_argument("--http", action="store_true", help="reach the program of the first seed over HTTP as well")
    options = parser.parse_args()
    for library in ("dspy", "LiteLLM"):
        logging.getLogger(library).setLevel(logging.ERROR)
    training = Training(
        trainer=options.trainer,
        kl_coefficient=options.kl_coefficient,
        steps=options.steps,
        batch_size=64,
        generations=4,
        learning_rate=LEARNING_RATE,
        max_new_tokens=8,
    )
    good = [show(study(seed, EmbeddedLM(), "in this process", training)) for seed in options.seeds]
    if options.http:
        with served() as lm:
            good.append(show(study(options.seeds[0], lm, "over HTTP in another process", training)))
    print(f"\ntrained above the program alone and the untrained prompter, in time: {sum(good)} of {len(good)} runs")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
