"""Slurm's commands as processes: their environment, time limits and words; and what SSH may come to."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import asyncssh
import pytest
from gpugate_slurm import Slurm, SlurmConfig
from gpugate_slurm.commands import CommandClient, LocalRunner, shell_line
from gpugate_slurm.refusals import refusal_of
from gpugate_slurm.script import job_request
from gpugate_slurm.ssh import SshConnection, Tunnel

from gpugate.errors import (
    Ambiguous,
    AuthFailed,
    Misconfigured,
    NoCapacity,
    NotFound,
    ProviderError,
    Transient,
)
from gpugate.provider_api import Phase


def program(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!{sys.executable}\n{text}\n")
    file.chmod(0o755)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def client(**settings: Any) -> CommandClient:
    return CommandClient(SlurmConfig(**settings), LocalRunner())


async def test_no_secret_gets_into_a_job(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch is told which variables to pass on, and never sees gpugate's own; a template's --export wins."""
    monkeypatch.setenv("GPUGATE_AUTH__SECRET", "hunter2")
    monkeypatch.setenv("SITE_VARIABLE", "of a wrapper of sbatch")
    seen, job = here / "seen", here / "job.sh"
    told = "f'{[*os.environ]} {sys.argv} {sys.stdin.read()}'"
    program(here, "sbatch", f"import os, sys; open({str(seen)!r}, 'w').write({told}); print('17;cluster')")
    assert "17" == await client().submit(job_request(SlurmConfig(), "main", 20001))
    told = seen.read_text()
    assert all(word in told for word in ("SITE_VARIABLE", "gpugate_heard", "--export=PATH,HOME,"))
    assert "GPUGATE_" not in told
    job.write_text("#SBATCH --export=ALL\n{command}\n")
    await client().submit(job_request(SlurmConfig(template=str(job)), "main", 20001))
    assert "'--export=" not in seen.read_text()


async def test_a_command_that_hangs(here: Path) -> None:
    """It is killed; of a submission it is not known what came of it."""
    pid = here / "pid"
    for name in ("sbatch", "squeue"):
        program(
            here, name, f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
        )
    slow = client(timeout=0.5)
    with pytest.raises(Ambiguous, match=r"sbatch did not end within 0\.5 s"):
        await slow.submit(job_request(SlurmConfig(), "main", 20001))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    with pytest.raises(Transient, match="squeue did not end"):
        await slow.list_jobs()


async def test_no_commands(here: Path) -> None:
    """The two other ways are named."""
    with pytest.raises(Misconfigured, match=r"no program squeue here: set providers\.slurm\.rest_url or"):
        await client().list_jobs()


async def test_whose_jobs(here: Path) -> None:
    """One's own, or those of `user`."""
    said = here / "said"
    program(here, "squeue", f"import sys; open({str(said)!r}, 'a').write(sys.argv[2] + ' ')")
    await client().list_jobs()
    await client(user="me").list_jobs()
    assert "--me --user=me " == said.read_text()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", Ambiguous),
        ("sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received", Ambiguous),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller",
            Transient,
        ),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", Misconfigured),
        ("sbatch: error: invalid partition specified: nope", Misconfigured),
        (
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            Misconfigured,
        ),
        ("sbatch: error: Batch job submission failed: Access/permission denied", AuthFailed),
        (
            "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates",
            NoCapacity,
        ),
        ("scancel: error: Kill job error on job id 17: Invalid job id specified", NotFound),
        ("something new", Misconfigured),
    ],
)
def test_the_words_of_a_refusal(said: str, kind: type[ProviderError]) -> None:
    """They are kept, on one short line, without the command before them."""
    error = refusal_of(said, submission=True, default=Misconfigured)
    assert kind is type(error)
    assert "sbatch:" not in error.message
    assert "\n" not in error.message


def test_a_lost_answer_is_ambiguous_for_a_submission_only() -> None:
    """A look that timed out has changed nothing."""
    assert Transient is type(refusal_of("Socket timed out on send/recv operation"))
    assert len(refusal_of("x" * 1000).message) < 250


def test_a_line_for_a_shell() -> None:
    """Every word is one, whatever it holds."""
    line = shell_line(["squeue", "--format=%i|%T", "it's; rm -rf"], {"SLURM_TIME_FORMAT": "%s"})
    assert "env SLURM_TIME_FORMAT=%s squeue '--format=%i|%T' 'it'\"'\"'s; rm -rf'" == line


# --- SSH, at a server of asyncssh's ------------------------------------------------------------------


class Server(asyncssh.SSHServer):
    """Lets everybody with the right key in, and connects them to where they want."""

    def connection_requested(self, *_: object) -> bool:
        return True


async def ssh_server(folder: Path, port: int = 0) -> asyncssh.SSHAcceptor:
    """Its keys are made once."""
    for name in ("host", "user"):
        if not (folder / name).exists():
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(folder / name)
            key.write_public_key(folder / f"{name}.pub")

    def command(process: Any) -> None:
        process.stdout.write("19|RUNNING|None|127.0.0.1|1|2|gpugate-main|gpugate main port=20001\n")
        process.exit(0)

    return await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=Server,
        server_host_keys=[folder / "host"],
        authorized_client_keys=str(folder / "user.pub"),
        process_factory=command,
        reuse_address=True,
    )


def ssh_config(folder: Path, port: int, **more: Any) -> SlurmConfig:
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    keys = {"ssh_key_file": str(folder / "user"), "known_hosts": str(known)}
    return SlurmConfig(**{"ssh": f"me@127.0.0.1:{port}", "tunnel": True, "timeout": 3.0, **keys, **more})


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read())
    writer.close()


async def through(port: int, words: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(words)
        writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_tunnel_outlives_its_connection(tmp_path: Path) -> None:
    """The local port stays when the login node has thrown everybody out; meanwhile it is closed at once."""
    node = await asyncio.start_server(echo, "127.0.0.1", 0)
    login = await ssh_server(tmp_path)
    where = login.get_port()
    connection = SshConnection(ssh_config(tmp_path, where))
    tunnel = Tunnel(connection, "127.0.0.1", node.sockets[0].getsockname()[1])
    port = await tunnel.open()
    large = bytes(range(256)) * 4000
    try:
        assert [large] * 3 == await asyncio.gather(*(through(port, large) for _ in range(3)))
        (await connection.connected()).abort()
        login.close()
        await login.wait_closed()
        assert b"" == await through(port, b"x")
        login = await ssh_server(tmp_path, where)
        assert b"again" == await through(port, b"again")
        assert port == await tunnel.open()
    finally:
        await tunnel.aclose()
        await connection.aclose()
        login.close()
        node.close()


async def test_who_is_let_in(tmp_path: Path) -> None:
    """A wrong key, an unknown host and a missing file are told apart, with the setting's name."""
    login = await ssh_server(tmp_path)
    port = login.get_port()
    other = tmp_path / "other"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(other)
    (tmp_path / "empty").write_text("")
    cases: list[tuple[dict[str, Any], type[ProviderError], str]] = [
        ({}, ProviderError, ""),
        ({"ssh_key_file": str(other)}, AuthFailed, "ssh_key_file"),
        ({"known_hosts": str(tmp_path / "empty")}, AuthFailed, "known_hosts"),
        ({"ssh_key_file": str(tmp_path / "none")}, Misconfigured, "ssh_key_file"),
        ({"ssh": "me@127.0.0.1:1"}, Transient, "cannot be reached"),
    ]
    try:
        for settings, kind, said in cases:
            async with aiohttp.ClientSession() as session:
                provider = Slurm(ssh_config(tmp_path, port, **settings), session)
                try:
                    if said:
                        with pytest.raises(kind, match=said):
                            await provider.inspect()
                    else:
                        report = await provider.inspect()
                        assert Phase.RUNNING is report.phase
                        assert report.endpoints["ollama"].url.startswith("http://127.0.0.1:")
                finally:
                    await provider.aclose()
    finally:
        login.close()
