"""A real Slurm on this machine, in a folder of its own: munged, slurmctld, slurmd, slurmrestd and an sshd.

`python real_slurm.py FOLDER PID` keeps the daemons until the process PID has ended; the test workers of one
run share them. Needs root, and Debian's slurm-wlm, slurmrestd, slurm-wlm-jwt-plugin, munge, openssh-server.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import evolve, frozen
from gpugate_slurm import Slurm

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmrestd", "sshd")
READY_S = 30
OLLAMA = [sys.executable, str(Path(__file__).with_name("fake_ollama.py")), "{port}"]
"""The command of a job."""


class Quick(Slurm):
    """Looked at as often as a test likes."""

    capabilities = evolve(Slurm.capabilities, min_poll_s=0.1)


_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ctld}
SlurmdPort={slurmd}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={folder}/jwt.key
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=1
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=500 Gres=gpu:1 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=60 State=UP
PartitionName=down Nodes=ALL MaxTime=60 State=DOWN
"""
_SSHD = """\
Port {ssh}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
SetEnv SLURM_CONF={folder}/slurm.conf
"""


def missing() -> str:
    """Why no Slurm can be started here; empty if it can."""
    if os.geteuid():
        return "a Slurm of our own needs root"
    absent = [name for name in PROGRAMS if program(name) is None]
    if not list(Path("/usr/lib").glob("*/slurm-wlm/auth_jwt.so")):
        absent.append("auth_jwt.so")
    return f"not installed: {', '.join(absent)}" if absent else ""


def program(name: str) -> str | None:
    """The absolute path of a daemon; Debian has them in /usr/sbin."""
    return shutil.which(name, path=f"/usr/sbin:/usr/bin:{os.environ.get('PATH', '')}")


@frozen
class RealSlurm:
    """What a test needs of it."""

    folder: Path
    rest_url: str
    ssh: str

    @property
    def conf(self) -> str:
        """For SLURM_CONF."""
        return str(self.folder / "slurm.conf")

    def run(self, *words: str) -> str:
        """One of Slurm's commands."""
        env = {**os.environ, "SLURM_CONF": self.conf}
        return subprocess.run(words, env=env, capture_output=True, text=True, check=True, timeout=30).stdout

    def token(self, lifespan_s: int = 600) -> str:
        """A JSON Web Token for slurmrestd."""
        return self.run("scontrol", "token", f"lifespan={lifespan_s}").strip().partition("=")[2]

    def show(self, job: str) -> dict[str, str]:
        """What Slurm's controller knows of a job."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job)
        return dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)

    def clear(self) -> None:
        """End all jobs, and wait until they are gone."""
        self.run("scancel", "--user=root")
        self.until(lambda: not self.run("squeue", "--noheader"))

    def until(self, condition: Any, limit_s: float = 20) -> None:
        """Wait until this holds."""
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, self.run("squeue", "--states=all")
            time.sleep(0.1)


@contextmanager
def shared() -> Iterator[RealSlurm]:
    """The Slurm of this run, for one test at a time; the first that asks starts it.

    Its folder is not pytest's, which only root may enter: slurmrestd must not run as root.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = Path(tempfile.gettempdir()) / f"gpugate-slurm-{run}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = folder / "ready"
        if not told.exists():
            until = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
            words = ["setsid", "--fork", sys.executable, __file__, str(folder), str(until)]
            with (folder / "keeper.log").open("w") as log:
                subprocess.run(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=True)
            end = time.monotonic() + READY_S
            while not told.exists():
                assert time.monotonic() < end, (folder / "keeper.log").read_text()
                time.sleep(0.05)
        ports = json.loads(told.read_text())
        slurm = RealSlurm(folder, f"http://127.0.0.1:{ports['rest']}", f"root@127.0.0.1:{ports['ssh']}")
        slurm.clear()
        yield slurm


# --- the keeper's side --------------------------------------------------------------------------


def keep(folder: Path, until: int) -> None:
    """Run the daemons until that process has ended."""
    daemons: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        ports = _write_configuration(folder)
        _start_daemons(folder, ports, daemons)
        _wait_until_idle(folder)
        _wait_for(lambda: all(_listens(ports[name]) for name in ("rest", "ssh")))
        (folder / "ready.new").write_text(json.dumps(ports))
        (folder / "ready.new").rename(folder / "ready")
        while Path(f"/proc/{until}").exists() and folder.exists():
            time.sleep(0.3)
    finally:
        with suppress(subprocess.SubprocessError, OSError):
            env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
            subprocess.run(["scancel", "--user=root"], env=env, timeout=5, check=False)
            time.sleep(1.5)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(5)
            daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _write_configuration(folder: Path) -> dict[str, int]:
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(4)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        ports = dict(
            zip(("ctld", "slurmd", "rest", "ssh"), (one.getsockname()[1] for one in held), strict=True)
        )
    host = socket.gethostname().partition(".")[0]
    places = {"folder": folder, "host": host, **ports}
    (folder / "slurm.conf").write_text(_CONF.format(**places))
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/null\n")
    (folder / "sshd.conf").write_text(_SSHD.format(**places))
    for name, size in (("jwt.key", 32), ("munge.key", 1024)):
        (folder / name).write_bytes(secrets.token_bytes(size))
        (folder / name).chmod(0o400)
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    public = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{ports['ssh']} {public}")
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists
    return ports


def _start_daemons(folder: Path, ports: dict[str, int], daemons: list[subprocess.Popen[bytes]]) -> None:
    conf = str(folder / "slurm.conf")
    env = {name: value for name, value in os.environ.items() if name != "SLURM_JWT"} | {"SLURM_CONF": conf}
    nobody = pwd.getpwnam("nobody")
    munge = ("key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid", "seed-file=munge.seed")
    files = [f"--{name}={folder}/{file}" for name, file in (word.split("=") for word in munge)]
    api = "openapi/v0.0.37,openapi/v0.0.38"  # all others want accounting
    rest = ["slurmrestd", "-s", api, "-f", conf, "-a", "rest_auth/jwt", f"127.0.0.1:{ports['rest']}"]
    wanted: list[tuple[list[str], dict[str, Any]]] = [
        (["munged", "--foreground", "--force", f"--log-file={folder}/munge.log", *files], {}),
        (["slurmctld", "-D", "-c", "-f", conf], {}),
        (["slurmd", "-D", "-f", conf], {}),
        (rest, {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}),
        (["sshd", "-D", "-e", "-f", str(folder / "sshd.conf")], {}),
    ]
    for words, who in wanted:
        path = program(words[0])
        assert path is not None
        given = {**env, "SLURM_JWT": "daemon"} if words[0] == "slurmrestd" else env
        log = (folder / f"{words[0]}.out").open("wb")
        daemons.append(subprocess.Popen([path, *words[1:]], env=given, stdout=log, stderr=log, **who))
        log.close()
        if words[0] == "munged":
            _wait_for((folder / "munge.socket").exists)


def _wait_until_idle(folder: Path) -> None:
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def idle() -> bool:
        words = ["sinfo", "--noheader", "--partition=gpu", "--format=%T"]
        return subprocess.run(words, env=env, capture_output=True, check=False).stdout.strip() == b"idle"

    _wait_for(idle)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _wait_for(condition: Any) -> None:
    end = time.monotonic() + READY_S
    while not condition():
        if time.monotonic() > end:
            sys.exit("a daemon does not come up")
        time.sleep(0.1)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), int(sys.argv[2]))
