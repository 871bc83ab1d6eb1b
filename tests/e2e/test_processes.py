"""`gpugate serve` as a process: signals, kills and restarts, and what they leave of the pod."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from gpugate_demo.faults import HangAfter, NotReady

from tests.e2e.process import Ground, filed_ground
from tests.e2e.support import CHAT, chat_body, request, wire_to


@pytest.fixture
def ground(tmp_path, ollama) -> Ground:
    """A ground with quick settings; pod and cloud are the test's own."""
    return filed_ground(tmp_path, ollama.url, "[server]\nshutdown_grace = 5\nstop_wait = 5\n")


def gone(ground: Ground) -> bool:
    return not (ground.cloud / "running").exists()


async def test_term_stops_the_pod(ground: Ground):
    """SIGTERM: the pod is stopped and seen stopped, exit 0, and no word of alarm."""
    async with ground.serve() as gateway:
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            assert b'"done":true' in await response.read()
        assert not gone(ground)
        gateway.signal()
        assert 0 == await gateway.ended()
    assert gone(ground)
    assert "Traceback" not in gateway.lines
    assert "alarm" not in gateway.lines


async def test_interrupt_with_the_pod_off(ground: Ground):
    """Ctrl-C: exit 0 at once."""
    async with ground.serve() as gateway:
        gateway.signal(signal.SIGINT)
        assert 0 == await gateway.ended()
    assert "Traceback" not in gateway.lines


async def test_running_answers_have_their_grace(ground: Ground, ollama):
    """What streams goes on to its end; nobody new is let in, by a new connection or an old one."""
    go_on = asyncio.Event()
    ollama.faults.add("/api/chat", HangAfter(2, until=go_on))
    async with ground.serve() as gateway, wire_to(gateway.port) as kept:
        kept.send(request("GET", "/api/v1/health"))
        await kept.answer()
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            await response.content.readany()
            gateway.signal()
            await until_refused(gateway.port)
            kept.send(request("POST", "/api/chat", chat_body()))
            status, body = await kept.answer()
            assert (503, "SHUTTING_DOWN") == (status, json.loads(body)["code"])
            go_on.set()
            assert json.loads((await response.read()).splitlines()[-1])["done"]
        assert 0 == await gateway.ended()
    assert gone(ground)


async def until_refused(port: int) -> None:
    """Wait until the port takes no new connection."""
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:  # it was closed between the connection and its acceptance
                continue
            writer.close()
            await asyncio.sleep(0.02)


async def test_waiting_requests_are_told(ground: Ground, ollama):
    """Who waits at SIGTERM gets 503 SHUTTING_DOWN with Retry-After, in its dialect."""
    ollama.faults.add("/api/version", NotReady(asyncio.Event()), times=None)
    async with ground.serve() as gateway:

        async def ask(path: str):
            async with gateway.call("POST", path, json=CHAT) as response:
                return response.status, response.headers.get("Retry-After"), await response.json()

        native, openai = (asyncio.ensure_future(ask(p)) for p in ("/api/chat", "/v1/chat/completions"))
        async with asyncio.timeout(30):
            while (await gateway.status())["waiting"] < 2:
                await asyncio.sleep(0.02)
        gateway.signal()
        status, retry, body = await native
        assert (503, "SHUTTING_DOWN") == (status, body["code"])
        assert int(retry) >= 1
        status, retry, body = await openai
        assert (503, "SHUTTING_DOWN") == (status, body["error"]["code"])
        assert 0 == await gateway.ended()
    assert gone(ground)


async def test_second_signal_cuts(ground: Ground, ollama):
    """The grace ends at once; the stream is left unfinished, the pod is stopped all the same."""
    ollama.faults.add("/api/chat", HangAfter(2))
    ground.settings = ground.settings.replace("shutdown_grace = 5", "shutdown_grace = 60")
    async with ground.serve() as gateway:
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            await response.content.readany()
            gateway.signal()
            await until_refused(gateway.port)  # it has heard the first
            assert gateway.process.returncode is None
            gateway.signal()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        assert 0 == await gateway.ended()
    assert gone(ground)


async def test_grace_that_ends(ground: Ground, ollama):
    """An answer that takes longer is cut."""
    ollama.faults.add("/api/chat", HangAfter(2))
    ground.settings = ground.settings.replace("shutdown_grace = 5", "shutdown_grace = 0.3")
    async with ground.serve() as gateway, gateway.call("POST", "/api/chat", json=CHAT) as response:
        await response.content.readany()
        gateway.signal()
        assert 0 == await gateway.ended()
    assert gone(ground)


async def test_a_service_manager_is_told(ground: Ground, tmp_path: Path):
    """READY when it listens, a sign of life in half the time that is asked, STOPPING at its end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        ground.env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        async with ground.serve() as gateway:
            assert [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"] == [manager.recv(99) for _ in range(3)]
            gateway.signal()
            assert 0 == await gateway.ended()
        manager.setblocking(False)
        told = []
        with suppress(BlockingIOError):
            while True:
                told.append(manager.recv(99))
    assert 1 == told.count(b"STOPPING=1")


async def test_keep(ground: Ground, ollama):
    """`on_exit = "keep"`: exit 0, the pod runs on, and the next gateway adopts it."""
    ground.settings = ground.settings.replace("[server]\n", "[server]\non_exit = 'keep'\n")
    async with ground.serve() as gateway:
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            await response.read()
        gateway.signal()
        assert 0 == await gateway.ended()
    assert not gone(ground)
    lines = [json.loads(line) for line in gateway.lines.splitlines()]
    (last,) = [line for line in lines if line.get("now") == "ShutDown"]
    assert ("READY", "READY") == (
        last["status"],
        next(line for line in lines if "is kept" in line["event"])["status"],
    )
    async with ground.serve() as gateway:
        data = await gateway.until_status("READY")
        assert "filed-1" == data["pod_id"]
    assert 1 == ground.asked.count("start")
    assert 0 == ground.asked.count("stop")


async def test_kill_and_restart(ground: Ground):
    """kill -9: the next gateway adopts the pod without a new start, its session from the real beginning."""
    async with ground.serve() as gateway:
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            await response.read()
        gateway.signal(signal.SIGKILL)
        assert -signal.SIGKILL == await gateway.ended()
    assert not gone(ground)
    os.utime(ground.cloud / "running", (time.time() - 100, time.time() - 100))
    async with ground.serve() as gateway:
        data = await gateway.until_status("READY")
        assert 100 <= data["uptime_seconds"] < 130
        assert 800 < data["stops_in_seconds"] <= 900
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            assert "X-Gpugate-Waited-Ms" not in response.headers
            await response.read()
        gateway.signal()
        assert 0 == await gateway.ended()
    assert 1 == ground.asked.count("start")
    assert gone(ground)


async def test_stop_that_cannot_be_proved(ground: Ground):
    """Exit 1 with an alarm line; the next start goes on stopping, whatever it finds."""
    ground.settings = ground.settings.replace("stop_wait = 5", "stop_wait = 0.5")
    async with ground.serve() as gateway:
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            await response.read()
        (ground.cloud / "stuck").touch()
        gateway.signal()
        assert 1 == await gateway.ended()
    assert '"alarm":true' in gateway.lines
    assert "Traceback" not in gateway.lines
    assert not gone(ground)
    async with ground.serve() as gateway:
        data = await gateway.status()
        assert "STOPPING" == data["status"]
        (ground.cloud / "stuck").unlink()
        await gateway.until_status("STOPPED")
    assert gone(ground)
    assert 1 == ground.asked.count("start")


async def test_taken_port(ground: Ground):
    """Exit 1, one line that names the port, and the other gateway's pod is left alone."""
    async with ground.serve() as gateway:
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            await response.read()
        ground.env["GPUGATE_STATE__DIR"] = str(ground.folder / "another-state")
        async with ground.serve(port=gateway.port, wait=False) as second:
            assert 1 == await second.ended()
        told = second.lines.splitlines()
        assert 1 == len(told), told
        assert str(gateway.port) in told[0]
        assert 0 == ground.asked.count("stop")
        assert "READY" == (await gateway.status())["status"]


async def test_log_on_a_full_disk(ground: Ground):
    """A standard error that takes nothing costs lines, not requests."""
    async with ground.serve(stderr=Path("/dev/full"), wait=False) as gateway:
        async with asyncio.timeout(30):
            while True:
                with suppress(LookupError):
                    assert gateway.port
                    break
                await asyncio.sleep(0.05)
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            assert b'"done":true' in await response.read()
        gateway.signal()
        assert 0 == await gateway.ended()
    assert gone(ground)


async def test_no_secret_in_any_log(ground: Ground, ollama):
    """At level debug: no token, no secret, no prompt, whatever is asked and however it fails."""
    ground.settings += "[log]\nlevel = 'debug'\n"
    ground.env = {"PYTHONASYNCIODEBUG": "1"}
    prompt, secret_path = "marker-of-a-prompt", "/k/marker-of-a-token/api/chat"
    body = {"model": "llama3.2:3b", "messages": [{"role": "user", "content": prompt}]}
    async with ground.serve() as gateway:
        bearer_text = gateway.auth["Authorization"].split()[1]
        basic = base64.b64encode(f"me:{bearer_text}".encode()).decode()
        for path in (
            "/api/chat",
            "/v1/chat/completions",
            "/api/v1/chat",
            secret_path,
            "/api/nothing/" + prompt,
        ):
            async with gateway.call("POST", path, json={**body, "max_tokens": 5}) as response:
                await response.read()
        for path in (f"/api/tags?token={bearer_text}&prompt={prompt}", "/api/ps"):
            async with gateway.call("GET", path) as response:
                await response.read()
        for raw in (
            f"POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization; {bearer_text}\r\n\r\n",
            f"{prompt} {bearer_text}\r\n\r\n",
            *(
                f"POST /api/chat HTTP/1.1\r\nHost: x\r\n{line}\r\nConnection: close\r\n\r\n"
                for text in (basic, basic[:-3])
                for line in (
                    f"Authorization: Basic {text}",
                    f"Authorization; Basic {text}",
                    f"x-api-key: {text}",
                )
            ),
            f"GET /?{prompt} HTTP/1.1\r\nHost: x\r\nContent-Length: {prompt}\r\n\r\n",
            f"POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer_text}\r\n"
            f"Content-Length: 40\r\n\r\n{json.dumps(body)}{prompt}",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(raw.encode())
            await asyncio.wait_for(reader.read(10_000), 20)
            writer.close()
        ollama.faults.add("/api/chat", HangAfter(1))
        async with gateway.call("POST", "/api/chat", json=body) as response:
            await response.content.readany()
        gateway.signal()
        assert 0 == await gateway.ended()
    lines = gateway.lines.replace("/api/nothing/" + prompt, "")
    assert '"request"' in lines
    parts = (bearer_text, bearer_text.split(".")[2], basic[-40:-4])
    for secret in (prompt, *parts, "marker-of-a-token", "a-secret-for-tests"):
        assert secret not in lines


class TestDemo:
    """The same with the built-in simulated pod: a real process with a real cold start."""

    @pytest.fixture
    def ground(self, tmp_path) -> Ground:
        return Ground(
            tmp_path,
            "[pod]\nprovider = 'demo'\nhealth_interval = 0.2\n"
            "[providers.demo]\ncold_start = 0.2\ntokens_per_second = 0\n",
        )

    @staticmethod
    def pods(pod_id: str) -> list[int]:
        """Processes of this pod."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"--pod-id={pod_id}".encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    async def test_life(self, ground: Ground):
        """Cold chat, kill -9, adopted with the same pod, chat, SIGTERM, nothing left."""
        async with ground.serve() as gateway:
            async with gateway.call("POST", "/api/chat", json=CHAT) as response:
                assert b'"done":true' in await response.read()
            pod_id = (await gateway.status())["pod_id"]
            assert self.pods(pod_id)
            gateway.signal(signal.SIGKILL)
            await gateway.ended()
        async with ground.serve() as gateway:
            data = await gateway.until_status("READY")
            assert pod_id == data["pod_id"]
            async with gateway.call("POST", "/api/chat", json=CHAT) as response:
                assert b'"done":true' in await response.read()
            gateway.signal()
            assert 0 == await gateway.ended()
        assert [] == self.pods(pod_id)
