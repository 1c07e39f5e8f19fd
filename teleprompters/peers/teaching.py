"""Teachers: programs and models that bootstrapping takes successful runs from, in the student's place.

What a teacher's model answers says nothing of a candidate, which runs on the target: its runs teach, and are neither
scores of the record nor failures of anybody's prompts. Source: dspy 3.4 for what a teacher is; the rest is ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import dspy

from cuesmith.teleprompters.peers.border import hosted, keep_models
from cuesmith.teleprompters.runtime._dspy import copy_program, named_predictors


def settings_of(given: Mapping[str, object] | None, *known: str) -> Mapping[str, object]:
    """Return dspy's `teacher_settings`, checked.

    Args:
        given: What the user gave.
        known: The settings that make sense.

    Raises:
        TypeError: If it is no mapping, or its `lm` no model.
        ValueError: If it has other settings.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"teacher_settings must be a mapping such as {{'lm': dspy.LM(...)}}, got {given!r}")
    if unknown := sorted(map(str, set(given) - set(known))):
        raise ValueError(f"teacher_settings has {', '.join(unknown)}: it takes {', '.join(known)}")
    if "lm" in given and not isinstance(given["lm"], dspy.BaseLM):
        raise TypeError(f"teacher_settings['lm'] must be a dspy.LM, got {given['lm']!r}")
    return dict(given)


def check_teacher(teacher: object, student: dspy.Module) -> None:
    """Raise if runs of `teacher` cannot become demonstrations of the student.

    Raises:
        TypeError: If it is no program.
        ValueError: If its predictors are not the student's.
    """
    if not isinstance(teacher, dspy.Module):
        raise TypeError(f"teacher must be a dspy.Module or None, got {teacher!r}")
    theirs, own = named_predictors(teacher), named_predictors(student)
    if [name for name, _ in theirs] != [name for name, _ in own]:
        raise ValueError(
            f"teacher must have the student's predictors ({', '.join(name for name, _ in own)}), "
            f"it has {', '.join(name for name, _ in theirs) or 'none'}"
        )
    for (name, one), (_, other) in zip(theirs, own, strict=True):
        if not one.signature.equals(other.signature):
            raise ValueError(f"teacher's predictor {name!r} has other instructions or fields than the student's")


def taught_by(lm: dspy.BaseLM) -> dspy.BaseLM:
    """Return a copy of a model that runs programs in the target's place; so are its copies."""
    copied = hosted(lm, "target")
    copied.cuesmith_teacher = True
    return copied


def teacher_of(program: dspy.Module) -> dspy.Module:
    """Return a copy of a teaching program, whose own models are known as a teacher's and stay with it."""
    copied = copy_program(program)
    for _, predictor in named_predictors(copied):
        predictor.lm = None if predictor.lm is None else taught_by(predictor.lm)
    keep_models(copied)
    return copied


def is_taught(program: dspy.Module) -> bool:
    """Whether a run of the program here and now is answered by a teacher's model, at least in part."""
    models = [dspy.settings.lm, *(predictor.lm for _, predictor in named_predictors(program))]
    return any(getattr(lm, "cuesmith_teacher", False) for lm in models)
