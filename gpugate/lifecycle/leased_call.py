"""A piece of work on the pod that a lease has: given up when the pod is lost, tried again where that is safe.

Knows leases and what may be tried again (docs/api.md#retries); not what the work is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from attrs import define

from gpugate.errors import PodStopped
from gpugate.lifecycle.diagnosis import Diagnosis
from gpugate.lifecycle.lease import Lease, ServingPod

T = TypeVar("T")
LOST = "the pod was lost in the middle of the answer"


class PodUnreachable(Exception):
    """A service of the pod could not be reached, or hung up: perhaps the pod is no more.

    The message is one line for people.
    """


class Diagnoser(Protocol):
    """Finds out whether a pod lives: the lifecycle."""

    async def diagnose(self, run: int) -> Diagnosis:
        """What became of this run's pod."""


async def _admitted(lease: Lease) -> ServingPod:
    return await lease.wait_admitted()


class _PodLost(Exception):
    """The pod went while the work was under way."""


@define
class LeasedCall:
    """One caller's use of the pod, in one or more pieces of work.

    Attributes:
        response_started: something has left for the client, or must not be done twice: no second try.
        wait_for_pod: how the pod is waited for; may say meanwhile that it does.
    """

    lifecycle: Diagnoser
    lease: Lease
    response_started: bool = False
    wait_for_pod: Callable[[Lease], Awaitable[ServingPod]] = _admitted

    def mark_response_started(self) -> None:
        """From here on nothing is tried again."""
        if not self.response_started:
            self.response_started = True
            self.lease.mark_response_started()

    async def run(self, work: Callable[[ServingPod], Awaitable[T]], *, tries: int = 2) -> T:
        """Wait for the pod and do `work` on it; again if the pod is lost before `mark_response_started`.

        Args:
            tries: how often a pod that lives but breaks connections is asked.

        Raises:
            GateError: refused while it waited; or the pod was lost after `mark_response_started`.
            PodUnreachable: the pod lives, and its service broke `tries` times, or after
                `mark_response_started`.
        """
        run, tried, recovered = 0, 0, False
        while True:
            pod = await self.next_pod()
            if pod.run_id != run:
                run, tried = pod.run_id, 0
            try:
                return await self._unless_lost(work, pod)
            except _PodLost:
                continue
            except PodUnreachable:
                tried += 1
                if self.response_started:
                    raise
                if tried < tries and self.lease.pod is pod:
                    continue
                finding = await self.lifecycle.diagnose(pod.run_id)
                if finding is Diagnosis.RECOVERED and self.lease.pod is pod and not recovered:
                    recovered = True
                    continue
                if self.lease.pod is pod:
                    raise

    async def next_pod(self) -> ServingPod:
        """Wait for the pod. Raises GateError: refused, or lost after `mark_response_started`."""
        if self.lease.pod is None and self.response_started:
            raise self.lease.error or PodStopped(LOST)
        return await self.wait_for_pod(self.lease)

    async def _unless_lost(self, work: Callable[[ServingPod], Awaitable[T]], pod: ServingPod) -> T:
        """Break the work off when the lease loses its pod."""
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout(None)
        told = False

        def lose() -> None:
            nonlocal told
            if not told:
                told = True
                scope.reschedule(loop.time())

        try:
            async with scope:
                self.lease.on_lost = lose
                try:
                    return await work(pod)
                finally:
                    self.lease.on_lost = None
        except TimeoutError:
            if not told:
                raise
            raise _PodLost from None
