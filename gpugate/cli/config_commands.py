"""`gpugate init`, `check` and `providers`: the configuration and the installed plugins."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from gpugate.cli.cost_commands import amount
from gpugate.cli.errors import OK, WRONG, CliError
from gpugate.cli.settings import config_path, searched, settings_for_serving, url_of
from gpugate.cli.token_commands import describe_end
from gpugate.config import Settings, commented_config, provider_config, show_duration, warnings
from gpugate.config.derive import named_models, pods_of, state_folder
from gpugate.config.schema import PodSettings
from gpugate.errors import SettingsError
from gpugate.lifecycle.dead_man_switch import lease_digest
from gpugate.operation.schedules import in_words as schedule_in_words
from gpugate.operation.wake_rules import in_words
from gpugate.proxy.addresses import CannotListen, listening_sockets

if TYPE_CHECKING:
    from gpugate.provider_api import Provider
    from gpugate.providers.registry import Description


def init(args: Namespace) -> int:
    """Write a commented configuration, readable by its owner only; an existing one only with --force."""
    if args.file and args.config and args.file != args.config:
        raise CliError("init: name one file, by itself or with --config", WRONG)
    path = Path(args.file or args.config or "gpugate.toml")
    text = commented_config(_installed_providers())
    try:
        (_replace if args.force else _create)(path, text)
    except FileExistsError:
        raise CliError(f"{path} exists already; --force overwrites it") from None
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from None
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
    """Write a new file; a full disk leaves no part of it. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _replace(path: Path, text: str) -> None:
    """Replace a file atomically, so that a full disk does not destroy the old one."""
    descriptor, draft = tempfile.mkstemp(prefix=".gpugate-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def check(args: Namespace) -> int:
    """Validate the configuration and print a summary; with --live also make requests to what it names."""
    settings = settings_for_serving(args)
    about_models = [line for pod in settings.pods for line in _models(settings, pod)]
    print(f"ok: {config_path(args) or f'the environment (no file at {searched()})'}")
    for line in (*_summary(settings), *about_models):
        print(f"  {line}")
    if problem := _listening_problem(settings):
        print(f"  note: {problem}")
    for key, warning in warnings(settings):
        print(f"  note: {key}: {warning}")
    if not args.live:
        return OK
    from gpugate.cli.live_check import check_live

    return check_live(settings)


def _summary(settings: Settings) -> list[str]:
    auth, bot, zone = settings.auth, settings.bot, settings.cost.timezone
    signers = ["a secret"] * bool(auth.secret) + ["an identity provider's keys"] * bool(auth.jwks_url)
    token = os.environ.get("GPUGATE_TOKEN", "").strip()
    what = "the pod is" if len(settings.pods) == 1 else "the pods are"
    now = datetime.now(UTC)
    return [
        f"listens at {url_of(settings)}",
        *_of_each(settings, _providers),
        f"tokens: signed with {' or '.join(signers)} ({', '.join(auth.algorithms)})",
        *_of_each(settings, _idle_stop),
        f"price: the provider's; where it tells none: {_price(settings)}",
        f"budget: {_budget(settings)}",
        f"when gpugate ends: {what} {'stopped' if settings.server.on_exit == 'stop' else 'left running'}",
        f"state: {settings.state.dir}",
        f"bot: {bot.mode if bot.enabled else 'off'}",
        *_of_each(settings, _lease),
        *(in_words(number, rule, zone) for number, rule in enumerate(settings.wake, 1)),
        *(schedule_in_words(number, one, zone, now) for number, one in enumerate(settings.schedule, 1)),
        *([f"GPUGATE_TOKEN: {describe_end(token, time.time())}"] if token else []),
    ]


def _of(pod: PodSettings, settings: Settings) -> str:
    """Return what begins a line about a pod; empty where it is the only one."""
    return "" if len(settings.pods) == 1 else f"pod {pod.name}: "


def _of_each(settings: Settings, lines: Callable[[PodSettings], Iterator[str]]) -> Iterator[str]:
    return (f"{_of(pod, settings)}{line}" for pod in settings.pods for line in lines(pod))


def _providers(pod: PodSettings) -> Iterator[str]:
    yield f"provider: {', then '.join(pod.pod.provider)}"
    if pod.models:
        yield f"models: {', '.join(pod.models)}"


def _idle_stop(settings: PodSettings) -> Iterator[str]:
    pod = settings.pod
    text = f"idle stop: {show_duration(pod.idle_timeout)} after the last answer has ended"
    if pod.idle_policy == "learned":
        text += ", sooner where past use says so"
    yield text + (f"; after {show_duration(pod.max_session)} in any case" if pod.max_session else "")


def _lease(pod: PodSettings) -> Iterator[str]:
    if pod.pod.lease:
        yield f"lease: set GPUGATE_LEASE={lease_digest(pod.pod.lease)} in the pod"


def _price(settings: Settings) -> str:
    cost = settings.cost
    rate = f"{amount(cost.hourly_rate)} {cost.currency} an hour" if cost.hourly_rate else "unknown"
    return f"{rate} (cost.hourly_rate)"


def _budget(settings: Settings) -> str:
    cost = settings.cost
    if not cost.monthly_budget:
        return "none"
    share = f", and {cost.user_share:.0%} of it for each user" if cost.user_share else ""
    return f"no new start after {amount(cost.monthly_budget)} {cost.currency} in a month{share}"


def _listening_problem(settings: Settings) -> str | None:
    """Say why `serve` could not listen now; a gateway that runs already has its port, too."""
    try:
        sockets = listening_sockets(settings.server.host, settings.server.port)
    except CannotListen as error:
        return f"{error}, unless it is this gateway"
    for one in sockets:
        one.close()
    return None


def _models(settings: Settings, pod: PodSettings) -> Iterator[str]:
    """Say with what GPU memory a pod is made, and what clients see while nothing was learned of its models.

    Raises:
        SettingsError: the GPU is to be chosen by the models, and no size of them is known.
    """
    from gpugate.lifecycle.gpu_need import gpu_need_of
    from gpugate.ollama.catalog_cache import CatalogCache
    from gpugate.providers import registry

    kinds = {name: registry.find(name) for name in pod.pod.provider}
    configs = {name: provider_config(settings, name, kind.Config, pod) for name, kind in kinds.items()}
    folder = state_folder(Path(settings.state.dir), pod)
    catalog = CatalogCache(
        settings.catalog.when_stopped,
        settings.catalog.models,
        folder / "catalog.json",
        named=named_models(settings, pod, kinds.values()),
        pods=[*pods_of(pod, configs).values()],
    )
    need = gpu_need_of(pod.pod.pull, catalog.sizes, folder / "gpu-need.json", print, kinds, configs)
    if need is not None:
        yield f"{_of(pod, settings)}GPU: the cheapest on offer with {need.need()}"
    if catalog.hint:
        yield f"note: {_of(pod, settings)}{catalog.hint}"


def providers(args: Namespace) -> int:
    """List the installed provider plugins; a broken one with its error."""
    from gpugate.providers import registry

    plugins = registry.describe_all()
    if args.json:
        print(json.dumps([_as_json(one) for one in plugins]))
        return OK
    width = max((len(one.plugin.name) for one in plugins), default=0)
    for one in plugins:
        can = f"broken: {one.error}" if one.capabilities is None else _capabilities_text(_as_json(one))
        print(f"{one.plugin.name:<{width}}  {one.plugin.source}  {can}".rstrip())
    if not plugins:
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


def _capabilities_text(row: dict[str, object]) -> str:
    capabilities = row["capabilities"]
    assert isinstance(capabilities, dict)
    words = [key if value is True else f"{key}={value:g}" for key, value in capabilities.items() if value]
    return ", ".join(words)
