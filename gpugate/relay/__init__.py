"""The relay: moves bytes between a client and an upstream; it must not know pods, tokens, JSON or logs."""

from gpugate.relay.answer import Answer, AnswerDeclined, Cut, Ending, Epitaph, Tapped
from gpugate.relay.framing import BadAnswer, Framing, Head
from gpugate.relay.relayed import Outgoing, Relay, Relayed
from gpugate.relay.sockets import broken_when_left
from gpugate.relay.upstream import Pool, Upstream, UpstreamGone

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
