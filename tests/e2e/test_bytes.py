"""The gateway's answers are the pod's, byte for byte; what is lost in the middle never looks whole."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from attrs import define, field
from gpugate_demo.faults import Answer as Planned
from gpugate_demo.faults import BreakAfter

from tests.e2e.support import MODEL, SOON, House, chat_body, request, wire_to

POSTS = [
    ("/api/chat", {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}),
    ("/api/chat", {"model": MODEL, "messages": [], "stream": False}),
    ("/api/generate", {"model": MODEL, "prompt": "hi", "stream": False}),
    ("/api/generate", {"model": MODEL, "prompt": "hi"}),
    ("/api/embed", {"model": "nomic-embed-text", "input": ["a"]}),
    ("/api/chat", {"model": "nothing", "messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/embeddings", {"model": "nomic-embed-text", "input": "a"}),
    (
        "/v1/chat/completions",
        {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True},
    ),
    ("/v1/messages", {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}),
    ("/api/show", {"model": MODEL}),
    ("/api/show", {"model": "nothing"}),
    ("/api/show", {}),
    ("/api/chat", {"messages": []}),
]
GETS = [
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/api/version"),
    ("HEAD", "/api/version"),
    ("GET", "/api/tags"),
    ("HEAD", "/api/tags"),
    ("GET", "/api/ps"),
    ("GET", "/api/status"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/llama3.2:3b"),
    ("GET", "/v1/models/nothing"),
    ("GET", "/api/nothing"),
    ("DELETE", "/api/chat"),
    ("GET", "/api/chat"),
    ("PUT", "/api/nothing"),
    ("GET", "/api/tags/"),
    ("GET", "/api/tags?x=1&y=%20z"),
]
CHANGING = ("created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
CHANGING_V1 = ("created", "id", "expires_at", "size_vram")


def steady(body: bytes) -> object:
    """A body without what changes from one answer to the next."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {
                name: strip(item)
                for name, item in value.items()
                if name not in CHANGING and name not in CHANGING_V1
            }
        return [strip(item) for item in value] if isinstance(value, list) else value

    lines = []
    for line in body.split(b"\n"):
        plain = line.removeprefix(b"data: ")
        try:
            lines.append(strip(json.loads(plain)))
        except ValueError:
            lines.append(line)
    return lines


def kept(headers) -> dict[str, str]:
    """The headers that tell a body's meaning."""
    names = ("Content-Type", "Content-Encoding", "Transfer-Encoding", "Allow", "Location")
    return {name: headers[name] for name in names if name in headers}


@pytest.mark.parametrize(("path", "body"), POSTS, ids=lambda value: value if isinstance(value, str) else "")
async def test_posts_warm(house: House, path, body):
    """Status, content type and body are those of the pod."""
    await house.warm()
    direct = await house.ask("POST", path, url=house.ollama.url, json=body)
    gate = await house.ask("POST", path, json=body)
    assert (direct.status, kept(direct.headers)) == (gate.status, kept(gate.headers))
    assert steady(direct.body) == steady(gate.body)


@pytest.mark.parametrize(
    ("path", "body"), POSTS[:9], ids=lambda value: value if isinstance(value, str) else ""
)
async def test_posts_cold(house: House, path, body):
    """The same when the pod was off."""
    direct = await house.ask("POST", path, url=house.ollama.url, json=body)
    gate = await house.ask("POST", path, json=body)
    assert (direct.status, kept(direct.headers)) == (gate.status, kept(gate.headers))
    assert steady(direct.body) == steady(gate.body)
    assert 1 <= int(gate.headers["X-Gpugate-Waited-Ms"])


@pytest.mark.parametrize(("method", "path"), GETS)
async def test_other_requests_warm(house: House, method, path):
    """HEAD, 404, 405, redirects and queries as the pod has them."""
    await house.warm()
    direct = await house.ask(method, path, url=house.ollama.url)
    gate = await house.ask(method, path)
    assert (direct.status, kept(direct.headers)) == (gate.status, kept(gate.headers))
    assert direct.headers.get("Content-Length") == gate.headers.get("Content-Length")
    assert steady(direct.body) == steady(gate.body)


async def test_query_reaches_the_pod_untouched(house: House):
    """Byte for byte, escapes and all."""
    await house.warm()
    before = len(house.ollama.calls("/api/tags"))
    async with wire_to(house.port) as wire:
        wire.send(request("GET", "/api/tags?a=%2F%20b+c&&d=%C3%A9&e"))
        assert b"200 OK" in await wire.head()
    assert ["a=%2F%20b+c&&d=%C3%A9&e"] == [
        seen.query for seen in house.ollama.calls("/api/tags")[before:] if seen.query
    ]


async def test_raw_bytes_in_a_query_are_refused(house: House):
    """No URI may hold them (RFC 3986): a 400 of our own, and the gateway lives."""
    async with wire_to(house.port) as wire:
        wire.send(request("GET", "/api/tags?d=é".encode().decode("latin-1")))
        assert b" 400 " in await wire.head()
    assert 200 == (await house.ask("GET", "/")).status


@define
class Pod:
    """A pod of our own bytes: answers health as Ollama does, and everything else with `script`.

    Attributes:
        script: pieces to send; a number is a pause in seconds, None closes the connection.
        heard: what was sent to it, health aside.
    """

    script: list[bytes | float | None] = field(factory=list)
    heard: list[bytes] = field(factory=list)
    gone: int = 0
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                body = await reader.readexactly(length)
                if head.startswith((b"GET /api/", b"GET /v1/")):
                    answer = b'{"version":"1"}'
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
                    continue
                self.heard.append(head + body)
                for piece in self.script:
                    if piece is None:
                        return
                    if isinstance(piece, float):
                        await asyncio.sleep(piece)
                    else:
                        writer.write(piece)
                        await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone += 1
        finally:
            writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def own_pod() -> AsyncIterator[Pod]:
    pod = Pod()
    server = await asyncio.start_server(pod.serve, "127.0.0.1", 0)
    pod.port = server.sockets[0].getsockname()[1]
    yield pod
    server.close()


@pytest.fixture
async def pod(cloud) -> AsyncIterator[Pod]:
    async with own_pod() as pod:
        cloud.url = pod.url
        yield pod


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_chunks_come_as_they_were_sent(pod: Pod, house: House):
    """Each chunk of the pod is one chunk for the client, while later ones are not sent yet."""
    pod.script = [HEAD + chunk(b"one\n"), 0.03, chunk(b"two\n"), 0.03, chunk(b"three\n") + b"0\r\n\r\n"]
    await house.warm()
    answer = await house.chat()
    assert [b"one\n", b"two\n", b"three\n"] == answer.chunks


@pytest.mark.parametrize("seed", range(6))
async def test_any_cut_of_the_wire_gives_the_same_bytes(pod: Pod, house: House, seed):
    """However TCP cuts head, chunk sizes and data: the same body."""
    draw = random.Random(seed)
    body = [draw.randbytes(draw.randrange(1, 300)) for _ in range(20)]
    wire = HEAD + b"".join(map(chunk, body)) + b"0\r\n\r\n"
    cuts = sorted(draw.randrange(len(wire)) for _ in range(30))
    pieces: list[bytes | float | None] = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        pieces += [wire[start:end], 0.001]
    pod.script = pieces
    await house.warm()
    answer = await house.chat()
    assert b"".join(body) == answer.body
    assert answer.whole


async def test_gzip_stays_packed(pod: Pod, house: House):
    """Content-Encoding and bytes as the pod sent them; the client's Accept-Encoding reaches it."""
    packed = gzip.compress(b'{"done":true}' * 100)
    pod.script = [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: %d\r\n\r\n" % len(packed) + packed
    ]
    headers = {**house.auth, "Accept-Encoding": "gzip"}
    for _ in ("cold", "warm"):
        answer = await house.ask("POST", "/api/chat", data=chat_body(), headers=headers)
        assert ("gzip", packed) == (answer.headers["Content-Encoding"], answer.body)
    assert b"accept-encoding: gzip" in pod.heard[-1].lower()


async def test_what_the_pod_never_sees(pod: Pod, house: House):
    """The token, the Origin and hop-by-hop headers stay here; Host is the pod's; the rest crosses."""
    pod.script = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"]
    sent = {
        **house.auth,
        "Origin": "https://evil.example",
        "X-Mine": "kept",
        "Te": "trailers",
        "Cookie": "a=b",
        "Connection": "keep-alive, x-hop",
        "X-Hop": "1",
    }
    await house.ask("POST", "/api/chat", data=chat_body(), headers=sent)
    heard = pod.heard[-1].lower()
    for gone in (b"authorization", b"origin:", b"x-hop", b"te:", b"bearer"):
        assert gone not in heard
    assert b"x-mine: kept" in heard
    assert b"host: 127.0.0.1:%d" % pod.port in heard
    assert pod.heard[-1].endswith(chat_body())


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xffnot http at all\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["bytes", "status", "length", "lengths", "huge", "ssh"],
)
async def test_a_pod_that_answers_garbage(pod: Pod, house: House, garbage):
    """A 502 in the caller's dialect; the gateway lives, and nothing is left open."""
    pod.script = [garbage, None]
    await house.warm()
    answer = await house.chat()
    assert (502, "UPSTREAM_ERROR") == (answer.status, answer.json["code"])
    assert 2 == len(pod.heard)
    pod.script = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"]
    assert 200 == (await house.chat()).status


async def test_garbage_between_chunks(pod: Pod, house: House):
    """An answer that goes wrong after it began is left unfinished."""
    pod.script = [HEAD + chunk(b'{"a":1}\n'), 0.02, b"ZZZ\r\nnonsense", None]
    await house.warm()
    answer = await house.chat()
    assert not answer.whole
    assert {"a": 1} == answer.lines[0]
    assert b"nonsense" not in answer.body


async def test_http_1_0_client(house: House):
    """Told by closing: no chunks, no keep-alive; cold too."""
    async with wire_to(house.port) as wire:
        wire.send(request("POST", "/api/chat", chat_body(), version="1.0"))
        head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b" 200 " in head.split(b"\r\n")[0]
    assert [True] == [line["done"] for line in map(json.loads, body.splitlines()) if line["done"]]


async def test_pipelined_requests(house: House):
    """Answered in order, each whole."""
    await house.warm()
    body = b'{"model":"%s","prompt":"hi","stream":false}' % MODEL.encode()
    async with wire_to(house.port) as wire:
        wire.send(
            request("GET", "/api/version") + request("POST", "/api/generate", body) + request("GET", "/")
        )
        answers = [await wire.answer() for _ in range(3)]
    assert [200, 200, 200] == [status for status, _ in answers]
    assert {"version": house.ollama.version} == json.loads(answers[0][1])
    assert json.loads(answers[1][1])["done"]
    assert b"Ollama is running" == answers[2][1]


async def test_pipelined_while_cold(house: House):
    """The second waits for the first; one start."""
    body = b'{"model":"%s","prompt":"hi","stream":false}' % MODEL.encode()
    async with wire_to(house.port) as wire:
        wire.send(request("POST", "/api/generate", body) * 2)
        answers = [await wire.answer() for _ in range(2)]
    assert [200, 200] == [status for status, _ in answers]
    assert 1 == house.cloud.starts


class TestLostInTheMiddle:
    async def test_ndjson(self, house: House):
        """The lines so far, one last line with an error, and no end of the chunks."""
        await house.warm()
        house.ollama.faults.add("/api/chat", BreakAfter(2))
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "/api/chat", chat_body()))
            head = await wire.head()
            body = await wire.rest()
        assert b" 200 " in head.split(b"\r\n")[0]
        assert not body.endswith(b"0\r\n\r\n")
        last = body.rstrip(b"\r\n").split(b"\r\n")[-1]
        assert {"error"} == set(json.loads(last))

    async def test_reset_instead_of_an_end(self, house: House):
        """The same where the pod's end is a RST."""
        await house.warm()
        house.ollama.faults.add("/api/chat", BreakAfter(2, reset=True))
        answer = await house.chat()
        assert not answer.whole
        assert isinstance(answer.lines[-1]["error"], str)

    async def test_ndjson_inside_a_line(self, pod: Pod, house: House):
        """No line is made of two halves: it just stays unfinished."""
        pod.script = [HEAD + chunk(b'{"a":1}\n{"b":'), None]
        await house.warm()
        answer = await house.chat()
        assert (False, b'{"a":1}\n{"b":') == (answer.whole, answer.body)

    async def test_sse(self, house: House):
        """An error event, then a clean end, and never [DONE]."""
        await house.warm()
        house.ollama.faults.add("/v1/chat/completions", BreakAfter(2))
        answer = await house.chat("/v1/chat/completions", stream=True)
        assert answer.whole
        assert b"[DONE]" not in answer.body
        event = answer.body.split(b"\n\n")[-2]
        assert {"message", "type", "param", "code"} == set(json.loads(event.removeprefix(b"data: "))["error"])

    async def test_sse_inside_an_event(self, pod: Pod, house: House):
        """A blank line first, so that the error is an event of its own."""
        pod.script = [
            HEAD.replace(b"application/x-ndjson", b"text/event-stream") + chunk(b'data: {"a"'),
            None,
        ]
        await house.warm()
        answer = await house.chat("/v1/chat/completions", stream=True)
        assert answer.whole
        assert answer.body.startswith(b'data: {"a"\n\ndata: {"error":{')

    async def test_messages(self, house: House):
        """Anthropic's clients listen to `event: error`."""
        await house.warm()
        house.ollama.faults.add("/v1/messages", BreakAfter(2))
        answer = await house.chat("/v1/messages", stream=True, max_tokens=9)
        assert answer.whole
        last = answer.body.split(b"\n\n")[-2].split(b"\n")
        assert b"event: error" == last[0]
        assert "error" == json.loads(last[1].removeprefix(b"data: "))["type"]

    async def test_plain_json(self, house: House):
        """Left unfinished: half the length that was told."""
        await house.warm()
        house.ollama.faults.add("/api/chat", BreakAfter(1))
        answer = await house.chat(stream=False)
        assert not answer.whole

    async def test_packed_stream(self, pod: Pod, house: House):
        """Nothing is appended to bytes that are packed."""
        head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
        pod.script = [head + chunk(b"\x1f\x8b\x08\x00"), None]
        await house.warm()
        answer = await house.chat()
        assert (False, b"\x1f\x8b\x08\x00") == (answer.whole, answer.body)

    async def test_body_that_ends_by_closing_and_is_reset(self, pod: Pod, house: House):
        """Where the end of the connection is the end of the answer, a break is a reset."""
        pod.script = [b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n", b'{"a":1}\n', None]
        await house.warm()
        answer = await house.chat()
        assert (True, b'{"a":1}\n') == (answer.whole, answer.body)

    async def test_the_next_request_on_a_new_connection(self, house: House):
        """A broken answer breaks nothing else."""
        await house.warm()
        house.ollama.faults.add("/api/chat", BreakAfter(2))
        await house.chat()
        assert (await house.chat()).whole
        assert 1 == house.cloud.starts
        assert 0 == house.in_flight


async def test_a_pods_own_errors_pass_untouched(house: House):
    """4xx and 5xx of the pod are its own business."""
    await house.warm()
    planned = Planned(500, b'{"error":"llama runner process has terminated"}')
    house.ollama.faults.add("/api/chat", planned)
    answer = await house.chat()
    assert (500, planned.body) == (answer.status, answer.body)


async def test_a_client_that_reads_slowly(pod: Pod, house: House):
    """Backpressure reaches the pod; every byte arrives in the end."""
    piece = b"x" * 65535 + b"\n"
    pod.script = [HEAD, *[chunk(piece)] * 400, b"0\r\n\r\n"]
    await house.warm()
    async with house.call("POST", "/api/chat", data=chat_body()) as response:
        await asyncio.sleep(0.2)
        protocols = house.gateway._server.connections
        held = sum(p.transport.get_write_buffer_size() for p in protocols if p.transport)
        assert held < 4 * 1024 * 1024
        async with asyncio.timeout(SOON):
            body = await response.read()
    assert len(piece) * 400 == len(body)
