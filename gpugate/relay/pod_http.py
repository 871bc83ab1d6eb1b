"""What aiohttp's client needs to call a pod's service: URL, TLS policy, and the errors of a failed call."""

from __future__ import annotations

from typing import Any

import aiohttp

from gpugate.provider_api import Endpoint
from gpugate.relay.tls import TlsPolicy, context

CALL_ERRORS = (aiohttp.ClientError, OSError, TimeoutError, ValueError)
"""What aiohttp raises when a call fails."""


def url_of(endpoint: Endpoint, path: str) -> str:
    """Return the URL of a path below the endpoint's own."""
    return endpoint.url.rstrip("/") + path


def ssl_option(endpoint: Endpoint) -> Any:
    """Return aiohttp's `ssl=` argument for the endpoint's TLS policy."""
    policy = TlsPolicy.of(endpoint.tls)
    if policy.fingerprint:
        return aiohttp.Fingerprint(bytes.fromhex(policy.fingerprint))
    return context(policy) if policy.ca_file or not policy.verify else True
