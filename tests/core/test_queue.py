"""Who waits, in which order they go, and how they leave."""

from __future__ import annotations

import pytest
from gpugate_testing.playbook import RUNNING, STARTING, Scenario, StartOk, policy

from gpugate.core.events import GatewayStarted, RequestArrived, RequestFinished, ResponseStarted
from gpugate.core.request_queue import BodyBudget, RequestQueue
from gpugate.core.states import Ready
from gpugate.errors import QueueFull


def held(play: Scenario, *tickets: int) -> Scenario:
    """These tickets wait for a start that is accepted."""
    play.at(0, GatewayStarted()).at(0, *(RequestArrived(number) for number in tickets))
    return play.at(0, StartOk()).set_report(0, STARTING)


def test_the_queue_drains_one_at_a_time() -> None:
    """In order of arrival; the next goes when the one before has ended; who comes later queues behind."""
    play = (
        held(Scenario(policy()), 1, 2, 3).set_report(0, RUNNING).at(10, gives=["admit 1 run 1"], state=Ready)
    )
    play.at(11, ResponseStarted(1), RequestArrived(4), gives=[]).at(
        12, RequestFinished(1), gives=["admit 2 run 1"]
    )
    play.at(13, RequestFinished(2), gives=["admit 3 run 1"]).at(
        14, RequestFinished(3), gives=["admit 4 run 1"]
    )
    play.at(15, RequestArrived(5), gives=["admit 5 run 1"])


def test_the_queue_drains_two_at_a_time() -> None:
    """`drain_concurrency` is how many of those who waited are answered at once."""
    play = held(Scenario(policy(drain_concurrency=2)), 1, 2, 3).set_report(0, RUNNING)
    play.at(10, gives=["admit 1 run 1", "admit 2 run 1"]).at(11, RequestFinished(2), gives=["admit 3 run 1"])


def test_who_never_waited_holds_no_drain_slot() -> None:
    """A warm request neither takes a place among those who waited nor gives one back."""
    play = held(Scenario(policy()), 1, 2).set_report(0, RUNNING).at(10, gives=["admit 1 run 1"])
    play.at(11, RequestFinished(1), gives=["admit 2 run 1"]).at(
        12, RequestArrived(3), gives=["admit 3 run 1"]
    )
    play.at(13, RequestFinished(3), RequestFinished(2), gives=[])
    assert play.machine.queue.admit_slots_used == 0


def test_the_queue_is_full() -> None:
    """503 QUEUE_FULL with a Retry-After; who waits is not disturbed."""
    play = held(Scenario(policy(max_waiting=2)), 1, 2).at(1, RequestArrived(3), gives=["refuse 3 QUEUE_FULL"])
    assert play.refusals[3].retry_after_s == 60
    play.at(2, RequestFinished(1)).at(3, RequestArrived(4), gives=[])


def held_with(body_bytes: int) -> Scenario:
    """One ticket waits, with so large a body, where 100 bytes may be kept."""
    play = Scenario(policy(max_bytes=100)).at(0, GatewayStarted())
    play.at(0, RequestArrived(1, body_bytes=body_bytes))
    return play.at(0, StartOk()).set_report(0, STARTING)


def test_bodies_that_are_too_large_in_sum() -> None:
    """503 QUEUE_FULL names the setting; what has left the queue, and what runs, counts no longer."""
    play = held_with(60)
    play.at(1, RequestArrived(2, body_bytes=41), gives=["refuse 2 QUEUE_FULL"])
    assert "queue.max_bytes" in play.refusals[2].message
    play.at(1, RequestArrived(3, body_bytes=40), gives=[]).at(2, RequestFinished(1))
    play.at(3, RequestArrived(4, body_bytes=60), gives=[])
    play.set_report(0, RUNNING).at(10, gives=["admit 3 run 1"])
    play.at(11, RequestArrived(5, body_bytes=40), gives=[])
    play.at(12, RequestArrived(6, body_bytes=1), gives=["refuse 6 QUEUE_FULL"])


def test_room_for_a_body() -> None:
    """Bodies that are being read count; where nobody has to wait, there is room for any."""
    play = held_with(60)
    machine = play.machine
    machine.queue.bodies.reading = 30
    machine.check_room(10)
    with pytest.raises(QueueFull):
        machine.check_room(11)
    machine.queue.bodies.reading = 0
    play.set_report(0, RUNNING).at(10, gives=["admit 1 run 1"])
    machine.check_room(10**9)


def test_one_bound_for_several_queues() -> None:
    """`max_bytes` is for all pods."""
    bodies = BodyBudget(100)
    one, other = RequestQueue(9, 60, 1, bodies), RequestQueue(9, 60, 1, bodies)
    one.join(1, None, False, "", 0, 70)
    assert "" == other.refusal(30)
    assert "max_bytes" in other.refusal(31)


def test_a_request_waits_too_long() -> None:
    """Each has its own deadline, from its own arrival."""
    play = held(Scenario(policy(max_wait=60)), 1).at(30, RequestArrived(2)).at(59.9, gives=[])
    play.at(60, gives=["refuse 1 QUEUE_TIMEOUT"]).at(90, gives=["refuse 2 QUEUE_TIMEOUT"])
    assert play.refusals[1].retry_after_s == 60


def test_a_request_waits_too_long_behind_a_slow_answer() -> None:
    """The deadline holds while the pod is ready, too."""
    play = held(Scenario(policy(max_wait=60)), 1, 2).set_report(0, RUNNING).at(10, gives=["admit 1 run 1"])
    play.at(60, gives=["refuse 2 QUEUE_TIMEOUT"], state=Ready)


def test_a_client_hangs_up_while_it_waits() -> None:
    """It leaves the queue, and nobody notices."""
    play = (
        held(Scenario(policy()), 1, 2, 3)
        .at(5, RequestFinished(1), gives=[])
        .at(6, RequestFinished(3), gives=[])
        .set_report(0, RUNNING)
    )
    play.at(10, gives=["admit 2 run 1"]).at(11, RequestFinished(2), gives=[])


def test_all_clients_hang_up_and_one_comes_back() -> None:
    """The start goes on, and serves the newcomer."""
    play = (
        held(Scenario(policy()), 1)
        .at(5, RequestFinished(1))
        .at(6, RequestArrived(2), gives=[])
        .set_report(0, RUNNING)
    )
    play.at(10, gives=["admit 2 run 1"])


def test_a_lease_is_given_back_twice() -> None:
    """The second time is no event."""
    play = held(Scenario(policy()), 1, 2).set_report(0, RUNNING).at(10)
    play.at(11, RequestFinished(1), gives=["admit 2 run 1"]).at(
        11, RequestFinished(1), RequestFinished(77), gives=[]
    )


def test_places() -> None:
    """In order of arrival; one who goes back to the queue stands before those who came later."""
    play = held(Scenario(policy()), 1, 2, 3).at(5, RequestFinished(2))
    queue = play.machine.queue
    assert [1, 0, 2, 0] == [queue.place_of(number) for number in (1, 2, 3, 4)]
    play.set_report(0, RUNNING).at(10, gives=["admit 1 run 1"])
    assert [0, 1] == [queue.place_of(number) for number in (1, 3)]
    queue.requeue_lease(1, 11)
    assert [1, 2] == [queue.place_of(number) for number in (1, 3)]
