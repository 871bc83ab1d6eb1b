"""The dashboard's files: a page at `/dashboard` and what it loads from below it (docs/dashboard.md).

The files are public and hold no data: the page asks for a token, keeps it in the session storage of its tab,
and calls the endpoints that every client has. All paths in them are relative, so that a path prefix of a
reverse proxy is no setting. Nothing in here knows of the pod.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from importlib.resources import files

from aiohttp import web

from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.proxy.request_context import RequestContext

PAGE = "/dashboard"
FILES = {
    "main.js": "text/javascript",
    "api.js": "text/javascript",
    "charts.js": "text/javascript",
    "format.js": "text/javascript",
    "views.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    "uplot.js": "text/javascript",
    "uplot.css": "text/css",
    "uplot.LICENSE.txt": "text/plain",
}
"""The files of `static/` beside the page, and their content types."""

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def dashboard_routes() -> ApiRoutes:
    """Return the endpoints of the page and its files; reads the files."""
    folder = files("gpugate.dashboard") / "static"
    paths = {PAGE: _serve((folder / "index.html").read_bytes(), "text/html"), f"{PAGE}/": _redirect}
    for name, kind in FILES.items():
        paths[f"{PAGE}/{name}"] = _serve((folder / name).read_bytes(), kind)
    return {
        path: dict.fromkeys(("GET", "HEAD"), ApiRoute(handler, public=True))
        for path, handler in paths.items()
    }


def _serve(content: bytes, content_type: str) -> Callable[[RequestContext], Awaitable[web.StreamResponse]]:
    """Return a handler that answers with this content, or 304 where the client has it."""
    headers = {
        **SECURITY_HEADERS,
        "ETag": f'"{sha256(content).hexdigest()[:20]}"',
        "Cache-Control": "no-cache",  # asked for again each time: a new version of gpugate is seen at once
    }

    async def handler(call: RequestContext) -> web.StreamResponse:
        known = call.request.headers.get("If-None-Match", "")
        if headers["ETag"] in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return web.Response(status=304, headers=headers)
        return web.Response(body=content, content_type=content_type, charset="utf-8", headers=headers)

    return handler


async def _redirect(_: RequestContext) -> web.StreamResponse:
    return web.Response(status=308, headers={**SECURITY_HEADERS, "Location": f"..{PAGE}"})
