"""The contract's tests live in virtual time: a minute at the simulated cluster takes no time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
from gpugate_testing.clouds.loopback_time import LoopbackVirtualLoop
from gpugate_testing.contract_base import ContractBase


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of each asynchronous test."""
    kind = getattr(item, "cls", None)
    if kind is not None and issubclass(kind, ContractBase) and kind.__name__ != "TestRealCluster":
        return {"jumping": LoopbackVirtualLoop}
    return {"asyncio": asyncio.new_event_loop}
