"""Notices at a whole gateway, sent by the real apprise to a server on this machine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from gpugate.errors import SettingsError
from gpugate.operation import notices
from gpugate.operation.reload import Reloader
from tests.e2e.support import open_house, part_of, settings_for


@asynccontextmanager
async def sink(status: int = 200) -> AsyncIterator[tuple[str, list[str]]]:
    """A recipient: its URL for apprise, and the texts that it got."""
    got: list[str] = []

    async def take(request: web.BaseRequest) -> web.Response:
        got.append(json.loads(await request.text())["message"])
        return web.Response(status=status)

    runner = web.ServerRunner(web.Server(take))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"json://someone:secret-word@{host}:{port}/", got
    await runner.cleanup()


async def test_a_session_is_told(tmp_path, ollama):
    """Its start and its end, only the kinds that are wanted, and to whom a reload names."""
    async with sink() as (url, got), sink() as (second, got_second):
        wanted = {"notify__urls": [url], "notify__events": ["started", "stopped"]}
        async with open_house(tmp_path, ollama, **wanted) as house:
            await house.warm()
            await house.until(lambda: len(got) == 1)
            await house.stop()
            await house.until(lambda: len(got) == 2)
            assert "started" in got[0]
            part_of(house.gateway, Reloader).read = lambda: settings_for(
                tmp_path, notify__urls=[second], notify__events=["started"]
            )
            answer = await house.ask("POST", "/api/v1/reload")
            assert ["notify.urls", "notify.events"] == answer.json["data"]["applied"]
            await house.warm()
            await house.until(lambda: len(got_second) == 1)
        assert (2, 1) == (len(got), len(got_second))


async def test_a_recipient_that_refuses(tmp_path, ollama, monkeypatch, capfd):
    """Is asked three times, and then named by its place; the URL is nowhere in the log."""
    monkeypatch.setattr(notices, "PAUSES_S", (0.0, 0.0))
    async with sink(500) as (url, got):
        wanted = {"notify__urls": [url], "notify__events": ["started"]}
        async with open_house(tmp_path, ollama, **wanted) as house:
            await house.warm()
            await house.until(lambda: len(got) == 3)
            await house.stop()
        log = capfd.readouterr().err
        assert "notify.urls[0] did not take the notice" in log
        assert "secret-word" not in log


def test_a_url_that_apprise_does_not_know(tmp_path, capfd):
    """Refused at the start, and not shown."""
    with pytest.raises(SettingsError) as refused:
        settings_for(tmp_path, notify__urls=["json://x", "nonsense://user:secret-word@x"])
    assert [
        "notify.urls: apprise does not know what number 2 is (it is not shown) (or GPUGATE_NOTIFY__URLS)"
    ] == [line.partition(": ")[2] for line in refused.value.complaints]
    assert "secret-word" not in str(refused.value) + capfd.readouterr().err
