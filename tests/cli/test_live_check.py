"""The look of `gpugate check --live` at a provider that was asked a moment ago, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from gpugate_testing import virtual_time
from gpugate_testing.fakes import FakeCloud, FakeProvider

from gpugate.cli.live_check import _inspect
from gpugate.errors import RateLimited
from gpugate.provider_api import Phase


async def _looked(*errors: RateLimited) -> tuple[Phase, float]:
    cloud = FakeCloud()
    cloud.fail("inspect", *errors)
    loop = asyncio.get_running_loop()
    began = loop.time()
    report = await _inspect(FakeProvider(cloud))
    return report.phase, loop.time() - began


def test_a_rate_limit_of_seconds() -> None:
    """It is waited out, once, and nobody is bothered with it."""
    assert virtual_time.run(_looked(RateLimited(4))) == (Phase.STOPPED, 4)


@pytest.mark.parametrize(
    "errors", [[RateLimited(11)], [RateLimited()], [RateLimited(-1)], [RateLimited(1), RateLimited(1)]]
)
def test_a_rate_limit_that_is_not_waited_for(errors: list[RateLimited]) -> None:
    """Too long, of unknown length, or once more: it is told."""
    with pytest.raises(RateLimited):
        virtual_time.run(_looked(*errors))
