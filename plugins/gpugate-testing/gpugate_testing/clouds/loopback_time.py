"""A loop with real loopback sockets whose clock jumps: a day at a simulated cloud takes no time.

`gpugate_testing.virtual_time` is for code without sockets. Here a jump waits until the kernel has had
time to hand over what one end of a loopback connection sent to the other, both ends being on this loop.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from gpugate_testing.virtual_time import DeadlockError

Result = TypeVar("Result")
GRACE_S = 0.0002
"""How long, in real seconds, nothing must arrive before the clock jumps: loopback takes microseconds."""
STUCK_S = 2.0
"""Real seconds of silence without any timer after which the wait is an error."""


class _PatientSelector(selectors.SelectSelector):  # epoll would round the grace up to a millisecond
    """Instead of sleeping until the next timer, makes sure that nothing is on its way and moves there."""

    now = 0.0
    in_threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            if ready := super().select(STUCK_S):
                return ready
            raise DeadlockError("all tasks wait and no timer is set")
        if self.in_threads:
            return super().select(min(timeout, STUCK_S))
        ready = super().select(0)
        if ready or timeout <= 0:
            return ready
        if ready := super().select(GRACE_S):
            return ready
        self.now += timeout
        return []


class LoopbackVirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time whose peers all live on this loop; no subprocesses.

    While a thread works for the loop (a ledger's disk) its clock stands still: a disk takes no time here.
    """

    def __init__(self) -> None:
        self._patient = _PatientSelector()
        super().__init__(self._patient)

    def time(self) -> float:
        return self._patient.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """Let a thread work; see the class."""
        working = super().run_in_executor(executor, func, *args)
        self._patient.in_threads += 1
        working.add_done_callback(self._worked)
        return working

    def _worked(self, _: asyncio.Future[Any]) -> None:
        self._patient.in_threads -= 1


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run `main` to its end in virtual time, over real sockets of this machine.

    Raises:
        Stuck: nothing was left to happen before `main` ended.
    """
    with asyncio.Runner(loop_factory=LoopbackVirtualLoop) as runner:
        return runner.run(main)
