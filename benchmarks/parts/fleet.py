"""Many pods: what choosing one of them costs a request, and what pods that are off cost the gateway."""

from __future__ import annotations

import operator
import time
from collections import defaultdict
from functools import partial

from attrs import frozen

from benchmarks.bench import GATEWAYS, Bench, Measured, interleaved, per_round
from benchmarks.board import Table, median, number
from benchmarks.load import CHAT, Load, run
from benchmarks.targets import Pod, Target
from benchmarks.upstream import Upstream

PODS = 20
CONNECTIONS = 50
MIB = 1 << 20


@frozen
class Idle:
    """A gateway that does nothing: resident memory, and the share of a core that it takes."""

    rss_mib: float
    core: float


def run_part(bench: Bench) -> None:
    """Measure and judge."""
    if bench.peers_only:
        return
    cpu: Measured = defaultdict(list)
    idle: dict[str, Idle] = {}
    for name in GATEWAYS:
        bench.attempt(name, partial(_compare, bench, name, cpu, idle))
    added = [median(per_round(cpu, _label(name, PODS), _label(name, 1), operator.sub)) for name in GATEWAYS]
    bench.board.at_most(f"choosing one of {PODS} pods, POST /api/chat", "µs of CPU", 5, *added)
    pairs = [(idle.get(_label(name, PODS)), idle.get(_label(name, 1))) for name in GATEWAYS]
    more = [None if many is None or one is None else many.rss_mib - one.rss_mib for many, one in pairs]
    bench.board.at_most(f"{PODS} pods that are off, memory", "MiB", 10, *more)
    cores = [None if many is None or one is None else 100 * (many.core - one.core) for many, one in pairs]
    bench.board.at_most(f"{PODS} pods that are off", "% of a core", 0.1, *cores)
    rows = [
        [name, number(median(cpu[name]), 1), number(one.rss_mib, 1), number(100 * one.core, 3)]
        for name, one in idle.items()
    ]
    columns = ["", "CPU µs/req", "idle MiB", "idle % of a core"]
    bench.board.tables.append(Table("POST /api/chat through the last one of many pods", columns, rows))


def _label(name: str, pods: int) -> str:
    return f"{name}, {pods} pod{'s' if pods > 1 else ''}"


def _compare(bench: Bench, name: str, cpu: Measured, idle: dict[str, Idle]) -> None:
    upstream = Upstream.start(bench.processes)
    started: dict[str, Target] = {}
    try:
        for pods in (1, PODS):
            off = bench.targets.gateway(name, upstream, Pod(others=pods - 1, cold_start_ms=0))
            idle[_label(name, pods)] = _idle(off, bench.pick(60, 5))
            bench.targets.stop(off)
            started[_label(name, pods)] = bench.targets.gateway(name, upstream, Pod(others=pods - 1))
        labels = {id(target): label for label, target in started.items()}
        for target in interleaved([*started.values()], bench.rounds(7, 2)):
            done = bench.measure(target, partial(_load, target, bench.pick(1.2, 0.5)))
            cpu[labels[id(target)]].append(done.cpu_us_per_request or 0.0)
    finally:
        bench.targets.stop(*started.values())
        upstream.stop(bench.processes)


def _load(target: Target, window_s: float) -> Load:
    pids = target.process.pids()
    return run(target.port, target.token, CHAT, conns=CONNECTIONS, window_s=window_s, pids=pids)


def _idle(target: Target, for_s: float) -> Idle:
    time.sleep(2.0)  # what a start leaves to do
    before = target.process.cpu_s()
    time.sleep(for_s)
    return Idle(target.process.rss_bytes() / MIB, (target.process.cpu_s() - before) / for_s)
