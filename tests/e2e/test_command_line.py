"""The command line beside a running gateway and a simulated cloud: what a person sees in a terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from gpugate_testing.clouds import RunPodSim

from gpugate.cli.main import main
from tests.e2e.support import SECRET, House, token
from tests.e2e.terminal import Terminal, in_terminal


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder and home."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


async def test_status_and_doctor(
    house: House, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both say what the pod of this gateway does, off and ready."""
    monkeypatch.setenv("GPUGATE_URL", house.url)
    monkeypatch.setenv("GPUGATE_TOKEN", token())
    (empty / "gpugate.toml").write_text(f"[auth]\nsecret = '{SECRET}'\n[pod]\nprovider = 'local'\n")
    assert 0 == await asyncio.to_thread(main, ["status"])
    assert capsys.readouterr().out.startswith("STOPPED for ")

    await house.warm()

    assert 0 == await asyncio.to_thread(main, ["status"])
    out = capsys.readouterr().out
    assert out.startswith("READY at fake for ")
    assert "stops in " in out
    assert "so far" in out
    await asyncio.to_thread(main, ["doctor"])  # there may be no ollama on this machine
    assert "ok    gateway: READY at fake for " in capsys.readouterr().out


async def until(shown: Terminal, words: bytes) -> None:
    """Wait until the terminal shows these words."""
    async with asyncio.timeout(20):
        while words not in shown.shown:
            await asyncio.sleep(0.02)


async def test_ctrl_c_at_a_question(empty: Path) -> None:
    """It ends `setup` at once, and nothing is written."""
    async with RunPodSim() as cloud:
        cloud.add_pod()
        env = {
            "GPUGATE_PROVIDERS__RUNPOD__API_BASE": cloud.api_base,
            "GPUGATE_PROVIDERS__RUNPOD__API_KEY": cloud.api_key,
        }
        command = (sys.executable, "-m", "gpugate", "setup", "--provider", "runpod")
        async with in_terminal(*command, **env) as terminal:
            await until(terminal, b"Which one?")
            os.write(terminal.master, b"\x03")
            async with asyncio.timeout(10):
                assert 1 == await terminal.process.wait()

    assert b"Traceback" not in terminal.shown
    assert [] == os.listdir(empty)
