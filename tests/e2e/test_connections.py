"""Connections on both sides and the lines of the log: as many as there should be, and none left over."""

from __future__ import annotations

import asyncio
import gc
from itertools import pairwise

import pytest
from gpugate_demo.faults import Answer as Simulated
from gpugate_demo.faults import (
    BreakAfter,
    CleanEndAfter,
    CloseBeforeHead,
    Garbage,
    HangAfter,
    Slow,
)

from tests.e2e.support import SOON, House, Wire, bearer, chat_body, open_house, request, wire_to


class TestUpstream:
    async def test_reused(self, house: House):
        """One after another: one connection beside the gateway's own."""
        await house.warm()
        await house.chat()
        before = house.ollama.open_connections
        for _ in range(20):
            await house.chat()
        assert before == house.ollama.open_connections

    async def test_stale(self, house: House):
        """A kept connection that the pod has closed costs nobody an error, and nothing is sent twice."""
        await house.warm()
        await house.chat()
        for connection in list(house.ollama._web.connections):
            connection.transport.abort()
        answers = await asyncio.gather(*[house.chat() for _ in range(3)])
        assert [200] * 3 == [answer.status for answer in answers]
        assert 4 == len(house.ollama.calls("/api/chat"))

    async def test_closed_with_the_gateway(self, tmp_path, ollama, cloud):
        """Nothing is left open at the pod once the gateway is gone."""
        async with open_house(tmp_path, ollama, cloud) as house:
            await asyncio.gather(*[house.chat() for _ in range(5)])
            assert ollama.open_connections
        async with asyncio.timeout(SOON):
            while ollama.open_connections:
                await asyncio.sleep(0.01)

    async def test_slow_pod(self, house: House):
        """Seconds without a byte are no reason to give up."""
        await house.warm()
        house.ollama.faults.add("/api/chat", Slow(first_s=0.3, each_s=0.05))
        answer = await house.chat()
        assert answer.lines[-1]["done"]

    async def test_truncation_that_looks_complete(self, house: House):
        """What the pod ends cleanly is passed on as it is: the bytes are its own."""
        await house.warm()
        house.ollama.faults.add("/api/chat", CleanEndAfter(2))
        answer = await house.chat()
        assert (True, 2) == (answer.whole, len(answer.lines))


async def status_of_whole(wire: Wire) -> bytes:
    """Read one answer to its end; its status."""
    head = await wire.head()
    await wire.reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
    return head.split()[1]


class TestManyRequestsOverOneConnection:
    """Each is judged, forwarded and logged by itself."""

    @pytest.fixture
    async def talker(self, log, opened) -> House:
        """A warm gateway that logs every request."""
        house = await opened(log__level="info")
        await house.warm()
        return house

    @pytest.fixture
    def ask(self):
        """Ask for the list, in the same bytes every time."""
        asked = request("GET", "/api/tags")

        async def ask(wire: Wire) -> tuple[bytes, bytes]:
            wire.send(asked)
            head = await wire.head()
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            return head, await wire.reader.readexactly(length)

        return ask

    async def test_answers(self, log, talker: House, ask):
        """Are the same but for their ids, and each is logged."""
        async with wire_to(talker.port) as wire:
            answers = [await ask(wire) for _ in range(4)]
        assert 1 == len({body for _, body in answers})
        ids = [head.partition(b"X-Request-Id: ")[2].split()[0].decode() for head, _ in answers]
        assert 4 == len(set(ids))
        heads = {head.replace(one.encode(), b"") for (head, _), one in zip(answers, ids, strict=True)}
        assert 1 == len(heads)
        lines = [line for line in log.lines("request") if line["path"] == "/api/tags"]
        assert ids == [line["request_id"] for line in lines]
        assert {(200, "tester")} == {(line["status"], line["user"]) for line in lines}

    @pytest.mark.parametrize(
        "fault", [CloseBeforeHead(), CloseBeforeHead(reset=True), Garbage(), Simulated(524, b"edge")]
    )
    async def test_pod_in_trouble(self, talker: House, ask, fault):
        """What is remembered is said, as the first time, and the connection lives on."""
        async with wire_to(talker.port) as wire:
            expected = [await ask(wire) for _ in range(2)][1][1]
            talker.ollama.faults.add("/api/tags", fault)
            talker.ollama.faults.add("/api/tags", fault)
            assert [expected] * 3 == [(await ask(wire))[1] for _ in range(3)]

    async def test_users_who_share_a_connection(self, log, talker: House):
        """As behind a proxy: each request is its own sender's, and one user's right is not the next one's."""
        users = {name: bearer(sub=name, scope=scope) for name, scope in (("ann", "chat"), ("bob", "pod"))}
        users["eve"] = {"Authorization": "Bearer no.such.token"}
        async with wire_to(talker.port) as wire:
            for name in ("ann", "bob", "eve") * 3:
                wire.send(request("GET", "/api/tags", headers=users[name]))
                await status_of_whole(wire)
        lines = [line for line in log.lines("request") if line["path"] == "/api/tags"]
        expected = [("ann", 200), ("bob", 403), (None, 401)] * 3
        assert expected == [(line["user"], line["status"]) for line in lines]


class TestClients:
    @pytest.mark.parametrize("temperature", ["cold", "warm"])
    async def test_connection_close(self, house: House, temperature):
        """A client that wants the connection closed gets that said and done."""
        if temperature == "warm":
            await house.warm()
        async with wire_to(house.port) as wire:
            wire.send(
                request("POST", "/api/chat", chat_body(), headers={**house.auth, "Connection": "close"})
            )
            head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert body.endswith(b"0\r\n\r\n")

    async def test_kept_alive(self, house: House):
        """Proxied, local and refused answers leave the connection usable."""
        await house.warm()
        async with wire_to(house.port) as wire:
            for path, status in (
                ("/", 200),
                ("/api/version", 200),
                ("/api/nothing", 404),
                ("/nothing", 404),
            ) * 2:
                wire.send(request("GET", path))
                assert status == (await wire.answer())[0]
            body = chat_body(stream=False)
            for _ in range(3):
                wire.send(request("POST", "/api/chat", body))
                assert 200 == (await wire.answer())[0]

    async def test_many_hang_ups(self, house_on_both: House):
        """A hundred clients that come and go in every phase leave nothing."""
        house = house_on_both
        house.ollama.faults.add("/api/chat", HangAfter(2), times=None)

        async def come_and_go(number: int) -> None:
            async with wire_to(house.port) as wire:
                wire.send(request("POST", "/api/chat", chat_body()))
                await asyncio.sleep(0.003 * number)
                wire.abort()

        await asyncio.gather(*[come_and_go(number) for number in range(100)])
        await house.waiting(0)
        await house.until(lambda: house.in_flight == 0)
        await house.ollama.until(lambda: house.ollama.in_flight == 0)
        house.ollama.faults.clear()
        assert 200 == (await house.chat()).status
        assert 1 == house.cloud.starts

    async def test_events_for_http_1_0(self, house: House):
        """A stream that ends by closing, or a clear refusal; no crash."""
        async with wire_to(house.port) as wire:
            wire.send(request("GET", "/api/v1/gpu/events", version="1.0"))
            head = await wire.head()
        assert head.split(b" ")[1] in (b"200", b"400", b"505")


class TestLines:
    @pytest.fixture
    async def talker(self, log, opened) -> House:
        """A gateway that logs every request and transition."""
        house = await opened(log__level="info")
        await house.off()
        return house

    async def test_one_per_request(self, log, talker: House):
        """Method, path without query, status, user, time; proxied ones say what they waited."""
        house = talker
        await house.chat()
        await house.ask("GET", "/api/tags?x=secret")
        await house.ask("GET", "/api/nothing", headers={})
        first, *lines = log.lines("request")
        assert ("/api/v1/health", None) == (first["path"], first["user"])  # the gateway's own, at its start
        seen = [(line["method"], line["path"], line["status"], line["user"]) for line in lines]
        assert [
            ("POST", "/api/chat", 200, "tester"),
            ("GET", "/api/tags", 200, "tester"),
            ("GET", "/api/nothing", 401, None),
        ] == seen
        cold = lines[0]
        assert cold["waited_ms"] >= 50
        assert cold["ms"] >= cold["waited_ms"] - 5
        assert cold["bytes_out"] > 100
        assert 1 == cold["run"]

    async def test_clients_that_left(self, log, talker: House):
        """499, whether they waited or were answered."""
        house = talker
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "/api/chat", chat_body()))
            await house.waiting(1)
            wire.abort()
            await house.waiting(0)
        await house.warm()
        house.ollama.faults.add("/api/chat", HangAfter(1))
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "/api/chat", chat_body()))
            await wire.head()
            wire.abort()
            await house.until(lambda: house.in_flight == 0)

        def statuses() -> list[object]:
            return [line["status"] for line in log.lines("request") if line["path"] == "/api/chat"]

        await house.until(lambda: len(statuses()) == 2)
        assert [499, 499] == statuses()

    async def test_answers_that_broke(self, log, talker: House):
        """The status was sent long before; the line says how the answer ended."""
        house = talker
        await house.warm()
        await house.chat()
        house.ollama.faults.add("/api/chat", BreakAfter(1))
        assert not (await house.chat()).whole
        lines = [line for line in log.lines("request") if line["path"] == "/api/chat"]
        assert [(200, None), (200, "upstream_lost")] == [
            (line["status"], line.get("ending")) for line in lines
        ]

    async def test_one_per_transition(self, log, talker: House):
        """Each step of the pod's life once."""
        house = talker
        await house.warm()
        await house.stop()
        words = [line["now"] for line in log.lines("pod")]
        assert all(one != other for one, other in pairwise(words))
        assert ["Ready", "Stopping", "Stopped"] == words[-3:]


async def test_garbage_collection_finds_nothing_open(house: House, recwarn):
    """No transport, task or session is left for the collector to complain about."""
    await house.chat()
    await house.chat("/v1/chat/completions", stream=True)
    gc.collect()
    assert [] == [str(warning.message) for warning in recwarn.list]
