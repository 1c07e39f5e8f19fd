"""What a module wrote itself into the instructions of its predictors, which no compiler may lose.

`dspy.ReAct` puts the list of its tools and the protocol of its loop behind what the user says of the task, and dspy's
other agents and modules of users do likewise. Only the user's part is a prompt to be written anew: `Candidate` holds
that part alone, and a candidate that is bound to a program gets the rest from the program. Source: ours.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.predict.react_v2 import ReActV2
from dspy.predict.rlm import RLM
from pydantic_core import PydanticUndefined

from cuesmith.teleprompters.runtime._dspy import modules_of, named_predictors, tools_in

ENTRY = "cuesmith"
"""The key of what Cuesmith keeps in the `traces` of a compiled program (see `provenance`)."""

_MARK = "The user says here what the task is."


@dataclass(frozen=True)
class Frame:
    """The mechanical part of instructions: what stands before and after the user's.

    Attributes:
        before: Beginning of the instructions.
        after: End of the instructions.
    """

    before: str = ""
    after: str = ""

    def fits(self, text: str) -> bool:
        """Return whether instructions have this part."""
        room = len(text) >= len(self.before.rstrip()) + len(self.after.lstrip())
        return room and text.startswith(self.before.rstrip()) and text.endswith(self.after.lstrip())

    def inner(self, text: str) -> str:
        """Return the user's part of instructions; all of them where they lack the frame."""
        if not self.fits(text) or self == Frame():
            return text
        return text.removeprefix(self.before.rstrip()).removesuffix(self.after.lstrip()).strip()

    def around(self, inner: str) -> str:
        """Return whole instructions with another part of the user's."""
        if not inner.strip():
            return f"{self.before}{self.after.lstrip() if not self.before.strip() else self.after}"
        return f"{self.before}{inner}{self.after}"


def frames_of(program: dspy.Module) -> dict[str, Frame]:
    """Return predictor name -> what its module wrote into its instructions, for those where a module did.

    - Of dspy's own agents it is known exactly, also once they are compiled: another one is made on another task.
    - A module that holds the user's signature, and a predictor whose instructions have those of the signature in them,
      wrote the rest.
    - Of other instructions, that which begins with the description of a tool that the module holds.
    - Of a compiled program, that which its student had.
    """
    names = {id(predictor): name for name, predictor in named_predictors(program)}
    found: dict[str, Frame] = {}
    for module in modules_of(program):
        own = _own_predictors(module)
        known = _made_anew(module) if own else {}
        for attribute, predictor in own.items():
            frame = _frame(str(predictor.signature.instructions), module, known.get(attribute))
            if id(predictor) in names and frame is not None:
                found[names[id(predictor)]] = frame
    return {**_kept(program), **found}


def _kept(program: dspy.Module) -> dict[str, Frame]:
    """Return the frames that a compile has left in a program, of instructions that still have them."""
    now = {name: str(predictor.signature.instructions) for name, predictor in named_predictors(program)}
    traces = [trace for _, predictor in named_predictors(program) for trace in predictor.traces or ()]
    entries = [trace.get(ENTRY) for trace in traces if isinstance(trace, Mapping)]
    told = [entry.get("frames") for entry in entries if isinstance(entry, Mapping)]
    pairs = [pair for frames in told if isinstance(frames, Mapping) for pair in frames.items()]
    kept = {name: Frame(*map(str, texts)) for name, texts in pairs if isinstance(texts, list) and len(texts) == 2}
    return {name: frame for name, frame in kept.items() if name in now and frame.fits(now[name])}


def restore(program: dspy.Module, frames: Mapping[str, Frame]) -> None:
    """Put what modules wrote back into instructions that somebody wrote without it (in place)."""
    for name, predictor in named_predictors(program):
        text = str(predictor.signature.instructions)
        if name in frames and not frames[name].fits(text):
            predictor.signature = _forgetful(predictor.signature.with_instructions(frames[name].around(text)))


def _forgetful(signature: type[dspy.Signature]) -> type[dspy.Signature]:
    """Cut the chain by which pydantic's fields hold what they were made of: dspy's COPRO copies it, level by level."""
    for info in signature.model_fields.values():
        if hasattr(info, "_original_assignment"):
            info._original_assignment = PydanticUndefined
    return signature


def _frame(text: str, module: dspy.Module, known: Frame | None) -> Frame | None:
    if known is not None and known.fits(text):
        return known if known.before.strip() or known.after.strip() else None
    told = [str(held.instructions) for held in vars(module).values() if _is_signature(held)]
    return next((frame for one in told if (frame := _split(text, one))), None) or _from_tools(text, module)


def _own_predictors(module: dspy.Module) -> dict[str, dspy.Predict]:
    """Return the predictors that a module made, by attribute: its own, and those inside a chain of thought."""
    if isinstance(module, dspy.Predict | dspy.ChainOfThought):
        return {}
    held = {
        name: getattr(held, "predict", held)
        for name, held in vars(module).items()
        if isinstance(held, dspy.Predict | dspy.ChainOfThought)
    }
    return {name: inner for name, inner in held.items() if isinstance(inner, dspy.Predict)}


def _split(text: str, told: str) -> Frame | None:
    before, met, after = text.partition(told) if told.strip() else (text, "", "")
    return Frame(before, after) if met and (before.strip() or after.strip()) else None


_ANEW: Mapping[type[dspy.Module], Callable[[Any, type[dspy.Signature]], dspy.Module]] = {
    dspy.ReAct: lambda m, s: dspy.ReAct(s, [tool for name, tool in m.tools.items() if name != "finish"]),
    ReActV2: lambda m, s: ReActV2(s, [tool for name, tool in m.tools.items() if name != "submit"]),
    dspy.CodeAct: lambda m, s: dspy.CodeAct(s, list(m.tools.values())),
    dspy.ProgramOfThought: lambda m, s: dspy.ProgramOfThought(s),
    RLM: lambda m, s: RLM(
        s, tools=list(m.tools.values()), max_llm_calls=m.max_llm_calls, interpreter_factory=m._interpreter_factory
    ),
}


def _made_anew(module: dspy.Module) -> dict[str, Frame]:
    """Return the frames of one of dspy's agents by attribute, as another one has them that was told a mark."""
    make = next((_ANEW[kind] for kind in type(module).__mro__ if kind in _ANEW), None)
    if make is None:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            texts = {
                name: str(predictor.signature.instructions)
                for name, predictor in _own_predictors(make(module, module.signature.with_instructions(_MARK))).items()
            }
    except Exception:  # a subclass that changed what its base is made of
        return {}
    return {
        name: Frame(*text.split(_MARK, 1)) if _MARK in text else Frame(after=f"\n\n{text}")
        for name, text in texts.items()
    }


def _from_tools(text: str, module: dspy.Module) -> Frame | None:
    """Return what begins with the first line of instructions that describes a tool of the module, if one does."""
    tools = [_described(tool, inspect.isroutine(held)) for held in vars(module).values() for tool in tools_in(held)]
    start = 0
    for line in text.splitlines(keepends=True):
        if any(tool.search(line) for tool in tools):
            return Frame(after="\n" + text[start:])
        start += len(line)
    return None


def _described(tool: Any, alone: bool) -> re.Pattern[str]:
    """Return what a line has in it that describes a tool: its name first, or beside the first line of what it does.

    Its name alone is none: a helper called `search` may stand in a module whose prompt speaks of search results. Nor is
    its name first, of a function that the module holds by itself, and not among tools: a prompt may begin a line with
    "answer:" where a helper is called so.
    """
    said = tool.desc if isinstance(tool, dspy.Tool) else inspect.getdoc(tool)
    name = re.escape(str((tool.name if isinstance(tool, dspy.Tool) else getattr(tool, "__name__", "")) or ""))
    does = next((line.strip() for line in str(said or "").splitlines() if line.strip()), "")
    beside = rf"|(?=.*\b{name}\b).*{re.escape(does)}" if does else ""
    if alone:
        return re.compile(beside.removeprefix("|") if name and beside else r"(?!)")
    return re.compile(rf"^\W*{name}\s*[:(]{beside}" if name else r"(?!)")


def _is_signature(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, dspy.Signature)
