"""Which provider plugins are installed, and the class of the one that is wanted; no other plugin is imported.

A plugin is an entry point of `gpugate.providers`, value `package:Class` (docs/api.md#provider-plugins).
"""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

import attrs
from attrs import field, frozen

from gpugate.errors import SettingsError
from gpugate.provider_api import Capabilities, Provider

GROUP = "gpugate.providers"
_KEY = "pod.provider"
_OUR_OWN = {"runpod": "gpugate-runpod", "vastai": "gpugate-vastai"}  # plugins of this tree, by name


@frozen
class Installed:
    """A plugin that is installed; it may still be broken.

    Attributes:
        name: what `pod.provider` calls it, lower-case.
        distribution: the package that brought it.
        version: of that package.
        value: the entry point's value, `package:Class`.
    """

    name: str
    distribution: str
    version: str
    value: str
    _entry_point: EntryPoint = field(repr=False, eq=False)

    @property
    def source(self) -> str:
        """Where it comes from, for people: "gpugate 0.1.0"."""
        return f"{self.distribution} {self.version}"

    def load(self) -> type[Provider]:
        """Import it. SettingsError: it cannot be imported, or is no provider."""
        try:
            found = self._entry_point.load()
        except (Exception, SystemExit) as error:  # anything may happen in a stranger's module
            raise self._broken(f"cannot be loaded: {_one_line(error)}") from error
        if not (isinstance(found, type) and issubclass(found, Provider)):
            raise self._broken(f"is no provider: {self.value} is not a subclass of gpugate.Provider")
        if inspect.isabstract(found):
            missing = ", ".join(sorted(found.__abstractmethods__))
            raise self._broken(f"is incomplete: {self.value} does not have {missing}")
        if not attrs.has(found.Config):
            raise self._broken(f"is no provider: {self.value}.Config is not an attrs class")
        return found

    def _broken(self, why: str) -> SettingsError:
        return SettingsError([f"{_KEY}: the plugin {self.name!r} ({self.source}) {why}"])


@frozen
class Description:
    """A plugin and what it can do, or why it cannot be told (`gpugate providers`)."""

    plugin: Installed
    capabilities: Capabilities | None = None
    error: str | None = None


def installed() -> list[Installed]:
    """Every plugin that is installed, by name; none of them is imported."""
    return sorted((_installed(point) for point in entry_points(group=GROUP)), key=_order)


def find(name: str) -> type[Provider]:
    """The class of the provider of this name; only its plugin is imported.

    Raises: SettingsError, there is no such plugin, there are two, or it is broken.
    """
    return _the_one(name, installed()).load()


def describe(name: str) -> Capabilities:
    """What the provider of this name can do. Raises: SettingsError as `find` does."""
    return find(name).capabilities


def describe_all() -> list[Description]:
    """Every plugin with its capabilities; a broken one with its error, and it does no harm."""
    plugins = installed()
    return [_description(plugin, plugins) for plugin in plugins]


def _installed(point: EntryPoint) -> Installed:
    distribution, version = _about(point, "Name"), _about(point, "Version")
    return Installed(point.name.lower(), distribution, version, point.value, point)


def _about(point: EntryPoint, key: str) -> str:
    # A damaged installation may have lost its name or version; that must not hide the others.
    if point.dist is None or key not in point.dist.metadata:
        return "unknown"
    return point.dist.metadata[key]


def _order(plugin: Installed) -> tuple[str, str]:
    return plugin.name, plugin.distribution


def _the_one(name: str, plugins: list[Installed]) -> Installed:
    wanted = name.strip().lower()
    match [plugin for plugin in plugins if plugin.name == wanted]:
        case [plugin]:
            return plugin
        case []:
            raise SettingsError([_unknown(wanted, plugins)])
        case several:
            sources = " and ".join(plugin.source for plugin in several)
            raise SettingsError(
                [f"{_KEY}: {wanted!r} is installed more than once, by {sources}: uninstall one"]
            )


def _unknown(wanted: str, plugins: list[Installed]) -> str:
    if not plugins:
        return f"{_KEY}: no provider {wanted!r}, nor any other: is gpugate installed (pip install gpugate)?"
    names = ", ".join(f"{plugin.name} ({plugin.source})" for plugin in plugins)
    text = f"{_KEY}: no provider {wanted!r} is installed; there are: {names}"
    if wanted in _OUR_OWN:
        return f"{text}; try: pip install {_OUR_OWN[wanted]}"
    near = get_close_matches(wanted, [plugin.name for plugin in plugins], 1)
    return f"{text}; did you mean {near[0]!r}?" if near else text


def _description(plugin: Installed, plugins: list[Installed]) -> Description:
    try:
        return Description(plugin, capabilities=_the_one(plugin.name, plugins).load().capabilities)
    except SettingsError as error:
        return Description(plugin, error=str(error).removeprefix(f"{_KEY}: "))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
