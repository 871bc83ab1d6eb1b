"""`POST /api/v1/reload` at a whole gateway: applied, or refused as a whole; no request is lost by it."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from gpugate.cli.main import main
from gpugate.errors import SettingsError
from gpugate.operation.reload import Reloader
from tests.e2e.process import filed_ground
from tests.e2e.support import CHAT, bearer, open_house, part_of, settings_for, token
from tests.e2e.test_budget import Book


async def reload(house):
    """The answer to a reload."""
    return await house.ask("POST", "/api/v1/reload")


def reads(house, **overrides):
    """Have the next reload read these settings."""
    part_of(house.gateway, Reloader).read = lambda: settings_for(house.state, **overrides)


async def test_what_is_applied_at_once(tmp_path, ollama):
    """Rules, budget, lists and idle times; the rest is named, and named again the next time."""
    book = Book(Decimal(5))
    async with open_house(tmp_path, ollama, money=book) as house:
        reads(house, wake=[{"name": "closed"}], pod__idle_timeout=77.0, server__keepalive=9)
        answer = await reload(house)
        assert 200 == answer.status
        applied = {"applied": ["pod.idle_timeout", "wake"], "restart": ["server.keepalive"]}
        assert applied == answer.json["data"]
        refused = await house.chat()
        assert (403, True) == (refused.status, '"closed"' in refused.json["error"])

        reads(house, cost__monthly_budget=5.0, pod__idle_timeout=77.0)
        assert ["cost.monthly_budget", "wake"] == (await reload(house)).json["data"]["applied"]
        await house.until(lambda: house.gateway.lifecycle._machine.budget_gate.is_exhausted)
        assert 402 == (await house.chat()).status

        reads(house, pod__idle_timeout=77.0)
        assert ["cost.monthly_budget"] == (await reload(house)).json["data"]["applied"]
        await house.until(lambda: not house.gateway.lifecycle._machine.budget_gate.is_exhausted)
        assert 200 == (await house.chat()).status
        assert 70 < (await house.status())["stops_in_seconds"] <= 77

        reads(house, pod__idle_timeout=0.05)
        await reload(house)
        await house.off()


async def test_a_mistake_takes_nothing(tmp_path, ollama):
    """400 that names the key; all is as before."""
    async with open_house(tmp_path, ollama) as house:

        def wrong():
            raise SettingsError(["gpugate.toml: wake[0].hours: must be hours"])

        part_of(house.gateway, Reloader).read = wrong
        answer = await reload(house)
        assert (400, "INVALID_REQUEST") == (answer.status, answer.json["error"]["code"])
        assert "wake[0].hours" in answer.json["error"]["message"]
        assert 200 == (await house.chat()).status


async def test_who_may(tmp_path, ollama):
    """The scope admin alone; a gateway without a file says so."""
    async with open_house(tmp_path, ollama) as house:
        answer = await house.ask("POST", "/api/v1/reload", headers=bearer(scope="chat pod"))
        assert 403 == answer.status
        assert 400 == (await reload(house)).status


async def test_who_waits_goes_on_waiting(tmp_path, ollama):
    """A rule that comes while the pod starts forbids only later starts."""
    async with open_house(tmp_path, ollama) as house:
        house.cloud.boot_s = 0.3
        asking = asyncio.ensure_future(house.ask("POST", "/api/chat", json=CHAT))
        await house.waiting(1)
        reads(house, wake=[{}])
        assert ["wake"] == (await reload(house)).json["data"]["applied"]
        assert 200 == (await asking).status


async def test_lists_while_the_pod_is_off(tmp_path, ollama):
    """`catalog.models` and `catalog.when_stopped` count for the next list."""
    async with open_house(tmp_path, ollama, catalog__models=("one:1b",)) as house:

        async def names():
            return [model["name"] for model in (await house.ask("GET", "/api/tags")).json["models"]]

        assert "one:1b" in await names()
        reads(house, catalog__models=("two:1b",))
        assert ["catalog.models"] == (await reload(house)).json["data"]["applied"]
        assert "two:1b" in await names()
        assert "one:1b" not in await names()
        reads(house, catalog__when_stopped="empty", catalog__models=("two:1b",))
        assert ["catalog.when_stopped"] == (await reload(house)).json["data"]["applied"]
        assert [] == await names()


async def test_the_log(tmp_path, ollama, capsys):
    """Its level changes for the access log and all else; a recipient that is new is a secret at once."""
    recipient = "ntfy://a-topic-that-nobody-may-know"
    async with open_house(tmp_path, ollama) as house:
        await house.ask("GET", "/api/version")
        assert '"event":"request"' not in capsys.readouterr().err
        reads(house, log__level="info", notify__urls=(recipient,), notify__events=())
        assert "log.level" in (await reload(house)).json["data"]["applied"]
        await house.ask("GET", f"/{recipient}")
        told = capsys.readouterr().err
        assert '"event":"configuration read again"' in told
        assert '"event":"request"' in told
        assert "nobody-may-know" not in told
        reads(house, log__level="error")
        await reload(house)
        await house.ask("GET", "/api/version")
        assert '"event":"request"' not in capsys.readouterr().err


async def test_the_command(tmp_path, ollama, monkeypatch, capsys):
    """`gpugate reload` of a process: what the file says now is taken; a mistake in it is one line, exit 1."""
    ground = filed_ground(tmp_path, ollama.url)
    async with ground.serve() as gateway:
        file = tmp_path / "config-1.toml"
        at_first = file.read_text()
        monkeypatch.setenv("GPUGATE_URL", gateway.url)
        monkeypatch.setenv("GPUGATE_TOKEN", token())

        async def reload_with(pod: str = "", more: str = ""):
            file.write_text(at_first.replace("[pod]\n", f"[pod]\n{pod}\n") + more)
            status = await asyncio.to_thread(main, ["reload"])
            return status, capsys.readouterr()

        status, told = await reload_with("idle_timeout = 0.05", "[server]\nkeepalive = 9\n")
        assert (0, "applied: pod.idle_timeout\nafter a restart: server.keepalive\n") == (status, told.out)
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            assert b'"done":true' in await response.read()
        await gateway.until_status("STOPPED")

        status, told = await reload_with("idle_timout = 5")
        (line,) = told.err.splitlines()
        assert (1, "") == (status, told.out)
        assert "pod.idle_timout: unknown key; did you mean pod.idle_timeout?" in line

        status, told = await reload_with()
        assert (0, "applied: pod.idle_timeout\n") == (status, told.out)
