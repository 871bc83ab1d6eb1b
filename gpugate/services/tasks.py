"""The only place where tasks are born: named, kept, and heard when they crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

CrashListener = Callable[[str, BaseException], None]

_alive: set[asyncio.Task[Any]] = set()


def report_crash(name: str, error: BaseException, on_crash: CrashListener | None) -> None:
    """Let somebody hear of a crash: `on_crash`, or the loop's handler."""
    if on_crash is not None:
        on_crash(name, error)
    else:
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"{name!r} crashed", "exception": error}
        )


def spawn(
    coro: Coroutine[Any, Any, Any], name: str, *, on_crash: CrashListener | None = None
) -> asyncio.Task[Any]:
    """Run `coro` as a named task that is kept alive; a crash goes to `on_crash` or the loop's handler."""
    task = asyncio.get_running_loop().create_task(coro, name=name)
    _alive.add(task)

    def ended(task: asyncio.Task[Any]) -> None:
        _alive.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        report_crash(name, error, on_crash)

    task.add_done_callback(ended)
    return task
