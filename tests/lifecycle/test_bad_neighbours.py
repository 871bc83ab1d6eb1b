"""Plugins, pods and listeners that misbehave, clients that vanish: the lifecycle lives, and tells."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from gpugate_testing.fakes import FakeCloud, FakePod, FakeProvider, Hang

from gpugate.core.commands import LoadOptions, StartPod, StopPod
from gpugate.core.events import Event, StartCallFailed
from gpugate.core.machine import PodMachine
from gpugate.core.states import Status
from gpugate.errors import (
    NoCapacity,
    PodBusy,
    PodStartFailed,
    ProviderUnavailable,
    ShuttingDown,
    Transient,
    WarmupTimeout,
)
from gpugate.lifecycle.lease import Lease
from gpugate.lifecycle.provider_worker import (
    START_LIMIT_BEFORE_STOP_S,
    ConfiguredProvider,
    ProviderWorker,
    ReportSanitizer,
)
from gpugate.lifecycle.status import LifecycleEvent
from gpugate.provider_api import Capabilities, Endpoint, Phase, PodReport, Provider
from gpugate.tasks import spawn
from tests.lifecycle.support import Stage, play


class Broken(FakeProvider):
    """A plugin whose start does what `act` does."""

    def __init__(self, provider: FakeProvider, act: Any) -> None:
        super().__init__(provider.cloud)
        self.act = act

    async def start(self) -> PodReport:
        self.cloud.calls.append("start")
        answer: PodReport = await self.act()
        return answer


async def raise_value_error() -> None:
    raise ValueError("a bug, and a secret")


async def return_none() -> None:
    return None


async def raise_timeout() -> None:
    raise TimeoutError


async def cancel_itself() -> None:
    raise asyncio.CancelledError


async def hang() -> None:
    await asyncio.sleep(1e9)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (raise_value_error, "the plugin failed with ValueError"),
        (return_none, "the plugin returned NoneType, not a PodReport"),
        (raise_timeout, "no answer in time"),
        (cancel_itself, "the plugin cancelled its own call"),
        (hang, "no answer within 120 s"),
    ],
)
def test_a_plugin_with_a_bug(act: Any, said: str) -> None:
    """It is one more failure to start, in words without its details, and the lifecycle goes on."""

    async def story() -> None:
        def wrap(provider: FakeProvider) -> Provider:
            return Broken(provider, act)

        async with Stage([FakeCloud()], {"start_attempts": 2}, wrap=wrap) as stage:
            with pytest.raises(PodStartFailed) as caught:
                await stage.ask()
            assert caught.value.message == f"pod could not be started: alpha: {said}"
            assert stage.cloud.calls.count("start") == 2
            await asyncio.sleep(10)
            assert stage.lifecycle.current_status is Status.STOPPED

    play(story())


def test_a_listener_that_raises() -> None:
    """It is heard of, the other listeners are told, and the pod's life goes on."""

    def deaf(news: LifecycleEvent) -> None:
        raise RuntimeError("a listener's bug")

    async def story() -> None:
        complaints: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
        async with Stage([FakeCloud()], listeners=(deaf,)) as stage:
            assert await stage.ask() == 1
            assert stage.states()[-1] == "Ready"
        assert set(complaints) == {"'an event listener' crashed"}

    play(story())


class Moody(FakePod):
    """Its first check meets a bug."""

    async def check(self, endpoint: Endpoint) -> str | None:
        healthy = await super().check(endpoint)
        if self.checks == 1:
            raise ValueError("a bug")
        return healthy


class Silent(FakePod):
    """Its checks never answer."""

    async def check(self, endpoint: Endpoint) -> str | None:
        await asyncio.sleep(1e9)
        return None


class Unloadable(FakePod):
    """Its preload meets a bug."""

    async def preload(self, endpoint: Endpoint, model: str, options: LoadOptions) -> str | None:
        raise ValueError("a bug")


def test_a_health_check_that_raises() -> None:
    """It is no health, and the next one counts."""

    async def story() -> None:
        async with Stage([FakeCloud()], pod_class=Moody) as stage:
            assert await stage.ask() == 1
            assert stage.cloud.now < 5

    play(story())


def test_a_health_check_that_hangs() -> None:
    """Each is bounded by `health_interval`, the whole by `warmup_timeout`."""

    async def story() -> None:
        async with Stage([FakeCloud()], pod_class=Silent) as stage:
            with pytest.raises(WarmupTimeout):
                await stage.ask()
            assert stage.cloud.now == pytest.approx(180, abs=1)

    play(story())


@pytest.mark.parametrize(("pod_class", "load_s", "ends"), [(Unloadable, 0, 1), (FakePod, 1e6, 300)])
def test_a_preload_that_raises_or_hangs(pod_class: type[FakePod], load_s: float, ends: float) -> None:
    """A preload never fails a start."""

    async def story() -> None:
        async with Stage([FakeCloud()], load_s=load_s, pod_class=pod_class) as stage:
            assert await stage.ask(model="llama3") == 1
            assert stage.cloud.now == pytest.approx(ends, abs=2)

    play(story())


def test_clients_that_vanish_while_they_wait() -> None:
    """Their tickets leave the queue; the one that stayed is answered."""

    async def story() -> None:
        async with Stage([FakeCloud(boot_s=60)]) as stage:
            asking = [asyncio.ensure_future(stage.ask()) for _ in range(3)]
            await asyncio.sleep(10)
            asking[0].cancel()
            asking[2].cancel()
            assert await asking[1] == 1
            status = await stage.lifecycle.status()
            assert (status.waiting, status.in_flight) == (0, 0)
            await asyncio.gather(*asking, return_exceptions=True)

    play(story())


def test_a_lease_is_given_back_twice() -> None:
    """The second time is harmless, also when somebody else has the pod by then."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                await lease.wait_admitted()
                lease.release()
                with stage.lifecycle.acquire() as other:
                    await other.wait_admitted()
                    lease.release()
                    assert (await stage.lifecycle.status()).in_flight == 1

    play(story())


def test_a_client_that_is_cancelled_in_the_moment_of_admission() -> None:
    """Its lease is given back, and the next one goes."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            first = asyncio.ensure_future(stage.ask(1000))
            second = asyncio.ensure_future(stage.ask())
            await asyncio.sleep(50)
            first.cancel()
            assert await second == 1
            await asyncio.gather(first, return_exceptions=True)

    play(story())


def test_a_stop_by_hand_while_somebody_waits() -> None:
    """PodBusy."""

    async def story() -> None:
        async with Stage([FakeCloud(boot_s=60)]) as stage:
            asking = asyncio.ensure_future(stage.ask())
            await asyncio.sleep(1)
            with pytest.raises(PodBusy):
                stage.lifecycle.stop()
            assert await asking == 1

    play(story())


def test_the_provider_cannot_be_asked_at_boot() -> None:
    """A status cannot be had, and that is said; a status that is known is given at once."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            stage.cloud.fail("inspect", *(Transient("no route") for _ in range(3)))
            with pytest.raises(ProviderUnavailable, match="no route"):
                await stage.lifecycle.status()
            await asyncio.sleep(30)
            assert (await stage.lifecycle.status()).status is Status.STOPPED

    play(story())


def test_examining_a_pod_that_lives() -> None:
    """It takes one look and no longer; the lease stays."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                pod = await lease.wait_admitted()
                looks = stage.cloud.calls.count("inspect")
                await stage.lifecycle.diagnose(pod.run_id)
                assert lease.pod is pod
                assert stage.cloud.calls.count("inspect") == looks + 1
                await stage.lifecycle.diagnose(pod.run_id + 7)

    play(story())


def test_examining_a_pod_at_a_provider_that_hangs() -> None:
    """Nobody waits longer than the limit."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                pod = await lease.wait_admitted()
                stage.cloud.fail("inspect", Hang(100))
                before = stage.cloud.now
                await stage.lifecycle.diagnose(pod.run_id)
                assert stage.cloud.now - before == pytest.approx(6)

    play(story())


def test_a_forced_stop_ends_an_examination() -> None:
    """There is nothing to look for any more."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                pod = await lease.wait_admitted()
                stage.cloud.fail("inspect", Hang(100))
                examining = asyncio.ensure_future(stage.lifecycle.diagnose(pod.run_id))
                await asyncio.sleep(1)
                stage.lifecycle.stop(force=True)
                before = stage.cloud.now
                await examining
                assert stage.cloud.now - before < 0.1
                assert lease.error is not None

    play(story())


# --- going down -------------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [0.0, 0.5, 15.0, 45.0, 75.0, 130.0, 400.0])
@pytest.mark.parametrize("keep", [False, True])
def test_the_gateway_goes_down_at_any_moment(after_s: float, keep: bool) -> None:
    """While it knows nothing, starts, warms, serves, stops or rests: it ends, and stops what it has to."""

    async def story() -> None:
        clouds = [FakeCloud(boot_s=30, stop_s=60)]
        async with Stage(clouds, {"idle_timeout": 30}, warm_s=30) as stage:
            asking = asyncio.ensure_future(stage.ask(10))
            await asyncio.sleep(after_s)
            assert await stage.lifecycle.close(keep=keep, stop_wait_s=300) is True
            if not keep:
                assert stage.cloud.phase is Phase.STOPPED
            await asyncio.gather(asking, return_exceptions=True)
            if not asking.cancelled() and (error := asking.exception()) is not None:
                assert isinstance(error, ShuttingDown)
            billed = stage.cloud.total_billed_s
            await asyncio.sleep(1000)
            assert keep or stage.cloud.total_billed_s == billed

    play(story())


def test_the_stop_is_not_proved_in_time() -> None:
    """False, after `stop_wait` and no later; the debt is written down for the next gateway."""

    async def story() -> None:
        async with Stage([FakeCloud(ignore_stops=99)]) as stage:
            await stage.ask()
            before = stage.cloud.now
            assert await stage.lifecycle.close(keep=False, stop_wait_s=60) is False
            assert stage.cloud.now - before == pytest.approx(60)
            assert stage.debts.names == {"alpha"}

    play(story())


def test_a_second_signal() -> None:
    """What still runs is cut at once."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                await lease.wait_admitted()
                lease.mark_response_started()
                cut: list[bool] = []
                lease.on_lost = lambda: cut.append(True)
                closing = asyncio.ensure_future(stage.lifecycle.close(keep=False, stop_wait_s=60))
                await asyncio.sleep(1)
                assert cut == []
                stage.lifecycle.abort_in_flight()
                assert cut == [True]
                assert await closing is True
                assert stage.cloud.now < 10

    play(story())


def test_a_step_that_fails_holds_up_no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting one exchange fails: that is reported, and the stop behind it is sent all the same."""

    def fail(lease: Lease) -> None:
        raise RuntimeError("broken")

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                await lease.wait_admitted()
                lease.mark_response_started()
                stage.lifecycle.stop(force=True)
                await asyncio.sleep(60)
                assert stage.lifecycle.current_status is Status.STOPPED
            assert stage.crashes == ["lifecycle: AbortResponse: RuntimeError('broken')"]
            stage.crashes.clear()

    monkeypatch.setattr(Lease, "abort", fail)
    play(story())


def test_a_plugin_that_will_not_close() -> None:
    """It holds up the end for seconds, not for ever."""

    class Clinging(FakeProvider):
        async def aclose(self) -> None:
            await asyncio.sleep(1e9)

    async def story() -> None:
        async with Stage([FakeCloud()], wrap=lambda provider: Clinging(provider.cloud)) as stage:
            before = stage.cloud.now
            assert await stage.lifecycle.close(keep=False, stop_wait_s=60) is True
            assert stage.cloud.now - before < 15

    play(story())


async def cancel_the_worker() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def leave_the_process() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(("act", "crashes"), [(cancel_the_worker, 1), (leave_the_process, 0)])
def test_a_plugin_that_kills_its_worker(act: Any, crashes: int) -> None:
    """The command counts as failed, a fresh worker carries the next ones out, and the pod can be stopped."""

    async def story() -> None:
        died: list[int] = []

        async def once() -> PodReport:
            if not died:
                died.append(1)
                await act()
            return await FakeProvider(stage.cloud).start()

        def wrap(provider: FakeProvider) -> Provider:
            return Broken(provider, once)

        async with Stage([FakeCloud()], {"start_attempts": 2}, wrap=wrap) as stage:
            await stage.ask()
            assert crashes == len(stage.crashes)
            stage.crashes.clear()
            stage.lifecycle.stop()
            await asyncio.sleep(10)
            assert stage.lifecycle.current_status is Status.STOPPED

    play(story())


class Deaf(FakeProvider):
    """Looks never end, once it is told so."""

    deaf = False

    async def inspect(self) -> PodReport:
        while self.deaf:
            await asyncio.sleep(1)
        return await super().inspect()


class LostStart(FakeProvider):
    """Starts are accepted, and their answer never comes."""

    async def start(self) -> PodReport:
        await super().start()
        await asyncio.sleep(3600)
        raise AssertionError("it was not given up")


def test_a_shutdown_does_not_wait_for_a_start_that_hangs() -> None:
    """The stop is sent within three seconds, and proved: `docker stop` waits no longer than ten."""

    async def story() -> None:
        async with Stage([FakeCloud(stop_s=1)], wrap=lambda provider: LostStart(provider.cloud)) as stage:
            stage.lifecycle.start()
            await asyncio.sleep(1)
            ending = spawn(stage.lifecycle.close(keep=False, stop_wait_s=60), "test:close")
            await asyncio.sleep(3.1)
            assert "stop" in stage.cloud.calls
            assert await ending
            assert Phase.STOPPED is stage.cloud.phase
            assert 1 == stage.cloud.starts

    play(story())


def test_a_stop_goes_before_a_look_that_hangs() -> None:
    """It is sent at once, not when the look's time is over."""

    async def story() -> None:
        providers: list[Deaf] = []

        def wrap(provider: FakeProvider) -> Provider:
            providers.append(Deaf(provider.cloud))
            return providers[-1]

        async with Stage([FakeCloud()], {"reconcile_interval": 5}, wrap=wrap) as stage:
            await stage.ask()
            providers[0].deaf = True
            await asyncio.sleep(6)
            stage.lifecycle.stop()
            await asyncio.sleep(0.1)
            assert "stop" in stage.cloud.calls
            providers[0].deaf = False
            await asyncio.sleep(10)
            assert stage.lifecycle.current_status is Status.STOPPED

    play(story())


@pytest.mark.parametrize("keep", [False, True])
def test_a_machine_that_fails(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits or asks is told that the gateway goes down; closing stops the pod without the machine."""

    async def story() -> None:
        def handle(*_: object) -> None:
            raise RuntimeError("a bug of ours")

        async with Stage([FakeCloud()]) as stage:
            await stage.ask()
            monkeypatch.setattr(PodMachine, "handle", handle)
            with pytest.raises(ShuttingDown):
                stage.lifecycle.start()
            with pytest.raises(ShuttingDown):
                await stage.ask()
            assert isinstance(stage.lifecycle.failure, RuntimeError)
            assert await stage.lifecycle.close(keep=keep, stop_wait_s=60)
            assert ("stop" in stage.cloud.calls) is not keep
            assert frozenset() == stage.debts.load()
            assert ["lifecycle: RuntimeError('a bug of ours')"] == stage.crashes
            stage.crashes.clear()

    play(story())


@pytest.mark.parametrize("call", ["start", "stop", "inspect"])
def test_a_call_that_does_not_return(call: str) -> None:
    """After ten seconds the status says what is waited for, until it returns."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            stage.cloud.fail(call, Hang(100))
            if call == "stop":
                stage.lifecycle.start()
                await asyncio.sleep(1)
                stage.lifecycle.stop()
            elif call == "start":
                stage.lifecycle.start()
            before = stage.cloud.now
            await asyncio.sleep(9)
            status = stage.lifecycle.status_now()
            assert status is None or status.last_error is None
            await asyncio.sleep(2)
            expected = f"alpha: waiting for the answer to {call} for 11 s"
            if call == "inspect":
                with pytest.raises(ProviderUnavailable, match=expected):
                    await stage.lifecycle.status(patience_s=0)
            else:
                assert (await stage.lifecycle.status()).last_error == expected
            await asyncio.sleep(before + 101 - stage.cloud.now)
            assert (await stage.lifecycle.status()).last_error is None

    play(story())


def test_stops_that_come_one_after_the_other() -> None:
    """The first one says how long a start that is out may take; the next ones do not put that off."""

    async def story() -> None:
        cloud = FakeCloud()
        provider = FakeProvider(cloud)
        results: list[tuple[float, Event]] = []
        worker = ProviderWorker(
            ConfiguredProvider("alpha", provider),
            lambda event: results.append((cloud.now, event)),
            lambda report: 0.0,
            ReportSanitizer(lambda: datetime.now(UTC), lambda: cloud.now, print),
            lambda name, error: None,
        )
        cloud.fail("start", Hang(100))
        began = cloud.now
        worker.send(StartPod(1, 0))
        for op in range(2, 6):
            await asyncio.sleep(1)
            worker.send(StopPod(op, 0))
        await asyncio.sleep(10)
        assert isinstance(results[0][1], StartCallFailed)
        assert results[0][0] - began == pytest.approx(1 + START_LIMIT_BEFORE_STOP_S)
        await worker.aclose()

    play(story())


def test_a_provider_that_takes_one_change_in_a_while() -> None:
    """The stop goes out when it may, and is not refused."""

    class Paced(FakeProvider):
        capabilities = Capabilities(min_change_s=1.0)
        changed: list[float] = []

        async def _call(self, name: str, act: Any) -> PodReport:
            if name != "inspect":
                self.changed.append(self.cloud.now)
            return await super()._call(name, act)

    async def story() -> None:
        cloud = FakeCloud()
        cloud.fail("start", NoCapacity("queued", queued=True))
        async with Stage([cloud], wrap=lambda provider: Paced(cloud)) as stage:
            with pytest.raises(PodStartFailed):
                await stage.ask()
            await asyncio.sleep(2)
            start, stop = Paced.changed
            assert stop - start == pytest.approx(1.0)

    play(story())
