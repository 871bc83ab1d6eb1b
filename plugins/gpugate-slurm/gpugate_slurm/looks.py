"""One look at the cluster for all pods of this gateway.

slurmctld answers everybody's squeue under one lock; clusters throttle who asks often. So what one pod's look
has shown is used once by each of the other pods, if it is no older than the least pause between looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from weakref import WeakKeyDictionary

from aiohttp import ClientSession
from attrs import define, field, frozen

from gpugate_slurm.jobs import Job
from gpugate_slurm.settings import SlurmConfig


@frozen(eq=False)
class Listing:
    """What one look showed.

    Attributes:
        asked_at: when it was asked for, in the loop's time.
        jobs: all of ours, of every pod.
    """

    asked_at: float
    jobs: tuple[Job, ...]


@define
class SharedLooks:
    """The last listing of one cluster and user."""

    last: Listing | None = None
    _asking: asyncio.Lock = field(factory=asyncio.Lock)

    async def look(
        self, ask: Callable[[], Awaitable[list[Job]]], *, not_before: float, max_age_s: float
    ) -> Listing:
        """The last listing, if it was asked for after `not_before` and is young enough; else a new one."""
        loop = asyncio.get_running_loop()
        async with self._asking:
            last = self.last
            if last is not None and last.asked_at > not_before and loop.time() - last.asked_at < max_age_s:
                return last
            asked_at = loop.time()
            self.last = Listing(asked_at, tuple(await ask()))
            return self.last


_SHARED: WeakKeyDictionary[ClientSession, dict[tuple[str, ...], SharedLooks]] = WeakKeyDictionary()


def shared_looks(config: SlurmConfig, session: ClientSession) -> SharedLooks:
    """What the pods of one gateway, which have its session in common, share of one way to a cluster."""
    way = (config.rest_url, config.ssh, config.user, config.token, config.token_file)
    return _SHARED.setdefault(session, {}).setdefault(way, SharedLooks())
