"""The only retry policy: work on the pod under a lease, tried again where nobody can notice.

The proxy, the generation services and the code stream all run their work through `LeasedCall.run`. They
differ in what the work is and in how it is interrupted when the pod is lost, never in what is tried again.

What may be tried again (docs/api.md#retries), decided after each attempt that failed before anything of its
result left (`AttemptFailed`), repeated as numbers in `LeasedCall._decide_retry`:

1. The response has started: the error is final. (An attempt that breaks later does not get here at all.)
2. The lease still has this pod, the request can be sent again, and this run of the pod has been sent it fewer
   than `attempts` times: again at once. Most often an idle connection had gone stale.
3. Otherwise the lifecycle finds out what became of the pod. A request that can be sent again goes back to the
   queue if the pod is unhealthy, but only once per run: it may be what makes it so.
4. The lease still has the pod, so the pod lives. If it has moved to another address meanwhile, or if no
   connection was made (its Ollama restarted, and is back), the request is sent once more per run. In all
   other cases the error is final.
5. The lease has no pod. It is back in the queue, and the work begins anew with the next pod, or with this
   one when it has recovered; or it was rejected, which `Lease.wait_admitted` raises. A request that cannot be
   sent again ends with `PodStopped`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from attrs import define

from gpugate.errors import PodStopped
from gpugate.lifecycle.diagnosis import Diagnosis
from gpugate.lifecycle.lease import Lease, ServingPod
from gpugate.lifecycle.lifecycle import Lifecycle

T = TypeVar("T")

POD_LOST = "the pod was lost in the middle of the answer"


class AttemptFailed(Exception):
    """One attempt came to nothing, and nothing of its result has left for the client.

    Raised by the work that `LeasedCall.run` is given, and by `run` itself when it gives up.

    Attributes:
        resendable: the same request can be sent again; not so if a streamed body has been read.
        sent: how many times this attempt sent the request, or tried to.
        connected: False if no connection was made.
    """

    def __init__(
        self, message: str = "", *, resendable: bool = True, sent: int = 1, connected: bool = True
    ) -> None:
        self.resendable = resendable
        self.sent = sent
        self.connected = connected
        super().__init__(message)


class PodUnreachable(AttemptFailed):
    """A service of the pod could not be reached, or hung up: perhaps the pod is no more.

    The message is one line for people.
    """


class _PodLost(Exception):
    """The lease lost its pod, or the pod moved, while the work ran; the work has been cancelled."""


async def _wait_admitted(lease: Lease) -> ServingPod:
    return await lease.wait_admitted()


@define
class LeasedCall:
    """One client's use of the pod under one lease, in one or more pieces of work.

    Attributes:
        lifecycle: asked for a diagnosis when an attempt fails.
        response_started: something has left for the client, or must not be done twice: no second attempt.
        wait_for_pod: waits for the lease's admission; may send filler to the client meanwhile.
        send_filler: sends the client filler while a service of the pod is silent; None: nothing is sent.
        filler_s: seconds between two fillers (`queue.heartbeat`).
    """

    lifecycle: Lifecycle
    lease: Lease
    response_started: bool = False
    wait_for_pod: Callable[[Lease], Awaitable[ServingPod]] = _wait_admitted
    send_filler: Callable[[], Awaitable[None]] | None = None
    filler_s: float = 0.0
    _run_id: int = 0
    _sent: int = 0
    _tried_again: bool = False  # after a diagnosis, in this run

    def mark_response_started(self) -> None:
        """Take note that the first byte is leaving; from here on nothing is tried again."""
        if not self.response_started:
            self.response_started = True
            self.lease.mark_response_started()

    async def run(
        self,
        work: Callable[[ServingPod], Awaitable[T]],
        *,
        attempts: int = 2,
        interrupt: Callable[[ServingPod], Callable[[], None]] | None = None,
        service: str = "ollama",
    ) -> T:
        """Wait for the pod and do `work` on it; again where that is safe.

        Args:
            work: raises `AttemptFailed` if it may be done again.
            attempts: how often a pod that lives but breaks connections is asked.
            interrupt: returns what ends the work on this pod when the lease loses it; the work then raises by
                itself. None: the work is cancelled.
            service: what the work asks; work without `interrupt` begins anew when this has another address.

        Raises:
            AttemptFailed: the pod lives, and the work failed `attempts` times, or cannot be done again.
            GateError: rejected while it waited, or the pod was lost after the response had started.
        """
        self._run_id = 0
        while True:
            pod = await self.next_pod()
            if pod.run_id != self._run_id:
                self._run_id, self._sent, self._tried_again = pod.run_id, 0, False
            try:
                if interrupt is None:
                    return await self._run_until_lost(work, pod, service)
                self.lease.on_lost = interrupt(pod)
                return await work(pod)
            except _PodLost:
                continue
            except AttemptFailed as error:
                self.lease.on_lost = None
                await self._decide_retry(error, pod, attempts)

    async def next_pod(self) -> ServingPod:
        """Wait for the pod. Raises GateError: rejected, or lost after the response had started."""
        pod = self.lease.pod
        if pod is not None:
            return pod
        if self.response_started:
            raise self.lease.error or PodStopped(POD_LOST)
        return await self.wait_for_pod(self.lease)

    async def _decide_retry(self, error: AttemptFailed, pod: ServingPod, attempts: int) -> None:
        """Return if there is to be another attempt, raise otherwise. The numbers: see above the module."""
        lease = self.lease
        self._sent += error.sent
        if self.response_started:  # (1)
            raise error
        if self._sent < attempts and error.resendable and lease.pod is not None:  # (2)
            return
        may_try_again = error.resendable and not self._tried_again
        diagnosis = await self.lifecycle.diagnose(pod.run_id, lease if may_try_again else None)  # (3)
        self._tried_again = True
        if lease.pod is not None:  # (4)
            is_back = diagnosis is Diagnosis.ALIVE and not error.connected
            if not (may_try_again and (is_back or lease.pod is not pod)):
                raise error
        elif not error.resendable and lease.error is None:  # (5)
            raise PodStopped("the pod was lost during the upload") from error

    async def _run_until_lost(
        self, work: Callable[[ServingPod], Awaitable[T]], pod: ServingPod, service: str
    ) -> T:
        """Cancel the work when the lease loses its pod, or when the pod moves and nothing has left yet."""
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout(None)
        is_lost = False

        def cancel() -> None:
            nonlocal is_lost
            if not is_lost:
                is_lost = True
                scope.reschedule(loop.time())

        def follow(moved: ServingPod) -> None:
            old, new = pod.endpoints.get(service), moved.endpoints.get(service)
            if new is not None and old is not None and new.url != old.url and not self.response_started:
                cancel()

        try:
            async with scope:
                self.lease.on_lost, self.lease.on_moved = cancel, follow
                try:
                    return await work(pod)
                finally:
                    self.lease.on_lost = self.lease.on_moved = None
        except TimeoutError:
            if not is_lost:
                raise
            raise _PodLost from None
