"""Compares the ledger's estimate of a month with what the providers have billed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from attrs import field, frozen

from gpugate.billing import cost_math
from gpugate.billing.cost_math import ZERO, TimeSpan
from gpugate.billing.reports import CostQueries
from gpugate.errors import ProviderError
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.provider_api import Charge, Provider

BILL_LIMIT_S = 20.0
"""How long a provider may take to return its bill; the caller waits for all of them."""


@frozen(kw_only=True)
class ProviderComparison:
    """The estimate and the bill of one provider and month.

    Attributes:
        estimate: of the sessions in the ledger.
        bill: for the pods in the ledger, disks of stopped ones included; None: not available.
        parts: the bill split by what it is for, as the provider names it.
        other_pods: billed on the same account for pods that are not in the ledger.
        note: why there is no bill, or what is unusual about it, in one line.
    """

    provider: str
    estimate: Decimal
    bill: Decimal | None = None
    parts: Mapping[str, Decimal] = field(factory=dict)
    other_pods: Decimal = ZERO
    note: str = ""


@frozen(kw_only=True)
class ReconciliationReport:
    """A month ("2026-11") at every provider that is configured or has sessions in it."""

    month: str
    currency: str
    providers: Sequence[ProviderComparison]


class BillReconciler:
    """Fetches the bills of all providers at once; one that fails gets a note, the others are compared.

    Args:
        providers: those of all pods; several of one name are one provider, with one account or several.
        wall: the wall clock.
    """

    def __init__(
        self,
        spent: CostQueries,
        providers: Sequence[ConfiguredProvider],
        currency: str,
        wall: Callable[[], datetime],
    ) -> None:
        self._costs = spent
        self._providers: dict[str, list[Provider]] = defaultdict(list)
        for named in providers:
            self._providers[named.name].append(named.provider)
        self._currency = currency
        self._wall = wall

    async def month(self, month: str | None = None) -> ReconciliationReport:
        """Compare a month ("2026-11"), or the current one so far.

        Raises:
            ValueError: not a month.
            LedgerError: the ledger cannot be read.
        """
        now = self._wall()
        summary = await self._costs.summary(month)
        span = cost_math.month_span(summary.month, self._costs.zone)
        span = TimeSpan(span.since, min(span.until, now))
        estimates = {line.name: line.cost for line in summary.by_provider}
        pods = await self._costs.pods()  # of all times: a disk may be billed a month after its last session
        names = [*self._providers, *sorted(set(estimates) - set(self._providers))]
        compared = await asyncio.gather(
            *(self._compare(name, estimates.get(name, ZERO), pods.get(name, ()), span) for name in names)
        )
        return ReconciliationReport(month=summary.month, currency=self._currency, providers=compared)

    async def _compare(
        self, name: str, estimate: Decimal, pods: Collection[str], span: TimeSpan
    ) -> ProviderComparison:
        providers = self._providers.get(name)
        if not providers:
            return ProviderComparison(provider=name, estimate=estimate, note="not configured any more")
        if not providers[0].capabilities.billing_api:
            return ProviderComparison(
                provider=name, estimate=estimate, note="this provider has no billing API"
            )
        if not span.seconds:
            return ProviderComparison(provider=name, estimate=estimate, note="this month has not begun")
        try:
            bills = await asyncio.gather(*(_bill(provider, span) for provider in providers))
        except ProviderError as error:
            return ProviderComparison(provider=name, estimate=estimate, note=" ".join(str(error).split()))
        return self._compare_charges(name, estimate, pods, _each_once(bills))

    def _compare_charges(
        self, name: str, estimate: Decimal, pods: Collection[str], charges: Sequence[Charge]
    ) -> ProviderComparison:
        foreign = sorted({charge.currency for charge in charges} - {self._currency})
        if foreign:
            note = f"billed in {', '.join(foreign)}: cost.currency is {self._currency}"
            return ProviderComparison(provider=name, estimate=estimate, note=note)
        parts: dict[str, Decimal] = defaultdict(Decimal)
        others = ZERO
        for charge in charges:
            if charge.pod_id in pods:
                parts[charge.what or "other"] += charge.amount
            else:
                others += charge.amount
        note = "also billed for pods that are not in the ledger: check them there" if others else ""
        return ProviderComparison(
            provider=name,
            estimate=estimate,
            bill=sum(parts.values(), ZERO),
            parts=dict(sorted(parts.items())),
            other_pods=others,
            note=note,
        )


def _each_once(bills: Sequence[Sequence[Charge]]) -> list[Charge]:
    """Return the charges of several pods' bills, which are one bill if they are of the same account."""
    charges: list[Charge] = []
    for bill in bills:
        billed = {charge.pod_id for charge in charges} - {None}
        charges += [charge for charge in bill if charge.pod_id not in billed and charge not in charges]
    return charges


async def _bill(provider: Provider, span: TimeSpan) -> Sequence[Charge]:
    """Fetch the charges within `BILL_LIMIT_S`; any failure of a plugin is raised as ProviderError."""
    try:
        async with asyncio.timeout(BILL_LIMIT_S):
            return await provider.bill(span.since, span.until)
    except ProviderError:
        raise
    except TimeoutError as error:
        raise ProviderError(f"no bill within {BILL_LIMIT_S:g} s") from error
    except Exception as error:  # its message may hold a secret
        raise ProviderError(f"the plugin failed ({type(error).__name__})") from error
