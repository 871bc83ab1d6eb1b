"""Passes the coding model's own bytes on, through the relay; knows how an answer breaks, not its words."""

from __future__ import annotations

from gpugate.errors import UpstreamBroken, UpstreamTimeout
from gpugate.generation.text_model import PodSilent
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import LeasedCall
from gpugate.proxy.forwarder import Pools, last_words
from gpugate.proxy.heartbeat import Heartbeat
from gpugate.proxy.provider_edge import gave_up, speaks_for_pod
from gpugate.proxy.request_context import Call
from gpugate.relay import Answer, AnswerDeclined, Outgoing, Relay, Relayed, UpstreamGone

PATH = "/api/chat"


class CodeStream:
    """Streams `/api/chat` to a client that asked something else."""

    def __init__(self, relay: Relay, pools: Pools) -> None:
        self._relay = relay
        self._pools = pools

    async def through(
        self, call: Call, visit: LeasedCall, body: bytes, model: str, heartbeat: Heartbeat | None = None
    ) -> Relayed:
        """Ask with `body`, and pass the answer on; one that is no 200 is not passed on.

        Args:
            heartbeat: what may have sent the head already.

        Raises:
            UpstreamBroken: nothing has left; the message names the model.
            UpstreamTimeout: the provider's proxy gave up waiting.
            GateError: the pod could not be had.
        """

        async def work(pod: ServingPod) -> Relayed:
            pool = self._pools.of(pod)
            # Not given up from outside: an answer that has begun gets its last words from the relay.
            visit.lease.on_lost = pool.abort
            outgoing = Outgoing("POST", PATH, call.request.raw_headers, body)
            answer = Answer(
                extra_head=call.extra_head,
                declines=lambda head: head.status != 200,
                on_head=lambda status: visit.mark_response_started(),
                epitaph=lambda cut: last_words(call, cut),
                committed=heartbeat is not None and heartbeat.committed,
            )
            try:
                return await self._relay.forward(call.request, pool, outgoing, answer)
            except UpstreamGone as gone:
                raise PodSilent("the pod's Ollama broke the connection") from gone
            except AnswerDeclined as declined:
                raise _refused(declined, model) from declined

        try:
            relayed = await visit.run(work)
        except PodSilent as error:
            raise UpstreamBroken(f"the coding model {model!r} did not answer: {error}") from error
        call.sent = relayed.sent
        return relayed


def _refused(declined: AnswerDeclined, model: str) -> Exception:
    status = declined.status
    if speaks_for_pod(status, declined.content_type, proxied=True):
        return UpstreamTimeout() if gave_up(status) else PodSilent("the pod's Ollama cannot be reached")
    if status == 404:
        return UpstreamBroken(f"the pod has no coding model {model!r}")
    return UpstreamBroken(f"the coding model {model!r} answered {status}")
