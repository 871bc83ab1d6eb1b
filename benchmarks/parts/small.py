"""Small requests: what one costs alone, and how many there are in a second with 50 connections.

The POSTs have a different body each time, as in use: what recognises a request by its bytes gains nothing.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from functools import partial

from benchmarks.bench import GATEWAYS, Bench, Measured, interleaved, per_round
from benchmarks.board import Table, median, number
from benchmarks.load import CHAT, EMBED, TAGS, Load, Request, run
from benchmarks.targets import DIRECT, LLAMA_SWAP, NAIVE, NGINX, OLLA, Target

MANY = 50
NAMES = (DIRECT, NGINX, *GATEWAYS, NAIVE, LLAMA_SWAP, OLLA)
JUDGED = (EMBED, CHAT)
BARS = {NGINX: 0.2, NAIVE: 4, LLAMA_SWAP: 1, OLLA: 1}
"""What share of a peer's requests/s the gateway must reach with each of the POSTs."""
Runs = dict[str, list[Load]]


def run_part(bench: Bench) -> None:
    """Measure and judge."""
    window_s = bench.pick(1.2, 0.5)
    with bench.running(NAMES) as targets:
        alone = _measure(bench, targets, CHAT, 1, bench.rounds(5, 3), window_s)
        many = {
            request: _measure(bench, targets, request, MANY, bench.rounds(5, 2), window_s)
            for request in (*JUDGED, TAGS)
        }
    for request in JUDGED:
        _judge_rate(bench, request, many[request])
    _judge_alone(bench, alone)
    bench.board.tables += [_table_many(request, runs) for request, runs in many.items()]
    bench.board.tables.append(_table_alone(alone))


def _measure(
    bench: Bench, targets: list[Target], request: Request, conns: int, rounds: int, window_s: float
) -> Runs:
    bench.say(f"  {request.method} {request.path}, {conns} at once, {rounds} rounds")
    runs: Runs = defaultdict(list)
    for target in interleaved(targets, rounds):
        load = partial(
            run,
            target.port,
            target.token,
            target.addressed(request),
            conns=conns,
            window_s=window_s,
            pids=target.process.pids(),
        )
        done = bench.measure(target, load)
        if done.errors:
            bench.board.note(f"{request.method} {request.path}, {target.name}: {done.kinds}")
        runs[target.name].append(done)
    return runs


def _judge_rate(bench: Bench, request: Request, runs: Runs) -> None:
    rate: Measured = {name: [one.per_second for one in done] for name, done in runs.items()}
    text = f"{request.method} {request.path}, {MANY} connections, of"
    for peer, bar in BARS.items():
        ratios = [median(per_round(rate, name, peer, operator.truediv)) for name in GATEWAYS]
        bench.board.at_least(f"{text} {peer}'s requests/s", "×", bar, *ratios)
        text = "... of"


def _judge_alone(bench: Bench, runs: Runs) -> None:
    latency: Measured = {name: [one.p50_ms for one in done] for name, done in runs.items()}
    added = [median(per_round(latency, name, DIRECT, operator.sub)) for name in GATEWAYS]
    bench.board.at_most("POST /api/chat, 1 connection, added to direct", "ms", 0.3, *added)


def _table_many(request: Request, runs: Runs) -> Table:
    rate: Measured = {name: [one.per_second for one in done] for name, done in runs.items()}
    rows = [
        [
            name,
            number(median(rate[name])),
            number(median(per_round(rate, name, NGINX, operator.truediv))),
            number(median(one.p50_ms for one in done)),
            number(median(one.p99_ms for one in done)),
            number(median(one.cpu_us_per_request for one in done), 1),
        ]
        for name, done in runs.items()
    ]
    columns = ["", "req/s", "of nginx's", "p50 ms", "p99 ms", "CPU µs/req"]
    different = ", a different body each time" if request in JUDGED else ""
    return Table(f"{request.method} {request.path}{different}, {MANY} connections", columns, rows)


def _table_alone(runs: Runs) -> Table:
    direct = median(one.p50_ms for one in runs.get(DIRECT, [])) or 0.0
    rows = []
    for name, done in runs.items():
        p50 = median(one.p50_ms for one in done)
        added = number(p50 - direct, 3) if p50 is not None and name != DIRECT else "-"
        rows.append([name, number(p50, 3), added, number(median(one.cpu_us_per_request for one in done), 1)])
    columns = ["", "p50 ms", "added ms", "CPU µs/req"]
    return Table("POST /api/chat, a different body each time, 1 connection", columns, rows)
