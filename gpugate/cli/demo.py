"""`gpugate demo`: runs the gateway with a simulated pod and prints how to try it; needs no configuration."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from argparse import Namespace
from pathlib import Path

import attrs

from gpugate.cli.errors import OK, CliError
from gpugate.cli.serve import run
from gpugate.cli.settings import config_of, url_of
from gpugate.cli.token_commands import sign_token
from gpugate.config import Settings, SourcedValue, load_settings, provider_config, show_duration
from gpugate.install_hints import install_command
from gpugate.lifecycle import state_dir
from gpugate.providers import registry
from gpugate.proxy.addresses import CannotListen, listening_sockets

_TOKEN_LIFE_S = 30 * 86_400.0  # as long as `token issue` says
_FLAGS = {"port": "server.port", "cold_start": "providers.demo.cold_start", "idle": "pod.idle_timeout"}
_MODEL = "llama3.2:3b"

_INSTRUCTIONS = """\
gpugate demo at {url}, in front of a SIMULATED pod: no GPU, no model and no bill.
Its answers are canned text. The pod is off now; the first request waits about {cold_start} while it starts.
{idle} after the last answer it is stopped; the log has the cost, as if {rate:g} USD an hour were real.

A token for this demo, good for 30 days:
  {token}

Try it:
  {curl}

See what the pod does, with the token: {url}/dashboard

Open WebUI, Admin Panel > Settings > Connections > Ollama API:
  URL  {url}
  Key  the token above
(in a container: give it --network=host, for the gateway listens on this machine only)
or as environment: OLLAMA_BASE_URL={url} OLLAMA_API_CONFIGS='{{"0": {{"key": "<the token>"}}}}'

Ctrl-C ends it, the simulated pod included.
"""
_ENDED = "gpugate demo has ended, and its simulated pod is off. For a real pod: gpugate init, gpugate serve."


def demo(args: Namespace) -> int:
    """Run the gateway on the simulated pod; print a token and how to use it first.

    Raises: CliError, the distribution gpugate-demo is not installed.
    """
    if all(plugin.name != "demo" for plugin in registry.installed()):
        command = install_command("gpugate-demo", "gpugate[demo]")
        raise CliError(f"the demo's simulated pod is not installed: {command}")
    settings = _with_free_port(_settings(args))
    status = run(settings, _instructions(settings, sign_token(settings, "demo", None, _TOKEN_LIFE_S)))
    if status == OK:
        with contextlib.suppress(OSError):  # a terminal that is gone
            print(_ENDED, file=sys.stderr)
    return status


def _settings(args: Namespace) -> Settings:
    """Return the demo's settings: from variables, flags and --config; not from a file that is found."""
    path = Path(args.config) if args.config else None
    overrides: dict[str, object] = {"pod.provider": ("demo",)}
    overrides |= {
        key: SourcedValue(getattr(args, flag), f"--{flag.replace('_', '-')}", is_text=True)
        for flag, key in _FLAGS.items()
        if getattr(args, flag) is not None
    }
    draft = load_settings(
        path, os.environ, overrides=overrides, complete=False, state_problem=state_dir.check, several=False
    )
    folder = Path(draft.state.dir).absolute() / "demo"
    overrides["state.dir"] = str(folder)
    if not draft.auth.secret:
        overrides["auth.secret"] = demo_secret(folder)
    return load_settings(
        path,
        os.environ,
        overrides=overrides,
        config_of=config_of,
        state_problem=state_dir.check,
        several=False,
    )


def _with_free_port(settings: Settings) -> Settings:
    """Return settings whose port can be listened on, so that no instructions are printed in vain.

    Port 0 becomes a free port here, because the instructions name it.
    """
    server = settings.server
    try:
        probes = listening_sockets(server.host, server.port)
    except CannotListen as error:
        raise CliError(str(error)) from error
    port: int = probes[0].getsockname()[1]
    for probe in probes:
        probe.close()
    return attrs.evolve(settings, server=attrs.evolve(server, port=port))


def demo_secret(state_dir: Path) -> str:
    """Return the demo's secret, kept in `<state dir>/demo-secret` for the owner's eyes only.

    Raises:
        CliError: it can be neither read nor written.
    """
    path = state_dir / "demo-secret"
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write_once(path, secrets.token_hex(32))
        path.chmod(0o600)
        secret = path.read_text().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise CliError(f"the demo's secret {path} cannot be kept: {reason}") from error
    if len(secret) < 32:
        raise CliError(f"{path} is damaged: delete it, and the demo makes a new one")
    return secret


def _write_once(path: Path, secret: str) -> None:
    """Write a file in one step; if another demo was faster, its secret stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secret + "\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)


def _instructions(settings: Settings, token: str) -> str:
    url, pod = url_of(settings), provider_config(settings, "demo", config_of("demo"))
    body = json.dumps({"model": _MODEL, "messages": [{"role": "user", "content": "Why is the sky blue?"}]})
    curl = f"curl -N {url}/api/chat -H 'Authorization: Bearer {token}' -d '{body}'"
    return _INSTRUCTIONS.format(
        url=url,
        token=token,
        curl=curl,
        cold_start=show_duration(pod.cold_start),
        idle=show_duration(settings.pod.idle_timeout),
        rate=pod.hourly_rate,
    )
