"""A gateway in front of a cluster, by the rules of docs/api.md#kubernetes: starts, trouble, stops, money."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from gpugate_testing.clouds import Capacity, Http, Waiting
from gpugate_testing.clouds.kubernetes_objects import NO_GPU, UNSCHEDULABLE, status_of
from kubernetes_support import JOB, POD, SCALE, SLACK_S, House, play

from gpugate.core.states import Status
from gpugate.errors import GateError
from gpugate.provider_api import Phase

MODES = {
    "scale": SCALE,
    "pod": {"mode": "ephemeral", "template": POD, "endpoint": "port-forward"},
    "job": {"mode": "ephemeral", "template": JOB},
}
WORDS = 'Back-off pulling image "ollama/ollama:0.03": not found'


async def refused(house: House) -> GateError:
    """What the client of a request that fails is told."""
    with pytest.raises(GateError) as raised:
        await house.ask()
    return raised.value


@pytest.mark.parametrize("mode", MODES)
def test_a_session(mode: str) -> None:
    """Started for a request, answered, stopped when idle: the ledger's session is what the cluster counts."""

    async def scenario(house: House) -> None:
        assert "version" in await house.ask()
        assert house.lifecycle.current_status is Status.READY
        await house.off()

        (session,) = house.sessions
        assert (session.at - session.began_at).total_seconds() == pytest.approx(
            house.cloud.billed_s, abs=SLACK_S
        )
        assert float(session.cost or 0) == pytest.approx(house.cloud.billed_s * 0.6 / 3600, rel=0.05)
        assert house.cloud.starts == 1
        assert [] == house.cloud.replicas

    play(scenario, MODES[mode])


def test_what_is_written() -> None:
    """The `scale` subresource, twice; `pod_id` is kind and name."""

    async def scenario(house: House) -> None:
        await house.ask()
        assert (await house.provider.inspect()).pod_id == "Deployment/ollama"
        await house.off()

        writes = [a.operation for a in house.cloud.asked if not a.operation.startswith(("get_", "list_"))]
        assert writes == ["patch_scale", "patch_scale"]

    play(scenario, SCALE)


# --- what the cluster says ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_no_gpu_is_free(mode: str) -> None:
    """Queued with the scheduler's words, for free; after `capacity_wait` it fails, and is taken back."""

    async def scenario(house: House) -> None:
        house.cloud.queued_s = float("inf")
        asked = asyncio.ensure_future(refused(house))
        await asyncio.sleep(15)
        report = await house.provider.inspect()
        assert (report.phase, report.is_billed) == (Phase.QUEUED, False)
        assert UNSCHEDULABLE in report.detail

        error = await asked
        assert error.reason == "capacity"
        assert UNSCHEDULABLE in error.message
        await house.off()
        assert [] == house.cloud.replicas
        assert house.cloud.billed_s == 0

    play(scenario, MODES[mode], policy={"capacity_wait": 30.0})


def test_a_node_comes() -> None:
    """An autoscaler brings one: the wait costs nothing, and the request is served."""

    async def scenario(house: House) -> None:
        house.cloud.fail("patch_scale", Capacity(queued_s=200))
        await house.ask()
        await house.off()

        (session,) = house.sessions
        assert (session.at - session.began_at).total_seconds() == pytest.approx(
            house.cloud.billed_s, abs=SLACK_S
        )

    play(scenario, SCALE, policy={"capacity_wait": 600.0})


@pytest.mark.parametrize(
    "reason", ["ImagePullBackOff", "ErrImagePull", "CrashLoopBackOff", "CreateContainerError"]
)
@pytest.mark.parametrize("mode", MODES)
def test_a_pod_that_cannot_run(mode: str, reason: str) -> None:
    """The start fails at once with the kubelet's words; what was begun is stopped."""

    async def scenario(house: House) -> None:
        house.cloud.waiting = Waiting(reason, WORDS)
        error = await refused(house)
        assert error.reason == "config"
        assert f"{reason}: {WORDS}" in error.message
        await house.off()
        assert [] == house.cloud.replicas
        assert house.cloud.starts == 1

    play(scenario, MODES[mode])


def test_a_gpu_that_is_missing_in_the_node() -> None:
    """The kubelet refuses one Pod after the other: the start fails with its words, and nothing is left on."""

    async def scenario(house: House) -> None:
        house.cloud.refused = True
        error = await refused(house)
        assert error.reason == "config"
        assert NO_GPU in error.message
        await house.off()
        assert house.cloud.workloads["ollama"].replicas == 0
        assert house.cloud.billed_s == 0

        house.cloud.refused = False  # the record of the refused Pod stays, and is of no account
        await house.ask()

    play(scenario, SCALE)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "auth"), (403, "auth"), (404, "not_found"), (500, "transient"), (422, "config")],
)
def test_a_start_that_is_refused(status: int, reason: str) -> None:
    """By what the API says."""

    async def scenario(house: House) -> None:
        body = status_of(status, "Whatever", "the words of the cluster")
        house.cloud.fail("get_scale", Http(status, body), None)
        error = await refused(house)
        assert error.reason == reason
        assert "the words of the cluster" in error.message

    play(scenario, SCALE)


def test_a_quota() -> None:
    """A namespace without room is no capacity, in both modes."""
    words = 'pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'

    async def scenario(house: House) -> None:
        house.cloud.workloads["ollama"].failure = words
        error = await refused(house)
        assert error.reason == "capacity"
        assert "exceeded quota" in error.message

    async def ephemeral(house: House) -> None:
        house.cloud.fail("create_pod", Http(403, status_of(403, "Forbidden", words)), None)
        assert (await refused(house)).reason == "capacity"

    play(scenario, SCALE, policy={"capacity_wait": 20.0})
    play(ephemeral, MODES["pod"], policy={"capacity_wait": 20.0})


# --- what happens to a Pod --------------------------------------------------------------------------


@pytest.mark.parametrize("happens", ["evict", "lose"])
def test_a_pod_that_is_lost_while_its_replica_stays(happens: str) -> None:
    """The pod warms up again by itself: no new start, who waits is served, each Pod is a session."""

    async def scenario(house: House) -> None:
        await house.ask()
        first = house.pod
        getattr(house.cloud, happens)(first)
        await house.status(Status.WARMING)
        await house.ask()

        assert house.cloud.count("patch_scale") == 1
        await house.off()
        assert len(house.sessions) == 2
        paid = sum((session.at - session.began_at for session in house.sessions), timedelta())
        assert paid.total_seconds() == pytest.approx(house.cloud.billed_s, abs=2 * SLACK_S)
        if happens == "evict":
            assert first.name in {pod.name for pod in house.cloud.replicas}  # its record, which holds nothing

    play(scenario, SCALE, policy={"reconcile_interval": 5.0})


def test_a_pod_that_is_replaced_between_two_looks() -> None:
    """Two Pods are two sessions, even where no look saw the cluster without one."""

    async def scenario(house: House) -> None:
        await house.provider.start()
        await asyncio.sleep(20)
        first = await house.provider.inspect()
        house.cloud.lose(house.pod)
        await asyncio.sleep(20)
        between, second = await house.provider.inspect(), await house.provider.inspect()

        assert (first.phase, between.phase, second.phase) == (Phase.RUNNING,) * 3
        assert (first.billed, between.billed, second.billed) == (True, False, True)
        assert first.started_at is not None
        assert second.started_at is None  # it began before the look that ended the first
        await house.provider.stop()
        await asyncio.sleep(10)

    play(scenario, SCALE, start=False)


def test_replicas_that_others_set_to_0() -> None:
    """A pod stopped behind our back: the next request starts it again."""

    async def scenario(house: House) -> None:
        await house.ask()
        house.cloud.scale_to(0)
        await asyncio.sleep(20)
        assert house.lifecycle.current_status is Status.STOPPED
        await house.ask()
        assert house.cloud.starts == 2

    play(scenario, SCALE, policy={"reconcile_interval": 5.0})


def test_a_deployment_that_is_gone() -> None:
    """It is never made anew; the next start says what is missing."""

    async def scenario(house: House) -> None:
        await house.ask()
        house.cloud.scale_to(0)
        del house.cloud.workloads["ollama"]
        await house.off()
        error = await refused(house)
        assert error.reason == "not_found"
        assert '"ollama" not found' in error.message

    play(scenario, SCALE, policy={"reconcile_interval": 5.0})


def test_a_deployment_that_has_left_its_pod() -> None:
    """Deleted with `--cascade=orphan`: no proof of a stop while its Pod is there."""

    async def scenario(house: House) -> None:
        await house.provider.start()
        await asyncio.sleep(20)
        await house.provider.inspect()
        del house.cloud.workloads["ollama"]
        report = await house.provider.inspect()
        assert report.phase is Phase.STOPPING
        assert "is left: delete it" in report.detail
        house.cloud.lose(house.pod)
        assert (await house.provider.inspect()).phase is Phase.GONE

    play(scenario, SCALE, start=False)


def test_a_stop_is_proved_by_the_last_pod() -> None:
    """Terminating Pods count: until then it is stopping, and paid for."""

    async def scenario(house: House) -> None:
        await house.provider.start()
        await asyncio.sleep(20)
        await house.provider.stop()
        report = await house.provider.inspect()
        assert (report.phase, report.is_billed) == (Phase.STOPPING, True)
        await asyncio.sleep(5)
        assert (await house.provider.inspect()).phase is Phase.STOPPED

    play(scenario, SCALE, start=False)


# --- money, replicas, another gateway ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "price"),
    [
        ({"hourly_rate": 0.5}, Decimal("1.5")),
        ({"hourly_rate": 0.5, "price_label": "example.org/price-per-hour"}, Decimal("0.60")),
        ({"hourly_rate": 0.5, "price_label": "example.org/other"}, Decimal("1.5")),
        ({"hourly_rate": 0.0}, None),
    ],
)
def test_the_price_of_three_replicas(settings: dict[str, Any], price: Decimal | None) -> None:
    """The rate of each, or the label of each node: three Pods of one node pay for it once."""

    async def scenario(house: House) -> None:
        await house.provider.start()
        await asyncio.sleep(20)
        await house.provider.scale(3)
        await asyncio.sleep(20)
        report = await house.provider.inspect()
        assert report.replicas == 3
        assert (report.price.running_per_hour if report.price else None) == price
        await house.provider.stop()
        await asyncio.sleep(5)
        assert (await house.provider.inspect()).phase is Phase.STOPPED

    play(scenario, settings, start=False)


def test_scaling_never_starts() -> None:
    """A stop that came in between wins."""

    async def scenario(house: House) -> None:
        from gpugate import Conflict

        with pytest.raises(Conflict, match="it is stopped"):
            await house.provider.scale(2)
        await house.provider.start()
        house.cloud.fail("patch_scale", Http(409, status_of(409, "Conflict", "the object has been modified")))
        with pytest.raises(Conflict, match="modified"):
            await house.provider.scale(2)
        await house.provider.stop()
        assert house.cloud.count("patch_scale") == 3

    play(scenario, SCALE, start=False)


@pytest.mark.parametrize("mode", MODES)
def test_another_gateway_adopts(mode: str) -> None:
    """It finds the Pod, serves with it, and stops it when it is idle."""

    async def scenario(house: House) -> None:
        await house.ask()
        await house.restart()
        await house.status(Status.READY)
        await house.ask()
        assert house.cloud.starts == 1
        await house.off()
        assert [] == house.cloud.replicas

    play(scenario, MODES[mode])


def test_a_create_whose_answer_is_lost() -> None:
    """The second try has the same name, so there is one Pod."""
    from gpugate_testing.clouds import LostResponse

    async def scenario(house: House) -> None:
        house.cloud.fail("create_pod", LostResponse())
        await house.ask()
        assert house.cloud.starts == 1
        await house.off()

    play(scenario, MODES["pod"])
