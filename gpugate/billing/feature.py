"""What the composition root needs of billing: the recorder, the costs and the monitor of the budget."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

import structlog

from gpugate.billing.budget import BudgetLimits, BudgetMonitor
from gpugate.billing.ledger import Ledger
from gpugate.billing.recorder import SessionRecorder
from gpugate.billing.reports import CostQueries
from gpugate.config import Settings
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.status import EventBus
from gpugate.observability.log import log_crash

DEMO = "demo"

_log = structlog.get_logger()


def cost_queries(
    settings: Settings,
    ledger: Ledger,
    recorder: SessionRecorder,
    lifecycle: Lifecycle,
    simulated: Collection[str],
    wall: Callable[[], datetime],
) -> CostQueries:
    """Make the queries; sessions of simulated providers cost nothing."""
    # Older versions wrote the demo's sessions into the real ledger.
    not_billed = {*simulated, *({DEMO} - set(settings.pod.provider))}
    return CostQueries(ledger, lifecycle.status_now, settings.cost.currency, wall, recorder.flush, not_billed)


async def budget_monitor(
    settings: Settings,
    spending: Any,
    thresholds: Any,
    lifecycle: Lifecycle,
    events: EventBus,
    wall: Callable[[], datetime],
) -> BudgetMonitor:
    """Make the monitor of `cost.monthly_budget`, which has evaluated it once, before any request can come."""
    cost = settings.cost
    budget = BudgetMonitor(
        BudgetLimits(monthly=cost.monthly_budget, user_share=cost.user_share, currency=cost.currency),
        spending,
        thresholds,
        on_verdict=lifecycle.set_budget_verdict,
        publish=events.publish,
        warn=lambda text, alarm: _log.error(text, alarm=True) if alarm else _log.info(text),
        wall=wall,
        on_crash=log_crash,
    )
    await budget.prepare()
    return budget
