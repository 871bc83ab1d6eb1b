"""ProcessStatus processes that end with their test, and nothing left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gpugate.providers.supervised_process import SupervisedProcess, SupervisorTimeouts
from tests.providers.support import QUICK, Gateway, Sleeper, gone


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    sleeper = Sleeper()
    yield sleeper
    for pid in sleeper.pids:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def keep(tmp_path: Path) -> AsyncIterator[Callable[..., SupervisedProcess]]:
    """Make a SupervisedProcess in this test's state directory; its process ends with the test."""
    made: list[SupervisedProcess] = []

    def make(
        timeouts: SupervisorTimeouts = QUICK, *, name: str = "pod", state_dir: Path = tmp_path
    ) -> SupervisedProcess:
        made.append(SupervisedProcess(name, state_dir=state_dir, timeouts=timeouts))
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

    def make(*command: str, timeouts: SupervisorTimeouts = QUICK, name: str = "pod") -> Gateway:
        made.append(Gateway(tmp_path, *command, timeouts=timeouts, name=name))
        return made[-1]

    yield make
    for gateway in made:
        gateway.kill()
