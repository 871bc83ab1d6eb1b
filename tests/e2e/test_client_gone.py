"""Clients that leave: the upstream connection is closed at once, in every phase."""

from __future__ import annotations

import asyncio
import json

from gpugate_demo.faults import Hang, HangAfter

from tests.e2e.support import GENERATE, House, chat_body, request, wire_to


async def test_before_the_first_byte(house_on_both: House):
    house = house_on_both
    await house.warm()
    house.ollama.faults.add("/api/chat", Hang())
    async with wire_to(house.port) as wire:
        wire.send(request("POST", "/api/chat", chat_body()))
        await house.ollama.until(lambda: house.ollama.in_flight == 1)
        wire.abort()
        await house.ollama.until(lambda: house.ollama.calls("/api/chat")[0].cancelled)
    await house.until(lambda: house.in_flight == 0)


async def test_in_mid_stream(house_on_both: House):
    house = house_on_both
    await house.warm()
    house.ollama.faults.add("/api/chat", HangAfter(2))
    async with wire_to(house.port) as wire:
        wire.send(request("POST", "/api/chat", chat_body()))
        await wire.head()
        wire.abort()
        await house.ollama.until(lambda: house.ollama.calls("/api/chat")[0].cancelled)
    await house.until(lambda: house.in_flight == 0)


async def test_in_metadata(house_on_both: House):
    house = house_on_both
    await house.warm()
    await house.learned()
    house.ollama.faults.add("/api/ps", Hang())
    async with wire_to(house.port) as wire:
        wire.send(request("GET", "/api/ps"))
        await house.ollama.until(lambda: house.ollama.in_flight == 1)
        wire.abort()
        await house.ollama.until(lambda: house.ollama.calls("/api/ps")[-1].cancelled)


async def test_with_a_large_body(house_on_both: House):
    house = house_on_both
    await house.warm()
    house.ollama.faults.add("/api/generate", Hang())
    async with wire_to(house.port) as wire:
        body = json.dumps({**GENERATE, "prompt": "x" * 1_000_000}).encode()
        wire.send(request("POST", "/api/generate", body))
        await house.ollama.until(lambda: house.ollama.in_flight == 1)
        wire.abort()
        await house.ollama.until(lambda: house.ollama.calls("/api/generate")[-1].cancelled)


async def test_during_the_start(house_on_both: House):
    """The start goes on or is given up, but the pod does not stay on for nobody for ever."""
    house = house_on_both
    async with wire_to(house.port) as wire:
        wire.send(request("POST", "/api/chat", chat_body()))
        await house.until(lambda: house.cloud.starts == 1)
        wire.abort()
        await house.waiting(0)
    assert 200 == (await house.chat()).status
    assert 1 == house.cloud.starts


async def test_while_the_body_is_sent(house_on_both: House):
    """Half a body wakes nothing."""
    house = house_on_both
    async with wire_to(house.port) as wire:
        wire.send(request("POST", "/api/chat", chat_body())[:-10])
        await asyncio.sleep(0.05)
        wire.abort()
    await asyncio.sleep(0.05)
    assert 0 == house.cloud.starts
