"""What every part of the benchmark shares: the processes, the targets, the order of rounds, the board."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from attrs import define

from benchmarks.board import Board
from benchmarks.load import Load
from benchmarks.processes import Processes, Unavailable
from benchmarks.quiet import Moment
from benchmarks.targets import ASYNCIO, DIRECT, UVLOOP, Target, Targets
from benchmarks.upstream import Upstream

GATEWAYS = (UVLOOP, ASYNCIO)
T = TypeVar("T")
DISTURBED = 0.1
TRIES = 3
Measured = dict[str, list[float]]


@define
class Bench:
    """One run of the benchmark.

    Attributes:
        quick: a short run, for a look; its figures are rough.
        source: the measured gpugate's source, for its wheel.
        spare: how many measurements may still be repeated because other programs disturbed them.
        measured, disturbed: how many were kept, and how many of those were disturbed all the same.
    """

    processes: Processes
    targets: Targets
    board: Board
    quick: bool
    peers_only: bool
    source: Path
    spare: int
    measured: int = 0
    disturbed: int = 0

    def pick(self, full: float, quick: float) -> float:
        """The number for this kind of run."""
        return quick if self.quick else full

    def rounds(self, full: int, quick: int = 1) -> int:
        """How many rounds this kind of run has."""
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """Tell who waits what is going on; the result alone goes to stdout."""
        print(text, file=sys.stderr, flush=True)

    def measure(self, target: Target, action: Callable[[], Load]) -> Load:
        """Measure and let the target settle; again if others took much of a core: the quietest counts."""
        candidate = None if target.name == DIRECT else target.process
        best: tuple[float, Load] | None = None
        for turn in range(TRIES):
            if turn and (self.spare <= 0 or not best or best[0] <= DISTURBED):
                break
            self.spare -= bool(turn)
            before = Moment.now(candidate, target.upstream.process)
            done = action()
            foreign = Moment.now(candidate, target.upstream.process).foreign_since(before)
            target.settle()
            best = min(best or (foreign, done), (foreign, done), key=lambda tried: tried[0])
        assert best
        self.measured += 1
        self.disturbed += best[0] > DISTURBED
        return best[1]

    @contextmanager
    def running(self, names: Sequence[str]) -> Iterator[list[Target]]:
        """An upstream and these targets before it, ended afterwards; who cannot be had is left out."""
        upstream = Upstream.start(self.processes)
        started: list[Target] = []
        try:
            for name in names:
                if not (self.peers_only and name in GATEWAYS):
                    target = self.attempt(name, partial(self.targets.start, name, upstream))
                    started += [target] if target else []
            yield started
        finally:
            self.targets.stop(*started)
            upstream.stop(self.processes)

    def attempt(self, what: str, action: Callable[[], T]) -> T | None:
        """Do it; if it cannot be done here, note why and go on."""
        try:
            return action()
        except (Unavailable, OSError) as reason:
            self.board.note(f"{what}: {reason}")
            self.say(f"  {what}: {reason}")
            return None


def interleaved(targets: Sequence[Target], rounds: int) -> Iterator[Target]:
    """A B C, C B A, A B C, ...: whatever drifts, drifts for all alike."""
    for turn in range(rounds):
        yield from targets if turn % 2 == 0 else reversed(targets)


def per_round(over: Measured, name: str, other: str, ratio: Callable[[float, float], float]) -> list[float]:
    """`ratio` of two targets' figures, taken within each round."""
    return [ratio(a, b) for a, b in zip(over.get(name, []), over.get(other, []), strict=False) if b]
