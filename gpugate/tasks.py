"""Makes all tasks: named, kept alive, and reported when they crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

CrashHandler = Callable[[str, BaseException], None]
"""Takes the name of a task or part, and the error that it died of. Must not raise."""

FIRST_PAUSE_S = 0.1
"""Before a supervised task that died is started again; doubles with each death."""
LONGEST_PAUSE_S = 5.0
"""The longest pause; after a task that lived for longer than this the first pause comes again."""

_alive: set[asyncio.Task[Any]] = set()


class TaskDied(Exception):
    """A supervised task ended by a foreign cancellation, or by SystemExit."""


def report_to_loop(name: str, error: BaseException) -> None:
    """Hand a crash to the exception handler of the running loop; the default `CrashHandler`."""
    asyncio.get_running_loop().call_exception_handler({"message": f"{name!r} crashed", "exception": error})


def report_crash(name: str, error: BaseException, on_crash: CrashHandler | None) -> None:
    """Report a crash of the task or part `name`; None: to the loop."""
    (on_crash or report_to_loop)(name, error)


def spawn(
    coro: Coroutine[Any, Any, Any], name: str, *, on_crash: CrashHandler | None = None
) -> asyncio.Task[Any]:
    """Run `coro` as a named task, and keep a reference until it ends; a crash is reported."""
    task = asyncio.get_running_loop().create_task(coro, name=name)
    _alive.add(task)

    def ended(task: asyncio.Task[Any]) -> None:
        _alive.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        report_crash(name, error, on_crash)

    task.add_done_callback(ended)
    return task


class Supervised:
    """A task that lives as long as its owner: one that dies is reported and started again.

    It dies of an error, of SystemExit, or of a cancellation that is not `cancel`. One that returns has done
    its work and is not started again. To be constructed while the loop runs.

    Args:
        work: makes the coroutine of one run; a later run must take up what the one before left undone.
        name: of the task, in log lines.
        on_crash: called for each death.
    """

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        name: str,
        *,
        on_crash: CrashHandler | None = None,
    ) -> None:
        self._work = work
        self._name = name
        self._on_crash = on_crash
        self._pause_s = FIRST_PAUSE_S
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.TimerHandle | None = None
        self._cancelled = asyncio.Event()
        self._begin()

    def cancel(self) -> None:
        """End the task for good; returns before it has ended."""
        self._cancelled.set()
        if self._next is not None:
            self._next.cancel()
        self._task.cancel()

    async def aclose(self, limit_s: float | None = None) -> None:
        """End the task for good, and wait for its end, `limit_s` at most."""
        self.cancel()
        await asyncio.wait([self._task], timeout=limit_s)

    def _begin(self) -> None:
        self._next = None
        self._began_at = self._loop.time()
        self._task = spawn(self._run(), self._name, on_crash=self._on_crash)
        self._task.add_done_callback(self._ended)

    async def _run(self) -> None:
        try:
            await self._work()
        except SystemExit as error:  # it would end the loop, and everything else with it
            raise TaskDied("it called sys.exit") from error

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._cancelled.is_set():
            return
        if task.cancelled():
            report_crash(self._name, TaskDied("it was cancelled"), self._on_crash)
        elif task.exception() is None:
            return
        if self._loop.time() - self._began_at > LONGEST_PAUSE_S:
            self._pause_s = FIRST_PAUSE_S
        self._next = self._loop.call_later(self._pause_s, self._begin)
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
