"""Whose the calls in a trace are. Source: ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import dspy

from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import to_json
from cuesmith.teleprompters.runtime.lines import line
from cuesmith.teleprompters.runtime.outcomes import Step

Call: TypeAlias = tuple[object, Mapping[str, object], Mapping[str, object]]


class Trace(list[Call]):
    """The calls of a program run as dspy adds them: when they end, from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[int, tuple[int, ...]] = {}

    def append(self, call: Call, /) -> None:
        """Add a call, with its place in the program's own order."""
        if (current := line.get()) is not None:
            self._numbers[id(call)] = current.number()
        super().append(call)

    def extend(self, calls: Iterable[Call], /) -> None:
        """Add calls in their order."""
        for call in calls:
            self.append(call)

    def ordered(self) -> list[Call]:
        """Return the calls in the program's own order; as they were added, where that is not known."""
        calls = list(self)
        known = all(id(call) in self._numbers for call in calls)
        return sorted(calls, key=lambda call: self._numbers[id(call)]) if known else calls


class Names:
    """The names of a program's predictors, also of copies that are made within a run. Immutable: any thread may ask.

    `dspy.BestOfN` and `dspy.Refine` run deep copies. dspy gives each predictor a random `stage`, which copies share and
    no file holds. Predictors that are copies of each other are told apart by their prompts.

    Args:
        programs: Modules with the predictors; where two have the same one, the last one's name counts.
    """

    def __init__(self, *programs: dspy.Module) -> None:
        held = {id(predictor): (name, predictor) for one in programs for name, predictor in named_predictors(one)}
        self._held = held

    def of(self, predictor: object) -> str:
        """Return a predictor's name; that of its class, if it is none of the program's."""
        if id(predictor) in self._held:
            return self._held[id(predictor)][0]
        stage = getattr(predictor, "stage", None)
        kin = [(name, one) for name, one in self._held.values() if stage and getattr(one, "stage", None) == stage]
        if len(kin) > 1:
            kin = [(name, one) for name, one in kin if _prompt(one) == _prompt(predictor)]
        return kin[0][0] if len(kin) == 1 else type(predictor).__name__


def _prompt(predictor: object) -> tuple[object, object]:
    signature, demos = getattr(predictor, "signature", None), getattr(predictor, "demos", ())
    return str(getattr(signature, "instructions", "")), to_json(list(demos))


def steps_of(trace: Trace, names: Names) -> tuple[Step, ...]:
    """Return the calls of a trace by the names of who made them."""
    return tuple(
        Step(names.of(who), _data(inputs), _data(dict(outputs.items()))) for who, inputs, outputs in trace.ordered()
    )


def failed_step(error: BaseException, names: Names) -> Step | None:
    """Return the call, without outputs, in which an error came up: that of the innermost predictor; None outside one.

    Who handles the error knows no more of the call than its traceback; a trace has only calls that came to their end.
    """
    found, link = None, error.__traceback__
    while link is not None:
        frame = link.tb_frame
        who = frame.f_locals.get("self")
        if isinstance(who, dspy.Predict) and frame.f_code.co_name in ("forward", "aforward"):
            given = frame.f_locals.get("kwargs")
            found = Step(names.of(who), _data(given if isinstance(given, dict) else {}), {})
        link = link.tb_next
    if found is None and error.__cause__ is not None:
        return failed_step(error.__cause__, names)
    return found


def _data(values: Mapping[str, object]) -> dict[str, object]:
    return {name: to_json(value) for name, value in values.items()}
