"""The composition root: `build` makes a `Gateway` out of the settings. Nothing is decided here.

A new feature is one file, and one line in `_features`; its methods are those of `gpugate.gateway.Feature`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import aiohttp
import structlog
from attrs import evolve

from gpugate.api.costs import CostApi
from gpugate.api.gpu import GpuApi, SseBroadcaster
from gpugate.api.telegram_webhook import TelegramWebhook
from gpugate.billing.budget import BudgetLimits, BudgetMonitor
from gpugate.billing.ledger import Ledger, open_ledger
from gpugate.billing.reconciliation import BillReconciler
from gpugate.billing.recorder import SessionRecorder
from gpugate.billing.reports import CostQueries
from gpugate.billing.start_times import StartTimes
from gpugate.clock import boot_id, boottime
from gpugate.config import Settings, provider_config
from gpugate.config.derive import fallback_price_of, named_models, pods_of, policy_of
from gpugate.config.validators import split_address
from gpugate.core.idle_policy import LearnedIdlePolicy
from gpugate.core.states import StateName
from gpugate.dashboard.feature import dashboard_routes
from gpugate.errors import LedgerError
from gpugate.fleet import MAIN, Fleet
from gpugate.gateway import CallbackFeature, Feature, Gateway, Infrastructure
from gpugate.generation.fantasy import FantasyService
from gpugate.generation.feature import generation_api
from gpugate.generation.workflows import Workflows
from gpugate.generation.workflows import load as load_workflows
from gpugate.lifecycle.dead_man_switch import SwitchRenewer
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.pod_calls import OllamaPodClient
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.state_files import IdleHistoryFile, PendingStopFile
from gpugate.lifecycle.status import EventBus, EventListener, LifecycleEvent, StateChanged
from gpugate.observability.event_log import log_event
from gpugate.observability.history import History
from gpugate.observability.log import AccessLog, Output, configure, log_crash
from gpugate.observability.redact import secrets_of
from gpugate.ollama.catalog_refresher import CatalogRefresher
from gpugate.ollama.handlers import OllamaHandlers
from gpugate.operation.notices import Notices
from gpugate.operation.reload import Reloader
from gpugate.operation.schedules import ScheduleRunner
from gpugate.operation.wake_rules import wake_policy
from gpugate.provider_api import Endpoint, Provider
from gpugate.providers import registry
from gpugate.proxy.auth import make_verifier
from gpugate.proxy.cors import Cors
from gpugate.proxy.dispatcher import RequestDispatcher, RequestLog
from gpugate.proxy.forwarder import Forwarder, UpstreamPools
from gpugate.proxy.request_context import BodyLimits
from gpugate.proxy.server import GatewayServer
from gpugate.relay.relay import Relay
from gpugate.why.feature import ExplainedPod, WhyApi

if TYPE_CHECKING:
    from gpugate.metrics.feature import MetricsExporter
    from gpugate.tracing.feature import Tracing

CLEANUP_S = 2.0
"""How long the server waits for its last handlers once the lifecycle has closed."""

POD_LIVES = frozenset(
    {
        StateName.WARMING,
        StateName.PULLING,
        StateName.PRELOADING,
        StateName.READY,
        StateName.DRAINING,
    }
)
"""States in which an exchange with the pod may be under way."""

LEARNED_SESSIONS = 200
"""From how many sessions of the ledger is learned how long starts take."""

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
        on_failure: called when the lifecycle has failed; `Gateway.close` has to follow.
        reread: reads the configuration again, for `POST /api/v1/reload`; None where there is none.

    Raises:
        SettingsError: a provider is not installed, or its section or a workflow is wrong.
    """
    kinds = {name: find(name) for name in settings.pod.provider}
    configs = {name: provider_config(settings, name, kind.Config) for name, kind in kinds.items()}
    comfyui = settings.comfyui
    workflows = load_workflows(comfyui.workflow, comfyui.workflows_dir, comfyui.checkpoint)

    def log_output(new: Settings) -> Output:
        secrets = secrets_of(new.auth, new.bot, new.pod, new.notify, *configs.values())
        return configure(new.log.format, new.log.level, secrets=secrets)

    access_log = AccessLog(log_output(settings))
    os.environ["GPUGATE_STATE_DIR"] = settings.state.dir  # providers keep their own state there
    async with AsyncExitStack() as resources:
        session = await resources.enter_async_context(_session())
        providers = [ConfiguredProvider(name, kind(configs[name], session)) for name, kind in kinds.items()]
        base = await _infrastructure(settings, resources, session, providers, on_failure)
        lifecycle = base.fleet.main
        catalog = CatalogRefresher(
            settings.catalog.when_stopped,
            settings.catalog.models,
            base.state / "catalog.json",
            pulled=settings.pods[0].pod.pull,
            named=named_models(settings, settings.pods[0], [one.provider for one in base.providers]),
            pods=pods_of(settings.pods[0], configs),
            fetch=base.pod.fetch,
            serving=lambda: lifecycle.serving,
            interval_s=settings.pod.reconcile_interval,
            warn=_warn,
            on_crash=log_crash,
        )
        metrics, tracing = _metrics(base), _tracing(base)
        reloader = Reloader(settings, reread)
        features = await _features(base, catalog, workflows, budget_source, metrics, reloader)
        reloader.appliers.append(lambda new: access_log.use(log_output(new)))
        log: RequestLog = access_log
        for observer in (metrics, tracing):
            log = log if observer is None else observer.observe(log)
        if tracing is not None:
            features.append(CallbackFeature(on_event=tracing.on_event, aclose=tracing.aclose))
        for listener in (*(feature.on_event for feature in features), _abort_exchanges(base.pools)):
            base.events.subscribe(listener)
        dispatcher = RequestDispatcher(
            verifier=make_verifier(settings.auth, session, resources, _warn),
            ollama=_ollama(base, catalog),
            own={path: methods for feature in features for path, methods in feature.routes().items()},
            cors=Cors(settings.server.cors_origins),
            log=log,
            path_tokens=settings.auth.path_tokens,
            wake_paths=settings.server.wake_paths,
            on_crash=log_crash,
        )
        reloader.appliers.append(
            lambda new: dispatcher.set_lists(new.server.cors_origins, new.server.wake_paths)
        )
        reloader.appliers.append(
            lambda new: catalog.catalog.configure(
                new.catalog.when_stopped,
                new.catalog.models,
                named_models(new, new.pods[0], [one.provider for one in base.providers]),
            )
        )
        server = GatewayServer(
            dispatcher.handle if tracing is None else tracing.traced(dispatcher.handle),
            dispatcher.answer_malformed,
            log_crash,
            settings.server.keepalive,
        )
        resources.push_async_callback(server.aclose, CLEANUP_S)
        kept = resources.pop_all()
    return Gateway(evolve(base, resources=kept), features, server)


async def _infrastructure(
    settings: Settings,
    resources: AsyncExitStack,
    session: aiohttp.ClientSession,
    providers: Sequence[ConfiguredProvider],
    on_failure: Callable[[], None],
) -> Infrastructure:
    state = Path(settings.state.dir)
    simulated = frozenset(one.name for one in providers if one.provider.capabilities.simulated)
    ledger = open_ledger(
        state, settings.pod.provider, simulated, lambda text: _log.warning(f"ledger: {text}")
    )
    resources.push_async_callback(ledger.aclose)
    recorder = SessionRecorder(
        ledger,
        fallback=fallback_price_of(settings),
        wall=_utc_now,
        boottime=boottime,
        boot_id=boot_id(),
        alarm=lambda text: _log.error(f"ledger: {text}", alarm=True),
        on_crash=log_crash,
    )
    await recorder.open(settings.pod.provider)
    resources.push_async_callback(recorder.aclose)
    events = EventBus([recorder.on_event, log_event], log_crash)
    pod = OllamaPodClient(session, settings.pod.health_path)
    learns = settings.pod.idle_policy == "learned"
    lifecycle = Lifecycle(
        providers=providers,
        pod=pod,
        policy=policy_of(settings, settings.pods[0], [one.provider for one in providers]),
        fallback_price=fallback_price_of(settings),
        events=events,
        pending_stops=PendingStopFile(state / "unproved-stops.json", _warn),
        idle_policy=LearnedIdlePolicy(settings.pod.idle_timeout) if learns else None,
        idle_history=IdleHistoryFile(state / "habits.json", _warn) if learns else None,
        recorder=recorder,
        start_times=await _start_times(ledger, MAIN),
        boottime=boottime,
        on_crash=log_crash,
        on_failure=on_failure,
    )
    lifecycle.wake_policy = wake_policy(settings.wake, settings.cost.timezone, _utc_now)
    pools = UpstreamPools()
    resources.callback(pools.close)
    return Infrastructure(
        settings=settings,
        state=state,
        session=session,
        providers=providers,
        simulated=simulated,
        ledger=ledger,
        recorder=recorder,
        pod=pod,
        events=events,
        fleet=Fleet({MAIN: lifecycle}),
        pools=pools,
        resources=resources,
    )


async def _start_times(ledger: Ledger, pod: str) -> StartTimes:
    """Return what the ledger tells of the starts of this pod."""
    times = StartTimes()
    with suppress(LedgerError):  # that is told where a session is written
        times.add_sessions(reversed(await ledger.starts(LEARNED_SESSIONS, pod=pod)))
    return times


async def _features(
    base: Infrastructure,
    catalog: CatalogRefresher,
    workflows: Workflows,
    budget_source: Any,
    metrics: MetricsExporter | None,
    reloader: Reloader,
) -> list[Feature]:
    """Make the features, in the order in which they are started."""
    settings, lifecycle = base.settings, base.fleet.main
    costs = cost_queries(settings, base.ledger, base.recorder, lifecycle, base.simulated, _utc_now)
    reconciler = BillReconciler(costs, base.providers, settings.cost.currency, _utc_now)
    budget = CallbackFeature()
    if set(settings.pod.provider) - base.simulated:
        sources = budget_source or costs, budget_source or base.ledger
        monitor = await budget_monitor(settings, *sources, lifecycle, base.events, _utc_now)
        budget = CallbackFeature(on_event=monitor.on_event, start=monitor.start, aclose=monitor.aclose)
        if metrics is not None:
            metrics.budget_ratio = lambda: monitor.used_ratio
        reloader.appliers.append(lambda new: monitor.set_limits(budget_limits(new)))
    pods = [pod.name for pod in settings.named_pods]
    cost_api = CostApi(costs, reconciler, settings.cost.monthly_budget, pods)

    def apply(new: Settings) -> None:
        cost_api.monthly_budget = new.cost.monthly_budget
        lifecycle.wake_policy = wake_policy(new.wake, new.cost.timezone, _utc_now)
        lifecycle.set_policy(policy_of(new, new.pods[0], [one.provider for one in base.providers]))

    reloader.appliers.append(apply)
    notices = Notices(base.events, costs, settings.cost.currency, partial(_user_of, base), log_crash)
    reloader.appliers.append(lambda new: notices.replace(new.notify))
    schedules = ScheduleRunner(lifecycle, base.events, _utc_now, log_crash)
    schedules.replace(settings.schedule, settings.cost.timezone)
    reloader.appliers.append(lambda new: schedules.replace(new.schedule, new.cost.timezone))
    generation = generation_api(
        settings,
        workflows,
        lifecycle=lifecycle,
        session=base.session,
        pools=base.pools,
        require=catalog.require,
    )
    hub = SseBroadcaster(lifecycle.status_now, lifecycle.status)
    return [
        CallbackFeature(start=partial(_log_hint, catalog), on_event=catalog.on_event, aclose=catalog.aclose),
        CallbackFeature(routes=cost_api.routes),
        CallbackFeature(routes=reloader.routes),
        CallbackFeature(start=partial(_start_notices, notices, settings), aclose=notices.aclose),
        CallbackFeature(start=schedules.start, aclose=schedules.aclose),
        budget,
        CallbackFeature(routes=generation.routes),
        CallbackFeature(routes=GpuApi(lifecycle).routes),
        CallbackFeature(routes=hub.routes, on_event=hub.on_event, aclose=hub.aclose),
        CallbackFeature(routes=dashboard_routes),
        _why(base),
        CallbackFeature()
        if metrics is None
        else CallbackFeature(
            routes=metrics.routes, on_event=metrics.on_event, start=metrics.start, aclose=metrics.aclose
        ),
        _dead_man_switch(base),
        _telegram(base, generation.fantasies, costs, catalog, reloader),
    ]


# --- the parts of the infrastructure ---------------------------------------------------------------


async def _log_hint(catalog: CatalogRefresher) -> None:
    """Say, once the gateway listens, what clients see while nothing was learned of the pod's models."""
    if hint := catalog.catalog.hint:
        _log.info(f"catalogue: {hint}")


def _ollama(base: Infrastructure, catalog: CatalogRefresher) -> OllamaHandlers:
    lifecycle = base.fleet.main
    return OllamaHandlers(
        lifecycle=lifecycle,
        forwarder=Forwarder(lifecycle, Relay(), base.pools),
        catalog=catalog.catalog,
        limits=BodyLimits(base.settings.server.max_body, base.settings.server.body_timeout),
        heartbeat_s=base.settings.queue.heartbeat,
        shows_progress=base.settings.queue.progress == "thinking",
        changed=catalog.changed,
        require=catalog.require,
    )


def _abort_exchanges(pools: UpstreamPools) -> EventListener:
    """Break the exchanges with a pod that is gone; those under a lease have been told already."""

    def on_event(event: LifecycleEvent) -> None:
        if isinstance(event, StateChanged) and event.now not in POD_LIVES:
            pools.abort()

    return on_event


# --- the features -----------------------------------------------------------------------------------


def _dead_man_switch(base: Infrastructure) -> Feature:
    if not base.settings.pod.lease:
        return CallbackFeature()
    switch = SwitchRenewer(
        base.settings.pod.lease,
        base.pod.put_renewal,
        partial(_serving_ollama, base.fleet.main),
        _warn,
        on_crash=log_crash,
    )
    return CallbackFeature(on_event=switch.on_event, start=switch.start, aclose=switch.aclose)


def _why(base: Infrastructure) -> Feature:
    def session_of(provider: str) -> str | None:
        row = base.recorder.open_rows.get(provider)
        return row.id if row is not None else None

    lifecycle = base.fleet.main
    history = History(session_of, lifecycle.last_use)
    zone = ZoneInfo(base.settings.cost.timezone)
    api = WhyApi({MAIN: ExplainedPod(history, lifecycle)}, base.ledger, base.recorder.flush, zone)
    return CallbackFeature(routes=api.routes, on_event=api.on_event)


def _metrics(base: Infrastructure) -> MetricsExporter | None:
    """Return the metrics if they are enabled; their library is only imported then."""
    if not base.settings.metrics.enabled:
        return None
    from gpugate.metrics.feature import MetricsExporter

    return MetricsExporter(
        pod=MAIN,
        lifecycle=base.fleet.main,
        currency=base.settings.cost.currency,
        address=split_address(base.settings.metrics.listen),
    )


def _tracing(base: Infrastructure) -> Tracing | None:
    """Return what makes the traces, if they are enabled; their library is only imported then."""
    if not base.settings.tracing.enabled:
        return None
    from gpugate.tracing.feature import Tracing

    tracing = Tracing()
    for name, lifecycle in base.fleet.pods.items():
        lifecycle.on_wait = partial(tracing.on_wait, name)
    return tracing


def _telegram(
    base: Infrastructure,
    fantasies: FantasyService,
    costs: CostQueries,
    catalog: CatalogRefresher,
    reloader: Reloader,
) -> Feature:
    if not base.settings.bot.enabled:
        return CallbackFeature(routes=TelegramWebhook(None, _refuse_update).routes)
    from gpugate.bot.feature import TelegramFeature  # its imports take time and memory

    feature = TelegramFeature(
        base.settings,
        lifecycle=base.fleet.main,
        session=base.session,
        fantasies=fantasies,
        costs=costs,
        user_of=partial(_user_of, base),
        require=catalog.require,
        state=base.state,
    )
    reloader.appliers.append(lambda new: feature.replace(new.bot))
    return feature


# --- small ones -------------------------------------------------------------------------------------


def _user_of(base: Infrastructure, provider: str) -> str:
    """Return who has caused the session that is open at this provider; "" if unknown."""
    row = base.recorder.open_rows.get(provider)
    return row.started_by if row is not None else ""


async def _start_notices(notices: Notices, settings: Settings) -> None:
    notices.replace(settings.notify)


def _serving_ollama(lifecycle: Lifecycle) -> Endpoint | None:
    serving = lifecycle.serving
    return serving.endpoints["ollama"] if serving is not None else None


async def _refuse_update(_: object) -> bool:
    return False


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _warn(text: str) -> None:
    _log.warning(text)


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
    return CostQueries(
        ledger,
        lambda: [lifecycle.status_now()],
        settings.cost.currency,
        wall,
        recorder.flush,
        not_billed,
        ZoneInfo(settings.cost.timezone),
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
    lifecycle: Lifecycle,
    events: EventBus,
    wall: Callable[[], datetime],
) -> BudgetMonitor:
    """Make the monitor of `cost.monthly_budget`, which has evaluated it once, before any request can come."""
    budget = BudgetMonitor(
        budget_limits(settings),
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
