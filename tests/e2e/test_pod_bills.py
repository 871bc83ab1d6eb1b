"""The cloud's own bill for each pod, beside the rows of our ledger; most pods are made for a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from decimal import Decimal
from pathlib import Path

import pytest
from gpugate_testing.clouds import Capacity, Http, LostResponse
from gpugate_testing.clouds.vast_offers import Offer

from gpugate.billing.model import Session
from gpugate.provider_api import Phase
from tests.e2e.clouds import DELAYS, EPHEMERAL, FIXED, SLACK_S, Town, play
from tests.e2e.kills import Mortal

AT_BOTH = pytest.mark.parametrize("name", ["runpod", "vastai"])
NOT_BILLED_YET = {"runpod": 0.0, "vastai": DELAYS.provision_s + DELAYS.start_s}
"""Seconds of a start that are in a session and on no bill: Vast.ai takes nothing for loading an image."""


async def rows_of(town: Town) -> list[Session]:
    """The ledger, oldest first."""
    await town.gateway.base.fleet.first.recorder.flush()
    return (await town.gateway.base.ledger.starts(100))[::-1]


async def balanced(town: Town, *, slack_s: float = SLACK_S, unseen_s: float = 0.0) -> list[Session]:
    """Hold the bill of each pod against its rows, all of them over; return the rows of accepted starts.

    Args:
        slack_s: how much longer the rows of one pod may be.
        unseen_s: how much shorter: the pod was billed while nobody could know of it.
    """
    (name,) = town.providers
    cloud, rows = town.cloud, await rows_of(town)
    assert [] == cloud.billing
    assert [] == [row for row in rows if row.ended_at is None]
    paid = [row for row in rows if row.started_at is not None]
    assert {row.pod_id for row in paid} <= set(cloud.pods), "each pod has rows of its own"
    for pod in cloud.pods.values():
        rate = cloud.hourly_rate(pod)
        here = [row for row in paid if row.pod_id == pod.id]
        assert all(row.hourly_rate == rate for row in here), (here, rate)
        due, told = cloud.bill().get(pod.id, Decimal(0)), sum(row.cost or 0 for row in here)
        more_s = float(told - due) / float(rate) * 3600
        assert -unseen_s - 1 <= more_s <= slack_s + len(here) * NOT_BILLED_YET[name], (more_s, here)
    return paid


def balance(
    scenario: Callable[[Town], Coroutine[None, None, None]], tmp_path: Path, name: str, **more: object
) -> None:
    """Run a scenario at one cloud, its gateway opened by the scenario."""
    state = tmp_path / "state"
    state.mkdir()
    how = {"sections": EPHEMERAL, "pod__start_backoff": 2, **more}
    play(scenario, state, providers=(name,), start=False, **how)  # type: ignore[arg-type]


async def opened(town: Town) -> Mortal:
    """A gateway at rest, in the clouds' time."""
    mortal = Mortal(town)
    await mortal.open()
    await town.word("STOPPED")
    return mortal


async def off(town: Town) -> None:
    """Wait until everything is off and paid."""
    await town.word("STOPPED")
    await town.proved()
    await asyncio.sleep(60)


@AT_BOTH
def test_two_sessions(tmp_path: Path, name: str) -> None:
    """Two pods, two rows."""

    async def scenario(town: Town) -> None:
        await opened(town)
        for _ in range(2):
            await town.served_by()
            await off(town)
        assert ["idle", "idle"] == [row.end_reason for row in await balanced(town)]

    balance(scenario, tmp_path, name)


@AT_BOTH
def test_candidates_that_are_taken(tmp_path: Path, name: str) -> None:
    """What was refused is on no bill and in no row; the row has the price of the pod that was made."""

    async def scenario(town: Town) -> None:
        if name == "runpod":
            town.sections = {**EPHEMERAL, "runpod": {**EPHEMERAL["runpod"], "gpus": list(town.runpod.gpus)}}
            town.cloud.fail("create", Capacity())
        else:
            town.vast.offers.append(Offer(1000, 500, dph_total=0.31))
            town.cloud.fail("create", Capacity(), times=2)
        await opened(town)
        await town.served_by()
        await off(town)
        (row,) = await balanced(town)
        assert Decimal("0.46" if name == "runpod" else "0.45") == row.hourly_rate

    balance(scenario, tmp_path, name)


@AT_BOTH
@pytest.mark.parametrize("lag_s", [0.0, 8.0])
def test_a_create_whose_answer_is_lost(tmp_path: Path, name: str, lag_s: float) -> None:
    """One pod and one row, from its creation on."""

    async def scenario(town: Town) -> None:
        await opened(town)
        (town.runpod if name == "runpod" else town.vast).list_lag_s = lag_s
        town.cloud.fail("create", LostResponse())
        await town.served_by()
        await off(town)
        assert 1 == len(await balanced(town))
        assert 1 == len(town.cloud.pods)

    balance(scenario, tmp_path, name)


@AT_BOTH
def test_a_create_whose_answer_is_lost_and_that_made_nothing(tmp_path: Path, name: str) -> None:
    """While it is waited for nothing is paid."""

    async def scenario(town: Town) -> None:
        await opened(town)
        town.cloud.fail("create", Http(502, b"<html>bad gateway</html>"))
        await town.served_by()
        await off(town)
        assert 1 == len(await balanced(town))

    balance(scenario, tmp_path, name)


@pytest.mark.parametrize("refused", [0, 2])
def test_a_create_that_fails_and_makes_an_instance(tmp_path: Path, refused: int) -> None:
    """The half and the good one are two rows, also if the half's destruction is refused at first."""

    async def scenario(town: Town) -> None:
        await opened(town)
        town.vast.half_creates = 1
        town.vast.fail("delete", Http(500), times=refused)
        await town.served_by()
        await off(town)
        half, good = await balanced(town, unseen_s=DELAYS.stop_s)  # the half's end, beside the good one
        assert list(town.cloud.pods) == [half.pod_id, good.pod_id]
        assert half.cost
        assert "idle" == good.end_reason

    balance(scenario, tmp_path, "vastai")


@AT_BOTH
def test_destroyed_before_the_first_look(tmp_path: Path, name: str) -> None:
    """The create, or its offer, has told the price: what the pod cost until it was gone is on record."""

    async def scenario(town: Town) -> None:
        await opened(town)
        (town.runpod if name == "runpod" else town.vast).list_lag_s = 30.0
        client = asyncio.create_task(town.chat())
        await town.until(lambda: town.cloud.count("create") == 1)
        await asyncio.sleep(1)
        town.gateway.lifecycle.stop(force=True)
        await client
        await off(town)
        unseen_s = 0.0 if name == "runpod" else DELAYS.stop_s  # no read of Vast.ai shows it
        (row,) = await balanced(town, slack_s=SLACK_S + 5, unseen_s=unseen_s)
        assert row.cost
        assert "forced" == row.end_reason

    balance(scenario, tmp_path, name)


@AT_BOTH
def test_a_destruction_that_is_refused(tmp_path: Path, name: str) -> None:
    """It is billed on, and its row goes on."""

    async def scenario(town: Town) -> None:
        await opened(town)
        await town.served_by()
        town.cloud.fail("delete", Http(500), times=5)
        await off(town)
        (row,) = await balanced(town)
        assert row.stop_asked_at is not None
        assert row.ended_at is not None
        assert (row.ended_at - row.stop_asked_at).total_seconds() > 20

    balance(scenario, tmp_path, name)


@AT_BOTH
@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.STOPPED, Phase.GONE])
def test_a_pod_that_ends_while_it_serves(tmp_path: Path, name: str, phase: Phase) -> None:
    """Its container ends, or it is stopped or deleted in the console: the next chat is held and answered."""

    async def scenario(town: Town) -> None:
        await opened(town)
        await town.served_by()
        town.pod().become(phase)
        assert name == await town.served_by()
        await off(town)
        rows = await balanced(town, slack_s=SLACK_S + 5)
        assert 2 == len(rows)
        assert 2 == len({row.pod_id for row in rows})

    balance(scenario, tmp_path, name)


@AT_BOTH
@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.GONE])
def test_a_pod_that_ends_while_it_starts(tmp_path: Path, name: str, phase: Phase) -> None:
    """Another one is made for the same request; each has its row, and the pause is in neither."""

    async def scenario(town: Town) -> None:
        await opened(town)
        client = asyncio.create_task(town.served_by())
        await town.until(lambda: bool(town.cloud.pods))
        await asyncio.sleep(DELAYS.provision_s + 5)  # it was listed once
        town.pod().become(phase)
        assert name == await client
        await off(town)
        assert 2 == len(await balanced(town))

    balance(scenario, tmp_path, name)


# --- an instance of the user's ------------------------------------------------------------------


@pytest.mark.parametrize("queued_s", [60.0, 3600.0])
@pytest.mark.parametrize("told", [True, False])
def test_a_start_that_waits_in_the_queue(tmp_path: Path, queued_s: float, told: bool) -> None:
    """It is on no bill, and in no row: whether Vast.ai says so, or accepts the start and lets it wait."""

    async def scenario(town: Town) -> None:
        await opened(town)
        if told:
            town.cloud.fail("start", Capacity(queued_s=queued_s))
        else:
            town.pod().start(queued_s=queued_s)
        await town.served_by()
        await off(town)
        assert 1 == len(await balanced(town))

    balance(scenario, tmp_path, "vastai", sections=FIXED, pod__capacity_wait=7200, queue__max_wait=7200)


def test_a_start_that_waits_in_vain(tmp_path: Path) -> None:
    """Taken out of the queue after an hour it has cost nothing."""

    async def scenario(town: Town) -> None:
        await opened(town)
        town.cloud.fail("start", Capacity(queued_s=10_000.0))
        assert 503 == (await town.chat()).status
        await off(town)
        assert [] == await balanced(town)
        assert [Decimal(0)] == [row.cost for row in await rows_of(town)]

    balance(scenario, tmp_path, "vastai", sections=FIXED, pod__capacity_wait=3600, queue__max_wait=7200)


@AT_BOTH
@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.STOPPED])
def test_a_fixed_pod_that_ends_while_it_starts(tmp_path: Path, name: str, phase: Phase) -> None:
    """It is started again after a pause, which is in neither of its two rows."""

    async def scenario(town: Town) -> None:
        await opened(town)
        client = asyncio.create_task(town.served_by())
        await town.until(lambda: town.cloud.starts == 1)
        await asyncio.sleep(DELAYS.provision_s + DELAYS.start_s + 2)
        town.pod().become(phase)
        assert name == await client
        await off(town)
        assert 2 == len(await balanced(town, slack_s=2 * SLACK_S))

    balance(scenario, tmp_path, name, sections=FIXED, pod__start_backoff=60)


# --- kills --------------------------------------------------------------------------------------

CREATES, DELETES = ("create",), ("delete",)
KILLS: dict[str, Callable[[Mortal], None]] = {
    "create sent": lambda mortal: mortal.at_call(mortal.town.cloud, CREATES, done=False),
    "create done": lambda mortal: mortal.at_call(mortal.town.cloud, CREATES, done=True),
    "half destroyed": lambda mortal: mortal.at_call(mortal.town.cloud, DELETES, done=True),
    "made": lambda mortal: mortal.at_state("Provisioning", 1.0),
    "ready": lambda mortal: mortal.at_state("Ready", 20.0),
    "delete sent": lambda mortal: mortal.at_call(mortal.town.cloud, DELETES, done=False),
}


@AT_BOTH
@pytest.mark.parametrize("point", KILLS)
@pytest.mark.parametrize("half", [False, True])
def test_killed(tmp_path: Path, name: str, point: str, half: bool) -> None:
    """The next gateway, ten seconds later, finds what is ours and goes on with its rows."""
    if half and name == "runpod":
        pytest.skip("RunPod's creates make a pod or none")

    async def scenario(town: Town) -> None:
        mortal = await opened(town)
        town.vast.half_creates = int(half)
        KILLS[point](mortal)
        mortal.ask()
        await asyncio.wait_for(mortal.dead.wait(), 1000)
        await mortal.bury()
        await asyncio.sleep(10)
        await mortal.open()
        await town.word("STOPPED")
        await town.served_by()
        await off(town)
        await balanced(town, slack_s=SLACK_S + 10, unseen_s=15)

    balance(scenario, tmp_path, name)
