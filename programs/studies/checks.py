"""What a study asks of its tasks before the first call. Source: ours."""

from __future__ import annotations

from collections.abc import Sequence

from cuesmith.programs.tasks import Task

__all__ = ["check_amount", "labels_of", "one_task", "task_with"]


def one_task(name: str, tasks: Sequence[Task], n: int, *, fewest: int, train: int) -> Task:
    """Return the task of a study that is about one.

    Args:
        name: Of the study.
        tasks: What was given.
        n: How large the study is to be.
        fewest: The smallest n.
        train: Training examples it needs at least.

    Raises:
        ValueError: If they do not fit the study.
    """
    if len(tasks) != 1:
        raise ValueError(f"study {name} is about one task, got {len(tasks)}")
    if n < fewest:
        raise ValueError(f"study {name} needs n of at least {fewest}, got {n}")
    if len(tasks[0].train) < train:
        raise ValueError(f"study {name} needs at least {train} training examples to find errors on, "
                         f"and {tasks[0].name} has {len(tasks[0].train)}")
    return tasks[0]


def task_with(tasks: Sequence[Task], **least: int) -> Task:
    """Return the task of a study that is about one.

    Args:
        tasks: What was given.
        **least: Split -> examples of it that the study needs.

    Raises:
        ValueError: If they do not fit the study.
    """
    if len(tasks) != 1:
        raise ValueError(f"this study takes one task, got {len(tasks)}")
    task = tasks[0]
    for split, needed in least.items():
        count = len(getattr(task, split))
        if count < needed:
            raise ValueError(f"{task.name}: the study needs {needed} {split} examples, the task has {count}")
    return task


def check_amount(tasks: Sequence[Task], n: int, *, fewest: int, unit: str) -> None:
    """Check the size of a study of one task or more.

    Args:
        tasks: What was given.
        n: How large the study is to be.
        fewest: The smallest n.
        unit: What `n` counts.

    Raises:
        ValueError: If there is no task, or `n` is too small.
    """
    if not tasks:
        raise ValueError("the study needs at least one task")
    if n < fewest:
        raise ValueError(f"n = {n} {unit} are too few: at least {fewest} are needed")


def labels_of(tasks: Sequence[Task]) -> list[str]:
    """Return the tasks' names, made different where two are the same."""
    names = [task.name for task in tasks]
    return [name if names.count(name) == 1 else f"{name}-{k}" for k, name in enumerate(names, 1)]
