"""Reads settings from a file, the environment and flags, and validates them; all complaints come at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from attrs import evolve

from gpugate.config import consistency
from gpugate.config.complaints import Complaints
from gpugate.config.converter import fields_of, secret_files_of, structure
from gpugate.config.pods import (
    ConfigOf,
    check_providers,
    pod_of,
    pod_sections,
    provider_sections,
    structure_provider,
    take_provider_tables,
    use_provider_sections,
    with_defaults,
)
from gpugate.config.schema import (
    DEFAULT_SOURCE,
    NO_FILE,
    SECTIONS,
    PodSettings,
    Settings,
    State,
)
from gpugate.config.secret_files import read_secret_files, use_credentials
from gpugate.config.sources import (
    SourcedValue,
    add_environment,
    credential_files,
    default_state_dir,
    put,
    read_file,
)
from gpugate.errors import SettingsError

C = TypeVar("C")


def load_settings(
    path: Path | None,
    env: Mapping[str, str],
    *,
    overrides: Mapping[str, object] | None = None,
    complete: bool = True,
    config_of: ConfigOf | None = None,
    max_replicas_of: Callable[[str], int] | None = None,
    state_problem: Callable[[Path], str | None] | None = None,
    several: bool = True,
) -> Settings:
    """Return the settings of a file (None: no file), variables over it, and `overrides` over both.

    Args:
        path: the file; relative paths in it are relative to its folder, those in variables are not.
        env: the environment; only `GPUGATE_<SECTION>__<KEY>` variables are used.
        overrides: dotted keys with a plain value, or with a SourcedValue that names its flag.
        complete: False does not require the keys that only `serve` needs.
        config_of: returns a provider's Config class by its name; if given, the sections of the selected
            providers are validated too.
        max_replicas_of: returns how many replicas a provider can have at most; needs `config_of`.
        state_problem: returns what is wrong with the folder of `state.dir`, or None; for commands that use
            the folder.
        several: False: the only pod is that of `[pod]`, and `[pods.<name>]` are only read.

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
    providers = provider_sections(raw.pop("providers", {}), complaints)
    pods = pod_sections(raw.pop("pods", {}), complaints)
    take_provider_tables(raw.get("pod", {}), providers, "pod.provider", complaints)
    for name, keys in pods.items():
        take_provider_tables(keys, keys, f"pods.{name}.provider", complaints)
    credentials = credential_files(env)
    use_credentials(raw, SECTIONS, credentials)
    for section, section_class in SECTIONS.items():
        read_secret_files(raw.get(section), section_class, f"{section}.{{}}".format, complaints)
    structured, problems = structure(raw, Settings)
    complaints.add_problems(problems)
    settings = structured or Settings()
    raw["pods"] = pods
    named = [pod_of(name, keys, settings.pod, credentials, complaints) for name, keys in pods.items()]
    all_keys = [settings.pod, *(one.pod for one in named)]
    all_names = dict.fromkeys(name for keys in all_keys for name in keys.provider)
    use_provider_sections(providers, all_names, "providers", credentials)
    named = [with_defaults(pod, providers) for pod in named]
    folder = path.parent if path else Path()
    settings = evolve(
        settings, providers=providers, named_pods=tuple(named), source=complaints.source, folder=folder
    )
    if not settings.state.dir:
        settings = evolve(settings, state=State(dir=str(default_state_dir(env) or "")))

    complaints.add_all(consistency.contradictions(settings))
    complaints.add_all(consistency.missing(settings) if complete else ())
    if not several:
        settings = evolve(settings, named_pods=(), comfyui=evolve(settings.comfyui, pod=""))
    if config_of:
        check_providers(settings, config_of, complaints, max_replicas_of)
    if state_problem and settings.state.dir and not complaints.is_faulty("state.dir"):
        found = state_problem(Path(settings.state.dir))
        complaints.add_all([("state.dir", f"{settings.state.dir} {found}")] if found else [])
    if complaints.lines:
        raise SettingsError([*dict.fromkeys(complaints.lines)])  # pods may share a section, and its faults
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
    return _config_of(pod or settings.pods[0], name, config_class, settings.source)


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
    return _config_of(PodSettings(providers={name: section}), name, config_class, source)


def _config_of(pod: PodSettings, name: str, config_class: type[C], source: str) -> C:
    complaints = Complaints(source, {})
    config = structure_provider(pod, name, config_class, complaints)
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


def _with_source(value: object, source: str, folder: Path = Path()) -> SourcedValue:
    return value if isinstance(value, SourcedValue) else SourcedValue(value, source, folder=folder)
