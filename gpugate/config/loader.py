"""Reads settings from a file, the environment and flags, and validates them; all complaints come at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
from attrs import evolve

from gpugate.config import consistency
from gpugate.config.complaints import Complaints
from gpugate.config.converter import fields_of, secret_files_of, structure
from gpugate.config.schema import (
    DEFAULT_SOURCE,
    NO_FILE,
    SECTIONS,
    PodSettings,
    Settings,
    State,
)
from gpugate.config.sources import (
    Raw,
    SourcedValue,
    add_environment,
    credential_files,
    default_state_dir,
    put,
    read_file,
)
from gpugate.config.validators import InvalidValue
from gpugate.errors import SettingsError

C = TypeVar("C")
ConfigOf = Callable[[str], type[Any]]
_MAX_SECRET_BYTES = 64 * 1024


def load_settings(
    path: Path | None,
    env: Mapping[str, str],
    *,
    overrides: Mapping[str, object] | None = None,
    complete: bool = True,
    config_of: ConfigOf | None = None,
    state_problem: Callable[[Path], str | None] | None = None,
) -> Settings:
    """Return the settings of a file (None: no file), variables over it, and `overrides` over both.

    Args:
        path: the file; relative paths in it are relative to its folder, those in variables are not.
        env: the environment; only `GPUGATE_<SECTION>__<KEY>` variables are used.
        overrides: dotted keys with a plain value, or with a SourcedValue that names its flag.
        complete: False does not require the keys that only `serve` needs.
        config_of: returns a provider's Config class by its name; if given, the sections of the selected
            providers are validated too.
        state_problem: returns what is wrong with the folder of `state.dir`, or None; for commands that use
            the folder.

    Raises:
        SettingsError: with every complaint.
    """
    raw = read_file(path) if path else {}
    add_environment(raw, env)
    for key, value in (overrides or {}).items():
        put(raw, key.split("."), _with_source(value, "command line"))

    complaints = Complaints(str(path) if path else NO_FILE, raw, known_keys())
    complaints.reject_single_underscores(env)
    complaints.reject_single_tables(env)
    providers = _provider_sections(raw.pop("providers", {}), complaints)
    credentials = credential_files(env)
    _use_credentials(raw, credentials)
    _read_secret_files(raw, SECTIONS, complaints)
    structured, problems = structure(raw, Settings)
    complaints.add_problems(problems)
    settings = structured or Settings()
    for name in settings.pod.provider:  # a variable's name has no "-"
        if "-" in name and (of_variables := providers.pop(name.replace("-", "_"), None)):
            providers[name] = {**providers.get(name, {}), **of_variables}
    _use_provider_credentials(providers, settings.pod.provider, credentials)
    folder = path.parent if path else Path()
    settings = evolve(settings, providers=providers, source=complaints.source, folder=folder)
    if not settings.state.dir:
        settings = evolve(settings, state=State(dir=str(default_state_dir(env) or "")))

    complaints.add_all(consistency.contradictions(settings))
    complaints.add_all(consistency.missing(settings) if complete else ())
    if config_of:
        for name in settings.pod.provider:
            _check_provider(name, config_of, providers.get(name, {}), complaints)
    if state_problem and settings.state.dir and not complaints.is_faulty("state.dir"):
        found = state_problem(Path(settings.state.dir))
        complaints.add_all([("state.dir", f"{settings.state.dir} {found}")] if found else [])
    if complaints.lines:
        raise SettingsError(complaints.lines)
    return settings


def provider_config(
    settings: Settings, name: str, config_class: type[C], pod: PodSettings | None = None
) -> C:
    """Return a provider's Config, as `[providers.<name>]` and the pod's own section say.

    Args:
        pod: whose provider it is; None: the first pod's.

    Raises:
        SettingsError: with every complaint.
    """
    raw = (pod or settings.pods[0]).providers.get(name, {})
    return structure_provider_config(name, config_class, raw, source=settings.source, folder=settings.folder)


def structure_provider_config(
    name: str,
    config_class: type[C],
    raw: Mapping[str, object],
    *,
    source: str = DEFAULT_SOURCE,
    folder: Path | None = None,
) -> C:
    """Return a provider's Config of its section, validated as strictly as gpugate's own sections.

    Args:
        raw: the section's keys with plain values or SourcedValues.
        source: names the configuration in complaints.
        folder: what relative paths in plain values are relative to.

    Raises:
        SettingsError: with every complaint.
    """
    section = {key: _with_source(value, source, folder or Path()) for key, value in raw.items()}
    complaints = Complaints(source, {"providers": {name: section}})
    config = _structure_provider(name, config_class, section, complaints)
    if complaints.lines or config is None:
        raise SettingsError(complaints.lines)
    return config


def known_keys() -> list[str]:
    """Return every dotted key of the settings, `<secret>_file` included, in the order of the classes."""
    return [
        f"{section}.{key}"
        for section, section_class in SECTIONS.items()
        for key in (*fields_of(section_class), *secret_files_of(section_class))
    ]


def _provider_sections(providers: Any, complaints: Complaints) -> dict[str, dict[str, SourcedValue]]:
    """Return `[providers.<name>]` by name, not yet structured: their classes may not be installed."""
    if isinstance(providers, SourcedValue):
        complaints.add("providers", "must be sections, [providers.<name>]", providers, hint=False)
        return {}
    for name, section in providers.items():
        if isinstance(section, SourcedValue):
            how = f"[providers.{name}], with keys (a variable is GPUGATE_PROVIDERS__<NAME>__<KEY>)"
            complaints.add(f"providers.{name}", f"must be a section, {how}", section, hint=False)
    return {name: section for name, section in providers.items() if isinstance(section, dict)}


def _use_credentials(raw: Raw, credentials: Mapping[str, SourcedValue]) -> None:
    """Take each secret that is given nowhere else from the service manager's file of its name."""
    for section, section_class in SECTIONS.items():
        for file_key, key in secret_files_of(section_class).items():
            _use_credential(raw, section, key, file_key, credentials.get(f"{section}_{key}"))


def _use_provider_credentials(
    providers: dict[str, dict[str, SourcedValue]],
    names: Iterable[str],
    credentials: Mapping[str, SourcedValue],
) -> None:
    """Do the same for the configured providers, whose classes need not be installed."""
    for name in names:
        prefix = f"providers_{name.replace('-', '_')}_"
        for file, value in credentials.items():
            if file.startswith(prefix):
                key = file.removeprefix(prefix)
                _use_credential(providers, name, key, f"{key}_file", value)


def _use_credential(raw: Raw, section: str, key: str, file_key: str, credential: SourcedValue | None) -> None:
    given: Any = raw.get(section, {})
    if credential is None or not isinstance(given, dict):
        return
    if all(one not in given or given[one].value == "" for one in (key, file_key)):
        raw.setdefault(section, {})[file_key] = credential


def _check_provider(name: str, config_of: ConfigOf, section: Raw, complaints: Complaints) -> None:
    try:
        config_class = config_of(name)
    except SettingsError as error:
        for line in error.complaints:
            complaints.add("pod.provider", line.removeprefix("pod.provider: "), hint=False)
    else:
        complaints.raw["providers"] = {name: section}
        _structure_provider(name, config_class, section, complaints)


def _structure_provider(name: str, config_class: type[C], section: Raw, complaints: Complaints) -> C | None:
    path = f"providers.{name}"
    try:
        if not attrs.has(cast("type[Any]", config_class)):
            raise InvalidValue("its Config is no attrs class: ask its author")
        _read_secret_files({path: section}, {path: config_class}, complaints)
        config, problems = structure(section, config_class)
    except InvalidValue as error:  # also: an annotation of the class means nothing
        complaints.add(path, error.problem, hint=False)
        return None
    complaints.add_problems(problems, "providers", name)
    return config


def _read_secret_files(raw: Raw, classes: Mapping[str, type[Any]], complaints: Complaints) -> None:
    """Replace each `<key>_file` of a section by `<key>` with the file's content."""
    for path, config_class in classes.items():
        section: Any = raw.get(path)
        for file_key, key in secret_files_of(config_class).items() if isinstance(section, dict) else ():
            file, given = section.pop(file_key, None), section.get(key)
            if file is None or file.value == "":
                continue
            if given is not None and given.value != "":
                del section[key]
                problem = f"is given twice, also as {path}.{file_key}"
                complaints.add(f"{path}.{key}", problem, file, hint=False)
                continue
            section.pop(key, None)
            try:
                section[key] = evolve(file, value=_read_secret(file))
            except InvalidValue as error:
                complaints.add(f"{path}.{file_key}", error.problem, file)
                complaints.faulty.add(f"{path}.{key}")


def _read_secret(file: SourcedValue) -> str:
    """Return the content of a secret's file, without the newline at its end; raise InvalidValue."""
    if not isinstance(file.value, str):
        raise InvalidValue("must be the path of a file that holds the secret")
    try:
        text = file.resolve(file.value).read_bytes()[:_MAX_SECRET_BYTES].decode().rstrip("\r\n")
    except OSError as error:
        raise InvalidValue(f"cannot be read: {error.strerror or type(error).__name__}") from error
    except ValueError as error:
        raise InvalidValue("cannot be read: it is not a text file") from error
    if not text:
        raise InvalidValue("cannot be used: the file is empty")
    return text


def _with_source(value: object, source: str, folder: Path = Path()) -> SourcedValue:
    return value if isinstance(value, SourcedValue) else SourcedValue(value, source, folder=folder)
