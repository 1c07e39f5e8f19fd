"""Compilers by name: the swap in one line. The names can be asked for without dspy being loaded."""

from __future__ import annotations

import difflib
import functools
import importlib
import operator
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from cuesmith.teleprompters.runtime.checks import check_known

if TYPE_CHECKING:
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
    "protegi": "apo",
    "bootstrap-rs": "bootstrap",
    "bootstrap-few-shot-with-random-search": "bootstrap",
}
"""What some also call a compiler, such as dspy's own class names -> its name."""


def compiler_place(name: str) -> tuple[str, str]:
    """Return a compiler's own name, and where its class is; nothing is imported.

    Args:
        name: As in `COMPILERS` or `ALIASES`, or as an installed package names its own (`GROUP`); case, "_" and "-" do
            not matter, so that a class's name will do as well.

    Raises:
        ValueError: If there is none; the message has the nearest name.
    """
    key, places = _key(name, COMPILERS), COMPILERS
    if key is None:
        places = _installed()
        key = _key(name, places)
    if key is None:
        known = _known(places)
        near = difflib.get_close_matches(_plain(name), known, n=1)
        meant = f"did you mean {known[near[0]]!r}? There are" if near else "there are"
        raise ValueError(f"no compiler is called {name!r}: {meant} {', '.join(sorted(places))}")
    return key, places[key]


def compiler_class(name: str) -> type[Compiler]:
    """Return the compiler of that name.

    Args:
        name: As for `compiler_place`.

    Raises:
        ValueError: If there is none; the message has the nearest name.
        TypeError: If an installed package calls something else a compiler.
    """
    from cuesmith.teleprompters.compiler import Compiler  # only now: it loads dspy

    _, place = compiler_place(name)
    module, _, attribute = place.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, Compiler)):
        raise TypeError(f"the compiler {name!r} is {place}, which is no subclass of cuesmith's Compiler")
    return found


def compiler_classes(name: str) -> list[type[Compiler]]:
    """Return the compilers of a chain by name, `"abo >> apo"`; of a single one's name that one.

    Raises:
        ValueError, TypeError: As `compiler_class`.
    """
    if isinstance(name, type):
        near = f"give {name_of(name)!r}, or call" if name_of(name) else "call"
        raise TypeError(f"a compiler's name is wanted, got the class {name.__name__}: {near} it and its compile()")
    return [compiler_class(part.strip()) for part in str(name).split(">>")]


def name_of(kind: type[Compiler]) -> str | None:
    """Return the name by which `compiler_class` finds a compiler; None if it has none. Nothing is imported."""

    def among(places: Mapping[str, str]) -> str | None:
        found = ((name, place.partition(":")) for name, place in places.items())
        return next((name for name, (module, _, attribute) in found
                     if getattr(sys.modules.get(module), attribute, None) is kind), None)  # fmt: skip

    return among(COMPILERS) or among(_installed())


def title_of(kind: type[Compiler]) -> str:
    """Return a compiler's class name; with its module where the name alone would be taken for another compiler."""
    apart = _key(kind.__name__, COMPILERS) is not None and name_of(kind) not in COMPILERS
    return f"{kind.__module__}.{kind.__qualname__}" if apart else kind.__name__


def compiler_of(name: str, metric: MetricFunction, **options: object) -> Compiler:
    """Return a new compiler.

    Args:
        name: As for `compiler_class`, e.g. "abo"; several with ">>" between are a chain, e.g. "abo >> align-pro".
        metric: As for every compiler.
        **options: Constructor options; in a chain each goes to all stages that take one of that name.

    Raises:
        ValueError: If there is no such compiler.
        TypeError: If none of them has such an option.
    """
    kinds = compiler_classes(name)
    known = {option for kind in kinds for option in kind.options()}
    check_known(" >> ".join(kind.__name__ for kind in kinds), options, known)
    each = ({key: value for key, value in options.items() if key in kind.options()} for kind in kinds)
    made = [kind(metric=metric, **own) for kind, own in zip(kinds, each, strict=True)]  # type: ignore[arg-type]
    return functools.reduce(operator.rshift, made)


def compile(
    student: dspy.Module,
    compiler: str,
    *,
    metric: MetricFunction,
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    **options: object,
) -> Compiled:
    """Compile a program with the compiler of that name.

    Args:
        student: Any dspy module; stays untouched.
        compiler: Its name, such as "iterative-ape", "abo", "gepa" or "mipro"; "abo >> apo" for one after the other.
        metric: (example, prediction), and a trace if it takes one -> a number, higher is better, a truth value, or a
            `dspy.Prediction(score=, feedback=)`.
        trainset: Examples with `with_inputs`; without a `valset` a part of them chooses the prompt.
        valset: Examples that choose the prompt and measure its gain.
        run_dir: A folder that keeps all replies: the same call goes on there after a crash, and pays for none again.
        **options: `optimizer_lm`, `budget`, `seed`, `max_in_flight`, `callbacks`, and the compiler's own, as its class
            has them; an unknown one is refused.

    Returns:
        The compiled program, with its `compilation`.

    Raises:
        ValueError: If there is no such compiler.
        TypeError: If it has no such option.
    """
    made = compiler_of(compiler, metric, **options)
    return made.compile(student, trainset=trainset, valset=valset, run_dir=run_dir)


def _installed() -> dict[str, str]:
    """Return name -> where its class is, of all compilers; reading what is installed takes its time."""
    return {**{point.name: point.value for point in entry_points(group=GROUP)}, **COMPILERS}


def _known(places: Mapping[str, str]) -> dict[str, str]:
    """Return every name without what does not matter in it -> the name in `places`."""
    return {_plain(each): ALIASES.get(each, each) for each in (*places, *ALIASES)}


def _key(name: str, places: Mapping[str, str]) -> str | None:
    return _known(places).get(_plain(name))


def _plain(name: object) -> str:
    return re.sub("[-_]", "", str(name).lower().removeprefix("dspy."))
