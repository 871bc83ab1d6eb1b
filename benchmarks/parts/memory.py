"""Memory of requests that are held: 1,000 of them, with small and with large bodies."""

from __future__ import annotations

import socket
import time
from functools import partial

from attrs import frozen

from benchmarks.bench import GATEWAYS, Bench
from benchmarks.board import Table, number
from benchmarks.client import Gate, connect, hang_up, send
from benchmarks.load import Request, chat
from benchmarks.processes import until
from benchmarks.targets import Pod, Target
from benchmarks.upstream import Upstream

HELD = 1000
WARM_UP = 20
LIMIT_S = 60.0
KIB = 1024
BODIES = {"small body": 0, "300 KB body": 300_000}


@frozen
class Held:
    """What 1,000 held requests took; KiB are per request and beyond its body."""

    idle_mib: float
    each_kib: float
    still_waiting: int
    after_mib: float


def run_part(bench: Bench) -> None:
    """Measure and judge."""
    if bench.peers_only:
        return
    found: dict[tuple[str, str], Held] = {}
    for body in BODIES:
        for name in GATEWAYS:
            bench.say(f"  {HELD} held, {body}, {name}")
            held = bench.attempt(f"{HELD} held, {name}", partial(_measure, bench, name, BODIES[body]))
            if held:
                found[body, name] = held
    for body in BODIES:
        each = [found[body, name].each_kib if (body, name) in found else None for name in GATEWAYS]
        bench.board.at_most(f"memory per held request beyond its body, {body}", "KiB", 16, *each)
    rows = [
        [
            name,
            body,
            number(one.idle_mib, 1),
            number(one.each_kib, 1),
            str(one.still_waiting),
            number(one.after_mib, 1),
        ]
        for (body, name), one in found.items()
    ]
    columns = ["", "", "idle MiB", "KiB each, beyond its body", "still waiting after all left", "then MiB"]
    bench.board.tables.append(Table(f"Memory of {HELD} held requests (fresh processes)", columns, rows))


def _measure(bench: Bench, name: str, size: int) -> Held:
    upstream = Upstream.start(bench.processes, "--cold")
    target = bench.targets.gateway(name, upstream, Pod(cold_start_ms=0, told=False))
    gate = Gate(target.port, target.token)
    request = chat(2, 20, size=size)
    try:
        _leave(_hold(target, gate, chat(2, 20), WARM_UP), gate)
        time.sleep(0.3)
        idle = target.process.rss_bytes()
        socks = _hold(target, gate, request, HELD)
        time.sleep(0.5)
        full = target.process.rss_bytes()
        still = _leave(socks, gate)
        time.sleep(0.3)
        after = target.process.rss_bytes()
    finally:
        gate.close()
        bench.targets.stop(target)
        upstream.stop(bench.processes)
    each = (full - idle) / HELD - len(request.body)
    return Held(idle / KIB / KIB, each / KIB, still, after / KIB / KIB)


def _hold(target: Target, gate: Gate, request: Request, count: int) -> list[socket.socket]:
    socks: list[socket.socket] = []
    expected = gate.waiting() + count
    try:
        for _ in range(count):
            socks.append(connect(target.port))
            send(socks[-1], target.token, request)
        until(f"not all {count} are held", lambda: gate.waiting() >= expected, LIMIT_S)
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    return socks


def _leave(socks: list[socket.socket], gate: Gate) -> int:
    """All leave; returns how many still wait a while later."""
    for sock in socks:
        hang_up(sock, hard=False)
    deadline = time.monotonic() + 3.0
    while gate.waiting() and time.monotonic() < deadline:
        time.sleep(0.02)
    return gate.waiting()
