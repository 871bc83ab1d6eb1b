"""Handles Telegram's updates: each one once, from allowed chats only, answers in the order of their chat.

Each message is answered in a task of its own, in its chat and topic. A message of a topic waits until the one
before it has its first answer: "start" and "stop" cannot overtake each other, and a long job blocks nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from aiogram import Bot, Dispatcher
from aiogram.methods import AnswerCallbackQuery, EditMessageReplyMarkup
from aiogram.types import CallbackQuery, Message, TelegramObject, Update
from attrs import define, field

from gpugate.bot.dedup import UpdateDeduplicator
from gpugate.bot.messenger import Chat, IncomingMessage
from gpugate.bot.sender import MessageSender
from gpugate.bot.update_parser import UpdateParser, topic_of
from gpugate.tasks import CrashHandler, spawn

FIRST_ANSWER_TIMEOUT_S = 20.0
"""How long a message waits for the first answer to the one before it; above any sane `bot.intent_timeout`."""

CANCEL_TIMEOUT_S = 2.0
FAREWELL_TIMEOUT_S = 5.0

CUT_SHORT = "gpugate is shutting down, so what you asked for was cut short. Please ask again later."
BROKEN = "Something went wrong here, and it is in gpugate's log. Please try again."

UNKNOWN_CHAT_REPEAT_S = 3600.0
MAX_UNKNOWN_CHATS = 20
"""Unknown chats logged within that time: anybody can find a bot, and write from many accounts."""

Place = tuple[int, int | None]
"""A chat, and its topic if it has topics."""

OnMessage = Callable[[IncomingMessage, Chat], Awaitable[None]]
"""Answers one message; may take minutes."""


def parse_update(raw: Mapping[str, Any], bot: Bot) -> Update:
    """Parse an update that has an integer `update_id`; one that aiogram cannot read becomes an empty one."""
    try:
        return Update.model_validate(raw, context={"bot": bot})
    except ValueError:  # pydantic's; its text quotes the message
        structlog.get_logger().warning("bot: an update was not understood", update=raw["update_id"])
        return Update(update_id=raw["update_id"])


@define
class UpdateHandler:
    """Handlers of aiogram's dispatcher, for updates from the webhook and from polling alike.

    Attributes:
        allowed: ids of the chats that are answered, before they moved; messages of others are dropped.
        on_message: answers a message.
        on_moved: called with the old and the new id of an allowed group that has become a supergroup.
        last_update_id: of the newest update that came, for the confirmation at shutdown.
    """

    allowed: frozenset[int]
    on_message: OnMessage
    sender: MessageSender
    parser: UpdateParser
    dedup: UpdateDeduplicator
    on_crash: CrashHandler
    on_moved: Callable[[int, int], None] = lambda old, new: None
    clock: Callable[[], float] = time.monotonic
    last_update_id: int | None = None
    _answers: dict[asyncio.Task[None], Place] = field(factory=dict)
    _last_of_place: dict[Place, asyncio.Event] = field(factory=dict)
    _unknown_chats: dict[int, float] = field(factory=dict)
    _no_grace: asyncio.Event = field(factory=asyncio.Event)

    def dispatcher(self) -> Dispatcher:
        """Make the dispatcher; its handlers start work and return at once."""
        dispatcher = Dispatcher(disable_fsm=True)
        dispatcher.update.outer_middleware(self._filter)
        dispatcher.message.register(self._on_message)
        dispatcher.callback_query.register(self._on_press)
        return dispatcher

    async def drain(self, grace_s: float) -> None:
        """Let running answers have `grace_s` seconds, then cancel them and tell their chats."""
        no_grace = spawn(self._no_grace.wait(), "telegram: no more grace")
        ends = asyncio.get_running_loop().time() + grace_s
        while (
            self._answers and not no_grace.done() and (left := ends - asyncio.get_running_loop().time()) > 0
        ):
            await asyncio.wait({no_grace, *self._answers}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        no_grace.cancel()
        if not self._answers:
            return
        cancelled = dict(self._answers)
        for answer in cancelled:
            answer.cancel()
        await asyncio.wait(cancelled, timeout=CANCEL_TIMEOUT_S)
        farewells = [
            spawn(self.sender.chat(chat, topic=topic).send_text(CUT_SHORT), "telegram farewell")
            for chat, topic in dict.fromkeys(cancelled.values())
        ]
        _, late = await asyncio.wait(farewells, timeout=FAREWELL_TIMEOUT_S)
        for farewell in late:
            farewell.cancel()

    def abort(self) -> None:
        """End the grace of `drain` now."""
        self._no_grace.set()

    # --- called by aiogram ----------------------------------------------------------------------

    async def _filter(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        update: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        """Pass on new updates of allowed chats. Reports every error: one odd update must not stop the bot."""
        assert isinstance(update, Update)
        self.last_update_id = update.update_id
        try:
            if self.dedup.is_new(update) and (update.message or update.callback_query):
                self._note_move(update.message)
                chat = data.get("event_chat")
                if chat is not None and self._is_allowed(chat.id):
                    return await handler(update, data)
        except Exception as error:
            self.on_crash("telegram update", error)
        return None

    async def _on_message(self, message: Message) -> None:
        if incoming := self.parser.parse_message(message):
            self._start_answer((message.chat.id, topic_of(message)), incoming)

    async def _on_press(self, press: CallbackQuery) -> None:
        incoming = self.parser.parse_press(press)
        acknowledgement = self._acknowledge(press, first=incoming is not None)
        spawn(acknowledgement, "telegram acknowledgement", on_crash=self.on_crash)
        if incoming is not None and press.message is not None:
            self._start_answer((press.message.chat.id, topic_of(press.message)), incoming)

    # --------------------------------------------------------------------------------------------

    def _note_move(self, message: Message | None) -> None:
        """Follow an allowed group that has become a supergroup; both chats get a message about it."""
        if message is None:
            return
        old, new = message.migrate_from_chat_id, message.chat.id
        if message.migrate_to_chat_id is not None:
            old, new = message.chat.id, message.migrate_to_chat_id
        if old is not None and self.sender.moved.configured_id(old) in self.allowed:
            self.on_moved(old, new)

    def _is_allowed(self, chat: int) -> bool:
        """Log an unknown chat, each one once an hour: the owner finds the id for bot.allowed_chats there."""
        if self.sender.moved.configured_id(chat) in self.allowed:
            return True
        now = self.clock()
        self._unknown_chats = {
            known: at for known, at in self._unknown_chats.items() if now - at < UNKNOWN_CHAT_REPEAT_S
        }
        if chat not in self._unknown_chats and len(self._unknown_chats) < MAX_UNKNOWN_CHATS:
            self._unknown_chats[chat] = now
            structlog.get_logger().warning(
                "bot: a chat that is not allowed wrote; add it to bot.allowed_chats to let it in", chat=chat
            )
        return False

    async def _acknowledge(self, press: CallbackQuery, *, first: bool) -> None:
        """End the button's waiting animation; after the first press remove the buttons."""
        await self.sender.call(AnswerCallbackQuery(callback_query_id=press.id), quiet=True)
        if first and press.message is not None:
            chat, message_id = press.message.chat.id, press.message.message_id
            await self.sender.call(EditMessageReplyMarkup(chat_id=chat, message_id=message_id), quiet=True)

    def _start_answer(self, place: Place, incoming: IncomingMessage) -> None:
        before, answered = self._last_of_place.get(place), asyncio.Event()
        self._last_of_place[place] = answered
        answer = self._answer(place, incoming, before, answered)
        task = spawn(answer, "telegram message", on_crash=self.on_crash)
        self._answers[task] = place
        task.add_done_callback(lambda task: self._answers.pop(task, None))

    async def _answer(
        self, place: Place, incoming: IncomingMessage, before: asyncio.Event | None, answered: asyncio.Event
    ) -> None:
        chat, topic = place
        try:
            if before is not None:
                await _wait(before, FIRST_ANSWER_TIMEOUT_S)
            await self.on_message(incoming, self.sender.chat(chat, answered.set, topic=topic))
        except Exception as error:
            self.on_crash("telegram message", error)
            await self.sender.chat(chat, topic=topic).send_text(BROKEN)
        finally:
            answered.set()
            if self._last_of_place.get(place) is answered:
                del self._last_of_place[place]


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
