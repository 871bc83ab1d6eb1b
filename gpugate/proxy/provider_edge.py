"""Tells what a provider's proxy says in a pod's place from what the pod says; it must not know connections.

Such a proxy answers for a pod that is gone, boots or has crashed (docs/providers.md#runpod-proxy). Passed on,
its page would look like Ollama's own answer.
"""

from __future__ import annotations

ERRORS = frozenset(range(520, 528))
"""Said by proxies only."""

PAGES = frozenset({404, 502, 503, 504})
"""Ollama may say these too, in JSON or plain text, but nothing ever as a page."""

_TIMEOUTS = frozenset({504, 524})


def is_edge_error(status: int, content_type: str, *, proxied: bool) -> bool:
    """Whether an answer is a proxy's, and not the pod's own.

    Args:
        content_type: in any case, with or without parameters.
        proxied: there is a proxy of the provider's between us and the pod.
    """
    if status in ERRORS:
        return True
    return proxied and status in PAGES and content_type.lower().startswith("text/html")


def is_edge_timeout(status: int) -> bool:
    """Whether a proxy that says this has waited for the pod in vain: the job may still run."""
    return status in _TIMEOUTS
