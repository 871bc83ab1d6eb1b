"""Wins the role of the active gateway, and keeps it until it is lost (docs/api.md#two-gateways).

Where it is kept is the provider's matter; see `gpugate.provider_api.ActiveRole`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from gpugate.errors import ProviderError
from gpugate.observability.log import log_crash
from gpugate.provider_api import ActiveRole
from gpugate.tasks import Supervised

TRIES_IN_A_DURATION = 10
"""A gateway that stands by looks so often while it waits for the role to end."""
CONFIRMED_IN_A_DURATION = 5
SAFETY = 0.1
"""A part of the duration: so much before another may begin, a gateway that cannot confirm stops serving."""
GIVE_BACK_S = 3.0

_log = structlog.get_logger()


class RoleKeeper:
    """One gateway's hold on the role.

    Attributes:
        lost: set once the role is lost, or may be taken by another at any moment.
    """

    def __init__(self, role: ActiveRole) -> None:
        self.role = role
        self.lost = asyncio.Event()
        self._deadline = 0.0
        self._keeping: Supervised | None = None
        self._told = ""

    async def win(self) -> None:
        """Return when the role is ours; from then on it is confirmed until `lost` or `aclose`."""
        pause = self.role.duration_s / TRIES_IN_A_DURATION
        while not await self._try():  # noqa: ASYNC110  (what is waited for happens elsewhere)
            await asyncio.sleep(pause)
        self.lost.clear()
        self._keeping = Supervised(self._keep, "role:keep", on_crash=log_crash)

    async def aclose(self) -> None:
        """Give the role back, if it is ours, so that another need not wait."""
        if self._keeping is not None:
            await self._keeping.aclose()
            self._keeping = None
            try:
                async with asyncio.timeout(GIVE_BACK_S):
                    await self.role.give_back()
            except (ProviderError, TimeoutError) as error:
                _log.warning("the role of the active gateway could not be given back", error=str(error))
        await self.role.aclose()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        pause = self.role.duration_s / CONFIRMED_IN_A_DURATION
        while not self.lost.is_set():
            await asyncio.sleep(max(0.0, min(pause, self._deadline - loop.time())))
            ours: bool | None = None
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline):
                    ours = await self._try()
            if ours is False or loop.time() >= self._deadline:
                _log.error("the role of the active gateway is lost", holder=self.role.holder or None)
                self.lost.set()

    async def _try(self) -> bool | None:
        """Return whether it is ours now; None: not known, and the deadline stays what it was."""
        began = asyncio.get_running_loop().time()
        try:
            ours = await self.role.take()
        except ProviderError as error:
            if error.message != self._told:
                self._told = error.message
                _log.warning("the role of the active gateway cannot be asked for", error=error.message)
            return None
        self._told = ""
        if ours:
            self._deadline = began + self.role.duration_s * (1 - SAFETY)
        return ours
