"""Kept processes that end with their test, and nothing left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from gpugate.providers.supervised_process import KeptProcess, Timing
from tests.providers.support import QUICK, Gateway, Sleeper, gone


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    sleeper = Sleeper()
    yield sleeper
    for pid in sleeper.pids:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def keep(tmp_path: Path) -> AsyncIterator[Callable[..., KeptProcess]]:
    """Make a KeptProcess in this test's state directory; whatever is kept in there ends with the test."""
    made: list[KeptProcess] = []

    def make(timing: Timing = QUICK, *, name: str = "pod", state_dir: Path = tmp_path) -> KeptProcess:
        made.append(KeptProcess(name, state_dir=state_dir, timing=timing))
        return made[-1]

    yield make
    for kept in made:
        await kept.stop()
    for kept in made:
        await gone(kept)
        await kept.aclose()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    def make(*command: str, timing: Timing = QUICK) -> Gateway:
        made.append(Gateway(tmp_path, *command, timing=timing))
        return made[-1]

    yield make
    for gateway in made:
        if gateway.process.poll() is None:
            gateway.kill()
