"""What Slurm shows, read: squeue's lines, slurmrestd's answers of two kinds, states and reasons in words."""

from __future__ import annotations

from typing import Any

import pytest
from gpugate_slurm.jobs import Job, best_first, comment_of, jobs_of_rest, jobs_of_squeue, last_over

LINE = "19|RUNNING|None|n1|1796134618|1796134918|gpugate-main|gpugate home port=20001\n"
REST: dict[str, Any] = {
    "job_id": 19,
    "name": "gpugate-main",
    "user_name": "me",
    "job_state": "RUNNING",
    "state_reason": "None",
    "batch_host": "n1",
    "comment": "gpugate home port=20001",
    "start_time": 1796134618,
    "end_time": 1796134918,
}
MODERN = {
    **REST,
    "job_state": ["RUNNING"],
    "start_time": {"set": True, "infinite": False, "number": 1796134618},
    "end_time": {"set": True, "infinite": False, "number": 1796134918},
}
RUNS = Job(
    id="19",
    name="gpugate-main",
    state="RUNNING",
    reason="None",
    node="n1",
    comment="gpugate home port=20001",
    began_at=1796134618.0,
)


@pytest.mark.parametrize(
    "jobs",
    [jobs_of_squeue(LINE), jobs_of_rest({"jobs": [REST]}, "me"), jobs_of_rest({"jobs": [MODERN]}, "me")],
)
def test_a_job_that_runs(jobs: list[Job] | None) -> None:
    """Node, port and start; its end is still its time limit, which is no end."""
    assert [RUNS] == jobs
    assert ("home", 20001) == (RUNS.instance, RUNS.port)


def test_a_job_that_waits() -> None:
    """Its start is a guess, and it has no node."""
    line = "20|PENDING|Resources|n/a|1796134918|1796135218|gpugate-main|gpugate home port=20002\n"
    (job,) = jobs_of_squeue(line) or []
    assert (None, None, "", True) == (job.began_at, job.ended_at, job.node, job.waits)


@pytest.mark.parametrize("state", [["CANCELLED", "COMPLETING"], "COMPLETING"])
def test_a_job_that_is_cleaned_up(state: object) -> None:
    """It is over, but holds its node."""
    (job,) = jobs_of_rest({"jobs": [{**MODERN, "job_state": state}]}, "me") or []
    assert ("COMPLETING", False, 1796134918.0) == (job.state, job.is_over, job.ended_at)


def test_whose_jobs() -> None:
    """Only this user's, and only with names of ours; a cluster shows all."""
    others = [{**REST, "user_name": "else"}, {**REST, "name": "train"}]
    assert [RUNS] == jobs_of_rest({"jobs": [*others, REST]}, "me")
    assert [RUNS] == jobs_of_squeue("7|RUNNING|None|n2|1|2|train|with | a bar\n" + LINE)


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"jobs": None}, {"jobs": [7]}, {"jobs": [{**REST, "job_id": "x"}]}]
)
def test_no_list(answer: object) -> None:
    """Nothing may be concluded from it."""
    assert jobs_of_rest(answer, "me") is None


@pytest.mark.parametrize(
    "text", ["Unable to contact", "x|RUNNING|None|n1|1|2|gpugate-main|c", "1||None|n1|1|2|gpugate-main|c"]
)
def test_no_lines(text: str) -> None:
    """Nothing may be concluded from it."""
    assert jobs_of_squeue(text) is None


@pytest.mark.parametrize(
    ("reason", "said", "never"),
    [
        ("Resources", "no GPU is free (Resources)", False),
        ("Priority", "other jobs are before it (Priority)", False),
        ("PartitionDown", "the partition is down (PartitionDown)", False),
        (
            "ReqNodeNotAvail, UnavailableNodes:n[1-4]",
            "the nodes that it may use are not available (ReqNodeNotAvail)",
            False,
        ),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
            "the nodes that it may use are not available (ReqNodeNotAvail)",
            False,
        ),
        ("QOSGrpGRES", "a limit of the account or its QOS is used up (QOSGrpGRES)", False),
        ("AssocMaxJobsLimit", "a limit of the account or its QOS is used up (AssocMaxJobsLimit)", False),
        (
            "QOSMaxGRESPerJob",
            "the job asks for more than the account or its QOS allows (QOSMaxGRESPerJob)",
            True,
        ),
        ("InvalidAccount", "the account may not be used (providers.slurm.account) (InvalidAccount)", True),
        ("InvalidQOS", "the QOS may not be used (InvalidQOS)", True),
        ("SomethingNew", "Slurm lets it wait (SomethingNew)", False),
        ("", "Slurm has not looked at it yet (None)", False),
    ],
)
def test_a_reason(reason: str, said: str, never: bool) -> None:
    """In words, with Slurm's own in brackets; some are never over."""
    job = Job(id="1", name="gpugate-main", state="PENDING", reason=reason)
    assert (said, never) == (job.why, job.never_runs)


def test_the_best_of_several() -> None:
    """What runs goes before what waits and what is cleaned up; what is over does not count."""

    def job(number: int, state: str) -> Job:
        return Job(id=str(number), name="gpugate-main", state=state, ended_at=float(number))

    jobs = [
        job(1, "COMPLETING"),
        job(2, "PENDING"),
        job(3, "RUNNING"),
        job(4, "RUNNING"),
        job(5, "NODE_FAIL"),
    ]
    assert ["3", "4", "2", "1"] == [one.id for one in best_first([*jobs, job(6, "TIMEOUT")])]
    assert "6" == getattr(last_over([*jobs, job(6, "TIMEOUT")]), "id", None)


def test_a_strange_comment() -> None:
    """A cluster may put its own there: then neither instance nor port is known."""
    job = Job(id="1", name="gpugate-main", state="RUNNING", comment="project=7")
    assert (None, None) == (job.instance, job.port)
    assert "gpugate home port=20001" == comment_of("home", 20001)
