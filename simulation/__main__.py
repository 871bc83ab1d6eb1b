"""`python -m simulation`: a month under every idle policy, and the table; exit status 1 for a leak."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from attrs import frozen

from gpugate.core.idle_policy import FixedIdlePolicy, IdlePolicy, LearnedIdlePolicy

from .cloud import FAIR, Weather
from .hindsight import Hindsight, hindsight, price_s
from .month import Report, simulate
from .replicas import PEOPLE, SLOTS, days
from .traffic import KINDS, Traffic


@frozen
class Way:
    """One way to be idle: its name, `pod.idle_timeout` in seconds, and the policy."""

    name: str
    idle_timeout_s: float
    make_idle: Callable[[float], IdlePolicy]


WAYS = (
    Way("fixed 1m", 60.0, FixedIdlePolicy),
    Way("fixed 5m", 300.0, FixedIdlePolicy),
    Way("fixed 15m", 900.0, FixedIdlePolicy),
    Way("fixed 60m", 3600.0, FixedIdlePolicy),
    Way("learned 15m", 900.0, LearnedIdlePolicy),
)

HEAD = (
    "traffic",
    "policy",
    "paid h",
    "useful h",
    "cost $",
    "cold starts",
    "unasked",
    "wait p50 s",
    "p95 s",
    "max s",
    "answered",
    "failed",
    "leaked s",
    "× hindsight",
)


def main(words: Sequence[str] | None = None) -> int:
    """Run one month and return its result."""
    given = _arguments(words)
    seeds = range(1, given.seeds + 1)
    weather = FAIR if given.fair else Weather()
    began, leaked, off = time.perf_counter(), 0.0, 0.0
    _say(f"{given.days} days, mean of {given.seeds} seeds, {'no faults' if given.fair else 'all faults'}\n")
    _say(_row(HEAD))
    _say(_row("---" for _ in HEAD))
    for kind in given.only or KINDS:
        months = [KINDS[kind](seed, given.days) for seed in seeds]
        best = [hindsight(month) for month in months]
        for way in WAYS:
            reports = list(_live(way, months, seeds, given.days, weather))
            leaked += sum(report.leaked_s + report.billing_at_end for report in reports)
            leaked += sum(report.open_rows for report in reports)
            off = max(
                off, *(abs(report.on_record / report.cost - 1) for report in reports if report.cost), 0.0
            )
            _say(_row((kind, *_cells(way.name, reports, best))))
        _say(_row((kind, *_best_cells(best))))
    if not given.only:
        _say_replicas()
    _say(f"\nthe ledgers are off the cloud's bills by {100 * off:.1f} % at most")
    _say(f"{time.perf_counter() - began:.0f} s on this machine; leaks: {leaked:.0f} s")
    return 1 if leaked else 0


def _say_replicas() -> None:
    """Print the table of a day with replicas."""
    _say(f"\none working day of {PEOPLE} people, {SLOTS} requests at a time in each replica, no faults\n")
    _say(_row(("pod.replicas", "paid h", "cost $", "changes", "requests", "wait p50 s", "p95 s", "max s")))
    _say(_row("---" for _ in range(8)))
    for day in days(1):
        waits = (f"{day.wait_s(share):.0f}" for share in (0.5, 0.95, 1))
        counted = f"{day.paid_h:.1f}", f"{day.cost:.2f}", str(day.changes), str(len(day.waits))
        _say(_row((day.replicas, *counted, *waits)))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulation", description="a month in a minute")
    parser.add_argument("--days", type=int, default=30, help="how long the month is (30)")
    parser.add_argument("--seeds", type=int, default=2, help="how many months of each traffic (2)")
    parser.add_argument("--only", action="append", choices=KINDS, help="this traffic only; may be repeated")
    parser.add_argument("--fair", action="store_true", help="without faults and crashes")
    return parser.parse_args(words)


def _live(
    way: Way, months: Sequence[Traffic], seeds: Iterable[int], days: int, weather: Weather
) -> Iterator[Report]:
    for month, seed in zip(months, seeds, strict=True):
        yield simulate(month, way.idle_timeout_s, way.make_idle, seed=seed, days=days, weather=weather)


def _cells(name: str, reports: Sequence[Report], best: Sequence[Hindsight]) -> Iterator[str]:
    """One row: means over the seeds, waits of all of them together."""
    count = len(reports)
    waits = sorted(wait for report in reports for wait in report.waits) or [0.0]
    price = sum(price_s(r.paid_s, r.useful_s, r.cold) for r in reports)
    yield name
    yield f"{sum(r.paid_s for r in reports) / count / 3600:.1f}"
    yield f"{sum(r.useful_s for r in reports) / count / 3600:.1f}"
    yield f"{sum(r.cost for r in reports) / count:.2f}"
    yield f"{sum(r.cold for r in reports) / count:.0f}"
    yield f"{sum(r.prewarmed for r in reports) / count:.0f}"
    yield from (f"{waits[min(len(waits) - 1, int(share * len(waits)))]:.0f}" for share in (0.5, 0.95, 1))
    yield f"{sum(r.answered for r in reports) / count:.0f}"
    yield f"{sum(r.failed.total() for r in reports) / count:.0f}"
    yield f"{sum(r.leaked_s for r in reports):.0f}"
    yield f"{price / (sum(b.price_s for b in best) or 1):.2f}"


def _best_cells(best: Sequence[Hindsight]) -> Iterator[str]:
    count = len(best)
    yield "hindsight"
    yield f"{sum(b.paid_s for b in best) / count / 3600:.1f}"
    yield f"{sum(b.useful_s for b in best) / count / 3600:.1f}"
    yield ""
    yield f"{sum(b.cold for b in best) / count:.0f}"
    yield from ("",) * 7
    yield "1.00"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _say(line: str) -> None:
    """Print a leak at once, without waiting for the other runs."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
