"""The assistant: does what a person asks for in a chat, and answers. Independent of the messenger.

It uses the same lifecycle, queue and leases as the API. What takes long is acknowledged at once and ends in a
second message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

from attrs import define, field, frozen

from gpugate.billing.reports import CostQueries
from gpugate.bot import messages
from gpugate.bot.confirmations import Action, Confirmations
from gpugate.bot.fantasy_job import FantasyJob
from gpugate.bot.intents.commands import parse_command
from gpugate.bot.intents.keywords import pod_named
from gpugate.bot.intents.model import Intent, IntentParser, ParsedBy, ParsedIntent, Period
from gpugate.bot.messenger import Button, Chat, IncomingMessage
from gpugate.core.states import Status
from gpugate.errors import GateError, LedgerError, PodBusy, ProviderUnavailable
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.status import LifecycleEvent, PodStatus, SessionEnded, StateChanged
from gpugate.tasks import CrashHandler, report_crash

STOP_TIMEOUT_S = 180.0
"""A stop that is not confirmed after this time is reported to the chat; the lifecycle goes on trying."""

STATUS_TIMEOUT_S = 5.0
"""How long the first inspection of the providers is waited for."""

STARTING = frozenset({Status.STARTING, Status.WARMING})
ENDING = frozenset({Status.STOPPING, Status.STOPPED})

T = TypeVar("T")


@define
class EventWaiter:
    """A listener of the lifecycle that lets a coroutine wait for an event."""

    _waiting: list[tuple[Callable[[LifecycleEvent], Any], asyncio.Future[Any]]] = field(factory=list)

    def on_event(self, event: LifecycleEvent) -> None:
        """Resolve the futures whose function returns something for this event, or raises."""
        for match, future in tuple(self._waiting):
            if future.done():
                continue
            try:
                result = match(event)
            except Exception as error:  # belongs to the waiting coroutine, not to the lifecycle
                future.set_exception(error)
                continue
            if result is not None:
                future.set_result(result)

    def first_match(self, match: Callable[[LifecycleEvent], T | None]) -> asyncio.Future[T]:
        """Return a future of the first result of `match` that is not None; cancel it to stop waiting."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        entry = (match, future)
        self._waiting.append(entry)
        future.add_done_callback(lambda _: self._waiting.remove(entry))
        return future


@define(kw_only=True)
class Assistant:
    """Answers messages.

    Attributes:
        pods: the lifecycles by name, in the file's order.
        waiter: a listener of their events.
        ask_above_rate: a start that costs more per hour, or an unknown rate, is confirmed first; 0: never.
        notified: chats that get notifications anyway, so that a stop is not reported twice.
        version: of the gateway, for /health.
    """

    pods: Mapping[str, Lifecycle]
    waiter: EventWaiter
    costs: CostQueries
    fantasy_job: FantasyJob
    intent_parser: IntentParser
    currency: str = "USD"
    ask_above_rate: Decimal = Decimal(0)
    notified: Container[str] = ()
    version: str = ""
    on_crash: CrashHandler | None = None
    _confirmations: Confirmations = field(factory=Confirmations, init=False)
    _told_of_trouble: set[str] = field(factory=set, init=False)

    async def handle_message(self, incoming: IncomingMessage, chat: Chat) -> None:
        """Answer a message; may take as long as the pod does. Raises nothing but cancellation."""
        try:
            await self._handle(incoming, chat)
        except GateError as error:
            await self._send_last(chat, messages.refused(error))
        except LedgerError:
            await self._send_last(chat, messages.NO_LEDGER)
        except Exception as error:
            report_crash("the assistant", error, self.on_crash)
            await self._send_last(chat, messages.OUR_FAULT)

    async def _handle(self, incoming: IncomingMessage, chat: Chat) -> None:
        if incoming.pressed:
            await self._resolve(incoming, chat)
        elif incoming.photo is not None and not incoming.text.strip():
            await self._fantasy(incoming, chat, "")
        else:
            pod, text = pod_named(incoming.text, self.pods if len(self.pods) > 1 else ())
            await self._act(await self._parse(text, chat), pod, incoming, chat)

    async def _send_last(self, chat: Chat, text: str) -> None:
        """Send the end of a failed answer, even to a messenger that fails itself."""
        try:
            await chat.send_text(text)
        except Exception as error:
            report_crash("the assistant's answer", error, self.on_crash)

    # --- intents --------------------------------------------------------------------------------

    async def _parse(self, text: str, chat: Chat) -> ParsedIntent:
        command = parse_command(text)
        if command is not None:
            return command
        if not text.strip():  # a sticker, a voice message: nothing that a model could read
            return ParsedIntent(intent=Intent.UNRECOGNISED)
        await chat.show_typing()
        return await self.intent_parser.parse(text)

    async def _act(
        self, parsed: ParsedIntent, named: str | None, incoming: IncomingMessage, chat: Chat
    ) -> None:
        prefixed = _PrefixedChat(chat, self._note(parsed, incoming.chat))
        match parsed.intent:
            case Intent.POD_STATUS:
                asked = self.pods if named is None else (named,)
                await prefixed.send_text("\n".join([await self._status_text(pod) for pod in asked]))
            case Intent.POD_START:
                await self._start(named or next(iter(self.pods)), incoming, prefixed)
            case Intent.POD_STOP:
                await self._stop(named or self._pod_to_stop(), incoming, prefixed)
            case Intent.COST_SUMMARY:
                await prefixed.send_text(await self._cost_text(parsed.period))
            case Intent.HEALTH_CHECK:
                trouble = self.intent_parser.trouble
                states = {pod: lifecycle.status_now() for pod, lifecycle in self.pods.items()}
                await chat.send_text(messages.health(self.version, states, trouble))
            case Intent.FANTASY_GENERATE:
                await self._fantasy(incoming, prefixed, incoming.text)
            case Intent.UNRECOGNISED if parsed.by is ParsedBy.COMMAND:
                await chat.send_text(messages.HELP)
            case Intent.UNRECOGNISED if incoming.photo is not None:
                await self._confirm_fantasy(incoming, prefixed)
            case Intent.UNRECOGNISED:
                await prefixed.send_text(messages.NOT_UNDERSTOOD)

    def _note(self, parsed: ParsedIntent, chat: str) -> str:
        """Why only keywords were used: once for each outage and chat, and with each unrecognised sentence."""
        if parsed.by is ParsedBy.MODEL:
            self._told_of_trouble.clear()
        if parsed.by is not ParsedBy.KEYWORDS or not self.intent_parser.trouble:
            return ""
        if parsed.intent is not Intent.UNRECOGNISED and chat in self._told_of_trouble:
            return ""
        self._told_of_trouble.add(chat)
        return self.intent_parser.trouble

    async def _resolve(self, incoming: IncomingMessage, chat: Chat) -> None:
        answer = self._confirmations.resolve(incoming.chat, incoming.pressed)
        if answer is None:
            await chat.send_text(messages.TOO_LATE)
            return
        yes, action = answer
        if yes:
            await action(incoming, chat)
        else:
            await chat.send_text(messages.LEFT_AS_IT_IS)

    # --- the pods -------------------------------------------------------------------------------

    def _named(self, pod: str, chat: Chat) -> Chat:
        """Return a chat whose texts say which pod they are about, if there are several."""
        return chat if len(self.pods) == 1 else _PodChat(chat, pod)

    def _pod_to_stop(self) -> str:
        """Return the pod that a stop without a name is for: the one that is on, else the first."""
        running = [pod for pod, one in self.pods.items() if one.current_status not in (None, Status.STOPPED)]
        return running[0] if len(running) == 1 else next(iter(self.pods))

    async def _status(self, pod: str) -> PodStatus | None:
        """The pod's status; None while no inspection has succeeded."""
        try:
            return await self.pods[pod].status(STATUS_TIMEOUT_S)
        except ProviderUnavailable:
            return None

    async def _status_text(self, pod: str) -> str:
        status = await self._status(pod)
        text = messages.NOT_KNOWN if status is None else messages.status(status, self.currency)
        return text if len(self.pods) == 1 else f"{pod}: {text}"

    async def _start(self, pod: str, incoming: IncomingMessage, chat: Chat) -> None:
        await self._status(pod)
        if self.pods[pod].current_status not in (Status.READY, *STARTING) and self._is_expensive(pod):
            await self._confirm_expensive(pod, incoming, chat, partial(self._start_now, pod))
        else:
            await self._start_now(pod, incoming, chat)

    def _is_expensive(self, pod: str) -> bool:
        if not self.ask_above_rate:
            return False
        rate = self.pods[pod].start_rate()
        return rate is None or rate > self.ask_above_rate

    async def _confirm_expensive(
        self, pod: str, incoming: IncomingMessage, chat: Chat, action: Action
    ) -> None:
        buttons = self._confirmations.create(incoming.chat, "Yes, start it", "No", action)
        text = messages.confirm_expensive_start(self.pods[pod].start_rate(), self.currency)
        await self._named(pod, chat).send_text(text, buttons)

    async def _start_now(self, pod: str, incoming: IncomingMessage, chat: Chat) -> None:
        """Start and acknowledge; send a second message when the pod is ready or the start has failed."""
        lifecycle, chat = self.pods[pod], self._named(pod, chat)
        status = lifecycle.status_now()
        if status is not None and status.status is Status.READY:
            await chat.send_text(messages.already_running(status, self.currency))
            return
        began = asyncio.get_running_loop().time()
        outcome = self.waiter.first_match(of_pod(pod, start_outcome))
        try:
            lifecycle.start(incoming.user, "telegram")
            if status is not None and status.status in STARTING:
                await chat.send_text(messages.already_on_its_way(status))
            else:
                await chat.send_text(messages.starting(lifecycle.status_now()))
            end = await outcome
        finally:
            outcome.cancel()
        status = lifecycle.status_now()
        if end.status is Status.READY:
            took_s = asyncio.get_running_loop().time() - began
            await chat.send_text(messages.ready(took_s, status, self.currency))
        else:
            why = status.last_error if status is not None else None
            await chat.send_text(messages.start_failed(end.cause, why))

    async def _stop(self, pod: str, incoming: IncomingMessage, chat: Chat) -> None:
        try:
            await self._stop_now(pod, incoming, chat, force=False)
        except PodBusy:
            yes = partial(self._stop_now, pod, force=True)
            buttons = self._confirmations.create(incoming.chat, "Yes, stop it", "No", yes)
            await self._named(pod, chat).send_text(messages.busy(self.pods[pod].status_now()), buttons)

    async def _stop_now(self, pod: str, incoming: IncomingMessage, chat: Chat, *, force: bool) -> None:
        """Stop and acknowledge; send a second message at the confirmed end. Raises PodBusy unless forced."""
        lifecycle, chat = self.pods[pod], self._named(pod, chat)
        before = lifecycle.current_status
        if before is Status.STOPPED:
            await chat.send_text(messages.ALREADY_STOPPED)
            return
        result = self.waiter.first_match(of_pod(pod, StopFollowUp().on_event))
        try:
            lifecycle.stop(force=force)
            is_stopping = before is Status.STOPPING
            await chat.send_text(messages.ALREADY_STOPPING if is_stopping else messages.STOPPING_NOW)
            if incoming.chat not in self.notified:
                await asyncio.wait({result}, timeout=STOP_TIMEOUT_S)
                await chat.send_text(self._stop_text(lifecycle, result))
        finally:
            result.cancel()

    def _stop_text(self, lifecycle: Lifecycle, result: asyncio.Future[StopResult]) -> str:
        if not result.done():
            status = lifecycle.status_now()
            return messages.stop_not_proved(STOP_TIMEOUT_S, status.last_error if status is not None else None)
        stop = result.result()
        text = messages.stopped(stop.lasted_s, stop.cost, self.currency) if stop.is_confirmed else ""
        return text if stop.is_stopped else messages.sentences(text, messages.WANTED_AGAIN)

    # --- money ----------------------------------------------------------------------------------

    async def _cost_text(self, period: Period) -> str:
        match period:
            case Period.SESSION:
                return messages.session_cost(await self.costs.session())
            case Period.TODAY:
                spent, running = await self.costs.today(), await self.costs.session()
                return messages.today_cost(spent, self.currency, running)
            case Period.MONTH:
                return messages.month_cost(await self.costs.summary())

    # --- fantasies ------------------------------------------------------------------------------

    async def _confirm_fantasy(self, incoming: IncomingMessage, chat: Chat) -> None:
        async def yes(_: IncomingMessage, chat: Chat) -> None:
            await self._fantasy(incoming, chat, incoming.text)

        buttons = self._confirmations.create(incoming.chat, "Yes", "No", yes)
        await chat.send_text(messages.IS_IT_A_FANTASY, buttons)

    def _expensive_pod_for_fantasies(self) -> str | None:
        """Return the pod that would have to be started for a fantasy, if it is to be asked about first."""
        for pod, lifecycle in self.pods.items():
            is_used = lifecycle in self.fantasy_job.lifecycles
            if is_used and lifecycle.current_status in (None, *ENDING) and self._is_expensive(pod):
                return pod
        return None

    async def _fantasy(self, incoming: IncomingMessage, chat: Chat, prompt: str) -> None:
        async def run(_: IncomingMessage, chat: Chat) -> None:
            await self.fantasy_job.run(incoming, chat, prompt)

        if incoming.photo is None:
            await chat.send_text(messages.NO_PHOTO)
        elif (pod := self._expensive_pod_for_fantasies()) is not None:
            await self._confirm_expensive(pod, incoming, chat, run)
        else:
            await run(incoming, chat)


@define
class _PrefixedChat:
    """A chat whose first text carries a note."""

    chat: Chat
    note: str

    async def send_text(self, text: str, buttons: Sequence[Button] = ()) -> None:
        note, self.note = self.note, ""
        await self.chat.send_text(messages.with_note(text, note) if note else text, buttons)

    async def send_image(self, png: bytes, caption: str) -> None:
        await self.chat.send_image(png, caption)

    async def show_typing(self) -> None:
        await self.chat.show_typing()


@define
class _PodChat:
    """A chat whose texts name the pod that they are about."""

    chat: Chat
    pod: str

    async def send_text(self, text: str, buttons: Sequence[Button] = ()) -> None:
        await self.chat.send_text(f"{self.pod}: {text}", buttons)

    async def send_image(self, png: bytes, caption: str) -> None:
        await self.chat.send_image(png, caption)

    async def show_typing(self) -> None:
        await self.chat.show_typing()


# --- outcomes of a start and a stop -----------------------------------------------------------------


def of_pod(pod: str, match: Callable[[LifecycleEvent], T | None]) -> Callable[[LifecycleEvent], T | None]:
    """Return `match` for the events of one pod."""
    return lambda event: match(event) if getattr(event, "pod", None) == pod else None


def start_outcome(event: LifecycleEvent) -> StateChanged | None:
    """The transition that ended a start: to READY, or away from a state of starting."""
    if not isinstance(event, StateChanged):
        return None
    is_over = event.was_status in STARTING and event.status in ENDING
    return event if event.status is Status.READY or is_over or event.now == "ShutDown" else None


@frozen
class StopResult:
    """How a stop ended; `is_stopped` is False if the pod was started again at once."""

    is_confirmed: bool
    is_stopped: bool
    lasted_s: float | None = None
    cost: Decimal | None = None


@define
class StopFollowUp:
    """Collects the events of one stop."""

    ended: SessionEnded | None = None

    def on_event(self, event: LifecycleEvent) -> StopResult | None:
        """Return the result once the pod is not STOPPING any more."""
        if isinstance(event, SessionEnded):
            self.ended = event
        if not isinstance(event, StateChanged) or event.was_status is not Status.STOPPING:
            return None
        if event.status is Status.STOPPING:
            return None
        is_stopped = event.status is Status.STOPPED
        if self.ended is None:
            return StopResult(is_stopped, is_stopped)
        lasted_s = (self.ended.at - self.ended.began_at).total_seconds()
        return StopResult(True, is_stopped, lasted_s, self.ended.cost)
