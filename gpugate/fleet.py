"""The pods by name, and which of them serves a request.

Theory of operation. Each pod has a lifecycle, a queue, an idle timer and a catalogue of its own, and nothing
here waits for any of them: a pod whose provider hangs delays no other one. Which pod serves a request is
decided once, from the request alone (docs/api.md#which-pod):

1. The header `X-Gpugate-Pod`, where there is one. A name that no pod has is 404.
2. With one pod: that one. The request's body is not looked at.
3. The first pod in the file whose patterns match the model that the request names.
4. The first pod whose remembered catalogue has the model; one that has the request's path goes before others.
5. The first pod that has the path: Ollama's own API, or one of `pod.extra_paths`; else the first pod.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from fnmatch import translate
from types import MappingProxyType
from urllib.parse import unquote

from attrs import frozen

from gpugate.billing.recorder import SessionRecorder
from gpugate.config.schema import PodSettings
from gpugate.core.request_queue import other_name
from gpugate.errors import ModelNotFound, PathNotFound
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.pod_calls import HttpPodClient
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.status import PodEventBus
from gpugate.ollama.catalog_refresher import CatalogRefresher
from gpugate.ollama.catalog_responses import spellings
from gpugate.ollama.routes import Route, WakePaths
from gpugate.ollama.validation import MAX_MODEL_NAME
from gpugate.proxy.forwarder import Forwarder, UpstreamPools
from gpugate.tasks import CrashHandler, report_to_loop, spawn

POD_HEADER = "X-Gpugate-Pod"
"""The request header that names the pod; it is not forwarded (`relay/headers.py`)."""

MAX_REMEMBERED = 4096
"""For how many models is kept which pod's patterns match them; clients can name any number of models."""


@frozen(kw_only=True, eq=False)
class FleetPod:
    """One pod with all that is its own.

    Attributes:
        settings: its part of the configuration.
        providers: in the order in which a start asks them.
        events: those of this pod.
        recorder: keeps its rows of the ledger.
        catalog: what is remembered of its models.
        client: for gpugate's own calls to it.
        pools: the connections to it.
        forwarder: brings requests to it.
        speaks_ollama: its engine has Ollama's own API.
        extra_paths: `pod.extra_paths`.
    """

    settings: PodSettings
    providers: Sequence[ConfiguredProvider]
    lifecycle: Lifecycle
    events: PodEventBus
    recorder: SessionRecorder
    catalog: CatalogRefresher
    client: HttpPodClient
    pools: UpstreamPools
    forwarder: Forwarder
    speaks_ollama: bool
    extra_paths: WakePaths

    @property
    def name(self) -> str:
        """Its name in the configuration; `main` without `[pods]`."""
        return self.settings.name

    def has_path(self, route: Route) -> bool:
        """Say whether its engine has the path of a route, as far as is known."""
        if route.is_extra:
            return self.extra_paths.cover(unquote(route.upstream_path))
        return self.speaks_ollama or not route.is_native

    def require(self, model: str | None, failure: str = "") -> None:
        """Refuse what is asked of Ollama's own API before it wakes the pod; see `CatalogRefresher.require`.

        Raises:
            ModelNotFound: the engine is another one, or the pod is known not to have the model.
        """
        if not self.speaks_ollama and model is not None:
            raise ModelNotFound(model, failure)
        self.catalog.require(model, failure)


class Fleet:
    """All pods of a gateway.

    Attributes:
        pods: by name, in the file's order, read-only.
        first: the first of them.
        only: the one pod, or None where there are several.
        has_other_engines: a pod has no API of Ollama's.
    """

    def __init__(self, pods: Sequence[FleetPod], on_crash: CrashHandler = report_to_loop) -> None:
        self.pods = MappingProxyType({pod.name: pod for pod in pods})
        self.first = pods[0]
        self.only = pods[0] if len(pods) == 1 else None
        self.has_other_engines = not all(pod.speaks_ollama for pod in pods)
        self._on_crash = on_crash
        self._patterns = [(pod, _pattern_of(pod.settings.models)) for pod in pods if pod.settings.models]
        self._by_pattern: dict[str, FleetPod | None] = {}
        self._closings: dict[str, asyncio.Task[bool]] = {}

    def __iter__(self) -> Iterator[FleetPod]:
        return iter(self.pods.values())

    def named(self, name: str) -> FleetPod:
        """Return the pod of this name.

        Raises:
            PathNotFound: there is none.
        """
        pod = self.pods.get(name)
        if pod is None:
            raise PathNotFound(f"there is no such pod; there is {', '.join(self.pods)}")
        return pod

    def pod_for(self, model: str | None, route: Route | None = None) -> FleetPod:
        """Return the pod that serves requests for this model; None: a request that names none."""
        if self.only is not None:
            return self.first
        able: Iterable[FleetPod] = self
        if route is not None and (route.is_extra or (route.is_native and self.has_other_engines)):
            able = [pod for pod in self if pod.has_path(route)]
        first = next(iter(able), self.first)
        if not model:
            return first
        return self._pod_by_pattern(model) or self._pod_that_has(model, able) or first

    def reading_body(self, name: str | None) -> AbstractContextManager[Callable[[int], None]]:
        """Count a body while it is read; see `Lifecycle.reading_body`.

        Without a name the pod is only known once the body is: it is counted at the pod that has most room, so
        that the full queue of one keeps no request from the others.

        Args:
            name: of the pod, if the request's header names one.

        Raises:
            PathNotFound: there is no pod of this name.
        """
        if name is not None:
            return self.named(name).lifecycle.reading_body()
        ready = (pod for pod in self if pod.lifecycle.serving is not None and not pod.lifecycle.waiting)
        pod = next(ready, None) or min(self, key=lambda pod: pod.lifecycle.waiting)
        return pod.lifecycle.reading_body()

    def close(self, pod: FleetPod, *, keep: bool, stop_wait_s: float) -> asyncio.Task[bool]:
        """Begin to close a pod's lifecycle, see there; a second call returns the first one's task.

        Called for all pods when the gateway ends, and before that for one whose lifecycle has failed.
        """
        if pod.name not in self._closings:
            closing = pod.lifecycle.close(keep=keep, stop_wait_s=stop_wait_s)
            self._closings[pod.name] = spawn(closing, f"close:{pod.name}", on_crash=self._on_crash)
        return self._closings[pod.name]

    def _pod_by_pattern(self, model: str) -> FleetPod | None:
        try:
            return self._by_pattern[model]
        except KeyError:
            names = (model, other_name(model))
            found = next((pod for pod, pattern in self._patterns if any(map(pattern.match, names))), None)
        if len(model) <= MAX_MODEL_NAME:
            if len(self._by_pattern) >= MAX_REMEMBERED:
                self._by_pattern.clear()
            self._by_pattern[model] = found
        return found

    def _pod_that_has(self, model: str, able: Iterable[FleetPod]) -> FleetPod | None:
        names = spellings(model)
        pods = self if able is self else (*able, *self)
        return next((pod for pod in pods if pod.catalog.catalog.has(names)), None)


def _pattern_of(models: Sequence[str]) -> re.Pattern[str]:
    """Return what matches the whole name of a model by patterns in which only `*` and `?` are wild.

    `fnmatch` makes expressions that take no longer than the name is long, whatever clients name.
    """
    return re.compile("|".join(translate(pattern.replace("[", "[[]")) for pattern in models))
