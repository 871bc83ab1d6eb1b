"""Death of a gateway at one instant among simulated clouds: its disk stays as it is, nothing leaves it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime, tzinfo
from pathlib import Path
from typing import NoReturn

import aiohttp
import attrs
from aiohttp import web
from attrs import define, field
from gpugate_testing.clouds import Cloud
from gpugate_testing.clouds.cloud import Operation

from gpugate import app, clock, pod_builder
from gpugate.billing.model import Session
from gpugate.billing.sqlite_ledger import SqliteLedger
from gpugate.lifecycle.status import LifecycleEvent, StateChanged
from gpugate.tasks import spawn
from tests.e2e.clouds import Town


@define
class Mortal:
    """The gateways of a town, of which the first dies.

    What is left of the dead one is on disk as a copy of that instant: what it writes while it is taken apart
    reaches nobody, and so do its calls, as its connections are closed.
    """

    town: Town
    dead: asyncio.Event = field(factory=asyncio.Event)
    clients: list[asyncio.Task[None]] = field(factory=list)
    _session: aiohttp.ClientSession = field(init=False)

    async def open(self) -> None:
        """A gateway with all its clocks in the clouds' time."""
        town, make = self.town, app._session

        class Calendar:
            @staticmethod
            def now(zone: tzinfo) -> datetime:
                return town.wall().astimezone(zone)

        def session() -> aiohttp.ClientSession:
            self._session = make()
            return self._session

        with town.patch.context() as patch:
            patch.setattr(app, "_session", session)
            town.patch.setattr(clock, "datetime", Calendar)
            town.patch.setattr(pod_builder, "boottime", town.runpod.clock.now)
            await town.open()

    def die(self) -> None:
        """Now; once."""
        if self.dead.is_set():
            return
        self.dead.set()
        shutil.copytree(self.town.state, self._left, ignore=shutil.ignore_patterns("*-shm"))
        connector = self._session.connector
        assert connector is not None

        async def nowhere(*_: object) -> NoReturn:
            raise aiohttp.ClientConnectionError("dead")

        self.town.patch.setattr(connector, "connect", nowhere)

    @property
    def _left(self) -> Path:
        return self.town.state.with_name(f"{self.town.state.name}-left")

    async def bury(self) -> None:
        """Take the dead one apart; the next finds what it left."""
        gateway = self.town.gateway
        server = attrs.evolve(gateway.settings.server, on_exit="keep", stop_wait=0.0)
        gateway.settings = attrs.evolve(gateway.settings, server=server)
        await self.town.close()
        await asyncio.gather(*self.clients)
        self.town.state = self._left

    def ask(self, pod: str = "") -> None:
        """Have a client ask; that it is cut off is its fate."""

        async def chat() -> None:
            with suppress(aiohttp.ClientError):
                await self.town.chat(pod)

        self.clients.append(spawn(chat(), "test:client"))

    # --- when ---------------------------------------------------------------------------------

    def at_call(self, cloud: Cloud, names: Collection[str], *, done: bool, after: str = "") -> None:
        """As one of these calls reaches the cloud, or has been done and its answer is withheld.

        `after`: only once this one has been seen.
        """
        answer, seen = cloud._answer, {""}

        async def watched(operation: Operation, request: web.Request) -> web.StreamResponse:
            due = operation.name in names and bool({after, f"{after}?"} & seen)
            if due and not done:
                self.die()
            response = await answer(operation, request)
            if due and done:
                self.die()
            seen.add("stop" if operation.name in ("stop", "delete") else operation.name)
            return response

        self.town.patch.setattr(cloud, "_answer", watched)

    def at_write(self, due: Callable[[Session], bool], *, done: bool) -> None:
        """As such a row is about to be written, or is on disk."""
        put = SqliteLedger.put

        async def watched(ledger: SqliteLedger, row: Session) -> None:
            if due(row) and not done:
                self.die()
            await put(ledger, row)
            if due(row) and done:
                self.die()

        self.town.patch.setattr(SqliteLedger, "put", watched)

    def at_news(self, due: Callable[[LifecycleEvent], bool], later_s: float | None = None) -> None:
        """As the lifecycle tells such news, or so much later."""

        def hear(news: LifecycleEvent) -> None:
            if not due(news):
                return
            if later_s is None:
                self.die()
            else:
                asyncio.get_running_loop().call_later(later_s, self.die)

        self.town.gateway.lifecycle._events.subscribe(hear)

    def at_state(self, name: str, later_s: float | None = None) -> None:
        """As the machine enters this state, or so much later."""
        self.at_news(lambda news: isinstance(news, StateChanged) and news.now == name, later_s)
