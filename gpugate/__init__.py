"""The names that a provider plugin needs."""

from gpugate.errors import (
    Ambiguous,
    AuthFailed,
    Blocked,
    Conflict,
    Misconfigured,
    NoCapacity,
    NoFunds,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
)
from gpugate.ports.provider import Capabilities, Charge, Endpoint, Phase, PodReport, Price, Provider

__all__ = [
    "Ambiguous",
    "AuthFailed",
    "Blocked",
    "Capabilities",
    "Charge",
    "Conflict",
    "Endpoint",
    "Misconfigured",
    "NoCapacity",
    "NoFunds",
    "NotFound",
    "Phase",
    "PodReport",
    "Price",
    "Provider",
    "ProviderError",
    "RateLimited",
    "Transient",
]
