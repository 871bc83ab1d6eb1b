"""What the lifecycle asks of whoever keeps the books; it must not know how they are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from attrs import frozen

from gpugate.billing.model import BY_HAND
from gpugate.billing.usage import UsageTracker
from gpugate.lifecycle.event_bus import LifecycleEvent
from gpugate.provider_api import PodReport


@frozen(kw_only=True)
class StartOrigin:
    """Who wants the pod that is about to be started.

    Attributes:
        user: the token's subject, `telegram:<chat id>`, or `BY_HAND`.
        reason: "request", "hand" or "prewarm".
        request_id: of the request, if one asked.
    """

    user: str = BY_HAND
    reason: str = "hand"
    request_id: str = ""


@frozen(kw_only=True)
class StartTimeBound:
    """What the ledger knows of the beginning of a run that a provider reports.

    Attributes:
        earliest: a start time before it is not believed; None: every one may be true.
        fallback: where a run that is not believed is billed from; None: from `earliest`.
        source: the entry of the ledger that `earliest` comes from and its instant, for people.
    """

    earliest: datetime | None = None
    fallback: datetime | None = None
    source: str = ""


class Books(Protocol):
    """Sessions and their uses."""

    @property
    def usage(self) -> UsageTracker:
        """Where the requests that use the pod are noted."""

    async def record_start_intent(self, provider: str, starter: StartOrigin) -> None:
        """Write down that this provider is about to be asked for a pod.

        Raises:
            LedgerError: it could not be written, so the provider must not be asked.
        """

    def on_report(self, provider: str, report: PodReport) -> None:
        """The provider said what its pod is doing."""

    def on_stops_changed(self, providers: frozenset[str]) -> None:
        """The providers at which a stop is under way, whenever they change."""

    async def flush(self) -> None:
        """Write what is known by now, as far as the disk lets itself be written."""

    def start_time_bound(self, provider: str, report: PodReport) -> StartTimeBound:
        """What the ledger knows of the beginning of the run in this report."""

    def age_s(self, provider: str, report: PodReport) -> float | None:
        """How long this pod has been paid for by the books of an earlier gateway; None: not in them."""

    def on_event(self, news: LifecycleEvent) -> None:
        """Listen to the lifecycle."""
