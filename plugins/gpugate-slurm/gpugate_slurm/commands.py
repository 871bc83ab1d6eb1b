"""Slurm by its own commands, here or on a host that is reached by SSH; one command is one try."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from attrs import frozen

from gpugate import Ambiguous, Misconfigured, NotFound, ProviderError, Transient
from gpugate_slurm.jobs import SQUEUE_FORMAT, Job, jobs_of_squeue
from gpugate_slurm.refusals import refusal_of
from gpugate_slurm.script import SIGN_OF_LIFE, JobRequest
from gpugate_slurm.settings import SlurmConfig

LARGEST_OUTPUT = 8 * 1024 * 1024
NOT_FOUND = 127
PASSED_ON = "PATH,HOME,USER,LOGNAME,SHELL,LANG,LC_ALL,TZ,LD_LIBRARY_PATH,MODULEPATH,MODULESHOME"
"""What a job gets of the gateway's environment: sbatch would give it all, the gateway's secrets too."""
_TIMES = {"SLURM_TIME_FORMAT": "%s"}


@frozen
class Output:
    """What a command left."""

    code: int
    out: str
    err: str


class CommandLost(Exception):
    """A command was begun, and it is not known what came of it."""


class Runner(Protocol):
    """Runs commands somewhere.

    Attributes:
        where: for messages.
        export: which variables a job gets of those that sbatch has there; empty: all.
    """

    where: str
    export: str

    async def run(
        self, words: Sequence[str], *, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> Output:
        """Run it. Raises: CommandLost; Transient, it cannot be run now; Misconfigured; AuthFailed."""
        ...


class LocalRunner:
    """Runs commands as processes of the gateway's user."""

    where = "here"
    export = PASSED_ON

    async def run(
        self, words: Sequence[str], *, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> Output:
        """Run a command; a cancelled one is killed."""
        passed = {name: value for name, value in os.environ.items() if not name.startswith("GPUGATE_")}
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**passed, **(env or {})},
                limit=LARGEST_OUTPUT,
                cwd=_home(),
            )
        except FileNotFoundError:
            return Output(NOT_FOUND, "", "")
        except OSError as error:
            raise Transient(f"{words[0]} cannot be run here ({type(error).__name__})") from error
        try:
            out, err = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return Output(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))

    async def aclose(self) -> None:
        """Nothing is held."""


def _home() -> str:
    """Where a job begins, if its node has that folder: the gateway's own is none for it."""
    home = os.path.expanduser("~")
    return home if os.path.isdir(home) else "/"


class CommandClient:
    """sbatch, squeue and scancel. Each method raises `ProviderError`s only."""

    def __init__(self, config: SlurmConfig, runner: Runner) -> None:
        self._config = config
        self._runner = runner

    async def list_jobs(self) -> list[Job]:
        """All jobs of this user with names of ours, those that ended in the last minutes included."""
        whose = f"--user={self._config.user}" if self._config.user else "--me"
        words = ["squeue", "--noheader", whose, "--states=all", f"--format={SQUEUE_FORMAT}"]
        output = await self._run(words, env=_TIMES)
        if output.code:
            raise refusal_of(output.err)
        jobs = jobs_of_squeue(output.out)
        if jobs is None:
            raise Transient("squeue printed something that is no list of jobs")
        return jobs

    async def submit(self, request: JobRequest) -> str:
        """Submit a job and return its id. Ambiguous: it may have been submitted."""
        words = ["sbatch", "--parsable", f"--job-name={request.name}", f"--comment={request.comment}"]
        if self._runner.export and "export" not in request.options:
            words.append(f"--export={self._runner.export}")
        output = await self._run(words, stdin=request.script, lost=Ambiguous)
        if output.code:
            raise refusal_of(output.err, submission=True, default=Misconfigured)
        number = output.out.strip().partition(";")[0]
        if not number.isdecimal():
            raise Ambiguous("sbatch printed something that is no job's id")
        return number

    async def cancel(self, job: Job) -> None:
        """End a job; one that has ended is fine."""
        await self._scancel(job.id)

    async def give_sign_of_life(self, job: Job) -> None:
        """Tell the job's script that the gateway is there."""
        await self._scancel("--batch", f"--signal={SIGN_OF_LIFE}", job.id)

    async def _scancel(self, *words: str) -> None:
        output = await self._run(["scancel", *words])
        if output.code:
            error = refusal_of(output.err)
            if not isinstance(error, NotFound):
                raise error

    async def _run(
        self,
        words: Sequence[str],
        *,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        lost: type[ProviderError] = Transient,
    ) -> Output:
        """Run a command within `timeout`; `lost` is raised if its end is not seen."""
        limit = self._config.timeout
        try:
            async with asyncio.timeout(limit):
                output = await self._runner.run(words, stdin=stdin, env=env)
        except TimeoutError as error:
            raise lost(f"{words[0]} did not end within {limit:g} s") from error
        except CommandLost as error:
            raise lost(f"{words[0]} {self._runner.where}: {error}") from error
        if output.code == NOT_FOUND:
            missing = f"there is no program {words[0]} {self._runner.where}"
            raise Misconfigured(f"{missing}: set providers.slurm.rest_url or providers.slurm.ssh")
        return output


def shell_line(words: Sequence[str], env: Mapping[str, str] | None) -> str:
    """A command for a remote shell."""
    settings = [f"{name}={value}" for name, value in (env or {}).items()]
    return shlex.join(["env", *settings, *words] if settings else list(words))
