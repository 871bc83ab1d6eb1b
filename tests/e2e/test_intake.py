"""Bodies on their way in: bounded, streamed or refused; and all that is no proper HTTP."""

from __future__ import annotations

import asyncio
import json

import pytest

from gpugate.provider_api import Phase
from gpugate.proxy import server
from tests.e2e.support import MODEL, SOON, House, chat_body, request, wire_to

MIB = 1024 * 1024
BLOB = "/api/blobs/sha256:" + "ab" * 32


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def assert_alive(house: House) -> None:
    """The gateway answers, and nothing is left over."""
    assert 200 == (await house.ask("GET", "/api/v1/health")).status
    assert 200 == (await house.chat()).status
    await house.until(lambda: house.in_flight == 0)


class TestSize:
    async def test_told_too_large(self, opened):
        """413 by Content-Length alone, in the dialect, before a byte of it is asked for."""
        house = await opened(server__max_body=1000)
        for path, shape in (("/api/chat", str), ("/v1/chat/completions", dict), ("/v1/messages", dict)):
            async with wire_to(house.port) as wire:
                head = {**house.auth, "Content-Length": "1001", "Expect": "100-continue"}
                wire.send(request("POST", path, headers=head))
                status, body = await wire.answer()
            assert 413 == status
            assert shape is type(json.loads(body)["error"])
        assert 0 == house.cloud.starts

    async def test_chunked_too_large(self, opened):
        """413 as soon as it is too much."""
        house = await opened(server__max_body=1000)
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "/api/chat", headers={**house.auth, "Transfer-Encoding": "chunked"}))
            wire.send(b"200\r\n" + b"x" * 512 + b"\r\n200\r\n" + b"x" * 512 + b"\r\n")
            status, body = await wire.answer()
        assert (413, "PAYLOAD_TOO_LARGE") == (status, json.loads(body)["code"])

    async def test_just_fits(self, opened):
        """`max_body` bytes are not too many, told or chunked."""
        body = chat_body()
        house = await opened(server__max_body=len(body))
        assert 200 == (await house.ask("POST", "/api/chat", data=body)).status
        async with wire_to(house.port) as wire:
            head = {**house.auth, "Transfer-Encoding": "chunked"}
            wire.send(request("POST", "/api/chat", headers=head) + chunked(body[:7], body[7:]))
            assert b" 200 " in (await wire.head()).split(b"\r\n")[0]

    async def test_whole_before_it_waits(self, house: House):
        """A held body reaches the pod as it was sent, whatever its framing was."""
        body = json.dumps({"model": MODEL, "prompt": "x" * 300_000}).encode()
        async with wire_to(house.port) as wire:
            head = {**house.auth, "Transfer-Encoding": "chunked"}
            wire.send(
                request("POST", "/api/generate", headers=head) + chunked(body[:100_001], body[100_001:])
            )
            assert b" 200 " in (await wire.head()).split(b"\r\n")[0]
        seen = [call for call in house.ollama.calls("/api/generate") if call.body_size == len(body)]
        assert [body] == [call.body for call in seen]

    async def test_waits_from_the_end_of_its_body(self, house: House):
        """A start is asked for once the body is there, not before."""
        body = chat_body()
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "/api/chat", body)[: -len(body)])
            await asyncio.sleep(0.05)
            assert 0 == house.cloud.starts
            wire.send(body)
            assert b" 200 " in (await wire.head()).split(b"\r\n")[0]

    async def test_expect_100(self, house: House):
        """A client that asks first is told to go on, once, cold and warm."""
        body = chat_body()
        for _ in ("cold", "warm"):
            async with wire_to(house.port) as wire:
                head = {**house.auth, "Expect": "100-continue", "Content-Length": str(len(body))}
                wire.send(request("POST", "/api/chat", headers=head))
                assert b"HTTP/1.1 100 Continue\r\n\r\n" == await wire.head()
                wire.send(body)
                assert (await wire.head()).startswith(b"HTTP/1.1 200 ")

    async def test_expect_100_of_http_1_0(self, house: House):
        """HTTP/1.0 knows no 100 Continue."""
        async with wire_to(house.port) as wire:
            head = {**house.auth, "Expect": "100-continue", "Content-Length": str(len(chat_body()))}
            wire.send(request("POST", "/api/chat", headers=head, version="1.0"))
            await asyncio.sleep(0.05)
            wire.send(chat_body())
            assert b" 200 " in (await wire.head()).split(b"\r\n")[0]

    @pytest.mark.parametrize("path", ["/api/chat", BLOB, "/api/v1/story/generate", "/api/show"])
    async def test_body_that_stops_coming(self, opened, path):
        """408, kept or streamed, and the connection is closed."""
        house = await opened(server__body_timeout=0.1)
        async with wire_to(house.port) as wire:
            wire.send(request("POST", path, headers={**house.auth, "Content-Length": "100"}) + b"{")
            status, body = await wire.answer()
            assert (408, b"REQUEST_TIMEOUT" in body) == (status, True)
        await assert_alive(house)

    @pytest.mark.parametrize("path", ["/api/chat", BLOB, "/api/v1/story/generate", "/api/show"])
    async def test_broken_chunks(self, house_on_both: House, path):
        """400 at once, kept or streamed; the pod is not in use any longer."""
        house = house_on_both
        await house.warm()
        async with wire_to(house.port) as wire:
            wire.send(request("POST", path, headers={**house.auth, "Transfer-Encoding": "chunked"}))
            wire.send(b"2\r\n{ \r\n")
            await asyncio.sleep(0.03)
            wire.send(b"zz\r\n")
            async with asyncio.timeout(2):
                status, body = await wire.answer()
            assert (400, b"malformed" in body) == (status, True)
            assert b"" == await wire.rest()
        await assert_alive(house)

    async def test_coded_before_it_was_cut_into_chunks(self, house: House):
        """501: what is in the chunks is not understood."""
        async with wire_to(house.port) as wire:
            head = {**house.auth, "Transfer-Encoding": "gzip, chunked"}
            wire.send(request("POST", "/api/chat", headers=head) + chunked(chat_body()))
            status, body = await wire.answer()
            assert (501, "NOT_IMPLEMENTED") == (status, json.loads(body)["code"])
        assert 0 == house.cloud.starts


MALFORMED = {
    "words": b"hello world\r\n\r\n",
    "binary": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "header": b"GET / HTTP/1.1\r\nHost: x\r\nmarker-in-a-bad-line\r\n\r\n",
    "space": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "nul": b"GET / HTTP/1.1\r\nHost: x\x00\r\n\r\n",
    "lengths": b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "negative": b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    "both": b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding": b"POST /api/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, foo\r\n\r\n",
    "line": b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "field": b"GET / HTTP/1.1\r\nHost: x\r\nX-Big: " + b"x" * 70_000 + b"\r\n\r\n",
    "fields": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Many: 1\r\n" * 5000 + b"\r\n",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "connect": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
}


class TestMalformed:
    @pytest.mark.parametrize("name", MALFORMED)
    async def test_no_http(self, log, house_on_both: House, name):
        """A 4xx and the end of the connection; nothing wakes, and none of it is logged."""
        house = house_on_both
        async with wire_to(house.port) as wire:
            wire.send(MALFORMED[name])
            head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        assert head.split(b" ")[1].startswith(b"4"), head
        assert b"x-request-id: " in head.lower()
        assert b"marker" not in body
        await assert_alive(house)
        assert "marker" not in log.text

    async def test_garbage_behind_a_request(self, log, house: House):
        """What came before is answered; what follows gets a 400 and the end."""
        async with wire_to(house.port) as wire:
            wire.send(request("GET", "/api/version"))
            assert 200 == (await wire.answer())[0]
            wire.send(b"marker garbage\r\n\r\n")
            assert b" 400 " in await wire.rest()
        await assert_alive(house)
        assert "marker" not in log.text

    async def test_longer_than_its_length(self, log, house: House):
        """The rest of a prompt is no request, and nobody ever sees it in a log."""
        async with wire_to(house.port) as wire:
            body = chat_body()
            wire.send(request("POST", "/api/chat", body) + b'marker-prompt"}\r\n\r\n')
            await wire.rest()
        await assert_alive(house)
        assert "marker" not in log.text

    @pytest.mark.parametrize("begins", [b"", b"5\r\nabcde\r\n"])
    async def test_broken_chunk(self, house: House, begins):
        """A body that came with its head and breaks: refused in the path's shape, and nothing wakes."""
        async with wire_to(house.port) as wire:
            head = {**house.auth, "Transfer-Encoding": "chunked"}
            wire.send(request("POST", "/api/chat", headers=head) + begins + b"ZZ\r\n")
            status, body = await wire.answer()
            assert b"" == await wire.rest()
        error = {"error": "the request body is malformed", "code": "INVALID_REQUEST"}
        assert (400, error) == (status, json.loads(body))
        assert 0 == house.cloud.starts

    async def test_broken_chunk_without_a_token(self, house: House):
        """401, as for a whole one."""
        async with wire_to(house.port) as wire:
            head = request("POST", "/api/chat", headers={"Transfer-Encoding": "chunked"})
            wire.send(head + b"ZZ\r\n")
            assert 401 == (await wire.answer())[0]
            assert b"" == await wire.rest()

    async def test_chunked_bodies_in_one_piece(self, house: House):
        """Each is a request of its own, though head and body of all came together."""
        head = request("POST", "/api/show", headers={**house.auth, "Transfer-Encoding": "chunked"})
        async with wire_to(house.port) as wire:
            wire.send((head + chunked(b'{"model":', b'"llava"}')) * 3)
            for _ in range(3):
                assert 200 == (await wire.answer())[0]
        await assert_alive(house)

    async def test_broken_chunk_of_a_blob(self, house: House):
        """The pod's connection is cut, not ended as if the blob were whole."""
        await house.warm()
        async with wire_to(house.port) as wire:
            head = {**house.auth, "Transfer-Encoding": "chunked"}
            wire.send(request("POST", BLOB, headers=head) + b"5\r\nabcde\r\n")
            await house.ollama.until(lambda: len(house.ollama.calls(BLOB)) == 1)
            wire.send(b"ZZ\r\n")
            await asyncio.sleep(0.05)
            wire.abort()
            await house.ollama.until(lambda: house.ollama.in_flight == 0)
        assert not house.ollama.calls(BLOB)[0].finished
        await assert_alive(house)

    async def test_upgrade(self, house: House):
        """An offer of HTTP/2 or WebSocket is not taken up; the request is answered as it is."""
        for protocol in ("h2c", "websocket"):
            head = {**house.auth, "Connection": "Upgrade", "Upgrade": protocol}
            answer = await house.ask("POST", "/api/chat", headers=head, data=chat_body())
            assert 200 == answer.status

    @pytest.mark.parametrize(
        ("target", "status"),
        [
            ("http://somewhere.example/api/version", 200),
            ("https://user:secret@somewhere.example:1/api/version?x=http://b/c", 200),
            ("http://somewhere.example", 200),
            ("http://somewhere.example?/api/version/nothing", 200),
            ("http://somewhere.example?//elsewhere/nothing", 200),
            ("http://somewhere.example/nothing?/api/version", 404),
        ],
    )
    async def test_absolute_target(self, house: House, target, status):
        """As a proxy's client writes it: the path counts, the host does not, nor does a query."""
        async with wire_to(house.port) as wire:
            wire.send(request("GET", target))
            assert status == (await wire.answer())[0]

    @pytest.mark.parametrize(
        "target", ["http:///api/version", "http://?/api/version", "http://#/api/version"]
    )
    async def test_an_absolute_target_without_a_host(self, house: House, target):
        """Nothing is there, whether the parser lets it through or not."""
        async with wire_to(house.port) as wire:
            wire.send(request("GET", target))
            assert (await wire.answer())[0] in (400, 404)

    async def test_a_path_in_the_query_of_an_absolute_target(self, house: House):
        """It is the root that is asked for, not what changes models."""
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "http://a?/api/pull", b'{"model":"tiny"}'))
            assert 405 == (await wire.answer())[0]
        assert 0 == house.cloud.starts

    @pytest.mark.parametrize(
        "path",
        [
            "/api/../api/chat",
            "//api/chat",
            "/api//chat",
            "/%61pi/chat",
            "/api/chat%00",
            "/api/chat%2f",
            "/./",
        ],
    )
    async def test_odd_spellings_get_round_nothing(self, house: House, path):
        """No spelling goes without a token, and none reaches the pod as another path."""
        async with wire_to(house.port) as wire:
            wire.send(request("POST", path, chat_body(), headers={"Host": "x"}))
            head = await wire.head()
        assert head.split(b" ")[1] == b"401"
        assert 0 == house.cloud.starts


class TestSlowClients:
    async def test_head_that_does_not_come(self, opened, monkeypatch):
        """A connection without a request is closed."""
        monkeypatch.setattr(server, "FIRST_HEAD_TIMEOUT_S", 0.1)
        house = await opened()
        async with wire_to(house.port) as silent, wire_to(house.port) as dripping:
            dripping.send(b"GET / HTTP/1.1\r\nX: ")
            assert b"" == await silent.rest()
            assert b"" == await dripping.rest()
        monkeypatch.setattr(server, "FIRST_HEAD_TIMEOUT_S", SOON)
        await assert_alive(house)

    async def test_many_silent_connections(self, opened, monkeypatch):
        """Others are served meanwhile."""
        monkeypatch.setattr(server, "FIRST_HEAD_TIMEOUT_S", 1.0)
        house = await opened()
        silent = [await asyncio.open_connection("127.0.0.1", house.port) for _ in range(200)]
        await assert_alive(house)
        for reader, writer in silent:
            assert b"" == await asyncio.wait_for(reader.read(), SOON)
            writer.close()

    async def test_half_closed_after_a_request(self, house: House):
        """A client that says goodbye with its request: an answer or an end, never a leak."""
        await house.warm()
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "/api/chat", chat_body()))
            wire.writer.write_eof()
            await wire.rest()
        await assert_alive(house)


class TestBadLuck:
    async def test_name_that_does_not_resolve(self, opened, cloud):
        """Never healthy: WARMUP_TIMEOUT, and the pod is stopped."""
        cloud.url = "http://no-such-host.invalid:1234"
        house = await opened(pod__warmup_timeout=0.2)
        answer = await house.chat()
        assert (503, "WARMUP_TIMEOUT") == (answer.status, answer.json["code"])
        await house.off()

    async def test_nobody_listens(self, opened, cloud):
        """The same for a port that refuses."""
        cloud.url = "http://127.0.0.1:9"
        house = await opened(pod__warmup_timeout=0.2)
        assert "WARMUP_TIMEOUT" == (await house.chat()).json["code"]

    async def test_state_directory_that_cannot_be_written(self, opened):
        """No pod is paid for that cannot be put on record: a clear 503, and the gateway lives."""
        house = await opened(state__dir="/proc/nothing-can-be-made-here")
        answer = await house.chat()
        assert (503, "POD_START_FAILED", "config") == (
            answer.status,
            answer.json["code"],
            answer.json["reason"],
        )
        assert "the ledger cannot be used" in answer.json["error"]
        assert "ledger.sqlite3" not in answer.json["error"]  # clients are told no path
        assert 0 == house.cloud.starts
        assert 200 == (await house.ask("GET", "/api/v1/health")).status

    async def test_a_pod_found_running_without_a_ledger(self, opened, cloud):
        """It is adopted, serves, and is stopped and proved as ever."""
        cloud.turn_on()
        house = await opened(state__dir="/proc/nothing-can-be-made-here")
        await house.until(lambda: house.gateway.lifecycle.serving is not None)
        assert 200 == (await house.chat()).status
        await house.stop()
        assert Phase.STOPPED is house.cloud.phase

    async def test_damaged_state(self, tmp_path, opened):
        """Files that make no sense count as empty."""
        (tmp_path / "catalog.json").write_bytes(b"\x00{")
        (tmp_path / "unproved-stops.json").write_bytes(b"[[[")
        house = await opened()
        assert 200 == (await house.chat()).status
