"""One log line for each transition, session and trouble; a listener of the lifecycle, never of requests."""

from __future__ import annotations

import structlog

from gpugate.lifecycle.event_bus import (
    BudgetThresholdCrossed,
    LifecycleEvent,
    ProviderProblem,
    SessionEnded,
    SessionStarted,
    StateChanged,
)
from gpugate.observability.log import TransitionLog

_transition = TransitionLog()


def log_event(news: LifecycleEvent) -> None:
    """Write the line that belongs to this news; queue changes have none."""
    log = structlog.get_logger()
    match news:
        case StateChanged():
            status = news.status.value if news.status is not None else None
            _transition(
                news.was, news.now, news.cause, news.run_id, {"status": status, "provider": news.provider}
            )
        case SessionStarted():
            log.info("session began", provider=news.provider, run=news.run_id, cause=news.cause)
        case SessionEnded():
            seconds = round((news.at - news.began_at).total_seconds(), 3)
            cost = None if news.cost is None else f"{news.cost:.4f}"
            log.info(
                "session ended",
                provider=news.provider,
                run=news.run_id,
                cause=news.cause,
                seconds=seconds,
                cost=cost,
            )
        case ProviderProblem():
            write = log.error if news.alarm else log.warning
            write("provider trouble", provider=news.provider, message=news.message, reason=news.reason)
        case BudgetThresholdCrossed():
            spent, budget = f"{news.spent:.4f}", f"{news.budget:f}"
            log.warning("budget", percent=news.percent, spent=spent, budget=budget, month=news.month)
