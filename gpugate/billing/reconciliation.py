"""Sets what gpugate counted beside what the providers billed; judges neither, and changes nothing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from attrs import field, frozen

from gpugate.billing import cost_math
from gpugate.billing.cost_math import TimeSpan
from gpugate.billing.reports import CostQueries
from gpugate.errors import ProviderError
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.provider_api import Charge, Provider

BILL_LIMIT_S = 20.0
"""Longest a provider may take over its bill: who asked waits for all of them."""
NOTHING = Decimal(0)


@frozen(kw_only=True)
class ProviderComparison:
    """One provider's month.

    Attributes:
        estimate: of the sessions in the ledger.
        bill: of the pods in the ledger, disks of stopped ones included; None: it cannot be had.
        parts: the bill by what it is for, in the provider's words; sums to it.
        other_pods: billed on the same account for pods that are not in the ledger.
        note: one line for people: why there is no bill, or what is odd about it.
    """

    provider: str
    estimate: Decimal
    bill: Decimal | None = None
    parts: Mapping[str, Decimal] = field(factory=dict)
    other_pods: Decimal = NOTHING
    note: str = ""


@frozen(kw_only=True)
class ReconciliationReport:
    """A month ("2026-11", UTC) at every provider that is configured or was paid in it."""

    month: str
    currency: str
    providers: Sequence[ProviderComparison]


class BillReconciler:
    """Asks the providers for their bills, all at once; one that fails spoils nothing for the others.

    Args:
        wall: the calendar.
    """

    def __init__(
        self,
        spent: CostQueries,
        providers: Sequence[ConfiguredProvider],
        currency: str,
        wall: Callable[[], datetime],
    ) -> None:
        self._costs = spent
        self._providers = {named.name: named.provider for named in providers}
        self._currency = currency
        self._wall = wall

    async def month(self, month: str | None = None) -> ReconciliationReport:
        """A month, or the present one so far. ValueError: that is no month. LedgerError."""
        now = self._wall()
        summary = await self._costs.summary(month or cost_math.month_of(now))
        span = cost_math.month_span(summary.month)
        span = TimeSpan(span.since, min(span.until, now))
        estimates = {line.name: line.cost for line in summary.by_provider}
        pods = await self._pods()
        names = [*self._providers, *sorted(set(estimates) - set(self._providers))]
        compared = await asyncio.gather(
            *(self._compare(name, estimates.get(name, NOTHING), pods[name], span) for name in names)
        )
        return ReconciliationReport(month=summary.month, currency=self._currency, providers=compared)

    async def _pods(self) -> Mapping[str, set[str]]:
        """Every pod of the ledger by provider: the disk of one that was stopped in May is billed in June."""
        pods: dict[str, set[str]] = defaultdict(set)
        for row in await self._costs.sessions(None, None):
            if row.session.pod_id is not None:
                pods[row.session.provider].add(row.session.pod_id)
        return pods

    async def _compare(
        self, name: str, estimate: Decimal, pods: Collection[str], span: TimeSpan
    ) -> ProviderComparison:
        provider = self._providers.get(name)
        if provider is None:
            return ProviderComparison(provider=name, estimate=estimate, note="not configured any more")
        if not provider.capabilities.billing_api:
            return ProviderComparison(
                provider=name, estimate=estimate, note="this provider has no billing API"
            )
        if not span.seconds:
            return ProviderComparison(provider=name, estimate=estimate, note="this month has not begun")
        try:
            charges = await _bill(provider, span)
        except ProviderError as error:
            return ProviderComparison(provider=name, estimate=estimate, note=" ".join(str(error).split()))
        return self._beside(name, estimate, pods, charges)

    def _beside(
        self, name: str, estimate: Decimal, pods: Collection[str], charges: Sequence[Charge]
    ) -> ProviderComparison:
        foreign = sorted({charge.currency for charge in charges} - {self._currency})
        if foreign:
            note = f"billed in {', '.join(foreign)}: cost.currency is {self._currency}"
            return ProviderComparison(provider=name, estimate=estimate, note=note)
        parts: dict[str, Decimal] = defaultdict(Decimal)
        others = NOTHING
        for charge in charges:
            if charge.pod_id in pods:
                parts[charge.what or "other"] += charge.amount
            else:
                others += charge.amount
        note = "billed for pods that are not in the ledger too: see to them there" if others else ""
        return ProviderComparison(
            provider=name,
            estimate=estimate,
            bill=sum(parts.values(), NOTHING),
            parts=dict(sorted(parts.items())),
            other_pods=others,
            note=note,
        )


async def _bill(provider: Provider, span: TimeSpan) -> Sequence[Charge]:
    """The bill in bounded time; whatever a plugin does wrong is one of our errors."""
    try:
        async with asyncio.timeout(BILL_LIMIT_S):
            return await provider.bill(span.since, span.until)
    except ProviderError:
        raise
    except TimeoutError as error:
        raise ProviderError(f"no bill within {BILL_LIMIT_S:g} s") from error
    except Exception as error:  # its words may hold what must not be told
        raise ProviderError(f"the plugin failed ({type(error).__name__})") from error
