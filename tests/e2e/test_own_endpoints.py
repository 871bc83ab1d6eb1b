"""gpugate's own endpoints, tokens and scopes, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager

import jwt
import pytest
from gpugate_demo.faults import Hang, HangAfter
from gpugate_testing import fakes
from gpugate_testing.fakes import FakeCloud

from gpugate.api.events import SseBroadcaster
from gpugate.errors import Transient
from tests.e2e.conftest import Log, Opener
from tests.e2e.support import (
    CHAT,
    SECRET,
    SOON,
    House,
    bearer,
    chat_body,
    open_house,
    part_of,
    request,
    token,
    wire_to,
)

FORGET_S = 0.02

STATUS_FIELDS = {
    "status",
    "provider",
    "pod_id",
    "since",
    "uptime_seconds",
    "waiting",
    "in_flight",
    "idle_seconds",
    "stops_in_seconds",
    "hourly_rate",
    "estimated_cost",
    "ready_in_seconds",
    "ready_in_p90_seconds",
    "last_error",
}


def assert_envelope(answer, status: str = "success"):
    """The shape of every answer under /api/v1."""
    assert {"status", "data", "error", "meta"} == set(answer.json)
    assert status == answer.json["status"]
    assert answer.headers["X-Request-Id"] == answer.json["meta"]["requestId"]
    assert answer.json["meta"]["timestamp"].endswith("Z")
    assert "application/json" == answer.headers["Content-Type"].partition(";")[0]


class TestHealth:
    async def test_no_token(self, house: House):
        """Anybody may ask; the pod is not touched."""
        looks = len(house.cloud.calls)
        answer = await house.ask("GET", "/api/v1/health", headers={})
        assert_envelope(answer)
        assert {"status", "version", "pod"} == set(answer.json["data"])
        assert ("ok", "STOPPED") == (answer.json["data"]["status"], answer.json["data"]["pod"])
        assert looks == len(house.cloud.calls)

    async def test_head(self, house: House):
        """The head alone."""
        answer = await house.ask("HEAD", "/api/v1/health", headers={})
        assert (200, b"") == (answer.status, answer.body)

    async def test_wrong_token(self, house: House):
        """Is not even looked at."""
        answer = await house.ask("GET", "/api/v1/health", headers={"Authorization": "Bearer nonsense"})
        assert 200 == answer.status


class TestStatus:
    async def test_off(self, house: House):
        """Every field, unknown ones null."""
        answer = await house.ask("GET", "/api/v1/gpu/status")
        assert_envelope(answer)
        data = answer.json["data"]
        pods = data.pop("pods")
        assert [("main", STATUS_FIELDS)] == [(one.pop("pod"), set(one)) for one in pods]
        assert STATUS_FIELDS == set(data)
        assert ("STOPPED", "fake", 0, 0) == tuple(
            data[name] for name in ("status", "provider", "waiting", "in_flight")
        )
        nulls = {"pod_id", "uptime_seconds", "idle_seconds", "stops_in_seconds", "estimated_cost"}
        assert {None} == {data[name] for name in nulls}

    async def test_ready(self, house: House):
        """Pod, price, age and cost."""
        await house.warm()
        data = await house.status()
        assert ("READY", "fake-1", 0.44) == (data["status"], data["pod_id"], data["hourly_rate"])
        assert 0 < data["uptime_seconds"] < 10
        assert 0 <= data["estimated_cost"] < 0.01
        assert 890 < data["stops_in_seconds"] <= 900

    async def test_starting(self, house: House):
        """Who waits is counted; the second start knows how long the first one took, and tells a client."""
        await house.warm()
        await house.stop()
        house.cloud.boot_s = 0.3
        ask = asyncio.ensure_future(house.chat())
        await house.waiting(1)
        data = await house.status()
        assert (1, 0, "STARTING") == (data["waiting"], data["in_flight"], data["status"])
        assert 0 < data["ready_in_seconds"] <= data["ready_in_p90_seconds"] < 5
        absent = await house.ask("GET", "/api/experimental/none")
        assert (503, True) == (absent.status, int(absent.headers["Retry-After"]) <= 5)
        await ask

    async def test_a_full_queue(self, opened: Opener):
        """`Retry-After` is when the pod will probably be ready; without earlier starts as configured."""
        house = await opened(queue__max_waiting=1, queue__max_wait="0.2s")
        await house.warm()
        await house.stop()
        house.cloud.boot_s = 3.0
        waits = asyncio.ensure_future(house.chat())
        await house.waiting(1)
        refused = await house.chat()
        assert (503, "QUEUE_FULL") == (refused.status, refused.headers["X-Gpugate-Code"])
        assert int(refused.headers["Retry-After"]) <= 5
        late = await waits
        assert (503, "QUEUE_TIMEOUT") == (late.status, late.headers["X-Gpugate-Code"])
        assert int(late.headers["Retry-After"]) <= 60

    async def test_after_a_restart(self, tmp_path, ollama):
        """How long starts take is learned from the ledger."""
        async with open_house(tmp_path, ollama) as house:
            await house.warm()
            await house.stop()
        async with open_house(tmp_path, ollama, FakeCloud(boot_s=3.0)) as house:
            await house.off()
            await house.ask("POST", "/api/v1/gpu/start")
            data = await house.status()
            assert 0 <= data["ready_in_seconds"] <= data["ready_in_p90_seconds"] < 5

    async def test_trouble(self, house: House):
        """The last error is told, until something goes well."""
        house.cloud.fail("start", *[Transient("the API is down")] * 3)
        assert 503 == (await house.chat()).status
        assert "the API is down" in (await house.status())["last_error"]

    async def test_provider_that_cannot_be_asked(self, tmp_path, ollama, cloud, monkeypatch):
        """503 PROVIDER_UNAVAILABLE while it is not known what runs; health answers all the same."""
        cloud.fail("inspect", *[Transient("no route")] * 50)
        async with open_house(tmp_path, ollama, cloud) as house:
            lifecycle = house.gateway.lifecycle
            monkeypatch.setattr(lifecycle, "status", lambda _: type(lifecycle).status(lifecycle, 0.05))
            answer = await house.ask("GET", "/api/v1/gpu/status")
            assert (503, "PROVIDER_UNAVAILABLE") == (answer.status, answer.json["error"]["code"])
            assert "Retry-After" in answer.headers
            health = await house.ask("GET", "/api/v1/health", headers={})
            assert (200, None) == (health.status, health.json["data"]["pod"])
            cloud.faults.clear()


class TestByHand:
    async def test_start_is_idempotent(self, house: House):
        """202 and the status, as often as asked; one pod."""
        for _ in range(3):
            answer = await house.ask("POST", "/api/v1/gpu/start")
            assert_envelope(answer)
            assert 202 == answer.status
            assert STATUS_FIELDS == set(answer.json["data"])
        await house.until(lambda: house.gateway.lifecycle.serving is not None)
        assert 1 == house.cloud.starts

    @pytest.mark.parametrize(("method", "path"), [("POST", "/api/v1/gpu/stop"), ("DELETE", "/api/v1/gpu")])
    async def test_stop(self, house: House, method, path):
        """202, and the pod goes off."""
        await house.warm()
        answer = await house.ask(method, path)
        assert_envelope(answer)
        assert 202 == answer.status
        await house.off()
        assert 202 == (await house.ask(method, path)).status

    @pytest.mark.parametrize(("method", "path"), [("POST", "/api/v1/gpu/stop"), ("DELETE", "/api/v1/gpu")])
    async def test_stop_while_in_flight(self, house: House, method, path):
        """409; forced, the stream breaks unfinished."""
        await house.warm()
        house.ollama.faults.add("/api/chat", HangAfter(1))
        ask = await house.begin("POST", "/api/chat", json=CHAT)
        answer = await house.ask(method, path)
        assert_envelope(answer, "error")
        assert (409, "POD_BUSY") == (answer.status, answer.json["error"]["code"])
        assert 202 == (await house.ask(method, path + "?force=true")).status
        broken = await asyncio.wait_for(ask, SOON)
        assert not broken.whole
        await house.off()

    async def test_forced_stop_before_the_first_byte(self, house: House):
        """A lease whose answer has not begun gets POD_STOPPED, as one that waits."""
        await house.warm()
        house.ollama.faults.add("/api/chat", Hang())
        ask = asyncio.ensure_future(house.chat())
        await house.ollama.until(lambda: len(house.ollama.calls("/api/chat")) == 1)
        await house.ask("POST", "/api/v1/gpu/stop?force=1")
        answer = await asyncio.wait_for(ask, SOON)
        assert (503, "POD_STOPPED") == (answer.status, answer.json["code"])
        await house.off()
        assert 1 == house.cloud.starts

    async def test_stop_while_somebody_waits(self, house: House):
        """409; forced, who waits gets POD_STOPPED and nothing starts again."""
        house.cloud.boot_s = 0.5
        ask = asyncio.ensure_future(house.chat())
        await house.waiting(1)
        assert 409 == (await house.ask("POST", "/api/v1/gpu/stop?force=false")).status
        assert 202 == (await house.ask("POST", "/api/v1/gpu/stop?force=true")).status
        answer = await asyncio.wait_for(ask, SOON)
        assert (503, "POD_STOPPED") == (answer.status, answer.json["code"])
        assert "false" == answer.headers["x-should-retry"]
        await house.off()
        assert 1 == house.cloud.starts

    async def test_strange_force(self, house: House):
        """400, naming the field."""
        answer = await house.ask("POST", "/api/v1/gpu/stop?force=maybe")
        assert (400, "INVALID_REQUEST") == (answer.status, answer.json["error"]["code"])
        assert "force" in answer.json["error"]["message"]

    async def test_wrong_method(self, house: House):
        """405 in the envelope."""
        answer = await house.ask("GET", "/api/v1/gpu/start")
        assert_envelope(answer, "error")
        assert 405 == answer.status
        assert "POST" == answer.headers["Allow"]
        assert "POST" in answer.json["error"]["message"]

    async def test_who_answers(self, house: House):
        """gpugate's own answers tell no version."""
        for path in ("/api/v1/health", "/api/tags", "/api/nothing", "/nothing"):
            assert "gpugate" == (await house.ask("GET", path)).headers["Server"]
        async with house.call("GET", "/api/v1/gpu/events") as response:
            assert "gpugate" == response.headers["Server"]

    @pytest.mark.parametrize("path", ["/api/v1/nothing", "/dashboards", "/metrics", "/nothing", "/api/v1"])
    async def test_nothing_there(self, house: House, path):
        """404 in the envelope."""
        answer = await house.ask("GET", path)
        assert_envelope(answer, "error")
        assert (404, None) == (answer.status, answer.json["data"])


class TestRequestId:
    @pytest.mark.parametrize("path", ["/", "/api/tags", "/api/v1/health", "/api/v1/gpu/status", "/nothing"])
    async def test_sane_one_is_kept(self, house: House, path):
        """The client's own comes back, once."""
        answer = await house.ask("GET", path, headers={**house.auth, "X-Request-Id": "mine-1.2_3"})
        assert ["mine-1.2_3"] == answer.headers.getall("X-Request-Id")

    async def test_proxied(self, house: House):
        """On the pod's answers too, cold and warm."""
        for _ in ("cold", "warm"):
            answer = await house.ask(
                "POST", "/api/chat", data=chat_body(), headers={**house.auth, "X-Request-Id": "mine"}
            )
            assert ["mine"] == answer.headers.getall("X-Request-Id")

    @pytest.mark.parametrize("bad", ["", "a b", "x" * 200, "é", token(), "<script>"])
    async def test_strange_one_is_replaced(self, house: House, bad):
        """By one of ours; a token is never taken for an id."""
        answer = await house.ask("GET", "/", headers={"X-Request-Id": bad})
        assert bad != answer.headers["X-Request-Id"]
        assert 16 == len(answer.headers["X-Request-Id"])

    async def test_malformed_requests_have_one_too(self, house: House):
        """Every response carries it, also those to something that is no HTTP."""
        async with wire_to(house.port) as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n")
            head = await wire.head()
        assert b" 400 " in head.split(b"\r\n")[0]
        assert b"\r\nx-request-id: " in head.lower()


class TestTokens:
    CASES = (
        ({}, "INVALID_TOKEN", "token is missing or malformed"),
        ({"Authorization": "Bearer"}, "INVALID_TOKEN", "token is missing or malformed"),
        ({"Authorization": "Bearer a.b.c"}, "INVALID_TOKEN", "token is missing or malformed"),
        ({"Authorization": "Basic YTpi"}, "INVALID_TOKEN", "token is missing or malformed"),
        (
            {"Authorization": "Bearer " + jwt.encode({"sub": "a", "exp": 2e9}, "x" * 40, "HS256")},
            "INVALID_TOKEN",
            "token signature is invalid",
        ),
        (
            {"Authorization": "Bearer " + jwt.encode({"sub": "a"}, SECRET, "HS256")},
            "INVALID_TOKEN",
            "token is missing or malformed",
        ),
        (
            {"Authorization": "Bearer " + jwt.encode({"sub": "a", "exp": 10**9}, SECRET, "HS256")},
            "TOKEN_EXPIRED",
            "token has expired",
        ),
    )

    @pytest.mark.parametrize(("headers", "code", "message"), CASES)
    async def test_three_kinds_of_401(self, house: House, headers, code, message):
        """In every dialect; nothing downstream runs."""
        for path in ("/api/chat", "/v1/chat/completions", "/v1/messages", "/api/v1/gpu/start", "/nothing"):
            answer = await house.ask("POST", path, headers=headers, data=chat_body())
            assert 401 == answer.status
            assert "Bearer" in answer.headers["WWW-Authenticate"]
            error = answer.json["error"]
            assert message == (error if path == "/api/chat" else error["message"])
            if path == "/v1/messages":
                assert "authentication_error" == error["type"]
            else:
                assert code == (answer.json["code"] if path == "/api/chat" else error["code"])
        assert 0 == house.cloud.calls.count("start")
        assert 0 == len(house.ollama.seen)

    @pytest.mark.parametrize("expect", [True, False])
    async def test_before_the_body(self, house: House, expect):
        """The 401 comes although the body is never sent, and without an invitation to send it."""
        headers = {"Content-Length": "1000000", **({"Expect": "100-continue"} if expect else {})}
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "/api/chat", headers=headers))
            assert (await wire.head()).startswith(b"HTTP/1.1 401 ")

    async def test_before_a_chunked_body(self, house: House):
        """The same where no length was told."""
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "/api/chat", headers={"Transfer-Encoding": "chunked"}))
            assert (await wire.head()).startswith(b"HTTP/1.1 401 ")

    async def test_every_get_needs_one(self, house: House):
        """All but `/` and health."""
        paths = ("/api/tags", "/api/ps", "/api/version", "/v1/models", "/api/v1/gpu/status", "/api/x", "/x")
        for path in paths:
            assert 401 == (await house.ask("GET", path, headers={})).status, path
        for path in ("/", "/api/v1/health"):
            assert 200 == (await house.ask("GET", path, headers={})).status

    async def test_expiry_is_kept_on_a_warm_connection(self, opened):
        """A token that was good a moment ago is refused once it has expired."""
        house = await opened(auth__leeway=0)
        expires_at = time.time() + 2
        headers = bearer(exp=expires_at)
        assert 200 == (await house.ask("GET", "/api/ps", headers=headers)).status
        await asyncio.sleep(expires_at - time.time() + 0.05)
        answer = await house.ask("GET", "/api/ps", headers=headers)
        assert (401, "TOKEN_EXPIRED") == (answer.status, answer.json["code"])

    @pytest.mark.parametrize("place", ["bearer", "basic", "x-api-key", "path", "path, others are bad"])
    async def test_each_place(self, opened, place):
        """It is accepted, remembered, and never forwarded."""
        house = await opened(auth__path_tokens=True)
        await house.warm()
        for path in ("/api/tags", "/api/chat", "/v1/messages", "/v1/models"):
            method = "GET" if path in ("/api/tags", "/v1/models") else "POST"
            body = {} if method == "GET" else {"json": {**CHAT, "max_tokens": 5}}
            for _ in ("new", "known"):
                prefix, headers = in_place(place, token())
                answer = await house.ask(method, prefix + path, headers=headers, **body)
                assert 200 == answer.status, (place, path)
        for seen in house.ollama.seen:
            text = f"{seen.path} {dict(seen.headers)}"
            assert "eyJ" not in text
            assert base64.b64encode(b"me:eyJ")[:8].decode() not in text

    @pytest.fixture
    async def talkative(self, log: Log, opened) -> House:
        """A gateway whose requests are in `log`."""
        return await opened(log__level="info")

    async def test_reason_in_the_log(self, log: Log, talkative: House):
        """The line of a 401 says why, and nothing of the token; nor does the line of a 403."""
        house = talkative
        tokens = [token(exp=time.time() - 7330), token()[:-9] + "A" * 9, token(scope="cost"), token()]
        for text in tokens:
            await house.ask("GET", "/api/tags", headers={"X-Api-Key": text})
        await house.ask("GET", "/api/tags", headers={})
        reasons = [
            (line["status"], line.get("reason"))
            for line in log.lines("request")
            if line["path"] == "/api/tags"
        ]
        assert [
            (401, "token has expired: 2h2m ago"),
            (401, "token signature is invalid: signed with another key"),
            (403, "the token's scope does not cover this (needed: chat)"),
            (200, None),
            (401, "token is missing or malformed: there is none"),
        ] == reasons
        assert 1 == log.text.count("the token of tester ends on ")  # in ten minutes
        assert not any(part in log.text for text in tokens for part in text.split(".")[1:])

    async def test_none_stays_in_memory(self, opened, monkeypatch):
        """Once a request is over, nothing holds its token, good or bad, though its connection stays open."""
        house = await opened(auth__path_tokens=True)
        monkeypatch.setattr("gpugate.proxy.dispatcher.FORGET_S", FORGET_S)
        gc.unfreeze()  # what was frozen would not be looked through
        gc.disable()  # a cycle would keep a token until the collector comes
        needles = []
        try:
            async with wire_to(house.port) as wire:
                for place in ("bearer", "basic", "x-api-key", "path"):
                    for claims in ({}, {"exp": 1}, {"exp": "soon"}):
                        text = token(jti=f"{place} {claims}", **claims)
                        prefix, headers = in_place(place, text)
                        wire.send(request("GET", f"{prefix}/api/some/new", headers=headers))
                        await wire.answer()
                        basic = base64.b64encode(f"me:{text}".encode()).decode()
                        needles += [text[-30:][::-1], basic[-30:][::-1]]  # reversed: not found themselves
                        del text, prefix, headers, basic
                wire.send(request("GET", "/", headers={}))
                await wire.answer()
                await asyncio.sleep(2 * FORGET_S)
                assert [] == [
                    text for text in texts_in_memory(over=30) if any(n[::-1] in text for n in needles)
                ]
        finally:
            gc.enable()


def texts_in_memory(over: int) -> Iterator[str]:
    """Every text of more than so many characters that an object holds."""
    known, rest = set(), gc.get_objects()
    while rest:
        found = rest.pop()
        if id(found) in known:
            continue
        known.add(id(found))
        if isinstance(found, str | bytes | bytearray):
            if len(found) > over:
                yield found if isinstance(found, str) else found.decode("latin-1")
        else:
            rest += gc.get_referents(found)


def in_place(place: str, text: str) -> tuple[str, dict[str, str]]:
    """The path's prefix and the headers with a token in this place."""
    basic = base64.b64encode(f"me:{text}".encode()).decode()
    return {
        "bearer": ("", {"Authorization": f"Bearer {text}", "X-Api-Key": "x"}),
        "basic": ("", {"Authorization": f"Basic {basic}", "Referer": f"http://me:{text}@gate/"}),
        "x-api-key": ("", {"X-Api-Key": text, "api-key": text}),
        "path": (f"/k/{text}", {"X-Forwarded-Uri": f"/k/{text}/api/tags"}),
        "path, others are bad": (f"/k/{text}", {"Authorization": "Bearer a.b.c", "X-Api-Key": "x"}),
    }[place]


CHAT_PATHS = [
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("GET", "/api/tags"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/messages"),
    ("POST", "/api/v1/chat"),
    ("POST", "/api/some/new"),
    ("GET", "/api/some/new"),
]
POD_PATHS = [("POST", "/api/v1/gpu/start"), ("POST", "/api/v1/gpu/stop"), ("DELETE", "/api/v1/gpu")]
ADMIN_PATHS = [
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:" + "0" * 64),
    ("HEAD", "/api/blobs/sha256:" + "0" * 64),
]
FREE_PATHS = [("GET", "/api/v1/gpu/status")]
SCOPES = {
    "chat": CHAT_PATHS,
    "pod": POD_PATHS,
    "cost": [],
    "": [],
    "unknown": [],
    "chat pod": CHAT_PATHS + POD_PATHS,
}


class TestScopes:
    @pytest.mark.parametrize("scope", SCOPES)
    async def test_what_a_scope_covers(self, opened, scope):
        """403 for all else, in the dialect of the path, before the body."""
        house = await opened(pod__start_attempts=1)
        house.cloud.fail("start", *[Transient("no")] * 99)
        headers = bearer(scope=scope)
        for method, path in CHAT_PATHS + POD_PATHS + ADMIN_PATHS + FREE_PATHS:
            answer = await house.ask(method, path, headers=headers, json={"model": ""})
            covered = (method, path) in SCOPES[scope] + FREE_PATHS
            assert covered == (answer.status != 403), (method, path, answer.status)
            if answer.status == 403 and method != "HEAD":
                assert b"FORBIDDEN" in answer.body or b"permission_error" in answer.body

    @pytest.mark.parametrize("claims", [{}, {"scope": "admin"}])
    async def test_no_claim_and_admin_cover_all(self, opened, claims):
        house = await opened(pod__start_attempts=1)
        house.cloud.fail("start", *[Transient("no")] * 99)
        for method, path in CHAT_PATHS + POD_PATHS + ADMIN_PATHS:
            answer = await house.ask(method, path, headers=bearer(**claims), json={"model": ""})
            assert answer.status not in (401, 403), path

    async def test_before_the_body(self, house: House):
        """Forbidden although the body is never sent."""
        headers = {**bearer(scope="pod"), "Content-Length": "1000000", "Expect": "100-continue"}
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "/api/chat", headers=headers))
            assert (await wire.head()).startswith(b"HTTP/1.1 403 ")


class TestPathTokens:
    async def test_on(self, opened):
        """The command line's way: a token in the path, for /api, /v1 and the root."""
        house = await opened(auth__path_tokens=True)
        prefix = "/k/" + token()
        assert 200 == (await house.ask("HEAD", prefix + "/", headers={})).status
        answer = await house.ask("POST", prefix + "/api/chat", headers={}, data=chat_body())
        assert answer.lines[-1]["done"]
        assert 200 == (await house.ask("GET", prefix + "/v1/models", headers={})).status
        assert all("/k/" not in call.path for call in house.ollama.seen)

    async def test_wrong_token(self, opened):
        """401, unless there is a good one in a header."""
        house = await opened(auth__path_tokens=True)
        answer = await house.ask("GET", "/k/nonsense/api/tags", headers={})
        assert (401, "INVALID_TOKEN") == (answer.status, answer.json["code"])
        assert 200 == (await house.ask("GET", "/k/nonsense/api/tags")).status

    async def test_redirect_keeps_the_prefix(self, opened):
        """So that the client finds its way back."""
        house = await opened(auth__path_tokens=True)
        prefix = "/k/" + token()
        answer = await house.ask("GET", prefix + "/api/tags/", headers={})
        assert (301, prefix + "/api/tags") == (answer.status, answer.headers["Location"])

    async def test_off(self, house: House):
        """404 whoever asks, and the path's token counts for nothing."""
        for headers in ({}, house.auth):
            answer = await house.ask("GET", f"/k/{token()}/api/tags", headers=headers)
            assert_envelope(answer, "error")
            assert 404 == answer.status


@asynccontextmanager
async def events_of(house: House, last_id: str | None = None):
    """An event stream; yields a function that reads the next event."""
    headers = {**house.auth, **({"Last-Event-ID": last_id} if last_id else {})}
    async with house.call("GET", "/api/v1/gpu/events", headers=headers) as response:
        assert 200 == response.status
        assert "text/event-stream" == response.headers["Content-Type"].partition(";")[0]
        assert response.headers["X-Request-Id"]

        async def following():
            fields: dict[str, str] = {}
            async with asyncio.timeout(SOON):
                while line := (await response.content.readline()).decode().rstrip("\n"):
                    if not line.startswith(":"):
                        name, _, value = line.partition(": ")
                        fields[name] = value
            return fields.get("event"), json.loads(fields["data"]), fields["id"]

        yield following


class TestEvents:
    async def test_present_state_first(self, house: House):
        """Then every step of the pod's life."""
        async with events_of(house) as following:
            kind, data, _ = await following()
            assert ("state", {*STATUS_FIELDS, "pod"}, "STOPPED") == (kind, set(data), data["status"])
            await house.chat()
            await house.stop()
            steps, kinds = [], set()
            while not steps or steps[-1] != "STOPPED":
                kind, data, _ = await following()
                kinds.add(kind)
                if kind == "state" and (not steps or steps[-1] != data["status"]):
                    steps.append(data["status"])
        assert ["STARTING", "WARMING", "READY", "STOPPING", "STOPPED"] == steps
        assert {"state", "queue", "session"} == kinds

    async def test_sessions(self, house: House):
        """Begin and end, with the cost."""
        async with events_of(house) as following:
            await following()
            await house.warm()
            await house.stop()
            told = []
            while len(told) < 2:
                kind, data, _ = await following()
                if kind == "session":
                    told.append(data)
        assert ["began", "ended"] == [data["event"] for data in told]
        assert "fake-1" == told[0]["pod_id"]
        assert 0 < told[1]["cost"] < 0.01

    async def test_provider_error(self, house: House):
        """What the provider complained of."""
        async with events_of(house) as following:
            await following()
            house.cloud.fail("start", Transient("bad gateway"))
            await house.chat()
            kind, data, _ = await following()
            while kind != "provider_error":
                kind, data, _ = await following()
        assert ("fake", "bad gateway", "transient") == (data["provider"], data["message"], data["reason"])

    async def test_resumed(self, house: House):
        """`Last-Event-ID` brings what was missed, once, and no present state."""
        async with events_of(house) as following:
            _, _, last = await following()
        await house.warm()
        missed = []
        async with events_of(house, last) as following:
            while not missed or missed[-1] != "READY":
                kind, data, last = await following()
                assert kind != "state" or "was" in data
                if kind == "state":
                    missed.append(data["status"])
        assert "STARTING" == missed[0]
        async with events_of(house, last) as following:
            await house.stop()
            kind, data, _ = await following()
            assert ("state", "STOPPING") == (kind, data["status"])

    @pytest.mark.parametrize("last", ["0000-1", "nonsense", "-", "00000000-99999999999"])
    async def test_unknown_last_id(self, house: House, last):
        """The present state, as for a newcomer."""
        async with events_of(house, last) as following:
            kind, data, _ = await following()
            assert ("state", {*STATUS_FIELDS, "pod"}) == (kind, set(data))

    async def test_readers_that_left(self, house: House):
        """Are forgotten."""
        for _ in range(5):
            async with events_of(house) as following:
                await following()
        hub = part_of(house.gateway, SseBroadcaster)
        await house.until(lambda: not hub._readers)

    async def test_never_wakes(self, house: House):
        async with events_of(house) as following:
            await following()
        assert 0 == house.cloud.starts

    async def test_ends_with_the_gateway(self, tmp_path, ollama, cloud):
        """A clean end, and no delay of the exit."""
        async with open_house(tmp_path, ollama, cloud) as house, events_of(house) as following:
            await following()
            await asyncio.wait_for(house.gateway.close(), 5)

    async def test_head_is_refused(self, house: House):
        """405, not a stream."""
        assert 405 == (await house.ask("HEAD", "/api/v1/gpu/events")).status


async def test_stop_that_is_not_proved(opened):
    """STOPPING with last_error, for as long as it takes; `start` is possible all the same."""
    house = await opened(pod__stop_retry=0.05)
    await house.warm()
    house.cloud.ignore_stops = 2
    await house.ask("POST", "/api/v1/gpu/stop")
    await house.until(lambda: house.cloud.calls.count("stop") >= 2)
    data = await house.status()
    assert "STOPPING" == data["status"]
    assert "not proved" in data["last_error"]
    await house.off()
    assert fakes.Phase.STOPPED is house.cloud.report().phase
