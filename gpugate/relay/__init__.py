"""The relay: moves bytes between a client and an upstream; it must not know pods, tokens, JSON or logs."""

from gpugate.relay.pool import ConnectionPool, Upstream, UpstreamExchangeError
from gpugate.relay.relay import Relay, RelayedResponse, UpstreamRequest
from gpugate.relay.response_parser import Head, ResponseFraming, UpstreamProtocolError
from gpugate.relay.response_policy import (
    CapturedBody,
    ErrorTail,
    RelayOutcome,
    ResponseIntercepted,
    ResponsePolicy,
    Truncation,
)
from gpugate.relay.sockets import detect_disconnect

__all__ = [
    "CapturedBody",
    "ConnectionPool",
    "ErrorTail",
    "Head",
    "Relay",
    "RelayOutcome",
    "RelayedResponse",
    "ResponseFraming",
    "ResponseIntercepted",
    "ResponsePolicy",
    "Truncation",
    "Upstream",
    "UpstreamExchangeError",
    "UpstreamProtocolError",
    "UpstreamRequest",
    "detect_disconnect",
]
