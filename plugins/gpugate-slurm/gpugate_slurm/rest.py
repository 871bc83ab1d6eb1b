"""Slurm by slurmrestd: one method per call, one try each (docs/providers.md#slurmrestd)."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import orjson
from attrs import frozen

from gpugate import (
    Ambiguous,
    AuthFailed,
    Blocked,
    Misconfigured,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
)
from gpugate_slurm.jobs import Job, jobs_of_rest, version_of
from gpugate_slurm.refusals import UNSPECIFIED, clean, refusal_of
from gpugate_slurm.script import FLAGS, SIGN_OF_LIFE, JobRequest, minutes_of
from gpugate_slurm.settings import SlurmConfig

OLDEST, NEWEST = "v0.0.38", "v0.0.44"
MODERN = (0, 0, 39)
"""Since this version a job has other fields (docs/providers.md#slurmrestd)."""
LARGEST_ANSWER = 64 * 1024 * 1024
"""`GET /jobs` shows the whole cluster."""
NO_JOB = 2**31 - 1
"""No job has this number (the largest is 2^26 - 1): a signal to it changes nothing, and tells a bad token."""
_BAD_TOKEN = 5005
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_FIELDS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "reservation": "reservation",
    "constraint": "constraints",
    "cpus-per-task": "cpus_per_task",
    "ntasks": "tasks",
    "mem": "memory_per_node",
    "output": "standard_output",
    "error": "standard_error",
    "chdir": "current_working_directory",
    "nodelist": "required_nodes",
    "exclude": "excluded_nodes",
    "nodes": "nodes",
}
_OLD_FIELDS = {"exclude": "exclude_nodes", "gres": "gres", "gpus": "gpus", "nodelist": "required_nodes"}
_NUMBERS = frozenset({"cpus_per_task", "tasks"})
_UNITS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}


@frozen
class _Token:
    """What the token file held when it was read."""

    text: str
    stamp: tuple[int, int] | None


class RestClient:
    """The calls. Every one raises `ProviderError`s only."""

    def __init__(self, config: SlurmConfig, session: aiohttp.ClientSession) -> None:
        self._config = config
        self._session = session
        self._base = config.rest_url.rstrip("/")
        self._limit = aiohttp.ClientTimeout(total=config.timeout)
        self._token: _Token | None = None
        self._version = config.api_version

    async def list_jobs(self) -> list[Job]:
        """`GET /jobs`: those of this user with names of ours; others are left out."""
        answer = await self._call("GET", "/jobs")
        jobs = jobs_of_rest(answer, self._config.user_name)
        if jobs is None:
            raise Transient("slurmrestd answered something that is no list of jobs")
        return jobs

    async def submit(self, request: JobRequest) -> str:
        """`POST /job/submit`. Ambiguous: a job may have been made."""
        body = await self._body(request)
        answer = await self._call("POST", "/job/submit", body, submission=True)
        number = answer.get("job_id") if isinstance(answer, Mapping) else None
        if not isinstance(number, int) or number <= 0:
            raise Ambiguous("slurmrestd answered something that is no job's id")
        return str(number)

    async def cancel(self, job: Job) -> None:
        """`DELETE /job/{id}`; one that has ended is fine."""
        await self._delete(job.id)

    async def give_sign_of_life(self, job: Job) -> None:
        """`DELETE /job/{id}` with a signal: the job's script is told that the gateway is there."""
        await self._delete(job.id, SIGN_OF_LIFE)

    async def _delete(self, number: str, signal: str = "") -> None:
        query = {"signal": signal} if signal else {}
        if signal and version_of(await self._newest()) >= MODERN:
            query["flags"] = "FULL_JOB"  # v0.0.38 has no flags and means this one
        try:
            await self._call("DELETE", f"/job/{number}", query=query)
        except NotFound:
            return

    # --- which version --------------------------------------------------------------------------

    async def _newest(self) -> str:
        """The newest version that both know."""
        if not self._version:
            answer = await self._request("GET", "/openapi/v3", None, {}, submission=False)
            paths = answer.get("paths") if isinstance(answer, Mapping) else None
            if not isinstance(paths, Mapping):
                raise Transient("slurmrestd answered something that is no description of its API")
            known = {str(path).split("/")[2] for path in paths if str(path).startswith("/slurm/v")}
            fitting = [one for one in known if version_of(OLDEST) <= version_of(one) <= version_of(NEWEST)]
            if not fitting:
                raise Misconfigured(
                    f"slurmrestd knows none of {OLDEST} to {NEWEST}: {', '.join(sorted(known))}"
                )
            self._version = max(fitting, key=version_of)
        return self._version

    # --- a job ------------------------------------------------------------------------------------

    async def _body(self, request: JobRequest) -> dict[str, Any]:
        """slurmrestd reads no `#SBATCH` lines: each option is a field of its own."""
        if request.more:
            raise Misconfigured(
                f"providers.slurm.template: {request.more[0]!r} is not understood with rest_url"
            )
        modern = version_of(await self._newest()) >= MODERN
        job: dict[str, Any] = {
            "name": request.name,
            "comment": request.comment,
            "environment": [f"PATH={_PATH}"] if modern else {"PATH": _PATH},
            "current_working_directory": "/tmp",
            "standard_input": "/dev/null",
        }
        if not modern:
            job.pop("standard_input")
        for name, value in request.options.items():
            job |= _modern_field(name, value) if modern else _old_field(name, value)
        if modern:
            return {"job": {**job, "script": request.script}}
        return {"job": job, "script": request.script}

    # --- one call -----------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        submission: bool = False,
    ) -> Any:
        """One call; with a token file that has changed since, once more after a refusal."""
        version = await self._newest()
        token = self._read_token()
        address = f"/slurm/{version}{path}"
        try:
            return await self._request(method, address, body, query, submission=submission)
        except AuthFailed:
            self._token = None
            if self._read_token().text == token.text:
                raise
        return await self._request(method, address, body, query, submission=submission)

    async def _request(
        self,
        method: str,
        address: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str] | None,
        *,
        submission: bool,
        proving: bool = False,
    ) -> Any:
        """One request, and the proof that a 500 was about the token where it may have been."""
        lost: type[ProviderError] = Ambiguous if submission else Transient
        try:
            async with self._session.request(
                method,
                self._base + address,
                params=dict(query or {}),
                data=orjson.dumps(body) if body is not None else None,
                headers=self._headers(body is not None),
                allow_redirects=False,
                timeout=self._limit,
            ) as answer:
                status, text = answer.status, await _read(answer)
                retry_after = answer.headers.get("Retry-After", "")
        except aiohttp.InvalidURL as error:
            raise Misconfigured("providers.slurm.rest_url is no URL") from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Transient(f"slurmrestd cannot be reached ({type(error).__name__})") from error
        except TimeoutError as error:
            raise lost(f"slurmrestd did not answer within {self._config.timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise lost(f"the connection to slurmrestd broke ({type(error).__name__})") from error
        decoded = _decoded(text)
        if 200 <= status < 300:
            return self._accepted(decoded, lost)
        if _may_be_the_token(decoded) and not proving:
            await self._prove_token()
        raise self._error(status, decoded, retry_after, submission=submission)

    def _accepted(self, decoded: Any, lost: type[ProviderError]) -> Any:
        if not isinstance(decoded, Mapping):
            raise lost("slurmrestd answered something that is no JSON object")
        problems = _problems(decoded)
        if problems and not decoded.get("job_id"):  # a job that was made and has to wait has one too
            raise refusal_of(_words(problems), submission=lost is Ambiguous, default=Transient)
        return decoded

    def _headers(self, has_body: bool) -> dict[str, str]:
        """22.05 answers `Connection: close` with no HTTP: a session that closes must not say so."""
        headers = {
            "X-SLURM-USER-NAME": self._config.user_name,
            "X-SLURM-USER-TOKEN": self._read_token().text,
            "Accept": "application/json",
            "Connection": "keep-alive",
        }
        return {**headers, "Content-Type": "application/json"} if has_body else headers

    # --- errors ---------------------------------------------------------------------------------------

    def _error(self, status: int, decoded: Any, retry_after: str, *, submission: bool) -> ProviderError:
        problems = _problems(decoded)
        said = _words(problems)
        if status == 401:
            return AuthFailed("slurmrestd does not accept providers.slurm.token")
        if status == 429:
            seconds = float(retry_after[:9]) if retry_after.isascii() and retry_after.isdigit() else None
            return RateLimited("slurmrestd is asked too often", seconds)
        if problems and (status >= 400):
            refused = Misconfigured if submission and UNSPECIFIED not in said else Transient
            return refusal_of(said, submission=submission, default=refused)
        if status >= 500:
            kind: type[ProviderError] = Ambiguous if submission else Transient
            return kind(f"slurmrestd answered {status}")
        if status == 403:
            return Blocked("something before slurmrestd refuses this client (403)")
        if status == 404:
            return Misconfigured(
                f"providers.slurm.rest_url or api_version is wrong: no {self._version or 'API'} there"
            )
        return Misconfigured(f"providers.slurm.rest_url answers {status}: is it slurmrestd's address?")

    async def _prove_token(self) -> None:
        """Ask what tells a bad token from a controller that is down. Raises: AuthFailed, it is the token."""
        if (expired := _expired(self._read_token().text)) is not None:
            raise AuthFailed(
                f"slurmrestd's token expired {expired:.0f} s ago: renew providers.slurm.token_file"
            )
        version = self._version or OLDEST
        address, query = f"/slurm/{version}/job/{NO_JOB}", {"signal": SIGN_OF_LIFE}
        try:
            await self._request("DELETE", address, None, query, submission=False, proving=True)
        except AuthFailed:
            raise
        except ProviderError as refused:
            if "Zero Bytes" in refused.message:
                raise AuthFailed("Slurm does not accept providers.slurm.token for this user") from refused

    # --- the token --------------------------------------------------------------------------------------

    def _read_token(self) -> _Token:
        """The token; its file is read again when it has changed."""
        if not self._config.token_file:
            return _Token(self._config.token, None)
        path = Path(self._config.token_file).expanduser()
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if self._token is None or self._token.stamp != stamp:
                text = path.read_text().strip()
                self._token = _Token(text.removeprefix("SLURM_JWT="), stamp)  # as `scontrol token` prints it
        except (OSError, UnicodeDecodeError) as error:
            raise AuthFailed(f"providers.slurm.token_file cannot be read ({type(error).__name__})") from error
        if not self._token.text.isascii() or not self._token.text.isprintable() or not self._token.text:
            raise AuthFailed("providers.slurm.token_file holds no token")
        return self._token

    async def aclose(self) -> None:
        """Nothing is held."""


def _expired(token: str) -> float | None:
    """How many seconds ago the token's time was over; None if it is not, or cannot be told."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
        late = time.time() - float(claims["exp"])
    except (jwt.PyJWTError, KeyError, TypeError, ValueError):
        return None
    return late if late > 0 else None


def _may_be_the_token(decoded: Any) -> bool:
    problems = _problems(decoded)
    return any(UNSPECIFIED in _words([one]) or _number_of(one) == _BAD_TOKEN for one in problems)


def _problems(decoded: Any) -> list[Mapping[str, Any]]:
    errors = decoded.get("errors") if isinstance(decoded, Mapping) else None
    return [one for one in errors if isinstance(one, Mapping)] if isinstance(errors, list) else []


def _number_of(problem: Mapping[str, Any]) -> int | None:
    number = next((problem[key] for key in ("error_number", "error_code", "errno") if key in problem), None)
    return number if isinstance(number, int) else None


def _words(problems: list[Mapping[str, Any]]) -> str:
    """What slurmrestd says: `error` is Slurm's own sentence, `description` what was being done."""
    said = []
    for problem in problems[:3]:
        for key in ("error", "description"):
            if (words := str(problem.get(key) or "")) and words not in said:
                said.append(words)
    return clean("; ".join(said))


# --- options as fields ------------------------------------------------------------------------------


def _modern_field(name: str, value: str) -> dict[str, Any]:
    if name == "gres":
        parts = (part if part.startswith("gres") else f"gres:{part}" for part in value.split(","))
        return {"tres_per_node": ",".join(parts)}
    if name == "gpus":
        return {"tres_per_job": f"gres:gpu:{value}"}
    if name == "time":
        return {"time_limit": {"set": True, "infinite": False, "number": minutes_of(value)}}
    if name in ("no-requeue", "requeue"):
        return {"requeue": name == "requeue"}
    if name == "mem":
        return {"memory_per_node": {"set": True, "infinite": False, "number": megabytes_of(value)}}
    if name in ("nodelist", "exclude"):
        return {_FIELDS[name]: value.split(",")}
    return _plain_field(name, value, _FIELDS)


def _old_field(name: str, value: str) -> dict[str, Any]:
    """v0.0.38; `no_requeue` counts by being there, whatever its value."""
    if name == "time":
        return {"time_limit": minutes_of(value)}
    if name == "mem":
        return {"memory_per_node": megabytes_of(value)}
    if name in ("no-requeue", "requeue"):
        return {"no_requeue" if name == "no-requeue" else "requeue": True}
    return _plain_field(name, value, {**_FIELDS, **_OLD_FIELDS})


def _plain_field(name: str, value: str, fields: Mapping[str, str]) -> dict[str, Any]:
    if (field := fields.get(name)) is None:
        option = f"--{name}" if name in FLAGS else f"--{name}={shlex.quote(value)}"
        raise Misconfigured(f"providers.slurm.template: {option} is not understood with rest_url")
    if field in _NUMBERS:
        if not value.isdecimal():
            raise Misconfigured(f"providers.slurm.template: --{name} must be a number")
        return {field: int(value)}
    return {field: value}


def megabytes_of(text: str) -> int:
    """Memory as sbatch takes it: megabytes, or a number with K, M, G or T."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "M")
    if not number.isdecimal() or unit not in _UNITS:
        raise Misconfigured(f"providers.slurm.template: --mem={text} is no amount of memory")
    return max(1, round(int(number) * _UNITS[unit]))


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body; ClientPayloadError if it breaks off or has no end."""
    pieces = bytearray()
    async for piece in answer.content.iter_any():
        pieces += piece
        if len(pieces) > LARGEST_ANSWER:
            raise aiohttp.ClientPayloadError("too large")
    return bytes(pieces)


def _decoded(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
