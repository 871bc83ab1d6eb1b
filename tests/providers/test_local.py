"""The local provider, with real processes: what it reports, and what it says when things go wrong."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gpugate.errors import Conflict, Misconfigured, ProviderError, Transient
from gpugate.provider_api import Endpoint, Phase
from gpugate.providers.local import Local, LocalConfig, command_problem
from tests.providers.support import QUICK, until

Make = Callable[..., Local]


class QuickLocal(Local):
    timeouts = QUICK


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setenv("GPUGATE_STATE_DIR", str(tmp_path))
    made: list[Local] = []
    async with aiohttp.ClientSession() as session:

        def local(*command: str, **config: Any) -> Local:
            made.append(QuickLocal(LocalConfig(list(command) or ["sleep", "99"], **config), session))
            return made[-1]

        yield local
        for pod in made:
            await pod.stop()
        for pod in made:
            await stopped(pod)
            await pod.aclose()


async def stopped(pod: Local) -> None:
    async with asyncio.timeout(10):
        while (await pod.inspect()).phase is not Phase.STOPPED:
            await asyncio.sleep(0.01)


class TestConfig:
    def test_defaults(self):
        """Those of the contract."""
        config = LocalConfig()

        assert (["ollama", "serve"], "http://127.0.0.1:11436", "") == (
            config.command,
            config.ollama_url,
            config.comfyui_url,
        )

    @pytest.mark.parametrize("command", [[], [""], ["a", "b\0c"]])
    def test_no_command(self, command):
        """Nothing to run is refused before anything runs."""
        with pytest.raises(ValueError, match="must"):
            LocalConfig(command)

    @pytest.mark.parametrize(
        "url", ["", "127.0.0.1:11436", "ftp://h", "http://", "http://h:99999", "http://h:0", "http://[::1"]
    )
    def test_no_url(self, url):
        """An address that nobody can connect to is refused with an example of a good one."""
        with pytest.raises(ValueError, match=r"must be a URL such as http://127\.0\.0\.1:11436"):
            LocalConfig(ollama_url=url)

    @pytest.mark.parametrize("headers", [{"": "x"}, {"a b": "x"}, {"A": "x\r\nB: y"}])
    def test_no_headers(self, headers):
        """What could break out of its line is refused, and not shown."""
        with pytest.raises(ValueError, match="must be a table of header names"):
            LocalConfig(headers=headers)

    @pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "\0"}])
    def test_no_environment(self, env):
        """What no process can be given is refused."""
        with pytest.raises(ValueError, match="must be a table of names of environment variables"):
            LocalConfig(env=env)

    def test_secrets(self):
        """Keys are not shown."""
        assert "abc" not in repr(LocalConfig(headers={"Authorization": "abc"}, env={"KEY": "abc"}))

    def test_no_comfyui_url(self):
        """Without a ComfyUI it is empty; with a wrong one it is refused."""
        assert LocalConfig(comfyui_url="").comfyui_url == ""
        with pytest.raises(ValueError, match="must be a URL"):
            LocalConfig(comfyui_url="localhost")


class TestLife:
    async def test_before_the_first_start(self, make):
        """It is stopped."""
        report = await make().inspect()

        assert (Phase.STOPPED, "local", None) == (report.phase, report.pod_id, report.price)

    async def test_start(self, make):
        """It runs, since now, at the configured addresses, and costs nothing."""
        before = datetime.now(UTC) - timedelta(seconds=1)
        pod = make(ollama_url="http://127.0.0.1:1/", comfyui_url="http://127.0.0.1:2")

        report = await pod.start()

        assert Phase.RUNNING is report.phase
        assert {
            "ollama": Endpoint("http://127.0.0.1:1/"),
            "comfyui": Endpoint("http://127.0.0.1:2"),
        } == report.endpoints
        assert report.started_at is not None
        assert before < report.started_at <= datetime.now(UTC)
        assert report.price is None
        assert report == await pod.inspect()

    async def test_start_twice(self, make):
        """One process, one answer."""
        pod = make()

        assert await pod.start() == await pod.start()

    async def test_stop(self, make):
        """It is stopping until the last process is gone, and stopped then; the addresses go at once."""
        pod = make("sh", "-c", "trap '' TERM; sleep 99 & wait")
        await pod.start()

        report = await pod.stop()

        assert (Phase.STOPPING, {}) == (report.phase, report.endpoints)
        assert Phase.STOPPING is (await pod.inspect()).phase
        await stopped(pod)

    async def test_stop_what_is_stopped(self, make):
        """That is done."""
        assert Phase.STOPPED is (await make().stop()).phase

    async def test_start_while_it_stops(self, make):
        """It is a conflict: look, then decide."""
        pod = make("sh", "-c", "trap '' TERM; sleep 99 & wait")
        await pod.start()
        await pod.stop()

        with pytest.raises(Conflict, match="still stopping"):
            await pod.start()

    async def test_found_again(self, make):
        """A new gateway finds the old one's process where that was told to listen, not where it would."""
        first = make(ollama_url="http://127.0.0.1:1")
        started = await first.start()
        await first.aclose()

        found = await make(ollama_url="http://127.0.0.1:2").inspect()

        assert started == found

    async def test_it_dies(self, make):
        """That is a failure with a cause, until a stop forgets it."""
        pod = make("sh", "-c", "sleep 1; echo 'out of memory'; exit 4")
        await pod.start()

        async with asyncio.timeout(10):
            while (report := await pod.inspect()).phase is not Phase.FAILED:
                await asyncio.sleep(0.01)

        assert ("'sh' ended with exit status 4", "out of memory") == (report.detail, report.output)
        assert Phase.STOPPED is (await pod.stop()).phase
        assert Phase.STOPPED is (await pod.inspect()).phase


class TestTrouble:
    async def test_no_such_command(self, make):
        """It names the key, and another attempt is no use."""
        with pytest.raises(
            Misconfigured, match=r"^providers.local.command: 'no-such-ollama' cannot be run: No such"
        ):
            await make("no-such-ollama").start()

    async def test_a_command_that_ends_at_once(self, make):
        """Another attempt may help (docs/api.md#the-local-provider); its own words are kept apart."""
        with pytest.raises(Transient, match=r"^'sh' ended with exit status 1$") as failed:
            await make("sh", "-c", "echo 'bind: address already in use'; exit 1").start()

        assert "'sh' ended with exit status 1: bind: address already in use" == failed.value.in_full

    @pytest.mark.parametrize(
        ("program", "there"), [("sh", True), (sys.executable, True), ("no-such-ollama", False), ("/", False)]
    )
    def test_a_look_at_the_command(self, program, there):
        """Whether it could be run, without running it."""
        problem = command_problem(LocalConfig(command=[program, "serve"]))

        said = f"providers.local.command: there is no program {program!r} that can be run"
        assert (None if there else said) == problem

    async def test_a_state_directory_that_cannot_be(self, make, tmp_path, monkeypatch):
        """It is a mistake of the configuration, and no traceback."""
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("GPUGATE_STATE_DIR", str(tmp_path / "file"))

        with pytest.raises(Misconfigured, match=r"state\.dir"):
            await make().start()

    async def test_another_gateway_has_it(self, make, gateway):
        """A second gateway with the same state directory sees that it is not alone, and cannot take over."""
        other = gateway("sleep", "99", name="local")
        pod = make()

        assert (
            f"held by another gpugate with this state directory ({other.process.pid})"
            in (await pod.inspect()).detail
        )
        with pytest.raises(Conflict, match="held by another gpugate"):
            await pod.start()
        with pytest.raises(Conflict, match="held by another gpugate"):
            await pod.stop()

        other.kill()

    async def test_a_stranger_on_our_port(self, make):
        """Somebody else's Ollama at our address would pass for ours: it is told in the detail."""
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            report = await make(ollama_url=url).start()

        assert Phase.RUNNING is report.phase
        assert f"something else answered at {url} before it was started" in report.detail


class TestOllamaHost:
    @pytest.mark.parametrize(
        ("url", "host"),
        [
            ("http://127.0.0.1:11436", "127.0.0.1:11436"),
            ("http://127.0.0.1:11436/path/", "127.0.0.1:11436"),
            ("http://[::1]:11436", "[::1]:11436"),
            ("http://gpu.example", "gpu.example:80"),
            ("https://gpu.example", "gpu.example:443"),
        ],
    )
    async def test_what_the_command_is_told(self, make, tmp_path, url, host):
        """Host and port of ollama_url, always with a port."""
        out = tmp_path / "host"
        await make("sh", "-c", f'printf %s "$OLLAMA_HOST" > {out}; sleep 9', ollama_url=url).start()
        await until(lambda: out.exists() and out.read_text() != "")

        assert host == out.read_text()

    async def test_keys(self, make, tmp_path):
        """`env` reaches the command, also in place of OLLAMA_HOST; `headers` are sent to its services."""
        out = tmp_path / "env"
        command = ("sh", "-c", f'printf %s "$KEY $OLLAMA_HOST" > {out}; sleep 9')
        headers = {"Authorization": "Bearer abc"}
        pod = make(*command, env={"KEY": "abc", "OLLAMA_HOST": "h:1"}, headers=headers)
        report = await pod.start()
        await until(lambda: out.exists() and out.read_text() != "")

        assert "abc h:1" == out.read_text()
        assert headers == report.endpoints["ollama"].headers

    async def test_a_server_that_obeys(self, make, tmp_path, unused_tcp_port):
        """What listens at OLLAMA_HOST is reached at the reported address."""
        script = (
            "import http.server, os; host, port = os.environ['OLLAMA_HOST'].split(':');"
            "http.server.HTTPServer((host, int(port)), http.server.SimpleHTTPRequestHandler).serve_forever()"
        )
        pod = make(sys.executable, "-c", script, ollama_url=f"http://127.0.0.1:{unused_tcp_port}")
        report = await pod.start()
        async with aiohttp.ClientSession() as session:
            status = await _first_status(session, report.endpoints["ollama"].url)

        assert 200 == status


async def test_errors_are_of_the_port(make):
    """Whatever goes wrong is a ProviderError; nothing else comes out (docs/api.md#provider-plugins)."""
    for command in (["/"], ["/dev/null"], ["sh", "-c", "exit 255"]):
        with pytest.raises(ProviderError):
            await make(*command).start()


async def _first_status(session: aiohttp.ClientSession, url: str) -> int:
    async with asyncio.timeout(10):
        while True:
            try:
                async with session.get(url) as response:
                    return response.status
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.02)


async def test_a_process_for_each_pod(make):
    """Pods of other names have processes of their own; the pod without a name has the one of before."""
    main, code = make(), make(ollama_url="http://127.0.0.1:11437")
    code.pod_name = "code"
    await code.start()

    assert (Phase.STOPPED, "local") == ((found := await main.inspect()).phase, found.pod_id)
    assert "local-code" == (await code.inspect()).pod_id
    await code.stop()
    await stopped(code)
