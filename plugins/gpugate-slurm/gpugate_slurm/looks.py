"""One look at the cluster for all pods of this gateway.

slurmctld answers everybody's squeue under one lock; clusters throttle who asks often. So what one pod's look
has shown is used once by each of the other pods, if it is no older than the least pause between looks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from weakref import WeakKeyDictionary

from aiohttp import ClientSession
from attrs import define, field, frozen

from gpugate import RateLimited, Transient
from gpugate_slurm.jobs import Job
from gpugate_slurm.settings import SlurmConfig

LONGEST_PAUSE_S = 60.0
"""Between two looks at a cluster that does not answer."""


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
    """The last listing of one cluster and user, and how often it could not be had since."""

    last: Listing | None = None
    failures: int = 0
    wait_until: float = -math.inf
    _asking: asyncio.Lock = field(factory=asyncio.Lock)

    async def look(
        self, ask: Callable[[], Awaitable[list[Job]]], *, not_before: float, pause_s: float, fresh: bool
    ) -> Listing:
        """The last listing, if it was asked for after `not_before`, within the pause; else a new one.

        `fresh`: a new one in any case, for a start or a stop. Raises: RateLimited, the last looks have failed
        and the cluster is left alone for a while, longer with each.
        """
        loop = asyncio.get_running_loop()
        async with self._asking:
            last, now = self.last, loop.time()
            if (
                not fresh
                and last is not None
                and last.asked_at > not_before
                and now - last.asked_at < pause_s
            ):
                return last
            if not fresh and self.failures > 1 and now < self.wait_until:
                said = f"Slurm could not be asked {self.failures} times and is left alone for a while"
                raise RateLimited(said, self.wait_until - now)
            try:
                jobs = await ask()
            except (Transient, RateLimited):
                self.failures += 1
                self.wait_until = loop.time() + min(LONGEST_PAUSE_S, pause_s * 2 ** min(self.failures - 1, 8))
                raise
            self.failures = 0
            self.last = Listing(now, tuple(jobs))
            return self.last


_SHARED: WeakKeyDictionary[ClientSession, dict[tuple[str, ...], SharedLooks]] = WeakKeyDictionary()


def shared_looks(config: SlurmConfig, session: ClientSession) -> SharedLooks:
    """What the pods of one gateway, which have its session in common, share of one way to a cluster."""
    way = (config.rest_url, config.ssh, config.user, config.token, config.token_file)
    return _SHARED.setdefault(session, {}).setdefault(way, SharedLooks())
