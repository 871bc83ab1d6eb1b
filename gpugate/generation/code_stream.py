"""Passes the coding model's own bytes on, through the relay; knows how an answer breaks, not its words."""

from __future__ import annotations

from gpugate.errors import UpstreamBroken, UpstreamTimeout
from gpugate.generation.text_model import PodUnreachable
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import LeasedCall
from gpugate.proxy.error_format import is_edge_error, is_edge_timeout
from gpugate.proxy.forwarder import UpstreamPools, stream_error_tail
from gpugate.proxy.heartbeat import Heartbeat
from gpugate.proxy.request_context import RequestContext
from gpugate.relay.pool import UpstreamExchangeError
from gpugate.relay.relay import Relay, RelayedResponse, UpstreamRequest
from gpugate.relay.response_policy import ResponseIntercepted, ResponsePolicy

PATH = "/api/chat"


class CodeStream:
    """Streams `/api/chat` to a client that asked something else."""

    def __init__(self, relay: Relay, pools: UpstreamPools) -> None:
        self._relay = relay
        self._pools = pools

    async def stream(
        self,
        call: RequestContext,
        visit: LeasedCall,
        body: bytes,
        model: str,
        heartbeat: Heartbeat | None = None,
    ) -> RelayedResponse:
        """Ask with `body`, and pass the answer on; one that is no 200 is not passed on.

        Args:
            heartbeat: what may have sent the head already.

        Raises:
            UpstreamBroken: nothing has left; the message names the model.
            UpstreamTimeout: the provider's proxy gave up waiting.
            GateError: the pod could not be had.
        """

        async def work(pod: ServingPod) -> RelayedResponse:
            pool = self._pools.pool_for(pod)
            outgoing = UpstreamRequest("POST", PATH, call.request.raw_headers, body)
            answer = ResponsePolicy(
                extra_head=call.extra_head,
                intercept=lambda head: head.status != 200,
                on_head=lambda status: visit.mark_response_started(),
                error_tail=lambda cut: stream_error_tail(call, cut),
                headers_sent=heartbeat is not None and heartbeat.headers_sent,
            )
            try:
                return await self._relay.forward(call.request, pool, outgoing, answer)
            except UpstreamExchangeError as gone:
                sent = 2 if gone.sent_twice else 1
                raise PodUnreachable("the pod's Ollama broke the connection", sent=sent) from gone
            except ResponseIntercepted as declined:
                raise _refused(declined, model) from declined

        try:
            # Not cancelled when the pod is lost: a response that has started gets its error tail from the
            # relay.
            relayed = await visit.run(work, interrupt=lambda pod: self._pools.pool_for(pod).abort)
        except PodUnreachable as error:
            raise UpstreamBroken(f"the coding model {model!r} did not answer: {error}") from error
        call.bytes_sent = relayed.bytes_sent
        return relayed


def _refused(declined: ResponseIntercepted, model: str) -> Exception:
    status = declined.status
    if is_edge_error(status, declined.content_type, proxied=True):
        return (
            UpstreamTimeout()
            if is_edge_timeout(status)
            else PodUnreachable("the pod's Ollama cannot be reached")
        )
    if status == 404:
        return UpstreamBroken(f"the pod has no coding model {model!r}")
    return UpstreamBroken(f"the coding model {model!r} answered {status}")
