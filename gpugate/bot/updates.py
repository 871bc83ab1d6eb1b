"""What comes from Telegram, however it came: each update once, of allowed chats only, in order.

Each message is a job of its own. In one chat a message is incoming when the one before it has had its
first answer: so "start" and "stop" cannot overtake each other, and a long job holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import structlog
from aiogram.types import Update
from attrs import define, field

from gpugate.bot.dedup import UpdateDeduplicator
from gpugate.bot.messenger import Chat, IncomingMessage
from gpugate.bot.sender import MessageSender, TelegramChat
from gpugate.bot.unknown_chats import UnknownChats
from gpugate.bot.update_parser import ParsedUpdate, UpdateParser
from gpugate.tasks import CrashListener, spawn

PATIENCE_S = 20.0
"""How long a message waits for the answer to the one before it: above any `bot.intent_timeout` in use."""

CUT_S = 2.0
FAREWELL_S = 5.0

CUT_SHORT = "gpugate is shutting down, so what you asked for was cut short. Please ask again later."
BROKEN = "Something went wrong here, and it is in gpugate's log. Please try again."


class Hearer(Protocol):
    """Who answers: the assistant."""

    async def handle_message(self, incoming: IncomingMessage, chat: Chat) -> None:
        """Answer one message; may take minutes."""


@define
class Inbox:
    """Where updates go.

    Attributes:
        allowed: chats that are incoming.
        hearer: answers them.
    """

    allowed: frozenset[int]
    hearer: Hearer
    sender: MessageSender
    translator: UpdateParser
    seen: UpdateDeduplicator
    on_crash: CrashListener
    unknown_chats: UnknownChats = field(factory=UnknownChats)
    _jobs: dict[asyncio.Task[None], int] = field(factory=dict)
    _turns: dict[int, asyncio.Event] = field(factory=dict)
    _no_grace: asyncio.Event = field(factory=asyncio.Event)

    def take(self, raw: Mapping[str, Any]) -> None:
        """Take an update, as JSON has it: its work begins, and nothing is waited for. Never raises."""
        try:
            self._take(raw)
        except Exception as error:  # one strange update must not make the bot deaf
            self.on_crash("telegram update", error)

    def _take(self, raw: Mapping[str, Any]) -> None:
        number = raw.get("update_id")
        if not isinstance(number, int) or not self.seen.is_new(number, raw):
            return
        try:
            update = Update.model_validate(raw)
        except ValueError:  # pydantic's, whose text quotes what was written
            structlog.get_logger().warning("bot: an update was not understood", update=number)
            return
        chat = self.translator.chat_of(update)
        if chat is None:
            return
        if chat not in self.allowed:
            self.unknown_chats.note(chat)
            return
        if said := self.translator.said(update, chat):
            if said.acknowledgements:
                spawn(self._acknowledge(said), "telegram acknowledgements", on_crash=self.on_crash)
            if said.incoming is not None:
                self._start_answer(said.chat, said.incoming)

    async def drain(self, grace_s: float) -> None:
        """Let jobs have so long, then cut them and tell their chats."""
        impatient = spawn(self._no_grace.wait(), "telegram: no more grace")
        ends = asyncio.get_running_loop().time() + grace_s
        while self._jobs and not impatient.done() and (left := ends - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait({impatient, *self._jobs}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        impatient.cancel()
        cut = dict(self._jobs)
        for job in cut:
            job.cancel()
        if not cut:
            return
        await asyncio.wait(list(cut), timeout=CUT_S)
        farewells = [
            spawn(self.sender.send_text(chat, CUT_SHORT), "telegram farewell")
            for chat in sorted(set(cut.values()))
        ]
        _, late = await asyncio.wait(farewells, timeout=FAREWELL_S)
        for farewell in late:
            farewell.cancel()

    def cut(self) -> None:
        """End the grace of `drain` now."""
        self._no_grace.set()

    def _start_answer(self, chat: int, incoming: IncomingMessage) -> None:
        before, mine = self._turns.get(chat), asyncio.Event()
        self._turns[chat] = mine
        job = spawn(self._answer(chat, incoming, before, mine), "telegram message", on_crash=self.on_crash)
        self._jobs[job] = chat
        job.add_done_callback(self._ended)

    async def _answer(
        self, chat: int, incoming: IncomingMessage, before: asyncio.Event | None, mine: asyncio.Event
    ) -> None:
        try:
            if before is not None:
                await _wait(before, PATIENCE_S)
            await self.hearer.handle_message(incoming, TelegramChat(chat, self.sender, mine.set))
        except Exception as error:
            self.on_crash("telegram message", error)
            await self.sender.send_text(chat, BROKEN)
        finally:
            mine.set()
            if self._turns.get(chat) is mine:
                del self._turns[chat]

    async def _acknowledge(self, said: ParsedUpdate) -> None:
        for method in said.acknowledgements:
            await self.sender.call(method, quiet=True)

    def _ended(self, job: asyncio.Task[None]) -> None:
        self._jobs.pop(job, None)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
