"""`python -m benchmarks`: measures every goal and prints the table; knows the parts by name only."""

from __future__ import annotations

import argparse
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

from benchmarks.bench import DISTURBED, Bench
from benchmarks.board import Board
from benchmarks.build import native, own_place
from benchmarks.parts import blob, fleet, gone, memory, observed, ready, small, startup, streams
from benchmarks.processes import Processes, Unavailable, cores, raise_open_files
from benchmarks.targets import ROOT, Targets, make_token

PARTS: dict[str, Callable[[Bench], None]] = {
    "small": small.run_part,
    "streams": streams.run_part,
    "observed": observed.run_part,
    "gone": gone.run_part,
    "blob": blob.run_part,
    "memory": memory.run_part,
    "ready": ready.run_part,
    "fleet": fleet.run_part,
    "startup": startup.run_part,
}
NEEDED_FILES = 6000
SPARE = {False: 40, True: 6}


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="gpugate beside its peers")
    parser.add_argument("--quick", action="store_true", help="a short run, for a look; rough")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part only; may be repeated")
    parser.add_argument("--peers-only", action="store_true", help="without gpugate")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a goal is missed")
    parser.add_argument("--output", type=Path, metavar="F", help="also write the tables to this file")
    parser.add_argument(
        "--gpugate", metavar="COMMAND", help="the command to measure, such as another checkout's gpugate"
    )
    parser.add_argument(
        "--source", type=Path, metavar="D", default=ROOT, help="the checkout whose wheel `startup` builds"
    )
    return parser.parse_args()


def headline() -> str:
    """Where and when this was measured."""
    candidate, others = cores()
    placed = (
        "candidate, load and upstream share one core"
        if candidate == others
        else "candidate on one core, load and upstream on another"
    )
    return f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {platform.machine()}, {placed}"


def stop_politely(number: int, frame: FrameType | None) -> None:
    """SIGTERM leaves through every `finally`, as Ctrl-C does."""
    raise KeyboardInterrupt


def measure(wanted: argparse.Namespace, processes: Processes, board: Board) -> None:
    """Run the chosen parts."""
    if wanted.gpugate:  # it has a gpugate of its own, which ours must not hide
        targets = Targets(processes, shlex.split(wanted.gpugate), make_token())
    else:
        targets = Targets(processes, [sys.executable, "-m", "gpugate"], make_token(), [ROOT])
    spare = SPARE[wanted.quick]
    bench = Bench(processes, targets, board, wanted.quick, wanted.peers_only, wanted.source, spare)
    for name in wanted.only or PARTS:
        bench.say(f"{name}:")
        bench.attempt(name, partial(PARTS[name], bench))
    if bench.disturbed:
        board.note(
            f"{bench.disturbed} of {bench.measured} runs were disturbed: other programs took more than "
            f"{DISTURBED:.0%} of one of the two cores meanwhile"
        )


def main() -> int:
    """Measure and print; the exit status is 2 where nothing can be measured."""
    wanted = read_arguments()
    if sys.platform != "linux":
        print("benchmarks: they need Linux (epoll, /proc)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, stop_politely)
    board = Board()
    if raise_open_files() < NEEDED_FILES:
        board.note(f"fewer than {NEEDED_FILES} open files are allowed: large runs may fail")
    try:
        native("upstream"), native("load")
        with Processes(own_place()) as processes:
            measure(wanted, processes, board)
    except Unavailable as reason:
        print(f"benchmarks: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks: interrupted; everything is stopped", file=sys.stderr)
        return 130
    text = f"{headline()}{' (quick: rough)' if wanted.quick else ''}\n\n{board.text()}"
    print(text)
    if wanted.output:
        wanted.output.write_text(text + "\n")
    return 1 if wanted.strict and board.missed else 0


if __name__ == "__main__":
    sys.exit(main())
