"""Values of the ledger: billed sessions, their usage by requests, and who caused a start
(docs/api.md#sessions).
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from attrs import frozen

from gpugate.provider_api import MAIN_POD

BY_HAND = "hand"
"""`Session.started_by` if neither a request nor a known user caused the start."""


def instant_text(at: datetime) -> str:
    """Return an instant as the ledger has it, in UTC: text that sorts by time."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


@frozen(kw_only=True)
class Session:
    """A billed session, from the intent to start to the confirmed stop. All times are aware, in UTC.

    Attributes:
        id: unique; sorts by `asked_at`.
        pod: the gateway's name for the pod; "main" in rows that an older gpugate has written.
        provider: its name in the configuration.
        pod_id: the provider's name for the pod, once known.
        gpu: the model of its GPU, once known.
        asked_at: when the intent to start was written, before the provider was called; for a start that
            waits at the provider when it was last seen waiting; for an adopted pod when it was found.
        started_at: billed from here: the start was accepted, or the provider reports it; None while intended.
        running_at: when the provider first reported it running.
        ready_at: when its Ollama first answered; None for a failed start.
        last_used_at: the end of the last request so far.
        stop_asked_at: when the first stop was sent.
        ended_at: when the stop was confirmed; None while open.
        hourly_rate: per hour, running; None: unknown.
        stopped_rate: per hour, for the disk of the stopped pod; None: unknown.
        rate_source: "provider", "configured" or "unknown".
        currency: of both rates.
        started_by: the user (token subject, `telegram:<chat id>`), or `BY_HAND`.
        start_reason: "request", "hand", "adopted", or "prewarm".
        request_id: of the request that caused the start, if one did.
        end_reason: such as "idle", "hand", "failed start"; empty while open.
        cost: at its end, unrounded; None while open or without a rate.
        seen_at: when an inspection last saw the pod starting or running; at most a minute old while it lives.
        clock_anchor: the reading of this machine's monotonic clock at `began_at`, as "<boot>:<seconds>",
            because a wall clock that is set back must not make a session cheaper. Empty if unknown.
    """

    id: str
    provider: str
    asked_at: datetime
    pod_id: str | None = None
    gpu: str | None = None
    started_at: datetime | None = None
    running_at: datetime | None = None
    ready_at: datetime | None = None
    last_used_at: datetime | None = None
    stop_asked_at: datetime | None = None
    ended_at: datetime | None = None
    hourly_rate: Decimal | None = None
    stopped_rate: Decimal | None = None
    rate_source: str = "unknown"
    currency: str = "USD"
    started_by: str = BY_HAND
    start_reason: str = "hand"
    request_id: str = ""
    end_reason: str = ""
    cost: Decimal | None = None
    seen_at: datetime | None = None
    clock_anchor: str = ""
    pod: str = MAIN_POD

    @property
    def began_at(self) -> datetime:
        """Since when it is billed; for a start that is only intended, since the intent."""
        return self.started_at or self.asked_at

    @property
    def last_known_at(self) -> datetime:
        """The latest time at which the pod was known to live."""
        instants = (self.seen_at, self.last_used_at, self.ready_at, self.running_at, self.started_at)
        return max((at for at in instants if at is not None), default=self.asked_at)


@frozen(kw_only=True)
class PodUsage:
    """The seconds of a session that one request, or a user's short requests of one minute, account for.

    Attributes:
        session_id: of the session.
        id: unique within the session; `request_id` need not be, for a client may send the same with all
            requests.
        request_id: of the request; of the first one, where short requests are added up.
        user: the token's subject.
        began_at, ended_at: when it was admitted, and when it ended or was last written.
        seconds: its share; requests that run at the same time share each second equally, so all usage of a
            session sums to at most the time for which it was READY.
        requests: how many are added up here.
    """

    session_id: str
    id: str
    request_id: str
    user: str
    began_at: datetime
    ended_at: datetime
    seconds: Decimal
    requests: int = 1


@frozen(kw_only=True)
class StartOrigin:
    """Who or what causes a start.

    Attributes:
        user: the token's subject, `telegram:<chat id>`, or `BY_HAND`.
        reason: "request", "hand" or "prewarm".
        request_id: of the request, if it is one.
    """

    user: str = BY_HAND
    reason: str = "hand"
    request_id: str = ""


@frozen(kw_only=True)
class StartTimeBound:
    """Limits for the start time that a provider reports for a running pod, from what the ledger knows.

    Attributes:
        earliest: an earlier start time is not believed; None: any is.
        fallback: the start time that is used instead of one that is not believed; None: `earliest`.
        source: describes the row that `earliest` comes from, for messages.
    """

    earliest: datetime | None = None
    fallback: datetime | None = None
    source: str = ""
