"""The embedded model as an OpenAI-compatible server on the loopback interface; it prints its port.

    python benchmarks/serve_embedded.py

Stands in for a provider in benchmarks: the model's weights are in this process and nowhere else.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import litellm

from cuesmith.modules.embedded.lm import MODEL, register


class Handler(BaseHTTPRequestHandler):
    """Answers chat completions."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer one request: text in, text out; log-probabilities are not on offer."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = ("temperature", "max_tokens", "seed", "n")
        options = {name: body[name] for name in known if body.get(name) is not None}
        reply = litellm.completion(model=MODEL, messages=body["messages"], **options)
        data = reply.model_dump_json().encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


if __name__ == "__main__":
    register()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
