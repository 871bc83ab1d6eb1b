"""`POST /api/v1/reload`: the configuration is read again, and what can change without a restart does.

All or nothing: the whole configuration is read and checked before anything of it is taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import attrs
import structlog
from aiohttp import web
from attrs import define, evolve, field

from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.config import Settings
from gpugate.config.converter import fields_of
from gpugate.config.schema import LISTS, SECTIONS
from gpugate.core.policy import PodPolicy, QueuePolicy
from gpugate.errors import InvalidRequest, SettingsError
from gpugate.proxy.error_format import success
from gpugate.proxy.request_context import RequestContext

RELOADABLE = frozenset(
    {
        *LISTS,
        *(f"pod.{a.name}" for a in attrs.fields(PodPolicy) if a.name != "health_interval"),
        *(f"queue.{a.name}" for a in attrs.fields(QueuePolicy)),
        *(
            "cost.monthly_budget",
            "cost.user_share",
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
            applied = [key for key in changed if key in RELOADABLE]
            self.settings = merged(self.settings, new, applied)
            for apply in self.appliers if applied else ():
                apply(self.settings)
        restart = [key for key in changed if key not in RELOADABLE]
        structlog.get_logger().info("configuration read again", applied=applied, restart=restart)
        body = success({"applied": applied, "restart": restart}, call.request_id, time.time())
        return web.Response(body=body, content_type="application/json")


def changed_keys(old: Settings, new: Settings) -> Iterator[str]:
    """Yield the dotted keys whose value differs, in the order of the sections."""
    for section, section_class in SECTIONS.items():
        before, after = getattr(old, section), getattr(new, section)
        for key, attribute in fields_of(section_class).items():
            if getattr(before, attribute.name) != getattr(after, attribute.name):
                yield f"{section}.{key}"
    yield from (name for name in LISTS if getattr(old, name) != getattr(new, name))
    for name in sorted({*old.providers, *new.providers}):
        before, after = _values(old, name), _values(new, name)
        keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        yield from (f"providers.{name}.{key}" for key in keys)


def merged(old: Settings, new: Settings, keys: list[str]) -> Settings:
    """Return the old settings with the new values of these keys."""
    for key in keys:
        section, _, name = key.partition(".")
        if not name:
            old = evolve(old, **{section: getattr(new, section)})
            continue
        part = evolve(getattr(old, section), **{name: getattr(getattr(new, section), name)})
        old = evolve(old, **{section: part})
    return old


def _values(settings: Settings, provider: str) -> dict[str, object]:
    section = settings.providers.get(provider, {})
    return {key: getattr(given, "value", given) for key, given in section.items()}
