"""Sections below sections: `[providers.<name>]`, `[pods.<name>]` and `[pods.<name>.<provider>]`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import attrs
from attrs import evolve

from gpugate.config.complaints import Complaints
from gpugate.config.converter import fields_of, secret_files_of, structure
from gpugate.config.schema import NamedPod, Pod, PodSettings, Settings
from gpugate.config.secret_files import read_secret_files, use_credentials, use_provider_credentials
from gpugate.config.sources import Raw, SourcedValue, variable_of
from gpugate.config.validators import InvalidValue
from gpugate.core.policy import replica_range
from gpugate.errors import SettingsError

C = TypeVar("C")
ConfigOf = Callable[[str], type[Any]]
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
ENTRY_KEYS = ("spot",)
"""What an entry of a `provider` list may say beside the name; a key of the provider's section."""
_FIXED = (("pod_id",), ("instance_id",), ("name", "namespace", "kind", "context"), ("ollama_url",))
_MADE = (("instance", "api_key"),)
"""Fields of a provider's Config that say which machine it means; made ones are told apart by their names."""


def provider_sections(raw: Any, complaints: Complaints) -> dict[str, dict[str, SourcedValue]]:
    """Return `[providers.<name>]` by name, not yet structured: their classes may not be installed."""
    return _tables(raw, "providers", complaints)


def pod_sections(raw: Any, complaints: Complaints) -> dict[str, Raw]:
    """Return `[pods.<name>]` by name, those that may be called so."""
    keys = {*fields_of(Pod), *secret_files_of(Pod)}
    if isinstance(raw, dict):
        for name in [name for name in raw if name in keys]:
            value = raw.pop(name)
            given = value if isinstance(value, SourcedValue) else None
            problem = f"a pod may not have the name of a key of [pod]; did you mean pod.{name}?"
            complaints.add(f"pods.{name}", problem, given, hint=False)
    pods = _tables(raw, "pods", complaints)
    for name in [name for name in pods if not _NAME.fullmatch(name)]:
        del pods[name]
        same = [other for other in pods if variable_of(other) == variable_of(name)]
        also = f"; in a variable it would be the same as {same[0]}" if same else ""
        problem = f'its name must be of a-z and 0-9, with single "-" between them{also}'
        complaints.add(f"pods.{name}", problem, hint=False)
    return pods


def _tables(raw: Any, section: str, complaints: Complaints) -> dict[str, Raw]:
    if isinstance(raw, SourcedValue):
        complaints.add(section, f"must be sections, [{section}.<name>]", raw, hint=False)
        return {}
    for name, table in raw.items():
        if isinstance(table, SourcedValue):
            variable = variable_of(f"{section}.<name>.<key>")
            how = f"[{section}.{name}], with keys (a variable is {variable})"
            complaints.add(f"{section}.{name}", f"must be a section, {how}", table, hint=False)
    return {name: table for name, table in raw.items() if isinstance(table, dict)}


def take_provider_tables(keys: Raw, sections: Raw, path: str, complaints: Complaints) -> None:
    """Replace `{name = "vastai", spot = true}` in a list by the name; the key goes to the provider's section.

    Args:
        keys: of `[pod]` or of `[pods.<name>]`; changed.
        sections: of its providers, by name; changed.
        path: of the list, for complaints.
    """
    given = (
        keys.get("provider") if isinstance(keys, dict) else None
    )  # it is told elsewhere that it must be one
    entries = given.value if isinstance(given, SourcedValue) else None
    if given is None or not isinstance(entries, list):
        return
    names = []
    for entry in entries:
        if isinstance(entry, dict) and isinstance(name := entry.get("name"), str):
            if unknown := sorted({*entry} - {"name", *ENTRY_KEYS}):
                complaints.add(
                    path, f"{unknown[0]} is no key of an entry; there is {', '.join(ENTRY_KEYS)}", given
                )
            more = {key: evolve(given, value=entry[key]) for key in ENTRY_KEYS if key in entry}
            sections[name] = {**sections.get(name, {}), **more}
            names.append(name)
        else:
            names.append(entry)
    keys["provider"] = evolve(given, value=names)


def pod_of(
    name: str,
    raw: Raw,
    default: Pod,
    credentials: Mapping[str, SourcedValue],
    complaints: Complaints,
) -> PodSettings:
    """Return the pod of `[pods.<name>]`; of its providers only the keys that are given there.

    Args:
        raw: the section's keys and, below them, the sections of providers.
        default: `[pod]`.
    """
    own = {key: value for key, value in raw.items() if isinstance(value, SourcedValue)}
    providers = {key: value for key, value in raw.items() if isinstance(value, dict)}
    for key in sorted({*fields_of(NamedPod), *secret_files_of(NamedPod)} & {*providers}):
        complaints.add(f"pods.{name}.{key}", "must be a value, is a section", hint=False)
        del providers[key]
    file_name = f"pods_{name}".replace("-", "_")
    sections = {file_name: own}
    use_credentials(sections, {file_name: NamedPod}, credentials)
    read_secret_files(own, NamedPod, lambda key: f"pods.{name}.{key}", complaints)
    structured, problems = structure(own, NamedPod)
    complaints.add_problems(problems, "pods", name)
    given = structured or NamedPod()
    mine = [k for k in fields_of(Pod) if k in own and not complaints.is_faulty(f"pods.{name}.{k}")]
    pod = evolve(default, **{key: getattr(given, key) for key in mine})
    use_provider_sections(providers, pod.provider, file_name, credentials)
    of_providers = [f"{provider}.{key}" for provider, keys in providers.items() for key in keys]
    own_keys = frozenset([*own, *of_providers])
    return PodSettings(name=name, pod=pod, models=given.models, providers=providers, own=own_keys)


def use_provider_sections(
    providers: Raw, names: Iterable[str], prefix: str, credentials: Mapping[str, SourcedValue]
) -> None:
    """Add to the sections of these providers what variables and a service manager give for them."""
    for name in names:  # a variable's name has no "-"
        if "-" in name and (of_variables := providers.pop(name.replace("-", "_"), None)):
            providers[name] = {**providers.get(name, {}), **of_variables}
    use_provider_credentials(providers, names, credentials, prefix)


def with_defaults(pod: PodSettings, providers: Mapping[str, Raw]) -> PodSettings:
    """Return the pod with the keys of `[providers.<name>]` below its own ones.

    A secret counts as one key, whether the secret itself is given or its file.
    """
    merged = {name: dict(section) for name, section in providers.items()}
    for name, own in pod.providers.items():
        section = merged.setdefault(name, {})
        for key in own:
            section.pop(f"{key}_file", None)
            section.pop(key.removesuffix("_file"), None)
        section.update(own)
    return evolve(pod, providers=merged)


def check_providers(
    settings: Settings,
    config_of: ConfigOf,
    complaints: Complaints,
    max_replicas_of: Callable[[str], int] | None = None,
) -> None:
    """Complain about the sections of all pods' providers, and about pods that are the same machine.

    Args:
        config_of: returns a provider's Config class by its name; raises SettingsError if there is none.
        max_replicas_of: returns how many replicas a provider can have at most; None: not to be checked.
    """
    machines = dict[object, PodSettings]()
    for pod in settings.pods:
        for name in pod.pod.provider:
            try:
                config_class = config_of(name)
            except SettingsError as error:
                for line in error.complaints:
                    complaints.add(pod.path_of("provider"), line.removeprefix("pod.provider: "), hint=False)
                continue
            if max_replicas_of is not None:
                _check_replicas(pod, name, max_replicas_of(name), complaints)
            config = structure_provider(pod, name, config_class, complaints)
            if (found := _machine_of(config)) is None:
                continue
            key, machine = found
            other = machines.setdefault((name, *machine), pod)
            if other is not pod:
                problem = f"is that of the pod {other.name}, too: each pod needs one of its own"
                complaints.add(".".join(_path_of(pod, name, key)), problem, hint=False)
        _check_names(pod, settings, config_of, complaints)


def _check_replicas(pod: PodSettings, provider: str, most: int, complaints: Complaints) -> None:
    key = pod.path_of("replicas")
    if not complaints.is_faulty(key) and replica_range(pod.pod.replicas)[1] > most:
        can = "has no replicas" if most == 1 else f"has at most {most} replicas"
        complaints.add(key, f"the provider {provider} {can}")


def _machine_of(config: Any) -> tuple[str, list[object]] | None:
    """Return by which key a provider's configuration names a machine (or all that it makes), and its name."""
    is_made = getattr(config, "mode", "") == "ephemeral"
    for keys in _MADE if is_made else _FIXED:
        values = [getattr(config, key, None) for key in keys]
        is_pattern = "{" in str(values[0])  # filled in for each pod
        if values[0] and None not in values and not is_pattern:
            return keys[0], [*keys, *values]
    return None


def _check_names(pod: PodSettings, settings: Settings, config_of: ConfigOf, complaints: Complaints) -> None:
    """Complain about sections of a pod that are no provider's."""
    for name in dict.fromkeys(key.rpartition(".")[0] for key in sorted(pod.own) if "." in key):
        if name in pod.pod.provider or name in settings.providers:
            continue
        try:
            config_of(name)
        except SettingsError:
            close = difflib.get_close_matches(name, [*pod.pod.provider, *fields_of(NamedPod)], n=1)
            says = f"did you mean pods.{pod.name}.{close[0]}?" if close else "no such provider is installed"
            given: Any = next(iter(pod.providers[name].values()))
            complaints.add(f"pods.{pod.name}.{name}", f"unknown section; {says}", given, hint=False)


def structure_provider(
    pod: PodSettings, name: str, config_class: type[C], complaints: Complaints
) -> C | None:
    """Return the Config of one of a pod's providers; None, with a complaint, if something is wrong."""
    section: Any = pod.providers.get(name, {})
    complaints.raw.setdefault("providers", {})[name] = section
    complaints.raw.setdefault("pods", {}).setdefault(pod.name, {})[name] = section
    try:
        if not attrs.has(cast("type[Any]", config_class)):
            raise InvalidValue("its Config is no attrs class: ask its author")
        read_secret_files(section, config_class, lambda key: ".".join(_path_of(pod, name, key)), complaints)
        config, problems = structure(section, config_class)
    except InvalidValue as error:  # also: an annotation of the class means nothing
        complaints.add(f"providers.{name}", error.problem, hint=False)
        return None
    for problem in problems:
        *prefix, _ = _path_of(pod, name, str(problem.path[0]) if problem.path else "")
        complaints.add_problems([problem], *prefix)
    return config


def _path_of(pod: PodSettings, provider: str, key: str) -> tuple[str, ...]:
    """Return the path at which a provider's key is given for this pod, or should be."""
    same_secret = (key, f"{key}_file", key.removesuffix("_file"))
    is_own = any(f"{provider}.{one}" in pod.own for one in same_secret)
    has_section = any(one.startswith(f"{provider}.") for one in pod.own)
    if is_own or (has_section and key not in pod.providers[provider]):
        return ("pods", pod.name, provider, key)
    return ("providers", provider, key)
