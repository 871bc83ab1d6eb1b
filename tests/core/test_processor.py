"""A pod without a GPU, or a model that runs on the CPU: told of, and left where there is another provider."""

from __future__ import annotations

import pytest
from gpugate_testing.playbook import (
    RUNNING,
    STOPPED,
    Accepted,
    Balked,
    Loaded,
    Obeyed,
    Play,
    Refused,
    policy,
)

from gpugate.core.vocabulary import (
    Arrived,
    Begun,
    Left,
    Opened,
    Preloading,
    Probed,
    Ready,
    StartWanted,
    Stopped,
    Stopping,
    Troubled,
    Warming,
    Weigh,
    Weighed,
)
from gpugate.errors import NoCapacity, Transient
from gpugate.provider_api import Endpoint, Phase, PodReport

ON_CPU = "alpha: the model runs on the CPU only"
NO_GPU = PodReport(Phase.RUNNING, "pod-1", {"ollama": Endpoint("http://127.0.0.1:1")}, cpu_only=True)


def loading(play: Play, *arrivals: Arrived) -> Play:
    """Alpha's pod is healthy and loads the model of the first request."""
    play.at(0, Opened(), *(arrivals or (Arrived(1, "llama3"),))).sees(0, RUNNING)
    return play.at(0, Accepted(report=RUNNING), state=Preloading)


def test_there_is_no_other_provider() -> None:
    """A slow answer is better than none: the pod serves, and status and events say what is wrong."""
    play = loading(Play(policy(), hidden=()))
    play.at(1, Loaded(on_cpu=True), gives=None, state=Ready)
    assert "complain 0 capacity" in play._script[-1]
    assert "admit 1 run 1" in play._script[-1]
    assert ON_CPU == play.machine.last_error


def test_the_next_provider_serves() -> None:
    """The held request is answered there; the first one's pod is stopped, and that is proved."""
    play = loading(Play(policy(2)))
    play.at(1, Loaded(on_cpu=True), gives=["start 1", "stop 0"])
    assert ON_CPU == play.machine.last_error
    play.sees(0, STOPPED).at(2, Obeyed(), gives=["session 0 closes: start_failed"])
    play.sees(1, RUNNING)
    play.at(3, Accepted(1, RUNNING), gives=["session 1 opens: request", "preload llama3"])
    play.at(4, Loaded(), gives=["admit 1 run 1"], state=Ready)
    assert 1 == play.machine.state.provider
    assert play.machine.last_error is None


def test_the_next_provider_fails() -> None:
    """The error names both and has the reason of the last one."""
    play = loading(Play(policy(2))).at(1, Loaded(on_cpu=True))
    play.at(2, Refused(NoCapacity("no GPU is free"), 1))
    assert "alpha: the model runs on the CPU only; beta: no GPU is free" in play.refusals[1].message
    assert "capacity" == play.refusals[1].reason


def test_the_last_provider_of_the_list() -> None:
    """Behind it there is none: it serves."""
    play = Play(policy(2)).at(0, Opened(), Arrived(1, "llama3")).at(0, Refused(NoCapacity("full")))
    play.sees(1, RUNNING).at(1, Accepted(1, RUNNING), state=Preloading)
    play.at(2, Loaded(on_cpu=True), gives=["admit 1 run 1"], state=Ready)
    assert "beta: the model runs on the CPU only" == play.machine.last_error


def test_nobody_waits_any_more() -> None:
    """Nothing is started for nobody: the pod that is there is kept, and its idle clock runs."""
    play = loading(Play(policy(2))).at(0.5, Left(1)).at(1, Loaded(on_cpu=True), gives=[], state=Ready)
    assert ON_CPU == play.machine.last_error
    play.at(900, gives=[]).at(901, gives=["stop 0"], state=Stopping)


def test_a_start_by_hand() -> None:
    """It is a demand like a request."""
    play = Play(policy(2, preload="llama3")).at(0, Opened(), StartWanted()).sees(0, RUNNING)
    play.at(0, Accepted(report=RUNNING), state=Preloading)
    play.at(1, Loaded(on_cpu=True), gives=["start 1", "stop 0"])


def test_the_next_providers_pod_is_still_being_stopped() -> None:
    """It cannot be started now, and waiting for it would begin with the first one again: stay."""
    play = Play(policy(2)).feels(False).sees(0, RUNNING).sees(1, RUNNING)
    play.at(0, Opened(), gives=["session 0 opens: adopted", "stop 1"], state=Warming)
    play.at(1, Arrived(1, "llama3")).feels(True).at(2, state=Preloading)
    play.at(3, Loaded(on_cpu=True), gives=["admit 1 run 1"], state=Ready)
    assert ON_CPU == play.machine.last_error


def test_a_pod_that_has_served() -> None:
    """Back from an illness on its CPU it is told of, not left: answers may be on their way."""
    play = loading(Play(policy(2))).at(1, Loaded(), gives=["admit 1 run 1"]).at(1, Begun(1))
    play.feels(False).at(2, Troubled(1), state=Warming).at(2, Arrived(2, "llama3"))
    play.feels(True).at(3, state=Preloading).at(4, Loaded(on_cpu=True), state=Ready)
    assert ON_CPU == play.machine.last_error
    assert [] == [ticket for ticket in play.machine.backlog.leases if ticket not in (1, 2)]


def test_a_preload_that_takes_too_long() -> None:
    """Nothing is known of its processor."""
    play = loading(Play(policy(2))).at(302, gives=["admit 1 run 1"], state=Ready)
    assert play.machine.last_error is None


@pytest.mark.parametrize("preload", ["none", "requested"])
def test_a_model_that_was_loaded_before(preload: str) -> None:
    """Nothing is to be loaded, so it is asked when the pod serves; that is told, and nobody is disturbed."""
    play = Play(policy(2, preload=preload), on_cpu=True).sees(0, RUNNING)
    play.at(0, Opened(), gives=["session 0 opens: adopted"], state=Ready)
    assert ON_CPU == play.machine.last_error


def test_a_model_on_the_gpu() -> None:
    """Nothing is told."""
    play = Play(policy(2)).sees(0, RUNNING).at(0, Opened(), state=Ready)
    assert play.machine.last_error is None


def test_an_answer_of_another_run() -> None:
    """It says nothing of this one."""
    play = Play(policy(), on_cpu=None).sees(0, RUNNING).at(0, Opened(), state=Ready)
    (asked,) = play.out(Weigh)
    assert asked.endpoint.url == "http://127.0.0.1:1"
    play.at(1, Weighed(asked.run + 1, True), gives=[], state=Ready)
    assert play.machine.last_error is None
    play.at(2, Weighed(asked.run, True), gives=[], state=Ready)
    assert ON_CPU == play.machine.last_error


def test_a_pod_without_a_gpu() -> None:
    """The provider says so itself: the next one is asked before anything warms."""
    play = Play(policy(2)).at(0, Opened(), Arrived(1, "llama3"))
    play.at(1, Accepted(report=NO_GPU), gives=["session 0 opens: request", "start 1", "stop 0"])
    assert "alpha: the pod has no GPU" == play.machine.last_error


def test_a_pod_without_a_gpu_and_no_other() -> None:
    """It warms and serves; what is wrong with it is told once it does."""
    play = Play(policy()).at(0, Opened(), Arrived(1, "llama3")).sees(0, NO_GPU)
    play.at(1, Accepted(report=NO_GPU), state=Preloading).at(2, Loaded(), state=Ready)
    assert "alpha: the pod has no GPU" == play.machine.last_error


def test_an_adopted_pod_without_a_gpu() -> None:
    """Nobody waits: somebody has a reason to run it, so it is only told of."""
    play = Play(policy(2)).sees(0, NO_GPU).at(0, Opened(), gives=["session 0 opens: adopted"], state=Ready)
    assert "alpha: the pod has no GPU" == play.machine.last_error


def test_the_stop_of_the_pod_without_a_gpu_fails() -> None:
    """The second provider serves; the first is told to stop until that is proved."""
    play = Play(policy(2)).at(0, Opened(), Arrived(1)).sees(0, NO_GPU).at(1, Accepted(report=NO_GPU))
    play.at(1, Balked(Transient("down"))).sees(1, RUNNING).at(2, Accepted(1, RUNNING), state=Ready)
    assert {0} == set(play.machine.stops.orders)
    play.at(20).sees(0, STOPPED).at(20, Obeyed()).at(60)
    assert {} == play.machine.stops.orders
    assert not isinstance(play.machine.state, Stopped)


def test_a_stale_check_after_it_was_left() -> None:
    """What the first pod's Ollama says then is nobody's business."""
    play = loading(Play(policy(2))).at(1, Loaded(on_cpu=True))
    play.at(1).at(2, Probed(10_000, True), Weighed(1, True), gives=[])
    assert play.machine.trouble == ON_CPU
