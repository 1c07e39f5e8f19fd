"""Programs with tools that can only be awaited."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from replies_support import Told, written

from cuesmith.teleprompters import APO, Compiler
from cuesmith.teleprompters.peers.copro import COPRO
from cuesmith.teleprompters.runtime.compilation import CompileWarning
from cuesmith.teleprompters.runtime.preflight import check_parts


async def look_up(word: str) -> str:
    """Look a word up in the glossary."""
    await asyncio.sleep(0)
    return f"meaning of {word}"


def agent(system: str, asked: str, number: int) -> str:
    """Look the word up, and answer with what the tool said."""
    word = re.findall(r"say (\w+)", asked)[-1]
    if "next_tool_name" in asked.rpartition("Respond with")[2]:
        done = "observation_0" in asked
        call, arguments = ("finish", "{}") if done else ("look_up", f'{{"word": "{word}"}}')
        return (
            f"[[ ## next_thought ## ]]\nt\n[[ ## next_tool_name ## ]]\n{call}\n[[ ## next_tool_args ## ]]\n{arguments}"
        )
    found = re.search(r"meaning of \w+", asked)
    return f"[[ ## reasoning ## ]]\nr\n[[ ## answer ## ]]\n{found[0] if found else 'no idea'}"


class Awaited(Told):
    """An engine for event loops, which counts as the target's."""

    async def complete(self, request: object) -> Any:
        return super().complete(request)


class Wrapped(dspy.Module):  # type: ignore[misc]
    """Cannot be awaited, and its tool can only be."""

    def __init__(self) -> None:
        super().__init__()
        self.agent = react()

    def forward(self, question: str) -> dspy.Prediction:
        return self.agent(question=question)


def react() -> dspy.Module:
    return dspy.ReAct("question -> answer", tools=[look_up], max_iters=3)


def right(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(example.answer == prediction.answer)


DATA = [dspy.Example(question=f"say w{k}", answer=f"meaning of w{k}").with_inputs("question") for k in range(10)]
OPTIMIZER: dict[str, Any] = {"optimizer_lm": dspy.LM("test/optimizer", engine=Told(written("Be brief.")), cache=False)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: APO(right, steps=1, width=1, branch=1, initial=1, **OPTIMIZER),
        lambda: COPRO(right, breadth=2, depth=1, **OPTIMIZER),
    ],
    ids=["APO", "COPRO"],
)
def test_tools_that_can_only_be_awaited_are(make: Callable[[], Compiler]) -> None:
    now, later = Told(agent), Awaited(agent)
    with dspy.context(lm=dspy.LM("test/target", engine=now, async_engine=later, cache=False)):
        compilation = make().compile(react(), trainset=DATA, valset=DATA).compilation
    student = compilation.baseline.select
    assert student is not None and student.mean == 1 and later.requests
    assert not any("Execution error" in str(request) for request in [*now.requests, *later.requests])


def test_a_program_that_cannot_await_its_tools_is_warned_of() -> None:
    with dspy.context(lm=dspy.LM("test/target", engine=Told(agent), cache=False)):
        compiler = APO(right, steps=1, width=1, branch=1, initial=1, **OPTIMIZER)
        with pytest.warns(CompileWarning, match=r"every call of the tool look_up will fail.*\(Wrapped\) has no aforw"):
            compiled = compiler.compile(Wrapped(), trainset=DATA, valset=DATA)
    assert any(note.kind == "parts" for note in compiled.compilation.notes)
    with dspy.context(allow_tool_async_sync_conversion=True):
        assert check_parts(Wrapped()) == ()
    assert check_parts(react()) == ()
