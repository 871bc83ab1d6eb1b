"""`why` with several pods: whose history, queue and status a line is of, and when the pod is named."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from attrs import define, evolve, field
from gpugate_testing.fakes import MemoryLedger

from gpugate.billing.model import Session
from gpugate.core.states import StateName, Status
from gpugate.lifecycle.lease import OpenRequest
from gpugate.lifecycle.status import RequestWaited, StateChanged
from gpugate.observability.history import History
from gpugate.proxy.auth import User
from gpugate.proxy.request_context import RequestContext
from gpugate.why.feature import ExplainedPod, WhyApi
from tests.why.test_explain import ROW, STATUS

NOW = datetime.now(UTC)


@define
class FakeLifecycle:
    """What `why` asks a lifecycle."""

    ready_in_s: float
    requests: list[OpenRequest] = field(factory=list)

    def open_requests(self) -> list[OpenRequest]:
        return self.requests

    def status_now(self) -> Any:
        return evolve(STATUS, ready_in_seconds=self.ready_in_s, ready_in_p90_seconds=self.ready_in_s)


@define
class House:
    """Pods whose providers have the same name, and a clock that they share."""

    pods: dict[str, FakeLifecycle]
    ledger: MemoryLedger = field(factory=MemoryLedger)
    now: float = 0.0
    histories: dict[str, History] = field(factory=dict)
    api: WhyApi = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.histories = {name: self.history(name) for name in self.pods}
        pods = {name: ExplainedPod(self.histories[name], pod) for name, pod in self.pods.items()}  # type: ignore[arg-type]
        self.api = WhyApi(pods, self.ledger, self.flush, UTC)

    def history(self, pod: str) -> History:
        return History(lambda _: f"s-{pod}", lambda: None, lambda: self.now)

    async def flush(self) -> None:
        """Nothing to write."""

    def step(self, pod: str, was: StateName, now: StateName) -> None:
        self.histories[pod].on_event(
            StateChanged(
                pod=pod,
                was=was,
                now=now,
                was_status=Status.STARTING,
                status=Status.STARTING,
                cause="StartAnswered",  # type: ignore[arg-type]
                run_id=1,
                provider="runpod",
                at=NOW,
            )
        )

    def waited(self, pod: str, name: str, seconds: float) -> None:
        self.histories[pod].on_event(
            RequestWaited(pod=pod, request_id=name, user="alice", purpose="chat", waited_s=seconds)
        )

    async def why(self, query: str) -> list[str]:
        call = RequestContext(make_mocked_request("GET", f"/?{query}"), "id", "/", query, "")
        call.user = User("alice", None)
        answer = await self.api.why(call)
        assert isinstance(answer, web.Response)
        assert isinstance(answer.body, bytes)
        lines = json.loads(answer.body)["data"]["lines"]
        assert isinstance(lines, list)
        return lines


def row(pod: str, **more: object) -> Session:
    return evolve(ROW, id=f"s-{pod}", pod=pod, request_id="r-1", asked_at=NOW - timedelta(seconds=90), **more)  # type: ignore[arg-type]


@pytest.fixture
def house() -> House:
    return House({"chat": FakeLifecycle(10.0), "code": FakeLifecycle(70.0)})


async def test_a_wait_is_explained_by_its_own_pod(house: House) -> None:
    """While one pod boots the other one loads its model."""
    house.step("chat", StateName.STOPPED, StateName.CALLING_START)
    house.step("code", StateName.STOPPED, StateName.PRELOADING)
    house.now = 40.0
    house.waited("chat", "r-1", 40.0)
    house.waited("code", "r-2", 30.0)

    assert ["request r-1 for the pod chat waited 40 s: boot 40 s"] == await house.why("request=r-1")
    assert ["request r-2 for the pod code waited 30 s: model 30 s"] == await house.why("request=r-2")


async def test_a_request_that_waits_still(house: House) -> None:
    """It is found in its pod's queue, and told when that pod will be ready."""
    waiting = OpenRequest(user="alice", request_id="r-3", waiting=True, seconds=12.0)
    house.pods["code"].requests.append(waiting)
    assert ["request r-3 for the pod code has waited 12 s; ready in about 70 s"] == await house.why(
        "request=r-3"
    )


async def test_an_open_session(house: House) -> None:
    """Named with its pod; its parts and its status are that pod's."""
    house.step("code", StateName.STOPPED, StateName.CALLING_START)
    house.now = 90.0
    open_row = row("code", started_at=NOW, running_at=None, ready_at=None, stop_asked_at=None, ended_at=None)
    house.ledger.rows = {open_row.id: open_row}
    first, second, *_ = await house.why("session=s-code")
    assert first.startswith("pod code: started at ")
    assert re.fullmatch(r"not ready yet, after .+: boot 90 s; ready in about 70 s", second)


async def test_a_pod_that_is_not_configured_any_more(house: House) -> None:
    """The ledger's row is all that is known."""
    house.ledger.rows = {"s-gone": row("gone", end_reason="not configured any more")}
    lines = await house.why("session=s-gone")
    assert lines[0].startswith("pod gone: started at ")
    assert "stopped: not configured any more" in lines


async def test_the_only_pod_is_not_named() -> None:
    """Lines are as they are without `[pods]`."""
    house = House({"main": FakeLifecycle(10.0)})
    house.ledger.rows = {"s-main": row("main")}
    house.waited("main", "r-1", 1.0)
    lines = await house.why("request=r-1")
    assert lines[0].startswith("request r-1 waited 1 s")
    assert lines[2].startswith("started at ")
