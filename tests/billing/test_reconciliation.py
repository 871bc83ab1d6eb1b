"""What was counted beside what was billed: by provider, whoever of them answers, and how."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from gpugate_testing import virtual_time
from gpugate_testing.fakes import FakeCloud, FakeProvider, MemoryLedger

from gpugate.billing.model import Session
from gpugate.billing.reconciliation import (
    BILL_LIMIT_S,
    BillReconciler,
    ProviderComparison,
    ReconciliationReport,
)
from gpugate.billing.reports import CostQueries
from gpugate.errors import NoFunds, RateLimited
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.provider_api import Capabilities, Charge

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
FIRST = datetime(2026, 11, 1, tzinfo=UTC)


class Billing(FakeProvider):
    """A provider with a bill, or what comes instead."""

    capabilities = Capabilities(billing_api=True)

    def __init__(self, *given: Charge | Exception, takes_s: float = 0.0) -> None:
        super().__init__(FakeCloud())
        self.given = given
        self.takes_s = takes_s
        self.asked: list[tuple[datetime, datetime]] = []

    async def bill(self, since: datetime, until: datetime) -> Sequence[Charge]:
        self.asked.append((since, until))
        await asyncio.sleep(self.takes_s)
        for one in self.given:
            if isinstance(one, Exception):
                raise one
        return [one for one in self.given if isinstance(one, Charge)]


def charge(amount: str, what: str = "gpu", pod_id: str | None = "a", **more: Any) -> Charge:
    return Charge(pod_id=pod_id, began_at=FIRST, ended_at=NOW, amount=Decimal(amount), what=what, **more)


def session(provider: str, began_at: datetime = NOW - timedelta(hours=2), pod_id: str = "a") -> Session:
    """An hour at 0.60."""
    return Session(
        id=f"{provider}-{began_at:%m%dT%H}",
        provider=provider,
        pod_id=pod_id,
        asked_at=began_at,
        started_at=began_at,
        ready_at=began_at,
        ended_at=began_at + timedelta(hours=1),
        hourly_rate=Decimal("0.60"),
    )


def reconciled(
    providers: dict[str, FakeProvider],
    *sessions: Session,
    month: str | None = None,
    again: Sequence[FakeProvider] = (),
) -> ReconciliationReport:
    """In virtual time; `again` are a second pod's, under the same names."""
    ledger = MemoryLedger({row.id: row for row in sessions})
    costs = CostQueries(ledger, lambda: (), "USD", lambda: NOW)
    given = (*providers.items(), *zip(providers, again, strict=False))
    named = [ConfiguredProvider(name, provider) for name, provider in given]
    return virtual_time.run(BillReconciler(costs, named, "USD", lambda: NOW).month(month))


def only(found: ReconciliationReport) -> ProviderComparison:
    (one,) = found.providers
    return one


def test_estimate_and_bill() -> None:
    """Side by side, the bill by what it is for; asked for from the month's beginning until now."""
    cloud = Billing(charge("0.61"), charge("0.02"), charge("0.11", "disk"), charge("0.01", ""))
    found = reconciled({"runpod": cloud}, session("runpod"))

    assert ("2026-11", "USD") == (found.month, found.currency)
    one = only(found)
    assert ("runpod", Decimal("0.6"), Decimal("0.75"), "") == (
        one.provider,
        one.estimate,
        one.bill,
        one.note,
    )
    assert {"disk": Decimal("0.11"), "gpu": Decimal("0.63"), "other": Decimal("0.01")} == one.parts
    assert [(FIRST, NOW)] == cloud.asked


def test_an_earlier_month() -> None:
    """All of it; a pod of another month belongs to it, its disk was billed on."""
    cloud = Billing(charge("0.20", "disk"))
    found = reconciled({"runpod": cloud}, session("runpod"), month="2026-10")

    assert [(datetime(2026, 10, 1, tzinfo=UTC), FIRST)] == cloud.asked
    assert (Decimal(0), Decimal("0.20")) == (only(found).estimate, only(found).bill)


def test_pods_of_others() -> None:
    """What the account pays for besides is no part of the bill, and is said."""
    cloud = Billing(charge("0.61"), charge("9", pod_id="b"), charge("1", pod_id=None))
    one = only(reconciled({"runpod": cloud}, session("runpod")))

    assert (Decimal("0.61"), Decimal(10)) == (one.bill, one.other_pods)
    assert "not in the ledger" in one.note


def test_two_pods_at_one_provider() -> None:
    """They are compared as one; an account that both use is counted once, two accounts are added up."""
    one = Billing(charge("0.61"), charge("0.61"), charge("9", pod_id="b"), charge("1", pod_id=None))
    rows = session("runpod"), session("runpod", NOW - timedelta(hours=5), "c")
    for second, bill, others in (
        (Billing(*one.given), "1.22", "10"),
        (Billing(charge("0.30", pod_id="c"), charge("2", pod_id=None)), "1.52", "12"),
    ):
        both = only(reconciled({"runpod": one}, *rows, again=[second]))
        assert (Decimal("1.20"), Decimal(bill), Decimal(others)) == (
            both.estimate,
            both.bill,
            both.other_pods,
        )
    failed = only(reconciled({"runpod": one}, *rows, again=[Billing(NoFunds("no money"))]))
    assert (None, "no money") == (failed.bill, failed.note)


@pytest.mark.parametrize(
    ("trouble", "note"),
    [
        (NoFunds("no\nmoney"), "no money"),
        (RateLimited("asked too often", 3), "asked too often"),
        (KeyError("sk-secret"), "the plugin failed (KeyError)"),
        (TimeoutError(), "no bill within 20 s"),
    ],
)
def test_a_bill_that_fails(trouble: Exception, note: str) -> None:
    """One line; the other provider's is shown."""
    providers: dict[str, FakeProvider] = {"runpod": Billing(trouble), "vastai": Billing(charge("0.61"))}
    broken, whole = reconciled(providers, session("runpod"), session("vastai")).providers

    assert (Decimal("0.6"), None, note) == (broken.estimate, broken.bill, broken.note)
    assert Decimal("0.61") == whole.bill


def test_a_bill_that_does_not_come() -> None:
    """Nobody waits for it longer than its time, and for several no longer than for one."""
    slow = {name: Billing(takes_s=3600) for name in ("runpod", "vastai")}
    found = reconciled(slow)

    assert [f"no bill within {BILL_LIMIT_S:g} s"] * 2 == [one.note for one in found.providers]


def test_who_has_no_bill() -> None:
    """A provider without the API, one that is not configured any more, a month to come: said."""
    plain = {"plain": FakeProvider(FakeCloud())}
    here, gone = reconciled(plain, session("former")).providers
    assert ("plain", "this provider has no billing API") == (here.provider, here.note)
    assert ("former", Decimal("0.6"), "not configured any more") == (gone.provider, gone.estimate, gone.note)

    cloud = Billing()
    one = only(reconciled({"runpod": cloud}, month="2027-01"))
    assert ("this month has not begun", []) == (one.note, cloud.asked)


def test_another_currency() -> None:
    """Is not added to dollars."""
    cloud = Billing(charge("0.61"), charge("0.5", currency="EUR"))
    one = only(reconciled({"runpod": cloud}, session("runpod")))

    assert (None, "billed in EUR: cost.currency is USD") == (one.bill, one.note)
