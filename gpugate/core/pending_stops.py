"""Stops that are not proved: sent again for ever, proved only by a look (docs/providers.md#failed-stops)."""

from __future__ import annotations

from math import inf

from attrs import define, field

from gpugate.core.policy import Policy
from gpugate.errors import NotFound, ProviderError, RateLimited
from gpugate.provider_api import Phase, PodReport

STOPPED_PHASES = frozenset({Phase.STOPPED, Phase.GONE})
ACTIVE_PHASES = frozenset({Phase.QUEUED, Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING})
MAX_IGNORED_STOPS = 3
"""A pod that runs on after so many stops ignores them: who waits may as well be served by it."""

LOST_PHASES = frozenset({Phase.FAILED, Phase.UNREACHABLE})


@define(kw_only=True)
class PendingStop:
    """One stop, from the decision to its proof.

    Attributes:
        until_seen_stopped: a pod may be running, so only a look at a stopped pod ends this. Else the provider
            had refused the start outright, and one good try at stop and look is enough; or this is a check.
        op: the command that is out, if one is.
        sent_count: how often the stop was sent.
        failed: the last word was an error: we do not know what the pod does.
    """

    provider: int
    cause: str
    until_seen_stopped: bool
    since: float
    op: int | None = None
    sent_count: int = 0
    send_at: float = -inf
    failed: bool = False
    stopping_since: float | None = None
    resend_at: float = -inf  # where no patience with a pod that says it is stopping comes in between

    @property
    def is_inspect_only(self) -> bool:
        """Only a look so far, at a provider where nothing is known to run."""
        return self.sent_count == 0 and self.send_at == inf

    @property
    def may_start_again(self) -> bool:
        """Not known to stop, so a pod that is wanted again may be started: start is idempotent.

        Not where the session's limit is over: then nobody is served before the stop is proved.
        """
        return self.is_inspect_only or (self.failed and self.cause != "max_session")

    @property
    def due(self) -> float:
        """When the stop has to be sent (again)."""
        return inf if self.op is not None else self.send_at


@define
class PendingStops:
    """The open stops, one per provider.

    Attributes:
        abandoned_providers: where a firm stop was given up unproved because the pod is wanted again.
        stopped_seen_at: when each provider was last seen with nothing running.
    """

    policy: Policy
    by_provider: dict[int, PendingStop] = field(factory=dict)
    abandoned_providers: set[int] = field(factory=set)
    stopped_seen_at: dict[int, float] = field(factory=dict)

    @property
    def next_due(self) -> float:
        """When the next stop has to be sent."""
        return min((order.due for order in self.by_provider.values()), default=inf)

    @property
    def are_inspect_only(self) -> bool:
        """Nothing is known to run: whatever is open is a look that has not come back."""
        return all(order.is_inspect_only for order in self.by_provider.values())

    @property
    def unconfirmed_providers(self) -> frozenset[int]:
        """Where a pod may be running although it was to be stopped."""
        return frozenset(p for p, order in self.by_provider.items() if order.until_seen_stopped)

    def add(self, provider: int, cause: str, firm: bool, now: float) -> None:
        """Decide that this provider's pod has to be stopped; it is sent as soon as it is due."""
        if provider not in self.by_provider or self.by_provider[provider].is_inspect_only:
            self.by_provider[provider] = PendingStop(
                provider=provider, cause=cause, until_seen_stopped=firm, since=now
            )

    def add_inspect_only(self, provider: int, cause: str, now: float) -> bool:
        """Decide to look before this provider is left alone, and to stop what that shows.

        False if there is an order already, or it was seen stopped a moment ago.
        """
        fresh_s = max(self.policy.health_interval, self.policy.providers[provider].min_poll_s)
        if provider in self.by_provider or now - self.stopped_seen_at.get(provider, -inf) < fresh_s:
            return False
        self.by_provider[provider] = PendingStop(
            provider=provider, cause=cause, until_seen_stopped=False, since=now, send_at=inf
        )
        return True

    def note_phase(self, provider: int, phase: Phase, now: float) -> None:
        """Remember when nothing ran there last."""
        if phase in STOPPED_PHASES:
            self.stopped_seen_at[provider] = now

    def abandon(self, provider: int) -> None:
        """The pod is wanted again before its stop is proved: forget the order, not the doubt."""
        order = self.by_provider.pop(provider, None)
        if order is not None and order.until_seen_stopped:
            self.abandoned_providers.add(provider)

    def take_due(self, now: float) -> list[PendingStop]:
        """The stops to be sent now."""
        return [order for order in self.by_provider.values() if order.due <= now]

    def sent(self, order: PendingStop, op: int) -> None:
        """The stop went out."""
        order.op, order.sent_count = op, order.sent_count + 1

    def answered(self, op: int, error: ProviderError | None, now: float) -> PendingStop | None:
        """The order this answer belongs to, noted; None for a stale answer.

        The pause until the stop is sent again begins now: a look comes first, however slow the answer was.
        """
        for order in self.by_provider.values():
            if order.op == op:
                order.op, order.failed = None, error is not None
                order.send_at = now + self._resend_pause_s(order, error)
                order.resend_at = order.send_at
                if isinstance(error, NotFound):  # nothing there: the look will prove it
                    order.failed = False
                return order
        return None

    def _resend_pause_s(self, order: PendingStop, error: ProviderError | None) -> float:
        pause = self.policy.stop_retry_delay_s(order.sent_count)
        if isinstance(error, RateLimited) and error.retry_after is not None:
            return max(pause, min(error.retry_after, self.policy.max_rate_limit_s))
        return pause

    def on_inspected(self, order: PendingStop, seen: PodReport | ProviderError, now: float) -> bool:
        """Judge a look; True if this order is settled and closed."""
        if isinstance(seen, ProviderError):
            order.failed = True
            later = order.is_inspect_only and isinstance(seen, RateLimited)
            settled = isinstance(seen, NotFound) or not (order.until_seen_stopped or later)
        elif order.is_inspect_only and seen.phase is Phase.UNREACHABLE:
            settled = True  # it was off when it was seen last, and nobody can be told to stop it
        else:
            if order.is_inspect_only:
                order.send_at = -inf
            order.until_seen_stopped = order.until_seen_stopped or seen.phase not in STOPPED_PHASES
            ignored = seen.phase is Phase.RUNNING and order.sent_count >= MAX_IGNORED_STOPS
            order.failed = (
                seen.phase in LOST_PHASES or (order.failed and seen.phase is not Phase.STOPPING) or ignored
            )
            settled = seen.phase in STOPPED_PHASES
            self._delay_resend(order, seen.phase, now)
        if settled:
            del self.by_provider[order.provider]
            self.abandoned_providers.discard(order.provider)
        return settled

    def _delay_resend(self, order: PendingStop, phase: Phase, now: float) -> None:
        """Do not send again what a provider says it is doing, for a while."""
        if phase is not Phase.STOPPING:
            order.stopping_since = None
            order.send_at = order.resend_at
            return
        if order.stopping_since is None:
            order.stopping_since = now
        if order.op is None:
            order.send_at = max(order.send_at, order.stopping_since + self.policy.stopping_grace_s)
