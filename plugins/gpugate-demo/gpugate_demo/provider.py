"""The provider `demo`: its pod is a process on this machine (`gpugate_demo.pod`).

The process goes through a real cold start and reports its stage on a status port. It is a supervised process:
it ends with a gateway that is not restarted, and a restarted gateway finds it again with the same ports.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import Attribute, field, frozen

from gpugate.errors import Transient
from gpugate.provider_api import Capabilities, Duration, Endpoint, Phase, PodReport, Price, Provider
from gpugate.providers.supervised_process import (
    ProcessState,
    ProcessStatus,
    SupervisedProcess,
    SupervisorTimeouts,
    process_name,
    state_dir,
)
from gpugate_demo.store import DEFAULT_MODELS

if TYPE_CHECKING:
    from aiohttp import ClientSession

ASK_TIMEOUT_S = 2.0
BOOT_S = 10.0  # without an answer for so long it is stuck, not starting
GPU = "simulated"
_ROOT = str(Path(__file__).resolve().parents[2])
_STAGES = {"provisioning": Phase.PROVISIONING, "running": Phase.RUNNING, "ready": Phase.RUNNING}
_HOST = "127.0.0.1"
_HELD = "held by another gpugate with this state directory (process {})"


def _not_negative(_: object, attribute: Attribute[float], value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError("must be 0 or more")


@frozen
class DemoConfig:
    """A simulated pod: a real process on this machine with a real cold start."""

    cold_start: Duration = field(
        default=6.0,
        validator=_not_negative,
        metadata={"help": "from the start of the pod to its Ollama's first answer"},
    )
    tokens_per_second: float = field(
        default=25.0, validator=_not_negative, metadata={"help": "pace of the answers; 0: no pauses"}
    )
    hourly_rate: float = field(
        default=0.44, validator=_not_negative, metadata={"help": "reported price per hour, in USD"}
    )


class Demo(Provider):
    """The simulated pod. Every start is a new pod with new ports; pulled models die with it."""

    Config: ClassVar[type[Any]] = DemoConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume=False, ephemeral=True, stable_urls=False, stop_keeps_disk=False, simulated=True
    )
    models = tuple(model.name for model in DEFAULT_MODELS)
    timeouts: ClassVar[SupervisorTimeouts] = SupervisorTimeouts()

    def __init__(self, config: DemoConfig, session: ClientSession) -> None:
        super().__init__(config, session)
        self._state_dir = state_dir()

    @cached_property
    def _process(self) -> SupervisedProcess:
        name = process_name("demo", self.pod_name)
        return SupervisedProcess(name, state_dir=self._state_dir, timeouts=self.timeouts)

    async def start(self) -> PodReport:
        """Start the pod's process unless it runs; raises what `SupervisedProcess.start` raises."""
        ports = _free_ports(("ollama", "comfyui", "status"))
        pod_id = f"demo-{secrets.token_hex(3)}"
        process = await self._process.start(
            self._command(pod_id, ports), env=_import_path(), meta={"pod_id": pod_id, "ports": ports}
        )
        return await self._running(process)

    async def stop(self) -> PodReport:
        """Ask the process to end."""
        process = await self._process.stop()
        return self._report(Phase.STOPPING, process) if process else self._report(Phase.STOPPED)

    async def inspect(self) -> PodReport:
        """Report the state of the process and the stage that it reports. Raises: Transient."""
        process = await self._process.inspect()
        if process is None:
            return self._report(Phase.STOPPED)
        if process.state is ProcessState.STOPPING:
            return self._report(Phase.STOPPING, process)
        if process.state is ProcessState.ENDED:
            return self._report(Phase.FAILED, process, f"the simulated pod {process.exit_description}")
        return await self._running(process)

    async def aclose(self) -> None:
        """Give the process back; it goes on."""
        await self._process.aclose()

    def _command(self, pod_id: str, ports: Mapping[str, int]) -> list[str]:
        return [
            sys.executable,
            "-P",  # nothing from whatever folder this runs in
            "-m",
            "gpugate_demo.pod",
            f"--pod-id={pod_id}",
            f"--port={ports['ollama']}",
            f"--comfyui-port={ports['comfyui']}",
            f"--status-port={ports['status']}",
            f"--cold-start={self.config.cold_start}",
            f"--tokens-per-second={self.config.tokens_per_second}",
        ]

    async def _running(self, process: ProcessStatus) -> PodReport:
        stage = await self._ask(process)
        if stage is None:
            return self._report(Phase.PROVISIONING, process, "its process is starting")
        if stage not in _STAGES:
            raise Transient("the simulated pod tells a stage that is none")
        return self._report(
            _STAGES[stage], process, "" if stage == "ready" else f"simulated cold start: {stage}"
        )

    async def _ask(self, process: ProcessStatus) -> str | None:
        """Return the stage that the process reports; None while it starts. Raises: Transient."""
        from aiohttp import ClientError, ClientTimeout  # a heavy import that listing providers does not need

        url = f"http://{_HOST}:{process.meta['ports']['status']}/status"
        try:
            async with self.session.get(url, timeout=ClientTimeout(total=ASK_TIMEOUT_S)) as response:
                told = await response.json()
        except (ClientError, TimeoutError, ValueError) as error:
            if (datetime.now(UTC) - process.started_at).total_seconds() < BOOT_S:
                return None
            raise Transient(f"the simulated pod does not tell its stage: {type(error).__name__}") from error
        if not isinstance(told, dict) or told.get("pod_id") != process.meta["pod_id"]:
            raise Transient("something else answers on the simulated pod's port")
        return str(told.get("stage"))

    def _report(self, phase: Phase, process: ProcessStatus | None = None, detail: str = "") -> PodReport:
        price = Price(Decimal(str(self.config.hourly_rate)), Decimal(0))
        if process is None:
            return PodReport(phase, price=price, gpu=GPU)
        ports = process.meta.get("ports", {})
        urls = {
            service: f"http://{_HOST}:{ports[service]}"
            for service in ("ollama", "comfyui")
            if service in ports
        }
        return PodReport(
            phase=phase,
            pod_id=process.meta.get("pod_id"),
            endpoints={service: Endpoint(url) for service, url in urls.items()},
            price=price,
            gpu=GPU,
            started_at=process.started_at,
            detail=detail if process.held_by is None else _HELD.format(process.held_by),
            output=process.last_line,
        )


def _free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """A free port for each; held together while looking, so that no two are the same."""
    with ExitStack() as stack:
        ports = {}
        for name in names:
            probe = stack.enter_context(socket.socket())
            probe.bind((_HOST, 0))
            ports[name] = probe.getsockname()[1]
        return ports


def _import_path() -> dict[str, str]:
    """Return the PYTHONPATH with which the pod imports this very package, installed or not."""
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([_ROOT, inherited] if inherited else [_ROOT])}
