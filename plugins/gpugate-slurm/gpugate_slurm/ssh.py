"""One SSH connection to a login node: it runs commands, and takes connections to a compute node."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpugate import AuthFailed, Misconfigured, ProviderError, Transient
from gpugate.tasks import spawn
from gpugate_slurm.commands import CommandLost, Output, shell_line
from gpugate_slurm.settings import SlurmConfig

if TYPE_CHECKING:
    import asyncssh

KEEPALIVE_S = 15
"""How often a silent connection is asked whether it lives; three times without an answer end it."""
_CHUNK = 64 * 1024


def _library() -> Any:
    """asyncssh, which only who uses `ssh` needs."""
    try:
        import asyncssh
    except ImportError as error:
        raise Misconfigured("providers.slurm.ssh needs asyncssh: pip install 'gpugate-slurm[ssh]'") from error
    asyncssh.set_log_level("WARNING")  # it would tell of each command
    return asyncssh


def _path(text: str) -> str:
    return str(Path(text).expanduser())


class SshConnection:
    """A connection that is made when it is needed, and again when it was lost."""

    export = ""

    def __init__(self, config: SlurmConfig) -> None:
        self._config = config
        self._connection: asyncssh.SSHClientConnection | None = None
        self._making = asyncio.Lock()
        self.where = f"on {config.ssh_target[1]}"

    async def run(
        self, words: Sequence[str], *, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> Output:
        """Run a command there; see `Runner`."""
        library = _library()
        connection = await self.connected()
        try:
            done = await connection.run(shell_line(words, env), input=stdin)
        except (library.Error, OSError) as error:
            if isinstance(error, library.ChannelOpenError):
                raise Transient(f"{self.where}: {words[0]} cannot be run ({error.reason})") from error
            self._drop()
            raise CommandLost(f"the connection was lost ({type(error).__name__})") from error
        if done.exit_status is None:
            raise CommandLost("the connection was lost before its end")
        return Output(int(done.exit_status), str(done.stdout or ""), str(done.stderr or ""))

    async def connected(self) -> asyncssh.SSHClientConnection:
        """The connection. Raises: AuthFailed, Misconfigured, Transient."""
        async with self._making:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> asyncssh.SSHClientConnection:
        library = _library()
        user, host, port = self._config.ssh_target
        options: dict[str, Any] = {"keepalive_interval": KEEPALIVE_S, "login_timeout": self._config.timeout}
        if user:
            options["username"] = user
        if self._config.ssh_key_file:
            options["client_keys"] = [_path(self._config.ssh_key_file)]
        if self._config.known_hosts:
            options["known_hosts"] = _path(self._config.known_hosts)
        try:
            connection: asyncssh.SSHClientConnection = await library.connect(host, port, **options)
        except (library.Error, OSError, ValueError) as error:
            raise self._why_not(library, error) from error
        return connection

    def _why_not(self, library: Any, error: Exception) -> ProviderError:
        host = self._config.ssh_target[1]
        if isinstance(error, library.HostKeyNotVerifiable):
            return AuthFailed(f"{host} shows a host key that providers.slurm.known_hosts does not have")
        if isinstance(error, library.PermissionDenied):
            return AuthFailed(f"{host} does not accept the key (providers.slurm.ssh_key_file)")
        if isinstance(
            error, library.KeyImportError | library.KeyEncryptionError | FileNotFoundError | ValueError
        ):
            return Misconfigured(
                f"providers.slurm.ssh_key_file or known_hosts cannot be read ({type(error).__name__})"
            )
        return Transient(f"{host} cannot be reached by ssh ({type(error).__name__})")

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    async def aclose(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            with suppress(OSError):
                await self._connection.wait_closed()
            self._connection = None


class Tunnel:
    """A port of this machine that leads to a port of a node, as long as the object is open.

    It stays the same when the SSH connection is lost and made again.
    """

    def __init__(self, ssh: SshConnection, host: str, port: int) -> None:
        self.target = (host, port)
        self._ssh = ssh
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[Any]] = set()

    async def open(self) -> int:
        """Listen on the loopback and return the port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._carry(reader, writer)
        except (ProviderError, OSError):
            pass  # who connected sees that it is closed
        except asyncio.CancelledError:
            if self._server is not None:
                raise
        finally:
            self._open.discard(task)
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        library = _library()
        connection = await self._ssh.connected()
        try:
            far_reader, far_writer = await connection.open_connection(*self.target)
        except library.Error as error:
            raise Transient(f"the node cannot be reached ({type(error).__name__})") from error
        there = spawn(_pump(reader, far_writer), "slurm:tunnel", on_crash=lambda *_: None)
        try:
            await _pump(far_reader, writer)
        finally:
            there.cancel()
            far_writer.close()

    async def aclose(self) -> None:
        """Close the port and all connections through it."""
        if self._server is not None:
            server, self._server = self._server, None
            server.close()
            for task in list(self._open):
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)


async def _pump(reader: Any, writer: Any) -> None:
    """Copy bytes until there are none; the end is passed on."""
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
