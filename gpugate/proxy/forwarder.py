"""Brings a request to the pod and its answer back: lease, tries, and the words when an answer breaks.

Knows when to try again (docs/api.md#retries); moves no byte itself (that is `gpugate.relay`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import StreamReader, web
from attrs import define

from gpugate.errors import InvalidRequest, PodStopped, UpstreamBroken, UpstreamTimeout
from gpugate.lifecycle.diagnosis import Diagnosis
from gpugate.lifecycle.lease import Lease, ServingPod
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.ollama.assemblers import IncompleteStream, ResponseAssembler
from gpugate.ollama.stream_buffering import StreamRewrite, stream_rewrite
from gpugate.proxy.error_format import stream_error
from gpugate.proxy.heartbeat import NDJSON, SSE, Heartbeat
from gpugate.proxy.provider_edge import ERRORS, is_edge_error, is_edge_timeout
from gpugate.proxy.request_body import send_continue
from gpugate.proxy.request_context import RequestContext
from gpugate.relay import (
    CapturedBody,
    ConnectionPool,
    ErrorTail,
    Head,
    Relay,
    RelayedResponse,
    ResponseIntercepted,
    ResponsePolicy,
    Truncation,
    UpstreamExchangeError,
    UpstreamRequest,
)

_MALFORMED = "the request's head or body is malformed"


class UpstreamPools:
    """The connections to the pod that serves; those of a run that is over are closed."""

    def __init__(self) -> None:
        self._pod: ServingPod | None = None
        self._by_service: dict[str, ConnectionPool] = {}

    def pool_for(self, pod: ServingPod, service: str = "ollama") -> ConnectionPool:
        """The pool of one of the pod's services."""
        if pod is not self._pod:
            self._move_to(pod)
        pool = self._by_service.get(service)
        if pool is None or pool.closed:
            pool = self._by_service[service] = ConnectionPool(pod.endpoints[service])
        return pool

    def _move_to(self, pod: ServingPod) -> None:
        """Another run, or other addresses: connections to the old ones are of no use."""
        self.close()
        self._pod = pod

    def close(self) -> None:
        """Let idle connections go; what runs goes on."""
        for pool in self._by_service.values():
            pool.close()
        self._by_service.clear()

    def abort(self) -> None:
        """The pod is no more: break what runs."""
        for pool in self._by_service.values():
            pool.abort()
        self._by_service.clear()


@define
class RetryState:
    """How often a call was sent to one run of the pod."""

    run: int = 0
    count: int = 0
    recovered: bool = False

    def at(self, run: int) -> None:
        """Begin anew with another run."""
        if run != self.run:
            self.run, self.count = run, 0


class Forwarder:
    """Forwards calls to the pod's Ollama."""

    def __init__(self, lifecycle: Lifecycle, relay: Relay, pools: UpstreamPools) -> None:
        self._lifecycle = lifecycle
        self._relay = relay
        self._pools = pools

    async def forward(
        self,
        call: RequestContext,
        upstream_path: str,
        body: bytes | StreamReader | None,
        lease: Lease,
        heartbeat: Heartbeat | None = None,
    ) -> web.StreamResponse:
        """Answer a call that holds (or waits for) a lease.

        Raises:
            GateError: refused while it waited, or the pod broke before the first byte.
        """
        tries, streamed = RetryState(), isinstance(body, StreamReader)
        while True:
            pod = lease.pod
            if pod is None:
                pod = await (lease.wait_admitted() if heartbeat is None else heartbeat.wait_for_pod(lease))
            tries.at(pod.run_id)
            self._note(call, lease)
            if streamed:
                send_continue(call.request)  # not before: who leaves while all is still unsent is heard of
            try:
                return await self._forward_once(call, pod, upstream_path, body, lease, heartbeat)
            except UpstreamExchangeError as gone:
                lease.on_lost = None
                await self._check_retry(gone, pod, lease, tries, streamed=streamed)
            except ResponseIntercepted as declined:
                if heartbeat is None:  # never: only an answer behind filler is declined for its status
                    raise UpstreamBroken from declined
                return heartbeat.finish_with_upstream_error(declined.body)

    async def _forward_once(
        self,
        call: RequestContext,
        pod: ServingPod,
        upstream_path: str,
        body: bytes | StreamReader | None,
        lease: Lease,
        heartbeat: Heartbeat | None,
    ) -> web.StreamResponse:
        lease.on_lost = self._pools.pool_for(pod).abort
        whole = _in_one_piece(call, upstream_path, body) if pod.first_byte_limit_s else None
        if whole is not None:
            return await self._forward_buffered(call, pod, upstream_path, whole, lease, heartbeat)
        return await self._exchange(call, pod, upstream_path, body, lease.mark_response_started, heartbeat)

    async def _check_retry(
        self, gone: UpstreamExchangeError, pod: ServingPod, lease: Lease, tries: RetryState, *, streamed: bool
    ) -> None:
        """Return if the call may be tried again, at this pod or, when it is admitted again, at another.

        A body that was streamed is not there any more, unless no connection was made at all.

        Raises:
            GateError: it may not.
        """
        if _timed_out(gone):
            raise UpstreamTimeout from gone
        tries.count += 2 if gone.sent_twice else 1
        spent = streamed and not gone.connecting
        if tries.count < 2 and lease.pod is pod and not streamed:
            return
        finding = await self._lifecycle.diagnose(pod.run_id)
        if lease.pod is pod:
            if finding is not Diagnosis.RECOVERED or tries.recovered or spent:
                raise UpstreamBroken from gone
            tries.recovered, tries.count = True, 1
        elif spent and lease.error is None:
            raise PodStopped("the pod was lost during the upload") from gone

    def forward_unleased(
        self,
        call: RequestContext,
        pod: ServingPod,
        upstream_path: str,
        body: bytes | None,
        tap: Callable[[CapturedBody], None] | None = None,
    ) -> Awaitable[RelayedResponse]:
        """Answer a call that needs no lease: metadata of a pod that serves.

        Raises:
            UpstreamExchangeError: no byte has left for the client.
        """
        return self._exchange(call, pod, upstream_path, body, None, None, tap)

    async def _forward_buffered(
        self,
        call: RequestContext,
        pod: ServingPod,
        upstream_path: str,
        whole: StreamRewrite,
        lease: Lease,
        heartbeat: Heartbeat | None,
    ) -> web.StreamResponse:
        """Ask for a stream, and answer in one piece; only then has the answer begun.

        Raises:
            UpstreamExchangeError: the stream broke; nothing of it has left.
            UpstreamBroken: it ended in order, but the answer did not.
        """
        assembly = whole.assembler()
        try:
            return await self._exchange(
                call,
                pod,
                upstream_path,
                whole.body,
                lease.mark_response_started,
                heartbeat,
                assembly=assembly,
            )
        except ResponseIntercepted as declined:
            if declined.status != 200:
                raise
            if not declined.complete:
                raise UpstreamExchangeError("closed", got_bytes=True) from declined
        try:
            answer = assembly.assembled()
        except IncompleteStream as error:
            raise UpstreamBroken("the pod's answer ended before it was complete") from error
        lease.mark_response_started()
        if heartbeat is not None and heartbeat.headers_sent:
            return (
                heartbeat.finish_with_upstream_error(answer.body)
                if answer.status >= 400
                else heartbeat.finish_with_body(answer.body)
            )
        headers = {"Content-Type": answer.content_type}
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    async def _exchange(
        self,
        call: RequestContext,
        pod: ServingPod,
        upstream_path: str,
        body: bytes | StreamReader | None,
        begin: Callable[[], None] | None,
        heartbeat: Heartbeat | None,
        tap: Callable[[CapturedBody], None] | None = None,
        assembly: ResponseAssembler | None = None,
    ) -> RelayedResponse:
        answer = _answer(call, pod, begin, heartbeat, tap, assembly)
        outgoing = UpstreamRequest(
            call.method, call.upstream_target(upstream_path), call.request.raw_headers, body
        )
        try:
            relayed = await self._relay.forward(call.request, self._pools.pool_for(pod), outgoing, answer)
        except ResponseIntercepted as declined:
            if is_edge_error(declined.status, declined.content_type, proxied=_proxied(pod)):
                raise UpstreamExchangeError("closed", got_bytes=True) from declined
            raise
        except (ValueError, web.RequestPayloadError) as error:
            raise InvalidRequest(_MALFORMED) from error
        except TimeoutError as error:
            raise InvalidRequest("the request body stopped coming") from error
        call.bytes_sent = relayed.bytes_sent
        return relayed

    def _note(self, call: RequestContext, lease: Lease) -> None:
        pod = lease.pod
        call.run_id = pod.run_id if pod is not None else 0
        if lease.waited_s > 0 and not call.waited_ms:
            call.waited_ms = max(1, round(lease.waited_s * 1000))
            call.extra_head += b"X-Gpugate-Waited-Ms: %d\r\n" % call.waited_ms


def _in_one_piece(call: RequestContext, path: str, body: bytes | StreamReader | None) -> StreamRewrite | None:
    """How to ask for this answer as a stream, if its client wants it in one piece."""
    if call.method != "POST" or not isinstance(body, bytes):
        return None
    return stream_rewrite(path, call.request.headers, body)


def _answer(
    call: RequestContext,
    pod: ServingPod,
    begin: Callable[[], None] | None,
    heartbeat: Heartbeat | None,
    tap: Callable[[CapturedBody], None] | None,
    assembly: ResponseAssembler | None,
) -> ResponsePolicy:
    """What we want of the pod's answer."""
    from_edge = _from_proxy if _proxied(pod) else _from_edge
    answer = ResponsePolicy(
        extra_head=call.extra_head,
        intercept=from_edge,
        error_tail=partial(stream_error_tail, call),
        capture=tap,
    )
    if begin is not None:
        answer.on_head = partial(_begin, begin)
    if assembly is not None:
        answer.sink = assembly.feed
    if heartbeat is not None and heartbeat.headers_sent:
        answer.headers_sent = True
    if answer.sink or answer.headers_sent:
        answer.intercept = partial(_declines, answer, from_edge)
    return answer


def _begin(begin: Callable[[], None], status: int) -> None:
    begin()


def _proxied(pod: ServingPod) -> bool:
    return pod.first_byte_limit_s is not None


def _from_edge(head: Head) -> bool:
    return head.status in ERRORS


def _from_proxy(head: Head) -> bool:
    status = head.status
    return status >= 404 and is_edge_error(status, head.get(b"content-type").decode("latin-1"), proxied=True)


def _declines(answer: ResponsePolicy, from_edge: Callable[[Head], bool], head: Head) -> bool:
    status = head.status
    if status == 200 and answer.sink is not None:
        return True
    return (answer.headers_sent and status >= 400) or from_edge(head)


def _timed_out(gone: UpstreamExchangeError) -> bool:
    """Whether the provider's proxy gave up waiting: the job may still run, so it is never sent again."""
    declined = gone.__cause__
    return isinstance(declined, ResponseIntercepted) and is_edge_timeout(declined.status)


def stream_error_tail(call: RequestContext, cut: Truncation) -> ErrorTail | None:
    """What a client is told when the pod is lost in mid-answer (docs/api.md#in-mid-stream)."""
    kind = cut.content_type.partition(";")[0].strip()
    error = UpstreamBroken("the pod was lost in the middle of the answer")
    if kind == NDJSON:
        if not cut.ends_line:
            return None
        return ErrorTail(stream_error(call.dialect, error, kind), clean_end=False)
    if kind == SSE:
        words = stream_error(call.dialect, error, kind, inside_event=not cut.ends_block)
        return ErrorTail(words, clean_end=True)
    return None
