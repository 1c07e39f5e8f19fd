"""What the commands share: kinds of arguments, their complaint, and that nothing is fetched. Source: ours."""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import fields
from typing import Any


def count(text: str) -> int:
    """Return a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    return _whole(text, 1)


def seed(text: str) -> int:
    """Return a whole number of at least 0.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    return _whole(text, 0)


def amount(text: str) -> float:
    """Return a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive amount")
    return value


def share(text: str) -> float:
    """Return a number from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: a number from 0 to 1")
    return value


def columns(text: str) -> tuple[str, ...]:
    """Return the names of columns that are written with commas between them.

    Raises:
        argparse.ArgumentTypeError: If one is empty.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of columns, such as question,context")
    return names


def model(text: str) -> str:
    """Return the name of a LiteLLM model.

    Raises:
        argparse.ArgumentTypeError: If it has not the form of one.
    """
    provider, slash, name = text.partition("/")
    if not (provider and slash and name) or any(c.isspace() for c in text):
        raise argparse.ArgumentTypeError(f"{text!r} is not PROVIDER/MODEL, such as openai/gpt-4.1-mini")
    return text


def values_of(options: argparse.Namespace, settings: type, **others: object) -> dict[str, Any]:
    """Return the values of a dataclass's fields: those of `others`, and the options of the same names, but for None.

    Args:
        options: As they were parsed.
        settings: The dataclass.
        **others: Fields that have no option of their name, or another value.
    """
    named = {field.name: getattr(options, field.name, None) for field in fields(settings)}
    return {name: value for name, value in {**named, **others}.items() if value is not None}


def complain(command: str, problem: str, status: int) -> int:
    """Say on standard error, in one line, why a command ends.

    Args:
        command: As it was called, such as "cuesmith study".
        problem: What is wrong; what a model or a provider wrote may be in it.
        status: The exit status.

    Returns:
        The exit status.
    """
    from cuesmith.programs.report import visible  # only now: it loads rich

    print(f"{command}: error: {' '.join(visible(problem).split())}", file=sys.stderr)
    return status


def be_offline(*, models: bool, embedder: bool = False) -> None:
    """Keep dspy and litellm from fetching price lists and models that a run on this machine has no use for.

    Args:
        models: Whether a provider's model takes part: then nothing is kept from anything.
        embedder: Whether an embedder does, which may come from the hub.
    """
    if not models:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    if not models and not embedder:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value
