"""A running gateway: its features, how it is opened and how it is closed. `gpugate.app` builds it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import structlog
from attrs import frozen

from gpugate.api.routing import ApiRoutes as Routes
from gpugate.billing.ledger import Ledger
from gpugate.config import Settings
from gpugate.config.derive import longest_end_s
from gpugate.core.states import Status
from gpugate.fleet import Fleet, FleetPod
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.status import EventBus, EventListener, LifecycleEvent, ProviderProblem
from gpugate.observability.event_log import pod_field
from gpugate.observability.log import log_crash
from gpugate.proxy.listening import check_self, listen
from gpugate.proxy.server import GatewayServer, Listener
from gpugate.tasks import spawn

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


def ignore_event(_: LifecycleEvent) -> None:
    """Take an event and do nothing: the listener of a feature that needs none, which is not subscribed."""


@frozen(kw_only=True)
class CallbackFeature:
    """A `Feature` out of the callables that it needs; the others do nothing."""

    routes: Callable[[], Routes] = dict
    on_event: EventListener = ignore_event
    start: Callable[[], Coroutine[Any, Any, None]] = _nothing
    drain: Callable[[float], Coroutine[Any, Any, None]] = _nothing
    aclose: Callable[[], Coroutine[Any, Any, None]] = _nothing


@frozen(kw_only=True)
class Infrastructure:
    """What features are built upon.

    Attributes:
        state: the folder of `state.dir`.
        events: those of all pods.
        simulated: the providers among the configured ones that cost no real money.
    """

    settings: Settings
    state: Path
    session: aiohttp.ClientSession
    simulated: frozenset[str]
    ledger: Ledger
    events: EventBus
    fleet: Fleet
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
        server: GatewayServer,
    ) -> None:
        self.base = infrastructure
        self.settings = infrastructure.settings
        self.port = self.settings.server.port
        self._features = tuple(features)
        self._started: list[Feature] = []
        self._server = server
        self._is_open = False
        self._listener: Listener | None = None

    @property
    def lifecycle(self) -> Lifecycle:
        """The lifecycle of the first pod."""
        return self.base.fleet.first.lifecycle

    @property
    def failure(self) -> BaseException | None:
        """Why the lifecycle of a pod has failed, or None."""
        failures = (pod.lifecycle.failure for pod in self.base.fleet)
        return next((failure for failure in failures if failure is not None), None)

    # 1. The socket comes first: where the address is taken, nothing else may have been started.
    # 2. Each lifecycle inspects its providers, in the background.
    # 3. The features start. Nothing has given way to the event loop since the socket was opened, so no
    # request    is served before the budget has told the lifecycle what it allows.
    # 4. Only a gateway that answers a request says that it listens.
    async def open(self) -> None:
        """Listen, inspect the providers, start the features.

        Raises:
            CannotListen: the address is taken; nothing was started.
            SelfCheckFailed: it listens but does not answer; a pod that was found is treated as on any exit.
        """
        server = self.settings.server
        try:
            self._listener = listen(self._server, server.host, server.port, _log.warning)  # 1
            self.base.resources.callback(self._listener.close)
            self.port = self._listener.port
            for pod in self.base.fleet:  # 2
                await pod.lifecycle.open()
            self._is_open = True
            for feature in self._features:  # 3
                self._started.append(feature)
                await feature.start()
            await check_self(self._listener.addresses[0], "/api/v1/health")  # 4
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
        _log.info("listening", host=", ".join(server.host), port=self.port)

    async def close(self, *, keep: bool = False) -> bool:
        """Reject new requests, let running responses have their grace, stop the pod or keep it, end
        everything.

        `keep`: the pod is another gateway's from now on, whatever `server.on_exit` says. Returns False when a
        stop could not be confirmed in time.
        """
        server = self.settings.server
        if self._listener is not None:
            self._listener.close()
        drains = [
            spawn(feature.drain(server.shutdown_grace), "feature:drain", on_crash=log_crash)
            for feature in self._started
        ]
        keep = keep or server.on_exit == "keep"
        confirmed = await asyncio.gather(*(self._close_pod(pod, keep) for pod in self.base.fleet))
        if drains:
            await asyncio.wait(drains)
        for feature in reversed(self._started):
            try:
                await feature.aclose()
            except Exception as error:  # the others have to be closed all the same
                log_crash("feature:close", error)
        await self.base.resources.aclose()
        return all(confirmed)

    async def _close_pod(self, pod: FleetPod, keep: bool) -> bool:
        """Stop or keep one pod, and tell what became of it; return False when its stop is not confirmed."""
        confirmed = await self.base.fleet.close(pod, keep=keep, stop_wait_s=self.settings.server.stop_wait)
        name = pod_field(pod.name)
        if not confirmed:
            _log.error("the pod may still be running: its stop is not proved", alarm=True, **name)
            _report_unconfirmed_stop(pod)
        elif keep and pod.lifecycle.current_status is not Status.STOPPED:
            _log.info("the pod is kept for the next start", status=pod.lifecycle.current_status, **name)
        return confirmed

    def abort(self) -> None:
        """End the grace of whatever still runs: a second signal came. Does nothing before it is open."""
        if self._is_open:
            for pod in self.base.fleet:
                pod.lifecycle.abort_in_flight()
            for feature in self._started:
                spawn(feature.drain(0.0), "feature:abort", on_crash=log_crash)


def _report_unconfirmed_stop(pod: FleetPod) -> None:
    status = pod.lifecycle.status_now()
    pod.events.publish(
        ProviderProblem(
            provider=(status and status.provider) or "the provider",
            message="gpugate ends now, and the pod is not seen stopped",
            reason="ambiguous",
            alarm=True,
            at=datetime.now(UTC),
        )
    )
