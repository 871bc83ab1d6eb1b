"""Declares gpugate's own endpoints; the dispatcher looks them up by path and method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from attrs import frozen

from gpugate.proxy.request_context import RequestContext

Handler = Callable[[RequestContext], Awaitable[web.StreamResponse]]


@frozen
class ApiRoute:
    """One of gpugate's own endpoints.

    Attributes:
        scope: the scope that a token needs; None: any valid token will do.
        public: needs no token.
    """

    handler: Handler
    scope: str | None = None
    public: bool = False


ApiRoutes = Mapping[str, Mapping[str, ApiRoute]]
"""By path, then by method."""
