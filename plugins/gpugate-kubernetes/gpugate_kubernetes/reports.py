"""Makes reports of what was seen, and tells one life of the pod from the next."""

from __future__ import annotations

from gpugate import Misconfigured, Phase, PodReport, ProviderError
from gpugate_kubernetes.places import Places
from gpugate_kubernetes.reading import Seen


class Reporter:
    """Puts what was seen, its place and its price together.

    A controller replaces a lost Pod by itself, with the same `pod_id`. So that each Pod is billed as a
    session of its own, one look between two of them says that nothing is billed; and the second one's start,
    which is then long past, is left out. It remembers which Pods the last look showed, and may forget it:
    after a crash the Pods that are there are taken for those of the open session.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._billed: frozenset[str] = frozenset()
        self._followers: frozenset[str] = frozenset()

    async def report(self, pod_id: str, seen: Seen, *, alarm: str = "") -> PodReport:
        """What gpugate needs to know. A place or a price that cannot be had is told in `detail`."""
        billed = self._is_billed(seen)
        notes = [seen.detail]
        endpoints, price = {}, None
        if seen.phase is not Phase.STOPPED:
            try:
                endpoints = await self._places.endpoints(seen)
                price = await self._places.price(seen.paid)
            except Misconfigured as error:
                return self._failed(pod_id, seen, error, billed=billed)
            except ProviderError as error:
                notes.append(error.message)
        return PodReport(
            phase=seen.phase,
            pod_id=pod_id,
            endpoints=endpoints,
            price=price,
            gpu=await self._places.gpu(seen.paid),
            started_at=self._started_at(seen) if billed else None,
            detail="; ".join(filter(None, notes)),
            alarm=alarm,
            billed=billed,
            failure=seen.failure,
            replicas=max(1, sum(1 for pod in seen.pods if pod.is_active and pod.phase is Phase.RUNNING)),
        )

    def _failed(self, pod_id: str, seen: Seen, error: Misconfigured, *, billed: bool) -> PodReport:
        return PodReport(Phase.FAILED, pod_id=pod_id, detail=error.message, billed=billed, failure=error)

    def _is_billed(self, seen: Seen) -> bool:
        """Whether a Pod of the session is paid for; notes a change of Pods."""
        now = frozenset(pod.uid for pod in seen.paid)
        was, alone = self._billed, sum(1 for pod in seen.pods if pod.is_active) <= 1
        if was and now and not was & now:
            self._billed, self._followers = now, now
            return False
        self._billed = (was & now) if was & now and alone else now
        return bool(now)

    def _started_at(self, seen: Seen) -> object:
        ours = [pod for pod in seen.paid if pod.uid in self._billed]
        if any(pod.uid in self._followers for pod in ours):
            return None
        return min((pod.scheduled_at for pod in ours if pod.scheduled_at is not None), default=None)
