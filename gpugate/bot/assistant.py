"""The assistant: what a person asks for in a chat, done and answered; knows no messenger and no HTTP.

Verbs are those of the API (start, stop, status, costs, fantasies), on the same queue and under the same
leases. What takes long is acknowledged at once and ends in a second message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from decimal import Decimal
from functools import partial
from typing import Protocol

from attrs import define, field, frozen

from gpugate.bot import messages
from gpugate.bot.confirmations import Action, Questions
from gpugate.bot.event_waiter import Watch
from gpugate.bot.fantasy_job import Dreaming
from gpugate.bot.intents.keywords import command
from gpugate.bot.intents.model import Intent, Intents, Period, Source, Understood
from gpugate.bot.messenger import Button, Chat, Heard
from gpugate.core.states import StateName, Status
from gpugate.errors import GateError, LedgerError, PodBusy, ProviderUnavailable
from gpugate.lifecycle.event_bus import News, SessionEnded, Transition
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.status import PodStatus
from gpugate.tasks import CrashListener, report_crash

STOP_PATIENCE_S = 180.0
"""A stop that is not proved after this is told of; the lifecycle tries on for ever."""

PATIENCE_S = 5.0
"""How long the first look at the providers is waited for."""

STARTS = frozenset({Status.STARTING, Status.WARMING})
ENDS = frozenset({Status.STOPPING, Status.STOPPED})


class CostBook(Protocol):
    """What the assistant asks of `billing.reports`."""

    async def session(self) -> messages.SessionCost | None:
        """The running session."""

    async def summary(self, month: str | None = None) -> messages.Summary:
        """The month."""

    async def today(self) -> Decimal:
        """Spent since midnight UTC."""


@define(kw_only=True)
class Assistant:
    """Hears one message and answers it.

    Attributes:
        watch: a listener of the same lifecycle.
        ask_above_rate: per hour; a start above it, or at an unknown rate, is asked about first; 0 never.
        informed: chats that get the news anyway, so that no stop is told twice.
        version: of the gateway, for /health.
    """

    lifecycle: Lifecycle
    watch: Watch
    costs: CostBook
    dreaming: Dreaming
    intents: Intents
    currency: str = "USD"
    ask_above_rate: Decimal = Decimal(0)
    informed: Container[str] = ()
    version: str = ""
    on_crash: CrashListener | None = None
    _questions: Questions = field(factory=Questions, init=False)
    _told_of_trouble: set[str] = field(factory=set, init=False)

    async def hear(self, heard: Heard, chat: Chat) -> None:
        """Answer; may take as long as the pod does. Raises nothing but cancellation."""
        try:
            await self._hear(heard, chat)
        except GateError as error:
            await self._say(chat, messages.refused(error))
        except LedgerError:
            await self._say(chat, messages.NO_LEDGER)
        except Exception as error:
            report_crash("the assistant", error, self.on_crash)
            await self._say(chat, messages.OUR_FAULT)

    async def _hear(self, heard: Heard, chat: Chat) -> None:
        if heard.pressed:
            await self._press(heard, chat)
        elif heard.photo is not None and not heard.text.strip():
            await self._fantasy(heard, chat, "")
        else:
            await self._do(await self._understood(heard, chat), heard, chat)

    async def _say(self, chat: Chat, text: str) -> None:
        """The last word on something that failed; a chat that takes none is past help."""
        try:
            await chat.say(text)
        except Exception as error:
            report_crash("the assistant's answer", error, self.on_crash)

    # --- what is wanted -----------------------------------------------------------------------

    async def _understood(self, heard: Heard, chat: Chat) -> Understood:
        ordered = command(heard.text)
        if ordered is not None:
            return ordered
        if not heard.text.strip():  # a sticker, a voice message: nothing that a model could read
            return Understood(intent=Intent.UNRECOGNISED)
        await chat.busy()
        return await self.intents.understand(heard.text)

    async def _do(self, wish: Understood, heard: Heard, chat: Chat) -> None:
        noted = _Noted(chat, self._note(wish, heard.chat))
        match wish.intent:
            case Intent.POD_STATUS:
                await noted.say(await self._status_text())
            case Intent.POD_START:
                await self._start(heard, noted)
            case Intent.POD_STOP:
                await self._stop(heard, noted)
            case Intent.COST_SUMMARY:
                await noted.say(await self._cost_text(wish.period))
            case Intent.HEALTH_CHECK:
                text = messages.health(self.version, self.lifecycle.snapshot(), self.intents.trouble)
                await chat.say(text)
            case Intent.FANTASY_GENERATE:
                await self._fantasy(heard, noted, wish.prompt or heard.text)
            case Intent.UNRECOGNISED if wish.by is Source.COMMAND:
                await chat.say(messages.HELP)
            case Intent.UNRECOGNISED if heard.photo is not None:
                await self._ask_fantasy(heard, noted)
            case Intent.UNRECOGNISED:
                await noted.say(messages.NOT_UNDERSTOOD)

    def _note(self, wish: Understood, chat: str) -> str:
        """Why the words alone were gone by: told once an outage and chat, and with all that failed."""
        if wish.by is Source.MODEL:
            self._told_of_trouble.clear()
        if wish.by is not Source.KEYWORDS or not self.intents.trouble:
            return ""
        if wish.intent is not Intent.UNRECOGNISED and chat in self._told_of_trouble:
            return ""
        self._told_of_trouble.add(chat)
        return self.intents.trouble

    async def _press(self, heard: Heard, chat: Chat) -> None:
        answer = self._questions.pressed(heard.chat, heard.pressed)
        if answer is None:
            await chat.say(messages.TOO_LATE)
            return
        yes, action = answer
        if yes:
            await action(heard, chat)
        else:
            await chat.say(messages.LEFT_AS_IT_IS)

    # --- the pod ------------------------------------------------------------------------------

    async def _known(self) -> PodStatus | None:
        """How the pod is; None while the providers do not say."""
        try:
            return await self.lifecycle.status(PATIENCE_S)
        except ProviderUnavailable:
            return None

    async def _status_text(self) -> str:
        now = await self._known()
        return messages.NOT_KNOWN if now is None else messages.status(now, self.currency)

    async def _start(self, heard: Heard, chat: Chat) -> None:
        await self._known()
        if self.lifecycle.word not in (Status.READY, *STARTS) and self._is_dear():
            await self._ask_dear(heard, chat, self._start_now)
        else:
            await self._start_now(heard, chat)

    def _is_dear(self) -> bool:
        if not self.ask_above_rate:
            return False
        rate = self.lifecycle.rate_of_start()
        return rate is None or rate > self.ask_above_rate

    async def _ask_dear(self, heard: Heard, chat: Chat, action: Action) -> None:
        buttons = self._questions.ask(heard.chat, "Yes, start it", "No", action)
        await chat.say(messages.dear_start(self.lifecycle.rate_of_start(), self.currency), buttons)

    async def _start_now(self, heard: Heard, chat: Chat) -> None:
        """Start, acknowledge, and tell in a second message what came of it."""
        now = self.lifecycle.snapshot()
        if now is not None and now.status is Status.READY:
            await chat.say(messages.already_running(now, self.currency))
            return
        began = asyncio.get_running_loop().time()
        outcome = self.watch.first(start_outcome)
        try:
            self.lifecycle.start(heard.user)
            if now is not None and now.status in STARTS:
                await chat.say(messages.already_on_its_way(now))
            else:
                await chat.say(messages.starting(self.lifecycle.snapshot()))
            end = await outcome
        finally:
            outcome.cancel()
        now = self.lifecycle.snapshot()
        if end.status is Status.READY:
            await chat.say(messages.ready(asyncio.get_running_loop().time() - began, now, self.currency))
        else:
            await chat.say(messages.start_failed(end.cause, now.last_error if now is not None else None))

    async def _stop(self, heard: Heard, chat: Chat) -> None:
        try:
            await self._stop_now(heard, chat, force=False)
        except PodBusy:
            yes = partial(self._stop_now, force=True)
            buttons = self._questions.ask(heard.chat, "Yes, stop it", "No", yes)
            await chat.say(messages.busy(self.lifecycle.snapshot()), buttons)

    async def _stop_now(self, heard: Heard, chat: Chat, *, force: bool) -> None:
        """Stop, acknowledge, tell in a second message that it is proved. Raises PodBusy, unless forced."""
        was = self.lifecycle.word
        if was is Status.STOPPED:
            await chat.say(messages.ALREADY_STOPPED)
            return
        outcome = self.watch.first(StopOutcome().hear)
        try:
            self.lifecycle.stop(force=force)
            await chat.say(messages.ALREADY_STOPPING if was is Status.STOPPING else messages.STOPPING_NOW)
            if heard.chat not in self.informed:
                await asyncio.wait({outcome}, timeout=STOP_PATIENCE_S)
                await chat.say(self._stop_text(outcome))
        finally:
            outcome.cancel()

    def _stop_text(self, outcome: asyncio.Future[Stop]) -> str:
        if not outcome.done():
            now = self.lifecycle.snapshot()
            return messages.stop_not_proved(STOP_PATIENCE_S, now.last_error if now is not None else None)
        stop = outcome.result()
        text = messages.stopped(stop.lasted_s, stop.cost, self.currency) if stop.proved else ""
        return text if stop.rests else messages.sentences(text, messages.WANTED_AGAIN)

    # --- money --------------------------------------------------------------------------------

    async def _cost_text(self, period: Period) -> str:
        match period:
            case Period.SESSION:
                return messages.session_cost(await self.costs.session())
            case Period.TODAY:
                spent, running = await self.costs.today(), await self.costs.session()
                return messages.today_cost(spent, self.currency, running)
            case Period.MONTH:
                return messages.month_cost(await self.costs.summary())

    # --- fantasies ----------------------------------------------------------------------------

    async def _ask_fantasy(self, heard: Heard, chat: Chat) -> None:
        async def yes(_: Heard, chat: Chat) -> None:
            await self._fantasy(heard, chat, heard.text)

        buttons = self._questions.ask(heard.chat, "Yes", "No", yes)
        await chat.say(messages.IS_IT_A_FANTASY, buttons)

    async def _fantasy(self, heard: Heard, chat: Chat, prompt: str) -> None:
        async def dream(_: Heard, chat: Chat) -> None:
            await self.dreaming.dream(heard, chat, prompt)

        if heard.photo is None:
            await chat.say(messages.NO_PHOTO)
        elif self.lifecycle.word in (None, Status.STOPPED, Status.STOPPING) and self._is_dear():
            await self._ask_dear(heard, chat, dream)
        else:
            await dream(heard, chat)


@define
class _Noted:
    """A chat whose first message carries a note."""

    chat: Chat
    note: str

    async def say(self, text: str, buttons: Sequence[Button] = ()) -> None:
        note, self.note = self.note, ""
        await self.chat.say(messages.with_note(text, note) if note else text, buttons)

    async def picture(self, png: bytes, caption: str) -> None:
        await self.chat.picture(png, caption)

    async def busy(self) -> None:
        await self.chat.busy()


# --- what came of it ------------------------------------------------------------------------------


def start_outcome(news: News) -> Transition | None:
    """The step that ended a start: READY, or away from one that was on its way."""
    if not isinstance(news, Transition):
        return None
    over = news.was_status in STARTS and news.status in ENDS
    return news if news.status is Status.READY or over or news.now is StateName.SHUT_DOWN else None


@frozen
class Stop:
    """What came of a stop: whether it was `proved`, what the session was, and whether the pod `rests` now."""

    proved: bool
    rests: bool
    lasted_s: float | None
    cost: Decimal | None


@define
class StopOutcome:
    """Gathers what is told of a stop until it is over."""

    ended: SessionEnded | None = None

    def hear(self, news: News) -> Stop | None:
        """The outcome, once the pod is not STOPPING any more."""
        if isinstance(news, SessionEnded):
            self.ended = news
        elif isinstance(news, Transition) and news.was_status is Status.STOPPING is not news.status:
            return self._outcome(news)
        return None

    def _outcome(self, last: Transition) -> Stop:
        ended, rests = self.ended, last.status is Status.STOPPED
        if ended is None:
            return Stop(rests, rests, None, None)
        return Stop(True, rests, (ended.at - ended.began_at).total_seconds(), ended.cost)
