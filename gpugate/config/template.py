"""The commented configuration that `gpugate init` writes: of the schema and of the installed providers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Any

import attrs

from gpugate.config.converter import default_of, fields_of, secret_files_of
from gpugate.config.schema import LISTS, SECTIONS, NamedPod, Pod
from gpugate.config.units import show_duration
from gpugate.provider_api import Duration, Provider

_HEAD = """\
# gpugate's configuration. Every key is here with its default; a key that is deleted keeps its default.
# Two have none: auth.secret and pod.provider. Once they are set, `gpugate check` validates the file.
#
# Every key is also an environment variable, GPUGATE_<SECTION>__<KEY>, which wins over this file:
# GPUGATE_POD__IDLE_TIMEOUT=30m, GPUGATE_PROVIDERS__RUNPOD__API_KEY=...
# Every secret may be in a file of its own: secret_file = "/run/secrets/gpugate" instead of secret.
# Durations are "90s", "15m", "1h30m" or a number of seconds; sizes are "64MiB", "20MB" or bytes.
"""

_PROVIDERS = "# Providers. Only the sections of those that pod.provider names are read.\n"


def commented_config(providers: Mapping[str, type[Provider]]) -> str:
    """Return the text of a configuration with every key, its default and its comment.

    Args:
        providers: the installed providers, by name: each one's section has the keys of its Config.
    """
    sections = [_section(name, section_class) for name, section_class in SECTIONS.items()]
    lists = [_commented(_section(f"[{name}]", table, _about(table))) for name, table in LISTS.items()]
    lists.append(_commented(_named_pod()))
    of_providers = [
        _section(f"providers.{name}", provider.Config, provider.Config.__doc__ or "")
        for name, provider in sorted(providers.items())
    ]
    return "\n".join(
        [_HEAD, *("\n".join(lines) + "\n" for lines in (*sections, *lists)), _PROVIDERS]
        + ["\n".join(lines) + "\n" for lines in of_providers]
    )


def _commented(lines: Iterator[str]) -> Iterator[str]:
    return (line if line.startswith("#") else f"# {line}" for line in lines)


def _named_pod() -> Iterator[str]:
    """Yield the section of one of several pods, with the keys that `[pod]` has not."""
    about = (NamedPod.__doc__ or "").partition("\n")[0]
    yield from _section("pods.NAME", NamedPod, about, leaving_out=fields_of(Pod).keys())
    yield "[pods.NAME.runpod]  # goes before [providers.runpod], key by key"


def _about(table: type[Any]) -> str:
    return f"{table.__doc__} Any number of them."


def _section(
    name: str, config_class: type[Any], about: str = "", leaving_out: Collection[str] = ()
) -> Iterator[str]:
    yield f"[{name}]" + (f"  # {about.splitlines()[0]}" if about else "")
    secrets = secret_files_of(config_class).values()
    for key, attribute in fields_of(config_class).items():
        if key in leaving_out:
            continue
        help_text = attribute.metadata.get("help", "") + (f" (or {key}_file)" if key in secrets else "")
        default = written_default(attribute)
        line = f"# {key} =" if default is None else f"{key} = {toml_value(default)}"
        yield f"{line:<26}  # {help_text}" if help_text else line


def written_default(attribute: attrs.Attribute[Any]) -> object:
    """Return a key's default as it is written in a file: "15m" for 900.0 s; None where there is none."""
    default = default_of(attribute)
    if "text" in attribute.metadata:
        return attribute.metadata["text"]
    if default is attrs.NOTHING:
        return "" if attribute.type is str else None
    return show_duration(default) if attribute.type == Duration else default


def toml_value(value: object) -> str:
    """Return a value as TOML writes it in one line."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{json.dumps(key)} = {toml_value(inner)}" for key, inner in value.items()) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False, default=str)
