"""How many files one thing runs through: the journeys of docs/architecture.md, counted while they happen."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from gpugate_demo.ollama import SimulatedOllama
from gpugate_demo.text_generator import fixed
from gpugate_testing.fakes import FakeCloud

from gpugate.core.states import Status
from tests.e2e.support import SOON, bearer, open_house

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "gpugate"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
APART = ("observability/", "billing/", "errors.py", "clock.py", "tasks.py")
"""What a reader who follows a request does not open: left out of the count."""

LIMITS = {"A cold chat": 38, "An idle stop": 24}
"""How many files each journey may name: lower these when one gets shorter. The goal is 36 and 18."""


def documented(title: str) -> list[str]:
    """Return the files that docs/architecture.md names for a journey, one a line of its list."""
    section = ARCHITECTURE.read_text(encoding="utf-8").partition(f"\n### {title}\n")[2].partition("\n#")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)


@contextmanager
def files_called() -> Iterator[set[str]]:
    """Collect the files of the package in which a function is called meanwhile."""
    called: set[str] = set()
    outer = sys.getprofile()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            called.add(frame.f_code.co_filename)

    sys.setprofile(profile)
    try:
        yield called
    finally:
        sys.setprofile(outer)
        paths = [Path(name) for name in called]
        inside = {path.relative_to(PACKAGE).as_posix() for path in paths if path.is_relative_to(PACKAGE)}
        called.clear()
        called |= {name for name in inside if not name.startswith(APART)}


async def cold_chat(tmp_path: Path) -> set[str]:
    """From a client's request to the end of its answer; the pod is off at first."""
    async with (
        SimulatedOllama(reply=fixed("one two three")) as ollama,
        open_house(tmp_path, ollama, FakeCloud(boot_s=0.05)) as house,
    ):
        await house.off()
        house.auth = bearer(exp=time.time() + 90 * 24 * 3600)  # of one that ends soon is warned, once
        with files_called() as called:
            answer = await house.chat()
            await asyncio.sleep(0.05)  # the answer's last callbacks
        assert answer.whole
        assert answer.lines[-1]["done"]
    return called


async def idle_stop(tmp_path: Path) -> set[str]:
    """From a pod that serves nobody to the confirmation that it is stopped."""
    async with (
        SimulatedOllama(reply=fixed("one")) as ollama,
        open_house(tmp_path, ollama, FakeCloud(boot_s=0.0), pod__idle_timeout=0.5) as house,
    ):
        await house.off()
        await house.chat()
        await asyncio.sleep(0.2)  # what the chat has left behind
        lifecycle = house.gateway.lifecycle
        with files_called() as called:
            async with asyncio.timeout(SOON):
                while lifecycle.current_status is not Status.STOPPED:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.05)  # the ledger's last row
    return called


@pytest.mark.parametrize(("title", "journey"), [("A cold chat", cold_chat), ("An idle stop", idle_stop)])
async def test_a_journey(title: str, journey: Callable[[Path], Awaitable[set[str]]], tmp_path: Path) -> None:
    """docs/architecture.md names each file that it runs through; it may name more.

    On a slow machine something else may happen meanwhile, so a file is missing if three runs have called it.
    """
    known = set(documented(title))
    missing: set[str] | None = None
    for attempt in "123":
        (tmp_path / attempt).mkdir()
        called = await journey(tmp_path / attempt) - known
        missing = called if missing is None else missing & called
        if not missing:
            break

    assert missing == set()


@pytest.mark.parametrize("title", LIMITS)
def test_the_list_of_a_journey(title: str) -> None:
    """Its files exist, stand once in it, and are no more than the limit."""
    files = documented(title)

    assert [name for name in files if not (PACKAGE / name).is_file()] == []
    assert len(files) == len(set(files)) == LIMITS[title]
