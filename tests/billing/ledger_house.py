"""Gateways over one ledger and one set of clouds, ended as they should be or killed, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from attrs import define, field
from gpugate_testing.fakes import FakeCloud, FakeDebts, FakePod, FakeProvider, last_ended
from gpugate_testing.virtual_time import run

from gpugate.billing.model import PodUsage, Session
from gpugate.billing.recorder import SessionRecorder
from gpugate.core.policy import Policy, ProviderLimits
from gpugate.core.states import Status
from gpugate.errors import LedgerError
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.status import EventBus, LifecycleEvent, ProviderProblem
from gpugate.provider_api import Price

BEGINNING = datetime(2026, 11, 21, 12, tzinfo=UTC)
IDLE_S = 300.0


@define
class Book:
    """A ledger in memory: what is in `rows` is on disk. `broken` is a disk that takes nothing.

    `takes_s`: how long one write of a row lasts.
    """

    rows: dict[str, Session] = field(factory=dict)
    used: dict[tuple[str, str], PodUsage] = field(factory=dict)
    log: list[str] = field(factory=list)
    broken: bool = False
    takes_s: float = 0.0

    async def put(self, session: Session) -> None:
        await asyncio.sleep(self.takes_s)
        if self.broken:
            raise LedgerError("the disk is full")
        self.rows[session.id] = session
        self.log.append(f"row of {session.provider}")

    async def put_usage(self, uses: Any) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise LedgerError("the disk is full")
        self.used.update({(use.session_id, use.id): use for use in uses})

    async def open_sessions(self) -> list[Session]:
        if self.broken:
            raise LedgerError("the disk is full")
        return [row for row in self.rows.values() if row.ended_at is None]

    async def last_ended(self) -> list[Session]:
        return last_ended(self.rows.values())

    async def aclose(self) -> None:
        """Nothing to let go."""


@define
class House:
    """Clouds and a book that outlive their gateways; a calendar that can be set."""

    clouds: list[FakeCloud]
    book: Book = field(factory=Book)
    debts: FakeDebts = field(factory=FakeDebts)
    numbers: dict[str, Any] = field(factory=dict)
    set_back: timedelta = timedelta(0)
    boot: str = "boot-1"
    told: list[str] = field(factory=list)
    heard: list[str] = field(factory=list)
    pod: str = "main"
    pods: tuple[str, ...] = ()

    def hear(self, news: LifecycleEvent) -> None:
        """Keep what is told of providers."""
        if isinstance(news, ProviderProblem):
            self.heard.append(news.message)

    def wall(self) -> datetime:
        return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time()) - self.set_back

    async def gateway(self) -> tuple[Lifecycle, SessionRecorder]:
        """A new gateway over the same state."""
        books = SessionRecorder(
            self.book,  # type: ignore[arg-type]
            pod=self.pod,
            pods=self.pods or (self.pod,),
            fallback=Price(Decimal("0.5")),
            wall=self.wall,
            boottime=asyncio.get_running_loop().time,
            boot_id=self.boot,
            alarm=self.told.append,
        )
        names = ("alpha", "beta")[: len(self.clouds)]
        await books.open(names)
        lifecycle = Lifecycle(
            providers=[
                ConfiguredProvider(name, FakeProvider(cloud))
                for name, cloud in zip(names, self.clouds, strict=True)
            ],
            pod=FakePod(self.clouds[-1]),
            policy=Policy(
                providers=tuple(ProviderLimits(name=name) for name in names),
                **{"idle_timeout": IDLE_S, "preload": "none", **self.numbers},
            ),
            pending_stops=self.debts,
            fallback_price=Price(Decimal("0.5")),
            events=EventBus([books.on_event, self.hear]),
            random_fraction=lambda: 0.5,
            wall=self.wall,
            recorder=books,
            boottime=asyncio.get_running_loop().time,
        )
        await lifecycle.open()
        return lifecycle, books

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Lifecycle]:
        """A gateway that ends as it should, and keeps the pod."""
        lifecycle, books = await self.gateway()
        yield lifecycle
        await lifecycle.close(keep=True, stop_wait_s=0)
        await books.aclose()

    @asynccontextmanager
    async def crashes(self) -> AsyncIterator[Lifecycle]:
        """A gateway that is gone at the end of the block, and has written nothing more."""
        lifecycle, books = await self.gateway()
        yield lifecycle
        books._writer.cancel()
        keep, self.book.broken = self.book.broken, True
        debts, self.debts = self.debts, FakeDebts(self.debts.names)
        await lifecycle.close(keep=True, stop_wait_s=0)
        self.book.broken = keep
        del debts

    @property
    def rows(self) -> list[Session]:
        return sorted(self.book.rows.values(), key=lambda row: row.id)


async def ask(lifecycle: Lifecycle, takes_s: float = 10.0, user: str = "ann", name: str = "r-1") -> None:
    with lifecycle.acquire(user=user, request_id=name) as lease:
        await lease.wait_admitted()
        lease.mark_response_started()
        await asyncio.sleep(takes_s)


async def off(lifecycle: Lifecycle) -> None:
    while lifecycle.current_status is not Status.STOPPED:
        await asyncio.sleep(1)
    await asyncio.sleep(5)  # the writer


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run(story())


def seconds(row: Session) -> float:
    assert row.ended_at is not None
    return (row.ended_at - row.began_at).total_seconds()
