"""A whole gateway that replaces its pod before the session's limit, at a provider that can run two."""

from __future__ import annotations

import asyncio

from gpugate_testing.fakes import FakeCloud

from gpugate.core import hand_over
from gpugate.provider_api import Phase
from tests.e2e.support import SOON, open_house


async def test_hand_over(tmp_path, ollama, monkeypatch):
    """Each chat is answered, by one pod and then by the other; both have their row, and both are stopped."""
    monkeypatch.setattr(hand_over, "LEAST_START_S", 0.5)
    second = FakeCloud(boot_s=0.05, url=ollama.url)
    cloud = FakeCloud(boot_s=0.05, second=second)
    async with open_house(tmp_path, ollama, cloud, pod__max_session=3.0, pod__drain_grace=0.3) as house:
        providers = set()
        async with asyncio.timeout(SOON):
            while providers != {"fake", "fake-2"} or cloud.phase is not Phase.STOPPED:
                answer = await house.chat()
                assert 200 == answer.status
                providers.add((await house.status())["provider"])
                await asyncio.sleep(0.02)
        assert Phase.RUNNING is second.phase
        await house.stop(force=True)
        rows = (await house.ask("GET", "/api/v1/cost/sessions")).json["data"]["sessions"]
        # The first session ends before it is known how long a start takes; the second is handed over.
        assert [("fake", "max_session"), ("fake", "max_session"), ("fake-2", "forced")] == [
            (row["provider"], row["end_reason"]) for row in rows
        ]
    assert {Phase.STOPPED} == {cloud.phase, second.phase}
    assert (2, 1) == (cloud.starts, second.starts)
