"""The plugin's face: one job of a Slurm cluster as gpugate's provider port has a pod."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from gpugate import (
    Ambiguous,
    Capabilities,
    Conflict,
    Endpoint,
    Misconfigured,
    Phase,
    PodReport,
    Price,
    Provider,
    ProviderError,
    RateLimited,
    Transient,
)
from gpugate.tasks import spawn
from gpugate_slurm.commands import CommandClient, LocalRunner
from gpugate_slurm.jobs import PREFIX, Job, best_first, last_over
from gpugate_slurm.looks import shared_looks
from gpugate_slurm.rest import RestClient
from gpugate_slurm.script import JobRequest, job_request
from gpugate_slurm.settings import FIRST_PORT, LAST_PORT, SlurmConfig
from gpugate_slurm.ssh import SshConnection, Tunnel

if TYPE_CHECKING:
    from aiohttp import ClientSession

MIN_POLL_S = 10.0
"""The contract's least pause between two looks (docs/providers.md#slurm-manners)."""
SETTLE_S = 30.0
"""How long after an unanswered submission its job may still turn up: three of Slurm's message timeouts."""
SIGNS_PER_SILENCE = 4
"""How many signs of life are sent within `orphan_after`: three may be lost."""


class Client(Protocol):
    """What slurmrestd and the commands can both do."""

    async def list_jobs(self) -> list[Job]: ...
    async def submit(self, request: JobRequest) -> str: ...
    async def cancel(self, job: Job) -> None: ...
    async def give_sign_of_life(self, job: Job) -> None: ...


class Slurm(Provider):
    """A job named `gpugate-<pod>`; `[providers.slurm]` says where, and of what."""

    Config = SlurmConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume=False,
        ephemeral=True,
        stable_urls=False,
        stop_keeps_disk=True,
        queue_on_capacity=True,
        min_poll_s=MIN_POLL_S,
        can_overlap=True,
    )
    settle_s: ClassVar[float] = SETTLE_S
    config: SlurmConfig

    def __init__(self, config: SlurmConfig, session: ClientSession) -> None:
        super().__init__(config, session)
        self._ssh = SshConnection(config) if config.ssh else None
        self._client: Client = (
            RestClient(config, session)
            if config.rest_url
            else CommandClient(config, self._ssh or LocalRunner())
        )
        self._tunnel: Tunnel | None = None
        self._seen_at = float("-inf")  # older listings are used up, or older than a change of ours
        self._unsure_until = 0.0
        self._alive: tuple[Job, ...] = ()
        self._signs: asyncio.Task[None] | None = None

    @property
    def time_limit_s(self) -> float:
        """The job's time limit; 0 where the template cannot be read, which a start will tell."""
        try:
            return self._request(FIRST_PORT).minutes * 60.0
        except Misconfigured:
            return 0.0

    def _request(self, port: int) -> JobRequest:
        return job_request(self.config, self.pod_name, port, slot=self.slot, limit_s=self.max_session_s)

    @property
    def _name(self) -> str:
        return f"{PREFIX}{self.pod_name}"

    async def start(self) -> PodReport:
        """Submit a job, unless one of that name lives.

        Raises: Ambiguous, the submission was not answered; RateLimited, it is too early to tell whether it
        made a job; Misconfigured, it can never run; Conflict, the name is another gateway's.
        """
        jobs = await self._look(fresh=True)
        if strange := [job for job in best_first(jobs) if not self._is_ours(job)]:
            raise Conflict(self._whose(strange[0]))
        if alive := best_first(jobs):
            if alive[0].never_runs:
                raise Misconfigured(f"job {alive[0].id} waits in vain: {alive[0].why}")
            if alive[0].state == "COMPLETING":
                raise RateLimited(f"job {alive[0].id} has ended, its node is cleaned up", MIN_POLL_S)
            return await self._report(jobs)
        if (wait := self._unsure_until - self._now()) > 0:
            raise RateLimited("a submission was not answered; waiting whether its job turns up", wait)
        return await self._submit()

    async def _submit(self) -> PodReport:
        port = self.config.port or random.randint(FIRST_PORT, LAST_PORT)
        request = self._request(port)
        self._unsure_until = self._now() + self.config.timeout + self.settle_s  # holds if this is cancelled
        try:
            number = await self._client.submit(request)
        except ProviderError as error:
            self._unsure_until = self._now() + self.settle_s if isinstance(error, Ambiguous) else 0.0
            raise
        finally:
            self._seen_at = self._now()
        self._unsure_until = 0.0
        detail = f"job {number} was submitted"
        return PodReport(Phase.PROVISIONING, pod_id=number, price=self._price, detail=detail, billed=False)

    async def stop(self) -> PodReport:
        """Cancel every job of ours, one that waits included."""
        jobs = [job for job in best_first(await self._look(fresh=True)) if self._is_ours(job)]
        await self._cancel([job for job in jobs if job.state != "COMPLETING"])
        if not jobs:
            return PodReport(Phase.STOPPED, detail="no job")
        return PodReport(Phase.STOPPING, pod_id=jobs[0].id, billed=not all(job.waits for job in jobs))

    async def inspect(self) -> PodReport:
        """Look for our job. Raises: Transient, an unanswered submission may yet turn out to have made one."""
        return await self._report(await self._look())

    async def sweep(self) -> None:
        """Cancel ours beside the one that serves, such as that of a submission whose answer was lost."""
        jobs = [job for job in best_first(await self._look(fresh=True)) if self._is_ours(job)]
        await self._cancel(jobs[1:])

    async def aclose(self) -> None:
        """Let go of the connection; the job goes on, for `orphan_after` at most."""
        if self._signs is not None:
            self._signs.cancel()
            self._signs = None
        await self._close_tunnel()
        if self._ssh is not None:
            await self._ssh.aclose()

    # --- looking --------------------------------------------------------------------------------

    async def _look(self, *, fresh: bool = False) -> list[Job]:
        """Jobs of our name; `fresh`: as they are now, else as another pod's look of a moment ago had them."""
        listing = await shared_looks(self.config, self.session).look(
            self._client.list_jobs,
            not_before=self._seen_at,
            pause_s=self.capabilities.min_poll_s,
            fresh=fresh,
        )
        self._seen_at = max(self._seen_at, listing.asked_at)
        jobs = [job for job in listing.jobs if job.name == self._name and job.slot == self.slot]
        ours = [job for job in best_first(jobs) if self._is_ours(job)]
        if ours:
            self._unsure_until = 0.0  # whatever was submitted last has turned up
        self._alive = tuple(job for job in ours if not job.waits)
        if self._alive and self._signs is None:
            self._signs = spawn(self._give_signs_of_life(), f"slurm:{self._name}", on_crash=lambda *_: None)
        return jobs

    async def _report(self, jobs: Sequence[Job]) -> PodReport:
        ours = [job for job in jobs if self._is_ours(job)]
        alive = best_first(ours)
        if not alive:
            await self._close_tunnel()
            return self._report_none(ours)
        job, *others = alive
        alarm = ""
        if others:
            alarm = f"more jobs of this pod hold nodes or wait: {', '.join(other.id for other in others)}"
        phase, detail = self._phase(job)
        endpoints: dict[str, Endpoint] = {}
        if phase is Phase.RUNNING:
            endpoints, problem = await self._endpoints(job)
            detail = problem or detail
        return PodReport(
            phase,
            pod_id=job.id,
            endpoints=endpoints,
            price=self._price,
            gpu=self.config.gres or None,
            started_at=job.began_at,
            detail=detail,
            alarm=alarm,
            billed=not job.waits,
            failure=Misconfigured(detail) if phase is Phase.FAILED else None,
            ended_at=job.ended_at,
        )

    def _report_none(self, jobs: Sequence[Job]) -> PodReport:
        if self._now() < self._unsure_until:
            raise Transient("a submission was not answered; too early to say that there is no job")
        last = last_over(jobs)
        if last is None:
            return PodReport(Phase.STOPPED, price=self._price, detail="no job")
        why = f" ({last.reason_word})" if last.reason_word != "None" else ""
        detail = f"job {last.id} has ended: {last.state}{why}"
        return PodReport(
            Phase.STOPPED,
            pod_id=last.id,
            price=self._price,
            started_at=last.began_at,
            detail=detail,
            ended_at=last.ended_at,
        )

    def _phase(self, job: Job) -> tuple[Phase, str]:
        """What a job that lives means (docs/providers.md#slurm-states)."""
        if job.waits:
            if job.never_runs:
                return Phase.FAILED, f"job {job.id} waits in vain: {job.why}"
            if job.state == "PENDING" and job.reason_word == "None":
                return Phase.PROVISIONING, job.why
            return Phase.QUEUED, job.why
        if job.state == "RUNNING":
            return Phase.RUNNING, f"job {job.id} on {job.node}"
        if job.state == "COMPLETING":
            return Phase.STOPPING, f"job {job.id} has ended, its node is cleaned up"
        if job.state in ("SUSPENDED", "STOPPED"):
            return Phase.UNREACHABLE, f"job {job.id} is {job.state.lower()} by Slurm"
        return Phase.STARTING, f"job {job.id} is {job.state}"

    async def _endpoints(self, job: Job) -> tuple[dict[str, Endpoint], str]:
        """Where the job's Ollama is reached, and what is in the way."""
        port = job.port or self.config.port  # a cluster may put a comment of its own
        if not port or not job.node:
            return {}, f"job {job.id} does not tell its node and port"
        if not self.config.tunnel or self._ssh is None:
            return {"ollama": Endpoint(self.config.ollama_url.format(node=job.node, port=port))}, ""
        if self._tunnel is None or self._tunnel.target != (job.node, port):
            await self._close_tunnel()
            self._tunnel = Tunnel(self._ssh, job.node, port)
        try:
            return {"ollama": Endpoint(f"http://127.0.0.1:{await self._tunnel.open()}")}, ""
        except OSError as error:
            return {}, f"no port for the tunnel ({type(error).__name__})"

    async def _close_tunnel(self) -> None:
        if self._tunnel is not None:
            tunnel, self._tunnel = self._tunnel, None
            await tunnel.aclose()

    # --- changing -------------------------------------------------------------------------------

    async def _cancel(self, jobs: Sequence[Job]) -> None:
        """Cancel each, whatever happens to the others; then raise the first error there was."""
        failed: ProviderError | None = None
        try:
            for job in jobs:
                try:
                    await self._client.cancel(job)
                except ProviderError as error:
                    failed = failed or error
        finally:
            self._seen_at = self._now()
        if failed is not None:
            raise failed

    async def _give_signs_of_life(self) -> None:
        """Until no job of ours runs: tell its script that the gateway is there; it may miss some."""
        try:
            while self._alive:
                for job in self._alive:
                    try:
                        await self._client.give_sign_of_life(job)
                    except ProviderError:
                        continue  # a lost job, or a cluster that does not answer: the next look tells
                await asyncio.sleep(self.config.orphan_after / SIGNS_PER_SILENCE)
        finally:
            self._signs = None

    # --- whose ------------------------------------------------------------------------------------

    def _is_ours(self, job: Job) -> bool:
        return job.instance in (None, self.config.instance)

    def _whose(self, job: Job) -> str:
        return (
            f"job {job.id} has this name and is of gpugate's instance {job.instance!r}:"
            " two gateways of one account need pods with different names"
        )

    @property
    def _price(self) -> Price | None:
        return Price(self.config.hourly_rate) if self.config.hourly_rate else None

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
