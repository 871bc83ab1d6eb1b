"""Fetches the answers that the catalogue keeps from a pod that serves, and writes the catalogue to disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from gpugate.core.states import Status
from gpugate.lifecycle.status import LifecycleEvent, StateChanged
from gpugate.ollama.catalog_cache import CatalogCache, CatalogMode
from gpugate.provider_api import Endpoint
from gpugate.tasks import CrashHandler, spawn

WRITE_PAUSE_S = 1.0
"""Seconds between a change and its writing: changes that come together are written together."""

_PATHS = {
    "version": "/api/version",
    "tags": "/api/tags",
    "v1/models": "/v1/models",
    "status": "/api/status",
}


class CatalogRefresher:
    """The catalog, and the tasks that fill it and write it to the disk.

    Args:
        get: returns the body of a pod's 200 answer to `GET path`, else None.
        serving: returns the endpoint of the serving pod's Ollama, or None.
        warn: takes one line about the catalog's file.
    """

    def __init__(
        self,
        mode: CatalogMode,
        models: tuple[str, ...],
        path: Path,
        *,
        get: Callable[[Endpoint, str], Awaitable[bytes | None]],
        serving: Callable[[], Endpoint | None],
        warn: Callable[[str], None],
        on_crash: CrashHandler | None = None,
    ) -> None:
        self.catalog = CatalogCache(mode, models, path, warn=warn, refresh=self.refresh)
        self._get = get
        self._serving = serving
        self._on_crash = on_crash
        self._endpoint: Endpoint | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    def on_event(self, event: LifecycleEvent) -> None:
        """Ask a pod that becomes ready for its lists, so that they are known while no pod runs."""
        ready = isinstance(event, StateChanged) and event.status is Status.READY
        if ready and (endpoint := self._serving()) is not None:
            self.fetch(endpoint)

    def fetch(self, endpoint: Endpoint) -> None:
        """Fetch the lists of this pod once, unless a fetch is under way."""
        self._endpoint = endpoint
        if self._fetching is None or self._fetching.done():
            self._fetching = spawn(self._fetch(endpoint), "catalog:fetch", on_crash=self._on_crash)

    def refresh(self) -> None:
        """Fetch the lists again; called when the models on the pod have changed."""
        if self._endpoint is not None:
            self.fetch(self._endpoint)

    def changed(self) -> None:
        """Write the cache to its file soon; called when it has changed."""
        if self._writing is None or self._writing.done():
            self._writing = spawn(self._write(), "catalog:write", on_crash=self._on_crash)

    async def aclose(self) -> None:
        """Cancel a fetch, and write what has not been written yet."""
        tasks = [task for task in (self._fetching, self._writing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.catalog.flush()

    async def _fetch(self, endpoint: Endpoint) -> None:
        for kind, path in _PATHS.items():
            body = await self._get(endpoint, path)
            if body is not None and self.catalog.store(kind, "", body):
                self.changed()

    async def _write(self) -> None:
        await asyncio.sleep(WRITE_PAUSE_S)
        await self.catalog.flush()
