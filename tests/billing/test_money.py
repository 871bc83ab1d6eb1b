"""Whole flows through the lifecycle, in virtual time; what counts is what is billed."""

from __future__ import annotations

import asyncio

import pytest
from gpugate_testing.fakes import FakeCloud, FakeDebts, Hang, LostAnswer

from gpugate.core.states import Status
from gpugate.errors import Ambiguous, NoCapacity, PodStartFailed, PodStopped, Transient, WarmupTimeout
from gpugate.lifecycle.status import ProviderProblem
from gpugate.provider_api import Phase
from tests.lifecycle.support import Stage, play


def test_a_request_while_the_pod_is_off() -> None:
    """Start, boot, warm-up, answer, silence, stop: billed from the start to the stop, and once started."""

    async def story() -> None:
        async with Stage([FakeCloud(boot_s=60, stop_s=20)], {"idle_timeout": 900}, warm_s=30) as stage:
            assert await stage.ask(10) == 1
            admitted = stage.cloud.now
            assert admitted == pytest.approx(100, abs=2)
            await asyncio.sleep(3600)
            assert stage.cloud.starts == 1
            assert stage.lifecycle.current_status is Status.STOPPED
            assert stage.cloud.total_billed_s == pytest.approx(60 + 30 + 10 + 900 + 20, abs=4)
            assert stage.sessions() == ["alpha opens: request", "alpha closes: idle"]
            assert stage.states() == [
                "CallingStart",
                "Provisioning",
                "Warming",
                "Ready",
                "Stopping",
                "Stopped",
            ]

    play(story())


def test_fifty_requests_at_once() -> None:
    """One start; they are answered one after the other, in order."""

    async def story() -> None:
        async with Stage([FakeCloud(boot_s=60)]) as stage:
            order: list[int] = []

            async def one(number: int) -> None:
                await stage.ask(1)
                order.append(number)

            await asyncio.gather(*(one(number) for number in range(50)))
            assert order == list(range(50))
            assert stage.cloud.calls.count("start") == 1

    play(story())


def test_a_late_arrival_during_the_stop() -> None:
    """It waits for the proof and the next start instead of failing; both stretches are billed apart."""

    async def story() -> None:
        async with Stage([FakeCloud(stop_s=30)], {"idle_timeout": 100}) as stage:
            await stage.ask()
            await asyncio.sleep(105)
            assert stage.lifecycle.current_status is Status.STOPPING
            assert await stage.ask() == 2
            assert stage.cloud.starts == 2
            assert stage.sessions() == ["alpha opens: request", "alpha closes: idle", "alpha opens: request"]

    play(story())


def test_a_start_whose_answer_is_lost() -> None:
    """It is looked up and not asked twice."""

    async def story() -> None:
        async with Stage([FakeCloud(boot_s=10)]) as stage:
            stage.cloud.fail("start", LostAnswer(Ambiguous("timeout")))
            await stage.ask()
            assert stage.cloud.calls.count("start") == 1

    play(story())


def test_three_attempts_that_fail() -> None:
    """Three calls of start, a stop, a 503; and nothing is billed."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            stage.cloud.fail("start", *(Transient("boom") for _ in range(3)))
            with pytest.raises(PodStartFailed, match="alpha: boom"):
                await stage.ask()
            await asyncio.sleep(60)
            assert stage.cloud.calls.count("start") == 3
            assert stage.cloud.total_billed_s == 0
            assert stage.lifecycle.current_status is Status.STOPPED

    play(story())


def test_an_attempt_that_worked_unseen_and_cannot_be_looked_at() -> None:
    """The last word is a stop, and it is proved: nothing goes on billing."""

    async def story() -> None:
        async with Stage([FakeCloud()], {"start_attempts": 1}) as stage:
            stage.cloud.fail("start", LostAnswer(Ambiguous("timeout")))
            stage.cloud.fail("stop", Transient("down"), Transient("down"))
            with pytest.raises(PodStartFailed):
                await stage.ask()
            await asyncio.sleep(120)
            assert stage.lifecycle.current_status is Status.STOPPED
            assert stage.cloud.phase is Phase.STOPPED
            assert stage.cloud.total_billed_s == pytest.approx(15, abs=2)

    play(story())


def test_the_pod_never_warms() -> None:
    """Billed for the warm-up's limit and no longer."""

    async def story() -> None:
        async with Stage([FakeCloud()], warm_s=10_000) as stage:
            with pytest.raises(WarmupTimeout):
                await stage.ask()
            await asyncio.sleep(60)
            assert stage.cloud.total_billed_s == pytest.approx(180, abs=1)
            assert stage.sessions() == ["alpha opens: request", "alpha closes: start_failed"]

    play(story())


def test_a_stop_that_is_ignored_four_times() -> None:
    """It is sent again until it works; the session ends with the proof; the debt is written down."""

    async def story() -> None:
        async with Stage([FakeCloud(ignore_stops=4)], {"idle_timeout": 10}) as stage:
            await stage.ask()
            await asyncio.sleep(30)
            assert stage.lifecycle.current_status is Status.STOPPING
            assert stage.debts.names == {"alpha"}
            assert "not proved" in str((await stage.lifecycle.status()).last_error)
            await asyncio.sleep(600)
            assert stage.cloud.total_billed_s == pytest.approx(10 + 5 + 10 + 20 + 40, abs=2)
            assert stage.debts.names == frozenset()
            assert stage.lifecycle.current_status is Status.STOPPED

    play(story())


def test_the_first_provider_has_no_capacity() -> None:
    """The second serves, within the same request; only it is billed."""

    async def story() -> None:
        full, free = FakeCloud(), FakeCloud()
        async with Stage([full, free]) as stage:
            stage.pod.cloud = free
            full.fail("start", NoCapacity("no GPU"))
            await stage.ask(100)
            assert full.total_billed_s == 0
            assert free.total_billed_s == pytest.approx(100, abs=1)
            assert (await stage.lifecycle.status()).provider == "beta"

    play(story())


def test_the_first_provider_never_runs() -> None:
    """Its pod is stopped and proved so while the second one serves."""

    async def story() -> None:
        stuck, free = FakeCloud(boot_s=1e9), FakeCloud()
        async with Stage([stuck, free], {"start_timeout": 100}) as stage:
            stage.pod.cloud = free
            await stage.ask(500)
            assert stuck.total_billed_s == pytest.approx(100, abs=1)
            assert stuck.phase is Phase.STOPPED
            assert sorted(stage.sessions()) == [
                "alpha closes: start_failed",
                "alpha opens: request",
                "beta opens: request",
            ]

    play(story())


def test_a_pod_is_found_running_at_boot() -> None:
    """Adopted: no start, an idle stop after the idle timeout."""

    async def story() -> None:
        cloud = FakeCloud()
        cloud.turn_on()
        async with Stage([cloud], {"idle_timeout": 60}) as stage:
            assert (await stage.lifecycle.status()).status in (Status.STARTING, Status.WARMING, Status.READY)
            await asyncio.sleep(120)
            assert cloud.calls.count("start") == 0
            assert cloud.total_billed_s == pytest.approx(60, abs=1)

    play(story())


def test_an_unproved_stop_is_inherited() -> None:
    """The gateway that comes up goes on stopping what the last one could not; what it cannot, it tells."""

    async def story() -> None:
        cloud = FakeCloud()
        cloud.turn_on()
        async with Stage([cloud], debts=FakeDebts(frozenset({"alpha", "long gone"}))) as stage:
            await asyncio.sleep(5)
            assert cloud.phase is Phase.STOPPED
            assert cloud.calls.count("start") == 0
            assert stage.debts.names == {"long gone"}
            told = [news for news in stage.news if isinstance(news, ProviderProblem) and news.alarm]
            assert [news.provider for news in told] == ["long gone"]

    play(story())


def test_the_pod_is_lost_before_an_answer_began() -> None:
    """The request goes back to the queue and is answered by the next pod; nothing is billed twice."""

    async def story() -> None:
        async with Stage([FakeCloud(boot_s=10)]) as stage:
            await stage.ask()
            with stage.lifecycle.acquire() as lease:
                first = await lease.wait_admitted()
                stage.cloud.turn_off(at_once=True)
                await stage.lifecycle.diagnose(first.run_id)
                assert lease.pod is None
                second = await lease.wait_admitted()
                assert (first.run_id, second.run_id) == (1, 2)

    play(story())


def test_the_pod_is_lost_under_many_requests() -> None:
    """Each of those that examine it learns the same, also those that come second."""

    async def story() -> None:
        async with Stage([FakeCloud(boot_s=10)], {"start_attempts": 1}) as stage:
            await stage.ask()

            async def one() -> int:
                with stage.lifecycle.acquire() as lease:
                    pod = await lease.wait_admitted()
                    await asyncio.sleep(5)
                    if pod.run_id == 1:
                        await stage.lifecycle.diagnose(pod.run_id)
                        pod = await lease.wait_admitted()
                    return pod.run_id

            stage.cloud.fail("inspect", Hang(3))
            asking = [asyncio.ensure_future(one()) for _ in range(5)]
            await asyncio.sleep(4)
            stage.cloud.turn_off(at_once=True)
            assert await asyncio.gather(*asking) == [2] * 5

    play(story())


def test_the_gateway_is_killed_while_a_start_is_out() -> None:
    """A forced stop follows the start that is out; what was billed is a session."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            stage.cloud.fail("start", Hang(3))
            asking = asyncio.ensure_future(stage.ask())
            await asyncio.sleep(1)
            stage.lifecycle.stop(force=True)
            with pytest.raises(PodStopped):
                await asking
            await asyncio.sleep(60)
            assert stage.cloud.phase is Phase.STOPPED
            assert stage.sessions() == ["alpha opens: request", "alpha closes: forced"]

    play(story())


def test_the_session_has_a_limit() -> None:
    """An answer that never ends is cut, and who waits gets a new pod."""

    async def story() -> None:
        async with Stage([FakeCloud()], {"max_session": 100, "drain_grace": 20}) as stage:
            lost: list[float] = []
            with stage.lifecycle.acquire() as lease:
                await lease.wait_admitted()
                lease.mark_response_started()
                lease.on_lost = lambda: lost.append(stage.cloud.now)
                await asyncio.sleep(110)
                assert await stage.ask() == 2
            assert lost == [pytest.approx(120, abs=1)]

    play(story())
