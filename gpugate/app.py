"""The composition root: `build` makes a `Gateway` out of the settings. Nothing is decided here.

A new feature is one file, and one line in `_features`; its methods are those of `gpugate.gateway.Feature`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import aiohttp
import structlog
from attrs import evolve

from gpugate.api.costs import CostApi
from gpugate.api.events import SseBroadcaster
from gpugate.api.generation import GenerationApi
from gpugate.api.gpu import GpuApi
from gpugate.api.telegram_webhook import TelegramWebhook
from gpugate.billing.budget import BudgetLimits, BudgetMonitor
from gpugate.billing.ledger import open_ledger
from gpugate.billing.reconciliation import BillReconciler
from gpugate.billing.reports import CostQueries
from gpugate.clock import utc_now
from gpugate.config import Settings, provider_config
from gpugate.config.derive import named_models, policy_of
from gpugate.config.validators import split_address
from gpugate.core.request_queue import BodyBudget, BudgetVerdict
from gpugate.dashboard.feature import dashboard_routes
from gpugate.fleet import Fleet, FleetPod
from gpugate.gateway import CallbackFeature, Feature, Gateway, Infrastructure, ignore_event
from gpugate.generation.feature import generation_api
from gpugate.generation.workflows import Workflows
from gpugate.generation.workflows import load as load_workflows
from gpugate.lifecycle.status import EventBus
from gpugate.observability.event_log import log_event, pod_field
from gpugate.observability.log import AccessLog, Output, configure, log_crash
from gpugate.observability.redact import secrets_of
from gpugate.ollama.handlers import OllamaHandlers
from gpugate.operation.notices import Notices
from gpugate.operation.reload import Reloader
from gpugate.operation.schedules import ScheduleRunner
from gpugate.operation.wake_rules import wake_policy
from gpugate.pod_builder import PodBuilder, history_of, left_stops, switch_renewer
from gpugate.provider_api import Provider
from gpugate.providers import registry
from gpugate.proxy.auth import make_verifier
from gpugate.proxy.cors import Cors
from gpugate.proxy.dispatcher import RequestDispatcher, RequestLog
from gpugate.proxy.request_context import BodyLimits
from gpugate.proxy.server import GatewayServer
from gpugate.why.feature import ExplainedPod, WhyApi

if TYPE_CHECKING:
    from gpugate.metrics.feature import MetricsExporter
    from gpugate.tracing.feature import Tracing

CLEANUP_S = 2.0
"""How long the server waits for its last handlers once the lifecycle has closed."""

DEMO = "demo"

_log = structlog.get_logger()


async def build(
    settings: Settings,
    *,
    find: Callable[[str], type[Provider]] = registry.find,
    budget_source: Any = None,
    on_failure: Callable[[], None] = lambda: None,
    reread: Callable[[], Settings] | None = None,
) -> Gateway:
    """Make a gateway; its ledger is open, and nothing else runs before `Gateway.open`.

    Args:
        settings: the whole configuration.
        find: returns the class of a provider's name; tests have their own.
        budget_source: what was spent and told of this month, for tests; else the ledger.
        on_failure: called when the lifecycle of the only pod has failed; `Gateway.close` has to follow.
        reread: reads the configuration again, for `POST /api/v1/reload`; None where there is none.

    Raises:
        SettingsError: a provider is not installed, or its section or a workflow is wrong.
    """
    configs = [
        provider_config(settings, name, find(name).Config, pod)
        for pod in settings.pods
        for name in pod.pod.provider
    ]
    comfyui = settings.comfyui
    workflows = load_workflows(comfyui.workflow, comfyui.workflows_dir, comfyui.checkpoint)

    def log_output(new: Settings) -> Output:
        leases = [pod.pod for pod in new.pods]
        secrets = secrets_of(new.auth, new.bot, *leases, new.notify, *configs)
        return configure(new.log.format, new.log.level, secrets=secrets)

    access_log = AccessLog(log_output(settings))
    os.environ["GPUGATE_STATE_DIR"] = settings.state.dir  # providers keep their own state there
    async with AsyncExitStack() as resources:
        session = await resources.enter_async_context(_session())
        base = await _infrastructure(settings, resources, session, find, on_failure)
        fleet = base.fleet
        metrics, tracing = _metrics(base), _tracing(base)
        reloader = Reloader(settings, reread)
        features = await _features(base, workflows, budget_source, metrics, reloader)
        reloader.appliers.append(lambda new: access_log.use(log_output(new)))
        log: RequestLog = access_log
        for observer in (metrics, tracing):
            log = log if observer is None else observer.observe(log)
        if tracing is not None:
            features.append(CallbackFeature(on_event=tracing.on_event, aclose=tracing.aclose))
        for feature in features:
            if feature.on_event is not ignore_event:
                base.events.subscribe(feature.on_event)
        server = settings.server
        dispatcher = RequestDispatcher(
            verifier=make_verifier(settings.auth, session, resources, _warn),
            ollama=OllamaHandlers(
                fleet,
                BodyLimits(server.max_body, server.body_timeout),
                heartbeat_s=settings.queue.heartbeat,
                shows_progress=settings.queue.progress == "thinking",
            ),
            own={path: methods for feature in features for path, methods in feature.routes().items()},
            cors=Cors(server.cors_origins),
            log=log,
            path_tokens=settings.auth.path_tokens,
            wake_paths=server.wake_paths,
            extra_paths=[path for pod in settings.pods for path in pod.pod.extra_paths],
            on_crash=log_crash,
        )
        reloader.appliers.append(
            lambda new: dispatcher.set_lists(new.server.cors_origins, new.server.wake_paths)
        )
        gateway_server = GatewayServer(
            dispatcher.handle if tracing is None else tracing.traced(dispatcher.handle),
            dispatcher.answer_malformed,
            log_crash,
            server.keepalive,
        )
        resources.push_async_callback(gateway_server.aclose, CLEANUP_S)
        kept = resources.pop_all()
    return Gateway(evolve(base, resources=kept), features, gateway_server)


async def _infrastructure(
    settings: Settings,
    resources: AsyncExitStack,
    session: aiohttp.ClientSession,
    find: Callable[[str], type[Provider]],
    on_failure: Callable[[], None],
) -> Infrastructure:
    state = Path(settings.state.dir)
    names = [name for pod in settings.pods for name in pod.pod.provider]
    simulated = frozenset(name for name in names if find(name).capabilities.simulated)
    ledger = open_ledger(state, names, simulated, lambda text: _log.warning(f"ledger: {text}"))
    resources.push_async_callback(ledger.aclose)
    events = EventBus([log_event], log_crash)

    def on_pod_failure(name: str) -> None:
        """End the gateway whose only pod has failed; of several end that one, and let the others go on."""
        if fleet.only is not None:
            on_failure()
            return
        _log.error("this pod is stopped, and not started before gpugate is restarted", alarm=True, pod=name)
        fleet.close(fleet.pods[name], keep=False, stop_wait_s=settings.server.stop_wait)

    builder = PodBuilder(
        settings=settings,
        find=find,
        session=session,
        state=state,
        ledger=ledger,
        events=events,
        bodies=BodyBudget(settings.queue.max_bytes),
        wall=utc_now,
        alarm=_ledger_alarm,
        warn=_warn_of_pod,
        on_failure=on_pod_failure,
        resources=resources,
    )
    resources.push_async_callback(builder.close_recorders)
    for line in left_stops(state, settings.pods, _warn):
        _log.error(line, alarm=True)
    fleet = Fleet([await builder.build(pod) for pod in settings.pods], log_crash)
    return Infrastructure(
        settings=settings,
        state=state,
        session=session,
        simulated=simulated,
        ledger=ledger,
        events=events,
        fleet=fleet,
        resources=resources,
    )


async def _features(
    base: Infrastructure,
    workflows: Workflows,
    budget_source: Any,
    metrics: MetricsExporter | None,
    reloader: Reloader,
) -> list[Feature]:
    """Make the features, in the order in which they are started."""
    settings, fleet = base.settings, base.fleet
    costs = cost_queries(base, utc_now)
    providers = [provider for pod in fleet for provider in pod.providers]
    reconciler = BillReconciler(costs, providers, settings.cost.currency, utc_now)
    budget = CallbackFeature()
    if {one.name for one in providers} - base.simulated:
        sources = budget_source or costs, budget_source or base.ledger
        monitor = await budget_monitor(settings, *sources, fleet, base.events, utc_now)
        budget = CallbackFeature(on_event=monitor.on_event, start=monitor.start, aclose=monitor.aclose)
        if metrics is not None:
            metrics.budget_ratio = lambda: monitor.used_ratio
        reloader.appliers.append(lambda new: monitor.set_limits(budget_limits(new)))
    pods = [pod.name for pod in settings.named_pods]
    cost_api = CostApi(costs, reconciler, settings.cost.monthly_budget, pods)
    reloader.appliers.append(partial(_apply, fleet, cost_api))
    user_of, several = partial(_user_of, base), fleet.only is None
    notices = Notices(base.events, costs, settings.cost.currency, user_of, log_crash, several)
    reloader.appliers.append(lambda new: notices.replace(new.notify))
    generation = generation_api(settings, workflows, fleet=fleet, session=base.session)
    hub = SseBroadcaster({pod.name: pod.lifecycle for pod in fleet})
    return [
        *(CallbackFeature(start=partial(_log_hint, pod), aclose=pod.catalog.aclose) for pod in fleet),
        CallbackFeature(routes=cost_api.routes),
        CallbackFeature(routes=reloader.routes),
        CallbackFeature(start=partial(_start_notices, notices, settings), aclose=notices.aclose),
        *(_schedules(base, pod, reloader) for pod in fleet),
        budget,
        CallbackFeature(routes=generation.routes),
        CallbackFeature(routes=GpuApi(fleet).routes),
        CallbackFeature(routes=hub.routes, on_event=hub.on_event, aclose=hub.aclose),
        CallbackFeature(routes=dashboard_routes),
        _why(base),
        CallbackFeature()
        if metrics is None
        else CallbackFeature(
            routes=metrics.routes, on_event=metrics.on_event, start=metrics.start, aclose=metrics.aclose
        ),
        *(_dead_man_switch(pod) for pod in fleet),
        _telegram(base, generation, costs, reloader),
    ]


# --- the features -----------------------------------------------------------------------------------


def _apply(fleet: Fleet, cost_api: CostApi, new: Settings) -> None:
    """Put the settings in force that were read again: budget, wake rules, and each pod's policy and lists."""
    cost_api.monthly_budget = new.cost.monthly_budget
    for settings in new.pods:
        pod = fleet.pods[settings.name]
        pod.lifecycle.wake_policy = wake_policy(new.wake, new.cost.timezone, utc_now)
        providers = [one.provider for one in pod.providers]
        pod.lifecycle.set_policy(policy_of(new, settings, providers))
        named = named_models(new, settings, providers)
        pod.catalog.catalog.configure(new.catalog.when_stopped, new.catalog.models, named)


async def _log_hint(pod: FleetPod) -> None:
    """Say, once the gateway listens, what clients see while nothing was learned of the pod's models."""
    if hint := pod.catalog.catalog.hint:
        _log.info(f"catalogue: {hint}", **pod_field(pod.name))


def _schedules(base: Infrastructure, pod: FleetPod, reloader: Reloader) -> Feature:
    names = {pod.name, ""} if pod is base.fleet.first else {pod.name}
    schedules = ScheduleRunner(names, pod.lifecycle, pod.events, utc_now, log_crash)
    schedules.replace(base.settings.schedule, base.settings.cost.timezone)
    reloader.appliers.append(lambda new: schedules.replace(new.schedule, new.cost.timezone))
    return CallbackFeature(start=schedules.start, aclose=schedules.aclose)


def _dead_man_switch(pod: FleetPod) -> Feature:
    switch = switch_renewer(pod, partial(_warn_of_pod, pod.name))
    if switch is None:
        return CallbackFeature()
    pod.events.subscribe(switch.on_event)
    return CallbackFeature(start=switch.start, aclose=switch.aclose)


def _why(base: Infrastructure) -> Feature:
    api = WhyApi(
        {pod.name: ExplainedPod(history_of(pod), pod.lifecycle) for pod in base.fleet},
        base.ledger,
        partial(_flush, base),
        ZoneInfo(base.settings.cost.timezone),
    )
    return CallbackFeature(routes=api.routes)


def _metrics(base: Infrastructure) -> MetricsExporter | None:
    """Return the metrics if they are enabled; their library is only imported then."""
    if not base.settings.metrics.enabled:
        return None
    from gpugate.metrics.feature import MetricsExporter

    return MetricsExporter(
        {pod.name: pod.lifecycle for pod in base.fleet},
        currency=base.settings.cost.currency,
        address=split_address(base.settings.metrics.listen),
    )


def _tracing(base: Infrastructure) -> Tracing | None:
    """Return what makes the traces, if they are enabled; their library is only imported then."""
    if not base.settings.tracing.enabled:
        return None
    from gpugate.tracing.feature import Tracing

    tracing = Tracing()
    for pod in base.fleet:
        pod.lifecycle.on_wait = partial(tracing.on_wait, pod.name)
    return tracing


def _telegram(
    base: Infrastructure, generation: GenerationApi, costs: CostQueries, reloader: Reloader
) -> Feature:
    if not base.settings.bot.enabled:
        return CallbackFeature(routes=TelegramWebhook(None, _refuse_update).routes)
    from gpugate.bot.fantasy_job import FantasyJob  # these imports take time and memory
    from gpugate.bot.feature import TelegramFeature

    fantasies, pictures = generation.fantasies, generation.picture_pod
    pod = base.fleet.pod_for(fantasies.stories.vision)
    feature = TelegramFeature(
        base.settings,
        pods={one.name: one.lifecycle for one in base.fleet},
        session=base.session,
        fantasy_job=FantasyJob(
            pod.lifecycle,
            fantasies,
            log_crash,
            pod.require,
            pictures.lifecycle if pictures is not pod else None,
        ),
        costs=costs,
        user_of=partial(_user_of, base),
        state=base.state,
    )
    reloader.appliers.append(lambda new: feature.replace(new.bot))
    return feature


# --- small ones -------------------------------------------------------------------------------------


def _user_of(base: Infrastructure, pod: str, provider: str) -> str:
    """Return who has caused the pod's session that is open at this provider; "" if unknown."""
    row = base.fleet.pods[pod].recorder.open_rows.get(provider)
    return row.started_by if row is not None else ""


async def _flush(base: Infrastructure) -> None:
    for pod in base.fleet:
        await pod.recorder.flush()


async def _start_notices(notices: Notices, settings: Settings) -> None:
    notices.replace(settings.notify)


async def _refuse_update(_: object) -> bool:
    return False


def _ledger_alarm(pod: str, text: str) -> None:
    _log.error(f"ledger: {text}", alarm=True, **pod_field(pod))


def _warn(text: str) -> None:
    _log.warning(text)


def _warn_of_pod(pod: str, text: str) -> None:
    _log.warning(text, **pod_field(pod))


def _session() -> aiohttp.ClientSession:
    """Return the session of the gateway's own calls.

    It has a User-Agent because a CDN refuses clients without one (docs/providers.md#user-agent), and no limit
    on connections: a hundred waiting image jobs, each with a websocket, would keep a stop from being sent.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"User-Agent": f"gpugate/{version('gpugate')}"},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=30),
    )


def cost_queries(base: Infrastructure, wall: Callable[[], datetime]) -> CostQueries:
    """Make the queries; sessions of simulated providers cost nothing."""
    # Older versions wrote the demo's sessions into the real ledger.
    names = {one.name for pod in base.fleet for one in pod.providers}
    return CostQueries(
        base.ledger,
        lambda: [pod.lifecycle.status_now() for pod in base.fleet],
        base.settings.cost.currency,
        wall,
        partial(_flush, base),
        {*base.simulated, *({DEMO} - names)},
        ZoneInfo(base.settings.cost.timezone),
    )


def budget_limits(settings: Settings) -> BudgetLimits:
    """Return the limits of `[cost]`."""
    cost = settings.cost
    return BudgetLimits(
        monthly=cost.monthly_budget,
        user_share=cost.user_share,
        currency=cost.currency,
        zone=ZoneInfo(cost.timezone),
    )


async def budget_monitor(
    settings: Settings,
    spending: Any,
    thresholds: Any,
    fleet: Fleet,
    events: EventBus,
    wall: Callable[[], datetime],
) -> BudgetMonitor:
    """Make the monitor of `cost.monthly_budget`, which has evaluated it once, before any request can come."""

    def on_verdict(verdict: BudgetVerdict) -> None:
        for pod in fleet:
            pod.lifecycle.set_budget_verdict(verdict)

    budget = BudgetMonitor(
        budget_limits(settings),
        spending,
        thresholds,
        on_verdict=on_verdict,
        publish=events.publish,
        warn=lambda text, alarm: _log.error(text, alarm=True) if alarm else _log.info(text),
        wall=wall,
        on_crash=log_crash,
    )
    await budget.prepare()
    return budget
