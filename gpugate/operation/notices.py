"""Notices of what happens, sent by apprise to `notify.urls` (docs/rules.md#notices).

What is told, and when, is the bot's `Notifier`. Sending happens in a thread, so it never delays the pod.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gpugate.billing.reports import CostQueries
from gpugate.bot.notifier import Notifier
from gpugate.config.schema import Notify
from gpugate.lifecycle.status import EventBus, LifecycleEvent
from gpugate.tasks import CrashHandler, spawn

PAUSES_S = (2.0, 10.0)
"""Before the second and the third try; all tries together have `bot.notifier.SEND_TIMEOUT_S`."""


class NoticeNotSent(Exception):
    """A recipient took the notice at none of the tries; the message names its place in `notify.urls`."""


class Notices:
    """Sends notices to the recipients of `[notify]`, which may change.

    Args:
        user_of: returns, by pod and provider, who caused the session that is open there; "" if unknown.
        names_pods: each notice begins with the pod that it is about.
    """

    def __init__(
        self,
        events: EventBus,
        costs: CostQueries,
        currency: str,
        user_of: Callable[[str, str], str],
        on_crash: CrashHandler,
        names_pods: bool = False,
    ) -> None:
        self._events = events
        self._costs = costs
        self._currency = currency
        self._user_of = user_of
        self._names_pods = names_pods
        self._on_crash = on_crash
        self._notify = Notify()
        self._notifier: Notifier | None = None
        self._listens = False

    def replace(self, notify: Notify) -> None:
        """Send to these recipients from now on; what is pending for the others is still sent."""
        if notify == self._notify:
            return
        old, self._notify, self._notifier = self._notifier, notify, None
        if old is not None:
            spawn(old.aclose(), "notices:close", on_crash=self._on_crash)
        if not notify.urls:
            return
        self._notifier = Notifier(
            chats=[str(place) for place in range(len(notify.urls))],
            send=lambda place, text: _send(notify.urls[int(place)], f"notify.urls[{place}]", text),
            costs=self._costs,
            currency=self._currency,
            user_of=self._user_of,
            names_pods=self._names_pods,
            kinds=notify.events,
            on_crash=self._on_crash,
        )
        self._notifier.start()
        if not self._listens:  # not before: without recipients no event need come here
            self._listens = True
            self._events.subscribe(self._on_event)

    async def aclose(self) -> None:
        """Send what is pending, for some seconds, and end."""
        if self._notifier is not None:
            await self._notifier.aclose()

    def _on_event(self, event: LifecycleEvent) -> None:
        if self._notifier is not None:
            self._notifier.on_event(event)


async def _send(url: str, name: str, text: str) -> None:
    """Send a notice, with up to three tries.

    Raises:
        NoticeNotSent: the recipient is named by its place, since its URL may hold a secret.
    """
    for pause_s in (*PAUSES_S, None):
        if await asyncio.to_thread(_send_once, url, text):
            return
        if pause_s is not None:
            await asyncio.sleep(pause_s)
    raise NoticeNotSent(f"{name} did not take the notice")


def _send_once(url: str, text: str) -> bool:
    import apprise  # only where there are notices: it takes 0.3 s

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # its lines may show a URL
    recipient = apprise.Apprise()
    try:
        return recipient.add(url) and bool(recipient.notify(body=text, title="gpugate"))
    except Exception:  # its message may show the URL, too
        return False
