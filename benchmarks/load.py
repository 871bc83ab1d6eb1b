"""The load generator as a call: one run, one result; knows requests, not targets."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from benchmarks.build import native
from benchmarks.processes import Unavailable, cores

SPARE_S = 30.0


@frozen
class Request:
    """What is asked again and again.

    Attributes:
        body: where it holds "{n}", the load generator puts a number and a filler of changing length, so
            that no two requests of a run are alike.
        lines: how many lines the answer must have; 0: not looked at.
    """

    method: str
    path: str
    body: str = ""
    lines: int = 0


@frozen
class Load:
    """One run's figures; milliseconds, seconds, bytes."""

    seconds: float
    requests: int
    chunks: int
    cpu_s: float
    p50_ms: float
    p99_ms: float
    ttfb_p50_ms: float
    ttfb_p99_ms: float
    chunk_p50_ms: float
    chunk_p99_ms: float
    upload_mb_s: float
    errors: int
    kinds: str

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def chunks_per_second(self) -> float:
        return self.chunks / self.seconds

    @property
    def cpu_us_per_request(self) -> float:
        return 1e6 * self.cpu_s / max(self.requests, 1)

    @property
    def cpu_us_per_chunk(self) -> float:
        return 1e6 * self.cpu_s / max(self.chunks, 1)


TEXT = "Why is the sky blue? " * 8
TAGS = Request("GET", "/api/tags")
EMBED = Request("POST", "/api/embed", '{"model":"fake-0:latest","input":"{n} ' + TEXT + '"}')
CHAT = Request(
    "POST",
    "/api/chat",
    '{"model":"fake-0:latest","stream":false,"messages":[{"role":"user","content":"{n} ' + TEXT + '"}]}',
)


def chat(lines: int, gap_ms: int, *, first_ms: int = 0, size: int = 0) -> Request:
    """A streamed chat whose answer has that shape, and whose body is about `size` bytes if that is more."""
    model = f"fake-n{lines}-d{gap_ms}" + (f"-t{first_ms}" if first_ms else "")
    body = '{"model":"%s","stream":true,"messages":[{"role":"user","content":"%s"}]}'
    return Request("POST", "/api/chat", body % (model, TEXT + "x" * max(0, size - 280)), lines)


def run(
    port: int,
    token: str,
    request: Request,
    *,
    conns: int,
    window_s: float,
    warmup_s: float = 0.2,
    ramp_s: float = 0.0,
    pids: Sequence[int] = (),
) -> Load:
    """Ask with `conns` connections at once; figures are those of the window only."""
    return _run(
        token,
        warmup_s + window_s,
        {
            "port": port,
            "method": request.method,
            "path": request.path,
            "body": request.body,
            "lines": request.lines,
            "conns": conns,
            "warmup-ms": int(1000 * warmup_s),
            "window-ms": int(1000 * window_s),
            "ramp-ms": int(1000 * ramp_s),
            "pids": ",".join(map(str, pids)),
        },
    )


def upload(port: int, token: str, size: int, *, times: int = 1, limit_s: float = 60.0) -> Load:
    """Upload a blob of `size` bytes, `times` in a row."""
    path = "/api/blobs/sha256:" + "0" * 64
    return _run(
        token,
        limit_s,
        {
            "port": port,
            "method": "POST",
            "path": path,
            "upload": size,
            "uploads": times,
            "window-ms": int(1000 * limit_s),
        },
    )


def _run(token: str, expected_s: float, options: dict[str, Any]) -> Load:
    _, others = cores()
    argv = [native("load"), *(str(part) for key, value in options.items() for part in (f"--{key}", value))]
    env = {**os.environ, "BENCH_TOKEN": token}
    popen = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        os.sched_setaffinity(popen.pid, others)
        out, err = popen.communicate(timeout=expected_s + SPARE_S)
    except subprocess.TimeoutExpired:
        raise Unavailable("the load generator hangs") from None
    finally:
        popen.kill()
        popen.wait()
    if popen.returncode:
        raise Unavailable(f"the load generator failed: {err.decode().strip()[:200]}")
    return _read(json.loads(out))


def _read(told: dict[str, Any]) -> Load:
    kinds = {kind: count for kind, count in told["errors"].items() if count}
    if told["stuck"]:
        kinds["stuck"] = told["stuck"]
    names = {field for field in Load.__annotations__ if field in told} - {"errors"}
    return Load(
        **{name: told[name] for name in names},
        errors=sum(kinds.values()),
        kinds=" ".join(f"{kind} {count}" for kind, count in kinds.items()),
    )
