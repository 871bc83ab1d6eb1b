"""A whole gateway dies at both simulated clouds, beside their own faults: no second is lost or told twice.

Two per cent means that here, without anything added: sessions are long enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from attrs import frozen
from gpugate_demo.faults import Hang
from gpugate_testing.clouds import Capacity, Cloud, LostResponse, SimPod

from gpugate.billing.model import Session
from gpugate.lifecycle.status import SessionEnded, SessionStarted
from tests.e2e.clouds import BOTH, EPHEMERAL, FIXED, PODS, SECOND, Town, play, pods_settings
from tests.e2e.kills import Mortal

RUNPOD_RATE = 0.69
STARTS, STOPS, LOOKS = ("start", "create"), ("stop", "delete"), ("get", "list")
IDLE_S = 1200.0
AWAY_S = 600.0
ADOPTED_WITHIN_S = 60.0
EVER = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


@frozen
class Luck:
    """What goes wrong beside the kill."""

    starts_lost: int = 0
    stops_lost: int = 0
    stops_ignored: int = 0
    set_back: timedelta = timedelta(0)


LUCKS = {
    "nothing else": Luck(),
    "a start's answer is lost": Luck(starts_lost=1),
    "stops' answers are lost": Luck(stops_lost=2),
    "stops are ignored": Luck(stops_ignored=2),
    "the calendar goes back": Luck(set_back=timedelta(hours=1)),
    "all of it": Luck(1, 1, 1, timedelta(hours=1)),
}


def answering(mortal: Mortal) -> None:
    """Two more wait behind the one whose answer does not come."""
    town = mortal.town
    ollama = town.ollamas[town.providers[0]]
    ollama.faults.add("/api/chat", Hang())
    mortal.at_state("Ready", 30.0)
    mortal.ask()
    mortal.ask()


def between_providers(mortal: Mortal) -> None:
    """The first has no GPU."""
    first, second = (mortal.town.clouds[name] for name in mortal.town.providers)
    first.faults.heal()
    for call in ("start", "create", "search"):
        first.fail(call, Capacity(), times=None)
    mortal.at_call(second, STARTS, done=True)


POINTS: dict[str, Callable[[Mortal], None]] = {
    "the first look": lambda mortal: mortal.at_call(mortal.town.cloud, LOOKS, done=True),
    "no intent yet": lambda mortal: mortal.at_write(lambda row: True, done=False),
    "intent on disk": lambda mortal: mortal.at_write(lambda row: True, done=True),
    "start sent": lambda mortal: mortal.at_call(mortal.town.cloud, STARTS, done=False),
    "start done": lambda mortal: mortal.at_call(mortal.town.cloud, STARTS, done=True),
    "accepted": lambda mortal: mortal.at_news(lambda news: isinstance(news, SessionStarted)),
    "accepted on disk": lambda mortal: mortal.at_write(lambda row: row.started_at is not None, done=True),
    "provisioning": lambda mortal: mortal.at_state("Provisioning", 5.0),
    "warming": lambda mortal: mortal.at_state("Warming", 1.0),
    "preloading": lambda mortal: mortal.at_state("Preloading"),
    "ready": lambda mortal: mortal.at_state("Ready"),
    "answering": answering,
    "idle": lambda mortal: mortal.at_state("Ready", IDLE_S / 2),
    "stop decided": lambda mortal: mortal.at_state("Stopping"),
    "stop sent": lambda mortal: mortal.at_call(mortal.town.cloud, STOPS, done=False),
    "stop done": lambda mortal: mortal.at_call(mortal.town.cloud, STOPS, done=True),
    "stop unproved": lambda mortal: mortal.at_call(mortal.town.cloud, LOOKS, done=False, after="stop"),
    "proved": lambda mortal: mortal.at_news(lambda news: isinstance(news, SessionEnded)),
    "end on disk": lambda mortal: mortal.at_write(lambda row: row.ended_at is not None, done=True),
    "between providers": between_providers,
}


def spoil(cloud: Cloud, luck: Luck, patch: pytest.MonkeyPatch) -> None:
    """Plan what goes wrong at this cloud, with pods that are there and those to come."""
    for calls, times in ((STARTS, luck.starts_lost), (STOPS, luck.stops_lost)):
        for call in calls:
            cloud.fail(call, LostResponse(), times=times)
    add = cloud.add

    def deaf(pod: SimPod) -> SimPod:
        pod.ignore_stops = luck.stops_ignored
        return add(pod)

    patch.setattr(cloud, "add", deaf)
    for pod in cloud.pods.values():
        pod.ignore_stops = luck.stops_ignored


def rate(pod: SimPod) -> float:
    """Per hour; Vast.ai's machines have their own."""
    return float(pod.spec.get("dph_total", RUNPOD_RATE))


async def paid_rows(town: Town) -> list[Session]:
    """Of accepted starts, each of them over."""
    for pod in town.gateway.base.fleet:
        await pod.recorder.flush()
    assert [] == await town.gateway.base.ledger.open_sessions()
    return await town.gateway.base.ledger.sessions(EVER[0], EVER[1])


def cases() -> Iterator[tuple[str, str, str, str]]:
    """Each point at both clouds, and each bad luck at each of the four kinds of pods."""
    lucks = list(LUCKS)
    for number, point in enumerate(POINTS):
        modes = ("fixed", "ephemeral") if number % 2 else ("ephemeral", "fixed")
        for place, (name, mode) in enumerate(zip(BOTH, modes, strict=True)):
            yield name, mode, point, lucks[(number // 2 + 3 * place) % len(lucks)]


@pytest.mark.parametrize(("name", "mode", "point", "luck"), list(cases()))
def test_killed(tmp_path: Path, name: str, mode: str, point: str, luck: str) -> None:
    """Within a minute the pod serves or is stopped; at the end each session is told once, to two per cent."""
    bad = LUCKS[luck]
    state = tmp_path / "state"
    state.mkdir()

    async def scenario(town: Town) -> None:
        for cloud in town.clouds.values():
            spoil(cloud, bad, town.patch)
        mortal = Mortal(town)
        if point == "the first look":
            POINTS[point](mortal)
            await mortal.open()
        else:
            await mortal.open()
            await town.word("STOPPED")
            POINTS[point](mortal)
            mortal.ask()
        async with asyncio.timeout(2 * IDLE_S):
            await mortal.dead.wait()
        await mortal.bury()
        town.set_back = bad.set_back
        await asyncio.sleep(AWAY_S)
        await mortal.open()
        await asyncio.sleep(ADOPTED_WITHIN_S)
        assert not town.billing or town.gateway.lifecycle.serving is not None
        async with asyncio.timeout(3 * IDLE_S):
            while town.gateway.lifecycle.current_status != "STOPPED":
                await asyncio.sleep(60)
        paid = await paid_rows(town)
        for at in town.providers:
            here = [row for row in paid if row.provider == at]
            assert town.starts[at] == len(here), here
            due = sum(rate(pod) * pod.billed_s / 3600 for pod in town.clouds[at].pods.values())
            assert float(sum(row.cost or 0 for row in here)) == pytest.approx(due, rel=0.02), here

    others = tuple(other for other in BOTH if other != name)
    providers = (name, *others) if point == "between providers" else (name,)
    sections = FIXED if mode == "fixed" else EPHEMERAL
    play(
        scenario,
        state,
        providers=providers,
        sections=sections,
        start=False,
        pod__idle_timeout=IDLE_S,
        pod__start_backoff=5,
        pod__preload="auto",
    )


@pytest.mark.parametrize(
    ("point", "mode"),
    [
        ("intent on disk", "fixed"),
        ("start done", "ephemeral"),
        ("warming", "fixed"),
        ("idle", "ephemeral"),
        ("stop done", "ephemeral"),
        ("stop unproved", "fixed"),
        ("end on disk", "fixed"),
    ],
)
def test_three_pods_killed(tmp_path: Path, point: str, mode: str) -> None:
    """At a point of one of their lives: each that is billed is adopted, each pod's rows are its bill."""
    bad = LUCKS["stops' answers are lost"]
    state = tmp_path / "state"
    state.mkdir()

    async def scenario(town: Town) -> None:
        if mode == "fixed":
            town.runpod.add_pod(SECOND, "gpugate-code")
        for cloud in town.clouds.values():
            spoil(cloud, bad, town.patch)
        mortal = Mortal(town)
        await mortal.open()
        await town.until(lambda: town.all_are("STOPPED"))
        POINTS[point](mortal)
        for name in PODS[mode]:
            mortal.ask(name)
            await asyncio.sleep(1.0)
        async with asyncio.timeout(2 * IDLE_S):
            await mortal.dead.wait()
        await mortal.bury()
        await asyncio.sleep(AWAY_S)
        await mortal.open()
        await asyncio.sleep(ADOPTED_WITHIN_S)
        serving = [pod for pod in town.gateway.base.fleet if pod.lifecycle.serving is not None]
        assert len(serving) == sum(len(cloud.billing) for cloud in town.clouds.values())
        await town.until(lambda: town.all_are("STOPPED"), 3 * IDLE_S)
        paid = await paid_rows(town)
        assert all({row.provider} == PODS[mode][row.pod].keys() for row in paid)
        pods = {str(pod.id): pod for cloud in town.clouds.values() for pod in cloud.pods.values()}
        assert sum(town.starts.values()) == len(paid) == sum(pod.starts for pod in pods.values()), paid
        for pod_id, pod in pods.items():
            here = [row for row in paid if row.pod_id == pod_id]
            assert len({row.pod for row in here}) <= 1
            due = rate(pod) * pod.billed_s / 3600
            assert float(sum(row.cost or 0 for row in here)) == pytest.approx(due, rel=0.02), here

    play(
        scenario,
        state,
        sections=FIXED if mode == "fixed" else EPHEMERAL,
        start=False,
        pod__idle_timeout=IDLE_S,
        pod__start_backoff=5,
        pod__preload="auto",
        **pods_settings(mode),
    )
