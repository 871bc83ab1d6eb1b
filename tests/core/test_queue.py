"""Who waits, in which order they go, and how they leave."""

from __future__ import annotations

from gpugate_testing.playbook import RUNNING, STARTING, Accepted, Play, policy

from gpugate.core.vocabulary import Arrived, Begun, Left, Opened, Ready


def held(play: Play, *tickets: int) -> Play:
    """These tickets wait for a start that is accepted."""
    play.at(0, Opened()).at(0, *(Arrived(number) for number in tickets))
    return play.at(0, Accepted()).sees(0, STARTING)


def test_the_queue_drains_one_at_a_time() -> None:
    """In order of arrival; the next goes when the one before has ended; who comes later queues behind."""
    play = held(Play(policy()), 1, 2, 3).sees(0, RUNNING).at(10, gives=["admit 1 run 1"], state=Ready)
    play.at(11, Begun(1), Arrived(4), gives=[]).at(12, Left(1), gives=["admit 2 run 1"])
    play.at(13, Left(2), gives=["admit 3 run 1"]).at(14, Left(3), gives=["admit 4 run 1"])
    play.at(15, Arrived(5), gives=["admit 5 run 1"])


def test_the_queue_drains_two_at_a_time() -> None:
    """`drain_concurrency` is how many of those who waited are answered at once."""
    play = held(Play(policy(drain_concurrency=2)), 1, 2, 3).sees(0, RUNNING)
    play.at(10, gives=["admit 1 run 1", "admit 2 run 1"]).at(11, Left(2), gives=["admit 3 run 1"])


def test_who_never_waited_holds_no_drain_slot() -> None:
    """A warm request neither takes a place among those who waited nor gives one back."""
    play = held(Play(policy()), 1, 2).sees(0, RUNNING).at(10, gives=["admit 1 run 1"])
    play.at(11, Left(1), gives=["admit 2 run 1"]).at(12, Arrived(3), gives=["admit 3 run 1"])
    play.at(13, Left(3), Left(2), gives=[])
    assert play.machine.backlog.draining == 0


def test_the_queue_is_full() -> None:
    """503 QUEUE_FULL with a Retry-After; who waits is not disturbed."""
    play = held(Play(policy(max_waiting=2)), 1, 2).at(1, Arrived(3), gives=["refuse 3 QUEUE_FULL"])
    assert play.refusals[3].retry_after_s == 60
    play.at(2, Left(1)).at(3, Arrived(4), gives=[])


def test_a_request_waits_too_long() -> None:
    """Each has its own deadline, from its own arrival."""
    play = held(Play(policy(max_wait_s=60)), 1).at(30, Arrived(2)).at(59.9, gives=[])
    play.at(60, gives=["refuse 1 QUEUE_TIMEOUT"]).at(90, gives=["refuse 2 QUEUE_TIMEOUT"])
    assert play.refusals[1].retry_after_s == 60


def test_a_request_waits_too_long_behind_a_slow_answer() -> None:
    """The deadline holds while the pod is ready, too."""
    play = held(Play(policy(max_wait_s=60)), 1, 2).sees(0, RUNNING).at(10, gives=["admit 1 run 1"])
    play.at(60, gives=["refuse 2 QUEUE_TIMEOUT"], state=Ready)


def test_a_client_hangs_up_while_it_waits() -> None:
    """It leaves the queue, and nobody notices."""
    play = held(Play(policy()), 1, 2, 3).at(5, Left(1), gives=[]).at(6, Left(3), gives=[]).sees(0, RUNNING)
    play.at(10, gives=["admit 2 run 1"]).at(11, Left(2), gives=[])


def test_all_clients_hang_up_and_one_comes_back() -> None:
    """The start goes on, and serves the newcomer."""
    play = held(Play(policy()), 1).at(5, Left(1)).at(6, Arrived(2), gives=[]).sees(0, RUNNING)
    play.at(10, gives=["admit 2 run 1"])


def test_a_lease_is_given_back_twice() -> None:
    """The second time is no event."""
    play = held(Play(policy()), 1, 2).sees(0, RUNNING).at(10)
    play.at(11, Left(1), gives=["admit 2 run 1"]).at(11, Left(1), Left(77), gives=[])
