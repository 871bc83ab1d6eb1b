"""What `gpugate setup` writes beside a configuration: a systemd user unit or a compose file."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from gpugate.cli.errors import CliError

SERVICES = ("none", "systemd", "compose")
_NAMES = {"systemd": "gpugate.service", "compose": "compose.yaml"}

_UNIT = """\
# Written by gpugate setup. A unit for the whole machine, with hardening: examples/systemd in the checkout.
[Unit]
Description=gpugate, an Ollama endpoint in front of a GPU pod

[Service]
Type=notify
ExecStart={command}
# An orderly end stops the pod and waits until that is confirmed: `serve` logs how long it may take.
TimeoutStopSec=120
WatchdogSec=60
Restart=on-failure
RestartSec=2
# 2 is a mistake in the configuration: starting again does not mend it.
RestartPreventExitStatus=2
NoNewPrivileges=yes
UMask=0077

[Install]
WantedBy=default.target
"""

_COMPOSE = """\
# Written by gpugate setup. With Open WebUI in front, and secrets as files: examples/compose in the checkout.
services:
  gpugate:
    image: gpugate # made in a checkout by: docker build -t gpugate .
    user: "{user}" # who may read the configuration
    restart: unless-stopped
    stop_grace_period: 2m # an orderly end stops the pod and waits for the proof
    read_only: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    tmpfs: [/tmp]
    volumes:
      - ./{config}:/etc/gpugate/gpugate.toml:ro
      - ./gpugate-state:/var/lib/gpugate
    ports: ["127.0.0.1:11434:11434"]
"""


def refuse_existing(kind: str, config: Path) -> None:
    """Raise CliError if the service's file is there already."""
    if kind in _NAMES and (file := config.parent / _NAMES[kind]).exists():
        raise CliError(f"{file} exists already; --force overwrites it")


def write_service(kind: str, config: Path, *, replace: bool) -> list[str]:
    """Write the file of a service beside the configuration; return what to do with it, as lines.

    Raises:
        CliError: the file exists already, or cannot be written.
    """
    folder = config.parent
    if kind == "systemd":
        argv = [sys.executable, "-m", "gpugate", "serve", "--config", str(config.resolve())]
        unit = folder / _NAMES[kind]
        _put(
            unit,
            _UNIT.format(command=shlex.join(argv).replace("%", "%%").replace("$", "$$")),
            replace=replace,
        )
        enable = "systemctl --user daemon-reload && systemctl --user enable --now gpugate"
        into = "~/.config/systemd/user"
        return [
            f"wrote {unit}: mkdir -p {into} && cp {unit} {into}/ && {enable}",
            "  loginctl enable-linger lets it run while you are logged out",
        ]
    if kind == "compose":
        user = f"{os.getuid()}:{os.getgid()}"
        file = folder / _NAMES[kind]
        _put(file, _COMPOSE.format(user=user, config=config.name), replace=replace)
        (folder / "gpugate-state").mkdir(mode=0o700, exist_ok=True)
        return [f"wrote {file}: docker compose up -d"]
    return []


def _put(path: Path, text: str, *, replace: bool) -> None:
    try:
        with path.open("w" if replace else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise CliError(f"{path} exists already; --force overwrites it") from None
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from None
