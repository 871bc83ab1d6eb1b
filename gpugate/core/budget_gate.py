"""Whether a start may be paid for, and by whom; knows no sum, no month and no pod.

What the budget service found out is remembered here (`BudgetUpdated`). A start is paid by whoever wants it:
while the month's budget is spent by nobody, else by all but those who have spent their share of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field

from gpugate.core.events import BudgetUpdated
from gpugate.core.request_queue import Ticket


@define
class BudgetGate:
    """Pays for starts; what runs already is none of its business."""

    verdict: BudgetUpdated = field(factory=BudgetUpdated)

    def allows_any(self, tickets: Iterable[Ticket]) -> bool:
        """Whether a start is paid for because of one of these."""
        if self.verdict.exhausted_reason:
            return False
        if not self.verdict.users_over_share:
            return any(True for _ in tickets)
        return any(ticket.user not in self.verdict.users_over_share for ticket in tickets)

    def refusal_reason(self, user: str) -> str:
        """What this user is told who wants a start; empty if one is paid for."""
        return self.verdict.exhausted_reason or self.verdict.users_over_share.get(user, "")
