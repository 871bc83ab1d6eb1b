"""How many replicas of the engine a pod has: decides when to ask for more or fewer.

Theory of operation. The need is ceil((waiting + in flight) / `pod.target_in_flight`). More replicas are
asked for at once. Fewer are asked for when less was needed for `pod.idle_timeout`: as many as were needed at
most in that time, so a load that comes and goes does not make replicas come and go. For each number of
replicas the part knows when so many were needed last (`_needed_at`); everything else follows from that.

The number is never below the need, except where one of these forbids it: the range of `pod.replicas`, the
price (`pod.max_hourly_rate`), or a budget that is spent, which allows no more than there are. The first
replica is the pod itself, and always allowed.

One call of `scale()` is out at a time. One that fails is repeated with growing pauses for as long as the
number is wanted. One that was accepted and has no effect for `pod.start_timeout` is repeated, too. Nothing
waits for a call: when the pod is stopped it is forgotten here, and cancelled by its worker.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from math import inf

from attrs import define, field, frozen

from gpugate.core.commands import Command, PublishProviderProblem, ScalePod
from gpugate.core.policy import Policy, replica_range
from gpugate.core.request_queue import RequestQueue
from gpugate.core.states import Preloading, Pulling, Ready, State, Warming
from gpugate.errors import ProviderError, RateLimited
from gpugate.provider_api import Phase, PodReport

SCALABLE = (Warming, Pulling, Preloading, Ready)
"""States of a pod that runs and is to go on."""


@frozen
class _Seen:
    """What a report says of a running pod: how many replicas, and what they cost together per hour."""

    count: int = 1
    price: Decimal | None = None

    def is_dearer_than(self, other: _Seen | None) -> bool:
        """Whether one replica costs more than by the other report, or the first known price."""
        if self.price is None or other is None or other.price is None:
            return self.price is not None
        return self.price * other.count > other.price * self.count

    def affordable(self, rate: Decimal) -> int:
        """Return how many replicas cost no more than `rate`, each at this price; at least 1."""
        if self.price is None:
            return 1
        return max(1, int(rate * self.count / self.price)) if self.price > 0 else _ANY_NUMBER


_ANY_NUMBER = 9999


@define
class _Call:
    """The call of `scale()` that is out."""

    op: int
    count: int


@define
class ReplicaScale:
    """The replicas of one pod.

    Attributes:
        random_fraction: returns a number in [0, 1), for the jitter of a backoff.
        provider: where the pod runs; None while none does.
        asked: how many the provider has accepted last, or were there when the pod was seen first.
        problem: why the latest call failed, for people; None after one that did not.
    """

    policy: Policy
    queue: RequestQueue
    random_fraction: Callable[[], float]
    provider: int | None = None
    asked: int = 1
    problem: str | None = None
    _low: int = field(init=False)
    _high: int = field(init=False)
    _seen: dict[int | None, _Seen] = field(factory=dict)  # by provider, the latest
    _dearest: _Seen | None = None  # of this run: a price that falls again makes no replicas come and go
    _run_id: int = 0
    _may_grow: bool = True
    _need: int = 0
    _needed_at: list[float] = field(factory=list)  # when 1, 2, 3 ... replicas were needed last
    _call: _Call | None = None
    _failures: int = 0  # in a row
    _retry_at: float = -inf
    _differs_since: float | None = None  # the pod has another number of replicas than was asked for
    _told_unpriced: bool = False

    def __attrs_post_init__(self) -> None:
        self.set_policy(self.policy)

    def set_policy(self, policy: Policy) -> None:
        """Decide by other numbers from now on."""
        self.policy = policy
        self._low, self._high = replica_range(policy.replicas)
        self._needed_at = (self._needed_at + [-inf] * self._high)[: max(self._high, self.asked)]
        self._set_admit_slots()

    @property
    def running(self) -> int:
        """How many replicas the pod has, by its latest report; 1 without a pod."""
        return self._seen.get(self.provider, _Seen()).count

    # --- what is needed -----------------------------------------------------------------------

    def note_load(self, now: float) -> None:
        """Note that requests may have come or gone; to be called after each change."""
        load = len(self.queue.waiting) + len(self.queue.leases)
        need = -(-load // self.policy.target_in_flight)
        if need == self._need:
            return
        for index in range(min(max(need, self._need), len(self._needed_at))):
            self._needed_at[index] = now
        self._need = need

    @property
    def _limit(self) -> int:
        """The greatest number that range and price allow."""
        rate = self.policy.max_hourly_rate
        return min(self._high, self._priced.affordable(rate)) if rate else self._high

    @property
    def _priced(self) -> _Seen:
        return self._dearest or _Seen(price=self.policy.fallback_hourly_rate)

    def wanted(self, now: float) -> int:
        """Return how many replicas are wanted, by the need of the last `pod.idle_timeout`."""
        least, limit = max(self._need, self._low), self._limit
        kept = sum(at + self.policy.idle_timeout > now for at in self._needed_at[: self.asked])
        wanted = min(max(least, kept), limit)
        return wanted if self._may_grow else min(wanted, self.asked)

    @property
    def next_due(self) -> float:
        """When `due_commands` has something to ask for; `inf` while nothing but an event can change that."""
        if self.provider is None or self._call is not None:
            return inf
        least, limit = min(max(self._need, self._low), self._limit), self._limit
        if (least > self.asked and self._may_grow) or self.asked > limit:
            return self._retry_at
        settled = inf if self._differs_since is None else self._differs_since + self.policy.start_timeout
        fewer = self._needed_at[self.asked - 1] + self.policy.idle_timeout if self.asked > least else inf
        return max(min(settled, fewer), self._retry_at)

    # --- calls --------------------------------------------------------------------------------

    def due_commands(
        self, state: State, may_grow: bool, next_op: Callable[[], int], now: float
    ) -> list[Command]:
        """Return the call that is due now, if one is; to be called at the end of each step.

        Args:
            may_grow: the budget allows more replicas than there are.
        """
        self._follow(state, now)
        self.note_load(now)
        self._may_grow = may_grow
        if self.provider is None:
            return []
        wanted = self.wanted(now)
        self.problem = self.problem if wanted != self.asked else None
        commands = self._unpriced_problem(self.provider)
        if self.next_due <= now:
            self._call = _Call(next_op(), wanted)
            commands.append(ScalePod(self._call.op, self.provider, wanted))
        return commands

    def _follow(self, state: State, now: float) -> None:
        """Begin anew with another run's pod; forget the call when the pod ends."""
        if not isinstance(state, SCALABLE):
            self.provider = self._call = self.problem = None
        elif self.provider is None or state.run_id != self._run_id:
            self.provider, self._run_id, self._call = state.provider, state.run_id, None
            self.asked, self._failures, self._retry_at, self._differs_since = self.running, 0, -inf, None
            self._needed_at = [now] * self.asked + [-inf] * (self._high - self.asked)
            self._dearest = None
            self._note_seen(now)

    def _unpriced_problem(self, provider: int) -> list[Command]:
        limited = self.policy.max_hourly_rate and max(self._need, self._low) > 1
        if self._told_unpriced or not limited or self._priced.price is not None:
            return []
        self._told_unpriced = True
        message = "its price is not known, so pod.max_hourly_rate allows one replica (set cost.hourly_rate)"
        return [PublishProviderProblem(provider=provider, message=message, reason="config")]

    def on_report(self, provider: int, report: PodReport, now: float) -> None:
        """Take what any report says of the replicas; the price is that of all of them together."""
        if report.phase is not Phase.RUNNING:
            self._seen.pop(provider, None)
            return
        price = None if report.price is None else report.price.running_per_hour
        self._seen[provider] = _Seen(max(1, report.replicas), price)
        if provider == self.provider:
            self._note_seen(now)

    def _note_seen(self, now: float) -> None:
        """Take over the running pod's latest report: its price, and whether it is as was asked for."""
        seen = self._seen.get(self.provider, _Seen())
        if seen.is_dearer_than(self._dearest):
            self._dearest = seen
        if self._failures and seen.count > self.asked:  # the call has worked, and its answer was lost
            self._set_asked(seen.count)
        if seen.count == self.asked:
            self._differs_since = None
        elif self._differs_since is None:
            self._differs_since = now
        self._set_admit_slots()

    def is_awaited(self, op: int) -> bool:
        """Whether the call with this number is out."""
        return self._call is not None and self._call.op == op

    def on_answered(self, provider: int, answer: PodReport | ProviderError, now: float) -> list[Command]:
        """Take the result of the call that is out."""
        assert self._call is not None
        call, self._call = self._call, None
        if isinstance(answer, ProviderError):
            self._failures += 1
            self._retry_at = now + self._pause_s(answer)
            message = f"{call.count} replicas were asked for: {answer.in_full}"
            self.problem = f"{self.policy.providers[provider].name}: {message}"
            return [PublishProviderProblem(provider=provider, message=message, reason=answer.reason)]
        self._failures, self._retry_at, self._differs_since, self.problem = 0, -inf, None, None
        self._set_asked(call.count)
        self.on_report(provider, answer, now)
        self._note_seen(now)
        return []

    def _set_asked(self, count: int) -> None:
        self.asked = count
        self._needed_at += [-inf] * (count - len(self._needed_at))

    def _pause_s(self, error: ProviderError) -> float:
        if isinstance(error, RateLimited) and error.retry_after is not None:
            return max(0.0, min(error.retry_after, self.policy.max_rate_limit_s))
        return self.policy.backoff_s(self._failures, self.random_fraction())

    def changing_since(self, provider: int) -> float | None:
        """Since when the pod there has had another number of replicas than was asked for; None: it has it."""
        return self._differs_since if provider == self.provider else None

    def _set_admit_slots(self) -> None:
        """Each replica takes `queue.drain_concurrency` requests of the queue at a time."""
        self.queue.drain_concurrency = self.policy.drain_concurrency * self.running


def replicas_of(
    policy: Policy,
    queue: RequestQueue,
    random_fraction: Callable[[], float],
    known: ReplicaScale | None = None,
) -> ReplicaScale | None:
    """Return the part for this policy, `known` where there is one; None for a pod of one replica for ever."""
    if known is not None:
        known.set_policy(policy)
        return known
    return None if replica_range(policy.replicas)[1] == 1 else ReplicaScale(policy, queue, random_fraction)
