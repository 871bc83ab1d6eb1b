"""What the pod itself is asked: health checks and the preload; bounded tasks, dropped when of no use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from gpugate.core.commands import CheckDevice, PreloadModel, Probe
from gpugate.core.events import DeviceChecked, Event, PreloadFinished, ProbeFinished
from gpugate.lifecycle.pod_client import PodClient
from gpugate.provider_api import Endpoint
from gpugate.tasks import CrashHandler, spawn


class PodCalls:
    """Carries `Probe`, `PreloadModel` and `CheckDevice` out and brings their answers back as events."""

    def __init__(
        self, pod: PodClient, tell: Callable[[Event], None], limit_s: float, on_crash: CrashHandler | None
    ) -> None:
        self._pod = pod
        self._on_event = tell
        self._limit_s = limit_s
        self._on_crash = on_crash
        self._tasks: set[asyncio.Task[None]] = set()

    def probe(self, order: Probe) -> None:
        """Check health, within `limit_s`."""
        self._spawn(self._probe(order), "pod:probe")

    def preload(self, order: PreloadModel) -> None:
        """Have a model loaded; the machine minds the time."""
        self._spawn(self._preload(order), "pod:preload")

    def check_device(self, order: CheckDevice) -> None:
        """Ask what its models run on, within `limit_s`."""
        self._spawn(self._check_device(order), "pod:weigh")

    def cancel(self) -> None:
        """Give up what is out: the pod is ready or gone.

        An errand that brings the very news that made us drop it has done its work and is let be.
        """
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    async def aclose(self) -> None:
        """Give up everything and wait for its end."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = spawn(work, name, on_crash=self._on_crash)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probe(self, order: Probe) -> None:
        try:
            async with asyncio.timeout(self._limit_s):
                detail = await self._pod.check(order.endpoint)
        except TimeoutError:
            detail = f"no answer within {self._limit_s:g} s"
        except Exception as error:  # an answer that nobody foresaw is no health
            detail = f"the check failed with {type(error).__name__}"
        self._on_event(ProbeFinished(order.op, detail is None, detail or ""))

    async def _preload(self, order: PreloadModel) -> None:
        loaded = on_cpu = False
        with suppress(Exception):  # a preload never fails a start
            loaded = await self._pod.preload(order.endpoint, order.model, order.embeds) is None
        if loaded:
            on_cpu = await self._on_cpu(order.endpoint)
        self._on_event(PreloadFinished(order.op, on_cpu))

    async def _check_device(self, order: CheckDevice) -> None:
        self._on_event(DeviceChecked(order.run_id, await self._on_cpu(order.endpoint)))

    async def _on_cpu(self, endpoint: Endpoint) -> bool:
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._pod.on_cpu(endpoint)
        except Exception:  # what cannot be told is nobody's fault
            return False
