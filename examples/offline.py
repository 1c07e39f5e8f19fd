"""What the examples share: their options, and stand-ins for a model, so that they run without one.

A stand-in is a few rules in the place of a language model. The target does better where its prompt says what to do; the
optimizer writes such sentences. That shows the whole path, compile, save, load and use, and nothing of any real model.
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, Usage

import cuesmith
from cuesmith.modules.sampling import draw
from cuesmith.modules.simulated.request import Asked

HERE = Path(__file__).parent
Answer = Callable[[str, Mapping[str, str]], dict[str, object]]
"""What a stand-in says, from the prompt (the system message) and the inputs: a value for each output."""


def options(description: str) -> argparse.Namespace:
    """Read the options that all examples take."""
    parser = argparse.ArgumentParser(description=description.split("\n", 1)[0])
    parser.add_argument("--lm", help="the model of the program, as LiteLLM names it; a .gguf file; default: a stand-in")
    parser.add_argument("--optimizer-lm", help="the model that writes prompts; default: that of the program")
    parser.add_argument("--compiler", default="reflective-mutation")
    parser.add_argument("--calls", type=int, default=300, help="calls of both models that the compile may make")
    parser.add_argument("--save", default="runs/examples", help="folder of the compiled program")
    return parser.parse_args()


def models(chosen: argparse.Namespace, answer: Answer, advice: Sequence[str]) -> tuple[dspy.BaseLM, dspy.BaseLM]:
    """Return the program's model and the optimizer's: those that were asked for, else stand-ins."""
    if chosen.lm is None:
        return stand_in(answer), stand_in(lambda prompt, inputs: {}, advice)
    target = _model(chosen.lm)
    return target, _model(chosen.optimizer_lm) if chosen.optimizer_lm else target


def _model(name: str) -> dspy.BaseLM:
    return cuesmith.LocalLM(name, max_tokens=512) if name.endswith(".gguf") else dspy.LM(name)


def records(name: str) -> list[dict[str, Any]]:
    """Return the lines of a JSON Lines file beside this one."""
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


def told(compiled: cuesmith.Compiled, before: object, after: object) -> None:
    """Print what a compile found, and the scores on held-out examples before and after."""
    record = compiled.compilation
    print(f"{record.compiler}: {record.spent.total.calls} calls, {len(record.candidates)} candidates")
    for name, prompt in record.best.candidate.prompts.items():
        print(f"[{name}] {prompt.instructions}")
    print(f"held out: {before:.2f} before, {after:.2f} after")


def stand_in(answer: Answer, advice: Sequence[str] = ()) -> dspy.LM:
    """Return a stand-in: a target that answers by a rule, or, with `advice`, an optimizer that writes it."""
    return dspy.LM("offline/stand-in", engine=_Rules(answer, advice), cache=False)


class _Rules:
    """A model in this process, by dspy's engine protocol."""

    def __init__(self, answer: Answer, advice: Sequence[str]) -> None:
        self.answer, self.advice = answer, advice

    def complete(self, request: Request) -> Response:
        """Answer one request."""
        asked = Asked.parse(str(request.messages[-1].text or ""))
        if self.advice:
            place = zlib.crc32(repr(asked.inputs).encode()) + (draw.get() or 0)
            values: dict[str, Any] = {name: _fit(kind, self.advice, place) for name, kind in asked.outputs.items()}
        else:
            said = self.answer(str(request.system or ""), {name: str(v) for name, v in asked.inputs.items()})
            values = {name: said.get(name, "So.") for name in asked.outputs}
        text = asked.render(values)
        usage = Usage(input_tokens=len(str(request.system)) // 4, output_tokens=len(text) // 4)
        return Response(id="1", model=request.model, message=Message.assistant(text), finish_reason="stop", usage=usage)


def _fit(kind: str, advice: Sequence[str], place: int) -> object:
    """Return one of the sentences in the form of an output's type."""
    own = advice[place % len(advice)]
    kinds = {"int": 1, "bool": True, "list[int]": [1], "list[str]": re.split(r"(?<=\.) ", own)}
    return kinds.get(kind, own)
