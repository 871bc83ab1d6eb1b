"""Judges what became of a pod whose exchange broke: lost, alive, or ill for longer than we wait.

A provider may go on saying RUNNING for a while after its pod has died, so one look proves nothing: the
pod lives when its Ollama answers a health check after the trouble, and is lost when its run is over.
"""

from __future__ import annotations

import asyncio
from enum import Enum

from attrs import define, field

from gpugate.core.states import Draining, Preloading, Ready, State, Warming


class Diagnosis(Enum):
    """What became of the pod."""

    LOST = "lost"  # the run is over; a lease of it has been requeued or refused by now
    ALIVE = "alive"  # healthy, and running by the provider's word
    RECOVERED = "recovered"  # was ill, and serves again
    UNHEALTHY = "ill"  # the provider says that it runs, but its Ollama does not answer


@define(eq=False)
class PendingDiagnosis:
    """The wait of one broken exchange for the diagnosis of its pod."""

    run_id: int
    done: asyncio.Future[Diagnosis] = field(factory=lambda: asyncio.get_running_loop().create_future())
    _inspected: bool = False
    _was_unhealthy: bool = False

    async def wait(self, limit_s: float) -> Diagnosis:
        """Wait for the diagnosis; UNHEALTHY after `limit_s`."""
        await asyncio.wait([self.done], timeout=limit_s)
        return self.done.result() if self.done.done() else Diagnosis.UNHEALTHY

    def update(self, state: State, *, looked: bool) -> None:
        """Take over the state; `looked`: it follows the newest inspection of the pod."""
        self._inspected = self._inspected or looked
        if self.done.done():
            return
        if not isinstance(state, Ready | Warming | Preloading | Draining) or state.run_id != self.run_id:
            self.done.set_result(Diagnosis.LOST)
        elif isinstance(state, Warming | Preloading):
            self._was_unhealthy = True
        elif self._inspected and (isinstance(state, Draining) or state.probe_op is None):
            self.done.set_result(Diagnosis.RECOVERED if self._was_unhealthy else Diagnosis.ALIVE)
