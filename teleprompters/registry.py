"""Compilers by name: the swap in one line."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points

import dspy

from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.compilation import Compiled
from cuesmith.teleprompters.runtime.metric import MetricFunction

COMPILERS: dict[str, str] = {
    "iterative-ape": "cuesmith.teleprompters.iterative_ape:IterativeAPE",
    "apo": "cuesmith.teleprompters.apo:APO",
    "apo-sum": "cuesmith.teleprompters.apo_sum:APOSum",
    "prompt-agent": "cuesmith.teleprompters.prompt_agent:PromptAgent",
    "reflective-mutation": "cuesmith.teleprompters.reflective_mutation:ReflectiveMutation",
    "opro": "cuesmith.teleprompters.opro:OPRO",
    "abo": "cuesmith.teleprompters.abo:ABO",
    "portfolio": "cuesmith.teleprompters.portfolio:Portfolio",
    "align-pro": "cuesmith.teleprompters.align_pro:AlignPro",
    "mipro": "cuesmith.teleprompters.peers.mipro:MIPRO",
    "gepa": "cuesmith.teleprompters.peers.gepa:GEPA",
    "simba": "cuesmith.teleprompters.peers.simba:SIMBA",
    "copro": "cuesmith.teleprompters.peers.copro:COPRO",
    "bootstrap": "cuesmith.teleprompters.peers.bootstrap:Bootstrap",
}
"""Name -> where its class is. A compiler is one file, and one line here."""

GROUP = "cuesmith.compilers"
"""The entry points by which an installed package adds compilers: name = "module:Class"."""


ALIASES: dict[str, str] = {
    "ape": "iterative-ape",
    "miprov2": "mipro",
    "bootstrap-rs": "bootstrap",
    "bootstrap-few-shot-with-random-search": "bootstrap",
}
"""What some also call a compiler, such as dspy's own class names -> its name."""


def compiler_class(name: str) -> type[Compiler]:
    """Return the compiler of that name.

    Args:
        name: As in `COMPILERS` or `ALIASES`, or as an installed package names its own (`GROUP`); case, "_" and "-" do
            not matter, so that a class's name will do as well.

    Raises:
        ValueError: If there is none; the message has the nearest name.
        TypeError: If an installed package calls something else a compiler.
    """
    key, places = _key(name, COMPILERS), COMPILERS
    if key is None:  # reading what is installed takes its time
        places = {**{point.name: point.value for point in entry_points(group=GROUP)}, **COMPILERS}
        key = _key(name, places)
    if key is None:
        known = _known(places)
        near = difflib.get_close_matches(_plain(name), known, n=1)
        meant = f"did you mean {known[near[0]]!r}? There are" if near else "there are"
        raise ValueError(f"no compiler is called {name!r}: {meant} {', '.join(sorted(places))}")
    module, _, attribute = places[key].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, Compiler)):
        raise TypeError(f"the compiler {name!r} is {places[key]}, which is no subclass of cuesmith's Compiler")
    return found


def compile(
    student: dspy.Module,
    name: str,
    *,
    metric: MetricFunction,
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    **options: object,
) -> Compiled:
    """Compile `student` with the compiler called `name`.

    Args:
        student: Any dspy module.
        name: As for `compiler_class`, e.g. "abo".
        metric: As for every compiler.
        trainset: As for `Compiler.compile`.
        valset: As for `Compiler.compile`.
        run_dir: As for `Compiler.compile`.
        **options: The compiler's own constructor options; an unknown one is refused.

    Returns:
        The compiled program, with its `compilation`.

    Raises:
        ValueError: If there is no such compiler.
        TypeError: If it has no such option.
    """
    chosen = compiler_class(name)
    known = set(chosen.options())
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"{chosen.__name__} has no option {', '.join(unknown)}: it takes {', '.join(sorted(known))}")
    compiler = chosen(metric=metric, **options)  # type: ignore[arg-type]
    return compiler.compile(student, trainset=trainset, valset=valset, run_dir=run_dir)


def _known(places: Mapping[str, str]) -> dict[str, str]:
    """Return every name without what does not matter in it -> the name in `places`."""
    return {_plain(each): ALIASES.get(each, each) for each in (*places, *ALIASES)}


def _key(name: str, places: Mapping[str, str]) -> str | None:
    return _known(places).get(_plain(name))


def _plain(name: object) -> str:
    return re.sub("[-_]", "", str(name).lower())
