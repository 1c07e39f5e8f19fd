"""Where a compiled program's prompts come from: a few facts that travel in the program itself.

dspy's state of a predictor has two lists that plain `save` writes and plain `load` reads back, and that nothing in dspy
uses: `traces` and `train`. The facts are an entry of `traces`, so that the saved JSON is read by dspy alone, by any
version of Cuesmith, and by people. Source: ours.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import orjson
from pydantic import TypeAdapter, ValidationError

from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate, Json, digest
from cuesmith.teleprompters.runtime.frames import ENTRY, frames_of
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain


@dataclass(frozen=True)
class Provenance:
    """Where a program's prompts come from.

    Attributes:
        cuesmith: Its version.
        compiler: The compiler's name, as `cuesmith.compile` takes it.
        seed: The compile's seed.
        target: Names of the program's models, with commas between; no keys.
        optimizer: Name of the model that wrote prompts.
        data: Content hash of the examples that the compile used, their order aside.
        prompt: Content hash of the program's prompts: the candidate's id in `Compilation` and in `record.json`.
        student: That of the prompts that the compile began with; the same where nothing better was found.
        score: Mean score on the fresh examples; None where it was not measured.
        gain: Difference to the student on the fresh examples; None where it was not measured.
        created: When the compile ended, ISO 8601 in UTC.
        earlier: Where the student's prompts came from, if it was a compiled program itself.
    """

    cuesmith: str
    compiler: str
    seed: int
    target: str
    optimizer: str
    data: str
    prompt: str
    student: str
    score: Estimate95 | None
    gain: Gain | None
    created: str
    earlier: Provenance | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the facts as JSON data; null stands for what is not a number."""
        facts: dict[str, Json] = _without_nan(dataclasses.asdict(self))
        return facts

    @classmethod
    def from_json(cls, data: object) -> Provenance:
        """Read what `to_json` wrote; what a later version has written besides is left out.

        Raises:
            ValueError: If the data is not of that form; in one line.
        """
        held = dict(data) if isinstance(data, Mapping) else {}
        for name in ("score", "gain"):
            if isinstance(held.get(name), Mapping):
                held[name] = {key: math.nan if value is None else value for key, value in held[name].items()}
        if held.get("earlier") is not None:
            held["earlier"] = cls.from_json(held["earlier"])
        try:
            return _STORED.validate_python(held)
        except ValidationError as error:
            wrong = ", ".join(dict.fromkeys(str(each["loc"][0]) for each in error.errors() if each["loc"]))
            raise ValueError(f"this is no provenance as Cuesmith writes it: see {wrong}") from None


_STORED = TypeAdapter(Provenance)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def provenance(program: dspy.Module | str | os.PathLike[str]) -> Provenance | None:
    """Return where a program's prompts come from.

    Args:
        program: A compiled program, one into which the state of a compiled program was loaded, or the path of a JSON
            file that such a program's `save` wrote.

    Returns:
        None if it was not compiled by Cuesmith, or if its prompts have been changed since.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is not JSON.
    """
    if not isinstance(program, dspy.Module):
        return _kept(_read(Path(program)))
    found = _kept(_states(program))
    if found is not None:
        return found
    compiled = getattr(getattr(program, "compilation", None), "provenance", None)  # `reset_copy` empties `traces`
    same = isinstance(compiled, Provenance) and Candidate.of(program).id == compiled.prompt
    return compiled if same else None


def keep(program: dspy.Module, facts: Provenance, student: dspy.Module) -> None:
    """Write the facts into a compiled program, in place of older ones; and what modules wrote into its instructions
    themselves, where that cannot be told without its student."""
    had, prompts = frames_of(student), _prompts(_states(program))
    predictors = [predictor for _, predictor in named_predictors(program)]
    for predictor in predictors:
        predictor.traces = [trace for trace in predictor.traces or () if not _is_entry(trace)]
    known = frames_of(program)
    frames = {name: [frame.before, frame.after] for name, frame in had.items() if known.get(name) != frame}
    told = {"provenance": facts.to_json(), "prompts": prompts, **({"frames": frames} if frames else {})}
    for predictor in predictors[:1]:
        predictor.traces.append({ENTRY: told})


def _kept(states: Mapping[str, object]) -> Provenance | None:
    """Return the facts that saved states hold, if they are of the prompts that the states hold."""
    for entry in _entries(states):
        if isinstance(entry, Mapping) and entry.get("prompts") == _prompts(states):
            try:
                return Provenance.from_json(entry.get("provenance"))
            except ValueError:  # somebody else's, or of a later version
                return None
    return None


def _entries(states: Mapping[str, object]) -> Iterator[object]:
    for state in states.values():
        traces = state.get("traces") if isinstance(state, Mapping) else None
        yield from (trace[ENTRY] for trace in traces or () if _is_entry(trace))


def _is_entry(trace: object) -> bool:
    return isinstance(trace, Mapping) and ENTRY in trace


def _states(program: dspy.Module) -> dict[str, object]:
    """Return the predictors' states as dspy saves them, less their models."""
    found = {}
    for name, predictor in named_predictors(program):
        alone = copy.copy(predictor)
        alone.lm = None
        with suppress(Exception):  # a predictor of somebody's own that cannot be saved: no compile fails for it
            found[name] = alone.dump_state()
    return found


def _read(path: Path) -> dict[str, object]:
    try:
        states = orjson.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON, as a program's `save` writes it: {error}") from None
    if not isinstance(states, dict):
        return {}
    return {"self": states} if isinstance(states.get("traces"), list) else states  # the program is a bare predictor


def _prompts(states: Mapping[str, object]) -> str:
    """Return a content hash of all prompts in saved states, the same before they are written and after they are read.

    A demonstration of no JSON form counts by no content: dspy could not save it either.
    """
    found = {}
    for name, state in states.items():
        if isinstance(state, Mapping) and isinstance(state.get("signature"), Mapping):
            found[name] = [state["signature"].get("instructions"), state.get("demos")]
    try:
        return digest(orjson.loads(orjson.dumps(found)))
    except TypeError:
        return ""
