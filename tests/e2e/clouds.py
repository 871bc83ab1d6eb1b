"""A whole gateway in front of both simulated clouds, with their real plugins, on a loop whose time jumps."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from attrs import define, field
from gpugate_demo.ollama import SimulatedOllama
from gpugate_demo.text_generator import fixed
from gpugate_runpod import RunPod
from gpugate_testing.clouds import Cloud, Delays, LoopClock, RunPodSim, SimPod, VastSim, loopback_time
from gpugate_vastai import VastAi, VastConfig

from gpugate import pod_builder
from gpugate.app import build
from gpugate.config import load_settings
from gpugate.gateway import Gateway
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.provider_api import Provider
from gpugate.tasks import spawn
from tests.e2e.support import CHAT, MODEL, SECRET, Answer, bearer

DELAYS = Delays(provision_s=2.0, start_s=8.0, ready_s=5.0, stop_s=3.0)
COLD_S = DELAYS.provision_s + DELAYS.start_s + DELAYS.ready_s
RUNNING_COLD_S = DELAYS.ready_s
"""Vast.ai bills a GPU only while its instance runs (docs/providers.md#vastai-states)."""
IDLE_S = 120.0
SLACK_S = 7.0
"""What looks every two (RunPod) or five seconds (Vast.ai) may add to a bill."""
BOTH = ("runpod", "vastai")
GPU = "NVIDIA GeForce RTX 4090"
FIXED: Mapping[str, Mapping[str, object]] = {
    "runpod": {"pod_id": "k3x9v2m7q1"},
    "vastai": {"instance_id": 20_481_234},
}
EPHEMERAL: Mapping[str, Mapping[str, object]] = {
    "runpod": {"mode": "ephemeral", "image": "ollama/ollama:latest", "gpus": [GPU]},
    "vastai": {"mode": "ephemeral", "max_price": 0.6},
}
MODES = pytest.mark.parametrize("sections", [FIXED, EPHEMERAL], ids=["fixed", "ephemeral"])

SECOND = "p2w8n4c6z5"
"""Another fixed pod at RunPod."""
PODS: dict[str, dict[str, dict[str, object]]] = {
    "fixed": {
        "chat": {"runpod": {"pod_id": "k3x9v2m7q1"}},
        "code": {"runpod": {"pod_id": SECOND}},
        "draw": {"vastai": {}},
    },
    "ephemeral": {
        "chat": {"runpod": {"instance": "chat"}},
        "code": {"runpod": {"instance": "code"}},
        "draw": {"vastai": {}},
    },
}
"""Three pods, of which two are of one account, by the mode."""


def pods_settings(mode: str) -> dict[str, object]:
    """Their sections, as keys with dots."""
    keys: dict[str, object] = {}
    for name, providers in PODS[mode].items():
        for provider, section in providers.items():
            keys[f"pods.{name}.provider"] = provider
            keys |= {f"pods.{name}.{provider}.{key}": value for key, value in section.items()}
    return keys


QUICK: Mapping[str, object] = {
    "server.port": 0,
    "server.shutdown_grace": 1,
    "auth.secret": SECRET,
    "pod.idle_timeout": IDLE_S,
    "queue.max_wait": 3600,
    "log.format": "json",
    "log.level": "error",
}


@define
class Town:
    """Both clouds, an Ollama at each, and a gateway that knows one of them or both.

    Attributes:
        events: what `GET /api/v1/gpu/events` told, as (event, data).
        set_back: how far the gateway's calendar is behind the clouds'.
    """

    state: Path
    providers: tuple[str, ...]
    sections: Mapping[str, Mapping[str, object]]
    more: Mapping[str, object]
    runpod: RunPodSim
    vast: VastSim
    ollamas: dict[str, SimulatedOllama]
    http: aiohttp.ClientSession = field(repr=False)
    patch: pytest.MonkeyPatch = field(repr=False)
    gateway: Gateway = field(init=False)
    events: list[tuple[str, dict[str, Any]]] = field(factory=list)
    set_back: timedelta = timedelta(0)
    _ear: asyncio.Task[None] | None = None

    @property
    def clouds(self) -> dict[str, Cloud]:
        """By the provider's name."""
        return {"runpod": self.runpod, "vastai": self.vast}

    @property
    def cloud(self) -> Cloud:
        """Of the first provider."""
        return self.clouds[self.providers[0]]

    def pod(self, name: str | None = None) -> SimPod:
        """The fixed pod at this provider, or the last that was made there."""
        return list(self.clouds[name or self.providers[0]].pods.values())[-1]

    # --- the gateway --------------------------------------------------------------------------

    def wall(self) -> datetime:
        """What the gateway takes for the calendar."""
        return self.runpod.clock.wall() - self.set_back

    def _settings(self) -> Any:
        places: dict[str, dict[str, object]] = {
            "runpod": {"api_base": self.runpod.api_base, "proxy_url": self.runpod.proxy_url},
            "vastai": {"api_base": self.vast.api_base},
        }
        lines = []
        for name in BOTH:
            section = {"api_key": self.clouds[name].api_key, **places[name], **self.sections[name]}
            lines += [f"[providers.{name}]", *(f"{key} = {json.dumps(section[key])}" for key in section)]
        config = self.state / "gpugate.toml"
        config.write_text("\n".join(lines))
        named = {"pod.provider": self.providers, "state.dir": str(self.state), **self.more}
        return load_settings(config, {}, overrides={**QUICK, **named}, complete=False)

    async def open(self) -> None:
        """Start the gateway, and listen to its events; again after `close`."""
        wall = self.wall

        class VastAiInCloudTime(VastAi):
            def __init__(self, config: VastConfig, session: aiohttp.ClientSession) -> None:
                super().__init__(config, session, wall=wall)

        kinds: dict[str, type[Provider]] = {"runpod": RunPod, "vastai": VastAiInCloudTime}
        self.patch.setattr(pod_builder, "Lifecycle", partial(Lifecycle, wall=self.wall))
        self.patch.setitem(os.environ, "GPUGATE_STATE_DIR", str(self.state))  # the gateway sets it
        self.gateway = await build(self._settings(), find=kinds.__getitem__)
        await self.gateway.open()
        self._ear = spawn(self._listen(), "test:events")

    async def close(self) -> bool:
        """End the gateway; whether the stop of what ran was proved."""
        proved = await self.gateway.close()
        if self._ear is not None:
            self._ear.cancel()
            await asyncio.gather(self._ear, return_exceptions=True)
            self._ear = None
        return proved

    async def _listen(self) -> None:
        name = ""
        async with self._call("GET", "/api/v1/gpu/events") as answer:
            async for line in answer.content:
                if line.startswith(b"event:"):
                    name = line[6:].strip().decode()
                elif line.startswith(b"data:"):
                    self.events.append((name, json.loads(line[5:])))

    # --- clients ------------------------------------------------------------------------------

    def _call(self, method: str, path: str, pod: str = "", **more: Any) -> Any:
        url = f"http://127.0.0.1:{self.gateway.port}{path}"
        headers = {**bearer(), **({"X-Gpugate-Pod": pod} if pod else {})}
        return self.http.request(method, url, headers=headers, **more)

    async def ask(self, method: str, path: str, **more: Any) -> Answer:
        """The whole answer, or what came of it."""
        async with self._call(method, path, **more) as response:
            answer = Answer(response.status, response.headers, b"")
            try:
                answer.body = await response.read()
            except aiohttp.ClientPayloadError:
                answer.whole = False
            return answer

    async def chat(self, pod: str = "", **more: Any) -> Answer:
        """A chat's answer, in one piece."""
        return await self.ask("POST", "/api/chat", pod=pod, json={**CHAT, "stream": False, **more})

    async def served_by(self, **more: Any) -> str:
        """A chat's answer names the cloud whose Ollama gave it."""
        answer = await self.chat(**more)
        assert 200 == answer.status, answer.body
        return str(answer.json["message"]["content"])

    async def status(self) -> Any:
        """`data` of gpu/status."""
        answer = await self.ask("GET", "/api/v1/gpu/status")
        assert 200 == answer.status, answer.body
        return answer.json["data"]

    # --- waiting ------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], limit_s: float = 900.0) -> None:
        """Let time pass until this holds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        while not condition():
            assert loop.time() < end, f"never: {self.gateway.lifecycle.status_now()}"
            await asyncio.sleep(0.5)

    async def word(self, word: str, limit_s: float = 900.0) -> None:
        """Wait until the status is this."""
        await self.until(lambda: self.gateway.lifecycle.current_status == word, limit_s)

    def all_are(self, word: str) -> bool:
        """Whether the status of each pod is this."""
        return all(pod.lifecycle.current_status == word for pod in self.gateway.base.fleet)

    async def proved(self) -> None:
        """Wait until no stop is left to prove."""
        await self.until(lambda: not self.gateway.lifecycle._machine.pending_stops.by_provider)

    # --- what was told, what was paid -----------------------------------------------------------

    def told(self, name: str, *keys: str) -> list[tuple[Any, ...]]:
        """These fields of each event of this name."""
        return [tuple(data.get(key) for key in keys) for event, data in self.events if event == name]

    @property
    def billed(self) -> dict[str, float]:
        """Seconds by provider."""
        return {name: cloud.billed_s for name, cloud in self.clouds.items()}

    @property
    def starts(self) -> dict[str, int]:
        """Accepted starts by provider."""
        return {name: cloud.starts for name, cloud in self.clouds.items()}

    @property
    def billing(self) -> list[str]:
        """Where money is spent now."""
        return [name for name, cloud in self.clouds.items() if cloud.billing]


@asynccontextmanager
async def _town(
    state: Path,
    patch: pytest.MonkeyPatch,
    providers: tuple[str, ...],
    sections: Mapping[str, Mapping[str, object]],
    more: Mapping[str, object],
) -> AsyncIterator[Town]:
    clock = LoopClock()
    async with (
        SimulatedOllama(reply=fixed("runpod")) as first,
        SimulatedOllama(reply=fixed("vastai")) as second,
        RunPodSim(clock=clock, delays=DELAYS) as runpod,
        VastSim(clock=clock, delays=DELAYS) as vast,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http,
    ):
        clock.now()
        runpod.edge.upstreams[11434] = first.url
        vast.ports.upstreams[11434] = second.url
        if sections is FIXED:
            runpod.add_pod()
            vast.add_instance()
        ollamas = {"runpod": first, "vastai": second}
        yield Town(state, providers, sections, more, runpod, vast, ollamas, http, patch)


Scenario = Callable[[Town], Coroutine[Any, Any, None]]


def play(
    scenario: Scenario,
    state: Path,
    *,
    providers: tuple[str, ...] = BOTH,
    sections: Mapping[str, Mapping[str, object]] = FIXED,
    start: bool = True,
    **more: object,
) -> None:
    """Run a scenario in virtual time; at its end nothing may be billed by anybody.

    Args:
        start: open the gateway and wait until it is known that nothing runs; else the scenario opens it.
        more: settings, `pod__preload` for `pod.preload`.
    """

    async def main() -> None:
        with pytest.MonkeyPatch.context() as patch:
            named = {name.replace("__", ".", 1): value for name, value in more.items()}
            async with _town(state, patch, providers, sections, named) as town:
                if start:
                    await town.open()
                    await town.word("STOPPED")
                try:
                    await scenario(town)
                finally:
                    for cloud in town.clouds.values():
                        cloud.faults.heal()
                    proved = await town.close()
                assert proved
                assert [] == town.billing
                hasty = ("stop:", "delete:")  # never held back for an interval
                violations = [*town.runpod.violations, *town.vast.violations]
                assert [] == [text for text in violations if not text.startswith(hasty)]

    loopback_time.run(main())


__all__ = [
    "BOTH",
    "COLD_S",
    "DELAYS",
    "EPHEMERAL",
    "FIXED",
    "IDLE_S",
    "MODEL",
    "MODES",
    "PODS",
    "RUNNING_COLD_S",
    "SECOND",
    "SLACK_S",
    "Town",
    "play",
    "pods_settings",
]
