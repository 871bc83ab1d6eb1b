"""The one way from a file, the environment and flags to checked Settings; starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from gpugate.config import consistency
from gpugate.config.converter import from_text, is_secret, keys_of, types_of
from gpugate.config.given import Given, nearest, shown, variable
from gpugate.config.schema import DEFAULT_SOURCE, NO_FILE, SECTIONS, Settings
from gpugate.config.section import Reader, Section
from gpugate.config.sources import (
    Raw,
    add_environment,
    add_overrides,
    default_state_dir,
    from_file,
    read_file,
)
from gpugate.errors import SettingsError

C = TypeVar("C")
ConfigOf = Callable[[str], type[Any]]
ProblemOf = Callable[[Path], str | None]


def load_settings(
    path: Path | None,
    env: Mapping[str, str],
    *,
    overrides: Mapping[str, object] | None = None,
    complete: bool = True,
    config_of: ConfigOf | None = None,
    state_problem: ProblemOf | None = None,
) -> Settings:
    """Return the settings of a file (None: no file), variables over it, and `overrides` over both.

    Args:
        path: the file; relative paths in it are relative to its folder, those in variables are not.
        env: the environment; `GPUGATE_<SECTION>__<KEY>` counts, all else does not.
        overrides: dotted keys, with a plain value or a `Given` that knows its flag.
        complete: False asks only for what is given to be right, not for all that `serve` needs.
        config_of: the Config class of a provider's name; the selected ones' sections are then checked.
        state_problem: says what is wrong with the folder of `state.dir`, for those who are going to use it.

    Raises:
        SettingsError: with every complaint there is.
    """
    source, folder = (str(path), path.parent) if path else (NO_FILE, Path())
    raw = from_file(read_file(path), source) if path else {}
    add_environment(raw, env, _provider_names(raw, env, overrides or {}))
    add_overrides(raw, overrides or {})

    reader = Reader(source, folder, known=known_keys())
    _refuse_slips(reader, env)
    values = _sections(reader, raw)
    providers = _providers(reader, raw)
    settings = Settings(**values, providers=providers, source=source, folder=folder)
    settings = _with_state_dir(settings, env)
    _check_across(reader, raw, settings, complete=complete)
    if config_of is not None:
        _check_providers(reader, raw, providers, settings.pod.provider, config_of)
    if state_problem is not None:
        _check_state(reader, raw, settings, state_problem)
    if reader.complaints:
        raise SettingsError(reader.complaints)
    return settings


def provider_config(settings: Settings, name: str, config_class: type[C]) -> C:
    """Return a provider's own Config, from `[providers.<name>]`; raise SettingsError if that is wrong."""
    return structure_provider_config(
        name, config_class, settings.providers.get(name, {}), source=settings.source, folder=settings.folder
    )


def structure_provider_config(
    name: str,
    config_class: type[C],
    raw: Mapping[str, object],
    env: Mapping[str, str] | None = None,
    *,
    source: str = DEFAULT_SOURCE,
    folder: Path | None = None,
) -> C:
    """Return a provider's Config from its section, as strictly as gpugate's own.

    A number may have a unit where the class wants a float ("6s") or an int ("64MiB"); a field of
    text with `repr=False` is a secret, which `<key>_file` gives too. Variables of `env`, if given,
    lie over `raw`.

    Raises:
        SettingsError: with every complaint there is.
    """
    section: Raw = {"providers": {name: {k: _as_given(v, source) for k, v in raw.items()}}}
    add_environment(section, {k: v for k, v in (env or {}).items() if _is_of(name, k)}, [name])
    reader = Reader(source, folder or Path())
    config = _provider_section(reader, name, config_class, section["providers"][name])
    if reader.complaints or config is None:
        raise SettingsError(reader.complaints)
    return config


def known_keys() -> list[str]:
    """Return every dotted key of the settings, `<secret>_file` included, in the order of the classes."""
    keys = []
    for section, section_class in SECTIONS.items():
        types = types_of(section_class)
        for key, attribute in keys_of(section_class).items():
            keys.append(f"{section}.{key}")
            if is_secret(attribute, types[key]):
                keys.append(f"{section}.{key}_file")
    return keys


def _sections(reader: Reader, raw: Raw) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for section in raw:
        if section not in SECTIONS and section != "providers":
            _refuse_section(reader, section, raw[section])
    for section, section_class in SECTIONS.items():
        given = raw.get(section, {})
        if isinstance(given, Given):
            reader.complain(
                given, section, f"must be a section, [{section}], is {shown(given.value)}", hint=False
            )
            given = {}
        values[section] = reader.section(section, section_class, given) or section_class()
    return values


def _refuse_section(reader: Reader, section: str, given: Given | Mapping[str, Given]) -> None:
    if isinstance(given, Given):  # `port = 1` above the first section
        reader.unknown(given, section, [])
        return
    meant = nearest(section, [*SECTIONS, "providers"])
    says = f"did you mean [{meant}]?" if meant else f"there are {', '.join(SECTIONS)} and providers.<name>"
    told = set()
    for key, value in given.items():
        # a variable is a complaint of its own; of the file's keys the section is what is wrong
        inner = isinstance(value, Given) and value.untyped
        place, name = (value, f"{section}.{key}") if inner else (None, section)
        if name not in told:
            reader.complain(place, name, f"unknown section {section}; {says}", hint=False)
        told.add(name)
    if not given:
        reader.complain(None, section, f"unknown section {section}; {says}", hint=False)


def _providers(reader: Reader, raw: Raw) -> dict[str, dict[str, Given]]:
    given = raw.get("providers", {})
    if isinstance(given, Given):
        problem = f"must be sections, [providers.<name>], is {shown(given.value)}"
        reader.complain(given, "providers", problem, hint=False)
        return {}
    sections = {}
    for name, section in given.items():
        if isinstance(section, dict):
            sections[name] = section
        elif section.untyped:
            problem = "unknown key; it is GPUGATE_PROVIDERS__<NAME>__<KEY>"
            reader.complain(section, f"providers.{name}", problem, hint=False)
        else:
            problem = f"must be a section, [providers.{name}]"
            reader.complain(section, f"providers.{name}", problem, hint=False)
    return sections


def _provider_names(raw: Raw, env: Mapping[str, str], overrides: Mapping[str, object]) -> list[str]:
    """Return the selected providers' names, before anything is checked."""
    pod = raw.get("pod", {})
    stated = [
        pod.get("provider") if isinstance(pod, dict) else None,
        env.get(variable("pod.provider")),
        overrides.get("pod.provider"),
    ]
    names: list[str] = []
    for value in stated:
        plain = value.value if isinstance(value, Given) else value
        listed = from_text(plain, tuple[str, ...]) if isinstance(plain, str) else plain
        if isinstance(listed, Iterable):
            names += [name.lower() for name in listed if isinstance(name, str)]
    return names


def _with_state_dir(settings: Settings, env: Mapping[str, str]) -> Settings:
    if settings.state.dir:
        return settings
    default = default_state_dir(env)
    return attrs.evolve(settings, state=attrs.evolve(settings.state, dir=str(default or "")))


def _refuse_slips(reader: Reader, env: Mapping[str, str]) -> None:
    """Complain about variables with one underscore where two belong: they would be left out in silence."""
    meant_by = {variable(key).replace("__", "_"): variable(key) for key in reader.known}
    for name in sorted(env):
        meant = meant_by.get(name)
        if name.startswith(variable("providers") + "_") and "__" not in name:
            meant = variable("providers.<name>.<key>")
        # the command hands its state folder on by this name; Docker and Kubernetes write such ports
        if meant is None or name == "GPUGATE_STATE_DIR" or env[name].startswith(("tcp://", "udp://")):
            continue
        reader.complaints.append(f"{name}: unknown variable; did you mean {meant} (two underscores)?")


def _check_state(reader: Reader, raw: Raw, settings: Settings, problem_of: ProblemOf) -> None:
    """Ask what is wrong with the state folder, unless something is wrong with the key already."""
    key = "state.dir"
    if not settings.state.dir or {key, "state"} & reader.faulty:
        return
    if problem := problem_of(Path(settings.state.dir)):
        given = raw.get("state", {}).get("dir")
        reader.complain(given, key, f"{settings.state.dir} {problem}")


def _check_across(reader: Reader, raw: Raw, settings: Settings, *, complete: bool) -> None:
    findings = [*consistency.contradictions(settings), *(consistency.lacks(settings) if complete else ())]
    for key, problem in findings:
        section, _, last = key.partition(".")
        given = raw.get(section, {})
        # what has been complained about has a default in its place, which would be blamed for nothing
        if not {key, section} & reader.faulty:
            reader.complain(given.get(last) if isinstance(given, dict) else None, key, problem)


def _check_providers(
    reader: Reader, raw: Raw, sections: Mapping[str, Section], selected: Iterable[str], config_of: ConfigOf
) -> None:
    for name in selected:
        try:
            config_class = config_of(name)
        except SettingsError as error:
            for line in error.complaints:
                problem = line.removeprefix("pod.provider: ")
                reader.complain(raw["pod"]["provider"], "pod.provider", problem, hint=False)
        else:
            # also without a section: a key may be needed
            _provider_section(reader, name, config_class, sections.get(name, {}))


def _provider_section(reader: Reader, name: str, config_class: type[C], raw: Mapping[str, Given]) -> C | None:
    if not attrs.has(config_class):
        reader.complain(None, f"providers.{name}", "its Config is no attrs class: ask its author", hint=False)
        return None
    return reader.section(f"providers.{name}", config_class, raw)


def _as_given(value: object, source: str) -> Given:
    return value if isinstance(value, Given) else Given(value, source)


def _is_of(name: str, env_name: str) -> bool:
    return env_name.startswith(variable(f"providers.{name}") + "__")
