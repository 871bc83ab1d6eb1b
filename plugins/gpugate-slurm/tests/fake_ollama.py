"""The job of the tests: answers what a gateway asks of an Ollama, on the port that it is given."""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = {"name": "phi3:mini", "model": "phi3:mini", "size": 1, "digest": "0" * 64, "details": {}}


class Handler(BaseHTTPRequestHandler):
    """A few paths of Ollama's API."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        told = {
            "/api/version": {
                "version": "0.30.0",
                "host": os.environ.get("OLLAMA_HOST"),
                "env": [*os.environ],
            },
            "/api/tags": {"models": [MODEL]},
            "/api/ps": {"models": []},
        }
        self._send(json.dumps(told.get(self.path, {})).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = {"model": "phi3:mini", "message": {"role": "assistant", "content": "hi"}, "done": True}
        self._send(json.dumps(answer).encode() + b"\n")

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1" if len(sys.argv) > 2 else "", int(sys.argv[1])), Handler).serve_forever()
