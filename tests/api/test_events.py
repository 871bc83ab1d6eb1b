"""The hub of events: what readers are told first, what they may miss, and when they are cut off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from gpugate.api import events
from gpugate.api.events import SseBroadcaster
from gpugate.lifecycle.status import BudgetThresholdCrossed, QueueChanged

Present = Callable[[], Awaitable[Sequence[object]]]


def waiting(number: int) -> QueueChanged:
    return QueueChanged(waiting=number, in_flight=0)


async def nothing() -> Sequence[object]:
    return [{"status": "STOPPED"}]


@pytest.fixture
async def hub():
    hub = SseBroadcaster({})
    yield hub
    await hub.aclose()


@asynccontextmanager
async def reading(hub: SseBroadcaster, present: Present = nothing, last_id: str | None = None):
    """A reader over a real socket; yields a function that gives the next event's fields, None at the end."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await hub.serve(request, {}, present, last_id)

    async with RawTestServer(handle, handler_cancellation=True) as server, aiohttp.ClientSession() as http:
        async with http.get(server.make_url("/")) as response:

            async def following() -> dict[str, str] | None:
                fields: dict[str, str] = {}
                async with asyncio.timeout(5):
                    while line := (await response.content.readline()).decode():
                        if line == "\n":
                            return fields
                        name, _, value = line.rstrip("\n").partition(": ")
                        fields[name] = value
                return None

            yield following
        await hub.aclose()


async def test_news_while_the_present_state_is_asked_for(hub):
    """Is in that state already, so it is not told again behind it."""

    async def busy() -> Sequence[object]:
        hub.on_event(waiting(1))
        return [{"status": "STARTING"}]

    async with reading(hub, busy) as following:
        first = await following()
        hub.on_event(waiting(2))
        second = await following()
    assert ("state", "queue") == (first["event"], second["event"])
    assert '{"pod":"main","waiting":2,"in_flight":0}' == second["data"]
    assert ["1", "2"] == [event["id"].partition("-")[2] for event in (first, second)]


async def test_reader_that_lags(hub, monkeypatch):
    """Is cut off, and comes back with the last id that it saw: nothing is missed, nothing told twice."""
    monkeypatch.setattr(events, "MAX_LAG", 3)
    async with reading(hub) as following:
        await following()
        for number in range(10):
            hub.on_event(waiting(number))
        seen = []
        while (event := await following()) is not None:
            seen.append(event)
    assert 3 <= len(seen) < 10
    async with reading(hub, last_id=seen[-1]["id"]) as following:
        for number in range(len(seen), 10):
            assert f'{{"pod":"main","waiting":{number},"in_flight":0}}' == (await following())["data"]


async def test_too_long_away(hub, monkeypatch):
    """What is not kept any more cannot be resumed: the present state instead."""
    async with reading(hub) as following:
        last = (await following())["id"]
    for number in range(events.MAX_KEPT + 1):
        hub.on_event(waiting(number))
    async with reading(hub, last_id=last) as following:
        assert "state" == (await following())["event"]


async def test_nothing_missed(hub):
    """A reader that is up to date is told nothing until there is news."""
    hub.on_event(waiting(1))
    async with reading(hub) as following:
        last = (await following())["id"]
    async with reading(hub, last_id=last) as following:
        hub.on_event(waiting(2))
        assert '{"pod":"main","waiting":2,"in_flight":0}' == (await following())["data"]


async def test_end(hub):
    """The gateway goes down: a clean end for everybody."""
    async with reading(hub) as following:
        await following()
        await hub.aclose()
        assert await following() is None
    assert set() == hub._readers


async def test_the_budget(hub):
    """The shape that the contract gives it; money is a number."""
    async with reading(hub) as following:
        await following()
        budget = Decimal("20.0")
        hub.on_event(
            BudgetThresholdCrossed(percent=80, spent=Decimal("16.0000004"), budget=budget, month="2026-11")
        )
        told = await following()

    assert "budget" == told["event"]
    assert {"percent": 80, "spent": 16.0, "budget": 20.0, "month": "2026-11"} == json.loads(told["data"])


@pytest.mark.parametrize("number", ["9" * 5000, "0", "-1", "1.0", "٣", "", "2"])
async def test_an_id_that_is_none(hub, number):
    """What was never given out as an id cannot be resumed: the present state instead."""
    hub.on_event(waiting(1))
    async with reading(hub, last_id=f"{hub._boot}-{number}") as following:
        assert "state" == (await following())["event"]
