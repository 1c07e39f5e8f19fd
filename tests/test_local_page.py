"""docs/local.md: each line that makes a model sends its requests where that server takes them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dspy
import pytest

import cuesmith
from cuesmith import Budget
from cuesmith.programs.tasks import Sizes, generate

PAGE = (Path(__file__).parents[1] / "docs" / "local.md").read_text()
LINES = re.findall(r"`(dspy\.LM\(.*?\))`", PAGE)
FIELDS = {"reasoning": "So.", "answer": "4", "instruction": "Give the number that is meant."}
REPLY = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in FIELDS.items())


@dataclass
class Server:
    """What arrived at a server that speaks as OpenAI's does."""

    port: int
    received: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Server]:
    """Answer on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.received.append((self.path, body))
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": REPLY}}
            usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
            answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
            data = json.dumps({**answer, "choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(listener.server_port)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def test_the_page_has_a_line_for_each_server() -> None:
    assert [re.findall(r'LM\("(\w+)/', line) for line in LINES] == [["openai"], ["hosted_vllm"], ["ollama_chat"]]


@pytest.mark.parametrize("line", LINES)
def test_requests_of_a_compile_arrive_where_the_server_takes_them(line: str) -> None:
    with serving() as server:
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
