"""The relay: moves bytes between a client and an upstream; it must not know pods, tokens, JSON or logs."""

from gpugate.relay.pool import Pool, Upstream, UpstreamGone
from gpugate.relay.relay import Outgoing, Relay, Relayed
from gpugate.relay.response_parser import BadAnswer, Framing, Head
from gpugate.relay.response_policy import Answer, AnswerDeclined, Cut, Ending, Epitaph, Tapped
from gpugate.relay.sockets import broken_when_left

__all__ = [
    "Answer",
    "AnswerDeclined",
    "BadAnswer",
    "Cut",
    "Ending",
    "Epitaph",
    "Framing",
    "Head",
    "Outgoing",
    "Pool",
    "Relay",
    "Relayed",
    "Tapped",
    "Upstream",
    "UpstreamGone",
    "broken_when_left",
]
