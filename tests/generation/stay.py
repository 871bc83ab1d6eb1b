"""A lease on a pod that is there, for tests of services without a lifecycle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, field

from gpugate.errors import GateError
from gpugate.generation.comfyui import Graph, Progress, RawImage
from gpugate.generation.text_model import OnText
from gpugate.lifecycle.diagnosis import Diagnosis
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import LeasedCall
from gpugate.provider_api import Endpoint

BOTH = {"ollama": Endpoint("http://ollama"), "comfyui": Endpoint("http://comfyui")}


@define
class FakeLease:
    """Admitted at once, to `pods` one after the other."""

    pods: list[ServingPod]
    error: GateError | None = None
    on_lost: Any = None
    on_moved: Any = None
    waited_s: float = 0.0
    begun: int = 0

    @property
    def pod(self) -> ServingPod | None:
        return self.pods[0] if self.pods else None

    async def wait_admitted(self) -> ServingPod:
        if not self.pods:
            raise self.error or AssertionError("waits for ever")
        return self.pods[0]

    def mark_response_started(self) -> None:
        self.begun += 1

    def move(self, pod: ServingPod) -> None:
        """The pod has other addresses."""
        self.pods[0] = pod
        if self.on_moved is not None:
            self.on_moved(pod)

    def lose(self) -> None:
        """The pod goes; the next one is there at once."""
        self.pods.pop(0)
        if self.on_lost is not None:
            self.on_lost()


@define
class FakeDiagnoser:
    """Finds what it is told to find."""

    finding: Diagnosis = Diagnosis.ALIVE
    lease: FakeLease | None = None
    asked: int = 0
    may_requeue: list[bool] = field(factory=list)

    async def diagnose(self, run: int, lease: object = None) -> Diagnosis:
        self.asked += 1
        self.may_requeue.append(lease is not None)
        if self.finding is Diagnosis.LOST and self.lease is not None:
            self.lease.lose()
        return self.finding


def pod(run: int = 1, endpoints: Mapping[str, Endpoint] = BOTH) -> ServingPod:
    """A pod that serves."""
    return ServingPod(run, "fake", endpoints)


def leased_call_on(*pods: ServingPod, finding: Diagnosis = Diagnosis.ALIVE) -> tuple[LeasedCall, FakeLease]:
    """A call on these pods, one after the other."""
    lease = FakeLease(list(pods) or [pod()])
    return LeasedCall(FakeDiagnoser(finding, lease), lease), lease


@define
class FakeTexts:
    """A model that says these pieces; an exception among them is raised, a callable called."""

    scripts: list[list[Any]]
    asked: list[tuple[str, Mapping[str, object]]] = field(factory=list)

    async def stream_to(
        self, endpoint: Endpoint, path: str, body: Mapping[str, object], hear: OnText
    ) -> None:
        self.asked.append((path, body))
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        for piece in script:
            if isinstance(piece, Exception):
                raise piece
            if callable(piece):
                await piece()
            else:
                await hear(piece)


@define
class FakePainter:
    """Draws these bytes, or raises."""

    result: Any
    graphs: list[Graph] = field(factory=list)

    async def generate(self, endpoint: Endpoint, graph: Graph, progress: Progress) -> RawImage:
        self.graphs.append(graph)
        await progress(1, 2)
        if isinstance(self.result, Exception):
            raise self.result
        return RawImage(self.result, "x.png")
