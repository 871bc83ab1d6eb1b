"""Playbooks of a machine that lets go early and starts unasked."""

from __future__ import annotations

import pytest
from gpugate_testing.playbook import RUNNING, STARTING, STOPPED, Scenario, StartError, StartOk, StopOk, policy

from gpugate.core.events import (
    GatewayStarted,
    ManualStartRequested,
    ManualStopRequested,
    RequestArrived,
    RequestFinished,
    ResponseStarted,
    ShutdownRequested,
)
from gpugate.core.idle_policy import FixedIdlePolicy, PrewarmWindow
from gpugate.core.states import Ready, Stopped, Stopping
from gpugate.errors import AuthFailed
from gpugate.provider_api import Phase

KEEP_S = 60.0
WINDOW = PrewarmWindow(3000.0, 3300.0)


def used(window: PrewarmWindow = WINDOW) -> Scenario:
    """A pod that was used until 10 s."""
    play = Scenario(policy(), idle=FixedIdlePolicy(KEEP_S, window))
    play.at(0, GatewayStarted(), RequestArrived(1)).set_report(0, RUNNING).at(
        0, StartOk(report=RUNNING), state=Ready
    )
    return play.at(5, ResponseStarted(1)).at(10, RequestFinished(1), state=Ready)


def let_go() -> Scenario:
    """It was stopped for want of use, and that is proved."""
    play = used().at(69.9, gives=None).at(70, gives=["stop 0"], state=Stopping)
    return play.set_report(0, STOPPED).at(71, StopOk(), gives=["session 0 closes: idle"], state=Stopped)


def prewarmed() -> Scenario:
    """A second pod is ready since 3100 s, and nobody has asked for it."""
    play = let_go().at(3009.9, gives=[]).at(3010, gives=["start 0"])
    play.at(3012, StartOk(report=STARTING), gives=["session 0 opens: prewarm"])
    return play.set_report(0, RUNNING).at(3100, gives=[], state=Ready)


def test_a_pod_is_let_go_as_soon_as_the_policy_says() -> None:
    """Not after `idle_timeout`; every lease counts anew."""
    play = used().at(60, RequestArrived(2)).at(500, RequestFinished(2)).at(559.9, gives=[])
    play.at(560, gives=["stop 0"])


def test_the_pod_is_warm_before_somebody_comes() -> None:
    """Who comes in the window does not wait; then the pod is kept as any that was used."""
    play = prewarmed().at(3200, RequestArrived(2), gives=["admit 2 run 2"]).at(3210, RequestFinished(2))
    play.at(3269.9, gives=[]).at(3270, gives=["stop 0"])


def test_nobody_comes_in_the_window() -> None:
    """The pod is stopped at its end, and not started again in this pause."""
    play = prewarmed().at(3309.9, gives=[]).at(3310, gives=["stop 0"]).set_report(0, STOPPED)
    play.at(3311, StopOk(), gives=["session 0 closes: idle"]).at(200_000, gives=[], state=Stopped)


def test_each_pause_has_its_window() -> None:
    """The next use begins the next pause."""
    play = (
        prewarmed()
        .at(3200, RequestArrived(2))
        .at(3210, RequestFinished(2))
        .at(3270, gives=None)
        .set_report(0, STOPPED)
    )
    play.at(3271, StopOk(), gives=["session 0 closes: idle"]).at(6209.9, gives=[])
    play.at(6210, gives=["start 0"])


def test_somebody_comes_while_it_warms() -> None:
    """He waits for what is left of the start; there is one start."""
    play = let_go().at(3010, gives=["start 0"]).at(3011, RequestArrived(2), gives=[])
    play.set_report(0, RUNNING)
    play.at(3020, StartOk(report=RUNNING), gives=["session 0 opens: request", "admit 2 run 2"])


def test_somebody_comes_before_the_window() -> None:
    """An ordinary cold start, and the window of that pause is not used."""
    play = (
        let_go()
        .at(2000, RequestArrived(2), gives=["start 0"])
        .set_report(0, RUNNING)
        .at(2001, StartOk(report=RUNNING))
    )
    play.at(2010, RequestFinished(2)).at(2070, gives=["stop 0"]).set_report(0, STOPPED)
    play.at(2071, StopOk(), gives=["session 0 closes: idle"])
    play.at(5009.9, gives=[]).at(5010, gives=["start 0"])


def test_a_start_by_hand_of_a_pod_that_warms_unasked() -> None:
    """From then on it is kept for the whole `idle_timeout`, as any that was started by hand."""
    play = let_go().at(3010, gives=["start 0"]).at(3011, ManualStartRequested(), gives=["reply accepted"])
    play.set_report(0, RUNNING).at(3020, StartOk(report=RUNNING), gives=["session 0 opens: hand"])
    play.at(3919.9, gives=[]).at(3920, gives=["stop 0"])


def test_a_start_by_hand_after_the_window() -> None:
    """It is not stopped by a window that is over."""
    play = prewarmed().at(3310, gives=["stop 0"]).set_report(0, STOPPED)
    play.at(3311, StopOk()).at(4000, ManualStartRequested(), gives=["reply accepted", "start 0"])
    play.set_report(0, RUNNING).at(4001, StartOk(report=RUNNING), state=Ready)
    play.at(4900.9, gives=[]).at(4901, gives=["stop 0"])


def test_a_stop_by_hand_in_a_pause() -> None:
    """Who stops the pod does not want it to come back by itself."""
    play = used().at(20, ManualStopRequested(), gives=["reply accepted", "stop 0"]).set_report(0, STOPPED)
    play.at(21, StopOk(), gives=["session 0 closes: hand"]).at(100_000, gives=[], state=Stopped)


def test_a_start_that_nobody_asked_for_fails() -> None:
    """Nobody hears of it but the log; the next request tries again."""
    play = let_go().at(3010, gives=["start 0"]).at(3011, StartError(AuthFailed()), gives=["stop 0"])
    play.at(3012, StopOk(), gives=[], state=Stopped).at(3200, gives=[])
    play.at(3200, RequestArrived(2), gives=["start 0"])


def test_a_pod_that_warms_until_after_its_window() -> None:
    """It is stopped as soon as it is ready."""
    play = let_go().at(3010, gives=["start 0"]).set_report(0, STARTING).at(3011, StartOk(report=STARTING))
    play.at(3400, gives=[]).set_report(0, RUNNING).at(3405, gives=["stop 0"], state=Stopping)


def test_the_window_opens_while_the_last_stop_is_not_proved() -> None:
    """The start waits for the proof; if that takes longer than the window, there is none."""
    play = (
        used(PrewarmWindow(100.0, 300.0))
        .at(70, gives=["stop 0"])
        .set_report(0, Phase.STOPPING)
        .at(71, StopOk())
    )
    play.at(115, gives=[], state=Stopping)
    play.set_report(0, STOPPED).at(121, gives=["session 0 closes: idle", "start 0"])

    late = (
        used(PrewarmWindow(100.0, 110.0))
        .at(70, gives=["stop 0"])
        .set_report(0, Phase.STOPPING)
        .at(71, StopOk())
    )
    late.at(121, gives=[], state=Stopping)
    late.set_report(0, STOPPED).at(130, gives=["session 0 closes: idle"]).at(1000, gives=[], state=Stopped)


@pytest.mark.parametrize("keep", [True, False])
def test_going_down_in_a_window(keep: bool) -> None:
    """A pod that warms unasked is treated as any other."""
    play = let_go().at(3010, gives=["start 0"])
    play.at(3011, ShutdownRequested(keep), gives=[] if keep else ["stop 0"])


def test_a_gateway_that_was_never_used() -> None:
    """Without a last use there is no pause, and nothing is started."""
    play = Scenario(policy(), idle=FixedIdlePolicy(KEEP_S, WINDOW)).at(0, GatewayStarted(), state=Stopped)
    play.at(100_000, gives=[], state=Stopped)
