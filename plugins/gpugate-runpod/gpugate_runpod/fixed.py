"""One pod that exists already: it is started and stopped, never made and never deleted."""

from __future__ import annotations

import asyncio

from gpugate import Ambiguous, Conflict, Misconfigured, NotFound, Phase, PodReport, Transient
from gpugate_runpod.api import Api
from gpugate_runpod.pods import ON, Reader, Shown
from gpugate_runpod.settings import RunPodConfig

OFF = frozenset({"EXITED", "TERMINATED"})


class FixedPod:
    """The pod of `providers.runpod.pod_id`."""

    def __init__(self, config: RunPodConfig, api: Api) -> None:
        self._id = config.pod_id
        self._api = api
        self._reader = Reader(config)
        self._was_on = False

    async def start(self) -> PodReport:
        """Ask for it; a pod that is on already is fine (RunPod answers 409, so it is looked at)."""
        try:
            shown = await self._api.act(self._id, "start", lost=Ambiguous)
        except NotFound as error:
            raise NotFound(self._missing(error.message)) from error
        except Conflict as refused:
            shown = await self._look()
            if shown.status == "TERMINATED":
                raise NotFound(self._missing("RunPod: the pod is TERMINATED")) from refused
            if shown.status not in ON:
                raise Conflict(_why(shown, "start", refused)) from refused
        if (why := self._reader.unreachable_port(shown)) is not None:
            raise Misconfigured(why)
        return self._report(shown)

    async def stop(self) -> PodReport:
        """Ask it to stop; one that is off or gone already is fine."""
        try:
            shown = await self._api.act(self._id, "stop")
        except NotFound as error:
            return self._gone(error)  # no proof yet: gpugate looks
        except Conflict as refused:
            shown = await self._look()
            if shown.status not in OFF:
                raise Conflict(_why(shown, "stop", refused)) from refused
        return self._report(shown)

    async def inspect(self) -> PodReport:
        """Look. Raises: Transient, a pod that was on is missing for the first time: once may be a slip."""
        try:
            return self._report(await self._look())
        except NotFound as error:
            if self._was_on:
                self._was_on = False
                raise Transient(f"{error.message}, but pod {self._id} was on a moment ago") from error
            return self._gone(error)

    async def _look(self) -> Shown:
        return await self._api.get(self._id)

    def _report(self, shown: Shown) -> PodReport:
        self._was_on = shown.status in ON
        return self._reader.report(shown, asyncio.get_running_loop().time())

    def _gone(self, error: NotFound) -> PodReport:
        return PodReport(Phase.GONE, pod_id=self._id, detail=self._missing(error.message))

    def _missing(self, said: str) -> str:
        return f"{said}: pod {self._id} was deleted or migrated; set providers.runpod.pod_id to the new id"


def _why(shown: Shown, action: str, refused: Conflict) -> str:
    """What to do about a refused action."""
    if shown.locked:
        return f"pod {shown.id} is locked: unlock it in RunPod's console; it is {shown.status} until then"
    if shown.status == "ERROR":
        return f"pod {shown.id} is in ERROR and does not {action}: reset or delete it in RunPod's console"
    return f"{refused.message} (pod {shown.id} is {shown.status})"
