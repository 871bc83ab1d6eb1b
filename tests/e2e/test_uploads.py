"""Uploads of blobs, which stream: while they wait, on their way, and when somebody leaves."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from hashlib import sha256

import pytest
from gpugate_demo.faults import Hang

from gpugate.relay.transport import reset
from tests.e2e.support import House, request, wire_to
from tests.e2e.test_intake import BLOB, MIB


@pytest.mark.parametrize("temperature", ["cold", "warm"])
async def test_upload(house: House, temperature):
    """More than `max_body` streams through, after 100 Continue, with flat memory."""
    if temperature == "warm":
        await house.warm()
    piece = os.urandom(MIB)
    digest = sha256()

    async def content():
        for _ in range(65):
            digest.update(piece)
            yield piece

    for _ in range(65):
        digest.update(piece)
    name, digest = digest.hexdigest(), sha256()
    answer = await house.ask("POST", f"/api/blobs/sha256:{name}", data=content(), expect100=True)
    assert 201 == answer.status, answer.body
    (seen,) = [call for call in house.ollama.calls(f"/api/blobs/sha256:{name}") if call.method == "POST"]
    assert 65 * MIB == seen.body_size
    assert 200 == (await house.ask("HEAD", f"/api/blobs/sha256:{name}")).status


async def test_no_byte_before_the_pod_is_there(house: House):
    """While it waits, the gateway takes no more than a little of the upload."""
    house.cloud.boot_s = 30
    async with wire_to(house.port) as wire:
        head = {**house.auth, "Content-Length": str(200 * MIB)}
        wire.send(request("POST", BLOB, headers=head))
        await house.waiting(1)
        taken = 0
        with suppress(TimeoutError):
            while taken < 200:
                wire.send(bytes(MIB))
                async with asyncio.timeout(0.1):
                    await wire.writer.drain()
                taken += 1
        assert taken < 40


@pytest.mark.parametrize(("size", "how"), [(1, "close"), (MIB, "close"), (8 * MIB, "reset")])
async def test_left_while_it_waits(house_on_both: House, size, how):
    """An upload that is held unread leaves the queue with its client, however much of it has come."""
    house = house_on_both
    house.cloud.boot_s = 30
    async with wire_to(house.port) as wire:
        wire.send(request("POST", BLOB, headers={**house.auth, "Content-Length": str(9 * MIB)}))
        wire.send(bytes(size))
        await house.waiting(1)
        await asyncio.sleep(0.05)  # the gateway has stopped reading by now
        if how == "reset":
            reset(wire.writer.transport)
        wire.abort()
        await house.until(lambda: not house.gateway.lifecycle._machine.queue.waiting)


async def test_left_while_the_pod_takes_nothing(house_on_both: House):
    """An upload that is stuck on its way to the pod ends with its client."""
    house = house_on_both
    await house.warm()
    house.ollama.faults.add(BLOB, Hang())
    async with wire_to(house.port) as wire:
        wire.send(request("POST", BLOB, headers={**house.auth, "Content-Length": str(99 * MIB)}))
        with suppress(TimeoutError):
            while True:
                wire.send(bytes(MIB))
                async with asyncio.timeout(0.1):
                    await wire.writer.drain()
        await house.until(lambda: house.in_flight == 1)
        reset(wire.writer.transport)
        await house.until(lambda: house.in_flight == 0)


async def test_told_to_send_when_the_pod_is_there(house: House):
    """Who asks first is told to go on once the upload will be read, not while it waits."""
    house.cloud.boot_s = 0.2
    async with wire_to(house.port) as wire:
        head = {**house.auth, "Content-Length": "4", "Expect": "100-continue"}
        wire.send(request("POST", BLOB, headers=head))
        await house.waiting(1)
        assert b" 100 " in await wire.head()
        assert 0 == len(house.gateway.lifecycle._machine.queue.waiting)
        wire.send(b"blob")
        assert b" 100 " not in await wire.head()


async def test_refused_by_the_pod_early(house: House):
    """An answer in the middle of the upload reaches the client, and the connection ends."""
    await house.warm()
    async with wire_to(house.port) as wire:
        head = {**house.auth, "Content-Length": str(100)}
        wire.send(request("POST", "/api/blobs/nonsense", headers=head) + b"x" * 100)
        status, _ = await wire.answer()
    assert 400 <= status < 500


async def test_pod_lost_in_mid_upload(house: House):
    """An error, no hang, no second half sent as if it were the whole."""
    await house.warm()
    async with wire_to(house.port) as wire:
        wire.send(request("POST", BLOB, headers={**house.auth, "Content-Length": str(8 * MIB)}))
        wire.send(bytes(MIB))
        await house.ollama.until(lambda: len(house.ollama.calls(BLOB)) == 1)
        for connection in list(house.ollama._web.connections):
            connection.transport.abort()
        status, body = await wire.answer()
    assert status in (502, 503), body


async def test_client_gone_in_mid_upload(house: House):
    """The pod hears of it at once."""
    await house.warm()
    async with wire_to(house.port) as wire:
        wire.send(request("POST", BLOB, headers={**house.auth, "Content-Length": str(8 * MIB)}))
        wire.send(bytes(MIB))
        await house.ollama.until(lambda: len(house.ollama.calls(BLOB)) == 1)
        wire.abort()
        await house.ollama.until(lambda: house.ollama.in_flight == 0)
    await house.until(lambda: house.in_flight == 0)
