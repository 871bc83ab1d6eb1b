"""The gateway's side of a kept process: start, stop, look; the supervising is the keeper's (`keeping`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

from attrs import asdict, define, field, frozen

from gpugate.errors import Conflict, Misconfigured, Transient
from gpugate.providers.keeping.family import is_same, leftovers, mark_of, processes
from gpugate.providers.keeping.journal import State, read_state

_ME = uuid4().hex  # tells gateways apart where pids do not: two containers with one state directory
_BOOTSTRAP = "import sys; sys.path.append(sys.argv[1]); from keeping.process import main; main()"
_ANSWER_S = 5.0  # a keeper answers in a millisecond; longer than this it is stuck
_START_TRIES = 50  # against another start that has the lock; each waits 20 ms
_keepers: list[int] = []  # started by this process and not yet buried


class CommandNotFound(Misconfigured):
    """The command is not there, or cannot be executed."""


def state_dir() -> Path:
    """Where providers keep what must survive the gateway.

    GPUGATE_STATE_DIR (by which a configured `state.dir` is handed on), else $XDG_STATE_HOME/gpugate, else
    ~/.local/state/gpugate.
    """
    if own := os.environ.get("GPUGATE_STATE_DIR"):
        return Path(own).absolute()
    base = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):  # a relative one is to be ignored, says the XDG specification
        return Path(base) / "gpugate"
    return Path("~/.local/state/gpugate").expanduser()


class KeptStatus(StrEnum):
    """Where a kept process is; one that is gone after a stop is no `Kept` at all."""

    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


@frozen
class Timing:
    """How patient a keeper is, all in seconds (docs/api.md#the-local-provider: 20 s; 15 s without a gateway).

    Attributes:
        settle_s: how long a start watches for a command that ends at once.
        grace_s: without a gateway for so long: SIGTERM.
        orphan_kill_s: and SIGKILL so long after that.
        stop_kill_s: after a stop: from SIGTERM to SIGKILL.
    """

    settle_s: float = 0.3
    grace_s: float = 5.0
    orphan_kill_s: float = 7.0
    stop_kill_s: float = 20.0


@frozen
class Kept:
    """A kept process, now.

    Attributes:
        status: RUNNING; STOPPING, until the last of its offspring is gone; ENDED, by itself.
        pid: of the command.
        started_at: when (aware, UTC).
        meta: what `start` was told to remember.
        exit_status: of a command that ended; negative: the signal.
        last_line: the last line of its output, where it ended; it may be anything, a prompt even.
        held_by: the pid of another gateway that holds it: two of them share a state directory.
    """

    status: KeptStatus
    pid: int
    started_at: datetime
    meta: Mapping[str, Any] = field(factory=dict, hash=False)
    exit_status: int | None = None
    last_line: str = ""
    held_by: int | None = None

    @property
    def how_it_ended(self) -> str:
        """A few words for people, such as "ended with exit status 1"; the last line is not for everybody."""
        status = self.exit_status or 0
        return f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"


def _kept_of(state: State, status: KeptStatus | None = None) -> Kept:
    return Kept(
        status=status or KeptStatus(state["status"]),
        pid=state.get("pid", 0),
        started_at=datetime.fromtimestamp(state.get("started_at", 0), UTC),
        meta=state.get("meta", {}),
        exit_status=state.get("exit_status"),
        last_line=state.get("last_line", ""),
        held_by=state.get("held_by"),
    )


@define
class _Link:
    """A connection to a keeper, and so a lease. Answers are numbered: one nobody waited for is skipped."""

    sock: socket.socket
    _number: int = 0
    _buffer: bytes = b""

    def tell(self, what: str) -> int:
        """Send a request; its number. OSError: the keeper is gone."""
        self._number += 1
        request = {"do": what, "who": _ME, "gateway": os.getpid(), "n": self._number}
        self.sock.send(json.dumps(request).encode() + b"\n")  # a few bytes: never in part
        return self._number

    async def answer(self, number: int, within_s: float) -> State:
        """The answer to this request. OSError: the keeper is gone; TimeoutError among them: it is stuck."""
        async with asyncio.timeout(within_s):
            while True:
                answer: State = json.loads(await self._line())
                if answer["n"] == number:
                    return answer

    async def _line(self) -> bytes:
        loop = asyncio.get_running_loop()
        while b"\n" not in self._buffer:
            data = await loop.sock_recv(self.sock, 65536)
            if not data:
                raise ConnectionResetError
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


class KeptProcess:
    """One command, kept alive by a keeper that ends it when no gateway wants it any more.

    `start`, `stop` and `inspect` take milliseconds (`start` watches `settle_s` longer), are idempotent and
    safe to cancel. Each raises `Transient` if the keeper does not answer. An object that looked once holds
    the lease until `aclose` or the death of its gateway; a second gateway may look, but not start or stop.
    """

    def __init__(self, name: str, *, state_dir: Path, timing: Timing = Timing()) -> None:
        folder = state_dir.absolute() / "processes"
        self.name, self.timing = name, timing
        self._state_dir = state_dir.absolute()
        self._state = str(folder / f"{name}.json")
        self._log = str(state_dir.absolute() / "logs" / f"{name}.log")
        self._link: _Link | None = None
        self._turn = asyncio.Lock()
        self._rescue_after = 0.0

    async def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Kept:
        """Start the command unless it runs; return once it has outlived `settle_s`.

        `env` is added to this process's environment without its GPUGATE_* variables, which hold secrets.
        `meta` is JSON that comes back from every look, also from a restarted gateway's.

        Raises: CommandNotFound; Transient, it ended at once; Conflict, it is still stopping or another
        gateway holds it; Misconfigured, the state directory cannot be used.
        """
        order = self._order("keep", command=list(command), env=_environment(env or {}), meta=dict(meta or {}))
        async with self._turn:
            for _ in range(_START_TRIES):
                if found := await self._look():
                    self._refuse_if_not_ours(found)
                    if found.status is KeptStatus.RUNNING:
                        return found
                    if found.status is KeptStatus.STOPPING:
                        raise Conflict(f"the last process of {self.name} is still stopping")
                answer = await self._start_keeper(order)
                if answer.get("error") != "busy":
                    return self._judge(command, answer)
                await asyncio.sleep(0.02)  # somebody else starts it right now: look again
        raise Transient(f"another start of {self.name} does not come to an end")

    async def stop(self) -> Kept | None:
        """Ask for the end of the whole family; return at once. None: nothing is there; ENDED is forgotten.

        Raises: Conflict, another gateway holds it.
        """
        async with self._turn:
            found = await self._look("stop")
            if found is not None:
                self._refuse_if_not_ours(found)
            if found is None or found.status is not KeptStatus.ENDED:
                return found
            with contextlib.suppress(OSError):  # it stays "ended" then, which is true
                os.unlink(self._state)
            return None

    async def inspect(self) -> Kept | None:
        """What it is doing; None: nobody of it is left, proved. The first look of a gateway adopts it."""
        async with self._turn:
            return await self._look()

    async def aclose(self) -> None:
        """Let go. What this gateway had started or adopted stays for its next start.

        Only a gateway that dies without this starts the countdown (`on_exit = "keep"` is a clean end).
        """
        async with self._turn:
            if self._link is not None:
                with contextlib.suppress(OSError):
                    self._link.tell("leave")
            self._drop_link()
            _bury()

    # -- looking

    async def _look(self, what: str = "status") -> Kept | None:
        _bury()
        if (answer := await self._ask(what)) is not None:
            return _kept_of(answer)
        try:
            state = read_state(self._state)
        except OSError as error:
            raise Transient(f"the state of {self.name} cannot be read: {error.strerror}") from error
        if state is None:
            return None
        if state.get("status") == "ended":
            return _kept_of(state)
        return await self._look_without_keeper(state)

    async def _look_without_keeper(self, state: State) -> Kept | None:
        """The keeper was killed. Either its guard ends the family now, or somebody must be sent to do it."""
        guarded, left = await asyncio.to_thread(_survey, self._state, state)
        if not guarded and not left:
            return None
        if not guarded and time.monotonic() >= self._rescue_after:
            self._rescue_after = (
                time.monotonic() + 5
            )  # one at a time; a second one would only find the lock taken
            await self._send_sweeper()
        return _kept_of(state, KeptStatus.STOPPING)

    async def _ask(self, what: str) -> State | None:
        """The keeper's answer; None: there is no keeper."""
        for _ in range(2):  # a link may have died since the last time
            if self._link is None and not self._connect():
                return None
            assert self._link is not None
            try:
                return await self._link.answer(self._link.tell(what), _ANSWER_S)
            except TimeoutError as error:
                self._drop_link()
                raise Transient(f"the keeper of {self.name} does not answer") from error
            except OSError:
                self._drop_link()
        return None

    def _connect(self) -> bool:
        try:
            path = (read_state(self._state) or {}).get("socket")
        except OSError as error:
            raise Transient(f"the state of {self.name} cannot be read: {error.strerror}") from error
        if not path:
            return False
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(path)  # a unix socket answers at once, one way or the other
        except BlockingIOError as error:
            sock.close()
            raise Transient(f"the keeper of {self.name} does not answer") from error
        except OSError:
            sock.close()
            return False
        self._link = _Link(sock)
        return True

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.sock.close()
            self._link = None

    def _refuse_if_not_ours(self, found: Kept) -> None:
        if found.held_by is not None:
            raise Conflict(
                f"{self.name} is held by another gpugate with this state directory (process {found.held_by})"
            )

    # -- starting a keeper

    def _order(self, what: str, **more: Any) -> State:
        fallback = Path(tempfile.gettempdir()) / f"gpugate-{os.geteuid()}" / f"{mark_of(self._state)}.sock"
        return {
            "do": what, "who": _ME, "gateway": os.getpid(), "state": self._state, "log": self._log,
            "lock": self._state.removesuffix(".json") + ".lock", "timing": asdict(self.timing),
            # A path of a unix socket holds some hundred bytes; a home directory may be deeper.
            "sockets": [self._state.removesuffix(".json") + ".sock", str(fallback)], **more,
        }  # fmt: skip

    async def _start_keeper(self, order: State) -> State:
        """Start it and hand it the order; its first answer. The connection becomes our lease."""
        self._make_folders()
        self._drop_link()
        link = await self._spawn(order)
        self._link = link
        try:
            return await link.answer(0, _ANSWER_S + self.timing.settle_s)
        except OSError as error:
            self._drop_link()
            raise Transient(f"the keeper of {self.name} did not start") from error

    async def _send_sweeper(self) -> None:
        link = await self._spawn(self._order("sweep"))
        link.sock.close()

    async def _spawn(self, order: State) -> _Link:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (1, 2)]
        arguments = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, str(Path(__file__).parent), self.name]
        try:
            with theirs:
                actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0), *quiet]
                _keepers.append(_spawn_process(arguments, actions))
            # Cancelled in here, nothing is started: half an order is none.
            await asyncio.get_running_loop().sock_sendall(ours, json.dumps(order).encode() + b"\n")
        except OSError as error:
            ours.close()
            raise Transient(f"the keeper of {self.name} cannot be started: {error.strerror}") from error
        except asyncio.CancelledError:
            ours.close()
            raise
        return _Link(ours)

    def _make_folders(self) -> None:
        try:
            for file in (self._state, self._log):
                Path(file).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error.strerror) from error

    def _unusable(self, why: object) -> Misconfigured:
        return Misconfigured(f"state.dir: {self._state_dir} cannot be used: {why}")

    def _judge(self, command: Sequence[str], answer: State) -> Kept:
        if error := answer.get("error"):
            self._drop_link()
            if error == "command":
                raise CommandNotFound(f"{command[0]!r} cannot be run: {answer['text']}")
            raise self._unusable(answer["text"])
        kept = _kept_of(answer)
        if kept.exit_status is not None and kept.status is not KeptStatus.RUNNING:
            raise Transient(f"{command[0]!r} {kept.how_it_ended}", output=kept.last_line)
        return kept


def _bury() -> None:
    """Take leave of keepers that have ended: they are children of this process, and would be zombies."""
    for pid in list(_keepers):
        with contextlib.suppress(ChildProcessError):  # somebody else did
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        _keepers.remove(pid)


def _survey(state_file: str, state: State) -> tuple[bool, bool]:
    """Without a keeper: is its guard alive, is anybody of the family?"""
    guarded = is_same(processes(), state.get("guard", 0), state.get("guard_born", ""))
    return guarded, bool(leftovers(state_file, state))


def _spawn_process(arguments: list[str], actions: list[Any]) -> int:
    """One `vfork` and `exec`: a millisecond."""
    return os.posix_spawn(arguments[0], arguments, _environment({}), file_actions=actions)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what is ours in it, plus `more`."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("GPUGATE_")}
    return {**own, **more}
