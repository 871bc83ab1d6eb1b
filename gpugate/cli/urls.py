"""Where a gateway with these settings is reached from this machine."""

from __future__ import annotations

from gpugate.config import Settings

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}
_OLLAMA_PORT = 11434


def url_of(settings: Settings) -> str:
    """Return the gateway's base URL; one that listens everywhere is reached on loopback."""
    host = _EVERYWHERE.get(settings.server.host, settings.server.host)
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{settings.server.port or _OLLAMA_PORT}"
