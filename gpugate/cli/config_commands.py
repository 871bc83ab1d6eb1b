"""`gpugate init`, `check` and `providers`: what is configured and installed; starts and changes no pod."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from gpugate.cli.errors import OK, WRONG, Failure
from gpugate.cli.settings import config_path, settings_for_serving
from gpugate.cli.urls import url_of
from gpugate.config import Settings, commented_config, warnings
from gpugate.errors import SettingsError
from gpugate.lifecycle.dead_man_switch import lease_digest

if TYPE_CHECKING:
    from gpugate.provider_api import Provider
    from gpugate.providers.registry import Description


def init(args: Namespace) -> int:
    """Write a commented configuration, for its owner's eyes only, over nothing that is there."""
    if args.file and args.config and args.file != args.config:
        raise Failure("init: name one file, by itself or with --config", WRONG)
    path = Path(args.file or args.config or "gpugate.toml")
    text = commented_config(_installed_providers())
    try:
        (_replace if args.force else _create)(path, text)
    except FileExistsError:
        raise Failure(f"{path} exists already; --force overwrites it") from None
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from None
    named = "" if path == Path("gpugate.toml") else f" --config {path}"
    print(f"wrote {path}; set auth.secret and pod.provider in it, then: gpugate check{named}")
    return OK


def _installed_providers() -> dict[str, type[Provider]]:
    """Return the provider plugins that can be loaded; `gpugate providers` says why the others cannot."""
    from gpugate.providers import registry

    found = {}
    for plugin in registry.installed():
        with contextlib.suppress(SettingsError):
            found[plugin.name] = registry.find(plugin.name)
    return found


def _create(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _replace(path: Path, text: str) -> None:
    """Write a file in one step: a full disk must not cost the old one."""
    if path.is_dir():
        raise IsADirectoryError(None, "Is a directory")
    descriptor, draft = tempfile.mkstemp(prefix=".gpugate-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def check(args: Namespace) -> int:
    """Validate the configuration and say what it comes to; with --live ask whom it names."""
    settings = settings_for_serving(args)
    source = config_path(args) or "the environment"
    print(f"ok: {source}")
    for line in _summary(settings):
        print(f"  {line}")
    for key, warning in warnings(settings):
        print(f"  note: {key}: {warning}")
    if not args.live:
        return OK
    from gpugate.cli.live_check import check_live

    return check_live(settings)


def _summary(settings: Settings) -> list[str]:
    auth, bot = settings.auth, settings.bot
    ways = ["a secret"] * bool(auth.secret) + ["an identity provider's keys"] * bool(auth.jwks_url)
    lease = [f"lease: set GPUGATE_LEASE={lease_digest(settings.pod.lease)} in the pod"]
    return [
        f"listens at {url_of(settings)}",
        f"provider: {', then '.join(settings.pod.provider)}",
        f"tokens: signed with {' or '.join(ways)} ({', '.join(auth.algorithms)})",
        f"state: {settings.state.dir}",
        f"bot: {bot.mode if bot.enabled else 'off'}",
        *(lease if settings.pod.lease else []),
    ]


def providers(args: Namespace) -> int:
    """List the provider plugins that are installed; a broken one is listed with what is wrong."""
    from gpugate.providers import registry

    found = registry.describe_all()
    if args.json:
        print(json.dumps([_as_json(one) for one in found]))
        return OK
    width = max((len(one.plugin.name) for one in found), default=0)
    for one in found:
        can = f"broken: {one.error}" if one.capabilities is None else _in_words(_as_json(one))
        print(f"{one.plugin.name:<{width}}  {one.plugin.source}  {can}".rstrip())
    if not found:
        print("no provider is installed")
    return OK


def _as_json(one: Description) -> dict[str, object]:
    """Return a plugin's row; `error` only for a broken one, whose capabilities are null."""
    row: dict[str, object] = {
        "name": one.plugin.name,
        "distribution": one.plugin.distribution,
        "version": one.plugin.version,
        "capabilities": attrs.asdict(one.capabilities) if one.capabilities else None,
    }
    return row | ({"error": one.error} if one.error else {})


def _in_words(row: dict[str, object]) -> str:
    capabilities = row["capabilities"]
    assert isinstance(capabilities, dict)
    words = [key if value is True else f"{key}={value:g}" for key, value in capabilities.items() if value]
    return ", ".join(words)
