"""A lease: one request's right to use the pod, from its arrival to the end of its response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType

from attrs import frozen

from gpugate.billing.recorder import Recorder
from gpugate.core.commands import AS_IT_COMES, AbortResponse, LoadOptions, Reject, Requeue
from gpugate.errors import GateError, PodStopped
from gpugate.provider_api import Endpoint
from gpugate.tasks import report_crash


@frozen
class ServingPod:
    """The pod that serves: its run, its provider's name, and the endpoints of its services.

    Attributes:
        first_byte_limit_s: how long a proxy of the provider's waits for the first byte; None without a proxy.
    """

    run_id: int
    provider: str
    endpoints: Mapping[str, Endpoint]
    first_byte_limit_s: float | None = None


@frozen(kw_only=True)
class WakeRequest:
    """Who would start a pod, and for what: the facts that wake rules match (docs/rules.md).

    Attributes:
        user: the token's subject; "prewarm" or "schedule" where nobody asks.
        model: as the request names it; empty without one.
        path: that was requested, without a path token.
        agent: its User-Agent.
    """

    user: str
    model: str = ""
    path: str = ""
    agent: str = ""


WakePolicy = Callable[[WakeRequest], str]
"""Returns why a pod must not be started; empty if it may."""


@frozen(kw_only=True)
class OpenRequest:
    """A request that waits for the pod or uses it.

    Attributes:
        user, request_id, purpose: as the lease has them.
        waiting: it waits; otherwise it is in flight.
        seconds: since it arrived, or since it was admitted.
    """

    user: str
    request_id: str
    waiting: bool
    seconds: float
    purpose: str = ""


class Lease:
    """One request's ticket; use as `with lifecycle.acquire() as lease: pod = await lease.wait_admitted()`.

    Args:
        on_response_started, on_release: the lifecycle's; see the methods that call them.
        asks: returns what the wake rules are asked; called only if a pod must be started.

    Attributes:
        number: the ticket, in order of arrival.
        arrived_at, admitted_at: loop time, in seconds; `admitted_at` is None while it waits.
        user, request_id: for the ledger: who uses the pod, and for what.
        purpose: the endpoint, such as "chat"; to explain what the pod was used for.
        model_hint: returns the model that the request names, and how to load it; called if it must wait after
            an admission.
        on_lost: called when the lease loses its pod, to end the work on it; set while there is such work.
        on_moved: called with the pod when it has other addresses; set while there is work that follows it.
    """

    __slots__ = (
        "_error",
        "_on_release",
        "_on_response_started",
        "_pod",
        "_waiter",
        "_wake_refusal",
        "admitted_at",
        "arrived_at",
        "asks",
        "model_hint",
        "number",
        "on_lost",
        "on_moved",
        "purpose",
        "request_id",
        "user",
    )

    def __init__(
        self,
        number: int,
        now: float,
        user: str,
        request_id: str,
        on_response_started: Callable[[Lease], None],
        on_release: Callable[[Lease], None],
        asks: Callable[[], WakeRequest] | None = None,
        purpose: str = "",
    ) -> None:
        self._on_response_started = on_response_started
        self._on_release = on_release
        self._pod: ServingPod | None = None
        self._error: GateError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._wake_refusal: str | None = None
        self.asks = asks
        self.number = number
        self.user = user
        self.request_id = request_id
        self.purpose = purpose
        self.arrived_at = now
        self.admitted_at: float | None = None
        self.model_hint: Callable[[], tuple[str | None, LoadOptions]] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.on_moved: Callable[[ServingPod], None] | None = None

    @property
    def pod(self) -> ServingPod | None:
        """The pod while this request may use it, else None."""
        return self._pod

    @property
    def error(self) -> GateError | None:
        """Why this request was rejected or aborted, None if it was not."""
        return self._error

    @property
    def waited_s(self) -> float:
        """How long this request waited for its first or latest admission."""
        return 0.0 if self.admitted_at is None else self.admitted_at - self.arrived_at

    async def wait_admitted(self) -> ServingPod:
        """Wait for the pod.

        Raises:
            GateError: the request was rejected (queue, start, warm-up, stop, shutdown).
        """
        while self._pod is None:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._pod

    def mark_response_started(self) -> None:
        """Take note that the first byte of the response is leaving; no second attempt from now on."""
        self._on_response_started(self)

    def release(self) -> None:
        """Give the lease back; idempotent."""
        self._on_release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def asked_model(self) -> tuple[str | None, LoadOptions]:
        """Return what `model_hint` returns; no model without it, or if it fails."""
        try:
            return (None, AS_IT_COMES) if self.model_hint is None else self.model_hint()
        except Exception as error:  # the lifecycle has more to do, such as sending a stop
            report_crash("finding a request's model", error, None)
            return None, AS_IT_COMES

    # --- called by the lifecycle ---------------------------------------------------------------

    def wake_refusal(self, policy: WakePolicy) -> str:
        """Return why this request may start no pod; asked once, so that it may wait on when hours end."""
        if self._wake_refusal is None:
            asks = self.asks() if self.asks is not None else WakeRequest(user=self.user)
            self._wake_refusal = policy(asks)
        return self._wake_refusal

    def admit(self, pod: ServingPod, now: float) -> None:
        """Admit the request to the pod."""
        self._pod, self.admitted_at = pod, now
        self._wake_waiter()

    def reject(self, error: GateError) -> None:
        """End the wait, or the work on the pod, with an error."""
        self._pod, self._error = None, error
        self._wake_waiter()
        self._notify_lost()

    def move(self, pod: ServingPod) -> None:
        """The pod of this lease has other addresses now."""
        if self._pod is not None and self._pod.run_id == pod.run_id:
            self._pod = pod
            if self.on_moved is not None:
                self.on_moved(pod)

    def requeue(self) -> None:
        """Wait again: the pod was lost, or is unhealthy, before the response started."""
        self._pod = None
        self._notify_lost()

    def abort(self) -> None:
        """End the work: the pod was lost, or must stop, after the response had started."""
        self._pod, self._error = None, PodStopped("the pod was lost in the middle of the answer")
        self._wake_waiter()
        self._notify_lost()

    def _notify_lost(self) -> None:
        if self.on_lost is None:
            return
        try:
            self.on_lost()
        except Exception as error:  # the lifecycle has more to do, such as sending a stop
            report_crash("ending the work of a lease", error, None)

    def _wake_waiter(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class LeaseTable:
    """The leases of all requests that wait or are admitted, and who uses the pod, for the ledger.

    Attributes:
        last_use: run, user and purpose of the request that ended last; None before the first.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.last_use: tuple[int, str, str] | None = None
        self._usage = recorder.usage
        self._leases: dict[int, Lease] = {}

    def add(self, lease: Lease) -> None:
        """Take up a new request's lease."""
        self._leases[lease.number] = lease

    def get(self, ticket: int | None) -> Lease | None:
        """Return the lease of a ticket; None if its request has ended."""
        return None if ticket is None else self._leases.get(ticket)

    def open_requests(self, now: float) -> list[OpenRequest]:
        """Return the requests that wait or are in flight, in order of arrival."""
        return [
            OpenRequest(
                user=lease.user,
                request_id=lease.request_id,
                waiting=lease.pod is None,
                seconds=now - (lease.arrived_at if lease.pod is None else lease.admitted_at or now),
                purpose=lease.purpose,
            )
            for lease in self._leases.values()
        ]

    def remove(self, lease: Lease, now: float) -> bool:
        """The request has ended; False if it had ended before."""
        self._usage.finish(lease.number, now)
        if (pod := lease.pod) is not None:
            self.last_use = pod.run_id, lease.user, lease.purpose
        return self._leases.pop(lease.number, None) is not None

    def admit(self, lease: Lease, pod: ServingPod, now: float) -> None:
        """Give the pod to a request."""
        lease.admit(pod, now)
        self._usage.start(lease.number, lease.user, lease.request_id, now)

    def move(self, pod: ServingPod) -> None:
        """Give the leases of this pod its present addresses."""
        for lease in self._leases.values():
            lease.move(pod)

    def take_back(self, lease: Lease, command: Reject | Requeue | AbortResponse, now: float) -> None:
        """Take the pod from a request, or the hope of it."""
        self._usage.finish(lease.number, now)
        match command:
            case Reject(error=error):
                lease.reject(error)
            case Requeue():
                lease.requeue()
            case AbortResponse():
                lease.abort()

    def end_all(self, error: Callable[[], GateError]) -> None:
        """Reject the requests that wait, and break off the responses of the others."""
        for lease in list(self._leases.values()):
            if lease.pod is None:
                lease.reject(error())
            else:
                lease.abort()
