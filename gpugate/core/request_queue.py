"""The queue of waiting requests, the leases of admitted ones, and for whom the budget allows a new start.

At any time a ticket waits, or holds a lease, or is gone: exactly one of these is true.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf

from attrs import define, field, frozen

from gpugate.core.commands import AbortResponse, Command, LoadOptions, Reject, Requeue
from gpugate.errors import GateError, PodStopped


def full_name(model: str) -> str:
    """Return a model's name with its tag and in lower case, as Ollama compares names."""
    folded = model.strip().casefold()
    return folded if ":" in folded.rpartition("/")[2] else f"{folded}:latest"


def other_name(model: str) -> str:
    """Return a model's other name, "llava:latest" of "llava" and the reverse; without one its only name."""
    if model.endswith(":latest"):
        return model.removesuffix(":latest")
    return model if ":" in model.rpartition("/")[2] or not model else f"{model}:latest"


@define(eq=False)
class Ticket:
    """One request, from its arrival to its end."""

    number: int
    model: str | None
    load: LoadOptions
    deadline: float
    user: str = ""
    body_bytes: int = 0
    run_id: int = 0  # of the lease it holds; 0 while it waits
    response_started: bool = False  # the first byte of its response was sent
    holds_admit_slot: bool = False  # it was admitted from the queue
    requeued: bool = False  # it lost its pod once already

    def __lt__(self, other: Ticket) -> bool:
        return self.number < other.number


@define
class BodyBudget:
    """How many bytes of bodies may be kept for requests that wait (`queue.max_bytes`), over all queues.

    Attributes:
        reading: of the bodies that are being read.
        queues: those whose waiting requests count.
    """

    max_bytes: int
    reading: int = 0
    queues: list[RequestQueue] = field(factory=list, repr=False)

    def has_room(self, size: int) -> bool:
        """Whether a body of so many bytes more may be kept."""
        waiting = sum(ticket.body_bytes for queue in self.queues for ticket in queue.waiting)
        return self.reading + waiting + size <= self.max_bytes


@define
class RequestQueue:
    """First in, first out, bounded; at most `drain_concurrency` requests of the queue are admitted at a time.

    Attributes:
        idle_since: when the last lease ended, or the pod became ready without one; None while a lease is out.
        last_demand_at: when the last lease ended, or a request joined an empty queue; `inf` before the first.
        admit_slots_used: how many leases were admitted from the queue.
    """

    max_waiting: int
    max_wait_s: float
    drain_concurrency: int
    bodies: BodyBudget
    waiting: list[Ticket] = field(factory=list)
    leases: dict[int, Ticket] = field(factory=dict)
    idle_since: float | None = None
    last_demand_at: float = inf
    admit_slots_used: int = 0

    def __attrs_post_init__(self) -> None:
        self.bodies.queues.append(self)

    def refusal(self, body_bytes: int) -> str:
        """Return why a further request with such a body may not wait; empty if it may."""
        if len(self.waiting) >= self.max_waiting:
            return "too many requests are waiting for the pod"
        if not self.bodies.has_room(body_bytes):
            return "the bodies of the requests that wait for the pod are too large in sum (queue.max_bytes)"
        return ""

    @property
    def busy(self) -> bool:
        """A request waits or holds a lease."""
        return bool(self.waiting or self.leases)

    @property
    def next_deadline(self) -> float:
        """When the first waiting request has waited for `max_wait_s`; `inf` if none waits."""
        return min((ticket.deadline for ticket in self.waiting), default=inf)

    def join(
        self, number: int, model: str | None, load: LoadOptions, user: str, now: float, body_bytes: int
    ) -> None:
        """Add a new request to the queue."""
        self.waiting.append(Ticket(number, model, load, now + self.max_wait_s, user, body_bytes))

    def admit(
        self, number: int, run_id: int, model: str | None, load: LoadOptions, user: str, body_bytes: int
    ) -> None:
        """Give a new request a lease without waiting; the caller has checked that no other one waits."""
        self.leases[number] = Ticket(number, model, load, 0.0, user, body_bytes, run_id)
        self.idle_since = None

    def admit_next(self, run_id: int) -> Ticket | None:
        """Give the first request of the queue a lease; None if the queue is empty or no slot is free."""
        if not self.waiting or self.admit_slots_used >= self.drain_concurrency:
            return None
        ticket = self.waiting.pop(0)
        ticket.run_id, ticket.holds_admit_slot, ticket.response_started = run_id, True, False
        self.leases[ticket.number] = ticket
        self.admit_slots_used += 1
        self.idle_since = None
        return ticket

    def mark_response_started(self, number: int) -> None:
        """Note that the first byte of this ticket's response was sent."""
        if (ticket := self.leases.get(number)) is not None:
            ticket.response_started = True

    def place_of(self, number: int) -> int:
        """Return a ticket's place among the waiting ones, from 1; 0 if it does not wait."""
        place = bisect_left(self.waiting, number, key=lambda ticket: ticket.number)
        waits = place < len(self.waiting) and self.waiting[place].number == number
        return place + 1 if waits else 0

    def remove(self, number: int, now: float) -> bool:
        """Remove a ticket, waiting or leased; return True if it held the last lease."""
        if number in self.leases:
            self._release(number)
            if not self.leases:
                self.idle_since = self.last_demand_at = now
                return True
            return False
        self.waiting = [ticket for ticket in self.waiting if ticket.number != number]
        return False

    def expired(self, now: float) -> list[Ticket]:
        """Remove and return the requests that have waited for `max_wait_s`."""
        late = [ticket for ticket in self.waiting if ticket.deadline <= now]
        if late:
            self.waiting = [ticket for ticket in self.waiting if ticket.deadline > now]
        return late

    def reject_waiting(self, error: Callable[[Ticket], GateError]) -> list[Command]:
        """Remove all waiting requests; each gets an error of its own."""
        waiting, self.waiting = self.waiting, []
        return [Reject(ticket.number, error(ticket)) for ticket in waiting]

    def has_leases_of(self, run_id: int) -> bool:
        """Whether a request uses the pod of this run."""
        return any(ticket.run_id == run_id for ticket in self.leases.values())

    def free_admit_slots(self, run_id: int) -> None:
        """Let the requests of this run hold up no other one any more: another pod serves."""
        for ticket in self.leases.values():
            if ticket.run_id == run_id and ticket.holds_admit_slot:
                ticket.holds_admit_slot = False
                self.admit_slots_used -= 1

    def abort_leases(
        self, error: Callable[[Ticket], GateError], now: float, run_id: int | None = None
    ) -> list[Command]:
        """Release every lease, or those of a run: what has started is broken off, another gets the error."""
        return [
            AbortResponse(ticket.number) if ticket.response_started else Reject(ticket.number, error(ticket))
            for ticket in self._take_leases(now, run_id)
        ]

    # What becomes of a lease whose pod is gone (docs/api.md#retries):
    #
    # 1. Its response has started: it cannot be repeated, so it is broken off.
    # 2. The gateway goes down: rejected, no pod will be started for it.
    # 3. It lost a pod before: rejected. It may be the cause, and would crash one pod after the other.
    # 4. Otherwise it goes back to its old place in the queue, once, and may wait for `max_wait_s` anew.
    def requeue_leases(
        self, now: float, shutting_down: Callable[[], GateError] | None, run_id: int | None = None
    ) -> Iterator[Command]:
        """Release every lease, or a run's, as the pod is gone; `shutting_down` makes the error of case 2."""
        for ticket in self._take_leases(now, run_id):
            if ticket.response_started:  # 1
                yield AbortResponse(ticket.number)
            elif shutting_down is not None:  # 2
                yield Reject(ticket.number, shutting_down())
            elif ticket.requeued:  # 3
                message = "the pod was lost twice while this request waited"
                yield Reject(ticket.number, PodStopped(message))
            else:  # 4
                ticket.requeued = True
                yield self._wait_again(ticket, now)

    def requeue_lease(self, number: int | None, now: float) -> list[Command]:
        """Take this lease back because the pod is unhealthy: its request waits for the recovery."""
        if number is None or number not in self.leases:
            return []
        ticket = self._release(number)
        if not self.leases:
            self.idle_since = self.last_demand_at = now
        return [self._wait_again(ticket, now)]

    def _wait_again(self, ticket: Ticket, now: float) -> Requeue:
        ticket.run_id, ticket.holds_admit_slot = 0, False
        ticket.deadline = now + self.max_wait_s
        insort(self.waiting, ticket)
        return Requeue(ticket.number)

    def _take_leases(self, now: float, run_id: int | None) -> Iterator[Ticket]:
        """Release every lease, or those of a run, oldest first."""
        for number in sorted(self.leases):
            if run_id in (None, self.leases[number].run_id):
                self.last_demand_at = now
                yield self._release(number)
        if not self.leases:
            self.idle_since = now

    def set_model(self, number: int, model: str | None, load: LoadOptions) -> None:
        """Note the model of a waiting ticket that was admitted before without its body being parsed."""
        for ticket in self.waiting:
            if ticket.number == number and ticket.model is None:
                ticket.model, ticket.load = model, load

    def _release(self, number: int) -> Ticket:
        ticket = self.leases.pop(number)
        if ticket.holds_admit_slot:
            self.admit_slots_used -= 1
        return ticket


@frozen
class BudgetVerdict:
    """What the budget monitor found out.

    Attributes:
        exhausted_reason: why no start is allowed for anyone; empty while the month's budget allows starts.
        users_over_share: users who have spent their share of the budget, each with the reason to tell.
    """

    exhausted_reason: str = ""
    users_over_share: Mapping[str, str] = field(factory=dict, hash=False)


@define
class BudgetGate:
    """Applies the latest verdict to requests that need a start."""

    verdict: BudgetVerdict = field(factory=BudgetVerdict)

    @property
    def is_exhausted(self) -> bool:
        """No start is allowed for anyone."""
        return bool(self.verdict.exhausted_reason)

    def allows_any(self, tickets: Iterable[Ticket]) -> bool:
        """Return whether a start is allowed for at least one of these tickets."""
        if self.is_exhausted:
            return False
        return any(ticket.user not in self.verdict.users_over_share for ticket in tickets)

    def refusal_reason(self, user: str) -> str:
        """Return why this user may not start a pod; empty if the user may."""
        return self.verdict.exhausted_reason or self.verdict.users_over_share.get(user, "")
