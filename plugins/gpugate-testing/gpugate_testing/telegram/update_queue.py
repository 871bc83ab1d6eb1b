"""Updates on their way to the bot: kept until it has them, by webhook or by polling, never by both.

Knows what an update's number is, and nothing of what is in one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
from attrs import define, field

from gpugate.tasks import spawn
from gpugate_testing.telegram.values import Refusal, bad

RETRY_S = 0.05
"""Between two attempts to deliver; Telegram's own pauses are longer, and grow."""

SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"


@define
class UpdateQueue:
    """The box of updates.

    Attributes:
        waiting: what the bot does not have yet, oldest first.
        url: of the webhook; empty: none, so the bot may poll.
        secret: sent with each call of the webhook.
        attempts: the status of each attempt to deliver by webhook; 0: nobody answered.
        roads: where an https origin really leads, for a gateway that listens on this machine.
    """

    waiting: list[dict[str, Any]] = field(factory=list)
    url: str = ""
    secret: str = ""
    allowed: list[str] = field(factory=list)
    attempts: list[int] = field(factory=list)
    roads: dict[str, str] = field(factory=dict)
    trouble: str = ""
    _came: asyncio.Event = field(factory=asyncio.Event)
    _poller: asyncio.Future[None] | None = None
    _postman: asyncio.Task[None] | None = None

    def put(self, update: dict[str, Any]) -> None:
        """An update has come; kinds that the bot did not ask for are dropped, as Telegram does."""
        kind = next(name for name in update if name != "update_id")
        if not self.allowed or kind in self.allowed:
            self.waiting.append(update)
            self._came.set()

    # --- webhook ------------------------------------------------------------------------------

    async def hook(self, url: str, secret: str, allowed: list[str]) -> None:
        """Deliver to this URL from now on; an empty one ends that."""
        await self.aclose()
        self.url, self.secret, self.allowed, self.trouble = url, secret, allowed, ""
        if url:
            if self._poller is not None and not self._poller.done():
                self._poller.set_exception(_while_hooked())
            self._postman = spawn(self._deliver(), "telegram's webhook calls")

    async def aclose(self) -> None:
        """Deliver no more."""
        if self._postman is not None:
            self._postman.cancel()
            await asyncio.wait([self._postman])
            self._postman = None

    async def _deliver(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                while self.waiting:
                    update = self.waiting[0]
                    if await self.call(session, update):
                        self.waiting.remove(update)
                    else:
                        await asyncio.sleep(RETRY_S)
                self._came.clear()
                await self._came.wait()

    async def call(self, session: aiohttp.ClientSession, update: Mapping[str, Any]) -> bool:
        """Try once to hand an update to the webhook."""
        url = self.url
        for origin, road in self.roads.items():
            if url.startswith(origin):
                url = road + url.removeprefix(origin)
        headers = {SECRET_HEADER: self.secret} if self.secret else {}
        try:
            async with session.post(url, json=update, headers=headers) as response:
                await response.read()
                status = response.status
        except (aiohttp.ClientError, OSError):
            status = 0
        self.attempts.append(status)
        self.trouble = "" if 200 <= status < 300 else f"Wrong response from the webhook: {status}"
        return 200 <= status < 300

    # --- polling ------------------------------------------------------------------------------

    async def poll(self, offset: int, limit: int, timeout_s: float) -> list[dict[str, Any]]:
        """Updates from number `offset` on; those below it are confirmed, and gone.

        Raises:
            Refusal: a webhook is set, or another poller came.
        """
        if self.url:
            raise _while_hooked()
        if offset < 0:
            raise bad("negative offsets are not simulated")
        self.waiting = [update for update in self.waiting if update["update_id"] >= offset]
        if self._poller is not None and not self._poller.done():
            self._poller.set_exception(_second_poller())
        self._poller = mine = asyncio.get_running_loop().create_future()
        try:
            await self._something(mine, timeout_s)
        finally:
            mine.cancel()
        return self.waiting[:limit]

    async def _something(self, mine: asyncio.Future[None], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not self.waiting:
                    self._came.clear()
                    came = spawn(self._came.wait(), "an update")
                    try:
                        await asyncio.wait({mine, came}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        came.cancel()
                    if mine.done():
                        mine.result()
        except TimeoutError:
            return


def _while_hooked() -> Refusal:
    return Refusal(
        409, "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete it"
    )


def _second_poller() -> Refusal:
    return Refusal(
        409,
        "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running",
    )
