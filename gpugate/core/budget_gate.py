"""Decides for whom the budget allows a new start. A running pod is never stopped because of money."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import define, field, frozen

from gpugate.core.request_queue import Ticket


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
