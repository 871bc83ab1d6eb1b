"""Who is trusted over https, tried with a real self-signed certificate."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

import pytest
from attrs import evolve

from gpugate.relay.pool import ConnectionPool, UpstreamExchangeError
from gpugate.relay.response_policy import RelayOutcome, ResponseIntercepted, ResponsePolicy
from gpugate.relay.transport import TlsPolicy, context
from tests.certificates import make_certificate
from tests.relay.support import (
    Script,
    Wire,
    as_script,
    chunked,
    counted,
    fake_pod,
    gateway,
    get,
    once,
    streamed_head,
)

OK = counted(b"ok")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("stranger"))


@pytest.mark.parametrize("policy", ["insecure", "sha256:{fingerprint}", "sha256:{FINGERPRINT}", "{path}"])
async def test_trusted(certificate, policy):
    """A policy that names the certificate, or asks for nothing, lets requests through, on one connection."""
    tls = policy.format(
        fingerprint=certificate.fingerprint,
        FINGERPRINT=":".join(certificate.fingerprint[i : i + 2] for i in range(0, 64, 2)).upper(),
        path=certificate.path,
    )
    async with (
        fake_pod(once(OK), secure=certificate.server) as pod,
        gateway(evolve(pod.endpoint, tls=tls)) as gate,
    ):
        client = await gate.client()
        for _ in range(2):
            await client.send(get())
            assert await client.exactly(len(OK)) == OK

        assert pod.connections == 1


@pytest.mark.parametrize("policy", ["system", "sha256:{fingerprint}", "{path}", "/no/such/file"])
async def test_not_trusted(certificate, stranger, policy):
    """A certificate that the policy does not mean gets no byte of the request."""
    heard: list[bytes] = []

    async def script(wire: Wire) -> None:
        heard.append(await wire.reader.read(1))

    tls = policy.format(fingerprint=stranger.fingerprint, path=stranger.path)
    async with (
        fake_pod(script, secure=certificate.server) as pod,
        gateway(evolve(pod.endpoint, tls=tls)) as gate,
    ):
        client = await gate.client()
        await client.send(get())
        gone = await gate.outcome()

        assert isinstance(gone, UpstreamExchangeError)
        assert (gone.kind, gone.connecting) == ("connect" if "such" in policy else "tls", True)
        assert b"".join(heard) == b""
        assert gate.pool.in_use == 0


async def test_plain_server_behind_https():
    """An upstream that does not speak TLS is told as such."""
    async with fake_pod(as_script(OK)) as pod:
        endpoint = evolve(pod.endpoint, url=pod.endpoint.url.replace("http:", "https:"), tls="insecure")
        async with gateway(endpoint, pool=ConnectionPool(endpoint, connect_timeout_s=0.3)) as gate:
            client = await gate.client()
            await client.send(get())

            assert (await gate.outcome()).connecting


async def test_hang_up_over_tls(certificate):
    """A client that is gone takes its TLS connection along as fast as a plain one."""
    begun, left = asyncio.Event(), asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(streamed_head() + chunked(b"x", last=False))
        begun.set()
        await wire.gone()
        left.set()

    async with (
        fake_pod(script, secure=certificate.server) as pod,
        gateway(evolve(pod.endpoint, tls="insecure")) as gate,
    ):
        client = await gate.client()
        await client.send(get())
        await begun.wait()
        client.hang_up()

        async with asyncio.timeout(1):
            await left.wait()
        assert isinstance(await gate.outcome(), asyncio.CancelledError)


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_broken_answer_over_tls(certificate, how):
    """A TLS connection that ends in mid-answer is a loss like any other."""
    sent = streamed_head() + chunked(b"x\n", last=False)
    async with (
        fake_pod(as_script(sent, how), secure=certificate.server) as pod,
        gateway(evolve(pod.endpoint, tls="insecure")) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        assert await client.rest() == sent
        assert (await gate.outcome()).outcome is RelayOutcome.UPSTREAM_LOST


async def test_large_answer_over_tls(certificate):
    """Backpressure works through TLS as well."""
    raw = counted(bytes(range(256)) * 40_000)
    async with (
        fake_pod(once(raw), secure=certificate.server) as pod,
        gateway(evolve(pod.endpoint, tls="insecure")) as gate,
    ):
        client = await gate.client()
        for number in (1, 2):
            await client.send(get())
            await asyncio.sleep(0.05)
            assert await client.exactly(len(raw)) == raw
            assert (await gate.outcome(number)).complete

        assert pod.connections == 1


@pytest.mark.parametrize("text", ["sha256:", "sha256:12", "sha256:" + "g" * 64, ""])
def test_impossible_policy(text):
    """A policy that can never be met is refused when it is read."""
    with pytest.raises(ValueError):
        TlsPolicy.of(text)


def test_context_is_kept():
    """The same policy has one context; only a verifying one checks names."""
    assert context(TlsPolicy.of("system")) is context(TlsPolicy.of("system"))
    assert context(TlsPolicy.of("system")).check_hostname
    assert not context(TlsPolicy.of("insecure")).check_hostname


UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nall of it"


def ending_script(how: str, answer: bytes) -> Script:
    """Send `answer`, then close with a close_notify, or with nothing but a FIN."""

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(answer)
        if how == "fin":
            # By a second descriptor, as transports let nobody shut their own socket down.
            with socket.socket(fileno=os.dup(wire.writer.get_extra_info("socket").fileno())) as same:
                same.shutdown(socket.SHUT_WR)
            await wire.gone()

    return script


@pytest.mark.parametrize(
    ("how", "ending"), [("close_notify", RelayOutcome.COMPLETE), ("fin", RelayOutcome.UPSTREAM_LOST)]
)
@pytest.mark.parametrize("size", [0, 3_000_000], ids=["small", "larger than every buffer"])
async def test_answer_that_ends_by_closing(certificate, how, ending, size):
    """An answer without a length is whole when close_notify came, and cut when only a FIN did."""
    answer = UNTIL_CLOSE + b"." * size
    async with (
        fake_pod(ending_script(how, answer), secure=certificate.server) as pod,
        gateway(evolve(pod.endpoint, tls="insecure")) as gate,
    ):
        client = await gate.client(receive_buffer=16 * 1024 if size else None)
        await client.send(get())
        if size:
            await asyncio.sleep(0.1)  # the upstream is paused when its end arrives

        if ending is RelayOutcome.COMPLETE:
            assert await client.rest() == answer
        else:
            with suppress(ConnectionResetError):  # a clean close would look like the end of the answer
                await client.rest()
                raise AssertionError("the client saw a clean end")
        assert (await gate.outcome()).outcome is ending


@pytest.mark.parametrize(("how", "complete"), [("close_notify", True), ("fin", False)])
async def test_declined_answer_that_ends_by_closing(certificate, how, complete):
    """What is collected instead of passed on is told apart in the same way."""
    async with (
        fake_pod(ending_script(how, UNTIL_CLOSE), secure=certificate.server) as pod,
        gateway(
            evolve(pod.endpoint, tls="insecure"), answer=lambda: ResponsePolicy(intercept=lambda head: True)
        ) as gate,
    ):
        client = await gate.client()
        await client.send(get())
        declined = await gate.outcome()

        assert isinstance(declined, ResponseIntercepted)
        assert (declined.body, declined.complete) == (b"all of it", complete)


@pytest.mark.parametrize("how", ["close_notify", "fin"])
async def test_counted_answer_needs_no_close_notify(certificate, how):
    """An answer that tells its length is whole however its connection ends afterwards."""
    async with (
        fake_pod(ending_script(how, OK), secure=certificate.server) as pod,
        gateway(evolve(pod.endpoint, tls="insecure")) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        assert await client.exactly(len(OK)) == OK
        assert (await gate.outcome()).complete
