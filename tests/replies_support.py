"""Models in this process that answer by a function, and keep what they were sent."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

from dspy.lm15 import Message, Request, Response, Usage

from cuesmith.modules.simulated_optimizer import SimulatedOptimizerEngine


class Engine:
    """A model in this process; `reply(system, question, number)` gives text, or text and how it ended."""

    def __init__(self, reply: Callable[[str, str, int], Any]) -> None:
        self.reply, self.requests, self.lock = reply, list[Request](), threading.Lock()

    def complete(self, request: Request) -> Response:
        with self.lock:
            self.requests.append(request)
            number = len(self.requests)
        found = self.reply(str(request.system), str(request.messages[-1].text), number)
        text, finish = found if isinstance(found, tuple) else (found, "stop")
        return Response(id="1", model=request.model, message=Message.assistant(text), finish_reason=finish,
                        usage=Usage(input_tokens=1, output_tokens=1, total_tokens=2))

    def __deepcopy__(self, memo: object) -> Engine:
        return self


class Optimizer(Engine):
    """The simulated optimizer; keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(lambda system, text, number: "")
        self.simulated = SimulatedOptimizerEngine()

    def complete(self, request: Request) -> Response:
        super().complete(request)
        return self.simulated.complete(request)

    @property
    def texts(self) -> list[str]:
        """The requests, as text."""
        return [str(request.messages[-1].text) for request in self.requests]


def written(text: str) -> Callable[[str, str, int], str]:
    """Return an optimizer that writes `text` into the field that it is asked for, in dspy's chat format."""
    return lambda system, asked, number: "\n".join(
        f"[[ ## {name} ## ]]\n{text}" for name in re.findall(r"`\[\[ ## (\w+) ## \]\]`", asked) if name != "completed")
