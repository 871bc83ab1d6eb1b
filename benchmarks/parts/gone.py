"""Clients that leave: how soon the upstream is let go, or the place in the queue is free."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial

from benchmarks.bench import GATEWAYS, Bench
from benchmarks.board import Table, number
from benchmarks.client import Gate, connect, hang_up, receive, send
from benchmarks.load import Request, chat
from benchmarks.processes import Unavailable, until
from benchmarks.targets import NGINX, Pod, Target
from benchmarks.upstream import Upstream

LIMIT_S = 3.0
BAR_MS = 50.0
BODIES = {"small body": 0, "1 MB body": 1_000_000}
STREAMING, SILENT, HELD = "in mid-stream", "before the first byte", "held in the queue"
Worst = dict[tuple[str, str], dict[str, float]]


def run_part(bench: Bench) -> None:
    """Measure and judge: the slowest of all tries counts."""
    tries = bench.rounds(20, 4)
    worst: Worst = {(phase, body): {} for phase in (STREAMING, SILENT, HELD) for body in BODIES}
    abandoned: dict[str, float] = {}
    with bench.running((NGINX, *GATEWAYS)) as targets:
        for target in targets:
            bench.say(f"  leaving, {target.name}")
            bench.attempt(f"leaving, {target.name}", partial(_warm, target, tries, worst))
    for name in () if bench.peers_only else GATEWAYS:
        bench.say(f"  leaving the queue, {name}")
        bench.attempt(f"leaving the queue, {name}", partial(_held, bench, name, tries, worst, abandoned))
    for (phase, body), found in worst.items():
        values = [found.get(name) for name in GATEWAYS]
        bench.board.at_most(f"client gone {phase}, {body}: slowest of {tries}", "ms", BAR_MS, *values)
    left = [abandoned.get(name) for name in GATEWAYS]
    bench.board.at_most("requests of clients gone that still reached the upstream", "", 0, *left)
    rows = [
        [phase, body, *(number(found.get(name)) for name in (NGINX, *GATEWAYS))]
        for (phase, body), found in worst.items()
    ]
    title = f"Client gone until the upstream is let go (held: until it waits no more), slowest of {tries}, ms"
    bench.board.tables.append(Table(title, ["phase", "", NGINX, *GATEWAYS], rows))


def _warm(target: Target, tries: int, worst: Worst) -> None:
    for body, size in BODIES.items():
        shapes = {STREAMING: chat(2000, 20, size=size), SILENT: chat(2, 20, first_ms=600_000, size=size)}
        for phase, request in shapes.items():
            took = [
                _leave_upstream(target, request, phase == STREAMING, turn % 2 == 1) for turn in range(tries)
            ]
            worst[phase, body][target.name] = max(took)


def _leave_upstream(target: Target, request: Request, streaming: bool, hard: bool) -> float:
    upstream = target.upstream
    before = upstream.stats()
    with contextlib.closing(connect(target.port)) as sock:
        send(sock, target.token, request)
        if streaming:
            receive(sock, b'"ns"')
        else:
            until("the request did not arrive", lambda: upstream.stats().chats > before.chats, LIMIT_S, 0.002)
        time.sleep(0.03)
        left_ns = hang_up(sock, hard=hard)
    try:
        until("not closed", lambda: upstream.stats().aborted > before.aborted, LIMIT_S, 0.002)
    except Unavailable:
        return LIMIT_S * 1000
    return (upstream.stats().last_abort_ns - left_ns) / 1e6


def _held(bench: Bench, name: str, tries: int, worst: Worst, abandoned: dict[str, float]) -> None:
    upstream = Upstream.start(bench.processes, "--cold")
    target = bench.targets.gateway(name, upstream, Pod(cold_start_ms=0, told=False))
    gate = Gate(target.port, target.token)
    try:
        for body, size in BODIES.items():
            request = chat(2, 20, size=size)
            took = [_leave_queue(target, gate.waiting, request, turn % 2 == 1) for turn in range(tries)]
            worst[HELD, body][name] = max(took)
        upstream.become_ready()
        gate.start()
        until("the pod did not become ready", lambda: gate.status()["status"] == "READY", 20.0)
        time.sleep(0.3)
        abandoned[name] = float(upstream.stats().chats)
    finally:
        gate.close()
        bench.targets.stop(target)
        upstream.stop(bench.processes)


def _leave_queue(target: Target, waiting: Callable[[], int], request: Request, hard: bool) -> float:
    before = waiting()
    with contextlib.closing(connect(target.port)) as sock:
        send(sock, target.token, request)
        until("the request is not held", lambda: waiting() > before, LIMIT_S, 0.002)
        time.sleep(0.03)
        left_ns = hang_up(sock, hard=hard)
    try:
        until("still held", lambda: waiting() <= before, LIMIT_S, 0.0)
    except Unavailable:
        return LIMIT_S * 1000
    return (time.monotonic_ns() - left_ns) / 1e6
