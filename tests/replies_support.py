"""Models in this process that answer by a function of what they are sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from dspy.lm15 import Message, Request, Response, Usage

from cuesmith.testing import Engine, Sent


class Told(Engine):
    """`reply(system, question, number)` gives text, or text and how it ended."""

    tokens = 1, 1

    def __init__(self, reply: Callable[[str, str, int], Any]) -> None:
        super().__init__(self._answer)
        self._told = reply

    @property
    def requests(self) -> Sequence[Request]:
        """What it was sent."""
        return [sent.request for sent in self.sent if sent.request is not None]

    def _answer(self, sent: Sent) -> str | Response:
        found = self._told(sent.system, sent.user, sent.nth)
        if isinstance(found, str):
            return found
        text, finish = found
        return Response(id="1", model="told", message=Message.assistant(text), finish_reason=finish,
                        usage=Usage(input_tokens=1, output_tokens=1, total_tokens=2))  # fmt: skip


def written(text: str) -> Callable[[str, str, int], str]:
    """Return an optimizer that writes `text` into the field that it is asked for, in dspy's chat format."""
    return lambda system, asked, number: "\n".join(
        f"[[ ## {name} ## ]]\n{text}" for name in re.findall(r"`\[\[ ## (\w+) ## \]\]`", asked) if name != "completed"
    )
