"""What the tests of the command line share: a shell of their own with a provider plugin installed in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

REPO = Path(__file__).parents[2]
SECRET = "0123456789abcdef0123456789abcdef"
CONFIG = f"[auth]\nsecret = '{SECRET}'\n[pod]\nprovider = 'parked'\n"

_PLUGIN = '''
from attrs import field, frozen
from gpugate import Capabilities, Endpoint, Phase, PodReport, Price, Provider

@frozen
class Config:
    api_key: str = field(default="", repr=False)
    phase: str = "stopped"
    ollama: str = ""
    comfyui: str = ""
    raises: str = ""
    gpu: str = ""
    rate: float = 0.0
    disk: float = 0.0

class Parked(Provider):
    """A pod that nobody moves: it is as its section says."""

    Config = Config
    capabilities = Capabilities(stable_urls=False, min_poll_s=2.0)

    async def start(self):
        raise AssertionError("check --live changes nothing")

    stop = start

    async def inspect(self):
        import gpugate.errors
        if self.config.raises == "bug":
            raise KeyError(self.config.api_key)
        if self.config.raises:
            raise getattr(gpugate.errors, self.config.raises)("said the provider")
        urls = {"ollama": self.config.ollama, "comfyui": self.config.comfyui}
        endpoints = {name: Endpoint(url) for name, url in urls.items() if url}
        price = Price(self.config.rate, self.config.disk) if self.config.rate else None
        phase, gpu = Phase(self.config.phase), self.config.gpu or None
        return PodReport(phase, pod_id="p1", endpoints=endpoints, price=price, gpu=gpu)
'''


@frozen
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines on standard error."""
        return self.err.splitlines()


@frozen
class Shell:
    """A folder, a home and an environment in which `gpugate` and one plugin are installed."""

    folder: Path
    env: Mapping[str, str]

    def run(self, *args: str, **env: str) -> Ended:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "gpugate", *args],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def start(self, *args: str, **env: str) -> Iterator[subprocess.Popen[str]]:
        """Begin a command that lasts; what still runs at the end is killed."""
        with subprocess.Popen(
            [sys.executable, "-m", "gpugate", *args],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def configure(self, more: str = "", text: str = CONFIG) -> Path:
        """Write ./gpugate.toml."""
        path = self.folder / "gpugate.toml"
        path.write_text(text + more)
        return path


def shell(folder: Path) -> Shell:
    """Make a shell in a folder."""
    work, home = folder / "work", folder / "home"
    work.mkdir()
    home.mkdir()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(REPO), str(install_plugin(folder / "site"))]),
        "PYTHONWARNINGS": "error",
    }
    return Shell(work, env)


def install_plugin(site: Path, value: str = "parked_plugin:Parked") -> Path:
    """Install the distribution gpugate-parked, whose provider is "parked", into a folder for sys.path."""
    about = site / "gpugate_parked-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gpugate-parked\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[gpugate.providers]\nparked = {value}\n")
    (site / "parked_plugin.py").write_text(_PLUGIN)
    return site
