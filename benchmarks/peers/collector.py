"""Takes traces over OTLP/HTTP and drops them: `collector.py PORT`."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Drop(BaseHTTPRequestHandler):
    """Answers 200 to what is posted."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read and forget."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


HTTPServer(("127.0.0.1", int(sys.argv[1])), Drop).serve_forever()
