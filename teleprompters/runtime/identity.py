"""What a run is a run of, part by part: a journal answers only for what it recorded.

Outcomes depend on the code of the program and of the metric and on all that this code reads, on every model and its
options, on the adapter, and on the examples' values. Source: ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import dspy

from cuesmith.teleprompters.runtime._dspy import copy_program, named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate, digest
from cuesmith.teleprompters.runtime.fingerprint import Parts, data_parts, parts
from cuesmith.teleprompters.runtime.metric import Metric
from cuesmith.teleprompters.runtime.origins import version_of
from cuesmith.teleprompters.runtime.splitting import Split

_NAMED = 5
"""Places that the note names at most."""


class Identity:
    """What a run is a run of; read when it is first asked for.

    Args:
        student: The program.
        fixed: Parts that nothing changes.
        read: Reads the rest, as it is now.
    """

    def __init__(self, student: dspy.Module, fixed: Mapping[str, str], read: Callable[[], Parts]) -> None:
        self._student = student
        self._fixed = fixed
        self._read = read

    @cached_property
    def _first(self) -> Parts:
        return self._read()

    @property
    def parts(self) -> dict[str, str]:
        """Name -> content hash of all that outcomes depend on, as it was when it was first asked for."""
        return {**self._fixed, **self._first.digests}

    @property
    def unread(self) -> str:
        """A sentence on what could not be hashed; "" if there is no such thing."""
        found = self._first.unread
        if not found:
            return ""
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        return (
            f"No change is noticed, when the run is resumed, in what cannot be hashed: "
            f"{', '.join(found[:_NAMED])}{more}."
        )

    def changed(self, ran: dspy.Module | None) -> list[str]:
        """Return the parts that running changes by itself, such as a counter or a cache.

        Args:
            ran: A copy of the program that has run; None if there is none.
        """
        found = _differing(self._first, self._read())
        if ran is not None:
            found |= _differing(_program(self._student, copied=True), _program(ran))
        return sorted(found)


def identity_of(
    compiler: str,
    options: Mapping[str, object],
    seed: int,
    student: dspy.Module,
    split: Split,
    metric: Metric,
    task_lm: dspy.BaseLM | None,
    optimizer: dspy.BaseLM,
) -> Identity:
    """Return what makes a run the run it is; a journal is resumed only by the same.

    Budget, concurrency, timeouts and callbacks are no part of it.

    Args:
        compiler: The compiler's class name.
        options: The compiler's options that its search depends on.
        seed: Of every decision.
        student: The program to compile.
        split: The examples.
        metric: The judge.
        task_lm: The LM for predictors without their own; None if all carry one.
        optimizer: The model that is asked.
    """
    adapter, retriever = dspy.settings.adapter or dspy.ChatAdapter(), dspy.settings.rm
    fixed = {
        "compiler": digest(compiler),
        "seed": digest(seed),
        "program: prompts": Candidate.of(student).id,
        "Python": digest(version_of("builtins")),
        **{name: digest(version_of(name)) for name in ("cuesmith", "dspy")},
        **{name: digest([split.ids(e) for e in part]) for name, part in _split(split).items()},
    }

    values = data_parts("examples", [[dict(e.items()) for e in part] for part in _split(split).values()])

    def read() -> Parts:
        return _together(
            *(parts(f"option `{name}`", option) for name, option in _flat(options)),
            _program(student),
            parts("metric", metric.function),
            parts("adapter", adapter),
            parts("task LM", task_lm),
            parts("optimizer LM", optimizer),
            parts("retriever", retriever),
            parts("examples", values.classes),
            Parts({}, values.unread),
        )

    return Identity(student, fixed, read)


def _split(split: Split) -> dict[str, Sequence[dspy.Example]]:
    return {"training examples": split.train, "selection examples": split.select, "fresh examples": split.fresh}


def _flat(options: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield each option by itself, those in a dataclass by their own names."""
    for name, option in options.items():
        if dataclasses.is_dataclass(option) and not isinstance(option, type):
            yield from ((f"{name}.{field.name}", getattr(option, field.name)) for field in dataclasses.fields(option))
        else:
            yield name, option


def _program(program: dspy.Module, copied: bool = False) -> Parts:
    program = copy_program(program) if copied else program
    return parts("program", program, covered={id(each): name for name, each in named_predictors(program)})


def _differing(one: Parts, other: Parts) -> set[str]:
    names = {*one.digests, *other.digests}
    return {name for name in names if one.digests.get(name) != other.digests.get(name)}


def _together(*read: Parts) -> Parts:
    digests = {name: found for each in read for name, found in each.digests.items()}
    return Parts(digests, tuple(dict.fromkeys(place for each in read for place in each.unread)))
