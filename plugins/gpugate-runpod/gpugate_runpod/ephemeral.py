"""Pods that live for one session: created when wanted, deleted at the end, found again by their names.

RunPod keeps the only record of them. Every pod of this gateway is called `gpugate-<instance>-<8 hex
digits>`, so a lost answer, a crash or a restart leaves nothing that a list would not show.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from attrs import evolve, frozen

from gpugate import (
    Ambiguous,
    AuthFailed,
    Misconfigured,
    NoCapacity,
    NotFound,
    Phase,
    PodReport,
    ProviderError,
    RateLimited,
    Transient,
)
from gpugate_runpod.api import Api
from gpugate_runpod.pods import ON, Reader, Shown, Stock
from gpugate_runpod.settings import RunPodConfig
from gpugate_runpod.spot import MARK, ON_DEMAND, SPOT, bid_for

SETTLE_S = 10.0
"""How long after an unanswered create its pod may still turn up; also how long a list may lag."""
MOST_CANDIDATES = 8
"""Creates in one start: gpugate gives a start two minutes, and one call may take `timeout`."""
DEFAULT_DISK_GB = 30
GIB = 1 << 30
INTERRUPTED_S = 3600.0
"""How long on-demand pods are made after a spot pod was taken away."""
_BEST_FIRST = ("RUNNING", "STARTING", "PROVISIONING", "ERROR", "EXITED")


@frozen
class Candidate:
    """Where a pod could be made."""

    gpu: str
    data_center: str | None
    gpu_bytes: int | None = None
    bid: Decimal | None = None  # of a spot pod


class EphemeralPods:
    """This gateway's pods; at most one is wanted at a time."""

    def __init__(self, config: RunPodConfig, api: Api) -> None:
        self._config = config
        self._api = api
        self._reader = Reader(config)
        self._ours = re.compile(rf"gpugate-{re.escape(config.instance)}-[0-9a-f]{{8}}")
        self._gpu_bytes: dict[str, int] = {}  # of the pod that was made last, by its id
        self._known: Shown | None = None  # the pod that is meant; a list may be slow to have it, or slip
        self._new_until = 0.0
        self._unsure_until = 0.0
        self._on_demand_until = 0.0

    async def start(self, needed_gpu_bytes: int | None = None) -> PodReport:
        """Take the pod that is there, else create one at the first candidate that has room.

        `needed_gpu_bytes`: of all its GPUs together, with gpus = "auto".

        Raises: NoCapacity, nowhere is room; Ambiguous, a create was not answered; RateLimited, it is too
        early to tell whether such a pod was made, so that none is made twice.
        """
        pods = await self._owned()
        alive = [shown for shown in pods if shown.status in ON]
        if alive:
            await self._delete_all(alive[1:])
            return self._report(alive[0], ())
        if (wait := self._unsure_until - self._now()) > 0:
            raise RateLimited("a create was not answered; waiting whether its pod turns up", wait)
        return await self._create_somewhere(needed_gpu_bytes)

    async def stop(self) -> PodReport:
        """Delete every pod of ours, a second one and what somebody only stopped included."""
        pods = await self._owned()
        await self._delete_all(pods)
        self._new_until = 0.0  # from now on its absence is believed
        phase = Phase.STOPPING if pods else Phase.STOPPED
        return PodReport(phase, pod_id=pods[0].id if pods else None)

    async def inspect(self) -> PodReport:
        """Look for our pod. Raises: Transient, an unanswered create may still turn out to have made one."""
        pods = await self._owned()
        if pods:
            return self._report(pods[0], pods[1:])
        if self._now() < self._unsure_until:
            raise Transient("a create was not answered; too early to say that there is no pod")
        return PodReport(Phase.STOPPED, detail="no pod")

    async def sweep(self) -> None:
        """Delete ours beside the one that serves, such as that of a create whose answer was lost."""
        serving = self._known
        pods = await self._owned()
        if serving is not None and pods and pods[0].id == serving.id:  # else the next look says which it is
            await self._delete_all(pods[1:])

    # --- what is ours ---------------------------------------------------------------------------

    async def _owned(self) -> list[Shown]:
        """Our pods that exist, the best first; the one we know is asked for by its id if no list has it."""
        listed = [shown for shown in await self._api.list_pods() if self._ours.fullmatch(shown.name)]
        if self._known is not None and all(shown.id != self._known.id for shown in listed):
            listed += await self._unlisted(self._known)
        pods = sorted((shown for shown in listed if shown.status != "TERMINATED"), key=self._rank)
        if pods:
            self._unsure_until = 0.0  # whatever was asked last has turned up
        self._known = pods[0] if pods else None
        return pods

    async def _unlisted(self, known: Shown) -> list[Shown]:
        """A pod that is in no list: there all the same, too new to be seen, or gone."""
        try:
            return [await self._api.get(known.id)]
        except NotFound:
            return [known] if self._now() < self._new_until else []

    def _rank(self, shown: Shown) -> tuple[int, bool, str]:
        status = shown.status
        place = _BEST_FIRST.index(status) if status in _BEST_FIRST else len(_BEST_FIRST)
        return place, self._known is None or shown.id != self._known.id, shown.id

    def _report(self, shown: Shown, others: Iterable[Shown]) -> PodReport:
        more = ", ".join(other.id for other in others)
        note = f"more pods of this gateway exist and are billed: {more}" if more else ""
        if shown.status in ("EXITED", "ERROR"):
            # Its disk is billed until it is deleted, so it must not pass for a proved stop.
            words = f"the pod is {shown.status} and has to be deleted"
            if shown.rented == SPOT:
                words = f"interrupted: the spot pod is {shown.status}, and is deleted"
                self._on_demand_until = self._now() + INTERRUPTED_S
            billed = shown.status == "ERROR" and shown.cost != 0
            return PodReport(Phase.FAILED, pod_id=shown.id, detail=words, alarm=note, billed=billed)
        report = self._reader.report(shown, self._now())
        return evolve(
            report,
            alarm=note,
            started_at=shown.created_at or report.started_at,
            gpu_bytes=self._gpu_bytes.get(shown.id),
        )

    async def _delete_all(self, pods: Iterable[Shown]) -> None:
        """Delete each, whatever happens to the others; then raise the first error there was."""
        failed: ProviderError | None = None
        for shown in pods:
            try:
                await self._api.delete(shown.id)
            except NotFound:
                continue
            except ProviderError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    # --- making one ---------------------------------------------------------------------------

    async def _create_somewhere(self, needed: int | None) -> PodReport:
        """Ask candidate after candidate: RunPod does not search (docs/providers.md#runpod-creation)."""
        config = self._config
        stock = await self._api.gpus(config.gpu_count, config.cloud.upper())
        refusals: list[ProviderError] = []
        gpus = cheapest_fitting(stock, config, needed) if config.gpus == "auto" else config.gpus
        candidates = [*await self._spot_candidates(stock, gpus), *self._candidates(stock, gpus)]
        for candidate in candidates[:MOST_CANDIDATES]:
            try:
                shown = await self._create(candidate)
            except (NoCapacity, Misconfigured, AuthFailed) as error:
                # 400 is both "no room" and "not possible there", 403 is "not there for you": ask the next
                refusals.append(error)
                continue
            if (why := self._reader.unreachable_port(shown)) is not None:
                raise Misconfigured(why)
            if candidate.gpu_bytes is not None:
                self._gpu_bytes = {shown.id: candidate.gpu_bytes}
            return self._report(shown, ())
        raise self._nowhere(refusals, stock, gpus, needed)

    def _nowhere(
        self,
        refusals: list[ProviderError],
        stock: list[Stock],
        gpus: Sequence[str],
        needed: int | None,
    ) -> ProviderError:
        """ "No room" if anybody said so, since waiting helps then; else the last refusal."""
        full = [error for error in refusals if isinstance(error, NoCapacity)]
        if refusals:
            return (full or refusals)[-1]
        known = {line.id for line in stock}
        if self._config.gpus == "auto" and not gpus:
            size = f"{self._config.gpu_count} x GPU with {(needed or 0) / GIB:.1f} GiB together"
            return Misconfigured(f"RunPod has no {size}: raise providers.runpod.gpu_count")
        if not known.intersection(gpus):
            names = ", ".join(gpus)
            return Misconfigured(f"RunPod has no GPU of the name {names} (providers.runpod.gpus)")
        dear = ", or costs more than providers.runpod.max_price" if self._config.max_price else ""
        if self._config.gpus == "auto":
            return NoCapacity(f"no GPU with {(needed or 0) / GIB:.1f} GiB is free{dear}")
        return NoCapacity(f"none of {', '.join(gpus)} is free{dear}")

    async def _create(self, candidate: Candidate) -> Shown:
        self._unsure_until = self._now() + self._config.timeout + SETTLE_S  # holds if this is cancelled
        try:
            body = self._body(candidate)
            bid = candidate.bid
            shown = await (self._api.create(body) if bid is None else self._api.rent(body, bid))
        except ProviderError as error:
            self._unsure_until = self._now() + SETTLE_S if isinstance(error, Ambiguous) else 0.0
            raise
        self._unsure_until = 0.0
        self._known, self._new_until = shown, self._now() + SETTLE_S
        return shown

    def _candidates(self, stock: list[Stock], gpus: Sequence[str]) -> Iterator[Candidate]:
        """GPUs in this order, each in the data centres in their order."""
        by_id = {line.id: line for line in stock}
        for gpu in gpus:
            line = by_id.get(gpu)
            if line is None or not line.available or self._too_dear(line):
                continue
            size = memory_of(line, self._config)
            if not self._config.data_centers:
                yield Candidate(gpu, None, size)
            for place in self._config.data_centers:
                if not line.data_centers or place in line.data_centers:
                    yield Candidate(gpu, place, size)

    async def _spot_candidates(self, stock: list[Stock], gpus: Sequence[str]) -> list[Candidate]:
        """GPUs that are bid for, in this order, or cheapest first where any will do; none for now after an
        interruption. Where the bids cannot be asked for there are none either: a pod is wanted."""
        if not self._config.spot or self._now() < self._on_demand_until:
            return []
        try:
            least = await self._api.lowest_bids()
        except (Transient, Misconfigured, RateLimited):
            return []
        sizes = {line.id: memory_of(line, self._config) for line in stock}
        places: list[str | None] = [*self._config.data_centers] or [None]
        bids = [(gpu, bid_for(least[gpu], self._config)) for gpu in gpus if gpu in least]
        found = [
            Candidate(gpu, place, sizes.get(gpu), bid)
            for gpu, bid in bids
            if bid is not None
            for place in places
        ]
        if self._config.gpus == "auto":
            found.sort(key=lambda candidate: candidate.bid or 0)
        return found[: MOST_CANDIDATES // 2]

    def _too_dear(self, line: Stock) -> bool:
        limit = self._config.max_price
        if not limit:
            return False
        return line.price is None or float(line.price) * self._config.gpu_count > limit

    def _body(self, candidate: Candidate) -> dict[str, Any]:
        """See docs/providers.md#runpod-creation; RunPod refuses fields that it does not know."""
        config = self._config
        gpu: dict[str, Any] = {"id": candidate.gpu, "count": config.gpu_count}
        if config.min_cuda:
            gpu["minCudaVersion"] = config.min_cuda
        body: dict[str, Any] = {
            "name": f"gpugate-{config.instance}-{secrets.token_hex(4)}",
            "cloud": config.cloud.upper(),
            "gpu": gpu,
            "ports": [f"{config.ollama_port}/http", f"{config.comfyui_port}/http"],
            "env": dict(config.env),
        }
        if config.spot:
            body["env"][MARK] = ON_DEMAND if candidate.bid is None else SPOT
        if config.template_id:
            body["templateId"] = config.template_id
        if config.image:
            body["image"] = config.image
        if config.disk or not config.template_id:
            body["disk"] = config.disk or DEFAULT_DISK_GB
        if candidate.data_center is not None:
            body["dataCenterIds"] = [candidate.data_center]
        if config.volume_id:
            body["mounts"] = {"network": [{"volumeId": config.volume_id, "path": config.volume_path}]}
        return body

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def memory_of(line: Stock, config: RunPodConfig) -> int | None:
    """Bytes of the GPUs of one pod together; None where the catalogue does not tell."""
    return None if line.memory is None else int(line.memory * config.gpu_count * GIB)


def cheapest_fitting(stock: list[Stock], config: RunPodConfig, needed: int | None) -> list[str]:
    """GPU ids that hold so many bytes, cheapest first, whether they are free or not.

    AMD's need an image of their own, so they are left out unless the image's name says "rocm".
    """
    if needed is None:
        raise Misconfigured('gpus = "auto": the size of no model is known; name one in pod.pull')
    fitting = [
        line
        for line in stock
        if line.price is not None
        and (memory_of(line, config) or 0) >= needed
        and ("rocm" in config.image or not line.id.startswith("AMD "))
    ]
    return [line.id for line in sorted(fitting, key=lambda line: (line.price or 0, line.memory or 0))]
