"""A job as Slurm shows it, and Slurm's states and reasons in gpugate's words (docs/providers.md#slurm)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

PREFIX = "gpugate-"
_COMMENT = re.compile(r"gpugate (?P<instance>[a-z0-9-]+) port=(?P<port>\d{1,5})\b(?: slot=(?P<slot>\d))?")

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
FINAL = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "LAUNCH_FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "RECONFIG_FAIL",
        "REVOKED",
        "TIMEOUT",
    }
)
_FLAGS = (
    "COMPLETING",
    "CONFIGURING",
    "STOPPED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "RESIZING",
    "SIGNALING",
)
"""Of several words the one that decides: a job that is CANCELLED and COMPLETING still holds its node."""

_WORDS = {
    "Resources": "no GPU is free",
    "Priority": "other jobs are before it",
    "None": "Slurm has not looked at it yet",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "PartitionConfig": "the partition does not have now what the job asks for",
    "ReqNodeNotAvail": "the nodes that it may use are not available",
    "NodeDown": "its node is down",
    "BeginTime": "it may begin later",
    "Reservation": "it waits for its reservation",
    "Licenses": "no licence is free",
    "Cleaning": "the job before it is cleaned up",
    "JobHeldUser": "somebody holds it",
    "JobHeldAdmin": "an administrator holds it",
    "Dependency": "it waits for another job",
    "InvalidAccount": "the account may not be used (providers.slurm.account)",
    "InvalidQOS": "the QOS may not be used",
    "QOSNotAllowed": "the QOS may not be used here",
    "AccountNotAllowed": "the account may not be used in this partition (providers.slurm.account)",
    "PartitionTimeLimit": "providers.slurm.time_limit is more than the partition allows",
    "PartitionNodeLimit": "the job asks for more nodes than the partition allows",
    "AssociationTimeLimit": "providers.slurm.time_limit is more than the account allows",
    "AssociationResourceLimit": "the account's limit is used up",
    "BadConstraints": "no node has what the job asks for (providers.slurm.gres)",
    "ReservationDeleted": "its reservation is gone",
}
_NEVER = frozenset(
    {
        "InvalidAccount",
        "InvalidQOS",
        "QOSNotAllowed",
        "AccountNotAllowed",
        "PartitionTimeLimit",
        "PartitionNodeLimit",
        "AssociationTimeLimit",
        "BadConstraints",
        "ReservationDeleted",
        "InactiveLimit",
    }
)
"""Waiting does not help: the configuration has to change."""
_PER_JOB = re.compile(
    r"(?:QOS|Assoc)Max\w*PerJob(?:Limit)?|QOSMin\w+|(?:QOS|Assoc)MaxWallDurationPerJobLimit"
)
_LIMIT = re.compile(r"(?:QOS|Assoc)(?:Grp|Max)\w+")
_DOWN = re.compile(r"Nodes[_ ]required[_ ]for[_ ]job", re.IGNORECASE)


@frozen(kw_only=True)
class Job:
    """One job, as a look showed it.

    Attributes:
        id: Slurm's number of it.
        name: `gpugate-<pod>` for ours.
        state: Slurm's word.
        reason: why it waits or failed, in Slurm's word.
        node: where it runs; empty while it waits.
        comment: ours has the gateway's instance and the port.
        began_at: seconds since 1970; None before it began.
        ended_at: seconds since 1970; None before it ended.
    """

    id: str
    name: str
    state: str
    reason: str = ""
    node: str = ""
    comment: str = ""
    began_at: float | None = None
    ended_at: float | None = None

    @property
    def is_over(self) -> bool:
        """It is in a final state: it holds nothing."""
        return self.state in FINAL

    @property
    def waits(self) -> bool:
        """It has no node yet, or none any more."""
        return self.state in WAITING

    @property
    def instance(self) -> str | None:
        """Whose gateway's it is; None: the comment does not say it."""
        found = _COMMENT.match(self.comment)
        return found["instance"] if found else None

    @property
    def port(self) -> int | None:
        """The port of its Ollama, as its comment has it."""
        found = _COMMENT.match(self.comment)
        return int(found["port"]) if found else None

    @property
    def slot(self) -> int:
        """Which of two jobs that replace each other before the time limit; see `Provider.slot`."""
        found = _COMMENT.match(self.comment)
        return int(found["slot"] or 0) if found else 0

    @property
    def reason_word(self) -> str:
        """The first word of the reason: more may follow, such as the nodes that are not available."""
        if _DOWN.match(self.reason):
            return "ReqNodeNotAvail"
        return re.split(r"[\s,(]", self.reason.strip("() "), maxsplit=1)[0] or "None"

    @property
    def never_runs(self) -> bool:
        """It waits for something that waiting does not bring."""
        word = self.reason_word
        return self.waits and (word in _NEVER or _PER_JOB.fullmatch(word) is not None)

    @property
    def why(self) -> str:
        """Why it waits, for people, with Slurm's own word in brackets."""
        word = self.reason_word
        if (said := _WORDS.get(word)) is None:
            limited = _LIMIT.fullmatch(word) is not None
            said = "a limit of the account or its QOS is used up" if limited else "Slurm lets it wait"
            if _PER_JOB.fullmatch(word):
                said = "the job asks for more than the account or its QOS allows"
        return f"{said} ({word})"


def comment_of(instance: str, port: int, slot: int = 0) -> str:
    """What a job of ours is marked with."""
    return f"gpugate {instance} port={port}" + (f" slot={slot}" if slot else "")


# --- what squeue prints -------------------------------------------------------------------------

SQUEUE_FORMAT = "%i|%T|%r|%B|%S|%e|%j|%k"
"""Id, state, reason, batch host, start, end, name, comment; the times as SLURM_TIME_FORMAT=%s has them."""


def jobs_of_squeue(text: str) -> list[Job] | None:
    """Jobs of our names in squeue's output; None if it is not that."""
    jobs = []
    for line in filter(None, text.splitlines()):
        parts = line.split("|", 7)
        if len(parts) != 8:
            return None
        number, state, reason, node, began, ended, name, comment = parts
        if not name.startswith(PREFIX):
            continue
        if not number.isdecimal() or not state:
            return None
        jobs.append(_job(number, state, reason, node, _seconds(began), _seconds(ended), name, comment))
    return jobs


def _seconds(text: str) -> float | None:
    return float(text) if text.isdecimal() and int(text) else None


def _job(
    number: str,
    state: str,
    reason: str,
    node: str,
    began: float | None,
    ended: float | None,
    name: str,
    comment: str,
) -> Job:
    """Slurm shows when a job that waits may begin, and when one that runs must end: neither has happened."""
    waits, over = state in WAITING, state in FINAL or state == "COMPLETING"
    return Job(
        id=number,
        name=name,
        state=state,
        reason=reason,
        node="" if waits or node in ("n/a", "(null)") else node,
        comment=comment.strip(),
        began_at=None if waits else began,
        ended_at=ended if over else None,
    )


# --- what slurmrestd answers ---------------------------------------------------------------------


def jobs_of_rest(answer: object, user: str) -> list[Job] | None:
    """Jobs of our names and of this user in an answer to `GET /jobs`; None if it is not that."""
    listed = answer.get("jobs") if isinstance(answer, Mapping) else None
    if not isinstance(listed, list):
        return None
    jobs = []
    for entry in listed:
        if not isinstance(entry, Mapping):
            return None
        name = str(entry.get("name") or "")
        if not name.startswith(PREFIX) or entry.get("user_name", user) != user:
            continue
        number, state = _number(entry.get("job_id")), _state(entry.get("job_state"))
        if not number or not state:
            return None
        jobs.append(
            _job(
                str(int(number)),
                state,
                str(entry.get("state_reason") or ""),
                str(entry.get("batch_host") or entry.get("nodes") or ""),
                _number(entry.get("start_time")),
                _number(entry.get("end_time")),
                name,
                _text(entry.get("comment")),
            )
        )
    return jobs


def _state(value: object) -> str:
    """One word, or since v0.0.39 a list: the base state and flags."""
    if isinstance(value, str):
        return value
    words = [str(word) for word in value] if isinstance(value, list) else []
    return next((flag for flag in _FLAGS if flag in words), words[0] if words else "")


def _number(value: object) -> float | None:
    """A number, or since v0.0.39 {"set": true, "infinite": false, "number": 7}; 0 is none."""
    if isinstance(value, Mapping):
        value = value.get("number") if value.get("set") and not value.get("infinite") else None
    return float(value) if isinstance(value, int | float) and value else None


def _text(value: object) -> str:
    """A text; an older slurmdb has {"job": text}."""
    if isinstance(value, Mapping):
        value = value.get("job")
    return str(value or "")


# --- which of several -----------------------------------------------------------------------------

_BEST_FIRST = ("RUNNING", "CONFIGURING", "SUSPENDED")


def best_first(jobs: Iterable[Job]) -> list[Job]:
    """Jobs that live, the most useful one first: what runs, then what began first."""

    def rank(job: Job) -> tuple[int, int]:
        place = len(_BEST_FIRST) + job.waits + 2 * (job.state == "COMPLETING")
        return _BEST_FIRST.index(job.state) if job.state in _BEST_FIRST else place, int(job.id)

    return sorted((job for job in jobs if not job.is_over), key=rank)


def last_over(jobs: Iterable[Job]) -> Job | None:
    """The job that ended last."""
    return max(
        (job for job in jobs if job.is_over), key=lambda job: (job.ended_at or 0, int(job.id)), default=None
    )


def version_of(path: Any) -> tuple[int, ...]:
    """v0.0.38 as numbers that can be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", str(path)))
