"""The process that simulates a rented machine: Ollama and ComfyUI after a cold start.

    python -m gpugate_demo.pod --port P --comfyui-port P --status-port P [--cold-start 6]

It goes through the stages of a real one, measured from the start of the process: *provisioning*
(nothing listens), *running* (first nothing listens, then the edge answers 404, as a provider's proxy
does for a service that is not up), and *ready*. `GET /status` on its own port tells which, at any time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from enum import StrEnum

import orjson
from aiohttp import web
from attrs import frozen

from gpugate_demo.base_server import BaseServer, RecordedRequest
from gpugate_demo.comfyui import SimulatedComfyUI
from gpugate_demo.faults import ANY_PATH, Fault, NotReady
from gpugate_demo.ollama import SimulatedOllama

RUNNING_AFTER = 0.4  # parts of the cold start
EDGE_AFTER = 0.7
SAMPLING_STEP_S = 0.05
EDGE_BODY = b"404 page not found: no service answers on this port of the simulated pod yet\n"


class PodStage(StrEnum):
    """The stage of the cold start."""

    PROVISIONING = "provisioning"
    RUNNING = "running"
    READY = "ready"


@frozen
class PodOptions:
    """The command line's options; ports are TCP, `cold_start_s` in seconds."""

    host: str
    port: int
    comfyui_port: int
    status_port: int
    cold_start_s: float
    tokens_per_second: float
    pod_id: str
    seed: int


class Pod(BaseServer):
    """The machine. As a server it answers `/status`; Ollama and ComfyUI are servers of their own.

    Args:
        age_s: how long the process has been there already.
    """

    def __init__(self, plan: PodOptions, *, age_s: float = 0.0) -> None:
        super().__init__(host=plan.host, port=plan.status_port, max_seen=1, keep_bodies=0)
        self.plan = plan
        self.stage = PodStage.PROVISIONING
        self.ready = asyncio.Event()
        self._ready_at = time.monotonic() - age_s + plan.cold_start_s
        rate, step_s = plan.tokens_per_second, SAMPLING_STEP_S if plan.tokens_per_second else 0.0
        self.ollama = SimulatedOllama(
            host=plan.host,
            port=plan.port,
            tokens_per_second=rate,
            seed=plan.seed,
            max_seen=1,
            keep_bodies=0,
        )
        self.comfyui = SimulatedComfyUI(
            host=plan.host, port=plan.comfyui_port, step_s=step_s, seed=plan.seed, max_seen=1, keep_bodies=0
        )

    async def boot(self) -> None:
        """Go through the stages; OSError if a port is taken."""
        cold_s = self.plan.cold_start_s
        await self._until(self._ready_at - cold_s * (1 - RUNNING_AFTER))
        self.stage = PodStage.RUNNING
        await self._until(self._ready_at - cold_s * (1 - EDGE_AFTER))
        edge = NotReady(self.ready, 404, EDGE_BODY)
        for service in (self.ollama, self.comfyui):
            service.faults.add(ANY_PATH, edge, times=None)
            await service.start()
        await self._until(self._ready_at)
        self.stage = PodStage.READY
        self.ready.set()

    async def halt(self) -> None:
        """Close everything, cutting what is open."""
        await asyncio.gather(self.ollama.stop(), self.comfyui.stop(), self.stop())

    async def handle(
        self, request: web.BaseRequest, seen: RecordedRequest, fault: Fault | None
    ) -> web.StreamResponse:
        """`GET /status`: the stage, the pod's name, its process."""
        if (request.method, request.path) != ("GET", "/status"):
            return web.Response(status=404)
        about = {"stage": self.stage, "pod_id": self.plan.pod_id, "pid": os.getpid(), "simulated": True}
        return web.Response(body=orjson.dumps(about), content_type="application/json")

    @staticmethod
    async def _until(moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - time.monotonic()))


def process_age_s() -> float:
    """Seconds since this process began, 0 where the system does not tell."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:
            ticks = int(stat.read().rpartition(")")[2].split()[19])  # starttime, the 22nd field
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(0.0, since_boot - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def _port(text: str) -> int:
    if not 0 < (port := int(text)) < 65536:
        raise ValueError
    return port


def read_arguments(arguments: Sequence[str]) -> PodOptions:
    """The command line; argparse ends the process if it is wrong."""
    parser = argparse.ArgumentParser(prog="gpugate_demo.pod", description="A simulated GPU pod.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_port, required=True, help="Ollama's")
    parser.add_argument("--comfyui-port", type=_port, required=True)
    parser.add_argument("--status-port", type=_port, required=True)
    parser.add_argument("--cold-start", type=float, default=6.0, help="seconds until Ollama answers")
    parser.add_argument("--tokens-per-second", type=float, default=25.0, help="0: as fast as they go")
    parser.add_argument("--pod-id", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    return PodOptions(
        given.host,
        given.port,
        given.comfyui_port,
        given.status_port,
        given.cold_start,
        given.tokens_per_second,
        given.pod_id,
        given.seed,
    )


async def run(plan: PodOptions) -> None:
    """Run the pod until SIGTERM or SIGINT."""
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    pod = Pod(plan, age_s=process_age_s())
    await pod.start()
    try:
        async with asyncio.TaskGroup() as group:
            booting = group.create_task(pod.boot(), name="boot of the simulated pod")
            await leave.wait()
            booting.cancel()
    finally:
        await pod.halt()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 after a signal, 1 if a port is taken."""
    plan = read_arguments(sys.argv[1:] if arguments is None else arguments)
    sys.stderr.write(
        f"simulated pod {plan.pod_id}: no GPU, no model; cold start of {plan.cold_start_s:g} s\n"
    )
    status = 0
    try:
        asyncio.run(run(plan))
    except* OSError as errors:
        sys.stderr.write(f"simulated pod {plan.pod_id}: {errors.exceptions[0]}\n")
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
