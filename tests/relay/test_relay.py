"""The relay between a raw client and a scripted upstream, byte for byte."""

from __future__ import annotations

import asyncio
import gzip
import random

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol

from gpugate.provider_api import Endpoint
from gpugate.relay.pool import UpstreamExchangeError
from gpugate.relay.relay import PacedBody, Relay
from gpugate.relay.response_policy import CapturedBody, RelayOutcome, ResponsePolicy
from tests.relay.support import (
    Wire,
    as_script,
    chunked,
    counted,
    fake_pod,
    gateway,
    get,
    once,
    post,
    streamed_head,
)

LINE = b'{"message":{"content":"hello"},"done":false}\n'


async def test_small_get():
    """A counted answer arrives with the upstream's own bytes, and both connections live on."""
    answer = counted(b'{"models":[]}', "Content-Type: application/json", "X-Odd-CASE:  kept ")
    async with fake_pod(once(answer)) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        for number in (1, 2):
            await client.send(get())
            assert await client.exactly(len(answer)) == answer
            outcome = await gate.outcome(number)
            assert (outcome.status, outcome.outcome, outcome.bytes_sent) == (
                200,
                RelayOutcome.COMPLETE,
                len(answer),
            )

        assert pod.connections == 1


@pytest.mark.parametrize("seed", range(12))
async def test_stream_in_random_pieces(seed):
    """However the upstream's bytes are cut on the wire, the client gets just these."""
    dice = random.Random(seed)
    pieces = [dice.randbytes(dice.choice((1, 2, 5, 100, 3000))) for _ in range(30)]
    raw = streamed_head() + chunked(*pieces, last=False) + b"0;x=1\r\nX-Sum: 1\r\n\r\n"

    async def script(wire: Wire) -> None:
        while True:
            await wire.head()
            at = 0
            while at < len(raw):
                step = dice.choice((1, 2, 3, 50, 5000))
                await wire.send(raw[at : at + step])
                at += step
                await asyncio.sleep(0)

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        for _ in range(2):
            await client.send(get())
            assert await client.exactly(len(raw)) == raw

        assert pod.connections == 1


async def test_chunks_arrive_as_they_come():
    """Each chunk leaves for the client before the next one has come."""
    told = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(streamed_head())
        for _ in range(5):
            await wire.send(chunked(LINE, last=False))
            await told.wait()
            told.clear()
        await wire.send(b"0\r\n\r\n")

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get())
        assert await client.head() == streamed_head()
        for _ in range(5):
            assert await client.exactly(len(chunked(LINE, last=False))) == chunked(LINE, last=False)
            told.set()
        assert await client.exactly(5) == b"0\r\n\r\n"


async def test_request_headers():
    """The request goes up in order and case, without what is the gateway's or one hop's own."""
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append(await wire.head() + await wire.exactly(2))
        await wire.send(counted(b""))

    async with fake_pod(script) as pod:
        endpoint = Endpoint(f"http://127.0.0.1:{pod.port}/base/", headers={"X-Pod-Token": "t", "x-own": "2"})
        async with gateway(endpoint) as gate:
            client = await gate.client()
            lines = [
                "content-TYPE: application/json",
                "Authorization: Bearer secret",
                "x-api-key: secret",
                "Referer: http://gate/k/secret/",
                "X-Forwarded-Uri: /k/secret/api/chat",
                "Origin: http://evil",
                "Connection: keep-alive, X-Hop",
                "X-Hop: 1",
                "Keep-Alive: timeout=5",
                "Proxy-Authorization: Basic x",
                "Proxy-Connection: keep-alive",
                "TE: trailers",
                "Expect: 100-continue",
                "X-Own: 1",
                "Accept-Encoding: gzip, br",
                "X-Umlaut: ä",
                "X-Twice: 1",
                "X-Twice: 2",
            ]
            await client.send(post(b"{}", "/api/chat?a=%20b&c", *lines))
            assert (await client.head()).startswith(b"HTTP/1.1 200 OK\r\n")

            assert seen == [
                "\r\n".join(
                    [
                        "POST /base/api/chat?a=%20b&c HTTP/1.1",
                        f"Host: 127.0.0.1:{pod.port}",
                        "X-Pod-Token: t",
                        "x-own: 2",
                        "content-TYPE: application/json",
                        "Accept-Encoding: gzip, br",
                        "X-Umlaut: ä",
                        "X-Twice: 1",
                        "X-Twice: 2",
                        "Content-Length: 2",
                        "",
                        "{}",
                    ]
                ).encode()
            ]


async def test_response_headers():
    """What is one hop's own stays behind, and our lines take the place of the upstream's."""
    told = [
        "X-Request-ID: theirs",
        "Connection: X-Hop, content-length, keep-alive",
        "X-Hop: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Authenticate: Basic",
        "Upgrade: h2c",
        "Server: odd",
    ]
    statuses: list[int] = []

    def answer() -> ResponsePolicy:
        return ResponsePolicy(
            extra_head=b"X-Request-Id: ours\r\nX-Gpugate-Waited-Ms: 5\r\n", on_head=statuses.append
        )

    async with (
        fake_pod(once(counted(b"ok", *told, status="404 Gone Fishing"))) as pod,
        gateway(pod.endpoint, answer=answer) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        assert await client.head() == (
            b"HTTP/1.1 404 Gone Fishing\r\nServer: odd\r\nContent-Length: 2\r\n"
            b"X-Request-Id: ours\r\nX-Gpugate-Waited-Ms: 5\r\n\r\n"
        )
        assert await client.exactly(2) == b"ok"
        assert statuses == [404]


@pytest.mark.parametrize(
    ("method", "raw"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 500\r\n\r\n'),
        ("GET", counted(b"")),
    ],
)
async def test_answer_without_body(method, raw):
    """An answer that has no body ends with its head, and the connection serves the next request."""
    async with fake_pod(once(raw)) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        for _ in range(2):
            await client.send(get(method=method))
            assert await client.head() == raw

        assert pod.connections == 1


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_framing_of_no_body(method):
    """A pod's Transfer-Encoding with an answer that has no body would make clients wait for chunks."""
    raw = b"HTTP/1.1 %b\r\nTransfer-Encoding: chunked\r\nA: 1\r\n\r\n"
    raw %= b"200 OK" if method == "HEAD" else b"204 No Content"
    async with fake_pod(once(raw)) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        for _ in range(2):
            await client.send(get(method=method))
            assert await client.head() == raw.replace(b"Transfer-Encoding: chunked\r\n", b"")

        assert pod.connections == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 20000,
        streamed_head() + b"1000000000000000\r\n",
        streamed_head() + b"0\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \x1b[2J\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["bare LF", "interim", "size", "trailer", "control"],
)
async def test_refused_answers(raw):
    """What is no HTTP is an error at once, though the pod keeps the connection open; nothing of it leaves."""
    async with fake_pod(as_script(raw, "stay")) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get())

        assert (await client.head()).startswith(b"HTTP/1.1 502")
        gone = await gate.outcome()
        assert isinstance(gone, UpstreamExchangeError)
        assert gone.kind == "garbage"


async def test_interim_answers():
    """Interim answers are the hop's own; the client asked for none."""
    raw = counted(b"done")
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with fake_pod(once(interim + raw)) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get())

        assert await client.exactly(len(raw)) == raw


@pytest.mark.parametrize("lines", [(), ("Connection: keep-alive",)])
async def test_old_client(lines):
    """A client that speaks HTTP/1.0 gets the body without chunks, and then the end of the connection."""
    async with (
        fake_pod(once(streamed_head() + chunked(LINE, LINE))) as pod,
        gateway(pod.endpoint) as gate,
    ):
        client = await gate.client()
        await client.send(get("/", *lines, version="1.0"))

        head = await client.head()
        assert head == b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
        assert await client.rest() == LINE + LINE


async def test_old_client_of_a_counted_answer():
    """Counted bodies are as good for HTTP/1.0; the connection is closed as announced."""
    async with fake_pod(once(counted(b"abc"))) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get(version="1.0"))

        assert await client.rest() == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"


async def test_client_that_wants_to_close():
    """Who asks for the end of the connection gets it, and is told so."""
    async with fake_pod(once(counted(b"abc"))) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get("/", "Connection: close"))

        assert await client.rest() == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
        assert gate.pool.idle == 1


async def test_answer_until_close():
    """An answer that ends with the upstream's connection ends with the client's as well."""
    raw = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nsome text"
    async with fake_pod(once(raw, close=True)) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get())

        told = raw.replace(b"plain\r\n", b"plain\r\nConnection: close\r\n").replace(b"HTTP/1.0", b"HTTP/1.1")
        assert await client.rest() == told
        assert (await gate.outcome()).outcome is RelayOutcome.COMPLETE
        assert (gate.pool.idle, gate.pool.in_use) == (0, 0)


async def test_packed_answer():
    """A compressed body and its header pass untouched."""
    body = gzip.compress(LINE * 50)
    raw = streamed_head("application/x-ndjson", "Content-Encoding: gzip") + chunked(body[:20], body[20:])
    async with fake_pod(once(raw)) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get("/", "Accept-Encoding: gzip"))

        assert await client.exactly(len(raw)) == raw


async def test_pipelined_requests():
    """Requests sent ahead are answered one by one, in order."""

    async def script(wire: Wire) -> None:
        while True:
            head = await wire.head()
            await wire.send(counted(head.split(b" ")[1]))

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(b"".join(get(f"/{number:02}") for number in range(40)))
        expected = b"".join(counted(b"/%02d" % number) for number in range(40))

        assert await client.exactly(len(expected)) == expected
        assert pod.connections == 1


@pytest.mark.parametrize("later", [False, True])
async def test_bytes_behind_the_answer(later):
    """Bytes behind the end never reach a client, and their connection serves nobody any more."""
    raw = counted(b"mine")

    async def script(wire: Wire) -> None:
        await wire.head()
        if later:
            await wire.send(raw)
            await asyncio.sleep(0.05)
            await wire.send(counted(b"not yours"))
        else:
            await wire.send(raw + counted(b"not yours"))
        await wire.gone()

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        for _ in range(2):
            await client.send(get())
            assert await client.exactly(len(raw)) == raw
            await asyncio.sleep(0.1 if later else 0)

        assert pod.connections == 2


async def test_length_and_chunks():
    """An answer whose end is told in two ways is refused before its first byte."""
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    async with fake_pod(once(raw)) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get())
        gone = await gate.outcome()
        assert (await client.head()).startswith(b"HTTP/1.1 502 ")

        assert isinstance(gone, UpstreamExchangeError)
        assert (gone.kind, gone.connecting, gone.got_bytes) == ("garbage", False, True)
        assert (gate.pool.idle, gate.pool.in_use) == (0, 0)


@pytest.mark.parametrize(
    "raw", [b"SSH-2.0-Open", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"]
)
async def test_garbage(raw):
    """Garbage, even right behind a good head, is told before any byte has left."""

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(raw)
        await wire.gone()

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get())

        assert (await gate.outcome()).kind == "garbage"


async def test_no_answer():
    """An upstream that closes without a word is gone; on a fresh connection that is not tried again."""

    async def script(wire: Wire) -> None:
        await wire.head()

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get())
        gone = await gate.outcome()

        assert (gone.kind, gone.reused, gone.got_bytes, gone.connecting) == ("closed", False, False, False)
        assert pod.connections == 1


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("body", [b"{}", b"x" * 1_000_000])
async def test_stale_connection(how, body):
    """An idle connection that dies as the request arrives: the request goes out again, once, whole."""
    answers: list[bytes] = []

    async def script(wire: Wire) -> None:
        served = 0
        while True:
            head = await wire.head()
            if served:
                if how == "reset":
                    wire.reset()
                return
            assert f"Content-Length: {len(body)}".encode() in head
            answers.append(await wire.exactly(len(body)))
            await wire.send(counted(b"ok"))
            served += 1

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        for _ in range(3):
            await client.send(post(body))
            assert await client.exactly(len(counted(b"ok"))) == counted(b"ok")

        assert answers == [body] * 3
        assert pod.connections == 3


async def test_stale_connection_that_had_spoken():
    """Once the upstream has said a byte, the request is not sent again by itself."""
    served = 0

    async def script(wire: Wire) -> None:
        nonlocal served
        while True:
            await wire.head()
            served += 1
            if served == 2:
                await wire.send(b"HTTP/1.1 2")
                return
            await wire.send(counted(b"ok"))

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get())
        await client.exactly(len(counted(b"ok")))
        await client.send(get())
        gone = await gate.outcome(2)

        assert (gone.kind, gone.reused, gone.got_bytes) == ("closed", True, True)
        assert served == 2


async def test_nobody_listens():
    """A refused connection is told as such."""
    async with fake_pod(once(b"")) as pod:
        endpoint = pod.endpoint
    async with gateway(endpoint) as gate:
        client = await gate.client()
        await client.send(get())
        gone = await gate.outcome()

        assert (gone.kind, gone.connecting) == ("connect", True)


@pytest.mark.parametrize("url", ["http://pod.invalid", f"http://{'a' * 70}.invalid"])
async def test_no_such_name(url):
    """A name that does not resolve, or cannot be one, is told as a connection that was not made."""
    async with gateway(Endpoint(url)) as gate:
        client = await gate.client()
        await client.send(get())
        gone = await gate.outcome()

        assert (gone.kind, gone.connecting) == ("connect", True)


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: 1", "http://x/", "", "/\x00"])
async def test_malformed_target(target):
    """A target that could break out of the request line is refused before a connection is made."""
    async with fake_pod(once(counted(b""))) as pod, gateway(pod.endpoint, target=target) as gate:
        client = await gate.client()
        await client.send(get())

        assert isinstance(await gate.outcome(), ValueError)

        assert pod.connections == 0


@pytest.mark.parametrize(
    "raw",
    [
        streamed_head() + chunked(LINE, b"x", b"", LINE[:5]).replace(b"0\r\n\r\n", b"", 1),
        counted(LINE + b"x" + LINE[:5], "Content-Type: a/b"),
    ],
)
async def test_tap(raw):
    """The tap hears the body of a good answer once, without its chunks, and the client misses nothing."""
    heard: list[CapturedBody] = []
    async with (
        fake_pod(once(raw)) as pod,
        gateway(pod.endpoint, answer=lambda: ResponsePolicy(capture=heard.append)) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        assert await client.exactly(len(raw)) == raw
        assert [tapped.body for tapped in heard] == [LINE + b"x" + LINE[:5]]


async def test_tap_is_for_good_answers_of_some_size():
    """Errors, answers that are too large and answers that break are not tapped."""
    heard: list[CapturedBody] = []
    raws = [
        counted(b"no", status="500 Oops"),
        counted(b"x" * 5000),
        streamed_head() + chunked(*[b"y" * 100] * 50),
        streamed_head() + chunked(LINE, last=False),
    ]

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(raws[pod.connections - 1])

    async with (
        fake_pod(script) as pod,
        gateway(
            pod.endpoint, answer=lambda: ResponsePolicy(capture=heard.append, capture_limit=4000)
        ) as gate,
    ):
        for raw in raws:
            client = await gate.client()
            await client.send(get())
            assert await client.exactly(len(raw)) == raw

        assert heard == []


async def test_relay_without_a_stall_limit_of_its_own():
    """A client that reads nothing is borne for two minutes unless said otherwise."""
    assert Relay().stall_s == 120.0


class Connected(BaseProtocol):
    """A protocol that has a connection."""

    @property
    def connected(self) -> bool:
        """True."""
        return True


class TestPacedBody:
    """A body is read for as long as it brings 1 KiB/s."""

    async def drip(self, reader: StreamReader, size: int, every_s: float, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(every_s)
            reader.feed_data(b"x" * size)
        reader.feed_eof()

    @pytest.mark.parametrize(("size", "is_fast_enough"), [(300, True), (30, False)])
    async def test_rate(self, size, is_fast_enough):
        """10 kB/s for three times the limit is well; 1,000 B/s, which no pause of its own betrays, is not."""
        reader = StreamReader(Connected(asyncio.get_running_loop()), 2**16)
        body, got = PacedBody(reader, 0.3), 0
        source = asyncio.ensure_future(self.drip(reader, size, 0.03, 30))
        try:
            while piece := await body.readany():
                got += len(piece)
            assert is_fast_enough
            assert 30 * size == got
        except TimeoutError:
            assert not is_fast_enough
        source.cancel()

    async def test_a_slow_reader(self):
        """Time in which nobody waits for the body does not count."""
        reader = StreamReader(Connected(asyncio.get_running_loop()), 2**16)
        body = PacedBody(reader, 0.05)
        for _ in range(3):
            reader.feed_data(b"x")
            assert b"x" == await body.readany()
            await asyncio.sleep(0.03)
        reader.feed_eof()
        assert b"" == await body.readany()

    async def test_broken_framing_behind_the_last_piece(self):
        """Is no end of the body."""
        reader = StreamReader(Connected(asyncio.get_running_loop()), 2**16)
        reader.feed_data(b"x")
        body = PacedBody(reader, 1)
        assert b"x" == await body.readany()
        reader.feed_eof()
        reader.set_exception(web.RequestPayloadError("broken"))
        with pytest.raises(web.RequestPayloadError):
            await body.readany()
