"""A simulated cluster, the plugin and gpugate's real lifecycle on one loop, in virtual time."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from attrs import define, field
from gpugate_demo.ollama import SimulatedOllama
from gpugate_kubernetes import Kubernetes, KubernetesConfig
from gpugate_testing.clouds import Delays, KubernetesSim, SimReplica, loopback_time
from gpugate_testing.clouds.clocks import EPOCH, LoopClock
from gpugate_testing.fakes import FakeDebts
from kubernetes_asyncio.client import ApiClient

from gpugate.core.policy import Policy, ProviderLimits
from gpugate.core.states import Status
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.pod_calls import OllamaPodClient
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.status import EventBus, LifecycleEvent, ProviderProblem, SessionEnded
from gpugate.provider_api import Price

AGENT = {"User-Agent": "gpugate/0.1"}
DELAYS = Delays(provision_s=2.0, start_s=8.0, ready_s=5.0, stop_s=3.0)
IDLE_S = 120.0
POLICY: dict[str, Any] = {"idle_timeout": IDLE_S, "max_wait": 2000.0, "preload": "none"}
SLACK_S = 4.0
"""What a look every second, before and after, may add to a bill."""
SCALE: dict[str, Any] = {"mode": "scale"}
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "{name}", "labels": {"app": "ollama"}},
    "spec": {
        "containers": [
            {"name": "ollama", "image": "ollama/ollama:0.30", "env": [{"name": "ME", "value": "{name}"}]}
        ]
    },
}
JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "spec": {
        "backoffLimit": 0,
        "template": {
            "metadata": {"labels": {"app": "ollama"}},
            "spec": {**POD["spec"], "restartPolicy": "Never"},
        },  # type: ignore[dict-item]
    },
}


class Files:
    """The files of a test: a kubeconfig, and a template."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def kubeconfig(
        self, server: str, token: str, *, ca: bytes = b"", user: Mapping[str, Any] | None = None
    ) -> str:
        """A kubeconfig with one context `sim`."""
        cluster: dict[str, Any] = {"server": server}
        if ca:
            import base64

            cluster["certificate-authority-data"] = base64.b64encode(ca).decode()
        path = self.folder / "kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "sim", "cluster": cluster}],
                    "users": [{"name": "me", "user": dict(user or {"token": token})}],
                    "contexts": [{"name": "sim", "context": {"cluster": "sim", "user": "me"}}],
                    "current-context": "sim",
                }
            )
        )
        return str(path)

    def template(self, manifest: object) -> str:
        """A template of ephemeral mode."""
        path = self.folder / "template.yaml"
        path.write_text(yaml.safe_dump(manifest))
        return str(path)


def schema_complaints(kind: str, manifest: Mapping[str, Any]) -> list[str]:
    """What of a manifest does not fit Kubernetes' own OpenAPI, from which the client's models are made."""

    class Answer:
        data = json.dumps(manifest)

    api = ApiClient.__new__(ApiClient)
    try:
        model = api.deserialize(Answer, f"V1{kind}")
    except (ValueError, TypeError, AttributeError) as error:
        return [f"{kind}: {error}"]
    return list(_lost(manifest, api.sanitize_for_serialization(model), kind))


def _lost(given: Any, kept: Any, where: str) -> list[str]:
    """What the model did not keep, since it knows no such field, or kept as another type."""
    if isinstance(given, dict) and isinstance(kept, dict):
        lost = [
            f"{where}.{key}: unknown field" for key in given if key not in kept and given[key] is not None
        ]
        return lost + [
            line for key in kept if key in given for line in _lost(given[key], kept[key], f"{where}.{key}")
        ]
    if isinstance(given, list) and isinstance(kept, list):
        return [line for pair in zip(given, kept, strict=True) for line in _lost(*pair, f"{where}[]")]
    return [] if type(given) is type(kept) or given is None else [f"{where}: {given!r} became {kept!r}"]


@define
class House:
    """Everything a scenario has its hands on."""

    cloud: KubernetesSim
    ollama: SimulatedOllama
    session: aiohttp.ClientSession = field(repr=False)
    files: Files
    settings: dict[str, Any]
    policy: dict[str, Any]
    news: list[LifecycleEvent] = field(factory=list)
    provider: Kubernetes = field(init=False)
    lifecycle: Lifecycle = field(init=False)
    debts: FakeDebts = field(factory=FakeDebts)

    def config(self, **more: Any) -> KubernetesConfig:
        """The plugin's configuration, pointed at the simulated cluster."""
        given: dict[str, Any] = {"endpoint": "nodeport", "hourly_rate": 0.6, **self.settings, **more}
        if isinstance(given.get("template"), dict):
            given["template"] = self.files.template(given["template"])
        kubeconfig = self.files.kubeconfig(self.cloud.url, self.cloud.api_key)
        return KubernetesConfig(kubeconfig=kubeconfig, **given)

    def build(self) -> None:
        """A gateway's worth of objects; again for a gateway that was restarted."""
        self.provider = Kubernetes(self.config(), self.session)
        can = self.provider.capabilities
        pace = ProviderLimits(name="kubernetes", min_poll_s=can.min_poll_s, min_probe_s=can.min_probe_s)
        self.lifecycle = Lifecycle(
            providers=[ConfiguredProvider("kubernetes", self.provider)],
            pod=OllamaPodClient(self.session),
            policy=Policy(**{"providers": (pace,), **POLICY, **self.policy}),
            pending_stops=self.debts,
            fallback_price=Price(),
            events=EventBus([self.news.append]),
            random_fraction=lambda: 0.5,
            wall=self.cloud.clock.wall,
            boottime=lambda: self.cloud.clock.wall().timestamp(),
        )

    async def restart(self, *, keep: bool = True) -> None:
        """The gateway goes down in good order, or is followed by one that knows nothing but its debts."""
        await self.lifecycle.close(keep=keep, stop_wait_s=30)
        await self.provider.aclose()
        self.build()
        await self.lifecycle.open()

    @property
    def pod(self) -> SimReplica:
        """The newest Pod that is there."""
        return self.cloud.replicas[-1]

    async def ask(self, hold_s: float = 10.0) -> str:
        """A client's request: wait for the pod, ask its Ollama, hold the answer so long."""
        with self.lifecycle.acquire(model="llava") as lease:
            serving = await lease.wait_admitted()
            lease.mark_response_started()
            url = serving.endpoints["ollama"].url + "/api/version"
            async with self.session.get(url) as answer:
                text = await answer.text()
            await asyncio.sleep(hold_s)
            return text

    async def until(self, condition: Callable[[], bool], limit_s: float = 4000.0) -> None:
        """Let time pass until this holds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        while not condition():
            assert loop.time() < end, f"never: {self.lifecycle.current_status}, {self.troubles[-3:]}"
            await asyncio.sleep(1)

    async def status(self, wanted: Status) -> None:
        """Wait until the pod has this status."""
        await self.until(lambda: self.lifecycle.current_status is wanted)

    async def off(self) -> None:
        """Wait until the gateway has the proof that nothing runs."""
        await self.status(Status.STOPPED)

    @property
    def troubles(self) -> list[str]:
        """What the gateway told people that went wrong."""
        return [news.message for news in self.news if isinstance(news, ProviderProblem)]

    @property
    def sessions(self) -> list[SessionEnded]:
        """The sessions that ended."""
        return [news for news in self.news if isinstance(news, SessionEnded)]


@asynccontextmanager
async def open_house(
    settings: dict[str, Any], *, start: bool = True, policy: dict[str, Any] | None = None
) -> AsyncIterator[House]:
    """A gateway at rest; `start=False` leaves the lifecycle to the test."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            SimulatedOllama() as ollama,
            KubernetesSim(clock=LoopClock(epoch=EPOCH), delays=DELAYS) as cloud,
            aiohttp.ClientSession(
                headers=AGENT, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=30)
            ) as session,
        ):
            cloud.service.upstream = int(ollama.url.rsplit(":", 1)[1])
            cloud.check = schema_complaints
            cloud.clock.now()
            house = House(cloud, ollama, session, Files(Path(folder)), settings, policy or {})
            house.build()
            if start:
                await house.lifecycle.open()
                await house.off()
            try:
                yield house
            finally:
                cloud.faults.heal()
                if start:
                    await house.lifecycle.close(keep=True, stop_wait_s=60)
                await house.provider.aclose()


def play(scenario: Callable[..., Coroutine[Any, Any, None]], settings: dict[str, Any], **more: Any) -> None:
    """Run a scenario in virtual time, and hold its logs against the secrets."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear = Ear()
    logging.getLogger().addHandler(ear)

    async def main() -> None:
        async with open_house(settings, **more) as house:
            await scenario(house)
        assert [] == house.cloud.violations
        told = " ".join([*map(str, house.news), *heard, repr(house.provider.config)])
        assert house.cloud.api_key not in told

    try:
        loopback_time.run(main())
    finally:
        logging.getLogger().removeHandler(ear)
