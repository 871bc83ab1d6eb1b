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
from gpugate.bot.confirmations import Action, Confirmations
from gpugate.bot.event_waiter import EventWaiter
from gpugate.bot.fantasy_job import FantasyJob
from gpugate.bot.intents.keywords import command
from gpugate.bot.intents.model import Intent, IntentParser, ParsedBy, ParsedIntent, Period
from gpugate.bot.messenger import Button, Chat, IncomingMessage
from gpugate.core.vocabulary import Status
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
    watch: EventWaiter
    costs: CostBook
    fantasy_job: FantasyJob
    intent_parser: IntentParser
    currency: str = "USD"
    ask_above_rate: Decimal = Decimal(0)
    informed: Container[str] = ()
    version: str = ""
    on_crash: CrashListener | None = None
    _confirmations: Confirmations = field(factory=Confirmations, init=False)
    _told_of_trouble: set[str] = field(factory=set, init=False)

    async def handle_message(self, incoming: IncomingMessage, chat: Chat) -> None:
        """Answer; may take as long as the pod does. Raises nothing but cancellation."""
        try:
            await self._handle(incoming, chat)
        except GateError as error:
            await self._send_text(chat, messages.refused(error))
        except LedgerError:
            await self._send_text(chat, messages.NO_LEDGER)
        except Exception as error:
            report_crash("the assistant", error, self.on_crash)
            await self._send_text(chat, messages.OUR_FAULT)

    async def _handle(self, incoming: IncomingMessage, chat: Chat) -> None:
        if incoming.pressed:
            await self._press(incoming, chat)
        elif incoming.photo is not None and not incoming.text.strip():
            await self._fantasy(incoming, chat, "")
        else:
            await self._do(await self._parse_intent(incoming, chat), incoming, chat)

    async def _send_text(self, chat: Chat, text: str) -> None:
        """The last word on something that failed; a chat that takes none is past help."""
        try:
            await chat.send_text(text)
        except Exception as error:
            report_crash("the assistant's answer", error, self.on_crash)

    # --- what is wanted -----------------------------------------------------------------------

    async def _parse_intent(self, incoming: IncomingMessage, chat: Chat) -> ParsedIntent:
        ordered = command(incoming.text)
        if ordered is not None:
            return ordered
        if not incoming.text.strip():  # a sticker, a voice message: nothing that a model could read
            return ParsedIntent(intent=Intent.UNRECOGNISED)
        await chat.show_typing()
        return await self.intent_parser.parse(incoming.text)

    async def _do(self, wish: ParsedIntent, incoming: IncomingMessage, chat: Chat) -> None:
        noted = _PrefixedChat(chat, self._note(wish, incoming.chat))
        match wish.intent:
            case Intent.POD_STATUS:
                await noted.send_text(await self._status_text())
            case Intent.POD_START:
                await self._start(incoming, noted)
            case Intent.POD_STOP:
                await self._stop(incoming, noted)
            case Intent.COST_SUMMARY:
                await noted.send_text(await self._cost_text(wish.period))
            case Intent.HEALTH_CHECK:
                text = messages.health(self.version, self.lifecycle.snapshot(), self.intent_parser.trouble)
                await chat.send_text(text)
            case Intent.FANTASY_GENERATE:
                await self._fantasy(incoming, noted, wish.prompt or incoming.text)
            case Intent.UNRECOGNISED if wish.by is ParsedBy.COMMAND:
                await chat.send_text(messages.HELP)
            case Intent.UNRECOGNISED if incoming.photo is not None:
                await self._ask_fantasy(incoming, noted)
            case Intent.UNRECOGNISED:
                await noted.send_text(messages.NOT_UNDERSTOOD)

    def _note(self, wish: ParsedIntent, chat: str) -> str:
        """Why the words alone were gone by: told once an outage and chat, and with all that failed."""
        if wish.by is ParsedBy.MODEL:
            self._told_of_trouble.clear()
        if wish.by is not ParsedBy.KEYWORDS or not self.intent_parser.trouble:
            return ""
        if wish.intent is not Intent.UNRECOGNISED and chat in self._told_of_trouble:
            return ""
        self._told_of_trouble.add(chat)
        return self.intent_parser.trouble

    async def _press(self, incoming: IncomingMessage, chat: Chat) -> None:
        answer = self._confirmations.resolve(incoming.chat, incoming.pressed)
        if answer is None:
            await chat.send_text(messages.TOO_LATE)
            return
        yes, action = answer
        if yes:
            await action(incoming, chat)
        else:
            await chat.send_text(messages.LEFT_AS_IT_IS)

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

    async def _start(self, incoming: IncomingMessage, chat: Chat) -> None:
        await self._known()
        if self.lifecycle.word not in (Status.READY, *STARTS) and self._is_expensive():
            await self._confirm_expensive(incoming, chat, self._start_now)
        else:
            await self._start_now(incoming, chat)

    def _is_expensive(self) -> bool:
        if not self.ask_above_rate:
            return False
        rate = self.lifecycle.rate_of_start()
        return rate is None or rate > self.ask_above_rate

    async def _confirm_expensive(self, incoming: IncomingMessage, chat: Chat, action: Action) -> None:
        buttons = self._confirmations.create(incoming.chat, "Yes, start it", "No", action)
        await chat.send_text(
            messages.confirm_expensive_start(self.lifecycle.rate_of_start(), self.currency), buttons
        )

    async def _start_now(self, incoming: IncomingMessage, chat: Chat) -> None:
        """Start, acknowledge, and tell in a second message what came of it."""
        now = self.lifecycle.snapshot()
        if now is not None and now.status is Status.READY:
            await chat.send_text(messages.already_running(now, self.currency))
            return
        began = asyncio.get_running_loop().time()
        outcome = self.watch.first_match(start_outcome)
        try:
            self.lifecycle.start(incoming.user)
            if now is not None and now.status in STARTS:
                await chat.send_text(messages.already_on_its_way(now))
            else:
                await chat.send_text(messages.starting(self.lifecycle.snapshot()))
            end = await outcome
        finally:
            outcome.cancel()
        now = self.lifecycle.snapshot()
        if end.status is Status.READY:
            await chat.send_text(
                messages.ready(asyncio.get_running_loop().time() - began, now, self.currency)
            )
        else:
            await chat.send_text(
                messages.start_failed(end.cause, now.last_error if now is not None else None)
            )

    async def _stop(self, incoming: IncomingMessage, chat: Chat) -> None:
        try:
            await self._stop_now(incoming, chat, force=False)
        except PodBusy:
            yes = partial(self._stop_now, force=True)
            buttons = self._confirmations.create(incoming.chat, "Yes, stop it", "No", yes)
            await chat.send_text(messages.busy(self.lifecycle.snapshot()), buttons)

    async def _stop_now(self, incoming: IncomingMessage, chat: Chat, *, force: bool) -> None:
        """Stop, acknowledge, tell in a second message that it is proved. Raises PodBusy, unless forced."""
        was = self.lifecycle.word
        if was is Status.STOPPED:
            await chat.send_text(messages.ALREADY_STOPPED)
            return
        outcome = self.watch.first_match(StopFollowUp().on_event)
        try:
            self.lifecycle.stop(force=force)
            await chat.send_text(
                messages.ALREADY_STOPPING if was is Status.STOPPING else messages.STOPPING_NOW
            )
            if incoming.chat not in self.informed:
                await asyncio.wait({outcome}, timeout=STOP_PATIENCE_S)
                await chat.send_text(self._stop_text(outcome))
        finally:
            outcome.cancel()

    def _stop_text(self, outcome: asyncio.Future[StopResult]) -> str:
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

    async def _ask_fantasy(self, incoming: IncomingMessage, chat: Chat) -> None:
        async def yes(_: IncomingMessage, chat: Chat) -> None:
            await self._fantasy(incoming, chat, incoming.text)

        buttons = self._confirmations.create(incoming.chat, "Yes", "No", yes)
        await chat.send_text(messages.IS_IT_A_FANTASY, buttons)

    async def _fantasy(self, incoming: IncomingMessage, chat: Chat, prompt: str) -> None:
        async def dream(_: IncomingMessage, chat: Chat) -> None:
            await self.fantasy_job.run(incoming, chat, prompt)

        if incoming.photo is None:
            await chat.send_text(messages.NO_PHOTO)
        elif self.lifecycle.word in (None, Status.STOPPED, Status.STOPPING) and self._is_expensive():
            await self._confirm_expensive(incoming, chat, dream)
        else:
            await dream(incoming, chat)


@define
class _PrefixedChat:
    """A chat whose first message carries a note."""

    chat: Chat
    note: str

    async def send_text(self, text: str, buttons: Sequence[Button] = ()) -> None:
        note, self.note = self.note, ""
        await self.chat.send_text(messages.with_note(text, note) if note else text, buttons)

    async def send_image(self, png: bytes, caption: str) -> None:
        await self.chat.send_image(png, caption)

    async def show_typing(self) -> None:
        await self.chat.show_typing()


# --- what came of it ------------------------------------------------------------------------------


def start_outcome(news: News) -> Transition | None:
    """The step that ended a start: READY, or away from one that was on its way."""
    if not isinstance(news, Transition):
        return None
    over = news.was_status in STARTS and news.status in ENDS
    return news if news.status is Status.READY or over or news.now == "ShutDown" else None


@frozen
class StopResult:
    """What came of a stop: whether it was `proved`, what the session was, and whether the pod `rests` now."""

    proved: bool
    rests: bool
    lasted_s: float | None
    cost: Decimal | None


@define
class StopFollowUp:
    """Gathers what is told of a stop until it is over."""

    ended: SessionEnded | None = None

    def on_event(self, news: News) -> StopResult | None:
        """The outcome, once the pod is not STOPPING any more."""
        if isinstance(news, SessionEnded):
            self.ended = news
        elif isinstance(news, Transition) and news.was_status is Status.STOPPING is not news.status:
            return self._outcome(news)
        return None

    def _outcome(self, last: Transition) -> StopResult:
        ended, rests = self.ended, last.status is Status.STOPPED
        if ended is None:
            return StopResult(rests, rests, None, None)
        return StopResult(True, rests, (ended.at - ended.began_at).total_seconds(), ended.cost)
