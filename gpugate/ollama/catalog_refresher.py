"""Keeps the catalogue fresh and on disk, in tasks of its own; what the answers mean is not its business."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gpugate.ollama.catalog_cache import CatalogCache
from gpugate.provider_api import Endpoint
from gpugate.tasks import CrashHandler, spawn

WRITE_PAUSE_S = 1.0
"""Changes that come together are written together."""

_PATHS = {
    "version": "/api/version",
    "tags": "/api/tags",
    "v1/models": "/v1/models",
    "status": "/api/status",
}


class CatalogSource(Protocol):
    """Where the lists come from."""

    async def get(self, endpoint: Endpoint, path: str) -> bytes | None:
        """The body of a 200 answer to `GET path`, else None."""


class CatalogRefresher:
    """The tasks behind a `CatalogCache`."""

    def __init__(
        self, catalog: CatalogCache, source: CatalogSource, on_crash: CrashHandler | None = None
    ) -> None:
        self._catalog = catalog
        self._source = source
        self._on_crash = on_crash
        self._endpoint: Endpoint | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    def fetch(self, endpoint: Endpoint) -> None:
        """Ask this pod for its lists, once; a fetch that is under way goes on."""
        self._endpoint = endpoint
        if self._fetching is None or self._fetching.done():
            self._fetching = spawn(self._fetch(endpoint), "catalog:fetch", on_crash=self._on_crash)

    def refresh(self) -> None:
        """The models changed: ask the pod again."""
        if self._endpoint is not None:
            self.fetch(self._endpoint)

    def changed(self) -> None:
        """Something new is in the catalogue: write it soon."""
        if self._writing is None or self._writing.done():
            self._writing = spawn(self._write(), "catalog:write", on_crash=self._on_crash)

    async def aclose(self) -> None:
        """Drop a fetch, write what is not written yet."""
        tasks = [task for task in (self._fetching, self._writing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._catalog.flush()

    async def _fetch(self, endpoint: Endpoint) -> None:
        for kind, path in _PATHS.items():
            body = await self._source.get(endpoint, path)
            if body is not None and self._catalog.store(kind, "", body):
                self.changed()

    async def _write(self) -> None:
        await asyncio.sleep(WRITE_PAUSE_S)
        await self._catalog.flush()
