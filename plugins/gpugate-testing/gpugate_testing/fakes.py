"""Fakes of what the lifecycle talks to: a cloud, its provider, a pod, a ledger, a store of pending stops.

They use the running loop's time, so they work in virtual time, too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, evolve, field, frozen

from gpugate.billing import sqlite_ledger
from gpugate.billing.cost_math import CostBreakdown, CostQuery
from gpugate.billing.model import PodUsage, Session
from gpugate.core.commands import LoadOptions
from gpugate.core.request_queue import full_name
from gpugate.errors import Conflict, LedgerError, NoCapacity
from gpugate.lifecycle.model_pull import PullFailure, Report
from gpugate.lifecycle.state_files import PendingStopStore
from gpugate.provider_api import Capabilities, Endpoint, Phase, PodReport, Price, Provider


@frozen
class Hang:
    """A fault: the call takes so many seconds, then goes on."""

    seconds: float


@frozen
class LostAnswer:
    """A fault: the provider obeys, but the caller gets an error."""

    error: Exception


MODEL_BYTES = 4_000_000_000
"""The size of any model that a `FakePod` pulls."""
PRICE = Price(Decimal("0.44"))
Fault = Exception | Hang | LostAnswer | PodReport


@define
class FakeCloud:
    """A cloud with one pod, and a meter that says for how long it was billed.

    Attributes:
        boot_s: from an accepted start to running.
        stop_s: from an accepted stop to stopped.
        calls: what was asked, in order: "start", "stop", "inspect", "scale 2".
        faults: by call, what goes wrong the next times, first in first out.
        ignore_stops: so many stops are accepted and have no effect.
        queue_s: how long a start waits for its GPU first, and is not billed.
        replicas: how many were asked for; another one runs, and is billed, `boot_s` after that.
        most_replicas: how many the cloud has GPUs for.
        second: the pod in the other slot; with one the provider can run two.
        time_limit_s: after how long the cloud ends the pod itself; 0: never.
        replica_stretches: each replica's billed time but the first one's, in loop time, once it is over.
    """

    boot_s: float = 0.0
    stop_s: float = 0.0
    url: str = "http://127.0.0.1:1"
    price: Price = PRICE
    phase: Phase = Phase.STOPPED
    calls: list[str] = field(factory=list)
    faults: dict[str, deque[Fault]] = field(factory=dict)
    ignore_stops: int = 0
    queue_s: float = 0.0
    replicas: int = 1
    most_replicas: int = 99
    second: FakeCloud | None = None
    time_limit_s: float = 0.0
    replica_stretches: list[tuple[float, float]] = field(factory=list)
    billed_s: float = 0.0
    starts: int = 0
    _changes_at: float = 0.0
    _billed_since: float | None = None
    _replicas_since: list[float] = field(factory=list)  # when each but the first runs

    def fail(self, call: str, *faults: Fault) -> None:
        """Let the next calls of this name go wrong, one fault each."""
        self.faults.setdefault(call, deque()).extend(faults)

    @property
    def now(self) -> float:
        """The loop's time."""
        return asyncio.get_running_loop().time()

    @property
    def total_billed_s(self) -> float:
        """Seconds of a replica billed so far, a running stretch included."""
        self._move()
        running = self.now - self._billed_since if self._billed_since is not None else 0.0
        more = sum(ended - began for began, ended in self.replica_stretches)
        more += sum(max(0.0, self.now - began) for began in self._replicas_since)
        return self.billed_s + running + more

    def turn_on(self) -> None:
        """Accept a start, as the API or the console does."""
        self._move()
        if self.phase in (Phase.QUEUED, Phase.STARTING, Phase.RUNNING):
            return
        self.starts += 1
        self.phase, self._changes_at = Phase.QUEUED, self.now + self.queue_s
        self._move()

    def turn_off(self, *, at_once: bool = False) -> None:
        """Accept a stop; `at_once` is a pod that is lost or stopped in the console."""
        self._move()
        if self.phase in (Phase.STOPPED, Phase.GONE):
            return
        takes_s = 0.0 if at_once or self.phase is Phase.QUEUED else self.stop_s
        self.phase, self._changes_at = Phase.STOPPING, self.now + takes_s
        self.replicas = 1
        while self._replicas_since:
            self._end_replica(self._changes_at)
        self._move()

    def scale(self, replicas: int) -> None:
        """Accept so many replicas of the pod that runs."""
        self._move()
        if self.phase is not Phase.RUNNING:
            raise Conflict("the pod does not run")
        if replicas > self.most_replicas:
            raise NoCapacity("no GPU is free for another replica")
        while len(self._replicas_since) < replicas - 1:
            self._replicas_since.append(self.now + self.boot_s)
        while len(self._replicas_since) > replicas - 1:
            self._end_replica(self.now)
        self.replicas = replicas

    def _end_replica(self, at: float) -> None:
        began = self._replicas_since.pop()
        if began < at:
            self.replica_stretches.append((began, at))

    @property
    def running_replicas(self) -> int:
        """How many run now, behind the pod's endpoint."""
        return 1 + sum(began <= self.now for began in self._replicas_since)

    def report(self) -> PodReport:
        """What the API says now."""
        self._move()
        endpoints = {"ollama": Endpoint(self.url)} if self.phase is Phase.RUNNING else {}
        price, running = self.price, self.running_replicas
        if running > 1 and price.running_per_hour is not None:
            price = evolve(price, running_per_hour=price.running_per_hour * running)
        return PodReport(self.phase, "fake-1", endpoints, price, "fake GPU", replicas=running)

    def _move(self) -> None:
        if self.phase is Phase.QUEUED and self.now >= self._changes_at:
            if self._billed_since is None:
                self._billed_since = self._changes_at
            self.phase, self._changes_at = Phase.STARTING, self._changes_at + self.boot_s
        if self.now < self._changes_at:
            return
        if self.phase is Phase.STARTING:
            self.phase = Phase.RUNNING
        ends_at = (self._billed_since or 0.0) + self.time_limit_s
        if self.time_limit_s and self.phase is Phase.RUNNING and self.now >= ends_at:
            self.phase, self._changes_at = Phase.STOPPING, ends_at
        if self.phase is Phase.RUNNING:
            return
        if self.phase is Phase.STOPPING:
            self.phase = Phase.STOPPED
            if self._billed_since is not None:
                self.billed_s += max(self._changes_at, self._billed_since) - self._billed_since
                self._billed_since = None


class FakeProvider(Provider):
    """A provider plugin over a `FakeCloud`."""

    capabilities: ClassVar[Capabilities] = Capabilities(max_replicas=99, can_overlap=True)

    def __init__(self, cloud: FakeCloud, session: Any = None, slot: int = 0) -> None:
        super().__init__(None, session)
        self._first = cloud
        self.slot = slot
        self.closed = False

    @property
    def cloud(self) -> FakeCloud:
        """The pod in this provider's slot."""
        second = self._first.second if self.slot else None
        return self._first if second is None else second

    @property
    def time_limit_s(self) -> float:
        return self.cloud.time_limit_s

    async def start(self) -> PodReport:
        return await self._call("start", self.cloud.turn_on)

    async def stop(self) -> PodReport:
        def obey() -> None:
            if self.cloud.ignore_stops:
                self.cloud.ignore_stops -= 1
            else:
                self.cloud.turn_off()

        return await self._call("stop", obey)

    async def inspect(self) -> PodReport:
        return await self._call("inspect", lambda: None)

    async def scale(self, replicas: int) -> PodReport:
        return await self._call(f"scale {replicas}", lambda: self.cloud.scale(replicas))

    async def aclose(self) -> None:
        self.closed = True

    async def _call(self, name: str, act: Any) -> PodReport:
        self.cloud.calls.append(name)
        waiting = self.cloud.faults.get(name.partition(" ")[0])
        fault = waiting.popleft() if waiting else None
        if isinstance(fault, Hang):
            await asyncio.sleep(fault.seconds)
        elif isinstance(fault, PodReport):
            return fault
        elif isinstance(fault, LostAnswer):
            act()
            raise fault.error
        elif isinstance(fault, Exception):
            raise fault
        act()
        return self.cloud.report()


@define
class FakePod:
    """The pod's Ollama: healthy `warm_s` after the cloud says it runs.

    Attributes:
        preloads: the models that were asked for.
        sick: answers no health check while True.
        answers_at: the only URL at which it answers a health check; empty for any.
        on_cpu_at: the URLs of endpoints whose models run on the CPU only.
        partly_at: the same of those whose models run partly on the CPU.
        models: that it has, by their full names.
        pull_s: how long a pull takes, which tells each tenth of it.
        unpullable: why a pull of these models fails, after half of its time.
        pulls: the models whose pull was asked for.
    """

    cloud: FakeCloud
    warm_s: float = 0.0
    load_s: float = 0.0
    sick: bool = False
    answers_at: str = ""
    on_cpu_at: frozenset[str] = frozenset()
    partly_at: frozenset[str] = frozenset()
    models: set[str] = field(factory=set)
    pull_s: float = 0.0
    unpullable: dict[str, PullFailure] = field(factory=dict)
    pulls: list[str] = field(factory=list)
    checks: int = 0
    preloads: list[str] = field(factory=list)

    async def check(self, endpoint: Endpoint) -> str | None:
        """Health, as `lifecycle.pod_client.Pod` has it."""
        self.checks += 1
        second = self.cloud.second
        cloud = second if second is not None and endpoint.url == second.url else self.cloud
        up = cloud.report().phase is Phase.RUNNING and cloud.now >= cloud._changes_at + self.warm_s
        here = self.answers_at in ("", endpoint.url)
        return None if up and here and not self.sick else "connection refused"

    async def preload(self, endpoint: Endpoint, model: str, options: LoadOptions) -> str | None:
        """Take `load_s` to load the model."""
        self.preloads.append(model)
        await asyncio.sleep(self.load_s)
        return None

    async def on_cpu(self, endpoint: Endpoint) -> bool:
        """What the models there run on."""
        return endpoint.url in self.on_cpu_at

    async def partly_on_cpu(self, endpoint: Endpoint) -> bool:
        """Whether a model there has found too little GPU memory."""
        return endpoint.url in self.partly_at

    async def installed(self, endpoint: Endpoint) -> frozenset[str]:
        """The models it has."""
        return frozenset(self.models)

    async def pull(self, endpoint: Endpoint, model: str, report: Report) -> PullFailure | None:
        """Take `pull_s` to pull the model, unless it is `unpullable`."""
        self.pulls.append(model)
        for tenth in range(1, 11):
            await asyncio.sleep(self.pull_s / 10)
            if tenth == 5 and model in self.unpullable:
                return self.unpullable[model]
            report(tenth * MODEL_BYTES // 10, MODEL_BYTES)
        self.models.add(full_name(model))
        return None

    @property
    def healthy_at(self) -> float:
        """When this pod's Ollama begins to answer."""
        return self.cloud._changes_at + self.warm_s


def last_ended(rows: Iterable[Session]) -> list[Session]:
    """Return the billed session that ended last, of each pod and provider."""
    ended = [(row.ended_at, row.id, row) for row in rows if row.started_at and row.ended_at]
    return list({(row.pod, row.provider): row for _, _, row in sorted(ended)}.values())


@define
class MemoryLedger:
    """A ledger in memory, as `billing.model.Ledger` has it.

    Attributes:
        broken: while True every call raises `LedgerError`.
    """

    rows: dict[str, Session] = field(factory=dict)
    used: dict[tuple[str, str], PodUsage] = field(factory=dict)
    notified_thresholds: dict[str, int] = field(factory=dict)
    broken: bool = False

    async def put(self, session: Session) -> None:
        """Keep this row."""
        self._try()
        self.rows[session.id] = session

    async def put_usage(self, uses: Sequence[PodUsage]) -> None:
        """Keep these uses."""
        self._try()
        self.used.update({(use.session_id, use.id): use for use in uses})

    async def open_sessions(self) -> list[Session]:
        """Those without an end, oldest first."""
        self._try()
        return sorted(
            (row for row in self.rows.values() if row.ended_at is None),
            key=lambda row: (row.asked_at, row.id),
        )

    async def last_ended(self) -> list[Session]:
        """The billed session that ended last, of each pod and provider."""
        self._try()
        return last_ended(self.rows.values())

    async def sessions(
        self, since: datetime, until: datetime, *, before: Session | None = None, limit: int = -1
    ) -> list[Session]:
        """The billed ones that began between, oldest first."""
        self._try()
        end = (until, "") if before is None else (before.began_at, before.id)
        found = [
            row
            for row in self.rows.values()
            if row.started_at is not None and since <= row.started_at < until and (row.began_at, row.id) < end
        ]
        found.sort(key=lambda row: (row.began_at, row.id))
        return found if limit < 0 else found[max(0, len(found) - limit) :]

    async def starts(self, limit: int, *, request_id: str = "", pod: str = "") -> list[Session]:
        """So many of the newest, the newest first; of all, of a request's or of a pod's."""
        self._try()
        rows = sorted(self.rows.values(), key=lambda row: row.id, reverse=True)
        return [row for row in rows if request_id in ("", row.request_id) and pod in ("", row.pod)][:limit]

    async def session(self, session_id: str) -> Session | None:
        """The one with this id."""
        self._try()
        return self.rows.get(session_id)

    async def usage(self, session_id: str) -> list[PodUsage]:
        """The uses of a session, in order."""
        self._try()
        found = (use for use in self.used.values() if use.session_id == session_id)
        return sorted(found, key=lambda use: (use.began_at, use.id))

    async def pods(self) -> Mapping[str, Set[str]]:
        """By provider the pods of its billed sessions."""
        pods: dict[str, set[str]] = {}
        for row in await self.sessions(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
            if row.pod_id is not None:
                pods.setdefault(row.provider, set()).add(row.pod_id)
        return pods

    async def cost_breakdown(self, query: CostQuery) -> CostBreakdown:
        """The costs of a span, added up by an SQLite ledger in memory."""
        self._try()
        with closing(sqlite_ledger.connect(Path(":memory:"))) as database:
            sqlite_ledger.put_rows(database, list(self.rows.values()))
            sqlite_ledger.put_rows(database, list(self.used.values()))
            return sqlite_ledger.cost_breakdown(database, query)

    async def last_notified_threshold(self, month: str) -> int:
        """The highest threshold that was told of this month."""
        self._try()
        return self.notified_thresholds.get(month, 0)

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        """Remember that this threshold was told."""
        self._try()
        self.notified_thresholds[month] = percent

    async def aclose(self) -> None:
        """Nothing is held."""

    def _try(self) -> None:
        if self.broken:
            raise LedgerError("the ledger is broken")


@define
class FakeDebts(PendingStopStore):
    """A store of pending stops in memory."""

    names: frozenset[str] = frozenset()

    def load(self) -> frozenset[str]:
        """What was written last."""
        return self.names

    def save(self, names: Iterable[str]) -> None:
        """Write it down."""
        self.names = frozenset(names)
