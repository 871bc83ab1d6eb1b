"""Lives of a job under gpugate's own lifecycle, at a simulated Slurm, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from gpugate_slurm import Slurm
from gpugate_testing.clouds import Http
from gpugate_testing.fakes import FakeDebts
from slurm_sim import Said
from slurm_support import IDLE_S, House, play

from gpugate.core.states import Status
from gpugate.errors import Ambiguous, Conflict, PodStartFailed, RateLimited, Transient
from gpugate.provider_api import Phase

WAYS = pytest.mark.parametrize("way", ["rest", "commands"])


def looks(house: House) -> int:
    """How often the cluster was asked for its jobs."""
    if house.way == "rest":
        return house.cloud.count("list")
    return sum(1 for words in house.runner.ran if words[0] == "squeue")


@WAYS
def test_the_session_is_slurms_accounting(way: str) -> None:
    """It begins at the job's StartTime, not at its submission, however long it waited in between."""

    async def scenario(house: House) -> None:
        house.cloud.queued_s = 200.0
        await house.ask()
        await house.off()
        (session,) = house.sessions
        assert "idle" == session.cause
        job = house.cloud.show(house.cloud.pods[house.job])
        assert job["start_time"] == pytest.approx(session.began_at.timestamp(), abs=1)
        assert job["end_time"] == pytest.approx(session.at.timestamp(), abs=1)
        assert house.cloud.billed_s == pytest.approx(IDLE_S + 10, abs=25)

    play(scenario, way)


@WAYS
def test_a_look_every_ten_seconds(way: str) -> None:
    """While it waits, warms up, serves and stops: never more often, but for a start's and a stop's own."""

    async def scenario(house: House) -> None:
        before, began = looks(house), asyncio.get_running_loop().time()
        house.cloud.queued_s = 200.0
        await house.ask()
        await house.off()
        took = asyncio.get_running_loop().time() - began
        assert looks(house) - before <= took / 10 + 4

    play(scenario, way)


@WAYS
def test_a_cluster_that_does_not_answer(way: str) -> None:
    """It is asked less and less often, once a minute in the end; a start asks all the same."""

    async def scenario(house: House) -> None:
        words, fault = Said("Unable to contact slurm controller"), Http(500, b"<html>500</html>")
        house.runner.says["squeue"] = [words] * 1000
        house.cloud.fail("list", fault, times=None)
        before = looks(house)
        await asyncio.sleep(600)
        assert 10 <= looks(house) - before <= 15
        before = looks(house)
        with pytest.raises(Transient):
            await house.provider.start()
        assert 1 == looks(house) - before
        with pytest.raises(RateLimited):
            await house.provider.inspect()
        house.runner.says.clear()
        house.cloud.faults.heal()
        await asyncio.sleep(61)
        before = looks(house)
        await asyncio.sleep(600)
        assert 19 <= looks(house) - before <= 21

    play(scenario, way)


@WAYS
def test_pods_share_a_look(way: str) -> None:
    """Four pods that are looked at every ten seconds are one question each time; a change asks anew."""

    async def scenario(house: House) -> None:
        pods: list[Slurm] = []
        for number in range(4):
            pods.append(house.make_provider())
            pods[-1].pod_name = f"p{number}"
        before = looks(house)
        for _ in range(5):
            await asyncio.sleep(10)
            assert [Phase.STOPPED] * 4 == [(await pod.inspect()).phase for pod in pods]
        assert 5 == looks(house) - before
        await pods[1].start()
        assert Phase.PROVISIONING is (await pods[1].inspect()).phase
        assert 7 == looks(house) - before
        await pods[1].stop()
        assert Phase.STOPPED is (await pods[1].inspect()).phase
        for pod in pods:
            await pod.aclose()

    play(scenario, way)


@WAYS
@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL", "TIMEOUT", "CANCELLED"])
def test_a_job_that_is_taken_away(way: str, state: str) -> None:
    """Its session ends, the status says why; the next request has another job."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=1)
        first = house.job
        house.cloud.end(first, state)
        await house.off()
        assert state in (await house.provider.inspect()).detail
        await house.ask(hold_s=1)
        assert first != house.job
        await house.off()
        assert 2 == len(house.sessions)

    play(scenario, way)


@WAYS
def test_a_job_that_is_put_back(way: str) -> None:
    """An administrator requeues it: it waits again, costs nothing, and serves when it runs again."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=1)
        job = house.cloud.jobs[house.job]
        job.state, job.reason = "PENDING", "BeginTime"
        report = await house.provider.inspect()
        assert (Phase.QUEUED, False) == (report.phase, report.is_billed)
        assert "it may begin later (BeginTime)" == report.detail
        await asyncio.sleep(30)
        job.state = job.reason = ""
        await house.ask(hold_s=1)
        await house.off()
        assert 1 == len(house.cloud.pods)

    play(scenario, way)


@WAYS
@pytest.mark.parametrize(("wait", "said"), [(30.0, "no GPU is free (Resources)"), (0.0, "no GPU is free")])
def test_the_queue_is_too_long(way: str, wait: float, said: str) -> None:
    """After capacity_wait the client is told Slurm's reason, and the job is cancelled before it has run."""

    async def scenario(house: House) -> None:
        house.cloud.queued_s = 1000.0
        with pytest.raises(PodStartFailed) as raised:
            await house.ask()
        assert ("capacity", True) == (raised.value.reason, said in raised.value.message)
        await house.off()
        assert "CANCELLED" == house.cloud.show(house.cloud.pods[house.job])["job_state"]
        assert (0.0, []) == (
            house.cloud.billed_s,
            [s for s in house.sessions if s.uptime.total_seconds() > 60],
        )

    play(scenario, way, policy={"capacity_wait": wait})


@WAYS
@pytest.mark.parametrize("reason", ["InvalidAccount", "InvalidQOS", "QOSMaxGRESPerJob"])
def test_a_job_that_waits_in_vain(way: str, reason: str) -> None:
    """What no waiting helps fails the start at once, with Slurm's word, and the job is cancelled."""

    async def scenario(house: House) -> None:
        house.cloud.queued_s = 1000.0
        asking = asyncio.ensure_future(house.ask())
        await asyncio.sleep(25)
        house.cloud.jobs[house.job].reason = reason
        with pytest.raises(PodStartFailed, match=rf"\({reason}\)") as raised:
            await asking
        assert "config" == raised.value.reason
        await house.off()
        assert 1 == len(house.cloud.pods)
        assert 0.0 == house.cloud.billed_s

    play(scenario, way)


@WAYS
def test_nobody_waits_any_more(way: str) -> None:
    """The client leaves while the job waits: it is cancelled."""

    async def scenario(house: House) -> None:
        house.cloud.queued_s = 1000.0
        asking = asyncio.ensure_future(house.ask())
        await asyncio.sleep(60)
        asking.cancel()
        await house.off()
        assert "CANCELLED" == house.cloud.show(house.cloud.pods[house.job])["job_state"]
        assert 0.0 == house.cloud.billed_s

    play(scenario, way)


def test_an_unanswered_submission() -> None:
    """The job is looked for by its name, half a minute long, before another is sent."""

    async def scenario(house: House) -> None:
        house.runner.says["sbatch"] = [Said("Socket timed out on send/recv operation")]
        with pytest.raises(Ambiguous):
            await house.provider.start()
        with pytest.raises(Transient, match="too early"):
            await house.provider.inspect()
        with pytest.raises(RateLimited) as raised:
            await house.provider.start()
        assert 0 < (raised.value.retry_after or 0) <= 30
        house.cloud.submit({"name": "gpugate-main", "comment": "gpugate main port=20001"}, "")  # late
        assert "1" == (await house.provider.start()).pod_id
        assert 1 == len(house.cloud.pods)
        await house.provider.stop()

    play(scenario, "commands")


@WAYS
def test_two_jobs(way: str) -> None:
    """The second one is told, and cancelled while the first serves."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=1)
        first = house.job
        house.cloud.submit({"name": "gpugate-main", "comment": "gpugate main port=20001"}, "")
        second = house.job
        await house.until(lambda: house.cloud.pods[second].look() is Phase.GONE)
        assert any(f"more jobs of this pod hold nodes or wait: {second}" in said for said in house.troubles)
        assert Phase.RUNNING is house.cloud.pods[first].look()
        await house.off()

    play(scenario, way)


@WAYS
def test_another_gateways_job(way: str) -> None:
    """It is left alone, and nothing is submitted beside it."""

    async def scenario(house: House) -> None:
        house.cloud.submit({"name": "gpugate-main", "comment": "gpugate other port=20001"}, "")
        with pytest.raises(Conflict, match="instance 'other'"):
            await house.provider.start()
        await house.provider.stop()
        assert Phase.STOPPED is (await house.provider.inspect()).phase
        await asyncio.sleep(60)
        assert [Phase.RUNNING] == [pod.look() for pod in house.cloud.pods.values()]

    play(scenario, way)


@WAYS
def test_a_gateway_that_comes_back(way: str) -> None:
    """It finds the job that its predecessor left, and cancels it when it is idle."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=1)
        await house.lifecycle.close(keep=True, stop_wait_s=1)
        await house.provider.aclose()
        signs = house.cloud.jobs[house.job].signs
        await asyncio.sleep(300)
        assert signs == house.cloud.jobs[house.job].signs
        house.build()
        await house.lifecycle.open()
        await house.until(lambda: house.lifecycle.current_status is Status.READY)
        assert signs < house.cloud.jobs[house.job].signs
        await house.off()
        assert 1 == len(house.cloud.pods)

    play(scenario, way)


@WAYS
def test_signs_of_life(way: str) -> None:
    """Four in orphan_after, whatever else happens; none once the job has ended."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=3000)
        heard = house.cloud.jobs[house.job].signs
        assert heard == pytest.approx(3000 / 150, abs=2)
        await house.off()
        heard = house.cloud.jobs[house.job].signs
        await asyncio.sleep(1000)
        assert heard == house.cloud.jobs[house.job].signs

    play(scenario, way)


@WAYS
@pytest.mark.parametrize("moment", [0.0, 0.05, 1.0, 4.0, 11.0, 30.0, 130.0, 141.0, 146.0])
@pytest.mark.parametrize("away_s", [1.0, 400.0])
def test_a_gateway_that_is_killed(way: str, moment: float, away_s: float) -> None:
    """At whatever moment of a job's life: its successor finds the job, ends it, and makes no second one."""

    async def scenario(house: House) -> None:
        asking = asyncio.ensure_future(house.ask(hold_s=1))
        await asyncio.sleep(moment)
        left, house.debts = house.debts, FakeDebts(house.debts.names)
        await house.lifecycle.close(keep=True, stop_wait_s=0)
        await asyncio.wait([asking])
        asking.exception()
        await house.provider.aclose()
        del left
        await asyncio.sleep(away_s)
        house.build()
        await house.lifecycle.open()
        await asyncio.sleep(60)
        await house.off()
        assert [] == house.cloud.billing
        assert len(house.cloud.pods) <= 1
        assert {Phase.GONE} >= {pod.look() for pod in house.cloud.pods.values()}

    play(scenario, way)
