"""Finds the installed provider plugins and imports the one that is used.

A plugin is an entry point of the group `gpugate.providers`, value `package:Class`.
"""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

import attrs
from attrs import field, frozen

from gpugate.errors import SettingsError
from gpugate.install_hints import checkout_folder, install_command
from gpugate.provider_api import Capabilities, Provider

GROUP = "gpugate.providers"
_KEY = "pod.provider"


@frozen
class Installed:
    """An installed plugin; it may still be broken.

    Attributes:
        name: the value of `pod.provider` that selects it, lower-case.
        distribution: the distribution package that it belongs to.
        version: of that distribution.
        value: the entry point's value, `package:Class`.
    """

    name: str
    distribution: str
    version: str
    value: str
    _entry_point: EntryPoint = field(repr=False, eq=False)

    @property
    def source(self) -> str:
        """Distribution and version, such as "gpugate 0.1.0"."""
        return f"{self.distribution} {self.version}"

    def load(self) -> type[Provider]:
        """Import it and return its class. Raises: SettingsError, it cannot be imported or is no provider."""
        try:
            found = self._entry_point.load()
        except (Exception, SystemExit) as error:  # a plugin's module can do anything
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
    """A plugin with its capabilities, or with the reason why it cannot be loaded (`gpugate providers`)."""

    plugin: Installed
    capabilities: Capabilities | None = None
    error: str | None = None


def installed() -> list[Installed]:
    """Return all installed plugins, sorted by name, without importing them."""
    return sorted((_installed(point) for point in entry_points(group=GROUP)), key=_order)


def find(name: str) -> type[Provider]:
    """Import the plugin of this name and return its class.

    Raises: SettingsError, no plugin or two plugins have this name, or it is broken.
    """
    return _the_one(name, installed()).load()


def describe_all() -> list[Description]:
    """Return all plugins with their capabilities; a broken one with its error."""
    plugins = installed()
    return [_description(plugin, plugins) for plugin in plugins]


def max_replicas(kind: type[Provider]) -> int:
    """Return how many replicas a pod of this class can have at most; 1 if it has no `scale` of its own."""
    return 1 if kind.scale is Provider.scale else kind.capabilities.max_replicas


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
        command = install_command("gpugate")
        return f"{_KEY}: no provider {wanted!r}, nor any other: is gpugate installed ({command})?"
    names = ", ".join(f"{plugin.name} ({plugin.source})" for plugin in plugins)
    text = f"{_KEY}: no provider {wanted!r} is installed; there are: {names}"
    distribution = f"gpugate-{wanted}"
    near = get_close_matches(wanted, [plugin.name for plugin in plugins], 1)
    if near and checkout_folder(distribution) is None:
        return f"{text}; did you mean {near[0]!r}?"
    return f"{text}; try: {install_command(distribution)}"


def _description(plugin: Installed, plugins: list[Installed]) -> Description:
    try:
        return Description(plugin, capabilities=_the_one(plugin.name, plugins).load().capabilities)
    except SettingsError as error:
        return Description(plugin, error=str(error).removeprefix(f"{_KEY}: "))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
