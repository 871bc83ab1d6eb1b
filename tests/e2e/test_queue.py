"""Requests that wait for the pod: one start, first in first out, and every way in which waiting ends."""

from __future__ import annotations

import asyncio
import json

import pytest
from gpugate_demo.faults import Answer as Planned
from gpugate_demo.faults import BreakAfter, CloseBeforeHead, Hang, HangAfter, NotReady
from gpugate_testing import fakes

from gpugate.errors import AuthFailed, NoCapacity, Transient
from gpugate.provider_api import Phase
from tests.e2e.support import CHAT, MODEL, SOON, House, chat_body, request, wire_to

PATHS = ("/api/chat", "/v1/chat/completions", "/v1/messages", "/api/v1/chat")


def code_of(path: str, body):
    """The error's code as a dialect has it; Anthropic's has its type."""
    if path == "/v1/messages":
        assert "error" == body["type"]
        return body["error"]["type"]
    if path.startswith("/v1/"):
        assert {"message", "type", "param", "code"} <= set(body["error"])
        return body["error"]["code"]
    if path.startswith("/api/v1/"):
        assert "error" == body["status"]
        return body["error"]["code"]
    assert isinstance(body["error"], str)
    return body["code"]


def numbered(number: int) -> dict[str, object]:
    return {"model": MODEL, "prompt": f"number {number}"}


class TestWaiting:
    async def test_many_at_once(self, house_on_both: House):
        """Ten clients, one start, ten answers."""
        house = house_on_both
        answers = await asyncio.gather(*[house.chat() for _ in range(10)])
        assert [200] * 10 == [answer.status for answer in answers]
        assert all(answer.lines[-1]["done"] for answer in answers)
        assert 1 == house.cloud.starts

    async def test_first_in_first_out(self, house: House):
        """The pod sees them in the order of their arrival, one at a time."""
        house.cloud.boot_s = 0.25
        asks = []
        for number in range(5):
            asks.append(asyncio.ensure_future(house.ask("POST", "/api/generate", json=numbered(number))))
            await house.waiting(number + 1)
        await asyncio.gather(*asks)
        seen = [json.loads(call.body).get("prompt") for call in house.ollama.calls("/api/generate")]
        assert [f"number {number}" for number in range(5)] == [prompt for prompt in seen if prompt]

    async def test_waited(self, house: House):
        """A held answer says for how long; one that went straight through does not."""
        cold = await house.chat()
        assert 50 <= int(cold.headers["X-Gpugate-Waited-Ms"]) < 30_000
        warm = await house.chat()
        assert "X-Gpugate-Waited-Ms" not in warm.headers

    async def test_preload(self, house: House):
        """The first one's model is loaded before it is let through, and by the gateway itself."""
        await house.chat()
        (load,) = [call for call in house.ollama.calls("/api/generate") if b'"model"' in call.body]
        assert MODEL == json.loads(load.body)["model"]
        assert "Authorization" not in load.headers

    async def test_preload_for_who_lost_the_pod(self, house: House):
        """Nobody had looked which model a request asks for that was admitted at once: now somebody does."""
        await house.warm()
        house.ollama.faults.add("/api/chat", Planned(523, b"", "text/html"), times=2)
        house.cloud.turn_off(at_once=True)
        before = len(house.ollama.calls("/api/generate"))
        assert 200 == (await house.chat()).status
        (preload,) = house.ollama.calls("/api/generate")[before:]
        assert MODEL == json.loads(preload.body)["model"]

    async def test_failed_preload(self, house: House):
        """Does not fail the start."""
        house.ollama.faults.add("/api/generate", Planned(500, b'{"error":"out of memory"}'))
        assert 200 == (await house.chat()).status

    async def test_full(self, opened):
        """One too many: 503 at once, in its dialect; those who wait are served."""
        house = await opened(queue__max_waiting=2)
        house.cloud.boot_s = 0.3
        held = [asyncio.ensure_future(house.chat()) for _ in range(2)]
        await house.waiting(2)
        for path in PATHS:
            answer = await house.chat(path, max_tokens=9)
            expected = "overloaded_error" if path == "/v1/messages" else "QUEUE_FULL"
            assert (503, expected) == (answer.status, code_of(path, answer.json))
            assert 1 <= int(answer.headers["Retry-After"])
        assert [200, 200] == [answer.status for answer in await asyncio.gather(*held)]

    async def test_full_before_the_body_is_read(self, opened):
        """One too many is told so before it sends, one too large has to hear that."""
        house = await opened(queue__max_waiting=1, server__max_body=1000)
        house.cloud.boot_s = 30
        waiting = asyncio.ensure_future(house.chat())
        await house.waiting(1)
        for length, expected in ((100, (503, "QUEUE_FULL")), (1001, (413, "PAYLOAD_TOO_LARGE"))):
            async with wire_to(house.port) as wire:
                head = {**house.auth, "Content-Length": str(length), "Expect": "100-continue"}
                wire.send(request("POST", "/api/chat", headers=head))
                status, body = await wire.answer()
                assert expected == (status, json.loads(body)["code"])
        waiting.cancel()

    @pytest.mark.parametrize("path", ["/api/chat", "/api/v1/story/generate"])
    async def test_bodies_too_large_in_sum(self, opened, path):
        """Of all that wait or are read in order to wait; running ones do not count."""
        house = await opened(queue__max_bytes=3000)
        house.cloud.boot_s = 30
        large = chat_body(prompt="x" * 1200)
        first = asyncio.ensure_future(house.ask("POST", "/api/chat", data=large))
        await house.waiting(1)
        reading = {**house.auth, "Content-Length": "1500"}
        async with wire_to(house.port) as other:
            other.send(request("POST", path, headers=reading) + b"{")
            await asyncio.sleep(0.05)
            refused = await house.ask("POST", path, data=large)
            assert (503, b"QUEUE_FULL" in refused.body) == (refused.status, True)
            assert int(refused.headers["Retry-After"]) > 0
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(house.ask("POST", path, data=large))
        await house.waiting(2)
        for one in (first, second):
            one.cancel()
        await house.waiting(0)

    async def test_bodies_of_running_requests(self, opened):
        """Do not count."""
        house = await opened(queue__max_bytes=1500)
        await house.warm()
        large, go_on = chat_body(prompt="x" * 1200), asyncio.Event()
        house.ollama.faults.add("/api/chat", HangAfter(1, until=go_on), times=None)
        running = [asyncio.ensure_future(house.ask("POST", "/api/chat", data=large)) for _ in range(4)]
        await house.until(lambda: house.in_flight == 4)
        go_on.set()
        assert [200] * 4 == [answer.status for answer in await asyncio.gather(*running)]

    @pytest.mark.parametrize("path", PATHS)
    async def test_too_long(self, opened, path):
        """Waited `max_wait`: 503 QUEUE_TIMEOUT."""
        house = await opened(queue__max_wait=0.1)
        house.cloud.boot_s = 0.5
        answer = await house.chat(path, max_tokens=9)
        expected = "overloaded_error" if path == "/v1/messages" else "QUEUE_TIMEOUT"
        assert (503, expected) == (answer.status, code_of(path, answer.json))
        assert "Retry-After" in answer.headers

    @pytest.mark.parametrize("size", [100, 1_000_000])
    async def test_hang_up(self, house: House, size):
        """Leaves the queue at once, and the pod never sees the request; 1 MB makes no difference."""
        house.cloud.boot_s = 0.3
        async with wire_to(house.port) as wire:
            body = json.dumps({"model": MODEL, "prompt": "x" * size}).encode()
            wire.send(request("POST", "/api/generate", body))
            await house.waiting(1)
            wire.abort()
            await house.waiting(0)
        assert 200 == (await house.chat()).status
        prompts = [json.loads(call.body).get("prompt") for call in house.ollama.calls("/api/generate")]
        assert not any(prompts)

    async def test_half_closed_while_held(self, house: House):
        """A client that closes its sending side is gone, as for every aiohttp server; nothing leaks."""
        house.cloud.boot_s = 0.2
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "/api/chat", chat_body()))
            await house.waiting(1)
            wire.writer.write_eof()
            await house.waiting(0)

    async def test_hang_up_of_one_of_three(self, house: House):
        """The others keep their places."""
        house.cloud.boot_s = 0.3
        first = asyncio.ensure_future(house.ask("POST", "/api/generate", json=numbered(1)))
        await house.waiting(1)
        async with wire_to(house.port) as wire:
            wire.send(request("POST", "/api/generate", json.dumps(numbered(2)).encode()))
            await house.waiting(2)
            third = asyncio.ensure_future(house.ask("POST", "/api/generate", json=numbered(3)))
            await house.waiting(3)
            wire.abort()
            await house.waiting(2)
        assert [200, 200] == [answer.status for answer in await asyncio.gather(first, third)]
        seen = [json.loads(call.body).get("prompt") for call in house.ollama.calls("/api/generate")]
        assert ["number 1", "number 3"] == [prompt for prompt in seen if prompt]

    async def test_late_arrival(self, house: House):
        """Who comes while the pod is stopping waits for the next start."""
        house.cloud.stop_s = 0.5
        await house.warm()
        assert 202 == (await house.ask("POST", "/api/v1/gpu/stop")).status
        assert "STOPPING" == house.gateway.lifecycle.current_status
        answer = await house.chat()
        assert (200, 2) == (answer.status, house.cloud.starts)

    async def test_arrival_at_the_last_moment(self, opened):
        """Idle time over, and again and again somebody comes: never an error, never two pods."""
        house = await opened(pod__idle_timeout=0.05)
        house.cloud.stop_s = 0.02
        house.cloud.boot_s = 0.01
        for pause in (0.0, 0.04, 0.05, 0.055, 0.06, 0.07, 0.08):
            answer = await house.chat()
            assert 200 == answer.status
            await asyncio.sleep(pause)


class TestFailedStarts:
    @pytest.mark.parametrize("path", PATHS)
    async def test_start_failed(self, house: House, path):
        """503 with the reason, and when to try again."""
        house.cloud.fail("start", AuthFailed("the key is wrong"))
        answer = await house.chat(path, max_tokens=9)
        expected = "overloaded_error" if path == "/v1/messages" else "POD_START_FAILED"
        if path == "/v1/messages":
            assert "POD_START_FAILED" == answer.json["error"]["code"]
        assert (503, expected) == (answer.status, code_of(path, answer.json))
        assert "60" == answer.headers["Retry-After"]
        assert b"the key is wrong" in answer.body
        assert b'"reason":"auth"' in answer.body
        if path.startswith("/api/"):
            error = answer.json if path == "/api/chat" else answer.json["error"]
            assert 60 == error["retryAfter"]

    async def test_attempts(self, house: House):
        """Three for transient errors; who waits sees nothing of the first two."""
        house.cloud.fail("start", Transient("502"), Transient("502"))
        assert 200 == (await house.chat()).status
        assert 3 == house.cloud.calls.count("start")

    async def test_attempts_exhausted(self, house: House):
        """All who wait get the error; the next request tries again at once."""
        house.cloud.fail("start", *[Transient("bad gateway")] * 3)
        answers = await asyncio.gather(*[house.chat() for _ in range(3)])
        assert [503] * 3 == [answer.status for answer in answers]
        assert 200 == (await house.chat()).status

    @pytest.mark.parametrize("path", PATHS)
    async def test_warm_up_timeout(self, opened, path):
        """Running, but its Ollama never answers."""
        house = await opened(pod__warmup_timeout=0.15)
        house.ollama.faults.add("/api/version", NotReady(asyncio.Event()), times=None)
        answer = await house.chat(path, max_tokens=9)
        expected = "overloaded_error" if path == "/v1/messages" else "WARMUP_TIMEOUT"
        assert (503, expected) == (answer.status, code_of(path, answer.json))
        assert b"pod failed to become ready" in answer.body
        assert "Retry-After" in answer.headers
        await house.until(lambda: house.cloud.report().phase is Phase.STOPPED)

    async def test_edge_that_answers_for_the_pod(self, house: House):
        """A provider's 404 and 502 are not the pod's Ollama."""
        up = asyncio.Event()
        house.ollama.faults.add(
            "/api/version", NotReady(up, 200, b"<html>soon</html>", "text/html"), times=None
        )
        ask = asyncio.ensure_future(house.chat())
        await house.waiting(1)
        asyncio.get_running_loop().call_later(0.15, up.set)
        answer = await ask
        assert 200 == answer.status
        assert 150 <= int(answer.headers["X-Gpugate-Waited-Ms"])


class TestLostPod:
    async def test_before_the_first_byte(self, house: House):
        """Back in the queue, a new start, and an answer that knows nothing of it."""
        await house.warm()
        house.ollama.faults.add("/api/chat", Hang())
        ask = asyncio.ensure_future(house.chat())
        await house.ollama.until(lambda: len(house.ollama.calls("/api/chat")) == 1)
        house.cloud.turn_off(at_once=True)
        house.gateway.lifecycle._machine.inspect_schedule.schedule(0, 0.0)
        house.gateway.lifecycle._on_timer()
        answer = await asyncio.wait_for(ask, SOON)
        assert (200, 2) == (answer.status, house.cloud.starts)
        assert answer.lines[-1]["done"]
        await house.ollama.until(lambda: house.ollama.calls("/api/chat")[0].cancelled)

    async def test_connection_breaks_and_the_pod_is_gone(self, house: House):
        """The broken connection makes us look; the request waits for the next pod."""
        await house.warm()
        house.ollama.faults.add("/api/chat", CloseBeforeHead(), times=2)
        house.cloud.turn_off(at_once=True)
        answer = await house.chat()
        assert (200, 2) == (answer.status, house.cloud.starts)
        assert "X-Gpugate-Waited-Ms" in answer.headers

    async def test_lost_twice(self, house: House):
        """The second time POD_STOPPED."""
        await house.warm()

        async def die() -> None:
            for lost in range(1, 3):
                await house.ollama.until(lambda lost=lost: len(house.ollama.calls("/api/chat")) >= lost)
                house.cloud.turn_off(at_once=True)
                house.gateway.lifecycle._machine.inspect_schedule.schedule(0, 0.0)
                house.gateway.lifecycle._on_timer()

        house.ollama.faults.add("/api/chat", Hang(), times=2)
        answer, _ = await asyncio.gather(house.chat(), die())
        assert (503, "POD_STOPPED") == (answer.status, answer.json["code"])

    async def test_in_mid_answer(self, house: House):
        """Begun answers break as lost ones do; nobody restarts them."""
        await house.warm()
        house.ollama.faults.add("/api/chat", HangAfter(2))
        ask = await house.begin("POST", "/api/chat", json=CHAT)
        house.cloud.turn_off(at_once=True)
        house.gateway.lifecycle._machine.inspect_schedule.schedule(0, 0.0)
        house.gateway.lifecycle._on_timer()
        answer = await asyncio.wait_for(ask, SOON)
        assert not answer.whole
        assert {"error"} == set(answer.lines[-1])
        assert 1 == len(house.ollama.calls("/api/chat"))

    async def test_endpoint_refuses_connections(self, house: House):
        """The pod's Ollama is away while the provider says running: warming again, and it waits."""
        await house.warm()
        await house.ollama.stop()
        ask = asyncio.ensure_future(house.chat())
        await house.until(lambda: house.gateway.lifecycle.current_status == "WARMING")
        await house.ollama.start()
        assert 200 == (await asyncio.wait_for(ask, SOON)).status
        assert 1 == house.cloud.starts

    @pytest.mark.parametrize("used", [False, True], ids=["fresh", "reused"])
    @pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
    async def test_service_breaks_while_the_pod_lives(self, house: House, used, reset):
        """Tried once more, then UPSTREAM_ERROR: the pod sees the request twice, not more often."""
        await house.warm()
        if used:
            await house.chat()
        before = len(house.ollama.calls("/api/chat"))
        house.ollama.faults.add("/api/chat", CloseBeforeHead(reset=reset), times=None)
        answer = await house.chat()
        assert (502, "UPSTREAM_ERROR") == (answer.status, answer.json["code"])
        assert 2 == len(house.ollama.calls("/api/chat")) - before

    async def test_service_breaks_once(self, house: House):
        """The second try is answered, and the client sees nothing of the first."""
        await house.warm()
        house.ollama.faults.add("/api/chat", CloseBeforeHead())
        answer = await house.chat()
        assert 200 == answer.status
        assert answer.lines[-1]["done"]

    @pytest.mark.parametrize("path", PATHS)
    async def test_upstream_error_in_every_dialect(self, house: House, path):
        """502 as its clients read it."""
        await house.warm()
        upstream = "/api/chat" if path == "/api/v1/chat" else path
        house.ollama.faults.add(upstream, CloseBeforeHead(), times=None)
        answer = await house.chat(path, max_tokens=9)
        expected = "api_error" if path == "/v1/messages" else "UPSTREAM_ERROR"
        assert (502, expected) == (answer.status, code_of(path, answer.json))

    async def test_gone_endpoint_after_a_restart_elsewhere(self, house: House):
        """A pod that moves to another address is followed."""
        await house.warm()
        await house.chat()
        await house.stop()
        await house.ollama.stop()
        house.ollama.port = 0
        await house.ollama.start()
        house.cloud.url = house.ollama.url
        assert 200 == (await house.chat()).status

    @pytest.mark.parametrize("away_s", [0, 0.4])
    @pytest.mark.parametrize("moves", [True, False])
    async def test_ollama_restarts_inside_a_pod_that_runs(self, house: House, moves, away_s):
        """With another port or the same: all requests wait for it and are answered, the first as well."""
        await house.warm()
        await house.chat()
        await house.ollama.stop()

        async def back() -> None:
            await asyncio.sleep(away_s)
            house.ollama.port = 0 if moves else house.ollama.port
            await house.ollama.start()
            house.cloud.url = house.ollama.url

        if not away_s:
            await back()
        asks = [
            house.chat(),
            house.ask("POST", "/api/v1/story/generate", json={"prompt": "a fox"}),
            house.ask("POST", "/api/v1/code/assist", json={"code": "x = 1", "question": "what is it?"}),
        ]
        answers = asyncio.gather(*asks)
        if away_s:
            await back()
        assert [200, 200, 200] == [answer.status for answer in await answers]
        assert 1 == house.cloud.starts


class TestMaxSession:
    async def test_reached_while_idle(self, opened):
        """The pod is stopped; who comes gets a new start."""
        house = await opened(pod__max_session=1)
        assert 200 == (await house.chat()).status
        await house.off()
        assert 200 == (await house.chat()).status
        assert 2 == house.cloud.starts

    async def test_reached_in_mid_answer(self, opened):
        """The answer has the grace, then it breaks; who comes meanwhile waits for a new start."""
        house = await opened(pod__max_session=0.5, pod__drain_grace=0.3)
        house.ollama.faults.add("/api/chat", HangAfter(1))
        ask = asyncio.ensure_future(house.chat())
        await house.until(lambda: type(house.gateway.lifecycle._machine.state).__name__ == "Draining")
        later = asyncio.ensure_future(house.chat())
        answer = await asyncio.wait_for(ask, SOON)
        assert not answer.whole
        assert 200 == (await asyncio.wait_for(later, SOON)).status
        assert 2 == house.cloud.starts


async def test_answer_lost_but_pod_started(house: House):
    """A start whose answer was lost is looked up, not asked for twice."""
    house.cloud.fail("start", fakes.LostAnswer(Transient("timeout")))
    assert 200 == (await house.chat()).status
    assert 1 == house.cloud.starts


async def test_no_capacity_then_some(opened):
    """`capacity_wait` keeps asking within the same held request."""
    house = await opened(pod__capacity_wait=0.2)
    house.cloud.fail("start", NoCapacity("none free"))
    assert 200 == (await house.chat()).status


async def test_broken_stream_gives_its_lease_back(house: House):
    """After a break nothing is in flight, and the idle clock runs."""
    await house.warm()
    house.ollama.faults.add("/api/chat", BreakAfter(1))
    await house.chat()
    await house.until(lambda: house.in_flight == 0)
    assert house.idle_for() is not None
    assert CHAT["model"] == MODEL
