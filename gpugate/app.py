"""The composition root: `build` makes a `Gateway` out of the settings. Nothing is decided here.

A feature is an object with the methods of `Feature`; a new one is one file, and one line in `_features`.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import structlog
from aiohttp import web
from attrs import evolve, frozen

from gpugate.api.costs import CostApi
from gpugate.api.events import SseBroadcaster
from gpugate.api.gpu import GpuApi
from gpugate.api.routing import ApiRoutes as Routes
from gpugate.api.telegram_webhook import TelegramWebhook
from gpugate.billing.budget import BudgetLimits, BudgetMonitor
from gpugate.billing.ledger import Ledger
from gpugate.billing.reconciliation import BillReconciler
from gpugate.billing.recorder import SessionRecorder
from gpugate.billing.reports import CostQueries
from gpugate.billing.sqlite_ledger import open_ledger
from gpugate.clock import boot_id, boottime
from gpugate.config import Settings, provider_config
from gpugate.config.derive import fallback_price_of, longest_end_s, policy_of
from gpugate.core.idle_policy import LearnedIdlePolicy
from gpugate.core.states import StateName, Status
from gpugate.fleet import MAIN, Fleet
from gpugate.generation.fantasy import FantasyService
from gpugate.generation.feature import generation_api
from gpugate.generation.workflows import Workflows
from gpugate.generation.workflows import load as load_workflows
from gpugate.lifecycle.dead_man_switch import SwitchRenewer
from gpugate.lifecycle.event_bus import EventBus, EventListener, LifecycleEvent, ProviderProblem, StateChanged
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.ollama_pod_client import OllamaPodClient
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.state_files import IdleHistoryFile, PendingStopFile
from gpugate.observability.event_log import log_event
from gpugate.observability.log import AccessLog, configure, log_crash
from gpugate.observability.redact import secrets_of
from gpugate.ollama.catalog_refresher import CatalogRefresher
from gpugate.ollama.handlers import OllamaHandlers
from gpugate.provider_api import Endpoint, Provider
from gpugate.providers import registry
from gpugate.proxy.auth import Verifier
from gpugate.proxy.cors import Cors
from gpugate.proxy.dispatcher import RequestDispatcher
from gpugate.proxy.forwarder import Forwarder, UpstreamPools
from gpugate.proxy.jwks import JwksCache, http_fetch
from gpugate.proxy.server import GatewayServer, check_self, listen
from gpugate.relay.relay import Relay
from gpugate.tasks import spawn

CLEANUP_S = 2.0
"""How long the server waits for its last handlers once the lifecycle has closed."""

DEMO = "demo"

POD_LIVES = frozenset({StateName.WARMING, StateName.PRELOADING, StateName.READY, StateName.DRAINING})
"""States in which an exchange with the pod may be under way."""

_log = structlog.get_logger()


class Feature(Protocol):
    """A part of the gateway that has endpoints, listens to events, or runs in the background."""

    def routes(self) -> Routes:
        """Return its endpoints; called once, before `start`."""

    def on_event(self, event: LifecycleEvent) -> None:
        """Take an event of the lifecycle or the budget; must not block."""

    async def start(self) -> None:
        """Begin; called once, when the lifecycle is open and the server listens."""

    async def drain(self, grace_s: float) -> None:
        """Take no more work and let running work end within `grace_s`.

        Called while the pod drains, and again with 0 when a second signal ends the grace at once.
        """

    async def aclose(self) -> None:
        """End; called once, after the pod was stopped or kept, in the reverse order of the starts."""


async def _nothing(*_: object) -> None:
    """Have nothing to start, drain or close."""


@frozen(kw_only=True)
class CallbackFeature:
    """A `Feature` out of the callables that it needs; the others do nothing."""

    routes: Callable[[], Routes] = dict
    on_event: EventListener = lambda _: None
    start: Callable[[], Coroutine[Any, Any, None]] = _nothing
    drain: Callable[[float], Coroutine[Any, Any, None]] = _nothing
    aclose: Callable[[], Coroutine[Any, Any, None]] = _nothing


@frozen(kw_only=True)
class Infrastructure:
    """What features are built upon.

    Attributes:
        state: the folder of `state.dir`.
        simulated: the providers among the configured ones that cost no real money.
    """

    settings: Settings
    state: Path
    session: aiohttp.ClientSession
    providers: Sequence[ConfiguredProvider]
    simulated: frozenset[str]
    ledger: Ledger
    recorder: SessionRecorder
    pod: OllamaPodClient
    events: EventBus
    fleet: Fleet
    pools: UpstreamPools
    resources: AsyncExitStack


class Gateway:
    """A gateway on one loop; made by `build`.

    Attributes:
        port: where it listens, once it is open.
        base: what it is built upon.
    """

    def __init__(
        self,
        infrastructure: Infrastructure,
        features: Sequence[Feature],
        runner: web.ServerRunner,
    ) -> None:
        self.base = infrastructure
        self.settings = infrastructure.settings
        self.port = self.settings.server.port
        self._features = tuple(features)
        self._started: list[Feature] = []
        self._runner = runner
        self._is_open = False

    @property
    def lifecycle(self) -> Lifecycle:
        """The lifecycle of the one pod."""
        return self.base.fleet.main

    @property
    def failure(self) -> BaseException | None:
        """Why the lifecycle has failed, or None."""
        return self.lifecycle.failure

    # 1. The socket comes first: where the address is taken, nothing else may have been started.
    # 2. The lifecycle inspects the providers, in the background.
    # 3. The features start. Nothing has given way to the event loop since the socket was opened, so no
    # request    is served before the budget has told the lifecycle what it allows.
    # 4. Only a gateway that answers a request says that it listens.
    async def open(self) -> None:
        """Listen, inspect the providers, start the features.

        Raises:
            OSError: the address is taken; nothing was started.
            SelfCheckFailed: it listens but does not answer; a pod that was found is treated as on any exit.
        """
        server = self.settings.server
        try:
            self.port = await listen(self._runner, server.host, server.port)  # 1
            await self.lifecycle.open()  # 2
            self._is_open = True
            for feature in self._features:  # 3
                self._started.append(feature)
                await feature.start()
            await check_self(self._runner, "/api/v1/health")  # 4
        except BaseException:
            if self._is_open:
                await self.close()
            else:
                await self.base.resources.aclose()
            raise
        gc.freeze()  # what exists now stays: the collector need not look at it again
        _log.info(
            "an orderly end may take so long: `docker stop -t`, TimeoutStopSec and the like must allow it",
            seconds=longest_end_s(self.settings),
        )
        _log.info("listening", host=server.host, port=self.port)

    async def close(self) -> bool:
        """Reject new requests, let running responses have their grace, stop the pod or keep it, end
        everything.

        Returns False when a stop could not be confirmed in time.
        """
        server = self.settings.server
        for site in list(self._runner.sites):
            await site.stop()  # closes its socket, waits for nothing
        drains = [
            spawn(feature.drain(server.shutdown_grace), "feature:drain", on_crash=log_crash)
            for feature in self._started
        ]
        confirmed = await self.lifecycle.close(keep=server.on_exit == "keep", stop_wait_s=server.stop_wait)
        if drains:
            await asyncio.wait(drains)
        if not confirmed:
            self._report_unconfirmed_stop()
        elif server.on_exit == "keep" and self.lifecycle.current_status is not Status.STOPPED:
            _log.info("the pod is kept for the next start", status=self.lifecycle.current_status)
        for feature in reversed(self._started):
            try:
                await feature.aclose()
            except Exception as error:  # the others have to be closed all the same
                log_crash("feature:close", error)
        await self.base.resources.aclose()
        return confirmed

    def abort(self) -> None:
        """End the grace of whatever still runs: a second signal came. Does nothing before it is open."""
        if self._is_open:
            self.lifecycle.abort_in_flight()
            for feature in self._started:
                spawn(feature.drain(0.0), "feature:abort", on_crash=log_crash)

    def _report_unconfirmed_stop(self) -> None:
        _log.error("the pod may still be running: its stop is not proved", alarm=True)
        status = self.lifecycle.status_now()
        self.base.events.publish(
            ProviderProblem(
                provider=(status and status.provider) or "the provider",
                message="gpugate ends now, and the pod is not seen stopped",
                reason="ambiguous",
                alarm=True,
                at=datetime.now(UTC),
            )
        )


async def build(
    settings: Settings,
    *,
    find: Callable[[str], type[Provider]] = registry.find,
    budget_source: Any = None,
    on_failure: Callable[[], None] = lambda: None,
) -> Gateway:
    """Make a gateway; its ledger is open, and nothing else runs before `Gateway.open`.

    Args:
        settings: the whole configuration.
        find: returns the class of a provider's name; tests have their own.
        budget_source: what was spent and told of this month, for tests; else the ledger.
        on_failure: called when the lifecycle has failed; `Gateway.close` has to follow.

    Raises:
        SettingsError: a provider is not installed, its section or a workflow is wrong, or aiogram is missing.
    """
    kinds = {name: find(name) for name in settings.pod.provider}
    configs = {name: provider_config(settings, name, kind.Config) for name, kind in kinds.items()}
    comfyui = settings.comfyui
    workflows = load_workflows(comfyui.workflow, comfyui.workflows_dir, comfyui.checkpoint)
    secrets = secrets_of(settings.auth, settings.bot, settings.pod, *configs.values())
    log_output = configure(settings.log.format, settings.log.level, secrets=secrets)
    os.environ["GPUGATE_STATE_DIR"] = settings.state.dir  # providers keep their own state there
    async with AsyncExitStack() as resources:
        session = await resources.enter_async_context(_session())
        providers = [ConfiguredProvider(name, kind(configs[name], session)) for name, kind in kinds.items()]
        base = await _infrastructure(settings, resources, session, providers, on_failure)
        catalog = CatalogRefresher(
            settings.catalog.when_stopped,
            settings.catalog.models,
            base.state / "catalog.json",
            get=base.pod.get,
            serving=partial(_serving_ollama, base),
            warn=_warn,
            on_crash=log_crash,
        )
        features = await _features(base, catalog, workflows, budget_source)
        for listener in (*(feature.on_event for feature in features), _abort_exchanges(base.pools)):
            base.events.subscribe(listener)
        dispatcher = RequestDispatcher(
            verifier=_verifier(base),
            ollama=_ollama(base, catalog),
            own={path: methods for feature in features for path, methods in feature.routes().items()},
            cors=Cors(settings.server.cors_origins),
            log=AccessLog(log_output),
            path_tokens=settings.auth.path_tokens,
            on_crash=log_crash,
        )
        runner = web.ServerRunner(
            GatewayServer(dispatcher.handle, dispatcher.answer_malformed, log_crash),
            shutdown_timeout=CLEANUP_S,
        )
        await runner.setup()
        resources.push_async_callback(runner.cleanup)
        kept = resources.pop_all()
    return Gateway(evolve(base, resources=kept), features, runner)


async def _infrastructure(
    settings: Settings,
    resources: AsyncExitStack,
    session: aiohttp.ClientSession,
    providers: Sequence[ConfiguredProvider],
    on_failure: Callable[[], None],
) -> Infrastructure:
    state = Path(settings.state.dir)
    simulated = frozenset(one.name for one in providers if one.provider.capabilities.simulated)
    ledger = await open_ledger(state, settings.pod.provider, simulated)
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
        policy=policy_of(settings, [one.provider for one in providers]),
        fallback_price=fallback_price_of(settings),
        events=events,
        pending_stops=PendingStopFile(state / "unproved-stops.json", _warn),
        idle_policy=LearnedIdlePolicy(settings.pod.idle_timeout) if learns else None,
        idle_history=IdleHistoryFile(state / "habits.json", _warn) if learns else None,
        recorder=recorder,
        boottime=boottime,
        on_crash=log_crash,
        on_failure=on_failure,
    )
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


async def _features(
    base: Infrastructure, catalog: CatalogRefresher, workflows: Workflows, budget_source: Any
) -> list[Feature]:
    """Make the features, in the order in which they are started."""
    lifecycle, costs = base.fleet.main, _costs(base)
    hub = SseBroadcaster(lifecycle.status_now, lifecycle.status)
    generation = generation_api(
        base.settings, workflows, lifecycle=lifecycle, session=base.session, pools=base.pools
    )
    reconcile = BillReconciler(costs, base.providers, base.settings.cost.currency, _utc_now)
    return [
        CallbackFeature(on_event=catalog.on_event, aclose=catalog.aclose),
        CallbackFeature(routes=CostApi(costs, reconcile).routes),
        await _budget(base, costs, budget_source),
        CallbackFeature(routes=generation.routes),
        CallbackFeature(routes=GpuApi(lifecycle).routes),
        CallbackFeature(routes=hub.routes, on_event=hub.on_event, aclose=hub.aclose),
        _dead_man_switch(base),
        _telegram(base, generation.fantasies, costs),
    ]


# --- the parts of the infrastructure ---------------------------------------------------------------


def _verifier(base: Infrastructure) -> Verifier:
    auth = base.settings.auth
    jwks = None
    if auth.jwks_url:
        jwks = JwksCache(
            http_fetch(base.session, auth.jwks_url),
            on_status=lambda problem: _warn(f"the identity provider: {problem or 'answers again'}"),
        )
        base.resources.push_async_callback(jwks.aclose)
    return Verifier(
        secret=auth.secret,
        algorithms=auth.algorithms,
        issuer=auth.issuer,
        audience=auth.audience,
        leeway_s=auth.leeway,
        require_exp=auth.require_exp,
        jwks=jwks,
    )


def _ollama(base: Infrastructure, catalog: CatalogRefresher) -> OllamaHandlers:
    lifecycle = base.fleet.main
    return OllamaHandlers(
        lifecycle=lifecycle,
        forwarder=Forwarder(lifecycle, Relay(), base.pools),
        catalog=catalog.catalog,
        max_body=base.settings.server.max_body,
        heartbeat_s=base.settings.queue.heartbeat,
        changed=catalog.changed,
    )


def _abort_exchanges(pools: UpstreamPools) -> EventListener:
    """Break the exchanges with a pod that is gone; those under a lease have been told already."""

    def on_event(event: LifecycleEvent) -> None:
        if isinstance(event, StateChanged) and event.now not in POD_LIVES:
            pools.abort()

    return on_event


# --- the features -----------------------------------------------------------------------------------


def _costs(base: Infrastructure) -> CostQueries:
    # Older versions wrote the demo's sessions into the real ledger.
    simulated = base.simulated | ({DEMO} - set(base.settings.pod.provider))
    status, flush = base.fleet.main.status_now, base.recorder.flush
    return CostQueries(base.ledger, status, base.settings.cost.currency, _utc_now, flush, simulated)


async def _budget(base: Infrastructure, costs: CostQueries, source: Any) -> Feature:
    cost = base.settings.cost
    if not cost.monthly_budget or not set(base.settings.pod.provider) - base.simulated:
        return CallbackFeature()
    budget = BudgetMonitor(
        BudgetLimits(monthly=cost.monthly_budget, user_share=cost.user_share, currency=cost.currency),
        source or costs,
        source or base.ledger,
        on_verdict=base.fleet.main.set_budget_verdict,
        publish=base.events.publish,
        warn=lambda text, alarm: _log.error(text, alarm=True) if alarm else _log.info(text),
        wall=_utc_now,
        on_crash=log_crash,
    )
    await budget.prepare()
    return CallbackFeature(on_event=budget.on_event, start=budget.start, aclose=budget.aclose)


def _dead_man_switch(base: Infrastructure) -> Feature:
    if not base.settings.pod.lease:
        return CallbackFeature()
    switch = SwitchRenewer(
        base.settings.pod.lease,
        base.pod.put_renewal,
        partial(_serving_ollama, base),
        _warn,
        on_crash=log_crash,
    )
    return CallbackFeature(on_event=switch.on_event, start=switch.start, aclose=switch.aclose)


def _telegram(base: Infrastructure, fantasies: FantasyService, costs: CostQueries) -> Feature:
    if not base.settings.bot.enabled:
        return CallbackFeature(routes=TelegramWebhook(None, _refuse_update).routes)
    from gpugate.bot.feature import TelegramFeature  # its imports take time and memory

    def user_of(provider: str) -> str:
        row = base.recorder.open_rows.get(provider)
        return row.started_by if row is not None else ""

    return TelegramFeature(
        base.settings,
        lifecycle=base.fleet.main,
        session=base.session,
        fantasies=fantasies,
        costs=costs,
        user_of=user_of,
        state=base.state,
    )


# --- small ones -------------------------------------------------------------------------------------


def _serving_ollama(base: Infrastructure) -> Endpoint | None:
    serving = base.fleet.main.serving
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
