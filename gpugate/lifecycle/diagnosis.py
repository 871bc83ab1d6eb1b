"""Judges what became of a pod whose exchange broke: lost, alive, or ill for longer than we wait.

A provider may go on saying RUNNING for a while after its pod has died, so one look proves nothing: the
pod lives when its Ollama answers a health check after the trouble, and is lost when its run is over.
"""

from __future__ import annotations

import asyncio
from enum import Enum

from attrs import define, field

from gpugate.core.states import Draining, Preloading, Ready, State, Warming


class Finding(Enum):
    """What the examination came to."""

    LOST = "lost"  # the run is over; a lease of it has been requeued or refused by now
    ALIVE = "alive"  # healthy, and running by the provider's word
    RECOVERED = "recovered"  # was ill, and serves again
    ILL = "ill"  # the provider says that it runs, but its Ollama does not answer


@define(eq=False)
class Examination:
    """One exchange's wait for the truth about its pod."""

    run: int
    done: asyncio.Future[Finding] = field(factory=lambda: asyncio.get_running_loop().create_future())
    _looked: bool = False
    _was_ill: bool = False

    async def result(self, limit_s: float) -> Finding:
        """Wait for the finding, at most `limit_s`."""
        await asyncio.wait([self.done], timeout=limit_s)
        return self.done.result() if self.done.done() else Finding.ILL

    def judge(self, state: State, *, looked: bool) -> None:
        """Take note of where the pod's life is; `looked` if the provider was just seen, freshly."""
        self._looked = self._looked or looked
        if self.done.done():
            return
        if not isinstance(state, Ready | Warming | Preloading | Draining) or state.run_id != self.run:
            self.done.set_result(Finding.LOST)
        elif isinstance(state, Warming | Preloading):
            self._was_ill = True
        elif self._looked and (isinstance(state, Draining) or state.probe_op is None):
            self.done.set_result(Finding.RECOVERED if self._was_ill else Finding.ALIVE)
