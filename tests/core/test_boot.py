"""What the machine makes of what it finds when it comes up, and later (docs/api.md#adoption)."""

from __future__ import annotations

import pytest
from gpugate_testing.playbook import (
    QUEUED,
    RUNNING,
    STARTING,
    STOPPED,
    Accepted,
    Obeyed,
    Play,
    Refused,
    policy,
)

from gpugate.core.vocabulary import (
    Arrived,
    Complain,
    Look,
    Opened,
    Owe,
    Pausing,
    Probe,
    Provisioning,
    Ready,
    StartWanted,
    Stopped,
    Stopping,
    StopWanted,
    Unknown,
    Warming,
    Weigh,
)
from gpugate.errors import AuthFailed, Transient
from gpugate.provider_api import Phase


def test_nothing_runs() -> None:
    """With everything stopped the gateway rests, and asks for nothing."""
    play = Play(policy(2)).at(0, Opened(), gives=[], state=Stopped)
    play.at(3600, gives=[], state=Stopped)


def test_a_running_pod_is_adopted_and_its_idle_clock_starts() -> None:
    """Adopted: it warms, serves, is a session from the provider's own start, and stops when idle."""
    play = Play(policy(idle_timeout_s=900)).sees(0, RUNNING, up_s=120)
    play.at(0, Opened(), gives=["session 0 opens: adopted, 120 s ago"], state=Ready)
    play.at(899.9, gives=[]).at(900, gives=["stop 0"], state=Stopping)


def test_a_pod_found_later_is_adopted() -> None:
    """Somebody starts the pod in the console: the next look finds it."""
    play = Play(policy(reconcile_interval_s=30)).at(0, Opened(), state=Stopped)
    play.at(10).sees(0, RUNNING).at(30, gives=["session 0 opens: adopted"], state=Ready)


def test_a_pod_on_its_way_is_adopted() -> None:
    """A pod that is still starting is adopted as well, and serves when it runs."""
    play = Play(policy()).sees(0, STARTING)
    play.at(0, Opened(), gives=["session 0 opens: adopted"], state=Provisioning)
    play.at(5).sees(0, RUNNING).at(6, gives=[], state=Ready)


def test_found_at_two_providers() -> None:
    """The first in the list is adopted, the other is stopped and proved so."""
    play = Play(policy(2)).sees(0, RUNNING).sees(1, RUNNING)
    play.at(0, Opened(), gives=["session 0 opens: adopted", "stop 1"], state=Ready)
    play.at(1, Obeyed(1)).sees(1, STOPPED).at(8, gives=[], state=Ready)
    assert play.machine.stops.orders == {}


def test_found_at_the_second_of_two_providers() -> None:
    """What runs is adopted wherever it runs; nothing else is started."""
    play = Play(policy(2)).sees(1, RUNNING)
    play.at(0, Opened(), gives=["session 1 opens: adopted"], state=Ready)
    play.at(1, Arrived(1), gives=["admit 1 run 1"])


def test_a_second_pod_appears_while_one_serves() -> None:
    """A stray at another provider is stopped; the pod that serves goes on."""
    play = Play(policy(2)).sees(0, RUNNING).at(0, Opened(), state=Ready)
    play.at(1, Arrived(1)).sees(1, RUNNING).at(30, gives=["stop 1"], state=Ready)


@pytest.mark.parametrize("healthy", [None, False])
def test_a_second_pod_appears_while_one_starts(healthy: bool | None) -> None:
    """Somebody starts the other provider's pod in its console: it is told of and stopped."""
    play = Play(policy(2), hidden=(Look, Probe, Owe, Weigh)).at(0, Opened())
    play.feels(healthy).at(1, Arrived(1), gives=["start 0"]).sees(1, RUNNING)
    play.at(2, Accepted(0, STARTING if healthy is None else RUNNING), gives=["session 0 opens: request"])
    play.sees(0, STARTING if healthy is None else RUNNING).at(29.9, gives=[])
    play.at(30.1, gives=["alarm 1 conflict", "stop 1"], state=Provisioning if healthy is None else Warming)
    play.sees(1, STOPPED).at(31, Obeyed(1)).sees(0, RUNNING).feels(True)
    play.at(40, gives=["admit 1 run 1"], state=Ready)


def test_a_second_pod_appears_while_a_start_is_tried_again() -> None:
    """Also between two attempts: who waits is served by the provider that comes first."""
    play = Play(policy(2, start_backoff_s=60)).at(0, Opened()).at(1, Arrived(1)).sees(1, RUNNING)
    play.at(2, Refused(Transient()), state=Pausing).at(31, gives=["stop 1"], state=Pausing)


def test_a_debt_is_told_as_paid_at_once() -> None:
    """The notebook of unproved stops is emptied when the proof comes, also beside a serving pod."""
    play = Play(policy(2), hidden=(Look, Probe, Complain)).sees(0, RUNNING)
    play.at(0, Opened(), state=Ready).sees(1, RUNNING)
    play.at(29, Arrived(1), gives=["admit 1 run 1"]).at(30, gives=["stop 1", "owe 1"])
    play.sees(1, STOPPED).at(31, Obeyed(1), gives=["owe nothing"], state=Ready)


def test_the_provider_cannot_be_looked_at() -> None:
    """Nothing is known and nothing is done, until a look succeeds."""
    play = Play(policy()).sees(0, Transient("no route")).at(0, Opened(), state=Unknown)
    play.at(60, gives=[], state=Unknown)
    assert play.machine.last_error == "alpha: could not look: no route"
    play.sees(0, STOPPED).at(66, state=Stopped)
    assert play.machine.last_error is None


def test_a_request_while_the_provider_cannot_be_looked_at() -> None:
    """Once every provider was asked, a start is as good as a look: it is idempotent."""
    play = Play(policy()).sees(0, AuthFailed("bad key")).at(0, Opened(), state=Unknown)
    play.at(1, Arrived(1), gives=["start 0"])


def test_a_request_before_the_first_look_is_back() -> None:
    """It waits for the look, so that a pod that runs is found and not started twice."""
    play = Play(policy()).sees(0, None).at(0, Opened(), Arrived(1), gives=[], state=Unknown)
    play.at(1).sees(0, RUNNING).at(1, gives=["session 0 opens: adopted", "admit 1 run 1"])


def test_a_start_by_hand_before_the_first_look_is_back() -> None:
    """It is accepted, and happens when it is known that nothing runs."""
    play = Play(policy()).sees(0, None)
    play.at(0, Opened(), StartWanted(), gives=["reply accepted"], state=Unknown)
    play.at(1).sees(0, STOPPED).at(1, gives=["start 0"])


def test_a_stop_by_hand_before_the_first_look_is_back() -> None:
    """Not known what runs: everything is stopped, and proved so."""
    play = Play(policy(2)).sees(0, None).sees(1, None)
    play.at(0, Opened(), StopWanted(), gives=["reply accepted", "stop 0", "stop 1"])
    play.sees(0, STOPPED).sees(1, STOPPED).at(1, Obeyed(0), Obeyed(1)).at(1, state=Stopped)


def test_an_unproved_stop_is_inherited() -> None:
    """A stop that the last gateway could not prove goes on, at boot, before anything is adopted."""
    play = Play(policy(), owed=frozenset({0})).sees(0, RUNNING)
    play.at(0, Opened(), gives=["stop 0"], state=Stopping)
    play.at(1, Obeyed()).at(5.9, gives=[]).at(6, gives=["stop 0"], state=Stopping)
    play.sees(0, STOPPED).at(7, Obeyed(), gives=[], state=Stopped)


def test_an_unproved_stop_at_one_of_two_providers_is_inherited() -> None:
    """The other provider is looked at meanwhile, and what runs there is adopted."""
    play = Play(policy(2), owed=frozenset({1})).sees(0, RUNNING).sees(1, None)
    play.at(0, Opened(), gives=["stop 1", "session 0 opens: adopted"], state=Ready)


def test_a_queued_start_is_found_and_nobody_wants_it() -> None:
    """A start that waits at the provider would fire with nobody there: it is cancelled."""
    play = Play(policy()).sees(0, QUEUED)
    play.at(0, Opened(), gives=["stop 0"], state=Stopping)


def test_a_failed_pod_is_found() -> None:
    """It is stopped: failed pods may be billed."""
    play = Play(policy()).sees(0, Phase.FAILED)
    play.at(0, Opened(), gives=["stop 0"], state=Stopping)


def test_an_unreachable_pod_is_found() -> None:
    """Nothing can be done with it; it is watched, and adopted when it runs again."""
    play = Play(policy()).sees(0, Phase.UNREACHABLE).at(0, Opened(), gives=[], state=Stopped)
    play.at(10).sees(0, RUNNING).at(30, gives=["session 0 opens: adopted"], state=Ready)


def test_an_adopted_pod_fails_and_nobody_waits() -> None:
    """Nobody wants it: it is stopped, no attempt is made."""
    play = Play(policy()).sees(0, STARTING).at(0, Opened())
    play.sees(0, Phase.FAILED).at(5, gives=["stop 0"], state=Stopping)


def test_demand_during_an_inherited_stop() -> None:
    """It waits for the proof, then the start comes."""
    play = Play(policy(), owed=frozenset({0})).at(0, Opened(), Arrived(1), gives=["stop 0"])
    play.at(1, Obeyed(), gives=["start 0"]).at(2, Accepted(report=RUNNING)).at(3, state=Ready)
