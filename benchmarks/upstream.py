"""The fake Ollama as a process, and its second port; knows nothing of who is in between."""

from __future__ import annotations

import http.client
import json
import subprocess

from attrs import define, field, frozen

from benchmarks.build import native
from benchmarks.processes import Processes, Running, Unavailable, cores


@frozen
class Stats:
    """What the upstream counted; times are CLOCK_MONOTONIC in nanoseconds.

    Attributes:
        open: connections to its service.
        busy: requests being read or answered.
        aborted: connections that closed while busy; `last_abort_ns` is when the last one did.
        chats: chat requests that arrived; `first_chat_ns` and `last_chat_ns` say when.
        refused: requests answered 503 because it was cold.
        ready_ns: when it stopped being cold.
    """

    open: int
    busy: int
    requests: int
    chats: int
    aborted: int
    refused: int
    blob_bytes: int
    last_abort_ns: int
    first_chat_ns: int
    last_chat_ns: int
    ready_ns: int
    cold: int


@define
class Upstream:
    """One fake Ollama on two ports."""

    process: Running
    port: int
    control_port: int
    _control: http.client.HTTPConnection = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._control = http.client.HTTPConnection("127.0.0.1", self.control_port, timeout=5)

    @classmethod
    def start(cls, processes: Processes, *arguments: str) -> Upstream:
        """Start one; `--cold` answers 503 until told, `--refuse` refuses connections until then."""
        _, others = cores()
        process = processes.start(
            "upstream", [native("upstream"), *arguments], others, stdout=subprocess.PIPE
        )
        assert process.popen.stdout
        ports = process.popen.stdout.readline().split()
        if len(ports) != 2:
            raise Unavailable(f"the upstream did not start: {process.last_words()}")
        return cls(process, int(ports[0]), int(ports[1]))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def control_url(self) -> str:
        return f"http://127.0.0.1:{self.control_port}"

    def stats(self) -> Stats:
        """What it counted so far."""
        return self._ask("/_stats")

    def reset(self) -> None:
        """Count from nought again."""
        self._ask("/_reset")

    def become_ready(self) -> None:
        """Be cold no longer, now."""
        self._ask("/_cold?ms=0")

    def stop(self, processes: Processes) -> None:
        """End the process and what leads to it."""
        self._control.close()
        if self.process.popen.stdout:
            self.process.popen.stdout.close()
        processes.stop(self.process)

    def _ask(self, path: str) -> Stats:
        self._control.request("GET", path)
        return Stats(**json.loads(self._control.getresponse().read()))
