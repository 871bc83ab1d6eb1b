"""Virtual time for tests that ask for it by the fixture `in_virtual_time`."""

from __future__ import annotations

import asyncio

import pytest
from gpugate_testing.virtual_time import VirtualLoop


def pytest_asyncio_loop_factories(config, item):
    """asyncio's own loop, or the virtual one."""
    virtual = "in_virtual_time" in getattr(item, "fixturenames", ())
    return {"virtual": VirtualLoop} if virtual else {"asyncio": asyncio.new_event_loop}


@pytest.fixture
def in_virtual_time() -> None:
    """The test's loop has a clock that jumps."""
