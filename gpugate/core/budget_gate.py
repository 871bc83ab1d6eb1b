"""Whether a start may be paid for, and by whom; knows no sum, no month and no pod.

What the budget service found out is remembered here (`BudgetJudged`). A start is paid by whoever wants it:
while the month's budget is spent by nobody, else by all but those who have spent their share of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field

from gpugate.core.events import BudgetJudged
from gpugate.core.request_queue import Ticket


@define
class Purse:
    """Pays for starts; what runs already is none of its business."""

    judged: BudgetJudged = field(factory=BudgetJudged)

    def pays_one_of(self, tickets: Iterable[Ticket]) -> bool:
        """Whether a start is paid for because of one of these."""
        if self.judged.spent:
            return False
        if not self.judged.overdrawn:
            return any(True for _ in tickets)
        return any(ticket.user not in self.judged.overdrawn for ticket in tickets)

    def told(self, user: str) -> str:
        """What this user is told who wants a start; empty if one is paid for."""
        return self.judged.spent or self.judged.overdrawn.get(user, "")
