"""gpugate_testing.contract: providers that break it in one way each, and the claim that notices."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from attrs import field, frozen
from gpugate_testing import ProviderContract
from gpugate_testing.fakes import FakeCloud, FakeProvider
from gpugate_testing.fault_sessions import WRONGS, cut_session, good_session, wrong_session
from gpugate_testing.provider_validation import class_complaints, report_complaints

from gpugate import (
    Capabilities,
    Conflict,
    Endpoint,
    NotFound,
    Phase,
    PodReport,
    Price,
    Provider,
    ProviderError,
    Transient,
)

KEY = "a-key-that-must-stay-inside"


@frozen
class Keyed:
    """A configuration with a secret."""

    api_key: str = field(default=KEY, repr=False)


class Sound(FakeProvider):
    """Keeps the contract; what is below breaks it in one way."""

    Config = Keyed

    def __init__(self, cloud: FakeCloud, session: Any = None) -> None:
        super().__init__(cloud, session)
        self.config = Keyed()

    async def inspect(self) -> PodReport:
        try:
            async with self.session.get("https://cloud.invalid/pod") as answer:
                if answer.status != 200 or await answer.json() != {"pod": "fake-1"}:
                    raise Transient(f"the cloud answered {answer.status}")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Transient(f"no answer ({type(error).__name__})") from error
        return await super().inspect()


class TakesSilenceForOff(Sound):
    async def inspect(self) -> PodReport:
        try:
            return await super().inspect()
        except Transient:
            return PodReport(Phase.STOPPED)


class LetsEverythingOut(Sound):
    async def inspect(self) -> PodReport:
        async with self.session.get("https://cloud.invalid/pod"):
            return self.cloud.report()


class QuotesItsKey(Sound):
    async def inspect(self) -> PodReport:
        try:
            return await super().inspect()
        except Transient as error:
            raise Transient(f"GET /pod?key={self.config.api_key} failed") from error


class Offline(FakeProvider):
    """As Sound, of a cloud without a network."""

    started = False


class StartsWhatItLooksAt(Offline):
    async def inspect(self) -> PodReport:
        await self.start()
        return await super().inspect()


class RefusesASecondStart(Offline):
    async def start(self) -> PodReport:
        if self.cloud.report().phase is not Phase.STOPPED:
            raise Conflict("it runs")
        return await super().start()


class RefusesASecondStop(Offline):
    async def stop(self) -> PodReport:
        if self.cloud.report().phase is Phase.STOPPED:
            raise NotFound("it does not run")
        return await super().stop()


class RemembersInsteadOfLooking(Offline):
    """Stops only what it knows that it has started."""

    async def start(self) -> PodReport:
        await asyncio.sleep(0)
        report = await super().start()
        await asyncio.sleep(0)
        self.started = True
        return report

    async def stop(self) -> PodReport:
        if self.started:
            await super().stop()
        self.started = False
        return self.cloud.report()


class CannotBeCancelled(Offline):
    async def stop(self) -> PodReport:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            await asyncio.sleep(5)
        return await super().stop()


class StopsWhenClosed(Offline):
    async def aclose(self) -> None:
        self.cloud.turn_off(at_once=True)


class ForgetsItsQueue(Offline):
    async def stop(self) -> PodReport:
        if self.cloud.phase is Phase.QUEUED:
            return self.cloud.report()
        return await super().stop()


class NeverSaysWhere(Offline):
    async def inspect(self) -> PodReport:
        report = await super().inspect()
        return PodReport(report.phase, report.pod_id)


class Queues(Offline):
    """A start that waits at the cloud."""

    async def start(self) -> PodReport:
        self.cloud.queue_s = 0.1
        self.cloud.turn_on()
        return self.cloud.report()


class QueuesAndForgets(ForgetsItsQueue, Queues):
    pass


CAUGHT: list[tuple[type[FakeProvider], str]] = [
    (TakesSilenceForOff, "test_who_cannot_look_says_so"),
    (TakesSilenceForOff, "test_a_wrong_answer"),
    (LetsEverythingOut, "test_a_cloud_out_of_reach"),
    (QuotesItsKey, "test_a_cloud_out_of_reach"),
    (QuotesItsKey, "test_a_wrong_answer"),
    (StartsWhatItLooksAt, "test_looking_changes_nothing"),
    (RefusesASecondStart, "test_a_start_while_it_starts"),
    (RefusesASecondStart, "test_a_start_while_it_runs"),
    (RefusesASecondStop, "test_a_stop_of_what_is_off"),
    (RemembersInsteadOfLooking, "test_a_start_that_is_cancelled"),
    (RemembersInsteadOfLooking, "test_another_gateway_comes"),
    (CannotBeCancelled, "test_a_stop_that_is_cancelled"),
    (StopsWhenClosed, "test_it_is_closed_while_its_pod_runs"),
    (QueuesAndForgets, "test_a_start_that_is_queued"),
    (NeverSaysWhere, "test_a_life"),
]
KEPT = [(Sound, "test_who_cannot_look_says_so"), (Sound, "test_a_wrong_answer"), (Queues, CAUGHT[-2][1])]


class _Contract(ProviderContract):
    second = 0.01
    pause_s = 0.1
    patience_s = 60.0
    call_limit_s = 0.2


async def judge(kind: type[FakeProvider], claim: str) -> None:
    """Run one claim of the contract as pytest would."""
    contract = _Contract()
    cloud = FakeCloud(boot_s=0.01, stop_s=0.01)
    async with good_session() as session, cut_session() as cut, wrong_session(WRONGS["502 page"]) as wrong:
        given: dict[str, Any] = {
            "provider": kind(cloud, session),
            "blind_provider": kind(cloud, cut),
            "make_provider": lambda session: kind(cloud, session or wrong),
            "session": session,
            "secrets": (KEY,),
            "changes": lambda: sum(1 for call in cloud.calls if call != "inspect"),
            "billing": lambda: int(cloud.report().phase is not Phase.STOPPED),
            "queue_start": lambda: None,
            "call": "inspect",
            "name": "502 page",
        }
        test: Callable[..., Any] = getattr(contract, claim)
        await test(**{name: given[name] for name in inspect.signature(test).parameters})


@pytest.mark.parametrize(
    ("kind", "claim"), CAUGHT, ids=lambda value: value if isinstance(value, str) else value.__name__
)
async def test_who_breaks_it_is_caught(kind: type[FakeProvider], claim: str) -> None:
    """The claim fails for a provider that is wrong in this one way."""
    with pytest.raises((AssertionError, ProviderError, aiohttp.ClientError, pytest.fail.Exception)):
        await judge(kind, claim)


@pytest.mark.parametrize(
    ("kind", "claim"), KEPT, ids=lambda value: value if isinstance(value, str) else value.__name__
)
async def test_who_keeps_it_passes(kind: type[FakeProvider], claim: str) -> None:
    """The same claims hold for one that is right."""
    await judge(kind, claim)


@pytest.mark.parametrize(
    ("report", "complaint"),
    [
        ({"phase": "stopped"}, "a dict is no PodReport"),
        (PodReport(Phase.RUNNING), "a pod that runs has a pod_id"),
        (PodReport(Phase.STOPPED, "p", price=Price(Decimal(-1))), "price.running_per_hour must be 0"),
        (PodReport(Phase.STOPPED, "p", price=Price(currency="usd")), "price.currency must be three"),
        (PodReport(Phase.STOPPED, ""), "pod_id must not be empty"),
        (PodReport(Phase.STOPPED, "p", alarm="two\nlines"), "alarm must be one line"),
        (PodReport(Phase.STOPPED, "p", {"ollama": Endpoint("pc:11434")}), "needs a plain http"),
        (PodReport(Phase.STOPPED, "p", {"ollama": Endpoint("http://x/?token=1")}), "needs a plain http"),
        (PodReport(Phase.STOPPED, "p", {"shell": Endpoint("http://x")}), "neither ollama nor comfyui"),
        (PodReport(Phase.STOPPED, "p", {"ollama": Endpoint("http://x", tls="none")}), "unknown TLS policy"),
        (PodReport(Phase.STOPPED, "p", detail="two\nlines"), "detail must be one line"),
    ],
)
def test_an_unsound_report(report: object, complaint: str) -> None:
    """It is complained about in words."""
    (said,) = report_complaints(report)

    assert complaint in said


def test_a_sound_report() -> None:
    """There is nothing to complain about."""
    endpoints = {
        "ollama": Endpoint("https://x:1/a", tls="sha256:ab"),
        "comfyui": Endpoint("http://[::1]:8188"),
    }

    assert [] == report_complaints(PodReport(Phase.RUNNING, "p", endpoints))


@frozen
class Talkative:
    """A configuration that shows its key."""

    api_key: str = ""


class Unsound(FakeProvider):
    """A class with three mistakes."""

    Config = Talkative
    capabilities = "none"  # type: ignore[assignment]

    def stop(self) -> PodReport:  # type: ignore[override]
        raise NotImplementedError


def test_an_unsound_class() -> None:
    """Every mistake is named."""
    said = class_complaints(Unsound)

    assert 3 == len(said)
    assert "stop is not async" in said
    assert ["it is no subclass of gpugate.Provider"] == class_complaints(dict)
    assert "start is missing" in class_complaints(Provider)


class Promising(FakeProvider):
    """A class that promises a bill and has none."""

    capabilities = Capabilities(billing_api=True)


def test_a_bill_that_is_not_there() -> None:
    """The promise is held against the class; calling it says so too."""
    assert ["capabilities.billing_api promises a bill, and there is no method bill"] == class_complaints(
        Promising
    )
