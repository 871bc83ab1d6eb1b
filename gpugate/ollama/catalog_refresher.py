"""Learns what the catalogue keeps from a pod that serves, and writes the catalogue to disk."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import orjson

from gpugate.errors import ModelNotFound
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.status import LifecycleEvent
from gpugate.ollama import catalog_responses as bodies
from gpugate.ollama.catalog_cache import LISTS, MAX_SHOWS, CatalogCache, CatalogMode
from gpugate.provider_api import Endpoint
from gpugate.tasks import CrashHandler, Supervised, spawn

WRITE_PAUSE_S = 1.0
"""Seconds between a change and its writing: changes that come together are written together."""

MOST_TRIES = 3
"""How often a `show` that fails is asked for, until the model changes or the pod becomes ready again."""

LIST_LIMIT_S = 3.0
"""How long one pod may take for its part of a list of all pods' models."""

_LIST_PATHS = {"tags": "/api/tags", "v1/models": "/v1/models", "ps": "/api/ps"}

_PATHS = {
    "version": "/api/version",
    "status": "/api/status",
    "tags": "/api/tags",
    "v1/models": "/v1/models",
}


class CatalogRefresher:
    """The catalog, and the tasks that fill it and write it to the disk.

    While a pod serves, its lists are fetched when it becomes ready, twice in each `interval_s` and after each
    change through the gateway; then the `show` of each model that is new or another one.

    Args:
        pods: of each provider's name, its pod as the catalog knows it.
        fetch: returns the body of a pod's 200 answer, else None; POST if there is a body.
        serving: returns the pod that serves, or None.
        interval_s: `pod.reconcile_interval`.
        warn: takes one line about the catalog's file.
        speaks_ollama: the pod has /api; otherwise its `/v1/models` alone is learned.
    """

    def __init__(
        self,
        mode: CatalogMode,
        models: tuple[str, ...],
        path: Path,
        *,
        named: Iterable[str],
        pulled: Iterable[str] = (),
        pods: Mapping[str, str],
        fetch: Callable[[Endpoint, str, bytes | None], Awaitable[bytes | None]],
        serving: Callable[[], ServingPod | None],
        interval_s: float,
        warn: Callable[[str], None],
        on_crash: CrashHandler | None = None,
        speaks_ollama: bool = True,
    ) -> None:
        self._due = asyncio.Event()
        self._speaks_ollama = speaks_ollama
        self._paths = _PATHS if speaks_ollama else {"v1/models": _PATHS["v1/models"]}
        self.catalog = CatalogCache(
            mode,
            models,
            path,
            named=named,
            pulled=pulled,
            pods=[*pods.values()],
            speaks_ollama=speaks_ollama,
            warn=warn,
            refresh=self._due.set,
        )
        self._pods = pods
        self._fetch = fetch
        self._serving = serving
        self._interval_s = interval_s
        self._on_crash = on_crash
        self._watching: Supervised | None = None
        self._writing: asyncio.Task[None] | None = None
        self._tries: Counter[tuple[object, ...]] = Counter()
        self._silent: ServingPod | None = None  # it did not answer in time when it was asked last

    def require(self, model: str | None, failure: str = "") -> None:
        """Refuse a request before it wakes the pod; one that serves answers for itself.

        Args:
            model: that the request names.
            failure: how the message begins: what cannot be done.

        Raises:
            ModelNotFound: the pod is known not to have the model.
        """
        if model is not None and self._serving() is None and self.catalog.refuses(model):
            raise ModelNotFound(model, failure)

    async def current_list(self, kind: str) -> bytes:
        """Return a list as of now: the pod's own, if it serves and answers in time, else the remembered one.

        A pod that let one list wait is asked for the next only once it has answered the watcher.

        Args:
            kind: "tags", "v1/models" or "ps".
        """
        path = _LIST_PATHS[kind]
        asks = self._speaks_ollama or kind == "v1/models"
        if asks and (pod := self._serving()) is not None and pod is not self._silent:
            try:
                async with asyncio.timeout(LIST_LIMIT_S):
                    body = await self._fetch(pod.endpoints["ollama"], path, None)
                    if body is not None:
                        return body
            except TimeoutError:
                self._silent = pod
                self._due.set()
        remembered = self.catalog.answer("GET", path)
        assert remembered is not None
        return remembered.body

    def on_event(self, event: LifecycleEvent) -> None:
        """Watch a pod that serves, as long as it does."""
        serves = self._serving() is not None
        if serves and self._watching is None:
            self._watching = Supervised(self._watch, "catalog:watch", on_crash=self._on_crash)
        elif not serves and self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def changed(self) -> None:
        """Write the cache to its file soon; called when it has changed."""
        if self._writing is None or self._writing.done():
            self._writing = spawn(self._write(), "catalog:write", on_crash=self._on_crash)

    async def aclose(self) -> None:
        """Cancel a fetch, and write what has not been written yet."""
        if self._watching is not None:
            await self._watching.aclose()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        await self.catalog.flush()

    async def _watch(self) -> None:
        pod: ServingPod | None = None
        while (serving := self._serving()) is not None:
            self._due.clear()
            if serving is not pod:
                pod = serving
                self.catalog.learn_from(self._pods[pod.provider])
                self._tries.clear()
                await self._learn(pod, self._paths)
            else:
                await self._learn(pod, [kind for kind in LISTS if kind in self._paths])
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s / 2):
                    await self._due.wait()

    async def _learn(self, pod: ServingPod, kinds: Iterable[str]) -> None:
        """Fetch these answers, and the `show` of each model that is new or has changed since."""
        entries: list[bodies.Entry] = []
        for kind in kinds:
            body = await self._ask(pod, kind, "", _PATHS[kind])
            document = bodies.parse(body or b"")
            if kind == "tags" and document is not None and bodies.is_good(kind, document):
                entries = bodies.entries_of(kind, document)
        for entry in reversed(entries[:MAX_SHOWS]):  # newest first; what is kept first is dropped first
            name = bodies.name_of("tags", entry)
            state = (name, entry.get("digest"), entry.get("modified_at"))
            if self._tries[state] < MOST_TRIES:
                self._tries[state] += 1
                body = orjson.dumps({"model": name})
                if await self._ask(pod, "show", bodies.canonical(name), "/api/show", body) is not None:
                    self._tries[state] = MOST_TRIES

    async def _ask(
        self, pod: ServingPod, kind: str, key: str, path: str, body: bytes | None = None
    ) -> bytes | None:
        """Fetch one answer and store it; None: there is none, or the pod does not serve any more."""
        if self._serving() is not pod:
            return None
        answer = await self._fetch(pod.endpoints["ollama"], path, body)
        if answer is None or self._serving() is not pod:
            return None
        self._silent = None
        if self.catalog.store(kind, key, answer):
            self.changed()
        return answer

    async def _write(self) -> None:
        await asyncio.sleep(WRITE_PAUSE_S)
        await self.catalog.flush()
