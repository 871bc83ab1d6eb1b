"""The whole gateway in front of the plugin, in real time: a client's chat, cold, over HTTP."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from attrs import evolve
from gpugate_demo.ollama import SimulatedOllama
from gpugate_testing.clouds.pods import Delays
from gpugate_testing.clouds.vast import VastSim
from gpugate_vastai import VastAi
from vast_support import EPHEMERAL, FIXED, SECRETS

from gpugate.app import build
from gpugate.config import load_settings

SECRET = "a-secret-for-tests-of-40-characters-long"
MARK = "a-prompt-that-no-log-may-hold"
AT_ONCE = Delays(provision_s=0, start_s=0, ready_s=0.2, stop_s=0)


class Quick(VastAi):
    """Looked at as often as Vast.ai allows."""

    capabilities = evolve(VastAi.capabilities, min_poll_s=2.05)


def settings(state: Path, cloud: VastSim, **section: Any) -> Any:
    place = {"api_key": cloud.api_key, "api_base": cloud.api_base}
    text = json.dumps({**place, **section})
    quick = {
        "server.port": 0,
        "server.shutdown_grace": 0.3,
        "server.stop_wait": 9,
        "auth.secret": SECRET,
        "pod.provider": ("vastai",),
        "log.level": "debug",
        "log.format": "json",
        "state.dir": str(state),
    }
    config = state / "gpugate.toml"
    lines = [f"{key} = {_toml(value)}" for key, value in json.loads(text).items()]
    config.write_text("\n".join(["[providers.vastai]", *lines]))
    return load_settings(config, {}, overrides=quick, complete=False)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {json.dumps(content)}" for key, content in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize("section", [FIXED, EPHEMERAL], ids=["fixed", "ephemeral"])
async def test_a_cold_chat(
    section: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Streamed from a pod that was off; the pod hears the template's token, the log hears no secret."""
    monkeypatch.setitem(os.environ, "GPUGATE_STATE_DIR", str(tmp_path))  # the gateway sets it
    token = jwt.encode({"sub": "tester", "exp": time.time() + 60}, SECRET, "HS256")
    chat = {"model": "llama3.2:3b", "messages": [{"role": "user", "content": MARK}]}
    async with SimulatedOllama() as ollama, VastSim(delays=AT_ONCE) as cloud:
        cloud.ports.upstreams[11434] = ollama.url
        if section is FIXED:
            cloud.add_instance()
        gateway = await build(settings(tmp_path, cloud, **section), find=lambda _: Quick)
        await gateway.open()
        try:
            url = f"http://127.0.0.1:{gateway.port}/api/chat"
            headers = {"Authorization": f"Bearer {token}"}
            async with (
                aiohttp.ClientSession() as http,
                http.post(url, json=chat, headers=headers) as response,
            ):
                lines = [json.loads(line) async for line in response.content]
        finally:
            await gateway.close()
        assert 200 == response.status
        assert lines[-1]["done"]
        assert [] == cloud.billing
        heard = ollama.calls("/api/chat")[-1].headers
        assert SECRETS["header"] == heard["Authorization"]
    told = "".join(capfd.readouterr())
    for secret in (*SECRETS.values(), cloud.api_key, token, MARK):
        assert secret not in told
