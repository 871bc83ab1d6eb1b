"""Small requests: what one costs alone, and how many there are in a second with 50 connections."""

from __future__ import annotations

import operator
from collections import defaultdict
from functools import partial

from benchmarks.bench import GATEWAYS, Bench, Measured, interleaved, per_round
from benchmarks.board import Table, median, number
from benchmarks.load import TAGS, Load, Request, chat, run
from benchmarks.targets import ASYNCIO, DIRECT, NAIVE, NGINX, UVLOOP, Target

MANY = 50
NAMES = (DIRECT, NGINX, *GATEWAYS, NAIVE)
Runs = dict[str, list[Load]]


def run_part(bench: Bench) -> None:
    """Measure and judge."""
    window_s = bench.pick(1.2, 0.5)
    with bench.running(NAMES) as targets:
        alone = _measure(bench, targets, TAGS, 1, bench.rounds(5, 3), window_s)
        many = _measure(bench, targets, TAGS, MANY, bench.rounds(5, 2), window_s)
        posts: Runs = {}
        if not bench.quick:
            few = [target for target in targets if target.name in (NGINX, *GATEWAYS)]
            posts = _measure(bench, few, chat(1, 0), MANY, bench.rounds(3), window_s)
    _judge(bench, alone, many)
    names = [target.name for target in targets]
    bench.board.tables.append(_table(names, alone, many, posts))


def _measure(
    bench: Bench, targets: list[Target], request: Request, conns: int, rounds: int, window_s: float
) -> Runs:
    bench.say(f"  {request.method} {request.path}, {conns} at once, {rounds} rounds")
    runs: Runs = defaultdict(list)
    for target in interleaved(targets, rounds):
        pids = target.process.pids()
        done = bench.measure(
            target,
            partial(run, target.port, target.token, request, conns=conns, window_s=window_s, pids=pids),
        )
        if done.errors:
            bench.board.note(f"small requests, {target.name}: {done.kinds}")
        runs[target.name].append(done)
    return runs


def _judge(bench: Bench, alone: Runs, many: Runs) -> None:
    board = bench.board
    latency: Measured = {name: [one.p50_ms for one in runs] for name, runs in alone.items()}
    rate: Measured = {name: [one.per_second for one in runs] for name, runs in many.items()}
    added: Measured = {name: per_round(latency, name, DIRECT, operator.sub) for name in latency}

    def ratio(over: Measured, other: str) -> list[float | None]:
        return [median(per_round(over, name, other, operator.truediv)) for name in GATEWAYS]

    board.at_least("small requests, 50 connections, of nginx's requests/s", "×", 0.35, *ratio(rate, NGINX))
    board.at_least("... of a plain aiohttp proxy's", "×", 4, *ratio(rate, NAIVE))
    ours = [median(added.get(name, [])) for name in (UVLOOP, ASYNCIO)]
    board.at_most("small requests, 1 connection, added to direct", "ms", 0.3, *ours)
    board.at_most("... of what nginx adds", "×", 2, *ratio(added, NGINX))


def _table(names: list[str], alone: Runs, many: Runs, posts: Runs) -> Table:
    rows = []
    direct = median(one.p50_ms for one in alone.get(DIRECT, [])) or 0.0
    for name in names:
        p50 = median(one.p50_ms for one in alone[name])
        rows.append(
            [
                name,
                number(p50, 3),
                number(p50 - direct, 3) if p50 and name != DIRECT else "-",
                number(median(one.per_second for one in many[name])),
                number(median(one.p50_ms for one in many[name])),
                number(median(one.p99_ms for one in many[name])),
                number(median(one.cpu_us_per_request for one in many[name]), 1),
                number(median(one.per_second for one in posts.get(name, []))),
            ]
        )
    columns = [
        "",
        "1: p50 ms",
        "added ms",
        "50: req/s",
        "p50 ms",
        "p99 ms",
        "CPU µs/req",
        "50 POST chat: req/s",
    ]
    return Table("Small requests: GET /api/tags (1980 B), 1 and 50 connections", columns, rows)
