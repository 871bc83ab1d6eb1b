"""A gateway that knows a habit from its last life, on disk: `pod.idle_policy`, over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from gpugate.core.idle_policy import IdleHistory, LearnedIdlePolicy

TIMEOUT_S = 900.0
HOURLY = IdleHistory((3400.0,) * 40, (40.0,) * 9)


def leave_behind(state: Path, in_s: float) -> None:
    """What a gateway left that was used every hour; the window of the pause opens in so many seconds."""
    policy = LearnedIdlePolicy(TIMEOUT_S)
    policy.restore(HOURLY)
    assert policy.window is not None
    wanted_at = time.time() + in_s - policy.window.opens_s
    known = {"version": 1, "pauses": HOURLY.gaps_s, "starts": HOURLY.starts_s, "credit": None}
    (state / "habits.json").write_text(json.dumps({**known, "wanted_at": wanted_at}))


async def test_the_pod_is_warm_before_anybody_asks(opened, tmp_path, cloud):
    """Nobody waits; the pod is let go a minute after its use; what happened is on disk again."""
    leave_behind(tmp_path, 0.3)
    house = await opened(pod__idle_timeout=TIMEOUT_S, pod__idle_policy="learned")
    await house.until(lambda: house.gateway.lifecycle.serving is not None)
    assert (await house.status())["stops_in_seconds"] > 60

    answer = await house.chat()
    assert 200 == answer.status
    assert "X-Gpugate-Waited-Ms" not in answer.headers
    assert 30 < (await house.status())["stops_in_seconds"] <= 60
    assert 1 == cloud.starts

    await house.stop()
    kept = json.loads((tmp_path / "habits.json").read_text())
    assert 41 == len(kept["pauses"])
    assert kept["wanted_at"] == pytest.approx(time.time(), abs=20)


@pytest.mark.parametrize("policy", ["fixed", "learned"])
async def test_nothing_is_started_for_nobody(opened, tmp_path, cloud, policy):
    """Not by the fixed policy, which reads no habits, and not by one whose habits cannot be read."""
    leave_behind(tmp_path, 0.1)
    if policy == "learned":
        (tmp_path / "habits.json").write_text("{")
    house = await opened(pod__idle_timeout=TIMEOUT_S, pod__idle_policy=policy)
    await asyncio.sleep(0.3)
    assert (0, "STOPPED") == (cloud.starts, (await house.status())["status"])
