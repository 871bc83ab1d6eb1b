"""Writes the pages of `docs/reference/` that are read from the code: `make reference`."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import attrs

from gpugate.cli.parser import parse
from gpugate.config.converter import fields_of, secret_files_of
from gpugate.config.schema import LISTS, SECTIONS, NamedPod, Pod
from gpugate.config.template import toml_value, written_default
from gpugate.providers import registry

FOLDER = Path(__file__).parent / "reference"
PROVIDERS = ("demo", "local", "runpod", "vastai")
"""Those of this repository."""

_SETTINGS = """\
# Settings

Written by `make reference` from the classes of the settings; a test compares. `gpugate init` writes a file
with all of them. What you leave out keeps its default; only `auth.secret` (or `auth.jwks_url`) and
`pod.provider` have to be set.

How values are written, and what a wrong one does, is in [the contract](../api.md#configuration): durations
are `"15m"`, sizes `"64MiB"`. Each key is also a variable, such as `GPUGATE_POD__IDLE_TIMEOUT` for
`pod.idle_timeout`, and a variable wins over the file. A *secret* may stand in a file of its own:
`secret_file` in place of `secret`.
"""

_PODS = """\
Every key of `[pod]` is one of each pod, too: what it leaves out is as in `[pod]`, and `[pods.NAME.runpod]`
goes before `[providers.runpod]`, key by key. [How to have several pods](../howto/several-pods.md).
"""

_COMMANDS = """\
# Command line

Written by `make reference` from the commands themselves; a test compares. What they promise, and their exit
status, is in [the contract](../api.md#command-line).

Every command takes `--help` and `--config FILE`. Without it the file is `./gpugate.toml`, then
`$XDG_CONFIG_HOME/gpugate/gpugate.toml`, then `/etc/gpugate/gpugate.toml`. Commands that talk to a running
gateway find it by the variables `GPUGATE_URL` and `GPUGATE_TOKEN`.
"""


def settings_page() -> str:
    """Return the page of all settings, those of the providers in this repository included."""
    installed = {plugin.name: plugin for plugin in registry.installed()}
    lines = [_SETTINGS]
    for name, section in SECTIONS.items():
        lines += [f"## [{name}]", "", *_about(section), *_keys(section), ""]
    for name, table in LISTS.items():
        lines += [f"## [[{name}]]", "", *_about(table), *_keys(table), ""]
    lines += [
        "## [pods.NAME]",
        "",
        *_about(NamedPod),
        _PODS,
        *_keys(NamedPod, leaving_out=fields_of(Pod)),
        "",
    ]
    for name in PROVIDERS:
        config = installed[name].load().Config
        lines += [f"## [providers.{name}]", "", *_about(config), *_keys(config), ""]
    return "\n".join(lines).rstrip() + "\n"


def _about(section: type[Any]) -> Iterator[str]:
    if words := (section.__doc__ or "").strip():
        first = words.split("\n")[0].split(". ")[0].rstrip(".") + "."
        yield from (re.sub(r"\(docs/([\w.#-]+)\)", r"([more](../\1))", first), "")


def _keys(section: type[Any], leaving_out: Collection[str] = ()) -> Iterator[str]:
    yield from ("| key | default | |", "|---|---|---|")
    secrets = set(secret_files_of(section).values())
    for key, attribute in fields_of(section).items():
        if key in leaving_out:
            continue
        mark = " *secret*" if key in secrets else ""
        yield f"| `{key}`{mark} | {_default(attribute)} | {_text(attribute.metadata.get('help', ''))} |"


def _default(attribute: attrs.Attribute[Any]) -> str:
    default = written_default(attribute)
    return "" if default is None else f"`{toml_value(default)}`".replace("|", "\\|")


def _text(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def commands_page() -> str:
    """Return the page of all commands of gpugate itself."""
    lines = [_COMMANDS]
    for command in _commands():
        usage, about, *rows = _help_of(command)
        lines += [f"## gpugate {command}", "", f"{about[:1].upper()}{about[1:].rstrip('.')}.", ""]
        lines += [f"`{usage}`", ""]
        if rows:
            lines += ["| argument | |", "|---|---|", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


def _commands(*above: str) -> Iterator[str]:
    """Yield the commands; those with commands below them as these ("token issue")."""
    for name in re.findall(r"^    ([a-z][a-z-]*)", _help_text(*above), re.MULTILINE):
        yield from list(_commands(*above, name)) or [" ".join([*above, name])]


def _help_of(command: str) -> Iterator[str]:
    """Yield usage, description and the table's rows of a command."""
    usage, about, *blocks = _help_text(*command.split()).strip().split("\n\n")
    yield re.sub(r"^usage: | \[-h\]| \[--config FILE\]", "", usage)
    yield about
    for name, words in re.findall(r"^  (\S.*?)(?:  +|\n {3,})(\S.*)$", "\n".join(blocks), re.MULTILINE):
        if name not in ("-h, --help", "--config FILE"):
            yield f"| `{name}` | {_text(words)} |"


def _help_text(*words: str) -> str:
    """Return what `--help` of a command prints, in lines that are not wrapped."""
    output = io.StringIO()
    columns, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "500"
    try:
        with redirect_stdout(output), suppress(SystemExit):
            parse([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({} if columns is None else {"COLUMNS": columns})
    return output.getvalue()


PAGES = {"settings.md": settings_page, "commands.md": commands_page}


if __name__ == "__main__":
    for page, render in PAGES.items():
        (FOLDER / page).write_text(render(), encoding="utf-8")
        sys.stdout.write(f"docs/reference/{page}\n")
