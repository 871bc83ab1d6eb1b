"""The calls to the pod itself: health probe, preload and device check, each in a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from gpugate.core.commands import CheckDevice, PreloadModel, Probe
from gpugate.core.events import DeviceChecked, Event, PreloadFinished, ProbeFinished
from gpugate.provider_api import Endpoint
from gpugate.tasks import CrashHandler, spawn


class PodClient(Protocol):
    """What the lifecycle asks of a pod; one implementation for each `pod.engine`."""

    async def check(self, endpoint: Endpoint) -> str | None:
        """Probe the pod's health; None if it is healthy, else one line that says what was seen instead."""

    async def preload(self, endpoint: Endpoint, model: str, embeds: bool) -> str | None:
        """Load a model and wait for it; None if it is loaded, else one line that says why not."""

    async def on_cpu(self, endpoint: Endpoint) -> bool:
        """Return whether all loaded models run on the CPU; False if none is loaded or it cannot be told."""


class PodCalls:
    """Executes `Probe`, `PreloadModel` and `CheckDevice`; the results come back as events.

    Args:
        on_event: called with each result, in the task of the call.
        limit_s: of a probe and a device check; the machine limits a preload.
    """

    def __init__(
        self, pod: PodClient, on_event: Callable[[Event], None], limit_s: float, on_crash: CrashHandler
    ) -> None:
        self._pod = pod
        self._on_event = on_event
        self._limit_s = limit_s
        self._on_crash = on_crash
        self._tasks: set[asyncio.Task[None]] = set()

    def probe(self, command: Probe) -> None:
        """Probe the pod's health."""
        self._spawn(self._probe(command), "pod:probe")

    def preload(self, command: PreloadModel) -> None:
        """Load a model, then check on what device it runs. A preload that fails never fails the start."""
        self._spawn(self._preload(command), "pod:preload")

    def check_device(self, command: CheckDevice) -> None:
        """Find out whether the loaded models run on the CPU."""
        self._spawn(self._check_device(command), "pod:check-device")

    def cancel(self) -> None:
        """Cancel the calls that are out: the pod is ready, or gone.

        A call whose own result led to this is not cancelled; it ends by itself.
        """
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    async def aclose(self) -> None:
        """Cancel all calls and wait for their end."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = spawn(work, name, on_crash=self._on_crash)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probe(self, command: Probe) -> None:
        try:
            async with asyncio.timeout(self._limit_s):
                detail = await self._pod.check(command.endpoint)
        except TimeoutError:
            detail = f"no answer within {self._limit_s:g} s"
        except Exception as error:  # whatever the client does wrong, the pod is not known to be healthy
            detail = f"the check failed with {type(error).__name__}"
        self._on_event(ProbeFinished(command.op, detail is None, detail or ""))

    async def _preload(self, command: PreloadModel) -> None:
        loaded = on_cpu = False
        with suppress(Exception):
            loaded = await self._pod.preload(command.endpoint, command.model, command.embeds) is None
        if loaded:
            on_cpu = await self._on_cpu(command.endpoint)
        self._on_event(PreloadFinished(command.op, on_cpu))

    async def _check_device(self, command: CheckDevice) -> None:
        self._on_event(DeviceChecked(command.run_id, await self._on_cpu(command.endpoint)))

    async def _on_cpu(self, endpoint: Endpoint) -> bool:
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._pod.on_cpu(endpoint)
        except Exception:  # not known is not worth a warning
            return False
