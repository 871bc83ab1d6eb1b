"""A pod's part of the gateway in the simulation: the real lifecycle, killed and restarted at random."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from random import Random

from attrs import define, evolve, field
from gpugate_testing.fakes import FakePod

from gpugate.billing.recorder import SessionRecorder
from gpugate.core.idle_policy import IdleHistory, IdlePolicy
from gpugate.core.policy import Policy, ProviderLimits
from gpugate.core.states import Status
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.state_files import IdleHistoryStore, PendingStopStore
from gpugate.lifecycle.status import EventBus, LifecycleEvent, SessionEnded, SessionStarted, StateChanged
from gpugate.provider_api import MAIN_POD, Price
from gpugate.tasks import spawn

from .cloud import Rented, StormyCloud, wall
from .record import Record, RecordOf
from .spans import Span

RECONCILE_S = 600.0
"""Twenty times the default, so that a month is a minute; a stray pod is found that much later."""

PACE = ProviderLimits(name="cloud", min_poll_s=2.0, min_probe_s=1.0)
"""As often as a cloud likes to be asked while a pod starts or stops."""

WARM_S = 15.0
"""From a pod that runs to its first answer."""

CAPACITY_WAIT_S = 60.0


@define
class Books:
    """What was heard of all gateways, one after the other.

    Attributes:
        causes: why sessions began, without those that only went on after a crash.
        told: what the sessions cost by the gateway's word, in money.
        asleep: when a gateway was up and said STOPPED.
    """

    causes: Counter[str] = field(factory=Counter)
    told: Decimal = Decimal(0)
    asleep: list[Span] = field(factory=list)
    _asleep_since: float | None = None

    def on_event(self, news: LifecycleEvent) -> None:
        """Listen to the lifecycle."""
        match news:
            case SessionStarted(cause=cause):
                self.causes[cause] += 1
            case SessionEnded(cost=cost):
                self.told += cost or 0
            case StateChanged(status=status):
                self._say(status is Status.STOPPED)

    def end(self) -> None:
        """The gateway is gone."""
        self._say(False)

    def _say(self, asleep: bool) -> None:
        now = asyncio.get_running_loop().time()
        if self._asleep_since is not None:
            self.asleep.append((self._asleep_since, now))
        self._asleep_since = now if asleep else None


@define
class Disk:
    """The state that survives a gateway."""

    debts: frozenset[str] = frozenset()
    record: Record = field(factory=Record)
    habits: IdleHistory = field(factory=IdleHistory)
    saved_at: float = 0.0


@define
class Access:
    """One gateway's hold on the world, until it dies."""

    disk: Disk
    books: Books
    dead: bool = False

    def on_event(self, news: LifecycleEvent) -> None:
        """Listen to the lifecycle."""
        if not self.dead:
            self.books.on_event(news)


@define
class HabitsOf(IdleHistoryStore):
    """The habits on the disk."""

    access: Access

    def load(self) -> IdleHistory:
        """What was learnt, as old as it is by now."""
        disk = self.access.disk
        gone = asyncio.get_running_loop().time() - disk.saved_at
        return evolve(disk.habits, last_demand_ago_s=disk.habits.last_demand_ago_s + gone)

    def save(self, habits: IdleHistory) -> None:
        """Store it."""
        disk = self.access.disk
        if not self.access.dead:
            disk.habits, disk.saved_at = habits, asyncio.get_running_loop().time()


@define
class DebtsOf(PendingStopStore):
    """The unproved stops on the disk."""

    access: Access

    def load(self) -> frozenset[str]:
        """Return what the last gateway stored."""
        return self.access.disk.debts

    def save(self, names: Iterable[str]) -> None:
        """Store it."""
        if not self.access.dead:
            self.access.disk.debts = frozenset(names)


@define
class Gateway:
    """Whatever gateway there is, as far as one pod sees it; several pods share the ledger alone.

    Attributes:
        pods: the names of all pods.
        lifecycle: None while the gateway is down.
    """

    cloud: StormyCloud
    idle_timeout_s: float
    make_idle: Callable[[float], IdlePolicy]
    dice: Random
    pod: str = MAIN_POD
    pods: Sequence[str] = (MAIN_POD,)
    books: Books = field(factory=Books)
    disk: Disk = field(factory=Disk)
    lifecycle: Lifecycle | None = None
    crashes: list[float] = field(factory=list)
    _provider: Rented = field(init=False)
    _access: Access = field(init=False)
    _ledger: SessionRecorder = field(init=False)

    async def open(self) -> None:
        """Come up, with what is on the disk."""
        self._provider, self._access = Rented(self.cloud), Access(self.disk, self.books)
        access, steady = self._access, asyncio.get_running_loop().time
        self._ledger = SessionRecorder(
            RecordOf(self.disk.record, lambda: access.dead),
            pod=self.pod,
            pods=self.pods,
            fallback=Price(),
            wall=wall,
            boottime=steady,
            boot_id="the machine never restarts",
            flush_s=RECONCILE_S,
            alarm=_unexpected,
        )
        await self._ledger.open(["cloud"])
        self.lifecycle = Lifecycle(
            providers=[ConfiguredProvider("cloud", self._provider)],
            pod=FakePod(self.cloud, warm_s=WARM_S),
            policy=Policy(
                providers=(PACE,),
                idle_timeout=self.idle_timeout_s,
                reconcile_interval=RECONCILE_S,
                capacity_wait=CAPACITY_WAIT_S,
            ),
            pending_stops=DebtsOf(self._access),
            fallback_price=Price(),
            events=EventBus([self._ledger.on_event, self._access.on_event]),
            random_fraction=self.dice.random,
            wall=wall,
            idle_policy=self.make_idle(self.idle_timeout_s),
            idle_history=HabitsOf(self._access),
            recorder=self._ledger,
            boottime=steady,
        )
        await self.lifecycle.open()

    async def crash(self, down_s: float) -> None:
        """Die: nothing that it does from here on reaches the cloud or the disk. Come up after `down_s`."""
        lifecycle, ledger = self.lifecycle, self._ledger
        if lifecycle is None:
            return
        self.crashes.append(asyncio.get_running_loop().time())
        self.lifecycle = None
        self._provider.dead = self._access.dead = True
        self.books.end()
        dying = spawn(lifecycle.close(keep=True, stop_wait_s=0), "simulation:dying")
        await asyncio.sleep(0)
        lifecycle.abort_in_flight()
        await dying
        await ledger.aclose()
        await asyncio.sleep(down_s)
        await self.open()

    async def close(self) -> None:
        """The month is over."""
        if self.lifecycle is not None:
            await self.lifecycle.close(keep=True, stop_wait_s=0)
            await self._ledger.aclose()
        self.books.end()


def _unexpected(trouble: str) -> None:
    raise RuntimeError(trouble)
