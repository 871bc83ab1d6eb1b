"""The relay: moves a request to an upstream and its response to the client, byte for byte."""

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
