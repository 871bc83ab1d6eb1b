"""A command that runs under a guard (`gpugate.providers.supervisor`): start, stop and inspect it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

from attrs import asdict, field, frozen

from gpugate.errors import Conflict, Misconfigured, Transient
from gpugate.provider_api import MAIN_POD
from gpugate.providers import supervisor
from gpugate.providers.supervisor import State, find_family, read_state, recorded_processes
from gpugate.tasks import spawn

_HOLD = f"hold {uuid4().hex}".encode()  # tells gateways apart, also those with the same pid in two containers
_ANSWER_S = 5.0  # a guard answers in milliseconds; after this it is stuck
_RETRY_S = 0.02  # between two looks at a guard that has not obeyed yet
_START_TRIES = 50  # while another gateway's start holds the lock
_SWEEP_INTERVAL_S = 5.0


class CommandNotFound(Misconfigured):
    """The command does not exist or cannot be executed."""


def process_name(provider: str, pod: str) -> str:
    """Return the name of the process of a provider's pod: "local", and "local-code" for the pod `code`."""
    return provider if pod == MAIN_POD else f"{provider}-{pod}"


def state_dir() -> Path:
    """Return the directory for what providers keep across restarts of the gateway.

    GPUGATE_STATE_DIR (the gateway sets it from `state.dir`), else $XDG_STATE_HOME/gpugate, else
    ~/.local/state/gpugate.
    """
    if own := os.environ.get("GPUGATE_STATE_DIR"):
        return Path(own).absolute()
    base = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):  # a relative one is to be ignored, says the XDG specification
        return Path(base) / "gpugate"
    return Path("~/.local/state/gpugate").expanduser()


class ProcessState(StrEnum):
    """What a supervised process is doing; after a stop that is complete there is no state at all."""

    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


@frozen
class SupervisorTimeouts:
    """The timeouts of a guard, in seconds (docs/api.md: 20 s for a stop, 15 s in all without a gateway).

    Attributes:
        settle_s: how long a start watches for a command that ends at once.
        orphan_grace_s: without a gateway for so long: SIGTERM.
        orphan_kill_s: from that SIGTERM to SIGKILL.
        stop_kill_s: after a stop: from SIGTERM to SIGKILL.
    """

    settle_s: float = 0.3
    orphan_grace_s: float = 5.0
    orphan_kill_s: float = 7.0
    stop_kill_s: float = 20.0


@frozen
class ProcessStatus:
    """A supervised process as it was just seen.

    Attributes:
        state: RUNNING; STOPPING until its last descendant is gone; ENDED by itself.
        pid: of the command.
        started_at: aware, UTC.
        meta: what `start` was given to remember.
        exit_status: of a command that ended; negative: the signal that killed it.
        last_line: the last line of output of a command that ended; it can be anything, even a prompt.
        held_by: the pid of another gateway that holds the process: two gateways share a state directory.
    """

    state: ProcessState
    pid: int
    started_at: datetime
    meta: Mapping[str, Any] = field(factory=dict, hash=False)
    exit_status: int | None = None
    last_line: str = ""
    held_by: int | None = None

    @property
    def exit_description(self) -> str:
        """Such as "ended with exit status 1"; without the last line, which not every client may read."""
        status = self.exit_status or 0
        return f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"


def _status_of(
    state: State, process_state: ProcessState | None = None, held_by: int | None = None
) -> ProcessStatus:
    return ProcessStatus(
        state=process_state or ProcessState(state["status"]),
        pid=state["pid"],
        started_at=datetime.fromtimestamp(state["started_at"], UTC),
        meta=state["meta"],
        exit_status=state["exit_status"],
        last_line=state["last_line"],
        held_by=held_by,
    )


class SupervisedProcess:
    """One command, run by a guard that ends it when no gateway wants it any more.

    `start`, `stop` and `inspect` are idempotent and safe to cancel. They take milliseconds, `start` also the
    guard's own start and `settle_s`. Each raises `Transient` if the guard does not answer. The first look of
    an object takes the lease, which `aclose` or the death of the gateway gives back; another gateway may only
    look.
    """

    def __init__(
        self, name: str, *, state_dir: Path, timeouts: SupervisorTimeouts = SupervisorTimeouts()
    ) -> None:
        self.name, self.timeouts = name, timeouts
        self._state_dir = state_dir.absolute()
        self._base = str(self._state_dir / "processes" / name)
        self._state_file = self._base + ".json"
        self._log_file = str(self._state_dir / "logs" / f"{name}.log")
        self._pipe: int | None = None
        self._lease: int | None = None
        self._launching: asyncio.Task[State] | None = None
        self._lock = asyncio.Lock()
        self._next_sweep_at = 0.0

    async def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> ProcessStatus:
        """Start the command unless it runs; return once it has run for `settle_s`.

        Args:
            env: added to this process's environment without its GPUGATE_* variables, which hold secrets.
            meta: JSON that every look returns, also that of a restarted gateway.

        Raises: CommandNotFound; Transient, it ended at once; Conflict, it is still stopping or another
        gateway holds it; Misconfigured, the state directory cannot be used.
        """
        order = self._order("run", command=list(command), env=_environment(env), meta=dict(meta or {}))
        async with self._lock:
            for _ in range(_START_TRIES):
                if found := await self._look():
                    self._raise_if_held(found)
                    if found.state is ProcessState.RUNNING:
                        return found
                    if found.state is ProcessState.STOPPING:
                        raise Conflict(f"the last process of {self.name} is still stopping")
                # A cancelled start goes on in its task: the next call waits for it and finds the process.
                self._launching = spawn(self._launch(order), f"start of {self.name}")
                answer = await asyncio.shield(self._launching)
                if answer.get("error") != "busy":
                    return self._started(command, answer)
                await asyncio.sleep(_RETRY_S)
        raise Transient(f"another start of {self.name} does not come to an end")

    async def stop(self) -> ProcessStatus | None:
        """Ask all processes of the command to end and return; forget one that ended. None: nothing is left.

        Raises: Conflict, another gateway holds it.
        """
        async with self._lock:
            found = await self._look(stop=True)
            if found is not None:
                self._raise_if_held(found)
            if found is None or found.state is not ProcessState.ENDED:
                return found
            with contextlib.suppress(OSError):  # then it is still reported as ended, which is true
                os.unlink(self._state_file)
            return None

    async def inspect(self) -> ProcessStatus | None:
        """Return what the process is doing; None: no process of the command is left."""
        async with self._lock:
            return await self._look()

    async def aclose(self) -> None:
        """Give back the lease; the process stays for the next start of this gateway (`on_exit = "keep"`)."""
        async with self._lock:
            if self._launching is not None:
                await asyncio.wait([self._launching])
            if self._pipe is not None:
                with contextlib.suppress(OSError):
                    os.write(self._pipe, b"leave\n")
            self._close_pipe()
            if self._lease is not None:
                os.close(self._lease)
                self._lease = None

    # -- looking

    async def _look(self, *, stop: bool = False) -> ProcessStatus | None:
        """Return the status; with `stop` ask the guard to stop first, and wait until its state says so.

        (1) No state and no guard: nothing is there. (2) Another gateway holds it: only look. (3) The guard
        answers: its state counts. (4) It is gone: so is the process, or the final state says how it ended, or
        the guard was killed.
        """
        if self._launching is not None:
            await asyncio.wait([self._launching])
            self._launching = None
        deadline = time.monotonic() + _ANSWER_S
        while time.monotonic() < deadline:
            state = self._read_state()
            if state is None and self._pipe is None:  # (1)
                return None
            if state and (holder := self._other_gateway()) is not None:  # (2)
                return _status_of(state, held_by=holder)
            guarded = self._send(b"stop" if stop else _HOLD)
            state = self._read_state()
            if not guarded:  # (4)
                return await self._look_without_guard(state)
            if state and state.get("pid") and (not stop or state.get("stop_requested")):  # (3)
                return _status_of(state)
            await asyncio.sleep(_RETRY_S)  # the guard is just starting or ending, or the file was deleted
        raise Transient(f"the supervisor of {self.name} does not answer")

    async def _look_without_guard(self, state: State | None) -> ProcessStatus | None:
        if not state:
            return None
        if state.get("status") == "ended":
            return _status_of(state)
        if not await asyncio.to_thread(find_family, recorded_processes(state)):
            return None
        if time.monotonic() >= self._next_sweep_at:  # a second sweeper would find the lock taken and end
            self._next_sweep_at = time.monotonic() + _SWEEP_INTERVAL_S
            await asyncio.to_thread(self._run_guard, self._order("sweep"))
        return _status_of(state, ProcessState.STOPPING)

    def _read_state(self) -> State | None:
        try:
            return read_state(self._state_file)
        except OSError as error:
            raise Transient(f"the state of {self.name} cannot be read: {error.strerror}") from error

    def _raise_if_held(self, found: ProcessStatus) -> None:
        if found.held_by is not None:
            raise Conflict(
                f"{self.name} is held by another gpugate with this state directory (process {found.held_by})"
            )

    # -- the pipe and the lease

    def _send(self, command: bytes) -> bool:
        """Write a line to the guard; False: no guard reads the pipe."""
        for _ in range(2):  # the pipe may have been closed by its reader since the last time
            if self._pipe is None and not self._open_pipe():
                return False
            assert self._pipe is not None
            try:
                os.write(self._pipe, command + b"\n")
                return True
            except BlockingIOError as error:
                raise Transient(f"the supervisor of {self.name} does not answer") from error
            except OSError:
                self._close_pipe()
        return False

    def _open_pipe(self) -> bool:
        try:
            self._pipe = os.open(self._base + ".pipe", os.O_WRONLY | os.O_NONBLOCK)
            os.write(self._pipe, _HOLD + b"\n")
        except OSError:  # ENXIO: nobody reads it
            self._close_pipe()
        return self._pipe is not None

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _other_gateway(self) -> int | None:
        """Take or renew the lease; return the pid of another gateway that has it, 0 if that is unknown.

        The lock is the process's, not this object's, and is lost when any of its objects closes the file.
        """
        try:
            if self._lease is None:
                self._lease = os.open(self._base + ".lease", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.lockf(self._lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._lease, os.pwrite(self._lease, b"%d" % os.getpid(), 0))
        except (BlockingIOError, PermissionError):
            text = os.pread(self._lease, 20, 0) if self._lease is not None else b""
            return int(text) if text.isdigit() else 0
        except OSError:  # a file system without locks, a full disk
            return None
        return None

    # -- starting a guard

    def _order(self, what: str, **more: Any) -> State:
        return {
            "do": what, "state": self._state_file, "lock": self._base + ".lock", "pipe": self._base + ".pipe",
            "log": self._log_file, "timeouts": asdict(self.timeouts), **more,
        }  # fmt: skip

    async def _launch(self, order: State) -> State:
        try:
            for file in (self._state_file, self._log_file):
                Path(file).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkfifo(order["pipe"], 0o600)
            # Until the pipe is open for writing only, so that the guard never sees it without a gateway.
            opened = os.open(order["pipe"], os.O_RDWR | os.O_NONBLOCK)
        except OSError as error:
            return {"error": "state", "text": error.strerror}
        try:
            answer = await asyncio.to_thread(self._run_guard, order)
            if "error" not in answer:
                self._other_gateway()
                self._open_pipe()
            return answer
        finally:
            os.close(opened)

    def _run_guard(self, order: State) -> State:
        """Start a guard and return its answer. It goes to the background, so the answer is its end for us."""
        arguments = [sys.executable, "-P", supervisor.__file__]
        try:
            done = subprocess.run(
                arguments,
                input=json.dumps(order).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
                timeout=_ANSWER_S + self.timeouts.settle_s,
                check=False,
            )
            answer: State = json.loads(done.stdout)
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"error": "guard", "text": type(error).__name__}
        except ValueError:
            return {
                "error": "guard",
                "text": done.stdout.decode("utf-8", "replace").strip().rpartition("\n")[2],
            }
        return answer

    def _started(self, command: Sequence[str], answer: State) -> ProcessStatus:
        match answer.get("error"):
            case "command":
                raise CommandNotFound(f"{command[0]!r} cannot be run: {answer['text']}")
            case "state":
                raise Misconfigured(f"state.dir: {self._state_dir} cannot be used: {answer['text']}")
            case "guard":
                raise Transient(f"the supervisor of {self.name} did not start: {answer['text']}")
        status = _status_of(answer)
        if status.exit_status is not None and status.state is not ProcessState.RUNNING:
            raise Transient(f"{command[0]!r} {status.exit_description}", output=status.last_line)
        return status


def _environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without gpugate's variables, plus `more`."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("GPUGATE_")}
    return {**own, **(more or {})}
