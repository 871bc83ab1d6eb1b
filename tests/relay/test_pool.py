"""The pool: what is kept, for how long, and what happens when it is closed."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gpugate.provider_api import Endpoint
from gpugate.relay.pool import LARGE_READ, ConnectionPool, Upstream, UpstreamExchangeError
from tests.relay.support import Wire, counted, fake_pod, gateway, get, once, streamed_head

OK = counted(b"ok")


async def ask(gate, number: int) -> None:
    client = await gate.client()
    await client.send(get())
    assert await client.exactly(len(OK)) == OK
    await gate.outcome(number)


async def test_last_in_first_out():
    """The connection used last is lent first, so that the others may grow old."""
    async with fake_pod(once(OK)) as pod:
        pool = ConnectionPool(pod.endpoint)
        first, second = await pool.connect(), await pool.connect()
        first.release()
        second.release()

        assert pool.acquire_idle() is second
        assert (pool.idle, pool.in_use) == (1, 1)
        assert pool.acquire_idle() is first
        assert pool.acquire_idle() is None
        pool.abort()


async def test_idle_connections_are_closed():
    """Who is idle for too long goes, the younger ones later."""
    async with fake_pod(once(OK)) as pod:
        pool = ConnectionPool(pod.endpoint, max_idle_s=0.1)
        first, second = await pool.connect(), await pool.connect()
        first.release()
        await asyncio.sleep(0.06)
        second.release()
        await asyncio.sleep(0.06)
        assert (pool.idle, first.closed, second.closed) == (1, True, False)
        await asyncio.sleep(0.1)

        assert (pool.idle, pool.in_use) == (0, 0)


async def test_idle_connection_that_the_upstream_closes():
    """A connection closed in peace is dropped, and the next request does not notice."""

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(OK)

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        for number in (1, 2):
            await ask(gate, number)
            await asyncio.sleep(0.02)

        assert (gate.pool.idle, gate.pool.in_use, pod.connections) == (0, 0, 2)


async def test_closed_pool_lets_exchanges_end():
    """A closed pool lends no more, but what runs comes to its end."""
    go = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        await go.wait()
        await wire.send(OK)
        await wire.gone()

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get())
        while not gate.pool.in_use:
            await asyncio.sleep(0.01)
        gate.pool.close()
        go.set()

        assert await client.exactly(len(OK)) == OK
        assert (await gate.outcome()).complete
        assert (gate.pool.closed, gate.pool.idle, gate.pool.in_use) == (True, 0, 0)
        with pytest.raises(UpstreamExchangeError):
            await gate.pool.connect()


async def test_closing_closes_what_is_idle():
    """Nothing idle outlives its pool."""
    left = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.gone()
        left.set()

    async with fake_pod(script) as pod:
        pool = ConnectionPool(pod.endpoint)
        (await pool.connect()).release()
        pool.close()
        async with asyncio.timeout(1):
            await left.wait()

        assert pool.acquire_idle() is None


async def test_closed_while_connecting():
    """A connection that comes about after the end is not lent."""
    async with fake_pod(once(OK)) as pod:
        pool = ConnectionPool(pod.endpoint)
        connecting = asyncio.ensure_future(pool.connect())
        await asyncio.sleep(0)
        pool.close()

        with pytest.raises(UpstreamExchangeError):
            await connecting
        assert pool.in_use == 0


class Reads(asyncio.Transport):
    """A transport that only knows whether it reads."""

    reading = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        """A socket that takes no option, as of a peer that is gone."""
        closed = socket.socket()
        closed.close()
        return closed

    def pause_reading(self) -> None:
        """Read no more."""
        self.reading = False

    def resume_reading(self) -> None:
        """Read again."""
        self.reading = True


class Takes:
    """A listener that may pause its connection while it takes bytes."""

    def __init__(self, upstream: Upstream, pauses: bool) -> None:
        self.upstream = upstream
        self.pauses = pauses

    def data_received(self, data: bytes) -> None:
        """Take the bytes."""
        if self.pauses:
            self.upstream.pause_reading()

    def lost(self, *, ended: bool) -> None:
        """The connection is no more."""


@pytest.mark.parametrize("pauses", [False, True])
async def test_others_have_their_turn_after_a_large_read(pauses):
    """Then it is read on, unless its listener has paused it."""
    upstream, transport = Upstream(ConnectionPool(Endpoint("http://127.0.0.1:1"))), Reads()
    upstream.connection_made(transport)
    upstream.attach_listener(Takes(upstream, pauses))
    upstream.data_received(b"x" * (LARGE_READ - 1))
    assert pauses is not transport.reading
    upstream.resume_reading()
    upstream.data_received(b"x" * LARGE_READ)
    assert not transport.reading
    await asyncio.sleep(0)
    assert pauses is not transport.reading
    upstream.resume_reading()
    assert transport.reading


async def test_a_listener_that_resumes_during_the_turn_of_others():
    """Does not take it from them."""
    upstream, transport = Upstream(ConnectionPool(Endpoint("http://127.0.0.1:1"))), Reads()
    upstream.connection_made(transport)
    upstream.attach_listener(Takes(upstream, False))
    upstream.data_received(b"x" * LARGE_READ)
    upstream.pause_reading()
    upstream.resume_reading()
    assert not transport.reading
    await asyncio.sleep(0)
    assert transport.reading


async def test_many_at_once():
    """As many connections as are asked for; all of them come back."""
    async with fake_pod(once(OK)) as pod, gateway(pod.endpoint) as gate:
        async with asyncio.TaskGroup() as group:
            for number in range(30):
                group.create_task(ask(gate, number + 1))

        assert gate.pool.in_use == 0
        assert gate.pool.idle == pod.connections <= 30


async def test_dead_peers_are_probed():
    """Each connection is probed when silent, and sends small requests at once."""
    async with fake_pod(once(OK)) as pod:
        pool = ConnectionPool(pod.endpoint)
        sock = (await pool.connect()).transport.get_extra_info("socket")
        options = [
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        ]
        pool.abort()

        assert [bool(options[0]), bool(options[1]), *options[2:]] == [True, True, 30, 10, 3]


class Unlucky(ConnectionPool):
    """Its connections are lost between their making and their lending."""

    async def connect(self) -> Upstream:
        upstream = await super().connect()
        upstream.transport.abort()
        while not upstream.closed:
            await asyncio.sleep(0)
        return upstream


async def test_connection_lost_before_it_is_lent():
    """Who gets a connection that is lost already is told, instead of waiting for ever."""
    async with fake_pod(once(OK)) as pod, gateway(pod.endpoint, pool=Unlucky(pod.endpoint)) as gate:
        client = await gate.client()
        await client.send(get())

        assert (await gate.outcome()).kind == "closed"


async def test_upstream_that_talks_unasked():
    """A connection that says something while idle can serve nobody."""
    talk = asyncio.Event()

    async def script(wire: Wire) -> None:
        await talk.wait()
        await wire.send(streamed_head())
        await wire.gone()

    async with fake_pod(script) as pod:
        pool = ConnectionPool(pod.endpoint)
        upstream = await pool.connect()
        upstream.release()
        talk.set()
        await asyncio.sleep(0.02)

        assert (pool.idle, upstream.closed) == (0, True)


@pytest.mark.parametrize("endpoint", [Endpoint("ftp://x"), Endpoint("http://x", tls="sha256:1")])
def test_impossible_endpoint(endpoint):
    """An endpoint that cannot be is refused when its pool is made."""
    with pytest.raises(ValueError):
        ConnectionPool(endpoint)


def test_what_is_gone():
    """Only what never reached the upstream counts as connecting."""
    whys = ("connect", "tls", "timeout", "closed", "garbage")

    assert [UpstreamExchangeError(why).connecting for why in whys] == [True, True, True, False, False]
