"""From a pod that runs to one that serves: health, preload, the warm-up's limit."""

from __future__ import annotations

from typing import Any

import pytest
from gpugate_testing.playbook import (
    RUNNING,
    STOPPED,
    Listed,
    PreloadOk,
    PullEnd,
    Scenario,
    StartError,
    StartOk,
    StopOk,
    policy,
)

from gpugate.core.commands import LoadOptions, PreloadModel, Probe, PublishProviderProblem, PullModel
from gpugate.core.events import (
    GatewayStarted,
    ManualStartRequested,
    ModelPulled,
    ModelsListed,
    PreloadFinished,
    ProbeFinished,
    RequestArrived,
    RequestFinished,
)
from gpugate.core.states import (
    BackingOff,
    CallingStart,
    Preloading,
    Pulling,
    Ready,
    Status,
    Stopped,
    Stopping,
    Warming,
)
from gpugate.errors import NoCapacity, Transient, WarmupTimeout
from gpugate.provider_api import Endpoint, Phase, PodReport


def warming(play: Scenario, *arrivals: RequestArrived) -> Scenario:
    """A pod that runs and is not healthy yet; by default ticket 1 waits."""
    play.set_health(False).at(0, GatewayStarted()).at(0, *(arrivals or (RequestArrived(1),))).set_report(
        0, RUNNING
    )
    return play.at(0, StartOk(report=RUNNING), state=Warming)


def test_the_last_probe_is_told_while_the_pod_warms_up() -> None:
    """What it saw is the last error, whatever went wrong before; nothing of it is left afterwards."""
    play = Scenario(policy(2)).set_health(False).at(0, GatewayStarted()).at(0, RequestArrived(1))
    play.at(0, StartError(NoCapacity("no RTX 4090"), 0)).at(0, StopOk(0)).set_report(1, RUNNING)
    play.at(1, StartOk(1, RUNNING), state=Warming)
    assert play.machine.last_error == "beta: not healthy yet: connection refused"
    play.set_health(True).at(2, state=Ready)
    assert play.machine.last_error is None


def test_the_pod_never_becomes_healthy() -> None:
    """After `warmup_timeout` it is stopped and who waits gets WARMUP_TIMEOUT."""
    play = (
        warming(Scenario(policy())).at(179.9, gives=[]).at(180, gives=["refuse 1 WARMUP_TIMEOUT", "stop 0"])
    )
    assert isinstance(play.refusals[1], WarmupTimeout)
    assert play.refusals[1].message == "pod failed to become ready: connection refused"
    play.set_report(0, STOPPED).at(181, StopOk(), gives=["session 0 closes: start_failed"], state=Stopped)


def test_a_health_check_that_never_answers() -> None:
    """The limit of the warm-up holds although the answer is out."""
    play = warming(Scenario(policy())).set_health(None).at(180, state=Stopping)
    assert play.refusals[1].code == "WARMUP_TIMEOUT"


def test_checks_are_never_slower_than_the_interval() -> None:
    """The pause grows with the wait, from 0.05 s up to `health_interval`."""
    numbers = policy(health_interval=5)
    assert [numbers.probe_interval_s(0, waited) for waited in (0, 100, 100_000)] == [0.05, 0.5, 5]
    assert [numbers.inspect_interval_s(0, waited) for waited in (0, 100, 100_000)] == [0.1, 0.5, 5]


def test_a_check_is_always_out_or_due() -> None:
    """Unhealthy answers never end the checking."""
    play = warming(Scenario(policy(health_interval=5), hidden=()))
    before = play.machine._last_op
    play.at(100)
    assert play.machine._last_op - before > 100
    assert play.machine.next_deadline_at <= 105


def test_a_stale_check_while_warming() -> None:
    """The answer to an older check changes nothing."""
    play = warming(Scenario(policy())).set_health(None).at(1)
    play.at(1, ProbeFinished(10_000, True), gives=[], state=Warming)


def test_the_model_of_the_first_waiting_request_is_loaded() -> None:
    """`preload = "requested"`: READY comes after it, and the queue's order is kept."""
    play = warming(Scenario(policy()), RequestArrived(1, "llama3"), RequestArrived(2, "other"))
    play.set_health(True).at(1, gives=["preload llama3"], state=Preloading)
    play.at(20, PreloadOk(), gives=["admit 1 run 1"], state=Ready)


def test_an_embedding_model_is_loaded_as_one() -> None:
    """Another endpoint of Ollama's is needed for it."""
    warming(Scenario(policy()), RequestArrived(1, "bge", LoadOptions(embeds=True))).set_health(True).at(
        1, gives=["preload bge (embeds)"]
    )


@pytest.mark.parametrize(
    ("preload", "asked", "loaded"),
    [
        ("requested", "llama3", "llama3"),
        ("llama3", "llama3", "llama3"),
        ("llama3:latest", "llama3", "llama3"),
    ],
)
def test_the_model_is_loaded_as_the_first_request_wants_it(preload: str, asked: str, loaded: str) -> None:
    """Ollama would load it once more for a request with other options."""
    wish = LoadOptions(fields={"options": {"num_ctx": 8192}})
    play = warming(
        Scenario(policy(preload=preload)),
        RequestArrived(1, asked, wish),
        RequestArrived(2, asked, LoadOptions(fields={"options": {"num_ctx": 1024}})),
    )
    play.set_health(True).at(1, gives=[f"preload {loaded}"])
    assert [wish] == [command.options for command in play.out(PreloadModel)]


def test_a_named_preload_of_another_model() -> None:
    """It has nothing of the request that waits for another model."""
    play = warming(
        Scenario(policy(preload="qwen3")), RequestArrived(1, "llama3", LoadOptions(fields={"shift": False}))
    )
    play.set_health(True).at(1, gives=["preload qwen3"])
    assert [LoadOptions()] == [command.options for command in play.out(PreloadModel)]


def test_a_request_without_a_model_goes_before() -> None:
    """An upload names no model: the first one that a request waits for is loaded."""
    play = warming(Scenario(policy()), RequestArrived(1), RequestArrived(2, "llama3"))
    play.set_health(True).at(1, gives=["preload llama3"])


def test_the_first_request_hung_up_before_the_preload() -> None:
    """The model of the one that is first now is loaded."""
    play = warming(Scenario(policy()), RequestArrived(1, "llama3"), RequestArrived(2, "other")).at(
        1, RequestFinished(1)
    )
    play.set_health(True).at(2, gives=["preload other"])


def test_the_first_request_hangs_up_during_the_preload() -> None:
    """The preload is the gateway's own: it goes on."""
    play = (
        warming(Scenario(policy()), RequestArrived(1, "llama3"))
        .set_health(True)
        .at(1)
        .at(2, RequestFinished(1), gives=[])
    )
    play.at(2, state=Preloading).at(3, PreloadOk(), gives=[], state=Ready)


@pytest.mark.parametrize(
    ("preload", "gives"),
    [("none", ["admit 1 run 1"]), ("qwen3", ["preload qwen3"]), ("requested", ["admit 1 run 1"])],
)
def test_a_request_without_a_model(preload: str, gives: list[str]) -> None:
    """Nothing to load, unless a model is named in the settings."""
    warming(Scenario(policy(preload=preload))).set_health(True).at(1, gives=gives)


def test_no_preload_is_wanted() -> None:
    """`preload = "none"`."""
    warming(Scenario(policy(preload="none")), RequestArrived(1, "llama3")).set_health(True).at(
        1, gives=["admit 1 run 1"]
    )


def test_a_named_preload_after_a_start_by_hand() -> None:
    """The named model is loaded although nobody waits."""
    play = (
        Scenario(policy(preload="qwen3"))
        .at(0, GatewayStarted(), ManualStartRequested())
        .set_report(0, RUNNING)
    )
    play.at(0, StartOk(report=RUNNING), state=Preloading).at(1, PreloadOk(), state=Ready)


def test_a_preload_that_takes_too_long() -> None:
    """A preload never fails a start: after five minutes the pod serves without it."""
    play = (
        warming(Scenario(policy()), RequestArrived(1, "llama3"))
        .set_health(True)
        .at(1, gives=["preload llama3"])
    )
    play.at(300, gives=[]).at(302, gives=["admit 1 run 1"], state=Ready)


def test_a_stale_preload() -> None:
    """Only the preload that is out ends the waiting."""
    play = warming(Scenario(policy()), RequestArrived(1, "llama3")).set_health(True).at(1)
    play.at(2, PreloadFinished(10_000), gives=[], state=Preloading)


def test_the_pod_stops_during_the_preload() -> None:
    """That attempt has failed; another one follows."""
    play = (
        warming(Scenario(policy()), RequestArrived(1, "llama3")).set_health(True).at(1).set_report(0, STOPPED)
    )
    play.at(6, state=BackingOff).at(9, gives=["start 0"])


def test_the_pod_fails_while_it_warms() -> None:
    """Another attempt, after a look; the stretch that is paid goes on."""
    play = warming(Scenario(policy())).set_report(0, Phase.FAILED).at(1, gives=[], state=BackingOff)
    play.at(3, gives=["start 0"]).at(3, StartOk(report=RUNNING), gives=[])


def test_the_pod_fails_while_it_warms_and_nobody_waits_any_more() -> None:
    """It is stopped."""
    play = warming(Scenario(policy())).at(1, RequestFinished(1)).set_report(0, Phase.FAILED)
    play.at(2, gives=["stop 0"], state=Stopping)


def test_the_address_changes_while_it_warms() -> None:
    """The health checks go to the new one."""
    moved = PodReport(Phase.RUNNING, "pod-1", {"ollama": Endpoint("http://127.0.0.1:2")})
    play = warming(Scenario(policy())).set_report(0, moved).set_health(None).at(2)
    assert {probe.endpoint.url for probe in play.out(Probe)} == {"http://127.0.0.1:1"}
    play = warming(Scenario(policy())).set_report(0, moved).at(2).set_health(None).at(4)
    assert {probe.endpoint.url for probe in play.out(Probe)} == {"http://127.0.0.1:2"}


def test_the_provider_cannot_be_looked_at_while_it_warms() -> None:
    """That says nothing of the pod: it becomes healthy and serves."""
    play = warming(Scenario(policy())).set_report(0, Transient("down")).at(60, gives=[], state=Warming)
    play.set_health(True).at(61, gives=["admit 1 run 1"], state=Ready)


def test_running_without_an_address() -> None:
    """It is not warm before it can be asked."""
    play = Scenario(policy()).at(0, GatewayStarted(), RequestArrived(1)).set_report(0, Phase.RUNNING)
    play.at(0, StartOk(report=PodReport(Phase.RUNNING))).at(50).set_report(0, RUNNING).at(
        51, gives=["admit 1 run 1"]
    )


# --- pod.pull ------------------------------------------------------------------------------------


def pulling(
    *arrivals: RequestArrived, pull: tuple[str, ...] = ("llava", "qwen3:8b"), **numbers: Any
) -> Scenario:
    """A pod whose Ollama answers and is asked for its models; by default ticket 1 waits for llava."""
    count = numbers.pop("count", 1)
    play = warming(
        Scenario(policy(count, pull=pull, **numbers)), *(arrivals or (RequestArrived(1, "llava"),))
    )
    return play.set_health(True).at(1, gives=["list models"], state=Pulling)


def test_what_is_missing_is_pulled_before_the_preload() -> None:
    """One model after the other; the pod is WARMING meanwhile."""
    play = pulling().at(2, Listed(("llama3:latest",)), gives=["pull llava"], state=Pulling)
    assert Status.WARMING is play.machine.status
    play.at(200, PullEnd(), gives=["pull qwen3:8b"])
    play.at(500, PullEnd(), gives=["preload llava"], state=Preloading)
    play.at(510, PreloadOk(), gives=["admit 1 run 1"], state=Ready)


def test_what_is_there_is_not_pulled() -> None:
    """Whatever way its name is written, as Ollama takes it."""
    play = pulling(pull=("llava", "Qwen3:8b"))
    play.at(1, Listed(("llava:latest", "qwen3:8b")), gives=["preload llava"], state=Preloading)


def test_nothing_is_pulled_that_is_not_configured() -> None:
    """A request for another model pulls nothing."""
    warming(Scenario(policy()), RequestArrived(1, "other")).set_health(True).at(1, gives=["preload other"])
    pulling(RequestArrived(1, "other"), pull=("llava",)).at(
        1, Listed(("llava:latest",)), gives=["preload other"]
    )


def test_the_requested_model_is_pulled_first() -> None:
    """Whoever waits is served by it; a request that comes first later on goes before what is left."""
    play = pulling(RequestArrived(1, "c"), RequestArrived(2, "b"), pull=("a", "b", "c"))
    play.at(1, Listed(), gives=["pull c"]).at(2, RequestFinished(1)).at(3, PullEnd(), gives=["pull b"])


def test_the_requested_model_cannot_be_pulled() -> None:
    """The start has failed at this provider; the next one may have more room."""
    play = pulling(count=2).at(1, Listed(), gives=["pull llava"])
    play.at(2, PullEnd("the pod's disk is full"), gives=["start 1", "stop 0"])
    play.at(2, StartError(NoCapacity("no GPU"), 1)).at(3, StopOk(0))
    assert "capacity" == play.refusals[1].reason
    assert "alpha: llava could not be pulled: the pod's disk is full" in play.refusals[1].message


def test_the_requested_model_cannot_be_pulled_anywhere() -> None:
    """No further provider is paid for finding that out once more."""
    play = pulling(count=2).at(1, Listed(), gives=["pull llava"])
    play.at(
        2, PullEnd("there is no such model", anywhere=True), gives=["refuse 1 POD_START_FAILED", "stop 0"]
    )
    assert "model" == play.refusals[1].reason
    play.set_report(0, STOPPED).at(3, StopOk(), gives=["session 0 closes: start_failed"], state=Stopped)


def test_another_model_cannot_be_pulled() -> None:
    """It is told, also once the pod serves, and the start goes on."""
    play = pulling().at(1, Listed(("llava:latest",)), gives=["pull qwen3:8b"])
    play.hidden -= {PublishProviderProblem}
    play.at(2, PullEnd("no such model", anywhere=True), gives=["complain 0 model", "preload llava"])
    told = "alpha: qwen3:8b could not be pulled: no such model"
    assert told == play.machine.last_error
    play.at(3, PreloadOk(), state=Ready)
    assert told == play.machine.last_error


def test_pulls_take_too_long() -> None:
    """After `pull_timeout` the start goes on without what is missing, unless it is waited for."""
    play = pulling(RequestArrived(1, "llava"), pull=("llava", "b", "c"), pull_timeout=100)
    play.at(1, Listed(("llava:latest", "b:latest"))).at(100, gives=[], state=Pulling)
    play.at(101, gives=["preload llava"], state=Preloading)
    assert "alpha: c could not be pulled within 100 s" == play.machine.last_error
    waits = pulling(pull_timeout=100).at(1, Listed()).at(101, gives=["refuse 1 POD_START_FAILED", "stop 0"])
    assert "model" == waits.refusals[1].reason


def test_the_list_of_models_never_comes() -> None:
    """The limit of the pulls holds although the answer is out."""
    pulling(pull_timeout=100).at(101, gives=["refuse 1 POD_START_FAILED", "stop 0"])


def test_nobody_waits_for_the_pull() -> None:
    """The pull is the gateway's own: it goes on, and its failure fails nothing."""
    play = pulling().at(1, Listed()).at(2, RequestFinished(1), gives=[])
    play.at(3, PullEnd("no such model"), gives=["pull qwen3:8b"]).at(4, PullEnd(), gives=[], state=Ready)


def test_a_pod_that_is_lost_while_it_pulls() -> None:
    """The next attempt asks again what is missing."""
    play = pulling().at(1, Listed()).set_report(0, STOPPED).at(10, state=CallingStart)
    play.at(10, StartOk(report=RUNNING)).set_report(0, RUNNING).at(20, state=Pulling).at(
        20, Listed(("llava:latest",))
    )
    assert ["qwen3:8b"] == [command.model for command in play.out(PullModel)][1:]


def test_stale_results_of_pulls() -> None:
    """Answers to older commands change nothing."""
    play = pulling().at(1, ModelsListed(10_000), ModelPulled(10_000, "no"), gives=[], state=Pulling)
    play.at(1, Listed(), gives=["pull llava"]).at(2, ModelsListed(10_000), ModelPulled(10_000), gives=[])


def test_the_session_ends_while_models_are_pulled() -> None:
    """`pod.max_session` holds for a pull, too."""
    pulling(max_session=50).at(1, Listed()).at(51, gives=["refuse 1 WARMUP_TIMEOUT", "stop 0"])
