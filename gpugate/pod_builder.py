"""The part of the composition root that makes one pod with all that is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from attrs import field, frozen

from gpugate.billing.ledger import Ledger
from gpugate.billing.recorder import SessionRecorder
from gpugate.billing.start_times import StartTimes
from gpugate.clock import boot_id, boottime
from gpugate.config import Settings, provider_config
from gpugate.config.derive import (
    fallback_price_of,
    named_models,
    pods_of,
    policy_of,
    second_slot_name,
    state_folder,
)
from gpugate.config.schema import PodSettings
from gpugate.core.idle_policy import LearnedIdlePolicy
from gpugate.core.request_queue import BodyBudget
from gpugate.core.states import StateName
from gpugate.errors import LedgerError
from gpugate.fleet import FleetPod
from gpugate.lifecycle.dead_man_switch import SwitchRenewer
from gpugate.lifecycle.gpu_need import gpu_need_of
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.pod_calls import OllamaPodClient, OpenAIPodClient
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.state_files import IdleHistoryFile, PendingStopFile
from gpugate.lifecycle.status import EventBus, EventListener, LifecycleEvent, PodEventBus, StateChanged
from gpugate.observability.history import History
from gpugate.observability.log import log_crash
from gpugate.ollama.catalog_refresher import CatalogRefresher
from gpugate.ollama.routes import WakePaths
from gpugate.operation.wake_rules import wake_policy
from gpugate.provider_api import MAIN_POD, Provider
from gpugate.proxy.forwarder import Forwarder, UpstreamPools
from gpugate.relay.relay import Relay

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

UNPROVED_STOPS = "unproved-stops.json"
"""The file of a pod's stops that are not proved, in its state folder."""

LEARNED_SESSIONS = 200
"""From how many sessions of the ledger is learned how long starts take."""


@frozen(kw_only=True)
class PodBuilder:
    """Makes pods out of what they share.

    Attributes:
        find: returns the class of a provider's name.
        state: the folder of `state.dir`.
        events: the bus of all pods.
        bodies: what the requests that wait may keep, in all pods together.
        wall: the wall clock, aware.
        alarm: takes a pod's name and a line for the log.
        warn: the same for a line of less weight.
        on_failure: called with the pod's name when its lifecycle has failed.
        resources: closes what the pods leave open.
        recorders: those of the pods so far.
    """

    settings: Settings
    find: Callable[[str], type[Provider]]
    session: aiohttp.ClientSession
    state: Path
    ledger: Ledger
    events: EventBus
    bodies: BodyBudget
    wall: Callable[[], datetime]
    alarm: Callable[[str, str], None]
    warn: Callable[[str, str], None]
    on_failure: Callable[[str], None]
    resources: AsyncExitStack
    recorders: list[SessionRecorder] = field(factory=list)

    async def build(self, pod: PodSettings) -> FleetPod:
        """Make one pod; nothing of it runs before its lifecycle is opened.

        Raises:
            SettingsError: a provider is not installed, or its section is wrong.
        """
        kinds = {name: self.find(name) for name in pod.pod.provider}
        configs = {
            name: provider_config(self.settings, name, kind.Config, pod) for name, kind in kinds.items()
        }
        providers = [self._provider(pod, name, kind, configs[name]) for name, kind in kinds.items()]
        providers += [
            self._provider(pod, second_slot_name(one.name), kinds[one.name], one.provider.config, slot=1)
            for one in providers
            if one.provider.capabilities.can_overlap and (pod.pod.max_session or one.provider.time_limit_s)
        ]
        recorder = await self._recorder(pod, [one.name for one in providers])
        events = PodEventBus(pod.name, self.events, [recorder.on_event], log_crash)
        client_class = OllamaPodClient if pod.pod.speaks_ollama else OpenAIPodClient
        client = client_class(self.session, pod.pod.probe_path)
        lifecycle = await self._lifecycle(pod, providers, recorder, events, client)
        catalog = self._catalog(pod, configs, providers, client, lifecycle)
        path = state_folder(self.state, pod) / "gpu-need.json"
        log = structlog.get_logger().info
        need = gpu_need_of(pod.pod.pull, catalog.catalog.sizes, path, log, kinds, configs)
        if need is not None:
            lifecycle.set_gpu_need(need)
        pools = UpstreamPools()
        self.resources.callback(pools.close)
        for listener in (catalog.on_event, abort_exchanges(pools)):
            events.subscribe(listener)
        return FleetPod(
            settings=pod,
            providers=providers,
            lifecycle=lifecycle,
            events=events,
            recorder=recorder,
            catalog=catalog,
            client=client,
            pools=pools,
            forwarder=Forwarder(lifecycle, Relay(), pools, rewrites=pod.pod.speaks_ollama),
            speaks_ollama=pod.pod.speaks_ollama,
            extra_paths=WakePaths.of(pod.pod.extra_paths),
        )

    def _provider(
        self, pod: PodSettings, name: str, kind: type[Provider], config: Any, slot: int = 0
    ) -> ConfiguredProvider:
        provider = kind(config, self.session)
        provider.pod_name, provider.slot, provider.max_session_s = pod.name, slot, pod.pod.max_session
        return ConfiguredProvider(name, provider)

    async def _recorder(self, pod: PodSettings, providers: Sequence[str]) -> SessionRecorder:
        recorder = SessionRecorder(
            self.ledger,
            pod=pod.name,
            pods=[one.name for one in self.settings.pods],
            fallback=fallback_price_of(self.settings),
            wall=self.wall,
            boottime=boottime,
            boot_id=boot_id(),
            alarm=partial(self.alarm, pod.name),
            on_crash=log_crash,
        )
        await recorder.open(providers)
        self.recorders.append(recorder)
        return recorder

    async def close_recorders(self) -> None:
        """Write the last rows of all pods at once: a disk that hangs is waited for once."""
        await asyncio.gather(*(recorder.aclose() for recorder in self.recorders))

    async def _lifecycle(
        self,
        pod: PodSettings,
        providers: Sequence[ConfiguredProvider],
        recorder: SessionRecorder,
        events: PodEventBus,
        client: OllamaPodClient | OpenAIPodClient,
    ) -> Lifecycle:
        learns, folder = pod.pod.idle_policy == "learned", state_folder(self.state, pod)
        warn = partial(self.warn, pod.name)
        lifecycle = Lifecycle(
            name=pod.name,
            providers=providers,
            pod=client,
            policy=policy_of(self.settings, pod, [one.provider for one in providers]),
            fallback_price=fallback_price_of(self.settings),
            events=events,
            pending_stops=PendingStopFile(folder / UNPROVED_STOPS, warn),
            idle_policy=LearnedIdlePolicy(pod.pod.idle_timeout) if learns else None,
            idle_history=IdleHistoryFile(folder / "habits.json", warn) if learns else None,
            recorder=recorder,
            start_times=await self._start_times(pod.name),
            boottime=boottime,
            bodies=self.bodies,
            on_crash=log_crash,
            on_failure=partial(self.on_failure, pod.name),
        )
        lifecycle.wake_policy = wake_policy(self.settings.wake, self.settings.cost.timezone, self.wall)
        return lifecycle

    async def _start_times(self, pod: str) -> StartTimes:
        times = StartTimes()
        with suppress(LedgerError):  # that is told where a session is written
            times.add_sessions(reversed(await self.ledger.starts(LEARNED_SESSIONS, pod=pod)))
        return times

    def _catalog(
        self,
        pod: PodSettings,
        configs: Mapping[str, Any],
        providers: Sequence[ConfiguredProvider],
        client: OllamaPodClient | OpenAIPodClient,
        lifecycle: Lifecycle,
    ) -> CatalogRefresher:
        settings = self.settings.catalog
        return CatalogRefresher(
            settings.when_stopped,
            settings.models,
            state_folder(self.state, pod) / "catalog.json",
            pulled=pod.pod.pull,
            named=named_models(self.settings, pod, [one.provider for one in providers]),
            pods=pods_of(pod, configs),
            fetch=client.fetch,
            serving=lambda: lifecycle.serving,
            interval_s=pod.pod.reconcile_interval,
            warn=partial(self.warn, pod.name),
            on_crash=log_crash,
            speaks_ollama=pod.pod.speaks_ollama,
        )


def left_stops(state: Path, pods: Sequence[PodSettings], warn: Callable[[str], None]) -> list[str]:
    """Return a line for each pod that is not configured any more and has a stop that is not proved.

    No lifecycle goes on with these stops: where they failed, a pod is still paid for.

    Args:
        state: the folder of `state.dir`.
        warn: takes a line about a file that cannot be read.
    """
    folders = {state_folder(state, pod) for pod in pods}
    lines = []
    for path in (state / UNPROVED_STOPS, *sorted(state.glob(f"pods/*/{UNPROVED_STOPS}"))):
        if path.parent not in folders and (providers := PendingStopFile(path, warn).load()):
            name = MAIN_POD if path.parent == state else path.parent.name
            where = " and ".join(sorted(providers))
            lines.append(
                f"the pod {name!r} is not configured any more, and its stop at {where} is not proved:"
                f" see there that nothing of it runs, then delete {path}"
            )
    return lines


def abort_exchanges(pools: UpstreamPools) -> EventListener:
    """Break the exchanges with a pod that is gone; those under a lease have been told already."""

    def on_event(event: LifecycleEvent) -> None:
        if isinstance(event, StateChanged) and event.now not in POD_LIVES:
            pools.abort()

    return on_event


def switch_renewer(pod: FleetPod, warn: Callable[[str], None]) -> SwitchRenewer | None:
    """Return what renews the lease of a pod that stops itself without it; None where none is configured."""
    if not pod.settings.pod.lease or not isinstance(pod.client, OllamaPodClient):
        return None
    return SwitchRenewer(
        pod.settings.pod.lease,
        pod.client.put_renewal,
        lambda: None if (serving := pod.lifecycle.serving) is None else serving.endpoints["ollama"],
        warn,
        on_crash=log_crash,
    )


def history_of(pod: FleetPod) -> History:
    """Return a history of a pod that hears its events from now on."""

    def session_of(provider: str) -> str | None:
        row = pod.recorder.open_rows.get(provider)
        return row.id if row is not None else None

    history = History(session_of, pod.lifecycle.last_use)
    pod.events.subscribe(history.on_event)
    return history
