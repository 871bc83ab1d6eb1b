"""A lifecycle over fake clouds, and the few things that every story about it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from attrs import define, field
from gpugate_testing import virtual_time
from gpugate_testing.fakes import FakeCloud, FakeDebts, FakePod, FakeProvider

from gpugate.core.idle_policy import IdlePolicy
from gpugate.core.policy import Policy, ProviderLimits
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.state_files import IdleHistoryStore
from gpugate.lifecycle.status import (
    EventBus,
    EventListener,
    LifecycleEvent,
    SessionEnded,
    SessionStarted,
    StateChanged,
)
from gpugate.provider_api import Price, Provider

NAMES = ("alpha", "beta")


@define
class Stage:
    """One or two clouds, one pod behind them, and what listeners heard."""

    clouds: list[FakeCloud]
    numbers: dict[str, Any] = field(factory=dict)
    warm_s: float = 0.0
    load_s: float = 0.0
    debts: FakeDebts = field(factory=FakeDebts)
    news: list[LifecycleEvent] = field(factory=list)
    listeners: tuple[EventListener, ...] = ()
    crashes: list[str] = field(factory=list)
    wrap: Callable[[FakeProvider], Provider] = lambda provider: provider
    pod_class: type[FakePod] = FakePod
    idle: IdlePolicy | None = None
    habits: IdleHistoryStore | None = None
    wall: Callable[[], datetime] = lambda: datetime.now(UTC)
    second: tuple[ProviderLimits, ...] = ()
    limits: dict[str, Any] = field(factory=dict)
    pod: FakePod = field(init=False)
    lifecycle: Lifecycle = field(init=False)

    async def __aenter__(self) -> Stage:
        self.pod = self.pod_class(self.clouds[0], self.warm_s, self.load_s)
        names = NAMES[: len(self.clouds)]
        twin = 1 if self.second else None
        self.lifecycle = Lifecycle(
            providers=[
                ConfiguredProvider(name, self.wrap(FakeProvider(cloud)))
                for name, cloud in zip(names, self.clouds, strict=True)
            ]
            + [ConfiguredProvider(limits.name, FakeProvider(self.cloud, slot=1)) for limits in self.second],
            pod=self.pod,
            policy=Policy(
                providers=(
                    *(ProviderLimits(name=name, twin=twin, **self.limits) for name in names),
                    *self.second,
                ),
                **self.numbers,
            ),
            pending_stops=self.debts,
            fallback_price=Price(),
            events=EventBus([*self.listeners, self.news.append]),
            on_crash=lambda name, error: self.crashes.append(f"{name}: {error!r}"),
            random_fraction=lambda: 0.5,
            idle_policy=self.idle,
            idle_history=self.habits,
            wall=self.wall,
            boottime=lambda: self.wall().timestamp(),
        )
        await self.lifecycle.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.lifecycle.close(keep=True, stop_wait_s=0)
        assert self.crashes == []

    @property
    def cloud(self) -> FakeCloud:
        """The first one."""
        return self.clouds[0]

    async def ask(self, takes_s: float = 0.0, *, begin: bool = True, model: str | None = None) -> int:
        """One request, from its arrival to its end; returns the run it was answered by."""
        with self.lifecycle.acquire(model=model) as lease:
            pod = await lease.wait_admitted()
            if begin:
                lease.mark_response_started()
            await asyncio.sleep(takes_s)
            return pod.run_id

    def states(self) -> list[str]:
        """Where the pod's life has been."""
        return [news.now for news in self.news if isinstance(news, StateChanged)]

    def sessions(self) -> list[str]:
        """What the ledger hears."""
        return [
            f"{news.provider} {'opens' if isinstance(news, SessionStarted) else 'closes'}: {news.cause}"
            for news in self.news
            if isinstance(news, SessionStarted | SessionEnded)
        ]


def play(story: Coroutine[Any, Any, None]) -> None:
    """Tell a story in virtual time."""
    virtual_time.run(story)
