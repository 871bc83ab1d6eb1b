"""From the pod's first healthy answer to the first held request's first byte, default configuration."""

from __future__ import annotations

import selectors
import socket
import time
from collections import defaultdict
from functools import partial

from attrs import define, field

from benchmarks.bench import GATEWAYS, Bench, Measured
from benchmarks.board import Table, median, number
from benchmarks.client import connect, send
from benchmarks.load import chat
from benchmarks.processes import Unavailable
from benchmarks.targets import ASYNCIO, UVLOOP, Pod, Target
from benchmarks.upstream import Upstream

SHORT_S, LONG_S = 6.0, 90.0
BARS_MS = {SHORT_S: 100.0, LONG_S: 500.0}
SPARE_S = 30.0
# Moments that share no rhythm with anybody's polling; several gateways wait at once, mostly asleep.
STAGGER_S = 0.173
SAMPLES = {UVLOOP: 7, ASYNCIO: 4}
QUICK_SAMPLES = {UVLOOP: 3, ASYNCIO: 2}


@define
class Waiting:
    """One client before one cold gateway.

    Attributes:
        closed: the pod's port is closed until it is ready; otherwise it answers 503.
        first_ns: when the first byte came.
    """

    name: str
    cold_s: float
    closed: bool
    upstream: Upstream
    target: Target
    sock: socket.socket | None = None
    first_ns: int = 0
    answer: bytes = field(default=b"", repr=False)


def run_part(bench: Bench) -> None:
    """Measure and judge."""
    if bench.peers_only:
        return
    colds = (SHORT_S,) if bench.quick else (SHORT_S, LONG_S)
    client: dict[float, Measured] = {}
    arrived: dict[float, Measured] = {}
    for cold_s in colds:
        client[cold_s], arrived[cold_s] = defaultdict(list), defaultdict(list)
        measure = partial(_measure, bench, cold_s, client[cold_s], arrived[cold_s])
        bench.attempt(f"cold start of {cold_s:g} s", measure)
    for cold_s in (SHORT_S, LONG_S):
        found = client.get(cold_s, {})
        values = [median(found.get(name, [])) for name in GATEWAYS]
        text = f"pod healthy until the held request's first byte, cold start {cold_s:g} s, median"
        bench.board.at_most(text, "ms", BARS_MS[cold_s], *values)
    rows = [
        [
            f"{cold_s:g} s",
            name,
            str(len(took)),
            number(median(arrived[cold_s][name])),
            number(median(took)),
            number(max(took)),
        ]
        for cold_s, found in client.items()
        for name, took in found.items()
    ]
    columns = ["cold start", "", "tries", "at the upstream, p50 ms", "first byte, p50 ms", "slowest"]
    bench.board.tables.append(Table("Pod healthy until the first held request is served", columns, rows))


def _measure(bench: Bench, cold_s: float, client: Measured, arrived: Measured) -> None:
    waiting: list[Waiting] = []
    try:
        for name, count in (QUICK_SAMPLES if bench.quick else SAMPLES).items():
            for turn in range(count):
                waiting.append(_prepare(bench, name, cold_s + STAGGER_S * len(waiting), turn % 2 == 0))
        bench.say(f"  cold start of {cold_s:g} s, {len(waiting)} gateways at once")
        _watch(waiting, cold_s + STAGGER_S * len(waiting) + SPARE_S)
        for one in waiting:
            stats = one.upstream.stats()
            if not one.answer.startswith(b"HTTP/1.1 200"):
                bench.board.note(f"cold start of {cold_s:g} s, {one.name}: {one.answer[:120]!r}")
                continue
            client[one.name].append((one.first_ns - stats.ready_ns) / 1e6)
            arrived[one.name].append((stats.first_chat_ns - stats.ready_ns) / 1e6)
    finally:
        for one in waiting:
            if one.sock:
                one.sock.close()
            bench.targets.stop(one.target)
            one.upstream.stop(bench.processes)


def _prepare(bench: Bench, name: str, cold_s: float, closed: bool) -> Waiting:
    upstream = Upstream.start(bench.processes, "--refuse" if closed else "--cold")
    pod = Pod(cold_start_ms=int(1000 * cold_s), defaults=True)
    try:
        target = bench.targets.gateway(name, upstream, pod)
    except Unavailable:
        upstream.stop(bench.processes)
        raise
    return Waiting(name, cold_s, closed, upstream, target)


def _watch(waiting: list[Waiting], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        for one in waiting:
            one.sock = connect(one.target.port)
            send(one.sock, one.target.token, chat(3, 20))
            selector.register(one.sock, selectors.EVENT_READ, one)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(1.0):
                one = key.data
                one.first_ns = time.monotonic_ns()
                one.answer = one.sock.recv(65536)
                selector.unregister(one.sock)
