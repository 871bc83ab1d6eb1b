"""Streams of 20 ms lines: how late a line is, how many come through, what each costs."""

from __future__ import annotations

import operator
from collections import defaultdict
from functools import partial

from benchmarks.bench import GATEWAYS, Bench, Measured, interleaved, per_round
from benchmarks.board import Table, median, number
from benchmarks.load import Load, chat, run
from benchmarks.targets import DIRECT, NAIVE, NGINX, Target

SIZES = (50, 500, 1000)
LINES, GAP_MS = 100, 20
STREAM_S = LINES * GAP_MS / 1000
CPU_BARS = {50: 2.2, 500: 1.75, 1000: 1.75}
"""CPU per chunk, of nginx's. At 50 streams each chunk finds the process asleep."""
Runs = dict[str, list[Load]]


def run_part(bench: Bench) -> None:
    """Measure and judge."""
    # The plain proxy only where it is not saturated: beyond that it measures its own traffic jam.
    names = (DIRECT, NGINX, *GATEWAYS, *(() if bench.quick else (NAIVE,)))
    with bench.running(names) as targets:
        by_size = {}
        for size in SIZES:
            chosen = [target for target in targets if size == SIZES[0] or target.name != NAIVE]
            by_size[size] = _measure(bench, chosen, size)
    for size, runs in by_size.items():
        _judge(bench, size, runs)
    for size, runs in by_size.items():
        bench.board.tables.append(_table(size, runs))


def _measure(bench: Bench, targets: list[Target], size: int) -> Runs:
    rounds, window_s = bench.rounds(3), bench.pick(2.5, 1.5)
    bench.say(f"  {size} streams, {rounds} rounds")
    runs: Runs = defaultdict(list)
    for target in interleaved(targets, rounds):
        action = partial(
            run,
            target.port,
            target.token,
            chat(LINES, GAP_MS),
            conns=size,
            window_s=window_s,
            # spread over one stream's length, so that beginnings and ends are spread as well
            ramp_s=bench.pick(STREAM_S, STREAM_S / 2),
            warmup_s=bench.pick(STREAM_S, STREAM_S / 2) + 0.3,
            pids=target.process.pids(),
        )
        done = bench.measure(target, action)
        if done.errors:
            bench.board.note(f"{size} streams, {target.name}: {done.kinds}")
        runs[target.name].append(done)
    return runs


def _judge(bench: Bench, size: int, runs: Runs) -> None:
    board = bench.board

    def of(figure: str) -> list[float | None]:
        return [median(getattr(one, figure) for one in runs.get(name, [])) for name in GATEWAYS]

    cpu: Measured = {name: [one.cpu_us_per_chunk for one in done] for name, done in runs.items()}
    if size == SIZES[0]:
        late: Measured = {name: [one.chunk_p50_ms for one in done] for name, done in runs.items()}
        added = [median(per_round(late, name, DIRECT, operator.sub)) for name in GATEWAYS]
        board.at_most(f"{size} streams, added to a chunk in the median", "ms", 0.15, *added)
    elif size == SIZES[1]:
        board.at_most(f"{size} streams, chunk p50", "ms", 1, *of("chunk_p50_ms"))
        board.at_most(f"{size} streams, chunk p99", "ms", 25, *of("chunk_p99_ms"))
    else:
        board.at_least(f"{size} streams, chunks/s of 50,000", "/s", 45_000, *of("chunks_per_second"))
        board.at_most(f"{size} streams, chunk p50", "ms", 25, *of("chunk_p50_ms"))
    ratios = [median(per_round(cpu, name, NGINX, operator.truediv)) for name in GATEWAYS]
    board.at_most(f"{size} streams, CPU per chunk of nginx's", "×", CPU_BARS[size], *ratios)
    failed = [float(sum(one.errors for one in runs[name])) if name in runs else None for name in GATEWAYS]
    board.at_most(f"{size} streams, errors", "", 0, *failed)


def _table(size: int, runs: Runs) -> Table:
    rows = [
        [
            name,
            number(median(one.chunk_p50_ms for one in done), 3),
            number(median(one.chunk_p99_ms for one in done)),
            number(median(one.ttfb_p50_ms for one in done)),
            number(median(one.ttfb_p99_ms for one in done)),
            number(median(one.chunks_per_second for one in done)),
            number(median(one.cpu_us_per_chunk for one in done), 1),
        ]
        for name, done in runs.items()
    ]
    columns = ["", "chunk p50 ms", "p99 ms", "first byte p50 ms", "p99 ms", "chunks/s", "CPU µs/chunk"]
    return Table(f"{size} streams of {LINES} lines, {GAP_MS} ms apart", columns, rows)
