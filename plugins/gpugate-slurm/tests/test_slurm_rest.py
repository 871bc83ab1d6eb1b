"""slurmrestd's versions and answers that the real one of the tests does not give, at a small fake of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from gpugate_slurm import SlurmConfig
from gpugate_slurm.jobs import Job
from gpugate_slurm.rest import RestClient
from gpugate_slurm.script import JobRequest, job_request

from gpugate.errors import Ambiguous, AuthFailed, Misconfigured, ProviderError, Transient

Answer = Callable[[web.Request], tuple[int, Any]]
PATHS = {"paths": {f"/slurm/v0.0.{number}/jobs": {} for number in (37, 38, 39, 40)}}
JOB = Job(id="17", name="gpugate-main", state="RUNNING")


@asynccontextmanager
async def slurmrestd(answer: Answer, **settings: Any) -> AsyncIterator[tuple[RestClient, list[Any]]]:
    """A client, and what it asks: method, path with query, headers, body."""
    asked: list[Any] = []

    async def serve(request: web.Request) -> web.Response:
        body = await request.read()
        asked.append((request.method, str(request.rel_url), request.headers, json.loads(body or b"null")))
        if request.path == "/openapi/v3":
            return web.json_response(PATHS)
        status, content = answer(request)
        return web.json_response(content, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    config = {
        "rest_url": f"http://127.0.0.1:{runner.addresses[0][1]}",
        "token": "t",
        "user": "me",
        **settings,
    }
    try:
        async with aiohttp.ClientSession() as session:
            yield RestClient(SlurmConfig(**config), session), asked
    finally:
        await runner.cleanup()


def request_of(**settings: Any) -> JobRequest:
    return job_request(SlurmConfig(**settings), "main", 20001)


async def test_the_newest_version_of_both() -> None:
    """It is found once; jobs are read and made in its way, and told that the gateway lives."""
    async with slurmrestd(lambda _: (200, {"errors": [], "jobs": [], "job_id": 17})) as (client, asked):
        assert [] == await client.list_jobs()
        assert "17" == await client.submit(request_of(partition="a100"))
        await client.give_sign_of_life(JOB)
        await client.cancel(JOB)
    assert [
        ("GET", "/openapi/v3"),
        ("GET", "/slurm/v0.0.40/jobs"),
        ("POST", "/slurm/v0.0.40/job/submit"),
        ("DELETE", "/slurm/v0.0.40/job/17?signal=URG&flags=FULL_JOB"),
        ("DELETE", "/slurm/v0.0.40/job/17"),
    ] == [one[:2] for one in asked]
    headers, body = asked[2][2:]
    assert ("me", "t", "keep-alive") == tuple(
        headers[name] for name in ("X-SLURM-USER-NAME", "X-SLURM-USER-TOKEN", "Connection")
    )
    job = body["job"]
    assert {"set": True, "infinite": False, "number": 240} == job["time_limit"]
    assert ("gres:gpu:1", False, "a100") == (job["tres_per_node"], job["requeue"], job["partition"])
    assert job["environment"][0].startswith("PATH=")
    assert "ollama serve" in job["script"]


async def test_a_version_of_ones_own() -> None:
    """It is not looked for; v0.0.38 has other fields."""
    async with slurmrestd(lambda _: (200, {"job_id": 17}), api_version="v0.0.38") as (client, asked):
        await client.submit(request_of(account="lab"))
    ((_, path, _, body),) = asked
    assert "/slurm/v0.0.38/job/submit" == path
    assert ("gpu:1", True, 240) == tuple(body["job"][key] for key in ("gres", "no_requeue", "time_limit"))
    assert "ollama serve" in body["script"]


async def test_no_version_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ones that there are get named."""
    monkeypatch.setitem(PATHS, "paths", {"/slurm/v0.0.36/jobs": {}})
    async with slurmrestd(lambda _: (200, {})) as (client, _):
        with pytest.raises(Misconfigured, match=r"v0\.0\.36"):
            await client.list_jobs()


def problem(number: int, words: str) -> dict[str, Any]:
    return {"errors": [{"error_number": number, "error": words}], "jobs": []}


@pytest.mark.parametrize(
    ("second", "kind", "said"),
    [
        ((500, problem(5005, "Zero Bytes were transmitted or received")), AuthFailed, "does not accept"),
        ((401, {}), AuthFailed, "does not accept"),
        ((500, problem(1800, "Unable to contact slurm controller")), Transient, "Unspecified error"),
        ((500, problem(2017, "Invalid job id specified")), Transient, "Unspecified error"),
    ],
)
async def test_an_unspecified_error(second: tuple[int, Any], kind: type[ProviderError], said: str) -> None:
    """A second call, which changes nothing, tells whether it was the token."""

    def answer(request: web.Request) -> tuple[int, Any]:
        return (500, problem(-1, "Unspecified error")) if request.method == "GET" else second

    async with slurmrestd(answer, api_version="v0.0.38") as (client, asked):
        with pytest.raises(kind, match=said):
            await client.list_jobs()
    assert ["GET", "DELETE"] == [one[0] for one in asked]
    assert "/slurm/v0.0.38/job/2147483647?signal=URG" == asked[1][1]


async def test_a_token_that_was_refused(tmp_path: Path) -> None:
    """Its file is read again, once, if it has another one by now."""
    file = tmp_path / "token"
    file.write_text("SLURM_JWT=old\n")

    def answer(request: web.Request) -> tuple[int, Any]:
        if request.headers["X-SLURM-USER-TOKEN"] == "new":
            return 200, {"jobs": []}
        file.write_text("SLURM_JWT=new\n")
        return 401, {}

    async with slurmrestd(answer, api_version="v0.0.38", token="", token_file=str(file)) as (client, asked):
        assert [] == await client.list_jobs()
        assert ["old", "new"] == [one[2]["X-SLURM-USER-TOKEN"] for one in asked]
        file.unlink()
        with pytest.raises(AuthFailed, match="token_file cannot be read"):
            await client.list_jobs()


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (200, {"job_id": 17, "errors": [{"error_code": 2015, "error": "Requested partition ..."}]}, None),
        (200, {"errors": [], "job_id": 0}, Ambiguous),
        (200, [], Ambiguous),
        (500, problem(5004, "Socket timed out on send/recv operation"), Ambiguous),
        (500, problem(-1, "Unspecified error"), Transient),
        (500, problem(2045, "Invalid account or account/partition combination specified"), Misconfigured),
        (500, problem(2066, "Invalid qos specification"), Misconfigured),
        (400, problem(9001, "Failure during parsing"), Misconfigured),
        (502, {}, Ambiguous),
    ],
)
async def test_a_submission(status: int, content: Any, kind: type[ProviderError] | None) -> None:
    """A job that was made is one, whatever else is said; what is not known is not repeated."""
    async with slurmrestd(lambda _: (status, content), api_version="v0.0.38") as (client, _):
        if kind is None:
            assert "17" == await client.submit(request_of())
            return
        with pytest.raises(ProviderError) as raised:
            await client.submit(request_of())
    assert kind is type(raised.value)


@pytest.mark.parametrize("version", ["v0.0.38", "v0.0.40"])
async def test_a_templates_options(tmp_path: Path, version: str) -> None:
    """Each is a field; one without a field is named."""
    file = tmp_path / "job.sh"
    file.write_text("#SBATCH --mem=64G --qos=high -c 8 -x n1,n2\n#SBATCH --time=1-0\n{command}\n")
    async with slurmrestd(lambda _: (200, {"job_id": 17}), api_version=version) as (client, asked):
        await client.submit(request_of(template=str(file)))
        job = asked[0][3]["job"]
        assert ("high", 8) == (job["qos"], job["cpus_per_task"])
        if version == "v0.0.38":
            assert (65536, 1440, "n1,n2") == (job["memory_per_node"], job["time_limit"], job["exclude_nodes"])
        else:
            assert (65536, ["n1", "n2"]) == (job["memory_per_node"]["number"], job["excluded_nodes"])
        for line in ("--mail-user=me@example.org", "--exclusive", "-H"):
            file.write_text(f"#SBATCH {line}\n{{command}}\n")
            with pytest.raises(Misconfigured, match=line.split("=")[0]):
                await client.submit(request_of(template=str(file)))
