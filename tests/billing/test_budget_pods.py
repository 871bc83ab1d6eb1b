"""One budget over three pods: what all of them spend counts, and none of them starts behind it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC
from decimal import Decimal

import pytest
from gpugate_testing.fakes import FakeCloud, MemoryLedger

from gpugate.billing.budget import BudgetLimits, BudgetMonitor
from gpugate.billing.reports import CostQueries
from gpugate.core.request_queue import BudgetVerdict
from gpugate.core.states import Status
from gpugate.errors import BudgetExceeded
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.status import BudgetThresholdCrossed
from tests.billing.ledger_house import House, ask, off, play

PODS = ("chat", "code", "draw")
HOURLY = Decimal("0.44")
BUDGET = BudgetLimits(monthly=HOURLY, zone=UTC)
"""An hour of one pod, so half an hour of two."""


def test_the_sum_of_all_pods_counts() -> None:
    """Told once per threshold when two pods have spent it; they stay in use, and the third does not start."""

    async def story() -> None:
        ledger = MemoryLedger()
        houses = [House([FakeCloud(boot_s=10)], ledger, pod=pod, pods=PODS) for pod in PODS]  # type: ignore[arg-type]
        for house in houses:
            house.numbers = {"idle_timeout": 3600.0}
        lifecycles: list[Lifecycle] = []
        told: list[tuple[int, int]] = []

        def tell(news: object) -> None:
            assert isinstance(news, BudgetThresholdCrossed)
            told.append((news.percent, round(asyncio.get_running_loop().time() / 60)))

        def judge(verdict: BudgetVerdict) -> None:
            for lifecycle in lifecycles:
                lifecycle.set_budget_verdict(verdict)

        costs = CostQueries(
            ledger, lambda: [each.status_now() for each in lifecycles], "USD", houses[0].wall, zone=UTC
        )
        budget = BudgetMonitor(
            BUDGET, costs, ledger, on_verdict=judge, publish=tell, warn=lambda *_: None, wall=houses[0].wall
        )
        async with AsyncExitStack() as gateways:
            lifecycles += [await gateways.enter_async_context(house.open()) for house in houses]
            for each in lifecycles:
                each._events.subscribe(budget.on_event)
            await budget.prepare()
            await budget.start()
            chat, code, draw = lifecycles
            await asyncio.gather(ask(chat), ask(code))
            whole = await costs.session()
            assert whole is not None
            assert 2 * HOURLY == whole.hourly_rate
            await asyncio.sleep(31 * 60)
            assert [(50, 15), (80, 24), (100, 30)] == told
            with pytest.raises(BudgetExceeded):
                await ask(draw)
            await asyncio.gather(ask(chat), ask(code))
            assert (Status.READY, Status.READY, Status.STOPPED) == tuple(
                each.current_status for each in lifecycles
            )
            await asyncio.gather(off(chat), off(code))
            await budget.aclose()
        assert 0 == houses[2].clouds[0].starts
        assert {"chat", "code"} == {row.pod for row in ledger.rows.values()}

    play(story)
