"""Fixtures of the command line's tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from attrs import define, field

from tests.cli.support import Shell
from tests.cli.support import shell as make_shell


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell of its own, with the plugin "parked"."""
    return make_shell(tmp_path)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process in an empty folder with an empty home, and without a variable of gpugate's."""
    for name in [name for name in os.environ if name.startswith(("GPUGATE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@define
class FakeGateway:
    """Answers with what it was told to, and keeps what it was asked."""

    url: str
    answers: dict[str, tuple[int, str, bytes]] = field(factory=dict)
    asked: list[tuple[str, str, str | None]] = field(factory=list)

    def answer(self, path: str, body: str, status: int = 200, kind: str = "application/json") -> None:
        """Set the answer of a path, its query included."""
        self.answers[path] = status, kind, body.encode()


@pytest.fixture
def fake_gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    """A gateway on a real socket, named by GPUGATE_URL."""
    gateway = FakeGateway("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gateway.asked.append((self.command, self.path, self.headers.get("Authorization")))
            status, kind, body = gateway.answers.get(self.path, (404, "text/plain", b"404 page not found"))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        do_POST: Callable[[BaseHTTPRequestHandler], None] = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    gateway.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("GPUGATE_URL", gateway.url)
    try:
        yield gateway
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
