"""Judges what became of a pod whose exchange broke: lost, alive, or unhealthy for longer than we wait.

A provider may go on saying RUNNING for a while after its pod has died, so one look proves nothing: the
pod lives when its Ollama answers a health check after the trouble, and is lost when its run is over.
"""

from __future__ import annotations

import asyncio
from enum import Enum

from attrs import define, field

from gpugate.core.states import Draining, Ready, State, WarmingUp
from gpugate.lifecycle.lease import Lease


class Diagnosis(Enum):
    """What became of the pod."""

    LOST = "lost"  # the run is over, or the request waits for its recovery: the lease has no pod by now
    ALIVE = "alive"  # healthy, and running by the provider's word
    UNHEALTHY = "ill"  # the provider says that it runs, but its Ollama does not answer


@define(eq=False)
class PendingDiagnosis:
    """The wait of one broken exchange for the diagnosis of its pod.

    Attributes:
        lease: of the request, if it can be sent again.
    """

    run_id: int
    lease: Lease | None = None
    done: asyncio.Future[Diagnosis] = field(factory=lambda: asyncio.get_running_loop().create_future())
    _inspected: bool = False

    async def wait(self, limit_s: float) -> Diagnosis:
        """Wait for the diagnosis; UNHEALTHY after `limit_s`."""
        await asyncio.wait([self.done], timeout=limit_s)
        return self.done.result() if self.done.done() else Diagnosis.UNHEALTHY

    def update(self, state: State, *, looked: bool) -> bool:
        """Take over the state; `looked`: it follows the newest inspection of the pod.

        Returns True if the pod is unhealthy and the request should wait for its recovery.
        """
        self._inspected = self._inspected or looked
        if self.done.done():
            return False
        has_no_pod = self.lease is not None and self.lease.pod is None
        if has_no_pod or not isinstance(state, Ready | WarmingUp | Draining) or state.run_id != self.run_id:
            self.done.set_result(Diagnosis.LOST)
        elif isinstance(state, WarmingUp):
            return self.lease is not None
        elif self._inspected and (isinstance(state, Draining) or state.probe_op is None):
            self.done.set_result(Diagnosis.ALIVE)
        return False
