"""SIGKILL at every step: the next gateway adopts or stops the pod, and each stretch is in the ledger once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from gpugate_demo.faults import Hang, HangAfter
from gpugate_testing.clouds.faults import Capacity, LostResponse

from tests.e2e.crashes import DELAYS, RATE, Scene, open_scene
from tests.e2e.process import Running

UNWRITTEN_S = 0.7
"""What an estimate lacks where nobody lived to see the end: 0.3 s idle, and the 0.2 s of the stop."""
LATE_S = 1.3
"""RunPod tells a start in whole seconds; the rest is for a busy machine.

Sessions of seconds cannot prove the two per cent: `tests/billing/test_killed_at_any_time.py` does.
"""


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(tmp_path) as scene:
        yield scene


async def is_right_afterwards(
    scene: Scene, unwritten_s: float = UNWRITTEN_S, late_s: float = LATE_S
) -> list[dict[str, Any]]:
    """Nothing is billed, each billed stretch has one row, and the estimate is the bill; returns the rows."""
    rows = [row for row in await scene.restarted() if row["ended_at"] is None or row["cost"]]
    assert all(row["ended_at"] for row in rows), rows
    assert scene.stretches == len(rows), rows
    told_s = sum(row["cost"] for row in rows) / RATE * 3600
    least, most = scene.billed_s, scene.billed_s + scene.unseen_s
    assert 0.98 * least - unwritten_s <= told_s <= 1.02 * most + late_s, (
        least,
        told_s,
        most,
        rows,
    )
    return rows


POINTS = [
    "saw STOPPED",  # the first look of all
    "put intent before",
    "put intent after",  # on disk, and the provider was not called
    "start after",  # accepted, and that is not written
    "put accepted before",
    "put accepted after",
    "saw STARTING",
    "saw RUNNING",
    "stop before",  # decided, not sent
    "stop after",  # accepted, not proved
    "proved",  # not written
    "put end before",
    "put end after",
]


@pytest.mark.parametrize("point", POINTS)
async def test_at(scene: Scene, point: str) -> None:
    """Killed by its own hand between two lines of its life."""
    scene.settings()
    scene.order.write_text(point)
    if point.endswith("saw STARTING"):  # however seldom a busy machine lets it look
        scene.hold()

    async def drive(gateway: Running) -> None:
        scene.ask(gateway)

    await scene.killed(drive)
    await is_right_afterwards(scene)


@pytest.mark.parametrize(
    "point", ["start before", "start after", "saw STARTING", "stop before", "stop after", "proved"]
)
async def test_at_with_pods_made_and_deleted(scene: Scene, point: str) -> None:
    """The same where each session has a pod of its own."""
    scene.settings(mode="ephemeral")
    scene.order.write_text(point)
    if point.endswith("saw STARTING"):  # however seldom a busy machine lets it look
        scene.hold()

    async def drive(gateway: Running) -> None:
        scene.ask(gateway)

    await scene.killed(drive)
    await is_right_afterwards(scene)


@pytest.mark.parametrize(
    ("mode", "call"),
    [("fixed", "start"), ("ephemeral", "create"), ("fixed", "stop"), ("ephemeral", "delete")],
)
async def test_done_and_the_answer_is_on_its_way(scene: Scene, mode: str, call: str) -> None:
    """The provider has obeyed; nobody was alive to hear of it."""
    scene.settings(mode=mode)

    async def drive(gateway: Running) -> None:
        scene.cloud.done[call] = lambda: gateway.signal(9)
        scene.ask(gateway)

    await scene.killed(drive)
    await is_right_afterwards(scene)


async def test_while_a_model_is_loaded(scene: Scene) -> None:
    """The pod's Ollama answers, the first request's model is on its way into memory."""
    scene.settings()
    scene.ollama.faults.add("/api/generate", Hang())

    async def drive(gateway: Running) -> None:
        scene.ask(gateway)
        await scene.until(lambda: scene.ollama.calls("/api/generate"))
        gateway.signal(9)

    await scene.killed(drive)
    await is_right_afterwards(scene)


async def test_in_the_middle_of_an_answer(scene: Scene) -> None:
    """Its client is cut off; the pod idles with the next gateway, and is stopped."""
    scene.settings()
    scene.ollama.faults.add("/api/chat", HangAfter(2))

    async def drive(gateway: Running) -> None:
        scene.ask(gateway, stream=True)
        await scene.until(lambda: scene.ollama.calls("/api/chat"))
        gateway.signal(9)

    await scene.killed(drive)
    await is_right_afterwards(scene)


async def test_while_the_queue_drains(scene: Scene) -> None:
    """One of three is being answered."""
    scene.settings()
    scene.ollama.faults.add("/api/chat", Hang())

    async def drive(gateway: Running) -> None:
        for _ in range(3):
            scene.ask(gateway)
        await scene.until_told(gateway, lambda told: told["waiting"] == 2 and scene.ollama.calls("/api/chat"))
        gateway.signal(9)

    await scene.killed(drive)
    await is_right_afterwards(scene)


async def test_when_nobody_asks(scene: Scene) -> None:
    """READY and idle."""
    scene.settings(idle="30s")

    async def drive(gateway: Running) -> None:
        scene.ask(gateway)
        await scene.until_told(gateway, lambda told: told["status"] == "READY")
        await scene.asking[0]
        gateway.signal(9)

    await scene.killed(drive)
    scene.ground.settings = scene.ground.settings.replace('"30s"', '"0.3s"')
    await is_right_afterwards(scene)


async def test_a_request_came_while_it_stopped(scene: Scene) -> None:
    """It waits for the next start when everything ends."""
    scene.settings()
    scene.cloud.fail("stop", LostResponse(0.0))
    stop_s = 3.0  # time enough for a busy machine to see it stop, and not always for the next gateway
    for pod in scene.cloud.pods.values():
        pod.delays = evolve(DELAYS, stop_s=stop_s)

    async def drive(gateway: Running) -> None:
        scene.ask(gateway)
        await scene.until_told(gateway, lambda told: told["status"] == "STOPPING")
        scene.ask(gateway)
        await scene.until_told(gateway, lambda told: told["waiting"] == 1)
        gateway.signal(9)

    await scene.killed(drive)
    await is_right_afterwards(scene, UNWRITTEN_S + stop_s)


@pytest.mark.parametrize("point", ["put intent after", "start after", "saw RUNNING", "stop after"])
async def test_of_three_pods(scene: Scene, point: str) -> None:
    """One gets there first; what the others were doing is in the ledger once, too, under their names."""
    pods = ("chat", "code", "draw")
    scene.settings(pods=pods)
    scene.order.write_text(point)

    async def drive(gateway: Running) -> None:
        for pod in pods:
            scene.ask(gateway, pod=pod)

    await scene.killed(drive)
    rows = await is_right_afterwards(scene, len(pods) * UNWRITTEN_S, len(pods) * LATE_S)
    assert all(row["pod_id"] == f"id-{row['pod']}" for row in rows), rows


@pytest.mark.parametrize("point", ["second start before", "second start after", "second saw STARTING"])
async def test_between_two_providers(scene: Scene, point: str) -> None:
    """The first has no GPU, the second is asked."""
    scene.settings(second=True)
    scene.cloud.fail("start", Capacity(), times=None)
    scene.order.write_text(point)
    if point.endswith("saw STARTING"):  # however seldom a busy machine lets it look
        scene.hold()

    async def drive(gateway: Running) -> None:
        scene.ask(gateway)

    await scene.killed(drive)
    await is_right_afterwards(scene)


async def test_at_the_limit_of_a_session(scene: Scene) -> None:
    """The last answer runs, others wait for the next session."""
    scene.settings(pod="max_session = '1s'")
    scene.ollama.faults.add("/api/chat", HangAfter(2))

    async def drive(gateway: Running) -> None:
        scene.ask(gateway, stream=True)
        await scene.until(lambda: scene.ollama.calls("/api/chat"))
        await scene.until_told(gateway, lambda told: told["status"] != "READY")
        gateway.signal(9)

    await scene.killed(drive)
    await is_right_afterwards(scene)
