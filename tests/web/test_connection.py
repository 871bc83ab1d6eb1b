"""A client's connection: one request after the other in one task, and what it takes from aiohttp."""

from __future__ import annotations

import asyncio
import inspect
import random
import re
from collections.abc import AsyncIterator, Callable
from hashlib import sha256

import pytest
from aiohttp import StreamReader, web
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler
from attrs import frozen

from gpugate.relay import Ending, Relayed
from gpugate.web.connection import Known, let_go_of_body
from gpugate.web.server import GuardedServer, listen

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


class House:
    """A server whose one handler does what the path says."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None] | None] = []
        self.held = asyncio.Event()
        self.left = asyncio.Event()
        self.port = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.tasks.append(asyncio.current_task())
        if request.path == "/crash":
            raise ValueError("no")
        if request.path == "/held":
            self.held.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.left.set()
                raise
        return web.Response(text=request.path)

    async def exchange(self, sent: bytes) -> bytes:
        """All that comes back until the connection is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        try:
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    server = GuardedServer(house.answer, lambda request: web.Response(status=400))
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    house.port = await listen(runner, "127.0.0.1", 0)
    yield house
    await runner.cleanup()


@pytest.mark.parametrize(
    ("ours", "known"), [("start", "2e565fd40c8e04fb"), ("data_received", "1ee57ebe052e6c80")]
)
def test_what_was_copied(ours, known):
    """aiohttp's, which ours stands for or relies on, is the one that was read; if not, compare them again."""
    assert known == sha256(inspect.getsource(getattr(RequestHandler, ours)).encode()).hexdigest()[:16]


async def test_requests_behind_each_other(house):
    """Are answered in order, all in the connection's one task."""
    last = b"GET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    said = await house.exchange(GET % 1 + GET % 2 + last)
    assert [b"/1", b"/2", b"/3"] == [
        part.partition(b"\r\n\r\n")[2][:2] for part in said.split(b"HTTP/1.1")[1:]
    ]
    assert 1 == len(set(house.tasks))


async def test_client_that_hangs_up(house):
    """Its handler is cancelled."""
    _, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(house.held.wait(), 5)
    writer.close()
    await asyncio.wait_for(house.left.wait(), 5)


async def test_handler_that_crashes(house, caplog):
    """Is answered with 500, and the connection is closed."""
    said = await house.exchange(b"GET /crash HTTP/1.1\r\nHost: x\r\n\r\n" + GET % 1)
    assert said.startswith(b"HTTP/1.1 500 ")
    assert 1 == said.count(b"HTTP/1.1")
    assert ["Error handling request from %s"] == [record.msg for record in caplog.records]


async def test_body_that_nobody_read(house):
    """Is read off, so that the next request is found behind it."""
    post = b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    said = await house.exchange(post + b"GET /2 HTTP/1.0\r\n\r\n")
    assert 2 == said.count(b" 200 OK")


async def test_body_that_does_not_come(house):
    """Is waited for as long as aiohttp would, then the connection is closed."""
    server = GuardedServer(house.answer, lambda request: web.Response(status=400))
    server._kwargs["lingering_time"] = 0.05
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    house.port = await listen(runner, "127.0.0.1", 0)
    said = await house.exchange(b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
    await runner.cleanup()
    assert said.endswith(b"/1")


async def test_shutdown_while_a_request_runs(house):
    """Its handler is given its patience, then cancelled."""
    server = GuardedServer(house.answer, lambda request: web.Response(status=400))
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    house.port = await listen(runner, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(house.held.wait(), 5)
    await runner.cleanup()
    assert house.left.is_set()
    writer.close()


@frozen
class Kept:
    """What is kept of a request."""

    message: RawRequestMessage


class Pending:
    """A request sent on, as the tests want it to end."""

    def __init__(self, desk: Desk, request: web.BaseRequest, news: Callable[[], None]) -> None:
        self.desk = desk
        self.request = request
        self.news = news
        self.whole = True
        self.abandoned = False

    def ended(self) -> web.StreamResponse | None:
        if not self.whole:
            return None
        text = f"swift {self.request.path}".encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text)
        self.request.transport.write(head + text)
        return Relayed(200, ending=Ending.COMPLETE, keep_alive=self.desk.stays, sent=1)

    async def finish(self) -> web.StreamResponse:
        await asyncio.sleep(0)
        return web.Response(text=f"late {self.request.path}")

    def abandon(self) -> None:
        self.abandoned = True


class Desk(House):
    """A house that begins at once what begins with /swift."""

    stays = True

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[StreamReader] = []
        self.pending: list[Pending] = []
        self.runner = web.ServerRunner(
            GuardedServer(self.answer, lambda request: web.Response(status=400), self),
            shutdown_timeout=1,
        )

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/eaten":
            await request.read()
            let_go_of_body(request)
            self.readers.append(request.content)
        return await super().answer(request)

    def learn(self, message: RawRequestMessage) -> Kept:
        return Kept(message)

    def begin(self, kept: Kept, request: web.BaseRequest, news: Callable[[], None]) -> Pending | None:
        if not request.path.startswith("/swift"):
            return None
        self.pending.append(Pending(self, request, news))
        return self.pending[-1]

    async def begun(self, count: int = 1) -> Pending:
        """The request that was begun last, once there are so many."""
        async with asyncio.timeout(5):
            while len(self.pending) < count:
                await asyncio.sleep(0)
        return self.pending[-1]


class Client:
    """One connection to a desk."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def hear(self) -> str:
        """The next answer's body."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])
        return (await asyncio.wait_for(self.reader.readexactly(length), 5)).decode()

    async def ask(self, sent: bytes) -> str:
        self.writer.write(sent)
        return await self.hear()


SWIFT = b"GET /swift HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTHY = b"POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    await desk.runner.setup()
    desk.port = await listen(desk.runner, "127.0.0.1", 0)
    yield desk
    await desk.runner.cleanup()


@pytest.fixture
async def client(desk: Desk) -> AsyncIterator[Client]:
    """A client whose desk has answered /swift once, in aiohttp's way, and so knows it."""
    client = Client(*await asyncio.open_connection("127.0.0.1", desk.port))
    assert "/swift" == await client.ask(SWIFT)
    assert [] == desk.pending
    yield client
    client.writer.close()


class TestAtOnce:
    """Requests that are known by their bytes."""

    async def test_known(self, desk, client):
        """Begun without a task, again and again, also on another connection."""
        other = Client(*await asyncio.open_connection("127.0.0.1", desk.port))
        for count, one in enumerate((client, client, other), start=1):
            one.writer.write(SWIFT)
            (await desk.begun(count)).news()
            assert "swift /swift" == await one.hear()
        assert 1 == len(desk.tasks)
        other.writer.close()

    async def test_not_wanted(self, desk, client):
        """What `begin` does not take is answered as ever."""
        assert ["/1", "/1"] == [await client.ask(GET % 1) for _ in range(2)]

    async def test_more_to_do(self, desk, client):
        """The connection's task finishes it, and the next is begun at once again."""
        client.writer.write(SWIFT)
        pending = await desk.begun()
        pending.whole = False
        pending.news()
        assert "late /swift" == await client.hear()
        client.writer.write(SWIFT)
        (await desk.begun(2)).news()
        assert "swift /swift" == await client.hear()

    async def test_requests_behind_it(self, desk, client):
        """Wait for their turn."""
        client.writer.write(SWIFT)
        await desk.begun()
        client.writer.write(GET % 1 + GET % 2)
        assert ["late /swift", "/1", "/2"] == [await client.hear() for _ in range(3)]

    async def test_client_that_hangs_up(self, desk, client):
        """What was begun is abandoned."""
        client.writer.write(SWIFT)
        pending = await desk.begun()
        client.writer.close()
        async with asyncio.timeout(5):
            while not pending.abandoned:
                await asyncio.sleep(0)
        pending.news()

    async def test_last_answer(self, desk, client):
        """The connection is closed behind an answer after which it cannot stay."""
        desk.stays = False
        client.writer.write(SWIFT)
        (await desk.begun()).news()
        assert "swift /swift" == await client.hear()
        assert b"" == await asyncio.wait_for(client.reader.read(), 5)

    @pytest.mark.parametrize("whole", [True, False])
    async def test_shutdown(self, desk, client, whole):
        """Waits for the answer, then closes."""
        client.writer.write(SWIFT)
        pending = await desk.begun()
        pending.whole = whole
        cleanup = asyncio.ensure_future(desk.runner.cleanup())
        await asyncio.sleep(0.02)
        pending.news()
        assert ("swift /swift" if whole else "late /swift") == await client.hear()
        assert b"" == await asyncio.wait_for(client.reader.read(), 5)
        await cleanup

    async def test_longer_than_a_pause(self, desk, client, monkeypatch):
        """An answer that takes longer than idle connections are kept is not cut."""
        client.writer.write(SWIFT)
        pending = await desk.begun()
        connection = pending.request.protocol
        connection._next_keepalive_close_time = 0.0
        connection._process_keepalive()
        pending.news()
        assert "swift /swift" == await client.hear()
        assert connection._keepalive_handle is not None


class TestBetweenRequests:
    """Bytes are only known where a request begins."""

    async def test_inside_a_body(self, desk, client):
        """A body that looks like a request is a body."""
        client.writer.write(LENGTHY % len(SWIFT))
        await asyncio.sleep(0.02)
        assert "/post" == await client.ask(SWIFT)
        assert [] == desk.pending

    async def test_inside_chunks(self, desk, client):
        """The same for a body in chunks, behind which nothing is taken for known any more."""
        client.writer.write(b"POST /post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.02)
        client.writer.write(b"%x\r\n" % len(SWIFT))
        await asyncio.sleep(0.02)
        client.writer.write(SWIFT)
        await asyncio.sleep(0.02)
        assert "/post" == await client.ask(b"\r\n0\r\n\r\n")
        assert "/swift" == await client.ask(SWIFT)
        assert [] == desk.pending

    async def test_inside_a_head(self, desk, client):
        """A head in two pieces ends where it ends."""
        client.writer.write(b"GET /1 HTTP/1.1\r\nX: ")
        await asyncio.sleep(0.02)
        assert "/1" == await client.ask(SWIFT)
        assert [] == desk.pending

    async def test_behind_a_body_that_was_let_go(self, desk, client):
        """Where it was read whole, its reader is gone, and the next request is known again."""
        assert "/eaten" == await client.ask(LENGTHY.replace(b"/post", b"/eaten") % 5 + b"xxxxx")
        assert [EMPTY_PAYLOAD] == desk.readers
        client.writer.write(SWIFT)
        (await desk.begun()).news()
        assert "swift /swift" == await client.hear()

    @pytest.mark.parametrize("size", [0, 5, 100_000])
    async def test_behind_a_body(self, desk, client, size):
        """The next request is known again."""
        assert "/post" == await client.ask(LENGTHY % size + b"x" * size)
        client.writer.write(SWIFT)
        (await desk.begun()).news()
        assert "swift /swift" == await client.hear()

    @pytest.mark.parametrize(
        "head",
        [
            b"GET /swift/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            b"GET /swift/b HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2048 + b"\r\n\r\n",
            b"HEAD /swift/c HTTP/1.1\r\nHost: x\r\n\r\n",
        ],
    )
    async def test_what_is_not_learnt(self, desk, client, head):
        """Other versions, other methods, and what is long."""
        for _ in range(2):
            client.writer.write(head)
            await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5)
            if not head.startswith(b"HEAD"):
                await asyncio.wait_for(client.reader.readexactly(len("/swift/x")), 5)
        assert [] == desk.pending


def test_no_end_of_known_ones():
    """Only so many are remembered, and none that the desk does not want."""
    wanted = [True]
    known = Known(lambda message: Kept(message) if wanted[0] else None)
    message = HttpRequestParser(None, None, 2**16).feed_data(SWIFT)[0][0][0]
    for number in range(1000):
        known.learn(b"%d" % number, message)
    assert known.get(b"999").message is message
    assert known.get(b"0") is None
    wanted[0] = False
    known.learn(b"1000", message)
    assert known.get(b"1000") is None


ANY = (
    SWIFT,
    SWIFT,
    SWIFT,
    b"GET /swift HTTP/1.1\r\nHost: y\r\nX: 1\r\n\r\n",
    b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n",
    LENGTHY % 0,
    LENGTHY % len(SWIFT) + SWIFT,
    LENGTHY % (2 * len(SWIFT)) + SWIFT * 2,
    LENGTHY % 70_000 + b"x" * (70_000 - len(SWIFT)) + SWIFT,
    b"GET /swift HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(SWIFT) + SWIFT,
    b"POST /post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(SWIFT), SWIFT),
    b"HEAD /swift HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /swift HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"\r\n" + SWIFT,
    SWIFT + b"\r\n",
)


class Mixed(Desk):
    """What it has begun ends by itself, at one time or another, in one way or the other."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.chance.random() < 0.5:
            await request.read()
            if self.chance.random() < 0.5:
                let_go_of_body(request)
        return await super().answer(request)

    def begin(self, kept: Kept, request: web.BaseRequest, news: Callable[[], None]) -> Pending | None:
        pending = super().begin(kept, request, news)
        if pending is not None:
            pending.whole = self.chance.random() < 0.7
            asyncio.get_running_loop().call_later(self.chance.choice((0, 0, 0.002)), news)
        return pending


def cut_up(chance: random.Random) -> list[tuple[bytes, int]]:
    """A dozen requests in pieces; with each, how many of the answers are awaited before it is sent."""
    pieces: list[tuple[bytes, int]] = []
    rest = b""
    for number in range(12):
        wait = number if chance.random() < 0.8 else 0
        one = rest + (SWIFT if chance.random() < 0.5 else chance.choice(ANY))
        cut = len(one) if chance.random() < 0.85 else chance.randrange(len(one))
        pieces.append((one[:cut], wait if not rest else 0))
        rest = one[cut:]
    return [*pieces, (rest, 0)]


async def heard(port: int, pieces: list[tuple[bytes, int]]) -> list[tuple[bytes, bytes]]:
    """Statuses and paths, in the order in which they were answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b""
    async with asyncio.timeout(10):
        for piece, wait in [*pieces, (b"", 12)]:
            while data.count(b"HTTP/1.") < wait and (more := await reader.read(65536)):
                data += more
            writer.write(piece)
            await asyncio.sleep(0)
        writer.write(b"GET /other HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data += await reader.read()
    writer.close()
    return re.findall(rb"HTTP/1\.\d (\d+)|(/swift|/post|/other)", data)


@pytest.mark.parametrize("seed", range(8))
async def test_any_order(seed):
    """Whatever is sent, however it is cut up: the same answers with and without what is known."""
    chance = random.Random(seed)
    desk, house = Mixed(chance), House()
    plain = web.ServerRunner(
        GuardedServer(house.answer, lambda request: web.Response(status=400)), shutdown_timeout=1
    )
    for one, runner in ((desk, desk.runner), (house, plain)):
        await runner.setup()
        one.port = await listen(runner, "127.0.0.1", 0)
    for _ in range(12):
        pieces = cut_up(chance)
        assert await heard(house.port, pieces) == await heard(desk.port, pieces)
    assert desk.pending
    await desk.runner.cleanup()
    await plain.cleanup()
