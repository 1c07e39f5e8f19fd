"""A small task for prompters, whose optimum is known: name the colour of a thing, of which the program only echoes.

As a script it compiles once in a run directory and writes the result, so that tests can kill it:

    python tests/align_support.py RUN_DIR LOG RESULT
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import re
import sys
from pathlib import Path

import dspy
from e2e_support import ToyEngine, exact, result_of, toy_lm

from cuesmith.modules.policy import LocalPolicy
from cuesmith.modules.tiny import tiny_policy
from cuesmith.teleprompters.align_pro import AlignPro
from cuesmith.teleprompters.alignment.training import Training, warm_start

COLOURS = {"sky": "blue", "grass": "green", "blood": "red"}
NUMBERS = tuple(f"n{i}" for i in range(6))
VOCABULARY = (*COLOURS, *COLOURS.values(), *NUMBERS)
SMALL = Training(
    kl_coefficient=0.1, steps=60, batch_size=48, generations=4, learning_rate=2e-3, max_new_tokens=2, save_every=10
)


def echo(system: str, user: str, drawn: int | None) -> str:
    """Answer with the question itself."""
    found = re.search(r"\[\[ ## question ## \]\]\s*(.*?)\s*\n\nRespond", user, re.DOTALL)
    return f"[[ ## answer ## ]]\n{found.group(1) if found else '?'}\n\n[[ ## completed ## ]]"


def things(n: int, start: int = 0) -> list[dspy.Example]:
    """Return n examples."""
    rows = itertools.islice(itertools.product(NUMBERS, NUMBERS, COLOURS), start, start + n)
    return [dspy.Example(question=f"{t} {i} {j}", answer=COLOURS[t]).with_inputs("question") for i, j, t in rows]


def guesses(n: int = 90) -> list[tuple[str, str]]:
    """Return a poor teacher's pairs: a colour drawn at random, right a little more often than not."""
    rng = random.Random(0)
    return [
        (e.question, e.answer if rng.random() < 0.2 else rng.choice(list(COLOURS.values())))
        for e in (things(90) * 9)[:n]
    ]


def untaught() -> dict[str, object]:
    """Return what makes a compiler teach a prompter itself before it trains it."""
    return {"prompter": tiny_policy(VOCABULARY, hidden=32, layers=1), "pairs": guesses(540), "warm_start_steps": 300}


@functools.cache
def taught() -> LocalPolicy:
    """Return the prompter that has learnt from the poor teacher, for tests of what comes after."""
    return warm_start(tiny_policy(VOCABULARY, hidden=32, layers=1), guesses(540), steps=300)


def compiler(engine: ToyEngine, **options: object) -> AlignPro:
    """Return a small compiler."""
    prompter = {} if "prompter" in options else {"prompter": taught()}
    given = {**prompter, "training": SMALL, "rewrites": 8, "yardstick": 9, **options}
    return AlignPro(**{"metric": exact, **given})  # type: ignore[arg-type]


def compiled_by(made: AlignPro, engine: ToyEngine, run_dir: Path | None = None) -> dspy.Module:
    """Compile the echo."""
    with dspy.context(lm=toy_lm(engine, temperature=0)):
        return made.compile(
            dspy.Predict("question -> answer"), trainset=things(30), valset=things(48, 30), run_dir=run_dir
        )


def main(run_dir: str, log: str, result: str) -> None:
    """Compile once and write the result."""
    engine = ToyEngine(0.002, Path(log), echo)
    done = compiled_by(compiler(engine, **untaught()), engine, Path(run_dir))
    alignment = done.compilation.extras["alignment"]
    data = {**result_of(done), "policy": done.prompter.fingerprint, "verdict": alignment.verdict()}
    del data["spent"]
    Path(result).write_text(json.dumps(data))


if __name__ == "__main__":
    main(*sys.argv[1:])
