"""Makes the verifier of tokens out of the settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

import aiohttp

from gpugate.config.schema import Auth
from gpugate.proxy.auth import Verifier
from gpugate.proxy.jwks import JwksCache, http_fetch


def make_verifier(
    auth: Auth, session: aiohttp.ClientSession, resources: AsyncExitStack, warn: Callable[[str], None]
) -> Verifier:
    """Return the verifier for `[auth]`; `resources` closes its cache of keys, if it has one."""
    jwks = None
    if auth.jwks_url:
        fetch = http_fetch(session, auth.jwks_url)
        on_status = lambda problem: warn(f"the identity provider: {problem or 'answers again'}")  # noqa: E731
        jwks = JwksCache(fetch, on_status=on_status)
        resources.push_async_callback(jwks.aclose)
    return Verifier(
        secret=auth.secret,
        algorithms=auth.algorithms,
        issuer=auth.issuer,
        audience=auth.audience,
        leeway_s=auth.leeway,
        require_exp=auth.require_exp,
        jwks=jwks,
    )
