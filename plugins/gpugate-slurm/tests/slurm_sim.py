"""A simulated Slurm: slurmrestd 22.05 as it was seen to answer, and the same cluster's commands.

It knows nothing of the plugin but the signal that is its sign of life (docs/providers.md#slurm).
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import inf
from typing import Any

import orjson
from aiohttp import web
from attrs import define, frozen
from gpugate_slurm.commands import Output
from gpugate_testing.clouds import Capacity, Delays, Fault, RateLimit, Stale
from gpugate_testing.clouds.clocks import Clock
from gpugate_testing.clouds.cloud import Cloud, Operation
from gpugate_testing.clouds.pods import SimPod

from gpugate.provider_api import Phase

TOKEN = "eyJ-sim-token-of-slurm"
VERSION = "v0.0.38"
SIGNALS = {"URG"}
_STATES = {
    Phase.QUEUED: "PENDING",
    Phase.PROVISIONING: "PENDING",
    Phase.STARTING: "CONFIGURING",
    Phase.RUNNING: "RUNNING",
    Phase.STOPPING: "COMPLETING",
    Phase.FAILED: "FAILED",
    Phase.GONE: "CANCELLED",
}
_SUBMIT_FIELDS = {
    "name", "comment", "environment", "current_working_directory", "standard_output", "standard_error",
    "time_limit", "gres", "partition", "account", "qos", "no_requeue", "requeue", "nodes", "tasks",
    "cpus_per_task", "memory_per_node", "constraints", "reservation", "exclude_nodes",
}  # fmt: skip
REFUSED: Mapping[str, tuple[int, str]] = {
    "partition": (2000, "Invalid partition name specified"),
    "account": (2045, "Invalid account or account/partition combination specified"),
    "qos": (2066, "Invalid qos specification"),
}
UNSPECIFIED = (-1, "Unspecified error")


@define
class SimJob:
    """What a job has beside its phase.

    Attributes:
        state: Slurm's word, where the phase has another or none.
        reason: why it waits or ended.
        signs: how often the gateway's sign of life has come.
    """

    spec: dict[str, Any]
    state: str = ""
    reason: str = ""
    script: str = ""
    signs: int = 0
    cancelled_at: float | None = None


class SlurmSim(Cloud):
    """slurmrestd at `url`. Operations, for `fail` and `count`: list, submit, cancel, sign, openapi.

    Attributes:
        jobs: what each pod (a job) has beside.
        queued_s: new jobs wait so long for a GPU; `inf`: for ever.
        refuse: the next submissions are refused with these, number and words.
        down: the controller does not answer slurmrestd.
    """

    def __init__(self, *, clock: Clock | None = None, delays: Delays | None = None) -> None:
        super().__init__(clock=clock, delays=delays, api_key=TOKEN)
        self.jobs: dict[str, SimJob] = {}
        self.queued_s = 0.0
        self.refuse: tuple[int, str] | None = None
        self.down = False
        self.user = getpass.getuser()

    def operations(self) -> Sequence[Operation]:
        """The part of slurmrestd that is used."""
        return (
            Operation("GET", "/openapi/v3", "openapi", self._openapi),
            Operation("GET", f"/slurm/{VERSION}/jobs", "list", self._list),
            Operation("POST", f"/slurm/{VERSION}/job/submit", "submit", self._submit),
        )

    def extend(self, app: web.Application) -> None:
        """A signal and a cancellation are one path."""
        sign = self._serve(Operation("DELETE", "", "sign", self._delete))
        cancel = self._serve(Operation("DELETE", "", "cancel", self._delete))

        async def delete(request: web.Request) -> web.StreamResponse:
            return await (sign if request.query.get("signal") in SIGNALS else cancel)(request)

        app.router.add_delete(f"/slurm/{VERSION}/job/{{id}}", delete)

    def hourly_rate(self, pod: SimPod) -> Decimal:
        """Nothing is paid to Slurm itself."""
        return Decimal(0)

    def refusal(self, status: int, words: str) -> web.Response:
        """As slurmrestd has it."""
        return error(words, status=status)

    def refuse_rate(self, operation: str, fault: Fault | None) -> web.Response | None:
        """A proxy before slurmrestd may do that."""
        if not isinstance(fault, RateLimit):
            return None
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        return web.Response(status=429, text="slow down", headers=headers)

    def _at_the_door(self, request: web.Request) -> web.Response | None:
        """22.05 does not say that a token is bad: what it asks the controller for just fails."""
        if request.headers.get("Connection", "").lower() == "close":
            self.violations.append("Connection: close")
        if not request.headers.get("X-SLURM-USER-NAME"):
            return web.Response(status=401, text="Authentication failure")
        if request.headers.get("X-SLURM-USER-TOKEN") != self.api_key:
            number = (5005, "Zero Bytes were transmitted or received")
            return error(*reversed(number if request.method == "DELETE" else UNSPECIFIED))
        if self.down:
            number = (1800, "Unable to contact slurm controller (connect failure)")
            return error(*reversed(UNSPECIFIED if request.method == "GET" else number))
        return None

    # --- jobs ---------------------------------------------------------------------------------

    def submit(self, spec: dict[str, Any], script: str, fault: Fault | None = None) -> SimPod | None:
        """Take a job; None: it is refused with `refuse`."""
        if self.refuse is not None:
            return None
        number = str(len(self.pods) + 1)
        pod = self.add(
            SimPod(
                id=number,
                name=spec["name"],
                clock=self.clock,
                delays=self.delays,
                billed_in={Phase.STARTING, Phase.RUNNING},
                made=True,
            )
        )
        self.jobs[number] = SimJob(spec, script=script)
        queued = inf if isinstance(fault, Capacity) and fault.queued_s is None else self.queued_s
        pod.start(queued_s=fault.queued_s if isinstance(fault, Capacity) and fault.queued_s else queued)
        return pod

    def delete(self, number: str, signal: str = "") -> tuple[int, str] | None:
        """Cancel a job, or give it a signal; the error if there is no such job."""
        pod = self.pods.get(number)
        if pod is None or (signal and pod.look() in (Phase.GONE, Phase.FAILED)):
            return 2017, "Invalid job id specified"
        if signal:
            self.jobs[number].signs += 1
        elif pod.look() not in (Phase.GONE, Phase.FAILED, Phase.STOPPED):
            if pod.phase in (Phase.QUEUED, Phase.PROVISIONING):
                pod.become(Phase.GONE)  # a job without a node has nothing to clean up
            pod.delete()
            self.jobs[number].cancelled_at = self.clock.now()
        return None

    def end(self, number: str, state: str, reason: str = "") -> None:
        """End a job behind everybody's back: PREEMPTED, NODE_FAIL, TIMEOUT ..."""
        self.pods[number].become(Phase.GONE)
        self.jobs[number].state, self.jobs[number].reason = state, reason

    def show(self, pod: SimPod, *, stale: bool = False) -> dict[str, Any] | None:
        """A job as slurmrestd shows it."""
        if stale and pod.was is not None:
            pod = pod.was
        phase, job = pod.look(), self.jobs[pod.id]
        state = job.state or _STATES[phase]
        waiting = "Resources" if phase is Phase.QUEUED else "None"
        spans = pod.stretches
        ended = spans[-1].until if spans else job.cancelled_at
        return {
            "job_id": int(pod.id),
            "name": pod.name,
            "user_name": self.user,
            "job_state": state,
            "state_reason": job.reason or waiting,
            "batch_host": "" if state == "PENDING" else "127.0.0.1",
            "comment": job.spec["comment"],
            "start_time": self._unix(spans[0].since if spans else None),
            "end_time": self._unix(ended),
        }

    def _unix(self, second: float | None) -> int:
        return 0 if second is None else int(self.clock.at(second).timestamp())

    # --- slurmrestd -----------------------------------------------------------------------------

    async def _openapi(self, _: web.Request, __: Fault | None) -> web.StreamResponse:
        return answer({"paths": {"/slurm/v0.0.36/jobs": {}, f"/slurm/{VERSION}/jobs": {}}})

    async def _list(self, _: web.Request, fault: Fault | None) -> web.StreamResponse:
        stale = isinstance(fault, Stale)
        shown = [self.show(pod, stale=stale) for pod in self.pods.values() if self.is_listed_here(pod, stale)]
        stranger = {"job_id": 7777, "name": "train", "user_name": "else", "job_state": "RUNNING"}
        return answer({"jobs": [*shown, stranger]})

    def is_listed_here(self, pod: SimPod, stale: bool) -> bool:
        """A stale list lacks what was submitted since."""
        return not (stale and pod.was is None)

    async def _submit(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        if unknown := sorted(set(body["job"]) - _SUBMIT_FIELDS):
            self.violations.append(f"unknown fields {unknown}")
            return error("Failure during parsing", f"Unknown key {unknown[0]!r}", status=400)
        pod = self.submit(body["job"], body["script"], fault)
        if pod is None:
            assert self.refuse is not None
            return answer({"errors": [{"error_code": self.refuse[0], "error": self.refuse[1]}]}, 500)
        return answer({"job_id": int(pod.id), "step_id": "BATCH", "job_submit_user_msg": ""})

    async def _delete(self, request: web.Request, _: Fault | None) -> web.StreamResponse:
        refused = self.delete(request.match_info["id"], request.query.get("signal", ""))
        return answer({}) if refused is None else error(refused[1], number=refused[0])


def answer(content: dict[str, Any], status: int = 200) -> web.Response:
    """What slurmrestd sends."""
    body = orjson.dumps({"meta": {}, "errors": [], **content})
    return web.Response(status=status, body=body, content_type="application/json")


def error(words: str, number: int | str = -1, *, status: int = 500) -> web.Response:
    """An error in slurmrestd's own shape."""
    return answer({"errors": [{"error": words, "error_number": number}], "jobs": []}, status)


@frozen
class Said:
    """A command that goes wrong.

    Attributes:
        words: on its standard error.
        code: its exit status.
        done: it has worked all the same.
        hangs_s: it takes so long.
    """

    words: str
    code: int = 1
    done: bool = False
    hangs_s: float = 0.0


class SimRunner:
    """The same cluster by its commands; they take no time.

    Attributes:
        says: what goes wrong, by command, once each.
        ran: the commands, oldest first.
    """

    where = "on a simulated login node"
    export = ""

    def __init__(self, sim: SlurmSim) -> None:
        self.sim = sim
        self.says: dict[str, list[Said]] = {}
        self.ran: list[Sequence[str]] = []

    async def run(
        self, words: Sequence[str], *, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> Output:
        """One command; it is over at once, but not in the same turn of the loop."""
        self.ran.append(words)
        for _ in range(3):
            await asyncio.sleep(0)
        if not (planned := self.says.get(words[0])):
            return self._done(words, stdin)
        fault = planned.pop(0)
        if fault.done:
            self._done(words, stdin)
        if fault.hangs_s:
            await self.sim.clock.sleep(fault.hangs_s)
        return Output(fault.code, "", fault.words)

    def _done(self, words: Sequence[str], stdin: str) -> Output:
        output: Output = getattr(self, f"_{words[0]}")(list(words[1:]), stdin)
        return output

    def _squeue(self, _: list[str], __: str) -> Output:
        lines = [self._line(pod) for pod in self.sim.pods.values()]
        return Output(0, "".join(lines) + "8888|RUNNING|None|n7|1|2|train|(null)\n", "")

    def _line(self, pod: SimPod) -> str:
        shown = self.sim.show(pod)
        keys = (
            "job_id",
            "job_state",
            "state_reason",
            "batch_host",
            "start_time",
            "end_time",
            "name",
            "comment",
        )
        return "|".join(str(shown[key] or "n/a") for key in keys) + "\n"

    def _sbatch(self, words: list[str], stdin: str) -> Output:
        options = dict(word[2:].split("=", 1) for word in words if "=" in word)
        pod = self.sim.submit({"name": options["job-name"], "comment": options["comment"]}, stdin)
        if pod is None:
            said = self.sim.refuse[1]
            return Output(1, "", f"sbatch: error: Batch job submission failed: {said}\n")
        return Output(0, f"{pod.id}\n", "")

    def _scancel(self, words: list[str], _: str) -> Output:
        refused = self.sim.delete(words[-1], "URG" if len(words) > 1 else "")
        if refused is None:
            return Output(0, "", "")
        return Output(1, "", f"scancel: error: Kill job error on job id {words[-1]}: {refused[1]}\n")
