"""The only place where the rooms meet: settings in, a running gateway out. Nothing is decided here."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import aiohttp
import structlog
from aiohttp import web

from gpugate.api.costs import CostApi
from gpugate.api.events import SseBroadcaster
from gpugate.api.generation import GenerationApi
from gpugate.api.gpu import GpuApi
from gpugate.billing.budget import BudgetLimits, BudgetMonitor, ThresholdStore
from gpugate.billing.ledger import Ledger, SplitLedger
from gpugate.billing.reconciliation import BillReconciler
from gpugate.billing.recorder import SessionRecorder
from gpugate.billing.reports import CostQueries
from gpugate.billing.sqlite_ledger import SqliteLedger, UnavailableLedger
from gpugate.bot.feature import TelegramFeature, disabled
from gpugate.clock import boot, steady
from gpugate.config import Settings, provider_config
from gpugate.config.derive import fallback_price_of, longest_end_s, policy_of
from gpugate.core.idle_policy import LearnedIdlePolicy
from gpugate.core.states import StateName, Status
from gpugate.errors import LedgerError
from gpugate.generation.code_assist import SYSTEM, CodeAssist, CodeStream
from gpugate.generation.comfyui import ComfyUIBackend
from gpugate.generation.fantasy import FantasyService
from gpugate.generation.images import ImageService
from gpugate.generation.stories import StoryService
from gpugate.generation.text_model import OllamaTextModel
from gpugate.generation.workflows import load as load_workflows
from gpugate.lifecycle.dead_man_switch import PodLease
from gpugate.lifecycle.event_bus import News, Transition
from gpugate.lifecycle.idle_history_file import HabitsFile
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.ollama_pod_client import OllamaPod
from gpugate.lifecycle.pending_stop_store import DebtsFile
from gpugate.lifecycle.provider_worker import NamedProvider
from gpugate.observability.event_log import log_event
from gpugate.observability.log import AccessLog, configure, log_crash
from gpugate.observability.redact import secrets_of
from gpugate.ollama.catalog_cache import CatalogCache
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
from gpugate.relay import Relay
from gpugate.tasks import spawn

CLEANUP_S = 2.0
"""How long the server waits for its last handlers once the lifecycle has closed."""

LEDGER = "ledger.sqlite3"
DEMO = "demo"

POD_LIVES = frozenset({StateName.WARMING, StateName.PRELOADING, StateName.READY, StateName.DRAINING})
"""States in which an exchange with the pod may be under way."""


class Gateway:
    """A whole gateway on one loop.

    Attributes:
        port: where it listens, once open.
        lifecycle: for tests and for signals.

    Args:
        settings: the whole configuration.
        find: the class of a provider's name; tests bring their own.
        money: what was spent, and what was told of it.
        on_failure: called when the lifecycle has failed: `close` stops the pod then, and has to follow.

    Raises:
        SettingsError: a provider is not installed, its section is wrong, or a workflow is.
    """

    lifecycle: Lifecycle

    def __init__(
        self,
        settings: Settings,
        find: Callable[[str], type[Provider]] = registry.find,
        money: tuple[CostQueries, ThresholdStore] | None = None,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self.settings = settings
        self._on_failure = on_failure
        self._money = money
        self.port = settings.server.port
        self._stack = AsyncExitStack()
        self._kinds = {name: find(name) for name in settings.pod.provider}
        self._configs = {
            name: provider_config(settings, name, kind.Config) for name, kind in self._kinds.items()
        }
        comfyui = settings.comfyui
        self._workflows = load_workflows(comfyui.workflow, comfyui.workflows_dir, comfyui.checkpoint)
        self._output = configure(
            settings.log.format,
            settings.log.level,
            secrets=secrets_of(settings.auth, settings.bot, settings.pod, *self._configs.values()),
        )
        self._log = structlog.get_logger()
        self._hub = SseBroadcaster(lambda: self.lifecycle.snapshot(), lambda: self.lifecycle.status())
        self._state = Path(settings.state.dir)
        self._pools = UpstreamPools()
        self._lease: PodLease | None = None
        self._telegram_feature: TelegramFeature | None = None
        self._budget: BudgetMonitor | None = None
        self._ledger: Ledger
        self._books: SessionRecorder
        self._simulated: set[str] = set()  # of the providers
        self._is_open = False

    async def open(self) -> None:
        """Build, look at the providers, listen.

        Raises:
            OSError: the address is taken; nothing has been started then.
            SelfCheckFailed: it listens, and does not answer; what it had found is left as `on_exit` says.
        """
        try:
            await self._open()
        except BaseException:
            if self._is_open:
                await self.close()
            else:
                await self._stack.aclose()
            raise

    @property
    def failure(self) -> BaseException | None:
        """Why the lifecycle has failed, or None."""
        return self.lifecycle.failure

    async def _open(self) -> None:
        settings = self.settings
        os.environ["GPUGATE_STATE_DIR"] = str(self._state)  # providers keep their own state there
        session = await self._stack.enter_async_context(_session())
        providers = [
            NamedProvider(name, kind(self._configs[name], session)) for name, kind in self._kinds.items()
        ]
        pod = OllamaPod(session, settings.pod.health_path)
        catalog = self._new_catalog()
        self._keeper = CatalogRefresher(catalog, pod, log_crash)
        self._simulated = {named.name for named in providers if named.provider.capabilities.simulated}
        self._books = await self._open_books()
        self.lifecycle = self._new_lifecycle(providers, pod, self._books)
        if settings.pod.lease:
            self._lease = PodLease(settings.pod.lease, pod, self._pods_ollama, self._warn, on_crash=log_crash)
            self._stack.push_async_callback(self._lease.aclose)
        await self._open_costs(providers, self._books)
        gate = self._gate(session, catalog)
        self._runner = web.ServerRunner(
            GatewayServer(gate.handle, gate.answer_malformed, log_crash), shutdown_timeout=CLEANUP_S
        )
        await self._runner.setup()
        self._stack.push_async_callback(self._runner.cleanup)
        self.port = await listen(self._runner, settings.server.host, settings.server.port)
        await self.lifecycle.open()
        self._is_open = True
        if self._budget is not None:  # nothing was awaited since the socket: nobody came before this
            await self._budget.start()
            self._stack.push_async_callback(self._budget.aclose)
        if self._telegram_feature is not None:
            await self._telegram_feature.start()
            self._stack.push_async_callback(self._telegram_feature.aclose)
        await check_self(self._runner, "/api/v1/health")
        gc.freeze()  # what is here now stays: the collector need not walk it again
        self._log.info(
            "an orderly end may take so long: `docker stop -t`, TimeoutStopSec and the like must allow it",
            seconds=longest_end_s(settings),
        )
        self._log.info("listening", host=settings.server.host, port=self.port)

    async def close(self) -> bool:
        """Refuse newcomers, let running answers have their grace, stop the pod (or keep it), let all go.

        Returns False when a stop could not be proved in time.
        """
        settings = self.settings.server
        for site in list(self._runner.sites):
            await site.stop()  # closes its socket, and waits for nothing
        drained = spawn(self._drained(settings.shutdown_grace), "bot: drains", on_crash=log_crash)
        proved = await self.lifecycle.close(keep=settings.on_exit == "keep", stop_wait_s=settings.stop_wait)
        await asyncio.wait([drained])
        if not proved:
            self._log.error("the pod may still be running: its stop is not proved", alarm=True)
            if self._telegram_feature is not None:
                status = self.lifecycle.snapshot()
                self._telegram_feature.notify_unconfirmed_stop((status and status.provider) or "the provider")
        elif settings.on_exit == "keep" and self.lifecycle.word is not Status.STOPPED:
            self._log.info("the pod is kept for the next start", status=self.lifecycle.word)
        await self._hub.aclose()
        await self._keeper.aclose()
        await self._stack.aclose()
        return proved

    def cut(self) -> None:
        """Break off what still runs: somebody asked a second time. Nothing does before it is open."""
        if self._is_open:
            self.lifecycle.cut()
            if self._telegram_feature is not None:
                self._telegram_feature.abort()

    async def _drained(self, grace_s: float) -> None:
        if self._telegram_feature is not None:
            await self._telegram_feature.drain(grace_s)

    def _new_catalog(self) -> CatalogCache:
        return CatalogCache(
            self.settings.catalog.when_stopped,
            self.settings.catalog.models,
            self._state / "catalog.json",
            warn=self._warn,
            refresh=lambda: self._keeper.refresh(),
        )

    def _new_lifecycle(
        self, providers: list[NamedProvider], pod: OllamaPod, books: SessionRecorder
    ) -> Lifecycle:
        settings = self.settings
        learns = settings.pod.idle_policy == "learned"
        return Lifecycle(
            providers=providers,
            pod=pod,
            policy=policy_of(settings, [named.provider for named in providers]),
            debts=DebtsFile(self._state / "unproved-stops.json", self._warn),
            fallback_price=fallback_price_of(settings),
            listeners=[log_event, self._hub.on_event, self._hear],
            on_crash=log_crash,
            idle=LearnedIdlePolicy(settings.pod.idle_timeout) if learns else None,
            habits=HabitsFile(self._state / "habits.json", self._warn) if learns else None,
            books=books,
            steady=steady,
            on_failure=self._on_failure,
        )

    async def _open_costs(self, providers: list[NamedProvider], books: SessionRecorder) -> None:
        currency, wall = self.settings.cost.currency, partial(datetime.now, UTC)
        # Older versions wrote the demo's sessions into the real ledger.
        simulated = self._simulated | ({DEMO} - self._kinds.keys())
        self._costs = CostQueries(
            self._ledger, self.lifecycle.snapshot, currency, wall, books.flush, simulated
        )
        self._reconcile = BillReconciler(self._costs, providers, currency, wall)
        pays = self._kinds.keys() - self._simulated
        if self.settings.cost.monthly_budget and pays:
            self._budget = self._new_budget(*(self._money or (self._costs, self._ledger)))
            await self._budget.prepare()

    def _gate(self, session: aiohttp.ClientSession, catalog: CatalogCache) -> RequestDispatcher:
        settings = self.settings
        jwks = self._jwks(session) if settings.auth.jwks_url else None
        verifier = Verifier(
            secret=settings.auth.secret,
            algorithms=settings.auth.algorithms,
            issuer=settings.auth.issuer,
            audience=settings.auth.audience,
            leeway_s=settings.auth.leeway,
            require_exp=settings.auth.require_exp,
            jwks=jwks,
        )
        self._stack.callback(self._pools.close)
        ollama = OllamaHandlers(
            lifecycle=self.lifecycle,
            forwarder=Forwarder(self.lifecycle, Relay(), self._pools),
            catalog=catalog,
            max_body=settings.server.max_body,
            heartbeat_s=settings.queue.heartbeat,
            changed=self._keeper.changed,
        )
        services = self._services(session)
        if self.settings.bot.enabled:
            self._telegram_feature = self._new_telegram_feature(session, services)
        telegram = self._telegram_feature.routes() if self._telegram_feature is not None else disabled()
        return RequestDispatcher(
            verifier=verifier,
            ollama=ollama,
            own={
                **GpuApi(self.lifecycle).routes(),
                **self._hub.routes(),
                **CostApi(self._costs, self._reconcile).routes(),
                **services.routes(),
                **telegram,
            },
            cors=Cors(settings.server.cors_origins),
            log=AccessLog(self._output),
            path_tokens=settings.auth.path_tokens,
            on_crash=log_crash,
        )

    async def _open_books(self) -> SessionRecorder:
        """The ledger and who keeps it; with a ledger that cannot be used no pod is started, but all stop."""
        self._ledger = await self._open_ledger()
        books = SessionRecorder(
            self._ledger,
            fallback=fallback_price_of(self.settings),
            wall=lambda: datetime.now(UTC),
            steady=steady,
            boot=boot(),
            alarm=lambda said: self._say(f"ledger: {said}", alarm=True),
            on_crash=log_crash,
        )
        await books.open(self._kinds)
        self._stack.push_async_callback(books.aclose)
        return books

    async def _open_ledger(self) -> Ledger:
        """`state.dir` has the real ledger, and its folder `simulated` that of simulated providers."""
        simulated = self._simulated
        if not simulated:
            return await self._open_file(self._state / LEDGER)
        play = await self._open_file(self._state / "simulated" / LEDGER)
        if simulated == self._kinds.keys():
            return play
        return SplitLedger(await self._open_file(self._state / LEDGER), play, simulated)

    async def _open_file(self, path: Path) -> Ledger:
        ledger: Ledger
        try:
            ledger = await SqliteLedger.open(path)
        except LedgerError as error:
            ledger = UnavailableLedger(error)
        self._stack.push_async_callback(ledger.aclose)
        return ledger

    def _new_telegram_feature(
        self, session: aiohttp.ClientSession, services: GenerationApi
    ) -> TelegramFeature:
        return TelegramFeature(
            self.settings,
            lifecycle=self.lifecycle,
            session=session,
            fantasies=services.fantasies,
            costs=self._costs,
            user_of=self._user_of,
            state=self._state,
        )

    def _services(self, session: aiohttp.ClientSession) -> GenerationApi:
        models, comfyui = self.settings.models, self.settings.comfyui
        texts = OllamaTextModel(session)
        stories = StoryService(texts, models.vision, models.story)
        pictures = ImageService(
            ComfyUIBackend(session, comfyui.poll_interval, comfyui.timeout), self._workflows
        )
        return GenerationApi(
            lifecycle=self.lifecycle,
            texts=texts,
            coding=CodeAssist(models.code, models.code_system or SYSTEM),
            code_stream=CodeStream(Relay(), self._pools),
            stories=stories,
            images=pictures,
            fantasies=FantasyService(stories, pictures),
            max_body=self.settings.server.max_body,
            heartbeat_s=self.settings.queue.heartbeat,
        )

    def _new_budget(self, spending: CostQueries, told: ThresholdStore) -> BudgetMonitor:
        cost = self.settings.cost

        return BudgetMonitor(
            BudgetLimits(monthly=cost.monthly_budget, user_share=cost.user_share, currency=cost.currency),
            spending,
            told,
            on_verdict=self.lifecycle.judge,
            publish=self.lifecycle.tell,
            warn=self._say,
            wall=lambda: datetime.now(UTC),
            on_crash=log_crash,
        )

    def _say(self, text: str, alarm: bool) -> None:
        if alarm:
            self._log.error(text, alarm=True)
        else:
            self._log.info(text)

    def _user_of(self, provider: str) -> str:
        """Who wanted the session that is open there."""
        row = self._books.open_rows.get(provider)
        return row.started_by if row is not None else ""

    def _jwks(self, session: aiohttp.ClientSession) -> JwksCache:
        def told(trouble: str | None) -> None:
            self._warn(f"the identity provider: {trouble or 'answers again'}")

        jwks = JwksCache(http_fetch(session, self.settings.auth.jwks_url), on_status=told)
        self._stack.push_async_callback(jwks.aclose)
        return jwks

    def _hear(self, news: News) -> None:
        """A pod that becomes ready is asked for its catalogue, so that it is known when it sleeps.

        Of one that is no more nothing will come: what still waits for it without a lease hears so now.
        """
        if self._budget is not None:
            self._budget.on_event(news)
        if self._telegram_feature is not None:
            self._telegram_feature.on_event(news)
        if not isinstance(news, Transition):
            return
        if news.status is Status.READY and self.lifecycle.serving is not None:
            self._keeper.fetch(self.lifecycle.serving.endpoints["ollama"])
            if self._lease is not None:
                self._lease.renew_soon()
        elif news.now not in POD_LIVES:
            self._pools.abort()

    def _pods_ollama(self) -> Endpoint | None:
        serving = self.lifecycle.serving
        return serving.endpoints["ollama"] if serving is not None else None

    def _warn(self, text: str) -> None:
        self._log.warning(text)


def _session() -> aiohttp.ClientSession:
    """For the gateway's own calls; a CDN refuses clients without a User-Agent (docs/providers.md#user-agent).

    Without a limit on connections: a hundred pictures that wait, each with its websocket, would keep every
    other call from the pod and from the provider, a stop included.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"User-Agent": f"gpugate/{version('gpugate')}"},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=30),
    )
