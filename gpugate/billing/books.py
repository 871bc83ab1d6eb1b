"""The ledger as the lifecycle sees it."""

from __future__ import annotations

from datetime import datetime

from attrs import frozen

from gpugate.billing.model import BY_HAND
from gpugate.billing.usage import NoUsage, UsageTracker
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


class Recorder:
    """What the lifecycle reports to the ledger; this one keeps none, `SessionRecorder` does.

    Attributes:
        usage: where the requests that use the pod are noted.
    """

    def __init__(self) -> None:
        self.usage: UsageTracker = NoUsage()

    async def record_start_intent(self, provider: str, starter: StartOrigin) -> None:
        """Write down that this provider is about to be asked for a pod.

        Raises:
            LedgerError: it could not be written, so the provider must not be asked.
        """

    def on_report(self, provider: str, report: PodReport) -> None:
        """Take over the report of an inspection."""

    def on_stops_changed(self, providers: frozenset[str]) -> None:
        """Take over the providers with a pending stop; called when they change."""

    async def flush(self) -> None:
        """Write what has changed, as far as the disk can be written."""

    def start_time_bound(self, provider: str, report: PodReport) -> StartTimeBound:
        """Return what the ledger knows of the beginning of the run in this report."""
        return StartTimeBound()

    def age_s(self, provider: str, report: PodReport) -> float | None:
        """Return for how long this pod has been billed by an earlier gateway's row; None: there is none."""
        return None
