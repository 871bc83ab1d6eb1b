"""One log line for each state change, session and problem of the pod, written as the lifecycle reports it."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from structlog.contextvars import bound_contextvars

from gpugate.core.commands import StopCause
from gpugate.core.states import StateName
from gpugate.lifecycle.status import (
    BudgetThresholdCrossed,
    LifecycleEvent,
    ModelPulling,
    ProviderProblem,
    ReplicasAsked,
    SessionEnded,
    SessionStarted,
    StateChanged,
    WakeRefused,
)
from gpugate.provider_api import MAIN_POD
from gpugate.wording import duration

_MESSAGES: Mapping[StateName, str] = {
    StateName.UNKNOWN: "inspecting the providers",
    StateName.STOPPED: "the pod is off",
    StateName.CALLING_START: "starting the pod",
    StateName.BACKING_OFF: "the start failed, waiting before the next attempt",
    StateName.VERIFYING_START: "unknown whether the start succeeded, inspecting",
    StateName.PROVISIONING: "the provider has accepted the start",
    StateName.WARMING: "the pod runs, waiting until its Ollama answers",
    StateName.PULLING: "looking for the models of pod.pull",
    StateName.PRELOADING: "loading the model",
    StateName.READY: "the pod serves",
    StateName.DRAINING: "stopping after the running responses",
    StateName.STOPPING: "stopping the pod",
    StateName.SHUT_DOWN: "shut down",
}
STOP_REASONS: Mapping[StopCause, str] = {
    StopCause.IDLE: "idle",
    StopCause.MANUAL: "stop requested",
    StopCause.FORCED: "stop requested by force",
    StopCause.MAX_SESSION: "the session is at its limit",
    StopCause.STOPPED_ELSEWHERE: "stopped at the provider",
    StopCause.EXTRA_POD: "not needed",
    StopCause.RESTART: "the stop of an earlier gateway was not confirmed",
    StopCause.START_FAILED: "the start failed",
    StopCause.QUEUED: "the pod waits in its provider's queue",
    StopCause.LOST: "the pod was lost",
    StopCause.SHUTDOWN: "gpugate shuts down",
}
"""Why a pod is stopped."""


def pod_field(pod: str) -> dict[str, str]:
    """Return what names a pod in a line about it: nothing for the one that has no name in the file."""
    return {} if pod == MAIN_POD else {"pod": pod}


def log_event(news: LifecycleEvent) -> None:
    """Write the line of this event; queue changes have none. One of several pods is named in it."""
    pod = getattr(news, "pod", MAIN_POD)  # the budget is that of all
    with bound_contextvars(**pod_field(pod)):
        _write(news)


def _write(news: LifecycleEvent) -> None:
    log = structlog.get_logger()
    match news:
        case StateChanged():
            _log_transition(news)
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
            tell = log.error if news.alarm else log.warning
            tell("provider trouble", provider=news.provider, message=news.message, reason=news.reason)
        case ModelPulling():
            _log_pull(news)
        case ReplicasAsked():
            log.info("replicas", provider=news.provider, asked=news.replicas)
        case WakeRefused():
            log.info("start refused", user=news.user, reason=news.message)
        case BudgetThresholdCrossed():
            spent, budget = f"{news.spent:.4f}", f"{news.budget:f}"
            log.warning("budget", percent=news.percent, spent=spent, budget=budget, month=news.month)


def _log_pull(news: ModelPulling) -> None:
    """Write a line when it begins, at each tenth of it, and when it ends; how that was, a failure tells."""
    progress = news.progress
    if news.goes_on and progress.percent not in (None, *range(10, 100, 10)):
        return
    message = "pulling a model" if news.goes_on else "the pull has ended"
    structlog.get_logger().info(
        message,
        model=progress.model,
        percent=progress.percent,
        bytes=progress.total_bytes or None,
        provider=news.provider,
    )


def describe_transition(step: StateChanged) -> str:
    """Return what the pod does now, and why it is stopped if it is: "idle for 15 min, stopping the pod"."""
    message = _MESSAGES[step.now]
    if step.stop_cause is StopCause.IDLE and step.idle_s is not None:
        message = f"idle for {duration(step.idle_s, coarse=True)}, {message}"
    elif step.stop_cause is not None and step.was is not StateName.DRAINING:
        message = f"{STOP_REASONS[step.stop_cause]}, {message}"
    return message


def _log_transition(step: StateChanged) -> None:
    structlog.get_logger().info(
        "pod",
        message=describe_transition(step),
        status=step.status.value if step.status is not None else None,
        provider=step.provider,
        was=step.was,
        now=step.now,
        cause=step.stop_cause or step.cause,
        run=step.run_id,
    )
