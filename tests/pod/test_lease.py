"""The lease of a pod: renewed while it serves, told of when nobody takes note, and the whole chain."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from attrs import define, field
from gpugate_testing.clouds import Delays, RunPodSim
from gpugate_testing.fakes import FakeCloud, FakeProvider

from gpugate.app import build
from gpugate.config import load_settings
from gpugate.core.states import Status
from gpugate.errors import SettingsError
from gpugate.lifecycle.dead_man_switch import SwitchRenewer, lease_digest
from gpugate.lifecycle.pod_calls import OllamaPodClient
from gpugate.lifecycle.status import StateChanged
from gpugate.provider_api import Endpoint, Provider
from tests.pod.support import DIGEST, SECRET, BlobStore, blob_store, container, script, until

POD = Endpoint("http://pod.invalid")


@define
class FakeMailbox:
    """Answers a letter with what the test says: a status, or what was seen."""

    answers: list[int | str] = field(factory=list)
    letters: list[tuple[Endpoint, str, bytes]] = field(factory=list)

    async def put_renewal(self, endpoint: Endpoint, digest: str, content: bytes) -> int | str:
        self.letters.append((endpoint, digest, content))
        return self.answers.pop(0) if self.answers else 201


def became_ready() -> StateChanged:
    return StateChanged(
        was="Warming",
        now="Ready",
        was_status=Status.WARMING,
        status=Status.READY,
        cause="ProbeFinished",
        run_id=1,
        provider="fake",
        at=datetime.now(UTC),
    )


@define
class Desk:
    """A lease with its mailbox, and what it told people."""

    mailbox: FakeMailbox
    lease: SwitchRenewer
    told: list[str]
    serving: list[Endpoint]


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """A lease of nobody yet, renewed every centisecond."""
    mailbox, told, serving = FakeMailbox(), list[str](), list[Endpoint]()

    def where() -> Endpoint | None:
        return serving[-1] if serving else None

    lease = SwitchRenewer(SECRET, mailbox.put_renewal, where, told.append, every_s=0.01)
    await lease.start()
    desk = Desk(mailbox, lease, told, serving)
    yield desk
    await desk.lease.aclose()


async def test_while_no_pod_serves(desk: Desk) -> None:
    """Nobody is written to."""
    await asyncio.sleep(0.05)

    assert [] == desk.mailbox.letters


async def test_while_a_pod_serves(desk: Desk) -> None:
    """It gets a letter again and again, each the same, and nobody is told."""
    desk.serving.append(POD)
    await until(lambda: len(desk.mailbox.letters) >= 3)

    assert {(POD.url, DIGEST, SECRET.encode())} == {(e.url, d, c) for e, d, c in desk.mailbox.letters}
    assert [] == desk.told


async def test_a_pod_that_has_just_become_ready(desk: Desk) -> None:
    """It does not wait for the next round."""
    slow = FakeMailbox()
    lease = SwitchRenewer(
        SECRET, slow.put_renewal, lambda: POD if desk.serving else None, desk.told.append, every_s=600
    )
    await lease.start()
    await asyncio.sleep(0.01)
    desk.serving.append(POD)
    lease.on_event(became_ready())
    await until(lambda: len(slow.letters) == 1)
    await lease.aclose()


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([200, 200, 201], []),
        ([200, 200, 200, 200], ["nobody in the pod takes note of its lease: does its start script run?"]),
        (
            [500, 500, "no connection", 201],
            [
                "the pod's lease cannot be renewed: its Ollama answered 500",
                "the pod's lease cannot be renewed: no connection",
                "the pod's lease is renewed again",
            ],
        ),
    ],
)
async def test_what_is_told(desk: Desk, answers: list[int | str], told: list[str]) -> None:
    """Each trouble once, and its end; a letter or two that lie there longer are none."""
    desk.mailbox.answers = [*answers, *([201] if answers[-1] == 201 else [answers[-1]] * 1000)]
    desk.serving.append(POD)
    await until(lambda: len(desk.mailbox.letters) > len(answers))

    assert told == desk.told


async def test_a_letter_over_http(tmp_path: Path) -> None:
    """Ollama answers 201 to a new one and 200 to one that lies there; no Ollama is told in words."""
    async with blob_store(tmp_path) as store, aiohttp.ClientSession() as session:
        pod = OllamaPodClient(session)

        async def leave(url: str = store.url) -> int | str:
            return await pod.put_renewal(Endpoint(url), DIGEST, SECRET.encode())

        assert [201, 200] == [await leave(), await leave()]
        assert SECRET == store.letter.read_text()
        store.letter.unlink()
        assert 201 == await leave()
        assert "no connection" == await leave("http://127.0.0.1:1")


def test_its_digest() -> None:
    """SHA-256 of the secret, as `sha256sum` has it; the secret does not follow from it."""
    assert hashlib.sha256(SECRET.encode()).hexdigest() == lease_digest(SECRET)
    with pytest.raises(SettingsError, match=r"pod\.lease: must be at least 16 bytes long"):
        load_settings(None, {"GPUGATE_POD__LEASE": "short"}, complete=False)


def kind_of(cloud: FakeCloud) -> Callable[[str], type[Provider]]:
    """Finds a provider over this cloud, whatever its name."""

    class Rented(FakeProvider):
        def __init__(self, _: Any, session: Any) -> None:
            super().__init__(cloud, session)

    return lambda _: Rented


async def test_the_whole_chain(tmp_path: Path) -> None:
    """A gateway renews what a real shell takes; when the gateway is gone, the pod ends itself."""
    settings = {
        "server.port": 0,
        "server.on_exit": "keep",
        "auth.secret": "a-secret-for-tests-of-40-characters-long",
        "pod.provider": ("rented",),
        "pod.lease": SECRET,
        "pod.health_interval": 0.05,
        "state.dir": str(tmp_path / "state"),
        "log.level": "error",
    }
    async with (
        blob_store(tmp_path / "models") as store,
        RunPodSim(delays=Delays(0.01, 0.01, 0.0, 0.01), strict=False) as runpod,
    ):
        pod = runpod.add_pod()
        pod.start()
        env = {
            "RUNPOD_POD_ID": pod.id,
            "RUNPOD_API_KEY": runpod.api_key,
            "GPUGATE_POD_API": runpod.api_base,
            "GPUGATE_LEASE": DIGEST,
            "GPUGATE_LEASE_MINUTES": "2",
            "OLLAMA_MODELS": str(store.models),
        }
        gateway = await build(
            load_settings(None, {}, overrides=settings), find=kind_of(FakeCloud(url=store.url))
        )
        await gateway.open()
        async with container(script("runpod"), env, "sleep", "600") as box:
            gateway.lifecycle.start()
            await until(lambda: gateway.lifecycle.current_status is Status.READY)
            await taken(store)
            assert [] == runpod.asked
            await gateway.close()
            await until(lambda: not runpod.billing)

            assert box.says("no sign of the gateway")
        assert runpod.billed_s > 0


async def taken(store: BlobStore) -> None:
    """Wait until a letter has come and has been taken."""
    await until(lambda: store.received > 0)
    await until(lambda: not store.letter.exists())
