"""Who waits, until when, whose turn it is, and who holds a lease; knows nothing of pods or providers.

Exactly one of these is true of a ticket at any time: it waits, it holds a lease, or it is forgotten.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from math import inf

from attrs import define, field


@define(eq=False)
class Ticket:
    """One request, from its arrival to its end."""

    number: int
    model: str | None
    embeds: bool
    deadline: float
    user: str = ""
    run_id: int = 0  # of the lease it holds; 0 while it waits
    response_started: bool = False  # its answer's first byte has left
    holds_admit_slot: bool = False  # it came out of the queue, so it holds a drain slot
    requeued: bool = False  # it lost its pod once already

    def __lt__(self, other: Ticket) -> bool:
        return self.number < other.number


@define
class RequestQueue:
    """First in, first out, bounded; leases belong to a run, so those of a lost pod hold up nobody.

    Attributes:
        idle_since: when the last lease ended, or the pod became ready; None while a lease is out.
        last_demand_at: when the last lease ended, or somebody joined an empty queue; `inf` before the first.
    """

    max_waiting: int
    max_wait_s: float
    drain_concurrency: int
    waiting: list[Ticket] = field(factory=list)
    leases: dict[int, Ticket] = field(factory=dict)
    idle_since: float | None = None
    last_demand_at: float = inf
    admit_slots_used: int = 0

    @property
    def full(self) -> bool:
        """Nobody else may join."""
        return len(self.waiting) >= self.max_waiting

    @property
    def busy(self) -> bool:
        """Somebody waits or is being answered."""
        return bool(self.waiting or self.leases)

    @property
    def next_deadline(self) -> float | None:
        """When the first of those who wait has waited long enough."""
        return min((ticket.deadline for ticket in self.waiting), default=None)

    def join(self, number: int, model: str | None, embeds: bool, user: str, now: float) -> None:
        """Queue a newcomer."""
        self.waiting.append(Ticket(number, model, embeds, now + self.max_wait_s, user))

    def admit(self, number: int, run: int, model: str | None, embeds: bool, user: str) -> None:
        """Give a newcomer a lease at once: nobody waits before it."""
        self.leases[number] = Ticket(number, model, embeds, 0.0, user, run)
        self.idle_since = None

    def admit_next(self, run: int) -> Ticket | None:
        """Give the first in the queue a lease, if a drain slot is free."""
        if not self.waiting or self.admit_slots_used >= self.drain_concurrency:
            return None
        ticket = self.waiting.pop(0)
        ticket.run_id, ticket.holds_admit_slot, ticket.response_started = run, True, False
        self.leases[ticket.number] = ticket
        self.admit_slots_used += 1
        self.idle_since = None
        return ticket

    def mark_response_started(self, number: int) -> None:
        """Note that this ticket's answer is on its way."""
        if (ticket := self.leases.get(number)) is not None:
            ticket.response_started = True

    def remove(self, number: int, now: float) -> bool:
        """Forget a ticket wherever it is; True if that was the last lease."""
        if number in self.leases:
            self._release(number)
            if not self.leases:
                self.idle_since = self.last_demand_at = now
                return True
            return False
        self.waiting = [ticket for ticket in self.waiting if ticket.number != number]
        return False

    def expired(self, now: float) -> list[Ticket]:
        """Take out those who have waited long enough."""
        late = [ticket for ticket in self.waiting if ticket.deadline <= now]
        if late:
            self.waiting = [ticket for ticket in self.waiting if ticket.deadline > now]
        return late

    def clear_waiting(self) -> list[Ticket]:
        """Take out all who wait."""
        cleared, self.waiting = self.waiting, []
        return cleared

    def take_all_leases(self) -> Iterator[Ticket]:
        """Take back every lease, oldest first."""
        for number in sorted(self.leases):
            yield self._release(number)

    def requeue(self, ticket: Ticket, now: float) -> None:
        """Let a ticket that lost its pod wait again, at its old place."""
        ticket.run_id, ticket.holds_admit_slot, ticket.requeued = 0, False, True
        ticket.deadline = now + self.max_wait_s
        insort(self.waiting, ticket)

    def set_model(self, number: int, model: str | None) -> None:
        """Note which model a ticket that waits asks for, where nobody had looked before."""
        for ticket in self.waiting:
            if ticket.number == number and ticket.model is None:
                ticket.model = model

    def _release(self, number: int) -> Ticket:
        ticket = self.leases.pop(number)
        if ticket.holds_admit_slot:
            self.admit_slots_used -= 1
        return ticket
