"""How much of our cores other programs took while we measured; knows the processes, not what they do."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from attrs import frozen

from benchmarks.processes import Running, cores

TICKS = os.sysconf("SC_CLK_TCK")
IDLE_COLUMNS = (3, 4)  # idle and waiting for a disk; guests (8, 9) are counted in user already
COLUMNS = 8


@frozen
class Moment:
    """Seconds that were spent until now: on each of our two cores by anybody, and on each by ourselves."""

    at: float
    candidate_core: float
    candidate: float
    other_core: float
    others: float

    @classmethod
    def now(cls, candidate: Running | None, upstream: Running) -> Moment:
        """Look; `candidate` is None where the upstream itself is measured."""
        first, second = cores()
        load = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(
            at=time.monotonic(),
            candidate_core=_busy_s(first),
            candidate=candidate.cpu_s() if candidate else 0.0,
            other_core=_busy_s(second),
            others=upstream.cpu_s() + load.ru_utime + load.ru_stime + time.process_time(),
        )

    def foreign_since(self, before: Moment) -> float:
        """The share of a core that others took since then; of the worse of the two cores."""
        first, second = cores()
        ours_first, ours_second = self.candidate - before.candidate, self.others - before.others
        if first == second:
            ours_first = ours_second = ours_first + ours_second
        spent = (
            self.candidate_core - before.candidate_core - ours_first,
            self.other_core - before.other_core - ours_second,
        )
        return max(0.0, *spent) / max(self.at - before.at, 0.001)


def _busy_s(cpus: set[int]) -> float:
    total = 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *figures = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            total += sum(int(n) for i, n in enumerate(figures[:COLUMNS]) if i not in IDLE_COLUMNS)
    return total / TICKS
