"""A pod without a GPU, or a model that runs on the CPU: told of, and left where there is another provider."""

from __future__ import annotations

import pytest
from gpugate_testing.playbook import (
    RUNNING,
    STOPPED,
    PreloadOk,
    Scenario,
    StartError,
    StartOk,
    StopError,
    StopOk,
    policy,
)

from gpugate.core.commands import CheckDevice
from gpugate.core.events import (
    DeviceChecked,
    GatewayStarted,
    ManualStartRequested,
    ProbeFinished,
    RequestArrived,
    RequestFinished,
    ResponseStarted,
    UpstreamFailed,
)
from gpugate.core.states import Preloading, Ready, Stopped, Stopping, Warming
from gpugate.errors import NoCapacity, Transient
from gpugate.provider_api import Endpoint, Phase, PodReport

ON_CPU = "alpha: the model runs on the CPU only"
NO_GPU = PodReport(Phase.RUNNING, "pod-1", {"ollama": Endpoint("http://127.0.0.1:1")}, cpu_only=True)


def loading(play: Scenario, *arrivals: RequestArrived) -> Scenario:
    """Alpha's pod is healthy and loads the model of the first request."""
    play.at(0, GatewayStarted(), *(arrivals or (RequestArrived(1, "llama3"),))).set_report(0, RUNNING)
    return play.at(0, StartOk(report=RUNNING), state=Preloading)


def test_there_is_no_other_provider() -> None:
    """A slow answer is better than none: the pod serves, and status and events say what is wrong."""
    play = loading(Scenario(policy(), hidden=()))
    play.at(1, PreloadOk(on_cpu=True), gives=None, state=Ready)
    assert "complain 0 capacity" in play._script[-1]
    assert "admit 1 run 1" in play._script[-1]
    assert ON_CPU == play.machine.last_error


def test_the_next_provider_serves() -> None:
    """The held request is answered there; the first one's pod is stopped, and that is proved."""
    play = loading(Scenario(policy(2)))
    play.at(1, PreloadOk(on_cpu=True), gives=["start 1", "stop 0"])
    assert ON_CPU == play.machine.last_error
    play.set_report(0, STOPPED).at(2, StopOk(), gives=["session 0 closes: start_failed"])
    play.set_report(1, RUNNING)
    play.at(3, StartOk(1, RUNNING), gives=["session 1 opens: request", "preload llama3"])
    play.at(4, PreloadOk(), gives=["admit 1 run 1"], state=Ready)
    assert 1 == play.machine.state.provider
    assert play.machine.last_error is None


def test_the_next_provider_fails() -> None:
    """The error names both and has the reason of the last one."""
    play = loading(Scenario(policy(2))).at(1, PreloadOk(on_cpu=True))
    play.at(2, StartError(NoCapacity("no GPU is free"), 1))
    assert "alpha: the model runs on the CPU only; beta: no GPU is free" in play.refusals[1].message
    assert "capacity" == play.refusals[1].reason


def test_the_last_provider_of_the_list() -> None:
    """Behind it there is none: it serves."""
    play = (
        Scenario(policy(2))
        .at(0, GatewayStarted(), RequestArrived(1, "llama3"))
        .at(0, StartError(NoCapacity("full")))
    )
    play.set_report(1, RUNNING).at(1, StartOk(1, RUNNING), state=Preloading)
    play.at(2, PreloadOk(on_cpu=True), gives=["admit 1 run 1"], state=Ready)
    assert "beta: the model runs on the CPU only" == play.machine.last_error


def test_nobody_waits_any_more() -> None:
    """Nothing is started for nobody: the pod that is there is kept, and its idle clock runs."""
    play = (
        loading(Scenario(policy(2)))
        .at(0.5, RequestFinished(1))
        .at(1, PreloadOk(on_cpu=True), gives=[], state=Ready)
    )
    assert ON_CPU == play.machine.last_error
    play.at(900, gives=[]).at(901, gives=["stop 0"], state=Stopping)


def test_a_start_by_hand() -> None:
    """It is a demand like a request."""
    play = (
        Scenario(policy(2, preload="llama3"))
        .at(0, GatewayStarted(), ManualStartRequested())
        .set_report(0, RUNNING)
    )
    play.at(0, StartOk(report=RUNNING), state=Preloading)
    play.at(1, PreloadOk(on_cpu=True), gives=["start 1", "stop 0"])


def test_the_next_providers_pod_is_still_being_stopped() -> None:
    """It cannot be started now, and waiting for it would begin with the first one again: stay."""
    play = Scenario(policy(2)).set_health(False).set_report(0, RUNNING).set_report(1, RUNNING)
    play.at(
        0,
        GatewayStarted(),
        gives=["session 1 opens: adopted", "session 0 opens: adopted", "stop 1"],
        state=Warming,
    )
    play.at(1, RequestArrived(1, "llama3")).set_health(True).at(2, state=Preloading)
    play.at(3, PreloadOk(on_cpu=True), gives=["admit 1 run 1"], state=Ready)
    assert ON_CPU == play.machine.last_error


def test_a_pod_that_has_served() -> None:
    """Back from an illness on its CPU it is told of, not left: answers may be on their way."""
    play = loading(Scenario(policy(2))).at(1, PreloadOk(), gives=["admit 1 run 1"]).at(1, ResponseStarted(1))
    play.set_health(False).at(2, UpstreamFailed(1), state=Warming).at(2, RequestArrived(2, "llama3"))
    play.set_health(True).at(3, state=Preloading).at(4, PreloadOk(on_cpu=True), state=Ready)
    assert ON_CPU == play.machine.last_error
    assert [] == [ticket for ticket in play.machine.queue.leases if ticket not in (1, 2)]


def test_a_preload_that_takes_too_long() -> None:
    """Nothing is known of its processor."""
    play = loading(Scenario(policy(2))).at(302, gives=["admit 1 run 1"], state=Ready)
    assert play.machine.last_error is None


@pytest.mark.parametrize("preload", ["none", "requested"])
def test_a_model_that_was_loaded_before(preload: str) -> None:
    """Nothing is to be loaded, so it is asked when the pod serves; that is told, and nobody is disturbed."""
    play = Scenario(policy(2, preload=preload), on_cpu=True).set_report(0, RUNNING)
    play.at(0, GatewayStarted(), gives=["session 0 opens: adopted"], state=Ready)
    assert ON_CPU == play.machine.last_error


def test_a_model_on_the_gpu() -> None:
    """Nothing is told."""
    play = Scenario(policy(2)).set_report(0, RUNNING).at(0, GatewayStarted(), state=Ready)
    assert play.machine.last_error is None


def test_an_answer_of_another_run() -> None:
    """It says nothing of this one."""
    play = Scenario(policy(), on_cpu=None).set_report(0, RUNNING).at(0, GatewayStarted(), state=Ready)
    (asked,) = play.out(CheckDevice)
    assert asked.endpoint.url == "http://127.0.0.1:1"
    play.at(1, DeviceChecked(asked.run_id + 1, True), gives=[], state=Ready)
    assert play.machine.last_error is None
    play.at(2, DeviceChecked(asked.run_id, True), gives=[], state=Ready)
    assert ON_CPU == play.machine.last_error


def test_a_pod_without_a_gpu() -> None:
    """The provider says so itself: the next one is asked before anything warms."""
    play = Scenario(policy(2)).at(0, GatewayStarted(), RequestArrived(1, "llama3"))
    play.at(1, StartOk(report=NO_GPU), gives=["session 0 opens: request", "start 1", "stop 0"])
    assert "alpha: the pod has no GPU" == play.machine.last_error


def test_a_pod_without_a_gpu_and_no_other() -> None:
    """It warms and serves; what is wrong with it is told once it does."""
    play = Scenario(policy()).at(0, GatewayStarted(), RequestArrived(1, "llama3")).set_report(0, NO_GPU)
    play.at(1, StartOk(report=NO_GPU), state=Preloading).at(2, PreloadOk(), state=Ready)
    assert "alpha: the pod has no GPU" == play.machine.last_error


def test_an_adopted_pod_without_a_gpu() -> None:
    """Nobody waits: somebody has a reason to run it, so it is only told of."""
    play = (
        Scenario(policy(2))
        .set_report(0, NO_GPU)
        .at(0, GatewayStarted(), gives=["session 0 opens: adopted"], state=Ready)
    )
    assert "alpha: the pod has no GPU" == play.machine.last_error


def test_the_stop_of_the_pod_without_a_gpu_fails() -> None:
    """The second provider serves; the first is told to stop until that is proved."""
    play = (
        Scenario(policy(2))
        .at(0, GatewayStarted(), RequestArrived(1))
        .set_report(0, NO_GPU)
        .at(1, StartOk(report=NO_GPU))
    )
    play.at(1, StopError(Transient("down"))).set_report(1, RUNNING).at(2, StartOk(1, RUNNING), state=Ready)
    assert {0} == set(play.machine.pending_stops.by_provider)
    play.at(20).set_report(0, STOPPED).at(20, StopOk()).at(60)
    assert {} == play.machine.pending_stops.by_provider
    assert not isinstance(play.machine.state, Stopped)


def test_a_stale_check_after_it_was_left() -> None:
    """What the first pod's Ollama says then is nobody's business."""
    play = loading(Scenario(policy(2))).at(1, PreloadOk(on_cpu=True))
    play.at(1).at(2, ProbeFinished(10_000, True), DeviceChecked(1, True), gives=[])
    assert play.machine.last_problem == ON_CPU
