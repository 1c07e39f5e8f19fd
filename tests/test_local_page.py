"""docs/local.md: each line that makes a model sends its requests where that server takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import dspy
import pytest

import cuesmith
from cuesmith import Budget
from cuesmith.programs.tasks import Sizes, generate
from cuesmith.testing.fakes import Answer, Server

PAGE = (Path(__file__).parents[1] / "docs" / "local.md").read_text()
LINES = re.findall(r"`(dspy\.LM\(.*?\))`", PAGE)
FIELDS = {"reasoning": "So.", "answer": "4", "instruction": "Give the number that is meant."}
REPLY = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in FIELDS.items())


class Listening(Server):
    """Keeps what arrived."""

    def __init__(self) -> None:
        super().__init__(lambda sent: REPLY)
        self.received: list[tuple[str, Mapping[str, object]]] = []

    def answer(self, path: str, headers: Mapping[str, str], body: Mapping[str, object]) -> Answer | None:
        """Answer on this machine."""
        self.received.append((path, body))
        return super().answer(path, headers, body)


def test_the_page_has_a_line_for_each_server() -> None:
    assert [re.findall(r'LM\("(\w+)/', line) for line in LINES] == [["openai"], ["hosted_vllm"], ["ollama_chat"]]


@pytest.mark.parametrize("line", LINES)
def test_requests_of_a_compile_arrive_where_the_server_takes_them(line: str) -> None:
    with Listening() as server:
        here = re.sub(r"localhost:\d+", f"127.0.0.1:{server.port}", line)
        lm: dspy.LM = eval(here, {"dspy": dspy})
        lm.cache = False  # else an earlier run of this test answers
        task = generate("max", sizes=Sizes(8, 6, 6))
        with dspy.context(lm=lm):
            compiled = cuesmith.compile(
                dspy.ChainOfThought(task.signature),
                "iterative-ape",
                metric=task.metric,
                trainset=task.train,
                valset=task.validation,
                budget=Budget(calls=20),
                max_in_flight=8,
            )
    assert compiled.compilation.spent.by_role["target"].calls > 0
    assert compiled.compilation.spent.by_role["optimizer"].calls > 0
    name = re.search(r'"\w+/([^"]+)"', line)
    assert name is not None
    for path, body in server.received:
        assert (urlsplit(path).path, body["model"]) == ("/v1/chat/completions", name[1])
        assert body.get("max_tokens", body.get("max_completion_tokens")) == 256


def test_the_program_of_the_page_is_python() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    compile(code, "docs/local.md", "exec")
