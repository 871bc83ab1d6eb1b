"""`gpugate serve` as one of several gateways: it stands by, is the active one, and stands by again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from attrs import evolve

from gpugate.app import build
from gpugate.cli.ending import Ending
from gpugate.cli.service_manager import ServiceManager
from gpugate.config import Settings
from gpugate.lifecycle.state_dir import StateDirLocked, lock
from gpugate.observability.log import configure, log_crash
from gpugate.operation.role_keeper import RoleKeeper
from gpugate.provider_api import ActiveRole
from gpugate.proxy.standby import StandbyServer
from gpugate.tasks import spawn

LOCK_PATIENCE_S = 1.0
"""How long the lock of the state folder is waited for: the other gateway has lost the role, and ends."""
LOCK_PAUSE_S = 0.1
LOST_LIMIT_S = 3.0
"""How long a gateway that has lost the role takes to end, before it is given up."""

_log = structlog.get_logger()


async def serve_in_turn(
    settings: Settings,
    reread: Callable[[], Settings] | None,
    role: ActiveRole,
    ending: Ending,
    manager: ServiceManager,
) -> int:
    """Stand by, and serve while the role is ours, until a signal; return the exit status.

    Raises:
        CannotListen: the address is taken.
        SelfCheckFailed: the gateway does not answer its own request.
        SettingsError: see `build`.
    """
    configure(settings.log.format, settings.log.level, secrets=())
    keeper = RoleKeeper(role)
    try:
        while not ending.asked.is_set():
            standby = StandbyServer(settings.server, _log.warning, log_crash)
            port = standby.open()
            settings = evolve(settings, server=evolve(settings.server, port=port))  # 0: the same each time
            _log.info("standing by", port=port)
            manager.ready()
            try:
                if not await _first(keeper.win(), ending.asked.wait()):
                    return 0
                async with _state_folder(settings):
                    status = await _serve_active(settings, reread, keeper, ending, standby)
            finally:
                await standby.aclose()
            if status is not None:
                manager.stopping()
                return status
        return 0
    finally:
        await keeper.aclose()


async def _serve_active(
    settings: Settings,
    reread: Callable[[], Settings] | None,
    keeper: RoleKeeper,
    ending: Ending,
    standby: StandbyServer,
) -> int | None:
    """Run the gateway; return the exit status, or None when the role was lost."""
    gateway = ending.gateway = await build(settings, on_failure=ending.asked.set, reread=reread)
    await standby.aclose()
    await gateway.open()
    lost = False
    confirmed = False
    try:
        lost = not await _first(ending.asked.wait(), keeper.lost.wait())
    finally:
        if lost:
            await _give_up(gateway.close(keep=True), gateway.abort)
        else:
            confirmed = await gateway.close(keep=keeper.role.is_awaited)
        ending.gateway = None
    if lost:
        return None
    return 0 if confirmed and gateway.failure is None else 1


async def _give_up(closing: Coroutine[Any, Any, bool], abort: Callable[[], None]) -> None:
    """End a gateway that must not serve any more: answers are cut, the pod is left alone."""
    task = spawn(closing, "role:lost", on_crash=log_crash)
    await asyncio.sleep(0)
    abort()
    _, late = await asyncio.wait([task], timeout=LOST_LIMIT_S)
    for one in late:
        one.cancel()
        await asyncio.wait([one])


async def _first(one: Coroutine[Any, Any, Any], other: Coroutine[Any, Any, Any]) -> bool:
    """Return whether the first of two has ended before the other, which is cancelled; raise its error."""
    tasks = [spawn(one, "turns:one", on_crash=log_crash), spawn(other, "turns:other", on_crash=log_crash)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return tasks[1] not in done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@asynccontextmanager
async def _state_folder(settings: Settings) -> AsyncIterator[None]:
    """Hold the lock of the state folder; one that is not released in time is no reason not to serve.

    The role says who is active; a gateway that hangs keeps the lock until its process ends.
    """
    with ExitStack() as stack:
        limit = asyncio.get_running_loop().time() + LOCK_PATIENCE_S
        while True:
            try:
                stack.enter_context(lock(Path(settings.state.dir), _log.warning))
                break
            except StateDirLocked as error:
                if asyncio.get_running_loop().time() >= limit:
                    _log.warning("the gateway that was active has not let go of it", state=error.message)
                    break
            await asyncio.sleep(LOCK_PAUSE_S)
        yield
