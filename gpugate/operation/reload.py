"""`POST /api/v1/reload`: the configuration is read again, and what can change without a restart does.

All or nothing: the whole configuration is read and checked before anything of it is taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import structlog
from aiohttp import web
from attrs import define, evolve, field

from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.config import Settings
from gpugate.config.converter import fields_of
from gpugate.config.schema import LISTS, SECTIONS, Pod, PodSettings
from gpugate.core.policy import PodPolicy, QueuePolicy
from gpugate.errors import InvalidRequest, SettingsError
from gpugate.proxy.error_format import success
from gpugate.proxy.request_context import RequestContext

Providers = Mapping[str, Mapping[str, object]]

RELOADABLE = frozenset(
    {
        *LISTS,
        *(f"pod.{a.name}" for a in attrs.fields(PodPolicy) if a.name not in ("health_interval", "pull")),
        *(f"queue.{a.name}" for a in attrs.fields(QueuePolicy)),
        *(
            "bot.allowed_chats",
            "bot.ask_above_rate",
            "bot.news",
            "catalog.models",
            "catalog.when_stopped",
            "cost.monthly_budget",
            "cost.user_share",
            "log.level",
            "notify.urls",
            "notify.events",
            "server.cors_origins",
            "server.wake_paths",
        ),
    }
)
"""The keys whose new value is taken without a restart."""


@define
class Reloader:
    """Reads the configuration again on demand.

    Attributes:
        settings: those in force.
        read: reads and checks the configuration as at the start; None where there is none to read.
        appliers: each puts settings in force, its part of them; must not fail.
    """

    settings: Settings
    read: Callable[[], Settings] | None
    appliers: list[Callable[[Settings], None]] = field(factory=list)
    _one_at_a_time: asyncio.Lock = field(factory=asyncio.Lock)

    def routes(self) -> ApiRoutes:
        """Return the endpoint."""
        return {"/api/v1/reload": {"POST": ApiRoute(self.reload, scope="admin")}}

    async def reload(self, call: RequestContext) -> web.StreamResponse:
        """Read and apply; return which keys were applied, and which have to wait for a restart.

        Raises:
            InvalidRequest: the configuration is wrong; nothing of it was taken.
        """
        if self.read is None:
            raise InvalidRequest("this gateway has no configuration to read again")
        async with self._one_at_a_time:
            try:
                new = await asyncio.to_thread(self.read)
            except SettingsError as error:
                raise InvalidRequest("; ".join(error.complaints)) from error
            changed = [*changed_keys(self.settings, new)]
            applied = [key for key in changed if is_reloadable(key)]
            self.settings = merged(self.settings, new, applied)
            for apply in self.appliers if applied else ():
                apply(self.settings)
        restart = [key for key in changed if not is_reloadable(key)]
        structlog.get_logger().info("configuration read again", applied=applied, restart=restart)
        body = success({"applied": applied, "restart": restart}, call.request_id, time.time())
        return web.Response(body=body, content_type="application/json")


def is_reloadable(key: str) -> bool:
    """Return whether a key's new value is taken without a restart; that of a pod as that of `[pod]`."""
    section, _, rest = key.partition(".")
    return key in RELOADABLE or (section == "pods" and f"pod.{rest.partition('.')[2]}" in RELOADABLE)


def changed_keys(old: Settings, new: Settings) -> Iterator[str]:
    """Yield the dotted keys whose value differs, in the order of the sections; then those of the pods.

    A pod that came or went is `pods.<name>`, another order of the pods is `pods`.
    """
    for section, section_class in SECTIONS.items():
        before, after = getattr(old, section), getattr(new, section)
        for key in _fields_that_differ(before, after, section_class):
            yield f"{section}.{key}"
    yield from (name for name in LISTS if getattr(old, name) != getattr(new, name))
    yield from (f"providers.{key}" for key in _provider_keys_that_differ(old.providers, new.providers))
    pods = {pod.name: pod for pod in old.named_pods}, {pod.name: pod for pod in new.named_pods}
    if {*pods[0]} == {*pods[1]} and [*pods[0]] != [*pods[1]]:
        yield "pods"
    for name in dict.fromkeys((*pods[0], *pods[1])):
        if name in pods[0] and name in pods[1]:
            yield from _keys_of_pod(pods[0][name], pods[1][name])
        else:
            yield f"pods.{name}"


def _keys_of_pod(old: PodSettings, new: PodSettings) -> Iterator[str]:
    """Yield the keys that differ and that the pod itself has or had; the others are those of all pods."""
    keys = [*_fields_that_differ(old.pod, new.pod, Pod), *(["models"] if old.models != new.models else [])]
    keys += _provider_keys_that_differ(old.providers, new.providers)
    yield from (f"pods.{new.name}.{key}" for key in keys if key in _given(old) | _given(new))


def _given(pod: PodSettings) -> set[str]:
    return {*pod.own, *(key.removesuffix("_file") for key in pod.own)}


def _fields_that_differ(old: object, new: object, section_class: type[Any]) -> Iterator[str]:
    for key, attribute in fields_of(section_class).items():
        if getattr(old, attribute.name) != getattr(new, attribute.name):
            yield key


def _provider_keys_that_differ(old: Providers, new: Providers) -> Iterator[str]:
    """Yield `<provider>.<key>`."""
    for name in sorted({*old, *new}):
        before, after = _values(old, name), _values(new, name)
        keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        yield from (f"{name}.{key}" for key in keys)


def merged(old: Settings, new: Settings, keys: list[str]) -> Settings:
    """Return the old settings with the new values of these keys."""
    for key in keys:
        section, _, name = key.partition(".")
        if section == "pods":
            continue
        if not name:
            old = evolve(old, **{section: getattr(new, section)})
            continue
        part = evolve(getattr(old, section), **{name: getattr(getattr(new, section), name)})
        old = evolve(old, **{section: part})
    pods = {pod.name: pod for pod in new.named_pods}
    named = [_merged_pod(pod, pods[pod.name], keys) if pod.name in pods else pod for pod in old.named_pods]
    return evolve(old, named_pods=tuple(named))


def _merged_pod(old: PodSettings, new: PodSettings, keys: list[str]) -> PodSettings:
    """Return the pod with the new values of these keys, given for it or for all pods."""
    wanted = {f"pod.{key}": key for key in fields_of(Pod)}
    wanted |= {f"pods.{old.name}.{key}": key for key in fields_of(Pod)}
    taken = {wanted[key] for key in keys if key in wanted}
    pod = evolve(old.pod, **{key: getattr(new.pod, key) for key in taken})
    own = frozenset((old.own - taken) | (new.own & taken))
    return evolve(old, pod=pod, own=own)


def _values(providers: Providers, provider: str) -> dict[str, object]:
    section = providers.get(provider, {})
    return {key: getattr(given, "value", given) for key, given in section.items()}
