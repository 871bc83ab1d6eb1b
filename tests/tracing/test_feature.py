"""The spans that events make, without a gateway: pods apart, requests with one id, and failures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gpugate.core.events import Cause
from gpugate.core.states import STATUS, StateName, Status
from gpugate.errors import QueueTimeout
from gpugate.lifecycle.lease import Lease
from gpugate.lifecycle.status import ProviderCalled, RequestWaited, StateChanged
from gpugate.tracing.feature import _STEPS, Tracing
from tests.billing.ledger_house import BEGINNING as AT


class Traced:
    """The feature, and what it has sent."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(self.exporter)

    def spans(self) -> list[ReadableSpan]:
        """All spans that have ended."""
        self.tracing._provider.force_flush()
        return list(self.exporter.get_finished_spans())

    def wait(self, pod: str, user: str = "alice", request_id: str = "one") -> None:
        """A request begins to wait."""
        lease = Lease(1, 0.0, user, request_id, lambda _: None, lambda _: None, purpose="chat")
        self.tracing.on_wait(pod, lease)

    def waited(self, pod: str, user: str = "alice", error: QueueTimeout | None = None) -> None:
        """It waits no longer."""
        waited = RequestWaited(
            pod=pod, request_id="one", user=user, purpose="chat", waited_s=1.0, error=error
        )
        self.tracing.on_event(waited)

    def state(self, pod: str, was: StateName, now: StateName) -> None:
        """A pod changes its state."""
        changed = StateChanged(
            pod=pod,
            was=was,
            now=now,
            was_status=Status.STOPPED,
            status=Status.STARTING,
            cause=Cause.REQUEST_ARRIVED,
            run_id=1,
            provider="fake",
            at=AT,
        )
        self.tracing.on_event(changed)


@pytest.fixture
def traced() -> Iterator[Traced]:
    """The feature with an exporter in memory."""
    traced = Traced()
    yield traced
    traced.tracing._provider.shutdown()


def test_pods_are_kept_apart(traced: Traced) -> None:
    """A start belongs to who waits for this pod; a call to who starts it."""
    for pod in ("code", "art"):
        traced.wait(pod)
        traced.state(pod, StateName.STOPPED, StateName.CALLING_START)
    called = ProviderCalled(pod="art", provider="fake", call="start", outcome="ok", seconds=0.5)
    traced.tracing.on_event(called)
    for pod in ("art", "code"):
        traced.state(pod, StateName.WARMING, StateName.READY)
        traced.waited(pod)

    spans = {(span.name, (span.attributes or {})["gpugate.pod"]): span for span in traced.spans()}
    for pod in ("code", "art"):
        parent = spans["start", pod].parent
        assert parent is not None
        assert spans["wait for the pod", pod].context.span_id == parent.span_id
    call = spans["fake start", "art"]
    assert call.parent is not None
    assert spans["start", "art"].context.span_id == call.parent.span_id
    assert 0.5 == pytest.approx(((call.end_time or 0) - (call.start_time or 0)) / 1e9)


def test_one_id_for_several_requests(traced: Traced) -> None:
    """Each of them ends; who uses the same id as another user does not end the other's."""
    traced.wait("main")
    traced.wait("main")
    traced.wait("main", "bob")
    traced.waited("main", "bob", QueueTimeout())
    (bob,) = traced.spans()
    assert bob.attributes is not None
    assert "QUEUE_TIMEOUT" == bob.attributes["gpugate.error"]
    traced.waited("main")
    traced.waited("main")
    traced.waited("main")  # admitted once more, after its pod was lost

    assert 3 == len(traced.spans())


def test_a_start_without_a_request(traced: Traced) -> None:
    """A trace of its own; calls to a provider while nothing starts make none."""
    called = ProviderCalled(pod="main", provider="fake", call="inspect", outcome="ok", seconds=0.5)
    traced.tracing.on_event(called)
    traced.state("main", StateName.STOPPED, StateName.CALLING_START)
    traced.state("main", StateName.CALLING_START, StateName.STOPPED)

    names = {span.name: span for span in traced.spans()}
    assert {"start", "call the provider"} == set(names)
    assert names["start"].parent is None
    assert not names["start"].status.is_ok


def test_each_state_of_a_start_is_a_step() -> None:
    """In any other state the start is over: one without a step would end it as failed."""
    starting = {state for state, status in STATUS.items() if status in (Status.STARTING, Status.WARMING)}
    assert starting == set(_STEPS)
