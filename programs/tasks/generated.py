"""Tasks drawn from the embedded model's task families, of inputs that the model was never trained on.

Source: ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from cuesmith.modules.embedded.families import FAMILIES, Family
from cuesmith.programs.tasks.task import Row, Sizes, Task, TaskError, build, different

DEFAULT_FAMILY = "objects"
"""The family that `cuesmith quickstart` compiles on unless told otherwise."""

_PATIENCE = 200
"""Draws for each wanted row before a family counts as too small."""


def generate(name: str = DEFAULT_FAMILY, *, sizes: Sizes | None = None, seed: int = 0) -> Task:
    """Draw a task from one family.

    Args:
        name: A key of `cuesmith.modules.embedded.families.FAMILIES`.
        sizes: Sizes of the splits; 40 train, 100 validation and 250 test examples by default.
        seed: Chooses the questions and the splits.

    Raises:
        TaskError: If there is no such family, or it has too few different questions.
    """
    family = FAMILIES.get(name)
    if family is None:
        raise TaskError(f"no task family {name!r}; choose one of {', '.join(sorted(FAMILIES))}")
    wanted = sizes or Sizes()
    return build(name, family.instructions[0], _rows(family, wanted.total, seed), sizes=wanted, seed=seed)


def _rows(family: Family, count: int, seed: int) -> Iterator[Row]:
    shortage = f"family {family.name!r} has fewer than {count} different held-out questions"
    return different(_drawn(family, count * _PATIENCE, seed), count, shortage)


def _drawn(family: Family, count: int, seed: int) -> Iterator[Row | None]:
    rng = random.Random(f"{family.name}:{seed}")
    for _ in range(count):
        question = family.sample(rng, held_out=True)
        solution = family.solve(question)
        yield Row({"question": question}, (solution.answer,)) if solution else None
