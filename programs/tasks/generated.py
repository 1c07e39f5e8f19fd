"""Tasks drawn from the embedded model's task families, of inputs that the model was never trained on.

Source: ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from cuesmith.modules.embedded.families import FAMILIES, Family
from cuesmith.programs.tasks.task import Row, Sizes, Task, TaskError, build

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
    rng = random.Random(f"{family.name}:{seed}")
    seen: set[str] = set()
    for _ in range(count * _PATIENCE):
        question = family.sample(rng, held_out=True)
        solution = family.solve(question)
        row = Row({"question": question}, (solution.answer,)) if solution else None
        if row is None or row.content in seen:
            continue
        seen.add(row.content)
        yield row
        if len(seen) == count:
            return
    raise TaskError(f"family {family.name!r} has fewer than {count} different held-out questions")
