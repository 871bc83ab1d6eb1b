"""The ledger port: what was paid for, on disk before it is; knows nothing of SQL, of HTTP or of a clock.

A `Session` is one billed stretch (docs/api.md#sessions); its row is written whole at every step of its life.
A `PodUsage` is a part of a session's seconds that belongs to one request and its user.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from attrs import frozen

BY_HAND = "hand"
"""`Session.started_by` where no request and no user asked."""


@frozen(kw_only=True)
class Session:
    """One billed stretch, from the intent to start to the proved stop. All instants are aware, in UTC.

    Attributes:
        id: unique for ever; sorts by `asked_at`.
        provider: its name in the configuration.
        pod_id: the provider's name for the pod, once known.
        gpu: the model of its GPU, for people, once known.
        asked_at: when the intent to start was written, before the provider was called; for an adopted pod
            when it was found.
        started_at: billed from here (accepted, or the provider's own word); None while only intended.
        running_at: the provider said that it runs.
        ready_at: its Ollama served for the first time; None for a start that failed.
        last_used_at: the end of the last request so far.
        stop_asked_at: when the first stop was sent.
        ended_at: the stop was proved; None while open.
        hourly_rate: per hour, running; None where nobody tells.
        stopped_rate: per hour, for the disk of the stopped pod, where the provider tells.
        rate_source: "provider", "configured" or "unknown".
        currency: of both rates.
        started_by: the user (token subject, `telegram:<chat id>`), or `BY_HAND`.
        start_reason: "request", "hand", "adopted", or "prewarm".
        request_id: of the request that woke it, if one did.
        end_reason: in one word or few, such as "idle", "hand", "failed start"; empty while open.
        cost: at its end, unrounded; None while open or where there is no rate.
        seen_at: when it was last seen on its way or running; at most a minute old while it lives.
        clock_anchor: what this machine's steady clock read at `began_at`, as "<boot>:<seconds>": a calendar
            that is set back must not make a session cheaper. Empty where that is not known.
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

    @property
    def began_at(self) -> datetime:
        """Since when it is billed, as far as that is known."""
        return self.started_at or self.asked_at

    @property
    def last_known_at(self) -> datetime:
        """The last instant at which there was a sign of it."""
        instants = (self.seen_at, self.last_used_at, self.ready_at, self.running_at, self.started_at)
        return max((at for at in instants if at is not None), default=self.asked_at)


@frozen(kw_only=True)
class PodUsage:
    """A part of a session's seconds.

    Attributes:
        session_id: whose.
        id: its own within the session; a client may give all its requests one `request_id`.
        request_id: of the request; of short ones, which are gathered by user and minute, of the first.
        user: the token's subject.
        began_at, ended_at: admitted, and given back (or: so far).
        seconds: what it answers for; where several ran at once each has an equal share, so that the uses of
            a session never sum to more than the time it was READY.
        requests: how many are gathered here.
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
