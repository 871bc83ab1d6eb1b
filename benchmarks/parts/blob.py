"""One big upload: how fast it goes through, and how much memory it takes on the way."""

from __future__ import annotations

import operator
from collections import defaultdict
from functools import partial

from benchmarks.bench import GATEWAYS, Bench, Measured, interleaved, per_round
from benchmarks.board import Table, median, number
from benchmarks.load import upload
from benchmarks.targets import DIRECT, NGINX

MB = 1_000_000
MIB = 1 << 20


def run_part(bench: Bench) -> None:
    """Measure and judge."""
    size = 300 * MB
    speed: Measured = defaultdict(list)
    growth: Measured = defaultdict(list)
    rounds = bench.rounds(5, 2)
    bench.say(f"  {size // MB} MB, {rounds} rounds")
    with bench.running((DIRECT, NGINX, *GATEWAYS)) as targets:
        for target in targets:
            upload(target.port, target.token, MB)
        for target in interleaved(targets, rounds):
            before = target.process.rss_bytes()
            target.process.forget_peak()
            done = bench.measure(target, partial(upload, target.port, target.token, size))
            if done.errors or done.upload_mb_s <= 0:
                bench.board.note(f"blob upload, {target.name}: {done.kinds or 'did not end in time'}")
            speed[target.name].append(max(done.upload_mb_s, 0.0))
            growth[target.name].append((target.process.peak_bytes() - before) / MIB)
    ratios = [median(per_round(speed, name, NGINX, operator.truediv)) for name in GATEWAYS]
    most = [max(growth[name], default=None) for name in GATEWAYS]
    bench.board.at_least("blob of 300 MB, speed of nginx's", "×", 1, *ratios)
    bench.board.at_most("... memory grows at most", "MiB", 16, *most)
    rows = [[name, number(median(speed[name])), number(max(growth[name]), 1)] for name in speed]
    bench.board.tables.append(Table("Blob upload, 300 MB", ["", "MB/s", "peak memory + MiB"], rows))
