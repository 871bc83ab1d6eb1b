"""The month's budget and users' shares: what may still happen when they are spent (docs/api.md#budget)."""

from __future__ import annotations

from gpugate_testing.playbook import (
    QUEUED,
    RUNNING,
    STOPPED,
    Scenario,
    StartError,
    StartOk,
    StopError,
    StopOk,
    policy,
)

from gpugate.core.events import (
    BudgetUpdated,
    GatewayStarted,
    ManualStartRequested,
    RequestArrived,
    RequestFinished,
    ResponseStarted,
)
from gpugate.core.idle_policy import FixedIdlePolicy, PrewarmWindow
from gpugate.core.request_queue import BudgetGate, BudgetVerdict, Ticket
from gpugate.core.states import (
    BackingOff,
    CallingStart,
    Draining,
    Ready,
    Stopped,
    Stopping,
    VerifyingStart,
    Warming,
)
from gpugate.errors import Ambiguous, AuthFailed, NoCapacity, Transient

SPENT = BudgetUpdated(BudgetVerdict(exhausted_reason="the budget of 20 USD for 2026-11 is spent"))
FREE = BudgetUpdated(BudgetVerdict())
ANNE_OVER = BudgetUpdated(BudgetVerdict(users_over_share={"anne": "your share is spent"}))


def at_rest(count: int = 1, **numbers: object) -> Scenario:
    """Nothing runs."""
    return Scenario(policy(count, **numbers)).at(0, GatewayStarted(), state=Stopped)


def ready(count: int = 1, **numbers: object) -> Scenario:
    """A pod that serves since 0 s, with ticket 1 of ben's answered at 10 s."""
    play = at_rest(count, **numbers).at(0, RequestArrived(1, user="ben")).set_report(0, RUNNING)
    return play.at(0, StartOk(report=RUNNING), state=Ready).at(10, RequestFinished(1))


# --- the month's budget -----------------------------------------------------------------------


def test_an_arrival_that_would_have_to_start_the_pod() -> None:
    """Refused at once, told why; nothing is asked of the provider."""
    play = (
        at_rest()
        .at(1, SPENT, gives=[])
        .at(2, RequestArrived(1), gives=["refuse 1 BUDGET_EXCEEDED"], state=Stopped)
    )

    assert play.refusals[1].message == SPENT.verdict.exhausted_reason


def test_the_month_turns() -> None:
    """What was barred is allowed again, and nothing starts by itself for those who were refused."""
    play = (
        at_rest()
        .at(1, SPENT, RequestArrived(1), ManualStartRequested())
        .at(100, FREE, gives=None, state=Stopped)
    )
    play.at(101, gives=[]).at(102, RequestArrived(2), gives=["start 0"])


def test_a_start_by_hand() -> None:
    """Answered with the same error, and not remembered for better days."""
    play = (
        at_rest().at(1, SPENT).at(2, ManualStartRequested(), gives=["reply BUDGET_EXCEEDED"], state=Stopped)
    )
    play.at(3, FREE, gives=[], state=Stopped)


def test_a_start_by_hand_while_it_is_not_known_what_runs() -> None:
    """Refused as well; what then turns out to run is adopted all the same."""
    play = Scenario(policy()).set_report(0, None).at(0, GatewayStarted(), SPENT)
    play.at(1, ManualStartRequested(), gives=["reply BUDGET_EXCEEDED"]).set_report(0, RUNNING).at(
        2, state=Ready
    )


def test_a_start_by_hand_while_the_pod_serves_or_comes() -> None:
    """Idempotent as ever: it is on its way."""
    ready().at(11, SPENT).at(12, ManualStartRequested(), gives=["reply accepted"], state=Ready)
    at_rest().at(1, RequestArrived(1)).at(
        2, SPENT, ManualStartRequested(), gives=["reply accepted"], state=CallingStart
    )


def test_a_pod_that_serves_goes_on() -> None:
    """READY knows no budget: who comes is admitted, who waits in the queue as well."""
    play = ready().at(11, SPENT, gives=None).at(20, RequestArrived(2), gives=["admit 2 run 1"], state=Ready)
    play.at(21, RequestFinished(2)).at(30, RequestArrived(3), gives=["admit 3 run 1"], state=Ready)


def test_a_warm_up_under_way() -> None:
    """It is paid for already: it ends, and who waits or comes meanwhile is served."""
    play = (
        at_rest()
        .at(1, RequestArrived(1))
        .set_health(False)
        .set_report(0, RUNNING)
        .at(2, StartOk(report=RUNNING), state=Warming)
    )
    play.at(3, SPENT, RequestArrived(2), gives=[], state=Warming)
    play.set_health(True).at(6, gives=["admit 1 run 1"], state=Ready).at(
        7, RequestFinished(1), gives=["admit 2 run 1"]
    )


def test_a_start_that_is_out() -> None:
    """The provider was asked before: it may say yes."""
    play = (
        at_rest().at(1, RequestArrived(1)).at(2, SPENT, gives=[], state=CallingStart).set_report(0, RUNNING)
    )
    play.at(3, StartOk(report=RUNNING), gives=["session 0 opens: request", "admit 1 run 1"], state=Ready)


def test_what_runs_is_adopted() -> None:
    """It costs money already, so it may as well serve."""
    play = Scenario(policy()).set_report(0, RUNNING).at(0, SPENT, GatewayStarted(), state=Ready)
    play.at(1, RequestArrived(1), gives=["admit 1 run 1"])


def test_waiting_for_what_may_run() -> None:
    """After boot an arrival waits for the look: refused only where nothing runs."""
    play = (
        Scenario(policy())
        .set_report(0, None)
        .at(0, GatewayStarted(), SPENT)
        .at(1, RequestArrived(1), gives=[])
    )
    play.set_report(0, STOPPED).at(1, gives=["refuse 1 BUDGET_EXCEEDED"], state=Stopped)


def test_the_pod_is_lost() -> None:
    """Whose request goes back hears of the budget; an answer that has begun is cut as ever."""
    play = (
        ready().at(11, SPENT, RequestArrived(2), RequestArrived(3), ResponseStarted(3)).set_report(0, STOPPED)
    )
    play.at(60, gives=None, state=Stopped)

    assert {2: "BUDGET_EXCEEDED"} == {ticket: error.code for ticket, error in play.refusals.items()}


def test_arrivals_while_the_pod_stops() -> None:
    """Who waits for the next start is refused when there will be none; who comes then, at once."""
    play = ready(idle_timeout=20).at(30, state=Stopping).at(31, RequestArrived(2), gives=None)
    play.at(32, SPENT, gives=["refuse 2 BUDGET_EXCEEDED"], state=Stopping)
    play.at(33, RequestArrived(3), gives=["refuse 3 BUDGET_EXCEEDED"]).set_report(0, STOPPED)
    play.at(34, StopOk(), gives=["session 0 closes: idle"], state=Stopped)


def test_a_start_by_hand_while_the_pod_stops() -> None:
    """Refused, and not begun when the stop fails or is proved."""
    play = ready(idle_timeout=20).at(30, SPENT, state=Stopping)
    play.at(31, ManualStartRequested(), gives=["reply BUDGET_EXCEEDED"], state=Stopping)
    play.at(32, StopError(Transient()), gives=[], state=Stopping).set_report(0, STOPPED)
    play.at(50, gives=["session 0 closes: idle"], state=Stopped)


def test_between_two_attempts() -> None:
    """No further attempt: who waits hears at once, and what the first may have left is stopped."""
    play = (
        at_rest(start_backoff=20.0).at(1, RequestArrived(1)).at(2, StartError(Ambiguous()), state=BackingOff)
    )
    play.at(3, SPENT, gives=["refuse 1 BUDGET_EXCEEDED"], state=BackingOff)
    play.at(4, ManualStartRequested(), gives=["reply BUDGET_EXCEEDED"]).at(
        22, gives=["stop 0"], state=Stopping
    )


def looked_for() -> Scenario:
    """The answer to the start was lost, the look is out, and the budget is spent."""
    play = (
        at_rest(start_backoff=1.0).set_report(0, None).at(1, RequestArrived(1)).at(1, StartError(Ambiguous()))
    )
    return play.at(5, SPENT, gives=[], state=VerifyingStart)


def test_an_attempt_turns_out_to_have_worked() -> None:
    """It is begun, so it serves."""
    looked_for().set_report(0, RUNNING).at(
        5, gives=["session 0 opens: request", "admit 1 run 1"], state=Ready
    )


def test_an_attempt_turns_out_to_have_failed() -> None:
    """There is no further one."""
    looked_for().set_report(0, STOPPED).at(5, gives=["stop 0", "refuse 1 BUDGET_EXCEEDED"], state=Stopping)


def test_a_full_host() -> None:
    """Waiting for a free GPU is waiting for a start."""
    play = (
        at_rest(capacity_wait=600).at(1, RequestArrived(1)).at(2, StartError(NoCapacity()), state=BackingOff)
    )
    play.at(3, SPENT, gives=["refuse 1 BUDGET_EXCEEDED"])


def test_a_start_that_the_provider_has_queued() -> None:
    """It has not begun, and costs nothing yet: it is taken back."""
    play = (
        at_rest(capacity_wait=600)
        .at(1, RequestArrived(1))
        .set_report(0, QUEUED)
        .at(2, StartOk(report=QUEUED))
    )
    play.at(3, SPENT, gives=[]).at(60, gives=["stop 0", "refuse 1 BUDGET_EXCEEDED"], state=Stopping)


def test_the_next_provider() -> None:
    """A failed start is not begun anew elsewhere."""
    play = at_rest(2).at(1, RequestArrived(1)).at(2, SPENT)
    play.at(2, StartError(AuthFailed()), gives=["stop 0", "refuse 1 BUDGET_EXCEEDED"], state=Stopping)


def test_the_session_reaches_its_limit() -> None:
    """Who is answered has the grace, who would wait for the next start is refused."""
    play = ready(max_session=100, drain_grace=30).at(90, SPENT, RequestArrived(2), gives=None)
    play.at(100, gives=[], state=Draining).at(101, RequestArrived(3), gives=["refuse 3 BUDGET_EXCEEDED"])
    play.at(102, ManualStartRequested(), gives=["reply BUDGET_EXCEEDED"], state=Draining)
    play.at(110, RequestFinished(2), gives=["stop 0"], state=Stopping)


def test_who_waits_when_the_session_reaches_its_limit() -> None:
    """Refused at that moment; with money left a new start is theirs."""
    play = ready(max_session=100).at(90, RequestArrived(2), gives=None)
    play.at(100, state=Draining).at(101, RequestArrived(3), gives=[]).at(
        102, SPENT, gives=["refuse 3 BUDGET_EXCEEDED"]
    )


def test_a_start_by_hand_is_under_way_when_the_money_ends() -> None:
    """It is begun, so it may end; if it fails, nobody remembers it."""
    play = at_rest().at(1, ManualStartRequested()).at(2, SPENT, gives=[], state=CallingStart)
    play.at(3, StartError(AuthFailed()), state=Stopping).at(4, StopOk()).at(
        10, FREE, gives=None, state=Stopped
    )
    play.at(100, gives=[], state=Stopped)


def test_a_wish_by_hand_is_not_kept_for_the_next_month() -> None:
    """It waited for a stop when the money ended; when there is money again nobody expects it."""
    play = ready(idle_timeout=20).at(30, state=Stopping).at(31, ManualStartRequested())
    play.at(32, SPENT).at(33, FREE, gives=[], state=Stopping).set_report(0, STOPPED)
    play.at(34, StopOk(), gives=["session 0 closes: idle"], state=Stopped)


def test_a_start_that_nobody_asked_for() -> None:
    """A pod is not warmed ahead on credit, nor in the same window when there is money again."""
    play = Scenario(policy(), idle=FixedIdlePolicy(60.0, PrewarmWindow(1000.0, 1300.0))).set_report(
        0, RUNNING
    )
    play.at(0, GatewayStarted(), RequestArrived(1), state=Ready).at(10, RequestFinished(1)).at(
        70, state=Stopping
    ).set_report(0, STOPPED)
    play.at(71, StopOk(), SPENT, state=Stopped).at(1011, gives=[], state=Stopped)
    play.at(1100, FREE, gives=[], state=Stopped).at(2000, gives=[])


# --- a user's share ---------------------------------------------------------------------------


def test_a_user_whose_share_is_spent_can_start_nothing() -> None:
    """By request or by hand; everybody else can."""
    play = (
        at_rest().at(1, ANNE_OVER).at(2, RequestArrived(1, user="anne"), gives=["refuse 1 BUDGET_EXCEEDED"])
    )
    play.at(3, ManualStartRequested("anne"), gives=["reply BUDGET_EXCEEDED"], state=Stopped)
    play.at(4, RequestArrived(2, user="ben"), gives=["start 0"])

    assert play.refusals[1].message == "your share is spent"


def test_a_user_whose_share_is_spent_uses_what_others_start() -> None:
    """A pod that runs, or comes for somebody else, is hers as well."""
    play = (
        at_rest()
        .at(1, ANNE_OVER, RequestArrived(1, user="ben"), RequestArrived(2, user="anne"))
        .set_report(0, RUNNING)
    )
    play.at(2, ManualStartRequested("anne"), gives=["reply accepted"])
    play.at(3, StartOk(report=RUNNING), gives=["session 0 opens: request", "admit 1 run 1"], state=Ready)
    play.at(4, RequestFinished(1), gives=["admit 2 run 1"]).at(5, RequestFinished(2)).at(
        6, RequestArrived(3, user="anne"), gives=["admit 3 run 1"]
    )


def test_only_such_users_wait() -> None:
    """A queue in which nobody may start has no next start."""
    play = at_rest(start_backoff=5.0).at(
        1, ANNE_OVER, RequestArrived(1, user="ben"), RequestArrived(2, user="anne")
    )
    play.at(2, StartError(Transient()), gives=[], state=BackingOff)
    play.at(3, RequestFinished(1), gives=["refuse 2 BUDGET_EXCEEDED"]).at(
        20, gives=["stop 0"], state=Stopping
    )


def test_her_request_goes_back() -> None:
    """The pod is lost under the request of a user whose share was spent meanwhile: no start for her."""
    play = ready().at(11, RequestArrived(2, user="anne"), ANNE_OVER, gives=None).set_report(0, STOPPED)
    play.at(60, state=Stopped)

    assert "your share is spent" == play.refusals[2].message


def test_she_joins_who_waits_for_the_next_start() -> None:
    """While somebody else's start is due, she may wait for it; in a draining pod's queue as well."""
    play = ready(idle_timeout=20).at(30, ANNE_OVER, state=Stopping).at(31, RequestArrived(2, user="ben"))
    play.at(
        32, RequestArrived(3, user="anne"), ManualStartRequested("anne"), gives=["reply accepted"]
    ).set_report(0, STOPPED)
    play.at(33, StopOk(), gives=["session 0 closes: idle", "start 0"])


def test_a_wish_by_hand_of_somebody_else_is_enough() -> None:
    """Who wished for the pod by hand pays for its start; she waits with him."""
    play = (
        at_rest(start_backoff=5.0)
        .at(1, ANNE_OVER, ManualStartRequested("ben"))
        .at(2, StartError(Transient()))
    )
    play.at(3, RequestArrived(1, user="anne"), gives=None, state=BackingOff).at(
        20, gives=["start 0"], state=CallingStart
    )


def test_whom_the_gate_allows_a_start() -> None:
    """With or without tickets; a full one for anybody who is there."""
    ticket = Ticket(1, None, False, 0.0, "anne")
    table = [
        (FREE, [], False),
        (FREE, [ticket], True),
        (SPENT, [ticket], False),
        (ANNE_OVER, [ticket], False),
    ]

    assert [pays for *_, pays in table] == [
        BudgetGate(judged.verdict).allows_any(tickets) for judged, tickets, _ in table
    ]
