"""What metrics and traces cost a stream: switched off, switched on, and not installed at all."""

from __future__ import annotations

import operator
import sys
from collections import defaultdict
from functools import partial

from benchmarks.bench import Bench, Measured, interleaved, per_round
from benchmarks.board import Table, median, number
from benchmarks.build import HERE
from benchmarks.load import Load, chat, run
from benchmarks.processes import cores
from benchmarks.targets import OBSERVED, UNOBSERVABLE, UVLOOP, free_port

SIZE, LINES, GAP_MS = 500, 100, 20
STREAM_S = LINES * GAP_MS / 1000
BAR = 1.05
"""Two runs of the same program differ by so much."""


def run_part(bench: Bench) -> None:
    """Measure and judge: off is to cost what a gateway costs without the packages."""
    if bench.peers_only:
        return
    port = free_port()
    script = str(HERE / "peers" / "collector.py")
    collector = bench.processes.start("collector", [sys.executable, script, str(port)], cores()[1])
    bench.targets.otlp_port = port
    runs: dict[str, list[Load]] = defaultdict(list)
    try:
        with bench.running((UNOBSERVABLE, UVLOOP, OBSERVED)) as targets:
            rounds = bench.rounds(5)
            bench.say(f"  {SIZE} streams, {rounds} rounds")
            for target in interleaved(targets, rounds):
                action = partial(
                    run,
                    target.port,
                    target.token,
                    chat(LINES, GAP_MS),
                    conns=SIZE,
                    window_s=bench.pick(2.5, 1.5),
                    ramp_s=STREAM_S,
                    warmup_s=STREAM_S + 0.3,
                    pids=target.process.pids(),
                )
                runs[target.name].append(bench.measure(target, action))
    finally:
        bench.processes.stop(collector)
    cpu: Measured = {name: [one.cpu_us_per_chunk for one in done] for name, done in runs.items()}
    ratio = {
        name: median(per_round(cpu, name, UNOBSERVABLE, operator.truediv)) for name in (UVLOOP, OBSERVED)
    }
    title = f"{SIZE} streams, CPU per chunk, metrics and traces off"
    bench.board.at_most(f"{title}: of a gateway without the packages", "×", BAR, ratio[UVLOOP], None)
    rows = [
        [name, number(median(one.cpu_us_per_chunk for one in done), 2), number(ratio.get(name), 3)]
        for name, done in runs.items()
    ]
    columns = ["", "CPU µs/chunk", "× without the packages"]
    bench.board.tables.append(Table(f"Metrics and traces, {SIZE} streams", columns, rows))
