"""The whole gateway in front of a real Slurm: a cold chat, an idle stop, a ledger that agrees with Slurm."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from real_slurm import OLLAMA, Quick, RealSlurm, missing, shared

from gpugate.app import build
from gpugate.config import load_settings
from gpugate.core import hand_over
from gpugate.lifecycle.status import StatusBuilder

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(180)]
SECRET = "a-secret-for-tests-of-40-characters-long"
MARK = "a-prompt-that-no-log-may-hold"


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[RealSlurm]:
    """The run's one Slurm, without jobs."""
    with shared() as slurm:
        monkeypatch.setenv("SLURM_CONF", slurm.conf)
        yield slurm
        slurm.clear()


def settings(state: Path, slurm: RealSlurm, section: dict[str, Any], quick: dict[str, Any]) -> Any:
    token = state / "token"
    token.write_text(slurm.token())
    section = {
        **section,
        "rest_url": slurm.rest_url,
        "user": "root",
        "token_file": str(token),
        "command": OLLAMA,
        "ollama_url": "http://127.0.0.1:{port}",
        "time_limit": "10m",
        "hourly_rate": 3600.0,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in section.items()]
    config = state / "gpugate.toml"
    config.write_text("\n".join(["[providers.slurm]", *lines]))
    quick = {
        "server.port": 0,
        "server.shutdown_grace": 0.3,
        "server.stop_wait": 9,
        "auth.secret": SECRET,
        "pod.provider": ("slurm",),
        "pod.idle_timeout": 1.0,
        "pod.preload": "none",
        "log.level": "debug",
        "log.format": "json",
        "state.dir": str(state),
        **quick,
    }
    return load_settings(config, {}, overrides=quick, complete=False)


async def test_a_cold_chat_and_its_bill(
    slurm: RealSlurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Answered from a job that was not there; the session in the ledger is StartTime to EndTime."""
    monkeypatch.setitem(os.environ, "GPUGATE_STATE_DIR", str(tmp_path))  # the gateway sets it
    token = jwt.encode({"sub": "tester", "exp": time.time() + 100}, SECRET, "HS256")
    chat = {"model": "phi3:mini", "messages": [{"role": "user", "content": MARK}]}
    configured = settings(tmp_path, slurm, {}, {})
    gateway = await build(configured, find=lambda _: Quick)
    await gateway.open()
    try:
        url = f"http://127.0.0.1:{gateway.port}"
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
            async with http.post(f"{url}/api/chat", json=chat) as response:
                said = [json.loads(line) async for line in response.content]
            sessions: list[dict[str, Any]] = []
            while not sessions or sessions[0]["ended_at"] is None:
                await asyncio.sleep(0.2)
                async with http.get(f"{url}/api/v1/cost/sessions") as response:
                    sessions = (await response.json())["data"]["sessions"]
    finally:
        await gateway.close()
    assert "hi" == said[-1]["message"]["content"]
    assert "" == slurm.run("squeue", "--noheader")
    (session,) = sessions
    assert "idle" == session["end_reason"]
    job = slurm.show(session["pod_id"])
    began, ended = (datetime.fromisoformat(session[key]).timestamp() for key in ("started_at", "ended_at"))
    begins, ends = (datetime.fromisoformat(job[key]).timestamp() for key in ("StartTime", "EndTime"))
    assert (begins, ends) == (pytest.approx(began, abs=1), pytest.approx(ended, abs=1))
    assert ends - begins == pytest.approx(float(session["cost"]), abs=1.1)
    log = "".join(capfd.readouterr())
    assert MARK not in log
    assert (tmp_path / "token").read_text() not in log


async def test_a_hand_over(slurm: RealSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before pod.max_session is over a second job takes over; no request waits for it; there are two rows."""
    monkeypatch.setitem(os.environ, "GPUGATE_STATE_DIR", str(tmp_path))  # the gateway sets it
    monkeypatch.setattr(hand_over, "LEAST_START_S", 2.0)
    monkeypatch.setattr(StatusBuilder, "usual_start_s", lambda *_: 2.0)
    token = jwt.encode({"sub": "tester", "exp": time.time() + 100}, SECRET, "HS256")
    chat = {"model": "phi3:mini", "messages": [{"role": "user", "content": MARK}]}
    quick = {"pod.max_session": 12.0, "pod.drain_grace": 2.0, "pod.idle_timeout": 300.0}
    gateway = await build(settings(tmp_path, slurm, {"gres": ""}, quick), find=lambda _: Quick)
    await gateway.open()
    try:
        url = f"http://127.0.0.1:{gateway.port}"
        waited: list[float] = []
        comments: list[str] = []
        rows: list[dict[str, Any]] = []
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
            while len(comments) != 1 or "slot=1" not in comments[0]:
                asked = time.monotonic()
                async with http.post(f"{url}/api/chat", json=chat) as response:
                    assert "hi" in await response.text()
                waited.append(time.monotonic() - asked)
                await asyncio.sleep(0.3)
                comments = slurm.run("squeue", "--noheader", "--format=%k").splitlines()
            while not rows or rows[0]["ended_at"] is None:
                await asyncio.sleep(0.1)
                async with http.get(f"{url}/api/v1/cost/sessions") as response:
                    rows = (await response.json())["data"]["sessions"]
    finally:
        await gateway.close()
    assert max(waited[1:]) < 2.0
    assert ["max_session", None] == [row["end_reason"] for row in rows]
