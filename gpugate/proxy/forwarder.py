"""Brings a request to the pod's Ollama and the response back to the client.

When to try again is `LeasedCall`'s decision (docs/api.md#retries), how bytes move is the relay's. This module
says what a response that is not the pod's own means, and how a response that breaks off ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version

from aiohttp import web
from attrs import evolve

from gpugate.errors import BodyTooSlow, EdgeOutage, InvalidRequest, UpstreamBroken, UpstreamError
from gpugate.lifecycle.lease import Lease, ServingPod
from gpugate.lifecycle.leased_call import AttemptFailed, LeasedCall
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.ollama.assemblers import AssembledResponse, IncompleteStream, ResponseAssembler
from gpugate.ollama.stream_buffering import StreamRewrite, stream_rewrite
from gpugate.ollama.validation import OllamaBody
from gpugate.proxy.error_format import EDGE_STATUSES, edge_error, may_be_of_edge, stream_error
from gpugate.proxy.heartbeat import JSON, NDJSON, SSE, Heartbeat
from gpugate.proxy.request_context import RequestContext, send_continue
from gpugate.relay.pool import ConnectionPool, UpstreamExchangeError
from gpugate.relay.relay import PacedBody, Relay, UpstreamRequest
from gpugate.relay.response_parser import Head
from gpugate.relay.response_policy import (
    CapturedBody,
    ErrorTail,
    ResponseIntercepted,
    ResponsePolicy,
    Truncation,
)


class UpstreamPools:
    """The connection pools of the pod that serves, one per service; those of an earlier run are closed."""

    def __init__(self) -> None:
        self._pod: ServingPod | None = None
        self._by_service: dict[str, ConnectionPool] = {}

    def pool_for(self, pod: ServingPod, service: str = "ollama") -> ConnectionPool:
        """Return the pool of one of the pod's services."""
        if pod is not self._pod:  # another run, or other addresses: connections to the old ones are useless
            self.close()
            self._pod = pod
        pool = self._by_service.get(service)
        if pool is None or pool.closed:
            endpoint = pod.endpoints[service]
            if _is_proxied(pod) and not any(name.lower() == "user-agent" for name in endpoint.headers):
                headers = {"User-Agent": f"gpugate/{version('gpugate')}", **endpoint.headers}
                endpoint = evolve(
                    endpoint, headers=headers
                )  # an edge bans some (docs/providers.md#user-agent)
            pool = self._by_service[service] = ConnectionPool(endpoint)
        return pool

    def close(self) -> None:
        """Close idle connections; exchanges under way go on."""
        for pool in self._by_service.values():
            pool.close()
        self._by_service.clear()

    def abort(self) -> None:
        """Break the exchanges under way as well: the pod is no more."""
        for pool in self._by_service.values():
            pool.abort()
        self._by_service.clear()


class Forwarder:
    """Forwards requests to the pod's engine.

    Args:
        rewrites: behind a proxy that gives up on silence a stream is asked for, and sent in one piece; not
            for other engines than Ollama, whose answers have more than can be put together again.
    """

    def __init__(
        self, lifecycle: Lifecycle, relay: Relay, pools: UpstreamPools, *, rewrites: bool = True
    ) -> None:
        self._lifecycle = lifecycle
        self._relay = relay
        self._pools = pools
        self._rewrites = rewrites

    async def forward(
        self,
        context: RequestContext,
        upstream_path: str,
        body: OllamaBody | PacedBody,
        lease: Lease,
        heartbeat: Heartbeat | None = None,
    ) -> web.StreamResponse:
        """Answer a request that has a lease, or waits for one; try again where that is safe.

        Raises:
            GateError: rejected while it waited, or the pod broke before the first byte.
        """
        call = LeasedCall(self._lifecycle, lease)
        if heartbeat is not None:
            call.wait_for_pod = heartbeat.wait_for_pod

        async def attempt(pod: ServingPod) -> web.StreamResponse:
            context.note_wait(lease.waited_s, pod.run_id)
            if isinstance(body, PacedBody):
                send_continue(context.request)  # not earlier: who leaves with all still unsent is noticed
            elif self._rewrites and pod.first_byte_limit_s and context.method == "POST":
                rewrite = stream_rewrite(upstream_path, body)
                if rewrite is not None:
                    return await self._forward_buffered(context, pod, upstream_path, rewrite, call, heartbeat)
            content = body if isinstance(body, PacedBody) else body.raw
            policy = _policy_for(context, pod, heartbeat)
            policy.on_head = lambda status: call.mark_response_started()
            return await self._exchange(context, pod, upstream_path, content, policy)

        try:
            return await call.run(attempt, interrupt=self._interrupt)
        except AttemptFailed as error:
            raise UpstreamBroken(str(error)) from error
        except ResponseIntercepted as answer:
            if heartbeat is None:  # cannot be: only a response behind filler is intercepted for its status
                raise UpstreamBroken from answer
            return heartbeat.finish_with_upstream_error(answer.body)

    async def forward_unleased(
        self,
        context: RequestContext,
        pod: ServingPod,
        upstream_path: str,
        body: bytes,
        capture: Callable[[CapturedBody], None] | None = None,
        intercept: Callable[[Head], bool] | None = None,
    ) -> web.StreamResponse:
        """Answer a request that needs no lease, since it does not use the pod: metadata.

        Args:
            intercept: says which of the pod's responses are kept from the client.

        Raises:
            AttemptFailed: no byte has left for the client.
            ResponseIntercepted: as `intercept` said.
        """
        policy = _policy_for(context, pod, None)
        policy.capture = capture
        if intercept is not None and (is_edge := policy.intercept) is not None:
            policy.intercept = lambda head: intercept(head) or is_edge(head)
        try:
            return await self._exchange(context, pod, upstream_path, body, policy)
        except UpstreamError as error:
            raise AttemptFailed(error.message) from error

    def _interrupt(self, pod: ServingPod) -> Callable[[], None]:
        """What ends the exchanges with a pod that is lost: each of them then ends its own response."""
        return self._pools.pool_for(pod).abort

    async def _forward_buffered(
        self,
        context: RequestContext,
        pod: ServingPod,
        upstream_path: str,
        rewrite: StreamRewrite,
        call: LeasedCall,
        heartbeat: Heartbeat | None,
    ) -> web.StreamResponse:
        """Ask for a stream, and respond in one piece; only then has the response started.

        Raises:
            AttemptFailed: the stream broke; nothing of it has left.
            UpstreamBroken: the stream ended in order, but the answer in it did not.
        """
        assembler = rewrite.assembler()
        policy = _policy_for(context, pod, heartbeat, assembler)
        policy.on_head = lambda status: call.mark_response_started()
        try:
            return await self._exchange(context, pod, upstream_path, rewrite.body, policy)
        except ResponseIntercepted as intercepted:
            if intercepted.status != 200:
                raise
            if not intercepted.complete and not assembler.invalid:
                raise AttemptFailed from intercepted
            answer = _assembled(assembler)
        finally:
            assembler.close()
        call.mark_response_started()
        if heartbeat is not None and heartbeat.headers_sent:
            if answer.status >= 400:
                return heartbeat.finish_with_upstream_error(answer.body)
            return heartbeat.finish_with_body(answer.body)
        headers = {"Content-Type": answer.content_type}
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    async def _exchange(
        self,
        context: RequestContext,
        pod: ServingPod,
        upstream_path: str,
        body: bytes | PacedBody,
        policy: ResponsePolicy,
    ) -> web.StreamResponse:
        """Send the request once and relay the response.

        Raises:
            AttemptFailed: no response, or the provider's edge answered for a pod that it cannot reach.
            UpstreamTimeout: the edge gave up waiting. Never sent again: the job may still run.
            UpstreamBroken: the edge refused the request, or the response is compressed and cannot be read.
            ResponseIntercepted: `policy` kept a response of the pod's own from the client.
            InvalidRequest: the request's head or body is malformed.
            BodyTooSlow: a streamed body comes too slowly.
        """
        request = UpstreamRequest(
            context.method, context.upstream_target(upstream_path), context.request.raw_headers, body
        )
        try:
            relayed = await self._relay.forward(context.request, self._pools.pool_for(pod), request, policy)
        except UpstreamExchangeError as error:
            # A streamed body has been read in part, unless no connection was made at all.
            resendable = error.connecting or not isinstance(body, PacedBody)
            sent = 2 if error.sent_twice else 1
            raise AttemptFailed(resendable=resendable, sent=sent, connected=not error.connecting) from error
        except ResponseIntercepted as answer:
            if answer.compressed:
                raise UpstreamBroken(
                    "the pod's service compressed its answer, though asked not to"
                ) from answer
            edge = edge_error(answer.status, answer.content_type, answer.body, proxied=_is_proxied(pod))
            if edge is None and (policy.headers_sent or not _looks_like_edge(answer)):
                raise
            if edge is None:
                return _handed_on(answer)
            if isinstance(edge, EdgeOutage):
                raise AttemptFailed(edge.message, resendable=not isinstance(body, PacedBody)) from answer
            raise edge from answer
        except (ValueError, web.RequestPayloadError) as error:
            raise InvalidRequest("the request's head or body is malformed") from error
        except TimeoutError as error:
            raise BodyTooSlow from error
        context.bytes_sent = relayed.bytes_sent
        return relayed


def _assembled(assembler: ResponseAssembler) -> AssembledResponse:
    try:
        return assembler.assembled()
    except IncompleteStream as error:
        what = "is no valid one, or too large" if assembler.invalid else "ended before it was complete"
        raise UpstreamBroken(f"the pod's answer {what}") from error


# --- what is wanted of a response ---------------------------------------------------------------


def _policy_for(
    context: RequestContext,
    pod: ServingPod,
    heartbeat: Heartbeat | None,
    assembler: ResponseAssembler | None = None,
) -> ResponsePolicy:
    is_edge = _may_be_of_edge if _is_proxied(pod) else _has_edge_status
    policy = ResponsePolicy(
        extra_head=context.extra_head, intercept=is_edge, error_tail=partial(stream_error_tail, context)
    )
    headers_sent = heartbeat is not None and heartbeat.headers_sent
    if assembler is not None or headers_sent:
        policy.headers_sent = headers_sent
        policy.sink = assembler.feed if assembler is not None else None
        policy.intercept = partial(_intercepts, policy, is_edge)
    return policy


def _is_proxied(pod: ServingPod) -> bool:
    return pod.first_byte_limit_s is not None


def _has_edge_status(head: Head) -> bool:
    return head.status in EDGE_STATUSES


def _may_be_of_edge(head: Head) -> bool:
    status = head.status
    return status >= 400 and may_be_of_edge(status, head.get(b"content-type").decode("latin-1"), head.length)


def _looks_like_edge(answer: ResponseIntercepted) -> bool:
    return may_be_of_edge(answer.status, answer.content_type, 0)  # its length may not have been told


def _handed_on(answer: ResponseIntercepted) -> web.Response:
    """Return what was looked at and is the pod's own after all: a short plain text.

    Raises:
        AttemptFailed: it broke off.
    """
    if not answer.complete:
        raise AttemptFailed from answer
    headers = {"Content-Type": answer.content_type}
    return web.Response(status=answer.status, body=answer.body, headers=headers)


def _intercepts(policy: ResponsePolicy, is_edge: Callable[[Head], bool], head: Head) -> bool:
    """Keep from the client what is assembled first, and errors whose status can no longer be sent."""
    if head.status == 200 and policy.sink is not None:
        return True
    return (policy.headers_sent and head.status >= 400) or is_edge(head)


def stream_error_tail(context: RequestContext, truncation: Truncation) -> ErrorTail | None:
    """What a client is sent when the pod is lost in mid-response (docs/api.md#in-mid-stream).

    1. NDJSON whose last line is whole: one more line with the error; the connection is closed without the
       last chunk.
    2. Server-Sent Events: an `error` event and an end in good order. An event that was cut off is ended
    first.
    3. JSON of which only filler has left: the error object, and an end in good order.
    4. Anything else: nothing. The response is left unfinished, which the client's HTTP library reports.
    """
    kind = truncation.content_type.partition(";")[0].strip()
    error = UpstreamBroken("the pod was lost in the middle of the answer")
    if kind == NDJSON and truncation.ends_line:  # (1)
        return ErrorTail(stream_error(context.dialect, error, kind), clean_end=False)
    if kind == SSE:  # (2)
        payload = stream_error(context.dialect, error, kind, inside_event=not truncation.ends_block)
        return ErrorTail(payload, clean_end=True)
    if kind == JSON and context.bytes_sent and not truncation.tail:  # (3)
        return ErrorTail(stream_error(context.dialect, error, kind), clean_end=True)
    return None  # (4)
